"""Where two programs answer differently: both are followed through all branches at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sandbox.errors import FilterError
from sandbox.filters.actions import Action, decode, strictness
from sandbox.filters.bpf import AND, JA, JEQ, JGE, JGT, JSET, LD, RET, Instruction
from sandbox.filters.graph import ARCH, ARGUMENTS, NUMBER, WORD
from sandbox.filters.ranges import Masked, complement, holds, intersection, smallest, union, unmasked
from sandbox.filters.table import ARCHES, AUDIT, X32_BIT, Arch, names_of

_MACHINES: Final = union((value, value) for value in AUDIT.values())

# What is known of each word of the call by the branches that were taken.
_Known: TypeAlias = dict[int, tuple[Masked, ...]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that two filters answer differently.

    Attributes:
        call: Its name, or its number where the table has none.
        arch: Its architecture.
        args: An example of arguments for which they differ; left out at the end: 0.
        left: The answer of the filter whose `diff()` was called.
        right: The answer of the other.
    """

    call: str
    arch: Arch
    args: tuple[int, ...]
    left: Action
    right: Action


def _leaves(program: Sequence[Instruction], known: _Known) -> list[tuple[int, _Known]]:
    """Follow a program from its start: each answer it can give, and what is known of the call then."""
    found: list[tuple[int, _Known]] = []
    # Position, the word that is loaded and its mask, what is known.
    waiting: list[tuple[int, int, int, _Known]] = [(0, 0, 0, known)]
    while waiting:
        position, offset, mask, now = waiting.pop()
        code, jt, jf, k = program[position]
        if code == RET:
            found.append((k, now))
        elif code == LD:
            waiting.append((position + 1, k, WORD, now))
        elif code == AND:
            waiting.append((position + 1, offset, mask & k, now))
        elif code == JA:
            waiting.append((position + 1 + k, offset, mask, now))
        elif code in (JEQ, JGT, JGE, JSET):
            if code == JSET:
                yes = Masked(mask & k, ((1, WORD),))
                no = Masked(mask & k, ((0, 0),))
            else:
                low, high = {JEQ: (k, k), JGT: (k + 1, WORD), JGE: (k, WORD)}[code]
                inside = union([(low, high)])
                yes, no = Masked(mask, inside), Masked(mask, complement(inside, WORD))
            for jump, fact in ((jf, no), (jt, yes)):
                facts = _joined(now.get(offset, ()), fact)
                if smallest(facts, 32) is not None:
                    waiting.append((position + 1 + jump, offset, mask, {**now, offset: facts}))
        else:
            raise FilterError(f"instruction {position} ({code:#04x}) computes: this program cannot be compared")
    return found


def _joined(facts: tuple[Masked, ...], fact: Masked) -> tuple[Masked, ...]:
    fact = unmasked(fact, 32)
    for position, (mask, ranges) in enumerate(facts):
        if mask == fact.mask:
            both = Masked(mask, intersection(ranges, fact.ranges))
            return (*facts[:position], both, *facts[position + 1 :])
    return (*facts, fact)


def differences(left: Sequence[Instruction], right: Sequence[Instruction]) -> list[Difference]:
    """Return the calls for which two programs answer differently, by architecture and number."""
    found: dict[tuple[Arch, int, int, int], Difference] = {}
    start: _Known = {ARCH: (Masked(WORD, _MACHINES),)}
    for answer, known in _leaves(left, start):
        for other, both in _leaves(right, known):
            if decode(answer) != decode(other):
                for arch, number in _numbers(both):
                    key = (arch, number, answer, other)
                    if key not in found:
                        name = names_of(arch).get(number, str(number))
                        args = _example(both)
                        found[key] = Difference(name, arch, args, decode(answer), decode(other))
    order = sorted(found, key=lambda key: (ARCHES.index(key[0]), key[1], key[2], key[3]))
    return [found[key] for key in order]


def _numbers(known: _Known) -> list[tuple[Arch, int]]:
    """Return the calls that the facts leave: all that have a name, and one number that has none."""
    found: list[tuple[Arch, int]] = []
    facts = known.get(NUMBER, ())
    for arch in ARCHES:
        machine = all(holds(fact.ranges, AUDIT[arch] & fact.mask) for fact in known[ARCH])
        if not machine:
            continue
        named = names_of(arch)
        found += [(arch, n) for n in named if all(holds(fact.ranges, n & fact.mask) for fact in facts)]
        space = {"x86_64": ((0, X32_BIT - 1),), "x32": ((X32_BIT, WORD),)}.get(arch, ((0, WORD),))
        unnamed = Masked(WORD, complement(union((n, n) for n in named), WORD))
        rest = smallest([*facts, Masked(WORD, space), unnamed], 32)
        if rest is not None:
            found.append((arch, rest))
    return found


def _example(known: _Known) -> tuple[int, ...]:
    args = []
    for index in range(6):
        low = smallest(known.get(ARGUMENTS + 8 * index, ()), 32)
        high = smallest(known.get(ARGUMENTS + 8 * index + 4, ()), 32)
        args.append((low or 0) | (high or 0) << 32)
    while args and args[-1] == 0:
        args.pop()
    return tuple(args)


def answers(program: Sequence[Instruction], arch: Arch, number: int) -> tuple[Action, ...]:
    """Return all answers that a program can give to a call, whatever its arguments are; the most lenient first."""
    start: _Known = {
        ARCH: (Masked(WORD, ((AUDIT[arch], AUDIT[arch]),)),),
        NUMBER: (Masked(WORD, ((number, number),)),),
    }
    codes = {code for code, _ in _leaves(program, start)}
    return tuple(dict.fromkeys(decode(code) for code in sorted(codes, key=lambda code: -strictness(decode(code)))))
