"""What `Supervisor.add` was given: checked, and made ready for one launch after the other."""

import os
import secrets
import signal
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from sandbox import Sandbox
from sandbox.arguments import path_text
from sandbox.compiler.filters import notifies
from sandbox.order import words_of
from sandbox.supervise.model import Ready, Restart, ServiceOptions, Settings, seconds
from sandbox.supervise.output import RotatingFile, Sink
from sandbox.supervise.plain import Plain
from sandbox.supervise.protocol import fd_name
from sandbox.template import environment

OPTIONS: Final = frozenset(ServiceOptions.__annotations__)
NOTIFY_INSIDE: Final = "/run/notify"
_UNIX_PATH: Final = 107


def _number(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be the number of a signal, not {type(value).__name__}")
    if not 1 <= value <= 64:
        raise ValueError(f"{name} must be between 1 and 64, got {value}")
    return int(value)


def _several(value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be an iterable, not one {type(value).__name__}")
    return tuple(value)


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def check_name(name: Any) -> str:
    """Return a service's name: 1 to 64 printable characters without a slash or a space.

    Raises:
        TypeError: Not a str.
        ValueError: Something else in it.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if not 1 <= len(name) <= 64 or not name.isprintable() or "/" in name or " " in name:
        raise ValueError(f"name must be 1 to 64 printable characters without / or space, got {name!r}")
    return name


class Definition:
    """A service as it was given. It owns copies of the sockets; `close` gives them up.

    Raises:
        TypeError: An argument of the wrong type, or an unknown one.
        ValueError: One out of its range, or two that contradict each other.
    """

    def __init__(self, args: Any, options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"unexpected keyword argument {name!r}; there are {', '.join(sorted(OPTIONS))}")
        self.args = args
        words, _ = words_of(args)
        get = options.get
        ready: Ready | None = get("ready")
        if ready is not None:
            _checked(ready, Ready, "ready")
        self.ready = ready
        after = _several(get("after", ()), "after")
        for other in after:
            _checked(other, str, "each of after")
        watchdog = get("watchdog")
        self.settings = Settings(
            after=tuple(dict.fromkeys(after)),
            restart=_checked(get("restart", Restart()), Restart, "restart"),
            waits=ready is not None,
            every=ready.every if ready is not None and ready.asks else None,
            ready_timeout=seconds(get("ready_timeout", 30.0), "ready_timeout"),
            stop_signal=_number(get("stop_signal", signal.SIGTERM), "stop_signal"),
            stop_timeout=seconds(get("stop_timeout", 10.0), "stop_timeout"),
            watchdog=None if watchdog is None else seconds(watchdog, "watchdog", least=0.01),
            reload=None if get("reload") is None else _number(get("reload"), "reload"),
        )
        if ready is not None and ready.kind == "ended" and self.settings.restart.when == "always":
            raise ValueError("Ready.ended() is for what ends, and Restart.always() starts it again: use on_failure()")
        # Who is asked sends no signs of life: the answers are.
        asks = ready is not None and ready.asks
        self.watchdog = None if asks else self.settings.watchdog
        self.notifies = self.watchdog is not None or (ready is not None and ready.kind == "notify")
        env = get("env")
        if env is not None:
            environment(_checked(env, Mapping, "env"))
            env = dict(env)
        elif get("sandbox") is None:
            env = dict(os.environ)  # now: to decode it takes a twentieth of a launch
        self.env: Mapping[str, str] | None = env
        where: Any = get("cwd")
        cwd = None if where is None else path_text(where, "cwd")
        if cwd is not None and not cwd.startswith("/"):
            cwd = os.path.abspath(cwd) if get("sandbox") is None else cwd
        self.cwd = cwd
        self.watch = tuple(os.path.abspath(os.fsdecode(path)) for path in _several(get("watch", ()), "watch"))
        self._place(words, get("sandbox"))
        self._output(get("output"))
        self.sockets: list[tuple[str, int]] = []
        sockets = _several(get("sockets", ()), "sockets")
        if ready is not None and ready.number is not None and 3 <= ready.number < 3 + len(sockets):
            raise ValueError(f"Ready.fd({ready.number}) is the number of a socket: they have 3 to {2 + len(sockets)}")
        try:
            for i, one in enumerate(sockets):
                # Copies: a restart long after does not hang on what the caller has done with them.
                label = fd_name(getattr(one, "name", None), f"socket-{i}")
                self.sockets.append((label, os.dup(one if isinstance(one, int) else one.fileno())))
        except BaseException:
            self.close()
            raise

    def _place(self, words: tuple[bytes, ...], box: Any) -> None:
        """Note where it runs: in a sandbox, or as a plain child."""
        self.sandbox: Sandbox | None = None
        self.plain: Plain | None = None
        self.own_pids = False
        self.pid_inside = ""  # where it is known before: init writes it into the environment otherwise
        self.notify_folder: str | None = None
        if box is None:
            self.plain = Plain(words, None if self.cwd is None else os.fsencode(self.cwd))
            return
        _checked(box, Sandbox, "sandbox")
        spec = box._spec
        if self.cwd is not None and not self.cwd.startswith("/"):
            raise ValueError(f"cwd must be an absolute path inside of the sandbox, got {self.cwd!r}")
        if not spec.observe and not isinstance(spec.filter, str | None) and notifies(spec.filter.to_bytes()):
            raise ValueError("the sandbox's filter says Notify, and nobody here would answer: use deny or allow")
        if self.ready is not None and self.ready.kind == "tcp" and "net" in spec.new_namespaces:
            raise ValueError(
                "Ready.tcp() cannot reach a sandbox with a network of its own: use Ready.fd() or Ready.notify(), or "
                'give it the caller\'s with share("net")'
            )
        self.own_pids = "pid" in spec.new_namespaces
        if self.own_pids:
            self.pid_inside = "2" if spec.init else "1"
        self.inside_env = dict(spec.env)
        if self.notifies:
            self.notify_folder = _notify_folder()
            box = box.bind_readonly(f"{self.notify_folder}/socket", NOTIFY_INSIDE)
        self.sandbox = box

    def _output(self, output: Any) -> None:
        self._file: RotatingFile | None = None
        self.sink: Sink | None
        if output is None or callable(output):
            self.sink = output
            # Closed, it opens again when somebody else that it belongs to writes to it.
            self._file = output if isinstance(output, RotatingFile) else None
        elif isinstance(output, str | bytes | os.PathLike):
            self.sink = self._file = RotatingFile(cast("Any", output))
        else:
            raise TypeError(f"output must be a callable, a path or None, not {type(output).__name__}")

    def close(self) -> None:
        """Give up the sockets and the file."""
        for _, fd in self.sockets:
            os.close(fd)
        self.sockets = []
        if self._file is not None:
            self._file.close()


def _notify_folder() -> str:
    """Name the directory that a notification socket is in while a sandbox is launched, and no longer."""
    base = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    folder = f"sandbox-notify-{secrets.token_hex(8)}"
    for candidate in (base, tempfile.gettempdir()):
        path = f"{candidate}/{folder}"
        if candidate and len(f"{path}/socket") <= _UNIX_PATH and os.access(candidate, os.W_OK | os.X_OK):
            return path
    return f"/tmp/{folder}"


def watched(paths: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    """Return what to watch for paths: a directory, and the name in it that counts, None for any.

    A file is watched by its directory: editors and packages put a new one in its place.
    """
    for path in paths:
        if os.path.isdir(path):
            yield path, None
        else:
            yield os.path.dirname(path), os.path.basename(path)
