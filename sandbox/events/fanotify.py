"""fanotify(7) as an event-like object: what happens to files, and who may open them.

Facts that users meet:

- What an event carries depends on the group. Without REPORT_* flags it is an open descriptor of the file,
  with REPORT_FID and its kin a handle, with REPORT_DFID_NAME the handle of the directory and a name.
- A group that is asked (FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT) and does not answer freezes every process
  that opens what it marks. So an event that is closed or dropped is answered, and the group ends in a
  forked child and with its last reference.
- When the process is killed the kernel answers itself, and allows.
- A process must not wait for its own answer: a thread that answers stands still while another one starts a
  guarded program with `subprocess`, which holds the interpreter until the program is executed.
- Creation and deletion of one name, both unread, become one event with both bits.
"""

import errno as _errno
import os
import warnings
import weakref
from typing import Literal

from sandbox.events._fanotify_event import (
    ALLOW,
    DENY,
    PERMISSION,
    DescriptorEvent,
    FanotifyEvent,
    OwningEvent,
    descriptor_events,
    events_of,
)
from sandbox.events._fanotify_group import Group
from sandbox.events.base import EventLike, alive, value_error
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives import fanotify as _primitives, fanotify_numbers as _numbers
from sandbox.primitives._call import Fd, StrOrBytesPath, fd_of, in_range
from sandbox.primitives.fanotify import *  # noqa: F403  # Butter's module offers the functions
from sandbox.primitives.fanotify import FanotifyBatch, FanotifyColumns, fanotify_init, fanotify_mark, fanotify_split
from sandbox.primitives.fanotify_numbers import *  # noqa: F403  # and the constants
from sandbox.primitives.fanotify_numbers import FanotifyInit, FanotifyMark

__all__ = ["Fanotify", "FanotifyEvent", "Fanotify_async", "str_to_events"]
__all__ += _primitives.__all__  # in this form type checkers understand it
__all__ += _numbers.__all__

_AT_FDCWD = -100
_CLASSES = int(FanotifyInit.CLASS_CONTENT | FanotifyInit.CLASS_PRE_CONTENT)
_FIDS = int(FanotifyInit.REPORT_FID | FanotifyInit.REPORT_DIR_FID)
_MORE_THAN_DESCRIPTORS = _CLASSES | _FIDS | int(FanotifyInit.REPORT_PIDFD | FanotifyInit.REPORT_MNT)
_ACTIONS = int(FanotifyMark.ADD | FanotifyMark.REMOVE | FanotifyMark.FLUSH)
_NAMESPACE = int(FanotifyMark.MNTNS)
_WIDE_MARKS = int(FanotifyMark.MOUNT | FanotifyMark.FILESYSTEM | FanotifyMark.MNTNS)
_ANYBODY = (
    "these flags need CAP_SYS_ADMIN in the first user namespace; from Linux 5.13 on Fanotify(FAN_REPORT_FID) and "
    "Fanotify(FAN_REPORT_DFID_NAME) are for everybody, without a class, an unlimited queue, pidfds and threads"
)
# One read installs at most this many descriptors: some programs have no more than 1,024.
_DESCRIPTORS = 64
# Bytes of the smallest event of a kind.
_HEAD, _PIDFD_INFO, _FID_INFO = 24, 8, 20


def str_to_events(records: bytes) -> list[FanotifyEvent]:
    """Return the events in bytes that were read from a fanotify descriptor, at most 32 KiB.

    They own nothing: the descriptors in them stay the caller's, to be closed and answered by the primitives.

    Raises:
        ValueError: A record is cut short or malformed.
    """
    return events_of(fanotify_split(records), None, FanotifyEvent)


def _leaked(group: Group, descriptors: list[int], what: str) -> None:
    """End a group that was dropped without close(), and say so as files do."""
    warnings.warn(f"unclosed {what}", ResourceWarning, stacklevel=2)
    for fd in descriptors[1:]:
        os.close(fd)
    group.end(answer=True)


