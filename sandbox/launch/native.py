"""What a launch asks of the compiled module, and the descriptors that it keeps for that."""

import errno
import fcntl
import os
import select
import stat
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sandbox._native import ffi, lib
from sandbox.errors import SetupError
from sandbox.records import Record, parse_record
from sandbox.template import SLOTS_OFFSET

if TYPE_CHECKING:
    from sandbox.causes import Cause

_PAIR, _NUMBERS, _MESSAGE = map(ffi.typeof, ("int[2]", "int[]", "struct launch_message *"))
_INIT_PATH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "init")
_WANT: Final = frozenset({errno.EMFILE, errno.ENFILE})
# Where not even the table of causes can be loaded.
_NO_DESCRIPTOR: Final = (
    "the limit on open descriptors is reached; ulimit -n 1024; for all processes together: sudo sysctl fs.file-max"
)


def _error(number: int, call: str) -> OSError:
    return OSError(number, f"{call}: {os.strerror(number)}")


def _launch_error(number: int, call: str, operation: str = "launch") -> SetupError:
    hint: str | Cause | None = _NO_DESCRIPTOR
    try:
        from sandbox.hints import hint_for

        hint = hint_for(operation, (), number)
    except OSError:  # a module is a file, and may not be opened any more
        if number not in _WANT:
            raise
    return SetupError(number, call=call, origin="launch", hint=hint)


def explained(error: OSError) -> OSError:
    """Return what to raise for an error before the plan: one for want of descriptors says so, whatever the call."""
    if error.errno not in _WANT or isinstance(error, SetupError):
        return error
    call, colon, _ = (error.strerror or "").partition(":")
    if error.filename is not None:
        call = f'open("{os.fsdecode(error.filename)}")'
    return _launch_error(error.errno or errno.EMFILE, call if colon or error.filename is not None else "launch")


# Held while a descriptor that is kept between launches is looked at, made again or given up.
lock = threading.RLock()


def _renew_lock() -> None:
    """After a fork: the thread that held the lock may not be among us."""
    global lock
    lock = threading.RLock()


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
        with lock:
            ours = self._kept
            if ours is None or not ours.valid():
                from sandbox.facts import apparmor_restricts

                # What allows user namespaces by path has to see one.
                if apparmor_restricts():
                    self._only_file = True
                    return -1
                with open(_INIT_PATH, "rb") as stream:
                    program = stream.read()
                fd = lib.launch_memfd(b"sandbox-init", program, len(program), 0, ffi.NULL, 0, 1)
                if fd < 0:
                    if self.refused(-fd):
                        return -1
                    raise _launch_error(-fd, "memfd_create(init)")
                ours = self._kept = Kept(fd)
            return ours.fd

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


def own_pidfd() -> int:
    """Return a pidfd of this very process: PID 1 ends when it does. After a fork it is another process."""
    global _lifeline
    pid = os.getpid()
    with lock:
        if _lifeline is not None:
            of, pidfd, own_inode = _lifeline
            ours = pidfd.valid() and (own_inode or _is_pidfd_of(pidfd.fd, of))
            if ours and of == pid:
                return pidfd.fd
            if ours:
                pidfd.close()
        fd: int = lib.launch_pidfd_self()
        if fd < 0:
            raise _launch_error(-fd, "pidfd_open", "pidfd_open")
        # Before Linux 6.9 all pidfds are the inode of anonymous files, 0600; since then each process has one, 0700.
        _lifeline = pid, Kept(fd), bool(os.fstat(fd).st_mode & stat.S_IXUSR)
        return fd


_EAGAIN, _EINTR, _ECONNRESET = -errno.EAGAIN, -errno.EINTR, -errno.ECONNRESET
_MSG_DONTWAIT = 0x40
# Milliseconds that PID 1, which does nothing but answer, may take to make room for a request.
_PATIENCE = 5000


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
            OSError: EMFILE: no descriptor was left for those that came with it; it is lost.
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
        """Send a request; that nobody is there any more is told by the end of file.

        Raises:
            TimeoutError: There is no room, and PID 1 makes none: it was stopped from outside.
        """
        numbers = ffi.new(_NUMBERS, fds) if fds else ffi.NULL
        while (sent := lib.launch_send(self._fd, record, numbers, len(fds))) < 0:
            if -sent in {errno.EPIPE, errno.ECONNRESET}:
                return
            if -sent != errno.EAGAIN:
                raise _error(-sent, "sendmsg")
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            if not poller.poll(_PATIENCE):
                raise TimeoutError(errno.ETIMEDOUT, "PID 1 of the sandbox takes no requests: is it stopped?")

    def close(self) -> None:
        """Close it; init then ends the sandbox."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def socketpair() -> tuple[int, int]:
    """Return the ends of a control channel: the caller's and init's."""
    pair = ffi.new(_PAIR)
    result: int = lib.launch_socketpair(pair)
    if result < 0:
        raise _launch_error(-result, "socketpair", "socketpair")
    return pair[0], pair[1]


def claim(name: str) -> int | None:
    """Hold a name on this host for as long as the returned descriptor lives; None when somebody has it."""
    raw = name.encode()
    fd: int = lib.launch_claim(raw, len(raw))
    if fd >= 0:
        return fd
    if fd == -errno.EADDRINUSE:
        return None
    raise _launch_error(-fd, "bind", "bind")


def spawn(image: bytearray, slots: Sequence[int], stage: Any) -> None:
    """Start stage 1; its pidfd and pid go to `stage`, which the caller sees even if a signal handler raises."""
    numbers = ffi.new(_NUMBERS, slots)
    data = ffi.from_buffer(image)
    while True:
        fd = _init_program.fd()
        result = lib.launch_spawn(fd, _init_path, data, len(image), SLOTS_OFFSET, numbers, len(slots), stage)
        if result == 0:
            return
        if not _init_program.refused(-result):
            raise _launch_error(-result, "execveat(init)" if fd >= 0 else f'execve("{_INIT_PATH}")')


def seal(image: bytearray) -> int:
    """Return a sealed memfd with a plan, for the caller to close."""
    fd: int = lib.launch_memfd(b"sandbox-plan", ffi.from_buffer(image), len(image), 0, ffi.NULL, 0, 0)
    if fd < 0:
        raise _error(-fd, "memfd_create")
    return fd


def new_stage() -> Any:
    """Return where `spawn` puts the pidfd and the pid of stage 1; -1 each so far."""
    return ffi.new(_PAIR, (-1, -1))
