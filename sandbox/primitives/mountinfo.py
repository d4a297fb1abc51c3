"""What is mounted where, asked of the kernel: statmount(2) and listmount(2)."""

import errno
import os
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range, os_error
from sandbox.primitives.mounts import MountAttr, MountFlags

__all__ = ["StatmountMask", "StatmountFlags", "ListmountFlags", "Statmount", "statmount", "listmount"]
__all__ += ["STATMOUNT_SB_BASIC", "STATMOUNT_MNT_BASIC", "STATMOUNT_PROPAGATE_FROM", "STATMOUNT_MNT_ROOT"]
__all__ += ["STATMOUNT_MNT_POINT", "STATMOUNT_FS_TYPE", "STATMOUNT_MNT_NS_ID", "STATMOUNT_MNT_OPTS"]
__all__ += ["STATMOUNT_FS_SUBTYPE", "STATMOUNT_SB_SOURCE", "STATMOUNT_OPT_ARRAY", "STATMOUNT_OPT_SEC_ARRAY"]
__all__ += ["STATMOUNT_SUPPORTED_MASK", "STATMOUNT_MNT_UIDMAP", "STATMOUNT_MNT_GIDMAP", "STATMOUNT_BY_FD"]
__all__ += ["LISTMOUNT_REVERSE", "LSMT_ROOT"]


class StatmountMask(IntFlag):
    """What statmount(2) is asked for, and what it answered."""

    SB_BASIC = 0x0001
    MNT_BASIC = 0x0002
    PROPAGATE_FROM = 0x0004
    MNT_ROOT = 0x0008
    MNT_POINT = 0x0010
    FS_TYPE = 0x0020
    MNT_NS_ID = 0x0040  # 6.11
    MNT_OPTS = 0x0080  # 6.11
    FS_SUBTYPE = 0x0100  # 6.13
    SB_SOURCE = 0x0200  # 6.13
    OPT_ARRAY = 0x0400  # 6.13
    OPT_SEC_ARRAY = 0x0800  # 6.13
    SUPPORTED_MASK = 0x1000  # 6.15
    MNT_UIDMAP = 0x2000  # 6.15
    MNT_GIDMAP = 0x4000  # 6.15


STATMOUNT_SB_BASIC = StatmountMask.SB_BASIC
STATMOUNT_MNT_BASIC = StatmountMask.MNT_BASIC
STATMOUNT_PROPAGATE_FROM = StatmountMask.PROPAGATE_FROM
STATMOUNT_MNT_ROOT = StatmountMask.MNT_ROOT
STATMOUNT_MNT_POINT = StatmountMask.MNT_POINT
STATMOUNT_FS_TYPE = StatmountMask.FS_TYPE
STATMOUNT_MNT_NS_ID = StatmountMask.MNT_NS_ID
STATMOUNT_MNT_OPTS = StatmountMask.MNT_OPTS
STATMOUNT_FS_SUBTYPE = StatmountMask.FS_SUBTYPE
STATMOUNT_SB_SOURCE = StatmountMask.SB_SOURCE
STATMOUNT_OPT_ARRAY = StatmountMask.OPT_ARRAY
STATMOUNT_OPT_SEC_ARRAY = StatmountMask.OPT_SEC_ARRAY
STATMOUNT_SUPPORTED_MASK = StatmountMask.SUPPORTED_MASK
STATMOUNT_MNT_UIDMAP = StatmountMask.MNT_UIDMAP
STATMOUNT_MNT_GIDMAP = StatmountMask.MNT_GIDMAP

_EVERYTHING = StatmountMask(0x7FFF)


class StatmountFlags(IntFlag):
    """Flags of statmount(2)."""

    BY_FD = 1  # 7.0


STATMOUNT_BY_FD = StatmountFlags.BY_FD


class ListmountFlags(IntFlag):
    """Flags of listmount(2)."""

    REVERSE = 1  # 6.11


LISTMOUNT_REVERSE = ListmountFlags.REVERSE

