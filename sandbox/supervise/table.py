"""The state of services as a table of rich, which is imported when one is made."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sandbox.escapes import printable
from sandbox.supervise.model import ServiceStatus, State

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS: Final = {
    State.STARTING: "yellow",
    State.READY: "green",
    State.STOPPING: "yellow",
    State.BACKOFF: "magenta",
    State.STOPPED: "dim",
    State.FAILED: "bold red",
}


def table(status: Mapping[str, ServiceStatus]) -> "Table":
    """Return what `Supervisor.status` returns as a table of rich.

    Raises:
        ImportError: rich is not installed: it comes with the extra `cli`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("service", "state", "pid", "for", "restarts"):
        made.add_column(title, justify="right" if title in {"pid", "for", "restarts"} else "left", no_wrap=True)
    # The only one that gives way, and so a column that wraps; but no text in it does.
    made.add_column("says")
    now = time.time()
    for one in status.values():
        # What a service says is no markup, and moves no cursor.
        made.add_row(
            Text(printable(one.name)),
            Text(one.state, style=_COLOURS[one.state]),
            str(one.pid or ""),
            _span(now - one.since),
            str(one.restarts or ""),
            Text(printable(says(one)), no_wrap=True, overflow="ellipsis"),
        )
    return made


def says(status: ServiceStatus) -> str:
    """Return what there is to say about a service, in one line."""
    if status.text or status.result is None or status.state is State.READY:
        return status.text
    return status.result.detail.split("\n", 1)[0]


def _span(seconds: float) -> str:
    """Return a time in two units, the larger first."""
    rest = max(0, int(seconds))
    units: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or units or name == "s":
            units.append(f"{count}{name}")
    return " ".join(units[:2])
