"""The numbers of fanotify(7), as of Linux 6.18."""

from enum import IntFlag
from typing import Final

from sandbox.primitives._call import in_range

__all__ = [
    "FAN_DENY_ERRNO",
    "FanotifyInit",
    "FanotifyMark",
    "FanotifyMask",
    "FanotifyResponse",
    "FAN_CLOEXEC",
    "FAN_NONBLOCK",
    "FAN_CLASS_NOTIF",
    "FAN_CLASS_CONTENT",
    "FAN_CLASS_PRE_CONTENT",
    "FAN_UNLIMITED_QUEUE",
    "FAN_UNLIMITED_MARKS",
    "FAN_ENABLE_AUDIT",
    "FAN_REPORT_PIDFD",
    "FAN_REPORT_TID",
    "FAN_REPORT_FID",
    "FAN_REPORT_DIR_FID",
    "FAN_REPORT_NAME",
    "FAN_REPORT_TARGET_FID",
    "FAN_REPORT_FD_ERROR",
    "FAN_REPORT_MNT",
    "FAN_REPORT_DFID_NAME",
    "FAN_REPORT_DFID_NAME_TARGET",
    "FAN_MARK_ADD",
    "FAN_MARK_REMOVE",
    "FAN_MARK_DONT_FOLLOW",
    "FAN_MARK_ONLYDIR",
    "FAN_MARK_INODE",
    "FAN_MARK_MOUNT",
    "FAN_MARK_IGNORED_MASK",
    "FAN_MARK_IGNORED_SURV_MODIFY",
    "FAN_MARK_FLUSH",
    "FAN_MARK_FILESYSTEM",
    "FAN_MARK_MNTNS",
    "FAN_MARK_EVICTABLE",
    "FAN_MARK_IGNORE",
    "FAN_MARK_IGNORE_SURV",
    "FAN_ACCESS",
    "FAN_MODIFY",
    "FAN_ATTRIB",
    "FAN_CLOSE_WRITE",
    "FAN_CLOSE_NOWRITE",
    "FAN_OPEN",
    "FAN_MOVED_FROM",
    "FAN_MOVED_TO",
    "FAN_CREATE",
    "FAN_DELETE",
    "FAN_DELETE_SELF",
    "FAN_MOVE_SELF",
    "FAN_OPEN_EXEC",
    "FAN_Q_OVERFLOW",
    "FAN_FS_ERROR",
    "FAN_OPEN_PERM",
    "FAN_ACCESS_PERM",
    "FAN_OPEN_EXEC_PERM",
    "FAN_PRE_ACCESS",
    "FAN_MNT_ATTACH",
    "FAN_MNT_DETACH",
    "FAN_EVENT_ON_CHILD",
    "FAN_RENAME",
    "FAN_ONDIR",
    "FAN_CLOSE",
    "FAN_MOVE",
    "FAN_ALLOW",
    "FAN_DENY",
    "FAN_AUDIT",
    "FAN_INFO",
    "FAN_EVENT_INFO_TYPE_FID",
    "FAN_EVENT_INFO_TYPE_DFID_NAME",
    "FAN_EVENT_INFO_TYPE_DFID",
    "FAN_EVENT_INFO_TYPE_PIDFD",
    "FAN_EVENT_INFO_TYPE_ERROR",
    "FAN_EVENT_INFO_TYPE_RANGE",
    "FAN_EVENT_INFO_TYPE_MNT",
    "FAN_EVENT_INFO_TYPE_OLD_DFID_NAME",
    "FAN_EVENT_INFO_TYPE_NEW_DFID_NAME",
    "FAN_NOFD",
    "FAN_NOPIDFD",
    "FAN_EPIDFD",
    "FAN_RESPONSE_INFO_NONE",
    "FAN_RESPONSE_INFO_AUDIT_RULE",
    "FANOTIFY_METADATA_VERSION",
    "FAN_ALL_CLASS_BITS",
    "FAN_ALL_INIT_FLAGS",
    "FAN_ALL_MARK_FLAGS",
    "FAN_ALL_EVENTS",
    "FAN_ALL_PERM_EVENTS",
    "FAN_ALL_OUTGOING_EVENTS",
]


