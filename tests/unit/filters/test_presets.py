import subprocess
import sys

import pytest

from sandbox.errors import FilterError
from sandbox.filters import Allow, Errno, Filter, bpf
from sandbox.filters.compiler import compile_rules
from sandbox.filters.groups import members
from sandbox.filters.presets import STORED, STORED_MACHINES, stored
from sandbox.filters.table import calls, names_of

EPERM, ENOSYS = Errno("EPERM"), Errno("ENOSYS")
X86 = ("x86_64", "i386")


@pytest.mark.parametrize("machine", STORED_MACHINES)
@pytest.mark.parametrize("preset", STORED, ids=lambda preset: preset.stored)
def test_stored_program_is_what_a_fresh_compilation_gives(preset, machine: str) -> None:
    program = compile_rules(preset.rules, preset.default, preset.unknown, preset.arches(machine))
    assert bpf.encode(program) == stored(f"{preset.stored}-{machine}"), "run scripts/compile_presets.py"


def test_default_compiled_needs_no_table() -> None:
    code = (
        "from sandbox.filters import Filter, table\n"
        "assert Filter.default().to_bytes()\n"
        "assert table.calls.cache_info().currsize == table.constants.cache_info().currsize == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def x86(filter: Filter) -> Filter:
    """The same rules on x86, whatever machine runs the test."""
    return Filter._make(filter._default, filter._unknown, X86, filter._rules, filter._name, None, None)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        (name, arch)
        for group in ("@privileged", "@trace", "@io-uring", "@obsolete")
        for name in members(group)
        for arch in X86
        if name in calls().numbers[arch]
    ],
)
def test_default_refuses_what_widens_the_kernel_s_surface(name: str, arch: str) -> None:
    full = (2**64 - 1,) * 6
    assert EPERM == x86(Filter.default()).simulate(name, *full, arch=arch)


@pytest.mark.parametrize("arch", X86)
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (("clone3", 0, 0), ENOSYS),
        (("clone", 0x10000000), EPERM),
        (("clone", 0x3D0F00), Allow),
        (("unshare", 0x80), EPERM),
        (("unshare", 0x400), Allow),
        (("unshare", 0x40600), Allow),
        (("unshare", 0x100000), EPERM),  # UNSHARE_EMPTY_MNTNS
        (("personality", 0xFFFFFFFF), Allow),
        (("personality", 0), Allow),
        (("personality", 0x40008), Allow),
        (("personality", 0x400000), EPERM),
        (("socket", 1, 1, 0), Allow),
        (("socket", 2, 0x80801, 6), Allow),
        (("socket", 10, 2, 17), Allow),
        (("socket", 2, 3, 1), Allow),
        (("socket", 2, 1, 132), Errno("EPROTONOSUPPORT")),
        (("socket", 2, 10, 0), Errno("EPROTONOSUPPORT")),
        (("socket", 16, 3, 0), Allow),
        (("socket", 16, 3, 9), Errno("EPROTONOSUPPORT")),
        (("socket", 17, 3, 0), Errno("EAFNOSUPPORT")),
        (("socket", 38, 5, 0), Errno("EAFNOSUPPORT")),
        (("socket", 40, 1, 0), Errno("EAFNOSUPPORT")),
        (("socketpair", 1, 1, 0), Allow),
        (("socketpair", 30, 1, 0), Errno("EAFNOSUPPORT")),
        (("ioctl", 0, 0x5412), EPERM),
        (("ioctl", 0, 0x541C), EPERM),
        (("ioctl", 0, 0x5423), EPERM),
        (("ioctl", 0, 0x5413), Allow),
        ((1000,), ENOSYS),
    ],
)
def test_default_decides_by_arguments(call, answer, arch: str) -> None:
    assert answer == x86(Filter.default()).simulate(*call, arch=arch)


