"""inotify(7) as an event-like object: what happens to files and to the entries of directories.

Facts that users meet:

- The kernel watches inodes, not names: all hard links of a file share one watch, and a second `watch` of it
  replaces the mask. Nothing is recursive; `RecursiveInotify` is.
- Two equal events in a row become one. A watch that is removed, by whomever, says so with an `ignored_event`.
- The queue holds fs.inotify.max_queued_events events (16,384); what comes after that is lost, and one event
  with wd -1 and `overflow_event` says so.
"""

import os
from itertools import repeat
from typing import NamedTuple

from sandbox.events._mask import Says
from sandbox.events.base import EventLike, value_error
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives import inotify as _primitives
from sandbox.primitives._call import StrOrBytesPath
from sandbox.primitives.inotify import *  # noqa: F403  # Butter's module offers the constants
from sandbox.primitives.inotify import (
    InotifyBatch,
    InotifyColumns,
    InotifyInit,
    InotifyMask,
    inotify_add_watch,
    inotify_init,
    inotify_rm_watch,
    inotify_split,
)

__all__ = [
    *_primitives.__all__,
    "Inotify",
    "Inotify_async",
    "InotifyEvent",
    "event_name",
    "str_to_events",
    "watch",
]


def event_name(mask: int) -> str:
    """Return the names of the bits of a mask, as "IN_CREATE|IN_ISDIR"; what has no name is a number.

    Args:
        mask: The mask of an event.
    """
    names = []
    for bit in InotifyMask:
        if bit.bit_count() == 1 and mask & bit:
            names.append(f"IN_{bit.name}")
            mask &= ~bit
    return "|".join([*names, *([f"{mask:#x}"] if mask else [])])


class _Fields(NamedTuple):
    wd: int
    mask: int
    cookie: int
    name: str


class InotifyEvent(_Fields):
    """One event: a tuple of wd, mask, cookie and name.

    Attributes:
        wd: The watch that it belongs to; -1 for an overflow.
        mask: What happened, a plain int; `flags` is the same as InotifyMask.
        cookie: The same in both halves of a rename, else 0.
        name: The entry of the watched directory that it is about, "" for the watched file itself. Bytes that
            are no valid text come through by surrogateescape: pass the name to `open` as it is.
    """

    __slots__ = ()

    access_event = Says(InotifyMask.ACCESS, "Whether a file was read.")
    modify_event = Says(InotifyMask.MODIFY, "Whether a file was written or truncated.")
    attrib_event = Says(InotifyMask.ATTRIB, "Whether metadata changed: mode, owner, times, link count.")
    close_write_event = Says(InotifyMask.CLOSE_WRITE, "Whether a file open for writing was closed.")
    close_nowrite_event = Says(InotifyMask.CLOSE_NOWRITE, "Whether a file not open for writing was closed.")
    close_event = Says(InotifyMask.CLOSE, "Whether a file was closed.")
    open_event = Says(InotifyMask.OPEN, "Whether a file was opened.")
    moved_from_event = Says(InotifyMask.MOVED_FROM, "Whether an entry was moved away.")
    moved_to_event = Says(InotifyMask.MOVED_TO, "Whether an entry was moved here.")
    move_event = Says(InotifyMask.MOVE, "Whether it is one half of a rename.")
    create_event = Says(InotifyMask.CREATE, "Whether an entry was made.")
    delete_event = Says(InotifyMask.DELETE, "Whether an entry was removed.")
    delete_self_event = Says(InotifyMask.DELETE_SELF, "Whether the watched file itself was deleted.")
    move_self_event = Says(InotifyMask.MOVE_SELF, "Whether the watched file itself was moved.")
    unmount_event = Says(InotifyMask.UNMOUNT, "Whether the file system was unmounted.")
    overflow_event = Says(InotifyMask.Q_OVERFLOW, "Whether events were lost before this one.")
    ignored_event = Says(InotifyMask.IGNORED, "Whether the watch is gone.")
    is_dir_event = Says(InotifyMask.ISDIR, "Whether it is about a directory.")

    @property
    def filename(self) -> str:
        """The name, in Butter's word."""
        return self[3]

    @property
    def flags(self) -> InotifyMask:
        """The mask as InotifyMask."""
        return InotifyMask(self[1])

    @property
    def name_bytes(self) -> bytes:
        """The name as the kernel has it."""
        return os.fsencode(self[3])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(wd={self[0]}, flags={self.flags!r}, cookie={self[2]}, name={self[3]!r})"


