"""inotify(7): watching files and directories."""

import errno
import os
import sys
from collections.abc import Sequence
from enum import IntFlag
from typing import Any, Final, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, Held, StrOrBytesPath, check, fd_of, in_range, os_error, path_bytes

__all__ = [
    "inotify_init",
    "inotify_add_watch",
    "inotify_rm_watch",
    "inotify_barrier",
    "inotify_read",
    "inotify_split",
    "InotifyBatch",
    "InotifyColumns",
    "InotifyInit",
    "InotifyMask",
    "IN_CLOEXEC",
    "IN_NONBLOCK",
    "IN_ACCESS",
    "IN_MODIFY",
    "IN_ATTRIB",
    "IN_CLOSE_WRITE",
    "IN_CLOSE_NOWRITE",
    "IN_OPEN",
    "IN_MOVED_FROM",
    "IN_MOVED_TO",
    "IN_CREATE",
    "IN_DELETE",
    "IN_DELETE_SELF",
    "IN_MOVE_SELF",
    "IN_UNMOUNT",
    "IN_Q_OVERFLOW",
    "IN_IGNORED",
    "IN_ONLYDIR",
    "IN_DONT_FOLLOW",
    "IN_EXCL_UNLINK",
    "IN_MASK_CREATE",
    "IN_MASK_ADD",
    "IN_ISDIR",
    "IN_ONESHOT",
    "IN_CLOSE",
    "IN_MOVE",
    "IN_ALL_EVENTS",
]


class InotifyInit(IntFlag):
    """Flags of `inotify_init` (IN_CLOEXEC, IN_NONBLOCK)."""

    CLOEXEC = os.O_CLOEXEC
    NONBLOCK = os.O_NONBLOCK


IN_CLOEXEC: Final = InotifyInit.CLOEXEC
IN_NONBLOCK: Final = InotifyInit.NONBLOCK


class InotifyMask(IntFlag):
    """What to watch for, how to watch, and what an event says (IN_*)."""

    ACCESS = 0x1  # A file was read.
    MODIFY = 0x2  # A file was written or truncated.
    ATTRIB = 0x4  # Metadata changed: mode, owner, times, link count.
    CLOSE_WRITE = 0x8  # A file opened for writing was closed.
    CLOSE_NOWRITE = 0x10  # A file or directory not opened for writing was closed.
    OPEN = 0x20  # A file or directory was opened.
    MOVED_FROM = 0x40  # An entry was moved away.
    MOVED_TO = 0x80  # An entry was moved here.
    CREATE = 0x100  # An entry was made.
    DELETE = 0x200  # An entry was removed.
    DELETE_SELF = 0x400  # The watched file itself was deleted.
    MOVE_SELF = 0x800  # The watched file itself was moved.
    UNMOUNT = 0x2000  # Its file system was unmounted.
    Q_OVERFLOW = 0x4000  # Events were lost.
    IGNORED = 0x8000  # The watch was removed.
    ONLYDIR = 0x1000000  # Watch only a directory.
    DONT_FOLLOW = 0x2000000  # Do not follow a symlink.
    EXCL_UNLINK = 0x4000000  # No events of entries that were unlinked (2.6.36).
    MASK_CREATE = 0x10000000  # Fail with EEXIST when it is watched already (4.18).
    MASK_ADD = 0x20000000  # Add to the mask of a watch.
    ISDIR = 0x40000000  # The subject is a directory.
    ONESHOT = 0x80000000  # One event, then the watch is removed.
    CLOSE = CLOSE_WRITE | CLOSE_NOWRITE
    MOVE = MOVED_FROM | MOVED_TO
    ALL_EVENTS = 0xFFF


