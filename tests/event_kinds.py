"""Every kind of event-like object, for the tests of what they have in common.

A kind that is added to KINDS is held to the whole interface, by tests/integration/events/test_interface.py
and test_interface_async.py.
"""

import asyncio
import functools
import inspect
import os
import resource
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import pytest

from sandbox.events import (
    Aio,
    Aio_async,
    Eventfd,
    Eventfd_async,
    EventLike,
    EventLike_async,
    Fanotify,
    Fanotify_async,
    Inotify,
    Inotify_async,
    Pidfd,
    Pidfd_async,
    RecursiveInotify,
    RecursiveInotify_async,
    Signalfd,
    Signalfd_async,
    Timerfd,
    Timerfd_async,
    TimerVal,
)
from sandbox.primitives import FAN_ATTRIB, FAN_ONDIR, FAN_REPORT_FID, IN_ATTRIB, rt_tgsigqueueinfo

try:
    import uvloop
except ImportError:
    uvloop = None


def in_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a child, whose signal mask and limits are its own; it must leave nothing open."""

    def checked(*args: object, **kwargs: object) -> None:
        if "uvloop" in sys.modules:
            # libuv keeps the pipe of its first loop for the life of the process.
            sys.modules["uvloop"].new_event_loop().close()
        before = harness.footprint()
        try:
            test(*args, **kwargs)
        finally:
            if os.getpid() in _folders:
                folder = _folders.pop(os.getpid())
                os.rmdir(folder)
                os.rmdir(os.path.dirname(folder))
        after = harness.footprint(settle=before)
        assert before == after, "the test left something behind"

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        harness.in_child(functools.partial(checked, *args, **kwargs))

    return run


every_loop = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def in_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a coroutine as a test, in a child and under each loop."""

    @every_loop
    @functools.wraps(test)
    def run(*args: object, loop: str, **kwargs: object) -> None:
        if loop == "uvloop" and uvloop is None:
            pytest.skip("needs uvloop")

        @in_own_process
        def body() -> None:
            factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.SelectorEventLoop
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(test(*args, **kwargs))

        body()

    # functools.wraps hides the parameter from pytest, which looks at the wrapped signature.
    signature = inspect.signature(test)
    extra = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])
    return run


class few_descriptors_left:  # noqa: N801  # used as a function
    """Leave a process that many descriptors, by default none, for a while."""

    def __init__(self, left: int = 0) -> None:
        self.left = left

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        # os.listdir's own descriptor was the lowest free number, so all below it are taken once these are.
        self.taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + self.left, self.before[1]))
        while True:
            try:
                self.taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(self.left):
            os.close(self.taken.pop())

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.before)
        for fd in self.taken:
            os.close(fd)


class Pipe(EventLike[int]):
    """The smallest event-like object, for what is the base's own: an event is a byte of a pipe."""

    name = "pipe"

    def __init__(self, *, nonblock: bool = False) -> None:
        fd, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.error: OSError | None = None
        self.disposed: list[int] = []
        super().__init__(fd, nonblock=nonblock)

    def _read(self) -> list[int]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        try:
            return list(os.read(self._fd, 4096))
        except BlockingIOError:
            return []

    def _dispose(self, events: list[int]) -> None:
        self.disposed += events

    def close(self) -> None:
        super().close()
        writer, self.writer = self.writer, -1
        if writer >= 0:
            os.close(writer)


class Pipe_async(EventLike_async[int]):  # noqa: N801
    def __init__(self, *, maxsize: int = 0, prefetch: bool = True) -> None:
        source = Pipe(nonblock=True)
        source._prefetch = prefetch  # type: ignore[misc]
        super().__init__(source, maxsize)

    def trigger(self, data: bytes = b"x") -> None:
        os.write(self._source.writer, data)

    @property
    def source(self) -> Pipe:
        return self._source


