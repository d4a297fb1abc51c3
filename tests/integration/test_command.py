"""The command `sandbox`: exit statuses, streams, signals, the plan, and what a person reads."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
from pathlib import Path

import harness
import pytest

pytestmark = pytest.mark.needs_userns

COMMAND = [sys.executable, "-P", "-m", "sandbox"]
SCRIPT = os.path.join(sysconfig.get_path("scripts"), "sandbox")


def sandbox(*words: str, input: str | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], input=input, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return what it complained of, which is never a traceback."""
    assert done.stderr.startswith("sandbox: ")
    assert "Traceback" not in done.stderr
    return done.stderr.removeprefix("sandbox: ")


# ── exit status ──


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
    ],
)
def test_run_ends_with_the_status_of_the_command(command: list[str], status: int) -> None:
    done = sandbox("run", "--", *command)
    assert status == done.returncode
    assert done.stderr == ""


def test_run_installed_script_is_the_same_command() -> None:
    done = subprocess.run([SCRIPT, "run", "sh", "-c", "exit 3"], check=False)
    assert done.returncode == 3


@pytest.mark.parametrize("program", ["no-such-program", "/usr/bin/no-such-program"])
def test_run_missing_program_is_127(program: str) -> None:
    done = sandbox("run", program)
    assert done.returncode == 127
    assert complaint(done).startswith(f"{program}: No such file or directory\n  hint: ")


def test_run_file_that_is_no_program_is_126() -> None:
    done = sandbox("run", "/etc/hosts")
    assert done.returncode == 126
    assert complaint(done).startswith("/etc/hosts: Permission denied\n")


def test_run_missing_source_is_125_and_names_the_option() -> None:
    done = sandbox("run", "--bind", "/no/such/source:/x", "--", "echo", "ran")
    assert done.returncode == 125
    assert "/no/such/source" in complaint(done).splitlines()[0]
    assert "(ENOENT)" in done.stderr
    assert "  from: --bind /no/such/source:/x\n" in done.stderr
    assert "SRC:DST:optional" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cwd", "/nowhere", "true"], "hint: the working directory must exist inside: make it with --tmpfs, --dir"),
        (["--rootfs", "/usr/share/doc", "sh"], "hint: the tree that is the root needs the directories /proc, /dev"),
        (["./no-such"], "hint: there is no such file in the sandbox's working directory /tmp"),
    ],
)
def test_run_hint_speaks_of_what_was_meant(words: list[str], said: str) -> None:
    assert said in complaint(sandbox("run", *words))


@pytest.mark.parametrize("words", [["run"], ["doctor"], ["supervise"], ["list"], ["completion"]])
def test_help_may_come_first(words: list[str]) -> None:
    asked = sandbox(*words, "--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout == sandbox("help", *words).stdout


def test_output_that_cannot_be_written_is_named() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "run", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (125, "sandbox: standard output: No space left on device\n") == (done.returncode, done.stderr)


def test_run_optional_missing_source_is_skipped() -> None:
    assert sandbox("run", "--bind", "/no/such/source:/x:optional", "true").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["--frobnicate"],
        ["run"],
        ["plan"],
        ["run", "--bidn", "/x", "true"],
        ["run", "--file", "/f=@/no/such", "true"],
    ],
)
def test_wrong_command_line_is_125(words: list[str]) -> None:
    done = sandbox(*words)
    assert done.returncode == 125
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr != ""


def test_run_timeout_is_124_and_ends_the_whole_tree() -> None:
    # The pipe's end of file tells that no process inside is left.
    done = sandbox("run", "--timeout", "0.3", "--", "sh", "-c", "setsid sleep 1000 & echo started; wait")
    assert done.returncode == 124
    assert done.stdout == "started\n"
    assert complaint(done) == "ended after 0.3 seconds, as --timeout says\n"


# ── streams ──


def test_run_streams_are_the_callers() -> None:
    done = sandbox("run", "--", "sh", "-c", "cat; echo error >&2", input="line\n")
    assert (done.stdout, done.stderr, done.returncode) == ("line\n", "error\n", 0)


def test_run_has_no_other_descriptor_than_the_standard_ones() -> None:
    read_end, write_end = os.pipe()
    try:
        done = sandbox("run", "--", "sh", "-c", "ls /proc/$$/fd", pass_fds=[read_end, write_end])
    finally:
        os.close(read_end)
        os.close(write_end)
    assert done.stdout.split() == ["0", "1", "2"]


