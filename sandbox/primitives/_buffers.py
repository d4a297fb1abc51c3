"""Memory handed to the kernel for longer than one call: exported buffers and vectors of them."""

from typing import TYPE_CHECKING, Any, TypeAlias

from sandbox._native import ffi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

# A cffi array over somebody's memory; len() is its bytes. It holds the buffer: bytearray.extend, mmap.close
# and memoryview.release fail with BufferError as long as it lives.
Exported: TypeAlias = Any

IOV_MAX = 1024
# What the kernel transfers at most in one call, whatever is asked for: MAX_RW_COUNT.
RW_MAX = 0x7FFFF000

# For those who export much: from_buffer(CHARS, buffer, writable) costs a quarter of
# from_buffer("char[]", buffer, require_writable=writable). It raises TypeError and BufferError.
CHARS: Any = ffi.typeof("char[]")
NULL: Any = ffi.NULL
from_buffer: "Callable[[Any, Buffer, bool], Exported]" = ffi.from_buffer


def export(buffer: "Buffer", writable: bool, name: str = "buffer") -> Exported:
    """Export one buffer.

    Raises:
        TypeError: Not a contiguous bytes-like object, or read-only where the kernel is to write.
    """
    try:
        return from_buffer(CHARS, buffer, writable)
    except (TypeError, BufferError) as error:
        kind = "writable bytes-like" if writable else "bytes-like"
        raise TypeError(f"{name} must be a contiguous {kind} object, not {type(buffer).__name__}") from error


def iovec_of(buffers: "Iterable[Buffer]", writable: bool, name: str = "buffers") -> tuple[Any, list[Exported]]:
    """Return an array of struct iovec and the exported buffers that it points to; both must be kept.

    Raises:
        TypeError: One of them is no bytes-like object, or read-only where the kernel is to write.
        ValueError: None, or more than 1024.
    """
    exported = [export(buffer, writable, f"{name}[{i}]") for i, buffer in enumerate(buffers)]
    if not 1 <= len(exported) <= IOV_MAX:
        raise ValueError(f"{name} must hold 1 to {IOV_MAX} buffers, got {len(exported)}")
    vector = ffi.new("struct iovec[]", len(exported))
    for entry, one in zip(vector, exported, strict=True):
        entry.iov_base = one
        entry.iov_len = len(one)
    return vector, exported


def address_of(exported: Exported) -> int:
    """Return the address of exported memory."""
    return int(ffi.cast("uintptr_t", exported))
