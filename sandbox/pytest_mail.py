"""What a test's copy of pytest tells the one that made it: lines of JSON in memory that both see.

Memory needs no descriptor, which a test may close, and wakes nobody who would compete with the test. What is read from
it may be anything, for the test can write there: nothing is believed but its form.
"""

from __future__ import annotations

import json
import mmap
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE: Final = 64 << 20
_USED: Final = struct.Struct("=Q")  # bytes after the head; more than fit: somebody had more to say
_SWEPT: Final = 1 << 20


class Mailbox:
    """Memory for the messages of one test at a time."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        # Pages exist when they are written.
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)

    def clear(self) -> None:
        """Forget what was said; the memory of a long message goes back to the kernel."""
        if self._used() > _SWEPT:
            self._memory.madvise(mmap.MADV_REMOVE)
        self._memory[: _USED.size] = _USED.pack(0)

    def _used(self) -> int:
        used: int = _USED.unpack(self._memory[: _USED.size])[0]
        return used

    def send(self, **message: Any) -> None:
        """Say something; what JSON does not have becomes its text."""
        text = _line(message)
        begin = _USED.size + self._used()
        if begin + len(text) > self.size:
            self._memory[: _USED.size] = _USED.pack(self.size)
            return
        self._memory[begin : begin + len(text)] = text
        self._memory[: _USED.size] = _USED.pack(begin + len(text) - _USED.size)

    @property
    def overflowed(self) -> bool:
        """Whether there was more to say than room."""
        return self._used() > self.size - _USED.size

    def read(self) -> Iterator[dict[str, Any]]:
        """Go through what was said, leaving out what is no message."""
        used = min(self._used(), self.size - _USED.size)
        for line in self._memory[_USED.size : _USED.size + used].split(b"\n"):
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                yield message


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a test's own class
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _line(message: dict[str, Any]) -> bytes:
    try:
        return json.dumps(message, default=_text).encode() + b"\n"
    except (TypeError, ValueError, RecursionError):  # keys that are no texts, circles
        return json.dumps(_plain(message, 12), default=_text).encode() + b"\n"


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str | int | float | None):
        return value
    if depth and isinstance(value, dict):
        return {_text(key): _plain(one, depth - 1) for key, one in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value]
    return _text(value)
