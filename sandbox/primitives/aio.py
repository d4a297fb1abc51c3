"""Linux AIO: reads and writes that the kernel completes later, told through an eventfd.

It is asynchronous for files opened with O_DIRECT. A buffered read waits for the disk inside `io_submit`.
"""

import enum
import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._buffers import RW_MAX, export, iovec_of
from sandbox.primitives._call import Fd, Held, check, fd_of, in_range

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "AioCommand",
    "Iocb",
    "IoEvent",
    "LinuxAio",
    "io_setup",
    "io_destroy",
    "io_submit",
    "io_getevents",
    "io_pgetevents",
    "io_cancel",
    "IOCB_CMD_PREAD",
    "IOCB_CMD_PWRITE",
    "IOCB_CMD_FSYNC",
    "IOCB_CMD_FDSYNC",
    "IOCB_CMD_POLL",
    "IOCB_CMD_NOOP",
    "IOCB_CMD_PREADV",
    "IOCB_CMD_PWRITEV",
]


class AioCommand(enum.IntEnum):
    """What a control block asks for: IOCB_CMD_*."""

    PREAD = 0
    PWRITE = 1
    FSYNC = 2
    FDSYNC = 3
    POLL = 5
    NOOP = 6
    PREADV = 7
    PWRITEV = 8


IOCB_CMD_PREAD: Final = AioCommand.PREAD
IOCB_CMD_PWRITE: Final = AioCommand.PWRITE
IOCB_CMD_FSYNC: Final = AioCommand.FSYNC
IOCB_CMD_FDSYNC: Final = AioCommand.FDSYNC
IOCB_CMD_POLL: Final = AioCommand.POLL
IOCB_CMD_NOOP: Final = AioCommand.NOOP
IOCB_CMD_PREADV: Final = AioCommand.PREADV
IOCB_CMD_PWRITEV: Final = AioCommand.PWRITEV

_FLAG_RESFD = 1
_FLAG_IOPRIO = 2


class Iocb(Held):
    """A control block: one request, with the memory that it reads or writes.

    Args:
        command: What to do.
        fd: On which descriptor.
        buffers: The memory: one buffer (PREAD, PWRITE), a sequence of at most 1024 (PREADV, PWRITEV), the
            poll events as an int (POLL), or None (FSYNC, FDSYNC). It is held as long as this object lives.
        offset: Where in the file, in bytes.
        data: A number of 64 bits that comes back in the event.
        resfd: An eventfd that is rung when the request completes.
        flags: RWF_* flags of preadv2(2).
        ioprio: Priority as of ioprio_set(2), or None.

    Raises:
        TypeError: A buffer is none, or is read-only where the kernel is to write.
        ValueError: A number is out of range, or there is no buffer.

    See io_submit(2).
    """

    __slots__ = ("_keep", "_struct")

    def __init__(
        self,
        command: int,
        fd: Fd,
        buffers: "Buffer | Sequence[Buffer] | int | None" = None,
        offset: int = 0,
        *,
        data: int = 0,
        resfd: Fd | None = None,
        flags: int = 0,
        ioprio: int | None = None,
    ) -> None:
        writable = command in {AioCommand.PREAD, AioCommand.PREADV}
        keep: Any = None
        address, length = ffi.NULL, 0
        if command in {AioCommand.PREAD, AioCommand.PWRITE}:
            address = keep = export(buffers, writable, "buffers")  # type: ignore[arg-type]  # export says so itself
            length = min(len(keep), RW_MAX)
        elif command in {AioCommand.PREADV, AioCommand.PWRITEV}:
            if isinstance(buffers, int) or buffers is None:
                raise TypeError(f"buffers must be a sequence of buffers, not {type(buffers).__name__}")
            keep = iovec_of(buffers, writable)  # type: ignore[arg-type]  # a single buffer: its ints are refused
            address, length = keep[0], len(keep[0])
        block = ffi.new("struct iocb *")
        block.aio_data = in_range(data, 0, 2**64 - 1, "data")
        block.aio_rw_flags = in_range(flags, 0, 2**31 - 1, "flags")
        block.aio_lio_opcode = in_range(command, 0, 2**16 - 1, "command")
        block.aio_fildes = fd_of(fd) & 0xFFFFFFFF
        block.aio_buf = int(ffi.cast("uintptr_t", address))
        block.aio_nbytes = length
        block.aio_offset = in_range(offset, 0, 2**63 - 1, "offset")
        if command == AioCommand.POLL:
            block.aio_buf = in_range(buffers, 0, 2**16 - 1, "buffers")  # type: ignore[arg-type]  # in_range says so itself
        if resfd is not None:
            block.aio_flags |= _FLAG_RESFD
            block.aio_resfd = in_range(fd_of(resfd, "resfd"), 0, 2**31 - 1, "resfd")
        if ioprio is not None:
            block.aio_flags |= _FLAG_IOPRIO
            block.aio_reqprio = in_range(ioprio, 0, 2**15 - 1, "ioprio")
        self._struct = block
        self._keep = keep


