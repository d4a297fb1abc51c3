"""The rows of events.py: one class for each line of the table."""

import asyncio
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from rows import Contender, Row, Target

HERE = Path(__file__).parent


def c_limits() -> ctypes.CDLL:
    """Compile events.c, if that was not done, and load it."""
    built = HERE / "build" / "events.so"
    if not built.exists() or built.stat().st_mtime < (HERE / "events.c").stat().st_mtime:
        built.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", built, HERE / "events.c"], check=True)
    return ctypes.CDLL(str(built))


def c_loop(function: str, fd: int, count: int) -> Callable[[], int]:
    call = getattr(c_limits(), function)
    call.restype = ctypes.c_long
    total = ctypes.c_uint64()
    return lambda: call(ctypes.c_int(fd), ctypes.c_long(count), ctypes.byref(total))


def in_loop(loop: asyncio.AbstractEventLoop, body: Callable[[], Coroutine[Any, Any, int]]) -> Callable[[], int]:
    return lambda: loop.run_until_complete(body())


class InotifyBatch(Row):
    title = "inotify, named events, batch"
    unit = "event"
    targets = (
        Target("sandbox", "inotify_simple", 3.0, beyond="C loop"),
        Target("sandbox", "C loop", 0.35),
        Target("sandbox, columns", "C loop", 0.75),
    )
    count = 10_000  # the kernel's queue takes 16,384

    mask = 0x4  # IN_ATTRIB: one event for each utime(2)

    def __init__(self) -> None:
        self.folders: list[tempfile.TemporaryDirectory[str]] = []

    def close(self) -> None:
        for folder in self.folders:
            folder.cleanup()

    def folder(self) -> str:
        """Make a directory for one contender: events that wait in the others' queues would cool the caches."""
        folder = tempfile.TemporaryDirectory()
        self.folders.append(folder)
        for number in range(200):
            Path(folder.name, f"file-{number:06}.txt").touch()
        return folder.name

    def only(self, folder: str, run: Callable[[], int], close: Callable[[], object]) -> Contender:
        paths = [f"{folder}/file-{number:06}.txt" for number in range(200)]

        def touch() -> None:
            for number in range(self.count):
                os.utime(paths[number % 200])

        return Contender(run, touch, close)

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [
            ("sandbox", self.sandbox),
            ("sandbox, columns", self.columns),
            ("inotify_simple", self.inotify_simple),
            ("watchdog's reader", self.watchdog),
            ("linuxfd", self.linuxfd),
            ("C loop", self.c_loop),
        ]

    def sandbox(self) -> Contender:
        folder = self.folder()
        from sandbox.events.inotify import Inotify

        one = Inotify(nonblock=True)
        one.watch(folder, self.mask)

        def run() -> int:
            seen = 0
            while seen < self.count:
                seen += len(one.read_events())
            return seen

        return self.only(folder, run, one.close)

    def columns(self) -> Contender:
        folder = self.folder()
        from sandbox.events.inotify import Inotify

        one = Inotify(nonblock=True)
        one.watch(folder, self.mask)
        read_columns = one.read_columns

        def run() -> int:
            seen = 0
            while seen < self.count:
                seen += len(read_columns().mask)
            return seen

        return self.only(folder, run, one.close)

    def inotify_simple(self) -> Contender:
        folder = self.folder()
        import inotify_simple

        one = inotify_simple.INotify(nonblocking=True)
        one.add_watch(folder, self.mask)

        def run() -> int:
            seen = 0
            while seen < self.count:
                seen += len(one.read(timeout=0))
            return seen

        return self.only(folder, run, one.close)

    def watchdog(self) -> Contender:
        folder = self.folder()
        from watchdog.observers import inotify_c

        parse, make = inotify_c.InotifyFD._parse_event_buffer, inotify_c.InotifyEvent
        fd = raw_inotify(folder, self.mask)

        def run() -> int:
            seen = 0
            while seen < self.count:
                seen += len([make(wd, mask, cookie, name) for wd, mask, cookie, name in parse(os.read(fd, 65536))])
            return seen

        return self.only(folder, run, lambda: os.close(fd))

    def linuxfd(self) -> Contender:
        folder = self.folder()
        import linuxfd

        one = linuxfd.inotify(nonBlocking=True)
        one.add(folder, self.mask)

        def run() -> int:
            seen = 0
            while seen < self.count:
                seen += len(one.read())
            return seen

        return self.only(folder, run, one.close)

    def c_loop(self) -> Contender:
        folder = self.folder()
        fd = raw_inotify(folder, self.mask)
        return self.only(folder, c_loop("limit_inotify", fd, self.count), lambda: os.close(fd))


