"""Processes whose PID 1 was killed from outside: they come to this process, and end here."""

import os
import signal
from collections.abc import Callable
from typing import Protocol

from sandbox.events import Pidfd
from sandbox.supervise.protocol import stat_fields


class _Loop(Protocol):
    def _watch(self, fd: int, ready: Callable[[], None]) -> None: ...
    def _unwatch(self, fd: int) -> None: ...


class Orphans:
    """Kills and reaps what belonged to a lost service, and nothing else.

    This process may have children of its own, whom nobody but it may wait for. What belonged to a service has its
    session, or, where it made one itself, the service's mark in its environment. One that did, and dies in the moment
    before it is looked at, cannot be told from the caller's own, and stays a zombie until this process ends.
    """

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._lost: list[tuple[int, bytes]] = []
        self._dying: dict[int, Pidfd] = {}

    def __bool__(self) -> bool:
        return bool(self._dying)

    def sweep(self, session: int, marker: bytes) -> None:
        """Kill what a lost service left.

        Args:
            session: Of its main process; 0: unknown.
            marker: The variable in its environment.
        """
        self._lost.append((session, marker))
        self._look()

    def _look(self) -> None:
        for pid in _children():
            if pid not in self._dying and any(_belongs(pid, *one) for one in self._lost):
                self._end(pid)
        if not self._dying:
            self._lost.clear()

    def _end(self, pid: int) -> None:
        try:
            pidfd = Pidfd(pid, nonblock=True)
        except ProcessLookupError:  # SIGCHLD is ignored, and it is gone
            return
        try:
            pidfd.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass  # a zombie, to be reaped as the others are
        except PermissionError:
            pidfd.close()  # it has become somebody else
            return
        self._dying[pid] = pidfd
        self._loop._watch(pidfd.fileno(), lambda: self._ended(pid))

    def _ended(self, pid: int) -> None:
        pidfd = self._dying[pid]
        if pidfd.read_events():  # reaps it
            self._loop._unwatch(pidfd.fileno())
            del self._dying[pid]
            pidfd.close()
            self._look()  # its children are ours now

    def close(self) -> None:
        """Wait for those that are being killed, and forget them."""
        while self._dying:
            pid, pidfd = next(iter(self._dying.items()))
            pidfd.read_event()
            self._ended(pid)


def _children() -> set[int]:
    """Return the pids of all children of this process."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as stream:
                found.update(map(int, stream.read().split()))
        except FileNotFoundError:  # the thread has ended
            continue
    return found


def _belongs(pid: int, session: int, marker: bytes) -> bool:
    fields = stat_fields(pid)
    if fields is None:
        return False
    if session and int(fields[3]) == session:
        return True
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            return marker in stream.read().split(b"\0")
    except OSError:  # it is gone, or is somebody else's by now
        return False