class FanotifyInit(IntFlag):
    """Flags of `fanotify_init` (FAN_*); the class bits are values, not flags."""

    CLOEXEC = 0x1
    NONBLOCK = 0x2
    CLASS_NOTIF = 0x0
    CLASS_CONTENT = 0x4
    CLASS_PRE_CONTENT = 0x8
    UNLIMITED_QUEUE = 0x10
    UNLIMITED_MARKS = 0x20
    ENABLE_AUDIT = 0x40  # 4.15
    REPORT_PIDFD = 0x80  # 5.15
    REPORT_TID = 0x100  # 4.20
    REPORT_FID = 0x200  # 5.1
    REPORT_DIR_FID = 0x400  # 5.9
    REPORT_NAME = 0x800  # 5.9
    REPORT_TARGET_FID = 0x1000  # 5.17
    REPORT_FD_ERROR = 0x2000  # 6.13
    REPORT_MNT = 0x4000  # 6.15
    REPORT_DFID_NAME = REPORT_DIR_FID | REPORT_NAME
    REPORT_DFID_NAME_TARGET = REPORT_DFID_NAME | REPORT_FID | REPORT_TARGET_FID


class FanotifyMark(IntFlag):
    """What `fanotify_mark` does, and to what (FAN_MARK_*); INODE, MOUNT, FILESYSTEM and MNTNS are values."""

    ADD = 0x1
    REMOVE = 0x2
    DONT_FOLLOW = 0x4
    ONLYDIR = 0x8
    INODE = 0x0
    MOUNT = 0x10
    IGNORED_MASK = 0x20
    IGNORED_SURV_MODIFY = 0x40
    FLUSH = 0x80
    FILESYSTEM = 0x100  # 4.20
    MNTNS = 0x110  # 6.15
    EVICTABLE = 0x200  # 5.19
    IGNORE = 0x400  # 6.0
    IGNORE_SURV = IGNORE | IGNORED_SURV_MODIFY


class FanotifyMask(IntFlag):
    """What to watch for, and what an event says (FAN_*)."""

    ACCESS = 0x1  # A file was read.
    MODIFY = 0x2  # A file was written.
    ATTRIB = 0x4  # Metadata changed (5.1).
    CLOSE_WRITE = 0x8  # A file opened for writing was closed.
    CLOSE_NOWRITE = 0x10  # One not opened for writing was closed.
    OPEN = 0x20  # A file or directory was opened.
    MOVED_FROM = 0x40  # An entry was moved away (5.1).
    MOVED_TO = 0x80  # An entry was moved here (5.1).
    CREATE = 0x100  # An entry was made (5.1).
    DELETE = 0x200  # An entry was removed (5.1).
    DELETE_SELF = 0x400  # The marked file itself was deleted (5.1).
    MOVE_SELF = 0x800  # The marked file itself was moved (5.1).
    OPEN_EXEC = 0x1000  # A file was opened to be executed (5.0).
    Q_OVERFLOW = 0x4000  # Events were lost.
    FS_ERROR = 0x8000  # The file system found itself broken (5.16).
    OPEN_PERM = 0x10000  # May it be opened?
    ACCESS_PERM = 0x20000  # May it be read?
    OPEN_EXEC_PERM = 0x40000  # May it be opened to be executed (5.0)?
    PRE_ACCESS = 0x100000  # May this range of its content be read or written (6.14)?
    MNT_ATTACH = 0x1000000  # A mount was attached (6.15).
    MNT_DETACH = 0x2000000  # A mount was detached (6.15).
    EVENT_ON_CHILD = 0x8000000  # Events of the entries of a marked directory, too.
    RENAME = 0x10000000  # An entry was renamed, both names in one event (5.17).
    ONDIR = 0x40000000  # The subject is a directory.
    CLOSE = CLOSE_WRITE | CLOSE_NOWRITE
    MOVE = MOVED_FROM | MOVED_TO


