"""Profiles of the OCI world: Docker's and Podman's JSON, and linux.seccomp of the runtime specification."""

import errno as _errno
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple, TypeAlias

from sandbox.arguments import StrOrBytesPath, path_text
from sandbox.errors import FilterError
from sandbox.filters.actions import Action, Allow, Errno, Kill, KillThread, Log, Notify, Trace, Trap, decode, strictness
from sandbox.filters.compiler import compile_rules, order_arches
from sandbox.filters.conditions import Condition
from sandbox.filters.difference import differences
from sandbox.filters.graph import Clauses, cells_of, clauses_of
from sandbox.filters.presets import capability_set
from sandbox.filters.ranges import Masked, Ranges, complement, smallest, union
from sandbox.filters.rules import Rule, Verdict, verdicts
from sandbox.filters.table import FAMILIES, MULTIPLEXED, Arch, calls

_ARCHES: Final[Mapping[str, Arch]] = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_RISCV64": "riscv64",
}
# The names in `includes` and `excludes` are those of Go.
_GO_ARCHES: Final[Mapping[Arch, str]] = {
    "x86_64": "amd64", "i386": "x86", "x32": "x32", "aarch64": "arm64", "arm": "arm", "riscv64": "riscv64",
}  # fmt: skip
_ACTIONS: Final[Mapping[str, Action]] = {
    "SCMP_ACT_ALLOW": Allow,
    "SCMP_ACT_LOG": Log,
    "SCMP_ACT_NOTIFY": Notify,
    "SCMP_ACT_TRAP": Trap,
    "SCMP_ACT_KILL": KillThread,
    "SCMP_ACT_KILL_THREAD": KillThread,
    "SCMP_ACT_KILL_PROCESS": Kill,
}
_EPERM: Final = 1
_FULL: Final = 2**64 - 1
_MOST: Final = 500  # entries for one answer of one call


class Profile(NamedTuple):
    """What a profile says."""

    default: Action
    arches: tuple[Arch, ...]
    rules: tuple[Rule, ...]


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def read(
    source: StrOrBytesPath | Mapping[str, Any], capabilities: Iterable[str], arch: Arch, kernel: tuple[int, int]
) -> Profile:
    """Read a profile; `Filter.from_oci` says what the arguments are.

    Of several rules for one call the first without conditions decides alone, as with the library that container
    runtimes use; of several that hold, the first.
    """
    if isinstance(source, Mapping):
        profile: Any = source
    else:
        path = path_text(source, "source")
        if path.lstrip().startswith("{"):
            raise ValueError("source must be a path, or what json.loads() made of the text, not the text itself")
        with open(path, "rb") as stream:
            try:
                profile = json.load(stream)
            except ValueError as error:
                raise FilterError(f"{path} is not JSON: {error}") from None
    if isinstance(profile, Mapping) and "linux" in profile:
        profile = profile["linux"].get("seccomp")
    if not isinstance(profile, Mapping) or "defaultAction" not in profile:
        raise FilterError("a profile is a JSON object with defaultAction")
    kept = capability_set(capabilities)
    default = _action(profile, "defaultAction", "defaultErrnoRet", "defaultErrno", "the profile")
    entries: dict[str, list[tuple[Action, tuple[Condition, ...]]]] = {}
    for position, entry in enumerate(profile.get("syscalls") or ()):
        place = f"syscalls[{position}]"
        if not isinstance(entry, Mapping):
            raise FilterError(f"{place} must be an object")
        if not _included(entry, kept, arch, kernel, place):
            continue
        action = _action(entry, "action", "errnoRet", "errno", place)
        if action == default:
            continue
        for conditions in _alternatives(entry.get("args") or (), place):
            for name in entry.get("names") or [entry.get("name")]:
                if not isinstance(name, str):
                    raise FilterError(f"{place} names no call")
                if name in calls().arguments:  # others are of machines that the tables do not have
                    entries.setdefault(name, []).append((action, conditions))
    return Profile(default, _served(profile, arch), tuple(_rules(entries, default)))


