"""Reads and writes that the kernel completes later: queued, submitted in one call, completions as events.

`Aio` stands on io_uring where the kernel, a sysctl and seccomp allow it, else on Linux AIO.

Facts that the shape follows from:

- The kernel writes to a buffer until the request has completed, whatever became of the objects. So a queue
  keeps every buffer by the number of its request, and `close`, a queue that is dropped and the end of the
  interpreter all cancel what they can and wait for the rest before they let go of the memory.
- A wait for that end may be interrupted by a signal handler that raises. Then the buffers are kept for ever.
- A forked child has copies of the buffers and no request: it may close the object, nothing else.
- io_uring finishes a request in the thread that submitted it, and no more once that has ended: a read of a
  stream that then finds data is cancelled.
"""

import errno
import io
import mmap
import weakref
from collections.abc import Sequence
from itertools import count, repeat
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, NoReturn

from sandbox.events._aio_queue import Backend, end_dropped_queue, end_queue, open_queue
from sandbox.events.base import CLOSED, EventLike
from sandbox.events.base_async import EventLike_async
from sandbox.primitives._buffers import (
    CHARS,
    NULL,
    RW_MAX,
    address_of,
    export,
    from_buffer,
    iovec_of,
)
from sandbox.primitives._call import Fd, fd_of, in_range, os_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Aio", "Aio_async", "Completion", "aligned_buffer"]

_SEQUENCES = frozenset({list, tuple})
_NO_SEQUENCES = (str, bytes, bytearray, memoryview)


class Completion(NamedTuple):
    """The end of a request.

    Attributes:
        request: The number that `read`, `write` or `fsync` returned.
        tag: What was given to it.
        result: Bytes transferred: fewer than asked for at the end of the file, and whenever the kernel
            likes; 0 for fsync; -1 when it failed.
        error: The failure, with errno, or None. ECANCELED: it was cancelled.
    """

    request: int
    tag: Any
    result: int
    error: OSError | None


