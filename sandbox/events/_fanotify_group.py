"""What the events of a fanotify group need of it: where to answer, and how to find names.

It is apart from `Fanotify`, so that an event that somebody keeps does not keep the group open.
"""

import errno
import os
import stat

from sandbox.primitives._call import StrOrBytesPath, os_error
from sandbox.primitives.fanotify import FanotifyAudit, FanotifyBatch, fanotify_mark, fanotify_respond
from sandbox.primitives.fanotify_numbers import (
    FAN_ALLOW,
    FAN_MARK_FILESYSTEM,
    FAN_MARK_FLUSH,
    FAN_MARK_INODE,
    FAN_MARK_MOUNT,
)
from sandbox.primitives.file_handles import AT_HANDLE_FID, name_to_handle_at, open_by_handle_at
from sandbox.primitives.files import AT_EMPTY_PATH

_AT_FDCWD = -100
_QUESTIONS = 0x170000  # OPEN_PERM, ACCESS_PERM, OPEN_EXEC_PERM, PRE_ACCESS
# So that the rest of the questions is read in pieces of 64 descriptors.
_DRAIN_SIZE = 64 * 24


def answer_quietly(fd: int, event_fd: int, response: int, audit: FanotifyAudit | None = None) -> None:
    """Answer a question, unless whoever asked was killed meanwhile."""
    try:
        fanotify_respond(fd, event_fd, response, audit)
    except FileNotFoundError:
        return


class Group:
    """The group behind a `Fanotify` object and its events.

    Args:
        fd: The group's descriptor, closed by `end`.
        default: The response to a question that nobody answers.

    Attributes:
        asked: The descriptors of the questions that wait for an answer.
        inherited: Whether this is the copy in a forked child.
    """

    def __init__(self, fd: int, default: int) -> None:
        self.fd = fd
        self.default = default
        self.asked: set[int] = set()
        self.inherited = False
        # By file system id, a descriptor on it, for open_by_handle_at.
        self._mounts: dict[bytes, int] = {}
        # By handle, the path that was marked, for those who may not open by handle.
        self._marked: dict[bytes, str] = {}
        self._may_open = True  # by handle, as far as known

    def answer(self, event_fd: int, response: int, audit: FanotifyAudit | None = None) -> None:
        """Answer a question."""
        answer_quietly(self.fd, event_fd, response, audit)
        self.asked.discard(event_fd)

    def release(self) -> None:
        """Answer what was read and let go of the descriptor, which is somebody else's from here on."""
        fd, self.fd = self.fd, -1
        asked, self.asked = self.asked, set()
        for event_fd in asked:
            answer_quietly(fd, event_fd, self.default)
        self._close_mounts()

    def end(self, *, answer: bool) -> None:
        """Close the group; first, if this is the process that answers, answer everything by default."""
        fd = self.fd
        try:
            if answer and self.default != FAN_ALLOW:
                for event_fd in self.asked:
                    answer_quietly(fd, event_fd, self.default)
                self._drain()
        finally:
            self.fd = -1
            self.asked = set()
            os.close(fd)
            self._close_mounts()

    def _drain(self) -> None:
        """Answer the questions that nobody has read, once the marks are gone and there are no new ones.

        Closing would answer them, too, but the kernel allows then.
        """
        for kind in (FAN_MARK_INODE, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM):
            try:
                fanotify_mark(self.fd, int(FAN_MARK_FLUSH) | int(kind), 0)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM):  # not a kind that this group may mark
                    raise
        batch = FanotifyBatch(_DRAIN_SIZE)
        while True:
            try:
                columns = batch.read(self.fd)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    continue  # the kernel has taken this one off and denied it
                raise
            if columns is None:
                return
            for mask, event_fd, pidfd in zip(columns.mask, columns.fd, columns.pidfd, strict=True):
                if mask & _QUESTIONS and event_fd >= 0:
                    answer_quietly(self.fd, event_fd, self.default)
                for one in (event_fd, pidfd):
                    if one >= 0:
                        os.close(one)

    # ── names ──────────────────────────────────────────────────────────────────────────────────────────────

    def path(self, handle: bytes) -> str:
        """Return the present path of the file that a handle stands for.

        Raises:
            OSError: ESTALE (it is gone, or cannot be found by this user).
        """
        mount = self._mounts.get(handle[:8])
        if mount is not None:
            fd = open_by_handle_at(mount, handle[8:], os.O_PATH | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_nlink == 0:
                    raise os_error(errno.ESTALE)  # deleted, and held by somebody
                return os.readlink(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
        path = self._marked.get(handle)
        if path is not None:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                raise os_error(errno.ESTALE) from None
            try:
                if _handle_of(fd) == handle:
                    return path
            finally:
                os.close(fd)
        raise os_error(errno.ESTALE)

    def remember(self, path: StrOrBytesPath | None, dirfd: int, *, follow: bool) -> None:
        """Prepare for resolving the handles of what is about to be marked.

        Raises:
            OSError: As opening the path does; EMFILE.
        """
        if path is None:
            here = os.open("." if dirfd == _AT_FDCWD else f"/proc/self/fd/{dirfd}", os.O_PATH | os.O_CLOEXEC)
        else:
            flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
            here = os.open(path, flags, dir_fd=None if dirfd == _AT_FDCWD else dirfd)
        try:
            handle = _handle_of(here)
            if handle is not None and handle[:8] not in self._mounts and not self._hold_mount(here, handle):
                self._marked[handle] = os.readlink(f"/proc/self/fd/{here}")
        finally:
            os.close(here)

    def _hold_mount(self, here: int, handle: bytes) -> bool:
        """Keep a descriptor on a file system, if handles can be opened with it."""
        mode = os.fstat(here).st_mode
        if not self._may_open or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return False
        try:
            mount = os.open(f"/proc/self/fd/{here}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            return False
        try:
            os.close(open_by_handle_at(mount, handle[8:], os.O_PATH | os.O_CLOEXEC))
            self._mounts[handle[:8]], mount = mount, -1
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            self._may_open = error.errno != errno.EPERM
            return False
        finally:
            if mount >= 0:
                os.close(mount)
        return True

    def _close_mounts(self) -> None:
        mounts, self._mounts = self._mounts, {}
        for fd in mounts.values():
            os.close(fd)


def _handle_of(fd: int) -> bytes | None:
    """Return file system id and handle of an open file, as events have them, or None where there are none."""
    for flags in (0, AT_HANDLE_FID):
        try:
            handle, _ = name_to_handle_at(fd, "", AT_EMPTY_PATH | flags)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return os.fstatvfs(fd).f_fsid.to_bytes(8, "little") + handle
    return None
