"""What runs and what came of it: `Process`, `Result` and the records that init sends.

Nothing that comes out of a sandbox is trusted: records have a fixed size and are read field by field; init's own
word is believed because the payload cannot reach the channel, which closes when its program is executed.
"""

import enum
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from struct import Struct
from typing import IO, TYPE_CHECKING, Any, AnyStr, Final, Generic, NamedTuple, Protocol, TypeAlias, cast

from sandbox.compiler import Layers
from sandbox.errors import CalledProcessError, TimeoutExpired
from sandbox.limits import RLIMITS

if TYPE_CHECKING:
    from sandbox.denials import Denials, Denied
    from sandbox.notify import Notifier

StrOrBytesPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Args: TypeAlias = Sequence[StrOrBytesPath]

PIPE: Final = subprocess.PIPE
STDOUT: Final = subprocess.STDOUT
DEVNULL: Final = subprocess.DEVNULL


class Reason(enum.StrEnum):
    """Why the command ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    CPU_TIME = "cpu_time"
    OOM = "oom"
    SECCOMP = "seccomp"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"
    INIT_DIED = "init_died"


@dataclass(frozen=True, slots=True)
class Usage:
    """What the whole tree of processes used; None where nobody counted (no cgroup).

    Attributes:
        wall: Seconds from the start of the payload to its end.
        user: CPU seconds in user mode.
        system: CPU seconds in the kernel.
        cpu_time: Both.
        max_rss: Largest resident set of any one process, in bytes.
        memory_peak: Peak memory of all together, in bytes.
        pids_peak: Most processes at one time.
        read_bytes: Bytes read from block devices.
        written_bytes: Bytes written to block devices.
        context_switches: Voluntary and involuntary ones.
        throttled: Seconds that a CPU limit held it back.
    """

    wall: float = 0.0
    user: float = 0.0
    system: float = 0.0
    cpu_time: float = 0.0
    max_rss: int = 0
    memory_peak: int | None = None
    pids_peak: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    context_switches: int | None = None
    throttled: float | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a sandbox, as the kernel lists it."""

    target: str
    fstype: str
    options: frozenset[str]


@dataclass(frozen=True, slots=True)
class Enforced:
    """What the payload really is, read back from the kernel before its program was executed.

    Attributes:
        uid: User id, as the payload sees it.
        gid: Group id.
        groups: Supplementary groups; 65534 stands for one that the sandbox does not map.
        capabilities: The five sets; bare names without CAP_.
        securebits: prctl(PR_GET_SECUREBITS).
        no_new_privs: Nothing it executes can gain privileges.
        dumpable: Of the process that set up; its address space was not readable from inside.
        seccomp_filters: How many filters it runs under, the caller's included where the kernel tells.
        landlock_abi: ABI of the Landlock layers, None without any.
        landlock_layers: How many.
        namespaces: Inode numbers of its namespaces; filled in with `hold`.
        mounts: What is mounted; filled in with `hold`.
        descriptors: Open descriptors; filled in with `hold`.
        limits: Soft resource limits by the words of `Sandbox.limit`; math.inf where there is none.
        cgroup: Its control group.
        gaps: What a layer cannot cover on this host, in words.
        missing: What was asked for as optional or best effort and is not there.
    """

    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()
    capabilities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    securebits: int = 0
    no_new_privs: bool = False
    dumpable: bool = False
    seccomp_filters: int = 0
    landlock_abi: int | None = None
    landlock_layers: int = 0
    namespaces: Mapping[str, int] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    descriptors: tuple[int, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    cgroup: str | None = None
    gaps: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Result(subprocess.CompletedProcess[AnyStr]):
    """A `subprocess.CompletedProcess` that also says why, at what cost and under which rules.

    Attributes:
        reason: Why it ended.
        detail: The evidence, in words.
        usage: What the whole tree used.
        enforced: What was read back before the program was executed.
        truncated: Output was cut at a limit.
        denied: What was refused, where `observe()` watched.
    """

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: AnyStr | None = None,
        stderr: AnyStr | None = None,
        *,
        reason: Reason = Reason.EXITED,
        detail: str = "",
        usage: Usage = Usage(),  # frozen
        enforced: Enforced = Enforced(),  # frozen
        truncated: bool = False,
        denied: "tuple[Denied, ...]" = (),
    ) -> None:
        super().__init__(args, returncode, cast("Any", stdout), cast("Any", stderr))
        self.reason = reason
        self.detail = detail
        self.usage = usage
        self.enforced = enforced
        self.truncated = truncated
        self.denied = denied

    def __eq__(self, other: object) -> bool:
        """Compare all fields."""
        if type(other) is not type(self):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # as CompletedProcess' fields, it can be changed

    def __repr__(self) -> str:
        """Show what CompletedProcess shows, and the reason."""
        return f"{super().__repr__()[:-1]}, reason={str(self.reason)!r})"

    def check_returncode(self) -> None:
        """Raise CalledProcessError unless the command ended well.

        Raises:
            CalledProcessError: It has this result as `result`.
        """
        if self.returncode:
            error = CalledProcessError(self.returncode, self.args, self.stdout, self.stderr)
            error.result = self
            raise error


