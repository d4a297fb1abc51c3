"""Services, plain and in sandboxes: start, readiness, restart, stop, sockets, output."""

import json
import os
import select
import signal
import socket
from contextlib import closing

import payloads
import pytest
from supervision import Recorder, alive, drive, python, shell, until

from sandbox import Reason, Sandbox
from sandbox.supervise import (
    Ready,
    Restart,
    RotatingFile,
    ServiceExited,
    ServiceGaveUp,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    State,
    Supervisor,
)

pytestmark = pytest.mark.needs_userns

BOXES = pytest.mark.parametrize(
    "box", [None, Sandbox(), Sandbox().share("pid")], ids=["plain", "sandboxed", "sharing-pids"]
)


# ── start and end ──


@BOXES
def test_service_that_ends_well_has_a_result(box):
    with Supervisor() as supervisor:
        supervisor.add("a", shell("exit 0"), sandbox=box)
        events = list(supervisor.events())
    assert [ServiceStarted, ServiceReady, ServiceExited] == [type(one) for one in events]
    assert (0, Reason.EXITED, "exit status 0") == (
        events[-1].result.returncode,
        events[-1].result.reason,
        events[-1].result.detail,
    )
    assert events[-1].result.usage.wall > 0


def command_line(pid: int) -> str:
    while True:
        with open(f"/proc/{pid}/cmdline") as stream:
            if (text := stream.read()) and not text.startswith("sandbox-init"):
                return text


@BOXES
def test_service_status_has_its_pid(box):
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], sandbox=box)
        started = until(supervisor, ServiceStarted)
        status = supervisor.status()["a"]
        assert started.pid == status.pid
        # The kernel lets the parent go on while it still sets up the new program.
        assert command_line(status.pid) == "sleep\0001000\0"


@BOXES
def test_service_killed_by_a_signal_says_which(box):
    with Supervisor() as supervisor:
        supervisor.add("a", shell("kill -KILL $$"), sandbox=box)
        result = until(supervisor, ServiceExited).result
        assert (-signal.SIGKILL, "signal SIGKILL") == (result.returncode, result.detail)
        assert State.FAILED == supervisor.status()["a"].state


def test_plain_service_that_ends_at_once_still_had_a_pid():
    with Supervisor() as supervisor:
        supervisor.add("a", ["true"], restart=Restart.always(backoff=0, limit=30))
        pids = [event.pid for event in supervisor.events() if isinstance(event, ServiceStarted)]
    assert 31 == len(set(pids) - {0})


def test_run_returns_1_when_a_service_failed():
    with Supervisor() as supervisor:
        supervisor.add("a", ["true"])
        assert 0 == supervisor.run()
        supervisor.add("b", ["false"])
        assert 1 == supervisor.run()


@BOXES
@pytest.mark.parametrize(
    ("program", "status", "words"),
    [("/no/such/program", 127, "No such file"), ("/etc/passwd", 126, "Permission denied")],
)
def test_service_that_cannot_be_executed_fails_like_in_a_shell(box, program, status, words):
    with Supervisor() as supervisor:
        supervisor.add("a", [program], sandbox=box)
        events = list(supervisor.events())
    assert [ServiceExited, ServiceGaveUp] == [type(one) for one in events]
    assert status == events[0].result.returncode
    assert words in events[0].result.detail


