"""seccomp(2) and seccomp_unotify(2): filters of system calls, and the supervisor's side of them.

A program is raw classic BPF, the bytes of a native `struct sock_filter[]`, eight bytes an instruction.
"""

import errno
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range, os_error

__all__ = [
    "SeccompOperation",
    "SeccompFilterFlags",
    "SeccompAction",
    "SeccompNotifFlags",
    "SeccompAddfdFlags",
    "SeccompFdFlags",
    "SeccompNotif",
    "SeccompNotifSizes",
    "SECCOMP_SET_MODE_STRICT",
    "SECCOMP_SET_MODE_FILTER",
    "SECCOMP_GET_ACTION_AVAIL",
    "SECCOMP_GET_NOTIF_SIZES",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_NEW_LISTENER",
    "SECCOMP_FILTER_FLAG_TSYNC_ESRCH",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    "SECCOMP_RET_KILL_PROCESS",
    "SECCOMP_RET_KILL_THREAD",
    "SECCOMP_RET_TRAP",
    "SECCOMP_RET_ERRNO",
    "SECCOMP_RET_USER_NOTIF",
    "SECCOMP_RET_TRACE",
    "SECCOMP_RET_LOG",
    "SECCOMP_RET_ALLOW",
    "SECCOMP_RET_ACTION_FULL",
    "SECCOMP_RET_DATA",
    "SECCOMP_USER_NOTIF_FLAG_CONTINUE",
    "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP",
    "SECCOMP_ADDFD_FLAG_SETFD",
    "SECCOMP_ADDFD_FLAG_SEND",
    "seccomp",
    "seccomp_notif_sizes",
    "seccomp_notif_recv",
    "seccomp_notif_send",
    "seccomp_notif_id_valid",
    "seccomp_notif_addfd",
    "seccomp_notif_set_flags",
]


class SeccompOperation(IntEnum):
    """What `seccomp` is to do. GET_NOTIF_SIZES is a function of its own: `seccomp_notif_sizes`."""

    SET_MODE_STRICT = 0  # 3.17
    SET_MODE_FILTER = 1  # 3.17
    GET_ACTION_AVAIL = 2  # 4.14
    GET_NOTIF_SIZES = 3  # 5.0


class SeccompFilterFlags(IntFlag):
    """Flags of SET_MODE_FILTER."""

    TSYNC = 1  # 3.17: all threads of the process
    LOG = 2  # 4.14: every action but allow is logged
    SPEC_ALLOW = 4  # 4.17: no mitigation of speculative store bypass
    NEW_LISTENER = 8  # 5.0: the result is the descriptor of the supervisor
    TSYNC_ESRCH = 16  # 5.7: a thread that cannot follow is ESRCH, so that TSYNC and NEW_LISTENER go together
    WAIT_KILLABLE_RECV = 32  # 5.19: only a fatal signal interrupts a call that the supervisor has received


class SeccompAction(IntEnum):
    """Actions, the upper 16 bits of what a filter returns; the lower 16 are its data."""

    KILL_PROCESS = 0x80000000  # 4.14
    KILL_THREAD = 0x00000000
    TRAP = 0x00030000
    ERRNO = 0x00050000
    USER_NOTIF = 0x7FC00000  # 5.0
    TRACE = 0x7FF00000
    LOG = 0x7FFC0000  # 4.14
    ALLOW = 0x7FFF0000


class SeccompNotifFlags(IntFlag):
    """Flags of an answer."""

    CONTINUE = 1  # 5.5: the call runs; whatever was read through its pointers may have changed since


class SeccompAddfdFlags(IntFlag):
    """Flags of `seccomp_notif_addfd`."""

    SETFD = 1  # 5.9: at a given number
    SEND = 2  # 5.14: it is the answer at the same time


class SeccompFdFlags(IntFlag):
    """Flags of the listener."""

    SYNC_WAKE_UP = 1  # 6.6: supervisor and target take turns, the scheduler is told


SECCOMP_SET_MODE_STRICT: Final = SeccompOperation.SET_MODE_STRICT
SECCOMP_SET_MODE_FILTER: Final = SeccompOperation.SET_MODE_FILTER
SECCOMP_GET_ACTION_AVAIL: Final = SeccompOperation.GET_ACTION_AVAIL
SECCOMP_GET_NOTIF_SIZES: Final = SeccompOperation.GET_NOTIF_SIZES
SECCOMP_FILTER_FLAG_TSYNC: Final = SeccompFilterFlags.TSYNC
SECCOMP_FILTER_FLAG_LOG: Final = SeccompFilterFlags.LOG
SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = SeccompFilterFlags.SPEC_ALLOW
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = SeccompFilterFlags.NEW_LISTENER
SECCOMP_FILTER_FLAG_TSYNC_ESRCH: Final = SeccompFilterFlags.TSYNC_ESRCH
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = SeccompFilterFlags.WAIT_KILLABLE_RECV
SECCOMP_RET_KILL_PROCESS: Final = SeccompAction.KILL_PROCESS
SECCOMP_RET_KILL_THREAD: Final = SeccompAction.KILL_THREAD
SECCOMP_RET_TRAP: Final = SeccompAction.TRAP
SECCOMP_RET_ERRNO: Final = SeccompAction.ERRNO
SECCOMP_RET_USER_NOTIF: Final = SeccompAction.USER_NOTIF
SECCOMP_RET_TRACE: Final = SeccompAction.TRACE
SECCOMP_RET_LOG: Final = SeccompAction.LOG
SECCOMP_RET_ALLOW: Final = SeccompAction.ALLOW
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = SeccompNotifFlags.CONTINUE
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = SeccompFdFlags.SYNC_WAKE_UP
SECCOMP_ADDFD_FLAG_SETFD: Final = SeccompAddfdFlags.SETFD
SECCOMP_ADDFD_FLAG_SEND: Final = SeccompAddfdFlags.SEND

