"""mount(2), umount(2), pivot_root(2); by descriptor open_tree(2), move_mount(2), mount_setattr(2)."""

import os
from enum import IntFlag
from typing import Any

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, StrOrBytesPath, check, fd_of, in_range, path_bytes, text_bytes

__all__ = ["MountFlags", "UmountFlags", "OpenTreeFlags", "MoveMountFlags", "MountAttr"]
__all__ += ["mount", "umount", "pivot_root", "open_tree", "open_tree_attr", "move_mount", "mount_setattr"]
__all__ += ["MS_RDONLY", "MS_NOSUID", "MS_NODEV", "MS_NOEXEC", "MS_SYNCHRONOUS", "MS_REMOUNT", "MS_MANDLOCK"]
__all__ += ["MS_DIRSYNC", "MS_NOSYMFOLLOW", "MS_NOATIME", "MS_NODIRATIME", "MS_BIND", "MS_MOVE", "MS_REC"]
__all__ += ["MS_SILENT", "MS_POSIXACL", "MS_UNBINDABLE", "MS_PRIVATE", "MS_SLAVE", "MS_SHARED", "MS_RELATIME"]
__all__ += ["MS_I_VERSION", "MS_STRICTATIME", "MS_LAZYTIME"]
__all__ += ["MNT_FORCE", "MNT_DETACH", "MNT_EXPIRE", "UMOUNT_NOFOLLOW"]
__all__ += ["OPEN_TREE_CLONE", "OPEN_TREE_NAMESPACE", "OPEN_TREE_CLOEXEC"]
__all__ += ["MOVE_MOUNT_F_SYMLINKS", "MOVE_MOUNT_F_AUTOMOUNTS", "MOVE_MOUNT_F_EMPTY_PATH"]
__all__ += ["MOVE_MOUNT_T_SYMLINKS", "MOVE_MOUNT_T_AUTOMOUNTS", "MOVE_MOUNT_T_EMPTY_PATH"]
__all__ += ["MOVE_MOUNT_SET_GROUP", "MOVE_MOUNT_BENEATH"]
__all__ += ["MOUNT_ATTR_RDONLY", "MOUNT_ATTR_NOSUID", "MOUNT_ATTR_NODEV", "MOUNT_ATTR_NOEXEC"]
__all__ += ["MOUNT_ATTR_RELATIME", "MOUNT_ATTR_NOATIME", "MOUNT_ATTR_STRICTATIME", "MOUNT_ATTR__ATIME"]
__all__ += ["MOUNT_ATTR_NODIRATIME", "MOUNT_ATTR_IDMAP", "MOUNT_ATTR_NOSYMFOLLOW"]


class MountFlags(IntFlag):
    """Flags of mount(2); the propagation types are those of mount_setattr(2) too."""

    RDONLY = 1 << 0
    NOSUID = 1 << 1
    NODEV = 1 << 2
    NOEXEC = 1 << 3
    SYNCHRONOUS = 1 << 4
    REMOUNT = 1 << 5
    MANDLOCK = 1 << 6
    DIRSYNC = 1 << 7
    NOSYMFOLLOW = 1 << 8  # 5.10
    NOATIME = 1 << 10
    NODIRATIME = 1 << 11
    BIND = 1 << 12
    MOVE = 1 << 13
    REC = 1 << 14
    SILENT = 1 << 15
    POSIXACL = 1 << 16
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    I_VERSION = 1 << 23
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


MS_RDONLY = MountFlags.RDONLY
MS_NOSUID = MountFlags.NOSUID
MS_NODEV = MountFlags.NODEV
MS_NOEXEC = MountFlags.NOEXEC
MS_SYNCHRONOUS = MountFlags.SYNCHRONOUS
MS_REMOUNT = MountFlags.REMOUNT
MS_MANDLOCK = MountFlags.MANDLOCK
MS_DIRSYNC = MountFlags.DIRSYNC
MS_NOSYMFOLLOW = MountFlags.NOSYMFOLLOW
MS_NOATIME = MountFlags.NOATIME
MS_NODIRATIME = MountFlags.NODIRATIME
MS_BIND = MountFlags.BIND
MS_MOVE = MountFlags.MOVE
MS_REC = MountFlags.REC
MS_SILENT = MountFlags.SILENT
MS_POSIXACL = MountFlags.POSIXACL
MS_UNBINDABLE = MountFlags.UNBINDABLE
MS_PRIVATE = MountFlags.PRIVATE
MS_SLAVE = MountFlags.SLAVE
MS_SHARED = MountFlags.SHARED
MS_RELATIME = MountFlags.RELATIME
MS_I_VERSION = MountFlags.I_VERSION
MS_STRICTATIME = MountFlags.STRICTATIME
MS_LAZYTIME = MountFlags.LAZYTIME