class Kind(NamedTuple):
    name: str
    make: Callable[..., Any]  # (nonblock=False)
    make_async: Callable[..., Any]  # (maxsize=0)
    trigger: Callable[[Any], None]  # makes one event for an object of either face, ready when it returns
    endless: bool = True  # False: one event is all there is


def _sleeping_child() -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def _end_child(one: Any) -> None:
    os.kill(one.pid, signal.SIGKILL)
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)


def _put_away(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):  # read, and so reaped
        return


class ChildPidfd(Pidfd):
    """A Pidfd with a child of its own, which ends with it."""

    def __init__(self, **options: Any) -> None:
        child = _sleeping_child()
        try:
            super().__init__(child, **options)
        except BaseException:
            _put_away(child)
            raise

    def close(self) -> None:
        super().close()
        _put_away(self.pid)


class ChildPidfd_async(Pidfd_async):  # noqa: N801
    def __init__(self, **options: Any) -> None:
        super().__init__(_sleeping_child(), **options)

    def close(self) -> None:
        super().close()
        _put_away(self.pid)


def _complete(one: Any) -> None:
    queue = getattr(one, "_source", one)
    queue.read(-1, bytearray(1), 0)  # EBADF is a completion as every other, and needs no file
    queue.submit()
    poll = select.poll()
    poll.register(queue.fileno(), select.POLLIN)
    poll.poll(1000)


_folders: dict[int, str] = {}


def _watched() -> str:
    """Return a directory of this process alone, also the one above it; in_own_process removes both."""
    pid = os.getpid()
    if pid not in _folders:
        _folders[pid] = os.path.join(tempfile.mkdtemp(prefix="sandbox-test-"), "watched")
        os.mkdir(_folders[pid])
    return _folders[pid]


def _watching(make: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """Make an object of a kind that has nothing to tell before it watches something."""

    def made(**options: Any) -> Any:
        one = make(**options)
        try:
            one.watch(_watched(), *arguments)
        except OSError:
            one.close()
            raise
        return one

    return made


def _watching_tree(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: make(_watched(), IN_ATTRIB, **options)


def _touch(_: Any) -> None:
    os.utime(_watched())


KINDS = [
    Kind("pipe", Pipe, Pipe_async, lambda one: os.write(getattr(one, "_source", one).writer, b"x") and None),
    Kind("eventfd", Eventfd, Eventfd_async, lambda one: one.increment()),
    Kind("timerfd", Timerfd, Timerfd_async, lambda one: _expire(one)),
    Kind(
        "signalfd",
        functools.partial(Signalfd, signal.SIGRTMIN),
        functools.partial(Signalfd_async, signal.SIGRTMIN),
        lambda one: os.kill(os.getpid(), signal.SIGRTMIN),
    ),
    *(
        Kind(
            f"aio-{backend}",
            functools.partial(Aio, backend=backend),
            functools.partial(Aio_async, backend=backend),
            _complete,
        )
        for backend in ("io_uring", "linux_aio")
    ),
    Kind("inotify", _watching(Inotify, IN_ATTRIB), _watching(Inotify_async, IN_ATTRIB), _touch),
    Kind("recursive-inotify", _watching_tree(RecursiveInotify), _watching_tree(RecursiveInotify_async), _touch),
    Kind(
        "fanotify",
        _watching(functools.partial(Fanotify, FAN_REPORT_FID), FAN_ATTRIB | FAN_ONDIR),
        _watching(functools.partial(Fanotify_async, FAN_REPORT_FID), FAN_ATTRIB | FAN_ONDIR),
        _touch,
    ),
    Kind("pidfd", ChildPidfd, ChildPidfd_async, _end_child, endless=False),
]


def _expire(timer: Any) -> None:
    import select

    timer.set(TimerVal().after(0))
    poll = select.poll()
    poll.register(timer.fileno(), select.POLLIN)
    poll.poll(1000)


def signal_this_thread(number: int, value: int = 0) -> None:
    """Queue a signal that no other thread of the process can receive."""
    rt_tgsigqueueinfo(os.getpid(), threading.get_native_id(), number, value)
