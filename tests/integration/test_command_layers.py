"""`sandbox run` with the options of filters, Landlock, capabilities and observation."""

import json
import subprocess
import sys

import payloads
import pytest

from sandbox import Allow, Errno, Filter, Notify

pytestmark = pytest.mark.needs_userns

COMMAND = [sys.executable, "-P", "-m", "sandbox"]


def run(*words):
    return subprocess.run([*COMMAND, "run", *words], capture_output=True, text=True, timeout=60)


def test_seccomp_takes_none_presets_and_files(tmp_path):
    payloads.ours(tmp_path)
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps(Filter(Allow).deny("mkdir", "mkdirat", action=Errno("EROFS")).to_oci()))
    unshare = ["--", "unshare", "-U", "true"]
    assert 0 != run(*unshare).returncode
    for value in ("none", "default-nesting", str(profile)):
        assert 0 == run("--seccomp", value, *unshare).returncode, value
    assert 0 == run("--nesting", *unshare).returncode
    done = run("--seccomp", str(profile), "mkdir", "/tmp/x")
    assert "Read-only file system" in done.stderr


def test_seccomp_that_cannot_run_a_program_is_told(tmp_path):
    raw = tmp_path / "asks.bpf"
    raw.write_bytes(Filter(Notify).to_bytes())
    for value, said in (("strict", "execve"), (str(raw), "supervisor"), ("/no/such", "No such file")):
        done = run("--seccomp", value, "true")
        assert 125 == done.returncode
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_observe_says_at_the_end_what_was_refused():
    done = run("--observe", "--", "sh", "-c", "unshare -U true; unshare -U true; echo out; exit 4")
    assert (4, "out\n") == (done.returncode, done.stdout)
    told = done.stderr[done.stderr.index("sandbox: ") :]
    assert told == (
        "sandbox: the filter refused 2 calls:\n"
        "  unshare(): Operation not permitted (EPERM), 2 times\n"
        '  hint: --seccomp FILE takes a filter that allows them; in Python Filter.default().allow("unshare")\n'
    )
    assert "" == run("--observe", "true").stderr


def test_observe_with_timeout_says_both():
    done = run("--observe", "--timeout", "1", "--", "sh", "-c", "unshare -U true; exec sleep 100")
    assert 124 == done.returncode
    assert "refused a call" in done.stderr
    assert "--timeout" in done.stderr


@pytest.mark.needs_landlock(4)
def test_landlock_options_are_one_layer():
    system = ["--landlock", "read=/usr,/lib,/lib64,/etc", "--landlock", "read=/proc", "--landlock", "connect-tcp="]
    body = (
        'import os\ntry: os.listdir("/tmp")\nexcept OSError as error: print(error.errno)\nprint(os.listdir("/usr")[:0])'
    )
    assert "13\n[]\n" == run(*system, "--", "/usr/bin/python3", "-c", body).stdout
    missing = run("--landlock", "read=/no/such", "true")
    assert 125 == missing.returncode
    assert "/no/such" in missing.stderr
    assert 0 == run("--landlock", "write=/no/such", "--landlock", "best-effort", "true").returncode


def test_capabilities_are_those_of_the_options():
    done = run("--cap", "net_admin", "--ambient-cap", "CAP_NET_RAW,chown", "--", "cat", "/proc/self/status")
    sets = dict(line.split(":\t") for line in done.stdout.splitlines() if line.startswith("Cap"))
    assert ["0000000000003001", "0000000000002001"] == [sets["CapBnd"], sets["CapAmb"]]


@pytest.mark.parametrize(
    "words",
    [
        ["--landlock", "read"],
        ["--landlock", "raed=/usr"],
        ["--landlock", "read=usr"],
        ["--landlock", "connect-tcp=http"],
        ["--landlock", "scope=everything"],
        ["--landlock", "best-effort"],
        ["--cap", "net_admim"],
        ["--seccomp", "none", "--observe"],
        ["--seccomp", "none", "--nesting"],
    ],
)
def test_wrong_options_are_told(words):
    done = run(*words, "true")
    assert 125 == done.returncode
    assert done.stderr.startswith("sandbox: ")
    assert "Traceback" not in done.stderr


def test_run_does_not_load_the_filters():
    body = "import sys; from sandbox.cli import main; main(['run', 'true'])\n"
    body += "print([name for name in sys.modules if 'seccomp' in name or name.startswith('sandbox.filters')])"
    done = subprocess.run([sys.executable, "-P", "-c", body], capture_output=True, text=True)
    assert "[]\n" == done.stdout
