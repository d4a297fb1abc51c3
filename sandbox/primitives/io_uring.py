"""io_uring: requests and completions in two rings that are shared with the kernel."""

import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandbox._native import ffi, lib
from sandbox.primitives._buffers import export
from sandbox.primitives._call import Fd, Held, check, fd_of, in_range, os_error
from sandbox.primitives.aio import nanoseconds
from sandbox.primitives.io_uring_numbers import IoUringFeature, IoUringOp, IoUringSetup

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "IoUring",
    "IoUringParams",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
]


class IoUringParams(NamedTuple):
    """What io_uring_setup answers.

    Attributes:
        sq_entries: Entries of the submission ring, rounded up to a power of two.
        cq_entries: Entries of the completion ring.
        flags: What was asked for.
        features: What this kernel can do.
        sq_off: Offsets inside the mapping of the submission ring, by the names of the man page.
        cq_off: Offsets inside the mapping of the completion ring.
    """

    sq_entries: int
    cq_entries: int
    flags: IoUringSetup
    features: IoUringFeature
    sq_off: dict[str, int]
    cq_off: dict[str, int]


_SQ_OFF = ("head", "tail", "ring_mask", "ring_entries", "flags", "dropped", "array", "user_addr")
_CQ_OFF = ("head", "tail", "ring_mask", "ring_entries", "overflow", "cqes", "flags", "user_addr")


def io_uring_setup(
    entries: int,
    flags: int = 0,
    *,
    cq_entries: int = 0,
    sq_thread_cpu: int = 0,
    sq_thread_idle: int = 0,
    wq_fd: Fd | None = None,
) -> tuple[int, IoUringParams]:
    """Make a pair of rings; return its descriptor, close-on-exec, which the caller closes, and what was made.

    Args:
        entries: Size of the submission ring, 1 to 32768.
        flags: Of `IoUringSetup`.
        cq_entries: Size of the completion ring, with CQSIZE.
        sq_thread_cpu: Where the polling thread runs, with SQ_AFF.
        sq_thread_idle: Milliseconds until it sleeps, with SQPOLL.
        wq_fd: The ring whose workers are shared, with ATTACH_WQ.

    Raises:
        OSError: EPERM (kernel.io_uring_disabled, or a seccomp filter), ENOSYS (no io_uring in this kernel,
            or a filter), EINVAL (flags that this kernel lacks, or entries over the limit), EMFILE, ENFILE,
            ENOMEM.

    See io_uring_setup(2). Since Linux 5.1.
    """
    fd, raw = _setup(
        entries,
        flags=in_range(flags, 0, 2**32 - 1, "flags"),
        cq_entries=in_range(cq_entries, 0, 2**32 - 1, "cq_entries"),
        sq_thread_cpu=in_range(sq_thread_cpu, 0, 2**32 - 1, "sq_thread_cpu"),
        sq_thread_idle=in_range(sq_thread_idle, 0, 2**32 - 1, "sq_thread_idle"),
        wq_fd=0 if wq_fd is None else in_range(fd_of(wq_fd, "wq_fd"), 0, 2**31 - 1, "wq_fd"),
    )
    return fd, IoUringParams(
        raw.sq_entries,
        raw.cq_entries,
        IoUringSetup(raw.flags),
        IoUringFeature(raw.features),
        {name: getattr(raw.sq_off, name) for name in _SQ_OFF},
        {name: getattr(raw.cq_off, name) for name in _CQ_OFF},
    )


def _setup(entries: int, **fields: int) -> tuple[int, Any]:
    params = ffi.new("struct io_uring_params *", fields)
    fd = check(lib.sandbox_io_uring_setup(in_range(entries, 1, 2**32 - 1, "entries"), params))
    return fd, params


