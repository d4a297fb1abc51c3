"""The compiler against libseccomp: the same verdict for every number, architecture and boundary value.

Where the two differ on purpose:

- The kernel passes 32 bits of an int: here the upper half of such an argument is ignored, libseccomp compares it, and
  a rule against a value is passed by setting bit 32. The comparisons below stay within the argument's width;
  `test_oracle_upper_half_of_an_int_is_ignored_here_and_compared_there` shows the difference.
- Calls newer than the installed libseccomp: it drops the rule.
- socketcall(2) and ipc(2) of i386: libseccomp takes the rule for a call inside and looks for its arguments in the
  registers of the outer call, where there is a pointer. Left out where such a rule has conditions.
- x32: its registers have 64 bits, libseccomp looks at the lower half alone.
- Several rules with conditions on several arguments of one call: libseccomp 2.5 merges them into one tree in which a
  failed comparison of one rule does not always lead to the next rule. Random filters have one such rule for a call,
  or several equalities on one argument; `test_oracle_overlapping_rules_are_read_as_written` shows the difference.
"""

import itertools
import json
import os
import random
from pathlib import Path

import libseccomp
import pytest

from sandbox.filters import Action, Allow, Errno, Filter, arg, bpf
from sandbox.filters.actions import decode
from sandbox.filters.table import AUDIT, MULTIPLEXED, NARROW, X32_BIT, argument_bits, calls, names_of, visible_arguments

pytestmark = pytest.mark.skipif(libseccomp.library() is None, reason="needs libseccomp.so.2")

ROOT = Path(__file__).resolve().parents[3]
PROFILES = sorted(
    path
    for place in (
        ROOT.parent / "shared",
        ROOT.parent.parent / "shared",
        Path(os.environ.get("SANDBOX_SHARED", "/nowhere")),
    )
    for path in (place / "data" / "seccomp").glob("*.json")
)
OPERATIONS = {
    "SCMP_CMP_NE": "!=", "SCMP_CMP_LT": "<", "SCMP_CMP_LE": "<=", "SCMP_CMP_EQ": "==", "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">", "SCMP_CMP_MASKED_EQ": "masked",
}  # fmt: skip
INNER = {name for table in MULTIPLEXED.values() for name in table.values()}


def answer(program: "tuple[bpf.Instruction, ...]", number: int, arch: str, args: tuple[int, ...] = ()) -> object:
    code, _ = bpf.run(program, bpf.call_data(number, AUDIT[arch], args))
    return decode(code)


def numbers(arch: str) -> list[int]:
    return [number | (X32_BIT if arch == "x32" else 0) for number in range(1024)]


def compared_bits(name: str, index: int, arch: str) -> int:
    return min(argument_bits(name, index, arch), 32 if arch == "x32" else 64)


def boundary_args(name: str, arch: str, used: "dict[int, set[int]]") -> "list[tuple[int, ...]]":
    """Every combination of the values around what the rules compare with, within the argument's width."""
    choices = []
    for index in range(6):
        top = (1 << compared_bits(name, index, arch)) - 1
        values = {0}
        for value in used.get(index, ()):
            values |= {(value + step) & top for step in (-1, 0, 1)} | {top, (value ^ (1 << 31)) & top}
            values |= {(value ^ (1 << 32)) & top, (value & 0xFFFFFFFF) & top}
        choices.append(sorted(values))
    return list(itertools.islice(itertools.product(*choices), 4000))


def included(entry: dict, capabilities: set[str]) -> bool:
    """The profile's own words for x86_64 and a new kernel; written apart from the library's reader."""
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and "amd64" not in includes["arches"]:
        return False
    if "amd64" in excludes.get("arches", ()):
        return False
    if set(includes.get("caps", ())) - capabilities:
        return False
    return not set(excludes.get("caps", ())) & capabilities


def from_profile(
    path: Path, capabilities: set[str], arches: "list[str]", *, tree: bool = False
) -> "tuple[libseccomp.Context, set[str], dict]":
    profile = json.loads(path.read_text())
    actions = {"SCMP_ACT_ALLOW": lambda _: 0x7FFF0000, "SCMP_ACT_ERRNO": lambda number: 0x00050000 | number}
    default = actions[profile["defaultAction"]](profile["defaultErrnoRet"])
    context = libseccomp.Context(default, arches, tree=tree)
    dropped: set[str] = set()
    used: dict[str, dict[int, set[int]]] = {}
    for entry in profile["syscalls"]:
        action = actions[entry["action"]](entry.get("errnoRet", 1))
        if not included(entry, capabilities) or action == default:
            continue
        args = [
            (one["index"], OPERATIONS[one["op"]], one["value"], one.get("valueTwo", 0))
            for one in entry.get("args") or ()
        ]
        for name in entry["names"]:
            for index, _, first, second in args:
                used.setdefault(name, {}).setdefault(index, set()).update((first, second))
            if not context.add(action, name, args):
                dropped.add(name)
    return context, dropped, used


