"""`Supervisor`: services, and the one loop that drives them."""

import os
import select
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from sandbox.errors import BusyError
from sandbox.events import Eventfd, Timerfd, TimerVal
from sandbox.primitives import process as prctl
from sandbox.supervise.actions import Force, Forget, Kill, Launch, Probe, Signal, Swap
from sandbox.supervise.definition import Definition, check_name
from sandbox.supervise.machine import Machine
from sandbox.supervise.model import ServiceEvent, ServiceOptions, ServiceStatus
from sandbox.supervise.orphans import Orphans
from sandbox.supervise.service import Service
from sandbox.supervise.signals import Signals
from sandbox.supervise.watches import Watches

if TYPE_CHECKING:
    from sandbox.order import Args


class Supervisor:
    """Starts services in order, watches them, starts them again, and stops them in reverse order.

    One epoll descriptor holds everything that it waits for: processes by pidfd, timers, signals, files, streams. No
    thread, and nothing is asked again and again. Nothing starts before `run`, `run_async`, `events`, `events_async`
    or `step`. Leaving the `with` block stops all services.

    When this process ends, however it ends, every service ends with all that it has started. A child made by
    `os.fork` has nothing of it: its copy of this object refuses to work.

    All methods are for the thread that drives it, but for `stop`.
    """

    def __init__(self) -> None:
        self._machine = Machine(time.time)
        self._owner = os.getpid()
        self._services: dict[str, Service] = {}
        self._events: list[ServiceEvent] = []
        self._ready: dict[int, Callable[[], None]] = {}
        self._armed: float | None = None
        self._driven = False
        self._begun = False
        self._stop_asked = False
        self._signals_came: deque[int] = deque()
        self._adopts: bool | None = None  # whether this process was a subreaper before
        self._watches = Watches(self)
        self._orphans = Orphans(self)
        with ExitStack() as made:
            self._epoll = made.enter_context(select.epoll())
            self._wake = made.enter_context(Eventfd(nonblock=True))
            self._timer = made.enter_context(Timerfd(nonblock=True))
            self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            made.callback(os.close, self._null)
            self._watch(self._wake.fileno(), self._woken)
            self._watch(self._timer.fileno(), self._expired)
            made.pop_all()

    # ── the services ──

    def add(self, name: str, args: "Args", **options: Unpack[ServiceOptions]) -> None:
        """Add a service; it starts when all services that it comes `after` are ready, or have ended well.

        Args:
            name: 1 to 64 printable characters without a slash or space.
            args: Program and arguments; the program is looked up on PATH. Not the kind that goes to the background.
            **options: sandbox: what it runs in; without, it is a plain child.
                env: its whole environment; without, that of the sandbox, or that of this process as it is now.
                cwd: its working directory.
                restart: when it is started again; never.
                ready: how it shows that it can be used; without, it can at once.
                ready_timeout: seconds for that; 30.
                after: names of services that come first.
                stop_signal, stop_timeout: how it is asked to end, SIGTERM, and seconds until its tree is killed, 10.
                watchdog: seconds within which it must say WATCHDOG=1; with `Ready.tcp` or `Ready.call` those are
                asked instead. Silence is a failure: SIGABRT, `stop_timeout`, kill.
                reload: the signal that makes it read its configuration; without, reload() restarts it.
                sockets: passed as 3, 4 ... with LISTEN_FDS; they stay open while it is restarted. Their attribute
                `name`, where they have one, is in LISTEN_FDNAMES.
                watch: files or directories whose change reloads it.
                output: gets (name, line) for what it writes to stdout and stderr; or a file, which is rotated at 10
                MiB. Without, it has the streams of this process.

        Raises:
            ValueError: The name is taken, `after` names an unknown service or makes a circle, or an option is out of
                its range.
            TypeError: An option of the wrong type, or an unknown one.
            OSError: A socket or the output file cannot be had.
        """
        self._check()
        definition = Definition(args, options)
        try:
            self._machine.add(check_name(name), definition.settings, self._now())
        except BaseException:
            definition.close()
            raise
        self._services[name] = Service(name, definition, self)
        self._watches.set(name, definition.watch)
        self._nudge()

    def replace(self, name: str, args: "Args", **options: Unpack[ServiceOptions]) -> None:
        """Give a service another definition, and restart it with that if it runs, else start it.

        Args:
            name: Of a service that there is.
            args: As in `add`.
            **options: As in `add`; what is left out is not as it was before, but as in `add`.

        Raises:
            ValueError: There is no such service; or as in `add`.
            TypeError: As in `add`.
            OSError: As in `add`.
        """
        self._check()
        definition = Definition(args, options)
        service = self._services.get(name)
        try:
            self._machine.replace(name, definition.settings, self._now())
        except BaseException:
            definition.close()
            raise
        assert service is not None
        if service.next is not None:
            service.next.close()
        service.next = definition
        self._watches.set(name, definition.watch)
        self._nudge()

    def remove(self, name: str) -> None:
        """Stop a service, and forget it when it has ended.

        Args:
            name: Of a service that there is.

        Raises:
            ValueError: There is no such service, or another comes after it.
        """
        self._check()
        self._machine.remove(name, self._now())
        self._watches.set(name, ())
        self._nudge()

    def restart(self, name: str) -> None:
        """Stop a service if it runs, then start it, whatever its policy and its past.

        Args:
            name: Of a service that there is.

        Raises:
            ValueError: There is no such service.
        """
        self._check()
        self._machine.restart(name, self._now())
        self._nudge()

    def reload(self, name: str) -> None:
        """Make a running service read its configuration: by its `reload` signal, else by a restart.

        Args:
            name: Of a service that there is.

        Raises:
            ValueError: There is no such service.
        """
        self._check()
        self._machine.reload(name, self._now())
        self._nudge()

    def status(self) -> Mapping[str, ServiceStatus]:
        """Return how all services are, by name; `sandbox.supervise.table(status)` makes a table of it."""
        return self._machine.status()

    # ── driving it ──

    def run(self) -> int:
        """Start all services and return when none runs any more.

        In the main thread SIGTERM and SIGINT stop all services, a second one kills them, and SIGHUP reloads those
        that say how: by `reload` or `watch`.

        Returns:
            1 when a service has failed for good, else 0.
        """
        self._begin()
        with self._signals():
            while not self.finished:
                self.step(None)
        return int(self._machine.gave_up)

    async def run_async(self) -> int:
        """Do as `run`, in an asyncio loop. Cancelled, it stops all services first; cancelled again, it kills them.

        Returns:
            1 when a service has failed for good, else 0.
        """
        self._begin()
        with self._signals():
            async for _ in self._drive():
                pass
        return int(self._machine.gave_up)

    def events(self) -> Iterator[ServiceEvent]:
        """Start all services and yield what happens, until none runs any more; signals are left to the caller."""
        self._begin()
        yield from self._take()
        while not self.finished:
            yield from self.step(None)

    async def events_async(self) -> AsyncIterator[ServiceEvent]:
        """Do as `events`, in an asyncio loop."""
        self._begin()
        async for event in self._drive():
            yield event

    def step(self, timeout: float | None = 0.0) -> list[ServiceEvent]:
        """Do what is due, and return what happened: for somebody else's loop, whenever `fileno()` is readable.

        Args:
            timeout: Seconds to wait at most for something to do; None: for ever, unless nothing runs.

        Raises:
            BusyError: It is driven already, by another thread or from a callback.
        """
        self._check()
        if self._driven:
            raise BusyError("this supervisor is being driven already: step, run and events are for one driver")
        self._driven = True
        try:
            if not self._begun:
                self._begin()
            self._perform()
            if self._events or self.finished:
                timeout = 0.0
            # Rounded up by epoll itself; a signal's handler may run meanwhile, and ask for a stop.
            for fd, _ in self._epoll.poll(timeout):
                ready = self._ready.get(fd)
                if ready is not None:
                    ready()
            self._perform()
        finally:
            self._driven = False
        return self._take()

    def fileno(self) -> int:
        """Return the epoll descriptor, readable when `step` has something to do.

        Raises:
            ValueError: The supervisor is closed.
        """
        if self._epoll.closed:
            raise ValueError("I/O operation on closed supervisor")
        return self._epoll.fileno()

    def stop(self) -> None:
        """Let whoever drives it stop all services, in reverse order; from any thread, or a signal handler."""
        self._stop_asked = True
        self._nudge()

    @property
    def finished(self) -> bool:
        """Whether nothing runs any more, and nothing is about to."""
        return self._machine.finished and not self._orphans and not self._stop_asked and not self._signals_came

    def close(self) -> None:
        """Kill what still runs, and close everything; does nothing the second time."""
        if self._epoll.closed:
            return
        if os.getpid() == self._owner:
            for service in self._services.values():
                service.close()
            self._services.clear()
            self._orphans.close()
            self._watches.close()
            if self._adopts is False:
                prctl.prctl(prctl.PR_SET_CHILD_SUBREAPER, 0)
        self._wake.close()
        self._timer.close()
        self._epoll.close()
        os.close(self._null)

    def __enter__(self) -> Self:
        """Return itself."""
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all services, in order, and close everything."""
        if self._epoll.closed:
            return
        try:
            if os.getpid() == self._owner and self._begun:
                self.stop()
                while not self.finished:
                    self.step(None)
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        """Return itself."""
        self._check()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop all services, in order, and close everything."""
        if self._epoll.closed:
            return
        try:
            if os.getpid() == self._owner and self._begun:
                self.stop()
                async for _event in self._drive():
                    pass
        finally:
            self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse: a supervisor is here and nowhere else."""
        raise TypeError(
            "Supervisor cannot be pickled: the processes of its services are this process's own; make it where they are"
            " to run, and send its status()"
        )

    def __repr__(self) -> str:
        state = "closed" if self._epoll.closed else ", ".join(self._services) or "no services"
        return f"<Supervisor {state}>"

    # ── for the parts ──

    def _now(self) -> float:
        """Return the time of the machine: setting the clock does not move it."""
        return time.monotonic()

    def _watch(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call a function whenever a descriptor is ready."""
        self._epoll.register(fd, events)
        self._ready[fd] = ready

    def _unwatch(self, fd: int) -> None:
        """Do so no more; before the descriptor is closed: a copy of it elsewhere would keep it in the epoll."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _lost(self, session: int, marker: bytes) -> None:
        """PID 1 of a plain service was killed: what it had below it has come to this process."""
        self._orphans.sweep(session, marker)

    # ── inside ──

    def _check(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError("this supervisor belongs to the process that made it, not to a fork of it")
        if self._epoll.closed:
            raise ValueError("operation on closed supervisor")

    def _begin(self) -> None:
        self._check()
        self._begun = True
        if self._adopts is None:
            self._adopts = bool(prctl.prctl(prctl.PR_GET_CHILD_SUBREAPER))
            if not self._adopts:
                prctl.prctl(prctl.PR_SET_CHILD_SUBREAPER, 1)
        self._machine.begin(self._now())

    def _nudge(self) -> None:
        """Make `fileno()` readable: there is something to do."""
        if not self._wake.closed:
            self._wake.increment()

    def _woken(self) -> None:
        self._wake.read_events()

    def _expired(self) -> None:
        self._timer.read_events()
        self._armed = None

    def _take(self) -> list[ServiceEvent]:
        events, self._events = self._events, []
        return events

    def _perform(self) -> None:
        """Do all that is to be done now, and set the timer for what comes next."""
        machine = self._machine
        if self._stop_asked:
            self._stop_asked = False
            machine.stop(self._now())
        while self._signals_came:
            self._signal(self._signals_came.popleft())
        machine.tick(self._now())
        while machine.busy:
            for action in machine.take():
                self._do(action)
            machine.tick(self._now())
        at = machine.deadline()
        if at != self._armed:
            self._timer.set(None if at is None else TimerVal().at(max(at, 0.0)))
            self._armed = at

    def _do(self, action: Any) -> None:
        if isinstance(action, ServiceEvent):
            self._happened(action)
            return
        service = self._services[action.service]
        match action:
            case Launch():
                service.launch()
            case Signal(number=number):
                service.send_signal(number)
            case Probe():
                service.probe()
            case Kill():
                service.kill()
            case Force():
                service.force()
            case Swap():
                service.swap()
            case Forget():
                del self._services[action.service]
                service.close()

    def _happened(self, event: ServiceEvent) -> None:
        self._events.append(event)

    def _signals(self) -> Signals:
        return Signals(self._watch, self._unwatch, self._signal_came)

    def _signal_came(self, number: int) -> None:
        # Maybe in a signal handler: noted, and done by the loop.
        self._signals_came.append(number)
        self._nudge()

    def _signal(self, number: int) -> None:
        now = self._now()
        if number == signal.SIGHUP:
            self._hangup()
        elif self._machine.stops:
            self._machine.kill(now)
        else:
            self._machine.stop(now)

    def _hangup(self) -> None:
        for name in list(self._services):
            self._reload_if_it_says_how(name)

    def _reload_if_it_says_how(self, name: str) -> None:
        definition = self._services[name].definition
        if definition.settings.reload is not None or definition.watch:
            self._machine.reload(name, self._now())

    async def _drive(self) -> AsyncIterator[ServiceEvent]:
        """Step whenever there is something to do, until nothing runs; cancelled, stop everything first."""
        import asyncio

        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        cancelled: BaseException | None = None
        fd = os.dup(self.fileno())  # asyncio has one reader a descriptor, and somebody may have this one
        loop.add_reader(fd, readable.set)
        try:
            while True:
                for event in self.step():
                    yield event
                if self.finished:
                    break
                # Level-triggered: what came meanwhile makes it readable again.
                readable.clear()
                try:
                    await readable.wait()
                except asyncio.CancelledError as error:
                    if cancelled is None:
                        self.stop()
                    else:
                        self._machine.kill(self._now())
                    cancelled = error
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        if cancelled is not None:
            raise cancelled
