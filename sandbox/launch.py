"""From a plan to a running process.

Nothing of Python runs between clone and exec: `launch_spawn` (csrc/native/launch.c) clones, the child executes init
at once, and everything after that is said through the control channel. Descriptors that are kept between launches
(init's program, the pidfd of this process, cached trees) are checked before each use, because callers close
descriptors that they do not know, and fork.
"""

import errno
import fcntl
import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sandbox._native import ffi, lib
from sandbox.control import pid_of
from sandbox.errors import SetupError
from sandbox.hints import hint_for
from sandbox.plan import SLOTS, SLOTS_OFFSET, TAG_TERMINAL, Command, Template
from sandbox.records import (
    MAX_PAYLOADS,
    Q_JOINED,
    Q_MAPPED,
    Q_SPAWN,
    R_ENDED,
    R_FAILED,
    R_FD,
    R_HELD,
    R_INIT,
    R_MAP_IDS,
    R_REFUSED,
    R_STARTED,
    Record,
    parse_record,
    request,
)
from sandbox.streams import close_all

_PAIR, _NUMBERS, _MESSAGE = map(ffi.typeof, ("int[2]", "int[]", "struct launch_message *"))
_INIT_PATH = os.path.join(os.path.dirname(__file__), "init")


def _error(call: str) -> OSError:
    number = ffi.errno
    return OSError(number, f"{call}: {os.strerror(number)}")


def _launch_error(number: int, call: str, operation: str = "launch") -> SetupError:
    return SetupError(number, call=call, origin="launch", hint=hint_for(operation, (), number))


def explained(error: OSError) -> OSError:
    """Return what to raise for an error before the plan: one for want of descriptors says so, whatever the call."""
    if error.errno not in {errno.EMFILE, errno.ENFILE} or isinstance(error, SetupError):
        return error
    call = str(error.filename or error).partition(":")[0]
    return SetupError(error.errno, call=call, origin="launch", hint=hint_for("launch", (), error.errno))


# Held while a descriptor that is kept between launches is looked at, made again or given up.
kept_lock = threading.RLock()


def _renew_lock() -> None:
    """After a fork: the thread that held the lock may not be among us."""
    global kept_lock
    kept_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Kept:
    """A descriptor kept between launches, with what tells it from a stranger that took its number."""

    __slots__ = ("fd", "is_")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        status = os.fstat(fd)
        self.is_ = status.st_dev, status.st_ino

    def valid(self) -> bool:
        """Say whether the number still is that descriptor."""
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.is_

    def copy(self) -> int | None:
        """Return a copy of it for the caller to close, which no other thread gives up; None when it is gone."""
        if self.fd < 0:
            return None
        try:
            fd = fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return None
        if Kept(fd).is_ == self.is_:
            return fd
        os.close(fd)
        return None

    def close(self) -> None:
        """Close it, unless the number has become somebody else's; whoever still has this object finds it gone."""
        if self.valid():
            os.close(self.fd)
        self.fd = -1


class _InitProgram:
    """The program of PID 1: a sealed memfd where that can be executed, else the installed file."""

    def __init__(self) -> None:
        self._kept: Kept | None = None
        self._only_file = False

    def fd(self) -> int:
        if self._only_file:
            return -1
        with kept_lock:
            kept = self._kept
            if kept is None or not kept.valid():
                from sandbox.facts import apparmor_restricts

                # What allows user namespaces by path has to see one.
                if apparmor_restricts():
                    self._only_file = True
                    return -1
                with open(_INIT_PATH, "rb") as stream:
                    program = stream.read()
                fd = lib.launch_memfd(b"sandbox-init", program, len(program), 0, ffi.NULL, 0, 1)
                if fd < 0:
                    if self.refused(ffi.errno):
                        return -1
                    raise _launch_error(ffi.errno, "memfd_create(init)")
                kept = self._kept = Kept(fd)
            return kept.fd

    def refused(self, number: int) -> bool:
        """Say whether to try again with the file: vm.memfd_noexec is 2, or a security module wants a path."""
        if self._only_file or number not in {errno.EACCES, errno.EPERM}:
            return False
        self._only_file = True
        return True


