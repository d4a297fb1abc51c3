"""What waits for a command on behalf of the person at the keyboard: until its end, a signal or a timeout."""

import os
import select
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from sandbox.denials import Denials
    from sandbox.session import Session

# Those of env(1), timeout(1) and the shells.
FAILED: Final = 125
TIMED_OUT: Final = 124

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE: Final = 5.0  # seconds that a command has to end after a signal


class Attended(Protocol):
    """What is waited for: a `Process`, or one that somebody else's command holds."""

    @property
    def denials(self) -> "Denials | None":
        """What its filter refuses."""

    def fileno(self) -> int:
        """Return what is readable when it has ended."""

    def _answer(self) -> bool:
        """Refuse a call that waits in `denials`; False when none can come any more."""

    def send_signal(self, signal: int, /) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """End it."""


class Source(Protocol):
    """Where signals come from: this process's own, or another one that passes them on."""

    def fileno(self) -> int:
        """Return what is readable when a signal came."""

    def take(self) -> bytes:
        """Return the signals that came."""


def wait(process: Attended, signals: Source, timeout: float | None, session: "Session | None" = None) -> int | None:
    """Wait until the sandbox has ended by itself; else end it, and return the exit status that says so.

    Raises:
        BrokenPipeError: What a session should show, nobody takes.
    """
    poller = select.poll()
    poller.register(process.fileno(), select.POLLIN)
    poller.register(signals.fileno(), select.POLLIN)
    refused = -1 if process.denials is None else process.denials.fileno()
    if refused >= 0:
        poller.register(refused, select.POLLIN)
    deadline = None if timeout is None else time.monotonic() + timeout
    status = TIMED_OUT
    ended = False
    while True:
        if session is not None:
            session.arm(poller)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poller.poll(left))
        if process.fileno() in ready:
            poller.unregister(process.fileno())
            ended = True
        if session is not None:
            session.serve(ready)
        if ended and (session is None or session.done()):
            return None
        if refused in ready:
            if not process._answer():
                poller.unregister(refused)
            continue
        if signals.fileno() in ready:
            ends = [number for number in signals.take() if session is None or not session.signal(number)]
            if ends and status != TIMED_OUT:
                break
            for number in ends[:1]:
                status = 128 + number
                process.send_signal(number)
                # After the end of it all, what is left to be shown may be given up at once.
                deadline = time.monotonic() + (0 if ended else _GRACE)
        elif not ready:
            break
    process.kill()
    return status


class SignalledError(BaseException):
    """A second signal came while the sandbox was being made."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """The signals that end this command: each is noted in a pipe, to be read when there is a command to tell.

    A launch that hangs, on a dead network file system perhaps, is given up at the second one. What the caller ignores
    stays ignored: nohup and background jobs rely on that.
    """

    def __init__(self, *others: int) -> None:
        self.launching = True
        self._others = others
        self._count = 0
        self._before: dict[int, Any] = {}

    def fileno(self) -> int:
        """Return what is readable when a signal came."""
        return self._read_end

    def take(self) -> bytes:
        """Return the signals that came."""
        return os.read(self._read_end, 512)

    def _came(self, number: int, _: FrameType | None) -> None:
        self._count += number not in self._others
        if self.launching and self._count == 2:
            raise SignalledError(number)

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (*SIGNALS, *self._others):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)
