"""`ProcessControl`: what the sync and the asyncio face of a running command share. Nothing in here waits for its end.

The end is told by a pidfd, which stays readable for whoever looks, and in any number of threads. So the control
channel is read when there is an answer to fetch or when the end has come, under a lock, and never to wait for the end:
who waits for a record that another thread takes would wait for ever.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sandbox.accounting import Accounted
from sandbox.arguments import StrOrBytesPath
from sandbox.compiler import Layers
from sandbox.errors import BusyError, SetupError, UnsupportedError
from sandbox.exchange import Budget, deadline_of
from sandbox.order import Args, Order, order_of
from sandbox.pidfds import pid_of, readable, reap
from sandbox.records import (
    Q_DETACH,
    Q_KILL,
    Q_NAMESPACE,
    Q_PIDFD,
    Q_RELEASE,
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
from sandbox.result import Enforced, Reason, Result
from sandbox.streams import Streams, close_all
from sandbox.verdict import ended_by, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sandbox.denials import Denied
    from sandbox.filters import Filter
    from sandbox.plan import Plan
    from sandbox.spec import Namespace
    from sandbox.terminal import Terminal

# In the order in which init numbers them.
_NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
# How long PID 1, which does nothing but answer, may take for that.
_PATIENCE: Final = 5.0
# Seconds after which somebody who waits for its word looks whether another thread has taken it.
_GLANCE: Final = 0.5


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


class ProcessControl(Accounted):
    """A running command, of either face.

    Attributes:
        args: The command.
        name: What the caller calls it, or None.
        init_pid: PID 1 of the sandbox, as the host sees it.
        init_pidfd: Its pidfd, which stays this object's.
        enforced: What was read back before the program was executed.
        returncode: None while it runs; -N for signal N.
        terminal: The caller's end of the terminal, with `pty`: both `stdin` and `stdout` write to it and read from it.
    """

    # Seconds that a look waits for PID 1's word of an end that has come.
    _LAST_WORD = 1.0

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
        sandbox: "ProcessControl | None" = None,
    ) -> None:
        super().__init__()
        # Of a further command: the first one, whose PID 1 it is that we ask.
        self._sandbox = sandbox
        self.args = args
        self.name = name
        self.init_pid = init_pid
        self._pidfd = init_pidfd
        self._enter: Callable[[Any, Order, Streams], Any] | None = None
        self._enter_async: Callable[[Any, Order, Streams], Coroutine[Any, Any, Any]] | None = None
        self._further_plan: Callable[[Order], Plan] | None = None
        self.enforced = enforced
        self._layers = Layers()
        self._budget: Budget | None = None  # of output
        self._inner_pidfd = -1  # of PID 1 where that is the payload, and not our child
        self.returncode: int | None = None
        self._supervise: Callable[[int], None] | None = None
        self._reaped = sandbox is not None  # by PID 1
        self._failed: Callable[[Record], Exception] | None = None
        self._control: Control | None = control
        self._held = held
        self._detached = False
        self._failure: Exception | None = None
        self._failure_told = False
        self._cancelled_by = ""  # the name of an exception
        self._killed = False
        self._forced = False  # PID 1 was killed, too
        self._unreported = False  # it ended without having told how
        self._pid: int | None = None
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._reading = False
        self._waiting = 0  # threads that use init_pidfd at this moment
        self._closing = False
        self.terminal: Terminal | None = None

    def _answer_for(self, listener: int, observed: "Filter | None") -> None:
        """Make the object that answers for the filter: `denials` of an observed one, else `notifier`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Show name, command and state."""
        name = f" {self.name!r}" if self.name is not None else ""
        state = "detached" if self._detached else "running" if self.returncode is None else f"ended: {self.returncode}"
        return f"<{type(self).__name__}{name} {self.args!r}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse: a process is here and nowhere else."""
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: what it launched belongs to this process; send its Result,"
            " or its pidfd with socket.send_fds()"
        )

    def _check(self) -> None:
        """Refuse what this object is no longer, or not, in charge of."""
        if os.getpid() != self._owner:
            raise ChildProcessError(
                errno.ECHILD,
                f"this sandbox belongs to process {self._owner}, which launched it; a fork can only close its copy",
            )
        if self._detached:
            raise ValueError("this process was detached: its pidfd is the caller's")

    # ── what the records say ──

    def _ended(self, status: int | None, error: int = 0) -> None:
        """Note the end, reap PID 1, and close the channel."""
        control, self._control = self._control, None
        if status is None:
            self._kill_inner()
            returncode, self._unreported = -signal.SIGKILL, True
            if self._forced:
                self._reason = Reason.SIGNALED
                self._detail = (
                    "signal SIGKILL by the caller; PID 1 did not answer within 100 ms, and its counts are lost"
                )
            else:
                self._reason = Reason.INIT_DIED
                self._detail = "PID 1 of the sandbox ended without a report: killed from outside, or out of memory"
        else:
            returncode = os.waitstatus_to_exitcode(status)
            filtered = bool(self.enforced.seccomp_filters)
            if self._cause is None:
                limits, usage = self._layers.limits, self._usage
                self._reason, self._detail = judge(returncode, error, limits, usage, filtered=filtered)
            else:
                _, self._detail = ended_by(returncode, filtered=filtered)
        if self._cause is not None:
            self._reason = self._cause
            if self._cancelled_by:
                self._detail = f"killed by the caller, who was interrupted: {self._cancelled_by}"
        if control is not None:
            control.close()
        if not self._reaped:
            self._reaped = True
            reap(self._pidfd)
        if self._group is not None:
            self._settle_group(self._group, returncode)
        elif self._first is not self and returncode == -signal.SIGKILL and self._cause is None:
            self._blame_memory()
        # Last: other threads look at it without the lock.
        self.returncode = returncode

    def _cancel(self, error: BaseException) -> None:
        """Note that what ends it is an exception of the caller's; nothing happens when it has ended."""
        if self._look() is None:
            self._cause = Reason.CANCELLED
            self._cancelled_by = type(error).__name__

    def _stop_flood(self) -> None:
        """Ask PID 1 to end everything, because there was too much output; what was detached is let go on."""
        with self._lock:
            if self._control is not None and not self._reading:
                self._killed = True
                self._control.send(request(Q_KILL))

    def _judged_output(self) -> tuple[Reason, str]:
        """Return why it ended and the evidence, when the output is known as well."""
        limits = self._layers.limits
        exceeded = self._budget is not None and self._budget.exceeded
        if exceeded and self._cause is None and limits.when_output_full == "kill":
            return Reason.OUTPUT_LIMIT, f"more than {limits.output} bytes: output is limited to that"
        return self._reason, self._detail

    def _made(self, stdout: Any, stderr: Any) -> Result[Any]:
        reason, detail = self._judged_output()
        return Result(
            self.args,
            self._told(),
            stdout,
            stderr,
            reason=reason,
            detail=detail,
            truncated=self._budget is not None and self._budget.exceeded,
            usage=self._usage,
            enforced=self.enforced,
            denied=self._refused(),
        )

    def _refused(self) -> "tuple[Denied, ...]":
        """Return what `denials` has seen."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """End what could not be made whole, waiting for it."""
        raise NotImplementedError

    def _kill_inner(self) -> None:
        """End a payload whose watcher was killed, or is about to be."""
        if self._inner_pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._inner_pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return
            readable(self._inner_pidfd, None)

    def _take(self, record: Record | None) -> None:
        if record is None:
            self._ended(None)
            return
        close_all(record.fds)
        if record.type == R_ENDED:
            self._usage = parse_usage(record.body)
            self._ended(record.value, record.error)
        elif record.type == R_STARTED and not self._held:
            # Later than the launch: the program was executed when somebody had answered for it.
            self.enforced = self._in_group(parse_identity(record.body, self._layers))
        elif record.type == R_FAILED and self._failed is not None and not self._killed:
            self._failure = self._failed(record)
            self._ended(None)

    def _collect(self, deadline: float | None = None) -> bool:
        """Take the records up to the end, which has come; False when the last one is late.

        PID 1 says it in its last moment; of a further command a moment after that one's end, unless it was stopped.
        """
        while (channel := self._take_all()) >= 0:
            # Without the lock: another thread may have to kill it, and then closes what we wait for.
            until = time.monotonic() + _GLANCE
            if not readable(channel, until if deadline is None else min(until, deadline)) and _is_over(deadline):
                return False
        return True

    def _take_all(self) -> int:
        """Take the records that there are; return -1 when the last one was among them, else where it will come."""
        with self._lock:
            if self._reading:
                raise BusyError("a signal handler cannot wait for a process whose end is being noted at this moment")
            self._reading = True
            try:
                while self.returncode is None:
                    assert self._control is not None
                    try:
                        self._take(self._control.receive(wait=False))
                    except BlockingIOError:
                        return self._control.fileno()
            finally:
                self._reading = False
        return -1

    def _look(self) -> int | None:
        """Return the exit code when it has ended, without waiting."""
        if self.returncode is None:
            self._check()
            with self._lock:
                # A signal handler that interrupts the reading of the end: it is told the next time.
                if self.returncode is None and not self._reading and readable(self._pidfd, 0.0):
                    self._collect(deadline_of(self._LAST_WORD))
        return self.returncode

    def _told(self) -> int:
        """Return the exit code of what has ended.

        Raises:
            SetupError: The launch was over before somebody had answered for execve, and it failed then.
        """
        if self._failure is not None:
            self._failure_told = True
            raise self._failure
        assert self.returncode is not None
        return self.returncode

    def _send(self, type_: int, value: int = 0) -> bool:
        """Send a request; False when it has ended."""
        self._check()
        with self._lock:
            if self._control is None:
                return False
            self._control.send(request(type_, value=value))
        return True

    def _ask(self, type_: int, value: int = 0) -> int:
        """Ask for a descriptor and return it.

        Raises:
            ProcessLookupError: It has ended.
            OSError: What PID 1 met.
            TimeoutError: PID 1 does not answer: it was stopped from outside.
        """
        with self._lock:
            control = self._control
            if not self._send(type_, value) or control is None:
                raise ProcessLookupError(errno.ESRCH, "the sandbox has ended")
            deadline = deadline_of(_PATIENCE)
            while self._control is not None:
                try:
                    record = control.receive(wait=False)
                except BlockingIOError:
                    if not readable(control.fileno(), deadline):
                        raise TimeoutError(
                            errno.ETIMEDOUT, f"PID 1 of the sandbox, {self.init_pid}, does not answer: is it stopped?"
                        ) from None
                    continue
                if record is not None and record.type == R_REFUSED:
                    raise OSError(record.error, os.strerror(record.error))
                if record is not None and record.type == R_FD and len(record.fds) == 1:
                    return record.fds[0]
                self._take(record)
        raise ProcessLookupError(errno.ESRCH, "the sandbox has ended")

    # ── further commands ──

    @property
    def init_pidfd(self) -> int:
        """The pidfd of PID 1 of the sandbox; it stays this object's."""
        return self._pidfd if self._sandbox is None else self._sandbox.init_pidfd

    @property
    def _first(self) -> "ProcessControl":
        return self if self._sandbox is None else self._sandbox

    def _launch(self, order: Order, streams: Streams) -> Any:
        """Start one more command in this sandbox, under every layer."""
        first = self._entered(order)
        assert first._enter is not None
        return first._enter(first, order, streams)

    async def _launch_async(self, order: Order, streams: Streams) -> Any:
        """Start one more command in this sandbox, under every layer."""
        first = self._entered(order)
        assert first._enter_async is not None
        return await first._enter_async(first, order, streams)

    def plan(self, args: Args, *, cwd: StrOrBytesPath | None = None) -> "Plan":
        """Return the system calls of one more command in this sandbox, in order, before anything runs.

        What an error of `run` and `popen` of this object calls a step is one of these.

        Args:
            args: The command.
            cwd: Instead of the sandbox's own.
        """
        order = order_of(args, cwd=cwd)
        first = self._entered(order)
        assert first._further_plan is not None
        return first._further_plan(order)

    def _entered(self, order: Order) -> "ProcessControl":
        """Return the first command of the sandbox, in which another can be started now."""
        first = self._first
        first._check()
        if first._held:
            raise ValueError("the sandbox is held, and nothing can run in it yet: release() it first")
        if first._inner_pidfd >= 0:
            raise UnsupportedError(
                "one more command in a running sandbox",
                needed="a PID 1 of the library's inside, to start it",
                found="a sandbox with init(False)",
                fix="leave out init(False)",
            )
        if first._group is not None and first._group.frozen:
            raise BusyError("the sandbox is frozen, and what starts in it would not be: thaw() it first")
        if order.hold:
            raise ValueError("hold is for the first command of a sandbox: what runs beside it could reach a held one")
        if first._enter is None or first._look() is not None:
            raise SetupError(
                errno.ESRCH,
                call="one more command in a running sandbox",
                origin="Process",
                hint="the sandbox has ended: its first command is what it lives for",
            )
        return first

    def _ask_init(self, record: bytes, fds: Sequence[int]) -> bool:
        """Send a request with descriptors to PID 1; False when it has ended."""
        self._check()
        with self._lock:
            if self._control is None:
                return False
            self._control.send(record, fds)
        return True

    def _payload_pidfd(self) -> int:
        """Return a pidfd of the payload, which the caller closes."""
        return os.dup(self._pidfd) if self._sandbox is not None else self._ask(Q_PIDFD)

    # ── what does not wait ──

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size; what runs in its foreground gets SIGWINCH.

        Args:
            rows: 1 to 65535.
            columns: 1 to 65535.

        Raises:
            ValueError: There is no terminal, or a number is not between 1 and 65535.
        """
        if self.terminal is None:
            raise ValueError("this process has no terminal: start it with popen(..., pty=True)")
        from sandbox.terminal import resize

        resize(self.terminal.fileno(), rows, columns)

    def fileno(self) -> int:
        """Return the pidfd, readable when it has ended; it stays this object's."""
        if self._pidfd < 0:
            raise ValueError("I/O operation on closed process")
        return self._pidfd

    @property
    def pid(self) -> int:
        """The payload's process id, as the host sees it.

        Raises:
            ProcessLookupError: It had ended before anybody asked.
        """
        if self._pid is None:
            if self._look() is not None:
                raise ProcessLookupError(errno.ESRCH, "the payload has ended")
            pidfd = self._payload_pidfd()
            try:
                self._pid = pid_of(pidfd)
            finally:
                os.close(pidfd)
        return self._pid

    def send_signal(self, signal: int, /) -> None:
        """Send a signal to the payload; nothing happens when it has ended."""
        if isinstance(signal, bool) or not isinstance(signal, int):
            raise TypeError(f"signal must be an int, such as signal.SIGTERM, not {type(signal).__name__}")
        if not 0 <= signal <= 64:
            raise ValueError(f"signal must be between 0 and 64, got {signal}")
        if self._look() is None:
            self._send(Q_SIGNAL, signal)

    def terminate(self) -> None:
        """Send SIGTERM to the payload."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole tree, certainly; nothing happens when it has ended."""
        raise NotImplementedError

    def release(self) -> None:
        """Let a process that was started with `hold=True` execute its program; nothing happens the second time."""
        raise NotImplementedError

    def namespace_fd(self, namespace: "Namespace | str") -> int:
        """Return a descriptor of one of the sandbox's namespaces, for setns(2); the caller closes it.

        A namespace that the sandbox shares is the caller's own. What PID 1 is in counts: a payload with CAP_SYS_ADMIN
        has a user and a mount namespace below these.

        Args:
            namespace: "user", "mnt", "pid", "net", "ipc", "uts", "cgroup" or "time".

        Raises:
            ProcessLookupError: The sandbox has ended.
            UnsupportedError: Before Linux 6.11, in a sandbox without /proc.
        """
        if namespace not in _NAMESPACES:
            raise ValueError(f"namespace must be one of {', '.join(_NAMESPACES)}, got {namespace!r}")
        if self._look() is not None:
            raise ProcessLookupError(errno.ESRCH, "the sandbox has ended")
        if self._inner_pidfd >= 0:
            raise UnsupportedError(
                "namespace_fd()",
                needed="a PID 1 of the library's inside",
                found="a sandbox with init(False), which is watched from outside",
                fix="leave out init(False)",
            )
        try:
            return self._first._ask(Q_NAMESPACE, _NAMESPACES.index(namespace))
        except FileNotFoundError:
            raise UnsupportedError(
                "namespace_fd()",
                needed="Linux 6.11, or a /proc in the sandbox",
                found="an older kernel, and no /proc inside",
                fix="add .proc() to the sandbox",
            ) from None

    def detach(self) -> int:
        """Let the sandbox outlive this process, and return its pidfd, which is the caller's from here on.

        The object is then done with: streams stay open until `close`, everything else refuses. While this process lives
        it is still the parent: os.waitid(os.P_PIDFD, pidfd, os.WEXITED) reaps it. Calls that a filter asks
        about are answered as long as `notifier` or `denials` is open; after that they fail with ENOSYS.

        Raises:
            ProcessLookupError: It has ended; `returncode` says how.
            ValueError: It is held, and nobody could release it any more; or it was detached before.
            BusyError: Another thread waits for it.
        """
        self._check()
        if self._held:
            raise ValueError("a process that is held cannot be detached: release() it first")
        if self._look() is not None:
            raise ProcessLookupError(errno.ESRCH, "the sandbox has ended")
        with self._lock:
            if self._waiting:
                raise BusyError("another thread waits for this process, and could not see its end any more")
            if self._group is not None:
                self._group.mark()
            if self._control is not None:
                # In order with the end of file that follows: PID 1 knows what that means.
                self._control.send(request(Q_DETACH))
                self._control.close()
                self._control = None
            self._detached = True
            if self._group is not None:
                # Removed when it is empty.
                self._group.give_up()
            self._close_inner()
            pidfd, self._pidfd = self._pidfd, -1
        return pidfd

    def _release(self) -> bool:
        """Let a held payload go on; False when there is nothing to release any more."""
        self._check()
        if not self._held:
            return False
        self._held = False
        return self._send(Q_RELEASE)

    def _signal_init(self) -> None:
        """Kill PID 1, and the kernel kills all that is left in its pid namespace; of a further command that alone."""
        self._kill_inner()
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return
        self._forced = True

    def _close_pidfd(self) -> None:
        """Close it, now or when the last thread that waits for it has seen the end."""
        with self._lock:
            self._closing = True
            self._close_inner()
            if self._pidfd >= 0 and not self._waiting:
                os.close(self._pidfd)
                self._pidfd = -1

    def _close_inner(self) -> None:
        if self._inner_pidfd >= 0:
            os.close(self._inner_pidfd)
            self._inner_pidfd = -1
