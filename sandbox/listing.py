"""How a plan prints: like strace, grouped by who asked."""

import json
from dataclasses import dataclass
from errno import errorcode
from typing import Final

from sandbox.kernel import Flag
from sandbox.plan import Argument, Data, Late, Plan, Ref, Slot

TITLES: Final = {
    "stage": "stage 1, in the caller's namespaces",
    "init": "PID 1, in the new namespaces",
    "payload": "the payload's process",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, as people see it.

    Attributes:
        number: From 1, through all segments.
        call: Name of the system call, or of an operation of init.
        args: Its arguments; flags and descriptors print by name.
        segment: Which process makes it: stage, init or payload.
        origin: The builder call that asked for it.
    """

    number: int
    call: str
    args: tuple[object, ...]
    segment: str
    origin: str

    def __str__(self) -> str:
        """Show the call as strace would."""
        return f"{self.call}({', '.join(_show(arg) for arg in self.args)})"


class _Name(str):
    """A descriptor's or structure's name among the arguments: prints without quotes."""

    __slots__ = ()


def _quote(raw: bytes | str) -> str:
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    short = text if len(text) <= 64 else text[:61] + "..."
    return '"' + short.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _show(arg: object) -> str:
    if isinstance(arg, _Name | Flag):
        return str(arg) if isinstance(arg, _Name) else arg.text
    if isinstance(arg, str | bytes):
        return _quote(arg)
    return str(arg)


def steps_of(plan: Plan) -> tuple[Step, ...]:
    """Return all steps, in order."""
    return tuple(
        Step(number, call.call, tuple(_shown(plan, arg) for arg in call.args), segment, call.origin)
        for number, (segment, call) in enumerate(plan.calls(), 1)
    )


def _shown(plan: Plan, arg: Argument) -> object:
    match arg:
        case Data():
            return _Name(arg.show)
        case Ref() | Slot():
            return _Name(arg.name)
        case Late():
            return _late(plan, arg)
    return arg


def _late(plan: Plan, arg: Late) -> object:
    command = plan.command
    match arg.name:
        case "argv":
            return _Name("[" + ", ".join(_quote(word) for word in command.argv) + "]")
        case "envp":
            return _Name("[" + ", ".join(_quote(word) for word in command.env) + "]")
        case "candidates":
            return _Name(" or ".join(_quote(path) for path in command.candidates))
    values = dict(command.values)
    return values.get(arg.name, _Name(f"<{arg.name}>"))


def to_json(plan: Plan) -> str:
    """Return the steps as JSON, one object each."""
    steps = [
        {
            "number": step.number,
            "segment": step.segment,
            "origin": step.origin,
            "call": step.call,
            "args": [_show(arg) if isinstance(arg, Flag | _Name) else _plain(arg) for arg in step.args],
        }
        for step in plan.steps
    ]
    return json.dumps({"steps": steps}, indent=1)


def listing(plan: Plan) -> str:
    """Show every step, grouped by the builder call that asked for it."""
    lines: list[str] = []
    number, segment, origin = 0, "", ""
    for number, (where, call) in enumerate(plan.calls(), 1):
        if where != segment:
            segment, origin = where, ""
            lines += ["", f"# {TITLES[where]}"]
        if call.origin != origin:
            origin = call.origin
            lines.append(f"from: {origin}")
        text = f"{call.call}({', '.join(_show(_shown(plan, arg)) for arg in call.args)})"
        if call.name:
            text += f" = {call.name}"
        if call.tolerate:
            text += "  # unless " + " or ".join(errorcode.get(one, str(one)) for one in call.tolerate)
        if call.fault:
            text += f"  # fault: {errorcode.get(call.fault, call.fault)}"
        lines.append(f"{number:4}  {text}")
    return "\n".join(lines[1:])


def _plain(arg: object) -> object:
    if isinstance(arg, bytes):
        return arg.decode("utf-8", "surrogateescape")
    return arg
