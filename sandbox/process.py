"""`Process`: what runs, on pidfds, with the interface of `subprocess.Popen`."""

import errno
import fcntl
import io
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, AnyStr, Final, Generic, cast

from sandbox.compiler import Layers
from sandbox.errors import TimeoutExpired, UnsupportedError
from sandbox.exchange import Exchange, close_stream, deadline_of, decoded, milliseconds
from sandbox.records import (
    Q_KILL,
    Q_PIDFD,
    Q_SIGNAL,
    R_ENDED,
    R_FAILED,
    R_FD,
    R_REFUSED,
    R_STARTED,
    Control,
    Record,
    parse_identity,
    parse_usage,
    request,
)
from sandbox.result import Enforced, Reason, Result, Usage
from sandbox.runner import Args
from sandbox.streams import close_all

if TYPE_CHECKING:
    from sandbox.cgroups.group import Group
    from sandbox.denials import Denials
    from sandbox.notify import Notifier
    from sandbox.terminal import Terminal

_SIGKILL_AFTER: Final = 0.1


def _pidfd_wait(pidfd: int) -> int | None:
    """Reap a child by its pidfd; None when somebody else did, or SIGCHLD is ignored."""
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None
    return None if info is None else info.si_status


class Process(Generic[AnyStr]):
    """A running sandbox, with the interface of `subprocess.Popen`, on pidfds.

    Leaving the `with` block waits, as Popen does; leaving it by an exception kills first.

    Attributes:
        args: The command.
        init_pid: PID 1 of the sandbox, as the host sees it.
        init_pidfd: Its pidfd, owned by this object.
        enforced: What was read back before the program was executed.
        returncode: None while it runs; -N for signal N.
        stdin: The caller's end of a pipe, or of the terminal; or None.
        stdout: Likewise.
        stderr: Likewise.
        denials: What the filter refuses, as it happens, with `observe()`.
        notifier: The calls that wait for an answer, with a filter that says Notify.
        terminal: The caller's end of the terminal, with `pty`: both `stdin` and `stdout` write to it and read from it.
    """

    def __init__(
        self,
        args: Args,
        control: Control,
        init_pid: int,
        init_pidfd: int,
        enforced: Enforced,
    ) -> None:
        self.args = args
        self.init_pid = init_pid
        self.init_pidfd = init_pidfd
        self.enforced = enforced
        self.layers = Layers()
        self.returncode: int | None = None
        self.stdin: IO[AnyStr] | None = None
        self.stdout: IO[AnyStr] | None = None
        self.stderr: IO[AnyStr] | None = None
        self.notifier: Notifier | None = None
        self.denials: Denials | None = None
        self.terminal: Terminal | None = None
        self._all_denied = False  # no process has the filter any more
        self.listener = -1
        self.reaped = False
        self.failed: Callable[[Record], Exception] | None = None
        self._control: Control | None = control
        self._usage = Usage()
        self._reason = Reason.EXITED
        self._detail = ""
        self._cause: Reason | None = None
        self._pid: int | None = None
        self._decode: Callable[[bytes], AnyStr] | None = None
        self._owner = os.getpid()
        self._since = time.monotonic()
        self._group: Group | None = None

    # What the records say.

    def _ended(self, status: int | None) -> None:
        """Note the end, reap PID 1, and close all that belonged to the sandbox."""
        control, self._control = self._control, None
        if status is None:
            self.returncode, self._reason = -signal.SIGKILL, Reason.INIT_DIED
            self._detail = "PID 1 of the sandbox ended without a report: killed from outside, or out of memory"
        else:
            self.returncode = os.waitstatus_to_exitcode(status)
            if self.returncode >= 0:
                self._detail = f"exit status {self.returncode}"
            else:
                self._reason = Reason.SIGNALED
                self._detail = f"signal {_signal_name(-self.returncode)}"
                if self.returncode == -signal.SIGSYS and self.enforced.seccomp_filters:
                    self._reason = Reason.SECCOMP
                    self._detail = "SIGSYS: the seccomp filter ends a process that makes such a call"
        if self._cause is not None:
            self._reason = self._cause
        if control is not None:
            control.close()
        if not self.reaped:
            _pidfd_wait(self.init_pidfd)
            self.reaped = True
        if self._group is not None:
            self._settle_group(self._group)

    # Its control group.

    def adopt(self, group: "Group") -> None:
        """Take over the control group that it is in: it is asked what was used and why it ended, and then removed."""
        self._group = group
        self.enforced = self._in_group(self.enforced)
        if self.returncode is not None:
            self._settle_group(group)

    def _in_group(self, enforced: Enforced) -> Enforced:
        group = self._group
        if group is None:
            return enforced
        return replace(enforced, cgroup=group.path, limits={**enforced.limits, **group.limits()})

    def _settle_group(self, group: "Group") -> None:
        """Take what the group counted; what it knows better than PID 1 is the truth about the end."""
        self._usage = self._counted(group)
        out_of_memory, refusals = group.oom(), group.refusals()
        # The killer takes what is largest. A command that copes with that, and ends well, has not run out.
        if out_of_memory is not None and self._cause is None and self.returncode:
            self._reason, self._detail = Reason.OOM, f"{self._detail}; {out_of_memory}"
            if self.returncode == -signal.SIGKILL:
                self._detail = out_of_memory
        elif out_of_memory is not None:
            self._detail += f"; {out_of_memory}"
        if refusals is not None:
            self._detail += f"; {refusals}"
        group.remove()

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
        """Return what it has used so far, of what its control group counts; after its end, what it has used."""
        if self.poll() is not None:
            return self._usage
        if self._group is None:
            return Usage(wall=time.monotonic() - self._since)
        return self._counted(self._group)

    def freeze(self) -> None:
        """Stop every process inside, and return when all of them stand; nothing happens when it has ended.

        `kill`, a timeout and the end of the caller end it all the same.

        Raises:
            UnsupportedError: It has no control group that can.
            TimeoutError: A process could not be stopped within 10 seconds; all go on.
        """
        if self.poll() is None:
            self._freezer("freeze").freeze(self.init_pid)

    def thaw(self) -> None:
        """Let everything inside go on; nothing happens when it does, or has ended.

        Raises:
            UnsupportedError: It has no control group that can.
        """
        if self.poll() is None:
            self._freezer("thaw").thaw(self.init_pid)

    def _freezer(self, what: str) -> "Group":
        group = self._group
        if group is None or not group.can_freeze:
            raise UnsupportedError(
                f"{what}()",
                needed="a control group with a freezer: any of version 2, or the freezer of version 1",
                found="a sandbox without a control group" if group is None else "a control group without a freezer",
                fix="a limit that takes a control group makes one, limit(pids=...) for example",
                errno=errno.ENOSYS,
            )
        return group

    def _take(self, record: Record | None) -> None:
        if record is None:
            self._ended(None)
            return
        close_all(record.fds)
        if record.id != 0:
            return
        if record.type == R_ENDED:
            self._usage = parse_usage(record.body)
            self._ended(record.value)
        elif record.type == R_STARTED:
            # Later than the launch: the program was executed when somebody had answered for it.
            self.enforced = self._in_group(parse_identity(record.body, self.layers))
        elif record.type == R_FAILED and self.failed is not None:
            self._ended(None)
            raise self.failed(record)

    def _wait(self, deadline: float | None) -> bool:
        """Take records until the end; False when the deadline passes first."""
        while self.returncode is None:
            assert self._control is not None
            if self.denials is not None and not self.denials.closed and not self._all_denied:
                if not self._observe(self.denials, self._control, deadline):
                    return False
                continue
            if deadline is not None and not _readable(self._control.fileno(), deadline):
                return False
            try:
                self._take(self._control.receive(wait=True))
            except BlockingIOError:
                continue
        return True

    def _observe(self, denials: "Denials", control: Control, deadline: float | None) -> bool:
        """Answer what the filter refuses, or take a record; False when the deadline passes first."""
        poller = select.poll()
        poller.register(control.fileno(), select.POLLIN)
        poller.register(denials.fileno(), select.POLLIN)
        ready = dict(poller.poll(milliseconds(deadline)))
        if control.fileno() in ready:
            self._take(control.receive(wait=True))
        elif ready:
            self.answer()
        return bool(ready)

    def answer(self) -> bool:
        """Refuse a call that waits in `denials`; False when none can come any more."""
        if self.denials is None or self.denials.closed:
            return False
        try:
            self.denials._read()
        except EOFError:
            self._all_denied = True
        return not self._all_denied

    # Popen's interface.

    def fileno(self) -> int:
        """Return PID 1's pidfd, readable when the sandbox has ended."""
        if self.init_pidfd < 0:
            raise ValueError("I/O operation on closed process")
        return self.init_pidfd

    def poll(self) -> int | None:
        """Return the exit code when the command has ended, else None."""
        while self.returncode is None and self._control is not None:
            try:
                self._take(self._control.receive(wait=False))
            except BlockingIOError:
                break
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; kills nothing.

        Args:
            timeout: Seconds.

        Raises:
            TimeoutExpired: It still runs.
        """
        if not self._wait(deadline_of(timeout)):
            raise TimeoutExpired(self.args, cast(float, timeout))
        assert self.returncode is not None
        return self.returncode

    @property
    def pid(self) -> int:
        """The payload's process id, as the host sees it.

        Raises:
            ProcessLookupError: It had ended before anybody asked.
        """
        if self._pid is None:
            self._pid = self._ask_pid()
        return self._pid

    def _ask_pid(self) -> int:
        if self.poll() is None and self._control is not None:
            self._control.send(request(Q_PIDFD))
            while self._control is not None:
                try:
                    record = self._control.receive(wait=True)
                except BlockingIOError:
                    continue
                if record is not None and record.type == R_REFUSED:
                    break
                if record is not None and record.type == R_FD and len(record.fds) == 1:
                    try:
                        return _pid_of(record.fds[0])
                    finally:
                        os.close(record.fds[0])
                self._take(record)
        raise ProcessLookupError(errno.ESRCH, "the payload has ended")

    def send_signal(self, signal: int, /) -> None:
        """Send a signal to the payload; nothing happens when it has ended."""
        if not 0 <= signal <= 64:
            raise ValueError(f"signal must be between 0 and 64, got {signal}")
        if self.poll() is None and self._control is not None:
            self._control.send(request(Q_SIGNAL, value=signal))

    def terminate(self) -> None:
        """Send SIGTERM to the payload."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole tree, certainly, and wait until it has gone.

        PID 1 is asked first, because it counts what it reaps; 100 ms later it is killed, and the kernel kills
        what is left.
        """
        if self.poll() is not None or self._control is None:
            return
        self._control.send(request(Q_KILL))
        if not self._wait(deadline_of(_SIGKILL_AFTER)):
            try:
                _send_signal(self.init_pidfd, signal.SIGKILL)
            except ProcessLookupError:  # it has just ended
                pass
            self._wait(None)

    def communicate(
        self, input: AnyStr | None = None, timeout: float | None = None
    ) -> tuple[AnyStr | None, AnyStr | None]:
        """Send input, read all output, wait for the end.

        Args:
            input: For a stdin that is a pipe.
            timeout: Seconds.

        Raises:
            TimeoutExpired: It still runs; nothing was killed.
        """
        data = input.encode() if isinstance(input, str) else input
        if self.terminal is not None:
            return self._converse(self.terminal, data, timeout)
        exchange = Exchange(self.stdin, self.stdout, self.stderr, data)
        if not self._exchange(exchange, deadline_of(timeout)):
            raise TimeoutExpired(self.args, cast(float, timeout), *exchange.output())
        out, err = exchange.output()
        self.close_streams()
        return decoded(out, self._decode), decoded(err, self._decode)

    def _converse(self, terminal: "Terminal", data: Any, timeout: float | None) -> tuple[AnyStr | None, None]:
        """Type input and the character that ends it, and read until the end."""
        from sandbox.terminal import end_of_input

        data = bytes(data or b"")
        # A descriptor of its own for what is typed: its end is no end of the terminal.
        typed = io.FileIO(fcntl.fcntl(terminal.fileno(), fcntl.F_DUPFD_CLOEXEC, 3), "w")
        try:
            exchange = Exchange(typed, terminal, None, data + end_of_input(terminal.fileno(), data))
            if not self._exchange(exchange, deadline_of(timeout)):
                raise TimeoutExpired(self.args, cast(float, timeout), *exchange.output())
            out, _ = exchange.output()
        finally:
            typed.close()
            os.set_blocking(terminal.fileno(), True)
        self.close_streams()
        return decoded(out, self._decode), None

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size; what runs in its foreground gets SIGWINCH.

        Raises:
            ValueError: There is no terminal, or a number is not between 1 and 65535.
        """
        if self.terminal is None:
            raise ValueError("this process has no terminal: start it with popen(..., pty=True)")
        from sandbox.terminal import resize

        resize(self.terminal.fileno(), rows, columns)

    def _exchange(self, exchange: Exchange, deadline: float | None) -> bool:
        """Feed and drain until the end; False when the deadline passes first."""
        poller = select.poll()
        for fd, events in exchange.waiting.items():
            poller.register(fd, events)
        control = self._control
        control_fd = control.fileno() if control is not None else -1
        if control_fd >= 0:
            poller.register(control_fd, select.POLLIN)
        denials_fd = -1 if self.denials is None or self.denials.closed else self.denials.fileno()
        if denials_fd >= 0:
            poller.register(denials_fd, select.POLLIN)
        while self.returncode is None:
            ready = poller.poll(milliseconds(deadline))
            if not ready:
                return False
            for fd, _ in ready:
                if fd == control_fd:
                    self._take(cast(Control, control).receive(wait=True))
                elif fd == denials_fd:
                    if not self.answer():
                        poller.unregister(fd)
                elif not exchange.ready(fd):
                    poller.unregister(fd)
                    exchange.finish(fd)
        exchange.rest()
        return True

    def finish(self, input: bytes | None, timeout: float | None, decode: Callable[[bytes], Any] | None) -> Result[Any]:
        """Run to the end, as subprocess.run does, and close.

        Raises:
            TimeoutExpired: The whole tree was killed; the error has what was said until then.
        """
        try:
            piped = self.stdin is not None or self.stdout is not None or self.stderr is not None
            if not piped and timeout is None:
                if self.denials is None:
                    # The end itself wakes us, not PID 1's word of it: a caller who runs would hold the end up.
                    _pidfd_wait(self.init_pidfd)
                    self.reaped = True
                self._wait(None)
                return self._result(None, None)
            exchange = Exchange(self.stdin, self.stdout, self.stderr, input)
            in_time = self._exchange(exchange, deadline_of(timeout))
            if not in_time:
                self._cause = Reason.TIMEOUT
                self.kill()
                self._exchange(exchange, None)
                self._detail = f"killed after {timeout} seconds, the caller's timeout"
            out, err = exchange.output()
            result = self._result(decoded(out, decode), decoded(err, decode))
            if in_time:
                return result
            expired = TimeoutExpired(self.args, cast(float, timeout), out, err)
            expired.result = result
            raise expired
        except BaseException:
            self.kill()
            raise
        finally:
            self.close()

    def result(self, timeout: float | None = None) -> Result[AnyStr]:
        """Wait for the end and return the whole result, as a future does.

        Raises:
            TimeoutExpired: It still runs.
        """
        self.wait(timeout)
        return self._result(None, None)

    def _result(self, stdout: AnyStr | None, stderr: AnyStr | None) -> Result[AnyStr]:
        return Result(
            self.args,
            cast(int, self.returncode),
            stdout,
            stderr,
            reason=self._reason,
            detail=self._detail,
            usage=self._usage,
            enforced=self.enforced,
            denied=() if self.denials is None else tuple(self.denials.seen),
        )

    def close_streams(self) -> None:
        """Close the caller's ends of the pipes."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                close_stream(stream)

    def close(self) -> None:
        """Kill it if it runs, reap it, close everything; does nothing the second time."""
        if self.returncode is None:
            self.kill()
        self.close_streams()
        for supervised in (self.notifier, self.denials):
            if supervised is not None:
                supervised.close()
        if self.init_pidfd >= 0:
            os.close(self.init_pidfd)
            self.init_pidfd = -1

    def __enter__(self) -> "Process[AnyStr]":
        """Return itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait, as Popen does; after an exception kill first."""
        if kind is not None:
            self.kill()
        self.close_streams()
        self.wait()
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse: a process is here and nowhere else."""
        raise TypeError("a running process cannot be pickled; its Result can")


def _pid_of(pidfd: int) -> int:
    """Return the pid that a pidfd stands for, in this process's namespace."""
    with open(f"/proc/self/fdinfo/{pidfd}") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if name == "Pid":
                pid = int(value)
                if pid > 0:
                    return pid
    raise ProcessLookupError(errno.ESRCH, "the payload has ended")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _readable(fd: int, deadline: float | None) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(milliseconds(deadline)))


def _send_signal(pidfd: int, number: int) -> None:
    signal.pidfd_send_signal(pidfd, number)
