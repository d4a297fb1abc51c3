"""One system call that waits for its answer: judged by its registers, or emulated. `sandbox.notify` says why so."""

import errno
import weakref
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self

from sandbox.filters.actions import Allow, Errno
from sandbox.filters.conditions import Condition
from sandbox.filters.filter import Filter
from sandbox.filters.table import AUDIT, NARROW, X32_BIT, Arch, calls, names_of
from sandbox.primitives._call import Fd, fd_of, in_range, os_error
from sandbox.primitives.memory import process_vm_readv
from sandbox.primitives.secure_computing import (
    SeccompAddfdFlags,
    SeccompNotif,
    SeccompNotifFlags,
    seccomp_notif_id_valid,
)

if TYPE_CHECKING:
    from sandbox.notify import Notifier

_MOST: Final = 16 << 20  # bytes that one read may ask for
_PATH_MAX: Final = 4096
_PAGE: Final = 4096  # the smallest: a read that stays within one of these stays within any
_MAX_ERRNO: Final = 4095
_ARCHES: dict[int, Arch] = {number: arch for arch, number in AUDIT.items() if arch != "x32"}


class Pending:
    """A call that waits: what its `Notification` and its `Emulation` share."""

    __slots__ = ("__weakref__", "answered", "emulated", "finalizer", "id", "notifier")

    def __init__(self, notifier: "Notifier", id: int) -> None:
        self.notifier = notifier
        self.id = id
        self.answered = False
        self.emulated = False
        # Weak: a notifier that is dropped with what it has not given out yet must not live on for it.
        self.finalizer = weakref.finalize(self, dropped, weakref.ref(notifier), id)

    def check(self) -> None:
        """Raise unless an answer can be given: ValueError when the notifier is closed, whoever answered."""
        self.notifier.fileno()
        if self.answered:
            raise RuntimeError("this notification is answered already")

    def take(self) -> "Notifier":
        """Mark as answered and return who sends the answer."""
        self.check()
        self.answered = True
        self.finalizer.detach()
        return self.notifier

    def end(self) -> None:
        """Refuse the call if nobody answered."""
        if not self.answered:
            self.answered = True
            self.finalizer.detach()
            self.notifier._send(self.id, error=-errno.EPERM)


def dropped(notifier: "weakref.ref[Notifier]", id: int) -> None:
    """Refuse a call whose notification nobody has any more."""
    alive = notifier()
    if alive is not None:
        alive._send(id, error=-errno.EPERM)


