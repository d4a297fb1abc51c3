"""Supervise system calls: a filter says Notify, and a `Notifier` in another process answers.

Facts that the shape follows from, each from seccomp_unotify(2) or measured:

- The arguments of a notification are a copy of the registers and cannot change. What pointers among them point to
  can: another thread of the target rewrites it between the supervisor's look and the kernel's. So a call that runs
  after the supervisor has read memory was judged by something else than what it does. Therefore `Notification` has
  `proceed`, with conditions on registers only, and cannot read memory; `Emulation` can, and has no `proceed`.
- A target waits without a time limit for its answer. So an answer is sent whatever becomes of the handler:
  when its block is left, when the notification is dropped, when the notifier is closed, EPERM. When the
  supervisor dies the kernel answers ENOSYS.
- Receiving ignores O_NONBLOCK. So the listener is polled first and received from under a lock.
- A pid is only sure to be the target while the notification is valid. So it is asked again after each look at
  memory.
- A child made by fork would hold the listener open after its parent died, and its targets would wait for it.
  So the child closes its copy.
"""

import errno
import os
import select
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import ClassVar, Final

from sandbox.events.base import EventLike
from sandbox.events.base_async import EventLike_async
from sandbox.notification import Emulation, Notification, Pending, dropped
from sandbox.primitives.secure_computing import (
    seccomp_notif_addfd,
    seccomp_notif_id_valid,
    seccomp_notif_recv,
    seccomp_notif_send,
)

__all__ = ["Emulation", "Notification", "Notifier", "Notifier_async"]

_RECORD_SIZE: Final = 80  # struct seccomp_notif


class Notifier(EventLike[Notification]):
    """The supervisor's end of a filter that says Notify: yields each call that waits for an answer.

    Iterating treats the body of the loop as the handler: a call that it leaves unanswered is refused with
    EPERM, also when it raises. To answer later, or from other threads, take notifications with `read_event`.
    The iteration ends when no process has the filter any more, where `read_event` raises EOFError.

    Closing refuses every call that still waits here with EPERM; later ones get ENOSYS from the kernel.

    Args:
        listener: The descriptor that seccomp(2) returned for NEW_LISTENER; the object owns it from here on.
        nonblock: Read calls return or raise at once instead of waiting for a call.

    Raises:
        OSError: ENOTTY or EBADF (`listener` is none); it stays open.
    """

    name: ClassVar[str] = "notifier"
    _prefetch: ClassVar[bool] = False

    def __init__(self, listener: int, *, nonblock: bool = False) -> None:
        seccomp_notif_id_valid(listener, 0)
        self._given: weakref.WeakSet[Pending] = weakref.WeakSet()
        # Not the reader's lock: one thread waits for a call while others answer. Reentrant, because dropping
        # a notification answers it, wherever that happens.
        self._answering = threading.RLock()
        super().__init__(listener, nonblock=nonblock)

    def _read(self) -> list[Notification]:
        ready = self._ready()
        if not ready & select.POLLIN:
            if ready & (select.POLLHUP | select.POLLERR):
                raise EOFError("no process has the filter of this notifier any more")
            return []
        while True:
            try:
                notif = seccomp_notif_recv(self._fd)
            except InterruptedError:
                continue
            except FileNotFoundError:  # killed or interrupted between poll and receive
                return []
            made = Notification(self, notif)
            self._given.add(made._pending)
            return [made]

    def pending(self) -> int:
        """Return the size of one record in bytes when a call waits, else 0.

        Raises:
            ValueError: The object is closed.
        """
        return _RECORD_SIZE if self._ready() & select.POLLIN else 0

    def __iter__(self) -> Iterator[Notification]:
        """Yield the calls; each is refused when the body of the loop leaves it unanswered."""
        while True:
            try:
                notification = self.read_event()
            except (BlockingIOError, EOFError):
                return
            except ValueError:
                if self._closing:
                    return
                raise
            try:
                yield notification
            finally:
                notification._pending.end()

    def _ready(self) -> int:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return sum(mask for _, mask in poll.poll(0))

    def _send(self, id: int, *, val: int = 0, error: int = 0, flags: int = 0) -> None:
        with self._answering:
            # Closed meanwhile: the kernel has answered.
            while self._fd >= 0:
                try:
                    seccomp_notif_send(self._fd, id, val, error, flags)
                except InterruptedError:
                    continue
                except FileNotFoundError:  # the target does not wait any more
                    return
                return

    def _send_fd(self, pending: Pending, fd: int, number: int, flags: int, *, cloexec: bool) -> None:
        pending.take()
        with self._answering:
            try:
                seccomp_notif_addfd(self.fileno(), pending.id, fd, number, flags, os.O_CLOEXEC * cloexec)
            except FileNotFoundError:  # the target does not wait any more
                return
            except OSError:
                # The kernel takes the answer back with the descriptor.
                pending.answered = False
                pending.finalizer = weakref.finalize(pending, dropped, weakref.ref(self), pending.id)
                raise

    def _take_fd(self) -> int:
        # Held from here on, or those in the cache would be dropped with it, unanswered.
        given = list(self._given)
        fd = super()._take_fd()
        if fd >= 0:
            with self._answering:
                self._refuse(fd, {*given, *self._given})
        return fd

    @staticmethod
    def _refuse(fd: int, given: Iterable[Pending]) -> None:
        for pending in given:
            if pending.answered:
                continue
            pending.answered = True
            pending.finalizer.detach()
            try:
                seccomp_notif_send(fd, pending.id, 0, -errno.EPERM)
            except OSError:  # gone already, or the descriptor is: closing it ends the wait in any case
                continue

    def _forget(self) -> None:
        # Before anything is dropped: this is the parent's listener too, and must not get a word from here.
        fd, self._fd = self._fd, -1
        self._answering = threading.RLock()
        self._finalizer.detach()
        super()._forget()
        os.close(fd)


class Notifier_async(EventLike_async[Notification]):  # noqa: N801  # the object's name, with _async
    """The asyncio twin of `Notifier`.

    Iterating treats the body of the loop as the handler, as there. `get` raises EOFError when no process has
    the filter any more.

    Args:
        listener: The descriptor that seccomp(2) returned for NEW_LISTENER; the object owns it from here on.
        maxsize: As in asyncio.Queue; a notification is taken from the kernel only when somebody waits for it.
    """

    def __init__(self, listener: int, *, maxsize: int = 0) -> None:
        super().__init__(Notifier(listener, nonblock=True), maxsize)

    def __aiter__(self) -> AsyncIterator[Notification]:
        """Yield the calls; each is refused when the body of the loop leaves it unanswered."""
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Notification]:
        while True:
            try:
                notification = await self.get()
            except EOFError:
                return
            except ValueError:
                if self.closed:
                    return
                raise
            try:
                yield notification
            finally:
                notification._pending.end()