class IoEvent(NamedTuple):
    """A completion.

    Attributes:
        data: The number given to the control block.
        obj: The control block.
        res: What the call returned: bytes, or a negative errno.
        res2: A second result, of the USB gadgets only.
    """

    data: int
    obj: Iocb
    res: int
    res2: int


# What the kernel works on, by context and address: a request's memory outlives the caller's interest in it.
_running: dict[int, dict[int, Iocb]] = {}


def io_setup(nr_events: int) -> int:
    """Create a context for at least so many requests at a time; return its number, for `io_destroy`.

    Args:
        nr_events: 1 to 2**31 - 1; all contexts of the host together have fs.aio-max-nr.

    Raises:
        OSError: EAGAIN (fs.aio-max-nr is used up), EINVAL (too many), ENOMEM, ENOSYS (no AIO in this kernel).

    See io_setup(2). Since Linux 2.6.
    """
    context = ffi.new("uint64_t *")
    check(lib.sandbox_io_setup(in_range(nr_events, 1, 2**31 - 1, "nr_events"), context))
    _running[context[0]] = {}
    return int(context[0])


def io_destroy(ctx: int) -> None:
    """Destroy a context: cancel what can be, and wait for the end of the rest.

    Args:
        ctx: What `io_setup` returned.

    Raises:
        OSError: EINVAL (no such context).

    See io_destroy(2). Since Linux 2.6.
    """
    check(lib.sandbox_io_destroy(_context(ctx)))
    _running.pop(ctx, None)


def io_submit(ctx: int, iocbs: Sequence[Iocb]) -> int:
    """Start requests in order; return how many were started, less than all when one was refused.

    Each control block, with its memory, is held until its event was read or the context is destroyed.

    Args:
        ctx: What `io_setup` returned.
        iocbs: The requests, in order.

    Raises:
        OSError: The first was refused: EAGAIN (no room), EBADF (its descriptor), EINVAL (no such context, or
            its arguments), EFAULT, ENOSYS.

    See io_submit(2). Since Linux 2.6.
    """
    running = _running.get(_context(ctx), {})
    pointers = ffi.new("struct iocb *[]", [iocb._struct for iocb in iocbs])
    addresses = [int(ffi.cast("uintptr_t", iocb._struct)) for iocb in iocbs]
    for address in addresses:
        if address in running:
            raise ValueError("iocbs must not hold a control block that is running already")
    running.update(zip(addresses, iocbs, strict=True))
    started = lib.sandbox_io_submit(ctx, len(iocbs), pointers)
    for address in addresses[max(started, 0) :]:
        running.pop(address, None)
    return check(started)


def io_getevents(ctx: int, min_nr: int, nr: int, timeout: float | None = None) -> list[IoEvent]:
    """Return at least `min_nr` and at most `nr` completions, fewer when the time is over.

    Args:
        ctx: The context.
        min_nr: 0 to `nr`.
        nr: 0 to 65536.
        timeout: Seconds; None waits for ever.

    Raises:
        OSError: EINVAL (no such context, or min_nr over nr), EINTR (a signal came before the first event).

    See io_getevents(2). Since Linux 2.6.
    """
    return _getevents(ctx, min_nr, nr, timeout, partial(lib.sandbox_io_getevents))


def io_pgetevents(
    ctx: int, min_nr: int, nr: int, timeout: float | None = None, sigmask: int | None = None
) -> list[IoEvent]:
    """Return completions as `io_getevents` does, with another signal mask while it waits.

    Args:
        ctx: The context.
        min_nr: 0 to `nr`.
        nr: 0 to 65536.
        timeout: Seconds; None waits for ever.
        sigmask: The signals that are blocked meanwhile, bit N - 1 for signal N; None leaves the mask.

    Raises:
        OSError: EINVAL (no such context, or min_nr over nr), EINTR (a signal came before the first event).

    See io_pgetevents in io_getevents(2). Since Linux 4.18.
    """
    mask = ffi.NULL if sigmask is None else ffi.new("uint64_t *", in_range(sigmask, 0, 2**64 - 1, "sigmask"))

    def call(context: int, low: int, high: int, events: Any, nanoseconds: int) -> int:
        return int(lib.sandbox_io_pgetevents(context, low, high, events, nanoseconds, mask))

    return _getevents(ctx, min_nr, nr, timeout, call)


