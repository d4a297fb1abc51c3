"""Who looks after the command: without a PID 1 of the library's, in the caller's session, with clocks of its own."""

import json
import os
import pty
import select
import signal
import threading
import time

import harness
import payloads
import plans
import pytest

from sandbox import PIPE, Reason, Sandbox, SetupError

pytestmark = pytest.mark.needs_userns
WITHOUT = Sandbox().init(False)


# ── init(False) ──


def test_command_is_pid_1_and_its_status_and_usage_are_told():
    done = WITHOUT.run(["sh", "-c", "echo $$; exit 7"], capture_output=True, text=True)
    assert ("1\n", 7, Reason.EXITED) == (done.stdout, done.returncode, done.reason)
    assert done.usage.max_rss > 0
    assert done.enforced.no_new_privs
    assert "2\n" == Sandbox().run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout


def test_nobody_reaps_but_the_command():
    body = "import time\n" + ORPHAN
    assert ["Z"] == payloads.tell(WITHOUT, body)
    assert [] == payloads.tell(Sandbox(), body)


# A grandchild that outlives its parent: its parent is PID 1 then.
ORPHAN = """
ready, go = os.pipe()
if not os.fork():
    if not os.fork():
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os._exit(0)
os.wait()
os.close(go)

def states():
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                found.append(open(f"/proc/{name}/stat").read().rpartition(") ")[2][0])
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found
# Until it has ended: a zombie, or gone.
while any(state not in "Z" for state in states()):
    time.sleep(0.01)
end = time.monotonic() + (0 if os.getpid() == 1 else 5)
while states() and time.monotonic() < end:
    time.sleep(0.01)
say(states())
"""


def test_everything_else_ends_with_it():
    done = WITHOUT.run(["sh", "-c", "setsid sleep 1000 & exit 0"])
    assert 0 == done.returncode


def test_kill_ends_it_and_an_unhandled_signal_does_not():
    with WITHOUT.popen(["sh", "-c", "echo ready; cat"], stdin=PIPE, stdout=PIPE) as process:
        assert b"ready\n" == process.stdout.readline()
        assert process.pid == process.init_pid
        process.terminate()
        process.stdin.write(b"still here\n")
        process.stdin.flush()
        assert b"still here\n" == process.stdout.readline()
        process.kill()
        assert -signal.SIGKILL == process.returncode


def test_signal_that_it_handles_reaches_it():
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    with WITHOUT.popen(["sh", "-c", script], stdout=PIPE) as process:
        assert b"ready\n" == process.stdout.readline()
        process.terminate()
        assert b"got\n" == process.stdout.readline()
        assert 5 == process.wait()


def test_wall_time_ends_a_command_that_is_pid_1():
    done = WITHOUT.limit(wall_time=0.2).run(["sh", "-c", "trap '' TERM; sleep 1000"])
    assert Reason.TIMEOUT is done.reason


def test_program_that_is_missing_is_a_setup_error():
    with pytest.raises(FileNotFoundError, match="/nope") as caught:
        WITHOUT.run(["/nope"])
    assert isinstance(caught.value, SetupError)


def test_shared_pid_namespace_has_no_pid_1():
    with pytest.raises(ValueError, match="pid"):
        WITHOUT.share("pid").run(["true"])


def _gone(pidfd):
    return [pidfd] == select.select([pidfd], [], [], 10)[0]


KEEPS = "import ctypes; ctypes.CDLL(None).prctl(1, 0); print('ready', flush=True)\nimport time; time.sleep(1000)"


@pytest.mark.parametrize("command", [["sh", "-c", "echo ready; sleep 1000"], [payloads.PYTHON, "-c", KEEPS]])
def test_watcher_killed_ends_the_command_too(command):
    with WITHOUT.popen(command, stdout=PIPE) as process:
        assert b"ready\n" == process.stdout.readline()
        inner = os.pidfd_open(process.init_pid)
        try:
            os.kill(_parent(process.init_pid), signal.SIGKILL)
            # The second command has given up the signal that its parent's death sends: the caller ends it then.
            assert Reason.INIT_DIED is process.result().reason
            assert _gone(inner)
        finally:
            os.close(inner)
    assert plans.reap_all(5)


def _parent(pid):
    return int(payloads.status("PPid", pid))


def test_caller_killed_ends_the_command():
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            process = WITHOUT.popen([payloads.PYTHON, "-c", KEEPS], stdout=PIPE)
            process.stdout.readline()
            os.write(write_end, b"%d\n" % process.init_pid)
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as pids:
        inner = os.pidfd_open(int(pids.readline()))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert _gone(inner)
    finally:
        os.close(inner)
    assert plans.reap_all(5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    ("segment", "call", "target"),
    [
        ("stage", "clone", "stage"),
        ("stage", "stay", "stage"),
        ("init", "pivot_root", "stage"),
        ("init", "pivot_root", "init"),
        ("payload", "verify", "stage"),
        ("payload", "verify", "init"),
    ],
)
def test_set_up_without_init_that_somebody_kills_or_stops_is_noticed(segment, call, target, number):
    def check():
        harness.become_subreaper()
        box = WITHOUT.seccomp(None)
        plan = box.plan(["true"])
        index = ("stage", "init", "payload").index(segment)
        position = [one.call for one in plan.segments[index]].index(call)
        before = harness.footprint()
        with plans.pipes(2) as (go, _, told, tell):

            def harm():
                os.read(told, 1)
                (pid,) = harness.children()
                if target == "init":
                    with open(f"/proc/{pid}/task/{pid}/children") as stream:
                        pid = int(stream.read())
                os.kill(pid, number)

            thread = threading.Thread(target=harm)
            thread.start()
            with pytest.raises(SetupError) as caught:
                plans.launch(box, ["true"], plan=plans.held(plan, segment, position), stdin=go, stdout=tell)
            thread.join()
        assert caught.value.hint
        # A PID 1 that outlived its parent came to this process, and has ended.
        assert plans.reap_all(5)
        after = harness.footprint(settle=before)
        assert (before.descriptors, before.children) == (after.descriptors, after.children)

    harness.in_child(check)


