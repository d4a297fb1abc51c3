"""`Pressure`: how long processes stall for want of CPU, memory or disks, told when it becomes too long."""

import errno
import io
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn, TypeAlias

from sandbox.events.base import EventLike
from sandbox.events.base_async import EventLike_async
from sandbox.primitives._call import os_error

__all__ = ["Pressure", "PressureEvent", "Pressure_async"]

Resource: TypeAlias = Literal["cpu", "memory", "io"]


@dataclass(frozen=True, slots=True)
class PressureEvent:
    """A stall that was longer than asked for, with the state at that moment.

    Attributes:
        resource: "cpu", "memory" or "io".
        avg10: Share of the last 10 seconds that was lost, in percent.
        avg60: Of the last minute.
        avg300: Of the last 5 minutes.
        total: Seconds lost so far.
    """

    resource: Resource
    avg10: float
    avg60: float
    avg300: float
    total: float


class Pressure(EventLike[PressureEvent]):
    """A trigger on pressure stall information (PSI) of a control group of version 2, or of the machine.

    At most one event comes in each window.

    Args:
        resource: What is short: "cpu", "memory" or "io".
        path: Directory of the group; `Process.cgroups["pressure"]`. None: the whole machine.
        stall: Seconds lost within a window that are too many.
        window: Seconds, 0.5 to 10; for callers without CAP_SYS_RESOURCE a multiple of 2.
        full: Count only time in which nothing at all went on, instead of time in which something stalled.
        nonblock: `read_event` raises BlockingIOError instead of waiting.

    Raises:
        ValueError: No such resource, or a time out of its range.
        OSError: EINVAL (a window that this caller may not have), EACCES or EPERM (somebody else's group; or before
            Linux 6.6 a caller without CAP_SYS_RESOURCE), ENOENT (no such group, or a kernel without PSI), EOPNOTSUPP
            (PSI is off: boot with psi=1), EMFILE.

    See Documentation/accounting/psi.rst. Since Linux 5.2.
    """

    name: ClassVar[str] = "pressure"
    _record_size = 1

    def __init__(
        self,
        resource: Resource,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        *,
        stall: float = 0.1,
        window: float = 2.0,
        full: bool = False,
        nonblock: bool = False,
    ) -> None:
        if resource not in {"cpu", "memory", "io"}:
            raise ValueError(f"resource must be cpu, memory or io, got {resource!r}")
        if not 0.5 <= window <= 10:
            raise ValueError(f"window must be between 0.5 and 10 seconds, got {window!r}")
        if not 0 < stall <= window:
            raise ValueError(f"stall must be more than 0 and at most the window of {window} seconds, got {stall!r}")
        self.resource: Resource = resource
        self.full = full
        file = f"/proc/pressure/{resource}" if path is None else os.path.join(os.fsdecode(path), f"{resource}.pressure")
        # The NUL counts: the kernel puts one over the last byte that it gets for the machine.
        words = f"{'full' if full else 'some'} {round(stall * 1e6)} {round(window * 1e6)}\0".encode()
        # A trigger tells of each event once, to the first who polls it. Whoever waits for this object (a select of the
        # user's, a loop, our own sleep) polls the first; whether something has happened is read from the second.
        self._armed: list[int] = []
        epoll = select.epoll()
        try:
            for _ in range(2):
                self._armed.append(_trigger(file, words))
            epoll.register(self._armed[0], select.EPOLLPRI)
            fd = os.dup(epoll.fileno())
        except BaseException:
            self._disarm()
            raise
        finally:
            epoll.close()
        super().__init__(fd, nonblock=nonblock)
        self._descriptors += self._armed

    def _read(self) -> list[PressureEvent]:
        poll = select.poll()
        for fd in self._armed:  # the first, too: it has nothing more to tell
            poll.register(fd, select.POLLPRI)
        found = dict(poll.poll(0)).get(self._armed[1], 0)
        if found & select.POLLERR:
            raise os_error(errno.ENODEV)  # the group was removed
        if not found & select.POLLPRI:
            return []
        return [self.now()]

    def now(self) -> PressureEvent:
        """Return the present state, whether it is too much or not.

        Raises:
            ValueError: The object is closed.
            OSError: ENODEV (the group was removed).
        """
        self.fileno()
        return PressureEvent(self.resource, **_state(self._armed[1], "full" if self.full else "some"))

    def _disarm(self) -> None:
        for fd in self._armed:
            os.close(fd)
        self._armed = []

    def _take_fd(self) -> int:
        fd = super()._take_fd()
        if fd >= 0:
            self._disarm()
        return fd

    def detach(self) -> NoReturn:
        """Refuse: the descriptor is nothing without the object.

        Raises:
            io.UnsupportedOperation: Always.
        """
        raise io.UnsupportedOperation(f"{self.name} reads other descriptors than the one to wait on")


class Pressure_async(EventLike_async[PressureEvent]):  # noqa: N801  # named as the other twins are
    """A trigger on pressure stall information for asyncio.

    Args:
        resource: What is short: "cpu", "memory" or "io".
        path: Directory of the group; None: the whole machine.
        stall: Seconds lost within a window that are too many.
        window: Seconds, 0.5 to 10; for callers without CAP_SYS_RESOURCE a multiple of 2.
        full: Count only time in which nothing at all went on.
        maxsize: How many events are taken before the rest is left to the kernel; 0 means no limit.

    Raises:
        ValueError: As for `Pressure`.
        OSError: As for `Pressure`.
    """

    _source: Pressure

    def __init__(
        self,
        resource: Resource,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        *,
        stall: float = 0.1,
        window: float = 2.0,
        full: bool = False,
        maxsize: int = 0,
    ) -> None:
        super().__init__(Pressure(resource, path, stall=stall, window=window, full=full, nonblock=True), maxsize)

    def now(self) -> PressureEvent:
        """Return the present state, whether it is too much or not."""
        return self._source.now()


def _trigger(file: str, words: bytes) -> int:
    fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, words)
    except OSError as error:
        os.close(fd)
        error.filename = file
        raise
    return fd


def _state(fd: int, kind: str) -> Mapping[str, float]:
    for line in os.pread(fd, 512, 0).decode().splitlines():
        name, *words = line.split()
        if name == kind:
            found = {key: float(value) for key, _, value in (word.partition("=") for word in words)}
            return {**found, "total": found["total"] / 1e6}
    raise os_error(errno.EINVAL)  # the machine has no "full" for cpu before Linux 5.13
