"""`run --name`, `exec`, `list`, `stop` and `kill`: a running sandbox that other terminals reach, and nobody else."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import harness
import pytest
import screen as screens
from payloads import script, status
from screen import PATIENCE, Screen

from sandbox import primitives as kernel
from sandbox.option_values import OptionError
from sandbox.registry import Registry

pytestmark = pytest.mark.needs_userns

COMMAND = [sys.executable, "-P", "-m", "sandbox"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the names: one of the test's own, but for root, who has one for all."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Path("/run/sandbox") if os.geteuid() == 0 else tmp_path / "sandbox"


@pytest.fixture
def name(folder: Path) -> str:
    """A name that no other test has."""
    return f"test-{os.getpid()}-{time.monotonic_ns()}"


def sandbox(*words: str, input: str | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], input=input, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def listed(name: str) -> dict[str, object] | None:
    done = sandbox("list", "--json")
    assert 0 == done.returncode
    assert name not in done.stderr
    return next((one for one in json.loads(done.stdout)["sandboxes"] if one["name"] == name), None)


@contextmanager
def running(name: str, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """Run a sandbox with a name; its command has begun when this yields."""
    words = words or ("--", "sh", "-c", "echo up; exec sleep 1000")
    process = subprocess.Popen(
        [*COMMAND, "run", "--name", name, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    inside = []
    try:
        assert process.stdout.readline() == "up\n"
        inside = screens.children(process.pid)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)
        for pid in inside:
            with suppress(ChildProcessError):  # its parent has reaped it; else it has come back to us
                os.waitpid(pid, 0)
        sandbox("list")  # which removes what it left


@pytest.fixture
def box(name: str) -> "Iterator[subprocess.Popen[str]]":
    with running(name) as process:
        yield process


# ── exec ──


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exec_ends_with_the_status_of_the_command(box: object, name: str, command: list[str], code: int) -> None:
    assert code == sandbox("exec", name, "--", *command).returncode


def test_exec_says_what_run_says_of_a_missing_program(box: object, name: str) -> None:
    assert sandbox("run", "--", "no-such-program").stderr == sandbox("exec", name, "no-such-program").stderr


def test_exec_streams_are_the_callers(box: object, name: str) -> None:
    done = sandbox("exec", name, "--", "sh", "-c", "cat; echo error >&2", input="line\n")
    assert (done.stdout, done.stderr, done.returncode) == ("line\n", "error\n", 0)


def test_exec_is_in_the_sandbox_under_every_layer(name: str) -> None:
    look = "grep -E '^(Uid|Gid|Cap|NoNewPrivs|Seccomp)' /proc/self/status; readlink /proc/self/ns/*; ulimit -n"
    with running(name, "--open-files", "64", "--", "sh", "-c", f"echo up; {look}; exec sleep 1000") as process:
        expected = [process.stdout.readline() for _ in look.split()]  # type: ignore[union-attr]
        lines = sandbox("exec", name, "--", "sh", "-c", look).stdout.splitlines(keepends=True)
        assert "NoNewPrivs:\t1\n" in lines
        assert lines[-1] == "64\n"
        assert expected[: len(lines)] == lines[: len(expected)]
        assert len(lines) > 15


def test_exec_options_stand_before_and_after_the_name(name: str) -> None:
    with running(name, "--env", "A=a", "--env", "B=b", "--", "sh", "-c", "echo up; exec sleep 1000"):
        words = ["exec", "--env", "C=c d", "--unset-env", "A", name, "--cwd", "/usr", "--env", "TAKEN"]
        done = sandbox(*words, "sh", "-c", "echo $A $B $C $TAKEN; pwd", env={**os.environ, "TAKEN": "over"})
        assert ("b c d over\n/usr\n", "") == (done.stdout, done.stderr)


def test_exec_words_that_are_no_text_come_through(box: object, name: str) -> None:
    done = subprocess.run(
        [*COMMAND, "exec", name, "printf", b"%s", b"\xff\n"], capture_output=True, timeout=60, check=False
    )
    assert (b"\xff\n", b"") == (done.stdout, done.stderr)


def test_exec_has_no_other_descriptor_than_the_standard_ones(box: object, name: str) -> None:
    assert sandbox("exec", name, "--", "sh", "-c", "ls /proc/$$/fd").stdout.split() == ["0", "1", "2"]


def test_exec_too_long_a_command_is_refused_and_one_below_runs(box: object, name: str) -> None:
    done = sandbox("exec", name, "--", "echo", "x" * 100_000)
    assert (0, 100_001) == (done.returncode, len(done.stdout))
    done = sandbox("exec", name, "--", "echo", *["x" * 100_000] * 2)
    assert (125, "") == (done.returncode, done.stdout)
    assert "128 KiB" in done.stderr


def test_exec_in_a_sandbox_that_is_not_there(name: str) -> None:
    for wrong in (name, "no/name", ".", ""):
        done = sandbox("exec", wrong, "true")
        assert (125, "") == (done.returncode, done.stdout)
        assert "hint: sandbox list" in done.stderr
        assert "Traceback" not in done.stderr


def test_exec_without_pid_1_says_why_not(name: str) -> None:
    with running(name, "--no-init", "--", "sh", "-c", "echo up; exec sleep 1000") as process:
        done = sandbox("exec", name, "true")
        assert 125 == done.returncode
        assert "leave out --no-init" in done.stderr or "init(False)" in done.stderr
        assert 0 == sandbox("kill", name).returncode
        assert 128 + signal.SIGKILL == process.wait(60)


def test_exec_of_an_observed_sandbox_says_what_was_refused(name: str) -> None:
    with running(name, "--observe", "--", "sh", "-c", "echo up; exec sleep 1000"):
        done = sandbox("exec", name, "unshare", "-r", "true")
        assert "the filter refused" in done.stderr


def test_exec_timeout_ends_the_command_and_not_the_sandbox(box: object, name: str) -> None:
    done = sandbox("exec", "--timeout", "0.3", name, "--", "sh", "-c", "echo started; sleep 1000 & wait")
    assert (124, "started\n") == (done.returncode, done.stdout)
    assert done.stderr == "sandbox: ended after 0.3 seconds, as --timeout says\n"
    assert 0 == sandbox("exec", name, "true").returncode


@contextmanager
def executing(name: str, text: str) -> "Iterator[subprocess.Popen[str]]":
    words = [*COMMAND, "exec", name, "--", "sh", "-c", text]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == "up\n"
            yield one
        finally:
            one.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_exec_passes_signals_on(box: object, name: str, number: int) -> None:
    with executing(name, f"trap 'exit 9' {number}; echo up; while :; do sleep 0.01; done") as one:
        one.send_signal(number)
        assert 9 == one.wait(60)


def test_exec_second_signal_ends_what_ignores_them(box: object, name: str) -> None:
    with executing(name, "trap 'echo said' TERM; echo up; sleep 1000 & while :; do wait; done") as one:
        one.send_signal(signal.SIGTERM)
        assert one.stdout is not None
        assert one.stdout.readline() == "said\n"
        one.send_signal(signal.SIGTERM)
        assert 128 + signal.SIGTERM == one.wait(60)
        assert one.stdout.read() == ""  # nobody has the other end any more: all of its group has ended


def test_exec_that_is_killed_takes_its_command_along(box: object, name: str) -> None:
    with executing(name, "echo up; sleep 1000 & exec sleep 1000") as one:
        one.kill()
        assert one.stdout is not None
        assert one.stdout.read() == ""
    assert 0 == sandbox("exec", name, "true").returncode


def test_exec_in_a_sandbox_that_ends_meanwhile(box: "subprocess.Popen[str]", name: str) -> None:
    with executing(name, "echo up; exec sleep 1000") as one:
        assert 0 == sandbox("kill", name).returncode
        assert 128 + signal.SIGKILL == one.wait(60)
    assert 128 + signal.SIGKILL == box.wait(60)


def test_exec_whose_owner_is_killed_says_so_and_nothing_is_left(
    box: "subprocess.Popen[str]", name: str, folder: Path
) -> None:
    with executing(name, "echo up; exec sleep 1000") as one:
        box.kill()
        out, error = one.communicate(timeout=60)
        assert (125, "") == (one.returncode, out)
        assert f"the sandbox {name} has ended" in error
    assert box.stdout is not None
    assert box.stdout.read() == ""
    assert (folder / name).exists()  # nobody was there to remove it
    assert listed(name) is None
    assert not (folder / name).exists()


def test_exec_many_in_parallel(box: object, name: str) -> None:
    words = [[*COMMAND, "exec", name, "--", "sh", "-c", f"cat; echo {i}; exit {i}"] for i in range(20)]
    with ExitStack() as stack:
        all_ = [
            stack.enter_context(subprocess.Popen(one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for one in words
        ]
        said = [one.communicate(f"in {i}\n", timeout=60)[0] for i, one in enumerate(all_)]
    assert [f"in {i}\n{i}\n" for i in range(20)] == said
    assert list(range(20)) == [one.returncode for one in all_]


def test_exec_more_than_there_is_room_for_is_refused(box: "subprocess.Popen[str]", name: str) -> None:
    with ExitStack() as stack:
        for _ in range(31):
            channel = stack.enter_context(connected(name))
            fds = [box.stdout.fileno()] * 3  # type: ignore[union-attr]
            ask(channel, {"do": "exec", "command": ["sleep", "1000"], "env": {}}, fds)
            assert {"started": True} == answer(channel)
        done = sandbox("exec", name, "true")
        assert 125 == done.returncode
        assert "at most 32 commands" in done.stderr
        assert listed(name) is not None
    deadline = time.monotonic() + PATIENCE
    while sandbox("exec", name, "true").returncode != 0:  # the last of them ends when the owner has seen us go
        assert time.monotonic() < deadline


# ── list, stop and kill ──


def test_list_tells_what_there_is(box: "subprocess.Popen[str]", name: str) -> None:
    row = listed(name)
    assert row is not None
    assert (box.pid, True, ["sh", "-c", "echo up; exec sleep 1000"]) == (row["pid"], row["answers"], row["command"])
    assert row["init_pid"] in screens.children(box.pid)
    assert abs(time.time() - row["since"]) < 100  # type: ignore[operator]
    assert row["usage"]["cpu_time"] >= 0  # type: ignore[index]
    lines = sandbox("list").stdout.splitlines()
    assert ["NAME", "PID", "SINCE", "CPU", "MEMORY", "COMMAND"] == lines[0].split()
    (line,) = [one for one in lines if one.startswith(f"{name} ")]
    assert line.split()[1] == str(box.pid)
    assert line.endswith("  sh -c 'echo up; exec sleep 1000'")
    assert name in sandbox("list", "--names").stdout.splitlines()


def test_list_shows_no_control_characters(name: str) -> None:
    with running(name, "--", "sh", "-c", "echo up; exec sleep 1000", "\033]0;title\a\nline"):
        (line,) = [one for one in sandbox("list").stdout.splitlines() if one.startswith(f"{name} ")]
        assert line.endswith(r"'\x1b]0;title\x07\nline'")


def test_list_does_not_know_what_has_ended(name: str, folder: Path) -> None:
    done = sandbox("run", "--name", name, "--", "true")
    assert (0, "") == (done.returncode, done.stderr)
    assert not (folder / name).exists()
    done = sandbox("run", "--name", name, "--", "no-such-program")
    assert 127 == done.returncode
    assert not (folder / name).exists()


@pytest.mark.needs_cgroup("memory")
def test_list_counts_memory_where_there_is_a_limit(name: str) -> None:
    with running(name, "--memory", "64M", "--", "sh", "-c", "echo up; exec sleep 1000") as process:
        assert 0 < listed(name)["usage"]["memory_peak"] < 64 << 20  # type: ignore[index]
        sandbox("kill", name)  # its control group is removed by itself, and by nobody else in this test
        process.wait(60)


def test_list_while_others_start_and_stop(name: str) -> None:
    stop = threading.Event()
    wrong: list[object] = []

    def churn(i: int) -> None:
        while not stop.is_set():
            done = sandbox("run", "--name", f"{name}-{i}", "--", "true")
            if (done.returncode, done.stderr) != (0, ""):
                wrong.append(done)

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        with running(name):
            for _ in range(6):
                assert listed(name) is not None
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [] == wrong


def test_stop_lets_it_end_by_itself_and_the_name_is_free(name: str) -> None:
    trap = "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done"
    for _ in range(3):
        with running(name, "--", "sh", "-c", trap) as process:
            done = sandbox("stop", name)
            assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
            with running(name):
                assert 5 == process.wait(60)


def test_stop_kills_what_does_not_end(name: str) -> None:
    with running(name, "--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done") as process:
        assert 0 == sandbox("stop", "--grace", "0.2", name).returncode
        assert 128 + signal.SIGKILL == process.wait(60)
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_stop_that_is_interrupted_leaves_it_its_time(name: str) -> None:
    with running(name, "--", "sh", "-c", "trap 'echo asked' TERM; echo up; while :; do sleep 0.01; done") as process:
        stopping = subprocess.Popen([*COMMAND, "stop", name, "--grace", "1000"])
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        stopping.send_signal(signal.SIGINT)
        assert 128 + signal.SIGINT == stopping.wait(60)
        assert 0 == sandbox("exec", name, "true").returncode


@pytest.mark.parametrize("words", [["stop"], ["kill"]])
def test_stop_and_kill_of_what_is_not_there(name: str, words: list[str]) -> None:
    done = sandbox(*words, name)
    assert 125 == done.returncode
    assert done.stderr.startswith(f"sandbox: no sandbox is called {name}\n  hint: ")


def test_kill_ends_it_also_when_its_owner_is_stopped(box: "subprocess.Popen[str]", name: str) -> None:
    box.send_signal(signal.SIGSTOP)
    (line,) = [one for one in sandbox("list").stdout.splitlines() if one.startswith(f"{name} ")]
    assert line.endswith("(does not answer)")
    done = sandbox("kill", name)
    assert 0 == done.returncode
    assert f"process {box.pid} does not answer" in done.stderr
    assert -signal.SIGKILL == box.wait(60)
    assert box.stdout is not None
    assert box.stdout.read() == ""
    with running(name):
        pass


# ── the name ──


def test_name_that_is_taken_names_the_process(box: "subprocess.Popen[str]", name: str) -> None:
    done = sandbox("run", "--name", name, "--", "echo", "ran")
    assert (125, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"sandbox: the name {name} is taken by process {box.pid}\n  hint: ")
    assert 0 == sandbox("exec", name, "true").returncode


def test_name_that_many_want_goes_to_one(name: str) -> None:
    words = [*COMMAND, "run", "--name", name, "--", "sh", "-c", "echo up; exec sleep 1000"]
    with ExitStack() as stack:
        racers = [
            stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            for _ in range(8)
        ]
        said = {one.stdout.readline(): one for one in racers}  # type: ignore[union-attr]
        winner = said["up\n"]
        losers = [one for one in racers if one is not winner]
        assert [125] * 7 == [one.wait(60) for one in losers]
        assert {f"sandbox: the name {name} is taken by process {winner.pid}"} == {
            one.stderr.readline().strip()
            for one in losers  # type: ignore[union-attr]
        }
        assert 0 == sandbox("kill", name).returncode
        assert 128 + signal.SIGKILL == winner.wait(60)


def test_name_of_an_owner_that_was_killed_can_be_taken_again(name: str, folder: Path) -> None:
    with running(name) as process:
        process.kill()
        process.wait(60)
        assert (folder / name).is_socket()
        with running(name) as second:
            assert listed(name)["pid"] == second.pid  # type: ignore[index]
            assert not sandbox("exec", name, "true").returncode


def test_name_that_could_be_a_path_is_refused(folder: Path) -> None:
    for wrong in ("../x", "a/b", "", ".hidden", "x" * 65):
        done = sandbox("run", "--name", wrong, "true")
        assert 125 == done.returncode
        assert "Traceback" not in done.stderr


# ── who may reach it ──


def test_socket_is_this_users_alone(box: object, name: str, folder: Path) -> None:
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / name)]
    assert [0o700, 0o600] == modes
    assert {os.geteuid()} == {path.stat().st_uid for path in (folder, folder / name)}


@contextmanager
def connected(name: str, folder: str = "") -> "Iterator[socket.socket]":
    folder = folder or ("/run" if os.geteuid() == 0 else os.environ["XDG_RUNTIME_DIR"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.settimeout(PATIENCE)
        made.connect(f"{folder}/sandbox/{name}")
        yield made


def ask(channel: socket.socket, message: object, fds: "list[int]" = []) -> None:  # noqa: B006  # read only
    socket.send_fds(channel, [message if isinstance(message, bytes) else json.dumps(message).encode()], fds)


def answer(channel: socket.socket) -> "dict[str, object] | None":
    data = channel.recv(1 << 18)
    return json.loads(data) if data else None  # type: ignore[no-any-return]


_EXEC = {"do": "exec", "command": ["true"], "env": {}}
_TTY = {"rows": 24, "columns": 80, "attributes": "00" * 36, "term": "x"}
WRONG = [
    *(b"\xff", b"[]", b"1", b"[" * 100_000, b"x" * 200_000, b"{}"),
    *({"do": "exec"}, {"do": ["exec"]}, {"do": None}, {"do": "stop"}),
    *(_EXEC | {"command": one} for one in ("true", [1], [], ["a\0b"], {}, None)),
    *(_EXEC | {"env": one} for one in (5, {"A": []}, {"": "x"}, {"A=": "x"}, {"A": "a\0"})),
    *(_EXEC | {"cwd": one} for one in ("relative", 1, "/no/such")),
    *(_EXEC | {"tty": one} for one in ({}, [], _TTY | {"rows": 1e9}, _TTY | {"columns": "x"}, _TTY | {"rows": 0})),
    *(_EXEC | {"tty": _TTY | {"attributes": one}} for one in ("zz", "00", 5)),
    *({"do": "stop", "grace": one} for one in (-1, float("nan"), float("inf"), True, "1", None)),
]


def test_owner_outlives_every_message(box: "subprocess.Popen[str]", name: str) -> None:
    assert 0 == sandbox("exec", name, "true").returncode
    before = sorted(os.listdir(f"/proc/{box.pid}/fd"))
    read_end, write_end = os.pipe()
    for message in WRONG:
        for fds in ([], [write_end] * 3, [write_end] * 9):
            with connected(name) as channel:
                ask(channel, message, fds)
                said = answer(channel)
            assert said is not None, message
            assert "error" in said, message
    os.close(write_end)
    assert b"" == os.read(read_end, 1)  # nobody has kept the other end
    os.close(read_end)
    # And one that says nothing, or has gone at once.
    with connected(name), connected(name):
        assert 0 == sandbox("exec", name, "true").returncode
    deadline = time.monotonic() + PATIENCE
    now: object = None
    while (before, "2") != now and time.monotonic() < deadline:
        now = sorted(os.listdir(f"/proc/{box.pid}/fd")), status("Threads", box.pid)
        time.sleep(0.01)
    assert (before, "2") == now


def privately(function: Callable[[], None]) -> None:
    """Let root do what changes the directory that all of root's commands use, on one of its own."""
    if os.geteuid():
        function()
        return

    def child() -> None:
        harness.become_subreaper()
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        os.makedirs("/run/sandbox", mode=0o700, exist_ok=True)
        kernel.mount("names", "/run/sandbox", "tmpfs", 0, "mode=0700")
        function()

    harness.in_child(child)