def _events(columns: InotifyColumns) -> list[InotifyEvent]:
    # Past the __new__ of the named tuple, which takes the fields one by one and four times as long.
    return list(map(tuple.__new__, repeat(InotifyEvent), zip(*columns)))  # noqa: B905  # equally long


def str_to_events(records: bytes) -> list[InotifyEvent]:
    """Return the events in bytes that were read from an inotify descriptor.

    Raises:
        ValueError: The last record is cut short.
    """
    return _events(inotify_split(records))


class Inotify(EventLike[InotifyEvent]):
    """Watches files and directories.

    Args:
        nonblock: Reading returns or raises at once instead of waiting.
        cloexec: Whether the descriptor is closed on exec.

    Raises:
        OSError: EMFILE (no descriptor left, or fs.inotify.max_user_instances reached), ENFILE, ENOMEM.
    """

    name = "inotify"

    def __init__(self, *, nonblock: bool = False, cloexec: bool = True) -> None:
        flags = InotifyInit.NONBLOCK | InotifyInit.CLOEXEC if cloexec else InotifyInit.NONBLOCK
        super().__init__(inotify_init(flags), nonblock=nonblock)
        self._batch = InotifyBatch()

    def _read(self) -> list[InotifyEvent]:
        columns = self._batch.read(self._fd)
        return [] if columns is None else _events(columns)

    def read_columns(self) -> InotifyColumns | None:
        """Read once from the kernel, without waiting, and return the events by column: the fastest form.

        Events that are cached already stay where they are: use either this or the other reading methods.

        Returns:
            The columns, or None when there is nothing.

        Raises:
            ValueError: The object is closed.
        """
        with self._lock:
            return self._batch.read(self.fileno())

    def watch(self, path: StrOrBytesPath, mask: int = InotifyMask.ALL_EVENTS) -> int:
        """Watch a file or directory, or change the mask of its watch; return the watch descriptor.

        Args:
            path: The file or directory. Its watch follows the inode, whatever becomes of the name.
            mask: InotifyMask: events, and how to watch.

        Raises:
            OSError: ENOENT, EACCES (read permission is needed), ENOTDIR (ONLYDIR, and it is not one), EEXIST
                (MASK_CREATE, and it is watched), ENOSPC (fs.inotify.max_user_watches reached), EINVAL (no
                event in the mask). ENOENT and EINVAL are ValueErrors too.
            ValueError: The object is closed, or the mask is not within 32 bits.

        See inotify_add_watch(2). Since Linux 2.6.13.
        """
        fd = self.fileno()
        try:
            return inotify_add_watch(fd, path, mask)
        except OSError as error:
            raise _refused(error) from None

    def ignore(self, wd: int) -> None:
        """Remove a watch; an `ignored_event` follows.

        Args:
            wd: What `watch` returned.

        Raises:
            OSError: EINVAL (no such watch); a ValueError, too.
            ValueError: The object is closed.

        See inotify_rm_watch(2). Since Linux 2.6.13.
        """
        fd = self.fileno()
        try:
            inotify_rm_watch(fd, wd)
        except OSError as error:
            raise _refused(error) from None

    del_watch = ignore


class Inotify_async(EventLike_async[InotifyEvent]):  # noqa: N801  # Butter's name
    """The asyncio twin of `Inotify`.

    Args:
        nonblock: Accepted for the same call as `Inotify`; a twin never blocks.
        cloexec: Whether the descriptor is closed on exec.
        maxsize: How many events the queue holds before the kernel keeps the rest; 0 means no limit.

    Raises:
        OSError: EMFILE (no descriptor left, or fs.inotify.max_user_instances reached), ENFILE, ENOMEM.
    """

    def __init__(self, *, nonblock: bool = False, cloexec: bool = True, maxsize: int = 0) -> None:
        super().__init__(Inotify(nonblock=nonblock, cloexec=cloexec), maxsize)

    watch = of_source(Inotify.watch)
    ignore = del_watch = of_source(Inotify.ignore)


def _refused(error: OSError) -> OSError:
    """Butter raised ValueErrors for what is wrong with an argument."""
    return value_error(error) if isinstance(error, FileNotFoundError) or error.errno == 22 else error


def watch(path: StrOrBytesPath, events: int = InotifyMask.ALL_EVENTS) -> InotifyEvent:
    """Wait for one event of a file or directory and return it.

    For once: what happens between two calls is lost.

    Args:
        path: The file or directory.
        events: InotifyMask.

    Raises:
        OSError: As `Inotify.watch`, and EMFILE.
    """
    with Inotify() as inotify:
        inotify.watch(path, events)
        return inotify.read_event()
