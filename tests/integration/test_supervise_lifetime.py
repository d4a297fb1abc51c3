"""The supervisor among other things: its own end, signals, forks, threads, loops, and children that are not its own."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading

import harness
import pytest
from supervision import Recorder, alive, drive, python, shell, until, wait_gone

from sandbox import BusyError, Reason, Sandbox
from sandbox.supervise import (
    Ready,
    Restart,
    ServiceEvent,
    ServiceExited,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    State,
    Supervisor,
    protocol,
)

pytestmark = pytest.mark.needs_userns

SHARING = pytest.mark.parametrize("box", [None, Sandbox().share("pid")], ids=["plain", "sharing-pids"])

# A supervisor of its own: three services, one of them with a daemon; it tells their pids, and then "ready".
PROGRAM = """
import sys
from sandbox import Sandbox
from sandbox.supervise import Ready, Restart, ServiceReady, ServiceStarted, Supervisor
daemon = "(setsid sh -c 'trap \\"\\" TERM; while :; do sleep 1000; done' &) ; echo >&$READY_FD; exec sleep 1000"
with Supervisor() as supervisor:
    supervisor.add("plain", ["sh", "-c", daemon], ready=Ready.fd(), restart=Restart.always(backoff=0))
    supervisor.add("boxed", ["sh", "-c", daemon], ready=Ready.fd(), sandbox=Sandbox())
    supervisor.add("shared", ["sh", "-c", daemon], ready=Ready.fd(), sandbox=Sandbox().share("pid"))
    ready = 0
    for event in supervisor.events():
        if isinstance(event, ServiceReady):
            ready += 1
            if ready == int(sys.argv[1]):
                print("ready", flush=True)
                if sys.argv[1] != "3":
                    sys.stdin.read()
"""


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        try:
            with open(f"/proc/{(one := waiting.pop())}/task/{one}/children") as stream:
                below = [int(word) for word in stream.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.update(below)
        waiting += below
    return found


@pytest.mark.parametrize("ready", [1, 2, 3])
def test_kill_of_the_supervisor_leaves_nothing(ready):
    with subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, str(ready)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert b"ready\n" == process.stdout.readline()
        below = descendants(process.pid)
        assert len(below) >= ready * 3
        pidfds = []
        for pid in below:
            try:
                pidfds.append(os.pidfd_open(pid))
            except ProcessLookupError:  # the shell that had started a daemon
                continue
        try:
            process.kill()
            assert wait_gone(pidfds, 1.0), "something outlived the supervisor by a second"
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
    harness_reap(below)


def harness_reap(pids: set[int]) -> None:
    """Reap what came to this process, which is a subreaper, as init would."""
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue


@pytest.mark.slow
def test_kill_of_the_supervisor_at_random_moments_leaves_nothing():
    import random

    program = """
