"""seccomp, nesting, landlock, capabilities, observe: values, and what each refuses at once."""

import pickle

import pytest

from sandbox import Allow, Errno, Filter, FilterError, Landlock, Notify, Sandbox, compiler
from sandbox.compiler import filters

CALLER = compiler.Caller(1000, 1000, privileged=False)
ROOT = compiler.Caller(0, 0, privileged=True)
LAYERED = (
    Sandbox()
    .seccomp(Filter.default().deny("chown"))
    .landlock(read=["/usr"])
    .landlock(Landlock(scope=["signal"]))
    .capabilities(["NET_ADMIN"], ambient=["CAP_NET_RAW"])
    .observe()
)


def origins(box: Sandbox, call: str) -> list[str]:
    compiled = compiler.compile_plan(box._spec, CALLER, compiler.Variant())
    return [step.origin for step in compiled.plan.steps if step.call == call]


def test_layered_sandbox_is_a_value() -> None:
    again = pickle.loads(pickle.dumps(LAYERED))
    assert again == LAYERED
    assert hash(again) == hash(LAYERED)
    assert Sandbox() != LAYERED


def test_later_calls_replace_and_layers_add_up() -> None:
    assert Sandbox().seccomp(None).seccomp(Filter.default()) == Sandbox().seccomp(Filter.default())
    assert [".landlock()"] * 2 == origins(LAYERED, "landlock_restrict_self")
    assert [] == origins(LAYERED.landlock(None), "landlock_restrict_self")
    assert [] == origins(Sandbox().seccomp(None), "seccomp")
    assert ["Sandbox()"] == origins(Sandbox(), "seccomp")
    assert [".nesting()"] == origins(Sandbox().nesting(), "seccomp")


def test_filter_is_the_step_before_execve() -> None:
    for box in (Sandbox(), LAYERED, Sandbox().capabilities(["SYS_ADMIN"]), Sandbox().nesting().landlock(read=["/"])):
        steps = box.plan(["true"]).steps
        assert "execve" == steps[-1].call
        assert steps[-2].call in {"seccomp", "seccomp_listen"}


@pytest.mark.parametrize("nesting", [False, True])
def test_stored_programs_are_those_of_the_presets(nesting: bool) -> None:
    box = Sandbox().nesting() if nesting else Sandbox()
    root = box.user(0, host_root=True)
    for spec, caller, setid in ((box._spec, CALLER, True), (box._spec, ROOT, True), (root._spec, ROOT, False),
                                (root._spec, CALLER, True)):  # fmt: skip
        assert Filter.default(nesting=nesting, setid=setid).to_bytes() == filters.preset_program(spec, caller)
        assert Filter.default(nesting=nesting, setid=setid) == filters.filter_of(spec, caller)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Sandbox().seccomp("default"), TypeError, "filter must be a Filter or None, not str"),  # type: ignore[arg-type]
        (lambda: Sandbox().seccomp(Filter.default().to_bytes()), TypeError, "not bytes"),  # type: ignore[arg-type]
        (lambda: Sandbox().seccomp(Filter.strict()), FilterError, "execve"),
        (lambda: Sandbox().seccomp(Filter.default()).nesting(), ValueError, "nesting=True"),
        (lambda: Sandbox().seccomp(None).nesting(), ValueError, "nesting=True"),
        (lambda: Sandbox().landlock(), ValueError, "one of them"),
        (lambda: Sandbox().landlock(Landlock(read=["/"]), read=["/"]), ValueError, "not both"),
        (lambda: Sandbox().landlock(["/usr"]), TypeError, "not list"),  # type: ignore[arg-type]
        (lambda: Sandbox().landlock(read="/usr"), TypeError, "read must be a list"),
        (lambda: Sandbox().landlock(read=["usr"]), ValueError, "absolute"),
        (lambda: Sandbox().landlock(connect_tcp=[70000]), ValueError, "65535"),
        (lambda: Sandbox().landlock(scope=["all"]), ValueError, "scope"),
        (lambda: Sandbox().landlock(reed=["/"]), TypeError, "reed"),  # type: ignore[call-arg]
        (lambda: Sandbox().capabilities("NET_ADMIN"), TypeError, "keep must be a list"),
        (lambda: Sandbox().capabilities([], ambient="NET_ADMIN"), TypeError, "ambient must be a list"),
        (lambda: Sandbox().capabilities([12]), TypeError, "not int"),  # type: ignore[list-item]
        (lambda: Sandbox().capabilities(["NET_ADMIM"]), ValueError, "CAP_NET_ADMIN"),
        (lambda: Sandbox().seccomp(None).observe(), ValueError, "leaves none"),
        (lambda: Sandbox().observe().seccomp(None), ValueError, "leaves none"),
        (lambda: Sandbox().observe().seccomp(Filter(Notify)), FilterError, "one supervisor"),
        (lambda: Sandbox().seccomp(Filter(Allow).rule(Notify, "mkdir")).observe(), FilterError, "one supervisor"),
    ],
)  # fmt: skip
def test_mistake_is_refused_by_the_method_that_got_it(make, error, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        make()
    assert said in str(caught.value)


def test_names_of_capabilities_may_be_written_in_any_way() -> None:
    one = Sandbox().capabilities(["CAP_NET_ADMIN"], ambient=["cap_chown"])
    assert one == Sandbox().capabilities(["net_admin", "chown"], ambient=["CHOWN"])
    assert Sandbox() == Sandbox().capabilities()


def test_notifies_finds_the_question_wherever_it_is() -> None:
    assert filters.notifies(Filter(Errno("EPERM")).rule(Notify, "mkdir").to_bytes())
    assert not filters.notifies(Filter.default().to_bytes())
