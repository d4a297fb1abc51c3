"""`Signalfd`: signals as events, with everything that the kernel knows about each."""

import ctypes
import functools
import os
import signal as _signal
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from sandbox.events.base import EventLike
from sandbox.events.base_async import EventLike_async, of_source
from sandbox.primitives.signals import (
    NSIG,
    SFD_CLOEXEC,
    SFD_NONBLOCK,
    SIG_BLOCK,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SignalfdFlags,
    pthread_sigmask,
    rt_tgsigqueueinfo,
    signal_number,
    signalfd,
    sigqueue,
    sigset,
    sigset_members,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "NEW_SIGNALFD",
    "SFD_CLOEXEC",
    "SFD_NONBLOCK",
    "SIGINFO_LENGTH",
    "SIG_BLOCK",
    "SIG_SETMASK",
    "SIG_UNBLOCK",
    "Signalfd",
    "SignalfdEvent",
    "SignalfdFlags",
    "Signalfd_async",
    "pthread_sigmask",
    "rt_tgsigqueueinfo",
    "signalfd",
    "signum_to_signame",
    "sigqueue",
    "str_to_events",
]

NEW_SIGNALFD = -1
SIGINFO_LENGTH = 128

_RECORDS = 64  # per read: two pages
_SIGNALS = tuple(signal_number(number) for number in range(NSIG + 1))
_UNCATCHABLE = sigset((_signal.SIGKILL, _signal.SIGSTOP))
_ALL = 2**NSIG - 1 & ~_UNCATCHABLE


