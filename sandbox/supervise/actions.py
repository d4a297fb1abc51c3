"""What the state machine asks whoever drives it to do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do for a service."""

    service: str


class Launch(Action):
    """Start its command; answer with `started` or `exited`."""

    __slots__ = ()


class Swap(Action):
    """What `replace` gave counts from here on."""

    __slots__ = ()


class Forget(Action):
    """It is gone: let go of all that belonged to it."""

    __slots__ = ()


class Probe(Action):
    """Ask whether it is well; answer with `probed`."""

    __slots__ = ()


class Kill(Action):
    """End its tree."""

    __slots__ = ()


class Force(Action):
    """It does not end: kill what was to kill it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Signal(Action):
    """Send a signal to its main process."""

    number: int