class UmountFlags(IntFlag):
    """Flags of umount2(2)."""

    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8


MNT_FORCE = UmountFlags.FORCE
MNT_DETACH = UmountFlags.DETACH
MNT_EXPIRE = UmountFlags.EXPIRE
UMOUNT_NOFOLLOW = UmountFlags.NOFOLLOW


class OpenTreeFlags(IntFlag):
    """Flags of open_tree(2), beside AtFlags."""

    CLONE = 1
    NAMESPACE = 2  # 7.0
    CLOEXEC = os.O_CLOEXEC


OPEN_TREE_CLONE = OpenTreeFlags.CLONE
OPEN_TREE_NAMESPACE = OpenTreeFlags.NAMESPACE
OPEN_TREE_CLOEXEC = OpenTreeFlags.CLOEXEC


class MoveMountFlags(IntFlag):
    """Flags of move_mount(2): F_ for the "from" path, T_ for the "to" path."""

    F_SYMLINKS = 0x001
    F_AUTOMOUNTS = 0x002
    F_EMPTY_PATH = 0x004
    T_SYMLINKS = 0x010
    T_AUTOMOUNTS = 0x020
    T_EMPTY_PATH = 0x040
    SET_GROUP = 0x100  # 5.15
    BENEATH = 0x200  # 6.5


MOVE_MOUNT_F_SYMLINKS = MoveMountFlags.F_SYMLINKS
MOVE_MOUNT_F_AUTOMOUNTS = MoveMountFlags.F_AUTOMOUNTS
MOVE_MOUNT_F_EMPTY_PATH = MoveMountFlags.F_EMPTY_PATH
MOVE_MOUNT_T_SYMLINKS = MoveMountFlags.T_SYMLINKS
MOVE_MOUNT_T_AUTOMOUNTS = MoveMountFlags.T_AUTOMOUNTS
MOVE_MOUNT_T_EMPTY_PATH = MoveMountFlags.T_EMPTY_PATH
MOVE_MOUNT_SET_GROUP = MoveMountFlags.SET_GROUP
MOVE_MOUNT_BENEATH = MoveMountFlags.BENEATH


class MountAttr(IntFlag):
    """Attributes of one mount. The access-time settings are values of the field `_ATIME`, not single bits."""

    RELATIME = 0x0
    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOATIME = 0x10
    STRICTATIME = 0x20
    _ATIME = 0x70
    NODIRATIME = 0x80
    IDMAP = 0x100000  # 5.12
    NOSYMFOLLOW = 0x200000  # 5.14


MOUNT_ATTR_RELATIME = MountAttr.RELATIME
MOUNT_ATTR_RDONLY = MountAttr.RDONLY
MOUNT_ATTR_NOSUID = MountAttr.NOSUID
MOUNT_ATTR_NODEV = MountAttr.NODEV
MOUNT_ATTR_NOEXEC = MountAttr.NOEXEC
MOUNT_ATTR_NOATIME = MountAttr.NOATIME
MOUNT_ATTR_STRICTATIME = MountAttr.STRICTATIME
MOUNT_ATTR__ATIME = MountAttr._ATIME
MOUNT_ATTR_NODIRATIME = MountAttr.NODIRATIME
MOUNT_ATTR_IDMAP = MountAttr.IDMAP
MOUNT_ATTR_NOSYMFOLLOW = MountAttr.NOSYMFOLLOW

# mount(2) copies one page of data and cuts the last byte of it off.
_DATA_MAX = os.sysconf("SC_PAGE_SIZE") - 1


