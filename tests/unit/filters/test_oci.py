import json
import os
from pathlib import Path

import pytest
from hypothesis import assume, given, settings, strategies as st

from sandbox.errors import FilterError
from sandbox.filters import Allow, Errno, Filter, Kill, KillThread, Notify, Trace, arg
from sandbox.filters.table import MULTIPLEXED

EPERM = Errno("EPERM")
ROOT = Path(__file__).resolve().parents[3]
PROFILES = [
    path
    for place in (ROOT.parent, ROOT.parent.parent, Path(os.environ.get("SANDBOX_SHARED", "/nowhere")).parent)
    for path in sorted((place / "shared" / "data" / "seccomp").glob("*.json"))
]


def profile(*syscalls: dict, **more: object) -> dict:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(syscalls), **more}


def entry(name: str, *args: tuple, action: str = "SCMP_ACT_ALLOW", **more: object) -> dict:
    made = [dict(zip(("index", "op", "value", "valueTwo"), one, strict=False)) for one in args]
    return {"names": [name], "action": action, "args": made, **more}


def test_from_oci_reads_file_and_mapping_and_whole_configuration(tmp_path: Path) -> None:
    source = profile(entry("read"))
    (tmp_path / "p.json").write_text(json.dumps(source))
    (tmp_path / "c.json").write_text(json.dumps({"linux": {"seccomp": source}}))
    one = Filter.from_oci(source, arch="x86_64")
    assert one == Filter.from_oci(tmp_path / "p.json", arch="x86_64")
    assert one == Filter.from_oci(os.fsencode(tmp_path / "c.json"), arch="x86_64")
    assert [Allow, EPERM] == [one.simulate(name, arch="x86_64") for name in ("read", "write")]


@pytest.mark.parametrize(
    ("operation", "value", "second", "allowed"),
    [
        ("SCMP_CMP_EQ", 5, 0, [5]), ("SCMP_CMP_NE", 5, 0, [4, 6]), ("SCMP_CMP_LT", 5, 0, [4]),
        ("SCMP_CMP_LE", 5, 0, [4, 5]), ("SCMP_CMP_GT", 5, 0, [6]), ("SCMP_CMP_GE", 5, 0, [5, 6]),
        ("SCMP_CMP_MASKED_EQ", 6, 4, [4, 5]),
    ],
)  # fmt: skip
def test_from_oci_operations(operation: str, value: int, second: int, allowed: list[int]) -> None:
    f = Filter.from_oci(profile(entry("mprotect", (1, operation, value, second))), arch="x86_64")
    assert allowed == [n for n in (4, 5, 6) if f.simulate("mprotect", 0, n, arch="x86_64") == Allow]


def test_from_oci_actions() -> None:
    names = {
        "SCMP_ACT_KILL": KillThread, "SCMP_ACT_KILL_PROCESS": Kill, "SCMP_ACT_NOTIFY": Notify,
    }  # fmt: skip
    for name, action in names.items():
        f = Filter.from_oci(profile(entry("read", action=name)), arch="x86_64")
        assert action == f.simulate("read", arch="x86_64")
    f = Filter.from_oci(
        profile(
            entry("read", action="SCMP_ACT_ERRNO", errnoRet=38),
            entry("write", action="SCMP_ACT_ERRNO", errno="EINVAL"),
            entry("open", action="SCMP_ACT_TRACE", errnoRet=9),
        ),
        arch="x86_64",
    )
    answers = [f.simulate(name, arch="x86_64") for name in ("read", "write", "open", "close")]
    assert [Errno(38), Errno(22), Trace(9), EPERM] == answers


@pytest.mark.parametrize(
    ("condition", "options", "included"),
    [
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, {}, False),
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, {"capabilities": ["sys_admin"]}, True),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, {"capabilities": ["CAP_SYS_ADMIN"]}, False),
        ({"includes": {"arches": ["amd64"]}}, {}, True),
        ({"includes": {"arches": ["arm64"]}}, {}, False),
        ({"excludes": {"arches": ["amd64"]}}, {}, False),
        ({"includes": {"minKernel": "4.8"}}, {"kernel": (4, 8)}, True),
        ({"includes": {"minKernel": "4.8"}}, {"kernel": (4, 7)}, False),
        ({"excludes": {"minKernel": "4.8"}}, {"kernel": (5, 0)}, False),
    ],
)
def test_from_oci_includes_and_excludes(condition: dict, options: dict, included: bool) -> None:
    f = Filter.from_oci(profile(entry("read", **condition)), arch="x86_64", **options)
    assert (Allow if included else EPERM) == f.simulate("read", arch="x86_64")