def raw_inotify(path: str, mask: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    libc.inotify_add_watch(fd, os.fsencode(path), mask)
    return int(fd)


class InotifyAsync(InotifyBatch):
    title = "inotify, async for"
    targets = (Target("sandbox", "asyncinotify", 6.0, beyond="C loop"),)

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("asyncinotify", self.asyncinotify), ("C loop", self.c_loop)]

    def take_all(self, one: Any) -> Callable[[], int]:
        async def take() -> int:
            seen = 0
            async for _ in one:
                seen += 1
                if seen == self.count:
                    break
            return seen

        # A loop for each: a reader that stays registered would work during the other's turn.
        return in_loop(asyncio.SelectorEventLoop(), take)

    def sandbox(self) -> Contender:
        folder = self.folder()
        from sandbox.events.inotify import Inotify_async

        one = Inotify_async()
        one.watch(folder, self.mask)
        return self.only(folder, self.take_all(one), one.close)

    def asyncinotify(self) -> Contender:
        folder = self.folder()
        import asyncinotify

        one = asyncinotify.Inotify()
        one.add_watch(folder, asyncinotify.Mask(self.mask))
        return self.only(folder, self.take_all(one), one.close)


class InotifyLive(Row):
    title = "inotify, 100,000 live events a second"
    unit = "second; a failure is an overflow"
    targets = (Target("sandbox, async for", "one second of CPU", 1.0),)
    rate = 100_000

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        # The yardstick is real time: below 1 the reader cannot keep up, and the kernel's queue overflows.
        return [("sandbox, async for", self.sandbox), ("one second of CPU", lambda: Contender(busy_second))]

    def sandbox(self) -> Contender:
        from sandbox.events.inotify import Inotify_async

        loop = asyncio.SelectorEventLoop()
        folder = tempfile.TemporaryDirectory()
        for number in range(200):
            Path(folder.name, f"file-{number:06}.txt").touch()
        one = Inotify_async()
        one.watch(folder.name, 0x4)

        async def take() -> int:
            code = (
                "import os, sys, time\n"
                f"paths = [{folder.name!r} + f'/file-{{n:06}}.txt' for n in range(200)]\n"
                "start = time.perf_counter()\n"
                f"for n in range({self.rate}):\n"
                "    os.utime(paths[n % 200])\n"
                "    if n % 100 == 0:\n"
                f"        time.sleep(max(0, start + n / {self.rate} - time.perf_counter()))\n"
            )
            process = await asyncio.create_subprocess_exec(os.sys.executable, "-c", code)  # type: ignore[attr-defined]
            seen = 0
            async for event in one:
                if event.mask & 0x4000:
                    raise RuntimeError(f"overflow after {seen} events")
                seen += 1
                if seen == self.rate:
                    break
            await process.wait()
            return 1

        def close() -> None:
            loop.run_until_complete(loop.shutdown_asyncgens())  # what `break` has left
            loop.close()
            one.close()
            folder.cleanup()

        return Contender(in_loop(loop, take), close=close)


def busy_second() -> int:
    until = time.process_time() + 1
    while time.process_time() < until:
        continue
    return 1


class FanotifyRow(Row):
    unit = "event"
    count = 4000  # of fewer, the first touch of code and memory is a part that no reader of many events pays

    def __init__(self) -> None:
        self.folders: list[tempfile.TemporaryDirectory[str]] = []

    def close(self) -> None:
        for folder in self.folders:
            folder.cleanup()

    def folder(self) -> str:
        folder = tempfile.TemporaryDirectory()
        self.folders.append(folder)
        return folder.name

    def paths(self, folder: str) -> list[str]:
        return [f"{folder}/file-{number:06}.txt" for number in range(self.count)]