IN_ACCESS: Final = InotifyMask.ACCESS
IN_MODIFY: Final = InotifyMask.MODIFY
IN_ATTRIB: Final = InotifyMask.ATTRIB
IN_CLOSE_WRITE: Final = InotifyMask.CLOSE_WRITE
IN_CLOSE_NOWRITE: Final = InotifyMask.CLOSE_NOWRITE
IN_OPEN: Final = InotifyMask.OPEN
IN_MOVED_FROM: Final = InotifyMask.MOVED_FROM
IN_MOVED_TO: Final = InotifyMask.MOVED_TO
IN_CREATE: Final = InotifyMask.CREATE
IN_DELETE: Final = InotifyMask.DELETE
IN_DELETE_SELF: Final = InotifyMask.DELETE_SELF
IN_MOVE_SELF: Final = InotifyMask.MOVE_SELF
IN_UNMOUNT: Final = InotifyMask.UNMOUNT
IN_Q_OVERFLOW: Final = InotifyMask.Q_OVERFLOW
IN_IGNORED: Final = InotifyMask.IGNORED
IN_ONLYDIR: Final = InotifyMask.ONLYDIR
IN_DONT_FOLLOW: Final = InotifyMask.DONT_FOLLOW
IN_EXCL_UNLINK: Final = InotifyMask.EXCL_UNLINK
IN_MASK_CREATE: Final = InotifyMask.MASK_CREATE
IN_MASK_ADD: Final = InotifyMask.MASK_ADD
IN_ISDIR: Final = InotifyMask.ISDIR
IN_ONESHOT: Final = InotifyMask.ONESHOT
IN_CLOSE: Final = InotifyMask.CLOSE
IN_MOVE: Final = InotifyMask.MOVE
IN_ALL_EVENTS: Final = InotifyMask.ALL_EVENTS


class InotifyColumns(NamedTuple):
    """Inotify events by column: the fastest form, for who counts or filters many.

    Attributes:
        wd: Watch descriptors, -1 for an overflow.
        mask: What happened.
        cookie: What joins the two halves of a rename; 0 for other events.
        name: Name in the watched directory, "" for an event of the watched file itself; by surrogateescape.
    """

    wd: Sequence[int]
    mask: Sequence[int]
    cookie: Sequence[int]
    name: Sequence[str]


class InotifyBatch(Held):
    """The memory that records are read into, for one reader at a time."""

    __slots__ = ("_batch", "_cookie", "_mask", "_records", "_wd")

    def __init__(self) -> None:
        # Not cleared: each read says how much of it is valid.
        allocate = ffi.new_allocator(should_clear_after_alloc=False)
        self._batch: Any = allocate("struct sandbox_inotify_batch *")
        self._wd, self._mask, self._cookie = self._batch.wd, self._batch.mask, self._batch.cookie
        self._records = ffi.buffer(self._batch.records)

    def read(self, fd: int) -> InotifyColumns | None:
        """Read once; None when a non-blocking descriptor has nothing.

        Raises:
            OSError: EBADF, EINVAL (not an inotify descriptor).
        """
        while (count := lib.sandbox_inotify_read(fd, self._batch)) < 0:
            if count == -errno.EAGAIN:
                return None
            if count != -errno.EINTR:
                raise os_error(-count)
        return self._columns(count)

    def split(self, records: bytes) -> InotifyColumns:
        """Split records that were read elsewhere, at most 64 KiB of them.

        Raises:
            ValueError: The last record is cut short, or there are too many.
        """
        if len(records) > len(self._records):
            raise ValueError(f"records must be at most {len(self._records)} bytes, got {len(records)}")
        self._records[: len(records)] = records
        count = lib.sandbox_inotify_split(self._batch, len(records))
        if count < 0:
            raise ValueError(f"records are cut short: {len(records)} bytes are not a whole number of records")
        return self._columns(count)

    def _columns(self, count: int) -> InotifyColumns:
        batch = self._batch
        # All names in one string: one decoding and one split for the whole batch.
        names = os.fsdecode(self._records[: batch.names_size]).split("\0")
        del names[-1]
        cookies = ffi.unpack(self._cookie, count) if batch.cookies else [0] * count
        return InotifyColumns(ffi.unpack(self._wd, count), ffi.unpack(self._mask, count), cookies, names)


