"""What a filter answers: the actions of seccomp(2), as values."""

import errno as _errno
import os
from dataclasses import dataclass
from typing import Final

# SECCOMP_RET_*: the action in the upper half, its data in the lower. Read as signed numbers they are in the order of
# strictness: of several filters the smallest answer counts, and so it does where this package must take the strictest.
_CODES = {
    "Kill": 0x80000000,
    "KillThread": 0x00000000,
    "Trap": 0x00030000,
    "Errno": 0x00050000,
    "Notify": 0x7FC00000,
    "Trace": 0x7FF00000,
    "Log": 0x7FFC0000,
    "Allow": 0x7FFF0000,
}
_NAMES = {code: name for name, code in _CODES.items()}

MAX_ERRNO: Final = 4095  # the kernel cuts larger ones to this


@dataclass(frozen=True, slots=True)
class Action:
    """What happens to a system call: one of the constants, an `Errno` or a `Trace`.

    Attributes:
        name: `Allow`, `Log`, `Trace`, `Notify`, `Errno`, `Trap`, `KillThread` or `Kill`.
        data: The lower 16 bits of the answer: the errno, the tracer's number, si_errno of a trap.

    See seccomp(2). Since Linux 3.5 (Kill, Log: 4.14; Notify: 5.0).
    """

    name: str
    data: int = 0

    def __post_init__(self) -> None:
        if self.name not in _CODES:
            raise ValueError(f"name must be one of {', '.join(_CODES)}, got {self.name!r}")
        if isinstance(self.data, bool) or not isinstance(self.data, int):
            raise TypeError(f"data must be an int, not {type(self.data).__name__}")
        if not 0 <= self.data <= 0xFFFF:
            raise ValueError(f"data must be between 0 and 65535, got {self.data}")

    @property
    def code(self) -> int:
        """The number that the program returns: SECCOMP_RET_* and its data."""
        return _CODES[self.name] | self.data

    def __repr__(self) -> str:
        return f"{self.name}(data={self.data})" if self.data else self.name


class Errno(Action):
    """The call does not run and fails with this errno.

    Args:
        errno: A number, 0 to 4095 (0: it does not run and returns 0), or a name such as "EPERM".
    """

    __slots__ = ()

    def __init__(self, errno: int | str) -> None:
        if isinstance(errno, str):
            number: int | None = getattr(_errno, errno, None) if errno[:1] == "E" else None
            if number is None:
                raise ValueError(f"errno must be a name of errno(3) such as EPERM, got {errno!r}")
            errno = number
        if isinstance(errno, bool) or not isinstance(errno, int):
            raise TypeError(f"errno must be an int or a name, not {type(errno).__name__}")
        if not 0 <= errno <= MAX_ERRNO:
            raise ValueError(f"errno must be between 0 and {MAX_ERRNO}, got {errno}")
        Action.__init__(self, "Errno", errno)

    @property
    def errno(self) -> int:
        """The errno that the caller of the system call sees."""
        return self.data

    def __repr__(self) -> str:
        name = _errno.errorcode.get(self.data)
        return f'Errno("{name}")' if name else f"Errno({self.data})"

    def __reduce__(self) -> tuple[type["Errno"], tuple[int]]:
        return Errno, (self.data,)

    def __str__(self) -> str:
        return f"{self!r} ({os.strerror(self.data)})"


class Trace(Action):
    """A tracer decides; without one the call fails with ENOSYS.

    Args:
        data: What the tracer reads with PTRACE_GETEVENTMSG, 0 to 65535.
    """

    __slots__ = ()

    def __init__(self, data: int = 0) -> None:
        Action.__init__(self, "Trace", data)

    def __repr__(self) -> str:
        return f"Trace({self.data})"

    def __reduce__(self) -> tuple[type["Trace"], tuple[int]]:
        return Trace, (self.data,)


Allow: Final = Action("Allow")
Log: Final = Action("Log")
Notify: Final = Action("Notify")
Trap: Final = Action("Trap")
KillThread: Final = Action("KillThread")
Kill: Final = Action("Kill")


def decode(code: int) -> Action:
    """Return the action of a number that a program returned; what the kernel does not know kills the process."""
    name = _NAMES.get(code & 0xFFFF0000, "Kill")
    data = code & 0xFFFF
    if name == "Errno":
        return Errno(min(data, MAX_ERRNO))
    if name == "Trace":
        return Trace(data)
    return Action(name, data)


def strictness(action: Action) -> int:
    """Return a sort key: of several answers the kernel takes the smallest."""
    code = action.code
    return code - (1 << 32) if code >> 31 else code
