"""What one says about services and what one hears of them: plain values."""

import enum
import math
import signal as _signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from sandbox.arguments import HasFileno, StrOrBytesPath

if TYPE_CHECKING:
    from sandbox import Result, Sandbox


def seconds(value: Any, name: str, *, least: float = 0.0) -> float:
    """Return a number of seconds.

    Raises:
        TypeError: Not a number.
        ValueError: Negative, not finite, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name} must be a number of seconds, {least:g} or more, got {value}")
    return float(value)


@dataclass(frozen=True, slots=True)
class Restart:
    """When a service that has ended is started again.

    The first restart comes after `backoff` seconds, each further one after twice as long, at most `backoff_max`; up
    to half of it is left out at random, so that services that failed together do not come back together.

    Attributes:
        when: "never", "always", or "on-failure": after any exit status but 0, a signal, or a readiness, watchdog or
            launch that failed.
        backoff: Seconds before the first restart; 0: at once, each time.
        backoff_max: Seconds at most.
        limit: Restarts within `interval` before it is given up; None: no limit.
        interval: Seconds.
        reset_after: Seconds of running after which `backoff` counts from the beginning.
    """

    when: Literal["never", "always", "on-failure"] = "never"
    backoff: float = 0.1
    backoff_max: float = 60.0
    limit: int | None = None
    interval: float = 60.0
    reset_after: float = 10.0

    def __post_init__(self) -> None:
        if self.when not in {"never", "always", "on-failure"}:
            raise ValueError(f'when must be "never", "always" or "on-failure", got {self.when!r}')
        for name in ("backoff", "backoff_max", "interval", "reset_after"):
            seconds(getattr(self, name), name)
        if self.limit is not None:
            if isinstance(self.limit, bool) or not isinstance(self.limit, int):
                raise TypeError(f"limit must be an int or None, not {type(self.limit).__name__}")
            if self.limit < 0:
                raise ValueError(f"limit must be 0 or more, or None, got {self.limit}")

    @staticmethod
    def never() -> "Restart":
        """Return: what has ended stays so."""
        return Restart()

    @staticmethod
    def on_failure(
        *,
        backoff: float = 0.1,
        backoff_max: float = 60.0,
        limit: int | None = None,
        interval: float = 60.0,
        reset_after: float = 10.0,
    ) -> "Restart":
        """Return: again after a failure; the arguments are the attributes.

        Args:
            backoff: Seconds before the first restart.
            backoff_max: Seconds at most.
            limit: Restarts within `interval` before it is given up; None: no limit.
            interval: Seconds.
            reset_after: Seconds of running after which `backoff` counts from the beginning.
        """
        return Restart("on-failure", backoff, backoff_max, limit, interval, reset_after)

    @staticmethod
    def always(
        *,
        backoff: float = 0.1,
        backoff_max: float = 60.0,
        limit: int | None = None,
        interval: float = 60.0,
        reset_after: float = 10.0,
    ) -> "Restart":
        """Return: again after any end; the arguments are the attributes.

        Args:
            backoff: Seconds before the first restart.
            backoff_max: Seconds at most.
            limit: Restarts within `interval` before it is given up; None: no limit.
            interval: Seconds.
            reset_after: Seconds of running after which `backoff` counts from the beginning.
        """
        return Restart("always", backoff, backoff_max, limit, interval, reset_after)


@dataclass(frozen=True, slots=True)
class Ready:
    """How a service shows that it is ready; made by one of the methods below.

    Attributes:
        kind: "fd", "tcp", "call" or "notify".
        number: Of `fd`: the descriptor, or None.
        address: Of `tcp`: host and port.
        check: Of `call`: the function.
        every: Seconds between two questions.
    """

    kind: Literal["fd", "tcp", "call", "notify", "ended"]
    number: int | None = None
    address: tuple[str, int] | None = None
    check: Callable[[], bool] | None = None
    every: float = 0.1

    @property
    def asks(self) -> bool:
        """Whether the supervisor asks, again and again, instead of being told."""
        return self.kind in {"tcp", "call"}

    @staticmethod
    def fd(number: int | None = None) -> "Ready":
        """Return: when the service writes to a descriptor, or closes it and lives on.

        Args:
            number: The descriptor inside, 3 or more; None: the next free one. READY_FD has it either way.
        """
        if number is not None:
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"number must be an int or None, not {type(number).__name__}")
            if not 3 <= number <= 1023:
                raise ValueError(f"number must be between 3 and 1023, got {number}")
        return Ready("fd", number=number)

    @staticmethod
    def tcp(port: int, host: str = "127.0.0.1") -> "Ready":
        """Return: when a TCP port accepts a connection.

        Args:
            port: 1 to 65535.
            host: An IPv4 or IPv6 address: names are not looked up, for that would hold up every other service.
        """
        import ipaddress

        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"port must be an int, not {type(port).__name__}")
        if not 1 <= port <= 65535:
            raise ValueError(f"port must be between 1 and 65535, got {port}")
        try:
            address = str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
        except ValueError:
            raise ValueError(f"host must be an IP address, got {host!r}") from None
        return Ready("tcp", address=(address, port))

    @staticmethod
    def call(check: Callable[[], bool], *, every: float = 0.1) -> "Ready":
        """Return: when a function says True.

        Args:
            check: Asked in the supervisor's loop, where everything waits for it: one that may take long belongs into a
                service of its own. An exception means: not yet.
            every: Seconds between two questions, more than 0.
        """
        if not callable(check):
            raise TypeError(f"check must be callable, not {type(check).__name__}")
        return Ready("call", check=check, every=seconds(every, "every", least=0.001))

    @staticmethod
    def notify() -> "Ready":
        """Return: when it says READY=1, as of sd_notify(3)."""
        return Ready("notify")

    @staticmethod
    def ended() -> "Ready":
        """Return: when it has ended with exit status 0, for a task that prepares what others need.

        It is STARTING as long as it runs. `ready_timeout` is its time, and any other end is a failure.
        """
        return Ready("ended")


class ServiceOptions(TypedDict, total=False):
    """What `Supervisor.add` takes besides name and command."""

    sandbox: "Sandbox | None"
    env: Mapping[str, str]
    cwd: StrOrBytesPath
    restart: Restart
    ready: Ready | None
    ready_timeout: float
    after: Iterable[str]
    stop_signal: int
    stop_timeout: float
    watchdog: float | None
    reload: int | None
    sockets: Sequence[HasFileno]
    watch: Iterable[StrOrBytesPath]
    output: Callable[[str, bytes], None] | StrOrBytesPath | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a service's options decides when something happens: all that the state machine needs."""

    after: tuple[str, ...] = ()
    restart: Restart = Restart()
    waits: bool = False  # for readiness
    every: float | None = None  # seconds between two questions, where the supervisor asks
    ready_timeout: float = 30.0
    stop_signal: int = _signal.SIGTERM
    stop_timeout: float = 10.0
    watchdog: float | None = None
    reload: int | None = None


