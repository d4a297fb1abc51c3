"""The filter as a layer of Sandbox: in force, replaced, refused, without; and errors that come after it."""

import os
import stat
import struct

import payloads
import pytest
from payloads import number, script, status, tell

from sandbox import DEVNULL, Allow, Errno, Filter, FilterError, Kill, Log, Reason, Sandbox, SetupError, Trap, arg

pytestmark = pytest.mark.needs_userns

SECCOMP = 'say([status("Seccomp"), status("Seccomp_filters")])'
NO_FILTER = "no system-call filter: every call of the kernel is open to the payload"


def filters_of_caller() -> int:
    return int(status("Seccomp_filters"))


def test_default_filter_is_in_force_once():
    result = Sandbox().run(script(SECCOMP), capture_output=True, text=True)
    assert f'["2", "{filters_of_caller() + 1}"]' == result.stdout.strip()
    assert 1 == result.enforced.seccomp_filters - bool(filters_of_caller())
    assert NO_FILTER not in result.enforced.gaps


def test_seccomp_none_has_no_filter_and_says_what_that_opens():
    result = Sandbox().seccomp(None).run(script(SECCOMP), capture_output=True, text=True)
    assert filters_of_caller() == int(result.stdout.split('"')[3])
    assert NO_FILTER in result.enforced.gaps
    assert bool(filters_of_caller()) == result.enforced.seccomp_filters


def test_seccomp_replaces_the_filter_before():
    mkdir = f'say([call({number("mkdir")}, b"/tmp/x", 0o700), call({number("keyctl")}, 0, -3, 1) != "EPERM"])'
    assert [0, False] == tell(Sandbox(), mkdir)
    box = Sandbox().seccomp(Filter.default()).seccomp(Filter(Allow).deny("mkdir", action=Errno("EROFS")))
    assert ["EROFS", True] == tell(box, mkdir)


@pytest.mark.parametrize(
    ("filter", "action"),
    [
        (Filter.strict(), 'Errno("EPERM")'),
        (Filter(Allow).deny("execve", action=Kill), "Kill"),
        (Filter(Allow).deny("execve", action=Trap), "Trap"),
        (Filter(Allow).deny("@process", action=Errno("EACCES")), 'Errno("EACCES")'),
        (Filter.from_bytes(Filter(Errno("EPERM")).allow("write").to_bytes()), 'Errno("EPERM")'),
    ],
    ids=str,
)
def test_filter_that_forbids_execve_is_refused_with_an_explanation(filter, action):
    with pytest.raises(FilterError) as caught:
        Sandbox().seccomp(filter)
    assert f"answers execve with {action}" in str(caught.value)
    assert '.allow("execve")' in str(caught.value)


@pytest.mark.parametrize("allowed", [Allow, Log])
@pytest.mark.parametrize("privileges", ["none", "CAP_SYS_ADMIN"])
@pytest.mark.parametrize("refusal", [Errno("EPERM"), Kill], ids=str)
def test_errors_of_execve_reach_the_caller_when_nothing_but_execve_may_be_called(allowed, privileges, refusal):
    # write and exit_group are refused, too: init has no other means than memory to say what went wrong.
    box = Sandbox().seccomp(Filter(refusal).rule(allowed, "execve"))
    if privileges != "none":
        box = box.capabilities([privileges])
    with pytest.raises(FileNotFoundError) as caught:
        box.run(["/usr/bin/no-such-program"])
    assert isinstance(caught.value, SetupError)
    assert caught.value.step == caught.value.steps
    assert "no-such-program" in caught.value.call
    with pytest.raises(PermissionError):
        box.run(["/etc/hosts"])


