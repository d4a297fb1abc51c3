"""Feeding stdin and draining stdout and stderr: the bytes and their order, without waiting for anything.

Whoever drives an `Exchange` waits for its descriptors: with poll in here, with a loop's callbacks elsewhere.
"""

import codecs
import errno
import io
import os
import select
import threading
import time
from collections.abc import Callable
from typing import IO, Any, Final

_CHUNK = 1 << 18

# 24 days: poll() counts milliseconds in an int.
_MOST_SECONDS: Final = 2_147_483


def check_timeout(timeout: float, name: str = "timeout") -> float:
    """Return a timeout that poll() can wait for; one that has passed is one, as in subprocess.

    Raises:
        TypeError: No number.
        ValueError: NaN, or more than poll() counts.
    """
    if not isinstance(timeout, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(timeout).__name__}")
    if not timeout <= _MOST_SECONDS:
        raise ValueError(f"{name} must be at most {_MOST_SECONDS} seconds, or None for no limit, got {timeout}")
    return max(timeout, 0.0)


def check_input(input: Any, *, is_text: bool) -> None:
    """Refuse input that is not of the streams' kind.

    Raises:
        TypeError: bytes for text, or str for bytes, or neither.
    """
    if is_text and not isinstance(input, str):
        raise TypeError(f"input must be str, for text, encoding or errors is given, not {type(input).__name__}")
    if isinstance(input, str) and not is_text:
        raise TypeError("input must be bytes, not str; with text=True or an encoding it is str")
    if not is_text:
        try:
            memoryview(input).release()
        except TypeError:
            raise TypeError(f"input must be bytes, or another buffer, not {type(input).__name__}") from None


def deadline_of(timeout: float | None) -> float | None:
    """Return the moment on the monotonic clock at which a timeout is over."""
    return None if timeout is None else time.monotonic() + check_timeout(timeout)


def milliseconds(deadline: float | None) -> int | None:
    """Return what poll() wants, rounded up: a timeout never ends early."""
    return None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)


class Budget:
    """How much output is taken, of all streams together.

    Args:
        limit: Bytes.
        stop: Called once, when there is more.

    Attributes:
        exceeded: There was more.
    """

    def __init__(self, limit: int, stop: Callable[[], object] | None) -> None:
        self._left = limit
        self._stop = stop
        self._lock = threading.Lock()
        self.exceeded = False

    def take(self, size: int) -> int:
        """Return how many of so many bytes may be kept."""
        with self._lock:
            kept = min(size, self._left)
            self._left -= kept
            first = kept < size and not self.exceeded
            self.exceeded = self.exceeded or first
        if first and self._stop is not None:
            self._stop()
        return kept


class LimitedFile(io.FileIO):
    """The caller's end of a pipe, which reads no more than there is budget for; the rest is read and forgotten."""

    def __init__(self, fd: int, budget: Budget) -> None:
        super().__init__(fd, "r")
        self._budget = budget

    def readinto(self, buffer: Any, /) -> int | None:
        """Read into a buffer; 0 at the end, None when a non-blocking pipe has nothing now."""
        while (size := super().readinto(buffer)) and not (kept := self._budget.take(size)):
            pass
        return kept if size else size

    def read(self, size: int | None = -1, /) -> bytes | None:  # type: ignore[override]
        """Read up to so many bytes, or all."""
        if size is None or size < 0:
            return self.readall()
        buffer = bytearray(size)
        got = self.readinto(buffer)
        return None if got is None else bytes(buffer[:got])

    def readall(self) -> bytes | None:  # type: ignore[override]
        """Read all."""
        found = bytearray()
        while data := self.read(_CHUNK):
            found += data
        return None if data is None and not found else bytes(found)


