"""Moving bytes between descriptors inside the kernel: splice(2), tee(2), vmsplice(2), copy_file_range(2)."""

import enum
import fcntl
import os
from collections.abc import Callable, Sequence
from os import splice as os_splice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from sandbox._native import ffi, lib
from sandbox.primitives._call import Fd, Held, check, fd_of, in_range

if TYPE_CHECKING:
    from typing_extensions import Buffer
else:
    Buffer = object

__all__ = [
    "SpliceFlags",
    "SPLICE_F_MOVE",
    "SPLICE_F_NONBLOCK",
    "SPLICE_F_MORE",
    "SPLICE_F_GIFT",
    "IOV_MAX",
    "Pinned",
    "splice",
    "tee",
    "vmsplice",
    "vmsplice_pinned",
    "copy_file_range",
]

IOV_MAX: Final = 1024
_SIZE_MAX = 2**63 - 1

Buffers: TypeAlias = "Buffer | Sequence[Buffer]"


class SpliceFlags(enum.IntFlag):
    """Flags of splice(2), tee(2) and vmsplice(2)."""

    MOVE = 1
    NONBLOCK = 2
    MORE = 4
    GIFT = 8


SPLICE_F_MOVE: Final = SpliceFlags.MOVE
SPLICE_F_NONBLOCK: Final = SpliceFlags.NONBLOCK
SPLICE_F_MORE: Final = SpliceFlags.MORE
SPLICE_F_GIFT: Final = SpliceFlags.GIFT


def _offset(value: int | None, name: str) -> int:
    return -1 if value is None else in_range(value, 0, _SIZE_MAX, name)


def splice(
    src: Fd,
    dst: Fd,
    count: int,
    offset_src: int | None = None,
    offset_dst: int | None = None,
    flags: int = 0,
) -> int:
    """Move bytes between two descriptors, one of which is a pipe, without copying them through user space.

    Args:
        src: Where to read.
        dst: Where to write.
        count: At most so many bytes, 0 or more.
        offset_src: Where in `src` to begin; its position stays as it is. None for its position, which
            moves, and for pipes.
        offset_dst: The same for `dst`.
        flags: SpliceFlags.

    Returns:
        How many bytes were moved; 0 at the end of the file or of the pipe.

    Raises:
        ValueError: A number out of its range.
        OSError: EINVAL (neither is a pipe; a file system or device that cannot; a file opened with
            O_APPEND; both ends of one pipe), ESPIPE (an offset for a pipe), EAGAIN (NONBLOCK, or a
            non-blocking descriptor), EBADF, EPIPE (nobody reads).

    See splice(2). Since Linux 2.6.17.
    """
    # The common case by the standard library, whose call costs a fifth; it checks neither offsets nor bools.
    if (
        src.__class__ is int is dst.__class__ is count.__class__
        and not flags
        and (offset_src is None or (offset_src.__class__ is int and offset_src >= 0))
        and (offset_dst is None or (offset_dst.__class__ is int and offset_dst >= 0))
        and 0 <= count <= _SIZE_MAX
    ):
        return os_splice(src, dst, count, offset_src, offset_dst)
    return check(
        lib.sandbox_splice(
            fd_of(src, "src"),
            _offset(offset_src, "offset_src"),
            fd_of(dst, "dst"),
            _offset(offset_dst, "offset_dst"),
            in_range(count, 0, _SIZE_MAX, "count"),
            in_range(flags, 0, 2**32 - 1, "flags"),
        )
    )


def tee(src: Fd, dst: Fd, count: int, flags: int = 0) -> int:
    """Duplicate bytes from one pipe into another; they stay in the first.

    Args:
        src: The pipe to look into.
        dst: The pipe to write to.
        count: At most so many bytes, 0 or more.
        flags: SpliceFlags; NONBLOCK is the one that matters.

    Returns:
        How many bytes were duplicated; 0 when the first pipe is at its end.

    Raises:
        ValueError: A number out of its range.
        OSError: EINVAL (not two pipes, or both ends of one), EAGAIN (nothing to do, non-blocking), EBADF.

    See tee(2). Since Linux 2.6.17.
    """
    count, flags = in_range(count, 0, _SIZE_MAX, "count"), in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_tee(fd_of(src, "src"), fd_of(dst, "dst"), count, flags))


