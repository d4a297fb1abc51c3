"""`Timerfd`: a timer whose event is the number of times it expired, and `TimerVal`, when it does."""

import errno
import math
import os
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from sandbox.errors import ClockChanged
from sandbox.events.base import EventLike, value_error
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives.timerfd import (
    CLOCK_BOOTTIME,
    CLOCK_BOOTTIME_ALARM,
    CLOCK_MONOTONIC,
    CLOCK_REALTIME,
    CLOCK_REALTIME_ALARM,
    TFD_CLOEXEC,
    TFD_NONBLOCK,
    TFD_TIMER_ABSTIME,
    TFD_TIMER_CANCEL_ON_SET,
    Itimerspec,
    TimerfdFlags,
    TimerfdSettimeFlags,
    timerfd_create,
    timerfd_gettime,
    timerfd_set_ticks,
    timerfd_settime,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CLOCK_BOOTTIME",
    "CLOCK_BOOTTIME_ALARM",
    "CLOCK_MONOTONIC",
    "CLOCK_REALTIME",
    "CLOCK_REALTIME_ALARM",
    "TFD_CLOEXEC",
    "TFD_NONBLOCK",
    "TFD_TIMER_ABSTIME",
    "TFD_TIMER_CANCEL_ON_SET",
    "Itimerspec",
    "TimerVal",
    "Timerfd",
    "Timerfd_async",
    "TimerfdFlags",
    "TimerfdSettimeFlags",
    "str_to_events",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_set_ticks",
    "timerfd_settime",
]

_RECORD = struct.Struct("=Q")
_SECOND = 10**9
_NS_MAX = 2**63 - 1
_SETTABLE_CLOCKS = (CLOCK_REALTIME, CLOCK_REALTIME_ALARM)