def _stranger(name: str, expected: str) -> None:
    pid = os.getpid()
    harness.drop_privileges()
    try:
        with connected(name, "/run") as channel:
            ask(channel, {"do": "list"})
            said = answer(channel)
    except PermissionError:
        said = {"error": "no entry"}
    assert said == {"error": expected.format(pid)}, said


@pytest.mark.needs_root
def test_process_of_another_uid_is_refused(name: str, folder: Path) -> None:
    def tried() -> None:
        with running(name):
            harness.in_child(_stranger, name, "no entry")
            with connected(name) as channel:  # the positive control
                ask(channel, {"do": "list"})
                assert answer(channel)["name"] == name  # type: ignore[index]
            # With the doors open the owner itself refuses: it sees who is there.
            os.chmod(folder, 0o711)
            os.chmod(folder / name, 0o666)
            harness.in_child(_stranger, name, f"refused: process {{}} is of uid {harness.USER_ID}")
            os.chmod(folder, 0o700)

    privately(tried)


def test_directory_that_others_may_enter_is_refused(name: str, folder: Path) -> None:
    def tried() -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o755)
        for words in (["run", "--name", name, "true"], ["list"]):
            done = sandbox(*words)
            assert 125 == done.returncode
            assert f"{folder} is open to others (drwxr-xr-x)\n  hint: " in done.stderr
        folder.chmod(0o700)
        assert 0 == sandbox("run", "--name", name, "true").returncode

    privately(tried)


