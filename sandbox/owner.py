"""The side of `sandbox run --name`: it has the sandbox, and does what other commands ask it to do with that.

One thread takes connections until the sandbox has ended, and each connection has a thread of its own: a launch that
takes long, or a client that says nothing, keeps nobody else waiting, least of all the command itself.
"""

import os
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, Final, Self

from sandbox.attendance import SIGNALS, wait
from sandbox.complaints import failure, outcome
from sandbox.errors import SandboxError
from sandbox.pidfds import readable
from sandbox.process import Process
from sandbox.registry import Channel, Registry, StrangerError, check_peer
from sandbox.streams import close_all
from sandbox.terminal import Like

# At a time; init runs at most 32 commands, the others ask short questions.
_MOST: Final = 64
_PATIENCE: Final = 5.0  # seconds that a client may take to say what it wants
_LINGER: Final = 1.0  # and to take the answer
_AGAIN: Final = 100  # milliseconds, when no descriptor was left for a connection
_ATTRIBUTES: Final = 36  # bytes of struct termios
_MOST_GRACE: Final = 1e6
_MOST_WORDS, _MOST_LETTERS = 64, 256  # of a command that is listed


class Owner:
    """A name, from before the launch until after the end.

    Args:
        name: Checked by `process_name`.
        variables: The sandbox's environment, which commands start with.
    """

    def __init__(self, name: str, variables: Mapping[str, str]) -> None:
        self._name = name
        self._variables = variables
        self._threads: set[threading.Thread] = set()
        self._room = threading.Semaphore(_MOST)
        self._lock = threading.Lock()
        self._named = False

    def __enter__(self) -> Self:
        """Take the name.

        Raises:
            OptionError: It is taken.
        """
        self._registry = Registry()
        try:
            self._listener = self._registry.claim(self._name)
        except BaseException:
            self._registry.close()
            raise
        self._listener.setblocking(False)
        self._named = True
        return self

    def __exit__(self, *_: object) -> None:
        """Give it up."""
        self._withdraw()
        self._listener.close()
        self._registry.close()

    def _withdraw(self) -> None:
        with self._lock:
            if self._named:
                self._registry.release(self._name)
                self._named = False

    @contextmanager
    def __call__(self, process: Process[Any]) -> Iterator[None]:
        """Serve while the block runs; after it the sandbox has ended, and everybody knows."""
        self._process = process
        self._since = time.time()
        # Its own: it is readable for whoever looks, also when the process is closed.
        self._ended = os.dup(process.fileno())
        accepting = threading.Thread(target=self._accept, name="sandbox-accept", daemon=True)
        accepting.start()
        try:
            yield
        finally:
            process.kill()
            accepting.join()
            for thread in tuple(self._threads):
                thread.join(_PATIENCE)
            os.close(self._ended)

    def _has_ended(self) -> bool:
        return readable(self._ended, 0)

    def _accept(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._ended, select.POLLIN)
        waiting = select.poll()
        waiting.register(self._ended, select.POLLIN)
        while not self._has_ended():
            poller.poll()
            # With as many as there may be, the next ones wait until one goes, or the sandbox ends.
            while not self._room.acquire(timeout=_AGAIN / 1000):
                if self._has_ended():
                    break
            else:
                if not self._serve_next():
                    self._room.release()
                    waiting.poll(_AGAIN)
        self._withdraw()

    def _serve_next(self) -> bool:
        """Start to serve who has connected; False when nobody has, or cannot be let in now."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again; or EMFILE, ENFILE, ENOMEM: it waits
            return False
        thread = threading.Thread(target=self._serve, args=(Channel(connection),), name="sandbox-client", daemon=True)
        self._threads.add(thread)
        thread.start()
        return True

    def _serve(self, channel: Channel) -> None:
        try:
            with closing(channel):
                try:
                    message, fds = channel.receive(_PATIENCE)
                    try:
                        check_peer(channel.connection)
                        self._answer(channel, message, fds)
                    finally:
                        close_all(fds)
                except StrangerError as error:
                    channel.send({"error": f"refused: {error}"})
                except (TimeoutError, EOFError):  # it wants nothing, and may be gone
                    return
                except (SandboxError, OSError, ValueError, TypeError, KeyError) as error:
                    text, status = failure(error)
                    channel.send({"error": text[:4096], "status": status})
                channel.drain(_LINGER)
        finally:
            self._threads.discard(threading.current_thread())
            self._room.release()

    def _answer(self, channel: Channel, message: dict[str, Any], fds: list[int]) -> None:
        wanted = message.get("do")
        if wanted == "list":
            channel.send(self._described())
        elif wanted == "exec":
            self._exec(channel, message, fds)
        elif wanted == "stop":
            self._stop(channel, _number(message, "grace", _MOST_GRACE))
        elif wanted == "kill":
            self._process.kill()
            self._gone(channel)
        else:
            raise ValueError(f"there is no request {wanted!r}: is the other command of another version?")

    def _described(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "pid": os.getpid(),
            "init_pid": self._process.init_pid,
            "since": self._since,
            # It has to fit into a message.
            "command": [os.fsdecode(word)[:_MOST_LETTERS] for word in self._process.args[:_MOST_WORDS]],
            "usage": asdict(self._process.usage()),
        }

    def _stop(self, channel: Channel, grace: float) -> None:
        self._process.terminate()
        poller = select.poll()
        poller.register(self._ended, select.POLLIN)
        poller.register(channel.fileno(), select.POLLIN)
        ready = dict(poller.poll(grace * 1000))
        if ready and self._ended not in ready:
            return  # who asked has gone, and gives the command all the time it takes
        self._process.kill()
        self._gone(channel)

    def _gone(self, channel: Channel) -> None:
        """Say that it has ended, when its name can be taken again."""
        self._withdraw()
        channel.send({"done": True})

    def _exec(self, channel: Channel, message: dict[str, Any], fds: list[int]) -> None:
        options: Any = {}
        if message.get("cwd") is not None:
            options["cwd"] = _text(message["cwd"], "cwd")
        variables = dict(self._variables)
        if "tty" in message:
            terminal = _typed(message, "tty", dict)
            variables.setdefault("TERM", _text(terminal["term"], "term"))
            attributes = bytes.fromhex(_text(terminal["attributes"], "attributes"))
            if len(attributes) != _ATTRIBUTES:
                raise ValueError(f"a terminal has {_ATTRIBUTES} bytes of attributes, not {len(attributes)}")
            options["pty"] = Like((terminal["rows"], terminal["columns"]), attributes)
        elif len(fds) == 3:
            options |= dict(zip(("stdin", "stdout", "stderr"), fds, strict=True))
        else:
            raise ValueError(f"a command has three streams, not {len(fds)}")
        for name, value in _typed(message, "env", dict).items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = _text(value, name)
        command = [_text(word, "a word") for word in _typed(message, "command", list)]
        process = self._process.popen(command, env=variables, **options)
        try:
            close_all(fds)
            fds.clear()
            said, status = self._attend(process, channel)
        except EOFError:  # who asked has gone: the command goes, too
            return
        finally:
            process.close()
        channel.send({"said": said, "status": status})

    def _attend(self, process: Process[Any], channel: Channel) -> tuple[list[str], int]:
        """Wait for a command, and return what is to be said at its end, and its exit status.

        Raises:
            EOFError: The client has gone.
        """
        given = []
        if process.terminal is not None:
            given.append(process.terminal.fileno())
        if not channel.send({"started": True}, given):
            raise EOFError
        # Closed here, the terminal hangs up when the client has gone; and its output is the client's to read.
        process._close_streams()
        process.stdin = process.stdout = None
        said, status = outcome(process, wait(process, _Passed(channel), None), None)
        return [text[:4096] for text in said], status


class _Passed:
    """The signals that a client passes on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """Return what is readable when one came, or the client has gone."""
        return self._channel.fileno()

    def take(self) -> bytes:
        """Return the signal that came.

        Raises:
            EOFError: The client has gone.
        """
        message, fds = self._channel.receive()
        close_all(fds)
        if message.get("signal") not in SIGNALS:
            raise EOFError
        return bytes([message["signal"]])


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, not {type(value).__name__}")
    return value


def _typed(message: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(message.get(name), kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(message.get(name)).__name__}")
    return message[name]


def _number(message: Mapping[str, Any], name: str, most: float) -> float:
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a number from 0 to {most:g}, got {value!r}")
    return value