class Aio(EventLike[Completion]):
    """A queue of asynchronous reads and writes, and of their completions as events.

    `read`, `write` and `fsync` queue a request and return its number. The queue is submitted, in one system
    call, by `submit` and by everything that reads events: `read_event`, `read_events`, iteration. Who polls
    `fileno()` himself, or has another thread that waits already, calls `submit`. Requests run side by side
    and complete in any order, also those on the same bytes: wait for a write before the fsync that is to
    cover it.

    Linux AIO is asynchronous for files opened with O_DIRECT; others are read and written inside `submit`.
    What has no offset (a pipe, a socket) io_uring reads and writes too, ignoring the offset; Linux AIO
    completes it with ESPIPE.

    `close` cancels what runs and returns when the kernel has let go of every buffer. It waits for a disk
    that is slow to answer, and with Linux AIO some hundredths of a second in any case. With io_uring a read
    or write of a stream is cancelled once the thread that submitted it has ended. After fork a child can only
    close the object.

    Args:
        depth: Requests that can be queued or running at a time, until their completions are read; 1 to 32767.
        backend: "auto" takes io_uring where it is allowed, else Linux AIO.
        nonblock: Reading events returns or raises at once instead of waiting for a completion.

    Raises:
        UnsupportedError: The kernel or a filter refuses the backend; the message says which and what to do.
        OSError: EMFILE or ENFILE (no descriptor left), EAGAIN (Linux AIO: fs.aio-max-nr is used up), ENOMEM.

    Attributes:
        backend: "io_uring" or "linux_aio".

    See io_uring(7) and io_submit(2). Since Linux 5.6 for io_uring.
    """

    name: ClassVar[str] = "aio"

    backend: Backend

    def __init__(
        self,
        depth: int = 64,
        *,
        backend: Literal["auto", "io_uring", "linux_aio"] = "auto",
        nonblock: bool = False,
    ) -> None:
        queue, requests = open_queue(depth, backend)
        super().__init__(queue.fd, nonblock=nonblock)
        # The base's own would close the descriptor while the kernel still writes to the buffers.
        self._finalizer.detach()
        self.backend = queue.name
        self._queue = queue
        self._prepare = queue.prepare
        self._read_one, self._read_many = queue.READ, queue.READV
        self._write_one, self._write_many = queue.WRITE, queue.WRITEV
        self._requests = requests
        self._numbers = count(1)
        self._unsubmitted = False
        self._depth = depth
        finalizer: Any = weakref.finalize(self, end_dropped_queue, queue, requests, f"{self.name} fd={queue.fd}")
        finalizer.atexit = False  # _aio_queue does that, without a warning
        self._finalizer = finalizer

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────

    def read(  # type: ignore[override]  # the base has it to say that files read differently
        self, fd: Fd, buffers: "Buffer | Sequence[Buffer]", offset: int, *, tag: object = None
    ) -> int:
        """Queue a read into a buffer, or into several one after the other; return the request's number.

        Args:
            fd: Where to read; kept until the completion if it is an object.
            buffers: A writable buffer, or 1 to 1024 of them. They are held, and cannot be resized, until the
                completion was read.
            offset: Where in the file, in bytes, 0 to 2**63 - 1.
            tag: Anything; it comes back in the completion.

        Raises:
            TypeError: A buffer is none, or read-only.
            ValueError: An argument is out of range, or the object is closed.
            BlockingIOError: `depth` requests are queued or running.
        """
        return self._start(self._read_one, self._read_many, fd, buffers, offset, tag, True)

    def write(  # type: ignore[override]  # the base has it to say that files write differently
        self, fd: Fd, buffers: "Buffer | Sequence[Buffer]", offset: int, *, tag: object = None
    ) -> int:
        """Queue a write of a buffer, or of several one after the other; return the request's number.

        Args:
            fd: Where to write; kept until the completion if it is an object.
            buffers: A buffer, or 1 to 1024 of them, held until the completion was read: what is changed
                before is written or not.
            offset: Where in the file, in bytes, 0 to 2**63 - 1.
            tag: Anything; it comes back in the completion.

        Raises:
            TypeError: A buffer is none.
            ValueError: An argument is out of range, or the object is closed.
            BlockingIOError: `depth` requests are queued or running.
        """
        return self._start(self._write_one, self._write_many, fd, buffers, offset, tag, False)

    def fsync(self, fd: Fd, *, tag: object = None) -> int:
        """Queue an fsync; it covers the writes that completed before. Return the request's number.

        Args:
            fd: The file.
            tag: Anything; it comes back in the completion.

        Raises:
            ValueError: An argument is out of range, or the object is closed.
            BlockingIOError: `depth` requests are queued or running.
        """
        return self._add(self._queue.FSYNC, fd, NULL, 0, 0, tag, None)

    def _start(self, one: int, many: int, fd: Fd, buffers: Any, offset: int, tag: object, writable: bool) -> int:
        if type(buffers) not in _SEQUENCES:
            try:
                memory = from_buffer(CHARS, buffers, writable)
            except (TypeError, BufferError):
                if not isinstance(buffers, Sequence) or isinstance(buffers, _NO_SEQUENCES):
                    export(buffers, writable, "buffers")  # type: ignore[arg-type]  # raises, and says why
            else:
                length = len(memory)
                return self._add(one, fd, memory, min(RW_MAX, length), offset, tag, fd)
        memory, exported = iovec_of(buffers, writable)
        return self._add(many, fd, memory, len(memory), offset, tag, (fd, exported))

    def _add(self, opcode: int, fd: Fd, memory: Any, length: int, offset: int, tag: object, held: object) -> int:
        target = fd if type(fd) is int else fd_of(fd)
        number = next(self._numbers)
        # First the entry: another thread may submit and reap the request before this call is over.
        self._requests[number] = (tag, memory, held)
        try:
            failed = -self._prepare(opcode, target, memory, length, offset, number)
            if failed == 0:
                self._unsubmitted = True
                return number
        except (OverflowError, TypeError):
            failed = errno.EINVAL
        del self._requests[number]
        if failed == errno.EINVAL:
            fd_of(fd)
            in_range(offset, 0, 2**63 - 1, "offset")
        if failed == errno.EAGAIN:
            raise BlockingIOError(failed, f"{self._depth} requests are queued or running: read completions")
        raise self._refused(failed)

    def _refused(self, number: int) -> Exception:
        if number != errno.ESTALE:
            return os_error(number)
        if self._closing:
            return ValueError(CLOSED)
        return ValueError("this Aio belongs to the process that forked; make one after the fork")

    def submit(self) -> int:
        """Start what is queued; return how many requests the kernel took.

        Raises:
            ValueError: The object is closed.
            BlockingIOError: The kernel has no room now; the requests stay queued.
        """
        self._unsubmitted = False
        try:
            return self._queue.submit()
        except OSError as error:
            self._unsubmitted = True
            raise self._refused(error.errno or 0) from None

    def cancel(self, request: int) -> bool:
        """End a request early; return whether its completion says ECANCELED, which comes in any case.

        False: it has completed, is past the point of return, or is of a kind that cannot be cancelled (reads and
        writes of files, for the most part). A request that was not submitted is never carried out.

        Args:
            request: Its number.

        Raises:
            ValueError: The object is closed.
        """
        in_range(request, 1, 2**63 - 1, "request")
        try:
            return request in self._requests and self._queue.cancel(request)
        except OSError as error:
            raise self._refused(error.errno or 0) from None

    # ── completions ───────────────────────────────────────────────────────────────────────────────────────

    def pending(self) -> int:
        """Return how many requests are queued or running, or have completions that the kernel still holds.

        Raises:
            ValueError: The object is closed.
        """
        try:
            return self._queue.active()
        except OSError as error:
            raise self._refused(error.errno or 0) from None

    def _read(self) -> list[Completion]:
        submitted = True
        try:
            if self._unsubmitted:
                self._unsubmitted = False
                try:
                    self._queue.submit()
                except BlockingIOError:
                    self._unsubmitted, submitted = True, False
            numbers, results = self._queue.reap()
        except OSError as error:
            raise self._refused(error.errno or 0) from None
        if not numbers:
            if not submitted:
                # Not EAGAIN, which would mean that there is no event.
                raise os_error(errno.ENOBUFS)
            return []
        tags = [entry[0] for entry in map(self._requests.pop, numbers)]
        if min(results) >= 0:
            rows = zip(numbers, tags, results, repeat(None))
            return list(map(tuple.__new__, repeat(Completion), rows))  # as _make does
        return [
            Completion(*row, None) if row[2] >= 0 else Completion(row[0], row[1], -1, os_error(-row[2]))
            for row in zip(numbers, tags, results, strict=True)
        ]

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Cancel what is queued and running, wait until the kernel has let go of every buffer, and close.

        Completions that were not read are dropped; a thread that waits for one gets a ValueError. Closing
        twice does nothing.

        Raises:
            OSError: EBADF (somebody else closed the descriptor); the object is closed all the same.
        """
        if self._take_fd() >= 0:
            end_queue(self._queue, self._requests)

    def detach(self) -> NoReturn:
        """Refuse: the descriptor alone is of no use, and the buffers would be forgotten.

        Raises:
            ValueError: The object is closed.
            io.UnsupportedOperation: It is open; an OSError and a ValueError.
        """
        self.fileno()
        raise io.UnsupportedOperation("the descriptor of an Aio is of no use without it")

    def _forget(self) -> None:
        super()._forget()
        # The requests are the parent's; what they would write to here is a copy.
        self._requests.clear()


class Aio_async(EventLike_async[Completion]):  # noqa: N801  # Butter's scheme of names
    """The asyncio twin of `Aio`: a queue of completions.

    What is queued during one iteration of the loop is submitted together, in one system call, before the
    next; nothing has to be called for that. For `depth`, `backend`, errors and everything else see `Aio`.

    Args:
        depth: Requests that can be queued or running at a time, until their completions are read; 1 to 32767.
        backend: "auto" takes io_uring where it is allowed, else Linux AIO.
        maxsize: How many completions the queue holds at most before the rest stays in the kernel; 0: no
            limit.

    Attributes:
        backend: "io_uring" or "linux_aio".
    """

    _source: Aio

    def __init__(
        self,
        depth: int = 64,
        *,
        backend: Literal["auto", "io_uring", "linux_aio"] = "auto",
        maxsize: int = 0,
    ) -> None:
        super().__init__(Aio(depth, backend=backend, nonblock=True), maxsize)
        self.backend: Backend = self._source.backend
        self._scheduled = False

    def read(self, fd: Fd, buffers: "Buffer | Sequence[Buffer]", offset: int, *, tag: object = None) -> int:
        """Queue a read; see `Aio.read`."""
        if not self._scheduled:
            self._schedule()
        return self._source.read(fd, buffers, offset, tag=tag)

    def write(self, fd: Fd, buffers: "Buffer | Sequence[Buffer]", offset: int, *, tag: object = None) -> int:
        """Queue a write; see `Aio.write`."""
        if not self._scheduled:
            self._schedule()
        return self._source.write(fd, buffers, offset, tag=tag)

    def fsync(self, fd: Fd, *, tag: object = None) -> int:
        """Queue an fsync; see `Aio.fsync`."""
        if not self._scheduled:
            self._schedule()
        return self._source.fsync(fd, tag=tag)

    def submit(self) -> int:
        """Start what is queued now, before the loop does; see `Aio.submit`."""
        return self._source.submit()

    def cancel(self, request: int) -> bool:
        """End a request early; see `Aio.cancel`."""
        return self._source.cancel(request)

    def pending(self) -> int:
        """Return how many requests are queued or running; see `Aio.pending`."""
        return self._source.pending()

    def _schedule(self) -> None:
        self._bind().call_soon(self._submit_queued)
        self._scheduled = True

    def _submit_queued(self) -> None:
        self._scheduled = False
        if self._source.closed:
            return
        if 0 < self._maxsize <= len(self._cache):
            self._source.submit()
        else:
            self._fill()


def aligned_buffer(size: int, alignment: int = 4096) -> memoryview:
    """Return zeroed memory at an aligned address, as reads and writes with O_DIRECT need it.

    It is freed when the last view of it is dropped. It is shared with children made by fork, not copied:
    open(2) asks for that where O_DIRECT runs while a process forks.

    Args:
        size: In bytes, 1 or more; O_DIRECT wants multiples of the file's block size too.
        alignment: In bytes, a power of two up to 2**30.

    Raises:
        ValueError: A size or an alignment that is none.
        OSError: ENOMEM.

    See open(2), at O_DIRECT.
    """
    in_range(size, 1, 2**47, "size")
    in_range(alignment, 1, 2**30, "alignment")
    if alignment & (alignment - 1):
        raise ValueError(f"alignment must be a power of two, got {alignment}")
    slack = alignment if alignment > mmap.PAGESIZE else 0
    memory = memoryview(mmap.mmap(-1, size + slack))
    start = -address_of(export(memory, True)) % alignment
    return memory[start : start + size]