class Fanotify(EventLike[FanotifyEvent]):
    """A fanotify group.

    It holds a descriptor on each file system of which it has marked something and reports handles, so that
    names can be found; such a file system cannot be unmounted meanwhile. A group that is asked belongs to
    the process that made it: it is closed in a child made by `os.fork`.

    Args:
        flags: FanotifyInit; close-on-exec is added, and REPORT_FD_ERROR where the kernel knows it.
        event_flags: How the files of events are opened, as for open(2); O_CLOEXEC is added.
        nonblock: Reading returns or raises at once instead of waiting; FAN_NONBLOCK means the same.
        unanswered: What a question gets that is closed or dropped without an answer.

    Raises:
        OSError: EPERM (needs CAP_SYS_ADMIN, or else REPORT_FID and no more than plain notification), EMFILE
            (no descriptor left, or fs.fanotify.max_user_groups reached), EINVAL (flags that are unknown or
            contradict each other; a ValueError, too), ENOSYS (kernel without fanotify).
        ValueError: `unanswered` is neither "allow" nor "deny".

    See fanotify_init(2). Since Linux 2.6.37; without privilege, 5.13.
    """

    name = "fanotify"
    # An event may hold up a process, or cost a descriptor: read when somebody is there to take it.
    _prefetch = False

    def __init__(
        self,
        flags: int = 0,
        event_flags: int = os.O_RDONLY,
        *,
        nonblock: bool = False,
        unanswered: Literal["allow", "deny"] = "deny",
    ) -> None:
        if unanswered not in ("allow", "deny"):
            raise ValueError(f'unanswered must be "allow" or "deny", got {unanswered!r}')
        flags = in_range(int(flags), 0, 2**32 - 1, "flags")
        nonblock = nonblock or flags & int(FanotifyInit.NONBLOCK) != 0
        fd = _init(flags, event_flags | os.O_CLOEXEC)
        self._group = Group(fd, ALLOW if unanswered == "allow" else DENY)
        self._asks = flags & _CLASSES != 0
        self._handles = flags & _FIDS != 0
        pidfds = flags & int(FanotifyInit.REPORT_PIDFD) != 0
        self._kind: type[FanotifyEvent] = OwningEvent
        if self._handles and not pidfds:
            self._kind = FanotifyEvent
        elif not flags & _MORE_THAN_DESCRIPTORS:
            self._kind = DescriptorEvent
        self._batch = FanotifyBatch(_read_size(handles=self._handles, pidfds=pidfds))
        super().__init__(fd, nonblock=nonblock)
        what = f"{self.name} fd={fd}"
        self._finalizer.detach()
        self._end = weakref.finalize(self, _leaked, self._group, self._descriptors, what)
        self._end.atexit = False  # as for files: the end of the process is no leak

    def _read(self) -> list[FanotifyEvent]:
        if self._kind is DescriptorEvent:
            return descriptor_events(*self._batch.read_files(self._fd), self._group)
        columns = self._batch.read(self._fd)
        if columns is None:
            return []
        if self._asks:
            self._group.asked.update(
                fd for mask, fd in zip(columns.mask, columns.fd, strict=True) if mask & PERMISSION and fd >= 0
            )
        return events_of(columns, self._group, self._kind)

    def read_columns(self) -> FanotifyColumns | None:
        """Read once from the kernel, without waiting, and return the events by column: the fastest form.

        The descriptors in it are the caller's, to be closed, and questions among them to be answered by
        `fanotify_respond`. Events that are cached already stay where they are.

        Returns:
            The columns, or None when there is nothing.

        Raises:
            ValueError: The object is closed.
            OSError: EMFILE, ENFILE (no descriptor left, and the kernel cannot say it in the event).
        """
        with self._lock:
            return self._batch.read(self.fileno())

    def watch(self, path: StrOrBytesPath | None, mask: int, flags: int = 0, dirfd: Fd = _AT_FDCWD) -> None:
        """Mark a file, directory, mount, file system or mount namespace.

        Args:
            path: The subject; None: what `dirfd` is (a mount namespace, for FAN_MARK_MNTNS).
            mask: FanotifyMask.
            flags: FanotifyMark without ADD, REMOVE and FLUSH.
            dirfd: Where a relative path starts.

        Raises:
            OSError: ENOENT, EINVAL (both ValueErrors, too), ENOTDIR, EACCES, ENOSPC
                (fs.fanotify.max_user_marks reached), EPERM (an unprivileged group marks inodes only),
                ENODEV, EOPNOTSUPP, EXDEV (no usable file system id or handles), EEXIST (an ignore mark is
                there already with other flags), EISDIR (IGNORE on a directory without IGNORED_SURV_MODIFY).
            ValueError: The object is closed; or a flag that this method sets itself.

        See fanotify_mark(2). Since Linux 2.6.37.
        """
        self._mark(FanotifyMark.ADD, path, mask, flags, dirfd)

    def ignore(self, path: StrOrBytesPath | None, mask: int, flags: int = 0, dirfd: Fd = _AT_FDCWD) -> None:
        """Take bits off a mark; without any left the mark is gone. Arguments and errors as for `watch`."""
        self._mark(FanotifyMark.REMOVE, path, mask, flags, dirfd)

    del_watch = ignore

    def flush(self, flags: int = 0) -> None:
        """Remove all marks of a kind.

        Args:
            flags: FAN_MARK_INODE (0), FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM or FAN_MARK_MNTNS.

        Raises:
            OSError: EINVAL (no such kind).
            ValueError: The object is closed.

        See fanotify_mark(2). Since Linux 2.6.37.
        """
        fanotify_mark(self.fileno(), int(FanotifyMark.FLUSH) | flags, 0)

    def _mark(self, action: FanotifyMark, path: StrOrBytesPath | None, mask: int, flags: int, dirfd: Fd) -> None:
        fd = self.fileno()
        flags = int(flags)
        if flags & _ACTIONS:
            raise ValueError(f"flags must not hold ADD, REMOVE or FLUSH, got {FanotifyMark(flags)!r}")
        at = fd_of(dirfd, "dirfd")
        adds_handles = self._handles and action is FanotifyMark.ADD
        if adds_handles and flags & _NAMESPACE != _NAMESPACE:
            # Before the mark: what is opened for it is no event then.
            follow = not flags & int(FanotifyMark.DONT_FOLLOW)
            self._group.remember(path, at, follow=follow)
        try:
            fanotify_mark(fd, int(action) | flags, mask, at, path)
        except OSError as error:
            if error.errno == _errno.EPERM and flags & _WIDE_MARKS:
                raise _explained(error, "without CAP_SYS_ADMIN only files and directories can be marked") from None
            if error.errno in (_errno.ENOENT, _errno.EINVAL):
                raise value_error(error) from None
            raise

    def _dispose(self, events: list[FanotifyEvent]) -> None:
        for event in events:
            event.close()

    def _take_fd(self) -> int:
        self._end.detach()
        return super()._take_fd()

    def close(self) -> None:
        """Answer all questions, those that nobody has read too, as `unanswered` says, and close the group.

        Closing twice does nothing.
        """
        if self._take_fd() >= 0:
            self._group.end(answer=True)

    def detach(self) -> int:
        """Return the descriptor, which the caller closes, and close the object without it.

        Questions that are read are answered as `unanswered` says; those that are not are the caller's.

        Raises:
            ValueError: The object is closed.
        """
        fd = super().detach()
        self._group.release()
        return fd

    def _forget(self) -> None:
        # The parent answers; and with a copy of the group here it would not end with the parent.
        self._group.inherited = True
        super()._forget()
        if self._asks and self._fd >= 0:
            self._end.detach()
            alive.discard(self)
            self._closing = True
            self._fd = -1
            self._group.end(answer=False)


