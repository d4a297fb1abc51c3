"""Processes by descriptor: pidfd_open(2), pidfd_send_signal(2), pidfd_getfd(2), ioctls, waitid(2)."""

import errno
import os
import resource
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range, os_error

__all__ = ["PidfdFlags", "PidfdSignalFlags", "PidfdInfoMask", "PidfdCoredump", "PidfdNamespace", "PidfdInfo"]
__all__ += ["IdType", "WaitFlags", "WaitidResult"]
__all__ += ["pidfd_open", "pidfd_send_signal", "pidfd_getfd"]
__all__ += ["pidfd_get_info", "pidfd_get_namespace", "waitid"]
__all__ += ["PIDFD_NONBLOCK", "PIDFD_THREAD"]
__all__ += ["PIDFD_SELF", "PIDFD_SELF_PROCESS", "PIDFD_SELF_THREAD", "PIDFD_SELF_THREAD_GROUP"]
__all__ += ["PIDFD_SIGNAL_THREAD", "PIDFD_SIGNAL_THREAD_GROUP", "PIDFD_SIGNAL_PROCESS_GROUP"]
__all__ += ["PIDFD_INFO_PID", "PIDFD_INFO_CREDS", "PIDFD_INFO_CGROUPID", "PIDFD_INFO_EXIT"]
__all__ += ["PIDFD_INFO_COREDUMP", "PIDFD_INFO_COREDUMP_SIGNAL"]
__all__ += ["PIDFD_COREDUMPED", "PIDFD_COREDUMP_SKIP", "PIDFD_COREDUMP_USER", "PIDFD_COREDUMP_ROOT"]
__all__ += ["PIDFD_GET_CGROUP_NAMESPACE", "PIDFD_GET_IPC_NAMESPACE", "PIDFD_GET_MNT_NAMESPACE"]
__all__ += ["PIDFD_GET_NET_NAMESPACE", "PIDFD_GET_PID_NAMESPACE", "PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE"]
__all__ += ["PIDFD_GET_TIME_NAMESPACE", "PIDFD_GET_TIME_FOR_CHILDREN_NAMESPACE", "PIDFD_GET_USER_NAMESPACE"]
__all__ += ["PIDFD_GET_UTS_NAMESPACE"]
__all__ += ["P_ALL", "P_PID", "P_PGID", "P_PIDFD"]
__all__ += ["WNOHANG", "WSTOPPED", "WEXITED", "WCONTINUED", "WNOWAIT"]


class PidfdFlags(IntFlag):
    """Flags of pidfd_open(2)."""

    NONBLOCK = os.O_NONBLOCK  # 5.10
    THREAD = os.O_EXCL  # 6.9


PIDFD_NONBLOCK = PidfdFlags.NONBLOCK
PIDFD_THREAD = PidfdFlags.THREAD

PIDFD_SELF_THREAD = -10000
"""In place of a pidfd: the calling thread. Since Linux 6.15."""
PIDFD_SELF_THREAD_GROUP = -10001
"""In place of a pidfd: the calling process. Since Linux 6.15."""
PIDFD_SELF = PIDFD_SELF_THREAD
PIDFD_SELF_PROCESS = PIDFD_SELF_THREAD_GROUP


class PidfdSignalFlags(IntFlag):
    """Whom pidfd_send_signal(2) reaches, whatever the pidfd was opened for."""

    THREAD = 1  # 6.9
    THREAD_GROUP = 2  # 6.9
    PROCESS_GROUP = 4  # 6.9