@pytest.mark.parametrize("capabilities", [(), ("CAP_SYS_ADMIN",), ("CAP_AUDIT_WRITE", "CAP_SYS_TIME", "CAP_BPF")])
@pytest.mark.parametrize("path", PROFILES or [None], ids=lambda path: path.name if path else "none")
def test_oracle_profile_gives_the_same_verdicts(path: "Path | None", capabilities: tuple[str, ...]) -> None:
    if path is None:
        pytest.skip("no profiles in ../shared/data/seccomp")
    arches = ["x86_64", "i386", "x32"]
    context, dropped, used = from_profile(path, set(capabilities), arches)
    theirs = bpf.decode(context.export())
    context.close()
    ours = bpf.decode(Filter.from_oci(path, capabilities=capabilities, arch="x86_64").to_bytes())
    compared, wrong = 0, []
    for arch in arches:
        named = names_of(arch)
        for number in numbers(arch):
            name = named.get(number)
            if name in dropped or (name is not None and name not in INNER and libseccomp.number(name, arch) < 0):
                continue  # newer than the library, or there newer on this architecture
            for args in boundary_args(name, arch, used.get(name, {})) if name else [()]:
                expected, got = answer(theirs, number, arch, args), answer(ours, number, arch, args)
                if expected != got:
                    wrong.append((arch, name or number, args, expected, got))
                compared += 1
    assert [] == wrong[:3]
    assert compared > 3 * 900
    # Foreign machines, and the halves of the number space that nobody has.
    for arch in ("aarch64", "riscv64", "arm"):
        assert answer(theirs, 1, arch) == answer(ours, 1, arch)


def test_oracle_upper_half_of_an_int_is_ignored_here_and_compared_there() -> None:
    context = libseccomp.Context(libseccomp.ALLOW, ["x86_64"])
    context.add(0x00050001, "ioctl", [(1, "==", 0x5412, 0)])
    theirs = bpf.decode(context.export())
    context.close()
    ours = Filter(Allow, arches=["x86_64"]).deny("ioctl", arg(1) == "TIOCSTI")
    number = calls().numbers["x86_64"]["ioctl"]
    assert Allow == answer(theirs, number, "x86_64", (0, 1 << 32 | 0x5412))
    assert Errno("EPERM") == ours.simulate("ioctl", 0, 1 << 32 | 0x5412, arch="x86_64")


# ── random filters ──────────────────────────────────────────────────────────────────────────────────────────────────
EDGES_32 = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x5412, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
EDGES_64 = [*EDGES_32, 0x100000000, 0x100000001, 0x1FFFFFFFF, 0x200000000, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]


def random_condition(choose: random.Random, index: int, bits: int) -> "tuple[object, tuple[int, str, int, int]]":
    edges, top = (EDGES_64, 2**64 - 1) if bits == 64 else (EDGES_32, 2**32 - 1)
    value, operation = choose.choice(edges), choose.choice(["!=", "<", "<=", "==", ">=", ">", "masked"])
    if (operation, value) in (("<", 0), (">", top)):
        operation = "=="
    if operation == "masked":
        mask = choose.choice(edges) | choose.getrandbits(8)
        return (arg(index) & mask) == (value & mask), (index, operation, mask, value & mask)
    compare = {"!=": "ne", "<": "lt", "<=": "le", "==": "eq", ">=": "ge", ">": "gt"}[operation]
    return getattr(arg(index), compare)(value), (index, operation, value, 0)


