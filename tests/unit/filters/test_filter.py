import pickle

import pytest

import sandbox.filters
from sandbox.errors import FilterError
from sandbox.filters import (
    Action,
    Allow,
    Arg,
    Condition,
    Errno,
    Filter,
    Kill,
    KillThread,
    Log,
    Notify,
    Trace,
    Trap,
    arg,
)
from sandbox.filters.actions import decode, strictness

EPERM = Errno("EPERM")


# ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("action", "code"),
    [
        (Allow, 0x7FFF0000), (Log, 0x7FFC0000), (Notify, 0x7FC00000), (Trace(5), 0x7FF00005), (Errno(1), 0x00050001),
        (Trap, 0x00030000), (KillThread, 0), (Kill, 0x80000000),
    ],
)  # fmt: skip
def test_action_has_the_kernel_s_number_and_comes_back_from_it(action: Action, code: int) -> None:
    assert code == action.code
    assert action == decode(code)
    assert type(action) is type(decode(code))
    assert action == pickle.loads(pickle.dumps(action))
    assert hash(action) == hash(pickle.loads(pickle.dumps(action)))


def test_action_unknown_to_the_kernel_is_kill() -> None:
    assert Kill == decode(0x12340000)


def test_actions_are_in_the_kernel_s_order_of_strictness() -> None:
    order = [Kill, KillThread, Trap, EPERM, Notify, Trace(), Log, Allow]
    assert order == sorted([Allow, Log, *order[:-2]], key=strictness)


def test_errno_matches_by_attribute() -> None:
    match Errno("ENOSYS"):
        case Errno(errno=number):
            assert 38 == number
        case _:
            pytest.fail("no match")


@pytest.mark.parametrize("wrong", [-1, 4096, "EWRONG"])
def test_errno_out_of_range_is_a_value_error(wrong: object) -> None:
    with pytest.raises(ValueError, match="errno must be"):
        Errno(wrong)


# ── conditions ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "wrong",
    [
        lambda: bool(arg(1) == 1),
        lambda: 0 < arg(1) < 5,
        lambda: not (arg(1) == 1),
        lambda: (arg(0) == 1) and (arg(1) == 1),
        lambda: arg(0) == True,  # noqa: E712  # the mistake itself
        lambda: arg(0) == 1.5,
        lambda: arg("0"),
    ],
)
def test_condition_used_as_a_truth_value_is_a_type_error(wrong) -> None:
    with pytest.raises(TypeError):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [lambda: arg(6), lambda: arg(-1), lambda: arg(0) == 2**64, lambda: arg(0) < -1, lambda: arg(0).one_of(),
     lambda: arg(0) & 1 & 2],
)  # fmt: skip
def test_condition_out_of_range_is_a_value_error(wrong) -> None:
    with pytest.raises(ValueError, match=r"must|needs|has a mask"):
        wrong()


def test_condition_operators_are_the_methods() -> None:
    assert (arg(1) == 3) == arg(1).eq(3)
    assert (3 < arg(1)) == arg(1).gt(3)
    assert (0xFF & arg(1)).eq(3) == ((arg(1) & 0xFF) == 3)
    assert '(arg(1) & "CLONE_NEWUSER") != 0' == repr((arg(1) & "CLONE_NEWUSER") != 0)
    assert isinstance(arg(0), Arg)
    assert isinstance(arg(0) == 1, Condition)
    with pytest.raises(TypeError):
        hash(arg(0))


# ── a value ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_filter_is_frozen_hashable_and_pickles() -> None:
    one = Filter.default().deny("chown").allow("socket", arg(0).one_of("AF_UNIX", "AF_VSOCK"))
    other = pickle.loads(pickle.dumps(one))
    assert one == other
    assert hash(one) == hash(other)
    assert one.to_bytes() == other.to_bytes()
    assert one != Filter.default()
    assert {one: 1}[other] == 1
    with pytest.raises(AttributeError, match="frozen"):
        one._rules = ()


def test_filter_methods_return_new_ones() -> None:
    one = Filter(Allow)
    assert one.deny("chown") != one
    assert Filter(Allow) == one


def test_filter_repr_is_the_expression() -> None:
    made = Filter(EPERM).allow("read", "write").deny("ioctl", arg(1) == "TIOCSTI", action=Kill)
    text = 'Filter(Errno("EPERM")).allow("read", "write").deny("ioctl", arg(1) == "TIOCSTI", action=Kill)'
    assert text == repr(made)
    assert made == eval(text, vars(sandbox.filters))
    assert 'Filter.default().deny("chown")' == repr(Filter.default().deny("chown"))


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_filter_sample_of_the_documentation() -> None:
    f = (
        Filter.default()
        .deny("@clock", "@module", action=Errno("EPERM"))
        .allow("socket", arg(0).one_of("AF_UNIX", "AF_INET6"))
        .deny("ioctl", arg(1) == "TIOCSTI")
    )
    assert Errno("EPERM") == f.simulate("ioctl", 0, 0x1_0000_5412, arch="x86_64")


