"""A file of services for `sandbox supervise`: TOML, one table a service, with the names of `Supervisor.add`."""

import os
import re
import signal
import socket
import stat
import tomllib
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, NamedTuple, cast

from sandbox.arguments import integer, parse_size
from sandbox.builder import Sandbox
from sandbox.errors import PolicyError
from sandbox.option_values import OptionError
from sandbox.options import parse
from sandbox.supervise import Ready, Restart
from sandbox.supervise.definition import Definition
from sandbox.supervise.model import seconds

_WHEN: Final = {"never": Restart.never, "always": Restart.always, "on-failure": Restart.on_failure}


class Address(NamedTuple):
    """Where a socket listens: what `socket.bind` takes, and of which family."""

    family: int
    where: Any


class Listener(socket.socket):
    """A listening socket with the name that its service finds it by."""

    name = ""


class Output(NamedTuple):
    """A file for the output: the arguments of `RotatingFile`."""

    path: str
    size: int
    keep: int


class Service(NamedTuple):
    """One service of the file.

    Attributes:
        args: The command.
        options: For `Supervisor.add`, all but `sockets` and `output`.
        output: Its file, or None.
        sockets: What to listen at, by name.
        source: The table that said so, to see whether it has changed.
    """

    args: list[str]
    options: dict[str, Any]
    output: Output | None
    sockets: dict[str, Address]
    source: Mapping[str, Any]


def read(path: str) -> dict[str, Service]:
    """Read a file of services; who comes `after` others follows them.

    Raises:
        PolicyError: It says something wrong; with the place.
        OSError: It cannot be read.
    """
    with open(path, "rb") as stream:
        raw = stream.read()
    return parse_text(raw, path)


def parse_text(raw: bytes, path: str) -> dict[str, Service]:
    """Read what a file of services holds.

    Raises:
        PolicyError: It says something wrong; with the place.
    """
    try:
        text = raw.decode()
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError(f"{path}:{line}: not UTF-8", path=path, line=line) from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        last = text.count("\n") + 1
        raise PolicyError(f"{path}: {error}", path=path, line=int(found[1]) if found else last) from None
    return _Reader(path, text).services(data)


class _Reader:
    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.split("\n")

    def _wrong(self, keys: tuple[str, ...], message: str) -> PolicyError:
        key = ".".join(keys)
        line = self._line(keys)
        where = f"{self._path}:{line}" if line else self._path
        return PolicyError(f"{where}: {key}: {message}", path=self._path, line=line, key=key)

    def _line(self, keys: tuple[str, ...]) -> int | None:
        """Look for the line of a key: tomllib does not tell. That of its table is the next best."""
        table: tuple[str, ...] = ()
        best, depth = None, 0
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
            name = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
            if header:
                table = full = _split(header[1])
            elif name:
                full = (*table, *_split(name[1]))
            else:
                continue
            common = min(len(full), len(keys))
            if full[:common] == keys[:common] and common > depth:
                best, depth = number, common
        return best

    def services(self, data: dict[str, Any]) -> dict[str, Service]:
        for key in data:
            if key != "services":
                raise self._wrong((key,), "a file of services has tables [services.NAME], and nothing else")
        tables = data.get("services", {})
        if not isinstance(tables, dict) or not tables:
            raise self._wrong(("services",), "there is no service: add a table [services.NAME] with a command")
        found = {name: self._service(name, table) for name, table in tables.items()}
        for name, service in found.items():
            for other in service.options.get("after", ()):
                if other not in found:
                    raise self._wrong(("services", name, "after"), f"there is no service {other!r}")
        try:
            order = list(TopologicalSorter({n: s.options.get("after", ()) for n, s in found.items()}).static_order())
        except CycleError as error:
            circle = " after ".join(error.args[1])
            raise self._wrong(("services", error.args[1][0], "after"), f"a circle: {circle}") from None
        return {name: found[name] for name in order}

    def _service(self, name: str, table: Any) -> Service:
        at = ("services", name)
        if not isinstance(table, dict):
            raise self._wrong(at, "a service is a table")
        if "command" not in table:
            raise self._wrong(at, 'the command is missing: command = ["PROGRAM", "ARGUMENT"]')
        options: dict[str, Any] = {}
        for key, value in table.items():
            read = _KEYS.get(key)
            if read is None:
                import difflib

                near = difflib.get_close_matches(key, _KEYS, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
                raise self._wrong((*at, key), f"there is no such key; {hint}")
            try:
                options[key] = read(value)
            except (ValueError, TypeError, OptionError, OSError) as error:
                raise self._wrong((*at, key), str(error)) from None
        args, output, sockets = options.pop("command"), options.pop("output", None), options.pop("sockets", {})
        try:
            Definition(args, options).close()
        except (ValueError, TypeError) as error:
            raise self._wrong(at, str(error)) from None
        return Service(args, options, output, sockets, table)


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r'"[^"]*"|\'[^\']*\'|[^.]+', dotted))