def io_cancel(ctx: int, iocb: Iocb) -> None:
    """Ask for the end of a request; its event comes through `io_getevents` as every other.

    Args:
        ctx: What `io_setup` returned.
        iocb: The request, as it was submitted.

    Raises:
        OSError: EINPROGRESS is success for the kernel and for this function. EINVAL (no such context, or the
            request has ended or is of a kind that cannot be cancelled, as reads of files are), EAGAIN.

    See io_cancel(2). Since Linux 2.6.
    """
    unused = ffi.new("struct io_event *")
    result: int = lib.sandbox_io_cancel(_context(ctx), iocb._struct, unused)
    if result != -errno.EINPROGRESS:
        check(result)


def _context(ctx: int) -> int:
    return in_range(ctx, 0, 2**64 - 1, "ctx")


def _getevents(ctx: int, min_nr: int, nr: int, timeout: float | None, call: Any) -> list[IoEvent]:
    in_range(nr, 0, 65536, "nr")
    in_range(min_nr, 0, nr, "min_nr")
    events = ffi.new("struct io_event[]", max(nr, 1))
    got = check(call(_context(ctx), min_nr, nr, events, nanoseconds(timeout)))
    running = _running.get(ctx, {})
    return [IoEvent(one.data, running.pop(one.obj), one.res, one.res2) for one in events[0:got]]


def nanoseconds(timeout: float | None) -> int:
    """Return a timeout for the calls here: nanoseconds, or -1 for none.

    Raises:
        ValueError: Negative, or not a number.
    """
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds, 0 or more, or None, got {timeout}")
    return int(min(timeout, 2**31) * 1_000_000_000)


class LinuxAio(Held):
    """A context with its eventfd and a queue of control blocks: what `sandbox.events.Aio` stands on.

    The same interface as `IoUring`. `prepare` is called with an opcode, a descriptor, memory exported by
    cffi, a length, an offset and a number under 2**63; it returns 0, or -errno. Nothing here
    holds the
    memory: the caller does, until `reap` has given back the number or `drain` has returned.

    Args:
        depth: Requests that can be prepared, running and not yet reaped at a time, 1 to 32768.

    Raises:
        OSError: As `io_setup`; EMFILE or ENFILE (no descriptor left).
    """

    name: Final = "linux_aio"
    READ, READV, WRITE, WRITEV, FSYNC = (
        int(AioCommand[name]) for name in ("PREAD", "PREADV", "PWRITE", "PWRITEV", "FSYNC")
    )

    def __init__(self, depth: int) -> None:
        in_range(depth, 1, 32768, "depth")
        context = ffi.new("uint64_t *")
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            check(lib.sandbox_io_setup(depth, context))
            queue = ffi.new("struct sandbox_aio **")
            result: int = lib.sandbox_aio_new(context[0], self.fd, depth, queue)
            if result < 0:
                lib.sandbox_io_destroy(context[0])
                check(result)
        except BaseException:
            os.close(self.fd)
            raise
        self._queue = ffi.gc(queue[0], lambda pointer: lib.sandbox_aio_free(pointer, depth))
        self._numbers = ffi.new("uint64_t[]", depth)
        self._results = ffi.new("int64_t[]", depth)
        self.prepare = partial(lib.sandbox_aio_prepare, self._queue)

    def submit(self) -> int:
        """Start what is prepared; return how many requests were started or refused.

        Raises:
            OSError: EAGAIN (the kernel has no room now; what is left stays prepared), ESTALE (drained or
                forked).
        """
        return check(lib.sandbox_aio_submit(self._queue))

    def reap(self) -> tuple[list[int], list[int]]:
        """Return the numbers and the results of what has completed, without waiting; one thread at a time.

        Raises:
            OSError: ESTALE (drained or forked).
        """
        count = check(lib.sandbox_aio_reap(self._queue, self._numbers, self._results))
        return ffi.unpack(self._numbers, count), ffi.unpack(self._results, count)

    def cancel(self, number: int) -> bool:
        """End a request with ECANCELED; False when it is too late or of a kind that cannot be cancelled.

        Args:
            number: That of the request, as it was prepared.

        Raises:
            OSError: ESTALE (drained or forked).
        """
        return bool(check(lib.sandbox_aio_cancel(self._queue, number)))

    def active(self) -> int:
        """Return how many requests are prepared, running or not yet reaped.

        Raises:
            OSError: ESTALE (drained or forked).
        """
        return check(lib.sandbox_aio_active(self._queue))

    def stop(self) -> None:
        """Nothing to do before `drain`."""

    def drain(self, running: Sequence[int]) -> None:  # noqa: ARG002  # io_destroy knows them
        """Destroy the context: when this returns the kernel has let go of every buffer."""
        check(lib.sandbox_aio_destroy(self._queue))

    def close(self) -> None:
        """Close the eventfd, after `drain`."""
        os.close(self.fd)