def test_filter_last_rule_that_matches_decides() -> None:
    f = Filter(EPERM, arches=["x86_64"]).allow("@network").deny("socket").allow("socket", arg(0) == "AF_UNIX")
    assert Allow == f.simulate("socket", 1, arch="x86_64")
    assert EPERM == f.simulate("socket", 2, arch="x86_64")
    assert Allow == f.simulate("connect", arch="x86_64")


def test_filter_conditions_of_one_rule_must_all_hold() -> None:
    f = Filter(EPERM, arches=["x86_64"]).allow("socket", arg(0) == 1, (arg(1) & 0xF) == 2)
    assert [Allow, EPERM, EPERM] == [f.simulate("socket", *a, arch="x86_64") for a in ((1, 2), (1, 1), (2, 2))]


def test_filter_conflict_names_both_rules() -> None:
    with pytest.raises(FilterError, match=r'rule 1, allow\("read"\), can never decide.*rule 2, deny\("read"\)'):
        Filter(EPERM).allow("read").deny("read")


def test_filter_unreachable_rule_names_both_rules() -> None:
    f = Filter(EPERM).allow("ioctl", arg(1) == 5, arg(0) == 1)
    with pytest.raises(FilterError, match=r"rule 1, .*rule 2, deny"):
        f.deny("ioctl", arg(1).between(3, 7))
    f.deny("ioctl", arg(1).between(6, 7))


def test_filter_exception_from_a_group_is_no_conflict() -> None:
    f = Filter(Allow, arches=["x86_64"]).deny("@mount").allow("chroot")
    assert [EPERM, Allow] == [f.simulate(name, arch="x86_64") for name in ("mount", "chroot")]


def test_filter_repeated_rule_is_no_conflict() -> None:
    assert Filter(EPERM).allow("read").allow("read", "write")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.allow("opnat"), "did you mean openat"),
        (lambda f: f.allow("@netwrk"), "did you mean @network"),
        (lambda f: f.deny("ioctl", arg(1) == "TIOCSTY"), "TIOCSTI"),
        (lambda f: f.deny("ioctl", arg(1) == 2**32), "argument 1 of ioctl has 32 bits"),
        (lambda f: f.deny("chmod", arg(1) == 0o4755 + 2**16), "16 bits"),
        (lambda f: f.deny("ioctl", arg(1) == 1, arg(1) == 2), "contradict"),
        (lambda f: f.deny("ioctl", (arg(1) & 4) == 3), "can never match"),
        (lambda f: f.deny("close", arg(3) == 1), "close has 1 arguments"),
    ],
)
def test_filter_wrong_rule_is_an_error_that_says_what(make, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        make(Filter(Allow))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Filter(1),
        lambda: Filter(Allow, arches="x86_64"),
        lambda: Filter(Allow).deny("read", "write", arg(0) == 1),
        lambda: Filter(Allow).deny("read", action="EPERM"),
        lambda: Filter(Allow).deny("read", 5),
        lambda: Filter(Allow).deny(5),
    ],
)
def test_filter_wrong_type_is_a_type_error(make) -> None:
    with pytest.raises(TypeError):
        make()


def test_filter_deny_with_allow_is_refused() -> None:
    with pytest.raises(ValueError, match="that is allow"):
        Filter(Allow).deny("read", action=Allow)


def test_filter_unknown_arch_is_an_error() -> None:
    with pytest.raises(FilterError, match="no architecture is named 'mips'"):
        Filter(Allow, arches=["mips"])


# ── 32-bit variants ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_rule_covers_the_variants_of_32_bit_programs() -> None:
    f = Filter(Allow, arches=["x86_64", "i386"]).deny("chown", "mmap", "clock_settime", "umount2", "shmat")
    for name in ("chown", "chown32", "mmap", "mmap2", "clock_settime64", "umount"):
        assert EPERM == f.simulate(name, arch="i386"), name
    # ipc(2) strips a version from the number of the call.
    assert [EPERM, EPERM, Allow] == [f.simulate("ipc", n, arch="i386") for n in (21, 1 << 16 | 21, 22)]


def test_rule_for_a_variant_alone_leaves_the_general_call() -> None:
    f = Filter(Allow, arches=["x86_64", "i386"]).deny("chown32")
    assert [Allow, EPERM] == [f.simulate(name, arch="i386") for name in ("chown", "chown32")]


