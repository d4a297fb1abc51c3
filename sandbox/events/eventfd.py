"""`Eventfd`: a counter that others add to and that is read, and set to 0, as one event."""

import select
import struct
from collections.abc import Iterable
from os import eventfd_read as eventfd_read_raw, eventfd_write as eventfd_write_raw
from typing import TYPE_CHECKING, ClassVar

from sandbox.events.base import LOOK, EventLike
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives._call import in_range
from sandbox.primitives.eventfds import (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EFD_SEMAPHORE,
    EVENTFD_MAX,
    EventfdFlags,
    eventfd,
    eventfd_read,
    eventfd_write,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "EFD_CLOEXEC",
    "EFD_NONBLOCK",
    "EFD_SEMAPHORE",
    "EVENTFD_MAX",
    "Eventfd",
    "Eventfd_async",
    "EventfdFlags",
    "event_to_str",
    "eventfd",
    "eventfd_read",
    "eventfd_write",
    "str_to_events",
]

_RECORD = struct.Struct("=Q")


class Eventfd(EventLike[int]):
    """A counter in the kernel; its event is the value that was read.

    Args:
        value: First value of the counter, 0 to 2**32 - 1.
        semaphore: An event is always 1, and takes 1 off the counter.
        nonblock: `read_event` and `increment` raise BlockingIOError instead of waiting.

    Raises:
        ValueError: A value out of its range.
        OSError: EMFILE or ENFILE (no descriptor left).

    See eventfd(2). Since Linux 2.6.30.
    """

    name: ClassVar[str] = "eventfd"
    mode: ClassVar[str] = "r+"
    _record_size = 8
    _prefetch = False  # the kernel adds up, and a semaphore may be shared with others

    def __init__(self, value: int = 0, *, semaphore: bool = False, nonblock: bool = False) -> None:
        in_range(value, 0, 2**32 - 1, "value")
        flags = EFD_CLOEXEC | EFD_NONBLOCK | (EFD_SEMAPHORE if semaphore else 0)
        super().__init__(eventfd(value, flags), nonblock=nonblock)

    def _read(self) -> list[int]:
        try:
            return [eventfd_read_raw(self._fd)]
        except BlockingIOError:
            return []

    def read_event(self, timeout: float | None = None) -> int:
        """Return the counter and set it to 0 or, of a semaphore, return 1 and subtract 1.

        Args:
            timeout: Seconds to wait at most while the counter is 0; None waits for ever, or not at all
                where the object is non-blocking.

        Raises:
            TimeoutError: The counter stayed 0.
            BlockingIOError: The counter is 0, the object is non-blocking, and no timeout was given.
            ValueError: The object is closed, or another thread closed it meanwhile; or a negative timeout.
        """
        # No event is ever cached and one read is one event, so the lock has nothing to guard; it would cost a
        # quarter of the whole round trip. What is left open is what files leave open too: a descriptor that
        # another thread closes in the very moment of the call.
        if timeout is None:
            try:
                return eventfd_read_raw(self._fd)
            except BlockingIOError:
                if self._nonblock:
                    raise
            except (OSError, ValueError):
                self.fileno()  # says that the object is closed, when that was why
                raise
        return super().read_event(timeout)

    wait = __int__ = read_event

    def increment(self, value: int = 1) -> None:
        """Add to the counter; waits while the sum would be over 2**64 - 2, unless non-blocking.

        Args:
            value: What to add, 0 to 2**64 - 2.

        Raises:
            ValueError: A value out of its range, or the object is closed.
            BlockingIOError: No room, and the object is non-blocking.
        """
        # eventfd_write takes a value modulo 2**64, and a bool as 0 or 1: the check is here.
        if value.__class__ is not int or not 0 <= value <= EVENTFD_MAX:
            value = in_range(value, 0, EVENTFD_MAX, "value")
        while True:
            try:
                return eventfd_write_raw(self._fd, value)
            except BlockingIOError:
                if self._nonblock:
                    raise
            except (OSError, ValueError):
                self.fileno()
                raise
            # Without the lock, which the reader that makes room may hold: close() is noticed by looking.
            self._poll(self.fileno(), LOOK, select.POLLOUT)


class Eventfd_async(EventLike_async[int]):  # noqa: N801  # Butter's name
    """A counter in the kernel, for asyncio: `await get()` returns the value and sets it to 0.

    Args:
        value: First value of the counter, 0 to 2**32 - 1.
        semaphore: An event is always 1, and takes 1 off the counter.
        nonblock: Accepted for the same call as `Eventfd`; a twin never blocks.
        maxsize: How many events are held at most; 0 means no limit. The counter is read only when somebody
            waits.

    Raises:
        ValueError: A value out of its range.
        OSError: EMFILE or ENFILE (no descriptor left).
    """

    def __init__(
        self,
        value: int = 0,
        *,
        semaphore: bool = False,
        nonblock: bool = False,  # noqa: ARG002  # for the same call as Eventfd
        maxsize: int = 0,
    ) -> None:
        super().__init__(Eventfd(value, semaphore=semaphore, nonblock=True), maxsize)

    increment = of_source(Eventfd.increment)


def str_to_events(data: "Buffer") -> list[int]:
    """Return the values in what read(2) on eventfds returned.

    Raises:
        ValueError: Not a whole number of 8-byte records.
    """
    size = memoryview(data).nbytes
    if size % _RECORD.size:
        raise ValueError(f"data must be whole records of {_RECORD.size} bytes, got {size} bytes")
    return [value for (value,) in _RECORD.iter_unpack(data)]


def event_to_str(value: int | Iterable[int]) -> bytes:
    """Return the bytes that write(2) on an eventfd takes, of one value or of several.

    Raises:
        ValueError: A value outside of 0..2**64 - 2.
    """
    values = (value,) if isinstance(value, int) else value
    return b"".join(_RECORD.pack(in_range(one, 0, EVENTFD_MAX, "value")) for one in values)