class SignalfdEvent(ctypes.Structure):
    """One signal that arrived: the kernel's record, which cannot be changed.

    Which of its fields say something depends on `code`, see signalfd(2). Two events are equal when their records
    are; `bytes(event)` is the record.

    Attributes:
        signo: The number, as the kernel gave it; `signal` is the same with its name where it has one.
        errno: Not used by Linux.
        code: Why it was sent: `SI_USER` is 0, `SI_QUEUE` -1, `CLD_EXITED` 1 ...
        pid: The sender, or the child of SIGCHLD.
        uid: Its real user id.
        fd: The descriptor of SIGIO.
        tid: The timer of a POSIX timer.
        band: What happened on the descriptor of SIGIO, as of poll(2).
        overrun: How many times a POSIX timer expired more.
        trapno: The trap of a hardware fault.
        status: Exit status or signal of the child of SIGCHLD.
        value: The int that `sigqueue` sent, signed.
        ptr: The same as a pointer.
        utime: User time of the child, in clock ticks.
        stime: System time of the child, in clock ticks.
        addr: Where a hardware fault happened.
        addr_lsb: Least significant bit of `addr` that counts.
        syscall: The call that a seccomp filter trapped.
        call_addr: Its address.
        arch: Its AUDIT_ARCH value.
    """

    # A structure, and not a tuple of numbers: one copy makes all events of a read, and no field is made into an
    # object before somebody asks for it.
    __slots__ = ()
    _fields_ = (
        ("signo", ctypes.c_uint32),
        ("errno", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("pid", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("fd", ctypes.c_int32),
        ("tid", ctypes.c_uint32),
        ("band", ctypes.c_uint32),
        ("overrun", ctypes.c_uint32),
        ("trapno", ctypes.c_uint32),
        ("status", ctypes.c_int32),
        ("value", ctypes.c_int32),
        ("ptr", ctypes.c_uint64),
        ("utime", ctypes.c_uint64),
        ("stime", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("addr_lsb", ctypes.c_uint16),
        ("_hole", ctypes.c_uint16),
        ("syscall", ctypes.c_int32),
        ("call_addr", ctypes.c_uint64),
        ("arch", ctypes.c_uint32),
        ("_rest", ctypes.c_uint8 * 28),
    )
    signo: int
    errno: int
    code: int
    pid: int
    uid: int
    fd: int
    tid: int
    band: int
    overrun: int
    trapno: int
    status: int
    value: int
    ptr: int
    utime: int
    stime: int
    addr: int
    addr_lsb: int
    syscall: int
    call_addr: int
    arch: int
    # Butter's spellings, set below
    signal_code: int
    sigio_fd: int
    sigio_band: int
    timer_id: int
    child_status: int
    child_user_time: int
    child_system_time: int

    @property
    def signal(self) -> _signal.Signals | int:
        """The signal; an int where `signal.Signals` has no member, which is so for most real-time signals."""
        return _SIGNALS[self.signo]

    def __setattr__(self, name: str, value: object = None) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: it is what the kernel said")

    __delattr__ = __setattr__

    def __eq__(self, other: object) -> bool:
        return bytes(self) == bytes(other) if isinstance(other, SignalfdEvent) else NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self))

    def __reduce__(self) -> "tuple[Callable[[bytes], SignalfdEvent], tuple[bytes]]":
        return type(self).from_buffer_copy, (bytes(self),)

    def __repr__(self) -> str:
        """Show the fields that are not 0."""
        shown = {name: getattr(self, name) for name, *_ in self._fields_ if name[0] != "_"}
        text = ", ".join(f"{name}={value}" for name, value in shown.items() if value)
        return f"{type(self).__name__}({signum_to_signame(self.signo)}, {text})"


for _butters, _ours in (
    ("signal_code", "code"),
    ("sigio_fd", "fd"),
    ("sigio_band", "band"),
    ("timer_id", "tid"),
    ("child_status", "status"),
    ("child_user_time", "utime"),
    ("child_system_time", "stime"),
):
    setattr(SignalfdEvent, _butters, getattr(SignalfdEvent, _ours))


@functools.cache
def _array(records: int) -> type[ctypes.Array[SignalfdEvent]]:
    return SignalfdEvent * records


class Signalfd(EventLike[SignalfdEvent]):
    """Signals that arrive for this process, or for the reading thread, as events.

    Only blocked signals arrive here, so they are blocked in the thread that makes the object, and given
    back by `close` in the same thread; a signal that is pending then is delivered as if it had never been
    blocked. In a program with several threads make it before they are started: they inherit the mask.

    Args:
        signals: A signal number or an iterable of them, 1 to 64.
        nonblock: `read_event` raises BlockingIOError instead of waiting.
        block: Block the signals; False where the caller has done so.

    Raises:
        TypeError: Not a signal number.
        ValueError: A number out of its range, SIGKILL or SIGSTOP.
        OSError: EMFILE or ENFILE (no descriptor left).

    See signalfd(2). Since Linux 2.6.27.
    """

    name: ClassVar[str] = "signalfd"
    _record_size = SIGINFO_LENGTH

    def __init__(self, signals: int | Iterable[int] = (), *, nonblock: bool = False, block: bool = True) -> None:
        self._bits = _catchable(signals)
        self._block = block
        self._blocked: set[int] = set()  # by this object: what was blocked before stays so
        self._thread = threading.get_ident()
        fd = signalfd(-1, sigset_members(self._bits), SFD_CLOEXEC | SFD_NONBLOCK)
        super().__init__(fd, nonblock=nonblock)
        if block:
            self._block_more(self._bits)

    def _read(self) -> list[SignalfdEvent]:
        try:
            data = os.read(self._fd, SIGINFO_LENGTH * _RECORDS)
        except BlockingIOError:
            return []
        return _array(len(data) // SIGINFO_LENGTH).from_buffer_copy(data)[:]

    @property
    def signals(self) -> frozenset[int]:
        """The signals that arrive here."""
        return frozenset(sigset_members(self._bits))

    def __contains__(self, signal: int) -> bool:
        """Return whether a signal arrives here."""
        return bool(self._bits & sigset(signal))

    def enable(self, signals: int | Iterable[int]) -> None:
        """Let more signals arrive here, and block them in the calling thread.

        Args:
            signals: A signal number or an iterable of them, 1 to 64.

        Raises:
            TypeError: Not a signal number.
            ValueError: A number out of its range, SIGKILL or SIGSTOP; or the object is closed.
        """
        bits = _catchable(signals)
        self._set(self._bits | bits)
        if self._block:
            self._block_more(bits)

    def disable(self, signals: int | Iterable[int]) -> None:
        """Let signals go their usual way again, unblocked if this object had blocked them.

        Raises:
            TypeError: Not a signal number.
            ValueError: A number out of its range; or the object is closed.
        """
        bits = sigset(signals)
        self._set(self._bits & ~bits)
        self._unblock(self._blocked & sigset_members(bits))

    def enable_all(self) -> None:
        """Let all signals arrive here, but for SIGKILL and SIGSTOP, which nobody can catch."""
        self.enable(sigset_members(_ALL))

    def disable_all(self) -> None:
        """Let no signal arrive here."""
        self.disable(sigset_members(_ALL))

    def _set(self, bits: int) -> None:
        signalfd(self.fileno(), sigset_members(bits))
        self._bits = bits

    def _block_more(self, bits: int) -> None:
        members = sigset_members(bits)
        self._blocked |= members - pthread_sigmask(SIG_BLOCK, members)

    def _unblock(self, members: set[int]) -> None:
        self._blocked -= members
        # Another thread's mask is out of reach, and this thread's was never changed.
        if members and threading.get_ident() == self._thread:
            pthread_sigmask(SIG_UNBLOCK, members)

    def close(self) -> None:
        """Close the descriptor and give the thread its signal mask back; closing twice does nothing.

        Called in another thread than the one that made the object, it leaves the masks as they are.
        """
        super().close()
        self._unblock(set(self._blocked))


def _catchable(signals: int | Iterable[int]) -> int:
    bits = sigset(signals)
    if bits & _UNCATCHABLE:
        raise ValueError("signals must be without SIGKILL and SIGSTOP: nobody can catch them")
    return bits


class Signalfd_async(EventLike_async[SignalfdEvent]):  # noqa: N801  # Butter's name
    """Signals for asyncio: `await get()` returns the next one.

    Args:
        signals: A signal number or an iterable of them, 1 to 64.
        nonblock: Accepted for the same call as `Signalfd`; a twin never blocks.
        block: Block them in the calling thread until `close`; False where the caller has done so.
        maxsize: How many events are held at most; 0 means no limit.

    Raises:
        TypeError: Not a signal number.
        ValueError: A number out of its range, SIGKILL or SIGSTOP.
        OSError: EMFILE or ENFILE (no descriptor left).
    """

    _source: Signalfd

    def __init__(
        self,
        signals: int | Iterable[int] = (),
        *,
        nonblock: bool = False,  # noqa: ARG002  # for the same call as Signalfd
        block: bool = True,
        maxsize: int = 0,
    ) -> None:
        super().__init__(Signalfd(signals, nonblock=True, block=block), maxsize)

    enable = of_source(Signalfd.enable)
    disable = of_source(Signalfd.disable)
    enable_all = of_source(Signalfd.enable_all)
    disable_all = of_source(Signalfd.disable_all)

    def __contains__(self, signal: int) -> bool:
        """Return whether a signal arrives here."""
        return signal in self._source

    @property
    def signals(self) -> frozenset[int]:
        """The signals that arrive here."""
        return self._source.signals


def str_to_events(data: "Buffer") -> list[SignalfdEvent]:
    """Return the signals in what read(2) on a signalfd returned.

    Raises:
        ValueError: Not a whole number of 128-byte records.
    """
    size = memoryview(data).nbytes
    if size % SIGINFO_LENGTH:
        raise ValueError(f"data must be whole records of {SIGINFO_LENGTH} bytes, got {size} bytes")
    return [SignalfdEvent.from_buffer_copy(data, at) for at in range(0, size, SIGINFO_LENGTH)]


def signum_to_signame(signum: int) -> str:
    """Return the name of a signal: "SIGTERM", "SIGRTMIN+3".

    Args:
        signum: 1 to 64.

    Raises:
        TypeError: Not an int.
        ValueError: A number outside of 1..64.
    """
    sigset(signum)
    named = _SIGNALS[signum]
    if isinstance(named, _signal.Signals):
        return named.name
    first, last = _signal.SIGRTMIN, _signal.SIGRTMAX
    if first < signum < last:
        return f"SIGRTMIN+{signum - first}"
    return f"SIG{signum}"  # 32 and 33: the C library's own, without a name
