"""The kernel's calls, thin and exact: names and argument order of the man pages, no policy.

Everything is importable from here; the families load when the first name is asked for, so that a module of
the library that needs one family (`from sandbox.primitives.mounts import mount`) does not pay for all of
them.
"""

# ruff: noqa: F403  # a checker is shown what _load() does
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.primitives._call import Fd as Fd, HasFileno as HasFileno
    from sandbox.primitives.aio import *
    from sandbox.primitives.capabilities import *
    from sandbox.primitives.credentials import *
    from sandbox.primitives.eventfds import *
    from sandbox.primitives.fanotify import *
    from sandbox.primitives.fanotify_numbers import *
    from sandbox.primitives.file_handles import *
    from sandbox.primitives.files import *
    from sandbox.primitives.fscontext import *
    from sandbox.primitives.inotify import *
    from sandbox.primitives.io_uring import *
    from sandbox.primitives.io_uring_numbers import *
    from sandbox.primitives.landlock import *
    from sandbox.primitives.memfd import *
    from sandbox.primitives.memory import *
    from sandbox.primitives.mountinfo import *
    from sandbox.primitives.mounts import *
    from sandbox.primitives.namespaces import *
    from sandbox.primitives.pidfd import *
    from sandbox.primitives.pipes import *
    from sandbox.primitives.process import *
    from sandbox.primitives.secure_computing import *
    from sandbox.primitives.signals import *
    from sandbox.primitives.system import *
    from sandbox.primitives.timerfd import *

# One man-page family each. None is named like a function that it holds: the package could offer only one of
# them.
_FAMILIES = (
    "aio",
    "capabilities",
    "credentials",
    "eventfds",
    "fanotify",
    "fanotify_numbers",
    "file_handles",
    "files",
    "fscontext",
    "inotify",
    "io_uring",
    "io_uring_numbers",
    "landlock",
    "memfd",
    "memory",
    "mountinfo",
    "mounts",
    "namespaces",
    "pidfd",
    "pipes",
    "process",
    "secure_computing",
    "signals",
    "system",
    "timerfd",
)


def _load() -> list[str]:
    names: list[str] = []
    for family in _FAMILIES:
        module = import_module(f"{__name__}.{family}")
        for name in module.__all__:
            globals()[name] = getattr(module, name)
            names.append(name)
    return names


def __getattr__(name: str) -> object:
    # "__path__" and its like are asked for by the import system itself, and "__all__" by a star import.
    if name == "__all__" or not name.startswith("_"):
        globals().setdefault("__all__", _load())
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what `from sandbox.primitives import ...` can take."""
    return sorted(globals().get("__all__") or _load())