def mount(
    source: StrOrBytesPath | None,
    target: StrOrBytesPath,
    filesystemtype: str | bytes | None = None,
    mountflags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """Mount a file system, or bind, move, remount or change the propagation of a mount, as the flags say.

    Args:
        source: A device, a directory for MS_BIND and MS_MOVE, or any name for the mount table. None where the
            kernel ignores it.
        target: The directory, or the file, on which to mount.
        filesystemtype: Such as "tmpfs". None where the kernel ignores it.
        mountflags: MountFlags.
        data: Options of the file system, separated by commas; shorter than a page, where the kernel would
            cut.

    Raises:
        OSError: EPERM (CAP_SYS_ADMIN is missing in the mount namespace's user namespace, or a locked flag
            would be cleared), EINVAL (bad option, no mount at `target` for MS_REMOUNT or a propagation
            change), ENODEV (unknown type), ENOENT or ENOTDIR (`source` or `target`), EBUSY, ENOSPC
            (fs.mount-max).

    See mount(2). Since Linux 1.0.
    """
    raw_source = ffi.NULL if source is None else path_bytes(source, "source")
    raw_type = ffi.NULL if filesystemtype is None else text_bytes(filesystemtype, "filesystemtype")
    raw_data = ffi.NULL
    if data is not None:
        raw_data = text_bytes(data, "data")
        if len(raw_data) > _DATA_MAX:
            raise ValueError(f"data must be at most {_DATA_MAX} bytes long, got {len(raw_data)}")
    raw_target = path_bytes(target, "target")
    in_range(mountflags, 0, 2**32 - 1, "mountflags")
    result = lib.sandbox_mount(raw_source, raw_target, raw_type, mountflags, raw_data)
    if source is None:
        check(result, target)
    else:
        check(result, source, target)


def umount(target: StrOrBytesPath, flags: int = 0) -> None:
    """Detach the topmost mount at a path; this is umount2(2), which takes flags.

    Args:
        target: The mount point, or for a block device the device.
        flags: UmountFlags.

    Raises:
        OSError: EBUSY (in use), EAGAIN (MNT_EXPIRE: unused, and now marked), EINVAL (not a mount point, or
            locked because it came from a more privileged mount namespace), EPERM.

    See umount(2). Since Linux 2.2.
    """
    raw = path_bytes(target, "target")
    in_range(flags, 0, 2**31 - 1, "flags")
    check(lib.sandbox_umount(raw, flags), target)


def pivot_root(new_root: StrOrBytesPath, put_old: StrOrBytesPath) -> None:
    """Make a mount the root of this mount namespace, and move the old root below it.

    `pivot_root(".", ".")` stacks the old root over the new one; `umount(".", MNT_DETACH)` then takes it away.

    Args:
        new_root: The mount point that becomes "/".
        put_old: A directory at or below `new_root`.

    Raises:
        OSError: EBUSY (`new_root` or `put_old` is on the current root mount), EINVAL (`new_root` is not a
            mount point, a mount involved is shared, `put_old` is not below `new_root`, or the current root is
            the initial ramdisk), ENOTDIR, EPERM.

    See pivot_root(2). Since Linux 2.3.41.
    """
    raw_new, raw_old = path_bytes(new_root, "new_root"), path_bytes(put_old, "put_old")
    check(lib.sandbox_pivot_root(raw_new, raw_old), new_root, put_old)


def open_tree(dirfd: Fd, path: StrOrBytesPath, flags: int = OpenTreeFlags.CLOEXEC) -> int:
    """Open a mount, or with OPEN_TREE_CLONE a detached copy, and return its descriptor.

    The caller closes it.     A copy that is attached nowhere when its last descriptor is closed goes away.

    Args:
        dirfd: Where a relative path starts, or AT_FDCWD.
        path: The place; "" with AT_EMPTY_PATH means `dirfd` itself.
        flags: OpenTreeFlags and AtFlags; close-on-exec by default, and only as given otherwise. AT_RECURSIVE,
            with OPEN_TREE_CLONE, copies the mounts below too.

    Raises:
        OSError: EPERM (OPEN_TREE_CLONE without CAP_SYS_ADMIN), EINVAL (unknown flag, or a mount that may not
            be copied: unbindable, or with locked mounts below and no AT_RECURSIVE), ENOENT, EMFILE, ENFILE.

    See open_tree(2). Since Linux 5.2.
    """
    number, raw = fd_of(dirfd, "dirfd"), path_bytes(path)
    in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_open_tree(number, raw, flags), path)


def _mount_attr(attr_set: int, attr_clr: int, propagation: int, userns_fd: Fd | None) -> Any:
    """Make the kernel's struct mount_attr."""
    in_range(attr_set, 0, 2**64 - 1, "attr_set")
    in_range(attr_clr, 0, 2**64 - 1, "attr_clr")
    in_range(propagation, 0, 2**64 - 1, "propagation")
    # The kernel looks at userns_fd only with IDMAP, and 0 is a descriptor: neither may go unsaid.
    if (userns_fd is not None) != bool(attr_set & MountAttr.IDMAP):
        raise ValueError("userns_fd must be given together with MOUNT_ATTR_IDMAP in attr_set, and only then")
    number = 0 if userns_fd is None else in_range(fd_of(userns_fd, "userns_fd"), 0, 2**31 - 1, "userns_fd")
    return ffi.new("uint64_t[4]", [attr_set, attr_clr, propagation, number])