def test_arguments_that_cannot_be_seen_get_the_strictest_answer() -> None:
    f = Filter(EPERM, arches=["x86_64", "i386"]).allow("socket", arg(0) == "AF_UNIX").allow("bind")
    assert Allow == f.simulate("socket", 1, arch="i386")
    assert [EPERM, Allow, EPERM] == [f.simulate("socketcall", n, arch="i386") for n in (1, 2, 3)]
    g = Filter(Allow, arches=["x86_64", "i386"]).deny("mmap", (arg(2) & "PROT_EXEC") != 0)
    assert [EPERM, Allow] == [g.simulate(name, arch="i386") for name in ("mmap", "mmap2")]
    assert EPERM == g.simulate("mmap2", 0, 0, 4, arch="i386")
    h = Filter(Allow, arches=["x86_64", "i386"]).deny("fallocate", arg(2) > 5)
    assert [EPERM, Allow] == [h.simulate("fallocate", arch=arch) for arch in ("i386", "x86_64")]


def test_socketcall_itself_may_be_named() -> None:
    f = Filter(EPERM, arches=["x86_64", "i386"]).allow("socket", arg(0) == "AF_UNIX").allow("socketcall")
    assert Allow == f.simulate("socketcall", 1, arch="i386")


# ── without a kernel ────────────────────────────────────────────────────────────────────────────────────────────────
def test_explain_names_the_rule() -> None:
    f = Filter(EPERM, arches=["x86_64", "i386"]).allow("@io").deny("ioctl", arg(1) == "TIOCSTI")
    assert 'rule 2: deny("ioctl", arg(1) == "TIOCSTI")' in f.explain("ioctl", 0, 0x5412, arch="x86_64")
    assert 'rule 1: allow("@io")' in f.explain("read", arch="x86_64")
    assert "default action" in f.explain("mount", arch="x86_64")
    assert "variant" in f.explain("_llseek", arch="i386")
    assert "x32 is not served" in f.explain("read", arch="x32")
    assert "serves x86_64, i386 alone" in f.explain("read", arch="aarch64")
    assert "has no call 1000" in Filter.default().explain(1000, arch="x86_64")


def test_simulate_unknown_call_lists_near_ones() -> None:
    with pytest.raises(FilterError, match="did you mean read"):
        Filter(Allow).simulate("raed", arch="x86_64")


def test_from_bytes_round_trip_answers_the_same() -> None:
    one = Filter.default().deny("chown")
    raw = Filter.from_bytes(one.to_bytes())
    assert raw.to_bytes() == one.to_bytes()
    assert [] == list(raw.diff(one))
    assert EPERM == raw.simulate("chown", arch="x86_64")
    assert "by instruction" in raw.explain("chown", arch="x86_64")
    assert raw == pickle.loads(pickle.dumps(raw))
    with pytest.raises(FilterError, match="has no rules"):
        raw.allow("read")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "positive multiple"),
        (b"\x06\x00\x00", "positive multiple"),
        (bytes.fromhex("2000000000000000"), "last instruction"),
        (bytes.fromhex("2000000040000000 0600000000000000"), "no word"),
        (bytes.fromhex("1500050000000000 0600000000000000"), "jump out"),
        (bytes.fromhex("3400000000000000 0600000000000000"), "division"),
        (bytes.fromhex("2800000000000000 0600000000000000"), "not allowed"),
        (bytes.fromhex("0600000000000000") * 4097, "at most 4096"),
    ],
)
def test_from_bytes_what_the_kernel_refuses_is_refused(program: bytes, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Filter.from_bytes(program)


def test_disassemble_names_calls_words_and_actions() -> None:
    f = Filter(Allow, arches=["x86_64"]).deny("ioctl", arg(1) == "TIOCSTI")
    text = f.disassemble()
    for part in (
        "; arch",
        "; x86_64",
        "; number",
        "; ioctl",
        "; arg 1 (low)",
        "ret 0x50001",
        '; Errno("EPERM")',
        "; Kill",
    ):
        assert part in text, part
    assert len(text.splitlines()) == len(f.to_bytes()) // 8


def test_diff_finds_each_call_and_condition() -> None:
    one = Filter(Allow, arches=["x86_64"])
    other = one.deny("chown").deny("ioctl", arg(1) == "TIOCSTI").deny("mprotect", (arg(2) & 4) != 0, arg(1) > 2**33)
    found = {d.call: d for d in one.diff(other)}
    assert {"chown", "ioctl", "mprotect"} == set(found)
    assert (0, 0x5412) == found["ioctl"].args
    for difference in found.values():
        assert difference.left == one.simulate(difference.call, *difference.args, arch="x86_64")
        assert difference.right == other.simulate(difference.call, *difference.args, arch="x86_64")


def test_diff_equal_answers_by_other_rules_is_empty() -> None:
    one = Filter(EPERM, arches=["x86_64"]).allow("ioctl", arg(1) < 10)
    other = Filter(Allow, arches=["x86_64"]).deny(*sorted(sandbox.filters.filter.calls().numbers["x86_64"]))
    other = other.allow("ioctl", arg(1).between(0, 4)).allow("ioctl", arg(1).between(5, 9))
    calls = [difference.call for difference in one.diff(other)]
    assert all(call.isdigit() for call in calls), calls