class _Answer:
    """A system call that waits for its answer; one answer, and a second is a RuntimeError.

    A context manager: leaving the block, by an exception or not, refuses the call with EPERM unless it was
    answered. So does dropping it. Where the target has been killed or interrupted meanwhile an answer does
    nothing.

    Attributes:
        id: The kernel's number of the notification.
        pid: The thread that calls, as this process numbers it; 0 when it is not visible from here.
        call: Name of the system call; "syscall_N" when the table does not know its number.
        number: Its number on that architecture.
        args: The six registers, as 64 bits each; those that the call does not have mean nothing.
        arch: Whose numbers and registers these are.
    """

    __slots__ = ("_pending", "arch", "args", "call", "id", "number", "pid")

    id: int
    pid: int
    call: str
    number: int
    args: tuple[int, ...]
    arch: Arch
    _pending: Pending

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: two would answer for one."""
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: the call waits for this process's answer; send its call, args"
            " and pid"
        )

    def deny(self, errno: int | str = "EPERM") -> None:
        """Fail the call.

        Args:
            errno: Number, 1 to 4095, or name.

        Raises:
            RuntimeError: It is answered already.
            ValueError: No such errno, or the notifier is closed.
        """
        number = _errno_number(errno)
        self._take()._send(self.id, error=-number)

    def reply(self, value: int) -> None:
        """Let the call return a value without running.

        Args:
            value: 64 bits, signed; -4095 to -1 would be an errno and are refused.

        Raises:
            RuntimeError: It is answered already.
            ValueError: Out of range, or the notifier is closed.
        """
        in_range(value, -(2**63), 2**63 - 1, "value")
        if -_MAX_ERRNO <= value < 0:
            raise ValueError(f"value must not be between -{_MAX_ERRNO} and -1, got {value}: use deny()")
        self._take()._send(self.id, val=value)

    def reply_fd(self, fd: Fd, *, number: int | None = None, cloexec: bool = True) -> None:
        """Give the target a descriptor, whose number there is what the call returns; one step, or neither.

        Args:
            fd: The descriptor here; it stays open.
            number: The number there, replacing what has it; None: the lowest that is free.
            cloexec: Closed there on execve(2).

        Raises:
            RuntimeError: It is answered already.
            ValueError: The notifier is closed.
            OSError: EBADF (`fd` is not open, or `number` is beyond the target's limit), EMFILE (the target
                has no number left), EINVAL (older than Linux 5.14). The call still waits for an answer.
        """
        source = in_range(fd_of(fd), 0, 2**31 - 1, "fd")
        flags = SeccompAddfdFlags.SEND
        if number is not None:
            in_range(number, 0, 2**31 - 1, "number")
            flags |= SeccompAddfdFlags.SETFD
        self._check_open()
        self._pending.notifier._send_fd(self._pending, source, number or 0, flags, cloexec=cloexec)

    @property
    def answered(self) -> bool:
        """Whether an answer was given, or the call refused because none was."""
        return self._pending.answered

    def valid(self) -> bool:
        """Return whether the target still waits: it was neither answered nor killed nor interrupted.

        Raises:
            ValueError: The notifier is closed.
        """
        return seccomp_notif_id_valid(self._pending.notifier.fileno(), self.id)

    def _check_open(self) -> None:
        self._pending.check()

    def _take(self) -> "Notifier":
        return self._pending.take()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse the call with EPERM unless it was answered."""
        self._pending.end()

    def __repr__(self) -> str:
        shown = ", ".join(hex(one) for one in self.args)
        return f"<{type(self).__name__} {self.call}({shown}) pid={self.pid} arch={self.arch}>"


class Notification(_Answer):
    """A call to judge by its registers alone."""

    __slots__ = ()

    def __init__(self, notifier: "Notifier", notif: SeccompNotif) -> None:
        arch = _ARCHES.get(notif.arch)
        if arch == "x86_64" and notif.nr & X32_BIT:
            arch = "x32"
        self.id = notif.id
        self.pid = notif.pid
        self.number = notif.nr
        self.args = notif.args
        self.arch = arch or "x86_64"
        self.call = names_of(arch).get(notif.nr, f"syscall_{notif.nr}") if arch else f"syscall_{notif.nr}"
        self._pending = Pending(notifier, notif.id)

    def proceed(self, *conditions: Condition) -> bool:
        """Let the call run if conditions on its scalar arguments hold; without any, whatever its arguments are.

        Args:
            conditions: On arguments that are no pointers: `arg(0) == "AF_UNIX"`. All must hold.

        Returns:
            Whether they hold and the call runs; if not, it still waits for an answer.

        Raises:
            TypeError: Not a condition.
            ValueError: A condition on a pointer, which says nothing of what the kernel will find there; on an
                argument that the call does not have (FilterError); or the notifier is closed.
            RuntimeError: It is answered already, or `emulate` was called.
        """
        self._check_open()
        _require_scalar(self, conditions)
        if conditions and not _hold(self, conditions):
            return False
        self._take()._send(self.id, flags=SeccompNotifFlags.CONTINUE)
        return True

    def emulate(self) -> "Emulation":
        """Return the same call with access to the target's memory, to be answered without running it.

        From here on only the returned object answers.

        Raises:
            RuntimeError: It is answered already, or was called before.
        """
        self._check_open()
        self._pending.emulated = True
        return Emulation(self)

    def _check_open(self) -> None:
        super()._check_open()
        if self._pending.emulated:
            raise RuntimeError("this notification was handed to its Emulation, which answers it")

    def _take(self) -> "Notifier":
        self._check_open()
        return super()._take()


