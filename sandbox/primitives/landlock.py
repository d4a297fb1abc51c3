"""landlock(7): rules that a process gives itself, for files, ports and what is outside of its own domain.

Beside each flag: the ABI that brought it and the kernel that first had this ABI. Distributions carry newer
ABIs into older kernels, so it is `landlock_abi()` that counts.
"""

import errno
from enum import IntEnum, IntFlag
from typing import Final

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range, os_error

__all__ = [
    "LandlockAccessFs",
    "LandlockAccessNet",
    "LandlockScope",
    "LandlockRuleType",
    "LandlockAddRuleFlags",
    "LandlockRestrictSelfFlags",
    "LANDLOCK_ACCESS_FS_EXECUTE",
    "LANDLOCK_ACCESS_FS_WRITE_FILE",
    "LANDLOCK_ACCESS_FS_READ_FILE",
    "LANDLOCK_ACCESS_FS_READ_DIR",
    "LANDLOCK_ACCESS_FS_REMOVE_DIR",
    "LANDLOCK_ACCESS_FS_REMOVE_FILE",
    "LANDLOCK_ACCESS_FS_MAKE_CHAR",
    "LANDLOCK_ACCESS_FS_MAKE_DIR",
    "LANDLOCK_ACCESS_FS_MAKE_REG",
    "LANDLOCK_ACCESS_FS_MAKE_SOCK",
    "LANDLOCK_ACCESS_FS_MAKE_FIFO",
    "LANDLOCK_ACCESS_FS_MAKE_BLOCK",
    "LANDLOCK_ACCESS_FS_MAKE_SYM",
    "LANDLOCK_ACCESS_FS_REFER",
    "LANDLOCK_ACCESS_FS_TRUNCATE",
    "LANDLOCK_ACCESS_FS_IOCTL_DEV",
    "LANDLOCK_ACCESS_FS_RESOLVE_UNIX",
    "LANDLOCK_ACCESS_NET_BIND_TCP",
    "LANDLOCK_ACCESS_NET_CONNECT_TCP",
    "LANDLOCK_ACCESS_NET_BIND_UDP",
    "LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP",
    "LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET",
    "LANDLOCK_SCOPE_SIGNAL",
    "LANDLOCK_RULE_PATH_BENEATH",
    "LANDLOCK_RULE_NET_PORT",
    "LANDLOCK_ADD_RULE_QUIET",
    "LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF",
    "LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON",
    "LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF",
    "LANDLOCK_RESTRICT_SELF_TSYNC",
    "LANDLOCK_RESTRICT_SELF_NO_NEW_PRIVS",
    "LANDLOCK_MAX_LAYERS",
    "landlock_abi",
    "landlock_errata",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
]


class LandlockAccessFs(IntFlag):
    """Access rights to files. Those marked F can be given for a file, the others only for a directory."""

    EXECUTE = 1 << 0  # F, ABI 1, Linux 5.13
    WRITE_FILE = 1 << 1  # F
    READ_FILE = 1 << 2  # F
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2, Linux 5.19: link and rename to another directory
    TRUNCATE = 1 << 14  # F, ABI 3, Linux 6.2
    IOCTL_DEV = 1 << 15  # F, ABI 5, Linux 6.10: ioctl(2) on device files
    RESOLVE_UNIX = 1 << 16  # F, ABI 9, Linux 7.1: connect to a UNIX socket by its path


class LandlockAccessNet(IntFlag):
    """Access rights to ports."""

    BIND_TCP = 1 << 0  # ABI 4, Linux 6.7
    CONNECT_TCP = 1 << 1  # ABI 4, Linux 6.7
    BIND_UDP = 1 << 2  # ABI 10, Linux 7.2
    CONNECT_SEND_UDP = 1 << 3  # ABI 10, Linux 7.2


class LandlockScope(IntFlag):
    """What a domain cannot reach outside of itself."""

    ABSTRACT_UNIX_SOCKET = 1 << 0  # ABI 6, Linux 6.12
    SIGNAL = 1 << 1  # ABI 6, Linux 6.12


class LandlockRuleType(IntEnum):
    """What a rule is about."""

    PATH_BENEATH = 1  # ABI 1, Linux 5.13
    NET_PORT = 2  # ABI 4, Linux 6.7


class LandlockAddRuleFlags(IntFlag):
    """Flags of `landlock_add_rule`."""

    QUIET = 1 << 0  # ABI 10, Linux 7.2: a refusal of the quiet rights here is not logged


class LandlockRestrictSelfFlags(IntFlag):
    """Flags of `landlock_restrict_self`."""

    LOG_SAME_EXEC_OFF = 1 << 0  # ABI 7, Linux 6.15: what this program is refused is not logged
    LOG_NEW_EXEC_ON = 1 << 1  # ABI 7, Linux 6.15: what it executes is refused is logged
    LOG_SUBDOMAINS_OFF = 1 << 2  # ABI 7, Linux 6.15: nor is what nested domains are refused
    TSYNC = 1 << 3  # ABI 8, Linux 7.0: all threads of the process
    NO_NEW_PRIVS = 1 << 4  # ABI 11, Linux 7.3: sets no_new_privs in the same step


