"""`sandbox seccomp`: questions about filters, asked on a command line."""

import io
import json
import platform
import signal

import pytest

from sandbox import Filter, cli, cli_seccomp
from sandbox.denials import Denied
from sandbox.filters import Allow, Errno, Notify, arg, bpf
from sandbox.filters.difference import answers
from sandbox.filters.sources import PRESETS, read_filter
from sandbox.filters.table import calls, machine, names_of

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")


@pytest.fixture
def sandbox(capfd):
    def run(*words):
        status = cli.main(["seccomp", *words])
        out, err = capfd.readouterr()
        return status, out, err

    before = signal.getsignal(signal.SIGPIPE)
    yield run
    signal.signal(signal.SIGPIPE, before)  # the command ends when its reader has had enough; this process does not


def test_show_puts_every_call_where_its_answer_is(sandbox):
    status, out, _ = sandbox("show", "default")
    assert 0 == status
    groups = {
        head.split(" (")[0]: body.split() for head, _, body in (g.partition(":\n") for g in out.split("\n\n")[1:])
    }
    assert "openat" in groups["Allow"]
    assert "keyctl" in groups['Errno("EPERM")']
    assert "clone3" in groups['Errno("ENOSYS")']
    assert "clone" in groups['Allow or Errno("EPERM"), as the arguments say']
    assert sorted(name for names in groups.values() for name in names) == sorted(names_of("x86_64").values())


def test_show_takes_another_architecture(sandbox):
    assert "socketcall" in sandbox("show", "default", "--arch", "i386")[1]


def test_answers_are_those_that_simulation_gives():
    program = bpf.decode(Filter.default().to_bytes())
    for name, number in calls().numbers[machine()].items():
        assert Filter.default().simulate(name) in answers(program, machine(), number)
    both = Filter(Allow).deny("socket", arg(0) == 1)
    assert (Allow, Errno("EPERM")) == answers(
        bpf.decode(both.to_bytes()), machine(), calls().numbers[machine()]["socket"]
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["default", "read", "0"], 0, "Allow\n"),
        (["default", "socket", "AF_ALG"], 1, 'Errno("EAFNOSUPPORT") (Address family not supported by protocol)\n'),
        (["default", "socket", "2", "SOCK_STREAM"], 0, "Allow\n"),
        (["default", "ioctl", "0", "0x100005412"], 1, 'Errno("EPERM") (Operation not permitted)\n'),
        (["default", "250"], 1, 'Errno("EPERM") (Operation not permitted)\n'),
        (["default", "keyctl", "--arch", "aarch64"], 1, "Kill\n"),
        (["docker", "mount", "--cap", "sys_admin"], 0, "Allow\n"),
        (["docker", "mount"], 1, 'Errno("EPERM") (Operation not permitted)\n'),
    ],
)
def test_simulate_answers_and_its_status_tells_refusals(words, status, said, sandbox):
    assert (status, said, "") == sandbox("simulate", *words)


def test_explain_names_the_rule(sandbox):
    status, out, _ = sandbox("explain", "default", "socket", "AF_ALG")
    assert 1 == status
    assert 'deny("socket"' in out


def test_diff_finds_differences_and_none(sandbox):
    assert (0, "", "") == sandbox("diff", "default", "default")
    status, out, _ = sandbox("diff", "default", "default-nesting")
    assert 1 == status
    assert 'x86_64 unshare(0x20000): Errno("EPERM") | Allow\n' in out or "x86_64 unshare(" in out


def test_convert_goes_there_and_back(sandbox, tmp_path):
    profile, program = tmp_path / "p.json", tmp_path / "p.bpf"
    written = Filter(Errno("EPERM")).allow("read", "write").allow("socket", arg(0) == "AF_UNIX")
    profile.write_text(json.dumps(written.to_oci()))
    assert (0, "", "") == sandbox("convert", str(profile), "--to", "bpf", "-o", str(program))
    assert (0, "", "") == sandbox("diff", str(profile), str(program))
    status, out, _ = sandbox("convert", str(profile))
    assert written.to_oci() == json.loads(out)
    status, out, _ = sandbox("disassemble", str(program))
    assert 0 == status
    assert "; x86_64" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "default"], "CALL"),
        (["simulate", "default", "raed"], "did you mean"),
        (["simulate", "default", "socket", "AF_UNX"], "did you mean"),
        (["simulate", "default", "read", "0y"], "argument 0"),
        (["simulate", "default", "nothing", "AF_UNIX"], "no system call 'nothing'"),
        (["show", "/no/such/file"], "/no/such/file: No such file"),
        (["show", "/dev/zero"], "4 MiB"),
        (["show", "/etc/hostname"], "bytes"),
        (["frobnicate", "default"], "frobnicate"),
        (["show", "docker", "--cap", "sys_admim"], "no capability"),
    ],
)
def test_mistakes_are_told_in_words(words, said, sandbox):
    status, out, err = sandbox(*words)
    assert (125, "") == (status, out)
    assert err.startswith("sandbox: ")
    assert said in err
    assert "Traceback" not in err


def test_broken_profile_is_told(sandbox, tmp_path):
    (tmp_path / "p").write_text('{"defaultAction": ')
    assert "is no JSON" in sandbox("show", str(tmp_path / "p"))[2]
    (tmp_path / "p").write_text('{"defaultAction": "SCMP_ACT_FROB"}')
    assert 125 == sandbox("show", str(tmp_path / "p"))[0]


def test_presets_come_before_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strict").write_bytes(Filter(Notify).to_bytes())
    assert Filter.strict() == read_filter("strict")
    assert Filter(Notify).to_bytes() == read_filter("./strict").to_bytes()
    assert len({read_filter(one).to_bytes() for one in PRESETS}) == len(PRESETS)


def test_denials_are_counted_by_kind():
    def denied(call, path=None, number=1):
        return Denied(call, (0,) * 6, path, number, 1, None, None)

    assert "" == cli_seccomp.denials([])
    assert [
        "the filter refused 4 calls:",
        '  mount("/mnt"): Operation not permitted (EPERM), 2 times',
        "  socket(): Address family not supported by protocol (EAFNOSUPPORT)",
        "  syscall_999(): Operation not permitted (EPERM)",
        '  hint: --seccomp FILE takes a filter that allows them; in Python Filter.default().allow("mount", "socket")',
    ] == cli_seccomp.denials(
        [denied("mount", "/mnt"), denied("socket", None, 97), denied("mount", "/mnt"), denied("syscall_999")]
    ).splitlines()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "harmless"), [(Terminal, True), (io.StringIO, False)])
def test_names_of_files_do_not_speak_to_a_terminal(tmp_path, monkeypatch, stream, harmless):
    path = tmp_path / "\033]0;title\a.json"
    path.write_text(json.dumps(Filter(Errno("EPERM")).allow("read").to_oci()))
    said = stream()
    monkeypatch.setattr("sys.stdout", said)
    assert 0 == cli_seccomp.main(["show", str(path)])
    assert harmless == ("\033" not in said.getvalue())