import os
from sandbox import Sandbox
from sandbox.supervise import Restart, Supervisor
supervisor = Supervisor()
for i in range(6):
    box = (None, Sandbox(), Sandbox().share("pid"))[i % 3]
    command = ("exit 1", "sleep 1000 & exit 1", "sleep 1000 & sleep 1000")[i // 2]
    supervisor.add(f"s{i}", ["sh", "-c", command], sandbox=box, restart=Restart.always(backoff=0))
print("go", flush=True)
supervisor.run()
"""
    chance = random.Random(1)
    marker = f"MARK_{os.getpid()}_{os.getuid()}"
    for _ in range(15):
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, env={**os.environ, marker: "1"}
        )
        assert b"go\n" == process.stdout.readline()
        poller = select.poll()  # nothing comes: it is the clock of this test
        poller.register(process.stdout, select.POLLPRI)
        poller.poll(chance.uniform(0, 150))
        # What is there at that moment, and what it makes until it is dead: all of it is below it, or below us.
        before = descendants(process.pid)
        process.kill()
        process.wait()
        process.stdout.close()
        pidfds = []
        for pid in before | descendants(os.getpid()):
            try:
                pidfds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
        try:
            assert wait_gone(pidfds, 1.0)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
        harness_reap(harness.children())
        assert set() == descendants(os.getpid())


# ── its own children and others ──


@SHARING
def test_init_killed_from_outside_leaves_no_orphan(box):
    seen = Recorder()
    text = """
import os, sys, time
ready = int(os.environ["READY_FD"])
for leave in (False, True):
    if os.fork() == 0:
        if leave:
            os.setsid()
        os.write(ready, b".")
        print(os.getpid(), flush=True)
        time.sleep(1000)
time.sleep(1000)
"""
    with Supervisor() as supervisor:
        supervisor.add("a", python(text), sandbox=box, ready=Ready.fd(), output=seen)
        drive(supervisor, lambda: len(seen.lines) == 2)
        pids = [int(line) for _, line in seen.lines]
        # The caller's own child, which only the caller may reap.
        own = subprocess.Popen(["true"])
        select.select([pidfd := os.pidfd_open(own.pid)], [], [])
        os.close(pidfd)
        os.kill(supervisor._services["a"]._process.init_pid, signal.SIGKILL)
        result = until(supervisor, ServiceExited).result
        assert Reason.INIT_DIED == result.reason
        supervisor.run()
        assert not any(alive(pid) for pid in pids)
        assert own.pid in harness.children()
        assert 0 == own.wait()


def test_init_killed_from_outside_is_a_failure_and_restarts():
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], restart=Restart.on_failure(backoff=0))
        until(supervisor, ServiceReady)
        os.kill(supervisor._services["a"]._process.init_pid, signal.SIGKILL)
        until(supervisor, ServiceRestarting)
        until(supervisor, ServiceReady)


@SHARING
def test_init_stopped_from_outside_is_ended_by_force(box):
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"], sandbox=box, stop_timeout=0.01)
        pid = until(supervisor, ServiceReady) and supervisor.status()["a"].pid
        os.kill(supervisor._services["a"]._process.init_pid, signal.SIGSTOP)
    assert not alive(pid)


def test_callers_own_children_are_left_alone():
    own = [subprocess.Popen(["sh", "-c", f"exit {i}"]) for i in range(5)]
    with Supervisor() as supervisor:
        supervisor.add("a", ["false"], restart=Restart.always(backoff=0, limit=20))
        supervisor.run()
    assert [0, 1, 2, 3, 4] == [process.wait() for process in own]


def test_caller_that_waits_for_any_child_steals_no_result():
    ours, theirs = socket.socketpair()
    with ours, theirs, Supervisor() as supervisor:
        supervisor.add("a", shell("read x <&3; exit 9"), sockets=[theirs])
        until(supervisor, ServiceStarted)
        ours.send(b"go\n")
        select.select([supervisor._services["a"]._process.fileno()], [], [])
        os.waitpid(-1, 0)
        assert 9 == until(supervisor, ServiceExited).result.returncode


def test_sigchld_ignored_by_the_caller_loses_no_result():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Supervisor() as supervisor:
            supervisor.add("a", shell("exit 9"))
            supervisor.add("b", shell("exit 8"), sandbox=Sandbox())
            events = list(supervisor.events())
    finally:
        signal.signal(signal.SIGCHLD, before)
    results = {one.service: one.result.returncode for one in events if isinstance(one, ServiceExited)}
    assert {"a": 9, "b": 8} == results


def test_fork_of_the_caller_has_nothing_of_it():
    with Supervisor() as supervisor:
        supervisor.add("a", ["sleep", "1000"])
        until(supervisor, ServiceReady)

        def child() -> None:
            for call in (supervisor.step, supervisor.run, lambda: supervisor.restart("a")):
                with pytest.raises(RuntimeError, match="the process that made it"):
                    call()
            supervisor.close()

        harness.in_child(child)
        assert State.READY == supervisor.status()["a"].state
        supervisor.restart("a")
        until(supervisor, ServiceStarted)


def test_subreaper_is_as_it_was_before():
    from sandbox.primitives import PR_GET_CHILD_SUBREAPER, PR_SET_CHILD_SUBREAPER, prctl

    def child(before: int) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, before)
        with Supervisor() as supervisor:
            supervisor.add("a", ["true"])
            supervisor.run()
            assert 1 == prctl(PR_GET_CHILD_SUBREAPER)
        assert before == prctl(PR_GET_CHILD_SUBREAPER)

    harness.in_child(child, 0)
    harness.in_child(child, 1)


# ── signals ──

WAITS = (
    "trap 'echo ended; exit 0' TERM INT; trap 'echo reloaded' HUP; echo up; echo >&$READY_FD; "
    "while :; do sleep 1000 & wait; done"
)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_stops_all_at_a_signal(number, threads):
    def child() -> None:
        seen = Recorder()
        idle = threading.Event()
        for _ in range(threads):  # they have nothing blocked, and the kernel may choose one of them
            threading.Thread(target=idle.wait, daemon=True).start()
        before = signal.getsignal(number)
        with Supervisor() as supervisor:

            def output(name: str, line: bytes) -> None:
                seen(name, line)
                if line == b"up\n":
                    os.kill(os.getpid(), number)

            supervisor.add("a", shell(WAITS), ready=Ready.fd(), output=output)
            assert 0 == supervisor.run()
        assert b"ended\n" in seen.text()
        assert before == signal.getsignal(number)
        assert set() == signal.pthread_sigmask(signal.SIG_BLOCK, [])

    harness.in_child(child)


def test_run_a_second_signal_kills():
    def child() -> None:
        text = "trap 'echo no' TERM; echo up; while :; do sleep 1000 & wait; done"
        with Supervisor() as supervisor:
            supervisor.add("a", shell(text), output=lambda _, line: os.kill(os.getpid(), signal.SIGTERM))
            supervisor.run()
            assert -signal.SIGKILL == supervisor.status()["a"].result.returncode

    harness.in_child(child)


def test_run_sighup_reloads_those_that_say_how():
    def child() -> None:
        seen = Recorder()

        def output(name: str, line: bytes) -> None:
            seen(name, line)
            if line == b"up\n":
                os.kill(os.getpid(), signal.SIGHUP)
            elif line == b"reloaded\n":
                supervisor.stop()

        with Supervisor() as supervisor:
            supervisor.add("other", ["sleep", "1000"])
            supervisor.add("a", shell(WAITS), ready=Ready.fd(), reload=signal.SIGHUP, output=output, after=["other"])
            supervisor.run()
            assert 0 == supervisor.status()["other"].restarts
        assert b"reloaded\n" in seen.text()

    harness.in_child(child)


def test_run_ignored_signal_stays_ignored():
    def child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Supervisor() as supervisor:
            supervisor.add("a", shell("echo up; sleep 0.1"), output=lambda *_: os.kill(os.getpid(), signal.SIGINT))
            supervisor.run()
            assert 0 == supervisor.status()["a"].result.returncode
        assert signal.SIG_IGN == signal.getsignal(signal.SIGINT)

    harness.in_child(child)


def test_stop_from_another_thread_ends_run():
    with Supervisor() as supervisor:
        supervisor.add(
            "a", ["sleep", "1000"], ready=Ready.call(lambda: threading.Thread(target=supervisor.stop).start())
        )
        assert 0 == supervisor.run()


def test_run_in_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    with Supervisor() as supervisor:
        supervisor.add("a", shell("exit 0"))
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        thread.join()
        assert 0 == supervisor.status()["a"].result.returncode
    assert before == signal.getsignal(signal.SIGTERM)


# ── loops ──


def test_step_in_somebody_elses_loop():
    events: list[ServiceEvent] = []
    with Supervisor() as supervisor:
        supervisor.add("a", shell("sleep 0.05; exit 3"), restart=Restart.on_failure(backoff=0.01, limit=1))
        events += supervisor.step()
        while not supervisor.finished:
            select.select([supervisor], [], [])
            events += supervisor.step()
    assert [3, 3] == [one.result.returncode for one in events if isinstance(one, ServiceExited)]


def test_step_from_a_callback_is_busy():
    caught: list[BaseException] = []

    def output(*_: object) -> None:
        try:
            supervisor.step()
        except BusyError as error:
            caught.append(error)

    with Supervisor() as supervisor:
        supervisor.add("a", ["echo"], output=output)
        supervisor.run()
    assert 1 == len(caught)


def test_run_async_drives_beside_other_tasks():
    async def main() -> int:
        async with Supervisor() as supervisor:
            supervisor.add("a", ["sleep", "1000"], restart=Restart.always(backoff=0))
            task = asyncio.create_task(supervisor.run_async())
            while supervisor.status()["a"].state is not State.READY:
                await asyncio.sleep(0.001)
            supervisor.restart("a")
            supervisor.add("b", ["true"])
            while supervisor.status()["b"].result is None:
                await asyncio.sleep(0.001)
            supervisor.stop()
            return await task

    assert 0 == asyncio.run(main())


def test_run_async_cancelled_stops_in_order():
    seen = Recorder()

    async def main() -> None:
        async with Supervisor() as supervisor:
            supervisor.add("a", shell(WAITS), ready=Ready.fd(), output=seen)
            task = asyncio.create_task(supervisor.run_async())
            while supervisor.status()["a"].state is not State.READY:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert State.STOPPED == supervisor.status()["a"].state

    asyncio.run(main())
    assert b"up\nended\n" == seen.text()


def test_events_async_yields_what_events_does():
    async def main() -> list[ServiceEvent]:
        async with Supervisor() as supervisor:
            supervisor.add("a", shell("exit 3"), restart=Restart.on_failure(backoff=0.001, limit=1))
            return [event async for event in supervisor.events_async()]

    names = [type(one).__name__.removeprefix("Service") for one in asyncio.run(main())]
    assert ["Started", "Ready", "Exited", "Restarting", "Started", "Ready", "Exited", "GaveUp"] == names


def test_leaving_an_async_block_stops():
    async def main() -> int:
        async with Supervisor() as supervisor:
            supervisor.add("a", ["sleep", "1000"])
            async for event in supervisor.events_async():
                if isinstance(event, ServiceStarted):
                    return event.pid
        raise AssertionError

    assert not alive(asyncio.run(main()))


def test_closed_supervisor_refuses():
    supervisor = Supervisor()
    supervisor.close()
    supervisor.close()
    with pytest.raises(ValueError, match="closed supervisor"):
        supervisor.step()
    with pytest.raises(ValueError, match="closed supervisor"):
        supervisor.fileno()


def test_close_kills_what_runs():
    supervisor = Supervisor()
    supervisor.add("a", shell("trap '' TERM; while :; do sleep 1000; done"))
    pid = until(supervisor, ServiceStarted).pid
    supervisor.close()
    assert not alive(pid)


# ── who may say what ──


def test_notification_of_a_stranger_is_refused():
    """The name of an abstract socket is public: any process of the same user sees it in /proc/net/unix."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Supervisor() as supervisor:
        text = "read x <&3; systemd-notify --ready; exec sleep 1000"
        supervisor.add("a", shell(text), ready=Ready.notify(), sockets=[theirs])
        until(supervisor, ServiceStarted)
        where = supervisor._services["a"]._notify.getsockname()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"READY=1\nSTATUS=forged", where)
        supervisor.step(1.0)
        assert (State.STARTING, "") == (supervisor.status()["a"].state, supervisor.status()["a"].text)
        # The control: the service itself is heard.
        ours.send(b"go\n")
        until(supervisor, ServiceReady)


