"""A file system made step by step: fsopen(2), fsconfig(2), fsmount(2), fspick(2), and its messages."""

import errno
import os
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from sandbox._native import ffi, lib
from sandbox.primitives._call import (
    Fd,
    StrOrBytesPath,
    check,
    fd_of,
    in_range,
    path_bytes,
    text_bytes,
)
from sandbox.primitives.files import AT_FDCWD

__all__ = ["FsopenFlags", "FsconfigCommand", "FsmountFlags", "FspickFlags", "FsMessage"]
__all__ += ["fsopen", "fsconfig", "fsmount", "fspick", "read_fs_messages"]
__all__ += ["FSOPEN_CLOEXEC", "FSMOUNT_CLOEXEC", "FSMOUNT_NAMESPACE"]
__all__ += ["FSPICK_CLOEXEC", "FSPICK_SYMLINK_NOFOLLOW", "FSPICK_NO_AUTOMOUNT", "FSPICK_EMPTY_PATH"]
__all__ += ["FSCONFIG_SET_FLAG", "FSCONFIG_SET_STRING", "FSCONFIG_SET_BINARY", "FSCONFIG_SET_PATH"]
__all__ += ["FSCONFIG_SET_PATH_EMPTY", "FSCONFIG_SET_FD", "FSCONFIG_CMD_CREATE", "FSCONFIG_CMD_RECONFIGURE"]
__all__ += ["FSCONFIG_CMD_CREATE_EXCL"]


class FsopenFlags(IntFlag):
    """Flags of fsopen(2)."""

    CLOEXEC = 1


FSOPEN_CLOEXEC = FsopenFlags.CLOEXEC


class FsconfigCommand(IntEnum):
    """What fsconfig(2) does."""

    SET_FLAG = 0
    SET_STRING = 1
    SET_BINARY = 2
    SET_PATH = 3
    SET_PATH_EMPTY = 4
    SET_FD = 5
    CMD_CREATE = 6
    CMD_RECONFIGURE = 7
    CMD_CREATE_EXCL = 8  # 6.6


FSCONFIG_SET_FLAG = FsconfigCommand.SET_FLAG
FSCONFIG_SET_STRING = FsconfigCommand.SET_STRING
FSCONFIG_SET_BINARY = FsconfigCommand.SET_BINARY
FSCONFIG_SET_PATH = FsconfigCommand.SET_PATH
FSCONFIG_SET_PATH_EMPTY = FsconfigCommand.SET_PATH_EMPTY
FSCONFIG_SET_FD = FsconfigCommand.SET_FD
FSCONFIG_CMD_CREATE = FsconfigCommand.CMD_CREATE
FSCONFIG_CMD_RECONFIGURE = FsconfigCommand.CMD_RECONFIGURE
FSCONFIG_CMD_CREATE_EXCL = FsconfigCommand.CMD_CREATE_EXCL


class FsmountFlags(IntFlag):
    """Flags of fsmount(2)."""

    CLOEXEC = 1
    NAMESPACE = 2  # newer than 7.0


FSMOUNT_CLOEXEC = FsmountFlags.CLOEXEC
FSMOUNT_NAMESPACE = FsmountFlags.NAMESPACE


class FspickFlags(IntFlag):
    """Flags of fspick(2)."""

    CLOEXEC = 1
    SYMLINK_NOFOLLOW = 2
    NO_AUTOMOUNT = 4
    EMPTY_PATH = 8


FSPICK_CLOEXEC = FspickFlags.CLOEXEC
FSPICK_SYMLINK_NOFOLLOW = FspickFlags.SYMLINK_NOFOLLOW
FSPICK_NO_AUTOMOUNT = FspickFlags.NO_AUTOMOUNT
FSPICK_EMPTY_PATH = FspickFlags.EMPTY_PATH


@dataclass(frozen=True, slots=True)
class FsMessage:
    """One line that the kernel left on a file-system descriptor.

    Attributes:
        level: "e" for an error, "w" for a warning, "i" for information.
        text: What it says.
    """

    level: str
    text: str


def fsopen(fsname: str | bytes, flags: int = FsopenFlags.CLOEXEC) -> int:
    """Begin to make a file system and return its descriptor, which the caller closes.

    Args:
        fsname: The type, such as "tmpfs".
        flags: FsopenFlags; close-on-exec by default, and only as given otherwise.

    Raises:
        OSError: ENODEV (unknown type), EPERM (CAP_SYS_ADMIN is missing in the mount namespace's user
            namespace), EINVAL (unknown flag), EMFILE, ENFILE.

    See fsopen(2). Since Linux 5.2.
    """
    raw = text_bytes(fsname, "fsname")
    in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_fsopen(raw, flags), fsname)


def fsconfig(
    fd: Fd,
    cmd: int,
    key: str | bytes | None = None,
    value: StrOrBytesPath | None = None,
    aux: Fd | None = None,
) -> None:
    """Set a parameter of a file system that is being made or changed, or make or change it.

    Which arguments a command takes:
        SET_FLAG: `key`. SET_STRING: `key`, `value` (str or bytes). SET_BINARY: `key`, `value` (bytes).
        SET_PATH: `key`, `value` (a path), `aux` (directory descriptor; AT_FDCWD when omitted).
        SET_PATH_EMPTY: as SET_PATH; an empty path means `aux` itself.
        SET_FD: `key`, `aux` (descriptor). CMD_CREATE, CMD_CREATE_EXCL, CMD_RECONFIGURE: nothing else.

    What went wrong in detail can be read with `read_fs_messages`.

    Args:
        fd: From fsopen or fspick.
        cmd: FsconfigCommand.
        key: Name of the parameter.
        value: Its value.
        aux: A descriptor.

    Raises:
        ValueError: An argument that the command does not take, or lacks.
        OSError: EINVAL (unknown parameter or bad value; a string longer than 255 bytes), EBUSY (made already,
            or CMD_CREATE_EXCL and the superblock exists), EPERM, EOPNOTSUPP (unknown command), and those of
            the file system.

    See fsconfig(2). Since Linux 5.2.
    """
    number = fd_of(fd)
    in_range(cmd, 0, 2**32 - 1, "cmd")
    raw_key, raw_value, raw_aux = _arguments(cmd, key, value, aux)
    check(lib.sandbox_fsconfig(number, cmd, raw_key, raw_value, raw_aux), key)


