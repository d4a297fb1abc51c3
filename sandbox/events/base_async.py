"""The asyncio twin of an event-like object: the read side of `asyncio.Queue`, filled by the kernel.

A twin holds an event-like object and reads it without waiting. One reader is registered with the loop,
once, and stays: registering for each wait costs as much as the wait itself. An event is handed to the
waiter that came first; a waiter that is cancelled after that gives it back.

This module does not import asyncio: who makes a twin in a program without a loop pays nothing.
"""

from collections import deque
from contextlib import suppress
from types import TracebackType, coroutine
from typing import TYPE_CHECKING, Concatenate, Generic, NoReturn, ParamSpec, Self, TypeVar, cast

from sandbox.events.base import CLOSED, EventLike, alive, unpicklable

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import AsyncIterator, Callable, Generator

E = TypeVar("E")
S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

# A task that finds an event each time it looks never gives way; after so many events that came without a
# wait it does, once, so that timeouts, cancellation and other tasks work under a flood.
_GIVE_WAY = 1000
# A read that finds nothing costs a good part of a wake-up. After one, so many waits are left to the reader alone; then
# it is tried again, because events that are there already need no wake-up at all.
_LEAVE = 16


@coroutine
def _give_way() -> "Generator[None, None, None]":
    yield


class EventLike_async(Generic[E]):  # noqa: N801  # Butter's names: the object's own, with _async after it
    """A queue of events that the kernel fills; belongs to the loop of the first await.

    Args:
        source: The event-like object, non-blocking, owned by the twin from here on.
        maxsize: How many events the queue holds at most before the rest is left to the kernel, whose own
            queue then may overflow; 0 means no limit. The events of one read stay together: what is over
            the limit waits behind the queue and does not count.
    """

    def __init__(self, source: EventLike[E], maxsize: int = 0) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            source.close()
            raise TypeError(f"maxsize must be an int, not {type(maxsize).__name__}")
        self._source = source
        self._maxsize = maxsize = max(0, maxsize)
        self._low_water = maxsize // 2 if maxsize else 1 << 62
        self._cache = source._cache
        self._read = source._read
        self._waiters: deque[Future[E]] = deque()
        self._prefetch = source._prefetch
        self._error: BaseException | None = None  # of a read that nobody was waiting for
        self._loop: AbstractEventLoop | None = None
        self._registered = False
        self._unwaited = 0  # events taken since the last wait
        self._leave = 0  # waits until a read is tried again
        alive.add(self)

    # ── the queue ─────────────────────────────────────────────────────────────────────────────────────────

    async def get(self) -> E:
        """Return the next event; those who wait are served in the order they came.

        Cancelling it loses no event.

        Raises:
            ValueError: The object is closed, or was closed meanwhile.
            RuntimeError: The object belongs to another event loop.
            OSError: The kernel refused a read.
        """
        loop = self._loop
        # get_running_loop() asks for the pid before Python 3.12, a system call; a loop that runs is the right one,
        # unless two threads share the twin, which nothing here allows.
        if loop is None or not loop.is_running():
            loop = self._bind()
        if self._unwaited > _GIVE_WAY:
            self._unwaited = 0
            await _give_way()
        if not self._waiters:
            if self._cache or self._error is not None:
                return self._take()
            if self._registered and self._leave:
                self._leave -= 1
            elif self._fill():
                return self._take() if self._prefetch or not self._cache else self._cache.popleft()
            else:
                self._leave = _LEAVE
        elif self._source.closed:
            raise ValueError(CLOSED)
        if not self._registered:
            self._register()
        self._unwaited = 0
        waiter: Future[E] = loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except BaseException as raised:
            self._give_back(waiter, raised)
            raise

    def get_nowait(self) -> E:
        """Return an event if there is one now, in the queue or in the kernel.

        Raises:
            asyncio.QueueEmpty: There is none, or only what others have waited for longer.
            ValueError: The object is closed.
            OSError: The kernel refused a read.
        """
        if self._cache or self._error is not None or self._fill():
            return self._take()
        from asyncio import QueueEmpty

        raise QueueEmpty

    # Butter's spellings
    get_event = wait = get
    get_event_nowait = get_nowait

    def qsize(self) -> int:
        """Return how many events can be taken without waiting; where that is none, read what there is."""
        if not self._cache and self._error is None:
            self._fill()
        size = len(self._cache) + (self._error is not None)
        return min(size, self._maxsize) if self._maxsize else size

    def empty(self) -> bool:
        """Return whether `get` would have to wait."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Return whether the queue holds `maxsize` events, so that the kernel has to keep the rest."""
        return 0 < self._maxsize <= self.qsize()

    @property
    def maxsize(self) -> int:
        """How many events the queue holds at most; 0: no limit."""
        return self._maxsize

    def __aiter__(self) -> "AsyncIterator[E]":
        """Iterate over the events until the object is closed."""
        return self._iterate()

    async def _iterate(self) -> "AsyncIterator[E]":
        # A generator: each event that came with an earlier one costs a jump into it, where a coroutine of its own
        # would cost as much as all the rest.
        cache = self._cache
        take = cache.popleft
        simple = self._prefetch and not self._maxsize  # the reader stays, however much is cached
        while True:
            try:
                event = await self.get()
            except ValueError:
                if self._source.closed:
                    return
                raise
            yield event
            # Nobody waits while something is cached.
            while cache and (simple or self._registered):
                yield take()

    async def __anext__(self) -> E:
        """Return the next event, or end the iteration because the object is closed."""
        try:
            return await self.get()
        except ValueError:
            if self._source.closed:
                raise StopAsyncIteration from None
            raise

    # ── how it is filled ──────────────────────────────────────────────────────────────────────────────────

    def _take(self) -> E:
        """Return the first event of a queue that has one, or raise the error of the last read."""
        cache = self._cache
        if not cache:
            error, self._error = self._error, None
            if error is not None:
                raise error
        if self._prefetch and not self._registered and len(cache) <= self._low_water + 1:
            self._register()
        return cache.popleft()

    def _fill(self) -> bool:
        """Read once; return whether there is something to take after those who wait got theirs."""
        try:
            events = self._read()
        except Exception as error:  # noqa: BLE001  # not swallowed: it is the next thing that get() gives out
            if self._source.closed:
                raise ValueError(CLOSED) from None
            self._error = error
            self._serve()
            return self._error is not None
        self._unwaited += len(events) or 1
        waiters = self._waiters
        if not waiters:
            self._cache.extend(events)
            return bool(events)
        if len(events) == 1 and not waiters[0].done():
            waiters.popleft().set_result(events[0])  # what _serve does, for the commonest case
            return False
        self._cache.extend(events)
        self._serve()
        return bool(self._cache)

    def _serve(self) -> None:
        """Hand events to those who wait, first come first served; a failed read is news for one of them."""
        waiters, cache = self._waiters, self._cache
        while waiters and (cache or self._error is not None):
            waiter = waiters.popleft()
            if waiter.done():
                continue
            if cache:
                waiter.set_result(cache.popleft())
            elif self._error is not None:
                waiter.set_exception(self._error)
                self._error = None

    def _give_back(self, waiter: "Future[E]", raised: BaseException) -> None:
        """Undo a wait that ended with an exception: nothing that was meant for it may be lost."""
        if waiter.cancelled() or not waiter.done():
            with suppress(ValueError):  # not there: passed over when events were handed out
                self._waiters.remove(waiter)
        elif raised is not waiter.exception() and not self._source.closed:
            # Cancelled after it was served and before the task ran: what it got goes back to the front.
            error = waiter.exception()
            if error is None:
                self._cache.appendleft(waiter.result())
            else:
                self._error = error
            self._serve()

    def _on_readable(self) -> None:
        if not self._waiters and (
            not self._prefetch or self._error is not None or 0 < self._maxsize <= len(self._cache)
        ):
            self._unregister()
            self._leave = 0
        else:
            self._fill()

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────

    def _bind(self) -> "AbstractEventLoop":
        from asyncio import get_running_loop

        loop = get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(f"{self!r} is bound to a different event loop")
        return loop

    def _register(self) -> None:
        # Without an await so far there is no loop yet, and get_nowait() does not need one.
        if self._loop is not None and not self._source.closed:
            self._loop.add_reader(self._source.fileno(), self._on_readable)
            self._registered = True

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            # A closed loop has forgotten its readers, and refuses to be asked.
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._source.fileno())

    def _forget(self) -> None:
        """Start afresh in a child made by fork; the loop's epoll instance is the parent's too: left alone."""
        self._waiters.clear()
        self._error = None
        self._loop = None
        self._registered = False

    # ── being a file ──────────────────────────────────────────────────────────────────────────────────────

    def fileno(self) -> int:
        """Return the descriptor, which stays the object's own.

        Raises:
            ValueError: The object is closed.
        """
        return self._source.fileno()

    @property
    def closed(self) -> bool:
        """Whether the object is closed."""
        return self._source.closed

    def close(self) -> None:
        """Take the reader off the loop, close the descriptor, and wake everybody who waits with a ValueError.

        To be called, as all of asyncio's methods, in the thread of the loop. Closing twice does nothing.
        """
        if self._source.closed:
            return
        # Before the descriptor is closed: its number may be another file's right after.
        self._unregister()
        waiters = list(self._waiters)
        self._waiters.clear()
        self._error = None
        try:
            self._source.close()
        finally:
            if self._loop is not None and not self._loop.is_closed():
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(ValueError(CLOSED))

    async def __aenter__(self) -> Self:
        """Return the object itself.

        Raises:
            ValueError: The object is closed.
        """
        self.fileno()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the object."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: two objects would own one descriptor."""
        raise TypeError(unpicklable(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.closed else f'fd={self.fileno()}'}>"


class of_source(Generic[P, R]):  # noqa: N801  # reads as a decorator does
    """The twin's method of the same name: that of the event-like object that the twin holds, bound at first use."""

    def __init__(self, method: "Callable[Concatenate[S, P], R]") -> None:
        self.__wrapped__ = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, twin: EventLike_async[E] | None, owner: type) -> "Callable[P, R]":
        if twin is None:
            return cast("Callable[P, R]", self.__wrapped__)
        # Not a data descriptor: the next look-up finds the bound method itself, without a call more.
        bound = twin.__dict__[self.name] = self.__wrapped__.__get__(twin._source)
        return cast("Callable[P, R]", bound)
