"""The event-like object: a file for select, poll and epoll whose read is `read_event` and `read_events`.

A subclass supplies a constructor that makes the descriptor, and `_read`, one system call that returns a
list of events. Everything else is here.

Facts that the shape follows from:

- Readiness is a hint: another thread or process may drain the descriptor between poll and read, and a
  blocking read would then sleep without a time limit. So the descriptor is O_NONBLOCK always; who wants to
  wait, polls.
- close(2) does not wake a thread that polls the descriptor. A wait that sleeps polls an eventfd beside it,
  made by the first such wait, and `close` writes to it.
- A descriptor that is closed while another thread is about to read it may by then be another file. So `close`
  wakes the reader, waits for the lock that each reader holds, and only then closes.
- A child made by fork has its parent's cache and its locks as they were. Both are replaced in the child.
"""

import errno
import fcntl
import io
import os
import select
import struct
import termios
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar, Generic, NoReturn, Protocol, Self, TypeVar, cast

from sandbox.primitives._call import os_error

E = TypeVar("E")

CLOSED = "I/O operation on closed file"
_POLL_MAX = 2**31 - 1  # milliseconds: poll(2) takes a C int
LOOK = 0.05  # seconds between looks, where nothing can wake who waits


class _Forgets(Protocol):
    def _forget(self) -> None: ...


# What a forked child has to tidy; weak, so that nothing lives longer for it.
alive: "weakref.WeakSet[_Forgets]" = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(alive):
        one._forget()


os.register_at_fork(after_in_child=_after_fork)


def _leaked(descriptors: list[int], what: str) -> None:
    """Close what an object that was dropped without close() held, and say so as files do."""
    for fd in descriptors:
        os.close(fd)
    warnings.warn(f"unclosed {what}", ResourceWarning, stacklevel=2)


_both: dict[type[OSError], type[OSError]] = {}


def value_error(error: OSError) -> OSError:
    """Return the same error as an OSError that is a ValueError too, as Butter's callers expect.

    For the places where the kernel refuses an argument that Butter refused with ValueError:
    `except FileNotFoundError as error: raise value_error(error) from None`.
    """
    base = type(error)
    if base not in _both:
        namespace = {"__module__": base.__module__, "__doc__": base.__doc__}
        _both[base] = cast(type[OSError], type(base.__name__, (base, ValueError), namespace))
    made = _both[base](*error.args)
    if error.filename is not None:
        made.filename = error.filename
    if error.filename2 is not None:
        made.filename2 = error.filename2
    return made


def unpicklable(thing: object) -> str:
    """Say why what owns a descriptor is not pickled, and what to do."""
    name = type(thing).__name__
    return f"{name} cannot be pickled: its descriptor is this process's own; make one there, or socket.send_fds() it"


