"""What a running command uses, and the control group that counts and stops it."""

import errno
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandbox.errors import UnsupportedError
from sandbox.result import Enforced, Reason, Usage
from sandbox.runner import Runner

if TYPE_CHECKING:
    from sandbox.cgroups.group import Group


class Accounted(Runner):
    """A command with or without a control group of its own: `usage`, `freeze` and `thaw`."""

    init_pid: int
    _inner_pidfd: int
    enforced: Enforced
    returncode: int | None
    _lock: threading.RLock

    def __init__(self) -> None:
        self._usage = Usage()
        self._reason = Reason.EXITED
        self._detail = ""
        self._cause: Reason | None = None
        self._since = time.monotonic()
        self._group: Group | None = None
        self._oom_before: str | None = None  # what the group said when a further command began

    @property
    def init_pidfd(self) -> int:
        """The pidfd of PID 1 of the sandbox; it stays this object's."""
        raise NotImplementedError

    @property
    def _first(self) -> "Accounted":
        """The first command of the sandbox, whose control group is that of all others in it; itself, if it is that."""
        raise NotImplementedError

    def _look(self) -> int | None:
        """Return the exit code when it has ended, without waiting."""
        raise NotImplementedError

    def _adopt(self, group: "Group") -> None:
        """Take over the control group that it is in: it is asked what was used and why it ended, and then removed."""
        self._group = group
        self.enforced = self._in_group(self.enforced)
        if self.returncode is not None:
            self._settle_group(group, self.returncode)

    def _in_group(self, enforced: Enforced) -> Enforced:
        group = self._first._group
        if group is None:
            return enforced
        return replace(enforced, cgroup=group.path, limits={**enforced.limits, **group.limits()})

    def _settle_group(self, group: "Group", returncode: int) -> None:
        """Take what the group counted; what it knows better than PID 1 is the truth about the end."""
        self._usage = self._counted(group)
        out_of_memory, refusals = group.oom(), group.refusals()
        # The killer takes what is largest. A command that copes with that, and ends well, has not run out.
        if out_of_memory is not None and self._cause is None and returncode:
            self._reason, self._detail = Reason.OOM, f"{self._detail}; {out_of_memory}"
            if returncode == -signal.SIGKILL:
                self._detail = out_of_memory
        elif out_of_memory is not None:
            self._detail += f"; {out_of_memory}"
        if refusals is not None:
            self._detail += f"; {refusals}"
        group.remove()

    def _begin_further(self) -> None:
        """Note what the group of the sandbox says before a further command may run out of memory."""
        group = self._first._group
        self._oom_before = None if group is None else group.oom()

    def _blame_memory(self) -> None:
        """Look whether a further command, which was killed, ran out of the memory of all."""
        first = self._first
        with first._lock:
            if first.returncode is not None:
                said = first._detail if first._reason is Reason.OOM else None
            else:
                said = None if first._group is None else first._group.oom()
        if said is not None and said != self._oom_before:
            self._reason, self._detail = Reason.OOM, said

    def _counted(self, group: "Group") -> Usage:
        counts: dict[str, Any] = group.counts()
        if not self._usage.wall:
            counts["wall"] = time.monotonic() - self._since
        return replace(self._usage, **counts, pressure=group.pressure())

    @property
    def cgroups(self) -> Mapping[str, str]:
        """The directory in which each controller counts it, for `sandbox.events`; empty without a control group."""
        return {} if self._group is None else self._group.paths

    def usage(self) -> Usage:
        """Return what it has used so far; after its end, what it has used.

        Without a control group the processes that run now are asked one by one, and what only a group counts is None.
        """
        if self._look() is not None:
            return self._usage
        if self._group is None:
            from sandbox.tally import tally

            counts: dict[str, Any] = tally(self.init_pid)
            return Usage(wall=time.monotonic() - self._since, **counts)
        with self._lock:  # another thread may note the end meanwhile, and remove the group
            return self._usage if self.returncode is not None else self._counted(self._group)

    def freeze(self) -> None:
        """Stop every process inside, and return when all of them stand; nothing happens when it has ended.

        `kill`, a timeout and the end of the caller end it all the same.

        Raises:
            UnsupportedError: It has no control group that can.
            TimeoutError: A process could not be stopped within 10 seconds; all go on.
        """
        with self._lock:
            if self._look() is None:
                self._freezer("freeze").freeze(self._spared)

    def thaw(self) -> None:
        """Let everything inside go on; nothing happens when it does, or has ended.

        Raises:
            UnsupportedError: It has no control group that can.
        """
        with self._lock:
            if self._look() is None:
                self._freezer("thaw").thaw(self._spared)

    @property
    def _spared(self) -> int | None:
        """PID 1 goes on while all others are frozen; where it is the payload, its watcher is in no group of ours."""
        return None if self._inner_pidfd >= 0 else self.init_pid

    def _freezer(self, what: str) -> "Group":
        group = self._first._group
        if group is None or not group.can_freeze:
            raise UnsupportedError(
                f"{what}()",
                needed="a control group with a freezer: any of version 2, or the freezer of version 1",
                found="a sandbox without a control group" if group is None else "a control group without a freezer",
                fix="a limit that takes a control group makes one, limit(pids=...) for example",
                errno=errno.ENOSYS,
            )
        return group