@pytest.mark.parametrize(("closed", "number"), [("<&-", 0), ("2>&-", 2)])
def test_run_closed_stream_is_empty_inside(closed: str, number: int) -> None:
    words = [*COMMAND, "run", "--", "readlink", f"/proc/self/fd/{number}"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.strip().endswith("/null")


def test_run_command_that_writes_to_a_closed_pipe_dies_of_sigpipe() -> None:
    with subprocess.Popen([*COMMAND, "run", "yes"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert 128 + signal.SIGPIPE == process.wait(60)


@pytest.mark.parametrize("words", [["plan", "true"], ["run", "--help"]])
def test_output_into_a_closed_pipe_is_no_error(words: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([*COMMAND, *words], stdout=write_end, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write_end)
    assert (-signal.SIGPIPE, b"") == (done.returncode, done.stderr)


# ── signals ──


def start(script: str, *, before: str = "") -> subprocess.Popen[str]:
    """Start a script that says when it runs."""
    words = ["sh", "-c", f'{before} exec "$@"', "sh", *COMMAND, "run", "--", "sh", "-c", script]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_signal_ends_the_sandbox_and_all_in_it(number: signal.Signals) -> None:
    with start("setsid sleep 1000 & echo started; exec sleep 1000") as process:
        process.send_signal(number)
        # The end of file comes when the last process inside has gone.
        assert ("", "") == process.communicate(timeout=60)
    assert 128 + number == process.returncode


def test_run_signal_reaches_a_command_that_handles_it() -> None:
    with start("trap 'echo bye; exit 3' TERM; echo started; sleep 1000 & wait") as process:
        process.send_signal(signal.SIGTERM)
        assert ("bye\n", "") == process.communicate(timeout=60)
    assert process.returncode == 3


def test_run_second_signal_ends_a_command_that_lives_on() -> None:
    with start("trap 'echo again' INT; echo started; while :; do sleep 1000 & wait; done") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "again\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert 128 + signal.SIGINT == process.returncode


def test_run_signal_that_the_caller_ignores_stays_ignored() -> None:
    with start("echo started; cat", before="trap '' HUP;") as process:
        process.send_signal(signal.SIGHUP)
        assert ("line\n", "") == process.communicate("line\n", timeout=60)
    assert process.returncode == 0


def test_run_command_that_is_killed_leaves_nothing() -> None:
    with start("setsid sleep 1000 & echo started; exec sleep 1000") as process:
        process.kill()
        assert ("", "") == process.communicate(timeout=60)
    # The sandbox's PID 1 came back to us, the subreaper.
    while harness.children():
        os.wait()


# ── options in effect ──


def test_run_options_are_what_the_command_sees(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "name").write_text("host\n")
    escaped = str(tmp_path / "a:b").replace(":", "\\:")
    done = sandbox(
        "run",
        *("--tmpfs", "/t:1M,mode=1777"),
        *("--bind-readonly", f"{escaped}:/t/b"),
        *("--file", "/t/f:0600=text"),
        *("--symlink", "/t/f:/t/l"),
        *("--hostname", "box"),
        *("--user", "7:8"),
        *("--env", "A=b c"),
        *("--cwd", "/t"),
        *("--umask", "027"),
        "--",
        *("sh", "-c", 'cat b/name l; echo " $A"; hostname; id -u; id -g; pwd; umask; stat -c %a f; touch b/x'),
    )
    assert done.stdout == "host\ntext b c\nbox\n7\n8\n/t\n0027\n600\n"
    assert "Read-only file system" in done.stderr
    assert done.returncode == 1


def test_run_mask_covers_only_what_came_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # for the fresh uid that root's sandboxes have on the host
    (tmp_path / "seen").touch()
    masked = ["--mask", "/x"]
    bound = ["--bind", f"{tmp_path}:/x"]
    assert sandbox("run", *bound, *masked, "ls", "/x").stdout == ""
    assert sandbox("run", "--dir", "/x", *masked, *bound, "ls", "/x").stdout == "seen\n"


# ── plan, help, version ──


def test_plan_prints_the_calls_and_runs_nothing(tmp_path: Path) -> None:
    done = sandbox("plan", "--bind", f"{tmp_path}:/x", "--", "touch", "/x/ran")
    assert done.returncode == 0
    assert f'from: .bind("{tmp_path}", "/x")' in done.stdout
    assert "pivot_root" in done.stdout
    assert 'execve("/usr/local/sbin/touch"' in done.stdout
    assert os.listdir(tmp_path) == []


def test_plan_json_has_the_same_steps_as_the_text() -> None:
    steps = json.loads(sandbox("plan", "--format", "json", "true").stdout)["steps"]
    text = sandbox("plan", "true").stdout
    assert list(range(1, len(steps) + 1)) == [step["number"] for step in steps]
    numbered = [line.split()[1].partition("(")[0] for line in text.splitlines() if line[:4].strip().isdigit()]
    assert numbered == [step["call"] for step in steps]


def test_plan_svg_is_a_picture_of_it() -> None:
    done = subprocess.run(
        [*COMMAND, "plan", "--format", "svg", "--bind-readonly", b"/a\xff:/x", "true"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "host: /a\\xff" in "".join(ET.fromstring(done.stdout).itertext())


def test_plan_path_that_is_no_text_is_printed() -> None:
    done = subprocess.run([*COMMAND, "plan", "--bind", b"/\xff:/x", "true"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'from: .bind("/\xff", "/x")' in done.stdout


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["plan", "-h"], ["shell", "-h"], ["run", "--umask", "0", "--help"]]
)
def test_help_fits_eighty_columns(words: list[str]) -> None:
    done = sandbox(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert 80 >= max(map(len, done.stdout.splitlines()))
    assert "\033" not in done.stdout


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert f"sandbox {version('sandbox')}\n" == sandbox("--version").stdout


def test_run_imports_nothing_heavy() -> None:
    words = [sys.executable, "-P", "-X", "importtime", "-m", "sandbox", "run", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "sandbox.builder" in imported
    heavy = {"argparse", "asyncio", "difflib", "importlib.metadata", "json", "pyroute2", "rich", "shutil"}
    heavy |= {"sandbox.events", "sandbox.help_text", "sandbox.supervise"}
    heavy |= {"socket", "sandbox.cli_named", "sandbox.escapes", "sandbox.owner", "sandbox.registry"}
    assert set() == heavy & imported
