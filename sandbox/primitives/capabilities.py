"""Capabilities of a thread: capget(2) and capset(2), and their names.

The bounding set, the ambient set and the securebits are options of prctl(2).
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from sandbox._native import ffi, lib
from sandbox.primitives._call import check, in_range
from sandbox.primitives.process import PR_CAPBSET_READ, prctl

__all__ = ["Capability", "CapabilitySets", "SecureBits", "capget", "capset"]
__all__ += ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL"]
__all__ += ["CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE"]
__all__ += ["CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER"]
__all__ += ["CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT"]
__all__ += ["CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME"]
__all__ += ["CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL"]
__all__ += ["CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM"]
__all__ += ["CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"]
__all__ += ["CAP_LAST_CAP"]
__all__ += ["SECBIT_NOROOT", "SECBIT_NOROOT_LOCKED", "SECBIT_NO_SETUID_FIXUP"]
__all__ += ["SECBIT_NO_SETUID_FIXUP_LOCKED", "SECBIT_KEEP_CAPS", "SECBIT_KEEP_CAPS_LOCKED"]
__all__ += ["SECBIT_NO_CAP_AMBIENT_RAISE", "SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED", "SECBIT_EXEC_RESTRICT_FILE"]
__all__ += [
    "SECBIT_EXEC_RESTRICT_FILE_LOCKED",
    "SECBIT_EXEC_DENY_INTERACTIVE",
    "SECBIT_EXEC_DENY_INTERACTIVE_LOCKED",
]


class Capability(IntEnum):
    """The kernel's capabilities, up to Linux 7.2; a newer one is just its number."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    NET_BIND_SERVICE = 10
    NET_BROADCAST = 11
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    IPC_OWNER = 15
    SYS_MODULE = 16
    SYS_RAWIO = 17
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_PACCT = 20
    SYS_ADMIN = 21
    SYS_BOOT = 22
    SYS_NICE = 23
    SYS_RESOURCE = 24
    SYS_TIME = 25
    SYS_TTY_CONFIG = 26
    MKNOD = 27
    LEASE = 28
    AUDIT_WRITE = 29
    AUDIT_CONTROL = 30
    SETFCAP = 31
    MAC_OVERRIDE = 32
    MAC_ADMIN = 33
    SYSLOG = 34  # 2.6.37
    WAKE_ALARM = 35  # 3.0
    BLOCK_SUSPEND = 36  # 3.5
    AUDIT_READ = 37  # 3.16
    PERFMON = 38  # 5.8
    BPF = 39  # 5.8
    CHECKPOINT_RESTORE = 40  # 5.9

    @property
    def mask(self) -> int:
        """The bit of this capability in a set."""
        return 1 << self


CAP_CHOWN = Capability.CHOWN
CAP_DAC_OVERRIDE = Capability.DAC_OVERRIDE
CAP_DAC_READ_SEARCH = Capability.DAC_READ_SEARCH
CAP_FOWNER = Capability.FOWNER
CAP_FSETID = Capability.FSETID
CAP_KILL = Capability.KILL
CAP_SETGID = Capability.SETGID
CAP_SETUID = Capability.SETUID
CAP_SETPCAP = Capability.SETPCAP
CAP_LINUX_IMMUTABLE = Capability.LINUX_IMMUTABLE
CAP_NET_BIND_SERVICE = Capability.NET_BIND_SERVICE
CAP_NET_BROADCAST = Capability.NET_BROADCAST
CAP_NET_ADMIN = Capability.NET_ADMIN
CAP_NET_RAW = Capability.NET_RAW
CAP_IPC_LOCK = Capability.IPC_LOCK
CAP_IPC_OWNER = Capability.IPC_OWNER
CAP_SYS_MODULE = Capability.SYS_MODULE
CAP_SYS_RAWIO = Capability.SYS_RAWIO
CAP_SYS_CHROOT = Capability.SYS_CHROOT
CAP_SYS_PTRACE = Capability.SYS_PTRACE
CAP_SYS_PACCT = Capability.SYS_PACCT
CAP_SYS_ADMIN = Capability.SYS_ADMIN
CAP_SYS_BOOT = Capability.SYS_BOOT
CAP_SYS_NICE = Capability.SYS_NICE
CAP_SYS_RESOURCE = Capability.SYS_RESOURCE
CAP_SYS_TIME = Capability.SYS_TIME
CAP_SYS_TTY_CONFIG = Capability.SYS_TTY_CONFIG
CAP_MKNOD = Capability.MKNOD
CAP_LEASE = Capability.LEASE
CAP_AUDIT_WRITE = Capability.AUDIT_WRITE
CAP_AUDIT_CONTROL = Capability.AUDIT_CONTROL
CAP_SETFCAP = Capability.SETFCAP
CAP_MAC_OVERRIDE = Capability.MAC_OVERRIDE
CAP_MAC_ADMIN = Capability.MAC_ADMIN
CAP_SYSLOG = Capability.SYSLOG
CAP_WAKE_ALARM = Capability.WAKE_ALARM
CAP_BLOCK_SUSPEND = Capability.BLOCK_SUSPEND
CAP_AUDIT_READ = Capability.AUDIT_READ
CAP_PERFMON = Capability.PERFMON
CAP_BPF = Capability.BPF
CAP_CHECKPOINT_RESTORE = Capability.CHECKPOINT_RESTORE
CAP_LAST_CAP = max(Capability)