@pytest.mark.parametrize("box", [None, Sandbox()], ids=["plain", "sandboxed"])
def test_notifications_that_make_no_sense_harm_nobody(box):
    text = """
import array, os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
where = os.environ["NOTIFY_SOCKET"].replace("@", "\\0")
fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
def send(data, fds=()):
    s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [], 0, where)
send(b"")
send(b"\\xff\\xfe=\\x00\\nREADY")
send(b"READY=1" + b"x" * 100000)
send(b"WATCHDOG_USEC=-1\\nEXTEND_TIMEOUT_USEC=99999999999999999999\\nMAINPID=1")
send(b"BARRIER=1", fds[:1])
send(b"FDSTORE=1\\nFDNAME=a:b", fds)
send(b"STATUS=last")
"""
    with Supervisor() as supervisor:
        supervisor.add("a", python(text), sandbox=box, ready=Ready.notify())
        events = list(supervisor.events())
        assert "last" == supervisor.status()["a"].text
    assert [0] == [one.result.returncode for one in events if isinstance(one, ServiceExited)]
    assert ServiceReady not in [type(one) for one in events]


LINGER = """
import array, os, socket, struct, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
server = socket.create_server(("127.0.0.1", 0))
ours = socket.create_connection(server.getsockname())
theirs = server.accept()[0]  # which never reads
ours.setblocking(False)
try:
    while True: ours.send(bytes(65536))
except BlockingIOError: pass
ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
os.read(3, 1)  # the supervisor does not look now
first, *more = MESSAGES
s.sendmsg([first], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ours.fileno()]))])
ours.close()
for message in more: s.send(message)
os.write(3, b"s")
s.send(b"READY=1")
time.sleep(1000)
"""


