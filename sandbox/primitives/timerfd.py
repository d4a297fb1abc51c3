"""Timers as descriptors: timerfd_create(2) and its calls. Times are int nanoseconds."""

import enum
import os
import time
from typing import Final, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, check, fd_of, in_range

__all__ = [
    "TimerfdFlags",
    "TimerfdSettimeFlags",
    "TFD_CLOEXEC",
    "TFD_NONBLOCK",
    "TFD_TIMER_ABSTIME",
    "TFD_TIMER_CANCEL_ON_SET",
    "CLOCK_REALTIME",
    "CLOCK_MONOTONIC",
    "CLOCK_BOOTTIME",
    "CLOCK_REALTIME_ALARM",
    "CLOCK_BOOTTIME_ALARM",
    "Itimerspec",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "timerfd_set_ticks",
]

_NS_MAX = 2**63 - 1


class TimerfdFlags(enum.IntFlag):
    """Flags of timerfd_create(2)."""

    NONBLOCK = os.O_NONBLOCK
    CLOEXEC = os.O_CLOEXEC


class TimerfdSettimeFlags(enum.IntFlag):
    """Flags of timerfd_settime(2)."""

    ABSTIME = 1
    CANCEL_ON_SET = 2


TFD_NONBLOCK: Final = TimerfdFlags.NONBLOCK
TFD_CLOEXEC: Final = TimerfdFlags.CLOEXEC
TFD_TIMER_ABSTIME: Final = TimerfdSettimeFlags.ABSTIME
TFD_TIMER_CANCEL_ON_SET: Final = TimerfdSettimeFlags.CANCEL_ON_SET

CLOCK_REALTIME: Final = time.CLOCK_REALTIME
CLOCK_MONOTONIC: Final = time.CLOCK_MONOTONIC
CLOCK_BOOTTIME: Final = time.CLOCK_BOOTTIME
# Those that wake a suspended machine; they need CAP_WAKE_ALARM.
CLOCK_REALTIME_ALARM: Final = 8
CLOCK_BOOTTIME_ALARM: Final = 9


class Itimerspec(NamedTuple):
    """A timer's setting, in nanoseconds.

    Attributes:
        value: Until the next expiration; 0 when the timer is not armed.
        interval: Between the expirations after that; 0 when there is only one.
    """

    value: int
    interval: int


def timerfd_create(clockid: int = CLOCK_MONOTONIC, flags: int = TFD_CLOEXEC) -> int:
    """Create a timer that is not armed and return its file descriptor, which the caller closes.

    Args:
        clockid: CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME or one of the two ALARM clocks.
        flags: TimerfdFlags; close-on-exec unless the caller says otherwise.

    Raises:
        ValueError: A value out of its range.
        OSError: EINVAL (no such clock, or one without timers; unknown flag), EPERM (an ALARM clock without
            CAP_WAKE_ALARM), EMFILE or ENFILE (no descriptor left).

    See timerfd_create(2). Since Linux 2.6.25; CLOCK_BOOTTIME and the ALARM clocks since Linux 3.15 and 3.11.
    """
    clock = in_range(clockid, 0, 2**31 - 1, "clockid")
    return check(lib.sandbox_timerfd_create(clock, in_range(flags, 0, 2**31 - 1, "flags")))


def timerfd_settime(fd: Fd, flags: int, value: int, interval: int = 0) -> Itimerspec:
    """Arm or disarm a timer; return what was set before.

    An expiration that has not been read is gone.

    Args:
        fd: The timer.
        flags: TimerfdSettimeFlags.
        value: Nanoseconds until the first expiration or, with ABSTIME, the clock's time of it. 0 disarms,
            whatever the interval.
        interval: Nanoseconds between the expirations after the first; 0 for none.

    Raises:
        ValueError: A negative time, or one over 2**63 - 1; flags out of range.
        OSError: EINVAL (not a timerfd, unknown flag), EBADF, ECANCELED (with CANCEL_ON_SET: the clock was
            set since the last read; the timer is armed all the same).

    See timerfd_settime(2). Since Linux 2.6.25; CANCEL_ON_SET since Linux 3.0.
    """
    old = ffi.new("int64_t[2]")
    first = in_range(value, 0, _NS_MAX, "value")
    again = in_range(interval, 0, _NS_MAX, "interval")
    flags = in_range(flags, 0, 2**31 - 1, "flags")
    check(lib.sandbox_timerfd_settime(fd_of(fd), flags, first, again, old))
    return Itimerspec(old[0], old[1])


def timerfd_gettime(fd: Fd) -> Itimerspec:
    """Return the time until the next expiration, relative always, and the interval.

    Args:
        fd: A timerfd.

    Raises:
        OSError: EINVAL (not a timerfd), EBADF.

    See timerfd_gettime(2). Since Linux 2.6.25.
    """
    now = ffi.new("int64_t[2]")
    check(lib.sandbox_timerfd_gettime(fd_of(fd), now))
    return Itimerspec(now[0], now[1])


def timerfd_set_ticks(fd: Fd, ticks: int) -> None:
    """Set how many expirations the next read returns, and wake who waits for them.

    Args:
        fd: The timer.
        ticks: 1 to 2**64 - 1.

    Raises:
        ValueError: A value out of its range.
        OSError: ENOTTY (a kernel without checkpoint and restore, or not a timerfd), ECANCELED (with
            CANCEL_ON_SET: the clock was set).

    See TFD_IOC_SET_TICKS in timerfd_create(2). Since Linux 3.17.
    """
    check(lib.sandbox_timerfd_set_ticks(fd_of(fd), in_range(ticks, 1, 2**64 - 1, "ticks")))