def inotify_init(flags: int = InotifyInit.CLOEXEC) -> int:
    """Create an inotify instance and return its descriptor, which the caller closes.

    Args:
        flags: InotifyInit; close-on-exec unless the caller says otherwise.

    Raises:
        OSError: EMFILE (no descriptor left, or fs.inotify.max_user_instances reached), ENFILE, ENOMEM,
            EINVAL (unknown flag).

    See inotify_init1(2). Since Linux 2.6.27.
    """
    return check(lib.inotify_init1(in_range(flags, 0, 2**31 - 1, "flags")))


def inotify_add_watch(fd: Fd, path: StrOrBytesPath, mask: int) -> int:
    """Watch a file, or change the mask of its watch; return the watch descriptor.

    The kernel watches inodes: a second path to the same file returns the same watch descriptor.

    Args:
        fd: The inotify instance.
        path: The file or directory.
        mask: InotifyMask; replaces the mask of an existing watch unless MASK_ADD is among it.

    Raises:
        OSError: ENOENT, EACCES (read permission is needed), ENOTDIR (ONLYDIR, and it is not one), EEXIST
            (MASK_CREATE, and it is watched), ENOSPC (fs.inotify.max_user_watches reached), EINVAL (no event
            in the mask, or not an inotify descriptor), EBADF.

    See inotify_add_watch(2). Since Linux 2.6.13.
    """
    mask = in_range(mask, 0, 2**32 - 1, "mask")
    return check(lib.inotify_add_watch(fd_of(fd), path_bytes(path), mask), path)


def inotify_rm_watch(fd: Fd, wd: int) -> None:
    """Remove a watch; an IGNORED event follows.

    Args:
        fd: The inotify instance.
        wd: A watch descriptor of it.

    Raises:
        OSError: EINVAL (no such watch, or not an inotify descriptor), EBADF.

    See inotify_rm_watch(2). Since Linux 2.6.13.
    """
    check(lib.inotify_rm_watch(fd_of(fd), in_range(wd, -(2**31), 2**31 - 1, "wd")))


def inotify_barrier(directory: Fd) -> None:
    """Wait until the events of all changes to a directory that can be seen by now are queued.

    Between a change and its event lie microseconds in which a look at the disk is ahead of the queue.

    Args:
        directory: An open directory, not with O_PATH only.

    Raises:
        TypeError: Neither a descriptor nor an object with fileno().

    See inotify(7). Since Linux 4.7.
    """
    lib.sandbox_inotify_barrier(fd_of(directory, "directory"))


def inotify_read(fd: Fd) -> InotifyColumns | None:
    """Read once and return what came, by column; None when a non-blocking descriptor has nothing.

    Who reads often keeps an `InotifyBatch`, the memory for it.

    Args:
        fd: The inotify instance.

    Raises:
        OSError: EBADF, EINVAL (not an inotify descriptor).

    See inotify(7). Since Linux 2.6.13.
    """
    return InotifyBatch().read(fd_of(fd))


def inotify_split(records: bytes) -> InotifyColumns:
    """Split records that were read with read(2), of any number, into columns.

    Raises:
        ValueError: The last record is cut short.

    See inotify(7). Since Linux 2.6.13.
    """
    batch = InotifyBatch()
    wds: list[int] = []
    masks: list[int] = []
    cookies: list[int] = []
    names: list[str] = []
    at = 0
    while at < len(records):
        end = _whole_records(records, at)
        part = batch.split(records[at:end])
        wds += part.wd
        masks += part.mask
        cookies += part.cookie
        names += part.name
        at = end
    return InotifyColumns(wds, masks, cookies, names)


def _whole_records(records: bytes, at: int) -> int:
    """Return where to cut, so that from `at` on there are whole records of at most one batch."""
    limit = at + lib.SANDBOX_INOTIFY_BYTES
    if len(records) <= limit:
        return len(records)
    end = at
    while True:
        following = end + 16 + int.from_bytes(records[end + 12 : end + 16], sys.byteorder)
        if following > limit:
            break
        end = following
    if end == at:
        raise ValueError("records hold a name that is longer than a record can be")
    return end
