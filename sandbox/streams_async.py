"""The caller's ends of pipes and terminals, for asyncio's streams."""

import asyncio
import errno
import io
import os
from typing import Any, Final

from sandbox.errors import BusyError
from sandbox.exchange import Budget

_HIGH: Final = 1 << 16  # bytes that may wait for a terminal before who writes has to


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


class Typing(asyncio.WriteTransport):
    """Writes to a terminal, and never reads: libuv's own transport would take what the terminal says."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, file: io.FileIO, protocol: asyncio.StreamReaderProtocol
    ) -> None:
        super().__init__()
        self._loop = loop
        self._file = file
        self._protocol = protocol
        self._rest = bytearray()
        self._closing = self._paused = False
        os.set_blocking(file.fileno(), False)
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        """Write now what the terminal takes now, and the rest when it can."""
        if self._file.closed or self._closing:
            return
        waiting = bool(self._rest)
        self._rest += data
        if not waiting:
            self._flush()
            if self._rest and not self._file.closed:
                self._loop.add_writer(self._file.fileno(), self._flush)
        if len(self._rest) > _HIGH and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _flush(self) -> None:
        try:
            del self._rest[: os.write(self._file.fileno(), self._rest)]
        except BlockingIOError:
            return
        except OSError:  # nobody has the other end any more
            self._rest.clear()
            self._closing = True
        if self._rest:
            return
        self._loop.remove_writer(self._file.fileno())
        if self._paused:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing:
            self.abort()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait."""
        return len(self._rest)

    def can_write_eof(self) -> bool:
        """Say no: the end of a terminal's input is a character."""
        return False

    def is_closing(self) -> bool:
        """Say whether it takes nothing any more."""
        return self._closing

    def close(self) -> None:
        """Write what waits, and close."""
        if not self._closing:
            self._closing = True
            if not self._rest:
                self.abort()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        if self._file.closed:
            return
        if not self._loop.is_closed():
            self._loop.remove_writer(self._file.fileno())
            self._loop.call_soon(self._protocol.connection_lost, None)
        self._file.close()
