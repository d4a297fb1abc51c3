"""The content of a file that comes from a descriptor."""

import errno
import os
import threading
from typing import Any, Final

from sandbox.arguments import MOST_CONTENT
from sandbox.errors import SetupError

__all__ = ["DescriptorSource"]

_CHUNK: Final = 1 << 16


class DescriptorSource:
    """What a descriptor holds from where it stands to its end: read once, when it is needed first.

    It is compared by identity: nobody knows what two descriptors hold before they are read.

    Args:
        source: The descriptor, or what has a fileno(); it stays the caller's, and open until it is read.
        origin: The builder call.
    """

    __slots__ = ("_content", "_identity", "_lock", "_origin", "_source")

    def __init__(self, source: Any, origin: str) -> None:
        self._source = source
        self._origin = origin
        self._identity = self._look(self._fd())
        self._content: bytes | None = None
        self._lock = threading.Lock()

    def content(self) -> bytes:
        """Return the content, and read it the first time.

        Raises:
            SetupError: It cannot be read.
            ValueError: It is longer than a plan may be.
        """
        with self._lock:
            if self._content is None:
                self._content = self._read()
                self._source = None
            return self._content

    def known(self) -> bytes | None:
        """Return the content when it was read already."""
        return self._content

    def _fd(self) -> int:
        return self._source if isinstance(self._source, int) else int(self._source.fileno())

    @staticmethod
    def _look(fd: int) -> tuple[int, int]:
        """Return what tells one file from another: a number that was closed is soon something else's."""
        status = os.fstat(fd)
        return status.st_dev, status.st_ino

    def _read(self) -> bytes:
        fd = self._fd()
        found = bytearray()
        try:
            if self._look(fd) != self._identity:
                raise OSError(errno.EBADF, "another file has this number")
            while data := os.read(fd, _CHUNK):
                found += data
                if len(found) > MOST_CONTENT:
                    raise ValueError(f"{self._origin}: a file has at most 16 MiB; bind one instead")
        except OSError as error:
            raise SetupError(
                error.errno or 0,
                call=f"read({fd})",
                origin=self._origin,
                hint="the descriptor must be readable, and open until the first launch",
            ) from None
        return bytes(found)

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse: the descriptor is of this process."""
        raise TypeError(f"a sandbox with {self._origin} cannot be pickled: the descriptor is this process's own")
