"""The queue under an `Aio`: which backend it is, and how long the memory of its requests lives.

The kernel writes to a buffer until the request has completed, whatever became of the objects. So a queue that
ends, in any of three ways (closed, dropped, left open at the end of the interpreter), is drained before its
requests are forgotten. A drain that a signal handler interrupts leaves the memory allocated for ever.
"""

import atexit
import errno
import os
import warnings
import weakref
from typing import Any, Literal, TypeAlias

from sandbox.errors import UnsupportedError
from sandbox.primitives._call import in_range
from sandbox.primitives.aio import LinuxAio
from sandbox.primitives.io_uring import IoUring

Backend: TypeAlias = Literal["io_uring", "linux_aio"]
Queue: TypeAlias = IoUring | LinuxAio
# number: (tag, the exported memory, what the descriptor was taken from)
Requests: TypeAlias = dict[int, tuple[Any, Any, Any]]

# Queues that were not closed, for the end of the interpreter; and those whose memory can never be freed.
_open: "weakref.WeakKeyDictionary[Queue, Requests]" = weakref.WeakKeyDictionary()
_abandoned: list[tuple[Queue, Requests]] = []


def end_queue(queue: Queue, requests: Requests) -> None:
    """Cancel, wait, and only then let go of the buffers."""
    if _open.pop(queue, None) is None:
        return
    try:
        queue.stop()
        queue.drain(list(requests))
    except BaseException:
        _abandoned.append((queue, requests.copy()))
        raise
    finally:
        queue.close()
    requests.clear()


def end_dropped_queue(queue: Queue, requests: Requests, what: str) -> None:
    """End the queue of an object that was dropped without close(), and say so as files do."""
    end_queue(queue, requests)  # first: the warning may be an error
    warnings.warn(f"unclosed {what}", ResourceWarning, stacklevel=2)


@atexit.register
def _at_exit() -> None:
    # The interpreter is about to free all memory; the kernel has to let go of the buffers before.
    for queue, requests in list(_open.items()):
        end_queue(queue, requests)


def _why_no_io_uring(error: OSError) -> UnsupportedError:
    """Explain a refusal of io_uring: cause and fix."""
    from sandbox import causes

    number = error.errno or 0
    cause = causes.find("io_uring_setup", (), number)
    other = "use backend='auto' or 'linux_aio'"
    return UnsupportedError(
        "io_uring",
        needed="Linux 5.6 with CONFIG_IO_URING, and leave to use it",
        found=cause or f"io_uring_setup: {os.strerror(number)}",
        fix=f"{cause.fix}; or {other}" if cause else other,
        errno=number,
    )


_NOT_ALLOWED = {errno.EPERM, errno.EACCES, errno.ENOSYS}


def _linux_aio(depth: int) -> Queue:
    try:
        return LinuxAio(depth)
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        from sandbox import causes

        raise UnsupportedError(
            "Linux AIO",
            needed="CONFIG_AIO, and leave to use it",
            found=causes.find("io_setup", (), error.errno or 0) or f"io_setup: {error.strerror}",
            errno=error.errno or 0,
        ) from error


def open_queue(depth: int, backend: str) -> tuple[Queue, Requests]:
    """Make the queue of a backend, io_uring if allowed for "auto", and the empty table of its requests.

    Raises:
        ValueError: No such backend, or a depth out of range.
        UnsupportedError: The kernel or a filter refuses the backend.
        OSError: As `IoUring` and `LinuxAio`.
    """
    queue = _make(depth, backend)
    requests: Requests = {}
    _open[queue] = requests
    return queue, requests


def _make(depth: int, backend: str) -> Queue:
    if backend not in {"auto", "io_uring", "linux_aio"}:
        raise ValueError(f"backend must be 'auto', 'io_uring' or 'linux_aio', got {backend!r}")
    in_range(depth, 1, 32767, "depth")
    if backend == "linux_aio":
        return _linux_aio(depth)
    try:
        return IoUring(depth)
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        if backend == "io_uring":
            raise _why_no_io_uring(error) from error
        return _linux_aio(depth)