def io_uring_enter(
    fd: Fd,
    to_submit: int,
    min_complete: int = 0,
    flags: int = 0,
    sigmask: int | None = None,
    timeout: float | None = None,
) -> int:
    """Submit entries, wait for completions, or both; return how many entries the kernel took.

    Args:
        fd: The ring.
        to_submit: Entries to take from the submission ring, 0 to 2**32 - 1.
        min_complete: Completions to wait for, with GETEVENTS.
        flags: Of `IoUringEnter`; EXT_ARG is added for a timeout.
        sigmask: The signals that are blocked meanwhile, bit N - 1 for signal N; None leaves the mask.
        timeout: Seconds to wait at most; None waits for ever.

    Raises:
        OSError: ETIME (the time is over), EINTR, EBADF, EOPNOTSUPP (no ring), EBADFD (the ring is not
            enabled), EBUSY (completions must be read first), EAGAIN (out of memory), EINVAL, EPERM (a
            seccomp filter).

    See io_uring_enter(2). Since Linux 5.1; a timeout since 5.11.
    """
    mask = ffi.NULL if sigmask is None else ffi.new("uint64_t *", in_range(sigmask, 0, 2**64 - 1, "sigmask"))
    return check(
        lib.sandbox_io_uring_enter(
            fd_of(fd),
            in_range(to_submit, 0, 2**32 - 1, "to_submit"),
            in_range(min_complete, 0, 2**32 - 1, "min_complete"),
            in_range(flags, 0, 2**32 - 1, "flags"),
            mask,
            nanoseconds(timeout),
        )
    )


def io_uring_register(fd: Fd, opcode: int, arg: "Buffer | None" = None, nr_args: int = 0) -> int:
    """Register files, buffers and more with a ring, or undo it; return what the operation defines, mostly 0.

    Args:
        fd: The ring, or -1 for the operations that need none.
        opcode: Of `IoUringRegister`.
        arg: The bytes of the operation's argument, writable where the kernel answers in them. Memory that
            they point to must live as long as it is registered: the caller sees to that.
        nr_args: As the operation defines it: mostly the number of elements in `arg`.

    Raises:
        OSError: EINVAL (an operation or argument that this kernel lacks), EBUSY (registered already), ENXIO
            (not registered), EBADF, EFAULT, ENOMEM, EPERM (a seccomp filter).

    See io_uring_register(2). Since Linux 5.1.
    """
    memory = ffi.NULL
    if arg is not None:
        # ffi.from_buffer of read-only memory is right for the operations that only read it.
        memory = export(arg, False, "arg")
    return check(
        lib.sandbox_io_uring_register(
            in_range(fd_of(fd), -1, 2**31 - 1, "fd"),
            in_range(opcode, 0, 2**32 - 1, "opcode"),
            memory,
            in_range(nr_args, 0, 2**32 - 1, "nr_args"),
        )
    )


# Entries stay ours until submit, are copied by it, and no completion is lost: 5.5 has them all.
_FEATURES = IoUringFeature.SINGLE_MMAP | IoUringFeature.NODROP | IoUringFeature.SUBMIT_STABLE
# The others change the layout of the rings, or who looks at them and when.
_FLAGS = IoUringSetup.SUBMIT_ALL | IoUringSetup.COOP_TASKRUN | IoUringSetup.TASKRUN_FLAG | IoUringSetup.SINGLE_ISSUER


