"""User and group ids: setresuid(2), setresgid(2), setgroups(2), and their reading.

The kernel gives each thread ids of its own; POSIX wants one set for the process, so the C library, through
which these calls go, changes every thread. A thread that kept its privileges would hand them to whoever
controls another.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._call import check, in_range

__all__ = ["Ids", "setresuid", "setresgid", "getresuid", "getresgid", "setgroups", "getgroups"]


class Ids(NamedTuple):
    """The three ids of a kind that a process has.

    Attributes:
        real: Whose process it is.
        effective: Whose permissions it has.
        saved: To which it may change back.
    """

    real: int
    effective: int
    saved: int


def _id(value: int, name: str, low: int = -1) -> int:
    # 2**32 - 1 is what the kernel takes for "leave it as it is"; that is said as -1 here.
    return in_range(value, low, 2**32 - 2, name) & 0xFFFFFFFF


def setresuid(ruid: int, euid: int, suid: int) -> None:
    """Set the user ids of all threads of the process.

    After this the process is not dumpable: /proc/self belongs to root until PR_SET_DUMPABLE.

    Args:
        ruid: Real id, 0 to 2**32 - 2, or -1 to leave it as it is.
        euid: Effective id, likewise.
        suid: Saved id, likewise.

    Raises:
        OSError: EPERM (CAP_SETUID is missing and the id is none of the present ones), EINVAL (no such id in
            the user namespace), EAGAIN (RLIMIT_NPROC, before Linux 5.15).

    See setresuid(2). Since Linux 2.1.44.
    """
    check(lib.setresuid(_id(ruid, "ruid"), _id(euid, "euid"), _id(suid, "suid")))


def setresgid(rgid: int, egid: int, sgid: int) -> None:
    """Set the group ids of all threads of the process.

    Args:
        rgid: Real id, 0 to 2**32 - 2, or -1 to leave it as it is.
        egid: Effective id, likewise.
        sgid: Saved id, likewise.

    Raises:
        OSError: EPERM (CAP_SETGID is missing and the id is none of the present ones), EINVAL (no such id in
            the user namespace).

    See setresgid(2). Since Linux 2.1.44.
    """
    check(lib.setresgid(_id(rgid, "rgid"), _id(egid, "egid"), _id(sgid, "sgid")))


def _three(call: Any) -> Ids:
    ids = ffi.new("unsigned int[3]")
    check(call(ids, ids + 1, ids + 2))
    return Ids(*ffi.unpack(ids, 3))


def getresuid() -> Ids:
    """Return real, effective and saved user id of the calling thread.

    Raises:
        OSError: None that is known.

    See getresuid(2). Since Linux 2.1.44.
    """
    return _three(lib.getresuid)


def getresgid() -> Ids:
    """Return real, effective and saved group id of the calling thread.

    Raises:
        OSError: None that is known.

    See getresgid(2). Since Linux 2.1.44.
    """
    return _three(lib.getresgid)


def setgroups(groups: Iterable[int]) -> None:
    """Set the supplementary groups of all threads of the process.

    Args:
        groups: Group ids, 0 to 2**32 - 2 each, at most 65,536; none to drop all.

    Raises:
        OSError: EPERM (CAP_SETGID is missing, or "deny" is in /proc/self/setgroups, or the user namespace has
            no group map yet), EINVAL (too many, or no such id in the user namespace).

    See setgroups(2). Since Linux 1.0.
    """
    ids = [_id(group, "groups", 0) for group in groups]
    check(lib.setgroups(len(ids), ffi.new("unsigned int[]", ids)))


def getgroups() -> list[int]:
    """Return the supplementary groups of the calling thread.

    Raises:
        OSError: None that is known.

    See getgroups(2). Since Linux 1.0.
    """
    # 65,536 is the kernel's limit: one call, with no race between asking how many and asking which.
    ids = ffi.new("unsigned int[65536]")
    return list(ffi.unpack(ids, check(lib.getgroups(65536, ids))))
