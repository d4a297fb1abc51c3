"""`Runner`: what can run a command, with the words of subprocess."""

import io
from collections.abc import Callable, Mapping
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

from sandbox.errors import SetupError, TimeoutExpired, is_late
from sandbox.exchange import LimitedFile, check_input, deadline_of, decoder
from sandbox.order import Args, Order, PopenOptions, RunOptions, ordered
from sandbox.streams import DEVNULL, PIPE, Stream, Streams

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sandbox.process import Process
    from sandbox.process_async import Process_async
    from sandbox.result import Result


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
    check_input(input, is_text=is_text)
    return PIPE, input.encode(encoding or "utf-8", errors or "strict") if isinstance(input, str) else input


def expired(args: Args, timeout: float) -> TimeoutExpired:
    """Return the error of a command whose set-up took the caller's whole patience."""
    from sandbox.result import Reason, Result

    error = TimeoutExpired(args, timeout)
    error.result = Result(
        args,
        -SIGKILL,
        reason=Reason.TIMEOUT,
        detail=f"killed after {timeout} seconds, the caller's timeout, in its set-up: the program was never executed",
    )
    return error


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
            timeout: Seconds of the caller's patience, for the launch and the command; then the whole tree is killed.
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
        decode = decoder(encoding, errors) if is_text else None
        stdin, data = _fed(stdin, input, encoding, errors, is_text=is_text)
        deadline = deadline_of(timeout)
        try:
            process = self._open(args, stdin, stdout, stderr, 0, None, options, attended=False, deadline=deadline)
        except SetupError as error:
            if timeout is None or not is_late(error):
                raise
            raise expired(args, timeout) from error
        result = process._finish(data, timeout, deadline, decode)
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

        Returns:
            What `run` returns.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
            TimeoutExpired: The timeout passed.
            CalledProcessError: check=True, and it failed.
        """
        is_text = bool(text) or encoding is not None or errors is not None
        stdout, stderr = _captured(capture_output, stdout, stderr)
        decode = decoder(encoding, errors) if is_text else None
        stdin, data = _fed(stdin, input, encoding, errors, is_text=is_text)
        deadline = deadline_of(timeout)
        try:
            process, streams = await self._open_async(
                args, stdin, stdout, stderr, options, attended=False, deadline=deadline
            )
        except SetupError as error:
            if timeout is None or not is_late(error):
                raise
            raise expired(args, timeout) from error
        result = await process._finish(streams, data, timeout, deadline, decode)
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
        deadline: float | None = None,
    ) -> "Process[Any]":
        """Launch with streams; the caller's ends of pipes become the process's files."""
        order, streams = ordered(args, stdin, stdout, stderr, options, attended, deadline)
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
                LimitedFile(fd, process._budget)
                if reads and process._budget is not None
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
        deadline: float | None = None,
    ) -> "tuple[Process_async, Streams]":
        """Launch with streams, whose ends are still the caller's to connect."""
        order, streams = ordered(args, stdin, stdout, stderr, options, attended, deadline)
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
        **options: Unpack[PopenOptions],
    ) -> "Process_async":
        """Start a command as `popen` does, without blocking the loop; streams are asyncio's, and of bytes.

        Args:
            args: Program and arguments.
            limit: Of the buffers of stdout and stderr, in bytes, as in `asyncio.create_subprocess_exec`.
            **options: stdin, stdout, stderr and the others, as in `popen`.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
        """
        given: dict[str, Any] = dict(options)
        for name in ("text", "encoding", "errors", "universal_newlines"):
            if given.get(name):
                raise ValueError(f"{name} is not for popen_async: its streams are of bytes, as asyncio's")
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit must be a number of bytes, not {type(limit).__name__}")
        if limit < 1:
            raise ValueError(f"limit must be 1 or more bytes, got {limit}")
        stdin, stdout, stderr = given.pop("stdin", DEVNULL), given.pop("stdout", None), given.pop("stderr", None)
        process, streams = await self._open_async(args, stdin, stdout, stderr, given)
        try:
            process._take_pipes(streams, limit)
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
        if cast(Any, bufsize) is None:  # subprocess takes it
            bufsize = -1
        if isinstance(bufsize, bool) or not isinstance(bufsize, int):
            raise TypeError(f"bufsize must be an int, not {type(bufsize).__name__}")
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
        decode = None if wrap is None else decoder(encoding, errors)
        process = self._open(args, stdin, stdout, stderr, bufsize, wrap, options)
        process._decode = decode
        return process