class IoUring(Held):
    """A pair of mapped rings as a queue of requests: what `sandbox.events.Aio` stands on.

    The same interface as `LinuxAio`. `prepare` is called with an opcode, a descriptor, memory exported by
    cffi, a length, an offset and a number under 2**63; it returns 0, or -errno. Nothing here
    holds the
    memory: the caller does, until `reap` has given back the number or `drain` has returned. The descriptor is
    readable as long as there is a completion to reap.

    The kernel ties a request to the thread that submitted it: when that thread ends, it is cancelled.

    Args:
        depth: Requests that can be prepared, running and not yet reaped at a time, 1 to 32767.
        flags: SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG and SINGLE_ISSUER of `IoUringSetup`.

    Raises:
        OSError: As `io_uring_setup` and `io_uring_enter`; ENOSYS (the kernel is older than 5.5).
    """

    name: Final = "io_uring"
    READ, READV, WRITE, WRITEV, FSYNC = (int(IoUringOp[name]) for name in ("READ", "READV", "WRITE", "WRITEV", "FSYNC"))

    def __init__(self, depth: int, flags: int = 0) -> None:
        in_range(depth, 1, 32767, "depth")
        if in_range(flags, 0, 2**32 - 1, "flags") & ~int(_FLAGS):
            raise ValueError(f"flags must be among {_FLAGS!r}, got {flags:#x}")
        # One entry more: a cancel request finds room when all others are prepared.
        self.fd, params = _setup(depth + 1, flags=flags)
        try:
            if params.features & _FEATURES != _FEATURES:
                raise os_error(errno.ENOSYS)
            # A filter may allow the first call and not the second: find out now.
            check(lib.sandbox_io_uring_enter(self.fd, 0, 0, 0, ffi.NULL, -1))
            ring = ffi.new("struct sandbox_ring **")
            check(lib.sandbox_ring_map(self.fd, depth, params, ring))
        except BaseException:
            os.close(self.fd)
            raise
        self._ring = ffi.gc(ring[0], lib.sandbox_ring_free)
        self._depth = depth
        self._numbers = ffi.new("uint64_t[]", depth)
        self._results = ffi.new("int64_t[]", depth)
        self.prepare = partial(lib.sandbox_ring_prepare, self._ring)

    def push(self, sqe: "Buffer") -> None:
        """Prepare a request of any kind.

        Args:
            sqe: The 64 bytes of a struct io_uring_sqe; its user_data is under 2**63.

        Raises:
            ValueError: Not 64 bytes.
            OSError: EAGAIN (`depth` requests are prepared or running), ESTALE (drained or forked).
        """
        entry = export(sqe, False, "sqe")
        if len(entry) != 64:
            raise ValueError(f"sqe must be 64 bytes, got {len(entry)}")
        check(lib.sandbox_ring_push(self._ring, entry))

    def submit(self) -> int:
        """Start what is prepared; return how many requests the kernel took.

        Raises:
            OSError: EAGAIN (the kernel has no memory now; what is left stays prepared), ESTALE
                (drained or forked).
        """
        return check(lib.sandbox_ring_submit(self._ring))

    def reap(self) -> tuple[list[int], list[int]]:
        """Return the numbers and the results of what has completed, without waiting; one thread at a time.

        Raises:
            OSError: ESTALE (drained or forked).
        """
        count = check(lib.sandbox_ring_reap(self._ring, self._numbers, self._results, self._depth))
        return ffi.unpack(self._numbers, count), ffi.unpack(self._results, count)

    def cancel(self, number: int) -> bool:
        """End a request with ECANCELED; False when it is too late.

        Args:
            number: That of the request, as it was prepared.

        Raises:
            OSError: ESTALE (drained or forked).
        """
        return bool(check(lib.sandbox_ring_cancel(self._ring, number)))

    def active(self) -> int:
        """Return how many requests are prepared, running or not yet reaped.

        Raises:
            OSError: ESTALE (drained or forked).
        """
        return check(lib.sandbox_ring_active(self._ring))

    def stop(self) -> None:
        """Drop what is prepared and take nothing new; what runs goes on until `drain`."""
        lib.sandbox_ring_stop(self._ring)

    def drain(self, running: Sequence[int]) -> None:
        """Cancel the requests named and wait for the end of all: the kernel has then let go of every buffer.

        Only after `stop`. An exception of a signal handler interrupts it; then the memory must stay.
        """
        numbers = ffi.new("uint64_t[]", running)
        while (result := lib.sandbox_ring_drain(self._ring, numbers, len(running))) < 0:
            if result != -errno.EINTR:
                check(result)
        lib.sandbox_ring_unmap(self._ring)

    def close(self) -> None:
        """Close the descriptor, after `drain`."""
        os.close(self.fd)