# ── the records of csrc/init/plan.h ──────────────────────────────────────────────────────────────────────────────────

RECORD_SIZE: Final = 1024
_RECORD = Struct("<2I2iq")
_IDENTITY = Struct("<8I5Q5Q")
_MAX_GROUPS, _NO_LIMIT = 176, 2**64 - 1
_USAGE = Struct("<10q")
R_INIT, R_FAILED, R_HELD, R_STARTED, R_ENDED, R_FD, R_REFUSED = range(1, 8)
Q_KILL, Q_RELEASE, Q_DETACH, Q_NAMESPACE, Q_SPAWN, Q_SIGNAL, Q_PIDFD = range(64, 71)

CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
_SETS: Final = ("effective", "permitted", "inheritable", "bounding", "ambient")
_NO_CAPABILITIES: Final[Mapping[str, frozenset[str]]] = dict.fromkeys(_SETS, frozenset())


class Record(NamedTuple):
    """One message of init; `body` is what its type says, `fds` are ours to close."""

    type: int
    id: int
    step: int
    error: int
    value: int
    body: bytes
    fds: tuple[int, ...]


def parse_record(raw: bytes, fds: tuple[int, ...]) -> Record:
    """Split a record.

    Raises:
        ValueError: It has not the size of a record.
    """
    if len(raw) != RECORD_SIZE:
        raise ValueError(f"a record has {RECORD_SIZE} bytes, got {len(raw)}")
    type_, id_, step, error, value = _RECORD.unpack_from(raw)
    return Record(type_, id_, step, error, value, raw[_RECORD.size :], fds)


def request(type_: int, *, id_: int = 0, value: int = 0) -> bytes:
    """Make a record for init."""
    return _RECORD.pack(type_, id_, 0, 0, value) + bytes(RECORD_SIZE - _RECORD.size)


def _capabilities(mask: int) -> frozenset[str]:
    if not mask:
        return frozenset()
    bits = (i for i in range(64) if mask >> i & 1)
    return frozenset(CAPABILITIES[i] if i < len(CAPABILITIES) else str(i) for i in bits)


def parse_identity(body: bytes, layers: Layers = Layers()) -> Enforced:  # noqa: B008  # a value
    """Read the self-check of the payload; after it come only the layers that the plan adds, and they did not fail."""
    uid, gid, securebits, no_new_privs, dumpable, seccomp, groups, _, *rest = _IDENTITY.unpack_from(body)
    sets, soft = rest[:5], rest[5:]
    shown = min(groups, _MAX_GROUPS)
    known = Struct(f"<{shown}I").unpack_from(body, _IDENTITY.size) if shown else ()
    return Enforced(
        uid=uid,
        gid=gid,
        groups=known,
        capabilities=(
            {name: _capabilities(mask) for name, mask in zip(_SETS, sets, strict=True)}
            if any(sets)
            else dict(_NO_CAPABILITIES)
        ),
        securebits=securebits,
        no_new_privs=bool(no_new_privs),
        dumpable=bool(dumpable),
        seccomp_filters=(1 if seccomp == 2 else 0) + layers.filters,
        limits={name: inf if one == _NO_LIMIT else one for name, one in zip(RLIMITS, soft, strict=True)},
        landlock_abi=layers.landlock_abi,
        landlock_layers=layers.landlock_layers,
        gaps=layers.gaps,
        missing=layers.missing,
    )


