"""The events of a fanotify group, of three kinds: without descriptors, with nothing but one, and all others.

`Fanotify` picks the kind from the flags of its group.
"""

import errno as _errno
import os
import warnings
from collections.abc import Callable, Iterable
from itertools import repeat
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self, cast

from sandbox.events._fanotify_group import Group
from sandbox.events._mask import Says
from sandbox.events.base import CLOSED
from sandbox.primitives._call import os_error
from sandbox.primitives.fanotify import FanotifyAudit, FanotifyColumns
from sandbox.primitives.fanotify_numbers import (
    FAN_DENY_ERRNO,
    FAN_NOFD,
    FAN_NOPIDFD,
    FanotifyMask,
    FanotifyResponse,
)

_close = os.close
# Plain ints: arithmetic with an IntFlag costs ten times as much.
ALLOW, DENY, _AUDIT = (int(FanotifyResponse[name]) for name in ("ALLOW", "DENY", "AUDIT"))
PERMISSION = int(
    FanotifyMask.OPEN_PERM | FanotifyMask.ACCESS_PERM | FanotifyMask.OPEN_EXEC_PERM | FanotifyMask.PRE_ACCESS
)
# In place of a descriptor that is closed; below FAN_NOFD an errno stands, negated.
_WAS_CLOSED: Final = -(2**31)

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


if TYPE_CHECKING:
    _Tuple = _Fields
else:
    # The named tuple without its __new__ in Python, which would cost as much as the rest of an event.
    _Tuple = type("_Tuple", (tuple,), {"__slots__": (), **{name: vars(_Fields)[name] for name in _Fields._fields}})


class FanotifyEvent(_Tuple):
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

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: two would answer, and close, for one."""
        raise TypeError(
            "FanotifyEvent cannot be pickled: its descriptors, and the answer, are this process's own; send its mask,"
            " pid and filename"
        )

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
    is_permission = Says(PERMISSION, "Whether it is a question, answered by `allow` or `deny`.")

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
        if self._was_closed():
            raise ValueError(CLOSED)
        return self._path(self.directory_handle or self.file_handle, self.name)

    @property
    def new_filename(self) -> str:
        """Of a `rename_event`: the path that the entry was moved to; as `filename`."""
        return self._path(self.new_directory_handle, self.new_name)

    def _was_closed(self) -> bool:
        return self[1] >= 0

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
        self._answer(ALLOW, audit)

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
        self._answer(DENY if plain or errno is None else FAN_DENY_ERRNO(errno), audit)

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


class OwningEvent(FanotifyEvent):
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
        if not mask & PERMISSION:
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
                if self[0] & PERMISSION and not self._answered:
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


class _Descriptors:
    """The descriptors of one read, with their group. Those that are open when the last event is dropped are closed.

    So their events have no state of their own, which would cost as much as the rest of them.
    """

    __slots__ = ("fds", "group")

    def __init__(self, fds: list[int], group: Group) -> None:
        self.fds = fds
        self.group = group

    def __del__(self) -> None:
        if self.fds.count(_WAS_CLOSED) == len(self.fds):
            return
        left = [fd for fd in self.fds if fd >= 0]
        if left and not self.group.inherited:
            warnings.warn(f"unclosed fanotify events: fds={sorted(left)}", ResourceWarning, stacklevel=2)
        for fd in left:
            _close(fd)


class DescriptorEvent(FanotifyEvent):
    """An event with a descriptor that nobody waits for, and nothing else.

    A tuple of mask, number among the events of its read, pid and what they share.
    """

    __slots__ = ()
    _shared: _Descriptors = vars(_Fields)["pidfd"]  # its getter, of item 3
    pidfd = FAN_NOPIDFD
    directory_handle = name = None
    rest = _NOTHING

    @property
    def fd(self) -> int:
        fd = self._shared.fds[self[1]]
        return FAN_NOFD if fd == _WAS_CLOSED else fd

    @property
    def group(self) -> Group:
        return self._shared.group

    def _was_closed(self) -> bool:
        return self._shared.fds[self[1]] == _WAS_CLOSED

    def close(self) -> None:
        fds = self._shared.fds
        number = self[1]
        fd = fds[number]
        if fd >= 0:
            fds[number] = _WAS_CLOSED
            _close(fd)


# A checker takes it for the named tuple, which is made of fields one by one.
_made_of: Callable[[tuple[object, ...]], DescriptorEvent] = cast(Any, DescriptorEvent)


def events_of(columns: FanotifyColumns, group: Group | None, kind: type[FanotifyEvent]) -> list[FanotifyEvent]:
    """Return the events of a batch, none of them a DescriptorEvent."""
    mask, fd, pid, pidfd, directory, name, *rest = columns
    # A group without such records has one shared tuple for all of its events.
    absent = rest.count(rest[0]) == len(rest)
    rests = repeat(_NOTHING) if absent else zip(*rest)  # noqa: B905  # equally long
    return list(map(kind, zip(mask, fd, pid, pidfd, directory, name, rests, repeat(group))))


def descriptor_events(mask: Iterable[int], fd: list[int], pid: Iterable[int], group: Group) -> list[FanotifyEvent]:
    """Return the events of a batch that holds nothing but descriptors."""
    shared = repeat(_Descriptors(fd, group))
    return list(map(_made_of, zip(mask, range(len(fd)), pid, shared)))  # noqa: B905  # the range ends it