class State(enum.StrEnum):
    """Where a service is; a str, "starting" for STARTING.

    Attributes:
        STARTING: Its program runs, and is not ready yet.
        READY: It can be used.
        STOPPING: It was asked to end, or is being killed.
        BACKOFF: It has ended, and is started again after a while.
        STOPPED: It has ended, or was not started yet, and nothing is to be done.
        FAILED: It has failed, and is not started again.
    """

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    FAILED = "failed"


RUNNING: Final = frozenset({State.STARTING, State.READY, State.STOPPING})


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A service as it is.

    Attributes:
        name: Its name.
        state: Where it is. STOPPED also before its first start, while it waits for what it comes `after`.
        pid: Its main process, as this process sees it; None while there is none.
        since: When it came to that state, in seconds since the epoch.
        restarts: How often it was restarted by its policy.
        text: What it says of itself: STATUS= of sd_notify; else why it is where it is.
        result: What came of the last process that has ended.
    """

    name: str
    state: State
    pid: int | None
    since: float
    restarts: int
    text: str
    result: "Result[bytes] | None"


@dataclass(frozen=True, slots=True)
class ServiceEvent:
    """Something happened.

    Attributes:
        service: The name.
        time: When, in seconds since the epoch.
    """

    service: str
    time: float


@dataclass(frozen=True, slots=True)
class ServiceStarted(ServiceEvent):
    """Its program was executed.

    Attributes:
        pid: The main process, as this process sees it; 0 when it had ended before anybody could ask.
    """

    pid: int


@dataclass(frozen=True, slots=True)
class ServiceReady(ServiceEvent):
    """It can be used: as its `ready` says, or at once without."""


@dataclass(frozen=True, slots=True)
class ServiceExited(ServiceEvent):
    """It has ended, and every process that it had started.

    Attributes:
        result: Why, and what it used. A command that could not be launched has the exit status that a shell would
            give it: 127 not found, 126 not executable, 125 all else; `detail` has the error.
    """

    result: "Result[bytes]"


@dataclass(frozen=True, slots=True)
class ServiceRestarting(ServiceEvent):
    """Its policy starts it again.

    Attributes:
        delay: Seconds until then.
    """

    delay: float


@dataclass(frozen=True, slots=True)
class ServiceGaveUp(ServiceEvent):
    """It has failed and is not started again: its policy says so, or the limit of restarts was reached.

    Attributes:
        result: Of its last process.
    """

    result: "Result[bytes]"
