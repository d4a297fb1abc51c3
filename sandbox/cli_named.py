"""The commands about sandboxes that run: `sandbox exec`, `list`, `stop` and `kill`."""

import contextlib
import errno
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sandbox.attendance import FAILED, TIMED_OUT, Signals, wait
from sandbox.complaints import complain, late
from sandbox.escapes import printable
from sandbox.exchange import deadline_of
from sandbox.option_effects import Draft
from sandbox.option_values import OptionError
from sandbox.options import Subcommand
from sandbox.pidfds import readable
from sandbox.registry import Channel, NobodyError, Registry, peer_pid, peer_pidfd

if TYPE_CHECKING:
    from sandbox.denials import Denials
    from sandbox.session import Session

_PATIENCE: Final = 2.0  # seconds that an owner, which has nothing else to do, may take to answer
_REMAINS: Final = 5.0  # seconds that the end of a command may take that was killed
_VERSION: Final = 1  # of the JSON; keys may be added, none changes its meaning


def main(subcommand: Subcommand, draft: Draft) -> int:
    """Run one of the commands, and return its exit status."""
    if subcommand == "exec":
        return _exec(draft)
    if subcommand == "list":
        return _list(draft)
    return _stop(draft) if subcommand == "stop" else _kill(draft)


def _connect(name: str | None) -> Channel:
    assert name is not None
    with Registry() as registry:
        return registry.connect(name)


# ── exec ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Remote:
    """A command that a sandbox's owner has started for us: `attendance.wait` waits for it as for one of ours."""

    denials: "Denials | None" = None

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.terminal = -1

    def start(self, draft: Draft, session: "Session | None") -> int | None:
        """Start it; return an exit status when it could not be."""
        message: dict[str, Any] = {"do": "exec", "command": draft.command, "env": draft.variables}
        if draft.box._spec.cwd is not None:
            message["cwd"] = draft.box._spec.cwd
        streams: tuple[int, ...] = (0, 1, 2)
        if session is not None:
            (rows, columns), attributes = session.like
            term = os.environ.get("TERM") or "dumb"
            message["tty"] = {"rows": rows, "columns": columns, "attributes": attributes.hex(), "term": term}
            streams = ()
        self._channel.send(message, streams)
        try:
            answer, fds = self._channel.receive()
        except EOFError:
            raise _ended(draft.name) from None
        if "error" in answer:
            complain(str(answer["error"]))
            return _status(answer)
        if fds:
            self.terminal = fds[0]
        return None

    def fileno(self) -> int:
        """Return what is readable when it has ended."""
        return self._channel.fileno()

    def _answer(self) -> bool:
        """Refuse nothing: its owner does."""
        return False

    def send_signal(self, signal: int, /) -> None:
        """Pass a signal on."""
        self._channel.send({"signal": signal})

    def kill(self) -> None:
        """Leave, which ends it, and wait for its end."""
        self._channel.finish()
        readable(self._channel.fileno(), deadline_of(_REMAINS))

    def outcome(self, name: str | None) -> int:
        """Say what is to be said at its end, and return its exit status."""
        try:
            answer, _ = self._channel.receive()
        except EOFError:
            raise _ended(name) from None
        for text in answer.get("said") or ():
            complain(str(text))
        return _status(answer)


def _ended(name: str | None) -> OptionError:
    return OptionError(f"the sandbox {name} has ended, and all that ran in it: the command that had it is gone")


def _status(answer: Mapping[str, Any]) -> int:
    status = answer.get("status")
    return status if isinstance(status, int) and 0 <= status < 256 else FAILED


def _exec(draft: Draft) -> int:
    if draft.tty:
        return _exec_on_terminal(draft)
    with Signals() as signals, contextlib.closing(_connect(draft.name)) as channel:
        remote = _Remote(channel)
        failed = remote.start(draft, None)
        if failed is not None:
            return failed
        signals.launching = False
        status = wait(remote, signals, draft.timeout)
        return _told(draft, remote, status)


def _exec_on_terminal(draft: Draft) -> int:
    from sandbox.session import SIGNALS, session_for
    from sandbox.terminal import Terminal

    with (
        Signals(*SIGNALS) as signals,
        contextlib.closing(_connect(draft.name)) as channel,
        contextlib.closing(session_for(filtered=draft.filter_output)) as session,
    ):
        remote = _Remote(channel)
        failed = remote.start(draft, session)
        if failed is not None:
            return failed
        signals.launching = False
        with Terminal(remote.terminal) as terminal:
            try:
                session.begin(terminal)
                status = wait(remote, signals, draft.timeout, session)
            except BrokenPipeError:
                remote.kill()
                return 128 + signal.SIGPIPE
        session.close()
        return _told(draft, remote, status)