def _rules(entries: Mapping[str, list[tuple[Action, tuple[Condition, ...]]]], default: Action) -> Iterable[Rule]:
    plain: dict[Action, list[str]] = {}
    conditional: list[Rule] = []
    for name, found in entries.items():
        alone = [action for action, conditions in found if not conditions]
        if alone:
            plain.setdefault(alone[0], []).append(name)
        else:
            # The last rule decides here, the first one there.
            conditional += [_exact(action, name, conditions) for action, conditions in reversed(found)]
    for call, inner in MULTIPLEXED.items():
        if call in entries:
            continue
        for number, name in inner.items():
            found = entries.get(name, [])
            actions = [action for action, conditions in found if not conditions][:1]
            # Arguments behind a pointer are seen by nobody: the strictest answer of all.
            answer = actions[0] if actions else min([a for a, _ in found] + [default], key=strictness)
            if answer != default:
                mask = 0xFFFF if call == "ipc" else None  # above: a version
                conditional.append(_exact(answer, call, (Condition(0, mask, "==", (number,)),)))
    for action, names in plain.items():
        yield Rule(action, tuple(names), exact=True, preset=True)
    yield from conditional


def _exact(action: Action, name: str, conditions: tuple[Condition, ...]) -> Rule:
    return Rule(action, (name,), conditions, exact=True, preset=True)


def _action(entry: Mapping[str, Any], key: str, number_key: str, name_key: str, place: str) -> Action:
    name = entry.get(key)
    number = entry.get(number_key)
    if number is None and entry.get(name_key):
        number = getattr(_errno, str(entry[name_key]), None)
        if number is None:
            raise FilterError(f"{place} has no errno {entry[name_key]!r}")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise FilterError(f"{place} has {number_key} {number!r}, which is no number")
    try:
        if name == "SCMP_ACT_ERRNO":
            return Errno(_EPERM if number is None else number)
        if name == "SCMP_ACT_TRACE":
            return Trace(_EPERM if number is None else number)
    except ValueError as error:
        raise FilterError(f"{place}: {error}") from None
    if not isinstance(name, str) or name not in _ACTIONS:
        raise FilterError(
            f"{place} has {key} {name!r}; there are {', '.join(_ACTIONS)}, SCMP_ACT_ERRNO, SCMP_ACT_TRACE"
        )
    return _ACTIONS[name]


