"""fanotify(7): watching files, directories, mounts and file systems, and deciding about access to them."""

import errno
import os
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, Held, StrOrBytesPath, check, fd_of, in_range, os_error, path_bytes
from sandbox.primitives.fanotify_numbers import (
    FAN_EVENT_INFO_TYPE_DFID,
    FAN_EVENT_INFO_TYPE_DFID_NAME,
    FAN_EVENT_INFO_TYPE_ERROR,
    FAN_EVENT_INFO_TYPE_FID,
    FAN_EVENT_INFO_TYPE_MNT,
    FAN_EVENT_INFO_TYPE_NEW_DFID_NAME,
    FAN_EVENT_INFO_TYPE_OLD_DFID_NAME,
    FAN_EVENT_INFO_TYPE_PIDFD,
    FAN_EVENT_INFO_TYPE_RANGE,
    FAN_NOPIDFD,
    FanotifyInit,
    FanotifyResponse,
)

__all__ = [
    "fanotify_init",
    "fanotify_mark",
    "fanotify_read",
    "fanotify_split",
    "fanotify_respond",
    "FanotifyAudit",
    "FanotifyBatch",
    "FanotifyColumns",
]

_AT_FDCWD = -100


class FanotifyAudit(NamedTuple):
    """The rule that decided, for the audit record of an answer (FAN_INFO with FAN_AUDIT, Linux 6.3).

    Attributes:
        rule: Number of the rule.
        subject_trust: 0 not trusted, 1 trusted, 2 not known.
        object_trust: The same for the file.
    """

    rule: int
    subject_trust: int = 2
    object_trust: int = 2


class FanotifyColumns(NamedTuple):
    """Fanotify events by column; None where an event, or the whole group, has no such thing.

    A handle is opaque: the 8 bytes of the file system's id (statfs(2), f_fsid) and those of
    struct file_handle. The descriptors belong to the caller, who closes them.

    Attributes:
        mask: What happened.
        fd: Descriptor of the file, or negative: FAN_NOFD or, with REPORT_FD_ERROR, an errno.
        pid: Who did it; 0 when it is not in this pid namespace.
        pidfd: Descriptor of who did it, or negative: FAN_NOPIDFD, FAN_EPIDFD or an errno.
        directory: Handle of the directory (DFID, DFID_NAME, OLD_DFID_NAME).
        name: Name in that directory, "." for itself; by surrogateescape.
        object: Handle of the file itself (FID).
        new_directory: Handle of the directory that it was renamed to (NEW_DFID_NAME).
        new_name: Name that it was renamed to.
        range: Offset and count in bytes (RANGE).
        mount: Unique id of a mount (MNT).
        error: Errno and how often it happened (ERROR).
    """

    mask: Sequence[int]
    fd: Sequence[int]
    pid: Sequence[int]
    pidfd: Sequence[int]
    directory: Sequence[bytes | None]
    name: Sequence[str | None]
    object: Sequence[bytes | None]
    new_directory: Sequence[bytes | None]
    new_name: Sequence[str | None]
    range: Sequence[tuple[int, int] | None]
    mount: Sequence[int | None]
    error: Sequence[tuple[int, int] | None]


_FID = 1 << FAN_EVENT_INFO_TYPE_FID
_DIRECTORY = 1 << FAN_EVENT_INFO_TYPE_DFID_NAME | 1 << FAN_EVENT_INFO_TYPE_DFID | 1 << FAN_EVENT_INFO_TYPE_OLD_DFID_NAME
_NEW = 1 << FAN_EVENT_INFO_TYPE_NEW_DFID_NAME
_PIDFD = 1 << FAN_EVENT_INFO_TYPE_PIDFD
_RANGE = 1 << FAN_EVENT_INFO_TYPE_RANGE
_MOUNT = 1 << FAN_EVENT_INFO_TYPE_MNT
_ERROR = 1 << FAN_EVENT_INFO_TYPE_ERROR

_FD_DIFFERS: int = lib.FANOTIFY_DIFFER_FD
_PID_DIFFERS: int = lib.FANOTIFY_DIFFER_PID
_DIRECTORY_DIFFERS: int = lib.FANOTIFY_DIFFER_DIRECTORY
_MASK_DIFFERS: int = lib.FANOTIFY_DIFFER_MASK


