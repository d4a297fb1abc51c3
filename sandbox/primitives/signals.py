"""Signals: signalfd(2), the calling thread's mask, and signals that carry a value.

A set of signals is an iterable of numbers or one number. All 64 are known: the C library hides two of them.
"""

import enum
import os
import signal as _signal
from collections.abc import Iterable
from typing import Final

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range

__all__ = [
    "SignalfdFlags",
    "SFD_CLOEXEC",
    "SFD_NONBLOCK",
    "SIG_BLOCK",
    "SIG_UNBLOCK",
    "SIG_SETMASK",
    "signalfd",
    "pthread_sigmask",
    "sigqueue",
    "rt_tgsigqueueinfo",
]

NSIG: Final = 64


class SignalfdFlags(enum.IntFlag):
    """Flags of signalfd(2)."""

    NONBLOCK = os.O_NONBLOCK
    CLOEXEC = os.O_CLOEXEC


SFD_NONBLOCK: Final = SignalfdFlags.NONBLOCK
SFD_CLOEXEC: Final = SignalfdFlags.CLOEXEC
SIG_BLOCK: Final = int(_signal.SIG_BLOCK)
SIG_UNBLOCK: Final = int(_signal.SIG_UNBLOCK)
SIG_SETMASK: Final = int(_signal.SIG_SETMASK)


def sigset(signals: int | Iterable[int]) -> int:
    """Return the kernel's form of a set of signals: bit n-1 for signal n.

    Raises:
        TypeError: Neither a signal number nor an iterable of them.
        ValueError: A number outside of 1..64.
    """
    if isinstance(signals, int):
        signals = (signals,)
    bits = 0
    for number in signals:
        bits |= 1 << (in_range(number, 1, NSIG, "signal") - 1)
    return bits


def sigset_members(bits: int) -> set[int]:
    """Return the signals in the kernel's form of a set; those with a name as `signal.Signals`."""
    return {signal_number(number) for number in range(1, NSIG + 1) if bits >> (number - 1) & 1}


def signal_number(number: int) -> int:
    """Return a signal number as `signal.Signals`, or as it is where that has no name for it (real-time)."""
    try:
        return _signal.Signals(number)
    except ValueError:
        return number


def signalfd(fd: Fd = -1, signals: int | Iterable[int] = (), flags: int = SFD_CLOEXEC) -> int:
    """Create a descriptor from which blocked signals are read, or change the set of one.

    The kernel leaves SIGKILL and SIGSTOP out silently.

    Args:
        fd: -1 makes a new descriptor, which the caller closes; else the signalfd to change.
        signals: The set of signals, each 1 to 64.
        flags: SignalfdFlags; close-on-exec unless the caller says otherwise.

    Returns:
        The new descriptor, or the number of the one that was changed.

    Raises:
        TypeError: Neither a signal number nor an iterable of them.
        ValueError: A number out of its range.
        OSError: EINVAL (`fd` is no signalfd, unknown flag), EBADF, EMFILE or ENFILE (no descriptor left).

    See signalfd(2). Since Linux 2.6.27.
    """
    bits = sigset(signals)
    return check(lib.sandbox_signalfd(fd_of(fd), bits, in_range(flags, 0, 2**31 - 1, "flags")))


def pthread_sigmask(how: int, signals: int | Iterable[int] | None = None) -> set[int]:
    """Change which signals the calling thread blocks; return the set that was blocked before.

    The two signals that the C library uses itself, 32 and 33, are never blocked.

    Args:
        how: SIG_BLOCK (add), SIG_UNBLOCK (remove) or SIG_SETMASK (replace).
        signals: The set of signals, each 1 to 64; None changes nothing.

    Raises:
        TypeError: Neither a signal number nor an iterable of them.
        ValueError: A number out of its range.
        OSError: EINVAL (unknown `how`).

    See pthread_sigmask(3), rt_sigprocmask(2). Since Linux 2.2.
    """
    bits = 0 if signals is None else sigset(signals)
    old = ffi.new("uint64_t *")
    how = in_range(how, 0, 2**31 - 1, "how")
    check(lib.sandbox_sigmask(how, bits, signals is not None, old))
    return sigset_members(old[0])


def sigqueue(pid: int, signal: int, value: int = 0) -> None:
    """Send a signal that carries a value; real-time ones queue, of the others one at a time is pending.

    Args:
        pid: The process.
        signal: 1 to 64, or 0 to check only.
        value: What the receiver finds as `si_value`: -2**31 to 2**31 - 1.

    Raises:
        ValueError: A number out of its range.
        OSError: EAGAIN (the receiver's user has as many signals queued as RLIMIT_SIGPENDING allows), EPERM,
            ESRCH (no such process).

    See sigqueue(3), rt_sigqueueinfo(2). Since Linux 2.2.
    """
    pid, signal = in_range(pid, 1, 2**31 - 1, "pid"), in_range(signal, 0, NSIG, "signal")
    check(lib.sandbox_sigqueue(pid, signal, in_range(value, -(2**31), 2**31 - 1, "value")))


def rt_tgsigqueueinfo(tgid: int, tid: int, signal: int, value: int = 0) -> None:
    """Send a signal that carries a value to one thread; only that thread can read it.

    Args:
        tgid: The process.
        tid: One of its threads, as `threading.get_native_id()` names it.
        signal: 1 to 64, or 0 to check only.
        value: What the receiver finds as `si_value`: -2**31 to 2**31 - 1.

    Raises:
        ValueError: A number out of its range.
        OSError: EAGAIN (too many signals queued), EPERM, ESRCH (no such thread in that process).

    See rt_tgsigqueueinfo(2). Since Linux 2.6.31.
    """
    tgid, tid = in_range(tgid, 1, 2**31 - 1, "tgid"), in_range(tid, 1, 2**31 - 1, "tid")
    signal = in_range(signal, 0, NSIG, "signal")
    check(lib.sandbox_tgsigqueue(tgid, tid, signal, in_range(value, -(2**31), 2**31 - 1, "value")))