@pytest.mark.parametrize("box", [None, Sandbox()], ids=["plain", "sandboxed"])
@pytest.mark.parametrize(
    "messages", [[b"X-OTHER=1"], [b"FDSTORE=1\nFDNAME=a", b"FDSTOREREMOVE=1\nFDNAME=a"]], ids=["not wanted", "stored"]
)
def test_socket_that_lingers_when_it_is_closed_keeps_nobody_waiting(box, messages):
    """Its maker decides how long the last close of a socket takes; the service lets the supervisor have that."""

    def check():
        ours, theirs = socket.socketpair()
        with Supervisor() as supervisor:
            text = LINGER.replace("MESSAGES", repr(messages))
            supervisor.add("a", python(text), sandbox=box, ready=Ready.notify(), sockets=[theirs], stop_timeout=0.1)
            until(supervisor, ServiceStarted)
            ours.send(b"g")
            assert b"s" == ours.recv(1)
            until(supervisor, ServiceReady)
            # The control: a thread does wait.
            (closer,) = [one for one in threading.enumerate() if one.name == "sandbox-close"]
            assert closer.daemon
            supervisor.stop()
            until(supervisor, ServiceExited)

    harness.in_child(check)


@pytest.mark.usefixtures("in_flight")
def test_service_whose_descriptors_cannot_be_closed_is_listened_to_no_more():
    """They would fill the supervisor's table."""
    flood = """
null = os.open("/dev/null", os.O_RDONLY)
while True:
    try: s.sendmsg([b"X=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 200))])
    except OSError as error:
        if error.errno != 109: raise  # ETOOMANYREFS: the supervisor has not read so many yet
time.sleep"""

    def check():
        ours, theirs = socket.socketpair()
        with Supervisor() as supervisor:
            text = LINGER.replace("MESSAGES", "[b'X=1']").replace("time.sleep", flood)
            supervisor.add(
                "a",
                python(text),
                sandbox=Sandbox().limit(open_files=256),  # which bounds what is under way, too
                ready=Ready.notify(),
                sockets=[theirs],
                stop_timeout=0.1,
            )
            until(supervisor, ServiceStarted)
            before = len(os.listdir("/proc/self/fd"))
            ours.send(b"g")
            assert b"s" == ours.recv(1)
            drive(supervisor, lambda: supervisor._services["a"]._notify is None)
            assert 400 < len(os.listdir("/proc/self/fd")) - before < 1000

    harness.in_child(check)


