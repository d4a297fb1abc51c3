"""The kernel's event descriptors as files for select, poll and epoll, and as asyncio queues.

Each kind is a module with Butter's names: the object, its `_async` twin, `str_to_events`, the thin
functions and the constants (`from sandbox.events.inotify import Inotify, IN_CREATE`). The objects and
constants are importable from here too; a module is loaded when the first of its names is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.events.base import EventLike as EventLike
    from sandbox.events.base_async import EventLike_async as EventLike_async

_NAMES: dict[str, tuple[str, ...]] = {
    "base": ("EventLike",),
    "base_async": ("EventLike_async",),
}
# Constants are looked up in the module of their kind.
_PREFIXES: dict[str, str] = {}

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name) or _PREFIXES.get(name.partition("_")[0])
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what `from sandbox.events import ...` can take, but for the constants."""
    return __all__
