"""See what a filter refuses: the same program, but it asks instead of refusing, and the answer is the refusal.

The kernel takes the strictest answer of all filters, and a refusal is stricter than a question. So a second filter
cannot watch the first: the program itself is changed, one instruction for another, and the errno that it would have
given comes from running the original in here.
"""

import errno
import os
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, cast

from sandbox.events.base import EventLike
from sandbox.events.base_async import EventLike_async
from sandbox.filters.actions import Errno
from sandbox.filters.filter import Filter
from sandbox.notification import Emulation, Notification
from sandbox.notify import Notifier
from sandbox.primitives.secure_computing import SECCOMP_RET_ACTION_FULL, SECCOMP_RET_DATA, SeccompAction

__all__ = ["Denials", "Denials_async", "Denied", "asking", "refuse"]

_INSTRUCTION: Final = struct.Struct("=HBBI")
_RET_K: Final = 0x06  # BPF_RET | BPF_K

# Which argument is the path that a refusal is about; of two paths the one that would change.
_PATH: Final = {
    "access": 0, "acct": 0, "chdir": 0, "chmod": 0, "chown": 0, "chroot": 0, "creat": 0, "execve": 0, "execveat": 1,
    "faccessat": 1, "faccessat2": 1, "fanotify_mark": 4, "fchmodat": 1, "fchmodat2": 1, "fchownat": 1, "fspick": 1,
    "getxattr": 0, "inotify_add_watch": 1, "lchown": 0, "lgetxattr": 0, "link": 1, "linkat": 3, "listxattr": 0,
    "lremovexattr": 0, "lsetxattr": 0, "lstat": 0, "mkdir": 0, "mkdirat": 1, "mknod": 0, "mknodat": 1, "mount": 1,
    "mount_setattr": 1, "move_mount": 3, "name_to_handle_at": 1, "newfstatat": 1, "open": 0, "open_tree": 1,
    "open_tree_attr": 1, "openat": 1, "openat2": 1, "pivot_root": 0, "quotactl": 1, "readlink": 0, "readlinkat": 1,
    "removexattr": 0, "rename": 1, "renameat": 3, "renameat2": 3, "rmdir": 0, "setxattr": 0, "stat": 0, "statfs": 0,
    "statx": 1, "swapoff": 0, "swapon": 0, "symlink": 1, "symlinkat": 2, "truncate": 0, "umount2": 0, "unlink": 0,
    "unlinkat": 1, "uselib": 0, "utimensat": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Denied:
    """A call that the filter refused.

    Attributes:
        call: Its name.
        args: Its six registers.
        path: What it was about, as the process wrote it; None when it has none or it could not be read. The
            process may have changed it since: it informs, nothing may depend on it.
        errno: What the call failed with.
        pid: The thread.
        rule: The rule that decided, or None.
        suggestion: What to add to the filter to allow it.
    """

    call: str
    args: tuple[int, ...]
    path: str | None
    errno: int
    pid: int
    rule: str | None
    suggestion: str | None


def asking(program: bytes) -> bytes:
    """Return a filter's program that asks the supervisor wherever it refused with an errno.

    ENOSYS stays: it says "not here" to a program that tries newer calls first, and is no refusal. So does errno 0.

    Args:
        program: As `Filter.to_bytes` returns it.
    """
    made = bytearray()
    for code, jump_true, jump_false, value in _INSTRUCTION.iter_unpack(program):
        refusal = code == _RET_K and value & SECCOMP_RET_ACTION_FULL == SeccompAction.ERRNO
        if refusal and value & SECCOMP_RET_DATA not in (0, errno.ENOSYS):
            value = SeccompAction.USER_NOTIF  # the instruction, changed
        made += _INSTRUCTION.pack(code, jump_true, jump_false, value)
    return bytes(made)


def refuse(notification: Notification, filter: Filter) -> Denied:
    """Answer a call that the `asking` program of a filter asked for, as the filter itself would have.

    Args:
        notification: The call, unanswered.
        filter: The filter.

    Raises:
        RuntimeError: It is answered already.
        FilterError: The filter cannot be simulated.
    """
    with notification.emulate() as call:
        action = filter.simulate(call.number, *call.args, arch=call.arch)
        # Anything else would be a notification that this program did not ask for: closed, too.
        number = action.errno if isinstance(action, Errno) else errno.EPERM
        path = _path(call)
        call.deny(number)
    _, _, rule = filter.explain(call.number, *call.args, arch=call.arch).partition("\n")
    return Denied(
        call=call.call,
        args=call.args,
        path=path,
        errno=number,
        pid=call.pid,
        rule=rule.strip() or None,
        suggestion=None if call.call.startswith("syscall_") else f'.allow("{call.call}")',
    )


class Denials(EventLike[Denied]):
    """What a filter refuses, as it happens: an event is answered by being read.

    A call waits until somebody reads: this object, or the process's own `wait`, `communicate` and `result`. When no
    process has the filter any more, the iteration ends and `read_event` raises EOFError.

    Args:
        listener: The descriptor of an `asking` program; the object owns it from here on.
        filter: The filter itself, which decides the answer.
    """

    name: ClassVar[str] = "denials"
    _prefetch: ClassVar[bool] = False

    def __init__(self, listener: int, filter: Filter) -> None:
        super().__init__(os.dup(listener))
        self._notifier = Notifier(listener, nonblock=True)
        self._filter = filter
        self.seen: list[Denied] = []

    def _read(self) -> list[Denied]:
        try:
            # One at a time: what is cached is not seen by poll().
            made = refuse(self._notifier.read_event(), self._filter)
        except BlockingIOError:
            return []
        self.seen.append(made)
        return [made]

    def __iter__(self) -> Iterator[Denied]:
        """Yield refusals until no process has the filter any more, or until another thread closes the object."""
        try:
            yield from super().__iter__()
        except EOFError:
            return

    def close(self) -> None:
        """Close: what still waits is refused with EPERM, what comes later gets ENOSYS."""
        self._notifier.close()
        super().close()


class Denials_async(EventLike_async[Denied]):  # noqa: N801  # the object's name, with _async
    """The asyncio twin: `Denials_async(process.denials)` takes the object over.

    Iterating ends when no process has the filter any more, where `get` raises EOFError.

    Args:
        denials: Those of a process.
        maxsize: As in asyncio.Queue.
    """

    def __init__(self, denials: Denials, *, maxsize: int = 0) -> None:
        super().__init__(denials, maxsize)

    @property
    def seen(self) -> list[Denied]:
        """All refusals so far, whoever took them."""
        return cast(Denials, self._source).seen

    def start(self) -> None:
        """Have the running loop refuse calls from now on, whether somebody asks for them or not."""
        self._prefetch = True
        self._bind()
        self._register()

    def __aiter__(self) -> AsyncIterator[Denied]:
        """Yield refusals until no process has the filter any more."""
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Denied]:
        while True:
            try:
                yield await self.get()
            except EOFError:
                return
            except ValueError:
                if self.closed:
                    return
                raise


def _path(call: Emulation) -> str | None:
    index = _PATH.get(call.call)
    if index is None:
        return None
    try:
        return os.fsdecode(call.path(index))
    except OSError:  # not mapped, too long, not ours to look at, or gone: the refusal stands without it
        return None
