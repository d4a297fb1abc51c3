"""`CgroupEvents`: what happens to a control group: populated, frozen, memory short, a fork refused."""

import io
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from sandbox.events.base import EventLike
from sandbox.events.base_async import EventLike_async
from sandbox.primitives._call import in_range

__all__ = ["CgroupEvent", "CgroupEvents", "CgroupEvents_async"]

# The files of which the kernel says that they have changed, and what comes before the names of their lines. They stay
# empty where a controller is not there.
_FILES = {"cgroup.events": "", "memory.events": "memory.", "pids.events": "pids."}
_OOM, _ABOVE = "memory.oom", "memory.high"


@dataclass(frozen=True, slots=True)
class CgroupEvent:
    """A number of a group that has changed.

    Attributes:
        name: "populated", "frozen", "memory.high", "memory.max", "memory.oom", "memory.oom_kill", "pids.max" and what
            else the kernel has in the group's events files.
        value: What it is now: 0 or 1 of a state, how often of all else.
        previous: What it was.
    """

    name: str
    value: int
    previous: int


class CgroupEvents(EventLike[CgroupEvent]):
    """The events of a control group, of either version, whose directory `Process.cgroups` tells.

    Events that come fast are one event: the difference is in its numbers. Of version 2 there are all of them. Version
    1 tells of its memory alone: "memory.oom" (a process waits for memory or is about to be killed), "memory.oom_kill"
    and, with `memory_above`, "memory.high".

    The kernel wakes nobody when the group is removed: the last event is "populated", and 0. A read after that is
    ENODEV.

    Args:
        path: Directory of the group.
        memory_above: Bytes; "memory.high" comes when the group has more. In version 2 this sets memory.high of the
            group: from there on its processes are slowed down, so that whoever watches is faster than they.
        nonblock: `read_event` raises BlockingIOError instead of waiting.

    Raises:
        ValueError: A size below 0.
        OSError: ENOENT (no such group; one of version 1 without memory; or without memory, with `memory_above`), EACCES
            (it belongs to somebody else), EMFILE.

    See cgroups(7). Since Linux 3.16, version 2 since 4.5.
    """

    name: ClassVar[str] = "cgroup"
    _record_size = 1

    def __init__(
        self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, memory_above: int | None = None,
        nonblock: bool = False,
    ) -> None:  # fmt: skip
        self.path = os.fsdecode(path)
        if memory_above is not None:
            in_range(memory_above, 0, 2**63 - 1, "memory_above")
        self._files: dict[str, int] = {}
        self._counters: dict[str, int] = {}
        epoll = select.epoll()
        try:
            group = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._open(group, memory_above)
            finally:
                os.close(group)
            for fd in self._files.values():
                # POLLPRI says that the file has changed since it was read; POLLIN it has always.
                epoll.register(fd, select.EPOLLPRI)
            for fd in self._counters.values():
                epoll.register(fd, select.EPOLLIN)
            self._values = self._look()
            fd = os.dup(epoll.fileno())
        except BaseException:
            self._close_files()
            raise
        finally:
            epoll.close()
        super().__init__(fd, nonblock=nonblock)
        self._descriptors += [*self._files.values(), *self._counters.values()]

    def _open(self, group: int, memory_above: int | None) -> None:
        for name in _FILES:
            try:
                self._files[name] = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
            except FileNotFoundError:  # a controller that this group does not have
                continue
        try:
            memory = os.open("memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
        except FileNotFoundError:
            # Version 1 has some of these files, and wakes nobody for them.
            if "cgroup.events" not in self._files:
                raise
            if memory_above is not None:
                _write(group, "memory.high", str(memory_above))
            return
        self._files["memory.oom_control"] = memory
        self._notify(group, _OOM, memory, "")
        if memory_above is not None:
            usage = os.open("memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
            try:
                self._notify(group, _ABOVE, usage, f" {memory_above}")
            finally:
                os.close(usage)

    def _notify(self, group: int, name: str, fd: int, words: str) -> None:
        """Let version 1 count something in an eventfd."""
        counter = self._counters[name] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        _write(group, "cgroup.event_control", f"{counter} {fd}{words}")

    @property
    def values(self) -> Mapping[str, int]:
        """All numbers, as they were at the last read; those that version 1 only notifies of begin at 0."""
        return dict(self._values)

    def _look(self) -> dict[str, int]:
        """Read all files.

        Raises:
            OSError: ENODEV (the group was removed).
        """
        found = dict.fromkeys(self._counters, 0)
        for name, fd in self._files.items():
            prefix = _FILES.get(name, "memory.")
            for line in os.pread(fd, 4096, 0).decode().splitlines():
                key, _, value = line.partition(" ")
                if name in _FILES or key == "oom_kill":
                    found[prefix + key] = int(value)
        return found

    def _read(self) -> list[CgroupEvent]:
        before, now = self._values, self._look()
        for name, fd in self._counters.items():
            now[name] = before.get(name, 0) + _counted(fd)
        self._values = now
        changed = ((name, value, before.get(name, 0)) for name, value in now.items())
        return [CgroupEvent(*one) for one in changed if one[1] != one[2]]

    def _close_files(self) -> None:
        for fd in (*self._files.values(), *self._counters.values()):
            os.close(fd)
        self._files, self._counters = {}, {}

    def _take_fd(self) -> int:
        fd = super()._take_fd()
        if fd >= 0:
            self._close_files()
        return fd

    def detach(self) -> NoReturn:
        """Refuse: the descriptor is nothing without the object.

        Raises:
            io.UnsupportedOperation: Always.
        """
        raise io.UnsupportedOperation(f"{self.name} reads other descriptors than the one to wait on")


class CgroupEvents_async(EventLike_async[CgroupEvent]):  # noqa: N801  # named as the other twins are
    """The events of a control group, for asyncio.

    Args:
        path: Directory of the group.
        memory_above: As for `CgroupEvents`.
        maxsize: How many events are taken before the rest is left to the kernel; 0 means no limit.

    Raises:
        ValueError: A size below 0.
        OSError: As for `CgroupEvents`.
    """

    _source: CgroupEvents

    def __init__(
        self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, memory_above: int | None = None,
        maxsize: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(CgroupEvents(path, memory_above=memory_above, nonblock=True), maxsize)

    @property
    def path(self) -> str:
        """Directory of the group."""
        return self._source.path

    @property
    def values(self) -> Mapping[str, int]:
        """All numbers, as they were at the last read."""
        return self._source.values


def _write(group: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=group)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = name
        raise
    finally:
        os.close(fd)


def _counted(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