@pytest.mark.needs_root
@pytest.mark.parametrize("how", ["theirs", "link to theirs", "link to ours", "file"])
def test_place_that_somebody_else_has_taken_is_not_used(how: str, tmp_path: Path) -> None:
    """In /tmp everybody may be first."""
    uid = 70_000_000 + os.getpid()  # a place of its own in the /tmp of all

    def tried() -> None:
        place, other = Path(f"/tmp/sandbox-{uid}"), tmp_path / "other"
        tmp_path.chmod(0o755)
        other.mkdir()
        if how == "theirs":
            place.mkdir()
            place.chmod(0o777)
            os.chown(place, harness.USER_ID, harness.USER_ID)
        elif how == "file":
            place.touch()
        else:
            place.symlink_to(other)
            if how == "link to ours":
                os.chown(other, uid, uid)
                other.chmod(0o700)
        harness.in_child(_looks, uid, False)
        assert not list(other.iterdir())
        place.rmdir() if how == "theirs" else place.unlink()
        harness.in_child(_looks, uid, True)  # the control
        place.rmdir()

    privately(tried)


def _looks(uid: int, found: bool) -> None:
    os.setgroups([])
    harness.drop_privileges_but_groups(uid)
    if not found:
        with pytest.raises(OptionError, match=f"/tmp/sandbox-{uid}: "):
            Registry()
        return
    with Registry() as registry:
        assert f"/tmp/sandbox-{uid}" == registry.path


