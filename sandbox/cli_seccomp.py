"""The command `sandbox seccomp`: questions about filters that need no kernel; and what observe() saw, for people."""

import argparse
import errno
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from sandbox.denials import Denied
from sandbox.escapes import shown
from sandbox.filters import Allow, Filter, Log, bpf
from sandbox.filters.difference import answers
from sandbox.filters.sources import PRESETS, read_filter
from sandbox.filters.table import ARCHES, Arch, calls, constant, machine, names_of
from sandbox.option_values import OptionError

_DIFFERENT: Final = 1  # as diff(1); and of simulate: refused

_FILTER = f"""\
FILTER is {", ".join(PRESETS[:-1])} or {PRESETS[-1]}; else a file: a profile of Docker, Podman or
an OCI runtime in JSON, or a raw program (struct sock_filter[]). ./default is a file.
"""


def main(words: Sequence[str]) -> int:
    """Run `sandbox seccomp`, and return its exit status."""
    parser = _parser()
    options = parser.parse_args(words)
    if options.action is None:
        parser.print_help()
        return 0
    status: int = options.run(options)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}\n  {self.format_usage().strip()}")


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="sandbox seccomp", description="Ask about a system-call filter.", epilog=_FILTER, formatter_class=style
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")

    def action(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, epilog=_FILTER, formatter_class=style)
        made.add_argument("filter", metavar="FILTER")
        made.add_argument(
            "--cap", action="append", default=[], metavar="NAME", help="the container keeps it (docker, profiles)"
        )
        made.set_defaults(run=run)
        return made

    def architecture(made: argparse.ArgumentParser) -> None:
        made.add_argument("--arch", choices=ARCHES, help="whose call; default: this machine's")

    architecture(action("show", _show, "what it answers to each call"))
    for name, run, text in (
        ("simulate", _simulate, "what it answers to one call; status 1 when that is a refusal"),
        ("explain", _explain, "the same, and which rule decides"),
    ):
        made = action(name, run, text)
        made.add_argument("call", metavar="CALL", help="name or number")
        made.add_argument("args", metavar="ARG", nargs="*", help='number, or constants such as "O_RDWR|O_CREAT"')
        architecture(made)
    action("diff", _diff, "where two differ, with an example each; status 1 when they do").add_argument(
        "other", metavar="OTHER"
    )
    made = action("convert", _convert, "write it as a profile of the OCI runtime specification, or as a raw program")
    made.add_argument("--to", choices=("oci", "bpf"), default="oci", help="default: oci")
    made.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    action("disassemble", _disassemble, "the compiled program, readable")
    return parser


def _filter(options: argparse.Namespace, source: str | None = None) -> Filter:
    caps = [name for names in options.cap for name in names.split(",")]
    return read_filter(options.filter if source is None else source, capabilities=caps)


def _show(options: argparse.Namespace) -> int:
    filter = _filter(options)
    arch: Arch = options.arch or machine()
    program = bpf.decode(filter.to_bytes())
    found: dict[str, list[str]] = {}
    for number, name in names_of(arch).items():
        given = answers(program, arch, number)
        found.setdefault(" or ".join(map(repr, given)), []).append(name)
    _say(f"{options.filter}: {len(program)} instructions; the calls of {arch}, by answer")
    for answer, names in sorted(found.items(), key=lambda one: (" or " in one[0], -len(one[1]), one[0])):
        hint = ", as the arguments say" if " or " in answer else ""
        _say(f"\n{answer}{hint} ({len(names)}):")
        _say(textwrap.fill(" ".join(sorted(names)), 80, initial_indent="  ", subsequent_indent="  "))
    return 0


def _call(options: argparse.Namespace) -> tuple[str | int, list[int], Arch]:
    arch: Arch = options.arch or machine()
    call: str | int = int(options.call, 0) if options.call[:1].isdigit() else options.call
    name = names_of(arch).get(call, "") if isinstance(call, int) else call
    return call, [_argument(text, name, index, arch) for index, text in enumerate(options.args)], arch


def _argument(text: str, call: str, index: int, arch: Arch) -> int:
    if text.lstrip("-")[:1].isdigit():
        try:
            return int(text, 0)
        except ValueError:
            raise OptionError(f"argument {index} must be a number, 0x... or constants, got {text!r}") from None
    if call not in calls().arguments:
        raise OptionError(f"there is no system call {call!r} whose constants {text!r} could be")
    value = constant(text, call, index, arch)
    if value is None:
        raise OptionError(f"{arch} has no constant {text!r}")
    return value


def _simulate(options: argparse.Namespace) -> int:
    call, args, arch = _call(options)
    action = _filter(options).simulate(call, *args, arch=arch)
    _say(str(action))
    return 0 if action in {Allow, Log} else _DIFFERENT


def _explain(options: argparse.Namespace) -> int:
    call, args, arch = _call(options)
    filter = _filter(options)
    _say(filter.explain(call, *args, arch=arch))
    return 0 if filter.simulate(call, *args, arch=arch) in {Allow, Log} else _DIFFERENT


def _diff(options: argparse.Namespace) -> int:
    differences = _filter(options).diff(_filter(options, options.other))
    for one in differences:
        given = ", ".join(hex(value) if value > 9 else str(value) for value in one.args)
        _say(f"{one.arch} {one.call}({given}): {one.left!r} | {one.right!r}")
    return _DIFFERENT if differences else 0


def _convert(options: argparse.Namespace) -> int:
    filter = _filter(options)
    if options.to == "oci":
        data = (json.dumps(filter.to_oci(), indent=2) + "\n").encode()
    else:
        data = filter.to_bytes()
        if options.output is None and sys.stdout.isatty():
            raise OptionError("a raw program is not for terminals: say --output FILE, or redirect it")
    if options.output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with open(options.output, "wb") as stream:
            stream.write(data)
    return 0


def _disassemble(options: argparse.Namespace) -> int:
    _say(_filter(options).disassemble())
    return 0


def _say(text: str) -> None:
    # Of files that others have written: names of calls, comments, and the path itself.
    text = shown(text, sys.stdout)
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def denials(denied: Iterable[Denied]) -> str:
    """Return what was refused, each kind once and how often, and what would allow it; empty without any."""
    kinds = Counter((one.call, one.path, one.errno) for one in denied)
    if not kinds:
        return ""
    lines = [f"the filter refused {kinds.total()} calls:" if kinds.total() > 1 else "the filter refused a call:"]
    for (call, path, number), times in kinds.items():
        about = "" if path is None else json.dumps(path)
        often = f", {times} times" if times > 1 else ""
        lines.append(f"  {call}({about}): {os.strerror(number)} ({errno.errorcode.get(number, number)}){often}")
    allowed = dict.fromkeys(one for one, *_ in kinds if not one.startswith("syscall_"))
    if allowed:
        words = ", ".join(f'"{name}"' for name in allowed)
        lines.append(
            f"  hint: --seccomp FILE takes a filter that allows them; in Python Filter.default().allow({words})"
        )
    return "\n".join(lines)
