"""The state machine of all services: pure, without a descriptor, a clock or a process.

What happens is told to it by method calls with the time; what is to be done it notes, in order, for whoever drives
it: `take()`. So a test can be the driver, with a clock of its own.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from sandbox.supervise.actions import Action, Force, Forget, Kill, Launch, Probe, Signal, Swap
from sandbox.supervise.model import (
    RUNNING,
    ServiceEvent,
    ServiceExited,
    ServiceGaveUp,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    ServiceStatus,
    Settings,
    State,
)
from sandbox.supervise.record import Record, Timer

if TYPE_CHECKING:
    from sandbox import Result

_SIGABRT: Final = 6
DEBOUNCE: Final = 0.1  # seconds between the first change of a watched file and the reload
FORCE_AFTER: Final = 0.5  # seconds that PID 1 has to end all, before it is killed itself


class Machine:
    """All services, and what is to be done for them.

    Args:
        wall: The time of the events, in seconds since the epoch.
        random: Between 0 and 1, for the jitter.
    """

    def __init__(self, wall: Callable[[], float], random: Callable[[], float] = random.random) -> None:
        self._wall = wall
        self._random = random
        self._services: dict[str, Record] = {}
        self._dependents: dict[str, list[str]] = {}
        self._queue: list[tuple[float, int, str, Timer]] = []
        self._pushed = 0
        self._out: list[Action | ServiceEvent] = []
        self._begun = False
        self._stopping = False
        self._alive = 0  # services that run or wait for their backoff

    # ── what is to be done ──

    def take(self) -> list[Action | ServiceEvent]:
        """Return what is to be done and told since the last time, in order."""
        out, self._out = self._out, []
        return out

    @property
    def busy(self) -> bool:
        """Whether something is to be done."""
        return bool(self._out)

    @property
    def finished(self) -> bool:
        """Whether nothing runs, and nothing will unless somebody asks for it."""
        return self._begun and not self._alive and not self._out

    @property
    def stops(self) -> bool:
        """Whether all services are being stopped."""
        return self._stopping

    @property
    def gave_up(self) -> bool:
        """Whether a service has failed for good."""
        return any(service.state is State.FAILED for service in self._services.values())

    def deadline(self) -> float | None:
        """Return when `tick` is due next."""
        queue = self._queue
        while queue:
            at, _, name, timer = queue[0]
            service = self._services.get(name)
            if service is not None and service.timers.get(timer) == at:
                return at
            heapq.heappop(queue)
        return None

    def names(self) -> Iterable[str]:
        """Return the names of all services."""
        return self._services.keys()

    def status(self) -> Mapping[str, ServiceStatus]:
        """Return how all services are."""
        return {
            s.name: ServiceStatus(s.name, s.state, s.pid, s.since, s.restarts, s.text, s.result)
            for s in self._services.values()
        }

    def state(self, name: str) -> State:
        """Return where a service is."""
        return self._services[name].state

    def watchdog(self, name: str) -> float | None:
        """Return the seconds of its watchdog, as it was set last."""
        return self._services[name].watchdog

    # ── what the user asks for ──

    def add(self, name: str, settings: Settings, now: float) -> None:
        """Add a service.

        Raises:
            ValueError: The name is taken, `after` names an unknown service, or itself in the end.
        """
        known = self._services.get(name)
        if known is not None:
            leaving = known.after_exit == "forget"
            raise ValueError(f"name {name!r} is {'still being stopped' if leaving else 'taken: use replace()'}")
        self._check_after(name, settings)
        service = self._services[name] = Record(name, settings, self._wall())
        service.wanted = not self._stopping
        self._dependents_of()
        self._consider(service, now)

    def replace(self, name: str, settings: Settings, now: float) -> None:
        """Give a service another definition; a running one is restarted with it.

        Raises:
            ValueError: No such service; `after` as in add.
        """
        service = self._known(name)
        self._check_after(name, settings)
        if service.up:
            service.pending = settings
            self._restart(service, now)
        else:
            service.settings = settings
            self._out.append(Swap(name))
            self._dependents_of()
            self._restart(service, now)

    def remove(self, name: str, now: float) -> None:
        """Stop a service and forget it.

        Raises:
            ValueError: No such service, or another comes after it.
        """
        service = self._known(name)
        later = [
            s.name for s in self._services.values() if name in (*s.settings.after, *(s.pending or s.settings).after)
        ]
        if later:
            raise ValueError(f"{name!r} cannot be removed while others come after it: {', '.join(later)}")
        service.wanted = False
        if service.up:
            service.after_exit = "forget"
            self._end(service, now)
        else:
            self._forget(service)

    def restart(self, name: str, now: float) -> None:
        """Stop a service if it runs, and start it, whatever its policy.

        Raises:
            ValueError: No such service.
        """
        self._restart(self._known(name), now)

    def reload(self, name: str, now: float) -> None:
        """Let a running service read its configuration again: by its signal, else by a restart.

        Raises:
            ValueError: No such service.
        """
        service = self._known(name)
        if service.state not in {State.STARTING, State.READY}:
            return
        if service.settings.reload is not None:
            self._out.append(Signal(name, service.settings.reload))
        else:
            self._restart(service, now)

    def begin(self, now: float) -> None:
        """Start all services, in order; again after a stop that is complete."""
        if self._begun and not (self._stopping and self.finished):
            return
        self._begun = True
        for service in self._services.values():
            service.wanted = service.wanted or (self._stopping and service.state is State.STOPPED and not service.done)
        self._stopping = False
        for service in list(self._services.values()):
            self._consider(service, now)

    def stop(self, now: float) -> None:
        """Stop all services, in reverse order."""
        self._begun = self._stopping = True
        for service in self._services.values():
            service.wanted = False
            if service.after_exit == "start":
                service.after_exit = ""
            if service.state is State.BACKOFF:
                service.timers.clear()
                self._set(service, State.STOPPED)
        self._stop_next(now)

    def kill(self, now: float) -> None:
        """Stop all services, at once and without asking."""
        self.stop(now)
        for service in self._services.values():
            if service.up:
                if service.state is not State.STOPPING:
                    self._set(service, State.STOPPING)
                self._kill(service, now)

    # ── what happens ──

    def started(self, name: str, pid: int, now: float) -> None:
        """Its program was executed."""
        service = self._services[name]
        service.pid = pid or None
        service.started = now
        service.watchdog = service.settings.watchdog
        self._out.append(ServiceStarted(name, self._wall(), pid))
        if service.state is not State.STARTING:
            return  # to be stopped in the meantime
        if not service.settings.waits:
            self._ready(service, now)
            return
        self._at(service, "ready", now + service.settings.ready_timeout)
        if service.settings.every is not None:
            self._out.append(Probe(name))

    def ready(self, name: str, now: float) -> None:
        """It says, or shows, that it is ready."""
        service = self._services[name]
        if service.state is State.STARTING and service.pid is not None:
            self._ready(service, now)

    def probed(self, name: str, well: bool, why: str, now: float) -> None:
        """The answer to a question whether it is well."""
        service = self._services[name]
        every = service.settings.every
        if every is None or service.state not in {State.STARTING, State.READY}:
            return
        if not well:
            service.text = why
        elif service.state is State.STARTING:
            service.text = ""
            self._ready(service, now)
        else:
            service.text = ""
            self.pinged(name, now)
        if service.state is State.READY:
            if service.watchdog is None:
                return
            every = min(every, service.watchdog / 4) if not well else service.watchdog / 2
        self._at(service, "probe", now + every)

    def exited(self, name: str, result: "Result[bytes]", now: float) -> None:
        """Its main process has ended and its tree with it, or it could not be launched."""
        service = self._services[name]
        failing, service.failing = service.failing, ""
        if failing:
            result.detail = f"{failing}; {result.detail}"
        service.result = result
        service.pid = None
        service.timers.clear()
        self._out.append(ServiceExited(name, self._wall(), result))
        after, service.after_exit = service.after_exit, ""
        if service.pending is not None:
            service.settings, service.pending = service.pending, None
            self._out.append(Swap(name))
            self._dependents_of()
        if after == "forget":
            self._set(service, State.STOPPED)
            self._forget(service)
        elif not service.wanted:
            self._set(service, State.STOPPED)
        elif after == "start":
            self._set(service, State.STOPPED)
            self._consider(service, now)
        else:
            self._decide(service, failed=bool(failing) or result.returncode != 0, now=now)
        if self._stopping:
            self._stop_next(now)

    def says(self, name: str, text: str) -> None:
        """It tells how it is."""
        self._services[name].text = text

    def reloading(self, name: str) -> None:
        """It reads its configuration, and will be ready again."""
        service = self._services[name]
        if service.state is State.READY:
            self._set(service, State.STARTING)
            service.timers.pop("watchdog", None)

    def stopping(self, name: str, now: float) -> None:
        """It says that it is about to end."""
        service = self._services[name]
        if service.state in {State.STARTING, State.READY}:
            self._set(service, State.STOPPING)
            service.timers.clear()
            self._at(service, "kill", now + service.settings.stop_timeout)

    def pinged(self, name: str, now: float) -> None:
        """It is alive."""
        service = self._services[name]
        if service.watchdog is not None and service.state is State.READY:
            self._at(service, "watchdog", now + service.watchdog)

    def set_watchdog(self, name: str, every: float, now: float) -> None:
        """It asks for another time between signs of life; 0: for none."""
        service = self._services[name]
        service.watchdog = every or None
        service.timers.pop("watchdog", None)
        self.pinged(name, now)

    def trigger(self, name: str, now: float) -> None:
        """It says itself that its watchdog should bite."""
        self._bite(self._services[name], "its own call of the watchdog", now)

    def extend(self, name: str, more: float, now: float) -> None:
        """It needs more time for what it is about."""
        service = self._services[name]
        timer: Timer = "kill" if service.state is State.STOPPING else "ready"
        if service.timers.get(timer, now + more) < now + more:
            self._at(service, timer, now + more)

    def changed(self, name: str, now: float) -> None:
        """A file that it depends on has changed."""
        service = self._services.get(name)
        if service is None or service.state not in {State.STARTING, State.READY}:
            return
        if "reload" not in service.timers:
            self._at(service, "reload", now + DEBOUNCE)

    def tick(self, now: float) -> None:
        """Let the time pass."""
        while (at := self.deadline()) is not None and at <= now:
            _, _, name, timer = heapq.heappop(self._queue)
            service = self._services[name]
            del service.timers[timer]
            match timer:
                case "ready":
                    service.failing = f"not ready within {service.settings.ready_timeout:g} seconds"
                    self._end(service, now)
                case "backoff":
                    self._set(service, State.STOPPED)
                    self._consider(service, now)
                case "kill":
                    self._kill(service, now)
                case "force":
                    self._out.append(Force(name))
                case "watchdog":
                    self._bite(service, f"no sign of life for {service.watchdog or 0:g} seconds", now)
                case "probe":
                    self._out.append(Probe(name))
                case "reload":
                    self.reload(name, now)

    # ── inside ──

    def _known(self, name: str) -> Record:
        service = self._services.get(name)
        if service is None or service.after_exit == "forget":
            names = ", ".join(sorted(self._services)) or "none"
            raise ValueError(f"there is no service {name!r}; there are: {names}")
        return service

    def _check_after(self, name: str, settings: Settings) -> None:
        for other in settings.after:
            known = self._services.get(other)
            if other != name and (known is None or known.after_exit == "forget"):
                raise ValueError(f"after names {other!r}, which is no service yet: add it first")
        seen = {name}
        waiting: list[tuple[str, tuple[str, ...]]] = [(other, (name, other)) for other in settings.after]
        while waiting:
            other, way = waiting.pop()
            if other == name:
                raise ValueError(f"after makes a circle: {' after '.join(way)}")
            if other not in seen:
                seen.add(other)
                service = self._services[other]
                after = (service.pending or service.settings).after
                waiting += [(one, (*way, one)) for one in after]

    def _dependents_of(self) -> None:
        """Note again who comes after whom."""
        self._dependents = {name: [] for name in self._services}
        for service in self._services.values():
            for other in service.settings.after:
                self._dependents[other].append(service.name)

    def _set(self, service: Record, state: State) -> None:
        was, service.state = service.state, state
        if state is not was:
            service.since = self._wall()
            alive = RUNNING | {State.BACKOFF}
            self._alive += (state in alive) - (was in alive)

    def _at(self, service: Record, timer: Timer, when: float) -> None:
        service.timers[timer] = when
        self._pushed += 1
        heapq.heappush(self._queue, (when, self._pushed, service.name, timer))

    def _consider(self, service: Record, now: float) -> None:
        """Start a service that is wanted, when all that it comes after are ready or have done their work."""
        if not self._begun or not service.wanted or service.state is not State.STOPPED:
            return
        for name in service.settings.after:
            other = self._services[name]
            if other.state is not State.READY and not other.done:
                service.text = f"waits for {name}"
                return
        service.text = ""
        service.done = False
        self._set(service, State.STARTING)
        self._out.append(Launch(service.name))
        service.started = now

    def _ready(self, service: Record, now: float) -> None:
        service.timers.pop("ready", None)
        self._set(service, State.READY)
        self._out.append(ServiceReady(service.name, self._wall()))
        self.pinged(service.name, now)
        if service.settings.every is not None and service.watchdog is not None:
            self._at(service, "probe", now + service.watchdog / 2)
        self._consider_dependents(service, now)

    def _consider_dependents(self, service: Record, now: float) -> None:
        for name in self._dependents.get(service.name, ()):
            self._consider(self._services[name], now)

    def _decide(self, service: Record, *, failed: bool, now: float) -> None:
        """Restart a service that has ended by itself, or not, as its policy says."""
        policy = service.settings.restart
        if not failed and policy.when != "always":
            service.wanted = False
            service.done = True
            self._set(service, State.STOPPED)
            self._consider_dependents(service, now)
            return
        delay = service.delay(self._random, now)
        if delay is None:
            assert service.result is not None
            service.wanted = False
            self._set(service, State.FAILED)
            self._out.append(ServiceGaveUp(service.name, self._wall(), service.result))
            return
        self._out.append(ServiceRestarting(service.name, self._wall(), delay))
        if delay > 0:
            self._set(service, State.BACKOFF)
            self._at(service, "backoff", now + delay)
        else:
            self._set(service, State.STOPPED)
            self._consider(service, now)

    def _restart(self, service: Record, now: float) -> None:
        if self._stopping:
            return
        service.wanted = True
        service.attempts = 0
        service.recent.clear()
        if service.up:
            service.after_exit = "start"
            self._end(service, now)
        else:
            service.timers.clear()
            self._set(service, State.STOPPED)
            self._consider(service, now)

    def _end(self, service: Record, now: float, number: int | None = None) -> None:
        """Ask a running service to end, and see to it that it does."""
        if service.state is State.STOPPING:
            return
        self._set(service, State.STOPPING)
        service.timers.clear()
        self._out.append(Signal(service.name, service.settings.stop_signal if number is None else number))
        self._at(service, "kill", now + service.settings.stop_timeout)

    def _kill(self, service: Record, now: float) -> None:
        service.timers.clear()
        self._out.append(Kill(service.name))
        self._at(service, "force", now + FORCE_AFTER)

    def _bite(self, service: Record, why: str, now: float) -> None:
        if service.state in {State.STARTING, State.READY}:
            service.failing = why
            self._end(service, now, _SIGABRT)

    def _stop_next(self, now: float) -> None:
        """Ask all services to end that none which still runs comes after."""
        for service in self._services.values():
            if service.up and not any(self._services[name].up for name in self._dependents[service.name]):
                self._end(service, now)

    def _forget(self, service: Record) -> None:
        service.timers.clear()
        self._set(service, State.STOPPED)
        del self._services[service.name]
        self._dependents_of()
        self._out.append(Forget(service.name))