def parse_usage(body: bytes) -> Usage:
    """Read what the tree used; the kernel counts block I/O in units of 512 bytes."""
    user, system, rss, _, _, blocks_in, blocks_out, voluntary, forced, wall = _USAGE.unpack_from(body)
    return Usage(
        wall=wall / 1e9,
        user=user / 1e6,
        system=system / 1e6,
        cpu_time=(user + system) / 1e6,
        max_rss=rss * 1024,
        read_bytes=blocks_in * 512,
        written_bytes=blocks_out * 512,
        context_switches=voluntary + forced,
    )


class Control(Protocol):
    """The caller's end of the control channel."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...

    def receive(self, *, wait: bool) -> Record | None:
        """Return the next record; None at the end of file; BlockingIOError when there is none, with wait after 1 s."""
        ...

    def send(self, record: bytes) -> None:
        """Send a request; an end that is gone is not an error, the end of file tells."""
        ...

    def close(self) -> None:
        """Close it: init then ends the sandbox."""
        ...


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors of ours."""
    for fd in fds:
        os.close(fd)


def _pidfd_wait(pidfd: int) -> int | None:
    """Reap a child by its pidfd; None when somebody else did, or SIGCHLD is ignored."""
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None
    return None if info is None else info.si_status


_SIGKILL_AFTER = 0.1


