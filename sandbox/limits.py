"""What a command may use: a value, checked here and merged from call to call of `Sandbox.limit`.

Who enforces what: the kernel's resource limits (`RLIMITS`) are set in the payload's own process, before its filter;
those of control groups (`CGROUP`) count the whole tree; PID 1 watches the clock, and the caller the output.
"""

from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from sandbox.arguments import integer, parse_size, real, seconds
from sandbox.kernel import (
    RLIMIT_CORE,
    RLIMIT_CPU,
    RLIMIT_FSIZE,
    RLIMIT_NOFILE,
    RLIMIT_STACK,
    Flag,
)

WhenFull: TypeAlias = Literal["kill", "discard"]
CGROUP: Final = ("memory", "swap", "pids", "cpus", "cpuset", "io")
# By the words of limit(), in the order of struct identity in csrc/init/plan.h.
RLIMITS: Final[dict[str, Flag]] = {
    "cpu_time": RLIMIT_CPU,
    "file_size": RLIMIT_FSIZE,
    "stack": RLIMIT_STACK,
    "core": RLIMIT_CORE,
    "open_files": RLIMIT_NOFILE,
}


class Limits(NamedTuple):
    """What `Sandbox.limit` has said so far; None: no limit.

    Args:
        memory: Bytes of the whole tree.
        swap: Bytes of swap beyond that; counts only where memory is limited.
        pids: Processes and threads.
        cpus: How many processors' worth of time.
        cpuset: Numbers of the processors.
        io: Rates by name, in the order of their names.
        wall_time: Seconds from the start of the program.
        cpu_time: Seconds of CPU.
        open_files: Descriptors of one process.
        file_size: Bytes of one file.
        stack: Bytes of the main thread's stack.
        core: Bytes of a core dump.
        output: Bytes of what is read through the library, of stdout and stderr together.
        when_output_full: Kill the tree, or read on and forget the rest.
        best_effort: Names of the limits that may be missing.
    """

    memory: int | None = None
    swap: int | None = 0
    pids: int | None = None
    cpus: float | None = None
    cpuset: tuple[int, ...] | None = None
    io: tuple[tuple[str, int], ...] | None = None
    wall_time: float | None = None
    cpu_time: float | None = None
    open_files: int | None = None
    file_size: int | None = None
    stack: int | None = None
    core: int | None = 0
    output: int | None = None
    when_output_full: WhenFull = "kill"
    best_effort: tuple[str, ...] = ()


def _cpus(value: Any, name: str) -> float:
    number = real(value, name)
    if not 0.01 <= number <= 65536:
        raise ValueError(f"{name} must be between 0.01 and 65536, got {value!r}")
    return number


def _cpuset(value: Any, name: str) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be numbers of processors, such as [0, 1], not {type(value).__name__}")
    numbers = tuple(sorted({integer(one, f"a number in {name}", 0, 65535) for one in value}))
    if not numbers:
        raise ValueError(f"{name} must hold at least one processor")
    return numbers


_IO_WORDS: Final = ("read", "write", "read_ops", "write_ops")


def _io(value: Any, name: str) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name} must map names to sizes, got {key!r}")
        word, colon, path = key.partition(":")
        if word not in _IO_WORDS or (colon and not path.startswith("/")):
            words = ", ".join(_IO_WORDS)
            raise ValueError(f"{name} has the names {words}, alone or with a disk, as read:/dev/sda; got {key!r}")
    return tuple(sorted((key, parse_size(rate, f"{name}[{key!r}]")) for key, rate in value.items()))


def _full(value: Any, name: str) -> WhenFull:
    for word in get_args(WhenFull):
        if value == word:
            return value  # type: ignore[no-any-return]  # it is that word
    raise ValueError(f'{name} must be "kill" or "discard", got {value!r}')


_CHECKS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "memory": lambda value, name: parse_size(value, name, 4096),
    "swap": lambda value, name: parse_size(value, name, 0),
    "pids": lambda value, name: integer(value, name, 1, 1 << 22),
    "cpus": _cpus,
    "cpuset": _cpuset,
    "io": _io,
    "wall_time": seconds,
    "cpu_time": seconds,
    # 0, 1, 2, and one for who loads the program's libraries.
    "open_files": lambda value, name: integer(value, name, 4, (1 << 31) - 1),
    "file_size": lambda value, name: parse_size(value, name, 0),
    # With less the kernel kills most programs while they are being executed.
    "stack": lambda value, name: parse_size(value, name, 1 << 16),
    "core": lambda value, name: parse_size(value, name, 0),
    "output": lambda value, name: parse_size(value, name, 0),
}


def merged(before: Limits, given: Mapping[str, Any], *, best_effort: bool) -> Limits:
    """Return limits with changes; `...` is as before.

    Args:
        before: What was said before.
        given: By name, as the user gave them.
        best_effort: What is given here may be missing.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A value out of its range.
    """
    said = {name: value for name, value in given.items() if value is not ...}
    if said.get("when_output_full") is not None:
        _full(said["when_output_full"], "when_output_full")
    elif "when_output_full" in said:
        raise ValueError('when_output_full must be "kill" or "discard", got None')
    changes: dict[str, Any] = {
        name: value if value is None or name not in _CHECKS else _CHECKS[name](value, name)
        for name, value in said.items()
    }
    if said.get("swap") is not None and changes.get("memory", before.memory) is None:
        raise ValueError("swap is what memory may be swapped out to: say limit(memory=..., swap=...)")
    weak = set(before.best_effort) - set(said) | (set(said) - {"when_output_full"} if best_effort else set())
    return before._replace(**changes, best_effort=tuple(sorted(weak)))


def shown(name: str, value: object) -> str:
    """Return the builder call that asked for a limit."""
    return f".limit({name}={dict(value) if isinstance(value, tuple) and name == 'io' else value!r})"


def resource_limits(limits: Limits) -> dict[str, tuple[int, int]]:
    """Return the soft and hard resource limits to set, by the words of `limit`."""
    found = {}
    for name in RLIMITS:
        value = getattr(limits, name)
        if value is None:
            continue
        if name == "cpu_time":
            # At the soft limit SIGXCPU, which may be caught; a second later SIGKILL. Whole seconds, at least one.
            found[name] = (ceil(value), ceil(value) + 1)
        elif name == "core":
            # 1, not 0: a core pattern that is a pipe ignores 0, and would run the host's handler.
            found[name] = (value or 1, value or 1)
        else:
            found[name] = (value, value)
    return found


def asks_group(limits: Limits) -> tuple[str, ...]:
    """Return the names of the limits that only a control group keeps for the whole tree."""
    return tuple(
        name for name in CGROUP if getattr(limits, name) is not None and (name != "swap" or limits.memory is not None)
    )