# The two halves of what a filter returns: the action and its data.
SECCOMP_RET_ACTION_FULL: Final = 0xFFFF0000
SECCOMP_RET_DATA: Final = 0x0000FFFF

_INSTRUCTION_SIZE = 8
_MAX_INSTRUCTIONS = 4096
_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1


class SeccompNotif(NamedTuple):
    """One system call that waits for an answer: struct seccomp_notif, its struct seccomp_data unfolded.

    Attributes:
        id: The kernel's number of the notification.
        pid: The thread, as the supervisor's pid namespace numbers it; 0 when it is not visible there.
        flags: None are known.
        nr: Number of the system call.
        arch: AUDIT_ARCH_*, whose number that is.
        instruction_pointer: Where the thread was.
        args: Six, of 64 bits each, whatever the architecture.
    """

    id: int
    pid: int  # the thread, as the supervisor's PID namespace numbers it; 0 when it is not visible there
    flags: int
    nr: int
    arch: int  # AUDIT_ARCH_*
    instruction_pointer: int
    args: tuple[int, ...]  # six, 64 bits each, whatever the architecture


class SeccompNotifSizes(NamedTuple):
    """Sizes in bytes of the kernel's structures.

    Attributes:
        notif: Of struct seccomp_notif.
        response: Of struct seccomp_notif_resp.
        data: Of struct seccomp_data.
    """

    notif: int
    response: int
    data: int


def seccomp(operation: int, flags: int = 0, args: bytes | bytearray | memoryview | int | None = None) -> int:
    """Restrict the system calls of the calling thread, or ask which actions the kernel knows.

    Args:
        operation: SET_MODE_STRICT, SET_MODE_FILTER or GET_ACTION_AVAIL.
        flags: `SeccompFilterFlags`, for SET_MODE_FILTER only.
        args: For SET_MODE_FILTER the program, 1 to 4,096 instructions of 8 bytes; for GET_ACTION_AVAIL the
            action; None for SET_MODE_STRICT.

    Returns:
        With NEW_LISTENER the listener's descriptor, close-on-exec, which the caller closes; 0 otherwise.

    Raises:
        OSError: EACCES (neither no_new_privs nor CAP_SYS_ADMIN), EINVAL (the program is not valid, a flag is
            unknown, or the process is in the other mode), ENOMEM (the filters of this thread are longer than
            32,768 instructions together), EBUSY (NEW_LISTENER: one of its filters has a listener already),
            ESRCH (TSYNC: a thread has filters of its own; without TSYNC_ESRCH a note names it), EOPNOTSUPP
            (GET_ACTION_AVAIL: the kernel does not know it), EFAULT.
        ValueError: The program's length, or an operation that is not one of the three.

    See seccomp(2). Since Linux 3.17.
    """
    in_range(flags, 0, _UINT32, "flags")
    match operation:
        case SeccompOperation.SET_MODE_STRICT:
            if args is not None:
                raise TypeError("args must be None for SECCOMP_SET_MODE_STRICT")
            return check(lib.sandbox_seccomp(operation, flags, ffi.NULL))
        case SeccompOperation.SET_MODE_FILTER:
            if args is None or isinstance(args, int):
                raise TypeError(f"args must be the bytes of a program, not {type(args).__name__}")
            return _set_mode_filter(flags, bytes(args))
        case SeccompOperation.GET_ACTION_AVAIL:
            if not isinstance(args, int):
                raise TypeError(f"args must be an action, not {type(args).__name__}")
            action = ffi.new("uint32_t *", in_range(args, 0, _UINT32, "args"))
            return check(lib.sandbox_seccomp(operation, flags, action))
        case _:
            raise ValueError(f"operation must be SET_MODE_STRICT, SET_MODE_FILTER or GET_ACTION_AVAIL, got {operation}")


def _set_mode_filter(flags: int, program: bytes) -> int:
    length, rest = divmod(len(program), _INSTRUCTION_SIZE)
    if rest or not 1 <= length <= _MAX_INSTRUCTIONS:
        raise ValueError(
            f"args must be 1 to {_MAX_INSTRUCTIONS} instructions of {_INSTRUCTION_SIZE} bytes, got {len(program)} bytes"
        )
    result = check(lib.sandbox_seccomp_filter(flags, ffi.from_buffer(program), length))
    if result and not flags & SeccompFilterFlags.NEW_LISTENER:
        # Fact: without TSYNC_ESRCH the kernel reports the thread that could not follow as a positive result,
        # and has changed nothing. A result that means failure must not look like success.
        error = os_error(errno.ESRCH)
        error.add_note(f"thread {result} has filters that this thread does not have")
        raise error
    return result