class EventLike(Generic[E]):
    """A file-like object that yields events instead of bytes.

    It owns its descriptor, which is non-blocking in the kernel whatever `nonblock` says: wait with
    `read_event`, or with select, poll and epoll, never with read(2). Threads may share one object: a reader
    that waits is served before one that came later, and no event is lost or read twice. A child made by
    `os.fork` starts without cached events.

    Args:
        fd: The descriptor, made by the subclass; the object owns it from here on.
        nonblock: Read calls return or raise at once instead of waiting for an event.
    """

    name: ClassVar[str] = "event"
    mode: ClassVar[str] = "r"
    # Bytes of one kernel record, for the kinds whose descriptor does not know FIONREAD.
    _record_size: ClassVar[int] = 0
    # Whether the asyncio twin may read on while nobody waits. False where the kernel adds up (a counter) or
    # where an event costs a descriptor.
    _prefetch: ClassVar[bool] = True

    _fd: int = -1

    def __init__(self, fd: int, *, nonblock: bool = False) -> None:
        self._fd = fd
        self._nonblock = nonblock
        self._cache: deque[E] = deque()
        # Reentrant: a signal handler may read or close the object that its own thread is waiting on.
        self._lock = threading.RLock()
        self._wake = -1
        self._closing = False
        self._descriptors = [fd]
        self._finalizer = weakref.finalize(self, _leaked, self._descriptors, f"{self.name} fd={fd}")
        self._finalizer.atexit = False  # as for files: the end of the process is no leak
        alive.add(self)

    def _read(self) -> list[E]:
        """Read once from the kernel without waiting; an empty list when there is nothing.

        Called with the lock held by the synchronous face, and by the only reader of the asyncio twin.
        """
        raise NotImplementedError

    def _dispose(self, events: list[E]) -> None:
        """Let go of events that nobody will take: at close and in a forked child; they may own something."""

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────

    def read_event(self, timeout: float | None = None) -> E:
        """Return the next event.

        Args:
            timeout: Seconds to wait at most, also where the object is non-blocking; 0 looks only. None
                waits for ever, or not at all where the object is non-blocking.

        Raises:
            TimeoutError: No event came in time.
            BlockingIOError: The object is non-blocking, no timeout was given, and there is no event.
            ValueError: The object is closed, or another thread closed it meanwhile; or a negative timeout.
            OSError: The kernel refused the read.
        """
        cache = self._cache
        if cache:
            # A deque is atomic: taking what is cached needs no lock.
            try:
                return cache.popleft()
            except IndexError:  # another thread was faster, so there is nothing cached
                return self.read_event(timeout)
        if timeout is None:
            with self._lock:
                return (cache or self._fill(None)).popleft()
        if not isinstance(timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
        if not timeout >= 0:
            raise ValueError(f"timeout must be a number of seconds, 0 or more, or None, got {timeout}")
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"another thread was reading this {self.name} all {timeout} s")
        try:
            return (cache or self._fill(deadline)).popleft()
        finally:
            self._lock.release()

    wait = read_event  # Butter's spelling

    def read_events(self) -> list[E]:
        """Return all cached events or, with none cached, those of one read from the kernel.

        Waits for an event, unless the object is non-blocking: then the list may be empty.

        Raises:
            ValueError: The object is closed, or another thread closed it meanwhile.
            OSError: The kernel refused the read.
        """
        with self._lock:
            cache = self._cache
            if not cache and not self._closing:
                # The events of this read need not pass through the cache.
                events = self._read()
                if events or self._nonblock:
                    return events
            if not cache:
                self._fill(None)
            events = list(cache)
            cache.clear()
            return events

    def __iter__(self) -> Iterator[E]:
        """Yield events until another thread closes the object or, where non-blocking, until there is none."""
        while True:
            try:
                event = self.read_event()
            except BlockingIOError:
                return
            except ValueError:
                if self._closing:
                    return
                raise
            yield event

    def pending(self) -> int:
        """Return how many bytes of events the kernel holds for the next read.

        Where the kernel does not count (eventfd, timerfd, signalfd, pidfd) it is the size of one record, or
        0.

        Raises:
            ValueError: The object is closed.
        """
        if self._record_size:
            return self._record_size if self._poll(self.fileno(), 0) else 0
        raw = fcntl.ioctl(self.fileno(), termios.FIONREAD, bytes(4))
        return cast(int, struct.unpack("i", raw)[0])

    def _fill(self, deadline: float | None) -> "deque[E]":
        """Read into the empty cache, waiting if need be; return the cache, which then holds an event."""
        cache = self._cache
        while True:
            if self._closing:
                raise ValueError(CLOSED)
            cache.extend(self._read())
            if cache:
                return cache
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no event in time")
                self._sleep(left)
            elif self._nonblock:
                raise os_error(errno.EAGAIN)
            else:
                self._sleep(None)

    def _sleep(self, seconds: float | None) -> None:
        """Wait until the descriptor is readable, the object is closed, or the time is over; with the lock held."""
        if self._wake < 0:
            try:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                # No descriptor left. Waiting is possible all the same; it looks now and then whether it
                # should end.
                seconds = min(LOOK, LOOK if seconds is None else seconds)
            else:
                self._descriptors.append(self._wake)
        # close() marks first and wakes then: looking after the eventfd exists leaves no gap.
        if not self._closing:
            self._poll(self._fd, seconds, select.POLLIN, self._wake)

    @staticmethod
    def _poll(fd: int, seconds: float | None, events: int = select.POLLIN, wake: int = -1) -> bool:
        # poll, never select: select fails for descriptors from 1024 on.
        poll = select.poll()
        poll.register(fd, events)
        if wake >= 0:
            poll.register(wake, select.POLLIN)
        return bool(poll.poll(None if seconds is None else min(seconds * 1000, _POLL_MAX)))

    # ── being a file ──────────────────────────────────────────────────────────────────────────────────────

    def fileno(self) -> int:
        """Return the descriptor, which stays the object's own.

        Raises:
            ValueError: The object is closed.
        """
        if self._fd < 0:
            raise ValueError(CLOSED)
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the object is closed or detached."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor and drop cached events; a thread that waits for an event gets a ValueError.

        Closing twice does nothing.

        Raises:
            OSError: EBADF (somebody else closed the descriptor); the object is closed all the same.
        """
        fd = self._take_fd()
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """Return the descriptor, which the caller closes, and close the object without it.

        Cached events are dropped. The descriptor is blocking again, unless the object was made non-blocking.

        Raises:
            ValueError: The object is closed.
        """
        fd = self._take_fd()
        if fd < 0:
            raise ValueError(CLOSED)
        os.set_blocking(fd, not self._nonblock)
        return fd

    def _take_fd(self) -> int:
        """End the object, all but the closing of its descriptor: return that, -1 when it ended before."""
        self._closing = True
        wake = self._wake
        if wake >= 0:
            os.eventfd_write(wake, 1)
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return -1
            self._finalizer.detach()
            alive.discard(self)
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
            events = list(self._cache)
            self._cache.clear()
        self._dispose(events)
        return fd

    def _forget(self) -> None:
        """Start afresh in a child made by fork: no cached event, no lock or eventfd of the parent's."""
        self._lock = threading.RLock()
        events = list(self._cache)
        self._cache.clear()
        if self._wake >= 0:
            os.close(self._wake)
            self._descriptors.remove(self._wake)
            self._wake = -1
        self._dispose(events)

    def readable(self) -> bool:
        """Return True: events can be read.

        Raises:
            ValueError: The object is closed.
        """
        return self.fileno() >= 0

    def writable(self) -> bool:
        """Return False: nothing is written as bytes.

        Raises:
            ValueError: The object is closed.
        """
        return self.fileno() < 0

    seekable = isatty = writable

    def _unsupported(self, *_: object, **__: object) -> NoReturn:
        """Refuse what files can do and event-like objects cannot.

        Raises:
            io.UnsupportedOperation: Always; an OSError and a ValueError.
        """
        raise io.UnsupportedOperation(f"{self.name} holds events, not bytes: use read_event() or read_events()")

    read = readline = readlines = readinto = write = writelines = seek = tell = truncate = _unsupported

    def __enter__(self) -> Self:
        """Return the object itself.

        Raises:
            ValueError: The object is closed.
        """
        self.fileno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the object."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: two objects would own one descriptor."""
        raise TypeError(unpicklable(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"