# ── new_session(False) ──

# No Python: what comes right before it sleeps is noted, and it sleeps.
WAITS = ["sh", "-c", "echo ready; exec sleep 1000"]


def _interrupt(box):
    """Run a command on a terminal, press Ctrl-C, and return how it ended; None when it did not."""
    pid, terminal = pty.fork()
    if not pid:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            process = box.popen(WAITS, stdin=None)
            # A byte of the command says that it runs; one of ours that Ctrl-C had its time.
            end = time.monotonic() + 1
            while process.poll() is None and (time.monotonic() < end or box == Sandbox().new_session(False)):
                time.sleep(0.01)
            code = 1 if process.poll() is None else 0
            process.close()
        finally:
            os._exit(code)
    try:
        said = b""
        while b"ready" not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, b"\3")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)


def test_terminal_of_the_callers_session_controls_the_command():
    assert 0 == _interrupt(Sandbox().new_session(False))


def test_terminal_has_no_say_in_a_session_of_its_own():
    assert 1 == _interrupt(Sandbox())


@pytest.mark.parametrize("box", [Sandbox(), WITHOUT], ids=["init", "no init"])
def test_session_and_group_are_the_callers(box):
    def session_of(one):
        with one.popen(["cat"], stdin=PIPE) as process:
            return os.getsid(process.pid), os.getpgid(process.pid)

    ours = (os.getsid(0), os.getpgrp())
    assert ours == session_of(box.new_session(False))
    assert ours != session_of(box)
    assert any("new_session" in gap for gap in box.new_session(False).run(["true"]).enforced.gaps)
    assert box == box.new_session(False).new_session()


# ── time ──

CLOCKS = "import time; say([time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)])"


@pytest.mark.parametrize("box", [Sandbox(), WITHOUT, Sandbox().user(0)], ids=["init", "no init", "uid 0"])
def test_clocks_are_moved_inside_alone(box):
    before = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)
    monotonic, boottime = payloads.tell(box.time_offset(monotonic=1e6, boottime=-0.5), CLOCKS)
    assert 1e6 <= monotonic - before[0] < 1e6 + 100
    assert -0.5 <= boottime - before[1] < 100
    monotonic, _ = payloads.tell(box, CLOCKS)
    assert 0 <= monotonic - before[0] < 200


def test_time_namespace_without_an_offset_is_a_new_one():
    body = "say(os.readlink('/proc/self/ns/time'))"
    ours = os.readlink("/proc/self/ns/time")
    assert ours == payloads.tell(Sandbox(), body)
    assert ours != payloads.tell(Sandbox().unshare("time"), body)
    assert ours != payloads.tell(WITHOUT.unshare("time"), body)


def test_time_limits_and_usage_are_of_the_hosts_clock():
    done = Sandbox().time_offset(monotonic=1e6).limit(wall_time=30).run(["true"])
    assert Reason.EXITED is done.reason
    assert done.usage.wall < 30


def test_clock_before_the_boot_is_an_error_that_says_so():
    with pytest.raises(SetupError, match="before the boot"):
        Sandbox().time_offset(boottime=-4e9).run(["true"])


@pytest.mark.needs_root
def test_time_namespace_in_the_callers_user_namespace():
    def check():
        box = Sandbox().share("user").time_offset(monotonic=1000)
        assert payloads.tell(box, CLOCKS)[0] > 1000 + time.monotonic() - 100

    harness.in_child(check)


OUTLIVE = """
import ctypes, signal, time
ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG
sys.stdin.readline()  # the launch is over
os.kill(os.getppid(), signal.SIGKILL)
say(os.getpid())
time.sleep(1000)
"""


@pytest.mark.parametrize("shares", [True, False])
def test_payload_outlives_its_sandbox_only_where_a_gap_says_so(shares):
    box = Sandbox().share("pid") if shares else Sandbox()
    with box.popen(payloads.script(OUTLIVE), stdin=PIPE, stdout=PIPE) as process:
        process.stdin.write(b"go\n")
        process.stdin.flush()
        pid = json.loads(process.stdout.readline())
        process.kill()
    assert shares == any("outlives the sandbox" in gap for gap in process.enforced.gaps)
    if shares:
        os.kill(pid, signal.SIGKILL)  # it is there
        assert pid == os.waitpid(pid, 0)[0]  # the test's process is a subreaper
