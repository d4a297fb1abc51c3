"""`Pidfd`: a process by descriptor; its one event is the exit."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from sandbox.events.base import EventLike
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives.pidfd import (
    P_PIDFD,
    PIDFD_NONBLOCK,
    PIDFD_THREAD,
    WEXITED,
    WNOHANG,
    WNOWAIT,
    PidfdFlags,
    pidfd_get_info,
    pidfd_getfd,
    pidfd_open,
    pidfd_send_signal,
    waitid,
)

__all__ = [
    "PIDFD_NONBLOCK",
    "PIDFD_THREAD",
    "Pidfd",
    "PidfdEvent",
    "PidfdFlags",
    "Pidfd_async",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "waitid",
]


@dataclass(frozen=True, slots=True)
class PidfdEvent:
    """The end of a process.

    Attributes:
        pid: The process, as it was opened.
        returncode: Exit status, or minus the signal that killed it. None where nobody can say: it is not the
            caller's child, and its parent has not waited for it yet or the kernel is older than 6.15.
    """

    pid: int
    returncode: int | None


class Pidfd(EventLike[PidfdEvent]):
    """A process that cannot be mistaken for a later one with the same pid.

    The exit is a state and stays: each read returns it again, and iterating ends after it. Reading the exit
    of the caller's own child reaps it, as waitpid does.

    Args:
        pid: The process, 1 or more.
        nonblock: `read_event` raises BlockingIOError instead of waiting.
        thread: `pid` is a thread's id, and its end is the event. Since Linux 6.9.
        reap: False leaves a child as it is for who waits for it otherwise, as `subprocess.Popen` does.

    Raises:
        ValueError: A pid out of range.
        OSError: ESRCH (no such process), EINVAL or ENOENT (a thread without `thread`; `thread` with an older
            kernel), EMFILE or ENFILE (no descriptor left).

    See pidfd_open(2). Since Linux 5.4.
    """

    name: ClassVar[str] = "pidfd"
    _record_size = 1
    _prefetch = False  # readable for ever once the process has ended

    def __init__(self, pid: int, *, nonblock: bool = False, thread: bool = False, reap: bool = True) -> None:
        super().__init__(pidfd_open(pid, PIDFD_NONBLOCK | (PIDFD_THREAD if thread else 0)), nonblock=nonblock)
        self.pid = pid
        self._options = WEXITED | WNOHANG | (0 if reap else WNOWAIT)
        self._exit: PidfdEvent | None = None

    def _read(self) -> list[PidfdEvent]:
        if self._exit is None:
            # For somebody else's child waitid says ECHILD whether it runs or not: only poll knows.
            if not self._poll(self._fd, 0):
                return []
            self._exit = PidfdEvent(self.pid, self._returncode())
        return [self._exit]

    def _returncode(self) -> int | None:
        try:
            waited = waitid(P_PIDFD, self._fd, self._options)
        except ChildProcessError:
            waited = None
        if waited is not None:
            return waited.status if waited.code == os.CLD_EXITED else -waited.status
        # Not a child, reaped by somebody else, or a thread: the kernel keeps the status with the pidfd.
        try:
            status = pidfd_get_info(self._fd).exit_code
        except OSError:  # ENOTTY or ESRCH: a kernel that does not
            return None
        return None if status is None else os.waitstatus_to_exitcode(status)

    def __iter__(self) -> Iterator[PidfdEvent]:
        """Yield the exit, and end."""
        for event in super().__iter__():
            yield event
            return

    def send_signal(self, signal: int, value: int | None = None) -> None:
        """Send a signal.

        Args:
            signal: 1 to 64, or 0 to check only.
            value: What travels with it, -2**31 to 2**31 - 1; None for a signal as kill(2) sends it.

        Raises:
            ValueError: A number out of its range; or the object is closed.
            OSError: ESRCH (it has ended), EPERM, EAGAIN (too many signals queued).
        """
        pidfd_send_signal(self.fileno(), signal, value)

    def getfd(self, fd: int) -> int:
        """Copy a descriptor of the process and return it, which the caller closes and which is close-on-exec.

        Args:
            fd: Its number there.

        Raises:
            ValueError: A number out of its range; or the object is closed.
            OSError: EPERM (the caller may not ptrace the process), EBADF (it has no such descriptor), ESRCH
                (it has ended), EMFILE.
        """
        return pidfd_getfd(self.fileno(), fd)

    def info(self) -> Mapping[str, int]:
        """Return what the kernel says about the process: ids and, when it was reaped, `exit_code`.

        Raises:
            ValueError: The object is closed.
            OSError: ENOTTY (a kernel older than 6.13), ESRCH (it has ended and the kernel does not keep
                more).
        """
        found = pidfd_get_info(self.fileno())
        values = {field.name: getattr(found, field.name) for field in fields(found)}
        return {name: int(value) for name, value in values.items() if value is not None}


class Pidfd_async(EventLike_async[PidfdEvent]):  # noqa: N801  # named as the other twins are
    """A process for asyncio: `await get()` returns its exit, to everybody who waits.

    Args:
        pid: The process, 1 or more.
        nonblock: Accepted for the same call as `Pidfd`; a twin never blocks.
        thread: `pid` is a thread's id, and its end is the event.
        reap: False leaves a child as it is for who waits for it otherwise.
        maxsize: As for the other twins; there is one event only.

    Raises:
        ValueError: A pid out of range.
        OSError: As for `Pidfd`.
    """

    _source: Pidfd

    def __init__(
        self,
        pid: int,
        *,
        nonblock: bool = False,  # noqa: ARG002  # for the same call as Pidfd
        thread: bool = False,
        reap: bool = True,
        maxsize: int = 0,
    ) -> None:
        super().__init__(Pidfd(pid, nonblock=True, thread=thread, reap=reap), maxsize)

    @property
    def pid(self) -> int:
        """The process, as it was opened."""
        return self._source.pid

    def __aiter__(self) -> AsyncIterator[PidfdEvent]:
        """Iterate over the one event, the exit."""
        return self._once()

    async def _once(self) -> AsyncIterator[PidfdEvent]:
        try:
            event = await self.get()
        except ValueError:
            if self.closed:
                return
            raise
        yield event

    send_signal = of_source(Pidfd.send_signal)
    getfd = of_source(Pidfd.getfd)
    info = of_source(Pidfd.info)