def test_filter_that_no_simulation_shows_to_forbid_execve_is_a_set_up_error():
    # It looks at the address of the program's name, which is 0 in no real call.
    load, equal, answer = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, 0),  # the number
        (equal, 0, 3, number("execve")),
        (load, 0, 0, 16),  # the lower half of the first argument
        (equal, 1, 0, 0),
        (answer, 0, 0, 0x00050000 | 77),
        (answer, 0, 0, 0x7FFF0000),
    ]
    pointer = b"".join(struct.pack("=HBBI", *one) for one in program)
    with pytest.raises(SetupError) as caught:
        Sandbox().seccomp(Filter.from_bytes(pointer)).run(["true"])
    assert 77 == caught.value.errno


def test_killed_by_the_filter_is_told():
    result = Sandbox().seccomp(Filter.default().deny("mkdir", "mkdirat", action=Kill)).run(["mkdir", "/tmp/x"])
    assert Reason.SECCOMP == result.reason
    assert "seccomp" in result.detail


def test_raw_program_is_installed_as_it_is():
    program = Filter(Allow).deny("getppid", action=Errno(77)).to_bytes()
    assert "EBADFD" == tell(Sandbox().seccomp(Filter.from_bytes(program)), f"say(call({number('getppid')}))")


def test_filter_with_a_thousand_instructions_is_installed():
    values = [value * 3 << 20 for value in range(900)]
    filter = Filter(Allow).deny("lseek", arg(1).one_of(*values), action=Errno("EXDEV"))
    assert len(filter.to_bytes()) // 8 > 1200
    body = f"say([call({number('lseek')}, 2**32 - 1, {21 << 20}, 0), call({number('lseek')}, 2**32 - 1, 5, 0)])"
    assert ["EXDEV", "EBADF"] == tell(Sandbox().seccomp(filter), body)


# ── nesting ──


def test_nesting_opens_namespaces_and_says_so():
    unshare = f"say(call({number('unshare')}, 0x10000000))"
    assert "EPERM" == tell(Sandbox(), unshare)
    result = Sandbox().nesting().run(script(unshare), capture_output=True, text=True)
    assert "0" == result.stdout.strip()
    assert any(gap.startswith("nesting:") for gap in result.enforced.gaps)


@pytest.mark.needs_program("bwrap")
def test_nesting_lets_another_sandbox_be_built_inside():
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--dev", "/dev", "echo", "nested"]
    result = Sandbox().nesting().run(command, capture_output=True, text=True)
    assert ("nested\n", "") == (result.stdout, result.stderr)
    assert 0 != Sandbox().run(command, stderr=DEVNULL).returncode


# ── root's own id, mapped ──

SET_ID = """
os.close(os.open("/w/file", os.O_CREAT | os.O_WRONLY, 0o700))
say([tried(os.chmod, "/w/file", 0o4755), tried(os.open, "/w/made", os.O_CREAT | os.O_WRONLY, 0o4755),
     tried(os.chmod, "/w/file", 0o755)])
"""


@pytest.mark.needs_root
def test_set_id_bits_are_refused_when_roots_own_id_is_mapped(tmp_path):
    def made() -> list[int]:
        return [one.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) for one in sorted(tmp_path.iterdir())]

    os.chown(tmp_path, 0, 0)
    box = Sandbox().user(0, host_root=True).bind(tmp_path, "/w")
    # The positive control: asked for by name, that filter lets a set-id file of root's own appear on the host.
    assert ["ok", "ok", "ok"] == tell(box.seccomp(Filter.default()), SET_ID)
    assert [0, stat.S_ISUID] == made()
    os.unlink(tmp_path / "made")
    for one in (box, box.nesting(), box.observe()):
        assert ["EPERM", "EPERM", "ok"] == tell(one, SET_ID)
        assert [0] == made()


def test_set_id_bits_are_nothing_special_for_another_id(tmp_path):
    payloads.ours(tmp_path)
    assert ["ok", "ok", "ok"] == tell(Sandbox().bind(tmp_path, "/w"), SET_ID)
    assert os.getuid() != 0 or all(one.stat().st_uid != 0 for one in tmp_path.iterdir())