LANDLOCK_ACCESS_FS_EXECUTE: Final = LandlockAccessFs.EXECUTE
LANDLOCK_ACCESS_FS_WRITE_FILE: Final = LandlockAccessFs.WRITE_FILE
LANDLOCK_ACCESS_FS_READ_FILE: Final = LandlockAccessFs.READ_FILE
LANDLOCK_ACCESS_FS_READ_DIR: Final = LandlockAccessFs.READ_DIR
LANDLOCK_ACCESS_FS_REMOVE_DIR: Final = LandlockAccessFs.REMOVE_DIR
LANDLOCK_ACCESS_FS_REMOVE_FILE: Final = LandlockAccessFs.REMOVE_FILE
LANDLOCK_ACCESS_FS_MAKE_CHAR: Final = LandlockAccessFs.MAKE_CHAR
LANDLOCK_ACCESS_FS_MAKE_DIR: Final = LandlockAccessFs.MAKE_DIR
LANDLOCK_ACCESS_FS_MAKE_REG: Final = LandlockAccessFs.MAKE_REG
LANDLOCK_ACCESS_FS_MAKE_SOCK: Final = LandlockAccessFs.MAKE_SOCK
LANDLOCK_ACCESS_FS_MAKE_FIFO: Final = LandlockAccessFs.MAKE_FIFO
LANDLOCK_ACCESS_FS_MAKE_BLOCK: Final = LandlockAccessFs.MAKE_BLOCK
LANDLOCK_ACCESS_FS_MAKE_SYM: Final = LandlockAccessFs.MAKE_SYM
LANDLOCK_ACCESS_FS_REFER: Final = LandlockAccessFs.REFER
LANDLOCK_ACCESS_FS_TRUNCATE: Final = LandlockAccessFs.TRUNCATE
LANDLOCK_ACCESS_FS_IOCTL_DEV: Final = LandlockAccessFs.IOCTL_DEV
LANDLOCK_ACCESS_FS_RESOLVE_UNIX: Final = LandlockAccessFs.RESOLVE_UNIX
LANDLOCK_ACCESS_NET_BIND_TCP: Final = LandlockAccessNet.BIND_TCP
LANDLOCK_ACCESS_NET_CONNECT_TCP: Final = LandlockAccessNet.CONNECT_TCP
LANDLOCK_ACCESS_NET_BIND_UDP: Final = LandlockAccessNet.BIND_UDP
LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP: Final = LandlockAccessNet.CONNECT_SEND_UDP
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET: Final = LandlockScope.ABSTRACT_UNIX_SOCKET
LANDLOCK_SCOPE_SIGNAL: Final = LandlockScope.SIGNAL
LANDLOCK_RULE_PATH_BENEATH: Final = LandlockRuleType.PATH_BENEATH
LANDLOCK_RULE_NET_PORT: Final = LandlockRuleType.NET_PORT
LANDLOCK_ADD_RULE_QUIET: Final = LandlockAddRuleFlags.QUIET
LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF: Final = LandlockRestrictSelfFlags.LOG_SAME_EXEC_OFF
LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON: Final = LandlockRestrictSelfFlags.LOG_NEW_EXEC_ON
LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF: Final = LandlockRestrictSelfFlags.LOG_SUBDOMAINS_OFF
LANDLOCK_RESTRICT_SELF_TSYNC: Final = LandlockRestrictSelfFlags.TSYNC
LANDLOCK_RESTRICT_SELF_NO_NEW_PRIVS: Final = LandlockRestrictSelfFlags.NO_NEW_PRIVS
LANDLOCK_MAX_LAYERS: Final = 16

_CREATE_RULESET_VERSION = 1
_CREATE_RULESET_ERRATA = 2
_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1


def landlock_abi() -> int:
    """Return the Landlock ABI of the kernel, 0 when it has none or was booted without.

    Raises:
        OSError: What a filter refuses the call with, other than ENOSYS.

    See landlock_create_ruleset(2). Since Linux 5.13.
    """
    abi: int = lib.sandbox_landlock_create_ruleset(ffi.NULL, 0, _CREATE_RULESET_VERSION)
    if abi >= 0:
        return abi
    if -abi in {errno.ENOSYS, errno.EOPNOTSUPP}:
        return 0
    raise os_error(-abi)


def landlock_errata() -> int:
    """Return which faults of the ABI are mended in this kernel; bit N - 1 stands for erratum N.

    Erratum 1 (ABI 4): the TCP rights met other stream protocols too. Erratum 2 (ABI 6): the signal scope came
    between threads of one process. Erratum 3 (ABI 1): directories that were disconnected from their mount could
    widen rights. Erratum 4 (ABI 1): renaming left whiteouts without the right to make files.

    Returns:
        The bits; 0 also where the kernel cannot tell (before 6.15 and not carried back).

    Raises:
        OSError: What a filter refuses the call with, other than ENOSYS.

    See landlock_create_ruleset(2). Since Linux 6.15.
    """
    errata: int = lib.sandbox_landlock_create_ruleset(ffi.NULL, 0, _CREATE_RULESET_ERRATA)
    if errata >= 0:
        return errata
    if -errata in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}:
        return 0
    raise os_error(-errata)