def test_default_upper_half_of_an_int_does_not_hide_it() -> None:
    f = x86(Filter.default())
    assert EPERM == f.simulate("ioctl", 0, 2**32 + 0x5412, arch="x86_64")
    assert Errno("EAFNOSUPPORT") == f.simulate("socket", 2**32 + 40, arch="x86_64")
    assert EPERM == f.simulate("personality", 2**32 + 0x400000, arch="x86_64")


def test_default_no_call_runs_on_i386_or_x32_that_x86_64_refuses() -> None:
    f = x86(Filter.default())
    for name in calls().numbers["i386"]:
        if name in calls().numbers["x86_64"] and EPERM == f.simulate(name, *(2**64 - 1,) * 6, arch="x86_64"):
            assert Allow != f.simulate(name, *(2**32 - 1,) * 6, arch="i386"), name
    for number in names_of("x32"):
        assert ENOSYS == f.simulate(number, arch="x32")
    assert Allow != f.simulate("socketcall", 1, arch="i386")
    assert Allow == f.simulate("socketcall", 3, arch="i386")


def test_default_nesting_opens_namespaces_and_mounts_alone() -> None:
    opened = {d.call for d in x86(Filter.default(nesting=True)).diff(x86(Filter.default()))}
    assert {*members("@mount"), *members("@namespace"), "clone", "clone3", "keyctl", "umount"} == opened


@pytest.mark.parametrize("arch", X86)
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (("chmod", 0, 0o4755), EPERM), (("chmod", 0, 0o2755), EPERM), (("chmod", 0, 0o1777), Allow),
        (("fchmod", 0, 0o4000), EPERM), (("fchmodat", 0, 0, 0o4000), EPERM), (("fchmodat2", 0, 0, 0o2000, 0), EPERM),
        (("creat", 0, 0o4755), EPERM), (("mknod", 0, 0o102755), EPERM), (("mknodat", 0, 0, 0o104755), EPERM),
        (("mkdir", 0, 0o2755), EPERM), (("mkdirat", 0, 0, 0o2755), EPERM), (("mkdir", 0, 0o755), Allow),
        (("open", 0, 0o101, 0o4755), EPERM), (("open", 0, 0o101, 0o644), Allow), (("open", 0, 0, 0o4755), Allow),
        (("openat", 0, 0, 0o101, 0o2755), EPERM), (("openat", 0, 0, 0o20200001, 0o4755), EPERM),
        (("openat2", 0, 0, 0, 0), ENOSYS),
    ],
)  # fmt: skip
def test_default_without_setid_refuses_the_bits(call, answer, arch: str) -> None:
    assert answer == x86(Filter.default(setid=False)).simulate(*call, arch=arch)


@pytest.mark.parametrize("arch", X86)
def test_strict_allows_computation_on_open_descriptors_alone(arch: str) -> None:
    f = x86(Filter.strict())
    for name in ("read", "write", "close", "exit_group", "futex", "clock_gettime", "munmap", "rt_sigreturn"):
        assert Allow == f.simulate(name, arch=arch), name
    for name in ("open", "openat", "socket", "execve", "clone", "kill", "ptrace", "prctl", "mount"):
        if name in calls().numbers[arch]:
            assert EPERM == f.simulate(name, arch=arch), name
    assert [Allow, EPERM] == [f.simulate("mprotect", 0, 0, prot, arch=arch) for prot in (3, 7)]


def test_docker_capability_opens_its_calls() -> None:
    assert EPERM == Filter.docker().simulate("mount", arch="x86_64")
    assert Allow == Filter.docker(capabilities=["SYS_ADMIN"]).simulate("mount", arch="x86_64")
    assert ENOSYS == Filter.docker().simulate("clone3", arch="x86_64")
    with pytest.raises(FilterError, match="did you mean CAP_SYS_ADMIN"):
        Filter.docker(capabilities=["SYS_ADMN"])
    with pytest.raises(TypeError):
        Filter.docker(capabilities="SYS_ADMIN")