# What a payload tries: to run a command in a sandbox through its socket.
ATTACK = """
import socket
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.settimeout(15)
try:
    made.connect(PATH)
    made.send(json.dumps({"do": "list"}).encode())
    say(json.loads(made.recv(65536)))
except OSError as error:
    say(type(error).__name__)
"""


@pytest.mark.parametrize("words", [[], ["--share", "net"], ["--share", "ipc,uts,cgroup"]])
def test_payload_does_not_find_the_socket(box: object, name: str, folder: Path, words: list[str]) -> None:
    attack = script(ATTACK.replace("PATH", repr(str(folder / name))))
    done = sandbox("run", *words, "--", *attack)
    assert "FileNotFoundError" == json.loads(done.stdout)
    outside = subprocess.run(attack, capture_output=True, text=True, timeout=60, check=True)
    assert name == json.loads(outside.stdout)["name"]  # the positive control


# For root the host's uid 0, which the directory belongs to: any other uid stops at its mode.
def _same_uid() -> list[str]:
    return ["--user", "0", "--host-root", "--cap", "DAC_OVERRIDE"] if os.geteuid() == 0 else []


def test_payload_that_has_the_directory_is_refused_all_the_same(box: object, name: str, folder: Path) -> None:
    attack = script(ATTACK.replace("PATH", repr(f"/names/{name}")))
    done = sandbox("run", *_same_uid(), "--bind-readonly", f"{folder}:/names", "--", *attack)
    assert "in another user namespace" in json.loads(done.stdout)["error"], done.stderr