class Process(Generic[AnyStr]):
    """A running sandbox, with the interface of `subprocess.Popen`, on pidfds.

    Leaving the `with` block waits, as Popen does; leaving it by an exception kills first.

    Attributes:
        args: The command.
        init_pid: PID 1 of the sandbox, as the host sees it.
        init_pidfd: Its pidfd, owned by this object.
        enforced: What was read back before the program was executed.
        returncode: None while it runs; -N for signal N.
        stdin: The caller's end of a pipe, or None.
        stdout: Likewise.
        stderr: Likewise.
        denials: What the filter refuses, as it happens, with `observe()`.
        notifier: The calls that wait for an answer, with a filter that says Notify.
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
        self._decode: Callable[[bytes], AnyStr] = cast("Callable[[bytes], AnyStr]", bytes)
        self._owner = os.getpid()

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
            self.enforced = parse_identity(record.body, self.layers)
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
        ready = dict(poller.poll(_milliseconds(deadline)))
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
        if not self._wait(_deadline(timeout)):
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
        if not self._wait(_deadline(_SIGKILL_AFTER)):
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
        exchange = Exchange(self, data)
        if not exchange.run(_deadline(timeout)):
            raise TimeoutExpired(self.args, cast(float, timeout), *exchange.output())
        out, err = exchange.output()
        self.close_streams()
        return (
            None if out is None else self._decode(out),
            None if err is None else self._decode(err),
        )

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
                try:
                    stream.close()
                except BrokenPipeError:  # what was still buffered has no reader left
                    continue

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


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _milliseconds(deadline: float | None) -> int | None:
    """Return what poll() wants, rounded up: a timeout never ends early."""
    return None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)


def _readable(fd: int, deadline: float | None) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(_milliseconds(deadline)))


def _send_signal(pidfd: int, number: int) -> None:
    signal.pidfd_send_signal(pidfd, number)


class Exchange:
    """Feeds stdin and drains stdout and stderr until the sandbox has ended."""

    def __init__(self, process: Process[Any], input: bytes | bytearray | memoryview | None) -> None:
        self._process = process
        self._input = memoryview(input or b"").cast("B")
        self._chunks: dict[int, list[bytes]] = {}
        self._out = process.stdout.fileno() if process.stdout is not None else -1
        self._err = process.stderr.fileno() if process.stderr is not None else -1
        self._poller = select.poll()
        self._open: set[int] = set()
        for fd in (self._out, self._err):
            if fd >= 0:
                self._chunks[fd] = []
                self._open.add(fd)
                self._poller.register(fd, select.POLLIN)
        self._in = -1
        if process.stdin is not None:
            if self._input:
                self._in = process.stdin.fileno()
                os.set_blocking(self._in, False)
                self._poller.register(self._in, select.POLLOUT)
            else:
                _close_stdin(process)

    def run(self, deadline: float | None) -> bool:
        """Exchange until the end; False when the deadline passes first."""
        process = self._process
        control = process._control
        control_fd = control.fileno() if control is not None else -1
        if control_fd >= 0:
            self._poller.register(control_fd, select.POLLIN)
        denials_fd = -1 if process.denials is None or process.denials.closed else process.denials.fileno()
        if denials_fd >= 0:
            self._poller.register(denials_fd, select.POLLIN)
        while process.returncode is None:
            ready = self._poller.poll(_milliseconds(deadline))
            if not ready:
                return False
            for fd, _ in ready:
                if fd == control_fd:
                    process._take(cast(Control, control).receive(wait=True))
                elif fd == denials_fd:
                    if not process.answer():
                        self._poller.unregister(fd)
                elif fd == self._in:
                    self._feed()
                else:
                    self._drain(fd)
        self._rest()
        return True

    def _feed(self) -> None:
        try:
            sent = os.write(self._in, self._input[: select.PIPE_BUF * 16])
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self._input)
        self._input = self._input[sent:]
        if not self._input:
            self._poller.unregister(self._in)
            self._in = -1
            _close_stdin(self._process)

    def _drain(self, fd: int) -> None:
        data = os.read(fd, 1 << 18)
        if data:
            self._chunks[fd].append(data)
        else:
            self._poller.unregister(fd)
            self._open.discard(fd)

    def _rest(self) -> None:
        """Take what is still in the pipes: all writers inside are dead, and others are not waited for."""
        for fd in self._open:
            os.set_blocking(fd, False)
            while True:
                try:
                    data = os.read(fd, 1 << 18)
                except BlockingIOError:  # a copy of the other end lives on outside of the sandbox
                    break
                if not data:
                    break
                self._chunks[fd].append(data)

    def output(self) -> tuple[bytes | None, bytes | None]:
        """Return what stdout and stderr said so far; None for what is no pipe."""
        out = b"".join(self._chunks[self._out]) if self._out >= 0 else None
        err = b"".join(self._chunks[self._err]) if self._err >= 0 else None
        return out, err


def _close_stdin(process: Process[Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:  # nobody reads any more, and that is the payload's right
        return


def decoder(encoding: str | None, errors: str | None) -> Callable[[bytes], str]:
    """Return what turns output into text, newlines translated, as subprocess does it."""
    if encoding is None:
        import locale

        encoding = locale.getpreferredencoding(False)

    def decode(data: bytes) -> str:
        return data.decode(encoding, errors or "strict").replace("\r\n", "\n").replace("\r", "\n")

    return decode


def finish(
    process: Process[Any], input: bytes | None, timeout: float | None, decode: Callable[[bytes], Any] | None
) -> Result[Any]:
    """Run a started process to its end, as subprocess.run does.

    Raises:
        TimeoutExpired: The whole tree was killed; the error has what was said until then.
    """
    try:
        piped = process.stdin is not None or process.stdout is not None or process.stderr is not None
        if not piped and timeout is None:
            if process.denials is None:
                # The end itself wakes us, not PID 1's word of it: a caller who runs would hold the end up.
                _pidfd_wait(process.init_pidfd)
                process.reaped = True
            process._wait(None)
            return process._result(None, None)
        exchange = Exchange(process, input)
        in_time = exchange.run(_deadline(timeout))
        if not in_time:
            process._cause = Reason.TIMEOUT
            process.kill()
            exchange.run(None)
            process._detail = f"killed after {timeout} seconds, the caller's timeout"
        out, err = exchange.output()
        if not in_time:
            expired = TimeoutExpired(process.args, cast(float, timeout), out, err)
            expired.result = process._result(*_decoded(out, err, decode))
            raise expired
        return process._result(*_decoded(out, err, decode))
    except BaseException:
        process.kill()
        raise
    finally:
        process.close()


def _decoded(out: bytes | None, err: bytes | None, decode: Callable[[bytes], Any] | None) -> tuple[Any, Any]:
    if decode is None:
        return out, err
    return None if out is None else decode(out), None if err is None else decode(err)
