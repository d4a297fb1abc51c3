"""`Runner`: what can run a command, with the words of subprocess."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict, Unpack, overload

from sandbox.arguments import StrOrBytesPath, process_name
from sandbox.exchange import LimitedFile, decoder
from sandbox.plan import Plan, environment
from sandbox.streams import DEVNULL, PIPE, Fd, Stream, Streams, check_stream, extra_fds

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sandbox.process import Process
    from sandbox.process_async import Process_async
    from sandbox.result import Result

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


def words_of(args: Args, executable: StrOrBytesPath | None = None) -> tuple[tuple[bytes, ...], bytes]:
    """Encode a command; return its words and the program to execute.

    Raises:
        TypeError: args is one string, or holds what is no path.
        ValueError: args is empty, or something holds a NUL byte.
    """
    if isinstance(args, str | bytes | os.PathLike):
        raise TypeError(f"args must be a sequence of words, not one {type(args).__name__}: there is no shell")
    argv = tuple(map(os.fsencode, args))
    if not argv:
        raise ValueError("args must hold at least the program")
    program = argv[0] if executable is None else os.fsencode(executable)
    if not program:
        raise ValueError("the program's name is empty")
    if any(b"\0" in word for word in argv) or b"\0" in program:
        raise ValueError(f"args must not hold a NUL byte, got {args!r}")
    return argv, program


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
        inside_cwd = os.fsdecode(cwd)
        if not inside_cwd.startswith("/"):
            raise ValueError(f"cwd must be an absolute path inside, got {cwd!r}")
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


def _captured(capture_output: bool, stdout: Stream, stderr: Stream) -> tuple[Stream, Stream]:
    if not capture_output:
        return stdout, stderr
    if stdout is not None or stderr is not None:
        raise ValueError("stdout and stderr arguments may not be used with capture_output")
    return PIPE, PIPE


def _fed(stdin: Stream, input: Any, encoding: str | None, errors: str | None, *, is_text: bool) -> tuple[Stream, Any]:
    if input is None:
        return stdin, None
    if stdin not in {DEVNULL, PIPE}:
        raise ValueError("stdin and input arguments may not both be used")
    if is_text != isinstance(input, str):
        raise TypeError("input must be str with text, and bytes without")
    return PIPE, input.encode(encoding or "utf-8", errors or "strict") if isinstance(input, str) else input


def _ordered(
    args: Args, stdin: Stream, stdout: Stream, stderr: Stream, options: Mapping[str, Any], attended: bool
) -> tuple[Order, Streams]:
    """Check a command and make its pipes; what is made is closed again when that fails."""
    for name in options:
        if name not in (_POPEN_OPTIONS if attended else _OPTIONS):
            raise TypeError(f"unexpected keyword argument {name!r}")
    # First of all: a pipe of ours must not take the number of a descriptor that the caller has closed.
    order = order_of(args, attended=attended, **options)
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


class Runner:
    """What can run a command."""

    __slots__ = ()

    def _launch(self, order: Order, streams: Streams) -> "Process[Any]":
        """Launch; the caller's ends in `streams` become the caller's business."""
        raise NotImplementedError

    async def _launch_async(self, order: Order, streams: Streams) -> "Process_async":
        """Launch in the running loop, without blocking it."""
        raise NotImplementedError

    @overload
    def run(
        self,
        args: Args,
        *,
        text: Literal[True],
        input: str | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[str]": ...
    @overload
    def run(
        self,
        args: Args,
        *,
        encoding: str,
        input: str | None = None,
        text: Literal[True] | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[str]": ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: "Buffer | None" = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[bytes]": ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[Any]": ...
    def run(
        self,
        args: Args,
        *,
        input: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Any,
    ) -> "Result[Any]":
        """Run a command and wait for it, as `subprocess.run` does.

        Args:
            args: Program and arguments; the program is looked up on the sandbox's PATH, inside.
            input: Sent to stdin.
            text: Streams are str, not bytes.
            encoding: Of the streams; implies text.
            errors: How to decode; implies text.
            stdin: A descriptor, a file, PIPE, DEVNULL (the default) or None: the caller's.
            stdout: Likewise; the caller's when left out.
            stderr: Likewise, or STDOUT.
            capture_output: Both are pipes, and in the result.
            timeout: Seconds of the caller's patience; then the whole tree is killed.
            check: Raise when the exit status is not 0.
            **options: env (replaces the environment), cwd, executable, name (of 1 to 64 letters, digits, ".", "_" and
                "-"), pass_fds, fds {inside: outside}.

        Returns:
            A CompletedProcess with reason, usage and what was enforced.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
            TimeoutExpired: The timeout passed.
            CalledProcessError: check=True, and it failed.
        """
        is_text = bool(text) or encoding is not None or errors is not None
        stdout, stderr = _captured(capture_output, stdout, stderr)
        stdin, data = _fed(stdin, input, encoding, errors, is_text=is_text)
        process = self._open(args, stdin, stdout, stderr, 0, None, options, attended=False)
        result = process.finish(data, timeout, decoder(encoding, errors) if is_text else None)
        if check:
            result.check_returncode()
        return result

    @overload
    async def run_async(
        self,
        args: Args,
        *,
        text: Literal[True],
        input: str | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[str]": ...
    @overload
    async def run_async(
        self,
        args: Args,
        *,
        encoding: str,
        input: str | None = None,
        text: Literal[True] | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[str]": ...
    @overload
    async def run_async(
        self,
        args: Args,
        *,
        input: "Buffer | None" = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[RunOptions],
    ) -> "Result[bytes]": ...
    async def run_async(
        self,
        args: Args,
        *,
        input: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        capture_output: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  # subprocess' argument
        check: bool = False,
        **options: Any,
    ) -> "Result[Any]":
        """Run a command as `run` does, with its arguments and errors, without blocking the loop.

        Cancelled, it kills the whole tree, waits until that has gone, and lets the cancellation through.
        """
        is_text = bool(text) or encoding is not None or errors is not None
        stdout, stderr = _captured(capture_output, stdout, stderr)
        stdin, data = _fed(stdin, input, encoding, errors, is_text=is_text)
        process, streams = await self._open_async(args, stdin, stdout, stderr, options, attended=False)
        result = await process.finish(streams, data, timeout, decoder(encoding, errors) if is_text else None)
        if check:
            result.check_returncode()
        return result

    def _open(
        self,
        args: Args,
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        bufsize: int,
        text: Callable[[Any], Any] | None,
        options: Mapping[str, Any],
        *,
        attended: bool = True,
    ) -> "Process[Any]":
        """Launch with streams; the caller's ends of pipes become the process's files."""
        order, streams = _ordered(args, stdin, stdout, stderr, options, attended)
        try:
            process = self._launch(order, streams)
        except BaseException:
            streams.close_parent()
            raise
        finally:
            streams.close_child()
        for name, fd in streams.parent.items():
            reads = name != "stdin"
            file: Any = (
                LimitedFile(fd, process.budget)
                if reads and process.budget is not None
                else io.FileIO(fd, "r" if reads else "w")
            )
            if bufsize:
                size = bufsize if bufsize > 1 else io.DEFAULT_BUFFER_SIZE
                file = io.BufferedWriter(file, size) if name == "stdin" else io.BufferedReader(file, size)
            setattr(process, name, file if text is None else text(file))
        if process.terminal is not None:
            process.stdin = process.terminal if text is None else text(process.terminal)
            # A text of its own for what is read: writing to one takes back what it has half decoded.
            process.stdout = process.terminal if text is None else text(process.terminal)
        return process

    async def _open_async(
        self,
        args: Args,
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        options: Mapping[str, Any],
        *,
        attended: bool = True,
    ) -> "tuple[Process_async, Streams]":
        """Launch with streams, whose ends are still the caller's to connect."""
        order, streams = _ordered(args, stdin, stdout, stderr, options, attended)
        try:
            return await self._launch_async(order, streams), streams
        except BaseException:
            streams.close_parent()
            raise
        finally:
            streams.close_child()

    async def popen_async(
        self,
        args: Args,
        *,
        limit: int = 65536,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        **options: Any,
    ) -> "Process_async":
        """Start a command as `popen` does, without blocking the loop; streams are asyncio's, and of bytes.

        Args:
            args: Program and arguments.
            limit: Of the buffers of stdout and stderr, in bytes, as in `asyncio.create_subprocess_exec`.
            stdin: A descriptor, a file, PIPE, DEVNULL (the default) or None: the caller's.
            stdout: Likewise; the caller's when left out.
            stderr: Likewise, or STDOUT.
            **options: As in `popen`.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
        """
        for name in ("text", "encoding", "errors", "universal_newlines"):
            if options.get(name):
                raise ValueError(f"{name} is not for popen_async: its streams are of bytes, as asyncio's")
        process, streams = await self._open_async(args, stdin, stdout, stderr, options)
        try:
            await process.connect(streams, limit)
        except BaseException:
            await process.aclose()
            raise
        return process

    @overload
    def popen(
        self,
        args: Args,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        **options: Unpack[PopenOptions],
    ) -> "Process[str]": ...
    @overload
    def popen(
        self,
        args: Args,
        *,
        encoding: str,
        text: Literal[True] | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        **options: Unpack[PopenOptions],
    ) -> "Process[str]": ...
    @overload
    def popen(
        self,
        args: Args,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        bufsize: int = -1,
        **options: Unpack[PopenOptions],
    ) -> "Process[bytes]": ...
    def popen(
        self,
        args: Args,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        **options: Any,
    ) -> "Process[Any]":
        """Start a command, as `subprocess.Popen` does; return when its program was executed.

        Args:
            args: Program and arguments; the program is looked up on the sandbox's PATH, inside.
            text: Streams are str, not bytes.
            encoding: Of the streams; implies text.
            errors: How to decode; implies text.
            bufsize: Of the pipes: 0 unbuffered, 1 line by line (text), -1 the usual size.
            stdin: A descriptor, a file, PIPE, DEVNULL (the default) or None: the caller's.
            stdout: Likewise; the caller's when left out.
            stderr: Likewise, or STDOUT.
            **options: env, cwd, executable, name, pass_fds, fds as in `run`. pty: the command has its own terminal,
                of 24 rows and 80 columns or (rows, columns); `stdin` and `stdout` are the caller's end of it,
                unbuffered, and closing that hangs up. hold: all is set up and `enforced` is complete, with
                namespaces, mounts and descriptors, and the program waits for `release()`.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
        """
        wrap = None
        if text or encoding is not None or errors is not None:

            def wrap(file: Any) -> Any:
                return io.TextIOWrapper(
                    file,
                    encoding=encoding,
                    errors=errors,
                    line_buffering=bufsize == 1,
                    write_through=bufsize == 0 or isinstance(file, io.FileIO),
                )

            if bufsize == 0:
                bufsize = -1
        process = self._open(args, stdin, stdout, stderr, bufsize, wrap, options)
        if wrap is not None:
            process._decode = decoder(encoding, errors)
        return process


_OPTIONS = frozenset({"env", "cwd", "executable", "name", "pass_fds", "fds"})
_POPEN_OPTIONS = _OPTIONS | {"hold", "pty"}