class FanotifyBatch(Held):
    """The memory that records are read into, for one reader at a time.

    Args:
        size: How many bytes one read takes at most. Each event of a group without file ids costs a descriptor
            in the moment of the read, so the size is what bounds their number: 24 bytes an event.
    """

    __slots__ = ("_batch", "_fd", "_mask", "_pid", "_size")

    def __init__(self, size: int = 32768) -> None:
        self._size = in_range(size, 24, lib.SANDBOX_FANOTIFY_BYTES, "size")
        # Not cleared: each read says how much of it is valid.
        allocate = ffi.new_allocator(should_clear_after_alloc=False)
        self._batch: Any = allocate("struct sandbox_fanotify_batch *")
        # The columns that every event has.
        self._mask, self._fd, self._pid = self._batch.mask, self._batch.fd, self._batch.pid

    def read(self, fd: int) -> FanotifyColumns | None:
        """Read once; None when a non-blocking descriptor has nothing.

        Raises:
            OSError: EMFILE, ENFILE (no descriptor left for a file; the event is gone, and denied if it was a
                question), EINVAL (not a fanotify descriptor, or `size` is too small for an event), EBADF.
        """
        count = self._read(fd)
        return self._columns(count) if count else None

    def read_files(self, fd: int) -> tuple[Iterable[int], list[int], Iterable[int]]:
        """Read once from a group whose events are descriptors and nothing else: masks, descriptors, processes.

        Masks and processes may go on when the descriptors end. Errors are those of `read`; nothing is no event.
        """
        count = self._read(fd)
        unpack, differ = ffi.unpack, self._batch.differ
        masks: Iterable[int] = unpack(self._mask, count) if differ & _MASK_DIFFERS else repeat(self._mask[0])
        pids: Iterable[int] = unpack(self._pid, count) if differ & _PID_DIFFERS else repeat(self._pid[0])
        return masks, unpack(self._fd, count), pids

    def _read(self, fd: int) -> int:
        while (count := lib.sandbox_fanotify_read(fd, self._batch, self._size)) < 0:
            if count == -errno.EAGAIN:
                return 0
            if count != -errno.EINTR:
                raise os_error(-count)
        return int(count)

    def split(self, records: bytes) -> FanotifyColumns:
        """Split records that were read elsewhere, at most 32 KiB of them.

        Raises:
            ValueError: A record is cut short or malformed, or there are too many.
        """
        limit = lib.SANDBOX_FANOTIFY_BYTES
        if len(records) > limit:
            raise ValueError(f"records must be at most {limit} bytes, got {len(records)}")
        ffi.memmove(self._batch.records, records, len(records))
        count = lib.sandbox_fanotify_split(self._batch, len(records))
        if count < 0:
            raise ValueError(f"records are cut short or malformed: {len(records)} bytes")
        return self._columns(count)

    def _columns(self, count: int) -> FanotifyColumns:
        batch, unpack = self._batch, ffi.unpack
        kinds = batch.kinds
        # One object for all columns that are absent, by which they are known.
        nothing = (None,) * count
        # What is the same in all events, as a directory and a process often are, is made once.
        differ = batch.differ
        masks: Sequence[int] = unpack(self._mask, count) if differ & _MASK_DIFFERS else (self._mask[0],) * count
        fds: Sequence[int] = unpack(self._fd, count) if differ & _FD_DIFFERS else (self._fd[0],) * count
        pids: Sequence[int] = unpack(self._pid, count) if differ & _PID_DIFFERS else (self._pid[0],) * count
        if not kinds:
            return FanotifyColumns(masks, fds, pids, (FAN_NOPIDFD,) * count, *[nothing] * 8)
        directory: Sequence[bytes | None] = nothing
        subject: Sequence[bytes | None] = nothing
        new_directory: Sequence[bytes | None] = nothing
        if kinds & (_DIRECTORY | _FID | _NEW):
            handles = self._handles(batch.handles)
            if kinds & _DIRECTORY and not differ & _DIRECTORY_DIFFERS:
                directory = (handles[batch.directory[0]],) * count
            elif kinds & _DIRECTORY:
                directory = list(map(handles.__getitem__, unpack(batch.directory, count)))
            if kinds & _FID:
                subject = list(map(handles.__getitem__, unpack(batch.object, count)))
            if kinds & _NEW:
                new_directory = list(map(handles.__getitem__, unpack(batch.new_directory, count)))
        return FanotifyColumns(
            masks,
            fds,
            pids,
            unpack(batch.pidfd, count) if kinds & _PIDFD else (FAN_NOPIDFD,) * count,
            directory,
            self._names(batch.names, batch.names_size, batch.named == count) if batch.named else nothing,
            subject,
            new_directory,
            self._names(batch.new_names, batch.new_names_size, False) if kinds & _NEW else nothing,
            # Told apart by their mask, where some events of a group have one and others not.
            self._pairs(batch.mask, 0x100000, batch.offset, batch.count, count) if kinds & _RANGE else nothing,
            [number or None for number in unpack(batch.mount, count)] if kinds & _MOUNT else nothing,
            self._pairs(batch.mask, 0x8000, batch.error, batch.error_count, count) if kinds & _ERROR else nothing,
        )

    def _handles(self, number: int) -> list[bytes | None]:
        """Return the handles, and None behind them, where index -1 finds it."""
        ends = ffi.unpack(self._batch.handle_end, number)
        raw = ffi.buffer(self._batch.handle_bytes, ends[-1] if ends else 0)[:]
        begin = 0
        handles: list[bytes | None] = []
        for end in ends:
            handles.append(raw[begin:end])
            begin = end
        handles.append(None)
        return handles

    @staticmethod
    def _names(blob: Any, size: int, all_named: bool) -> Sequence[str | None]:
        names = os.fsdecode(ffi.buffer(blob, size)[:]).split("\0")
        del names[-1]
        return names if all_named else [name or None for name in names]

    @staticmethod
    def _pairs(masks: Any, bit: int, left: Any, right: Any, count: int) -> list[tuple[int, int] | None]:
        rows = zip(*(ffi.unpack(column, count) for column in (masks, left, right)), strict=True)
        return [(one, other) if mask & bit else None for mask, one, other in rows]