class FanotifyResponse(IntFlag):
    """The answer to a permission event (FAN_ALLOW ...)."""

    ALLOW = 0x1
    DENY = 0x2
    AUDIT = 0x10
    INFO = 0x20  # 6.3


FAN_CLOEXEC: Final = FanotifyInit.CLOEXEC
FAN_NONBLOCK: Final = FanotifyInit.NONBLOCK
FAN_CLASS_NOTIF: Final = FanotifyInit.CLASS_NOTIF
FAN_CLASS_CONTENT: Final = FanotifyInit.CLASS_CONTENT
FAN_CLASS_PRE_CONTENT: Final = FanotifyInit.CLASS_PRE_CONTENT
FAN_UNLIMITED_QUEUE: Final = FanotifyInit.UNLIMITED_QUEUE
FAN_UNLIMITED_MARKS: Final = FanotifyInit.UNLIMITED_MARKS
FAN_ENABLE_AUDIT: Final = FanotifyInit.ENABLE_AUDIT
FAN_REPORT_PIDFD: Final = FanotifyInit.REPORT_PIDFD
FAN_REPORT_TID: Final = FanotifyInit.REPORT_TID
FAN_REPORT_FID: Final = FanotifyInit.REPORT_FID
FAN_REPORT_DIR_FID: Final = FanotifyInit.REPORT_DIR_FID
FAN_REPORT_NAME: Final = FanotifyInit.REPORT_NAME
FAN_REPORT_TARGET_FID: Final = FanotifyInit.REPORT_TARGET_FID
FAN_REPORT_FD_ERROR: Final = FanotifyInit.REPORT_FD_ERROR
FAN_REPORT_MNT: Final = FanotifyInit.REPORT_MNT
FAN_REPORT_DFID_NAME: Final = FanotifyInit.REPORT_DFID_NAME
FAN_REPORT_DFID_NAME_TARGET: Final = FanotifyInit.REPORT_DFID_NAME_TARGET
FAN_MARK_ADD: Final = FanotifyMark.ADD
FAN_MARK_REMOVE: Final = FanotifyMark.REMOVE
FAN_MARK_DONT_FOLLOW: Final = FanotifyMark.DONT_FOLLOW
FAN_MARK_ONLYDIR: Final = FanotifyMark.ONLYDIR
FAN_MARK_INODE: Final = FanotifyMark.INODE
FAN_MARK_MOUNT: Final = FanotifyMark.MOUNT
FAN_MARK_IGNORED_MASK: Final = FanotifyMark.IGNORED_MASK
FAN_MARK_IGNORED_SURV_MODIFY: Final = FanotifyMark.IGNORED_SURV_MODIFY
FAN_MARK_FLUSH: Final = FanotifyMark.FLUSH
FAN_MARK_FILESYSTEM: Final = FanotifyMark.FILESYSTEM
FAN_MARK_MNTNS: Final = FanotifyMark.MNTNS
FAN_MARK_EVICTABLE: Final = FanotifyMark.EVICTABLE
FAN_MARK_IGNORE: Final = FanotifyMark.IGNORE
FAN_MARK_IGNORE_SURV: Final = FanotifyMark.IGNORE_SURV
FAN_ACCESS: Final = FanotifyMask.ACCESS
FAN_MODIFY: Final = FanotifyMask.MODIFY
FAN_ATTRIB: Final = FanotifyMask.ATTRIB
FAN_CLOSE_WRITE: Final = FanotifyMask.CLOSE_WRITE
FAN_CLOSE_NOWRITE: Final = FanotifyMask.CLOSE_NOWRITE
FAN_OPEN: Final = FanotifyMask.OPEN
FAN_MOVED_FROM: Final = FanotifyMask.MOVED_FROM
FAN_MOVED_TO: Final = FanotifyMask.MOVED_TO
FAN_CREATE: Final = FanotifyMask.CREATE
FAN_DELETE: Final = FanotifyMask.DELETE
FAN_DELETE_SELF: Final = FanotifyMask.DELETE_SELF
FAN_MOVE_SELF: Final = FanotifyMask.MOVE_SELF
FAN_OPEN_EXEC: Final = FanotifyMask.OPEN_EXEC
FAN_Q_OVERFLOW: Final = FanotifyMask.Q_OVERFLOW
FAN_FS_ERROR: Final = FanotifyMask.FS_ERROR
FAN_OPEN_PERM: Final = FanotifyMask.OPEN_PERM
FAN_ACCESS_PERM: Final = FanotifyMask.ACCESS_PERM
FAN_OPEN_EXEC_PERM: Final = FanotifyMask.OPEN_EXEC_PERM
FAN_PRE_ACCESS: Final = FanotifyMask.PRE_ACCESS
FAN_MNT_ATTACH: Final = FanotifyMask.MNT_ATTACH
FAN_MNT_DETACH: Final = FanotifyMask.MNT_DETACH
FAN_EVENT_ON_CHILD: Final = FanotifyMask.EVENT_ON_CHILD
FAN_RENAME: Final = FanotifyMask.RENAME
FAN_ONDIR: Final = FanotifyMask.ONDIR
FAN_CLOSE: Final = FanotifyMask.CLOSE
FAN_MOVE: Final = FanotifyMask.MOVE
FAN_ALLOW: Final = FanotifyResponse.ALLOW
FAN_DENY: Final = FanotifyResponse.DENY
FAN_AUDIT: Final = FanotifyResponse.AUDIT
FAN_INFO: Final = FanotifyResponse.INFO
FAN_EVENT_INFO_TYPE_FID: Final = 1
FAN_EVENT_INFO_TYPE_DFID_NAME: Final = 2
FAN_EVENT_INFO_TYPE_DFID: Final = 3
FAN_EVENT_INFO_TYPE_PIDFD: Final = 4
FAN_EVENT_INFO_TYPE_ERROR: Final = 5
FAN_EVENT_INFO_TYPE_RANGE: Final = 6
FAN_EVENT_INFO_TYPE_MNT: Final = 7
FAN_EVENT_INFO_TYPE_OLD_DFID_NAME: Final = 10
FAN_EVENT_INFO_TYPE_NEW_DFID_NAME: Final = 12
FAN_NOFD: Final = -1
FAN_NOPIDFD: Final = -1
FAN_EPIDFD: Final = -2
FAN_RESPONSE_INFO_NONE: Final = 0
FAN_RESPONSE_INFO_AUDIT_RULE: Final = 1
FANOTIFY_METADATA_VERSION: Final = 3
# What the kernel's header calls deprecated: they do not grow with it.
FAN_ALL_CLASS_BITS: Final = 0xC
FAN_ALL_INIT_FLAGS: Final = 0x3F
FAN_ALL_MARK_FLAGS: Final = 0xFF
FAN_ALL_EVENTS: Final = 0x3B
FAN_ALL_PERM_EVENTS: Final = 0x30000
FAN_ALL_OUTGOING_EVENTS: Final = 0x3403B


def FAN_DENY_ERRNO(number: int) -> int:  # noqa: N802  # the header's name
    """Return the response that denies with an errno of the caller's choice, in a group of FAN_CLASS_PRE_CONTENT.

    Args:
        number: EPERM, EIO, EBUSY, ETXTBSY, EAGAIN, ENOSPC or EDQUOT; the kernel refuses others. 1 to 255.

    Raises:
        ValueError: Not within 1 to 255.

    See fanotify(7). Since Linux 6.14.
    """
    return int(FanotifyResponse.DENY) | in_range(number, 1, 255, "number") << 24