def _nanoseconds(seconds: float, name: str) -> int:
    """Return seconds as nanoseconds, in the range that the kernel takes."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(seconds).__name__}")
    if math.isfinite(seconds):
        ns = round(seconds * _SECOND)
        # What is more than nothing stays so: 0 would disarm the timer.
        if ns == 0 and seconds > 0:
            ns = 1
        if seconds >= 0 and ns <= _NS_MAX:
            return ns
    raise ValueError(f"{name} must be between 0 and {_NS_MAX // _SECOND} seconds, got {seconds}")


@dataclass(frozen=True, slots=True)
class TimerVal:
    """When a timer expires; nothing happens before it is given to a timer.

    `TimerVal().after(0.5).every(1.0)` expires after half a second and then each second; `every` alone
    begins after one interval; `TimerVal()` never expires.

    Attributes:
        first: Seconds until the first expiration, 0 for at once; the clock's time of it where `absolute`.
            None: after one interval.
        interval: Seconds between the expirations after that; 0 for none.
        absolute: `first` is a time of the timer's clock.
        cancel_on_set: Reading raises ClockChanged when the clock was set; absolute times of CLOCK_REALTIME
            only.
    """

    first: float | None = None
    interval: float = 0.0
    absolute: bool = False
    cancel_on_set: bool = False

    def __post_init__(self) -> None:
        if self.first is not None:
            _nanoseconds(self.first, "first")
        _nanoseconds(self.interval, "interval")
        if self.absolute and self.first is None:
            raise ValueError("absolute needs a first expiration: use at()")
        if self.cancel_on_set and not self.absolute:
            # The kernel accepts it and does nothing.
            raise ValueError("cancel_on_set needs an absolute time: use at()")

    def after(self, seconds: float) -> "TimerVal":
        """Return the same with its first expiration so many seconds after it is set, 0 for at once."""
        return replace(self, first=seconds, absolute=False, cancel_on_set=False)

    def at(self, clock_time: float, *, cancel_on_set: bool = False) -> "TimerVal":
        """Return the same with its first expiration at a time of the timer's clock; at once when past.

        Args:
            clock_time: Seconds, as `time.clock_gettime` counts them.
            cancel_on_set: Reading raises ClockChanged when the clock was set; CLOCK_REALTIME only.
        """
        return replace(self, first=clock_time, absolute=True, cancel_on_set=cancel_on_set)

    def every(self, seconds: float) -> "TimerVal":
        """Return the same with so many seconds between expirations, and before the first if not told."""
        return replace(self, interval=seconds)

    # Butter's spellings
    offset = after
    repeat = repeats = every

    @property
    def enabled(self) -> bool:
        """Whether a timer that is set to this expires at all."""
        return self.first is not None or self.interval > 0

    def __bool__(self) -> bool:
        """Return whether a timer that is set to this expires at all."""
        return self.enabled


def _value_of(spec: Itimerspec) -> TimerVal:
    if not spec.value:
        return TimerVal()
    return TimerVal(first=spec.value / _SECOND, interval=spec.interval / _SECOND)


class Timerfd(EventLike[int]):
    """A timer; its event is how many times it expired since the last one.

    Args:
        value: When it expires; None leaves it disarmed.
        clock: CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME (goes on in suspend) or one of the two ALARM
            clocks, which wake the machine.
        nonblock: `read_event` raises BlockingIOError instead of waiting.

    Raises:
        ValueError: `cancel_on_set` with a clock that nobody can set.
        OSError: EINVAL (no such clock; a ValueError too), EPERM (an ALARM clock without CAP_WAKE_ALARM),
            EMFILE or ENFILE (no descriptor left).

    See timerfd_create(2). Since Linux 2.6.27.
    """

    name: ClassVar[str] = "timerfd"
    _record_size = 8
    _prefetch = False  # the kernel counts the expirations that nobody waits for

    def __init__(self, value: TimerVal | None = None, *, clock: int = CLOCK_MONOTONIC, nonblock: bool = False) -> None:
        try:
            fd = timerfd_create(clock, TFD_CLOEXEC | TFD_NONBLOCK)
        except OSError as error:
            raise value_error(error) if error.errno == errno.EINVAL else error from None
        super().__init__(fd, nonblock=nonblock)
        self.clock = clock
        try:
            if value is not None:
                self.set(value)
        except BaseException:
            self.close()
            raise

    def _read(self) -> list[int]:
        try:
            data = os.read(self._fd, 8)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise ClockChanged(*error.args) from None
            raise
        # A clock that is set back between expiration and read makes the kernel return no bytes at all.
        return str_to_events(data)

    def set(self, value: TimerVal | None) -> TimerVal:
        """Arm the timer, by one system call; return what was set before, as `remaining` would have.

        Expirations that have not been read are gone.

        Args:
            value: When it expires; None, or a value that never does, disarms.

        Raises:
            TypeError: No TimerVal.
            ValueError: The object is closed, or `cancel_on_set` with a clock that nobody can set.
            ClockChanged: The clock was set while a timer with `cancel_on_set` was armed; the new value
                counts.
        """
        if not isinstance(value, TimerVal | None):
            raise TypeError(f"value must be a TimerVal or None, not {type(value).__name__}")
        flags = first = interval = 0
        if value is not None and value.enabled:
            interval = _nanoseconds(value.interval, "interval")
            # 0 would disarm; one nanosecond is at once.
            first = interval if value.first is None else max(1, _nanoseconds(value.first, "first"))
            if value.absolute:
                flags |= TFD_TIMER_ABSTIME
            if value.cancel_on_set:
                if self.clock not in _SETTABLE_CLOCKS:
                    raise ValueError("cancel_on_set needs CLOCK_REALTIME or CLOCK_REALTIME_ALARM")
                flags |= TFD_TIMER_CANCEL_ON_SET
        try:
            return _value_of(timerfd_settime(self.fileno(), flags, first, interval))
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise ClockChanged(*error.args) from None
            raise

    def remaining(self) -> TimerVal:
        """Return the time until the next expiration, relative always; when disarmed, one that never comes.

        Raises:
            ValueError: The object is closed.
        """
        return _value_of(timerfd_gettime(self.fileno()))

    def set_ticks(self, ticks: int) -> None:
        """Set the count that the next read returns, and wake who waits.

        Args:
            ticks: 1 to 2**64 - 1.

        Raises:
            ValueError: The object is closed, or a count out of its range.
            OSError: ENOTTY (a kernel without checkpoint and restore).
        """
        timerfd_set_ticks(self.fileno(), ticks)

    # Butter's spellings
    update = set  # noqa: A003  # the method above
    get_current = remaining


class Timerfd_async(EventLike_async[int]):  # noqa: N801  # Butter's name
    """A timer for asyncio: `await get()` returns how many times it expired since the last one.

    Args:
        value: When it expires; None leaves it disarmed.
        clock: As for `Timerfd`.
        nonblock: Accepted for the same call as `Timerfd`; a twin never blocks.
        maxsize: How many events are held at most; 0 means no limit. The timer is read only when somebody
            waits.

    Raises:
        ValueError: `cancel_on_set` with a clock that nobody can set.
        OSError: EINVAL (no such clock; a ValueError too), EPERM (an ALARM clock without CAP_WAKE_ALARM),
            EMFILE or ENFILE (no descriptor left).
    """

    def __init__(
        self,
        value: TimerVal | None = None,
        *,
        clock: int = CLOCK_MONOTONIC,
        nonblock: bool = False,  # noqa: ARG002  # for the same call as Timerfd
        maxsize: int = 0,
    ) -> None:
        super().__init__(Timerfd(value, clock=clock, nonblock=True), maxsize)

    set = of_source(Timerfd.set)
    update = of_source(Timerfd.set)
    remaining = of_source(Timerfd.remaining)
    get_current = of_source(Timerfd.remaining)
    set_ticks = of_source(Timerfd.set_ticks)


# Butter's name
Timer = Timerfd


def str_to_events(data: "Buffer") -> list[int]:
    """Return the counts in what read(2) on timers returned.

    Raises:
        ValueError: Not a whole number of 8-byte records.
    """
    size = memoryview(data).nbytes
    if size % _RECORD.size:
        raise ValueError(f"data must be whole records of {_RECORD.size} bytes, got {size} bytes")
    return [count for (count,) in _RECORD.iter_unpack(data)]