def _included(entry: Mapping[str, Any], kept: frozenset[str], arch: Arch, kernel: tuple[int, int], place: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    here = _GO_ARCHES[arch]
    if includes.get("arches") and here not in includes["arches"]:
        return False
    if here in (excludes.get("arches") or ()):
        return False
    if not kept.issuperset(includes.get("caps") or ()):
        return False
    if not kept.isdisjoint(excludes.get("caps") or ()):
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"], place):
        return False
    return not (excludes.get("minKernel") and kernel >= _version(excludes["minKernel"], place))


def _version(text: object, place: str) -> tuple[int, int]:
    parts = str(text).split(".")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise FilterError(f"{place} has minKernel {text!r}; it is written as 4.8")
    return int(parts[0]), int(parts[1])


def _alternatives(args: Sequence[Mapping[str, Any]], place: str) -> list[tuple[Condition, ...]]:
    """Return the conditions; several on one argument are alternatives, as container runtimes take them."""
    conditions = [_condition(one, f"{place}.args[{number}]") for number, one in enumerate(args)]
    if len({condition.index for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [tuple(conditions)]


def _condition(entry: Mapping[str, Any], place: str) -> Condition:
    index, value, second, operation = (entry.get(key) for key in ("index", "value", "valueTwo", "op"))
    second = 0 if second is None else second
    if not isinstance(index, int) or not 0 <= index <= 5:
        raise FilterError(f"{place} has index {index!r}; it is 0 to 5")
    for number in (value, second):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _FULL:
            raise FilterError(f"{place} has value {number!r}; it is 0 to 2**64 - 1")
    value = 0 if value is None else int(value)
    if operation == "SCMP_CMP_MASKED_EQ":
        return Condition(index, value, "==", (second,))
    match operation:
        case "SCMP_CMP_EQ":
            # A negative int, written with 64 bits, is what 32 bits of it say.
            return Condition(index, None, "==", (value - 2**64 if value >= _FULL - 2**31 + 1 else value,))
        case "SCMP_CMP_NE":
            return Condition(index, None, "!=", (value - 2**64 if value >= _FULL - 2**31 + 1 else value,))
        case "SCMP_CMP_LT":
            return Condition(index, None, "<", (value,))
        case "SCMP_CMP_LE":
            return Condition(index, None, "<=", (value,))
        case "SCMP_CMP_GE":
            return Condition(index, None, ">=", (value,))
        case "SCMP_CMP_GT":
            return Condition(index, None, ">", (value,))
        case _:
            raise FilterError(f"{place} has op {operation!r}; it is SCMP_CMP_ and NE, LT, LE, EQ, GE, GT or MASKED_EQ")


def _served(profile: Mapping[str, Any], arch: Arch) -> tuple[Arch, ...]:
    family = next(family for family in FAMILIES if arch in family)
    names: list[str] = list(profile.get("architectures") or ())
    for entry in profile.get("archMap") or ():
        if _ARCHES.get(entry.get("architecture")) == arch:
            names += [entry["architecture"], *(entry.get("subArchitectures") or ())]
    found = [_ARCHES[name] for name in names if name in _ARCHES and _ARCHES[name] in family]
    return order_arches([arch, *found])


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def write(rules: Sequence[Rule], default: Action, arches: tuple[Arch, ...]) -> dict[str, Any]:
    """Write rules as linux.seccomp; `Filter.to_oci` says what it cannot express."""
    found: dict[str, Verdict] = {}
    for arch in arches:
        for name, verdict in verdicts(rules, default, arch).items():
            found.setdefault(name, _whole(verdict, default) if name in MULTIPLEXED else verdict)
    plain: dict[Action, list[str]] = {}
    entries: list[dict[str, Any]] = []
    for name, verdict in found.items():
        if not verdict[0].tests:
            if verdict[0].action != default:
                plain.setdefault(verdict[0].action, []).append(name)
            continue
        for code, args in _paths(name, clauses_of(verdict), default.code, ()):
            entries.append({"names": [name], **_written(decode(code), "action", "errnoRet"), "args": args})
    profile = {
        **_written(default, "defaultAction", "defaultErrnoRet"),
        "architectures": [name for arch in arches for name, one in _ARCHES.items() if one == arch],
        "syscalls": [
            {"names": sorted(names), **_written(action, "action", "errnoRet")} for action, names in plain.items()
        ]
        + entries,
    }
    _prove(profile, rules, default, arches)
    return profile


def _whole(verdict: Verdict, default: Action) -> Verdict:
    """Return one answer for a call with calls inside; the readers of profiles open parts of it by themselves."""
    if not verdict[0].tests:
        return verdict
    strictest = min((clause for clause in verdict), key=lambda clause: strictness(clause.action))
    answer = strictest.action
    if answer == default:  # a rule with the default action would be passed over
        answer = Errno("ENOSYS") if default != Errno("ENOSYS") else Errno("EPERM")
    return (strictest._replace(tests=(), action=answer),)


def _written(action: Action, key: str, number_key: str) -> dict[str, Any]:
    if isinstance(action, Errno):
        return {key: "SCMP_ACT_ERRNO", number_key: action.errno}
    if isinstance(action, Trace):
        return {key: "SCMP_ACT_TRACE", number_key: action.data}
    names = {one: name for name, one in _ACTIONS.items() if name != "SCMP_ACT_KILL"}
    if action not in names:
        raise FilterError(f"the form has no word for {action!r}")
    return {key: names[action]}


_Facts: TypeAlias = tuple[tuple[int, int, Ranges], ...]  # index, mask, values


def _paths(name: str, clauses: Clauses, default: int, facts: _Facts) -> Iterable[tuple[int, list[dict[str, Any]]]]:
    """Return the answers other than the default, each with comparisons under which it is given."""
    if not clauses[0][0]:
        if clauses[0][1] != default:
            yield from ((clauses[0][1], list(args)) for args in _comparisons(name, facts))
        return
    test = clauses[0][0][0]
    cells = cells_of(clauses, test.argument, test.mask)
    by_rest: dict[Clauses, list[tuple[int, int]]] = {}
    for position, (low, rest) in enumerate(cells):
        high = cells[position + 1][0] - 1 if position + 1 < len(cells) else test.mask
        by_rest.setdefault(rest, []).append((low, high))
    for rest, ranges in by_rest.items():
        yield from _paths(name, rest, default, (*facts, (test.argument, test.mask, union(ranges))))


_Blocks: TypeAlias = list[tuple[int, int]]  # mask, value: the argument's bits under the mask are the value's


def _comparisons(name: str, facts: _Facts) -> Iterable[tuple[dict[str, Any], ...]]:
    """Return the alternatives, each with one comparison for each argument: more than that the form does not allow."""
    alternatives: list[list[dict[str, Any]]] = []
    for index in sorted({index for index, _, _ in facts}):
        mine = [Masked(mask, ranges) for one, mask, ranges in facts if one == index]
        needed = [fact for number, fact in enumerate(mine) if not _implied(fact, mine[:number] + mine[number + 1 :])]
        needed = needed or mine[:1]
        if len(needed) == 1 and needed[0].mask == _FULL:
            shown = _whole_words(needed[0].ranges)
        else:
            blocks = _blocks(needed[0])
            for fact in needed[1:]:
                pairs = product(blocks, _blocks(fact))
                blocks = [(a | c, b | d) for (a, b), (c, d) in pairs if b & c == d & a]
            shown = [_equal(mask, value) for mask, value in blocks]
        alternatives.append([{"index": index, **one} for one in shown])
    size = math.prod(len(one) for one in alternatives)
    if size > _MOST:
        raise FilterError(f"a profile would need {size} entries for the rules of {name}")
    return product(*alternatives)


def _implied(fact: Masked, others: Sequence[Masked]) -> bool:
    outside = Masked(fact.mask, complement(fact.ranges, fact.mask))
    return bool(others) and smallest([*others, outside], 64) is None


def _whole_words(ranges: Ranges) -> list[dict[str, Any]]:
    """Return comparisons of all 64 bits, for which the form has more words than for parts of them."""
    if len(ranges) == 2 and ranges[0][0] == 0 and ranges[1] == (ranges[0][1] + 2, _FULL):
        return [{"value": ranges[0][1] + 1, "op": "SCMP_CMP_NE"}]
    found: list[dict[str, Any]] = []
    for low, high in ranges:
        if low == 0 < high:
            found.append({"value": high, "op": "SCMP_CMP_LE"})
        elif high == _FULL > low:
            found.append({"value": low, "op": "SCMP_CMP_GE"})
        else:
            found += [_equal(mask, value) for mask, value in _blocks(Masked(_FULL, ((low, high),)))]
    return found


def _blocks(fact: Masked) -> _Blocks:
    """Cut ranges into aligned blocks: their upper bits are compared, their lower are free."""
    mask, ranges = fact
    found: dict[tuple[int, int], None] = {}
    for low, high in ranges:
        while low <= high:
            size = low & -low or 1 << mask.bit_length()
            while low + size - 1 > high:
                size >>= 1
            kept = mask & ~(size - 1)
            if low & ~(mask | (size - 1)) == 0:
                found[kept, low & kept] = None
            low += size
    return list(found)


def _equal(mask: int, value: int) -> dict[str, Any]:
    if mask == _FULL:
        return {"value": value, "op": "SCMP_CMP_EQ"}
    return {"value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _prove(profile: Mapping[str, Any], rules: Sequence[Rule], default: Action, arches: tuple[Arch, ...]) -> None:
    """Read the profile back and compare."""
    again = read(profile, (), arches[0], (0, 0))
    both = (compile_rules(rules, default, None, arches), compile_rules(again.rules, again.default, None, again.arches))
    wrong = {f"{one.call} on {one.arch}" for one in differences(*both) if one.call not in MULTIPLEXED}
    if wrong:
        raise FilterError(f"a profile cannot express the rules of {', '.join(sorted(wrong)[:5])}")
