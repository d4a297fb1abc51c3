"""Rules, and what they come to for each call of an architecture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, TypeAlias

from sandbox.errors import FilterError
from sandbox.filters.actions import Action, Allow, Errno, strictness
from sandbox.filters.conditions import Condition, Value
from sandbox.filters.groups import members
from sandbox.filters.ranges import Masked, Ranges, complement, smallest, union
from sandbox.filters.table import (
    ARCHES,
    MULTIPLEXED,
    NARROW,
    Arch,
    argument_bits,
    calls,
    constant,
    near,
    variants,
    visible_arguments,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a filter.

    Attributes:
        action: The answer.
        names: Calls and groups, as written.
        conditions: All of them must hold.
        exact: The names and registers stand for themselves alone, as in an OCI profile: no 32-bit variants.
        preset: It came with a preset or a profile, and may be overridden without an error.
    """

    action: Action
    names: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    exact: bool = False
    preset: bool = False

    def __str__(self) -> str:
        parts = [f'"{name}"' for name in self.names[:4]]
        if len(self.names) > 4:
            parts.append(f"... {len(self.names) - 4} more")
        parts += [repr(condition) for condition in self.conditions]
        if self.action == Allow:
            return f"allow({', '.join(parts)})"
        if self.action != Errno(1):
            parts.append(f"action={self.action!r}")
        return f"deny({', '.join(parts)})"