_init_program = _InitProgram()
_init_path = os.fsencode(_INIT_PATH)
# Of which process, its pidfd, and whether that has an inode of its own.
_lifeline: tuple[int, Kept, bool] | None = None


def _is_pidfd_of(fd: int, pid: int) -> bool:
    """Say whether a descriptor is the pidfd of a process, as far as /proc tells."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as stream:
        found = {name: text for name, _, text in (line.partition(":") for line in stream)}
    # The last number is the one in this process's namespace; none, where /proc is of a namespace it is not in.
    numbers = found.get("NSpid", "").split()
    return "Pid" in found and (not numbers or numbers[-1] == str(pid))


def _own_pidfd() -> int:
    """Return a pidfd of this very process: PID 1 ends when it does. After a fork it is another process."""
    global _lifeline
    pid = os.getpid()
    with kept_lock:
        if _lifeline is not None:
            of, kept, own_inode = _lifeline
            ours = kept.valid() and (own_inode or _is_pidfd_of(kept.fd, of))
            if ours and of == pid:
                return kept.fd
            if ours:
                kept.close()
        fd: int = lib.launch_pidfd_self()
        if fd < 0:
            raise _launch_error(ffi.errno, "pidfd_open", "pidfd_open")
        # Before Linux 6.9 all pidfds are the inode of anonymous files, 0600; since then each process has one, 0700.
        _lifeline = pid, Kept(fd), bool(os.fstat(fd).st_mode & stat.S_IXUSR)
        return fd


_EAGAIN, _EINTR, _ECONNRESET = -errno.EAGAIN, -errno.EINTR, -errno.ECONNRESET
_MSG_DONTWAIT = 0x40
_PIDFD_SIGNAL_PROCESS_GROUP = 4


class ControlChannel:
    """The caller's end of the control channel."""

    __slots__ = ("_fd", "_message")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._message = ffi.new(_MESSAGE)

    def open(self, fd: int) -> None:
        """Take the descriptor over."""
        self._fd = fd

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._fd

    def receive(self, *, wait: bool) -> Record | None:
        """Return the next record; None at the end of file.

        Raises:
            BlockingIOError: There is none: at once without `wait`, after a second with it.
        """
        message = self._message
        flags = 0 if wait else _MSG_DONTWAIT
        while (size := lib.launch_receive(self._fd, message, flags)) < 0:
            if size == _EAGAIN:
                raise BlockingIOError(errno.EAGAIN, "no record yet")
            # A peer that ended without reading our request resets the channel: told once, before its last record.
            if size not in {_EINTR, _ECONNRESET}:
                raise OSError(-size, f"recvmsg: {os.strerror(-size)}")
        if size == 0:
            return None
        count = message.fd_count
        fds = tuple(ffi.unpack(message.fds, count)) if count else ()
        return parse_record(ffi.unpack(message.record, size), fds)

    def send(self, record: bytes, fds: Sequence[int] = ()) -> None:
        """Send a request; that nobody is there any more is told by the end of file."""
        numbers = ffi.new(_NUMBERS, fds) if fds else ffi.NULL
        if lib.launch_send(self._fd, record, numbers, len(fds)) < 0 and ffi.errno not in {
            errno.EPIPE,
            errno.ECONNRESET,
        }:
            raise _error("sendmsg")

    def close(self) -> None:
        """Close it; init then ends the sandbox."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _socketpair() -> tuple[int, int]:
    pair = ffi.new(_PAIR)
    if lib.launch_socketpair(pair) < 0:
        raise _launch_error(ffi.errno, "socketpair", "socketpair")
    return pair[0], pair[1]


def claim(name: str) -> int | None:
    """Hold a name on this host for as long as the returned descriptor lives; None when somebody has it."""
    raw = name.encode()
    fd: int = lib.launch_claim(raw, len(raw))
    if fd >= 0:
        return fd
    if ffi.errno == errno.EADDRINUSE:
        return None
    raise _launch_error(ffi.errno, "bind", "bind")


def _spawn(image: bytearray, slots: Sequence[int], stage: Any) -> None:
    """Start stage 1; its pidfd and pid go to `stage`, which the caller sees even if a signal handler raises."""
    numbers = ffi.new(_NUMBERS, slots)
    data = ffi.from_buffer(image)
    while True:
        fd = _init_program.fd()
        if lib.launch_spawn(fd, _init_path, data, len(image), SLOTS_OFFSET, numbers, len(slots), stage) == 0:
            return
        number = ffi.errno
        if not _init_program.refused(number):
            raise _launch_error(number, "execveat(init)" if fd >= 0 else f'execve("{_INIT_PATH}")')


def _signal_of(kind: int, number: int) -> int:
    """Return the signal that ended a child, 0 for none; the child is not reaped."""
    try:
        info = os.waitid(kind, number, os.WEXITED | os.WNOWAIT) if number > 0 else None
    except ChildProcessError:  # SIGCHLD is ignored, or the caller waits for any child
        return 0
    return info.si_status if info is not None and info.si_code in {os.CLD_KILLED, os.CLD_DUMPED} else 0


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
    ) -> None:
        self._template = template
        self._command = command
        # Who is held installs his filter later.
        self._listens = listens and not held
        self._map_ids = map_ids
        self._builds = not template.plan.segments[2]
        # Stage 1 stays and is what there is to wait for; PID 1 is the payload, and not our child.
        stage = template.plan.segments[0]
        self._watched = bool(stage) and stage[-1].call == "stay"
        self.inner_pidfd = -1
        self._stage = ffi.new(_PAIR, (-1, -1))
        self.control = ControlChannel(-1)
        self.init_pid = self.init_pidfd = -1
        self.identity = b""
        self.started = False
        self.ended: Record | None = None
        self.fds: list[int] = []
        self.terminal = -1

    def begin(self, slots: list[int]) -> None:
        """Start stage 1; whatever happens here or later, abort() ends it."""
        ours, theirs = _socketpair()
        self.control.open(ours)
        try:
            slots[0] = theirs
            slots[1] = _own_pidfd()
            _spawn(self._template.image(self._command), slots, self._stage)
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
            if stopped:
                return SetupError(
                    errno.ECANCELED,
                    call="set-up",
                    origin="launch",
                    hint="a process of the set-up was stopped by a signal from outside of the sandbox",
                )
        return None

    def failed(self, record: Record) -> SetupError:
        """Return the error that a record of failure stands for."""
        plan = self._template.plan
        steps = plan.steps
        text = record.body.split(b"\0", 1)[0].decode("utf-8", "replace")
        if not 0 <= record.step < len(steps):
            status = os.waitstatus_to_exitcode(record.value) if record.step == -1 else 0
            return SetupError(
                record.error,
                call="set-up of the payload",
                origin="launch",
                hint=f"its process was ended by signal {-status} before its program was executed"
                if status < 0
                else None,
            )
        step = steps[record.step]
        command = self._command
        if step.call == "execve" and command.argv:
            path = dict(v.split(b"=", 1) for v in command.env if b"=" in v).get(b"PATH", b"")
            program = _program(command)
            call = f"execve({program!r})".replace("'", '"')
            # PID 1 has looked: which candidate is there, and how it begins.
            which, size = record.value >> 32, record.value & 0xFFFFFFFF
            inside = None
            if 0 < which <= len(command.candidates):
                inside, text = (os.fsdecode(command.candidates[which - 1]), record.body[:size]), ""
            hint = hint_for("execve", (program, os.fsdecode(path), inside), record.error)
            filename: str | None = program
        else:
            call, hint = str(step), hint_for(step.call, step.args, record.error, step.origin)
            filename = next((a for a in step.args if type(a) is str and a.startswith("/")), None)
            if step.call == "await_release":
                hint = hint_for("killed", (_signal_of(os.P_PIDFD, self._stage[0]),), record.error) or hint
        if text and (hint is None or isinstance(hint, str)):
            hint = f"{text}\n        {hint}" if hint else text
        return SetupError(
            record.error,
            step=step.number,
            steps=len(steps),
            call=call,
            origin=step.origin,
            hint=hint,
            filename=filename,
        )

    def _died(self) -> SetupError:
        # All that had the channel have ended: stage 1, and PID 1, of whom it may be the first that is heard.
        ends = [_signal_of(os.P_PIDFD, self._stage[0])]
        self.reap_stage()
        known = self.init_pidfd >= 0
        ends.append(_signal_of(*((os.P_PIDFD, self.init_pidfd) if known else (os.P_PGID, self._stage[1]))))
        for number in ends:
            hint = hint_for("killed", (number,), errno.ECHILD)
            if hint is not None:
                return SetupError(errno.ECHILD, call="set-up", origin="launch", hint=hint)
        return SetupError(
            errno.ECHILD,
            call="set-up",
            origin="launch",
            hint="a process of the set-up ended without a word: killed from outside, or out of memory",
        )

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

    def abort(self) -> None:
        """End whatever was started, and reap it all."""
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
        self.init_pidfd = self.inner_pidfd = self.terminal = -1
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


def _program(command: Command) -> str:
    """Return what was to be executed: the command's first word, unless `executable` said something else."""
    first = command.candidates[0] if command.candidates else command.argv[0]
    word = command.argv[0]
    return os.fsdecode(word if first == word or first.endswith(b"/" + word) else first)


