"""What services write: whole lines, to a callback, a logger or a file that is rotated."""

import logging
import os
import stat
from collections.abc import Callable
from typing import Final, NoReturn

from sandbox.arguments import StrOrBytesPath

MAX_LINE: Final = 1 << 16  # bytes that are held for a line without an end
_READ: Final = 1 << 16

Sink = Callable[[str, bytes], None]


class Lines:
    """Cuts a stream into lines; what has no end yet is held, up to 64 KiB."""

    __slots__ = ("_held", "_limit")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._held = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, with their ends; a line above the limit comes in pieces."""
        held = self._held
        held += data
        end = held.rfind(b"\n") + 1
        lines = [line + b"\n" for line in bytes(held[:end]).split(b"\n")[:-1]]
        del held[:end]
        while len(held) >= self._limit:
            lines.append(bytes(held[: self._limit]))
            del held[: self._limit]
        return lines

    def rest(self) -> bytes:
        """Return what had no end, and hold it no more."""
        rest = bytes(self._held)
        self._held.clear()
        return rest


def read_some(fd: int) -> bytes | None:
    """Return what can be read now; b"" at the end, None when there is nothing."""
    try:
        return os.read(fd, _READ)
    except BlockingIOError:
        return None


class RotatingFile:
    """A file for the output of services, moved to PATH.1, PATH.2 ... when it is full.

    A link is followed once, when it is made; what is a device or a FIFO is never moved.

    Give it as `output=`; a path alone stands for `RotatingFile(path)`. Several services may share one.

    Args:
        path: The file; it is appended to, and made with mode 0640 if it is missing.
        size: Bytes after which it is moved away; a line is never cut.
        keep: How many old ones are kept.

    Raises:
        ValueError: A size below 1, or keep below 0.
        OSError: It cannot be opened.
    """

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: two would move one file."""
        raise TypeError("RotatingFile cannot be pickled: its file is open in this process; make one there")

    def __init__(self, path: StrOrBytesPath, size: int = 10 << 20, keep: int = 5) -> None:
        for name, value, least in (("size", size, 1), ("keep", keep, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        self.path = os.path.abspath(os.fsdecode(path))
        self._size = size
        self._keep = keep
        self._fd = -1
        self._written = 0
        self._follow = 0
        self._regular = False
        self._open()
        if self._regular:
            # Whoever may write to its directory could put a link there between two files.
            self.path = os.path.realpath(self.path)
            self._follow = os.O_NOFOLLOW

    def _open(self) -> None:
        # To open a FIFO that nobody reads is an error, and no wait.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = os.open(self.path, flags | self._follow, 0o640)
        os.set_blocking(self._fd, True)
        status = os.fstat(self._fd)
        self._regular = stat.S_ISREG(status.st_mode)
        self._written = status.st_size

    def __call__(self, _service: str, line: bytes) -> None:
        """Append a line.

        Raises:
            OSError: It cannot be written, as when the disk is full.
        """
        if self._fd < 0:
            self._open()
        if self._regular and self._written and self._written + len(line) > self._size:
            self._rotate()
        done = 0
        while done < len(line):
            done += os.write(self._fd, line[done:])
        self._written += done

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = f"{self.path}.{number - 1}" if number > 1 else self.path
            try:
                os.replace(older, f"{self.path}.{number}")
            except FileNotFoundError:
                continue
        if not self._keep:
            os.unlink(self.path)
        self._open()

    def close(self) -> None:
        """Close it; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def to_logging(logger: logging.Logger | None = None, level: int = logging.INFO) -> Sink:
    """Return an `output=` that logs each line.

    Args:
        logger: Whose; None: one named "sandbox.supervise.SERVICE" for each service.
        level: Of the records.
    """

    def log(service: str, line: bytes) -> None:
        target = logger if logger is not None else logging.getLogger(f"sandbox.supervise.{service}")
        text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
        target.log(level, "%s", text, extra={"service": service})

    return log
