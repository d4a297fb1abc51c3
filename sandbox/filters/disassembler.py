"""A program made readable: labels, names of calls and words, actions."""

from collections.abc import Sequence
from typing import Final

from sandbox.filters.actions import decode
from sandbox.filters.bpf import AND, JA, JEQ, JGE, JGT, JSET, LD, RET, Instruction
from sandbox.filters.graph import ARCH, NUMBER
from sandbox.filters.table import ARCHES, AUDIT, X32_BIT, Arch, names_of

_OPERATIONS: Final = {
    LD: "ld", AND: "and", JA: "ja", JEQ: "jeq", JGT: "jgt", JGE: "jge", JSET: "jset", RET: "ret",
    0x80: "ld len", 0x81: "ldx len", 0x00: "ld imm", 0x01: "ldx imm", 0x60: "ld mem", 0x61: "ldx mem",
    0x02: "st", 0x03: "stx", 0x16: "ret a", 0x07: "tax", 0x87: "txa",
}  # fmt: skip
_WORDS: Final = {NUMBER: "number", ARCH: "arch", 8: "instruction pointer (low)", 12: "instruction pointer (high)"}


def _word(offset: int) -> str:
    if offset in _WORDS:
        return _WORDS[offset]
    index, half = divmod(offset - 16, 8)
    return f"arg {index} ({'high' if half else 'low'})"


def _flow(program: Sequence[Instruction]) -> tuple[list[set[int | None]], list[set[int]]]:
    """Return for each instruction the words that may be loaded and the AUDIT_ARCH_* values that may have led there."""
    loaded: list[set[int | None]] = [set() for _ in program]
    machines: list[set[int]] = [set() for _ in program]
    every = set(AUDIT.values())
    loaded[0].add(None)
    machines[0] = set(every)
    for position, (code, jt, jf, k) in enumerate(program):  # jumps go forward only
        after: set[int | None] = {k} if code == LD else loaded[position]
        if code & 0x07 == 0x06:
            continue
        if code & 0x07 != 0x05:
            targets = [(position + 1, machines[position])]
        elif code == JA:
            targets = [(position + 1 + k, machines[position])]
        else:
            yes = no = machines[position]
            if code == JEQ and loaded[position] == {ARCH}:
                yes, no = yes & {k}, no - {k}
            targets = [(position + 1 + jt, yes), (position + 1 + jf, no)]
        for target, there in targets:
            loaded[target] |= after
            machines[target] |= there
    return loaded, machines


def _number_names(number: int, machines: set[int]) -> str:
    found: list[str] = []
    for arch in ARCHES:
        if AUDIT[arch] in machines:
            name = names_of(arch).get(number)
            if name and name not in found:
                found.append(name)
    if not found and number == X32_BIT:
        return "x32"
    return "/".join(found)


def listing(program: Sequence[Instruction]) -> str:
    """Return a line for each instruction; jumps name labels, a false branch that goes on is left out."""
    loaded, machines = _flow(program)
    targets = set()
    for position, (code, jt, jf, k) in enumerate(program):
        if code == JA:
            targets.add(position + 1 + k)
        elif code & 0x07 == 0x05:
            targets.update(position + 1 + offset for offset in (jt, jf) if offset)
    labels = {target: f"L{number}" for number, target in enumerate(sorted(targets), 1)}
    lines = []
    for position, (code, jt, jf, k) in enumerate(program):
        label = f"{labels[position]}:" if position in labels else ""
        operation = _OPERATIONS.get(code) or f"op {code:#04x}"
        comment = ""
        if code == LD:
            text = f"ld [{k}]"
            comment = _word(k)
        elif code == JA:
            text = f"ja {labels[position + 1 + k]}"
        elif code & 0x07 == 0x05:
            yes = labels.get(position + 1 + jt, "next") if jt else "next"
            no = labels.get(position + 1 + jf, "next") if jf else "next"
            text = f"{operation} {k:#x}, {yes}, {no}"
            comment = _compared(k, loaded[position], machines[position])
        elif code == RET:
            text = f"ret {k:#x}"
            comment = repr(decode(k))
        else:
            text = f"{operation} {k:#x}" if code != 0x16 else operation
        lines.append(f"{label:6}{position:5}  {text:34}" + (f"; {comment}" if comment else ""))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _compared(k: int, loaded: set[int | None], machines: set[int]) -> str:
    if loaded == {ARCH}:
        names: list[Arch] = [arch for arch in ARCHES if AUDIT[arch] == k]
        return names[0] if names else ""
    if loaded == {NUMBER}:
        return _number_names(k, machines)
    return ""