def _init(flags: int, event_flags: int) -> int:
    """Create a group that says in an event, if it can, when there was no descriptor for it."""
    flags |= int(FanotifyInit.CLOEXEC | FanotifyInit.NONBLOCK)
    try:
        if not flags & _FIDS:
            try:
                return fanotify_init(flags | int(FanotifyInit.REPORT_FD_ERROR), event_flags)
            except OSError as error:
                if error.errno != _errno.EINVAL:
                    raise
        return fanotify_init(flags, event_flags)
    except PermissionError as error:
        raise _explained(error, _ANYBODY) from None
    except OSError as error:
        raise (value_error(error) if error.errno == _errno.EINVAL else error) from None


def _explained(error: OSError, why: str) -> OSError:
    """Return the same error, with the reason behind the kernel's words."""
    return type(error)(error.errno, f"{error.strerror}: {why}", error.filename)


def _read_size(*, handles: bool, pidfds: bool) -> int:
    """Return how many bytes to read at once, so that no more than _DESCRIPTORS are installed."""
    if handles and not pidfds:
        return 32768
    event = _HEAD + (_PIDFD_INFO if pidfds else 0) + (_FID_INFO if handles else 0)
    return _DESCRIPTORS // (2 if pidfds and not handles else 1) * event


class Fanotify_async(EventLike_async[FanotifyEvent]):  # noqa: N801  # Butter's name
    """The asyncio twin of `Fanotify`, with its arguments and errors.

    Args:
        flags: FanotifyInit.
        event_flags: How the files of events are opened.
        nonblock: Accepted for the same call as `Fanotify`; a twin never blocks.
        unanswered: What a question gets that is closed or dropped without an answer.
        maxsize: How many events the queue holds before the kernel keeps the rest; 0 means no limit.
    """

    def __init__(
        self,
        flags: int = 0,
        event_flags: int = os.O_RDONLY,
        *,
        nonblock: bool = False,
        unanswered: Literal["allow", "deny"] = "deny",
        maxsize: int = 0,
    ) -> None:
        source = Fanotify(flags, event_flags, nonblock=nonblock, unanswered=unanswered)
        super().__init__(source, maxsize)

    watch = of_source(Fanotify.watch)
    ignore = del_watch = of_source(Fanotify.ignore)
    flush = of_source(Fanotify.flush)
