"""Ranges of ids for callers that are not root: /etc/subuid and /etc/subgid, newuidmap and newgidmap.

The kernel lets an unprivileged process map its own id only. The two programs have the privilege to map more, and the
two files say which, line by line: NAME-OR-UID:FIRST:COUNT.
"""

import errno
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from sandbox.causes import cause
from sandbox.errors import SetupError, UnsupportedError

# First id inside, first outside, how many: a line of /proc/PID/uid_map.
Extent: TypeAlias = tuple[int, int, int]

_FILES: Final = ("/etc/subuid", "/etc/subgid")
_PROGRAMS: Final = ("newuidmap", "newgidmap")
_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_TIMEOUT: Final = 30  # seconds


def parse(text: str, uid: int, name: str | None) -> tuple[list[tuple[int, int]], int]:
    """Return the ranges of a user, keyed by name or number, and the first id above all ranges of the file."""
    found, end = [], 100000
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        start, colon, count = rest.partition(":")
        if not colon or not start.isdecimal() or not count.strip().isdecimal():
            continue  # a comment, or what newuidmap does not read either
        first, size = int(start), int(count)
        if size and key in {name, str(uid)}:
            found.append((first, size))
        end = max(end, first + size)
    return found, end


def _account(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _ranges(path: str, uid: int, wanted: int) -> list[tuple[int, int]]:
    """Return ranges that hold as many ids as wanted.

    Raises:
        UnsupportedError: The file does not give the user so many.
    """
    name = _account(uid)
    if name is None:
        raise UnsupportedError(
            "id_ranges()",
            needed="an account for the caller: newuidmap looks it up by its user id",
            found=cause("user-unknown", uid=uid),
            errno=errno.EPERM,
        )
    try:
        with open(path) as stream:
            found, end = parse(stream.read(), uid, name)
    except FileNotFoundError:
        found, end = [], 100000
    have = sum(count for _, count in found)
    if have < wanted:
        option = "--add-subuids" if path.endswith("uid") else "--add-subgids"
        less = f"; or say id_ranges({have + 1})" if have else ""
        raise UnsupportedError(
            "id_ranges()",
            needed=f"{wanted} ids for {name} in {path}, beside its own",
            found=f"{have}" if have else "none",
            fix=f"as root: usermod {option} {end}-{end + 65535} {name}"
            f" (or the line {name}:{end}:65536 in {path}){less}",
            errno=errno.EPERM,
        )
    return found


def layout(inside: int, own: int, ranges: Iterable[tuple[int, int]], count: int) -> list[Extent]:
    """Return a map of `count` ids in which one is the caller's own, and the others come from ranges in turn."""
    extents: list[Extent] = []
    left = list(ranges)

    def fill(start: int, wanted: int) -> None:
        while wanted > 0 and left:
            first, size = left.pop(0)
            taken = min(size, wanted)
            extents.append((start, first, taken))
            if taken < size:
                left.insert(0, (first + taken, size - taken))
            start, wanted = start + taken, wanted - taken

    fill(0, min(inside, count))
    extents.append((inside, own, 1))
    fill(inside + 1, count - inside - 1)
    return extents


def check(uid: int, count: int) -> None:
    """Look whether a caller can have so many ids.

    Raises:
        UnsupportedError: A range or a program is missing, or nothing that the caller executes gains privileges.
    """
    import shutil

    from sandbox.primitives.process import PR_GET_NO_NEW_PRIVS, prctl

    for path in _FILES:
        _ranges(path, uid, count - 1)
    for program in _PROGRAMS:
        if shutil.which(program, path=_PATH) is None:
            raise UnsupportedError(
                "id_ranges()",
                needed=f"the program {program}, which has the privilege to map more ids than the caller's own",
                found=cause("newuidmap-missing", name=program),
                errno=errno.ENOENT,
            )
    if prctl(PR_GET_NO_NEW_PRIVS):
        raise UnsupportedError(
            "id_ranges()",
            needed="newuidmap with the privilege that its set-id bit gives",
            found=cause("no-new-privs"),
            errno=errno.EPERM,
        )


def map_ids(pid: int, ids: Sequence[tuple[int, int]], uid: int, count: int, origin: str) -> None:
    """Let newuidmap and newgidmap write the maps of a process.

    Args:
        pid: The process, which waits for it.
        ids: Inside and outside: the caller's own user id, then its group id.
        uid: The caller's user id, whose ranges they are.
        count: How many ids there are inside.
        origin: The builder call that asked for it.

    Raises:
        SetupError: A program failed; its words are the hint.
        UnsupportedError: The ranges are gone.
    """
    import shutil
    import subprocess

    for path, program, (inside, own) in zip(_FILES, _PROGRAMS, ids, strict=True):
        extents: list[Extent] = layout(inside, own, _ranges(path, uid, count - 1), count)
        words = [program, str(pid), *(str(number) for extent in extents for number in extent)]
        found = shutil.which(program, path=_PATH) or program
        try:
            done = subprocess.run(
                words,
                executable=found,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={},
                cwd="/",
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SetupError(errno.ETIMEDOUT, call=" ".join(words), origin=origin) from None
        if done.returncode:
            said = done.stdout.decode("utf-8", "replace").strip()
            raise SetupError(errno.EPERM, call=" ".join(words), origin=origin, hint=_hint(said, found, path))


def _hint(said: str, program: str, path: str) -> str:
    """Add the likeliest cause to what the program said."""
    from sandbox import facts

    if facts.raises_privileges(program):
        why = f"{path} may not give the caller these ids, or the caller's own user namespace does not have them"
    else:
        why = str(cause("newuidmap-privileges", path=program))
    return f"{said}\n        {why}" if said else why
