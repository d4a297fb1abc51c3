"""What the state machine knows of one service, and how long that waits before it is started again."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from sandbox.supervise.model import RUNNING, Settings, State

if TYPE_CHECKING:
    from sandbox import Result

Timer: TypeAlias = Literal["ready", "backoff", "kill", "force", "watchdog", "probe", "reload"]


class Record:
    """A service, as the machine knows it."""

    __slots__ = (
        "after_exit", "attempts", "done", "failing", "name", "pending", "pid", "recent", "restarts", "result",
        "settings", "since", "started", "state", "text", "timers", "wanted", "watchdog",
    )  # fmt: skip

    def __init__(self, name: str, settings: Settings, since: float) -> None:
        self.name = name
        self.settings = settings
        self.pending: Settings | None = None  # by replace, once the old process has ended
        self.state = State.STOPPED
        self.since = since
        self.wanted = True
        self.done = False  # ended well, and not to be started again
        self.after_exit: Literal["", "start", "forget"] = ""
        self.failing = ""  # why it is being stopped, when that is a failure
        self.pid: int | None = None
        self.text = ""
        self.result: Result[bytes] | None = None
        self.restarts = 0
        self.attempts = 0  # in a row
        self.recent: deque[float] = deque()
        self.started = 0.0
        self.watchdog: float | None = None
        self.timers: dict[Timer, float] = {}

    @property
    def up(self) -> bool:
        """Whether it has a process."""
        return self.state in RUNNING

    def delay(self, random: Callable[[], float], now: float) -> float | None:
        """Return the seconds until its policy starts it again after a failure, and count that; None: it does not.

        Args:
            random: Between 0 and 1, for the jitter.
            now: The time.
        """
        policy, recent = self.settings.restart, self.recent
        if policy.when == "never":
            return None
        if now - self.started >= policy.reset_after:
            self.attempts = 0
        while recent and recent[0] <= now - policy.interval:
            recent.popleft()
        if policy.limit is not None and len(recent) >= policy.limit:
            self.text = f"{len(recent)} restarts within {policy.interval:g} seconds"
            return None
        # Beyond this many doublings any delay is longer than a float of seconds can mean.
        delay = min(policy.backoff * 2.0 ** min(self.attempts, 500), policy.backoff_max)
        self.attempts += 1
        self.restarts += 1
        if policy.limit is not None:
            recent.append(now)
        return delay * (1 - random() / 2)
