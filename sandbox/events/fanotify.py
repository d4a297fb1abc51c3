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
from collections.abc import Sequence
from itertools import repeat
from types import TracebackType
from typing import Literal, NamedTuple, Self

from sandbox.events._fanotify_group import Group
from sandbox.events._mask import Says
from sandbox.events.base import CLOSED, EventLike, alive, value_error
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives import fanotify as _primitives
from sandbox.primitives._call import Fd, StrOrBytesPath, fd_of, in_range, os_error
from sandbox.primitives.fanotify import *  # noqa: F403  # Butter's module offers the constants
from sandbox.primitives.fanotify import (
    FAN_DENY_ERRNO,
    FAN_NOFD,
    FAN_NOPIDFD,
    FanotifyAudit,
    FanotifyBatch,
    FanotifyColumns,
    FanotifyInit,
    FanotifyMark,
    FanotifyMask,
    FanotifyResponse,
    fanotify_init,
    fanotify_mark,
    fanotify_split,
)

__all__ = ["Fanotify", "FanotifyEvent", "Fanotify_async", "str_to_events"]
__all__ += _primitives.__all__  # in this form type checkers understand it

_AT_FDCWD = -100
_close = os.close
# Plain ints: arithmetic with an IntFlag costs ten times as much.
_ALLOW, _DENY, _AUDIT = (int(FanotifyResponse[name]) for name in ("ALLOW", "DENY", "AUDIT"))
_PERMISSION = int(
    FanotifyMask.OPEN_PERM | FanotifyMask.ACCESS_PERM | FanotifyMask.OPEN_EXEC_PERM | FanotifyMask.PRE_ACCESS
)
_CLASSES = int(FanotifyInit.CLASS_CONTENT | FanotifyInit.CLASS_PRE_CONTENT)
_FIDS = int(FanotifyInit.REPORT_FID | FanotifyInit.REPORT_DIR_FID)
_ACTIONS = int(FanotifyMark.ADD | FanotifyMark.REMOVE | FanotifyMark.FLUSH)
_NAMESPACE = int(FanotifyMark.MNTNS)
# One read installs at most this many descriptors: some programs have no more than 1,024.
_DESCRIPTORS = 64
# Bytes of the smallest event of a kind.
_HEAD, _PIDFD_INFO, _FID_INFO = 24, 8, 20

_Rest = tuple[bytes | None, bytes | None, str | None, tuple[int, int] | None, int | None, tuple[int, int] | None]
_NOTHING: _Rest = (None,) * 6


class _Fields(NamedTuple):
    mask: int
    fd: int
    pid: int
    pidfd: int
    directory_handle: bytes | None
    name: str | None
    rest: _Rest
    group: Group | None