def test_plain_service_has_what_the_caller_has(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", "of the caller")
    seen = Recorder()
    os.chmod(tmp_path, 0o755)
    mask = os.umask(0o027)
    try:
        with Supervisor() as supervisor:
            supervisor.add("a", shell('echo "$MARK $PWD $(umask) $(id -u)"'), cwd=tmp_path, output=seen)
            supervisor.run()
    finally:
        os.umask(mask)
    assert f"of the caller {tmp_path} 0027 {os.getuid()}\n".encode() == seen.text()


@BOXES
def test_service_env_replaces_the_environment(box):
    seen = Recorder()
    with Supervisor() as supervisor:
        supervisor.add("a", ["/usr/bin/env"], env={"ONE": "1"}, sandbox=box, output=seen)
        supervisor.run()
    names = {line.split(b"=")[0] for _, line in seen.lines}
    assert {b"ONE"} == names - {b"SANDBOX_SERVICE"}


@BOXES
def test_service_gets_no_descriptor_of_the_caller(box):
    seen = Recorder()
    with open("/dev/null") as stream, Supervisor() as supervisor:
        os.set_inheritable(stream.fileno(), True)
        supervisor.add("a", python("import os; print(*sorted(os.listdir('/proc/self/fd')))"), sandbox=box, output=seen)
        supervisor.run()
    assert b"0 1 2 3\n" == seen.text()  # 3 is the listing's own


@BOXES
def test_service_signals_are_the_default(box):
    seen = Recorder()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Supervisor() as supervisor:
            supervisor.add("a", ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"], sandbox=box, output=seen)
            supervisor.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert b"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n" == seen.text()


# ── readiness and order ──


@BOXES
@pytest.mark.parametrize("how", ["echo >&$READY_FD", 'eval "exec $READY_FD>&-"'], ids=["written", "closed"])
def test_ready_fd_written_or_closed_is_ready(box, how, tmp_path):
    with Supervisor() as supervisor:
        supervisor.add("a", shell(f"{how}; exec sleep 1000"), ready=Ready.fd(), sandbox=box)
        until(supervisor, ServiceReady)
        assert State.READY == supervisor.status()["a"].state


@BOXES
def test_ready_fd_closed_by_the_end_is_not_ready(box):
    with Supervisor() as supervisor:
        supervisor.add("a", ["true"], ready=Ready.fd(), sandbox=box, restart=Restart.always(backoff=0, limit=20))
        events = list(supervisor.events())
    assert ServiceReady not in [type(one) for one in events]
    assert 21 == len([one for one in events if isinstance(one, ServiceExited)])


def test_ready_fd_number_is_the_one_asked_for():
    with Supervisor() as supervisor:
        supervisor.add("a", shell("echo >&9; exec sleep 1000"), ready=Ready.fd(9))
        until(supervisor, ServiceReady)


def test_ready_tcp_is_ready_when_it_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(1000)"
    with Supervisor() as supervisor:
        supervisor.add("a", python(server, str(port)), ready=Ready.tcp(port))
        until(supervisor, ServiceReady)
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_ready_call_is_ready_when_it_says_so(tmp_path):
    answers = iter([False, ZeroDivisionError, True])

    def check():
        answer = next(answers)
        if answer is not True and answer is not False:
            raise answer
        return answer

    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], ready=Ready.call(check, every=0.001))
        until(supervisor, ServiceReady)
    assert [] == list(answers)


@BOXES
@pytest.mark.needs_program("systemd-notify")
def test_ready_notify_by_systemds_own_program(box):
    with Supervisor() as supervisor:
        supervisor.add(
            "a",
            shell("systemd-notify --ready --status='all is well'; exec sleep 1000"),
            ready=Ready.notify(),
            sandbox=box,
        )
        until(supervisor, ServiceReady)
        assert "all is well" == supervisor.status()["a"].text


def test_not_ready_in_time_is_stopped_and_a_failure():
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], ready=Ready.fd(5), ready_timeout=0.05)
        result = until(supervisor, ServiceExited).result
    assert result.detail.startswith("not ready within 0.05 seconds; signal SIGTERM")


def test_after_starts_in_order_and_stops_in_reverse(tmp_path):
    log = tmp_path / "log"
    log.touch()
    text = f"trap 'echo stop $0 >>{log}; exit 0' TERM; echo start $0 >>{log}; echo >&$READY_FD; "
    text += "while :; do sleep 1000 & wait; done"
    with Supervisor() as supervisor:
        for name, after in (("one", ()), ("two", ("one",)), ("three", ("two",))):
            supervisor.add(name, ["sh", "-c", text, name], ready=Ready.fd(), after=after)
        until(supervisor, ServiceReady, "three")
    expected = ["start one", "start two", "start three", "stop three", "stop two", "stop one"]
    assert expected == log.read_text().splitlines()


