"""A control group of one sandbox: what it counts, and how it is frozen, killed and given back."""

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sandbox.cgroups import files
from sandbox.cgroups.directories import INNER, Part, clear, drop_made, remove_directories

if TYPE_CHECKING:
    from sandbox.cgroups.janitor import Janitor

LET_GO: Final = 0o1755  # mode of one that outlives its caller; csrc/init/janitor.c looks for it
_UNLIMITED: Final = 1 << 62  # version 1 has a number for that, near 2**63
_PATIENCE: Final = 10.0  # seconds until freezing, or the end of what was killed, counts as failed


class Group:
    """The control group of one sandbox.

    Attributes:
        name: Of its directories.
        parts: One for each hierarchy; version 2 first.
        frozen: All in it stand, or are about to.
    """

    def __init__(self, name: str, parts: list[Part], janitor: "Janitor | None" = None) -> None:
        self.name = name
        self.parts = parts
        self._janitor = janitor
        self._owner = os.getpid()
        self._open: list[int] = []
        self.frozen = False

    @property
    def path(self) -> str:
        """Its directory in the first hierarchy."""
        return self.parts[0].path

    # ── what a launch asks ──

    def slots(self, *, counts: bool) -> list[int]:
        """Return the descriptors for the plan: the inner groups, the file of CPU time, version 1's freezer.state.

        They stay this object's.

        Args:
            counts: The plan has a slot for the file of CPU time.
        """
        part = self.part("cpuacct")
        if counts and part is not None:
            name = "cpu.stat" if part.place.version == 2 else "cpuacct.usage"
            self._open.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=part.fd))
        part = self.part("freezer")
        if part is not None and part.place.version == 1:
            self._open.append(os.open(f"{INNER}/freezer.state", os.O_WRONLY | os.O_CLOEXEC, dir_fd=part.fd))
        return [*(part.inner for part in self.parts), *self._open]

    def close_inner(self) -> None:
        """Close what only the launch needs."""
        opened, self._open = self._open, []
        for fd in opened:
            os.close(fd)
        self.parts = [self._closed_inner(part) for part in self.parts]

    @staticmethod
    def _closed_inner(part: Part) -> Part:
        if part.inner >= 0:
            os.close(part.inner)
        return part._replace(inner=-1)

    def part(self, controller: str) -> Part | None:
        """Return where a controller is counted; version 2 always freezes, counts CPU time and pressure."""
        for part in self.parts:
            if controller in part.place.controllers or (
                part.place.version == 2 and controller in {"freezer", "cpuacct", "pressure"}
            ):
                return part
        return None

    @property
    def paths(self) -> dict[str, str]:
        """The directory that tells of each controller, by the names of version 2."""
        # Version 1 counts in the inner one, and that is what is frozen, for PID 1 is not.
        names = ("memory", "pids", "cpu", "cpuset", "io", "freezer", "pressure")
        return {
            name: part.path if part.place.version == 2 and name != "freezer" else os.path.join(part.path, INNER)
            for name in names
            if (part := self.part(name)) is not None
        }

    def limits(self) -> dict[str, float]:
        """Return the limits in force, read back, by the words of `Sandbox.limit`."""
        found: dict[str, float] = {}
        part = self.part("memory")
        if part is not None:
            name = "memory.max" if part.place.version == 2 else "memory.limit_in_bytes"
            memory = files.number(part.fd, name)
            if memory is not None and memory < _UNLIMITED:
                found["memory"] = memory
                swap = files.number(part.fd, "memory.swap.max")
                both = files.number(part.fd, "memory.memsw.limit_in_bytes")
                if swap is not None or (both is not None and both < _UNLIMITED):
                    found["swap"] = swap if swap is not None else (both or 0) - memory
        part = self.part("pids")
        if part is not None and (pids := files.number(part.fd, "pids.max")) is not None:
            found["pids"] = pids - 1
        part = self.part("cpu")
        if part is not None:
            if part.place.version == 2:
                words = (files.read(part.fd, "cpu.max") or "").split()
            else:
                words = [(files.read(part.fd, f"cpu.cfs_{word}_us") or "").strip() for word in ("quota", "period")]
            if len(words) == 2 and words[0].isdigit():
                found["cpus"] = int(words[0]) / int(words[1])
        return found

    # ── what it counts ──

    def cpu_seconds(self) -> tuple[float, float] | None:
        """Return the CPU seconds of the whole tree: in user mode, in the kernel."""
        part = self.part("cpuacct")
        if part is None:
            return None
        if part.place.version == 2:
            found = files.flat(part.fd, "cpu.stat")
            return found.get("user_usec", 0) / 1e6, found.get("system_usec", 0) / 1e6
        total, user, system = (files.number(part.fd, f"cpuacct.usage{kind}") for kind in ("", "_user", "_sys"))
        if total is None or user is None or system is None:
            return None
        # The parts are counted by other means, without what a hypervisor took; version 2 scales them like this.
        share = user / (user + system) if user + system else 1.0
        return total * share / 1e9, total * (1 - share) / 1e9

    def counts(self) -> dict[str, float | int]:
        """Return what the group counted, by the names of `Usage`; what nobody counts is left out."""
        found: dict[str, float | int] = {}
        seconds = self.cpu_seconds()
        if seconds is not None:
            found.update(user=seconds[0], system=seconds[1], cpu_time=sum(seconds))
        for controller, field, names in (
            ("memory", "memory_peak", ("memory.peak", "memory.max_usage_in_bytes")),
            ("pids", "pids_peak", ("pids.peak", "pids.peak")),
        ):
            part = self.part(controller)
            if part is not None:
                value = files.number(part.fd, names[part.place.version == 1])
                if value is not None:
                    found[field] = value
        if "pids_peak" in found:
            found["pids_peak"] = max(0, int(found["pids_peak"]) - 1)  # PID 1 is not the user's
        part = self.part("cpu")
        if part is not None:
            stat = files.flat(part.fd, "cpu.stat")
            if part.place.version == 2:
                found["throttled"] = stat.get("throttled_usec", 0) / 1e6
            else:
                found["throttled"] = stat.get("throttled_time", 0) / 1e9
        found.update(self._io())
        return found

    def _io(self) -> Iterator[tuple[str, int]]:
        part = self.part("io")
        if part is None:
            return
        if part.place.version == 2:
            words = (files.read(part.fd, "io.stat") or "").split()
            for field, key in (("read_bytes", "rbytes="), ("written_bytes", "wbytes=")):
                yield field, sum(int(word[len(key) :]) for word in words if word.startswith(key))
        else:
            text = files.read(part.fd, "blkio.throttle.io_service_bytes_recursive") or ""
            rows = [line.split() for line in text.splitlines()]
            for field, key in (("read_bytes", "Read"), ("written_bytes", "Write")):
                yield field, sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == key)

    def pressure(self) -> dict[str, float] | None:
        """Return for how many seconds some process stalled for want of cpu, memory or io; None: nobody counted."""
        part = self.part("pressure")
        if part is None:
            return None
        found = {}
        for resource in ("cpu", "memory", "io"):
            for line in (files.read(part.fd, f"{resource}.pressure") or "").splitlines():
                if line.startswith("some "):
                    found[resource] = int(line.rpartition("total=")[2]) / 1e6
        return found or None

    def oom(self) -> str | None:
        """Say with its evidence that the kernel's OOM killer ended something of the tree; None when it did not."""
        part = self.part("memory")
        if part is None:
            return None
        if part.place.version == 2:
            events, source = files.flat(part.fd, "memory.events"), "memory.events"
            limit, peak = files.number(part.fd, "memory.max"), files.number(part.fd, "memory.peak")
        else:
            # Version 1 counts where the victim is.
            events, source = files.flat(part.fd, f"{INNER}/memory.oom_control"), "memory.oom_control"
            limit = files.number(part.fd, "memory.limit_in_bytes")
            peak = files.number(part.fd, "memory.max_usage_in_bytes")
        kills = events.get("oom_kill", 0)
        if not kills:
            return None
        said = f"out of memory: {source} of its control group has oom_kill {kills}"
        if limit is not None:
            said += f"; limit {limit} bytes"
        return said + (f", peak {peak} bytes" if peak is not None else "")

    def full(self) -> str | None:
        """Say with its evidence that the limit on memory was met; None when it was not.

        PID 1 shares its memory with stage 1 at first. Killed then, it is counted where stage 1 is, which is not here.
        """
        part = self.part("memory")
        if part is None:
            return None
        if part.place.version == 2:
            met = files.flat(part.fd, "memory.events").get("max", 0)
            said = f"memory.events of its control group has max {met}"
        else:
            peak = files.number(part.fd, "memory.max_usage_in_bytes") or 0
            met = peak >= (files.number(part.fd, "memory.limit_in_bytes") or peak + 1)
            said = f"memory.max_usage_in_bytes of its control group is {peak}, at the limit"
        return f"its memory was full: {said}" if met else None

    def refusals(self) -> str | None:
        """Say how often the limit on processes was met; None when it was not."""
        part = self.part("pids")
        if part is None:
            return None
        # Version 1 counts where the fork was tried, version 2 where the limit is or, since Linux 6.11, both.
        count = max(files.flat(part.fd, name).get("max", 0) for name in ("pids.events", f"{INNER}/pids.events"))
        return f"pids.max refused {count} times" if count else None

    # ── what is done to it ──

    def freeze(self, init_pid: int | None) -> None:
        """Stop every process in it but PID 1, and return when all of them stand.

        PID 1 goes on: it has to notice the caller's end, and to kill.

        Args:
            init_pid: PID 1, None where it is as the others.

        Raises:
            TimeoutError: One did not within 10 seconds, for it is deep in the kernel; all go on.
        """
        part = self.part("freezer")
        assert part is not None
        deadline = time.monotonic() + _PATIENCE
        self.frozen = True
        if init_pid is not None:
            files.write(part.fd, "cgroup.procs", str(init_pid))
        if part.place.version == 2:
            files.write(part.fd, f"{INNER}/cgroup.freeze", "1")
            stands = self._until_frozen(part, deadline)
        else:
            stands = _until(lambda: self._frozen_v1(part), deadline)
        if not stands:
            self.thaw(init_pid)
            raise TimeoutError(errno.ETIMEDOUT, "a process of the sandbox could not be frozen within 10 seconds")

    def thaw(self, init_pid: int | None) -> None:
        """Let everything go on; nothing happens when it does."""
        part = self.part("freezer")
        assert part is not None
        # What PID 1 starts from now on is in the group again.
        if init_pid is not None:
            files.write(part.fd, f"{INNER}/cgroup.procs", str(init_pid))
        if part.place.version == 2:
            files.write(part.fd, f"{INNER}/cgroup.freeze", "0")
        else:
            files.write(part.fd, f"{INNER}/freezer.state", "THAWED")
        self.frozen = False

    @staticmethod
    def _frozen_v1(part: Part) -> bool:
        """Tell all to stand, and look whether they do: nobody can be waited for.

        Told once, a process that was on its way to sleep where no signal wakes it, as after vfork(2), never does.
        """
        name = f"{INNER}/freezer.state"
        files.write(part.fd, name, "FROZEN")
        return (files.read(part.fd, name) or "FROZEN").strip() == "FROZEN"

    @property
    def can_freeze(self) -> bool:
        """Whether a hierarchy that freezes is among its own."""
        return self.part("freezer") is not None

    def _pids(self) -> set[int]:
        part = self.parts[0]
        texts = [files.read(part.fd, name) or "" for name in ("cgroup.procs", f"{INNER}/cgroup.procs")]
        return {int(word) for text in texts for word in text.split()}

    def kill(self) -> None:
        """Kill every process in it."""
        part = self.parts[0]
        if part.place.version == 2:
            try:
                files.write(part.fd, "cgroup.kill", "1")
            except FileNotFoundError:  # before Linux 5.14
                pass
            else:
                return
        for pid in self._pids():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # The number may have become somebody else's before the pidfd was made, not after.
                if pid in self._pids():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)

    def remove(self) -> bool:
        """Remove it with whatever is left in it; False when something could not be ended in 10 seconds.

        What is left behind is removed when this process has ended.
        """
        if self._owner != os.getpid():
            self._close()
            return True
        if all(remove_directories(part.path, part.fd) for part in self.parts):
            return self._closed()
        # Whoever shares the caller's pid namespace may outlive PID 1, and the dead may be on their way out.
        deadline = time.monotonic() + _PATIENCE
        gone = _until(self._removed, deadline)
        self._close()
        return gone

    def _removed(self) -> bool:
        for part in self.parts:
            clear(part.fd)
        left = [part for part in self.parts if not remove_directories(part.path, part.fd)]
        if left:
            self.kill()
        return not left

    def _closed(self) -> bool:
        self._close()
        return True

    def _close(self, *, let_go: bool = False) -> None:
        self.close_inner()
        parts, self.parts = self.parts, []
        for part in parts:
            os.close(part.fd)
            drop_made(part.place)
        janitor, self._janitor = self._janitor, None
        if janitor is not None:
            janitor.leave(let_go=let_go)

    def mark(self) -> None:
        """Mark it as one that is to outlive this process."""
        for part in self.parts:
            os.fchmod(part.fd, LET_GO)

    def give_up(self) -> None:
        """Let it outlive this object: it is removed when it is empty."""
        self._close(let_go=True)

    @staticmethod
    def _until_frozen(part: Part, deadline: float) -> bool:
        """Wait for the word of cgroup.events; the kernel wakes who polls it."""
        fd = os.open(f"{INNER}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=part.fd)
        try:
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            while b"frozen 1\n" not in os.pread(fd, 4096, 0):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poller.poll(left * 1000)
            return True
        finally:
            os.close(fd)


def _until(done: Callable[[], bool], deadline: float) -> bool:
    """Ask again and again, ever more seldom, where the kernel has no way to wait."""
    pause = 0.0005
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return True
