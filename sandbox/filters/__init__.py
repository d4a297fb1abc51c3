"""System-call filters: rules in, classic BPF for seccomp(2) out, and all questions about it without a kernel."""

from sandbox.filters.actions import Action, Allow, Errno, Kill, KillThread, Log, Notify, Trace, Trap
from sandbox.filters.conditions import Arg, Condition, arg
from sandbox.filters.difference import Difference
from sandbox.filters.filter import Filter

__all__ = [
    "Action",
    "Allow",
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
    "arg",
]
