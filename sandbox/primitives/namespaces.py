"""Make, join and explore namespaces: unshare(2), setns(2), clone(2), clone3(2), ioctl_nsfs(2)."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Literal, overload

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range

__all__ = ["CloneFlags", "MntNsInfo", "unshare", "setns", "clone", "clone3"]
__all__ += ["ns_get_userns", "ns_get_parent", "ns_get_nstype"]
__all__ += ["ns_get_owner_uid", "ns_get_mntns_id", "ns_get_id"]
__all__ += ["ns_get_pid_from_pidns", "ns_get_tgid_from_pidns", "ns_get_pid_in_pidns", "ns_get_tgid_in_pidns"]
__all__ += ["ns_mnt_get_info", "ns_mnt_get_next", "ns_mnt_get_prev"]
__all__ += ["CLONE_NEWTIME", "CLONE_VM", "CLONE_FS", "CLONE_FILES", "CLONE_SIGHAND", "CLONE_PIDFD"]
__all__ += ["CLONE_PTRACE", "CLONE_VFORK", "CLONE_PARENT", "CLONE_THREAD", "CLONE_NEWNS", "CLONE_SYSVSEM"]
__all__ += ["CLONE_SETTLS", "CLONE_PARENT_SETTID", "CLONE_CHILD_CLEARTID", "CLONE_UNTRACED"]
__all__ += ["CLONE_CHILD_SETTID", "CLONE_NEWCGROUP", "CLONE_NEWUTS", "CLONE_NEWIPC", "CLONE_NEWUSER"]
__all__ += ["CLONE_NEWPID", "CLONE_NEWNET", "CLONE_IO", "CLONE_CLEAR_SIGHAND", "CLONE_INTO_CGROUP"]
__all__ += ["CLONE_AUTOREAP", "CLONE_NNP", "CLONE_PIDFD_AUTOKILL", "CLONE_EMPTY_MNTNS", "UNSHARE_EMPTY_MNTNS"]


class CloneFlags(IntFlag):
    """What a new process shares with its maker and what is its own; also the types of namespaces."""

    NEWTIME = 0x80  # 5.6; unshare, setns and clone3
    VM = 0x100
    FS = 0x200
    FILES = 0x400
    SIGHAND = 0x800
    PIDFD = 0x1000
    PTRACE = 0x2000
    VFORK = 0x4000
    PARENT = 0x8000
    THREAD = 0x10000
    NEWNS = 0x20000
    SYSVSEM = 0x40000
    SETTLS = 0x80000
    PARENT_SETTID = 0x100000
    CHILD_CLEARTID = 0x200000
    UNTRACED = 0x800000
    CHILD_SETTID = 0x1000000
    NEWCGROUP = 0x2000000
    NEWUTS = 0x4000000
    NEWIPC = 0x8000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    IO = 0x80000000
    # clone3 only
    CLEAR_SIGHAND = 1 << 32  # 5.5
    INTO_CGROUP = 1 << 33  # 5.7
    # The next four are newer than 7.0.
    AUTOREAP = 1 << 34
    NNP = 1 << 35
    PIDFD_AUTOKILL = 1 << 36
    EMPTY_MNTNS = 1 << 37


CLONE_NEWTIME = CloneFlags.NEWTIME
CLONE_VM = CloneFlags.VM
CLONE_FS = CloneFlags.FS
CLONE_FILES = CloneFlags.FILES
CLONE_SIGHAND = CloneFlags.SIGHAND
CLONE_PIDFD = CloneFlags.PIDFD
CLONE_PTRACE = CloneFlags.PTRACE
CLONE_VFORK = CloneFlags.VFORK
CLONE_PARENT = CloneFlags.PARENT
CLONE_THREAD = CloneFlags.THREAD
CLONE_NEWNS = CloneFlags.NEWNS
CLONE_SYSVSEM = CloneFlags.SYSVSEM
CLONE_SETTLS = CloneFlags.SETTLS
CLONE_PARENT_SETTID = CloneFlags.PARENT_SETTID
CLONE_CHILD_CLEARTID = CloneFlags.CHILD_CLEARTID
CLONE_UNTRACED = CloneFlags.UNTRACED
CLONE_CHILD_SETTID = CloneFlags.CHILD_SETTID
CLONE_NEWCGROUP = CloneFlags.NEWCGROUP
CLONE_NEWUTS = CloneFlags.NEWUTS
CLONE_NEWIPC = CloneFlags.NEWIPC
CLONE_NEWUSER = CloneFlags.NEWUSER
CLONE_NEWPID = CloneFlags.NEWPID
CLONE_NEWNET = CloneFlags.NEWNET
CLONE_IO = CloneFlags.IO
CLONE_CLEAR_SIGHAND = CloneFlags.CLEAR_SIGHAND
CLONE_INTO_CGROUP = CloneFlags.INTO_CGROUP
CLONE_AUTOREAP = CloneFlags.AUTOREAP
CLONE_NNP = CloneFlags.NNP
CLONE_PIDFD_AUTOKILL = CloneFlags.PIDFD_AUTOKILL
CLONE_EMPTY_MNTNS = CloneFlags.EMPTY_MNTNS
UNSHARE_EMPTY_MNTNS = 0x100000
"""A flag of unshare only: a mount namespace with nothing in it. Newer than Linux 7.0."""


def unshare(flags: int) -> None:
    """Leave what the process shares: namespaces, and with CLONE_FILES, CLONE_FS, CLONE_SYSVSEM other things.

    Only the calling thread moves. CLONE_NEWPID and CLONE_NEWTIME are for the children to come.

    Args:
        flags: CloneFlags.

    Raises:
        OSError: EPERM (CAP_SYS_ADMIN is missing, or user namespaces are forbidden here), EINVAL (unknown
            flag; CLONE_NEWUSER while the process has more than one thread), ENOSPC (user.max_*_namespaces),
            EUSERS (nested too deep).

    See unshare(2). Since Linux 2.6.16.
    """
    in_range(flags, 0, 2**63 - 1, "flags")
    check(lib.sandbox_unshare(flags))


def setns(fd: Fd, nstype: int = 0) -> None:
    """Move the calling thread into a namespace, or into several of a process.

    Args:
        fd: A namespace, from /proc/PID/ns or an ns_get call; or a pidfd. Since Linux 5.8.
        nstype: CloneFlags: for a namespace the type that it must be, 0 for any; for a pidfd which of the
            process' namespaces to join, all at once or none.

    Raises:
        OSError: EINVAL (another type; a user namespace that the caller is in already, or while the process
            has more than one thread), EPERM (CAP_SYS_ADMIN is missing there or here), ESRCH (the process
            ended), EBADF.

    See setns(2). Since Linux 3.0.
    """
    number = fd_of(fd)
    in_range(nstype, 0, 2**31 - 1, "nstype")
    check(lib.sandbox_setns(number, nstype))


# What needs a pointer, a stack of its own or no Python in the child.
_NOT_LIKE_FORK = (
    CloneFlags.VM
    | CloneFlags.SIGHAND
    | CloneFlags.THREAD
    | CloneFlags.SETTLS
    | CloneFlags.PARENT_SETTID
    | CloneFlags.CHILD_SETTID
    | CloneFlags.CHILD_CLEARTID
)


@overload
def clone3(
    flags: int = 0,
    *,
    pidfd: Literal[False] = False,
    exit_signal: int = signal.SIGCHLD,
    set_tid: Sequence[int] = (),
    cgroup: Fd | None = None,
) -> int: ...
@overload
def clone3(
    flags: int = 0,
    *,
    pidfd: Literal[True],
    exit_signal: int = signal.SIGCHLD,
    set_tid: Sequence[int] = (),
    cgroup: Fd | None = None,
) -> tuple[int, int]: ...
def clone3(
    flags: int = 0,
    *,
    pidfd: bool = False,
    exit_signal: int = signal.SIGCHLD,
    set_tid: Sequence[int] = (),
    cgroup: Fd | None = None,
) -> int | tuple[int, int]:
    """Copy the process, as os.fork does, into new namespaces, a cgroup or under a chosen pid.

    Returns in both: 0 in the child, the child's pid in the parent. CPython's fork hooks run
    (os.register_at_fork, threading), the C library's (pthread_atfork) do not. As after os.fork only the
    calling thread exists in the child; and locks inside the C library that other threads held stay locked: a
    program with threads should do no more in the child than make system calls and exec or os._exit, or not
    use this.

    Args:
        flags: CloneFlags that a copy can have. After CLONE_CLEAR_SIGHAND Python still believes in its
            handlers. With CLONE_VFORK the parent's threads wait until the child execs or ends.
        pidfd: Return (pid, pidfd) instead; the caller closes the pidfd, which is close-on-exec. In the child
            it is -1. Sets CLONE_PIDFD.
        exit_signal: What the parent gets when the child ends, 1 to 64, or 0 for none; 0 with CLONE_PARENT.
        set_tid: The pid in the new pid namespace, then in its parent, and so on; at most 32.
        cgroup: A directory of cgroup v2 to start in. Sets CLONE_INTO_CGROUP. Since Linux 5.7.

    Raises:
        ValueError: A flag that a copy cannot have (CLONE_VM, CLONE_THREAD, CLONE_SIGHAND, CLONE_SETTLS,
            CLONE_*TID), or CLONE_PIDFD and CLONE_INTO_CGROUP without the argument.
        OSError: EPERM (CAP_SYS_ADMIN is missing, or CAP_CHECKPOINT_RESTORE for `set_tid`), EEXIST (the pid is
            taken), EINVAL (flags that contradict each other, a pid out of range), EAGAIN (RLIMIT_NPROC,
            pids.max), ENOSPC (namespace limits), EACCES, EBUSY, EOPNOTSUPP (`cgroup`: no permission, it has
            controllers for its children, or its domain is invalid), ENOSYS (also from the filters of
            container engines).

    See clone3(2). Since Linux 5.3.
    """
    in_range(flags, 0, 2**64 - 1, "flags")
    if flags & _NOT_LIKE_FORK:
        raise ValueError(f"flags must be ones that a copy of the process can have, got {CloneFlags(flags)!r}")
    if flags & CloneFlags.PIDFD and not pidfd:
        raise ValueError("CLONE_PIDFD in flags needs pidfd=True, or the descriptor would be lost")
    if flags & CloneFlags.INTO_CGROUP and cgroup is None:
        raise ValueError("CLONE_INTO_CGROUP in flags needs cgroup, or the kernel would take descriptor 0")
    in_range(exit_signal, 0, 64, "exit_signal")
    group = 0
    if cgroup is not None:
        group = in_range(fd_of(cgroup, "cgroup"), 0, 2**31 - 1, "cgroup")
        flags |= CloneFlags.INTO_CGROUP
    if pidfd:
        flags |= CloneFlags.PIDFD
    tids: Any = ffi.NULL
    if set_tid:
        tids = ffi.new("int[]", [in_range(tid, 1, 2**31 - 1, "set_tid") for tid in set_tid])
    fd = ffi.new("int *", -1)
    pid = check(lib.sandbox_clone3(flags, exit_signal, tids, len(set_tid), group, fd))
    return (pid, fd[0]) if pidfd else pid


def clone(flags: int = 0, *, exit_signal: int = signal.SIGCHLD) -> int:
    """Copy the process, as `clone3` does, by the older call: filters that refuse clone3 can judge its flags.

    Args:
        flags: CloneFlags below 2**32 that a copy can have, no CLONE_PIDFD.
        exit_signal: What the parent gets when the child ends, 1 to 64, or 0 for none.

    Raises:
        ValueError: A flag that a copy cannot have, or CLONE_PIDFD.
        OSError: EPERM (CAP_SYS_ADMIN is missing, or user namespaces are forbidden here), EINVAL (flags that
            contradict each other, a namespace that the kernel was built without), EAGAIN (RLIMIT_NPROC,
            pids.max), ENOSPC (user.max_*_namespaces, nested too deep).

    See clone(2). Since Linux 1.0.
    """
    in_range(flags, 0, 2**32 - 1, "flags")
    if flags & (_NOT_LIKE_FORK | CloneFlags.PIDFD | 0xFF):
        raise ValueError(f"flags must be ones that a copy of the process can have, got {CloneFlags(flags)!r}")
    in_range(exit_signal, 0, 64, "exit_signal")
    return check(lib.sandbox_clone(flags, exit_signal))


def clone_answer(flags: int) -> int:
    """Return the errno that clone gives for flags that the kernel itself always refuses with EINVAL.

    So anything else is the answer of a seccomp filter that looks at the flags. No process is ever made.

    Args:
        flags: CloneFlags below 2**32; CLONE_FS and CLONE_SIGHAND without CLONE_VM make them impossible.

    See clone(2). Since Linux 2.6.0.
    """
    in_range(flags, 0, 2**32 - 1, "flags")
    return int(lib.sandbox_clone_answer(flags))


def ns_get_userns(fd: Fd) -> int:
    """Open the user namespace that owns a namespace, and return its descriptor, which the caller closes.

    Args:
        fd: A namespace.

    Raises:
        OSError: EPERM (it is out of the caller's reach: not the caller's or below it), ENOTTY (not a
            namespace).

    See ioctl_nsfs(2). Since Linux 4.9.
    """
    return check(lib.sandbox_ns_ioctl(fd_of(fd), lib.NS_GET_USERNS, 0))


def ns_get_parent(fd: Fd) -> int:
    """Open the parent of a user or pid namespace, and return its descriptor, which the caller closes.

    Args:
        fd: A user or pid namespace.

    Raises:
        OSError: EPERM (the parent is out of the caller's reach), EINVAL (a type without parents), ENOTTY.

    See ioctl_nsfs(2). Since Linux 4.9.
    """
    return check(lib.sandbox_ns_ioctl(fd_of(fd), lib.NS_GET_PARENT, 0))


def ns_get_nstype(fd: Fd) -> CloneFlags:
    """Return the type of a namespace, such as CLONE_NEWNET.

    Args:
        fd: A namespace.

    Raises:
        OSError: ENOTTY (not a namespace).

    See ioctl_nsfs(2). Since Linux 4.11.
    """
    return CloneFlags(check(lib.sandbox_ns_ioctl(fd_of(fd), lib.NS_GET_NSTYPE, 0)))


def ns_get_owner_uid(fd: Fd) -> int:
    """Return the uid of the owner of a user namespace, as the caller's user namespace sees it.

    Args:
        fd: A user namespace.

    Raises:
        OSError: EINVAL (another type), ENOTTY.

    See ioctl_nsfs(2). Since Linux 4.11.
    """
    uid = ffi.new("uint32_t *")
    check(lib.sandbox_ns_get_owner_uid(fd_of(fd), uid))
    return int(uid[0])


def ns_get_mntns_id(fd: Fd) -> int:
    """Return the id of a mount namespace, for statmount and listmount.

    Args:
        fd: A mount namespace.

    Raises:
        OSError: EINVAL (another type), ENOTTY (also: an older kernel).

    See ioctl_nsfs(2). Since Linux 6.11.
    """
    return _id(fd, lib.NS_GET_MNTNS_ID)


def ns_get_id(fd: Fd) -> int:
    """Return the id of a namespace of any type, which is never used again.

    Args:
        fd: A namespace.

    Raises:
        OSError: ENOTTY (not a namespace, or an older kernel).

    See ioctl_nsfs(2). Since Linux 6.18.
    """
    return _id(fd, lib.NS_GET_ID)


def _id(fd: Fd, request: int) -> int:
    number = ffi.new("uint64_t *")
    check(lib.sandbox_ns_get_id(fd_of(fd), request, number))
    return int(number[0])


def _translate(fd: Fd, request: int, pid: int) -> int:
    return check(lib.sandbox_ns_ioctl(fd_of(fd), request, in_range(pid, 1, 2**31 - 1, "pid")))


def ns_get_pid_from_pidns(fd: Fd, pid: int) -> int:
    """Return the caller's number for a thread that another pid namespace knows as `pid`.

    Args:
        fd: The other pid namespace.
        pid: Its number there.

    Raises:
        OSError: ESRCH (no such thread, or it is not visible to the caller), EINVAL (another type), ENOTTY
            (also: an older kernel).

    See ioctl_nsfs(2). Since Linux 6.11.
    """
    return _translate(fd, lib.NS_GET_PID_FROM_PIDNS, pid)


def ns_get_tgid_from_pidns(fd: Fd, pid: int) -> int:
    """Return the caller's number for the process of a thread that another pid namespace knows as `pid`.

    Args:
        fd: The other pid namespace.
        pid: The thread's number there.

    Raises:
        OSError: As for ns_get_pid_from_pidns.

    See ioctl_nsfs(2). Since Linux 6.11.
    """
    return _translate(fd, lib.NS_GET_TGID_FROM_PIDNS, pid)


def ns_get_pid_in_pidns(fd: Fd, pid: int) -> int:
    """Return the number in another pid namespace of a thread that the caller knows as `pid`.

    Args:
        fd: The other pid namespace.
        pid: Its number here.

    Raises:
        OSError: ESRCH (no such thread, or it is not in that namespace), EINVAL (another type), ENOTTY (also:
            an older kernel).

    See ioctl_nsfs(2). Since Linux 6.11.
    """
    return _translate(fd, lib.NS_GET_PID_IN_PIDNS, pid)


def ns_get_tgid_in_pidns(fd: Fd, pid: int) -> int:
    """Return the number in another pid namespace of the process of a thread that the caller knows as `pid`.

    Args:
        fd: The other pid namespace.
        pid: The thread's number here.

    Raises:
        OSError: As for ns_get_pid_in_pidns.

    See ioctl_nsfs(2). Since Linux 6.11.
    """
    return _translate(fd, lib.NS_GET_TGID_IN_PIDNS, pid)


@dataclass(frozen=True, slots=True)
class MntNsInfo:
    """What the kernel says about a mount namespace.

    Attributes:
        mnt_ns_id: Its id, for statmount and listmount.
        nr_mounts: How many mounts it has.
    """

    mnt_ns_id: int
    nr_mounts: int


def _mnt_ns_info(fd: Fd, request: int) -> tuple[int, MntNsInfo]:
    info = ffi.new("struct sandbox_mnt_ns_info *")
    result = check(lib.sandbox_ns_mnt_info(fd_of(fd), request, info))
    return result, MntNsInfo(info.mnt_ns_id, info.nr_mounts)


def ns_mnt_get_info(fd: Fd) -> MntNsInfo:
    """Return the id and the number of mounts of a mount namespace.

    Args:
        fd: A mount namespace.

    Raises:
        OSError: EINVAL (another type), ENOTTY (also: an older kernel).

    See ioctl_nsfs(2). Since Linux 6.12.
    """
    return _mnt_ns_info(fd, lib.NS_MNT_GET_INFO)[1]


def ns_mnt_get_next(fd: Fd) -> tuple[int, MntNsInfo]:
    """Open the mount namespace with the next higher id that the caller may see.

    Args:
        fd: A mount namespace.

    Returns:
        Its descriptor, which the caller closes and which is close-on-exec, and what the kernel says about it.

    Raises:
        OSError: ENOENT (there is none), EPERM (without CAP_SYS_ADMIN), EINVAL (another type), ENOTTY, EMFILE.

    See ioctl_nsfs(2). Since Linux 6.12.
    """
    return _mnt_ns_info(fd, lib.NS_MNT_GET_NEXT)


def ns_mnt_get_prev(fd: Fd) -> tuple[int, MntNsInfo]:
    """Open the mount namespace with the next lower id that the caller may see.

    Args:
        fd: A mount namespace.

    Returns:
        As ns_mnt_get_next.

    Raises:
        OSError: As for ns_mnt_get_next.

    See ioctl_nsfs(2). Since Linux 6.12.
    """
    return _mnt_ns_info(fd, lib.NS_MNT_GET_PREV)
