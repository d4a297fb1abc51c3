"""A terminal of the sandbox's own: the steps that make it, and the caller's end of it.

Facts, and what follows:
- The pair is made inside, from the sandbox's own devpts: a terminal of the caller would let the payload reach its
  settings, and, where no filter stops it, type into it (TIOCSTI).
- TIOCGPTPEER opens the other end without a path, and fails for whatever is no such device: a root file system with
  a false /dev/ptmx is found out.
- A read says EIO when nobody has the other end open; here that is the end of file.
"""

import errno
import fcntl
import io
import termios
from struct import pack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandbox import kernel as k
from sandbox.plan import TAG_TERMINAL, Late, Program, Slot

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEVICE: Final = "/dev/ptmx"
_MOST: Final = 0xFFFF
_TIOCSWINSZ: Final = 0x5414
# struct termios of the kernel's first setting (ICRNL|IXON, OPOST|ONLCR, B38400|CS8|CREAD, ISIG|ICANON|ECHO and
# its kin|IEXTEN), and IUTF8: erasing takes a whole character.
_USUAL: Final = pack("<4IB19s", 0o42400, 0o5, 0o277, 0o105073, 0, b"\3\34\177\25\4\0\1\0\21\23\32\0\22\17\27\26\0\0\0")

Values = tuple[tuple[str, bytes], ...]


class Like(NamedTuple):
    """A terminal like another one.

    Args:
        size: Rows and columns.
        attributes: Its struct termios.
    """

    size: tuple[int, int]
    attributes: bytes = _USUAL


def values_of(pty: object) -> Values:
    """Return what the steps of `open_terminal` need at a launch with `pty`; nothing for no terminal.

    Raises:
        TypeError: It is neither a bool nor a pair.
        ValueError: A number is out of range.
    """
    if pty is False:
        return ()
    like = pty if isinstance(pty, Like) else Like((24, 80)) if pty is True else None
    if like is None:
        if not isinstance(pty, tuple) or len(pty) != 2:
            raise TypeError(f"pty must be True, False or (rows, columns), not {pty!r}")
        like = Like(pty)
    return ("window_size", _window(*like.size)), ("attributes", like.attributes)


def _window(rows: object, columns: object) -> bytes:
    return pack("<4H", _checked("rows", rows), _checked("columns", columns), 0, 0)


def _checked(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 1 <= value <= _MOST:
        raise ValueError(f"{name} must be between 1 and {_MOST}, got {value}")
    return value


def open_terminal(program: Program, slot: Slot) -> None:
    """Add the steps that make a terminal: this end goes to the launcher, the other one is the slot's descriptor.

    They belong into the payload's segment, after setsid and before its descriptors are placed.
    """
    program.origin = "pty"
    flags = k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC
    resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
    how = program.data(pack("<3Q", flags, 0, resolve), f"{{flags={flags!r}, resolve={resolve!r}}}")
    terminal = program.call("openat2", k.AT_FDCWD, DEVICE, how, 24, name="terminal", retry=100)
    program.call("ioctl", terminal, k.TIOCSPTLCK, program.data(bytes(4), "{0}"))
    program.call("ioctl", terminal, k.TIOCSWINSZ, Late("window_size", pointer=True))
    program.call("ioctl", terminal, k.TCSETS, Late("attributes", pointer=True))
    other = program.call("ioctl", terminal, k.TIOCGPTPEER, flags, name=slot.name, store=slot)
    program.call("ioctl", other, k.TIOCSCTTY, 0)
    program.call("send_fd", terminal, TAG_TERMINAL)
    program.call("close", terminal)


def resize(fd: int, rows: int, columns: int) -> None:
    """Tell a terminal its new size; what runs in its foreground gets SIGWINCH."""
    fcntl.ioctl(fd, _TIOCSWINSZ, _window(rows, columns))


def end_of_input(fd: int, text: bytes) -> bytes:
    """Return what says the end of the input after a text that was typed: twice within a line, once at its beginning."""
    character: bytes = termios.tcgetattr(fd)[6][termios.VEOF]
    return character if not text or text.endswith(b"\n") else character * 2


class Terminal(io.FileIO):
    """The caller's end of a terminal: what is typed and what is shown, unbuffered.

    A read returns what is there, up to its size; the end of file comes when nobody has the other end open. A write
    returns when all was taken.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "r+")

    def read(self, size: int | None = -1, /) -> Any:
        """Read what is there, at most so many bytes; without a size, all until the end."""
        if size is None or size < 0:
            return self.readall()
        try:
            return super().read(size)
        except OSError as error:
            return _end(error, b"")

    read1 = read

    def readall(self) -> bytes:
        """Read all until the end."""
        return b"".join(iter(lambda: self.read(io.DEFAULT_BUFFER_SIZE), b""))

    def readinto(self, buffer: "Buffer", /) -> Any:
        """Read into a buffer."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            return _end(error, 0)

    def write(self, data: "Buffer", /) -> Any:
        """Type all of it; without anybody at the other end it goes nowhere."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            written = super().write(left)
            if written is None:  # non-blocking, and full
                return size - len(left) or None
            left = left[written:]
        return size


def _end(error: OSError, nothing: Any) -> Any:
    if error.errno != errno.EIO:
        raise error
    return nothing