class Entry(Setup):
    """The launch of one more payload in a sandbox that runs; it has a channel of its own.

    Args:
        send: Sends a request with descriptors to PID 1; False when that has ended.
    """

    def __init__(
        self, template: Template, command: Command, send: Callable[[bytes, Sequence[int]], bool], *, listens: bool
    ) -> None:
        super().__init__(template, command, listens=listens)
        self._send = send

    def begin(self, slots: list[int]) -> None:
        """Ask PID 1 for it; whatever happens here or later, abort() ends it."""
        image = self._template.image(self._command)
        ours, theirs = _socketpair()
        self.control.open(ours)
        plan = -1
        try:
            plan = lib.launch_memfd(b"sandbox-plan", ffi.from_buffer(image), len(image), 0, ffi.NULL, 0, 0)
            if plan < 0:
                raise _error("memfd_create")
            # A slot that the plan itself fills has no descriptor yet, and something must be sent.
            given = [theirs if fd < 0 else fd for fd in slots[len(SLOTS) - 3 :]]
            if not self._send(request(Q_SPAWN), [plan, theirs, *given]):
                raise self._died()
        finally:
            close_all([fd for fd in (plan, theirs) if fd >= 0])

    def stalled(self) -> SetupError | None:
        """Look whether somebody inside stopped it, after a time without a word: it has their user."""
        if self.init_pidfd < 0:
            return None
        try:
            with open(f"/proc/{pid_of(self.init_pidfd)}/stat") as stream:
                stopped = stream.read().rpartition(")")[2].split()[0] in {"T", "t"}
        except ProcessLookupError:
            return None
        return self._lost("a process inside stopped it before its program was executed") if stopped else None

    def failed(self, record: Record) -> SetupError:
        """Return the error that a record of failure stands for."""
        if record.type == R_REFUSED:
            full = record.error == errno.EAGAIN
            return self._lost(
                f"a sandbox runs at most {MAX_PAYLOADS} commands at a time: wait for one, or start another sandbox"
                if full
                else "PID 1 of the sandbox could not start it",
                record.error,
            )
        return super().failed(record)

    def _died(self) -> SetupError:
        return self._lost("the sandbox has ended: its first command is what it lives for", errno.ESRCH)

    def _lost(self, hint: str, number: int = errno.ECANCELED) -> SetupError:
        return SetupError(number, call="one more command in a running sandbox", origin="Process", hint=hint)


def _run_setup(setup: Setup) -> None:
    """Take records, blocking, until the setup is complete."""
    while not setup.asked():
        try:
            record = setup.control.receive(wait=True)
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
    except BaseException:
        setup.abort()
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