def vmsplice(fd: Fd, buffers: Buffers, flags: int = 0) -> int:
    """Put a copy of memory into a pipe or, on the reading end of a pipe, fill memory from it.

    The kernel's own call makes the pipe refer to the caller's pages: whoever changes them later changes
    what the reader sees, and Python cannot know when it has read. So the bytes are copied once, into pages
    that belong to the pipe alone. `vmsplice_pinned` does not copy.

    Args:
        fd: One end of a pipe.
        buffers: A contiguous buffer or a sequence of at most 1024; writable ones for the reading end.
        flags: SpliceFlags.

    Returns:
        How many bytes were moved; fewer than given when the pipe is full.

    Raises:
        ValueError: Too many buffers, or flags out of range.
        TypeError: Not a buffer; a read-only buffer for the reading end.
        BufferError: A buffer that is not contiguous.
        OSError: EAGAIN (NONBLOCK and no room or nothing there), EBADF (not a pipe), ENOMEM.

    See vmsplice(2). Since Linux 2.6.17.
    """
    number = fd_of(fd)
    fills = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    # Where the pages are filled and not referred to, nothing has to be copied.
    call = lib.sandbox_vmsplice if fills else lib.sandbox_vmsplice_copy
    count, held = _vmsplice(call, number, buffers, flags, writable=fills)
    _let_go(held)
    return count


class Pinned(Held):
    """Memory that a pipe refers to: it can be neither resized nor freed until this is released.

    Release it when the reader has read everything; change the memory earlier, and the reader sees the change.

    Attributes:
        count: How many bytes the pipe took.
    """

    __slots__ = ("_held", "count")

    def __init__(self, count: int, held: list[Any]) -> None:
        self.count = count
        self._held = held

    def release(self) -> None:
        """Let the buffers go; twice does nothing."""
        held, self._held = self._held, []
        _let_go(held)

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the buffers go."""
        self.release()


def vmsplice_pinned(fd: Fd, buffers: Buffers, flags: int = 0) -> Pinned:
    """Make a pipe refer to the caller's memory, without copying a byte.

    Args:
        fd: The writing end of a pipe.
        buffers: A contiguous buffer or a sequence of at most 1024.
        flags: SpliceFlags; GIFT is a promise never to touch the pages again.

    Returns:
        What holds the buffers in place; `count` says how many bytes the pipe took.

    Raises:
        ValueError: Too many buffers, or flags out of range.
        TypeError: Not a buffer.
        BufferError: A buffer that is not contiguous.
        OSError: EAGAIN (NONBLOCK and no room), EBADF (not the writing end of a pipe), EINVAL (GIFT of
            memory that is not whole pages).

    See vmsplice(2). Since Linux 2.6.17.
    """
    number = fd_of(fd)
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise ValueError(f"fd must be the writing end of a pipe, {number} is open for reading")
    return Pinned(*_vmsplice(lib.sandbox_vmsplice, number, buffers, flags, writable=False))


def _vmsplice(
    call: Callable[..., int], fd: int, buffers: Buffers, flags: int, *, writable: bool
) -> tuple[int, list[Any]]:
    sequence = buffers if isinstance(buffers, list | tuple) else (buffers,)
    if len(sequence) > IOV_MAX:
        raise ValueError(f"buffers must be at most {IOV_MAX}, got {len(sequence)}")
    flags = in_range(flags, 0, 2**32 - 1, "flags")
    held: list[Any] = []
    try:
        for one in sequence:
            # One by one: those that are held already must be let go when the next is no buffer.
            held.append(ffi.from_buffer(one, require_writable=writable))  # noqa: PERF401
        addresses = ffi.new("uintptr_t[]", [int(ffi.cast("uintptr_t", data)) for data in held])
        sizes = ffi.new("size_t[]", [len(data) for data in held])
        return check(call(fd, addresses, sizes, len(held), flags)), held
    except BaseException:
        _let_go(held)
        raise


def _let_go(held: list[Any]) -> None:
    for data in held:
        ffi.release(data)


def copy_file_range(
    src: Fd,
    dst: Fd,
    count: int,
    offset_src: int | None = None,
    offset_dst: int | None = None,
    flags: int = 0,
) -> int:
    """Copy bytes from one file to another inside the kernel, by reference where the file system can.

    Args:
        src: The file to read.
        dst: The file to write; may be the same when the ranges do not overlap.
        count: At most so many bytes, 0 or more.
        offset_src: Where in `src` to begin; its position stays as it is. None for its position, which moves.
        offset_dst: The same for `dst`.
        flags: 0; the kernel has none yet.

    Returns:
        How many bytes were copied; 0 at the end of `src`, and for files of /proc that claim to be empty.

    Raises:
        ValueError: A number out of its range.
        OSError: EINVAL (not regular files, ranges that overlap, unknown flag), EXDEV (two file systems that
            cannot copy between them), EBADF (not open for reading or writing, or opened with O_APPEND),
            EISDIR, ENOSPC, EFBIG, ETXTBSY.

    See copy_file_range(2). Since Linux 4.5.
    """
    return check(
        lib.sandbox_copy_file_range(
            fd_of(src, "src"),
            _offset(offset_src, "offset_src"),
            fd_of(dst, "dst"),
            _offset(offset_dst, "offset_dst"),
            in_range(count, 0, _SIZE_MAX, "count"),
            in_range(flags, 0, 2**32 - 1, "flags"),
        )
    )
