"""What the command `sandbox` says when something is wrong, in the words of the command line."""

import errno
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from sandbox.attendance import FAILED, TIMED_OUT
from sandbox.errors import SandboxError, SetupError, UnsupportedError
from sandbox.options import options_of
from sandbox.result import Reason

if TYPE_CHECKING:
    from sandbox.process import Process

# Those of env(1) and the shells.
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


def outcome(process: "Process[Any]", status: int | None, timeout: float | None) -> tuple[list[str], int]:
    """Return what is to be said at the end, and the exit status.

    Args:
        process: What has ended.
        status: What `wait` returned.
        timeout: What it was given.
    """
    said = []
    if process.denials is not None and process.denials.seen:
        from sandbox import cli_seccomp

        said.append(cli_seccomp.denials(process.denials.seen))
    if status is not None:
        if status == TIMED_OUT:
            said.append(late(timeout))
        return said, status
    result = process.result()
    if result.reason not in {Reason.EXITED, Reason.SIGNALED}:
        said.append(_as_options(result.detail))
    if result.reason is Reason.INIT_DIED:
        return said, FAILED
    if result.reason is Reason.TIMEOUT:
        return said, TIMED_OUT
    return said, result.returncode if result.returncode >= 0 else 128 - result.returncode


def late(timeout: float | None) -> str:
    """Say that --timeout ended it."""
    return f"ended after {timeout:g} seconds, as --timeout says"


def failure(error: Exception) -> tuple[str, int]:
    """Return what is said of an error, and the exit status."""
    if isinstance(error, SetupError):
        status = FAILED
        if is_exec(error):
            status = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
        return _setup_text(error), status
    if isinstance(error, UnsupportedError):
        return _as_options(str(error)), FAILED
    if isinstance(error, OSError) and not isinstance(error, SandboxError):
        what = f"{error.filename}: " if error.filename is not None else ""
        return f"{what}{error.strerror or error}", FAILED
    return _as_options(str(error)), FAILED


def complain(text: str) -> None:
    """Say what is wrong; names that come from inside, or from files, must not speak to the terminal."""
    if sys.stderr is not None:
        if not text.isprintable():
            from sandbox.escapes import printable

            text = printable(text)
        sys.stderr.write(f"sandbox: {text}\n")


def is_exec(error: SetupError) -> bool:
    """Say whether all was set up, and it is the program that cannot be executed."""
    return error.step > 0 and error.call.startswith("execve(")


def _setup_text(error: SetupError) -> str:
    if is_exec(error):
        text = f"{error.filename}: {error.strerror}"
    else:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        where = f"step {error.step} of {error.steps}: " if error.step else ""
        text = f"{where}{error.call}: {error.strerror} ({name})"
    if error.origin.startswith("."):
        text += f"\n  from: {_as_options(error.origin)}"
    if error.hint:
        text += f"\n  hint: {_as_options(error.hint)}"
    return text


def _as_options(text: str) -> str:
    """Say in the words of the command line what a message says in those of the builder."""
    for said, option in _PHRASES:
        text = text.replace(said, option)
    text = re.sub(r"\.?\blimit\(([a-z_]+)=((?:[^()]|\([^()]*\))*)\)", _limit_option, text)
    return re.sub(rf"(\.|\b)([a-z_]+)\(((?:{_QUOTED}|[^\")])*)\)(?=(\.[a-z])?)", _option, text, flags=re.DOTALL)


_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_PHRASES: Final = (
    ("pass optional=True", "append :optional (SRC:DST:optional)"),
    ("user(host_root=True)", "--host-root"),
    ("say owner=0 if", "append :owner=0 (SRC:DST:owner=0) if"),
    ("owner=UID for somebody else, or bind_readonly()", ":owner=UID for somebody else, or use --bind-readonly"),
    ("best_effort=True leaves out", "--landlock best-effort leaves out"),
)
# The one method whose name is that of a system call that messages name, too.
_A_CALL: Final = "seccomp"


def _option(match: re.Match[str]) -> str:
    dot, name, arguments, following = match.groups()
    option = f"--{name.replace('_', '-')}"
    if option not in options_of("run") or (dot != "." and name == _A_CALL):
        return match[0]
    words = [re.sub(r"\\(.)", r"\1", one[1:-1], flags=re.DOTALL) for one in re.findall(_QUOTED, arguments, re.DOTALL)]
    if ":" in options_of("run")[option].value:
        words = [re.sub(r"[:\\]", r"\\\g<0>", one) for one in words]
    return f"{option} {_for_a_shell(':'.join(words))}".rstrip() + (" " if following else "")


def _for_a_shell(text: str) -> str:
    import shlex

    if not text:
        return ""
    return shlex.quote(text) if text.isprintable() else f"${repr(os.fsencode(text))[1:]}"


def _limit_option(match: re.Match[str]) -> str:
    weak = " with --best-effort" if "best_effort" in match[2] else ""
    value = f" {match[2]}" if re.fullmatch(r"[\d.]+\w?", match[2]) and match[2] != "..." else ""
    return f"--{match[1].replace('_', '-')}{value}{weak}"
