"""One command to launch: the words of subprocess, checked."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypedDict

from sandbox.arguments import Fd, StrOrBytesPath, path_text, process_name
from sandbox.plan import Plan
from sandbox.streams import DEVNULL, Stream, Streams, check_stream, extra_fds
from sandbox.template import environment

Args: TypeAlias = Sequence[StrOrBytesPath]


class LaunchOptions(TypedDict, total=False):
    """What every launch takes; public, so that wrappers can be typed."""

    stdin: Stream
    stdout: Stream
    stderr: Stream
    env: Mapping[str, str]
    cwd: StrOrBytesPath
    executable: StrOrBytesPath
    name: str
    pass_fds: Iterable[int]
    fds: Mapping[int, Fd]


class RunOptions(LaunchOptions, total=False):
    """What `run` takes besides input and text."""

    capture_output: bool
    check: bool
    timeout: float | None


class PopenOptions(LaunchOptions, total=False):
    """What `popen` takes besides text."""

    pty: bool | tuple[int, int]
    hold: bool


# Of subprocess, and not here: what to say instead.
_ELSEWHERE: Final = {
    "capture_output": "it is for run(); say stdout=PIPE, stderr=PIPE",
    "check": "it is for run(); say result().check_returncode()",
    "close_fds": "descriptors are closed always; say pass_fds or fds for those that are not to be",
    "extra_groups": "say Sandbox.user()",
    "group": "say Sandbox.user()",
    "input": "it is for run(); say communicate(input)",
    "preexec_fn": "nothing of the caller's runs between clone and exec",
    "process_group": "the command has a session of its own; see Sandbox.new_session()",
    "restore_signals": "all signals have their default action",
    "shell": 'there is no shell but one that is asked for: ["sh", "-c", ...]',
    "start_new_session": "the command has a session of its own; see Sandbox.new_session()",
    "timeout": "it is for run(); say wait(timeout), communicate(timeout=...) or result(timeout)",
    "umask": "say Sandbox.umask()",
    "universal_newlines": "say text=True",
    "user": "say Sandbox.user()",
}

_OPTIONS: Final = frozenset({"env", "cwd", "executable", "name", "pass_fds", "fds"})
_POPEN_OPTIONS: Final = _OPTIONS | {"hold", "pty"}


def words_of(args: Args, executable: StrOrBytesPath | None = None) -> tuple[tuple[bytes, ...], bytes]:
    """Encode a command; return its words and the program to execute.

    Raises:
        TypeError: args is one string, or holds what is no path.
        ValueError: args is empty, or something holds a NUL byte.
    """
    if isinstance(args, str | bytes | os.PathLike):
        raise TypeError(f"args must be a sequence of words, not one {type(args).__name__}: there is no shell")
    if not isinstance(args, list | tuple | Sequence):
        raise TypeError(f"args must be a sequence of words, such as a list, not {type(args).__name__}")
    try:
        argv = tuple(map(os.fsencode, args))
    except TypeError:
        raise TypeError(f"args must be made of str, bytes or os.PathLike, got {_odd(args)}") from None
    if not argv:
        raise ValueError("args must hold at least the program")
    program = argv[0] if executable is None else os.fsencode(path_text(executable, "executable"))
    if not program:
        raise ValueError("the program's name is empty")
    if any(b"\0" in word for word in argv) or b"\0" in program:
        raise ValueError(f"args must not hold a NUL byte, got {args!r}")
    return argv, program


def _odd(args: Sequence[Any]) -> str:
    """Show the first that is no word, and where it stands."""
    place, word = next((n, one) for n, one in enumerate(args) if not isinstance(one, str | bytes | os.PathLike))
    return f"{word!r} as args[{place}]"


class Environment:
    """Variables, encoded once."""

    __slots__ = ("encoded", "path")

    def __init__(self, variables: Mapping[str, str]) -> None:
        if not isinstance(variables, Mapping):
            raise TypeError(f"env must be a mapping, not {type(variables).__name__}")
        self.encoded = environment(variables)
        self.path = variables.get("PATH", "/usr/bin:/bin")


class Order(NamedTuple):
    """One command to launch, checked.

    Args:
        args: As the caller gave it.
        argv: Its words.
        program: What to execute.
        env: Instead of the sandbox's own.
        cwd: Instead of the sandbox's own; an absolute path inside.
        fds: Numbers inside beyond 0, 1 and 2, with the caller's descriptors, in ascending order.
        name: What the caller calls it.
        hold: Set up, and wait for release() before the program is executed.
        attended: The caller gets the process, and can answer for its filter.
        plan: Instead of the compiled one: with a fault in it, or a barrier.
        pty: What the steps that make a terminal need; nothing: no terminal.
        deadline: When the launch is given up, on the monotonic clock.
    """

    args: Args
    argv: tuple[bytes, ...]
    program: bytes
    env: Environment | None = None
    cwd: str | None = None
    fds: Mapping[int, int] = {}  # read only
    name: str | None = None
    hold: bool = False
    attended: bool = True
    plan: Plan | None = None
    pty: tuple[tuple[str, bytes], ...] = ()
    deadline: float | None = None


def order_of(
    args: Args,
    *,
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
    executable: StrOrBytesPath | None = None,
    pass_fds: Iterable[int] = (),
    fds: Mapping[int, Fd] = {},  # read only
    name: str | None = None,
    hold: bool = False,
    attended: bool = True,
    plan: Plan | None = None,
    pty: bool | tuple[int, int] = False,
) -> Order:
    """Check what a launch was given.

    Raises:
        TypeError: Something is of a wrong type.
        ValueError: Something is out of range.
    """
    argv, program = words_of(args, executable)
    inside_cwd = None
    if cwd is not None:
        inside_cwd = path_text(cwd, "cwd")
        if not inside_cwd.startswith("/") or "\0" in inside_cwd:
            raise ValueError(f"cwd must be an absolute path inside, without NUL, got {cwd!r}")
    values: tuple[tuple[str, bytes], ...] = ()
    if pty is not False:
        from sandbox.terminal import values_of

        values = values_of(pty)
    return Order(
        args,
        argv,
        program,
        None if env is None else Environment(env),
        inside_cwd,
        extra_fds(pass_fds, fds) if pass_fds or fds else {},
        None if name is None else process_name(name),
        bool(hold),
        attended,
        plan,
        values,
    )


def _instead(name: str, *, attended: bool) -> str:
    """Say where an argument belongs that is not one of a launch."""
    if name in _ELSEWHERE:
        return f": {_ELSEWHERE[name]}"
    if name in _POPEN_OPTIONS:
        return ": it is for popen()"
    known = sorted((_POPEN_OPTIONS if attended else _OPTIONS) | {"stdin", "stdout", "stderr"})
    return f"; the options are {', '.join(known)}"


def ordered(
    args: Args,
    stdin: Stream,
    stdout: Stream,
    stderr: Stream,
    options: Mapping[str, Any],
    attended: bool,
    deadline: float | None,
) -> tuple[Order, Streams]:
    """Check a command and make its pipes; what is made is closed again when that fails."""
    for name in options:
        if name not in (_POPEN_OPTIONS if attended else _OPTIONS):
            raise TypeError(f"unexpected keyword argument {name!r}{_instead(name, attended=attended)}")
    # First of all: a pipe of ours must not take the number of a descriptor that the caller has closed.
    order = order_of(args, attended=attended, **options)
    if deadline is not None:
        order = order._replace(deadline=deadline)
    given = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    for name, stream in given.items():
        check_stream(name, stream)
    streams = Streams()
    try:
        if order.pty:
            if (stdin, stdout, stderr) != (DEVNULL, None, None):
                raise ValueError("stdin, stdout and stderr arguments may not be used with pty: all are the terminal")
            streams.child = [-1, -1, -1]
        else:
            for name, stream in given.items():
                streams.add(name, stream)
        if stdout is None and sys.stdout is not None:
            sys.stdout.flush()
    except BaseException:
        streams.close_parent()
        streams.close_child()
        raise
    return order, streams