class SecureBits(IntFlag):
    """How uid 0, capabilities and execution go together; for PR_SET_SECUREBITS of prctl(2)."""

    NOROOT = 1 << 0
    NOROOT_LOCKED = 1 << 1
    NO_SETUID_FIXUP = 1 << 2
    NO_SETUID_FIXUP_LOCKED = 1 << 3
    KEEP_CAPS = 1 << 4
    KEEP_CAPS_LOCKED = 1 << 5
    NO_CAP_AMBIENT_RAISE = 1 << 6  # 4.3
    NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 7  # 4.3
    EXEC_RESTRICT_FILE = 1 << 8  # 6.14
    EXEC_RESTRICT_FILE_LOCKED = 1 << 9  # 6.14
    EXEC_DENY_INTERACTIVE = 1 << 10  # 6.14
    EXEC_DENY_INTERACTIVE_LOCKED = 1 << 11  # 6.14


SECBIT_NOROOT = SecureBits.NOROOT
SECBIT_NOROOT_LOCKED = SecureBits.NOROOT_LOCKED
SECBIT_NO_SETUID_FIXUP = SecureBits.NO_SETUID_FIXUP
SECBIT_NO_SETUID_FIXUP_LOCKED = SecureBits.NO_SETUID_FIXUP_LOCKED
SECBIT_KEEP_CAPS = SecureBits.KEEP_CAPS
SECBIT_KEEP_CAPS_LOCKED = SecureBits.KEEP_CAPS_LOCKED
SECBIT_NO_CAP_AMBIENT_RAISE = SecureBits.NO_CAP_AMBIENT_RAISE
SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED = SecureBits.NO_CAP_AMBIENT_RAISE_LOCKED
SECBIT_EXEC_RESTRICT_FILE = SecureBits.EXEC_RESTRICT_FILE
SECBIT_EXEC_RESTRICT_FILE_LOCKED = SecureBits.EXEC_RESTRICT_FILE_LOCKED
SECBIT_EXEC_DENY_INTERACTIVE = SecureBits.EXEC_DENY_INTERACTIVE
SECBIT_EXEC_DENY_INTERACTIVE_LOCKED = SecureBits.EXEC_DENY_INTERACTIVE_LOCKED


@dataclass(frozen=True, slots=True)
class CapabilitySets:
    """The three sets that capget(2) and capset(2) deal in, each a mask of `Capability.mask`.

    Attributes:
        effective: What the kernel checks.
        permitted: What may be made effective.
        inheritable: What a program with the same in its file's set keeps.
    """

    effective: int
    permitted: int
    inheritable: int


def capget(pid: int = 0) -> CapabilitySets:
    """Return the capabilities of a thread.

    Args:
        pid: The thread; 0 for the caller's.

    Raises:
        OSError: ESRCH (no such thread).

    See capget(2). Since Linux 2.2.
    """
    sets = ffi.new("uint64_t[3]")
    check(lib.sandbox_capget(in_range(pid, 0, 2**31 - 1, "pid"), sets))
    return CapabilitySets(*ffi.unpack(sets, 3))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capabilities of the calling thread, and of no other thread of the process.

    Args:
        effective: Mask of `Capability.mask`, a subset of `permitted`.
        permitted: A subset of what is permitted now.
        inheritable: A subset of what is inheritable and in the bounding set, or permitted and in it.

    Raises:
        ValueError: A bit that stands for no capability of this kernel, which would ignore it.
        OSError: EPERM (more than the caller may have).

    See capset(2). Since Linux 2.2.
    """
    values = {"effective": effective, "permitted": permitted, "inheritable": inheritable}
    for name, value in values.items():
        in_range(value, 0, 2**64 - 1, name)
        if value and not _known(value.bit_length() - 1):
            raise ValueError(f"{name} must hold capabilities of this kernel, got number {value.bit_length() - 1}")
    check(lib.sandbox_capset(0, ffi.new("uint64_t[3]", list(values.values()))))


def _known(number: int) -> bool:
    if number <= max(Capability):
        return True
    try:
        prctl(PR_CAPBSET_READ, number)
    except OSError:
        return False
    return True
