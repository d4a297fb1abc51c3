"""What the tests of the supervisor share."""

import os
import select
import shlex
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from sandbox.supervise import ServiceEvent, Supervisor


def until(supervisor: Supervisor, kind: type, service: str | None = None, count: int = 1) -> Any:
    """Drive it until a kind of event has come so often; return the last of them."""
    while True:
        for event in step(supervisor):
            if isinstance(event, kind) and service in {None, event.service}:
                count -= 1
                if count == 0:
                    return event


_left: WeakKeyDictionary[Supervisor, list[ServiceEvent]] = WeakKeyDictionary()


def step(supervisor: Supervisor) -> Iterator[ServiceEvent]:
    """Yield the events of one step; what a caller does not take, the next one gets."""
    left = _left.setdefault(supervisor, [])
    if not left:
        assert not supervisor.finished, f"all has ended: {supervisor.status()}"
        left += supervisor.step(None)
    while left:
        yield left.pop(0)


def drive(supervisor: Supervisor, done: Callable[[], bool]) -> list[ServiceEvent]:
    """Drive it until something holds; return what happened."""
    events: list[ServiceEvent] = []
    while not done():
        events += supervisor.step(0.02)
    return events


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def python(text: str, *args: str) -> list[str]:
    """A script for the system's own interpreter, which every sandbox can see."""
    return ["/usr/bin/python3", "-I", "-c", text, *args]


def alive(pid: int) -> bool:
    """Say whether a process lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b") ")[2][:1] not in {b"Z", b"X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pidfds: "list[int]", seconds: float) -> bool:
    """Wait for the end of processes of others; False when one outlasts it."""
    for pidfd in pidfds:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return False
    return True


def quoted(path: "str | os.PathLike[str]") -> str:
    return shlex.quote(os.fspath(path))


class Recorder:
    """An `output=` that keeps what it gets."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []

    def __call__(self, service: str, line: bytes) -> None:
        self.lines.append((service, line))

    def text(self, service: str | None = None) -> bytes:
        return b"".join(line for name, line in self.lines if service in {None, name})
