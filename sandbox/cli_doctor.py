"""The command `sandbox doctor`: the table for people, JSON for programs."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Final, TextIO

from sandbox import doctor
from sandbox.causes import Cause
from sandbox.doctor import Row
from sandbox.escapes import printable
from sandbox.option_values import OptionError

_BLOCKED: Final = 1
_VERSION: Final = 1  # of the JSON; keys may be added, none changes its meaning
_WIDEST: Final = 120


def main(words: Sequence[str]) -> int:
    """Run `sandbox doctor`, and return its exit status."""
    as_json = False
    for word in words:
        if word in {"-h", "--help"}:
            from sandbox import help_text

            sys.stdout.write(help_text.doctor(sys.stdout))
            return 0
        if word != "--json":
            raise OptionError(f"doctor takes --json or nothing, got {word}")
        as_json = True
    rows = doctor.examine()
    if as_json:
        json.dump(as_object(rows), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        show(rows, sys.stdout)
    return 0 if doctor.works(rows) else _BLOCKED


def as_object(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what --json prints."""
    system = os.uname()
    return {
        "version": _VERSION,
        "works": doctor.works(rows),
        "kernel": system.release,
        "machine": system.machine,
        "uid": os.geteuid(),
        "checks": [{**row._asdict(), "cause": None if row.cause is None else row.cause._asdict()} for row in rows],
    }


def _harmless(row: Row) -> Row:
    cause = row.cause
    if cause is not None:
        cause = cause._replace(key=printable(cause.key), text=printable(cause.text), fix=printable(cause.fix))
    return row._replace(detail=printable(row.detail), cause=cause)


def _said(row: Row, numbers: dict[Cause, int]) -> str:
    if row.state == "untried" or row.cause is None:
        return row.detail
    return f"{row.cause.key} [{numbers[row.cause]}]"


def show(rows: Sequence[Row], stream: TextIO) -> None:
    """Print the table, and below it each cause once, with its fix."""
    # Names of paths, profiles and groups are the host's, and not all of them root's.
    rows = [_harmless(row) for row in rows]
    causes: dict[Cause, int] = {}
    for row in rows:
        if row.state == "blocked" and row.cause is not None:
            causes.setdefault(row.cause, len(causes) + 1)
    lines = [(row.title, row.state, row.use.replace("run", "sandbox run"), _said(row, causes)) for row in rows]
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    system = os.uname()
    who = f"Linux {system.release}, {system.machine}, uid {os.geteuid()}"
    verdict = "sandbox run works here." if doctor.works(rows) else "sandbox run does not work here."
    try:
        from rich.console import Console
    except ImportError:
        _show_plain(lines, causes, who, verdict, width, stream)
    else:
        _show_rich(Console(file=stream, width=width, highlight=False), lines, causes, who, verdict)


_HEAD: Final = ("what", "state", "needed for", "")
_Lines = Sequence[tuple[str, str, str, str]]


def _show_rich(console: Any, lines: _Lines, causes: dict[Cause, int], who: str, verdict: str) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    colours = {"works": "green", "blocked": "red", "untried": "yellow"}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in _HEAD:
        table.add_column(name, no_wrap=bool(name))
    for title, state, use, said in lines:
        table.add_row(Text(title), Text(state, colours[state]), Text(use), Text(said))
    console.print(Text(who), Text(), table, Text(), sep="\n")
    for cause, number in causes.items():
        console.print(Text(f"[{number}] ").append(cause.key, "bold"))
        console.print(Padding(Text(cause.text), (0, 0, 0, 4)))
        if cause.fix:  # in one line, however long: to be copied
            console.print(Text("    fix: ", "cyan").append(cause.fix, ""), soft_wrap=True)
    console.print(Text(verdict, "bold"))


def _show_plain(lines: _Lines, causes: dict[Cause, int], who: str, verdict: str, width: int, stream: TextIO) -> None:
    widths = [max(len(line[i]) for line in (_HEAD, *lines)) + 2 for i in range(3)]
    left = sum(widths)
    print(who, end="\n\n", file=stream)
    for *words, said in (_HEAD, *lines):
        parts = textwrap.wrap(said, max(20, width - left)) or [""]
        start = "".join(f"{word:{wide}}" for word, wide in zip(words, widths, strict=True))
        print(f"{start}{parts[0]}".rstrip(), file=stream)
        for part in parts[1:]:
            print(" " * left + part, file=stream)
    print(file=stream)
    for cause, number in causes.items():
        print(f"[{number}] {cause.key}", file=stream)
        print(textwrap.fill(cause.text, width, initial_indent="    ", subsequent_indent="    "), file=stream)
        if cause.fix:
            print(f"    fix: {cause.fix}", file=stream)
    print(verdict, file=stream)
