"""The command `sandbox`.

What is not needed to run a command is imported where it is used: `sandbox run -- true` shall cost little more than
Python's own start.
"""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Self

from sandbox.errors import SandboxError, SetupError, UnsupportedError
from sandbox.options import SUBCOMMANDS, Draft, OptionError, Subcommand, parse
from sandbox.process import Process
from sandbox.result import Reason

if TYPE_CHECKING:
    from sandbox.session import Session

# Those of env(1), timeout(1) and the shells.
_FAILED: Final = 125
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
_TIMED_OUT: Final = 124

_GRACE = 5.0  # seconds that a command has to end after a signal
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `sandbox` and return its exit status.

    Args:
        arguments: Without the program's name; those of this process when left out.
    """
    _open_standard_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _main(words)
    except SetupError as error:
        _complain(_setup_text(error))
        if _is_exec(error):
            return _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
    except UnsupportedError as error:
        _complain(_as_options(str(error)))
    except (SandboxError, OptionError, ValueError) as error:
        _complain(str(error))
    except OSError as error:
        what = f"{error.filename}: " if error.filename is not None else ""
        _complain(f"{what}{error.strerror or error}")
    except _SignalledError as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return _FAILED


def _main(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        from sandbox import help_text

        stream = sys.stdout if words else sys.stderr
        _print(help_text.text(None, stream), stream)
        return 0 if words else _FAILED
    if words[0] == "--version":
        from importlib.metadata import version

        _print(f"sandbox {version('sandbox')}\n")
        return 0
    if words[0] == "seccomp":
        from sandbox import cli_seccomp

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        return cli_seccomp.main(words[1:])
    if words[0] == "doctor":
        from sandbox import cli_doctor

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        return cli_doctor.main(words[1:])
    if words[0] == "supervise":
        from sandbox import cli_supervise

        return cli_supervise.main(words[1:])
    if words[0] == "completion":
        from sandbox import completion

        _print(completion.made_for(words[1:]))
        return 0
    subcommand = _subcommand(words[0])
    draft = parse(subcommand, words[1:])
    if draft is None:
        from sandbox import help_text

        _print(help_text.text(subcommand, sys.stdout))
        return 0
    return _plan(draft) if subcommand == "plan" else _run(draft)


def _subcommand(word: str) -> Subcommand:
    for subcommand in SUBCOMMANDS:
        if word == subcommand:
            return subcommand
    from sandbox.completion import COMMANDS

    known = " or sandbox ".join(COMMANDS)
    raise OptionError(
        f"there is no {'option' if word.startswith('-') else 'subcommand'} {word}\n"
        f"  hint: it is sandbox {known}; to run a program: sandbox run -- {word}"
    )


def _plan(draft: Draft) -> int:
    if draft.format == "svg":
        text = _picture(draft)
    else:
        plan = draft.box.plan(draft.command)
        text = plan.to_json() if draft.format == "json" else str(plan)
    _print(f"{text}\n")
    return 0


def _picture(draft: Draft) -> str:
    from sandbox.compiler.root import entries_of
    from sandbox.drawing import draw
    from sandbox.identity import caller, inside_ids

    spec = draft.box._spec
    who = caller(spec)
    return draw(spec, entries_of(spec, who, shown=True), inside_ids(spec, who), draft.command)


def _run(draft: Draft) -> int:
    if draft.tty:
        return _run_on_terminal(draft)
    with _Signals() as signals:
        process = draft.box.popen(draft.command, stdin=None)
        signals.launching = False
        try:
            status = _wait(process, signals, draft.timeout)
        finally:
            process.close()
    return _status(draft, process, status)


def _run_on_terminal(draft: Draft) -> int:
    from sandbox.session import SIGNALS, Session, utf8

    filter = None
    if draft.filter_output:
        from sandbox.escapes import EscapeFilter

        filter = EscapeFilter(utf8=utf8())
    with _Signals(*SIGNALS) as signals, contextlib.closing(Session(filter)) as session:
        process = _start_on_terminal(draft, session)
        signals.launching = False
        try:
            assert process.terminal is not None
            session.begin(process.terminal)
            status = _wait(process, signals, draft.timeout, session)
        except BrokenPipeError:
            status = 128 + signal.SIGPIPE
        finally:
            process.close()
    return _status(draft, process, status)


def _start_on_terminal(draft: Draft, session: "Session") -> Process[Any]:
    """Start the command, or the first shell that there is."""
    box = draft.box
    like: Any = session.like  # what no other caller of popen needs
    if not any(name == "TERM" for name, _ in box._spec.env):
        box = box.env(TERM=os.environ.get("TERM") or "dumb")
    shells = dict.fromkeys((os.environ.get("SHELL") or "bash", "bash", "sh"))
    commands = [draft.command] if draft.command else [[shell] for shell in shells]
    for command in commands[:-1]:
        try:
            return box.popen(command, pty=like)
        except SetupError as error:
            if not (_is_exec(error) and error.errno == errno.ENOENT):
                raise
    return box.popen(commands[-1], pty=like)


def _status(draft: Draft, process: Process[Any], status: int | None) -> int:
    """Say what is to be said at the end, and return the exit status."""
    _tell_denials(process)
    if status is not None:
        if status == _TIMED_OUT:
            _complain(f"ended after {draft.timeout:g} seconds, as --timeout says")
        return status
    result = process.result()
    if result.reason is Reason.INIT_DIED:
        _complain(result.detail)
        return _FAILED
    if result.reason not in {Reason.EXITED, Reason.SIGNALED}:
        _complain(result.detail)
    if result.reason is Reason.TIMEOUT:
        return _TIMED_OUT
    return result.returncode if result.returncode >= 0 else 128 - result.returncode


def _wait(
    process: Process[Any], signals: "_Signals", timeout: float | None, session: "Session | None" = None
) -> int | None:
    """Wait until the sandbox has ended by itself; else end it, and return the exit status that says so.

    Raises:
        BrokenPipeError: What a session should show, nobody takes.
    """
    poller = select.poll()
    poller.register(process.fileno(), select.POLLIN)
    poller.register(signals.fileno(), select.POLLIN)
    refused = -1 if process.denials is None else process.denials.fileno()
    if refused >= 0:
        poller.register(refused, select.POLLIN)
    deadline = None if timeout is None else time.monotonic() + timeout
    status = _TIMED_OUT
    ended = False
    while True:
        if session is not None:
            session.arm(poller)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poller.poll(left))
        if process.fileno() in ready:
            poller.unregister(process.fileno())
            ended = True
        if session is not None:
            session.serve(ready)
        if ended and (session is None or session.done()):
            return None
        if refused in ready:
            if not process.answer():
                poller.unregister(refused)
            continue
        if signals.fileno() in ready:
            ends = [number for number in signals.take() if session is None or not session.signal(number)]
            if ends and status != _TIMED_OUT:
                break
            for number in ends[:1]:
                status = 128 + number
                process.send_signal(number)
                # After the end of it all, what is left to be shown may be given up at once.
                deadline = time.monotonic() + (0 if ended else _GRACE)
        elif not ready:
            break
    process.kill()
    return status


def _tell_denials(process: Process[Any]) -> None:
    if process.denials is not None and process.denials.seen:
        from sandbox import cli_seccomp

        _complain(cli_seccomp.denials(process.denials.seen))


class _SignalledError(BaseException):
    """A second signal came while the sandbox was being made."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """The signals that end this command: each is noted in a pipe, to be read when there is a command to tell.

    A launch that hangs, on a dead network file system perhaps, is given up at the second one. What the caller ignores
    stays ignored: nohup and background jobs rely on that.
    """

    def __init__(self, *others: int) -> None:
        self.launching = True
        self._others = others
        self._count = 0
        self._before: dict[int, Any] = {}

    def fileno(self) -> int:
        """Return what is readable when a signal came."""
        return self._read_end

    def take(self) -> bytes:
        """Return the signals that came."""
        return os.read(self._read_end, 512)

    def _came(self, number: int, _: FrameType | None) -> None:
        self._count += number not in self._others
        if self.launching and self._count == 2:
            raise _SignalledError(number)

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (*_SIGNALS, *self._others):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(text: str, stream: Any = None) -> None:
    """Print; a reader who has had enough ends this command without a word."""
    stream = sys.stdout if stream is None else stream
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    stream.reconfigure(errors="surrogateescape")
    stream.write(text)
    stream.flush()


def _complain(text: str) -> None:
    """Say what is wrong; names that come from inside, or from files, must not speak to the terminal."""
    if sys.stderr is not None:
        if not text.isprintable():
            from sandbox.escapes import printable

            text = printable(text)
        sys.stderr.write(f"sandbox: {text}\n")


def _is_exec(error: SetupError) -> bool:
    """Say whether all was set up, and it is the program that cannot be executed."""
    return error.step > 0 and error.call.startswith("execve(")


def _setup_text(error: SetupError) -> str:
    if _is_exec(error):
        text = f"{error.filename}: {error.strerror}"
    else:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        where = f"step {error.step} of {error.steps}: " if error.step else ""
        text = f"{where}{error.call}: {error.strerror} ({name})"
    if error.origin.startswith("."):
        text += f"\n  from: {_as_options(error.origin)}"
    if error.hint:
        text += f"\n  hint: {_as_options(error.hint)}"
    return text


def _as_options(text: str) -> str:
    """Say in the words of the command line what a message says in those of the builder."""

    def option(match: re.Match[str]) -> str:
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', match[2])
        return f"--{match[1].replace('_', '-')} {':'.join(words)}".rstrip()

    text = re.sub(r'\.([a-z_]+)\(((?:"(?:[^"\\]|\\.)*"|[^")])*)\)', option, text)
    text = re.sub(r"\.?limit\(([a-z_]+)=((?:[^()]|\([^()]*\))*)\)", _limit_option, text)
    text = text.replace("pass optional=True", "append :optional (SRC:DST:optional)")
    return text.replace("user(host_root=True)", "--host-root")


def _limit_option(match: re.Match[str]) -> str:
    weak = " with --best-effort" if "best_effort" in match[2] else ""
    return f"--{match[1].replace('_', '-')}{weak}"


def _open_standard_streams() -> None:
    """Open what the caller has closed of 0, 1 and 2, or the next descriptor made would be the command's."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
