"""`Process`: what runs, with the interface of `subprocess.Popen`, on pidfds."""

import fcntl
import io
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, AnyStr, Final, Generic, Self, cast

from sandbox.control import ProcessControl
from sandbox.errors import TimeoutExpired
from sandbox.exchange import Exchange, check_input, check_timeout, close_stream, deadline_of, decoded, milliseconds
from sandbox.order import Args
from sandbox.pidfds import readable, reap
from sandbox.records import Q_KILL, R_FD, R_STARTED, Control
from sandbox.result import Enforced, Reason, Result

if TYPE_CHECKING:
    from sandbox.denials import Denials, Denied
    from sandbox.filters import Filter
    from sandbox.notify import Notifier

_SIGKILL_AFTER: Final = 0.1
_REMAINS_AFTER: Final = 1.0


class Process(ProcessControl, Generic[AnyStr]):
    """A running sandbox, with the interface of `subprocess.Popen`.

    Leaving the `with` block waits, as Popen does; leaving it by an exception kills first. Any thread may use it, and
    several at once. A process that nobody holds any more is killed, with a ResourceWarning.

    Attributes:
        args: The command.
        name: What the caller calls it, or None.
        init_pid: PID 1 of the sandbox, as the host sees it.
        init_pidfd: Its pidfd, which stays this object's.
        enforced: What was read back before the program was executed.
        returncode: None while it runs; -N for signal N.
        stdin: The caller's end of a pipe, or of the terminal; or None.
        stdout: Likewise.
        stderr: Likewise.
        denials: What the filter refuses, as it happens, with `observe()`.
        notifier: The calls that wait for an answer, with a filter that says Notify.
    """

    _pidfd = -1  # what __del__ finds when __init__ did not come far

    def __init__(
        self,
        args: Args,
        control: Control,
        init_pid: int,
        init_pidfd: int,
        enforced: Enforced,
        *,
        name: str | None = None,
        held: bool = False,
        sandbox: ProcessControl | None = None,
    ) -> None:
        super().__init__(args, control, init_pid, init_pidfd, enforced, name=name, held=held, sandbox=sandbox)
        self.stdin: IO[AnyStr] | None = None
        self.stdout: IO[AnyStr] | None = None
        self.stderr: IO[AnyStr] | None = None
        self.notifier: Notifier | None = None
        self.denials: Denials | None = None
        self._all_denied = False  # no process has the filter any more
        self._decode: Callable[[bytes], AnyStr] | None = None
        self._talk: Exchange | None = None
        self._result: Result[AnyStr] | None = None

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Kill what nobody can wait for any more; a fork of the caller only lets go of its copy.

        When the interpreter exits, the end of this process ends the sandbox, and modules may be empty already.
        """
        if self._pidfd < 0 or _finalizing():
            return
        if self._owner != os.getpid():
            self._let_go()
            return
        if self._look() is None:
            warnings.warn(f"{self!r} was not closed: it is killed", ResourceWarning, source=self, stacklevel=2)
        self.close()

    # ── the end ──

    def _await_end(self, deadline: float | None, exchange: Exchange | None = None) -> bool:
        """Wait for the end, and feed and drain meanwhile; False when the deadline passes first."""
        with self._lock:
            if self.returncode is not None:
                if exchange is not None:
                    exchange.rest()
                return True
            self._check()
            self._waiting += 1
        try:
            unobserved = self.denials is None or self.denials.closed
            if exchange is None and deadline is None and self._sandbox is None and unobserved:
                # The end itself wakes us: who reads PID 1's word of it holds the end up.
                reap(self._pidfd)
                self._reaped = True
            elif not self._poll(deadline, exchange):
                return False
            return self._collect(deadline)
        finally:
            with self._lock:
                self._waiting -= 1
                if self._closing:
                    self._close_pidfd()

    def _poll(self, deadline: float | None, exchange: Exchange | None) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        denials_fd = -1
        # Who is being killed needs no answer, and would run on with one.
        if self.denials is not None and not (self.denials.closed or self._all_denied or self._killed):
            denials_fd = self.denials.fileno()
        if denials_fd >= 0:
            poller.register(denials_fd, select.POLLIN)
        if exchange is not None:
            for fd, events in exchange.waiting.items():
                poller.register(fd, events)
        while True:
            ready = poller.poll(milliseconds(deadline))
            if not ready:
                return False
            ended = False
            for fd, _ in ready:
                if fd == self._pidfd:
                    ended = True
                elif fd == denials_fd:
                    if not self._answer():
                        poller.unregister(fd)
                elif exchange is not None and not exchange.ready(fd):
                    poller.unregister(fd)
                    exchange.finish(fd)
            if ended:
                if exchange is not None:
                    exchange.rest()
                return True

    def _answer_for(self, listener: int, observed: "Filter | None") -> None:
        """Make the object that answers for the filter."""
        if observed is None:
            from sandbox.notify import Notifier

            self.notifier = Notifier(listener)
        else:
            from sandbox.denials import Denials

            self.denials = Denials(listener, observed)

    def _refused(self) -> "tuple[Denied, ...]":
        return () if self.denials is None else tuple(self.denials.seen)

    def _answer(self) -> bool:
        """Refuse a call that waits in `denials`; False when none can come any more."""
        if self.denials is None or self.denials.closed:
            return False
        try:
            self.denials._read()
        except EOFError:
            self._all_denied = True
        return not self._all_denied

    # ── Popen's interface ──

    def poll(self) -> int | None:
        """Return the exit code when the command has ended, else None."""
        return None if self._look() is None else self._told()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; kills nothing.

        Args:
            timeout: Seconds.

        Raises:
            TimeoutExpired: It still runs.
        """
        if not self._await_end(deadline_of(timeout)):
            raise TimeoutExpired(self.args, cast(float, timeout))
        return self._told()

    def kill(self) -> None:
        """End the whole tree, certainly, and wait until it has gone.

        PID 1 is asked first, because it counts what it reaps; 100 ms later it is killed, and the kernel kills
        what is left. Of a further command, its process group is killed; what has left that ends with the sandbox.
        """
        with self._lock:
            if self._reading:  # a signal handler that interrupted the noting of the end
                return
        if self._look() is not None:
            return
        self._killed = True
        with suppress(TimeoutError):  # stopped: SIGKILL follows
            self._send(Q_KILL)
        if not self._await_end(deadline_of(_SIGKILL_AFTER)):
            self._signal_init()
            if not self._await_end(None if self._sandbox is None else deadline_of(_REMAINS_AFTER)):
                # Dead, and not reaped: PID 1 gets what another process inside traces when that lets go of it.
                with self._lock:
                    if self.returncode is None:
                        self._ended(signal.SIGKILL)

    def release(self) -> None:
        """Let a process that was started with `hold=True` execute its program; nothing happens the second time.

        Raises:
            SetupError: The program could not be executed.
        """
        if not self._release():
            return
        with self._lock:
            while self._control is not None:
                try:
                    record = self._control.receive(wait=False)
                except BlockingIOError:
                    readable(self._control.fileno(), None)
                    continue
                if record is not None and record.type == R_FD and self._supervise is not None:
                    # Execve itself may be what the filter asks about: the caller has to answer.
                    self._supervise(record.fds[0])
                    return
                if record is not None and record.type == R_STARTED:
                    return
                self._take(record)
        self._told()

    def communicate(self, input: AnyStr | None = None, timeout: float | None = None) -> tuple[AnyStr, AnyStr]:
        """Send input, read all output, wait for the end; after TimeoutExpired it may be called again.

        Args:
            input: For a stdin that is a pipe.
            timeout: Seconds.

        Returns:
            What stdout and stderr said; None for one that is no pipe, which the type does not say, as in typeshed.

        Raises:
            TimeoutExpired: It still runs; nothing was killed. The error has what was said until then.
            TypeError: Input is not of the streams' kind, text or bytes.
            ValueError: Input was given, and a communication has begun.
        """
        self._converse(input, deadline_of(timeout), timeout)
        exchange = cast(Exchange, self._talk)
        out, err = exchange.output()
        self._told()
        self._close_streams()
        return decoded(out, self._decode), decoded(err, self._decode)

    def _converse(self, input: AnyStr | None, deadline: float | None, timeout: float | None) -> None:
        if self._talk is None:
            self._talk = self._begin(input)
        elif input:
            raise ValueError("Cannot send input after starting communication")
        terminal = self.terminal
        if terminal is not None and not terminal.closed:
            os.set_blocking(terminal.fileno(), False)
        try:
            if not self._await_end(deadline, self._talk):
                raise TimeoutExpired(self.args, cast(float, timeout), *self._talk.output())
        finally:
            if terminal is not None and not terminal.closed:
                os.set_blocking(terminal.fileno(), True)

    def _begin(self, input: AnyStr | None) -> Exchange:
        data: Any = input
        if input is not None:
            check_input(input, is_text=self._decode is not None)
        if isinstance(input, str):
            encoding = getattr(self.stdin, "encoding", None) or "utf-8"
            data = input.encode(encoding, getattr(self.stdin, "errors", None) or "strict")
        if self.terminal is None or self.terminal.closed:
            return Exchange(self.stdin, self.stdout, self.stderr, data, self._budget)
        from sandbox.terminal import end_of_input

        # Input is typed, and then the character that ends it. A descriptor of its own: its end is not the terminal's.
        data = bytes(data or b"")
        typed = io.FileIO(fcntl.fcntl(self.terminal.fileno(), fcntl.F_DUPFD_CLOEXEC, 3), "w")
        return Exchange(typed, self.terminal, None, data + end_of_input(self.terminal.fileno(), data), self._budget)

    def result(self, timeout: float | None = None) -> Result[AnyStr]:
        """Wait for the end and return the whole result, as a future does.

        Output that is a pipe, and was not read yet, is drained meanwhile and in the result.

        Args:
            timeout: Seconds.

        Raises:
            TimeoutExpired: It still runs.
        """
        if self._result is None:
            out, err = self.communicate(None, timeout)
            self._result = self._made(out, err)
        return self._result

    def stop(self, grace: float = 10.0) -> Result[AnyStr]:
        """Send SIGTERM to the payload, wait, kill what is left, and return the result.

        Args:
            grace: Seconds until everything inside is killed.
        """
        check_timeout(grace, "grace")
        self.terminate()
        try:
            return self.result(grace)
        except TimeoutExpired:
            self.kill()
            return self.result()

    def _finish(
        self,
        input: bytes | None,
        timeout: float | None,
        deadline: float | None,
        decode: Callable[[bytes], Any] | None,
    ) -> Result[Any]:
        """Run to the end, as subprocess.run does, and close.

        Args:
            input: For a stdin that is a pipe.
            timeout: What the caller said.
            deadline: When that is over.
            decode: Makes text of output, or None.

        Raises:
            TimeoutExpired: The whole tree was killed; the error has what was said until then.
        """
        try:
            if self.stdin is None and self.stdout is None and self.stderr is None and timeout is None:
                self._await_end(None)
                self._told()
                return self._made(None, None)
            exchange = self._talk = Exchange(self.stdin, self.stdout, self.stderr, input, self._budget)
            in_time = self._await_end(deadline, exchange)
            if not in_time:
                self._cause = Reason.TIMEOUT
                self.kill()
                exchange.rest()
                self._detail = f"killed after {timeout} seconds, the caller's timeout"
            self._told()
            out, err = exchange.output()
            result = self._made(decoded(out, decode), decoded(err, decode))
            if in_time:
                return result
            expired = TimeoutExpired(self.args, cast(float, timeout), out, err)
            expired.result = result
            raise expired
        except BaseException as error:
            self._cancel(error)
            self.kill()
            raise
        finally:
            self.close()

    def _close_stdin(self) -> BrokenPipeError | None:
        """Close stdin; return the error when what was written there has no reader any more."""
        if self.stdin is not None:
            try:
                self.stdin.close()
            except BrokenPipeError as error:
                return error
        return None

    def _close_streams(self) -> None:
        """Close the caller's ends of the pipes."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                close_stream(stream)

    def close(self) -> None:
        """Kill it if it runs, reap it, close everything; does nothing the second time.

        In a fork of the caller it closes that process's copies, and kills nothing.
        """
        if self._owner != os.getpid():
            self._let_go()
            return
        if not self._detached and self._pidfd >= 0 and self._look() is None:
            self.kill()
        self._close_streams()
        for supervised in (self.notifier, self.denials):
            if supervised is not None:
                supervised.close()
        if not self._detached:
            self._close_pidfd()

    def _abandon(self) -> None:
        """End what could not be made whole, waiting for it."""
        self.close()

    def _let_go(self) -> None:
        """Close the copies of descriptors that this fork of the owner has."""
        self._close_streams()
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._close_inner()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        """Wait, as Popen does; after an exception kill first. A detached process, or a fork's copy, is let go."""
        if self._owner == os.getpid() and not self._detached:
            if error is not None:
                self._cancel(error)
                self.kill()
            lost = self._close_stdin()
            self._close_streams()
            if self._pidfd >= 0:
                self._await_end(None)
            self.close()
            if lost is not None and error is None:
                raise lost
        self.close()
        if error is None and self._failure is not None and not self._failure_told:
            raise self._failure
