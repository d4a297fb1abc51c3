"""`Process_async`: what runs, with the interface of `asyncio.subprocess.Process`.

The loop watches the same pidfd that the sync face waits for, and nothing else: no signal handler, no thread and no
child watcher, so it works in any thread's loop, and beside whatever else the program does with its children.
"""

import asyncio
import fcntl
import io
import os
import select
import signal
import sys
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self, cast

from sandbox.control import ProcessControl
from sandbox.errors import BusyError, SetupError, TimeoutExpired, is_late
from sandbox.exchange import Exchange, check_input, check_timeout, deadline_of, decoded
from sandbox.order import Args
from sandbox.records import Q_KILL, Control
from sandbox.result import Enforced, Reason, Result
from sandbox.streams_async import Output, ReadEnd, Reader, WriteEnd

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sandbox.denials import Denials_async, Denied
    from sandbox.filters import Filter
    from sandbox.launch import Setup
    from sandbox.notify import Notifier_async
    from sandbox.streams import Streams

_SIGKILL_AFTER: Final = 0.1
_REMAINS_AFTER: Final = 1.0
_BLOCK: Final = 1 << 16
# How long who was killed in a launch may take to die, where he may hang in the kernel.
_DYING: Final = 1.0


class _Turn:
    """Whose turn it is to begin a launch in one loop."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


# Only while somebody uses it: a lock for which somebody has waited holds its loop.
_turns: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn]" = weakref.WeakKeyDictionary()


class Process_async(ProcessControl):  # noqa: N801  # the object's name, with _async
    """A running sandbox, for the loop that it was started in.

    Leaving the `async with` block waits; leaving it by an exception, cancellation too, kills first. A cancelled `wait`
    kills nothing. A process that nobody holds any more is killed, with a ResourceWarning.

    Attributes:
        stdin: A StreamWriter where stdin is a pipe or a terminal, or None.
        stdout: A StreamReader, likewise.
        stderr: A StreamReader where stderr is a pipe, or None.
        denials: What the filter refuses, as it happens, with `observe()`.
        notifier: The calls that wait for an answer, with a filter that says Notify.
    """

    _pidfd = -1  # what __del__ finds when __init__ did not come far
    _LAST_WORD = 0.0  # the loop tells when it has come

    def __init__(
        self,
        args: Args,
        control: Control,
        init_pid: int,
        init_pidfd: int,
        enforced: Enforced,
        *,
        name: str | None = None,
        held: bool = False,
        sandbox: ProcessControl | None = None,
    ) -> None:
        super().__init__(args, control, init_pid, init_pidfd, enforced, name=name, held=held, sandbox=sandbox)
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.denials: Denials_async | None = None
        self.notifier: Notifier_async | None = None
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._transports: list[ReadEnd | WriteEnd] = []
        self._raw: list[io.FileIO] = []
        self._watched = -1  # the descriptor that the loop watches
        self._heard: dict[str, bytearray] = {}
        self._fed = self._talking = self._said = False

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Kill what nobody can wait for any more; a fork of the caller only lets go of its copy."""
        if self._pidfd < 0 or _finalizing():
            return
        if self._owner != os.getpid():
            self._let_go()
            return
        if self._look() is None:
            warnings.warn(f"{self!r} was not closed: it is killed", ResourceWarning, source=self, stacklevel=2)
        if self._loop.is_running() and asyncio._get_running_loop() is not self._loop:
            # The garbage of all threads is collected by any of them, and a loop is touched by its own alone.
            if self.returncode is None:
                self._signal_init()
            self._loop.call_soon_threadsafe(self._abandon)
        else:
            self._abandon()

    # ── the end ──

    def _watch(self) -> None:
        """Have the loop tell the end."""
        if self.returncode is not None:
            self._end.set_result(None)
        else:
            # Weak: a loop that held the process would keep one alive that nobody else has.
            self._watch_fd(self._pidfd)

    def _watch_fd(self, fd: int) -> None:
        self._loop.add_reader(fd, _on_end, weakref.ref(self))
        self._watched = fd

    def _unwatch(self) -> None:
        if self._loop.is_closed():
            return
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1
        # One task may have looked, and closes before the loop has told the others.
        if self.returncode is not None and not self._end.done():
            self._end.set_result(None)

    def _note_end(self) -> None:
        """Take what PID 1 said at its end, and wake who waits."""
        self._unwatch()
        if (channel := self._take_all()) >= 0:
            # Of a further command: PID 1 has yet to say so, when it has the processor, or is stopped no more.
            self._watch_fd(channel)
        elif not self._end.done():
            self._end.set_result(None)

    def _ended(self, status: int | None, error: int = 0) -> None:
        # The loop may watch the channel, which is closed now.
        if self._control is not None and self._watched == self._control.fileno():
            self._unwatch()
        super()._ended(status, error)

    async def _until_ended(self) -> None:
        """Wait for the end, whatever it was."""
        if not self._end.done():
            self._check_loop()
            await asyncio.shield(self._end)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to the loop that it was started in: only there can it be awaited")

    async def _ended_for_sure(self) -> None:
        """Wait for the end of what was killed; a cancellation meanwhile is raised when it has come."""
        cancelled: asyncio.CancelledError | None = None
        while not self._end.done():
            try:
                await self._until_ended()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _answer_for(self, listener: int, observed: "Filter | None") -> None:
        """Make the object that answers for the filter; with `observe()` it refuses from now on."""
        if observed is None:
            from sandbox.notify import Notifier_async

            self.notifier = Notifier_async(listener)
        else:
            from sandbox.denials import Denials, Denials_async

            self.denials = Denials_async(Denials(listener, observed))
            self.denials.start()

    def _refused(self) -> "tuple[Denied, ...]":
        return () if self.denials is None else tuple(self.denials.seen)

    # ── asyncio.subprocess' interface ──

    async def wait(self) -> int:
        """Wait for the end and return the exit code; being cancelled kills nothing."""
        if self.returncode is None:
            self._check()
        await self._until_ended()
        return self._told()

    def kill(self) -> None:
        """End the whole tree, certainly; `wait` tells when it has gone.

        PID 1 is asked first, because it counts what it reaps; 100 ms later it is killed, and the kernel kills
        what is left.
        """
        if self._look() is not None or self._killed:
            return
        self._killed = True
        with suppress(TimeoutError):  # stopped: SIGKILL follows
            self._send(Q_KILL)
        if self._loop.is_closed():
            self._kill_surely()
        else:
            self._loop.call_later(_SIGKILL_AFTER, self._kill_surely)

    def _kill_surely(self) -> None:
        if self.returncode is None and self._pidfd >= 0:
            self._signal_init()
            if self._sandbox is not None and not self._loop.is_closed():
                self._loop.call_later(_REMAINS_AFTER, self._bury)

    def _bury(self) -> None:
        """Note the end of a further command that is dead, and of which PID 1 says nothing: it was stopped."""
        if self.returncode is None and self._pidfd >= 0 and self._look() is None:
            self._ended(signal.SIGKILL)
        self._unwatch()

    def release(self) -> None:
        """Let a process that was started with `hold=True` execute its program; nothing happens the second time.

        That it cannot be executed is raised by `wait`.
        """
        self._release()

    async def communicate(self, input: "Buffer | None" = None) -> tuple[bytes, bytes]:
        """Send input, read all output, wait for the end; after a cancellation it may be called again.

        Args:
            input: For a stdin that is a pipe.

        Returns:
            What stdout and stderr said; None for what is no pipe.

        Raises:
            BusyError: Another task communicates, or reads a stream.
            TypeError: Input is no bytes.
            ValueError: Input was given, and a communication has begun.
        """
        if input is not None:
            check_input(input, is_text=False)
        return cast("tuple[bytes, bytes]", await self._converse(input, alone=True))

    async def _converse(self, input: "Buffer | None", *, alone: bool) -> tuple[bytes | None, bytes | None]:
        if self._talking:
            raise BusyError("another task already communicates with this process")
        if self._fed and input:
            raise ValueError("Cannot send input after starting communication")
        if not self._said:
            self._talking = True
            parts = (self._feed(input), self.wait(), self._hear("stdout", alone), self._hear("stderr", alone))
            tasks = [asyncio.ensure_future(part) for part in parts]
            try:
                await asyncio.gather(*tasks)
            finally:
                self._talking = False
                for task in tasks:
                    task.cancel()
            self._said = True
        out, err = (bytes(self._heard[name]) if name in self._heard else None for name in ("stdout", "stderr"))
        return out, err

    async def _feed(self, input: "Buffer | None") -> None:
        if self.stdin is None:
            return
        try:
            if input is not None:
                self._fed = True
                self.stdin.write(bytes(input))
                await self.stdin.drain()
            if self.terminal is None:
                self.stdin.close()
                await self.stdin.wait_closed()
        except (BrokenPipeError, ConnectionResetError):
            return  # nobody reads any more, and that is the payload's right

    async def _hear(self, name: str, alone: bool) -> None:
        stream: Reader | None = getattr(self, name)
        if stream is None:
            return
        heard = self._heard.setdefault(name, bytearray())
        # In pieces: what was read before a cancellation is not lost.
        while not stream.taken and (piece := await stream.read(_BLOCK)):
            heard += piece
        if stream.taken and alone:
            raise BusyError(f"another task already reads the {name} of this process")

    async def result(self) -> Result[bytes]:
        """Wait for the end and return the whole result; what the pipes still hold is read, and in it.

        What another task reads is that task's, and not in the result.
        """
        out, err = await self._converse(None, alone=False)
        return self._made(out, err)

    async def stop(self, grace: float = 10.0) -> Result[bytes]:
        """Send SIGTERM to the payload, wait, kill what is left, and return the result.

        Args:
            grace: Seconds until everything inside is killed.
        """
        check_timeout(grace, "grace")
        self.terminate()
        try:
            # Who ends may have much to say, and nobody else may be there to take it.
            return await asyncio.wait_for(self.result(), grace)
        except TimeoutError:
            self.kill()
            return await self.result()

    # ── streams ──

    def _take_pipes(self, streams: "Streams", limit: int) -> None:
        """Make asyncio's streams of the caller's ends."""
        parent, streams.parent = streams.parent, {}
        files = {name: io.FileIO(fd, "w" if name == "stdin" else "r") for name, fd in parent.items()}
        try:
            if self.terminal is not None:
                for name, mode in (("stdin", "w"), ("stdout", "r")):
                    files[name] = io.FileIO(fcntl.fcntl(self.terminal.fileno(), fcntl.F_DUPFD_CLOEXEC, 3), mode)
            while files:
                name = next(iter(files))
                setattr(self, name, self._connect(name, files[name], limit))
                del files[name]
        finally:
            for file in files.values():
                file.close()

    def _connect(self, name: str, file: io.FileIO, limit: int) -> asyncio.StreamWriter | asyncio.StreamReader:
        loop = self._loop
        reader = Reader(limit=limit, loop=loop)
        protocol = Output(reader, loop, self._budget)
        if name != "stdin":
            self._transports.append(ReadEnd(loop, file, protocol))
            return reader
        # The protocol of a reader, though nothing comes: it is the one that tells a writer of the end.
        transport = WriteEnd(loop, file, protocol)
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)

    async def _finish(
        self,
        streams: "Streams",
        input: bytes | None,
        timeout: float | None,  # noqa: ASYNC109  # subprocess' argument
        deadline: float | None,
        decode: Callable[[bytes], Any] | None,
    ) -> Result[Any]:
        """Run to the end, as `run` does, and close.

        Raises:
            TimeoutExpired: The whole tree was killed; the error has what was said until then.
        """
        parent, streams.parent = streams.parent, {}
        files = {name: io.FileIO(fd, "w" if name == "stdin" else "r") for name, fd in parent.items()}
        self._raw = list(files.values())
        talk = Exchange(files.get("stdin"), files.get("stdout"), files.get("stderr"), input, self._budget)
        loop = self._loop
        try:
            try:
                for fd, events in talk.waiting.items():
                    add = loop.add_reader if events == select.POLLIN else loop.add_writer
                    add(fd, self._exchange, talk, fd)
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                in_time = bool((await asyncio.wait([self._end], timeout=left))[0])
                if not in_time:
                    self._cause = Reason.TIMEOUT
                    self.kill()
                    await self._ended_for_sure()
                    self._detail = f"killed after {timeout} seconds, the caller's timeout"
            except BaseException as error:
                self._cancel(error)
                self.kill()
                await self._ended_for_sure()
                raise
            finally:
                for fd in talk.waiting:
                    loop.remove_reader(fd)
                    loop.remove_writer(fd)
            talk.rest()
            self._told()
            out, err = talk.output()
            result = self._made(decoded(out, decode), decoded(err, decode))
            if in_time:
                return result
            expired = TimeoutExpired(self.args, cast(float, timeout), out, err)
            expired.result = result
            raise expired
        finally:
            await self.aclose()

    def _exchange(self, talk: Exchange, fd: int) -> None:
        if not talk.ready(fd):
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            talk.finish(fd)

    # ── closing ──

    def _abandon(self) -> None:
        """End what could not be made whole, waiting for it."""
        if self._look() is None:
            self._signal_init()
            self._collect_or_bury()
        self._close_streams()
        self._let_go()

    def _collect_or_bury(self) -> None:
        if not self._collect(None if self._sandbox is None else deadline_of(_REMAINS_AFTER)):
            self._ended(signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill it if it runs, reap it, close everything; does nothing the second time."""
        if self._owner != os.getpid():
            self._let_go()
            return
        if not self._loop.is_closed():
            self._check_loop()
        try:
            if not self._detached and self._pidfd >= 0 and self._look() is None:
                self.kill()
                if self._loop.is_closed():
                    self._collect_or_bury()
                else:
                    await self._ended_for_sure()
        finally:
            self._close_streams()
            for supervised in (self.notifier, self.denials):
                if supervised is not None:
                    supervised.close()
            self._unwatch()
            if not self._detached:
                self._close_pidfd()

    def _close_streams(self) -> None:
        transports, self._transports = self._transports, []
        for transport in transports:
            transport.close()
        raw, self._raw = self._raw, []
        for file in raw:
            file.close()
        if self.terminal is not None:
            self.terminal.close()

    def _let_go(self) -> None:
        """Close what this process holds of it; a fork of the caller has copies, and no loop."""
        control, self._control = self._control, None
        if control is not None:
            control.close()
        for file in self._raw:
            file.close()
        if self._pidfd >= 0:
            if self._owner == os.getpid():
                self._unwatch()
            os.close(self._pidfd)
            self._pidfd = -1

    def detach(self) -> int:
        """As `ProcessControl.detach`; `wait` and everything else that asks for the end refuses from then on."""
        self._check()
        watched = self._watched >= 0
        self._unwatch()
        try:
            pidfd = super().detach()
        except BaseException:
            if watched and self.returncode is None:
                self._watch()
            raise
        os.set_blocking(pidfd, True)  # libuv has made it non-blocking
        return pidfd

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        """Wait; after an exception kill first. A detached process is let go."""
        try:
            if self._owner != os.getpid() or self._detached:
                pass
            elif error is not None:
                self._cancel(error)
            else:
                # As Popen does: who writes when nobody reads any more is told so, and does not wait for ever.
                self._close_streams()
                await self._until_ended()
        except BaseException as interrupted:
            self._cancel(interrupted)
            raise
        finally:
            await self.aclose()
        if error is None and self._failure is not None and not self._failure_told:
            raise self._failure


def _on_end(reference: "weakref.ref[Process_async]") -> None:
    process = reference()
    if process is not None:
        process._note_end()


@asynccontextmanager
async def _turn(loop: asyncio.AbstractEventLoop) -> AsyncIterator[None]:
    turn = _turns.setdefault(loop, _Turn())
    turn.users += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            del _turns[loop]


async def run_setup(setup: "Setup", slots: list[int]) -> None:
    """Launch without blocking the loop, and return when the program has been executed or is held.

    Raises:
        SetupError: A step failed; the payload has not run and nothing is left behind.
    """
    loop = asyncio.get_running_loop()
    try:
        # To begin takes a part of a millisecond, in which the loop stands still: once in each of its rounds.
        async with _turn(loop):
            setup.begin(slots)
            await asyncio.sleep(0)
        while not await _complete(loop, setup):
            pass
        setup.reap_stage()
    except BaseException as error:
        if isinstance(error, SetupError) and not is_late(error):
            setup.abort()
        else:
            await _give_up(loop, setup)
        raise


async def _give_up(loop: asyncio.AbstractEventLoop, setup: "Setup") -> None:
    """End what a launch has started, and wait for that a while."""
    gone = asyncio.Event()

    def tell() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(gone.set)

    setup.give_up(tell)
    with suppress(TimeoutError):
        await asyncio.wait_for(gone.wait(), _DYING)


async def _complete(loop: asyncio.AbstractEventLoop, setup: "Setup") -> bool:
    """Wait for something to happen, and take it; True when the set-up is complete."""
    question = setup.question
    fds = [setup.control.fileno()]
    if question >= 0:
        fds.append(question)
    ready: asyncio.Future[int] = loop.create_future()

    def wake(fd: int) -> None:
        if not ready.done():
            ready.set_result(fd)

    for fd in fds:
        loop.add_reader(fd, wake, fd)
    try:
        await asyncio.wait([ready], timeout=setup.patience())
    finally:
        for fd in fds:
            loop.remove_reader(fd)
    if not ready.done():
        setup.check_time()
        stalled = setup.stalled()
        if stalled is not None:
            raise stalled
        return False
    while True:
        try:
            record = setup.receive_one(wait=False)
        except BlockingIOError:
            # No record: a question, then, and somebody has to answer it.
            return ready.result() == question
        if setup.take(record):
            return True
