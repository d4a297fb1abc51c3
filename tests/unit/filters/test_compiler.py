import pytest
from hypothesis import given, settings, strategies as st

from sandbox.errors import FilterError
from sandbox.filters import Allow, Errno, Filter, Kill, KillThread, Log, Notify, Trace, Trap, arg, bpf
from sandbox.filters.table import AUDIT, X32_BIT, argument_bits, calls

# Calls with arguments of 16, 32 and 64 bits, on the machines whose registers have 64 and 32.
CALLS = ["ioctl", "chmod", "prctl", "clone", "ptrace", "socket", "mprotect", "fchmodat"]
ARCHES = ["x86_64", "i386", "x32", "aarch64", "arm", "riscv64"]
ACTIONS = [Allow, Log, Notify, Trap, Kill, KillThread, Trace(7), Errno("EPERM"), Errno("ENOSYS"), Errno(0)]
EDGES = [0, 1, 2, 0xFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 2, 2**64 - 1]

numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1), st.integers(0, 8))


@st.composite
def conditions(draw: st.DrawFn, index: int) -> "tuple[str, tuple[int, ...], int | None]":
    operation = draw(st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "one_of", "between"]))
    count = {"one_of": draw(st.integers(1, 4)), "between": 2}.get(operation, 1)
    mask = draw(st.none() | numbers)
    values = [draw(numbers) for _ in range(count)]
    return operation, tuple(sorted(values) if operation == "between" else values), mask


@st.composite
def rule_sets(draw: st.DrawFn) -> "list[tuple[int, str, list[tuple[int, tuple]]]]":
    rules = []
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(CALLS))
        count = len(calls().arguments[name][0])
        chosen = draw(st.lists(st.integers(0, count - 1), max_size=3))
        rules.append((draw(st.sampled_from(ACTIONS)), name, [(index, draw(conditions(index))) for index in chosen]))
    return rules


def holds(name: str, arch: str, args: "list[int]", index: int, condition: "tuple") -> bool:
    """Read a condition as the documentation has it, in the words of Python."""
    operation, values, mask = condition
    bits = argument_bits(name, index, arch)
    seen = args[index] % 2**bits
    if mask is not None:
        seen &= mask
    first = values[0]
    return {
        "eq": lambda: seen == first, "ne": lambda: seen != first, "lt": lambda: seen < first,
        "le": lambda: seen <= first, "gt": lambda: seen > first, "ge": lambda: seen >= first,
        "one_of": lambda: seen in values, "between": lambda: first <= seen <= values[1],
    }[operation]()  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(rule_sets(), st.sampled_from(ACTIONS), st.data())
def test_compiled_program_random_rules_answers_as_the_rules_read(rules, default, data) -> None:
    filter = Filter(default, arches=ARCHES)
    kept = []
    for action, name, wanted in rules:
        built = []
        for index, (operation, values, mask) in wanted:
            place = arg(index) if mask is None else arg(index) & mask
            built.append(getattr(place, operation)(*values))
        try:
            filter = filter.rule(action, name, *built)
        except FilterError:  # can never match, or hides an earlier one: refused, and so not part of either
            continue
        kept.append((action, name, wanted))
    program = bpf.decode(filter.to_bytes())
    mentioned = {value for _, _, wanted in kept for _, (_, values, _) in wanted for value in values}
    pool = sorted({(value + step) % 2**64 for value in mentioned | {0, 2**32} for step in (-1, 0, 1)})
    for _ in range(12):
        arch = data.draw(st.sampled_from(ARCHES))
        name = data.draw(st.sampled_from([one for one in CALLS if one in calls().numbers[arch]]))
        args = [data.draw(st.sampled_from(pool) | numbers) for _ in range(6)]
        expected = default
        for action, call, wanted in kept:  # the last that matches decides
            if call == name and all(holds(name, arch, args, index, one) for index, one in wanted):
                expected = action
        code, _ = bpf.run(program, bpf.call_data(calls().numbers[arch][name], AUDIT[arch], args))
        assert expected.code == code, (arch, name, args)


def test_compiled_program_foreign_architecture_kills() -> None:
    filter = Filter(Allow, arches=["x86_64"])
    assert Kill == filter.simulate("read", arch="aarch64")
    assert Kill == filter.simulate("read", arch="i386")


def test_compiled_program_x32_not_served_answers_enosys() -> None:
    filter = Filter(Allow, arches=["x86_64"])
    assert Errno("ENOSYS") == filter.simulate("read", arch="x32")
    assert Errno("ENOSYS") == filter.simulate(0xFFFFFFFF, arch="x86_64")
    assert Allow == filter.simulate(X32_BIT - 1, arch="x86_64")


def test_compiled_program_x32_served_alone_kills_x86_64() -> None:
    filter = Filter(Errno("EPERM"), arches=["x32"]).allow("read")
    assert Allow == filter.simulate("read", arch="x32")
    assert Kill == filter.simulate("read", arch="x86_64")


def test_compiled_program_order_of_arches_does_not_matter() -> None:
    one = Filter(Allow, arches=["x86_64", "i386"]).deny("chmod")
    other = Filter(Allow, arches=["i386", "x86_64"]).deny("chmod")
    assert one == other
    assert one.to_bytes() == other.to_bytes()


def test_compiled_program_many_single_calls_stays_a_tree() -> None:
    filter = Filter(Allow, arches=["x86_64"]).deny(*sorted(calls().numbers["x86_64"])[::3])
    program = bpf.decode(filter.to_bytes())
    for number in calls().numbers["x86_64"].values():
        _, path = bpf.run(program, bpf.call_data(number, AUDIT["x86_64"], ()))
        assert len(path) <= 20


def test_compiled_program_long_jumps_reach() -> None:
    # Every call with another errno: hundreds of returns, which one conditional jump does not span.
    filter = Filter(Allow, arches=["x86_64", "i386"])
    names = sorted(calls().numbers["x86_64"])
    for number, name in enumerate(names):
        filter = filter.deny(name, action=Errno(number + 1))
    assert any(instruction.code == bpf.JA for instruction in bpf.decode(filter.to_bytes()))
    for number, name in enumerate(names):
        assert Errno(number + 1) == filter.simulate(name, arch="x86_64")


def test_compile_too_long_names_the_costly_rules() -> None:
    filter = Filter(Allow, arches=["x86_64"]).deny("read")
    filter = filter.deny("ioctl", arg(2).one_of(*(value * 2**32 + value for value in range(0, 9000, 3))))
    with pytest.raises(FilterError, match=r"4096.*rule 2, deny\(\"ioctl\""):
        filter.to_bytes()


def test_compile_many_masks_does_not_grow_exponentially() -> None:
    # Each rule looks at other bits of three arguments; all at once they would have 2**60 combinations.
    filter = Filter(Allow, arches=["x86_64"])
    for bit in range(20):
        filter = filter.deny(
            "ptrace", (arg(0) & 1 << bit) == 0, (arg(2) & 3 << bit) != 0, (arg(3) & 5 << bit) == 1 << bit
        )
    assert len(filter.to_bytes()) // 8 < 1000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 20), st.sampled_from(ACTIONS)), max_size=20))
def test_compile_is_deterministic(rules) -> None:
    def make() -> bytes:
        filter = Filter(Allow, arches=ARCHES)
        for name, value, action in rules:
            try:
                filter = filter.rule(action, name, arg(0) == value)
            except FilterError:
                continue
        return filter.to_bytes()

    assert make() == make()
