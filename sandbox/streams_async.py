"""The caller's ends of pipes and terminals, for asyncio's streams.

The transports are not the loop's own: libuv closes a descriptor itself, then has its file closed, too, and closes it
without its file when a connection is cancelled. By then the number may be another thread's.
"""

import asyncio
import errno
import io
import os
import stat
from typing import Any, Final

from sandbox.errors import BusyError
from sandbox.exchange import Budget

_HIGH: Final = 1 << 16  # bytes that may wait before who writes has to
_MOST: Final = 1 << 18  # bytes of one read


class Reader(asyncio.StreamReader):
    """A stream that knows whether a task waits for what comes, and refuses a second one."""

    taken = False

    async def _wait_for_data(self, func_name: str) -> None:
        # asyncio refuses, too, but not between the coming of data and the turn of the task that waits for it: that one
        # then takes the future of the second along, which nobody wakes any more.
        if self.taken:
            raise BusyError(f"{func_name}() called while another task already waits for data")
        self.taken = True
        try:
            await super()._wait_for_data(func_name)  # type: ignore[misc]  # not in typeshed
        finally:
            self.taken = False


class Output(asyncio.StreamReaderProtocol):
    """What a command says; the hang-up of a terminal is its end, no error."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, budget: Budget | None) -> None:
        super().__init__(reader, loop=loop)
        self._budget = budget

    def data_received(self, data: bytes) -> None:
        """Take what the limit of output leaves."""
        if self._budget is not None:
            data = data[: self._budget.take(len(data))]
        if data:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end."""
        if isinstance(exc, OSError) and exc.errno == errno.EIO:
            exc = None
        super().connection_lost(exc)


class _End(asyncio.BaseTransport):
    """One end, which closes its file; that is done at once, also when the loop is gone."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, file: io.FileIO, protocol: asyncio.StreamReaderProtocol
    ) -> None:
        super().__init__({"pipe": file})
        self._loop = loop
        self._file = file
        self._protocol = protocol
        self._closing = False
        os.set_blocking(file.fileno(), False)

    def is_closing(self) -> bool:
        """Say whether it takes or gives nothing any more."""
        return self._closing

    def _end(self, error: Exception | None = None) -> None:
        self._closing = True
        if self._file.closed:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._file.fileno())
            self._loop.remove_writer(self._file.fileno())
            self._loop.call_soon(self._protocol.connection_lost, error)
        self._file.close()


class ReadEnd(_End, asyncio.ReadTransport):
    """Reads what a command says."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, file: io.FileIO, protocol: asyncio.StreamReaderProtocol
    ) -> None:
        super().__init__(loop, file, protocol)
        self._paused = False
        loop.add_reader(file.fileno(), self._read)
        protocol.connection_made(self)

    def _read(self) -> None:
        try:
            data = os.read(self._file.fileno(), _MOST)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._protocol.eof_received()
            self._end()

    def is_reading(self) -> bool:
        """Say whether it reads."""
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        """Leave what comes to the kernel."""
        if self.is_reading():
            self._paused = True
            self._loop.remove_reader(self._file.fileno())

    def resume_reading(self) -> None:
        """Read again."""
        if self._paused and not self._closing:
            self._paused = False
            self._loop.add_reader(self._file.fileno(), self._read)

    def close(self) -> None:
        """Close now."""
        self._end()


class WriteEnd(_End, asyncio.WriteTransport):
    """Writes what a command reads.

    A terminal is never read here: what it says is its other end's.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, file: io.FileIO, protocol: asyncio.StreamReaderProtocol
    ) -> None:
        super().__init__(loop, file, protocol)
        self._rest = bytearray()
        self._paused = False
        self._is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        if self._is_pipe:
            loop.add_reader(file.fileno(), self._hung_up)
        protocol.connection_made(self)

    def _hung_up(self) -> None:
        """Take that nobody has the other end any more."""
        self._end(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if self._rest else None)

    def write(self, data: Any) -> None:
        """Write now what the other end takes now, and the rest when it can."""
        if self._closing:
            return
        waiting = bool(self._rest)
        self._rest += data
        if not waiting:
            self._flush()
            if self._rest and not self._closing:
                self._loop.add_writer(self._file.fileno(), self._flush)
        if len(self._rest) > _HIGH and not self._paused and not self._closing:
            self._paused = True
            self._protocol.pause_writing()

    def _flush(self) -> None:
        try:
            del self._rest[: os.write(self._file.fileno(), self._rest)]
        except BlockingIOError:
            return
        except OSError as error:  # nobody has the other end any more
            self._rest.clear()
            self._end(error if self._is_pipe else None)
            return
        if self._rest:
            return
        self._loop.remove_writer(self._file.fileno())
        if self._paused:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing:
            self._end()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait."""
        return len(self._rest)

    def can_write_eof(self) -> bool:
        """Say whether its end can be told: that of a terminal's input is a character."""
        return self._is_pipe

    def write_eof(self) -> None:
        """Write what waits, and close."""
        self.close()

    def close(self) -> None:
        """Write what waits, and close."""
        self._closing = True
        if not self._rest or self._loop.is_closed():
            self._end()

    def abort(self) -> None:
        """Close now."""
        self._end()