@BOXES
def test_after_a_task_that_prepares_comes_what_needs_it(tmp_path, box):
    """It fails twice first; who comes after begins neither then nor while it runs."""
    count = tmp_path / "count"
    payloads.ours(tmp_path)
    text = f"echo >>{count}; [ $(wc -l <{count}) = 3 ] && echo >>{count}"
    if box is not None:
        box = box.bind(tmp_path, str(tmp_path))
    with Supervisor() as supervisor:
        supervisor.add(
            "task", shell(text), sandbox=box, ready=Ready.ended(), restart=Restart.on_failure(backoff=0.001, limit=5)
        )
        supervisor.add("user", shell(f"[ $(wc -l <{count}) = 4 ]"), sandbox=box, after=["task"])
        events = [one for one in supervisor.events() if isinstance(one, ServiceStarted | ServiceExited)]
    assert ["task"] * 6 + ["user"] * 2 == [one.service for one in events]
    assert [1, 1, 0, 0] == [one.result.returncode for one in events if isinstance(one, ServiceExited)]


# ── restart ──


@BOXES
def test_restart_on_failure_until_the_limit(box):
    with Supervisor() as supervisor:
        supervisor.add("a", shell("exit 7"), sandbox=box, restart=Restart.on_failure(backoff=0.001, limit=3))
        events = list(supervisor.events())
    assert 4 == len([one for one in events if isinstance(one, ServiceStarted)])
    assert ServiceGaveUp is type(events[-1])


def test_restart_by_hand_makes_a_new_process():
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"])
        first = until(supervisor, ServiceStarted).pid
        supervisor.restart("a")
        second = until(supervisor, ServiceStarted).pid
        assert first != second
        assert not alive(first)


def test_replace_runs_the_new_command():
    seen = Recorder()
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], output=seen)
        until(supervisor, ServiceStarted)
        supervisor.replace("a", shell("echo new"), output=seen)
        supervisor.run()
    assert b"new\n" == seen.text()


def test_remove_stops_and_forgets():
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"])
        pid = until(supervisor, ServiceStarted).pid
        supervisor.remove("a")
        until(supervisor, ServiceExited)
        assert {} == supervisor.status()
        assert not alive(pid)
        supervisor.add("a", ["true"])
        assert 0 == supervisor.run()


# ── stop ──


@BOXES
def test_leaving_the_block_stops_by_the_signal_asked_for(box):
    seen = Recorder()
    text = "trap 'echo interrupted; exit 0' INT; echo >&$READY_FD; while :; do sleep 1000 & wait; done"
    with Supervisor() as supervisor:
        supervisor.add("a", shell(text), sandbox=box, stop_signal=signal.SIGINT, ready=Ready.fd(), output=seen)
        until(supervisor, ServiceReady)
    assert b"interrupted\n" == seen.text()


@BOXES
def test_stop_kills_what_does_not_listen(box):
    text = "trap '' TERM; echo >&$READY_FD; while :; do sleep 1000; done"
    with Supervisor() as supervisor:
        supervisor.add("a", shell(text), sandbox=box, stop_timeout=0.05, ready=Ready.fd())
        pid = until(supervisor, ServiceReady) and supervisor.status()["a"].pid
        supervisor.stop()
        assert -signal.SIGKILL == until(supervisor, ServiceExited).result.returncode
    assert not alive(pid)


DAEMON = """
import os, signal, sys, time
ready = int(os.environ["READY_FD"])
told, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        os.environb.clear()
        os.write(ready, b"%d\\n" % os.getpid())
        os.write(tell, b".")
        time.sleep(1000)
    os._exit(0)
os.wait()
os.read(told, 1)
time.sleep(1000 if sys.argv[1] == "stay" else 0)
"""


@pytest.mark.parametrize("box", [None, Sandbox().share("pid")], ids=["plain", "sharing-pids"])
@pytest.mark.parametrize("main", ["stay", "go"])
def test_double_forked_daemon_ends_with_its_service(box, main):
    with Supervisor() as supervisor:
        supervisor.add("a", python(DAEMON, main), sandbox=box, ready=Ready.fd())
        # What it writes is its daemon's pid, for this test; the supervisor itself only counts that it wrote.
        service = supervisor._services["a"]
        service._ready_readable = lambda: None  # type: ignore[method-assign]
        supervisor.step()
        select.select([service._ready], [], [])
        daemon = int(os.read(service._ready, 100))
        if main == "go":
            until(supervisor, ServiceExited)
        else:
            assert alive(daemon)
    assert not alive(daemon)


# ── sockets ──

SERVER = """
import os, socket, sys
assert os.environ["LISTEN_PID"] == str(os.getpid()), (os.environ["LISTEN_PID"], os.getpid())
assert os.environ["LISTEN_FDNAMES"] == "socket-0"
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    connection.sendall(b"%d" % os.getpid())
    connection.close()
    if sys.argv[1] == "once":
        sys.exit(3)
"""