# What each command takes: (key, value, aux); "?" marks what may be omitted.
_TAKES = {
    FsconfigCommand.SET_FLAG: ("key", "", ""),
    FsconfigCommand.SET_STRING: ("key", "text", ""),
    FsconfigCommand.SET_BINARY: ("key", "bytes", ""),
    FsconfigCommand.SET_PATH: ("key", "path", "aux?"),
    FsconfigCommand.SET_PATH_EMPTY: ("key", "path", "aux?"),
    FsconfigCommand.SET_FD: ("key", "", "aux"),
    FsconfigCommand.CMD_CREATE: ("", "", ""),
    FsconfigCommand.CMD_RECONFIGURE: ("", "", ""),
    FsconfigCommand.CMD_CREATE_EXCL: ("", "", ""),
}


def _arguments(cmd: int, key: str | bytes | None, value: StrOrBytesPath | None, aux: Fd | None) -> tuple[Any, Any, int]:
    """Return key, value and aux as the kernel takes them."""
    try:
        command = FsconfigCommand(cmd)
    except ValueError:
        raise ValueError(f"cmd must be an FsconfigCommand, 0 to {max(FsconfigCommand)}, got {cmd}") from None
    takes_key, takes_value, takes_aux = _TAKES[command]
    for name, given, takes in (
        ("key", key, takes_key),
        ("value", value, takes_value),
        ("aux", aux, takes_aux),
    ):
        if given is not None and not takes:
            raise ValueError(f"{name} must be None for {command.name}, got {given!r}")
        if given is None and takes and not takes.endswith("?"):
            raise ValueError(f"{name} must be given for {command.name}")
    raw_key = ffi.NULL if key is None else text_bytes(key, "key")
    raw_value: Any = ffi.NULL
    raw_aux = AT_FDCWD if takes_aux == "aux?" else 0
    if aux is not None:
        raw_aux = fd_of(aux, "aux")
    if value is not None:
        if takes_value == "text":
            if not isinstance(value, str | bytes):
                raise TypeError(f"value must be str or bytes for {command.name}, not {type(value).__name__}")
            raw_value = text_bytes(value, "value")
        elif takes_value == "path":
            raw_value = path_bytes(value, "value")
        else:
            if not isinstance(value, bytes):
                raise TypeError(f"value must be bytes for {command.name}, not {type(value).__name__}")
            in_range(len(value), 1, 2**20, "the length of value")
            raw_value, raw_aux = value, len(value)
    return raw_key, raw_value, raw_aux


def fsmount(fs_fd: Fd, flags: int = FsmountFlags.CLOEXEC, attr_flags: int = 0) -> int:
    """Make a detached mount of a file system and return its descriptor, which the caller closes.

    Args:
        fs_fd: From fsopen, after FSCONFIG_CMD_CREATE.
        flags: FsmountFlags; close-on-exec by default, and only as given otherwise.
        attr_flags: MountAttr of the mount.

    Raises:
        OSError: EINVAL (unknown flag or attribute, or not created yet), EBUSY (mounted already), EPERM
            (CAP_SYS_ADMIN is missing, or a proc or sysfs would show more than what is visible now), EMFILE,
            ENFILE.

    See fsmount(2). Since Linux 5.2.
    """
    number = fd_of(fs_fd, "fs_fd")
    in_range(flags, 0, 2**32 - 1, "flags")
    in_range(attr_flags, 0, 2**32 - 1, "attr_flags")
    return check(lib.sandbox_fsmount(number, flags, attr_flags))


def fspick(dirfd: Fd, path: StrOrBytesPath, flags: int = FspickFlags.CLOEXEC) -> int:
    """Open the file system of a mount for reconfiguration and return its descriptor, which the caller closes.

    Args:
        dirfd: Where a relative path starts, or AT_FDCWD.
        path: The root of a mount; "" with FSPICK_EMPTY_PATH means `dirfd` itself.
        flags: FspickFlags; close-on-exec by default, and only as given otherwise.

    Raises:
        OSError: EINVAL (unknown flag, or not the root of a mount), EPERM, ENOENT, EMFILE, ENFILE.

    See fspick(2). Since Linux 5.2.
    """
    number, raw = fd_of(dirfd, "dirfd"), path_bytes(path)
    in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_fspick(number, raw, flags), path)


def read_fs_messages(fs_fd: Fd) -> list[FsMessage]:
    """Read, and so remove, the messages that the kernel left on a file-system descriptor; the oldest first.

    The kernel keeps the last eight.

    Args:
        fs_fd: From fsopen or fspick.

    Raises:
        OSError: EBADF, EINVAL (not such a descriptor), EMSGSIZE (a message longer than 8 KiB, which is lost).

    See fsopen(2). Since Linux 5.2.
    """
    number = fd_of(fs_fd, "fs_fd")
    messages: list[FsMessage] = []
    while True:
        try:
            line = os.read(number, 8192)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return messages
            raise
        level, _, text = os.fsdecode(line).partition(" ")
        messages.append(FsMessage(level, text.rstrip("\n")))
