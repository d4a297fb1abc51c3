"""Build Linux sandboxes and minimal containers in process.

`sandbox.run(["cmd"])` runs one command, safe by default; `Sandbox` describes a sandbox; `sandbox.primitives` are the
kernel's calls. The names below are the public ones.
"""

from sandbox.builder import Network, Sandbox
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
from sandbox.plan import Plan, Step
from sandbox.process import DEVNULL, PIPE, STDOUT, Enforced, Mount, Process, Reason, Result, Usage
from sandbox.runner import LaunchOptions, PopenOptions, Runner, RunOptions

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "BusyError",
    "CalledProcessError",
    "ClockChanged",
    "Enforced",
    "FilterError",
    "LaunchOptions",
    "Mount",
    "Network",
    "Plan",
    "PolicyError",
    "PopenOptions",
    "Process",
    "Reason",
    "Result",
    "RunOptions",
    "Runner",
    "Sandbox",
    "SandboxError",
    "SetupError",
    "Step",
    "TimeoutExpired",
    "UnsupportedError",
    "Usage",
    "popen",
    "run",
]

_default = Sandbox()
run = _default.run
popen = _default.popen
