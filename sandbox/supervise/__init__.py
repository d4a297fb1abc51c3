"""Run services: start them in order, watch them, start them again, stop them, and keep their sockets meanwhile."""

from sandbox.supervise.model import (
    Ready,
    Restart,
    ServiceEvent,
    ServiceExited,
    ServiceGaveUp,
    ServiceOptions,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    ServiceStatus,
    State,
)
from sandbox.supervise.output import RotatingFile, to_logging
from sandbox.supervise.protocol import listen_fds, notify
from sandbox.supervise.supervisor import Supervisor
from sandbox.supervise.table import table

__all__ = [
    "Ready",
    "Restart",
    "RotatingFile",
    "ServiceEvent",
    "ServiceExited",
    "ServiceGaveUp",
    "ServiceOptions",
    "ServiceReady",
    "ServiceRestarting",
    "ServiceStarted",
    "ServiceStatus",
    "State",
    "Supervisor",
    "listen_fds",
    "notify",
    "table",
    "to_logging",
]
