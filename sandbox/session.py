"""`--tty` and `sandbox shell`: the caller's terminal on one side, that of a sandbox on the other.

Facts, and what follows:
- Nobody who was killed with SIGKILL cleans up: a tiny process that holds nothing but the terminal and a pipe waits
  for the end of the command, and gives the terminal its settings back. It is in a session of its own, so neither
  the terminal's signals nor a kill of the process group reach it.
- O_NONBLOCK belongs to an open file, which the caller's shell has as well: a terminal is opened again to be written to
  without waiting, so that a terminal that takes nothing does not keep Ctrl-C or SIGTERM out.
- A terminal gives about 4 KiB at a time, by read as by splice, and splice needs a pipe in between: measured, the same
  speed for the same processor time. So bytes are read and written, which a filter needs anyway.
"""

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import termios
from typing import TYPE_CHECKING, Any, Final

from sandbox.terminal import Like, end_of_input, resize

if TYPE_CHECKING:
    from sandbox.escapes import EscapeFilter
    from sandbox.terminal import Terminal

SIGNALS: Final = (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP)
_TCGETS: Final = 0x5401
_ATTRIBUTES: Final = 36  # bytes of struct termios
_MOST_FDS: Final = 1 << 20
_CHUNK: Final = 1 << 16
# As much as a pipe surely takes when poll says that it takes something.
_SMALL: Final = select.PIPE_BUF


