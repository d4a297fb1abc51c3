"""The signals that a supervisor acts on, while it runs in the main thread."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Self

from sandbox.events import Signalfd
from sandbox.supervise.output import read_some

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """SIGTERM, SIGINT and SIGHUP by signalfd; in another than the main thread none, for they are not its business.

    A signalfd gets what every thread has blocked. A thread that was there before may have not, and then the signal
    goes to it: Python's own handler catches that one, and writes to a pipe.

    What the caller ignores stays ignored, as nohup and background jobs want it.

    Args:
        watch: Calls a function when a descriptor is readable.
        unwatch: Does so no more.
        came: Told the number of each signal.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        came: Callable[[int], None],
    ) -> None:
        self._watch, self._unwatch, self._came = watch, unwatch, came
        self._before: dict[int, Any] = {}
        self._signalfd: Signalfd | None = None
        self._pipe: tuple[int, int] | None = None
        self._caught: list[int] = []

    def __enter__(self) -> Self:
        """Take them over."""
        if threading.current_thread() is not threading.main_thread():
            return self
        numbers = [number for number in HANDLED if signal.getsignal(number) is not signal.SIG_IGN]
        for number in numbers:
            self._before[number] = signal.signal(number, self._catch)
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pipe = read_end, write_end
        old = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        if old != -1:  # an event loop's: it wakes up by it
            signal.set_wakeup_fd(old)
        self._watch(read_end, self._woken)
        self._signalfd = Signalfd(numbers, nonblock=True)
        self._watch(self._signalfd.fileno(), self._readable)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        if self._signalfd is not None:
            self._unwatch(self._signalfd.fileno())
            self._signalfd.close()
            self._signalfd = None
        if self._pipe is not None:
            self._unwatch(self._pipe[0])
            old = signal.set_wakeup_fd(-1)
            if old != self._pipe[1]:
                signal.set_wakeup_fd(old)
            for fd in self._pipe:
                os.close(fd)
            self._pipe = None
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _catch(self, number: int, _: FrameType | None) -> None:
        self._came(number)

    def _woken(self) -> None:
        assert self._pipe is not None
        read_some(self._pipe[0])

    def _readable(self) -> None:
        assert self._signalfd is not None
        for event in self._signalfd.read_events():
            self._came(event.signo)