LSMT_ROOT = 2**64 - 1
"""In place of a mount id: the root of the mount namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statmount:
    """What statmount(2) answered; None where it was not asked for or the kernel has none.

    Attributes:
        mask: What the kernel answered.
        sb_dev_major: Device number of the superblock.
        sb_dev_minor: Device number of the superblock.
        sb_magic: Magic number of the file system, as in statfs(2).
        sb_flags: RDONLY, SYNCHRONOUS, DIRSYNC, LAZYTIME of the superblock.
        mnt_id: Unique id of the mount, never used again.
        mnt_parent_id: Unique id of the mount on which it sits; its own for the root.
        mnt_id_old: The id in /proc/PID/mountinfo.
        mnt_parent_id_old: The id in /proc/PID/mountinfo.
        mnt_attr: Attributes of the mount.
        mnt_propagation: SHARED, SLAVE, PRIVATE or UNBINDABLE.
        mnt_peer_group: Id of its peer group when shared, else 0.
        mnt_master: Id of the peer group that it receives from when a slave, else 0.
        propagate_from: Id of the nearest such group that is visible in the namespace, else 0.
        mnt_root: Which directory of the file system is mounted.
        mnt_point: Where, seen from the current root.
        fs_type: Such as "tmpfs".
        fs_subtype: Such as "sshfs" of "fuse".
        sb_source: The source, as in the mount table.
        mnt_ns_id: Id of the mount namespace.
        mnt_opts: Options of the file system, separated by commas and escaped.
        opt_array: The same options, one by one and not escaped.
        opt_sec_array: Those of security modules.
        mnt_uidmap: Lines "inside outside count" of an id-mapped mount, as far as this user namespace sees
            them.
        mnt_gidmap: As `mnt_uidmap`, of groups.
        supported_mask: What this kernel can answer.
    """

    mask: StatmountMask
    sb_dev_major: int | None = None
    sb_dev_minor: int | None = None
    sb_magic: int | None = None
    sb_flags: MountFlags | None = None
    mnt_id: int | None = None
    mnt_parent_id: int | None = None
    mnt_id_old: int | None = None
    mnt_parent_id_old: int | None = None
    mnt_attr: MountAttr | None = None
    mnt_propagation: MountFlags | None = None
    mnt_peer_group: int | None = None
    mnt_master: int | None = None
    propagate_from: int | None = None
    mnt_root: str | None = None
    mnt_point: str | None = None
    fs_type: str | None = None
    fs_subtype: str | None = None
    sb_source: str | None = None
    mnt_ns_id: int | None = None
    mnt_opts: str | None = None
    opt_array: tuple[str, ...] | None = None
    opt_sec_array: tuple[str, ...] | None = None
    mnt_uidmap: tuple[str, ...] | None = None
    mnt_gidmap: tuple[str, ...] | None = None
    supported_mask: StatmountMask | None = None


_NUMBERS: dict[StatmountMask, tuple[str, ...]] = {
    StatmountMask.SB_BASIC: ("sb_dev_major", "sb_dev_minor", "sb_magic"),
    StatmountMask.MNT_BASIC: (
        "mnt_id",
        "mnt_parent_id",
        "mnt_id_old",
        "mnt_parent_id_old",
        "mnt_peer_group",
        "mnt_master",
    ),
    StatmountMask.PROPAGATE_FROM: ("propagate_from",),
    StatmountMask.MNT_NS_ID: ("mnt_ns_id",),
}
_STRINGS = {
    StatmountMask.MNT_ROOT: "mnt_root",
    StatmountMask.MNT_POINT: "mnt_point",
    StatmountMask.FS_TYPE: "fs_type",
    StatmountMask.FS_SUBTYPE: "fs_subtype",
    StatmountMask.SB_SOURCE: "sb_source",
    StatmountMask.MNT_OPTS: "mnt_opts",
}
# Strings that follow each other: the member that counts them and the member where they start.
_ARRAYS = {
    StatmountMask.OPT_ARRAY: ("opt_num", "opt_array"),
    StatmountMask.OPT_SEC_ARRAY: ("opt_sec_num", "opt_sec_array"),
    StatmountMask.MNT_UIDMAP: ("mnt_uidmap_num", "mnt_uidmap"),
    StatmountMask.MNT_GIDMAP: ("mnt_gidmap_num", "mnt_gidmap"),
}


def _parse(raw: bytes) -> Statmount:
    """Take apart what the kernel wrote: the fixed part, then the strings that it points into."""
    fixed = ffi.sizeof("struct sandbox_statmount")
    found = ffi.from_buffer("struct sandbox_statmount *", raw, require_writable=False)
    strings = raw[fixed : found.size]
    mask = StatmountMask(found.mask)

    def string_at(offset: int) -> tuple[str, int]:
        end = strings.index(b"\0", offset)
        return os.fsdecode(strings[offset:end]), end + 1

    values: dict[str, Any] = {}
    for bit, names in _NUMBERS.items():
        if mask & bit:
            values.update((name, getattr(found, name)) for name in names)
    for bit, name in _STRINGS.items():
        if mask & bit:
            values[name] = string_at(getattr(found, name))[0]
    for bit, (count, name) in _ARRAYS.items():
        if mask & bit:
            items, offset = [], getattr(found, name)
            for _ in range(getattr(found, count)):
                item, offset = string_at(offset)
                items.append(item)
            values[name] = tuple(items)
    if mask & StatmountMask.SB_BASIC:
        values["sb_flags"] = MountFlags(found.sb_flags)
    if mask & StatmountMask.MNT_BASIC:
        values["mnt_attr"] = MountAttr(found.mnt_attr)
        values["mnt_propagation"] = MountFlags(found.mnt_propagation)
    if mask & StatmountMask.SUPPORTED_MASK:
        values["supported_mask"] = StatmountMask(found.supported_mask)
    return Statmount(mask=mask, **values)


def _namespace_fd(fd: Fd | None, name: str) -> int:
    """Return the number of a descriptor that the kernel takes for absent when it is 0."""
    return 0 if fd is None else in_range(fd_of(fd, name), 1, 2**31 - 1, name)


def statmount(
    mnt_id: int,
    mask: int = _EVERYTHING,
    flags: int = 0,
    *,
    mnt_ns_id: int = 0,
    mnt_ns_fd: Fd | None = None,
    mnt_fd: Fd | None = None,
) -> Statmount:
    """Return what the kernel knows about a mount.

    Args:
        mnt_id: Unique id, from listmount or from statx(2) with STATX_MNT_ID_UNIQUE; 0 with `mnt_fd`.
        mask: StatmountMask; everything by default. What a kernel does not know it leaves out.
        flags: StatmountFlags.
        mnt_ns_id: Id of another mount namespace; 0 for the caller's. Since Linux 6.11.
        mnt_ns_fd: Or a descriptor of it, not 0, which the kernel takes for none. Since Linux 6.18.
        mnt_fd: With STATMOUNT_BY_FD, and only then: a descriptor on the mount, not 0. Since Linux 7.0.

    Raises:
        OSError: ENOENT (no such mount in the namespace), EPERM (not reachable from the caller's root, without
            CAP_SYS_ADMIN), EINVAL (unknown flag; both namespace arguments; an id below 2**31, as mountinfo
            has), ENOSYS.

    See statmount(2). Since Linux 6.8.
    """
    in_range(mnt_id, 0, 2**64 - 1, "mnt_id")
    in_range(mask, 0, 2**64 - 1, "mask")
    in_range(flags, 0, 2**32 - 1, "flags")
    in_range(mnt_ns_id, 0, 2**64 - 1, "mnt_ns_id")
    if mnt_ns_fd is not None and mnt_fd is not None:
        raise ValueError("mnt_ns_fd and mnt_fd must not be given together")
    if (mnt_fd is not None) != bool(flags & StatmountFlags.BY_FD):
        raise ValueError("mnt_fd must be given together with STATMOUNT_BY_FD in flags, and only then")
    fd = _namespace_fd(mnt_ns_fd, "mnt_ns_fd") or _namespace_fd(mnt_fd, "mnt_fd")
    size = 4096
    while True:
        buffer = ffi.new("char[]", size)
        result: int = lib.sandbox_statmount(mnt_id, mask, mnt_ns_id, fd, buffer, size, flags)
        if result == 0:
            return _parse(bytes(ffi.buffer(buffer)))
        # The kernel refuses a buffer above 64 KiB for its strings as well: then there is no larger one to
        # try.
        if result != -errno.EOVERFLOW or size > 2**20:
            raise os_error(-result)
        size *= 4


def listmount(
    mnt_id: int = LSMT_ROOT,
    last_mnt_id: int = 0,
    count: int | None = None,
    flags: int = 0,
    *,
    mnt_ns_id: int = 0,
    mnt_ns_fd: Fd | None = None,
) -> list[int]:
    """Return the unique ids of the mounts below a mount, at any depth.

    Args:
        mnt_id: The mount below which to look; LSMT_ROOT for all that the caller's root shows.
        last_mnt_id: Begin after this one, which an earlier call returned last; 0 for the start.
        count: At most so many, 1 to 1,000,000; None for all, by as many calls as it takes.
        flags: ListmountFlags.
        mnt_ns_id: Id of another mount namespace; 0 for the caller's. Since Linux 6.11.
        mnt_ns_fd: Or a descriptor of it, not 0, which the kernel takes for none. Since Linux 6.18.

    Raises:
        OSError: ENOENT (no such mount or namespace), EPERM (not reachable from the caller's root, without
            CAP_SYS_ADMIN), EINVAL (unknown flag; both namespace arguments), ENOSYS.

    See listmount(2). Since Linux 6.8.
    """
    in_range(mnt_id, 0, 2**64 - 1, "mnt_id")
    in_range(last_mnt_id, 0, 2**64 - 1, "last_mnt_id")
    in_range(flags, 0, 2**32 - 1, "flags")
    in_range(mnt_ns_id, 0, 2**64 - 1, "mnt_ns_id")
    fd = _namespace_fd(mnt_ns_fd, "mnt_ns_fd")
    room = 512 if count is None else in_range(count, 1, 1_000_000, "count")
    buffer = ffi.new("uint64_t[]", room)
    found: list[int] = []
    while True:
        got = check(lib.sandbox_listmount(mnt_id, last_mnt_id, mnt_ns_id, fd, buffer, room, flags))
        found += ffi.unpack(buffer, got)
        if count is not None or got < room:
            return found
        last_mnt_id = found[-1]