def _told(draft: Draft, remote: _Remote, status: int | None) -> int:
    if status is None:
        return remote.outcome(draft.name)
    if status == TIMED_OUT:
        complain(late(draft.timeout))
    return status


# ── list ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(draft: Draft) -> int:
    rows = _ask_all(ask=draft.style != "names")
    if draft.style == "names":
        text = "".join(f"{row['name']}\n" for row in rows)
    elif draft.style == "json":
        import json

        text = json.dumps({"version": _VERSION, "sandboxes": rows}, indent=2) + "\n"
    else:
        text = _table(rows)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


def _ask_all(*, ask: bool) -> list[dict[str, Any]]:
    """Ask all owners at once, and return what each says; without asking, only who is there."""
    asked: dict[str, Channel] = {}
    found = []
    with Registry() as registry, contextlib.ExitStack() as stack:
        for name in registry.names():
            try:
                asked[name] = stack.enter_context(contextlib.closing(registry.connect(name)))
            except NobodyError:
                continue  # ended meanwhile, or killed
            except (OptionError, OSError) as error:
                complain(str(error))
                continue
            if ask:
                asked[name].send({"do": "list"})
        deadline = deadline_of(_PATIENCE)
        for name, channel in asked.items():
            row: dict[str, Any] = {"name": name, "pid": peer_pid(channel.connection), "answers": False}
            if not ask:
                found.append(row)
                continue
            try:
                # What others have said meanwhile is there, however late it is.
                answer, _ = channel.receive(0 if deadline is None else max(0.0, deadline - time.monotonic()))
            except EOFError:
                continue
            except (TimeoutError, ValueError):
                found.append(row)
                continue
            found.append(row | {"answers": True} | _checked(answer))
    return found


def _checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Take over what has the right type."""
    types = {"init_pid": int, "since": float, "command": list, "usage": dict}
    return {name: answer[name] for name, kind in types.items() if isinstance(answer.get(name), kind)}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [("NAME", "PID", "SINCE", "CPU", "MEMORY", "COMMAND"), *map(_line, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "".join("  ".join([*map(str.ljust, line, widths), line[5]]) + "\n" for line in lines)


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    usage = row.get("usage", {})
    cpu, memory = usage.get("cpu_time"), usage.get("memory_peak")
    return (
        row["name"],
        str(row["pid"]),
        _when(row["since"]) if "since" in row else "-",
        f"{cpu:.1f}s" if isinstance(cpu, int | float) else "-",
        f"{memory / (1 << 20):.1f}M" if isinstance(memory, int) else "-",
        _in_one_line(row["command"]) if "command" in row else "(does not answer)",
    )


def _when(since: float) -> str:
    then = time.localtime(since)
    today = time.strftime("%F", then) == time.strftime("%F")
    return time.strftime("%T" if today else "%F %R", then)


def _in_one_line(command: Sequence[object]) -> str:
    import shlex

    return printable(shlex.join(map(str, command)).replace("\n", "\\n"))


# ── stop and kill ────────────────────────────────────────────────────────────────────────────────────────────────────


def _stop(draft: Draft) -> int:
    with Signals() as signals, contextlib.closing(_connect(draft.name)) as channel:
        channel.send({"do": "stop", "grace": draft.grace})
        number = _signal_before(signals, channel, draft.grace + _REMAINS)
        if number:
            return 128 + number
        try:
            answer, _ = channel.receive(0)
        except EOFError:
            return 0  # it had ended
        except TimeoutError:
            raise _mute(draft.name, channel) from None
        return _done(answer)


def _signal_before(signals: Signals, channel: Channel, seconds: float) -> int:
    """Wait for an answer; return the signal that comes before it."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    poller.register(signals.fileno(), select.POLLIN)
    ready = dict(poller.poll(seconds * 1000))
    return signals.take()[0] if signals.fileno() in ready else 0


def _kill(draft: Draft) -> int:
    with contextlib.closing(_connect(draft.name)) as channel:
        channel.send({"do": "kill"})
        try:
            answer, _ = channel.receive(_PATIENCE)
        except EOFError:
            return 0
        except TimeoutError:
            # With its owner everything inside ends.
            complain(f"process {peer_pid(channel.connection)} does not answer: it is killed, and the sandbox with it")
            with contextlib.suppress(ProcessLookupError):
                pidfd = peer_pidfd(channel.connection)
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    readable(pidfd, None)
                finally:
                    os.close(pidfd)
            return 0
        return _done(answer)


def _done(answer: Mapping[str, Any]) -> int:
    if "error" in answer:
        complain(str(answer["error"]))
        return FAILED
    return 0


def _mute(name: str | None, channel: Channel) -> OSError:
    pid = peer_pid(channel.connection)
    return TimeoutError(
        errno.ETIMEDOUT, f"the sandbox {name} does not answer: is process {pid} stopped? sandbox kill {name} ends it"
    )