def test_whoever_sends_faster_than_it_is_read_leaves_time_for_others(monkeypatch):
    real = protocol.receive

    def refilled(source):
        """As with a sender that is always quicker: there is one more message whenever one was read."""
        message = real(source)
        sender.sendto(b"STATUS=talk", source.getsockname())
        return message

    with Supervisor() as supervisor, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        supervisor.add("a", shell("sleep 1000"), ready=Ready.notify(), stop_timeout=0.1)
        supervisor.add("b", shell("echo >&$READY_FD; exec sleep 1000"), ready=Ready.fd())
        until(supervisor, ServiceStarted, "a")
        sender.sendto(b"STATUS=talk", supervisor._services["a"]._notify.getsockname())
        with monkeypatch.context() as patch:
            patch.setattr(protocol, "receive", refilled)
            until(supervisor, ServiceReady, "b")
            supervisor.step(0.0)


# ── many ──


@pytest.mark.slow
def test_thousand_short_children_leave_no_zombie_and_no_descriptor():
    with Supervisor() as supervisor:
        descriptors = len(os.listdir("/proc/self/fd"))
        for i in range(10):
            supervisor.add(f"s{i}", ["true"], restart=Restart.always(backoff=0, limit=99), output=lambda *_: None)
        started = sum(isinstance(event, ServiceStarted) for event in supervisor.events())
        assert 1000 == started
        assert set() == harness.children()
        harness.drop_kept()
        assert descriptors >= len(os.listdir("/proc/self/fd"))


def test_two_hundred_services_at_once():
    with Supervisor() as supervisor:
        for i in range(200):
            supervisor.add(f"s{i}", ["sleep", "1000"], stop_timeout=60)
        drive(supervisor, lambda: all(one.state is State.READY for one in supervisor.status().values()))
        assert 200 == len({one.pid for one in supervisor.status().values()})
    assert {State.STOPPED} == {one.state for one in supervisor.status().values()}


@pytest.mark.needs_root
def test_plain_service_that_changes_its_user_is_stopped():
    text = "import os, time; os.setgid(61235); os.setuid(61235); "
    text += "os.write(int(os.environ['READY_FD']), b'.'); time.sleep(1000)"
    with Supervisor() as supervisor:
        supervisor.add("a", python(text), ready=Ready.fd())
        pid = until(supervisor, ServiceReady) and supervisor.status()["a"].pid
    assert not alive(pid)
