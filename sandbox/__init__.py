"""Build Linux sandboxes and minimal containers in process.

`sandbox.run(["cmd"])` runs one command, safe by default; `Sandbox` describes a sandbox; `sandbox.events` are event-like
objects over descriptors; `sandbox.primitives` are the kernel's calls. The names below are the public ones.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sandbox.arguments import Fd, HasFileno, Size, StrOrBytesPath
from sandbox.builder import Sandbox
from sandbox.control import ProcessControl
from sandbox.errors import (
    BusyError,
    CalledProcessError,
    ClockChanged,
    FilterError,
    PolicyError,
    SandboxError,
    SetupError,
    TimeoutExpired,
    UnsupportedError,
)
from sandbox.order import Args, LaunchOptions, PopenOptions, RunOptions
from sandbox.plan import Plan
from sandbox.process import Process
from sandbox.result import Enforced, Reason, Result, Usage
from sandbox.runner import Runner
from sandbox.spec import Namespace, Network
from sandbox.streams import DEVNULL, PIPE, STDOUT, Stream

if TYPE_CHECKING:
    from sandbox.confinement import confine as confine
    from sandbox.denials import Denials as Denials, Denials_async as Denials_async, Denied as Denied
    from sandbox.filters import (
        Action as Action,
        Allow as Allow,
        Arch as Arch,
        Arg as Arg,
        Condition as Condition,
        Difference as Difference,
        Errno as Errno,
        Filter as Filter,
        Kill as Kill,
        KillThread as KillThread,
        Log as Log,
        Notify as Notify,
        Trace as Trace,
        Trap as Trap,
        Value as Value,
        arg as arg,
    )
    from sandbox.landlock import Landlock as Landlock, LandlockOptions as LandlockOptions
    from sandbox.listing import Step as Step
    from sandbox.notification import Emulation as Emulation, Notification as Notification
    from sandbox.notify import Notifier as Notifier, Notifier_async as Notifier_async
    from sandbox.process_async import Process_async as Process_async
    from sandbox.readback import Mount as Mount
    from sandbox.waiting import (
        as_completed as as_completed,
        as_completed_async as as_completed_async,
        wait_any as wait_any,
        wait_any_async as wait_any_async,
    )

# What most programs do not need is imported when it is first asked for.
_LATER = {
    "confine": "confinement",
    "Denials": "denials",
    "Denials_async": "denials",
    "Denied": "denials",
    "Emulation": "notification",
    "Landlock": "landlock",
    "LandlockOptions": "landlock",
    "Mount": "readback",
    "Notification": "notification",
    "Notifier": "notify",
    "Notifier_async": "notify",
    "Process_async": "process_async",
    "Step": "listing",
    "as_completed": "waiting",
    "as_completed_async": "waiting",
    "wait_any": "waiting",
    "wait_any_async": "waiting",
} | dict.fromkeys(
    ("Action", "Allow", "Arch", "Arg", "Condition", "Difference", "Errno", "Filter", "Kill", "KillThread", "Log",
     "Notify", "Trace", "Trap", "Value", "arg"),
    "filters",
)  # fmt: skip


def __getattr__(name: str) -> object:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


__all__ = [
    "Action",
    "Allow",
    "Arch",
    "Arg",
    "Args",
    "BusyError",
    "CalledProcessError",
    "ClockChanged",
    "Condition",
    "DEVNULL",
    "Denials",
    "Denials_async",
    "Denied",
    "Difference",
    "Emulation",
    "Enforced",
    "Errno",
    "Fd",
    "Filter",
    "FilterError",
    "HasFileno",
    "Kill",
    "KillThread",
    "Landlock",
    "LandlockOptions",
    "LaunchOptions",
    "Log",
    "Mount",
    "Namespace",
    "Network",
    "Notification",
    "Notifier",
    "Notifier_async",
    "Notify",
    "PIPE",
    "Plan",
    "PolicyError",
    "PopenOptions",
    "Process",
    "ProcessControl",
    "Process_async",
    "Reason",
    "Result",
    "RunOptions",
    "Runner",
    "STDOUT",
    "Sandbox",
    "SandboxError",
    "SetupError",
    "Size",
    "Step",
    "StrOrBytesPath",
    "Stream",
    "TimeoutExpired",
    "Trace",
    "Trap",
    "UnsupportedError",
    "Usage",
    "Value",
    "arg",
    "as_completed",
    "as_completed_async",
    "confine",
    "popen",
    "popen_async",
    "run",
    "run_async",
    "wait_any",
    "wait_any_async",
]

_default = Sandbox()
run = _default.run
popen = _default.popen
run_async = _default.run_async
popen_async = _default.popen_async