def fanotify_init(flags: int = FanotifyInit.CLOEXEC, event_flags: int = os.O_RDONLY | os.O_CLOEXEC) -> int:
    """Create a fanotify group and return its descriptor, which the caller closes.

    Args:
        flags: FanotifyInit; close-on-exec unless the caller says otherwise.
        event_flags: How the files of events are opened, as for open(2).

    Raises:
        OSError: EPERM (needs CAP_SYS_ADMIN, or else REPORT_FID without a class, unlimited queue or pidfd),
            EMFILE (no descriptor left, or fs.fanotify.max_user_groups reached), EINVAL (unknown flag, or
            flags that contradict each other), ENOSYS (kernel without fanotify).

    See fanotify_init(2). Since Linux 2.6.37.
    """
    flags = in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_fanotify_init(flags, in_range(event_flags, 0, 2**32 - 1, "event_flags")))


def fanotify_mark(fd: Fd, flags: int, mask: int, dirfd: Fd = _AT_FDCWD, path: StrOrBytesPath | None = None) -> None:
    """Add, change or remove a mark of a group.

    Args:
        fd: The group.
        flags: FanotifyMark: what to do, and whether to an inode, a mount, a file system or a mount namespace.
        mask: FanotifyMask.
        dirfd: Where a relative path starts; the subject itself when `path` is None. -100 (AT_FDCWD) is the
            working directory.
        path: The subject.

    Raises:
        OSError: ENOENT, ENOTDIR, EACCES, EBADF, EINVAL (not a fanotify descriptor, or flags and mask that do
            not go together), ENOSPC (fs.fanotify.max_user_marks reached), EPERM (an unprivileged group marks
            inodes only), ENODEV, EOPNOTSUPP, EXDEV (no usable file system id), EEXIST (an ignore mark is
            there already with other flags), EISDIR (IGNORE on a directory without IGNORED_SURV_MODIFY).

    See fanotify_mark(2). Since Linux 2.6.37.
    """
    raw = ffi.NULL if path is None else path_bytes(path)
    flags = in_range(flags, 0, 2**32 - 1, "flags")
    mask = in_range(mask, 0, 2**64 - 1, "mask")
    check(lib.sandbox_fanotify_mark(fd_of(fd), flags, mask, fd_of(dirfd, "dirfd"), raw), path)


def fanotify_read(fd: Fd, size: int = 1536) -> FanotifyColumns | None:
    """Read once and return what came, by column; None when a non-blocking descriptor has nothing.

    Who reads often keeps a `FanotifyBatch`, the memory for it. The descriptors in the answer are
    the caller's.

    Args:
        fd: The group.
        size: How many bytes to read at most, 24 to 32,768; by default not more than 64 files are opened.

    Raises:
        OSError: EMFILE, ENFILE (no descriptor left for a file), EINVAL (not a fanotify descriptor, or `size`
            is too small for an event), EBADF.

    See fanotify(7). Since Linux 2.6.37.
    """
    return FanotifyBatch(size).read(fd_of(fd))


def fanotify_split(records: bytes) -> FanotifyColumns:
    """Split records that were read with read(2), at most 32 KiB, into columns.

    Raises:
        ValueError: A record is cut short or malformed.

    See fanotify(7). Since Linux 2.6.37.
    """
    return FanotifyBatch().split(records)


def fanotify_respond(fd: Fd, event_fd: int, response: int, audit: FanotifyAudit | None = None) -> None:
    """Answer a permission event; the process that waits goes on.

    Args:
        fd: The group.
        event_fd: The descriptor that came with the event; it is its name, and still to be closed.
        response: FAN_ALLOW, FAN_DENY or FAN_DENY_ERRNO(errno), with FAN_AUDIT for an audit record.
        audit: The rule that decided; needs FAN_AUDIT, sets FAN_INFO.

    Raises:
        OSError: ENOENT (no such event, or answered already), EINVAL (not a response, or FAN_AUDIT in a group
            without ENABLE_AUDIT; the opener stays blocked), EBADF.

    See fanotify(7). Since Linux 2.6.37.
    """
    response = in_range(response, 0, 2**32 - 1, "response")
    event_fd = in_range(event_fd, -(2**31), 2**31 - 1, "event_fd")
    rule = FanotifyAudit(0) if audit is None else audit
    if audit is not None:
        response |= int(FanotifyResponse.INFO)
    trusts = [in_range(value, 0, 2**32 - 1, name) for name, value in rule._asdict().items()]
    check(lib.sandbox_fanotify_respond(fd_of(fd), event_fd, response, audit is not None, *trusts))