class FanotifyEvent(_Fields):
    """One event; it owns its descriptors, and leaving its `with` block answers, if need be, and closes them.

    It is a tuple because that is made fastest, but compares by identity.

    Attributes:
        mask: What happened, a plain int; `flags` is the same as FanotifyMask.
        fd: Descriptor of the file; FAN_NOFD where the group reports handles, or for an overflow, and once
            closed. Below FAN_NOFD it is the errno of the open that failed, negated; the kernel denies a
            question about such a file itself.
        pid: Who did it: a process, or a thread with REPORT_TID; 0 when it is not in this pid namespace.
        pidfd: Descriptor of that process with REPORT_PIDFD; negative without, or when the process is gone.
        directory_handle: With REPORT_DIR_FID: file system id and handle of the directory; compares equal
            for one directory.
        name: With REPORT_NAME: the entry of that directory, "." for itself; by surrogateescape.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    access_event = Says(FanotifyMask.ACCESS, "Whether a file was read.")
    modify_event = Says(FanotifyMask.MODIFY, "Whether a file was written.")
    attrib_event = Says(FanotifyMask.ATTRIB, "Whether metadata changed.")
    close_write_event = Says(FanotifyMask.CLOSE_WRITE, "Whether a file open for writing was closed.")
    close_nowrite_event = Says(FanotifyMask.CLOSE_NOWRITE, "Whether a file not open for writing was closed.")
    close_event = Says(FanotifyMask.CLOSE, "Whether a file was closed.")
    open_event = Says(FanotifyMask.OPEN, "Whether a file was opened.")
    open_exec_event = Says(FanotifyMask.OPEN_EXEC, "Whether a file was opened to be executed.")
    create_event = Says(FanotifyMask.CREATE, "Whether an entry was made.")
    delete_event = Says(FanotifyMask.DELETE, "Whether an entry was removed.")
    delete_self_event = Says(FanotifyMask.DELETE_SELF, "Whether the marked file itself was deleted.")
    moved_from_event = Says(FanotifyMask.MOVED_FROM, "Whether an entry was moved away.")
    moved_to_event = Says(FanotifyMask.MOVED_TO, "Whether an entry was moved here.")
    move_event = Says(FanotifyMask.MOVE, "Whether it is one half of a rename.")
    move_self_event = Says(FanotifyMask.MOVE_SELF, "Whether the marked file itself was moved.")
    rename_event = Says(FanotifyMask.RENAME, "Whether an entry was renamed.")
    fs_error_event = Says(FanotifyMask.FS_ERROR, "Whether the file system found itself broken.")
    open_perm_event = Says(FanotifyMask.OPEN_PERM, "Whether somebody waits to open a file.")
    open_exec_perm_event = Says(FanotifyMask.OPEN_EXEC_PERM, "Whether somebody waits to execute a file.")
    access_perm_event = Says(FanotifyMask.ACCESS_PERM, "Whether somebody waits to read a file.")
    pre_access_event = Says(FanotifyMask.PRE_ACCESS, "Whether somebody waits for a range of its content.")
    mnt_attach_event = Says(FanotifyMask.MNT_ATTACH, "Whether a mount was attached.")
    mnt_detach_event = Says(FanotifyMask.MNT_DETACH, "Whether a mount was detached.")
    queue_overflow_event = overflow_event = Says(FanotifyMask.Q_OVERFLOW, "Whether events were lost.")
    on_dir_event = is_dir_event = Says(FanotifyMask.ONDIR, "Whether it is about a directory.")
    on_child_event = Says(FanotifyMask.EVENT_ON_CHILD, "Butter's; the kernel does not report it.")
    is_permission = Says(_PERMISSION, "Whether it is a question, answered by `allow` or `deny`.")

    @property
    def flags(self) -> FanotifyMask:
        """The mask as FanotifyMask."""
        return FanotifyMask(self.mask)

    @property
    def file_handle(self) -> bytes | None:
        """With REPORT_FID: file system id and handle of the file itself."""
        return self.rest[0]

    @property
    def new_directory_handle(self) -> bytes | None:
        """Of a `rename_event`: handle of the directory that the entry was moved to."""
        return self.rest[1]

    @property
    def new_name(self) -> str | None:
        """Of a `rename_event`: the name that the entry was given."""
        return self.rest[2]

    @property
    def range(self) -> tuple[int, int] | None:
        """Of a `pre_access_event`: offset and count in bytes; None where the access has no range."""
        return self.rest[3]

    @property
    def mount_id(self) -> int | None:
        """Of a mount event: the unique id of the mount, as for statmount(2)."""
        return self.rest[4]

    @property
    def error(self) -> tuple[int, int] | None:
        """Of a `fs_error_event`: the first errno, and how many errors there were since the last event."""
        return self.rest[5]

    # ── names ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def filename(self) -> str:
        """The path of the file, as it is now, with " (deleted)" behind it as the kernel shows it.

        With REPORT_NAME it is the path of the directory, now, and the name at the time of the event.
        Handles need CAP_DAC_READ_SEARCH, or else are resolved only where the marked path still leads to the
        file.

        Raises:
            OSError: ESTALE (the file or its directory is gone, or cannot be found by this user), ENODATA
                (the event is about no file), or the errno of an open that failed.
            ValueError: The event is closed.
        """
        fd = self.fd
        if fd >= 0:
            return os.readlink(f"/proc/self/fd/{fd}")
        if fd < -1:
            raise os_error(-fd)
        if self[1] >= 0:
            raise ValueError(CLOSED)
        return self._path(self.directory_handle or self.file_handle, self.name)

    @property
    def new_filename(self) -> str:
        """Of a `rename_event`: the path that the entry was moved to; as `filename`."""
        return self._path(self.new_directory_handle, self.new_name)

    def _path(self, handle: bytes | None, name: str | None) -> str:
        if handle is None or self.group is None:
            raise os_error(_errno.ENODATA)
        directory = self.group.path(handle)
        return directory if name is None or name == "." else os.path.join(directory, name)

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────

    def allow(self, *, audit: FanotifyAudit | bool = False) -> None:
        """Let the process that waits go on.

        Args:
            audit: Write an audit record, with the rule that decided if one is given; needs ENABLE_AUDIT.

        Raises:
            ValueError: It is not a question, or was answered before; or the group is closed.
            OSError: EINVAL (`audit`, in a group without ENABLE_AUDIT); nothing is answered then.

        See fanotify(7). Since Linux 2.6.37.
        """
        self._answer(_ALLOW, audit)

    def deny(self, errno: int | None = None, *, audit: FanotifyAudit | bool = False) -> None:
        """Refuse the access.

        Args:
            errno: What the process gets: EPERM (when None), or in groups of FAN_CLASS_PRE_CONTENT one of
                EIO, EBUSY, ETXTBSY, EAGAIN, ENOSPC, EDQUOT.
            audit: Write an audit record, with the rule that decided if one is given; needs ENABLE_AUDIT.

        Raises:
            ValueError: It is not a question, or was answered before; or the group is closed.
            OSError: EINVAL (another errno, or `audit` in a group without ENABLE_AUDIT); nothing is answered
                then.

        See fanotify(7). Since Linux 2.6.37; with an errno, 6.14.
        """
        plain = errno is None or errno == _errno.EPERM
        self._answer(_DENY if plain or errno is None else FAN_DENY_ERRNO(errno), audit)

    def _answer(self, response: int, audit: FanotifyAudit | bool) -> None:  # noqa: ARG002
        raise ValueError("the event cannot be answered: it is not a question of an open group")

    def close(self) -> None:
        """Answer a question that nobody answered as the group does by default, and close the descriptors.

        Closing twice does nothing.

        Raises:
            OSError: EBADF (somebody else closed a descriptor).
        """

    def __enter__(self) -> Self:
        """Return the event itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answer, if need be, and close."""
        self.close()

    def __repr__(self) -> str:
        what = f"flags={self.flags!r}, fd={self.fd}, pid={self.pid}, pidfd={self.pidfd}, name={self.name!r}"
        return f"<FanotifyEvent {what}>"


class _OwningEvent(FanotifyEvent):
    """An event with descriptors: they are closed, and whoever waits is answered, when it is dropped."""

    _open = True
    _answered = False

    @property
    def fd(self) -> int:
        return self[1] if self._open or self[1] < 0 else FAN_NOFD

    @property
    def pidfd(self) -> int:
        return self[3] if self._open or self[3] < 0 else FAN_NOPIDFD

    def _answer(self, response: int, audit: FanotifyAudit | bool) -> None:
        mask, fd, *_, group = self
        if not mask & _PERMISSION:
            raise ValueError("the event cannot be answered: it is not a question")
        if fd < 0:
            raise ValueError("the event cannot be answered: the kernel denied it, having no descriptor for it")
        if self._answered or not self._open:
            raise ValueError("the event cannot be answered: it was answered before")
        if group is None or group.fd < 0:
            raise ValueError("the event cannot be answered: its group is closed")
        response |= _AUDIT if audit else 0
        group.answer(fd, response, audit if isinstance(audit, FanotifyAudit) else None)
        self._answered = True

    def close(self) -> None:
        if self._open:
            self._open = False
            # By index: every event is closed, and this is what it costs.
            try:
                if self[0] & _PERMISSION and not self._answered:
                    self._answer_by_default()
            finally:
                if self[1] >= 0:
                    _close(self[1])
                if self[3] >= 0:
                    _close(self[3])

    def _answer_by_default(self) -> None:
        group = self.group
        if self[1] >= 0 and group is not None and group.fd >= 0:
            group.answer(self[1], group.default)

    def __del__(self) -> None:
        if not self._open:
            return
        if self[1] >= 0 or self[3] >= 0:
            if self.group is not None and not self.group.inherited:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2)
            self.close()


class _Owner:
    """What the events of one read share: their group, and which of their descriptors are open.

    A number belongs to one event of a read, as long as it is open; so events need no state of their own, which would
    cost as much as the rest of them.
    """

    __slots__ = ("forget", "group", "open")

    def __init__(self, group: Group, descriptors: Sequence[int]) -> None:
        self.group = group
        self.open = set(descriptors)
        if min(descriptors, default=0) < 0:
            self.open = {fd for fd in descriptors if fd >= 0}
        self.forget = self.open.remove

    def __del__(self) -> None:
        left = list(self.open)
        if left:
            if not self.group.inherited:
                warnings.warn(f"unclosed fanotify events: fds={sorted(left)}", ResourceWarning, stacklevel=2)
            for fd in left:
                _close(fd)


class _DescriptorEvent(FanotifyEvent):
    """An event with a descriptor that nobody waits for. What is still open when all of a read are dropped is closed."""

    __slots__ = ()

    @property
    def fd(self) -> int:
        fd = self[1]
        return fd if fd < 0 or fd in self[7].open else FAN_NOFD  # type: ignore[union-attr]

    @property
    def group(self) -> Group:
        owner: _Owner = self[7]  # type: ignore[assignment]
        return owner.group

    def close(self) -> None:
        fd = self[1]
        try:
            self[7].forget(fd)  # type: ignore[union-attr]
        except KeyError:
            return
        _close(fd)


def _events(columns: FanotifyColumns, group: Group | None, kind: type[FanotifyEvent]) -> list[FanotifyEvent]:
    mask, fd, pid, pidfd, directory, name, *rest = columns
    owner: Group | _Owner | None = group
    if kind is _DescriptorEvent and group is not None:
        owner = _Owner(group, fd)
    # A group without such records has one shared tuple for all of its events.
    absent = rest.count(rest[0]) == len(rest)
    rests = repeat(_NOTHING) if absent else zip(*rest)  # noqa: B905  # equally long
    rows = zip(mask, fd, pid, pidfd, directory, name, rests, repeat(owner))
    return list(map(tuple.__new__, repeat(kind), rows))


def str_to_events(records: bytes) -> list[FanotifyEvent]:
    """Return the events in bytes that were read from a fanotify descriptor, at most 32 KiB.

    They own nothing: the descriptors in them stay the caller's, to be closed and answered by the primitives.

    Raises:
        ValueError: A record is cut short or malformed.
    """
    return _events(fanotify_split(records), None, FanotifyEvent)


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
        self._group = Group(fd, _ALLOW if unanswered == "allow" else _DENY)
        self._asks = flags & _CLASSES != 0
        self._handles = flags & _FIDS != 0
        pidfds = flags & int(FanotifyInit.REPORT_PIDFD) != 0
        if self._handles and not pidfds:
            self._kind: type[FanotifyEvent] = FanotifyEvent
        else:
            self._kind = _OwningEvent if self._asks or pidfds else _DescriptorEvent
        self._batch = FanotifyBatch(_read_size(handles=self._handles, pidfds=pidfds))
        super().__init__(fd, nonblock=nonblock)
        what = f"{self.name} fd={fd}"
        self._finalizer.detach()
        self._end = weakref.finalize(self, _leaked, self._group, self._descriptors, what)
        self._end.atexit = False  # as for files: the end of the process is no leak

    def _read(self) -> list[FanotifyEvent]:
        columns = self._batch.read(self._fd)
        if columns is None:
            return []
        if self._asks:
            self._group.asked.update(
                fd for mask, fd in zip(columns.mask, columns.fd, strict=True) if mask & _PERMISSION and fd >= 0
            )
        return _events(columns, self._group, self._kind)

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
    except OSError as error:
        raise (value_error(error) if error.errno == _errno.EINVAL else error) from None


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