class RawMode:
    """Raw mode of a terminal, for a while; taken back whatever happens to this process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None
        self._guardian = -1
        self._alive = -1

    def enter(self) -> None:
        """Let every key through, and every byte out."""
        if self._before is None:
            self._before = termios.tcgetattr(self._fd)
            self._guard(self._before)
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = self._before
        iflag &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
            | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        cc = list(cc)
        cc[termios.VMIN], cc[termios.VTIME] = 1, 0
        _set(self._fd, [iflag, oflag & ~termios.OPOST, cflag, lflag, ispeed, ospeed, cc])

    def leave(self) -> None:
        """Give the settings back, for now."""
        if self._before is not None:
            _set(self._fd, self._before)

    def close(self) -> None:
        """Give the settings back, and dismiss who would do it for us."""
        self.leave()
        self._before = None
        if self._guardian > 0:
            os.write(self._alive, b"d")
            os.close(self._alive)
            try:
                os.waitpid(self._guardian, 0)
            except ChildProcessError:
                pass  # SIGCHLD is ignored
            self._guardian = -1

    def _guard(self, attributes: list[Any]) -> None:
        """Start the process that waits for our end."""
        read_end, self._alive = os.pipe2(os.O_CLOEXEC)
        self._guardian = os.fork()
        if self._guardian == 0:
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                os.setsid()
                os.dup2(self._fd, 0)
                os.dup2(read_end, 1)
                os.closerange(2, _MOST_FDS)
                # A byte: all is well. The end of file: it has died.
                if not os.read(1, 1):
                    _set(0, attributes)
            finally:
                os._exit(0)
        os.close(read_end)


def _set(fd: int, attributes: list[Any]) -> None:
    """Change the settings at once: to wait until the terminal has shown all might be for ever."""
    while True:
        try:
            termios.tcsetattr(fd, termios.TCSANOW, attributes)
        except termios.error as error:
            # In the background this stops us, and goes on with the signal that continues us.
            if error.args[0] == errno.EINTR:
                continue
        # Else the terminal has gone, and its settings with it.
        return


class Session:
    """Types what the caller types, and shows what the sandbox says.

    Both directions are bounded: what cannot be passed on is not read.

    Args:
        filter: What output goes through; None: as it is.

    Attributes:
        like: Size and settings of the caller's terminal, for the sandbox's own.
    """

    def __init__(self, filter: "EscapeFilter | None" = None) -> None:
        self._filter = filter
        self._outer = next((fd for fd in range(3) if os.isatty(fd)), -1)
        self._raw = RawMode(0) if os.isatty(0) else None
        attributes = fcntl.ioctl(0, _TCGETS, bytes(_ATTRIBUTES)) if self._raw else None
        size = self._size() or (24, 80)
        self.like = Like(size) if attributes is None else Like(size, attributes)
        self._terminal: Terminal | None = None
        self._hung_up = False
        self._armed: dict[int, int] = {}
        self._open = True
        self._typed = b""
        self._last = b""
        self._shown = memoryview(b"")
        self._out, self._waits = _output(1)

    def begin(self, terminal: "Terminal") -> None:
        """Take the sandbox's terminal; from here on keys go there."""
        self._terminal = terminal
        os.set_blocking(terminal.fileno(), False)
        if self._raw is not None:
            self._raw.enter()
        self._resize()

    def close(self) -> None:
        """Give the caller's terminal back."""
        if self._raw is not None:
            self._raw.close()
        if self._out > 2:
            os.close(self._out)
            self._out = -1

    def signal(self, number: int) -> bool:
        """Do what a signal is about; False when it is none of the terminal's."""
        if number not in SIGNALS:
            return False
        if number == signal.SIGTSTP:
            if self._raw is not None:
                self._raw.leave()
            # Where a job-control shell waits for it; this goes on when somebody continues it.
            os.kill(os.getpid(), signal.SIGSTOP)
        if number != signal.SIGWINCH and self._raw is not None and self._terminal is not None:
            self._raw.enter()
        self._resize()
        return True

    def _size(self) -> tuple[int, int] | None:
        if self._outer < 0:
            return None
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(self._outer, termios.TIOCGWINSZ, bytes(8)))
        return (rows, columns) if rows and columns else None

    def _resize(self) -> None:
        size = self._size()
        if size is not None and self._terminal is not None:
            resize(self._terminal.fileno(), *size)

    # The loop's part.

    def arm(self, poller: select.poll) -> None:
        """Register what is waited for now."""
        wanted: dict[int, int] = {}
        if self._shown:
            wanted[self._out] = select.POLLOUT
        if self._open and len(self._typed) < _SMALL:
            wanted[0] = select.POLLIN
        if self._terminal is not None and not self._hung_up:
            events = (select.POLLOUT if self._typed else 0) | (0 if self._shown else select.POLLIN)
            if events:
                wanted[self._terminal.fileno()] = events
        if wanted == self._armed:
            return
        for fd in self._armed.keys() - wanted.keys():
            poller.unregister(fd)
        for fd, events in wanted.items():
            poller.register(fd, events)
        self._armed = wanted

    def serve(self, ready: dict[int, int]) -> None:
        """Pass on what can be; keys before output, and of that no more than one piece.

        Raises:
            BrokenPipeError: Nobody takes the output any more.
        """
        if self._armed.get(0) and 0 in ready:
            self._read_keys()
        terminal = -1 if self._terminal is None else self._terminal.fileno()
        if self._typed and terminal in ready:
            self._type()
        if self._shown and self._out in ready:
            self._show()
        elif terminal in ready and not self._shown:
            self._read()

    def done(self) -> bool:
        """After the end of the sandbox: take what it has said last; False as long as that is not all shown.

        Raises:
            BrokenPipeError: Nobody takes the output any more.
        """
        while not self._shown and not self._hung_up:
            # Nothing there, and yet no end: somebody outside has the other end as well.
            if not self._read():
                self._hung_up = True
        if self._hung_up and self._filter is not None:
            self._shown = memoryview(bytes(self._shown) + self._filter.close())
            self._filter = None
        return not self._shown

    def _read_keys(self) -> None:
        try:
            data = os.read(0, _SMALL)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # hung up
        if data:
            self._typed += data
            self._last = data
            return
        self._open = False
        if self._raw is None and self._terminal is not None:
            self._typed += end_of_input(self._terminal.fileno(), self._last)

    def _type(self) -> None:
        assert self._terminal is not None
        try:
            self._typed = self._typed[os.write(self._terminal.fileno(), self._typed) :]
        except BlockingIOError:
            return

    def _read(self) -> bool:
        assert self._terminal is not None
        try:
            data = os.read(self._terminal.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._hung_up = True
            return True
        self._shown = memoryview(data if self._filter is None else self._filter.feed(data))
        if self._shown and not self._waits:
            self._show()
        return True

    def _show(self) -> None:
        try:
            self._shown = self._shown[os.write(self._out, self._shown[:_SMALL] if self._waits else self._shown) :]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None


def session_for(*, filtered: bool) -> Session:
    """Return a session that shows all, or what may be shown of output that is not trusted."""
    if not filtered:
        return Session()
    import locale

    from sandbox.escapes import EscapeFilter

    return Session(EscapeFilter(utf8=locale.nl_langinfo(locale.CODESET).upper() == "UTF-8"))


def _output(fd: int) -> tuple[int, bool]:
    """Return what to write to, and whether a write of more than a little may wait."""
    if stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd):
        try:
            again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return fd, True  # another user's, after su
        return again, False
    return fd, True