PIDFD_SIGNAL_THREAD = PidfdSignalFlags.THREAD
PIDFD_SIGNAL_THREAD_GROUP = PidfdSignalFlags.THREAD_GROUP
PIDFD_SIGNAL_PROCESS_GROUP = PidfdSignalFlags.PROCESS_GROUP


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Open a process and return its pidfd, which the caller closes and which is close-on-exec.

    Args:
        pid: The process, 1 to 2**31 - 1; with PIDFD_THREAD a thread.
        flags: PidfdFlags.

    Raises:
        OSError: ESRCH (no such process), EINVAL (unknown flag), ENOENT or EINVAL by kernel (a thread without
            PIDFD_THREAD), EMFILE, ENFILE.

    See pidfd_open(2). Since Linux 5.3.
    """
    in_range(pid, 1, 2**31 - 1, "pid")
    in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_pidfd_open(pid, flags))


def pidfd_send_signal(pidfd: Fd, sig: int, value: int | None = None, flags: int = 0) -> None:
    """Send a signal to a process that cannot be mistaken for another.

    Args:
        pidfd: From pidfd_open, clone3, or PIDFD_SELF.
        sig: 1 to 64, or 0 to check only.
        value: What travels with the signal (si_value.sival_int, si_code SI_QUEUE), -2**31 to 2**31 - 1; None
            for a signal as kill(2) sends it. The kernel's siginfo argument is made from it.
        flags: PidfdSignalFlags.

    Raises:
        OSError: ESRCH (it ended and was waited for), EPERM, EINVAL (unknown flag), EAGAIN (too many queued).

    See pidfd_send_signal(2). Since Linux 5.1.
    """
    number = fd_of(pidfd, "pidfd")
    in_range(sig, 0, 64, "sig")
    raw = ffi.NULL
    if value is not None:
        raw = ffi.new("int *", in_range(value, -(2**31), 2**31 - 1, "value"))
    in_range(flags, 0, 2**32 - 1, "flags")
    check(lib.sandbox_pidfd_send_signal(number, sig, raw, flags))


def pidfd_getfd(pidfd: Fd, targetfd: int, flags: int = 0) -> int:
    """Copy a descriptor of another process and return it, which the caller closes and which is close-on-exec.

    Args:
        pidfd: The other process.
        targetfd: The number of the descriptor there, 0 to 2**31 - 1.
        flags: 0; none is known.

    Raises:
        OSError: EPERM (the caller may not ptrace it), EBADF (no such descriptor there), ESRCH (it ended),
            EINVAL (flags), EMFILE, ENFILE.

    See pidfd_getfd(2). Since Linux 5.6.
    """
    number = fd_of(pidfd, "pidfd")
    in_range(targetfd, 0, 2**31 - 1, "targetfd")
    in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_pidfd_getfd(number, targetfd, flags))


class PidfdInfoMask(IntFlag):
    """What pidfd_get_info is asked for, and what it answered."""

    PID = 1
    CREDS = 2
    CGROUPID = 4
    EXIT = 8  # 6.15
    COREDUMP = 16  # 6.16
    COREDUMP_SIGNAL = 64  # 6.19


PIDFD_INFO_PID = PidfdInfoMask.PID
PIDFD_INFO_CREDS = PidfdInfoMask.CREDS
PIDFD_INFO_CGROUPID = PidfdInfoMask.CGROUPID
PIDFD_INFO_EXIT = PidfdInfoMask.EXIT
PIDFD_INFO_COREDUMP = PidfdInfoMask.COREDUMP
PIDFD_INFO_COREDUMP_SIGNAL = PidfdInfoMask.COREDUMP_SIGNAL

_EVERYTHING = PidfdInfoMask(0x5F)


class PidfdCoredump(IntFlag):
    """What became of the core dump."""

    COREDUMPED = 1
    SKIP = 2
    USER = 4
    ROOT = 8


PIDFD_COREDUMPED = PidfdCoredump.COREDUMPED
PIDFD_COREDUMP_SKIP = PidfdCoredump.SKIP
PIDFD_COREDUMP_USER = PidfdCoredump.USER
PIDFD_COREDUMP_ROOT = PidfdCoredump.ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class PidfdInfo:
    """What the kernel says about a process; None where it did not answer.

    After the process was waited for only the exit status and the core dump are left.

    Attributes:
        mask: What the kernel answered.
        pid: The thread that the pidfd stands for, in the caller's pid namespace.
        tgid: Its process.
        ppid: The parent; 0 when it is outside of the caller's pid namespace.
        ruid: Real user id, as all ids here in the caller's user namespace.
        rgid: Real group id.
        euid: Effective user id.
        egid: Effective group id.
        suid: Saved user id.
        sgid: Saved group id.
        fsuid: File-system user id.
        fsgid: File-system group id.
        cgroupid: Id of its cgroup (v2): the inode number of the directory.
        exit_code: Wait status, for os.waitstatus_to_exitcode, once it ended and was waited for.
        coredump: What became of the core dump.
        coredump_signal: The signal that caused it.
    """

    mask: PidfdInfoMask
    pid: int | None = None
    tgid: int | None = None
    ppid: int | None = None
    ruid: int | None = None
    rgid: int | None = None
    euid: int | None = None
    egid: int | None = None
    suid: int | None = None
    sgid: int | None = None
    fsuid: int | None = None
    fsgid: int | None = None
    cgroupid: int | None = None
    exit_code: int | None = None
    coredump: PidfdCoredump | None = None
    coredump_signal: int | None = None


_INFO_FIELDS = {
    PidfdInfoMask.PID: ("pid", "tgid", "ppid"),
    PidfdInfoMask.CREDS: ("ruid", "rgid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid"),
    PidfdInfoMask.CGROUPID: ("cgroupid",),
    PidfdInfoMask.EXIT: ("exit_code",),
    PidfdInfoMask.COREDUMP_SIGNAL: ("coredump_signal",),
}


def pidfd_get_info(pidfd: Fd, mask: int = _EVERYTHING) -> PidfdInfo:
    """Return ids, cgroup and exit status of a process: the ioctl PIDFD_GET_INFO.

    Args:
        pidfd: The process; a descriptor opened before it ended also tells how it ended.
        mask: PidfdInfoMask; everything by default. What the kernel does not know it leaves out.

    Raises:
        OSError: ESRCH (it was waited for and the exit status was not asked for, or the kernel does not keep
            it), ENOTTY (not a pidfd, or an older kernel), EREMOTE (it is in a pid namespace that the caller
            does not see).

    See pidfd_open(2). Since Linux 6.13.
    """
    info = ffi.new("struct sandbox_pidfd_info *")
    info.mask = in_range(mask, 0, 2**64 - 1, "mask")
    check(lib.sandbox_pidfd_get_info(fd_of(pidfd, "pidfd"), info))
    found = PidfdInfoMask(info.mask)
    names = [name for bit, names in _INFO_FIELDS.items() if found & bit for name in names]
    coredump = PidfdCoredump(info.coredump_mask) if found & PidfdInfoMask.COREDUMP else None
    return PidfdInfo(mask=found, coredump=coredump, **{name: getattr(info, name) for name in names})


class PidfdNamespace(IntEnum):
    """Which namespace of a process pidfd_get_namespace opens; the numbers are those of the ioctls."""

    CGROUP = 0xFF01
    IPC = 0xFF02
    MNT = 0xFF03
    NET = 0xFF04
    PID = 0xFF05
    PID_FOR_CHILDREN = 0xFF06
    TIME = 0xFF07
    TIME_FOR_CHILDREN = 0xFF08
    USER = 0xFF09
    UTS = 0xFF0A


PIDFD_GET_CGROUP_NAMESPACE = PidfdNamespace.CGROUP
PIDFD_GET_IPC_NAMESPACE = PidfdNamespace.IPC
PIDFD_GET_MNT_NAMESPACE = PidfdNamespace.MNT
PIDFD_GET_NET_NAMESPACE = PidfdNamespace.NET
PIDFD_GET_PID_NAMESPACE = PidfdNamespace.PID
PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE = PidfdNamespace.PID_FOR_CHILDREN
PIDFD_GET_TIME_NAMESPACE = PidfdNamespace.TIME
PIDFD_GET_TIME_FOR_CHILDREN_NAMESPACE = PidfdNamespace.TIME_FOR_CHILDREN
PIDFD_GET_USER_NAMESPACE = PidfdNamespace.USER
PIDFD_GET_UTS_NAMESPACE = PidfdNamespace.UTS


def pidfd_get_namespace(pidfd: Fd, namespace: int) -> int:
    """Open a namespace of a process and return its descriptor, close-on-exec, which the caller closes.

    Args:
        pidfd: The process.
        namespace: PidfdNamespace.

    Raises:
        OSError: EACCES or EPERM (the caller may not ptrace it), ESRCH (it ended), EOPNOTSUPP (the kernel is
            built without such namespaces), ENOTTY (not a pidfd, or an older kernel), EMFILE, ENFILE.

    See pidfd_open(2). Since Linux 6.11.
    """
    request = PidfdNamespace(in_range(namespace, PidfdNamespace.CGROUP, PidfdNamespace.UTS, "namespace"))
    return check(lib.sandbox_pidfd_get_namespace(fd_of(pidfd, "pidfd"), request))


class IdType(IntEnum):
    """For whom waitid(2) waits."""

    ALL = 0
    PID = 1
    PGID = 2
    PIDFD = 3  # 5.4


P_ALL = IdType.ALL
P_PID = IdType.PID
P_PGID = IdType.PGID
P_PIDFD = IdType.PIDFD


class WaitFlags(IntFlag):
    """For what waitid(2) waits, and how."""

    NOHANG = 1
    STOPPED = 2
    EXITED = 4
    CONTINUED = 8
    NOWAIT = 0x1000000


WNOHANG = WaitFlags.NOHANG
WSTOPPED = WaitFlags.STOPPED
WEXITED = WaitFlags.EXITED
WCONTINUED = WaitFlags.CONTINUED
WNOWAIT = WaitFlags.NOWAIT


@dataclass(frozen=True, slots=True)
class WaitidResult:
    """What happened to a child.

    Attributes:
        pid: The child.
        uid: Its real user id.
        signo: SIGCHLD.
        status: Exit status when `code` is CLD_EXITED, else the signal.
        code: os.CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_STOPPED, CLD_TRAPPED or CLD_CONTINUED.
        rusage: What it and the children that it waited for have used.
    """

    pid: int
    uid: int
    signo: int
    status: int
    code: int
    rusage: resource.struct_rusage


def waitid(idtype: int, id: Fd, options: int = WaitFlags.EXITED) -> WaitidResult | None:
    """Wait for a child to end, stop or go on.

    Args:
        idtype: IdType.
        id: A pid, a process group (0 for the caller's own, since Linux 5.4) or a pidfd, as `idtype` says; 0
            with P_ALL.
        options: WaitFlags; at least one of WEXITED, WSTOPPED, WCONTINUED.

    Returns:
        None with WNOHANG when nothing has happened yet.

    Raises:
        OSError: ECHILD (no such child), EAGAIN (it runs, and the pidfd is PIDFD_NONBLOCK), EINVAL (options),
            EBADF.

    See waitid(2). Since Linux 2.6.9.
    """
    kind = IdType(in_range(idtype, IdType.ALL, IdType.PIDFD, "idtype"))
    if kind is IdType.PIDFD:
        number = fd_of(id, "id")
    elif isinstance(id, int):
        number = id
    else:
        raise TypeError(f"id must be an int for {kind.name}, not {type(id).__name__}")
    in_range(number, 0, 2**31 - 1, "id")
    in_range(options, 0, 2**32 - 1, "options")
    result = ffi.new("struct sandbox_waited *")
    # A signal interrupts the wait; its Python handler runs before the next turn.
    while failed := lib.sandbox_waitid(kind, number, options, result):
        if failed != -errno.EINTR:
            raise os_error(-failed)
    if result.pid == 0:
        return None
    usage = list(result.rusage)
    rusage = resource.struct_rusage((usage[0] / 1e6, usage[1] / 1e6, *usage[2:]))
    return WaitidResult(result.pid, result.uid, result.signo, result.status, result.code, rusage)
