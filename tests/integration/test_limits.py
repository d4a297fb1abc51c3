"""What a command may use: the limits hold, and what is in force is read back."""

import math
import os
import resource
import select
import signal

import payloads
import pytest

from sandbox import Reason, Sandbox, SetupError

pytestmark = pytest.mark.needs_userns


def test_resource_limits_are_those_of_the_payload_and_read_back():
    box = Sandbox().limit(open_files=20, file_size="1M", stack="2M", core="4K")
    done = box.run(
        payloads.script(
            "import resource as r\n"
            "say([r.getrlimit(x) for x in (r.RLIMIT_NOFILE, r.RLIMIT_FSIZE, r.RLIMIT_STACK, r.RLIMIT_CORE)])"
        ),
        capture_output=True,
        text=True,
    )
    expected = {"open_files": 20, "file_size": 1 << 20, "stack": 2 << 20, "core": 4096}
    assert str([[value, value] for value in expected.values()]) == done.stdout.strip()
    assert expected.items() <= done.enforced.limits.items()


def test_limit_that_is_not_asked_for_is_the_callers():
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = Sandbox().run(["true"]).enforced.limits
    assert (soft, 1, math.inf) == (limits["open_files"], limits["core"], limits["cpu_time"])


def test_no_limit_on_core_leaves_the_callers():
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    assert (math.inf if soft == -1 else soft) == Sandbox().limit(core=None).run(["true"]).enforced.limits["core"]


def test_descriptors_end_at_the_limit():
    body = """
files = []
def more():
    while True:
        files.append(os.open("/dev/null", 0))
failed = tried(more)
count = len(files)
for one in files: os.close(one)
say([failed, count])
"""
    failed, count = payloads.tell(Sandbox().limit(open_files=32), body)
    assert ("EMFILE", True) == (failed, 20 <= count < 32)
    assert payloads.tell(Sandbox().limit(open_files=64), body)[1] > 40


def test_least_open_files_start_a_program_with_landlock_and_cwd():
    box = Sandbox().limit(open_files=4).landlock(read=["/"], execute=["/usr", "/lib"]).cwd("/tmp")
    assert 0 == box.run(["true"]).returncode


def test_file_beyond_its_size_ends_the_writer():
    done = Sandbox().limit(file_size=1000).run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=2000", "count=2", "status=none"])
    assert "SIGXFSZ" in done.detail
    assert 0 == Sandbox().run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=2000", "count=2", "status=none"]).returncode


def test_limit_above_the_callers_hard_one_is_an_error_that_says_so():
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked = {"open_files": files + 1} if hard == resource.RLIM_INFINITY else {"stack": hard + 4096}
    with pytest.raises(SetupError, match="hard limit"):
        Sandbox().limit(**asked).run(["true"])


def test_wall_time_ends_the_tree_and_says_so():
    done = Sandbox().limit(wall_time=0.3).run(["sh", "-c", "setsid sleep 1000 & (sleep 1000 &) ; sleep 1000"])
    assert (Reason.TIMEOUT, -9) == (done.reason, done.returncode)
    assert "wall_time is limited to 0.3" in done.detail
    assert 0.3 <= done.usage.wall < 30


def test_wall_time_that_is_not_used_up_changes_nothing():
    done = Sandbox().limit(wall_time=60).run(["sh", "-c", "exit 3"])
    assert (Reason.EXITED, 3) == (done.reason, done.returncode)


@pytest.mark.parametrize("body", ["trap '' TERM INT; sleep 1000", "kill -STOP $$"])
def test_wall_time_ends_what_does_not_listen(body):
    assert Reason.TIMEOUT is Sandbox().limit(wall_time=0.2).run(["sh", "-c", body]).reason


def test_wall_time_needs_nobody_who_waits():
    with Sandbox().limit(wall_time=0.2).popen(["sleep", "1000"]) as process:
        assert [process] == select.select([process], [], [], 60)[0]
        assert (Reason.TIMEOUT, -9) == (process.result().reason, process.poll())


def test_wall_time_holds_while_the_caller_is_stopped():
    read_end, write_end = os.pipe()

    def launch_and_stop():
        process = Sandbox().limit(wall_time=0.2).popen(["sleep", "1000"])
        os.write(write_end, b"%d\n" % process.init_pid)
        os.kill(os.getpid(), signal.SIGSTOP)
        assert Reason.TIMEOUT is process.result().reason
        process.close()

    child = os.fork()
    if not child:
        code = 1
        try:
            launch_and_stop()
            code = 0
        finally:
            os._exit(code)
    try:
        with os.fdopen(read_end) as pids:
            os.close(write_end)
            init = int(pids.readline())
        os.waitid(os.P_PID, child, os.WSTOPPED)
        pidfd = os.pidfd_open(init)
        try:
            # Readable when it has ended, reaped or not: its parent is stopped.
            assert [pidfd] == select.select([pidfd], [], [], 60)[0]
        finally:
            os.close(pidfd)
    finally:
        os.kill(child, signal.SIGCONT)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


BUSY = "while :; do :; done"
CATCHES = "import signal; signal.signal(signal.SIGXCPU, lambda *a: print('caught', flush=True))\nwhile True: pass"


def test_cpu_time_ends_who_is_busy():
    done = Sandbox().limit(cpu_time=1).run(["sh", "-c", BUSY])
    assert (Reason.CPU_TIME, -signal.SIGXCPU) == (done.reason, done.returncode)
    assert "cpu_time is limited to 1" in done.detail
    assert any("cpu_time" in gap for gap in done.enforced.gaps)
    assert 1 == done.enforced.limits["cpu_time"]


def test_cpu_time_ends_who_catches_the_first_signal():
    done = Sandbox().limit(cpu_time=1).run([payloads.PYTHON, "-c", CATCHES], capture_output=True, text=True)
    assert (Reason.CPU_TIME, -signal.SIGKILL) == (done.reason, done.returncode)
    assert "caught" in done.stdout


def test_cpu_time_of_a_child_is_told_by_the_shells_status():
    done = Sandbox().limit(cpu_time=1).run(["sh", "-c", f"sh -c '{BUSY}' 2>/dev/null; exit $?"])
    assert (Reason.CPU_TIME, 128 + signal.SIGXCPU) == (done.reason, done.returncode)


def test_signal_that_no_limit_sent_is_just_a_signal():
    done = Sandbox().limit(cpu_time=50, wall_time=60).run(["sh", "-c", "kill -XCPU $$"])
    assert (Reason.SIGNALED, -signal.SIGXCPU) == (done.reason, done.returncode)
