"""What of a service touches the world: its processes, pipes and sockets, one launch after the other."""

import errno
import logging
import os
import secrets
import select
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from sandbox import Process, Result, Sandbox
from sandbox.errors import SandboxError, SetupError
from sandbox.supervise import protocol
from sandbox.supervise.closing import Closer
from sandbox.supervise.definition import NOTIFY_INSIDE, Definition
from sandbox.supervise.machine import Machine
from sandbox.supervise.output import Lines, read_some

if TYPE_CHECKING:
    from sandbox.supervise.protocol import Message

_PF_EXITING: Final = 0x4
_MAX_STORED: Final = 128
_AT_ONCE: Final = 512  # notifications, before others have their turn

log = logging.getLogger("sandbox.supervise")


class Loop(Protocol):
    """Who calls when a descriptor is ready."""

    _machine: Machine
    _null: int  # a descriptor of /dev/null

    def _now(self) -> float:
        """Return the time of the machine."""
        ...

    def _watch(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call a function whenever a descriptor is ready."""
        ...

    def _unwatch(self, fd: int) -> None:
        """Do so no more; before the descriptor is closed."""
        ...

    def _lost(self, session: int, marker: bytes) -> None:
        """PID 1 of a service is gone, and what it had below it is now below this process."""
        ...


class Service:
    """One service; `definition` says what it is, `Machine` when something happens to it."""

    def __init__(self, name: str, definition: Definition, loop: Loop) -> None:
        self.name = name
        self.definition = definition
        self.next: Definition | None = None  # by replace, until the machine says that it counts
        self.marker = f"{name}.{secrets.token_hex(8)}"
        self._loop = loop
        self._process: Process[bytes] | None = None
        self._pid = 0
        self._notify: socket.socket | None = None
        self._ready = -1
        self._probe: socket.socket | None = None
        self._streams: dict[int, Lines] = {}
        self._stored: list[tuple[str, int]] = []
        self._closer = Closer()
        self._denials = -1

    # ── launching ──

    def launch(self) -> None:
        """Start the command and tell the machine."""
        machine, name = self._loop._machine, self.name
        theirs: list[int] = []
        try:
            process = self._start(theirs)
        except (SandboxError, OSError, ValueError) as error:
            self._let_go()
            machine.exited(name, _not_launched(self.definition.args, error), self._loop._now())
            return
        except BaseException:
            self._let_go()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._process = process
        self._loop._watch(process.fileno(), self._may_have_ended)
        if process.denials is not None:
            self._denials = process.denials.fileno()
            self._loop._watch(self._denials, self._answer)
        try:
            self._pid = process.pid
        except ProcessLookupError:  # it was quick
            self._pid = 0
        machine.started(name, self._pid, self._loop._now())

    def _start(self, theirs: list[int]) -> Process[bytes]:
        """Launch; `theirs` gets what is to be closed when that is done, the rest is noted in this object."""
        definition = self.definition
        passed = [*definition.sockets, *self._stored]
        fds = {protocol.LISTEN_FDS_START + i: fd for i, (_, fd) in enumerate(passed)}
        extra: dict[str, str] = {}
        if passed:
            extra["LISTEN_FDS"] = str(len(passed))
            extra["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
            extra["LISTEN_PID"] = definition.pid_inside or protocol.ROOM
        ready = definition.ready
        if ready is not None and ready.kind == "fd":
            self._ready, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(write_end, True)
            theirs.append(write_end)
            self._loop._watch(self._ready, self._ready_readable)
            number = ready.number if ready.number is not None else max(fds, default=2) + 1
            if number in fds:
                raise ValueError(f"Ready.fd({number}) is the number of a stored descriptor: they follow the sockets")
            fds[number] = write_end
            extra["READY_FD"] = str(number)
        if definition.watchdog is not None:
            extra["WATCHDOG_USEC"] = str(round(definition.watchdog * 1e6))
        box = definition.sandbox
        if box is None:
            return self._start_plain(definition, fds, extra, theirs)
        return self._start_inside(box, definition, fds, extra)

    def _start_plain(
        self, definition: Definition, fds: dict[int, int], extra: dict[str, str], theirs: list[int]
    ) -> Process[bytes]:
        assert definition.plain is not None
        assert definition.env is not None
        if definition.notifies:
            self._notify, extra["NOTIFY_SOCKET"] = protocol.abstract_socket()
            self._loop._watch(self._notify.fileno(), self._notified)
        extra["SANDBOX_SERVICE"] = self.marker
        null = self._loop._null
        streams = [null, -1, -1]
        for i in (1, 2):
            if definition.sink is None:
                streams[i] = i if _is_open(i) else null
            else:
                read_end, streams[i] = os.pipe2(os.O_CLOEXEC)
                theirs.append(streams[i])
                self._listen(read_end)
        return definition.plain.start(definition.args, {**definition.env, **extra}, streams, fds)

    def _start_inside(
        self, box: Sandbox, definition: Definition, fds: dict[int, int], extra: dict[str, str]
    ) -> Process[bytes]:
        folder = definition.notify_folder
        if not definition.own_pids:
            extra["SANDBOX_SERVICE"] = self.marker
        if folder is not None:
            # An abstract address is of one network namespace; a file is bound inside, and then gone from here.
            os.mkdir(folder, 0o700)
            path = f"{folder}/socket"
            extra["NOTIFY_SOCKET"] = NOTIFY_INSIDE
        try:
            if folder is not None:
                self._notify = protocol.file_socket(path)
                self._loop._watch(self._notify.fileno(), self._notified)
            options: dict[str, Any] = {}
            if definition.env is not None or extra:
                options["env"] = {**(definition.inside_env if definition.env is None else definition.env), **extra}
            if definition.cwd is not None:
                options["cwd"] = definition.cwd
            if definition.sink is not None:
                options["stdout"] = options["stderr"] = -1  # PIPE
            process = box.popen(definition.args, fds=fds, bufsize=0, **options)
        finally:
            if folder is not None:
                if self._notify is not None:
                    os.unlink(path)
                os.rmdir(folder)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                self._listen(os.dup(stream.fileno()))
        process._close_streams()
        return process

    def _listen(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._streams[fd] = Lines()
        self._loop._watch(fd, lambda: self._read(fd))

    # ── what the machine asks for ──

    def send_signal(self, number: int) -> None:
        """Send a signal to the main process."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the tree: PID 1 of it kills and reaps what its main process leaves behind."""
        self.send_signal(signal.SIGKILL)

    def force(self) -> None:
        """Kill PID 1 itself, which does not do its work: stopped perhaps."""
        if self._process is not None:
            self._process._signal_init()

    def probe(self) -> None:
        """Ask whether it is well, as its readiness says."""
        ready = self.definition.ready
        if ready is None:
            return
        if ready.check is not None:
            try:
                well, why = bool(ready.check()), "its check says no"
            except Exception as error:  # noqa: BLE001  # the caller's function; it is told in the status
                well, why = False, f"its check failed: {error!r}"
            self._loop._machine.probed(self.name, well, why, self._loop._now())
        elif ready.address is not None:
            self._connect(ready.address)

    def swap(self) -> None:
        """Let the new definition count."""
        if self.next is not None:
            self.definition.close()
            self.definition, self.next = self.next, None
            self._drop_stored()

    def close(self) -> None:
        """Let go of everything; a process that still runs is killed."""
        if self._process is not None:
            self._process.kill()
        self._let_go()
        self._drop_stored()
        for definition in (self.definition, self.next):
            if definition is not None:
                definition.close()

    # ── what happens ──

    def _may_have_ended(self) -> None:
        process = self._process
        if process is None:
            return
        result: Result[bytes]
        try:
            if process.poll() is None:
                return
            result = process.result()
        except SetupError as error:
            result = _not_launched(self.definition.args, error)
        # What it said last counts before its end does.
        if self._notify is not None:
            self._notified()
        for fd in list(self._streams):
            self._read(fd)
        orphaned = process._unreported and not self.definition.own_pids
        session = self._pid
        self._let_go()
        if orphaned:
            self._loop._lost(session, f"SANDBOX_SERVICE={self.marker}".encode())
        self._loop._machine.exited(self.name, result, self._loop._now())

    def _let_go(self) -> None:
        """Close what belongs to one launch."""
        loop, process = self._loop, self._process
        for fd, lines in self._streams.items():
            rest = lines.rest()
            if rest:
                self._write(rest + b"\n")
            loop._unwatch(fd)
            os.close(fd)
        self._streams.clear()
        self._close_notify()
        self._close_ready()
        self._close_probe()
        if process is not None:
            if self._denials >= 0:
                loop._unwatch(self._denials)
                self._denials = -1
            loop._unwatch(process.fileno())
            process.close()
            self._process = None
        self._pid = 0

    def _answer(self) -> None:
        if self._process is not None and not self._process._answer():
            self._loop._unwatch(self._denials)
            self._denials = -1

    def _read(self, fd: int) -> None:
        while (data := read_some(fd)) is not None:
            if not data:
                self._loop._unwatch(fd)
                rest = self._streams.pop(fd).rest()
                os.close(fd)
                if rest:
                    self._write(rest + b"\n")
                return
            for line in self._streams[fd].feed(data):
                self._write(line)
            if self._process is not None and self._process.returncode is None:
                return  # others have their turn; what is left makes it ready again

    def _write(self, line: bytes) -> None:
        sink = self.definition.sink
        if sink is None:
            return
        try:
            sink(self.name, line)
        except Exception:  # one log that cannot be written must not end every service
            log.exception("the output of %s is lost: %r", self.name, line[:200])

    def _ready_readable(self) -> None:
        written = read_some(self._ready)
        if written is None:
            return
        # Its end closes it, too, and may be heard of before: the kernel says so in the flags of the process.
        fields = None if written else protocol.stat_fields(self._pid)
        if written or (fields is not None and not int(fields[6]) & _PF_EXITING and fields[0] not in {b"Z", b"X"}):
            self._loop._machine.ready(self.name, self._loop._now())
        if not written:  # otherwise it stays: who writes twice must not die of a broken pipe
            self._close_ready()

    def _close_ready(self) -> None:
        if self._ready >= 0:
            self._loop._unwatch(self._ready)
            os.close(self._ready)
            self._ready = -1

    def _connect(self, address: tuple[str, int]) -> None:
        self._close_probe()
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            probe = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._loop._machine.probed(self.name, False, f"no probe: {error}", self._loop._now())
            return
        self._probe = probe
        error_number = probe.connect_ex(address)
        if error_number == errno.EINPROGRESS:
            self._loop._watch(probe.fileno(), self._connected, select.EPOLLOUT)
        else:
            self._close_probe()
            self._asked(address, error_number)

    def _connected(self) -> None:
        ready = self.definition.ready
        if self._probe is not None and ready is not None and ready.address is not None:
            error_number = self._probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._close_probe()
            self._asked(ready.address, error_number)

    def _asked(self, address: tuple[str, int], error_number: int) -> None:
        why = f"{address[0]} port {address[1]}: {os.strerror(error_number)}"
        self._loop._machine.probed(self.name, error_number == 0, why, self._loop._now())

    def _close_probe(self) -> None:
        if self._probe is not None:
            self._loop._unwatch(self._probe.fileno())
            self._probe.close()
            self._probe = None

    # ── sd_notify ──

    def _notified(self) -> None:
        for _ in range(_AT_ONCE):  # what is left makes it ready again
            message = None if self._notify is None else protocol.receive(self._notify)
            if message is None:
                return
            keep: tuple[int, ...] = ()
            try:
                if self._trusted(message):
                    keep = self._take(message)
            finally:
                self._closer.close(fd for fd in message.fds if fd not in keep)
            if self._closer.full:
                log.error("%s sends descriptors that cannot be closed: it is not listened to any more", self.name)
                self._close_notify()

    def _close_notify(self) -> None:
        if self._notify is not None:
            self._loop._unwatch(self._notify.fileno())
            self._closer.close([self._notify.detach()])
            self._notify = None

    def _trusted(self, message: "Message") -> bool:
        """Say whether a message comes from this service: by its sender's ancestors, or, when it is gone, its user."""
        if self._process is None:
            return False
        below = protocol.descends(message.pid, self._process.init_pid)
        if below is None:
            # Inside of a sandbox nobody else can reach the socket; an abstract one has a name that all can see.
            return self.definition.sandbox is not None or message.uid in {0, os.geteuid()}
        return below

    def _take(self, message: "Message") -> tuple[int, ...]:
        """Do what a message says; return the descriptors that are kept."""
        machine, name, now, said = self._loop._machine, self.name, self._loop._now(), message.fields
        if "STATUS" in said:
            machine.says(name, said["STATUS"])
        if "WATCHDOG_USEC" in said and (every := protocol.microseconds(said["WATCHDOG_USEC"])) is not None:
            machine.set_watchdog(name, every, now)
        if said.get("RELOADING") == "1":
            machine.reloading(name)
        if said.get("READY") == "1":
            machine.ready(name, now)
        if said.get("STOPPING") == "1":
            machine.stopping(name, now)
        if said.get("WATCHDOG") == "1":
            machine.pinged(name, now)
        elif said.get("WATCHDOG") == "trigger":
            machine.trigger(name, now)
        if "EXTEND_TIMEOUT_USEC" in said and (more := protocol.microseconds(said["EXTEND_TIMEOUT_USEC"])) is not None:
            machine.extend(name, more, now)
        if said.get("FDSTOREREMOVE") == "1":
            self._drop_stored(said.get("FDNAME", ""))
        if said.get("FDSTORE") == "1":
            room = max(0, _MAX_STORED - len(self._stored))
            label = protocol.fd_name(said.get("FDNAME"), "stored")
            self._stored += [(label, fd) for fd in message.fds[:room]]
            return message.fds[:room]
        return ()

    def _drop_stored(self, label: str | None = None) -> None:
        for stored in list(self._stored):
            if label is None or stored[0] == label:
                self._stored.remove(stored)
                self._closer.close([stored[1]])


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _not_launched(args: Any, error: Exception) -> Result[bytes]:
    """Return the result of a command that never ran; its exit status is what a shell would say."""
    status = 125
    if isinstance(error, SetupError) and error.call.startswith("execve("):
        status = 127 if error.errno == errno.ENOENT else 126
    return Result(args, status, detail=f"it could not be launched: {error}")
