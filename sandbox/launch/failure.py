"""What to say of a launch that failed: which step, why most likely, and what to do."""

import errno
import os
from collections.abc import Iterable

from sandbox.errors import SetupError
from sandbox.hints import hint_for
from sandbox.plan import Command, Plan
from sandbox.records import UNSENT, Record


def failed(record: Record, plan: Plan, command: Command, stage: int) -> SetupError:
    """Return the error that a record of failure stands for.

    Args:
        record: What init says.
        plan: What it was running.
        command: With which command.
        stage: The pidfd of stage 1, which is not reaped yet; -1 when there is none.
    """
    steps = plan.steps
    text = record.body.split(b"\0", 1)[0].decode("utf-8", "replace")
    if record.step == UNSENT:
        hint = hint_for("sendmsg", (), record.error)
        return SetupError(record.error, call="sendmsg, of a descriptor to the launcher", origin="launch", hint=hint)
    if not 0 <= record.step < len(steps):
        status = os.waitstatus_to_exitcode(record.value) if record.step == -1 else 0
        return SetupError(
            record.error,
            call="set-up of the payload",
            origin="launch",
            hint=f"its process was ended by signal {-status} before its program was executed" if status < 0 else None,
        )
    step = steps[record.step]
    if step.call == "execve" and command.argv:
        path = dict(v.split(b"=", 1) for v in command.env if b"=" in v).get(b"PATH", b"")
        program = _program(command)
        call = f"execve({program!r})".replace("'", '"')
        # PID 1 has looked: which candidate is there, and how it begins.
        which, size = record.value >> 32, record.value & 0xFFFFFFFF
        inside = None
        if 0 < which <= len(command.candidates):
            inside, text = (os.fsdecode(command.candidates[which - 1]), record.body[:size]), ""
        folder = next((str(one.args[1]) for segment in plan.segments for one in segment if one.name == "cwd"), "/")
        hint = hint_for("execve", (program, os.fsdecode(path), inside, folder), record.error, step.origin)
        filename: str | None = program
    else:
        call, hint = str(step), hint_for(step.call, step.args, record.error, step.origin)
        filename = next((a for a in step.args if type(a) is str and a.startswith("/")), None)
        if step.call == "await_release":
            hint = hint_for("killed", (signal_of(os.P_PIDFD, stage),), record.error) or hint
    if text and (hint is None or isinstance(hint, str)):
        hint = f"{text}\n        {hint}" if hint else text
    return SetupError(
        record.error,
        step=step.number,
        steps=len(steps),
        call=call,
        origin=step.origin,
        hint=hint,
        filename=filename,
    )


def died(ends: Iterable[int]) -> SetupError:
    """Return the error of a set-up of which nobody is left to say anything.

    Args:
        ends: The signals that ended its processes, 0 for none.
    """
    for number in ends:
        hint = hint_for("killed", (number,), errno.ECHILD)
        if hint is not None:
            return SetupError(errno.ECHILD, call="set-up", origin="launch", hint=hint)
    return SetupError(
        errno.ECHILD,
        call="set-up",
        origin="launch",
        hint="a process of the set-up ended without a word: killed from outside, or out of memory",
    )


def signal_of(kind: int, number: int) -> int:
    """Return the signal that ended a child, 0 for none; the child is not reaped."""
    try:
        info = os.waitid(kind, number, os.WEXITED | os.WNOWAIT) if number > 0 else None
    except ChildProcessError:  # SIGCHLD is ignored, or the caller waits for any child
        return 0
    return info.si_status if info is not None and info.si_code in {os.CLD_KILLED, os.CLD_DUMPED} else 0


def _program(command: Command) -> str:
    """Return what was to be executed: the command's first word, unless `executable` said something else."""
    first = command.candidates[0] if command.candidates else command.argv[0]
    word = command.argv[0]
    return os.fsdecode(word if first == word or first.endswith(b"/" + word) else first)