def open_tree_attr(
    dirfd: Fd,
    path: StrOrBytesPath,
    flags: int = OpenTreeFlags.CLOEXEC,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: Fd | None = None,
) -> int:
    """Do what open_tree does and change the attributes of the copy before anyone can see it.

    Unlike mount_setattr it may change or clear the id map of a mount that has one.

    Args:
        dirfd: Where a relative path starts, or AT_FDCWD.
        path: The place; "" with AT_EMPTY_PATH means `dirfd` itself.
        flags: As for open_tree. AT_RECURSIVE changes the mounts below too.
        attr_set: MountAttr to set.
        attr_clr: MountAttr to clear first.
        propagation: MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0 for no change.
        userns_fd: The user namespace whose maps to apply, with MOUNT_ATTR_IDMAP in `attr_set` and only then.

    Raises:
        OSError: ENOSYS (an older kernel), and those of open_tree and mount_setattr.

    See open_tree_attr(2). Since Linux 6.15.
    """
    number, raw = fd_of(dirfd, "dirfd"), path_bytes(path)
    in_range(flags, 0, 2**32 - 1, "flags")
    attr = _mount_attr(attr_set, attr_clr, propagation, userns_fd)
    return check(lib.sandbox_open_tree_attr(number, raw, flags, attr), path)


def move_mount(
    from_dirfd: Fd,
    from_path: StrOrBytesPath,
    to_dirfd: Fd,
    to_path: StrOrBytesPath,
    flags: int = 0,
) -> None:
    """Attach a detached mount, or move an attached one.

    Args:
        from_dirfd: Where a relative `from_path` starts, or AT_FDCWD; with MOVE_MOUNT_F_EMPTY_PATH the mount
            itself.
        from_path: The mount.
        to_dirfd: Where a relative `to_path` starts, or AT_FDCWD; with MOVE_MOUNT_T_EMPTY_PATH the place
            itself.
        to_path: The place where to attach it.
        flags: MoveMountFlags. Symbolic links in the last component are followed only where asked for.
            MOVE_MOUNT_BENEATH attaches below the topmost mount at the place; MOVE_MOUNT_SET_GROUP moves
            nothing and puts the "to" mount into the peer group of the "from" mount.

    Raises:
        OSError: EINVAL (the mount or its parent is shared or locked, the place is not in this mount
            namespace), ELOOP (the place is below the mount), ENOENT, ENOTDIR (one is a directory and the
            other is not), EPERM.

    See move_mount(2). Since Linux 5.2.
    """
    from_number, to_number = fd_of(from_dirfd, "from_dirfd"), fd_of(to_dirfd, "to_dirfd")
    from_raw, to_raw = path_bytes(from_path, "from_path"), path_bytes(to_path, "to_path")
    in_range(flags, 0, 2**32 - 1, "flags")
    check(lib.sandbox_move_mount(from_number, from_raw, to_number, to_raw, flags), from_path, to_path)


def mount_setattr(
    dirfd: Fd,
    path: StrOrBytesPath,
    flags: int = 0,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: Fd | None = None,
) -> None:
    """Change the attributes of a mount, with AT_RECURSIVE of all below it too: either all change or none.

    Args:
        dirfd: Where a relative path starts, or AT_FDCWD.
        path: The mount point; "" with AT_EMPTY_PATH means `dirfd` itself.
        flags: AtFlags.
        attr_set: MountAttr to set.
        attr_clr: MountAttr to clear first. To change how access times are kept clear `MountAttr._ATIME`.
        propagation: MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0 for no change.
        userns_fd: The user namespace whose maps to apply, with MOUNT_ATTR_IDMAP in `attr_set` and only then.

    Raises:
        OSError: EINVAL (unknown attribute, not a mount point, two propagation types, or a file system that
            cannot be id-mapped), EPERM (a locked attribute would be cleared, or the mount is visible or
            mapped already and cannot be id-mapped), EBUSY (MOUNT_ATTR_RDONLY while a file is open for
            writing), ENOENT.

    See mount_setattr(2). Since Linux 5.12.
    """
    number, raw = fd_of(dirfd, "dirfd"), path_bytes(path)
    in_range(flags, 0, 2**32 - 1, "flags")
    attr = _mount_attr(attr_set, attr_clr, propagation, userns_fd)
    check(lib.sandbox_mount_setattr(number, raw, flags, attr), path)
