"""The command `sandbox supervise`: the services of a file, with a live table or with lines."""

import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from sandbox import services
from sandbox.errors import PolicyError
from sandbox.escapes import printable, shown
from sandbox.option_values import OptionError
from sandbox.supervise import (
    RotatingFile,
    ServiceEvent,
    ServiceExited,
    ServiceGaveUp,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    Supervisor,
)
from sandbox.supervise.table import table


def main(words: Sequence[str]) -> int:
    """Run `sandbox supervise`, and return its exit status."""
    plain = check = False
    paths = []
    for word in words:
        if word in {"-h", "--help"}:
            from sandbox import help_text

            sys.stdout.write(help_text.supervise(sys.stdout))
            return 0
        if word == "--plain":
            plain = True
        elif word == "--check":
            check = True
        elif word.startswith("-"):
            raise OptionError(f"there is no option {word}\n  hint: sandbox supervise --help lists them")
        else:
            paths.append(word)
    if len(paths) != 1:
        raise OptionError("which services?\n  usage: sandbox supervise [--plain] FILE.toml")
    found = services.read(paths[0])
    if check:
        sys.stdout.write(shown(f"{paths[0]}: {', '.join(found)}\n", sys.stdout))
        return 0
    live = not plain and sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    with _Services(paths[0], found) as supervisor, closing(_Live(supervisor) if live else _Plain()) as view:
        return supervisor.attend(view)


class _Services(Supervisor):
    """A supervisor of what a file says; SIGHUP reads it again."""

    def __init__(self, path: str, found: dict[str, services.Service]) -> None:
        super().__init__()
        self._path = path
        self._found: dict[str, services.Service] = {}
        self._sockets: dict[tuple[str, services.Address], services.Listener] = {}
        self.say: Callable[[str, str], None] = lambda *_: None
        try:
            self._take_over(found)
        except BaseException:
            self.close()
            raise

    def attend(self, view: Any) -> int:
        """Run until nothing runs any more, and show what happens."""
        self.say = view.say
        self._begin()
        with self._signals():
            while not self.finished:
                self.step(view.every)
                view.refresh()
        return int(self._machine.gave_up)

    def _happened(self, event: ServiceEvent) -> None:
        self.say(event.service, told(event))  # at once, and so in its place among what services write

    def _hangup(self) -> None:
        try:
            found = services.read(self._path)
        except (PolicyError, OSError) as error:
            self.say("", f"nothing is changed: {error}")
            return
        changed = self._take_over(found)
        for name in found:
            if name not in changed:
                self._reload_if_it_says_how(name)

    def _take_over(self, found: dict[str, services.Service]) -> set[str]:
        """Let the file's services be those that run; return the names of those that are new or different."""
        old = self._found
        wanted = {(name, where) for one in found.values() for name, where in one.sockets.items()}
        for key in wanted - self._sockets.keys():
            self._sockets[key] = services.listen(*key)
        changed = {name for name in found if name not in old or old[name].source != found[name].source}
        for name in reversed(old):
            if name not in found:
                self.remove(name)
        for name, service in found.items():
            if name not in changed:
                continue
            options = dict(service.options)
            options["output"] = self._write if service.output is None else RotatingFile(*service.output)
            options["sockets"] = [self._sockets[key] for key in service.sockets.items()]
            (self.replace if name in old else self.add)(name, service.args, **options)
        for key in self._sockets.keys() - wanted:
            self._sockets.pop(key).close()
        self._found = found
        return changed

    def _write(self, name: str, line: bytes) -> None:
        self.say(name, line.decode("utf-8", "backslashreplace").rstrip("\r\n"))

    def close(self) -> None:
        """Close the sockets, too."""
        super().close()
        for one in self._sockets.values():
            one.close()
        self._sockets.clear()


def told(event: ServiceEvent) -> str:
    """Return what happened in words."""
    match event:
        case ServiceStarted():
            return f"started, process {event.pid}" if event.pid else "started"
        case ServiceReady():
            return "ready"
        case ServiceExited():
            return event.result.detail
        case ServiceRestarting():
            return f"again in {event.delay:.1f} seconds"
        case ServiceGaveUp():
            return "given up"
    raise TypeError(f"an unknown event: {event!r}")


class _Plain:
    """Lines with time and name."""

    every: float | None = None

    def __init__(self) -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def say(self, name: str, text: str) -> None:
        sys.stdout.write(shown(f"{time.strftime('%H:%M:%S')} {name or 'sandbox'}: {text}\n", sys.stdout))
        sys.stdout.flush()

    def refresh(self) -> None:
        """Do nothing: lines are written as they come."""

    def close(self) -> None:
        """Do nothing: standard output is not ours."""


class _Live:
    """Lines above, and a table that stays."""

    every: float | None = 1.0  # it shows for how long

    def __init__(self, supervisor: Supervisor) -> None:
        from rich.live import Live

        self._supervisor = supervisor
        # No thread of rich's: the loop says when.
        self._live = Live(table(supervisor.status()), auto_refresh=False)
        self._live.start()

    def say(self, name: str, text: str) -> None:
        from rich.text import Text

        when = f"{time.strftime('%H:%M:%S')} "
        line = Text.assemble((when, "dim"), (printable(name or "sandbox"), "bold"), f": {printable(text)}")
        self._live.console.print(line, soft_wrap=True)

    def refresh(self) -> None:
        self._live.update(table(self._supervisor.status()), refresh=True)

    def close(self) -> None:
        self._live.stop()