def landlock_create_ruleset(
    handled_access_fs: int = 0,
    handled_access_net: int = 0,
    scoped: int = 0,
    *,
    quiet_access_fs: int = 0,
    quiet_access_net: int = 0,
    quiet_scoped: int = 0,
) -> int:
    """Create a ruleset and return its file descriptor, which the caller closes; it is close-on-exec.

    Args:
        handled_access_fs: `LandlockAccessFs` that are refused where no rule allows them.
        handled_access_net: `LandlockAccessNet` likewise.
        scoped: `LandlockScope`.
        quiet_access_fs: Part of `handled_access_fs` that is not logged for rules with QUIET.
        quiet_access_net: Part of `handled_access_net` likewise.
        quiet_scoped: Part of `scoped` that is not logged.

    Raises:
        OSError: ENOSYS (no Landlock), EOPNOTSUPP (not enabled at boot), EINVAL (a right or scope that this
            ABI does not have), E2BIG (a field that it does not have), ENOMSG (nothing is handled), EMFILE.

    See landlock_create_ruleset(2). Since Linux 5.13.
    """
    attr = ffi.new(
        "struct sandbox_landlock_ruleset_attr *",
        {
            "handled_access_fs": in_range(handled_access_fs, 0, _UINT64, "handled_access_fs"),
            "handled_access_net": in_range(handled_access_net, 0, _UINT64, "handled_access_net"),
            "scoped": in_range(scoped, 0, _UINT64, "scoped"),
            "quiet_access_fs": in_range(quiet_access_fs, 0, _UINT64, "quiet_access_fs"),
            "quiet_access_net": in_range(quiet_access_net, 0, _UINT64, "quiet_access_net"),
            "quiet_scoped": in_range(quiet_scoped, 0, _UINT64, "quiet_scoped"),
        },
    )
    # An older kernel takes the longer structure as long as what it does not know is zero.
    return check(lib.sandbox_landlock_create_ruleset(attr, ffi.sizeof(attr[0]), 0))


def landlock_add_rule(ruleset: Fd, rule_type: int, allowed_access: int, beneath: Fd, flags: int = 0) -> None:
    """Allow rights for a file hierarchy or for a port.

    Args:
        ruleset: The ruleset.
        rule_type: PATH_BENEATH or NET_PORT.
        allowed_access: `LandlockAccessFs` or `LandlockAccessNet`, all of them handled by the ruleset.
        beneath: PATH_BENEATH: a descriptor of the directory or file, O_PATH is enough. NET_PORT: the port,
            0 to 65535; binding to port 0 means the ephemeral range.
        flags: `LandlockAddRuleFlags`.

    Raises:
        OSError: EINVAL (a right that is not handled, or one for directories given for a file; a port out of
            range; an unknown flag), ENOMSG (no right), EBADF or EBADFD (`beneath` is closed, or is no path: a
            pipe, a socket, nsfs), EAFNOSUPPORT (no TCP), ENOMEM.

    See landlock_add_rule(2). Since Linux 5.13.
    """
    number = fd_of(ruleset, "ruleset")
    in_range(allowed_access, 0, _UINT64, "allowed_access")
    in_range(flags, 0, _UINT32, "flags")
    match rule_type:
        case LandlockRuleType.PATH_BENEATH:
            parent = fd_of(beneath, "beneath")
            check(lib.sandbox_landlock_add_path(number, allowed_access, parent, flags))
        case LandlockRuleType.NET_PORT:
            if not isinstance(beneath, int):
                raise TypeError(f"beneath must be a port, not {type(beneath).__name__}")
            port = in_range(beneath, 0, _UINT64, "beneath")
            check(lib.sandbox_landlock_add_port(number, allowed_access, port, flags))
        case _:
            raise ValueError(f"rule_type must be PATH_BENEATH or NET_PORT, got {rule_type}")


def landlock_restrict_self(ruleset: Fd, flags: int = 0) -> None:
    """Put the calling thread, and all that it will start, under a ruleset, for ever.

    Args:
        ruleset: The ruleset; -1 with LOG_SUBDOMAINS_OFF changes the logging only.
        flags: `LandlockRestrictSelfFlags`.

    Raises:
        OSError: EPERM (neither no_new_privs nor CAP_SYS_ADMIN), E2BIG (16 layers already), EINVAL (unknown
            flag), EBADF or EBADFD (`ruleset` is not one).

    See landlock_restrict_self(2). Since Linux 5.13.
    """
    number = fd_of(ruleset, "ruleset")
    check(lib.sandbox_landlock_restrict_self(number, in_range(flags, 0, _UINT32, "flags")))