@BOXES
def test_socket_is_kept_while_the_service_restarts(box):
    with socket.create_server(("127.0.0.1", 0)) as listener, Supervisor() as supervisor:
        address = listener.getsockname()
        supervisor.add(
            "a", python(SERVER, "once"), sandbox=box, sockets=[listener], restart=Restart.always(backoff=0.001)
        )
        listener.close()  # the supervisor has its own copy
        until(supervisor, ServiceStarted)
        # Each process serves one connection and ends: all but the first wait for a successor.
        connections = [socket.create_connection(address) for _ in range(5)]
        answers = []
        for connection in connections:
            connection.setblocking(False)
            drive(supervisor, lambda c=connection: bool(select.select([c], [], [], 0)[0]))
            answers.append(connection.recv(100))
            connection.close()
    assert 5 == len([answer for answer in answers if int(answer) > 0])


def test_socket_activation_of_a_payload_that_is_pid_1():
    with socket.create_server(("127.0.0.1", 0)) as listener, Supervisor() as supervisor:
        supervisor.add("a", python(SERVER, "once"), sandbox=Sandbox().init(False), sockets=[listener])
        with socket.create_connection(listener.getsockname()) as connection:
            assert 3 == until(supervisor, ServiceExited).result.returncode
            assert b"1" == connection.recv(100)


def test_socket_names_are_those_of_the_objects():
    class Named(socket.socket):
        name = "http"

    seen = Recorder()
    with Named() as one, socket.socket() as two, Supervisor() as supervisor:
        supervisor.add("a", shell("echo $LISTEN_FDS $LISTEN_FDNAMES"), sockets=[one, two], output=seen)
        supervisor.run()
    assert b"2 http:socket-1\n" == seen.text()


def test_listen_fds_and_notify_in_a_service_of_this_library():
    text = """
import json, os
from sandbox.supervise import listen_fds, notify
print(json.dumps(listen_fds()), notify("READY=1\\nSTATUS=up"))
print(os.get_inheritable(3))
"""
    import sys

    seen = Recorder()
    with socket.create_server(("127.0.0.1", 0)) as listener, Supervisor() as supervisor:
        supervisor.add("a", [sys.executable, "-I", "-c", text], sockets=[listener], ready=Ready.notify(), output=seen)
        events = list(supervisor.events())
    assert ServiceReady in [type(one) for one in events]
    assert [json.dumps({"socket-0": 3}).encode() + b" True\n", b"False\n"] == [line for _, line in seen.lines]


def test_stored_descriptors_come_back_after_a_restart():
    text = """
import array, os, socket
stored = int(os.environ.get("LISTEN_FDS", 0))
if stored:
    assert os.environ["LISTEN_FDNAMES"] == "state"
    print(os.pread(3, 100, 0).decode())
else:
    fd = os.memfd_create("state")
    os.write(fd, b"kept")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        message = [b"FDSTORE=1\\nFDNAME=state"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        s.sendmsg(*message, 0, os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
    raise SystemExit(1)
"""
    seen = Recorder()
    with Supervisor() as supervisor:
        supervisor.add(
            "a", python(text), ready=Ready.notify(), restart=Restart.on_failure(backoff=0, limit=1), output=seen
        )
        supervisor.run()
    assert b"kept\n" == seen.text()


# ── output ──


@BOXES
def test_output_comes_in_whole_lines(box):
    seen = Recorder()
    with Supervisor() as supervisor:
        supervisor.add(
            "a", shell("printf 'one\\ntwo'; printf 'err\\n' >&2; printf ' three\\nrest'"), sandbox=box, output=seen
        )
        supervisor.run()
    assert {b"one\n", b"two three\n", b"err\n", b"rest\n"} == {line for _, line in seen.lines}


@BOXES
def test_output_flood_without_a_line_end_is_bounded(box):
    longest = 0
    total = 0

    def sink(_, line):
        nonlocal longest, total
        longest = max(longest, len(line))
        total += len(line)

    with Supervisor() as supervisor:
        supervisor.add("a", shell("head -c 4000000 /dev/zero"), sandbox=box, output=sink)
        supervisor.run()
    assert longest <= 1 << 17
    assert 4_000_000 <= total <= 4_000_001