class Emulation(_Answer):
    """A call whose effect the supervisor brings about itself; it cannot be let through any more.

    Reading needs the right to trace the target: the same user and a dumpable target, or CAP_SYS_PTRACE. A
    target that may use userfaultfd(2) or serve a FUSE file system can make a read of its memory wait;
    `Filter.default()` refuses it both.
    """

    __slots__ = ()

    def __init__(self, notification: Notification) -> None:
        for name in ("id", "pid", "call", "number", "args", "arch", "_pending"):
            setattr(self, name, getattr(notification, name))

    def read(self, address: int, size: int) -> bytes:
        """Return memory of the target.

        Args:
            address: Where, as the target sees it: one of `args`.
            size: How many bytes, all of which must be mapped: at most 16 MiB, for where the target says how many
                it could otherwise fill this process's memory.

        Raises:
            OSError: EFAULT (not all mapped), EPERM (no right to look), ESRCH (the target does not wait any
                more, or is not visible from this PID namespace).
            ValueError: `size` is out of range, or the notifier is closed.
        """
        data = self._peek(address, in_range(size, 0, _MOST, "size"))
        if len(data) < size:
            raise os_error(errno.EFAULT)
        return data

    def path(self, index: int) -> bytes:
        """Return the string that an argument points to, without its NUL: a path as the target wrote it.

        It means what it means in the target: relative to its working directory and to its root.

        Args:
            index: Number of the argument, 0 to 5.

        Raises:
            OSError: As `read`; ENAMETOOLONG (no NUL in 4,096 bytes).
            ValueError: No such argument, or the notifier is closed.
        """
        address = self.args[in_range(index, 0, 5, "index")]
        if self.arch in NARROW:
            address &= 0xFFFFFFFF
        found = bytearray()
        while len(found) < _PATH_MAX:
            # Not across a page: the next one need not be there.
            size = min(_PAGE - (address + len(found)) % _PAGE, _PATH_MAX - len(found))
            part = self.read(address + len(found), size)
            end = part.find(b"\0")
            if end >= 0:
                return bytes(found + part[:end])
            found += part
        raise os_error(errno.ENAMETOOLONG)

    def _peek(self, address: int, size: int) -> bytes:
        self._check_open()
        if not self.pid:
            raise os_error(errno.ESRCH)
        data = process_vm_readv(self.pid, address, size)
        # Only now is it sure whose memory that was.
        if not self.valid():
            raise os_error(errno.ESRCH)
        return data


def _errno_number(value: int | str) -> int:
    number = Errno(value).errno
    if number == 0:
        raise ValueError("errno must not be 0, with which the call would seem to succeed: use reply(0)")
    return number


def _require_scalar(answer: Notification, conditions: tuple[Condition, ...]) -> None:
    letters = calls().arguments.get(answer.call, ("", ""))[answer.arch in NARROW]
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise TypeError(f"condition must be made with arg(), not {type(condition).__name__}")
        if letters[condition.index : condition.index + 1] == "p":
            raise ValueError(
                f"argument {condition.index} of {answer.call} is a pointer: what it points to can change after "
                "any look at it; use emulate()"
            )


def _hold(answer: Notification, conditions: tuple[Condition, ...]) -> bool:
    return _judge(answer.call, answer.arch, conditions).simulate(answer.call, *answer.args, arch=answer.arch) == Allow


@lru_cache(maxsize=256)
def _judge(call: str, arch: Arch, conditions: tuple[Condition, ...]) -> Filter:
    # A filter of one rule: widths of arguments and names of constants are decided as in every filter.
    return Filter(Errno("EPERM"), arches=[arch]).rule(Allow, call, *conditions)
