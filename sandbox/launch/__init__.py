"""From a plan to a running process.

Nothing of Python runs between clone and exec: `launch_spawn` (csrc/native/launch.c) clones, the child executes init
at once, and everything after that is said through the control channel. Descriptors that are kept between launches
(init's program, the pidfd of this process, cached trees) are checked before each use, because callers close
descriptors that they do not know, and fork.
"""

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from sandbox.errors import SetupError, is_late
from sandbox.launch.native import ControlChannel, explained, new_stage, own_pidfd, socketpair, spawn
from sandbox.pidfds import readable
from sandbox.plan import TAG_TERMINAL, Command
from sandbox.records import (
    Q_JOINED,
    Q_MAPPED,
    R_ENDED,
    R_FAILED,
    R_FD,
    R_HELD,
    R_INIT,
    R_MAP_IDS,
    R_REFUSED,
    R_STARTED,
    Record,
    request,
)
from sandbox.streams import close_all
from sandbox.template import Template

_PIDFD_SIGNAL_PROCESS_GROUP = 4
# How often a launch without a word is looked at: somebody may have stopped it.
_LOOK: Final = 1.0
# How long who was killed may take to die, where he may hang in the kernel.
_DYING: Final = 1.0


class Setup:
    """One launch under way: takes records until the payload runs or something has failed.

    Not waiting for anything by itself, it serves the blocking launch and the asyncio one alike.
    """

    def __init__(
        self,
        template: Template,
        command: Command,
        *,
        listens: bool = False,
        held: bool = False,
        map_ids: Callable[[int], None] | None = None,
        deadline: float | None = None,
    ) -> None:
        self._template = template
        self._command = command
        self.deadline = deadline
        self.stuck = False  # what was started hangs in the kernel, although it was killed
        # Who is held installs his filter later.
        self._listens = listens and not held
        self._map_ids = map_ids
        self._builds = not template.plan.segments[2]
        # Stage 1 stays and is what there is to wait for; PID 1 is the payload, and not our child.
        stage = template.plan.segments[0]
        self._watched = bool(stage) and stage[-1].call == "stay"
        self.inner_pidfd = -1
        self._stage = new_stage()
        self.control = ControlChannel(-1)
        self.init_pid = self.init_pidfd = -1
        self.identity = b""
        self.started = False
        self.ended: Record | None = None
        self.fds: list[int] = []
        self.terminal = -1

    def begin(self, slots: list[int]) -> None:
        """Start stage 1; whatever happens here or later, abort() ends it."""
        ours, theirs = socketpair()
        self.control.open(ours)
        try:
            slots[0] = theirs
            slots[1] = own_pidfd()
            spawn(self._template.image(self._command), slots, self._stage)
        except OSError as error:
            raise explained(error) from None
        finally:
            os.close(theirs)

    def take(self, record: Record | None) -> bool:
        """Take one record; True when the payload has started (or the plan only built something).

        Raises:
            SetupError: A step failed; nothing is left.
        """
        if record is None:
            if self._builds and self.fds:
                return True
            raise self._died()
        if record.type == R_INIT and record.fds:
            self.init_pid, self.init_pidfd = record.value, record.fds[0]
            if len(record.fds) > 1:
                self.inner_pidfd = record.fds[1]
            if record.id:
                self._join()
        elif record.type in {R_STARTED, R_HELD}:
            self.identity = record.body
            self.started = True
        elif record.type == R_MAP_IDS and self._map_ids is not None:
            # PID 1, which waits: a child that nobody has reaped, so the number is its own.
            self._map_ids(record.value)
            self.control.send(request(Q_MAPPED))
        elif record.type == R_ENDED:
            self.ended = record
        elif record.type == R_FD and record.value == TAG_TERMINAL and record.fds:
            self.terminal = record.fds[0]
        elif record.type == R_FD:
            self.fds += record.fds
            if self._listens:
                self.identity = record.body
        elif record.type in {R_FAILED, R_REFUSED}:
            close_all(record.fds)
            raise self.failed(record)
        return self.started and self.init_pidfd >= 0 and (bool(self.fds) or not self._listens)

    def _join(self) -> None:
        """Move PID 1, our child that has executed nothing, to our own process group: its children will be in it."""
        try:
            os.setpgid(self.init_pid, os.getpgrp())
        except OSError as error:
            raise SetupError(
                error.errno or errno.EPERM,
                call=f"setpgid({self.init_pid}, {os.getpgrp()})",
                origin=".new_session(False)",
                hint="a group of the caller's own session takes a process; a session leader that has left it does not",
            ) from None
        self.control.send(request(Q_JOINED))

    @property
    def question(self) -> int:
        """What is readable when the filter asks, -1 before that can be."""
        return self.fds[0] if self._listens and self.fds and self.init_pidfd >= 0 else -1

    def asked(self) -> bool:
        """Wait for a record or for a question of the filter; True when there is a question and no record.

        Execve itself may be what is asked about: the caller has to answer, or the program is never executed.
        """
        question = self.question
        if question < 0:
            return False
        poller = select.poll()
        poller.register(self.control.fileno(), select.POLLIN)
        poller.register(question, select.POLLIN)
        ready = dict(poller.poll(1000))
        return self.control.fileno() not in ready and bool(ready.get(question, 0) & select.POLLIN)

    def receive(self) -> Record | None:
        """Wait for the next record, no longer than the caller's timeout allows.

        Raises:
            BlockingIOError: There was none for a second.
            SetupError: The time is over.
        """
        if self.deadline is not None and not readable(self.control.fileno(), time.monotonic() + self.patience()):
            self.check_time()
        return self.receive_one(wait=self.deadline is None)

    def receive_one(self, *, wait: bool) -> Record | None:
        """Return the next record, as the channel does.

        Args:
            wait: For a second, if there is none.

        Raises:
            BlockingIOError: There is none.
            SetupError: EMFILE: what came with it had no room, PID 1's pidfd above all.
        """
        try:
            return self.control.receive(wait=wait)
        except BlockingIOError:
            raise
        except OSError as error:
            raise explained(error) from None

    def patience(self) -> float:
        """Return after how many seconds without a word to look what is the matter."""
        return _LOOK if self.deadline is None else max(0.0, min(_LOOK, self.deadline - time.monotonic()))

    def check_time(self) -> None:
        """Give up when the caller's timeout is over.

        Raises:
            SetupError: Of no step, with ETIMEDOUT.
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise SetupError(
                errno.ETIMEDOUT,
                call="set-up",
                origin="launch",
                hint=(
                    "a step of it waits: for a network file system or a FUSE server that does not answer, for who"
                    " stopped it, or for the processor"
                ),
            )

    def stalled(self) -> SetupError | None:
        """Look whether somebody stopped the set-up, after a time without a word."""
        if self._watched and self._stage[0] >= 0 and _has_ended(self._stage[0]):
            return self._died()
        # PID 1 is in the process group of stage 1 until it has introduced itself.
        stopped = self._watched and self.inner_pidfd >= 0 and _is_stopped(self.init_pid)
        for kind, number in (
            (os.P_PGID, self._stage[1]),
            (os.P_PIDFD, self._stage[0]),
            (os.P_PIDFD, self.init_pidfd),
        ):
            if number < 0:
                continue
            try:
                stopped = stopped or os.waitid(kind, number, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                continue
        # The payload's process is PID 1's child, which waits for it.
        if stopped or (self._stage[1] > 0 and _has_stopped_child(self._stage[1])):
            return SetupError(
                errno.ECANCELED,
                call="set-up",
                origin="launch",
                hint="a process of the set-up was stopped by a signal from outside of the sandbox",
            )
        return None

    def failed(self, record: Record) -> SetupError:
        """Return the error that a record of failure stands for."""
        try:
            return self._explained(record)
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
        # What explains it are modules, which are files: with the descriptors of this launch given back, they open.
        self.abort()
        return self._explained(record)

    def _explained(self, record: Record) -> SetupError:
        from sandbox.launch.failure import failed

        return failed(record, self._template.plan, self._command, self._stage[0])

    def _died(self) -> SetupError:
        try:
            return self._how_it_died()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
        self.abort()
        return self._how_it_died()

    def _how_it_died(self) -> SetupError:
        from sandbox.launch.failure import died, signal_of

        # All that had the channel have ended: stage 1, and PID 1, of whom it may be the first that is heard.
        ends = [signal_of(os.P_PIDFD, self._stage[0])]
        self.reap_stage()
        known = self.init_pidfd >= 0
        ends.append(signal_of(*((os.P_PIDFD, self.init_pidfd) if known else (os.P_PGID, self._stage[1]))))
        return died(ends)

    def reap_stage(self) -> None:
        """Reap stage 1, which has ended or is about to, unless it stays: then it is `init_pidfd`, too."""
        if self._watched:
            os.close(self._stage[0])
            self._stage[0] = -1
        else:
            self._wait_for_stage()

    def _wait_for_stage(self) -> None:
        pidfd = self._stage[0]
        if pidfd >= 0:
            try:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            except ChildProcessError:
                pass  # SIGCHLD is ignored, or the caller waits for any child
            self._stage[0] = -1
            os.close(pidfd)

    def give_up(self, tell: Callable[[], object]) -> None:
        """End whatever was started as `abort` does, in a thread, and tell when nothing is left.

        Who hangs in the kernel dies, and can be reaped, when that lets go of it; nobody has to wait for that.
        """
        self.stuck = True

        def end() -> None:
            self.abort()
            self.stuck = False
            tell()

        try:
            threading.Thread(target=end, name="sandbox-abort", daemon=True).start()
        except RuntimeError:  # no more threads
            end()

    def abort(self) -> None:
        """End whatever was started, and reap it all; does nothing the second time."""
        if self.control.fileno() >= 0:
            self._drain()
            self.control.close()
        if self._watched and self._stage[0] >= 0:
            # It ends PID 1, which is its child, and itself, now that we are gone.
            poller = select.poll()
            poller.register(self._stage[0], select.POLLIN)
            poller.poll(1000)
        for pidfd in (self.inner_pidfd, self._stage[0], self.init_pidfd):
            if pidfd >= 0:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        if self._stage[0] >= 0 and self.init_pidfd < 0:
            self._kill_group()
        self._wait_for_stage()
        if self.init_pidfd >= 0:
            try:
                os.waitid(os.P_PIDFD, self.init_pidfd, os.WEXITED)
            except ChildProcessError:
                pass  # as above
            os.close(self.init_pidfd)
        elif self._stage[1] > 0:
            self._reap_group()
        close_all([fd for fd in (*self.fds, self.terminal, self.inner_pidfd) if fd >= 0])
        self.init_pidfd = self.inner_pidfd = self.terminal = self._stage[1] = -1
        self.fds = []

    def _drain(self) -> None:
        """Take what is still in the channel: descriptors, PID 1's above all."""
        try:
            while (record := self.control.receive(wait=False)) is not None:
                if record.type == R_INIT and self.init_pidfd < 0 and record.fds:
                    self.init_pidfd = record.fds[0]
                    close_all(record.fds[1:])
                else:
                    close_all(record.fds)
        except BlockingIOError:
            return

    def _kill_group(self) -> None:
        """Kill a PID 1 that stage 1, which makes no more now, did not live to announce."""
        try:
            signal.pidfd_send_signal(self._stage[0], signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP)
        except ProcessLookupError:
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Before Linux 6.9: by number, as long as stage 1 is not reaped and the number is its own.
            try:
                os.waitid(os.P_PIDFD, self._stage[0], os.WEXITED | os.WNOWAIT)
                os.killpg(self._stage[1], signal.SIGKILL)
            except (ChildProcessError, ProcessLookupError):
                return

    def _reap_group(self) -> None:
        """Reap a PID 1 that stage 1 did not live to announce: it is in the process group of stage 1."""
        while True:
            try:
                os.waitid(os.P_PGID, self._stage[1], os.WEXITED)
            except ChildProcessError:
                return


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _is_stopped(pid: int) -> bool:
    """Say whether a process is stopped that is not our child."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b") ")[2][:1] in {b"T", b"t"}
    except FileNotFoundError:
        return False


def _has_stopped_child(group: int) -> bool:
    """Say whether a child of a process of this group is stopped, and has executed nothing."""
    members, parents = set(), set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stream:
                text, _, rest = stream.read().rpartition(b") ")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        state, parent, of = rest.split(b" ", 3)[:3]
        if int(of) == group:
            members.add(int(name))
        if state in {b"T", b"t"} and text.endswith(b"(sandbox-init"):
            parents.add(int(parent))
    return bool(members & parents)


def _run_setup(setup: Setup) -> None:
    """Take records, blocking, until the setup is complete."""
    while not setup.asked():
        try:
            record = setup.receive()
        except BlockingIOError:
            stalled = setup.stalled()
            if stalled is not None:
                raise stalled from None
            continue
        if setup.take(record):
            return


def run(setup: Setup, slots: list[int]) -> None:
    """Launch, and return when the program has been executed or is held.

    Args:
        setup: The launch.
        slots: The descriptors, -1 for none; they stay the caller's. The first two are filled in here.

    Raises:
        SetupError: A step failed; the payload has not run and nothing is left behind.
    """
    try:
        setup.begin(slots)
        _run_setup(setup)
        setup.reap_stage()
    except BaseException as error:
        if isinstance(error, SetupError) and not is_late(error):
            setup.abort()
        else:
            gone = threading.Event()
            setup.give_up(gone.set)
            gone.wait(_DYING)
        raise


def build(template: Template, command: Command) -> list[int]:
    """Run a plan that makes descriptors and no payload; return them.

    Raises:
        SetupError: A step failed.
    """
    setup = Setup(template, command)
    try:
        setup.begin([-1] * template.slots)
        _run_setup(setup)
        fds, setup.fds = setup.fds, []
    finally:
        setup.abort()
    return fds