class Exchange:
    """What goes in and has come out so far.

    Args:
        stdin: The caller's end of the pipe, or None.
        stdout: Likewise.
        stderr: Likewise.
        input: What stdin gets; it is closed then.
        budget: How much output is kept, or None.

    Attributes:
        waiting: The descriptors to wait for, with poll's events; `ready` and `finish` take them out.
    """

    def __init__(
        self,
        stdin: IO[Any] | None,
        stdout: IO[Any] | None,
        stderr: IO[Any] | None,
        input: bytes | bytearray | memoryview | None,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget
        self.waiting: dict[int, int] = {}
        self._input = memoryview(input or b"").cast("B")
        # One buffer each: a list of what came byte by byte would take many times as much.
        self._said: dict[int, bytearray] = {}
        self._stdin = stdin
        self._in = -1
        self._out = self._listen(stdout)
        self._err = self._listen(stderr)
        if stdin is not None and (self._input or not stdin.closed):
            _flush(stdin)
            if self._input:
                self._in = stdin.fileno()
                os.set_blocking(self._in, False)
                self.waiting[self._in] = select.POLLOUT
            else:
                close_stream(stdin)

    def _listen(self, stream: IO[Any] | None) -> bytearray | None:
        """Return where the output of a stream goes; nothing comes from one that the caller has closed."""
        if stream is None:
            return None
        said = bytearray()
        if not stream.closed:
            self._said[stream.fileno()] = said
            self.waiting[stream.fileno()] = select.POLLIN
        return said

    def ready(self, fd: int) -> bool:
        """Do what a descriptor is ready for; False when it is done with: stop waiting for it, then `finish` it."""
        return self._feed() if fd == self._in else self._drain(fd)

    def finish(self, fd: int) -> None:
        """Take a descriptor out; stdin is closed."""
        del self.waiting[fd]
        if fd == self._in and self._stdin is not None:
            self._in = -1
            close_stream(self._stdin)

    def _feed(self) -> bool:
        try:
            sent = os.write(self._in, self._input[: select.PIPE_BUF * 16])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            sent = len(self._input)
        self._input = self._input[sent:]
        return bool(self._input)

    def _drain(self, fd: int) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal whose other end nobody has open
                raise
            data = b""
        if data:
            self._said[fd] += data if self._budget is None else data[: self._budget.take(len(data))]
        return bool(data)

    def rest(self) -> None:
        """Take what is still in the pipes: all writers inside are dead, and others are not waited for."""
        for fd in self.waiting:
            if fd == self._in:
                continue
            os.set_blocking(fd, False)
            try:
                while self._drain(fd):
                    pass
            except BlockingIOError:  # a copy of the other end lives on outside of the sandbox
                continue
        # Not a second time: the caller may close them now.
        self.waiting.clear()
        if self._in >= 0 and self._stdin is not None:
            self._in = -1
            close_stream(self._stdin)

    def output(self) -> tuple[bytes | None, bytes | None]:
        """Return what stdout and stderr said so far; None for what is no pipe."""
        return (
            None if self._out is None else bytes(self._out),
            None if self._err is None else bytes(self._err),
        )


def _flush(stream: IO[Any]) -> None:
    try:
        stream.flush()
    except BrokenPipeError:  # nobody reads any more
        return


def close_stream(stream: IO[Any]) -> None:
    """Close the caller's end of a pipe."""
    try:
        stream.close()
    except BrokenPipeError:  # nobody reads what was still buffered, and that is the payload's right
        return


def check_coding(encoding: str | None, errors: str | None) -> None:
    """Refuse an encoding, or a way to handle errors, that there is not.

    Raises:
        TypeError: No str.
        LookupError: No such one.
    """
    for name, value, look in (("encoding", encoding, codecs.lookup), ("errors", errors, codecs.lookup_error)):
        if value is None:
            continue
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str or None, not {type(value).__name__}")
        look(value)


def decoder(encoding: str | None, errors: str | None) -> Callable[[bytes], str]:
    """Return what turns output into text, newlines translated, as subprocess does it.

    Raises:
        TypeError: No str.
        LookupError: No such encoding or way to handle errors; before anything runs whose output could not be read then.
    """
    check_coding(encoding, errors)
    if encoding is None:
        import locale

        encoding = locale.getpreferredencoding(False)

    def decode(data: bytes) -> str:
        return data.decode(encoding, errors or "strict").replace("\r\n", "\n").replace("\r", "\n")

    return decode


def decoded(data: bytes | None, decode: Callable[[bytes], Any] | None) -> Any:
    """Return output as it was asked for: text, bytes, or None for what is no pipe."""
    return data if data is None or decode is None else decode(data)