def test_output_callback_that_fails_ends_no_service(caplog):
    def sink(name, line):
        raise OSError(28, "disk full")

    with Supervisor() as supervisor:
        supervisor.add("a", shell("echo lost; exit 0"), output=sink)
        assert 0 == supervisor.run()
    assert "the output of a is lost: b'lost\\n'" in caplog.text


def test_output_file_is_rotated_between_lines(tmp_path):
    path = tmp_path / "log"
    with closing(RotatingFile(path, size=1000, keep=3)) as file, Supervisor() as supervisor:
        supervisor.add("a", shell("seq 1 1000"), output=file)
        supervisor.run()
    assert ["log", "log.1", "log.2", "log.3"] == sorted(os.listdir(tmp_path))
    kept = b"".join((tmp_path / name).read_bytes() for name in ("log.3", "log.2", "log.1", "log"))
    numbers = [int(line) for line in kept.split()]
    assert list(range(numbers[0], 1001)) == numbers
    assert all(os.path.getsize(tmp_path / name) <= 1000 for name in os.listdir(tmp_path))


def test_output_path_gets_both_streams(tmp_path):
    path = tmp_path / "log"
    with Supervisor() as supervisor:
        supervisor.add("a", shell("echo out; echo err >&2"), output=path)
        supervisor.run()
    assert {"out", "err"} == set(path.read_text().split())


# ── watchdog and reload ──


@BOXES
def test_watchdog_silence_is_a_failure(box):
    with Supervisor() as supervisor:
        supervisor.add(
            "a", shell("systemd-notify --ready; exec sleep 1000"), sandbox=box, ready=Ready.notify(), watchdog=0.1
        )
        result = until(supervisor, ServiceExited).result
    assert result.detail.startswith("no sign of life for 0.1 seconds; signal SIGABRT")


def test_watchdog_with_a_call_asks_it():
    well = True
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], ready=Ready.call(lambda: well, every=0.01), watchdog=0.05)
        until(supervisor, ServiceReady)
        well = False
        result = until(supervisor, ServiceExited).result
    assert result.detail.startswith("no sign of life")


RELOADS = "trap 'echo reloaded' HUP; echo >&$READY_FD; while :; do sleep 1000 & wait; done"


def test_reload_sends_the_signal():
    seen = Recorder()
    with Supervisor() as supervisor:
        supervisor.add("a", shell(RELOADS), ready=Ready.fd(), reload=signal.SIGHUP, output=seen)
        until(supervisor, ServiceReady)
        supervisor.reload("a")
        drive(supervisor, lambda: seen.lines)
    assert b"reloaded\n" == seen.text()


@pytest.mark.parametrize("how", ["write", "rename", "in-directory"])
def test_watched_file_that_changes_reloads(tmp_path, how):
    config = tmp_path / "config"
    config.write_text("1")
    seen = Recorder()
    with Supervisor() as supervisor:
        supervisor.add(
            "a",
            shell(RELOADS),
            ready=Ready.fd(),
            reload=signal.SIGHUP,
            watch=[tmp_path if how == "in-directory" else config],
            output=seen,
        )
        until(supervisor, ServiceReady)
        if how == "rename":
            (tmp_path / "new").write_text("2")
            os.replace(tmp_path / "new", config)
        else:
            config.write_text("2")
        drive(supervisor, lambda: seen.lines)


def test_watched_directory_ignores_its_other_files(tmp_path):
    config = tmp_path / "config"
    config.write_text("1")
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], watch=[config], reload=signal.SIGHUP)
        until(supervisor, ServiceReady)
        (tmp_path / "other").write_text("2")
        supervisor.step(0.2)
        assert "reload" not in supervisor._machine._services["a"].timers
        config.write_text("2")
        supervisor.step(5.0)
        assert "reload" in supervisor._machine._services["a"].timers


def test_reload_without_a_signal_restarts():
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"])
        first = until(supervisor, ServiceStarted).pid
        supervisor.reload("a")
        assert first != until(supervisor, ServiceStarted).pid


def test_restarting_event_says_how_long():
    with Supervisor() as supervisor:
        supervisor.add("a", ["false"], restart=Restart.on_failure(backoff=0.02))
        delay = until(supervisor, ServiceRestarting).delay
        assert 0.01 <= delay <= 0.02