class FanotifyNames(FanotifyRow):
    title = "fanotify, DFID_NAME"
    targets = (Target("sandbox", "struct, pure Python", 2.0, beyond="C loop, names unread"),)

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("struct, pure Python", self.pure), ("C loop, names unread", self.c_loop)]

    def only(self, folder: str, run: Callable[[], int], close: Callable[[], object]) -> Contender:
        paths = self.paths(folder)

        def create() -> None:
            for path in paths:
                Path(path).unlink(missing_ok=True)
            for path in paths:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))

        return Contender(run, create, close)

    def group(self, folder: str) -> Any:
        from sandbox.events.fanotify import Fanotify
        from sandbox.primitives import FAN_CREATE, FAN_REPORT_DFID_NAME

        one = Fanotify(FAN_REPORT_DFID_NAME, nonblock=True)
        one.watch(folder, FAN_CREATE | 0x08000000)  # FAN_EVENT_ON_CHILD
        return one

    def sandbox(self) -> Contender:
        folder = self.folder()
        one = self.group(folder)

        def run() -> int:
            seen = 0
            while seen < self.count:
                for event in one.read_events():
                    _ = event.name  # decoded when asked for, and the peer decodes it
                    seen += 1
            return seen

        return self.only(folder, run, one.close)

    def pure(self) -> Contender:
        folder = self.folder()
        one = self.group(folder)
        fd = one.fileno()
        head, info = struct.Struct("=IBBHQii"), struct.Struct("=BBH8xII")

        def run() -> int:
            seen = 0
            while seen < self.count:
                data = os.read(fd, 65536)
                at = 0
                while at < len(data):
                    length, _, _, start, mask, _, pid = head.unpack_from(data, at)
                    kind, _, _, size, handle_type = info.unpack_from(data, at + start)
                    handle = data[at + start + 20 : at + start + 20 + size]
                    name = data[at + start + 20 + size : data.index(b"\0", at + start + 20 + size)].decode()
                    _ = (mask, pid, kind, handle_type, handle, name)
                    seen += 1
                    at += length
            return seen

        return self.only(folder, run, one.close)

    def c_loop(self) -> Contender:
        folder = self.folder()
        one = self.group(folder)
        return self.only(folder, c_loop("limit_fanotify_names", one.fileno(), self.count), one.close)


class FanotifyDescriptors(FanotifyRow):
    title = "fanotify, FD mode"
    targets = (Target("sandbox", "C loop", 0.8),)

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("C loop", self.c_loop)]

    def only(self, folder: str, run: Callable[[], int], close: Callable[[], object]) -> Contender:
        paths = self.paths(folder)
        for path in paths:
            Path(path).touch()

        def open_all() -> None:
            for path in paths:
                os.close(os.open(path, os.O_RDONLY))

        # Touching them made events, which the first opening merges with.
        return Contender(run, open_all, close)

    def group(self, folder: str) -> Any:
        from sandbox.events.fanotify import Fanotify
        from sandbox.primitives import FAN_OPEN

        one = Fanotify(nonblock=True)
        one.watch(folder, FAN_OPEN | 0x08000000)  # FAN_EVENT_ON_CHILD
        return one

    def sandbox(self) -> Contender:
        folder = self.folder()
        one = self.group(folder)

        def run() -> int:
            seen = 0
            while seen < self.count:
                for event in one.read_events():
                    event.close()
                    seen += 1
            return seen

        return self.only(folder, run, one.close)

    def c_loop(self) -> Contender:
        folder = self.folder()
        one = self.group(folder)
        return self.only(folder, c_loop("limit_fanotify", one.fileno(), self.count), one.close)


class EventfdRoundTrip(Row):
    title = "eventfd, write and read"
    unit = "round trip"
    targets = (Target("sandbox", "os.eventfd_*", 1 / 1.3),)
    count = 50_000

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("os.eventfd_*", self.standard), ("linuxfd", self.linuxfd)]

    def sandbox(self) -> Contender:
        from sandbox.events import Eventfd

        one = Eventfd()

        def run() -> int:
            for _ in range(self.count):
                one.increment()
                one.read_event()
            return self.count

        return Contender(run, close=one.close)

    def standard(self) -> Contender:
        fd = os.eventfd(0)

        def run() -> int:
            for _ in range(self.count):
                os.eventfd_write(fd, 1)
                os.eventfd_read(fd)
            return self.count

        return Contender(run, close=lambda: os.close(fd))

    def linuxfd(self) -> Contender:
        import linuxfd

        one = linuxfd.eventfd()

        def run() -> int:
            for _ in range(self.count):
                one.write(1)
                one.read()
            return self.count

        return Contender(run, close=one.close)