def test_socket_that_a_payload_has_made_is_not_talked_to(name: str, folder: Path) -> None:
    privately(lambda: _ask_a_trap(name, folder))


def _ask_a_trap(name: str, folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    trap = script(
        f"""
import socket
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.bind("/names/{name}")
made.listen()
os.write(1, b"up\\n")
sys.stdin.read()
"""
    )
    bind = f"{folder}:/names" + (":owner=0" if os.geteuid() == 0 else "")
    with subprocess.Popen(
        [*COMMAND, "run", *_same_uid(), "--bind", bind, "--", *trap], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        for words in (["exec", name, "true"], ["kill", name], ["run", "--name", name, "true"]):
            done = sandbox(*words)
            assert 125 == done.returncode, done
        assert "is not a sandbox of this user's" in sandbox("exec", name, "true").stderr
        assert "is not a sandbox of this user's" in sandbox("list").stderr
        process.communicate(timeout=60)
    assert listed(name) is None


# ── on terminals ──


@pytest.fixture
def screen(tmp_path: Path, name: str) -> Iterator[Screen]:
    tmp_path.chmod(0o755)
    with screens.screen(tmp_path) as one:
        one.type(f"alias sandbox='{' '.join(COMMAND)}'; cd {tmp_path}; export XDG_RUNTIME_DIR={tmp_path}")
        one.type("stty -g >before; clear")
        one.wait(r"\A%:$")
        yield one


def restored(screen: Screen) -> None:
    screen.type('until [ "$(stty -g)" = "$(cat before)" ]; do sleep 0.05; done; echo "as" before')
    screen.wait("as before$")


@pytest.mark.needs_program("tmux", "dash")
def test_exec_tty_is_a_terminal_of_its_own(screen: Screen, box: object, name: str) -> None:
    screen.type(f"PS1='inside> ' sandbox exec --tty --env PS1 {name} -- bash --norc")
    screen.wait(r"inside>$")
    screen.type("tty; stty size; echo $TERM")
    screen.wait(r"^/dev/pts/0\n30 100\n(screen|tmux)")
    screen.type("sh -c 'echo begun; exec sleep 1000'")
    screen.wait("^begun$")
    screen.keys("C-c")
    screen.type("echo ended $?")
    screen.wait("ended 130$")
    screen.type("trap 'stty size' WINCH; echo trap is set")
    screen.wait("^trap is set$")
    screen.tmux("resize-window", "-x", "60", "-y", "20")
    screen.keys("Enter")
    screen.wait("20 60$")
    screen.type("exit 7")
    screen.wait("%:$")
    screen.type("echo status $?")
    screen.wait("status 7$")
    restored(screen)


@pytest.mark.needs_program("tmux", "dash")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_exec_tty_that_is_killed_gives_the_terminal_back(screen: Screen, box: object, name: str, number: int) -> None:
    screen.type(f"sandbox exec {name} -t -- sh -c 'echo ready; exec sleep 1000'")
    screen.wait("^ready$")
    os.kill(screen.command(), number)
    screen.wait("%:$")
    restored(screen)
    deadline = time.monotonic() + PATIENCE
    looked = ["exec", name, "sh", "-c", "cat /proc/[0-9]*/comm"]
    while sandbox(*looked).stdout.count("sleep") > 1 and time.monotonic() < deadline:
        pass
    assert 1 == sandbox(*looked).stdout.count("sleep")


@pytest.mark.needs_program("tmux", "dash")
def test_shell_with_a_name_is_reached(screen: Screen, name: str) -> None:
    screen.type(f"PS1='inside> ' sandbox shell --env PS1 --name {name} -- bash --norc")
    screen.wait(r"inside>$")
    assert sandbox("exec", name, "sh", "-c", "cat /proc/2/comm; tty").stdout == "bash\nnot a tty\n"
    assert 0 == sandbox("stop", name, "--grace", "0.5").returncode
    screen.wait("%:$")
    restored(screen)


def test_exec_tty_without_a_terminal_types_the_input_and_its_end(box: object, name: str) -> None:
    done = sandbox("exec", "-t", name, "--", "sh", "-c", "stty -echo; tty; echo ready; cat; exit 5", input="")
    assert ("/dev/pts/0\nready\n", 5) == (done.stdout, done.returncode)


def test_run_without_a_name_has_no_thread() -> None:
    words = [*COMMAND, "run", "--", "sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        threads = status("Threads", process.pid)
        process.terminate()
    assert threads == "1"
