"""The errors of the library.

```
Exception
├── SandboxError                        your command did not run
│   ├── SetupError(OSError)             a step of the plan failed; also the class that its errno stands for
│   ├── UnsupportedError(OSError)       kernel, privilege or sysctl lacks what was asked for
│   ├── BusyError(RuntimeError)         two wait where only one can
│   ├── FilterError(ValueError)         a filter that contradicts itself or cannot be loaded
│   ├── PolicyError(ValueError)         a policy file that says something wrong, with the place
│   └── ClockChanged(OSError)           ECANCELED of a timerfd: the clock was set
└── subprocess.SubprocessError          your command ran, and ...
    ├── TimeoutExpired                  ... outlasted the caller's patience
    └── CalledProcessError              ... failed, and check=True was asked for
```

A failed system call of the primitives is a plain `OSError` of the right subclass. A caller's mistake is a
`ValueError` or `TypeError` of the method that got it.
"""

import errno as _errno
import os
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from sandbox.causes import Cause
    from sandbox.result import Result


class SandboxError(Exception):
    """Base of the errors that mean: your command did not run."""


@cache
def _setup_error_class(errno: int) -> type["SetupError"]:
    """Make the class that is a SetupError and also what its errno stands for."""
    base = type(OSError(errno, ""))
    if base is OSError:
        return SetupError
    namespace = {"__module__": __name__, "__doc__": SetupError.__doc__}
    return cast("type[SetupError]", type("SetupError", (SetupError, base), namespace))


class SetupError(SandboxError, OSError):
    """A step of the plan failed; the payload never ran and nothing is left behind.

    It is also the class that its errno stands for: a `FileNotFoundError`, a `PermissionError` ...

    Attributes:
        step: Number of the step in the plan, from 1; 0 when it failed before the plan started.
        steps: How many steps the plan has.
        call: The system call with its arguments, as `print(plan)` shows it.
        origin: The builder call that asked for the step.
        hint: Most likely cause and what to do, or None.
        cause: What of the host stands in the way, as `sandbox doctor` says it; None when that is not known.
        filename: The path concerned; `args[0]` of the command when no such program exists.
    """

    step: int
    steps: int
    call: str
    origin: str
    hint: str | None
    cause: "Cause | None"

    def __new__(cls, errno: int = 0, *_: object, **__: object) -> Self:
        """Pick the class that is also the OSError subclass of `errno`."""
        made = _setup_error_class(errno) if cls is SetupError else cls
        return cast(Self, OSError.__new__(made, errno, os.strerror(errno)))

    def __init__(
        self,
        errno: int = 0,
        *,
        step: int = 0,
        steps: int = 0,
        call: str = "",
        origin: str = "",
        hint: "str | Cause | None" = None,
        filename: str | None = None,
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.step = step
        self.steps = steps
        self.call = call
        self.origin = origin
        self.cause = None if hint is None or isinstance(hint, str) else hint
        self.hint = None if hint is None else str(hint)
        if filename is not None:
            self.filename = filename

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the plain class: the combined one is made again from the errno; notes and all else as they are."""
        return _rebuild_setup_error, (self.errno or 0, self.filename), self.__dict__

    def __str__(self) -> str:
        """Say what failed, on what, who asked for it, and what to do."""
        number = self.errno or 0
        name = _errno.errorcode.get(number, "")
        where = f"step {self.step} of {self.steps}: " if self.step else ""
        text = f"[Errno {number}] {where}{self.call}: {os.strerror(number)}"
        if name:
            text += f" ({name})"
        if self.origin:
            text += f"\n  from: {self.origin}"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


def is_late(error: BaseException) -> bool:
    """Say whether a launch was given up because the caller's timeout was over."""
    return isinstance(error, SetupError) and error.errno == _errno.ETIMEDOUT and not error.step


def _rebuild_setup_error(errno: int, filename: str | None) -> SetupError:
    return SetupError(errno, filename=filename)


class UnsupportedError(SandboxError, OSError):
    """The kernel, the caller's privilege or a sysctl lacks what was asked for.

    Attributes:
        feature: What was asked for.
        needed: What it needs.
        found: What this host has.
        fix: What to do, or None when nothing can be done here.
        cause: Both as `sandbox doctor` says it; None when the host is not what stands in the way.
    """

    def __init__(
        self, feature: str = "", *, needed: str = "", found: "str | Cause" = "", fix: str | None = None, errno: int = 0
    ) -> None:
        super().__init__(errno or _errno.ENOSYS, feature)
        self.feature = feature
        self.needed = needed
        self.cause = None if isinstance(found, str) else found
        self.found = found if isinstance(found, str) else found.text
        self.fix = fix if fix is not None or self.cause is None else self.cause.fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the attributes as they are, with the notes."""
        return _rebuild_unsupported_error, (self.feature, self.errno or 0), self.__dict__

    def __str__(self) -> str:
        """Say what is missing, what was found and how to mend it."""
        text = f"{self.feature} is not available here"
        if self.needed:
            text += f"\n  needs: {self.needed}"
        if self.found:
            text += f"\n  found: {self.found}"
        if self.fix:
            text += f"\n  fix: {self.fix}"
        return text


def _rebuild_unsupported_error(feature: str, errno: int) -> UnsupportedError:
    return UnsupportedError(feature, errno=errno)


class BusyError(SandboxError, RuntimeError):
    """Two tasks or threads wait where only one can."""


class FilterError(SandboxError, ValueError):
    """A filter contradicts itself, names what does not exist, or cannot be loaded."""


class PolicyError(SandboxError, ValueError):
    """A policy file says something wrong.

    Attributes:
        path: The file.
        line: The line, from 1, or None when the format does not tell.
        key: The key concerned.
    """

    def __init__(self, message: str = "", *, path: str = "", line: int | None = None, key: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.line = line
        self.key = key


class ClockChanged(SandboxError, OSError):
    """The clock of a timer with `cancel_on_set` was set; arm the timer again."""


class TimeoutExpired(subprocess.TimeoutExpired):
    """The command, or its set-up, outlasted the caller's patience; the whole tree was killed.

    Of a set-up that did not come to its end `__cause__` is the SetupError, and the command never ran.

    Attributes:
        result: What was known then; `result.reason` is `Reason.TIMEOUT`.
    """

    result: "Result[Any]"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle however it was made: subprocess' own does not come back when it was made with keywords."""
        return type(self), (self.cmd, self.timeout), {**self.__dict__, "args": self.args}


class CalledProcessError(subprocess.CalledProcessError):
    """The command failed and `check=True` was asked for.

    Attributes:
        result: The whole result.
    """

    result: "Result[Any]"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle however it was made: subprocess' own does not come back when it was made with keywords."""
        return type(self), (self.returncode, self.cmd), {**self.__dict__, "args": self.args}