# ── one key each ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"must be a list of strings, got {value!r}")
    return value


def _command(value: Any) -> list[str]:
    if not _strings(value):
        raise ValueError("must hold at least the program")
    return list(value)


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise TypeError(f"must be a table of strings, got {value!r}")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, got {value!r}")
    return value


def _number(value: Any) -> float:
    return seconds(value, "it")


def _signal(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    name = _string(value).upper()
    number = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    if number not in signal.Signals.__members__.values():
        raise ValueError(f'must be a signal as "SIGTERM" or 15, got {value!r}')
    return int(cast("signal.Signals", number))


def _restart(value: Any) -> Restart:
    table = {"when": value} if not isinstance(value, dict) else dict(value)
    when = table.pop("when", "on-failure")
    if not isinstance(when, str) or when not in _WHEN or (when == "never" and table):
        raise ValueError(f'must be "never", "always", "on-failure" or a table with when, backoff, limit, got {value!r}')
    return _WHEN[when](**table)


def _ready(value: Any) -> Ready:
    match value:
        case "notify":
            return Ready.notify()
        case "ended":
            return Ready.ended()
        case "fd":
            return Ready.fd()
        case {"fd": number, **rest} if not rest:
            return Ready.fd(number)
        case {"tcp": port, "host": host, **rest} if not rest:
            return Ready.tcp(port, host)
        case {"tcp": port, **rest} if not rest:
            return Ready.tcp(port)
    words = 'must be "notify", "fd", "ended", { fd = 3 } or { tcp = 8080, host = "127.0.0.1" }'
    raise ValueError(f"{words}, got {value!r}")


def _sandbox(value: Any) -> Sandbox | None:
    if isinstance(value, bool):
        return Sandbox() if value else None
    draft = parse("run", [*_strings(value), "--", "true"])
    if draft is None or draft.timeout is not None:
        raise ValueError("--help and --timeout are for sandbox run")
    return draft.box


def _output(value: Any) -> Output:
    table = {"path": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or "path" not in table or table.keys() - {"path", "size", "keep"}:
        raise ValueError(f'must be a path or {{ path = "...", size = "10M", keep = 5 }}, got {value!r}')
    keep = integer(table.get("keep", 5), "keep", 0, 1000)
    return Output(_string(table["path"]), parse_size(table.get("size", "10M"), "size"), keep)


def address(text: str) -> Address:
    """Read an address to listen at: "127.0.0.1:80", "[::1]:80", or a path.

    Raises:
        ValueError: It is none of these.
    """
    if text.startswith("/"):
        return Address(socket.AF_UNIX, text)
    found = re.fullmatch(r"\[(.+)\]:(\d+)|([^:]+):(\d+)", text)
    if not found:
        raise ValueError(f'must be "127.0.0.1:80", "[::1]:80" or a path, got {text!r}')
    family = socket.AF_INET6 if found[1] else socket.AF_INET
    host, port = found[1] or found[3], int(found[2] or found[4])
    try:
        socket.inet_pton(family, host)
    except OSError:
        raise ValueError(f"must have the number of an address, got {text!r}") from None
    if port > 65535:
        raise ValueError(f"port must be at most 65535, got {port}")
    return Address(family, (host, port))


def _sockets(value: Any) -> dict[str, Address]:
    if not isinstance(value, dict):
        raise TypeError(f'must be a table, as {{ http = "127.0.0.1:80" }}, got {value!r}')
    return {name: address(_string(text)) for name, text in value.items()}


_KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "command": _command,
    "sandbox": _sandbox,
    "env": _env,
    "cwd": _string,
    "restart": _restart,
    "ready": _ready,
    "ready_timeout": _number,
    "after": _strings,
    "stop_signal": _signal,
    "stop_timeout": _number,
    "watchdog": _number,
    "reload": _signal,
    "sockets": _sockets,
    "watch": _strings,
    "output": _output,
}


def listen(name: str, where: Address) -> Listener:
    """Listen at an address.

    Raises:
        OSError: It is taken, or not ours; with the address.
    """
    made = Listener(where.family, socket.SOCK_STREAM)
    made.name = name
    try:
        if where.family == socket.AF_UNIX:
            _unlink_stale(where.where)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where.where)
        made.listen(128)
    except OSError as error:
        made.close()
        shown = where.where if isinstance(where.where, str) else f"{where.where[0]} port {where.where[1]}"
        raise OSError(error.errno, os.strerror(error.errno or 0), shown) from None
    return made


def _unlink_stale(path: str) -> None:
    """Remove the socket file of a process that has ended without it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) != 0:
            os.unlink(path)
