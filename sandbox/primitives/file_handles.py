"""File handles: names of files that outlive a rename (open_by_handle_at(2))."""

import os
import struct
from enum import IntFlag
from typing import Final

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, StrOrBytesPath, check, fd_of, path_bytes

__all__ = [
    "name_to_handle_at",
    "open_by_handle_at",
    "HandleFlags",
    "AT_HANDLE_FID",
    "AT_HANDLE_MNT_ID_UNIQUE",
    "AT_HANDLE_CONNECTABLE",
]

_HEAD = struct.Struct("=Ii")  # struct file_handle: bytes that follow, type


class HandleFlags(IntFlag):
    """What `name_to_handle_at` takes beside AT_EMPTY_PATH and AT_SYMLINK_FOLLOW."""

    HANDLE_FID = 0x200
    HANDLE_MNT_ID_UNIQUE = 0x001
    HANDLE_CONNECTABLE = 0x002


AT_HANDLE_FID: Final = HandleFlags.HANDLE_FID
AT_HANDLE_MNT_ID_UNIQUE: Final = HandleFlags.HANDLE_MNT_ID_UNIQUE
AT_HANDLE_CONNECTABLE: Final = HandleFlags.HANDLE_CONNECTABLE


def name_to_handle_at(dirfd: Fd, path: StrOrBytesPath, flags: int = 0) -> tuple[bytes, int]:
    """Return the handle of a file and the id of the mount that it was found through.

    Args:
        dirfd: Where a relative path starts; -100 (AT_FDCWD) is the working directory.
        path: The file; a symlink is not followed unless AT_SYMLINK_FOLLOW is given.
        flags: HandleFlags. HANDLE_FID, a handle to compare only, works on more file systems (Linux 6.5).

    Returns:
        The bytes of struct file_handle, which compare equal for one file, and the mount id.

    Raises:
        OSError: EOPNOTSUPP (the file system has no handles), ENOENT, ENOTDIR, EBADF (dirfd), EINVAL (flags).

    See open_by_handle_at(2). Since Linux 2.6.39.
    """
    raw = path_bytes(path)
    handle = ffi.new("char[]", lib.SANDBOX_MAX_HANDLE)
    mount_id = ffi.new("int *")
    check(lib.sandbox_name_to_handle_at(fd_of(dirfd, "dirfd"), raw, handle, mount_id, flags), path)
    size, _ = _HEAD.unpack(ffi.buffer(handle, _HEAD.size)[:])
    return ffi.buffer(handle, _HEAD.size + size)[:], mount_id[0]


def open_by_handle_at(mount_fd: Fd, handle: bytes, flags: int = os.O_RDONLY | os.O_CLOEXEC) -> int:
    """Open the file that a handle stands for and return its descriptor, which the caller closes.

    Args:
        mount_fd: Any file on the file system, opened with more than O_PATH.
        handle: The bytes of struct file_handle, as `name_to_handle_at` returns them.
        flags: As for open(2); close-on-exec unless the caller says otherwise.

    Raises:
        OSError: EPERM (needs CAP_DAC_READ_SEARCH), ESTALE (the file is gone, or the handle is of another file
            system), EBADF (mount_fd), EINVAL (not a handle).
        ValueError: The handle is cut short.

    See open_by_handle_at(2). Since Linux 2.6.39.
    """
    if len(handle) < _HEAD.size or len(handle) != _HEAD.size + _HEAD.unpack_from(handle)[0]:
        raise ValueError(f"handle must be the bytes of one struct file_handle, got {len(handle)} bytes")
    return check(lib.sandbox_open_by_handle_at(fd_of(mount_fd, "mount_fd"), ffi.from_buffer(handle), flags))