class SignalfdQueued(Row):
    title = "signalfd, 64 queued signals"
    unit = "signal"
    targets = (Target("sandbox", "signal.sigwaitinfo", 1.5),)
    count = 64

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("signal.sigwaitinfo", self.standard), ("linuxfd", self.linuxfd)]

    def __init__(self) -> None:
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])

    def close(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)

    def timed(self, take: Callable[[], object]) -> Callable[[], tuple[int, int]]:
        from sandbox.primitives import sigqueue

        def run() -> tuple[int, int]:
            spent = 0
            for _ in range(50):
                for value in range(self.count):
                    sigqueue(os.getpid(), signal.SIGRTMIN, value)
                before = time.process_time_ns()
                take()
                spent += time.process_time_ns() - before
            return 50 * self.count, spent

        return run

    def sandbox(self) -> Contender:
        from sandbox.events import Signalfd

        one = Signalfd(signal.SIGRTMIN)

        def take() -> None:
            seen = 0
            while seen < self.count:
                seen += len(one.read_events())

        return Contender(self.timed(take), close=one.close)

    def standard(self) -> Contender:
        waited = [signal.SIGRTMIN]

        def take() -> None:
            for _ in range(self.count):
                signal.sigwaitinfo(waited)

        return Contender(self.timed(take))

    def linuxfd(self) -> Contender:
        import linuxfd

        one = linuxfd.signalfd([signal.SIGRTMIN])

        def take() -> None:
            for _ in range(self.count):
                one.read()

        return Contender(self.timed(take), close=one.close)