def seccomp_notif_sizes() -> SeccompNotifSizes:
    """Return how large the kernel's notification structures are.

    Raises:
        OSError: ENOSYS (no seccomp), EINVAL (older than 5.0).

    See seccomp(2). Since Linux 5.0.
    """
    sizes = ffi.new("uint16_t[3]")
    check(lib.sandbox_seccomp_notif_sizes(sizes))
    return SeccompNotifSizes(sizes[0], sizes[1], sizes[2])


def seccomp_notif_recv(fd: Fd) -> SeccompNotif:
    """Take the next system call that waits for an answer; blocks until there is one.

    The call ignores O_NONBLOCK: poll the listener first, and let only one thread take.

    Args:
        fd: The listener.

    Raises:
        OSError: EINTR (a signal handler ran), ENOENT (the target was killed or interrupted meanwhile, or no
            process has the filter any more).

    See seccomp_unotify(2). Since Linux 5.0.
    """
    notif = ffi.new("struct sandbox_seccomp_notif *")
    check(lib.sandbox_seccomp_notif_recv(fd_of(fd), notif))
    return SeccompNotif(
        notif.id,
        notif.pid,
        notif.flags,
        notif.nr,
        notif.arch,
        notif.instruction_pointer,
        tuple(notif.args),
    )


def seccomp_notif_send(fd: Fd, id: int, val: int = 0, error: int = 0, flags: int = 0) -> None:
    """Answer a system call.

    Args:
        fd: The listener.
        id: The notification's.
        val: What the call returns, when `error` is 0; 64 bits, signed.
        error: Zero, or the *negative* errno that the call fails with.
        flags: `SeccompNotifFlags`; with CONTINUE `val` and `error` must be 0.

    Raises:
        OSError: ENOENT (the target was killed or its call interrupted), EINPROGRESS (answered already),
            EINVAL (unknown flag, or CONTINUE with a value), EINTR (a signal handler ran; nothing was sent).

    See seccomp_unotify(2). Since Linux 5.0.
    """
    in_range(id, 0, _UINT64, "id")
    in_range(val, -(2**63), 2**63 - 1, "val")
    in_range(error, -(2**31), 2**31 - 1, "error")
    in_range(flags, 0, _UINT32, "flags")
    check(lib.sandbox_seccomp_notif_send(fd_of(fd), id, val, error, flags))


def seccomp_notif_id_valid(fd: Fd, id: int) -> bool:
    """Say whether a notification still waits, so that its pid still names the same thread.

    Args:
        fd: The listener.
        id: The notification's.

    Raises:
        OSError: EINTR (a signal handler ran).

    The ioctl is SECCOMP_IOCTL_NOTIF_ID_VALID, whose number was another before 5.9.

    See seccomp_unotify(2). Since Linux 5.0.
    """
    result: int = lib.sandbox_seccomp_notif_id_valid(fd_of(fd), in_range(id, 0, _UINT64, "id"))
    if result == -errno.ENOENT:
        return False
    check(result)
    return True


def seccomp_notif_addfd(fd: Fd, id: int, srcfd: Fd, newfd: int = 0, flags: int = 0, newfd_flags: int = 0) -> int:
    """Install a descriptor in the target and return its number there.

    Args:
        fd: The listener.
        id: The notification's.
        srcfd: The descriptor here.
        newfd: The number there, with SETFD; 0 otherwise.
        flags: `SeccompAddfdFlags`; with SEND the number is the answer of the call, in the same step.
        newfd_flags: 0 or O_CLOEXEC.

    Raises:
        OSError: EBADF (`srcfd` is not open, or `newfd` is beyond the target's limit), EMFILE (the target has
            no number left), ENOENT (the target is gone), EINPROGRESS (answered already), EBUSY (SEND: another
            descriptor is on its way), EINVAL (unknown flag).

    See seccomp_unotify(2). Since Linux 5.9.
    """
    in_range(id, 0, _UINT64, "id")
    in_range(newfd, 0, 2**31 - 1, "newfd")
    in_range(flags, 0, _UINT32, "flags")
    in_range(newfd_flags, 0, _UINT32, "newfd_flags")
    source = in_range(fd_of(srcfd, "srcfd"), 0, 2**31 - 1, "srcfd")
    return check(lib.sandbox_seccomp_notif_addfd(fd_of(fd), id, flags, source, newfd, newfd_flags))


def seccomp_notif_set_flags(fd: Fd, flags: int) -> None:
    """Set the flags of a listener.

    Args:
        fd: The listener.
        flags: `SeccompFdFlags`.

    Raises:
        OSError: EINVAL (unknown flag, or older than 6.6).

    See seccomp_unotify(2). Since Linux 6.6.
    """
    check(lib.sandbox_seccomp_notif_set_flags(fd_of(fd), in_range(flags, 0, _UINT64, "flags")))