def random_rules(seed: int, arches: "list[str]") -> "tuple[Filter, bytes, dict[str, dict[int, set[int]]]]":
    choose = random.Random(seed)
    pool = [
        name
        for name in calls().arguments
        if name not in INNER
        and name not in MULTIPLEXED
        and all(name in calls().numbers[arch] and libseccomp.number(name, arch) >= 0 for arch in arches)
    ]
    default = choose.choice([Allow, Errno("EPERM"), Errno("ENOSYS")])
    mine = Filter(default, arches=arches)
    context = libseccomp.Context(default.code, arches)
    used: dict[str, dict[int, set[int]]] = {}

    def add(action: Action, name: str, conditions: list, args: list) -> None:
        nonlocal mine
        mine = mine.rule(action, name, *conditions)
        assert context.add(action.code, name, args)
        for index, _, first, second in args:
            used.setdefault(name, {}).setdefault(index, set()).update((first, second))

    for name in choose.sample(pool, 60):
        action = choose.choice([one for one in (Allow, Errno(5), Errno(6)) if one != default])
        # Arguments that are compared with the same width by both, at the same place on every architecture.
        seen = min(visible_arguments(name, arch) for arch in arches)
        widths = [min(compared_bits(name, index, arch) for arch in arches) for index in range(6)]
        usable = [i for i in range(min(seen, len(calls().arguments[name][0]))) if widths[i] > 16]
        kind = choose.choice(["plain", "and", "or"]) if usable else "plain"
        if kind == "plain":
            add(action, name, [], [])
        elif kind == "and":
            chosen = sorted(choose.sample(usable, choose.randint(1, min(3, len(usable)))))
            pairs = [random_condition(choose, index, widths[index]) for index in chosen]
            add(action, name, [one for one, _ in pairs], [two for _, two in pairs])
        else:
            index = choose.choice(usable)
            for value in choose.sample(EDGES_64 if widths[index] == 64 else EDGES_32, 3):
                add(action, name, [arg(index) == value], [(index, "==", value, 0)])
    raw = context.export()
    context.close()
    return mine, raw, used


@pytest.mark.parametrize("arches", [["x86_64"], ["x86_64", "i386"], ["x86_64", "x32"]], ids="-".join)
@pytest.mark.parametrize("seed", range(8))
def test_oracle_random_filter_gives_the_same_verdicts(seed: int, arches: "list[str]") -> None:
    mine, raw, used = random_rules(seed, arches)
    ours, theirs = bpf.decode(mine.to_bytes()), bpf.decode(raw)
    wrong = []
    for arch in arches:
        named = names_of(arch)
        for number in numbers(arch):
            name = named.get(number)
            if arch in NARROW and name is not None and name not in calls().numbers["x86_64"]:
                continue  # a variant: its general call's rules cover it here, there they do not
            sets = boundary_args(name, arch, used[name]) if name in used else [(), (2**64 - 1,) * 6]
            if len(sets) > 150:
                sets = random.Random(seed).sample(sets, 150)
            for args in sets:
                expected, got = answer(theirs, number, arch, args), answer(ours, number, arch, args)
                if expected != got:
                    wrong.append((arch, name, args, expected, got))
    assert [] == wrong[:3]


def test_oracle_overlapping_rules_are_read_as_written() -> None:
    context = libseccomp.Context(Errno("EPERM").code, ["x86_64"])
    context.add(Allow.code, "ioctl", [(0, ">=", 255, 0)])
    context.add(Allow.code, "ioctl", [(0, "<=", 0x7FFFFFFF, 0), (2, ">=", 127, 0)])
    theirs = bpf.decode(context.export())
    context.close()
    ours = (
        Filter(Errno("EPERM"), arches=["x86_64"])
        .allow("ioctl", arg(0) >= 255)
        .allow("ioctl", arg(0) <= 0x7FFFFFFF, arg(2) >= 127)
    )
    number = calls().numbers["x86_64"]["ioctl"]
    assert Errno("EPERM") == answer(theirs, number, "x86_64", (255,))
    assert Allow == ours.simulate("ioctl", 255, arch="x86_64")


def test_oracle_programs_are_at_most_four_fifths_of_its_binary_tree() -> None:
    for path in PROFILES or [pytest.skip("no profiles in ../shared/data/seccomp")]:
        arches = ["x86_64", "i386", "x32"]
        profile = json.loads(path.read_text())
        sizes = []
        for name in {name for entry in profile["syscalls"] for name in entry["names"]}:
            if libseccomp.number(name) == -1:  # both compile what both know
                for entry in profile["syscalls"]:
                    entry["names"] = [one for one in entry["names"] if one != name]
        profile["syscalls"] = [entry for entry in profile["syscalls"] if entry["names"]]
        for tree in (False, True):
            context, _, _ = from_profile(path, set(), arches, tree=tree)
            sizes.append(len(context.export()) // 8)
            context.close()
        ours = len(Filter.from_oci(profile, arch="x86_64").to_bytes()) // 8
        assert ours <= 0.8 * sizes[1], (path.name, ours, sizes)
