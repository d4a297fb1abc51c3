"""The command `sandbox`.

What is not needed to run a command is imported where it is used: `sandbox run -- true` shall cost little more than
Python's own start.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sandbox.attendance import FAILED, SignalledError, Signals, wait
from sandbox.complaints import complain, failure, is_exec, outcome
from sandbox.errors import SandboxError, SetupError
from sandbox.option_effects import Draft
from sandbox.option_values import OptionError
from sandbox.options import NAMED, SUBCOMMANDS, Subcommand, parse
from sandbox.process import Process

if TYPE_CHECKING:
    from sandbox.session import Session


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `sandbox` and return its exit status.

    Args:
        arguments: Without the program's name; those of this process when left out.
    """
    _open_standard_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _main(words)
    except (SandboxError, OptionError, ValueError, OSError) as error:
        text, status = failure(error)
        complain(text)
        return status
    except SignalledError as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _main(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in {"-h", "--help", "help"}:
        from sandbox import help_text

        stream = sys.stdout if words else sys.stderr
        _print(help_text.text(None, stream), stream)
        return 0 if words else FAILED
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
        from sandbox import completion, help_text

        asked = words[1:2] in (["-h"], ["--help"])
        _print(help_text.completion(sys.stdout) if asked else completion.made_for(words[1:]))
        return 0
    subcommand = _subcommand(words[0])
    draft = parse(subcommand, words[1:])
    if draft is None:
        from sandbox import help_text

        _print(help_text.text(subcommand, sys.stdout))
        return 0
    if subcommand in NAMED:
        from sandbox import cli_named

        return cli_named.main(subcommand, draft)
    return _plan(draft) if subcommand == "plan" else _run(draft)


def _subcommand(word: str) -> Subcommand:
    for subcommand in SUBCOMMANDS:
        if word == subcommand:
            return subcommand
    from sandbox import suggestions
    from sandbox.completion import COMMANDS

    kind = "option" if word.startswith("-") else "subcommand"
    raise OptionError(f"there is no {kind} {word}\n  hint: {suggestions.for_subcommand(word, COMMANDS)}")


def _plan(draft: Draft) -> int:
    if draft.format == "svg":
        text = _picture(draft)
    else:
        plan = draft.box.plan(draft.command)
        text = plan.to_json() if draft.format == "json" else str(plan)
    if not text.isprintable() and sys.stdout.isatty():
        from sandbox.escapes import printable

        text = printable(text)
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
    named: Any = {} if draft.name is None else {"name": draft.name}
    with Signals() as signals, _owner(draft) as serving:
        process = draft.box.popen(draft.command, stdin=None, **named)
        signals.launching = False
        try:
            with serving(process):
                status = wait(process, signals, draft.timeout)
        finally:
            process.close()
    return _ended(draft, process, status)


def _owner(draft: Draft) -> Any:
    """Return what makes a sandbox with a name reachable, and nothing for one without."""
    if draft.name is None:
        return contextlib.nullcontext(contextlib.nullcontext)
    from sandbox.owner import Owner

    return Owner(draft.name, dict(draft.box._spec.env))


def _run_on_terminal(draft: Draft) -> int:
    from sandbox.session import SIGNALS, session_for

    with (
        Signals(*SIGNALS) as signals,
        _owner(draft) as serving,
        contextlib.closing(session_for(filtered=draft.filter_output)) as session,
    ):
        process = _start_on_terminal(draft, session)
        signals.launching = False
        try:
            assert process.terminal is not None
            session.begin(process.terminal)
            with serving(process):
                status = wait(process, signals, draft.timeout, session)
        except BrokenPipeError:
            status = 128 + signal.SIGPIPE
        finally:
            process.close()
    return _ended(draft, process, status)


def _start_on_terminal(draft: Draft, session: "Session") -> Process[Any]:
    """Start the command, or the first shell that there is."""
    box = draft.box
    options: Any = {"pty": session.like}  # what no other caller of popen needs
    if draft.name is not None:
        options["name"] = draft.name
    if not any(name == "TERM" for name, _ in box._spec.env):
        box = box.env(TERM=os.environ.get("TERM") or "dumb")
    shells = dict.fromkeys((os.environ.get("SHELL") or "bash", "bash", "sh"))
    commands = [draft.command] if draft.command else [[shell] for shell in shells]
    for command in commands[:-1]:
        try:
            return box.popen(command, **options)
        except SetupError as error:
            if not (is_exec(error) and error.errno == errno.ENOENT):
                raise
    return box.popen(commands[-1], **options)


def _ended(draft: Draft, process: Process[Any], status: int | None) -> int:
    """Say what is to be said at the end, and return the exit status."""
    said, code = outcome(process, status, draft.timeout)
    for text in said:
        complain(text)
    return code


def _print(text: str, stream: Any = None) -> None:
    """Print; a reader who has had enough ends this command without a word."""
    stream = sys.stdout if stream is None else stream
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    stream.reconfigure(errors="surrogateescape")
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def _open_standard_streams() -> None:
    """Open what the caller has closed of 0, 1 and 2, or the next descriptor made would be the command's."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