class Registering:
    """What one writes without a library: a reader is registered for each wait."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self.fd

    async def get(self) -> int:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        loop.add_reader(self.fd, self.ready, waiter)
        try:
            return await waiter
        finally:
            loop.remove_reader(self.fd)

    def ready(self, waiter: "asyncio.Future[int]") -> None:
        if not waiter.done():
            waiter.set_result(os.eventfd_read(self.fd))

    def close(self) -> None:
        os.close(self.fd)


class AsyncWakeUp(Row):
    title = "asyncio, wake-up of a task that waits"
    unit = "wake-up"
    targets = (Target("sandbox", "add_reader for each wait", 2.0, beyond="the event alone"),)
    count = 3000

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [
            ("sandbox", lambda: self.one(self.ours(), asyncio.SelectorEventLoop())),
            ("add_reader for each wait", lambda: self.one(Registering(), asyncio.SelectorEventLoop())),
            ("sandbox, uvloop", lambda: self.one(self.ours(), uvloop_loop())),
            ("add_reader for each wait, uvloop", lambda: self.one(Registering(), uvloop_loop())),
            *self.common(),
        ]

    def common(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("the event alone", self.event)]

    def event(self) -> Contender:
        """Make the events as the others do, in a turn of the loop that somebody else waits for."""
        loop = asyncio.SelectorEventLoop()
        fd = os.eventfd(0, os.EFD_NONBLOCK)

        async def take() -> int:
            for _ in range(self.count):
                loop.call_soon(os.eventfd_write, fd, 1)
                await asyncio.sleep(0)
            return self.count

        def close() -> None:
            os.close(fd)
            loop.close()

        return Contender(in_loop(loop, take), close=close)

    def ours(self) -> Any:
        from sandbox.events import Eventfd_async

        return Eventfd_async()

    def one(self, one: Any, loop: asyncio.AbstractEventLoop) -> Contender:
        async def take() -> int:
            # call_soon: the event comes when the task is asleep. It is made alike for all: waking up is measured.
            fd = one.fileno()
            for _ in range(self.count):
                loop.call_soon(os.eventfd_write, fd, 1)
                await one.get()
            return self.count

        def close() -> None:
            one.close()
            loop.close()

        return Contender(in_loop(loop, take), close=close)


class AsyncReady(AsyncWakeUp):
    title = "asyncio, data waits already"
    unit = "event"
    targets = (Target("sandbox", "add_reader for each wait", 10.0),)

    def common(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return []

    def one(self, one: Any, loop: asyncio.AbstractEventLoop) -> Contender:
        async def take() -> int:
            fd = one.fileno()
            for _ in range(self.count):
                os.eventfd_write(fd, 1)
                await one.get()
            return self.count

        def close() -> None:
            one.close()
            loop.close()

        return Contender(in_loop(loop, take), close=close)


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()  # type: ignore[no-any-return]


class SpliceToSocket(Row):
    title = "splice, file to socket"
    unit = "64 KiB"
    targets = (Target("sandbox", "os.splice", 0.9),)
    blocks = 512

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self.file.write(os.urandom(1 << 20) * (self.blocks // 16))
        self.file.flush()
        self.pipe = os.pipe()
        # A child throws away what arrives, so that its CPU time is not counted here.
        self.socket, far = socket.socketpair()
        self.child = os.fork()
        if self.child == 0:
            self.socket.close()
            while far.recv(1 << 20):
                continue
            os._exit(0)
        far.close()

    def close(self) -> None:
        self.socket.close()
        os.waitpid(self.child, 0)
        for fd in self.pipe:
            os.close(fd)
        self.file.close()

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("os.splice", lambda: self.by(os.splice))]

    def sandbox(self) -> Contender:
        from sandbox.primitives import splice

        return self.by(splice)

    def by(self, splice: Callable[..., int]) -> Contender:
        def run() -> int:
            file, (read_end, write_end), out = self.file.fileno(), self.pipe, self.socket.fileno()
            for block in range(self.blocks):
                left = splice(file, write_end, 65536, offset_src=block * 65536)
                while left:
                    left -= splice(read_end, out, left)
            return self.blocks

        return Contender(run)


class AioBatch(Row):
    title = "aio, 4 KiB random reads, queue depth 32"
    unit = "read"
    targets = (Target("sandbox", "caio", 3.0),)
    depth = 32
    batches = 60

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self.file.write(os.urandom(1 << 20) * 64)
        self.file.flush()
        numbers = struct.unpack(f"={self.depth * self.batches}H", os.urandom(2 * self.depth * self.batches))
        self.offsets = [number % (64 * 256) * 4096 for number in numbers]

    def close(self) -> None:
        self.file.close()

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [
            ("sandbox", self.sandbox),
            ("caio", self.caio),
            ("os.preadv, one by one", self.standard),
        ]

    def sandbox(self) -> Contender:
        from sandbox.events.aio import Aio

        one = Aio(self.depth)
        buffers = [bytearray(4096) for _ in range(self.depth)]

        def run() -> int:
            fd = self.file.fileno()
            for batch in range(self.batches):
                offsets = self.offsets[batch * self.depth : (batch + 1) * self.depth]
                for buffer, offset in zip(buffers, offsets, strict=True):
                    one.read(fd, buffer, offset)
                one.submit()
                done = 0
                while done < self.depth:
                    done += len(one.read_events())
            return self.depth * self.batches

        return Contender(run, close=one.close)

    def caio(self) -> Contender:
        import caio

        loop = asyncio.SelectorEventLoop()
        fd = self.file.fileno()

        async def take() -> int:
            async with caio.AsyncioContext(max_requests=self.depth) as context:
                for batch in range(self.batches):
                    offsets = self.offsets[batch * self.depth : (batch + 1) * self.depth]
                    await asyncio.gather(*[context.read(4096, fd, offset) for offset in offsets])
            return self.depth * self.batches

        return Contender(in_loop(loop, take), close=loop.close)

    def standard(self) -> Contender:
        buffer = bytearray(4096)

        def run() -> int:
            fd = self.file.fileno()
            for offset in self.offsets:
                os.preadv(fd, [buffer], offset)
            return len(self.offsets)

        return Contender(run)


class TimerfdRead(Row):
    title = "timerfd, arm and read"
    unit = "expiration"
    targets = ()
    count = 5000

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        return [("sandbox", self.sandbox), ("linuxfd", self.linuxfd)]

    def sandbox(self) -> Contender:
        from sandbox.events import Timerfd, TimerVal

        one, value = Timerfd(), TimerVal().after(1e-9)

        def run() -> int:
            for _ in range(self.count):
                one.set(value)
                one.read_event()
            return self.count

        return Contender(run, close=one.close)

    def linuxfd(self) -> Contender:
        import linuxfd

        one = linuxfd.timerfd()
        poll = select.poll()
        poll.register(one.fileno(), select.POLLIN)

        def run() -> int:
            for _ in range(self.count):
                one.settime(1e-9, 0)
                one.read()
            return self.count

        return Contender(run, close=one.close)


ROWS: list[type[Row]] = [
    InotifyBatch,
    InotifyAsync,
    InotifyLive,
    FanotifyNames,
    FanotifyDescriptors,
    EventfdRoundTrip,
    SignalfdQueued,
    AsyncWakeUp,
    AsyncReady,
    SpliceToSocket,
    AioBatch,
    TimerfdRead,
]
