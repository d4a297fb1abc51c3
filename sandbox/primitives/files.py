"""openat2(2) and close_range(2), and the `AT_*` flags of every call that takes a directory descriptor."""

import errno
import os
from enum import IntFlag

from sandbox._native import lib
from sandbox.primitives._call import Fd, StrOrBytesPath, check, fd_of, in_range, os_error, path_bytes

__all__ = ["AtFlags", "ResolveFlags", "CloseRangeFlags", "openat2", "close_range"]
__all__ += ["AT_FDCWD", "AT_SYMLINK_NOFOLLOW", "AT_NO_AUTOMOUNT", "AT_EMPTY_PATH", "AT_RECURSIVE"]
__all__ += ["RESOLVE_NO_XDEV", "RESOLVE_NO_MAGICLINKS", "RESOLVE_NO_SYMLINKS", "RESOLVE_BENEATH"]
__all__ += ["RESOLVE_IN_ROOT", "RESOLVE_CACHED", "OPENAT2_REGULAR"]
__all__ += ["CLOSE_RANGE_UNSHARE", "CLOSE_RANGE_CLOEXEC"]

AT_FDCWD = -100
"""In place of a directory descriptor: the current working directory."""


class AtFlags(IntFlag):
    """How a path beside a directory descriptor is looked up."""

    SYMLINK_NOFOLLOW = 0x100
    NO_AUTOMOUNT = 0x800
    EMPTY_PATH = 0x1000
    RECURSIVE = 0x8000


AT_SYMLINK_NOFOLLOW = AtFlags.SYMLINK_NOFOLLOW
AT_NO_AUTOMOUNT = AtFlags.NO_AUTOMOUNT
AT_EMPTY_PATH = AtFlags.EMPTY_PATH
AT_RECURSIVE = AtFlags.RECURSIVE


class ResolveFlags(IntFlag):
    """What openat2 refuses to walk through."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10
    CACHED = 0x20  # 5.12


RESOLVE_NO_XDEV = ResolveFlags.NO_XDEV
RESOLVE_NO_MAGICLINKS = ResolveFlags.NO_MAGICLINKS
RESOLVE_NO_SYMLINKS = ResolveFlags.NO_SYMLINKS
RESOLVE_BENEATH = ResolveFlags.BENEATH
RESOLVE_IN_ROOT = ResolveFlags.IN_ROOT
RESOLVE_CACHED = ResolveFlags.CACHED
OPENAT2_REGULAR = 1 << 32
"""A flag beside the O_* of openat2: only a regular file is opened. Newer than Linux 7.0."""


class CloseRangeFlags(IntFlag):
    """How close_range closes."""

    UNSHARE = 0x2
    CLOEXEC = 0x4  # 5.11


CLOSE_RANGE_UNSHARE = CloseRangeFlags.UNSHARE
CLOSE_RANGE_CLOEXEC = CloseRangeFlags.CLOEXEC


def openat2(
    dirfd: Fd,
    path: StrOrBytesPath,
    flags: int = os.O_RDONLY | os.O_CLOEXEC,
    mode: int = 0,
    resolve: int = 0,
) -> int:
    """Open a file with limits on how its path may lead, and return a descriptor, which the caller closes.

    The kernel's `struct open_how` is given as its members.

    Args:
        dirfd: Where a relative path starts, or AT_FDCWD; with RESOLVE_BENEATH and RESOLVE_IN_ROOT the
            directory that is not left.
        path: What to open.
        flags: O_*; close-on-exec by default, and only as given otherwise. Unknown ones are EINVAL, where
            openat(2) ignores them.
        mode: Permission bits of a file that O_CREAT or O_TMPFILE makes, 0 to 0o7777; 0 without them.
        resolve: ResolveFlags.

    Raises:
        OSError: EXDEV (the path leaves the directory or the mount), ELOOP (a symbolic or magic link that is
            refused), EAGAIN (with RESOLVE_IN_ROOT or RESOLVE_BENEATH: a race with a rename somewhere, try
            again; with RESOLVE_CACHED: not in the cache), EINVAL (flags that are unknown or contradict each
            other), and those of open(2).

    See openat2(2). Since Linux 5.6.
    """
    number = fd_of(dirfd, "dirfd")
    raw = path_bytes(path)
    in_range(flags, 0, 2**64 - 1, "flags")
    in_range(mode, 0, 0o7777, "mode")
    in_range(resolve, 0, 2**64 - 1, "resolve")
    while True:
        fd: int = lib.sandbox_openat2(number, raw, flags, mode, resolve)
        if fd >= 0:
            return fd
        # A signal interrupts the opening of a FIFO; its Python handler runs before the next turn.
        if fd != -errno.EINTR:
            raise os_error(-fd, path)


def close_range(first: int, last: int = 2**32 - 1, flags: int = 0) -> None:
    """Close every descriptor from `first` to `last`, both included, or mark them.

    Descriptors that Python objects own are closed under them.

    Args:
        first: Lowest descriptor, 0 to 2**32 - 1.
        last: Highest descriptor, `first` to 2**32 - 1, which means all that follow.
        flags: CloseRangeFlags: CLOEXEC marks close-on-exec instead of closing; UNSHARE leaves a descriptor
            table that is shared with another process (CLONE_FILES) first.

    Raises:
        OSError: EINVAL (unknown flag), EMFILE or ENOMEM (UNSHARE: no table).

    See close_range(2). Since Linux 5.9.
    """
    in_range(first, 0, 2**32 - 1, "first")
    in_range(last, first, 2**32 - 1, "last")
    in_range(flags, 0, 2**32 - 1, "flags")
    check(lib.sandbox_close_range(first, last, flags))
