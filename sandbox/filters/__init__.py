"""System-call filters: rules in, classic BPF for seccomp(2) out, and all questions about it without a kernel."""

from sandbox.filters.actions import Action, Allow, Errno, Kill, KillThread, Log, Notify, Trace, Trap
from sandbox.filters.conditions import Arg, Condition, Value, arg
from sandbox.filters.difference import Difference
from sandbox.filters.filter import Filter
from sandbox.filters.table import Arch

__all__ = [
    "Action",
    "Allow",
    "Arch",
    "Arg",
    "Condition",
    "Difference",
    "Errno",
    "Filter",
    "Kill",
    "KillThread",
    "Log",
    "Notify",
    "Trace",
    "Trap",
    "Value",
    "arg",
]