def test_from_oci_architectures() -> None:
    both = profile(entry("read"), architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    mapped = profile(
        entry("read"),
        archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
    )
    assert ("x86_64", "i386") == Filter.from_oci(both, arch="x86_64")._arches
    assert ("x86_64", "i386", "x32") == Filter.from_oci(mapped, arch="x86_64")._arches
    assert ("aarch64",) == Filter.from_oci(mapped, arch="aarch64")._arches


def test_from_oci_several_conditions_on_one_argument_are_alternatives() -> None:
    f = Filter.from_oci(profile(entry("mprotect", (1, "SCMP_CMP_EQ", 1), (1, "SCMP_CMP_EQ", 2))), arch="x86_64")
    assert [EPERM, Allow, Allow, EPERM] == [f.simulate("mprotect", 0, n, arch="x86_64") for n in range(4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "defaultAction"),
        (profile(entry("read", action="SCMP_ACT_X")), r"syscalls\[0\] has action 'SCMP_ACT_X'"),
        (profile(entry("read", (9, "SCMP_CMP_EQ", 1))), r"syscalls\[0\].args\[0\] has index 9"),
        (profile(entry("read", (0, "EQ", 1))), r"args\[0\] has op 'EQ'"),
        (profile(entry("read", (0, "SCMP_CMP_EQ", -1))), "has value -1"),
        (profile(entry("read", includes={"minKernel": "new"})), "minKernel"),
        (profile(entry("read", action="SCMP_ACT_ERRNO", errnoRet=5000)), "errno must be"),
    ],
)
def test_from_oci_wrong_profile_names_the_place(wrong: dict, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Filter.from_oci(wrong, arch="x86_64")


def test_from_oci_not_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(FilterError, match="is not JSON"):
        Filter.from_oci(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        Filter.from_oci(tmp_path / "none")


edges = st.sampled_from([0, 1, 7, 8, 255, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mprotect", "ioctl", "chmod", "ptrace"]),
            st.lists(
                st.tuples(st.integers(0, 1), st.sampled_from(["eq", "ne", "lt", "ge", "between"]), edges, edges),
                max_size=2,
            ),
            st.sampled_from([Allow, Errno(5), Kill]),
        ),
        max_size=5,
    )
)
def test_to_oci_read_back_gives_the_same_verdicts(rules) -> None:
    filter = Filter(EPERM, arches=["x86_64"])
    for name, conditions, action in rules:
        made = [
            arg(index).between(*sorted((first, second))) if how == "between" else getattr(arg(index), how)(first)
            for index, how, first, second in conditions
        ]
        try:
            filter = filter.rule(action, name, *made)
        except FilterError:
            continue
    try:
        written = filter.to_oci()
    except FilterError as error:  # two-sided ranges of several arguments: more entries than anybody would read
        assume("would need" not in str(error))
        raise
    again = Filter.from_oci(json.loads(json.dumps(written)), arch="x86_64")
    assert [] == list(filter.diff(again))


def test_to_oci_of_the_presets_keeps_every_known_call() -> None:
    for filter in (Filter.default(), Filter.docker(), Filter.default(nesting=True, setid=False)):
        again = Filter.from_oci(filter.to_oci())
        different = {d.call for d in filter.diff(again)}
        assert all(call.isdigit() or call in MULTIPLEXED for call in different), different


def test_to_oci_what_differs_between_architectures_is_an_error() -> None:
    # On i386 the arguments of mmap are in memory; the form has one rule for both.
    with pytest.raises(FilterError, match="cannot express the rules of mmap on i386"):
        Filter(EPERM, arches=["x86_64", "i386"]).allow("mmap", arg(2) == 0).to_oci()


@pytest.mark.parametrize("capabilities", [(), ("CAP_SYS_ADMIN",), ("CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_BPF")])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_docker_has_the_verdicts_of_docker_s_profile(
    machine: str, capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [path for path in PROFILES if path.name == "moby-default.json"]
    if not paths:
        pytest.skip("no profiles in ../shared/data/seccomp")
    monkeypatch.setattr("sandbox.filters.filter.machine", lambda: machine)
    theirs = Filter.from_oci(paths[0], arch=machine, capabilities=capabilities)  # type: ignore[arg-type]
    different = Filter.docker(capabilities=capabilities).diff(theirs)
    # Numbers that no table has: the profile refuses with EPERM, its runtimes with ENOSYS, and so does the preset.
    assert all(d.call.isdigit() and d.left == Errno("ENOSYS") for d in different), different
