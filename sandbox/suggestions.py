"""What was probably meant by a word of the command line that does not exist."""

import difflib
from collections.abc import Iterable
from typing import Final

# What other programs call it: bubblewrap, Docker and Podman, nsjail, firejail.
_ELSEWHERE: Final = {
    "--ro-bind": "--bind-readonly SRC:DST",
    "--bindmount": "--bind SRC:DST",
    "--bindmount_ro": "--bind-readonly SRC:DST",
    "--bind-try": "--bind SRC:DST:optional",
    "--ro-bind-try": "--bind-readonly SRC:DST:optional",
    "--volume": "--bind SRC:DST, or --bind-readonly",
    "-v": "--bind SRC:DST, or --bind-readonly",
    "--mount": "--bind SRC:DST, or --tmpfs DST",
    "--chroot": "--rootfs DIR",
    "--read-only": "it is so unless --bind or --rootfs DIR:rw says otherwise",
    "--chdir": "--cwd DIR",
    "--workdir": "--cwd DIR",
    "-w": "--cwd DIR",
    "--setenv": "--env NAME=VALUE",
    "-e": "--env NAME=VALUE",
    "--unsetenv": "--unset-env NAME",
    "--clearenv": "it is so unless --inherit-env says otherwise",
    "--uid": "--user UID[:GID]",
    "--gid": "--user UID:GID",
    "-u": "--user UID[:GID]",
    "-h": "--hostname NAME",
    "--unshare-net": "it is so unless --network host says otherwise",
    "--unshare-all": "it is so unless --share says otherwise",
    "--share-net": "--network host",
    "--net": "--network KIND",
    "-m": "--memory SIZE",
    "--pids-limit": "--pids COUNT",
    "--time_limit": "--wall-time SECONDS",
    "--cap-add": "--cap NAME",
    "--cap-drop": "there are none unless --cap says otherwise",
    "--security-opt": "--seccomp FILTER",
    "--die-with-parent": "it always does",
    "--new-session": "it is so unless --same-session says otherwise",
    "--rm": "nothing is ever left",
    "-it": "--tty, or sandbox shell",
    "-i": "its input is yours",
}


def for_option(name: str, known: Iterable[str]) -> str | None:
    """Return what to say of an option that does not exist; None when nothing is near.

    Args:
        name: With its dashes.
        known: Those that there are.
    """
    known = [*known, "--help"]
    begin = [one for one in known if len(name) > len("--x") and one.startswith(name)]
    if not begin and name in _ELSEWHERE:
        what = _ELSEWHERE[name]
        return f"here it is {what}" if what.startswith("-") else f"it is not needed: {what}"
    near = begin or difflib.get_close_matches(name, known, 3, 0.65)
    return f"did you mean {' or '.join(near)}?" if near else None


def for_subcommand(word: str, known: Iterable[str]) -> str:
    """Return what to say of a subcommand that does not exist."""
    near = difflib.get_close_matches(word, list(known), 2, 0.6)
    text = f"did you mean sandbox {' or sandbox '.join(near)}? " if near else ""
    if word.startswith("-"):
        return "a subcommand comes first, as in sandbox run [options] -- COMMAND; sandbox --help lists them"
    return f"{text}sandbox --help lists them; to run a program: sandbox run -- {word}"
