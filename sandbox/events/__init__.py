"""The kernel's event descriptors as files for select, poll and epoll, and as asyncio queues.

Each kind is a module with Butter's names: the object, its `_async` twin, `str_to_events`, the thin
functions and the constants (`from sandbox.events.inotify import Inotify, IN_CREATE`). The objects and
constants are importable from here too; a module is loaded when the first of its names is asked for.
"""

# ruff: noqa: F403  # a checker is shown what __getattr__ does
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.events.aio import *
    from sandbox.events.base import EventLike as EventLike
    from sandbox.events.base_async import EventLike_async as EventLike_async
    from sandbox.events.cgroup import *
    from sandbox.events.eventfd import *
    from sandbox.events.fanotify import *  # type: ignore[assignment]  # each has a str_to_events
    from sandbox.events.inotify import *  # type: ignore[assignment]  # each has a str_to_events
    from sandbox.events.pidfd import *
    from sandbox.events.pressure import *
    from sandbox.events.recursive_inotify import *
    from sandbox.events.signalfd import *  # type: ignore[assignment]  # each has a str_to_events
    from sandbox.events.timerfd import *
    from sandbox.notify import Notifier as Notifier, Notifier_async as Notifier_async
    from sandbox.primitives.fanotify_numbers import *  # mypy loses those that come through two of these
    from sandbox.primitives.inotify import *

_NAMES: dict[str, tuple[str, ...]] = {
    "aio": ("Aio", "Aio_async", "Completion", "aligned_buffer"),
    "base": ("EventLike",),
    "cgroup": ("CgroupEvent", "CgroupEvents", "CgroupEvents_async"),
    "base_async": ("EventLike_async",),
    "eventfd": ("Eventfd", "Eventfd_async", "EventfdFlags"),
    "fanotify": ("Fanotify", "FanotifyEvent", "FanotifyMask", "Fanotify_async"),
    "inotify": ("Inotify", "InotifyEvent", "InotifyMask", "Inotify_async"),
    "recursive_inotify": ("RecursiveEvent", "RecursiveInotify", "RecursiveInotify_async"),
    "pidfd": ("Pidfd", "PidfdEvent", "PidfdFlags", "Pidfd_async"),
    "signalfd": ("Signalfd", "SignalfdEvent", "SignalfdFlags", "Signalfd_async", "signum_to_signame"),
    "pressure": ("Pressure", "PressureEvent", "Pressure_async"),
    "timerfd": ("TimerVal", "Timerfd", "TimerfdFlags", "TimerfdSettimeFlags", "Timerfd_async"),
    ".notify": ("Notifier", "Notifier_async"),  # it needs filters, too, and is above this package
}
# Constants are looked up in the module of their kind.
_PREFIXES = {
    "EFD": "eventfd",
    "FAN": "fanotify",
    "IN": "inotify",
    "SFD": "signalfd",
    "TFD": "timerfd",
    "CLOCK": "timerfd",
    "PIDFD": "pidfd",
}

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name) or _PREFIXES.get(name.partition("_")[0])
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what `from sandbox.events import ...` can take, but for the constants."""
    return __all__