@lru_cache(maxsize=4096)
def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the calls that names and groups stand for, each once.

    Raises:
        FilterError: No such call or group; near names are listed.
    """
    known = calls().arguments
    found: dict[str, None] = {}
    for name in names:
        if name.startswith("@"):
            found.update(dict.fromkeys(members(name)))
        elif name in known:
            found[name] = None
        else:
            raise FilterError(f"no system call is named {name!r}{near(name, known)}")
    return tuple(found)


class Test(NamedTuple):
    """A condition made numbers: (argument & mask) lies inside of one of the ranges."""

    argument: int
    mask: int
    ranges: Ranges


def _number(value: Value, call: str, index: int, arch: Arch, top: int) -> int | None:
    """Return a value as the bits of an argument, or None when the argument cannot have it."""
    if isinstance(value, str):
        found = constant(value, call, index, arch)
        if found is None:
            return None
        value = found
    if value < 0:
        return value & top if -value <= (top + 1) // 2 else None
    return value


@lru_cache(maxsize=8192)
def resolve(condition: Condition, call: str, arch: Arch) -> Test:
    """Return what a condition means for an argument of a call on an architecture; its ranges may be empty."""
    index = condition.index
    top = (1 << argument_bits(call, index, arch)) - 1
    mask = top
    if condition.mask is not None:
        kept = _number(condition.mask, call, index, arch, top)
        if kept is None:
            raise FilterError(f"{arch} has no {condition.mask}, the mask of {condition!r} for {call}")
        mask = kept & top
    numbers = [_number(value, call, index, arch, top) for value in condition.values]
    present = [number for number in numbers if number is not None]
    operation = condition.operation
    if len(present) < len(numbers) and operation not in ("==", "!=", "one_of"):
        raise FilterError(f"{arch} has no value for {condition!r} of {call}")
    if operation in ("==", "!=", "one_of"):
        pairs = [(number, number) for number in present]
    elif operation == "between":
        pairs = [(present[0], present[1])]
    else:
        number = present[0]
        pairs = [{"<": (0, number - 1), "<=": (0, number), ">": (number + 1, top), ">=": (number, top)}[operation]]
    inside = union((low, min(high, top)) for low, high in pairs)
    return Test(index, mask, complement(inside, top) if operation == "!=" else inside)


def tests_of(rule: Rule, call: str, arch: Arch) -> tuple[Test, ...] | None:
    """Return the tests of a rule for a call, without those that always hold; None when it can never match."""
    found = []
    for condition in rule.conditions:
        test = resolve(condition, call, arch)
        if smallest([Masked(test.mask, complement(test.ranges, test.mask))], 64) is not None:
            found.append(test)
    for index in {test.argument for test in found}:
        if smallest([Masked(test.mask, test.ranges) for test in found if test.argument == index], 64) is None:
            return None
    return tuple(found)


def check(rule: Rule, arches: Sequence[Arch]) -> None:
    """Refuse a rule that names what does not exist, or that can match no call at all.

    Raises:
        FilterError: What is wrong, with the rule.
    """
    for call in expand(rule.names):
        count = len(calls().arguments[call][0])
        for condition in rule.conditions:
            if condition.index >= count:
                raise FilterError(f"{rule}: {call} has {count} arguments, there is no argument {condition.index}")
        # A rule may name calls that only other machines have; its constants are then checked as on these.
        there = [arch for arch in arches if call in calls().numbers[arch]] or [
            arch for arch in ARCHES if call in calls().numbers[arch]
        ]
        if rule.conditions and all(tests_of(rule, call, arch) is None for arch in there):
            raise FilterError(_impossible(rule, call, there[0]))


def _impossible(rule: Rule, call: str, arch: Arch) -> str:
    for condition in rule.conditions:
        test = resolve(condition, call, arch)
        bits = argument_bits(call, condition.index, arch)
        if smallest([Masked(test.mask, test.ranges)], 64) is None:
            return (
                f"{rule} can never match: argument {condition.index} of {call} has {bits} bits on {arch}, "
                f"and {condition!r} holds for none of its values"
            )
    return f"{rule} can never match: its conditions contradict each other"


def _implies(one: tuple[Test, ...], other: tuple[Test, ...]) -> bool:
    """Tell whether every call that passes the first tests passes the others, too."""
    for test in other:
        same = [Masked(mine.mask, mine.ranges) for mine in one if mine.argument == test.argument]
        if smallest([*same, Masked(test.mask, complement(test.ranges, test.mask))], 64) is not None:
            return False
    return True


def _hides(later: Rule, earlier: Rule, call: str, arches: Sequence[Arch]) -> bool:
    if call not in expand(later.names):
        return False
    for arch in arches:
        if call in calls().numbers[arch]:
            mine, others = tests_of(earlier, call, arch), tests_of(later, call, arch)
            if mine is not None and (others is None or not _implies(mine, others)):
                return False
    return True


def check_reachable(rules: Sequence[Rule], arches: Sequence[Arch]) -> None:
    """Refuse rules that the last one makes pointless: whatever an earlier one matches, later ones answer otherwise.

    Raises:
        FilterError: Names both rules.
    """
    last = rules[-1]
    touched = set(expand(last.names))
    for position, rule in enumerate(rules[:-1]):
        if rule.preset or touched.isdisjoint(expand(rule.names)) or rule.action == last.action:
            continue
        # What was hidden before was refused before: it takes the last rule to hide the rest of another.
        if not any(_hides(last, rule, call, arches) for call in touched.intersection(expand(rule.names))):
            continue
        later = rules[position + 1 :]
        if all(any(_hides(one, rule, call, arches) for one in later) for call in expand(rule.names)):
            raise FilterError(
                f"rule {position + 1}, {rule}, can never decide: the last rule that matches does, and rule "
                f"{len(rules)}, {last}, matches whatever it matches"
            )


# ── what the rules come to ──────────────────────────────────────────────────────────────────────────────────────────
class Clause(NamedTuple):
    """If all tests hold: this action, because of the rule of this number (-1: no rule)."""

    tests: tuple[Test, ...]
    action: Action
    rule: int


Verdict: TypeAlias = tuple[Clause, ...]  # the first clause whose tests hold decides; the last has no tests


def _clauses(
    rules: Sequence[Rule], relevant: Iterable[tuple[int, int]], call: str, arch: Arch, default: Action
) -> Verdict:
    """Return the clauses of a call, last rule first.

    Args:
        rules: All rules.
        relevant: Numbers of the rules for this call, and how many of its arguments each can see.
        call: The call.
        arch: Its architecture.
        default: The action when no rule matches.
    """
    found: list[Clause] = []
    unseen = False
    for number, visible in sorted(relevant, reverse=True):
        rule = rules[number]
        if any(condition.index >= visible for condition in rule.conditions):
            # What it asks for cannot be seen: the call gets the strictest answer that it could get.
            unseen = True
            found.append(Clause((), rule.action, number))
            continue
        tests = tests_of(rule, call, arch)
        if tests is not None:
            found.append(Clause(tests, rule.action, number))
            if not tests:
                break
    if not found or found[-1].tests or (unseen and rules[found[-1].rule].conditions):
        found.append(Clause((), default, -1))
    if unseen:
        strictest = min(found, key=lambda clause: strictness(clause.action))
        return (Clause((), strictest.action, strictest.rule),)
    return tuple(found)


@cache
def _general_of(arch: Arch) -> Mapping[str, tuple[str, int]]:
    return variants(arch)


def verdicts(rules: Sequence[Rule], default: Action, arch: Arch) -> dict[str, Verdict]:
    """Return what the rules come to for every call of an architecture; calls without a rule are left out."""
    by_name: dict[str, list[int]] = {}
    for number, rule in enumerate(rules):
        for name in expand(rule.names):
            by_name.setdefault(name, []).append(number)
    found: dict[str, Verdict] = {}
    generals = _general_of(arch)
    for call in calls().numbers[arch]:
        relevant = _relevant(rules, by_name, call, call, arch)
        if call in generals:
            general, agreeing = generals[call]
            seen = min(agreeing, visible_arguments(call, arch))
            relevant += [(number, seen) for number in by_name.get(general, ()) if not rules[number].exact]
        if call in MULTIPLEXED:
            verdict = _multiplexed(rules, by_name, call, relevant, arch, default)
            if verdict:
                found[call] = verdict
        elif relevant:
            found[call] = _clauses(rules, relevant, call, arch, default)
    return found


def _relevant(
    rules: Sequence[Rule], by_name: Mapping[str, list[int]], name: str, call: str, arch: Arch
) -> list[tuple[int, int]]:
    numbers = by_name.get(name, ())
    if arch not in NARROW:
        return [(number, 6) for number in numbers]
    seen = visible_arguments(call, arch)
    return [(number, 6 if rules[number].exact else seen) for number in numbers]


def _multiplexed(
    rules: Sequence[Rule],
    by_name: Mapping[str, list[int]],
    call: str,
    own: list[tuple[int, int]],
    arch: Arch,
    default: Action,
) -> Verdict:
    """Return the clauses of socketcall(2) or ipc(2): rules for the calls inside them count there, too."""
    found: list[Clause] = []
    rest = _clauses(rules, own, call, arch, default)
    for number, inner in MULTIPLEXED[call].items():
        inside = [(rule, 0) for rule in by_name.get(inner, ()) if not rules[rule].exact]
        if not inside:
            continue
        # The upper half of the number that ipc(2) takes is a version, which the kernel strips.
        here = Test(0, 0xFFFF if call == "ipc" else 0xFFFFFFFF, ((number, number),))
        clauses = _clauses(rules, own + inside, call, arch, default)
        found += [Clause((here, *clause.tests), clause.action, clause.rule) for clause in clauses]
    return (*found, *rest) if found or own else ()
