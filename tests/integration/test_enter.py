"""Process.run and Process.popen: further commands in a sandbox that runs, under every layer."""

import asyncio
import gc
import json
import os
import select
import signal
import threading
import time
from contextlib import contextmanager, suppress

import harness
import plans
import pytest
from payloads import script

from sandbox import DEVNULL, PIPE, Filter, FilterError, Notify, Reason, Sandbox, SetupError, TimeoutExpired, wait_any
from sandbox.launch import native

pytestmark = pytest.mark.needs_userns

# Everything that a process can be asked about itself.
LOOK = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
keys = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
import resource, json
names = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
print(json.dumps([
    [status[key].strip() for key in keys], dict(os.environ), os.getcwd(), os.umask(0), os.listdir("/proc/self/fd"),
    [os.readlink("/proc/self/ns/" + name) for name in names], os.getsid(0) == os.getpid(),
    [resource.getrlimit(one) for one in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU)],
]))
"""
LOOKING = ["/usr/bin/python3", "-c", "import os" + LOOK]
BOXES = {
    "default": Sandbox(),
    "everything set": Sandbox().env(A="b").cwd("/usr").umask(0o27).limit(open_files=64).unshare("time").user(5, 6),
    "shared": Sandbox().share("net", "pid"),
    "capability": Sandbox().capabilities(["NET_BIND_SERVICE"]).user(0),
    "ambient": Sandbox().capabilities(["NET_RAW"], ambient=["NET_RAW"]),
    "nested": Sandbox().capabilities(["SYS_ADMIN", "NET_RAW"], ambient=["NET_RAW"]),
    "nested root": Sandbox().capabilities(["SYS_ADMIN"]).user(0),
    "nesting": Sandbox().nesting(),
    "no filter": Sandbox().seccomp(None),
}


@pytest.fixture
def running():
    with Sandbox().popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", BOXES)
def test_further_command_is_all_that_the_first_one_is(name):
    with BOXES[name].popen(["/usr/bin/python3", "-c", "import os; exec(input())" + LOOK + "input()"], stdin=PIPE,
                           stdout=PIPE, text=True, bufsize=1) as first:  # fmt: skip
        first.stdin.write("pass\n")
        expected = json.loads(first.stdout.readline())
        result = first.run(LOOKING, capture_output=True, text=True)
        assert (0, "") == (result.returncode, result.stderr)
        assert expected == json.loads(result.stdout)
        assert first.enforced == result.enforced
        first.kill()


def test_further_command_is_landlocked(tmp_path):
    box = Sandbox().landlock(read=["/"], execute=["/usr", "/lib", "/lib64"], write=["/tmp"])
    with box.popen(["sleep", "1000"]) as process:
        assert 1 == process.run(["sh", "-c", "true"]).enforced.landlock_layers
        assert 0 == process.run(["sh", "-c", "echo x > /tmp/a"]).returncode
        assert 0 != process.run(["sh", "-c", "echo x > /dev/shm/a"], stderr=DEVNULL).returncode
        process.kill()
    with Sandbox().popen(["sleep", "1000"]) as process:  # the positive control
        assert 0 == process.run(["sh", "-c", "echo x > /dev/shm/a"]).returncode
        process.kill()


def test_further_command_sees_the_files_and_processes_of_the_first(running):
    running.run(["sh", "-c", "echo kept > /tmp/file"], check=True)
    result = running.run(
        ["sh", "-c", "cat /tmp/file; cat /proc/2/comm; cat"], input="in", capture_output=True, text=True
    )
    assert "kept\nsleep\nin" == result.stdout


def test_further_command_takes_the_options_of_a_launch(running):
    read_end, write_end = os.pipe()
    command = ["sh", "-c", "echo $A $HOME; pwd; echo nine >&9"]
    with running.popen(
        command, stdout=PIPE, text=True, env={"A": "b"}, cwd="/usr", fds={9: write_end}, name="x"
    ) as more:
        os.close(write_end)
        assert ("b\n/usr\n", None) == more.communicate()
        assert "'x'" in repr(more)
    assert b"nine\n" == os.read(read_end, 10)
    os.close(read_end)


def test_further_command_has_a_terminal_if_asked(running):
    with running.popen(["sh", "-c", "tty; stty size"], pty=(30, 100), text=True) as more:
        assert "/dev/pts/0\n30 100\n" == more.communicate()[0].replace("\r", "")


@pytest.mark.parametrize(
    ("command", "error"),
    [(["no-such-program"], FileNotFoundError), (["/etc/passwd"], PermissionError), (["/usr"], PermissionError)],
)
def test_further_command_that_cannot_run_is_the_error_of_a_launch(running, command, error):
    with pytest.raises(error) as caught:
        running.run(command)
    assert isinstance(caught.value, SetupError)
    assert caught.value.call.startswith("execve")
    assert 0 == running.run(["true"]).returncode


def test_each_step_of_a_further_command_fails_in_turn_and_the_sandbox_lives_on():
    boxes = (Sandbox().limit(open_files=64), BOXES["nested"], BOXES["capability"], BOXES["shared"], Sandbox().observe())
    for box in (*boxes, Sandbox().landlock(read=["/"]).time_offset(monotonic=1).umask(0o27)):
        with box.popen(["sleep", "1000"]) as process:
            plan = plans.further(box, ["true"])
            assert 0 == process.run(["true"]).returncode  # what it keeps from here on is no leak
            before = harness.footprint()
            for step, (_, call) in zip(plan.steps, plan.calls(), strict=True):
                fault = plans.plausible(call)
                with pytest.raises(SetupError) as caught:
                    plans.enter(process, ["touch", "/tmp/ran"], plan=plan.with_fault(step.number, fault))
                told = caught.value
                assert (fault, step.number, step.origin) == (told.errno, told.step, told.origin), step
                assert ('execve("touch")' if step.call == "execve" else str(step)) == told.call
            assert before == harness.footprint(settle=before)
            assert "" == process.run(["ls", "/tmp"], capture_output=True, text=True).stdout
            process.kill()


def test_error_of_a_further_command_numbers_a_step_of_its_plan(running):
    with pytest.raises(SetupError) as caught:
        running.run(["true"], cwd="/no/such")
    plan = running.plan(["true"], cwd="/no/such")
    step = plan.steps[caught.value.step - 1]
    assert (len(plan.steps), str(step)) == (caught.value.steps, caught.value.call)
    assert caught.value.call in str(plan)
    assert "execve" in str(plan) and '"true"' in str(plan)


def test_usage_status_and_reason_are_its_own(running):
    result = running.run(["/usr/bin/python3", "-c", "x = bytearray(50 << 20); raise SystemExit(7)"])
    assert (7, Reason.EXITED) == (result.returncode, result.reason)
    assert result.usage.max_rss > 50 << 20
    assert 0 < result.usage.cpu_time <= result.usage.wall * os.cpu_count() + 1
    assert Reason.SIGNALED == running.run(["sh", "-c", "kill -9 $$"]).reason
    assert running.poll() is None


def test_timeout_ends_the_command_and_its_group_and_not_the_sandbox(running):
    with pytest.raises(TimeoutExpired) as caught:
        running.run(["sh", "-c", "echo said; sleep 1000 & wait"], stdout=PIPE, timeout=0.3)
    assert (b"said\n", Reason.TIMEOUT) == (caught.value.output, caught.value.result.reason)
    left = running.run(["sh", "-c", "cat /proc/[0-9]*/comm | sort"], capture_output=True, text=True).stdout
    assert 1 == left.count("sleep")
    assert running.poll() is None


def test_signals_and_stop_reach_the_further_command_alone(running):
    more = running.popen(["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"], stdout=PIPE)
    assert b"up\n" == more.stdout.readline()
    assert 9 == more.stop(30).returncode
    more.close()
    assert running.poll() is None


def test_end_of_the_sandbox_ends_all_and_tells_them(running):
    more = [running.popen(["sleep", "1000"]) for _ in range(3)]
    running.kill()
    assert [-9] * 3 == [one.wait() for one in more]
    assert {Reason.SIGNALED} == {one.result().reason for one in more}
    for one in more:
        one.close()
    for late in (running, more[0]):
        with pytest.raises(ProcessLookupError, match="the sandbox has ended"):
            late.run(["true"])


def test_end_of_the_first_command_ends_the_others():
    with Sandbox().popen(["cat"], stdin=PIPE) as first:
        more = first.popen(["sleep", "1000"])
        first.stdin.close()
        assert -9 == more.wait()
        assert 0 == first.wait()
        more.close()


def test_pid_1_killed_from_outside_is_told_to_all(running):
    more = running.popen(["sleep", "1000"])
    os.kill(running.init_pid, signal.SIGKILL)
    assert Reason.INIT_DIED == more.result().reason
    assert Reason.INIT_DIED == running.result().reason
    more.close()


def test_further_process_has_its_own_pid_and_the_sandboxs_init(running):
    with running.popen(["cat"], stdin=PIPE) as more, more.popen(["cat"], stdin=PIPE) as third:
        assert 4 == len({running.pid, more.pid, third.pid, running.init_pid})
        assert running.init_pid == more.init_pid == third.init_pid
        fds = [one.namespace_fd("pid") for one in (running, more)]
        assert os.path.samestat(*map(os.fstat, fds))
        for fd in fds:
            os.close(fd)


def test_further_process_that_nobody_holds_is_killed_and_the_sandbox_lives(running):
    references = [running.popen(["sleep", "1000"])]
    pidfd = os.pidfd_open(references[0].pid)
    with pytest.warns(ResourceWarning, match="sleep"):
        references.clear()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert 0 == running.run(["true"]).returncode


def test_further_process_keeps_the_sandbox_from_being_collected():
    more = Sandbox().popen(["sleep", "1000"]).popen(["cat"], stdin=PIPE)
    gc.collect()
    assert more.poll() is None
    more.communicate()
    assert 0 == more.returncode
    first = more._sandbox
    more.close()
    first.close()


def test_detached_further_command_lives_as_long_as_the_sandbox(running):
    pidfd = running.popen(["sleep", "1000"]).detach()
    assert 0 == running.run(["true"]).returncode  # PID 1 has seen the end of its channel
    assert not select.select([pidfd], [], [], 0.1)[0]
    running.kill()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def test_more_commands_than_there_is_room_for_are_refused(running):
    more = [running.popen(["sleep", "1000"]) for _ in range(31)]
    with pytest.raises(BlockingIOError, match="at most 32 commands"):
        running.run(["true"])
    more.pop().close()
    assert 0 == running.run(["true"]).returncode
    for one in more:
        one.close()


def test_many_threads_run_commands_in_one_sandbox(running):
    wrong = []

    def work(name):
        for turn in range(10):
            said = running.run(["echo", f"{name} {turn}"], stdout=PIPE, text=True).stdout
            if said != f"{name} {turn}\n":
                wrong.append((name, turn, said))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_denials_and_notifications_are_each_commands_own():
    with Sandbox().observe().popen(["sleep", "1000"]) as process:
        result = process.run(["unshare", "-r", "true"], stderr=DEVNULL)
        assert "unshare" in {denied.call for denied in result.denied}
        assert [] == process.denials.seen
        process.kill()
    box = Sandbox().seccomp(Filter.default().rule(Notify, "mkdir"))
    with box.popen(["sleep", "1000"]) as process:
        with pytest.raises(FilterError):
            process.run(["true"])
        with process.popen(["mkdir", "/tmp/x"], stderr=DEVNULL) as more:
            for notification in more.notifier:
                notification.deny("EXDEV")
            assert 1 == more.wait()
        process.kill()


def test_listener_arrives_whatever_numbers_are_given_away():
    read_end, write_end = os.pipe()
    fds = dict.fromkeys(range(3, 64), write_end)
    with Sandbox().observe().popen(["unshare", "-r", "true"], stderr=DEVNULL, fds=fds) as process:
        assert "unshare" in {denied.call for denied in process.result().denied}
    with Sandbox().observe().popen(["sleep", "1000"]) as process:
        result = process.run(["unshare", "-r", "true"], stderr=DEVNULL, fds=fds)
        assert "unshare" in {denied.call for denied in result.denied}
        process.kill()
    os.close(read_end)
    os.close(write_end)


def test_filter_that_asks_about_execve_is_answered_for_a_further_command():
    box = Sandbox().seccomp(Filter(Notify))
    process = box.popen(["sleep", "1000"])
    proceeding = threading.Thread(target=lambda: [one.proceed() for one in process.notifier])
    proceeding.start()
    with process.popen(["true"]) as more:
        seen = []
        for notification in more.notifier:
            seen.append(notification.call)
            notification.proceed()
        assert 0 == more.wait()
    assert "execve" == seen[0]
    process.close()
    proceeding.join()


def test_command_in_a_held_sandbox_and_a_held_further_command_are_refused():
    with Sandbox().popen(["sleep", "1000"], hold=True) as process:
        with pytest.raises(ValueError, match="release"):
            process.run(["true"])
        process.release()
        with pytest.raises(ValueError, match="first command"):
            process.popen(["true"], hold=True)
        process.kill()


def test_wrong_arguments_are_those_of_a_launch(running):
    for wrong, error in (("true", TypeError), ([], ValueError)):
        with pytest.raises(error):
            running.run(wrong)
    with pytest.raises(TypeError, match="unexpected keyword"):
        running.run(["true"], shell=True)


# ── what is hostile ──────────────────────────────────────────────────────────────────────────────────────────────────

ATTACK = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, found, seen = 16, set(), set()
say_now = lambda text: os.write(1, text)
say_now(b"up\\n")
while not seen:
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) <= os.getpid() or name in seen:
            continue
        try:
            setting_up = open(f"/proc/{name}/comm").read() == "sandbox-init\\n"
        except OSError:
            continue
        if setting_up == SETTING_UP:
            seen.add(name)
            failed = libc.ptrace(PTRACE_ATTACH, int(name), 0, 0)
            found.add(errno.errorcode[ctypes.get_errno()] if failed else "attached")
            try:
                os.close(os.open(f"/proc/{name}/mem", os.O_RDWR))
                found.add("memory")
            except OSError as error:
                found.add(errno.errorcode[error.errno])
say(sorted(found))
sys.stdin.read()  # the sandbox lives as long as this does
"""


def test_command_that_is_being_set_up_is_out_of_reach_for_those_inside():
    """A command that was held in its set-up could be traced past its filter, were it dumpable."""
    box = Sandbox().seccomp(None)
    plan = plans.held(plans.further(box, ["true"]), "payload", 2)
    with plans.pipes(2) as (go, release, told, tell):
        with box.popen(script(ATTACK.replace("SETTING_UP", "True")), stdin=PIPE, stdout=PIPE) as first:
            assert b"up\n" == first.stdout.readline()
            thread = threading.Thread(
                target=plans.enter, args=(first, ["true"]), kwargs={"plan": plan, "stdin": go, "stdout": tell}
            )
            thread.start()
            assert b"!" == os.read(told, 1)
            assert ["EACCES", "EPERM"] == json.loads(first.stdout.readline())
            os.write(release, b".")
            thread.join()


def test_command_that_runs_is_in_reach_for_those_inside():
    """The positive control: the attack works on the same user's program, when nothing forbids it."""
    with Sandbox().seccomp(None).popen(script(ATTACK.replace("SETTING_UP", "False")), stdin=PIPE, stdout=PIPE) as first:
        assert b"up\n" == first.stdout.readline()
        with first.popen(["sleep", "1000"]) as more:
            assert ["attached", "memory"] == json.loads(first.stdout.readline())
            more.kill()


def test_command_stopped_in_its_set_up_by_those_inside_is_an_error_not_a_hang():
    body = """
os.write(1, b"up\\n")
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) > os.getpid():
            os.kill(int(name), 19)
            say("stopped")
            import time; time.sleep(1000)
"""
    box = Sandbox().seccomp(None)
    plan = plans.held(plans.further(box, ["true"]), "payload", 2)
    with plans.pipes(2) as (go, _, _, tell), box.popen(script(body), stdout=PIPE) as first:
        assert b"up\n" == first.stdout.readline()
        with pytest.raises(SetupError, match="a process inside stopped it"):
            plans.enter(first, ["true"], plan=plan, stdin=go, stdout=tell)
        first.kill()


def test_descriptors_of_the_callers_and_of_pid_1_do_not_reach_a_further_command(running):
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    more = running.popen(["sleep", "1000"], stdout=PIPE)
    listed = running.run(["sh", "-c", "cd /proc/self/fd; echo *"], capture_output=True, text=True).stdout
    assert "0 1 2 3\n" == listed  # 3 is the listing's own
    more.close()
    os.close(read_end)
    os.close(write_end)


@pytest.mark.needs_root  # PID 1 is not dumpable
def test_pid_1_keeps_no_descriptor_of_commands_that_have_ended(running):
    running.run(["true"])  # then PID 1 is in its loop
    before = len(os.listdir(f"/proc/{running.init_pid}/fd"))
    for _ in range(5):
        running.run(["true"])
        with pytest.raises(FileNotFoundError):
            running.run(["no-such-program"])
    deadline = time.monotonic() + 5
    while len(os.listdir(f"/proc/{running.init_pid}/fd")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert before == len(os.listdir(f"/proc/{running.init_pid}/fd"))


# ── PID 1 is stopped from outside ────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def stopped(process):
    """Stop PID 1 of a sandbox, and let it go on at the end."""
    os.kill(process.init_pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.init_pid, os.WSTOPPED)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # killed meanwhile
            os.kill(process.init_pid, signal.SIGCONT)


def test_end_that_pid_1_cannot_tell_is_waited_for_no_longer_than_was_said(running):
    more = running.popen(["cat"], stdin=PIPE)
    more._LAST_WORD = 0.01
    with stopped(running):
        more.stdin.close()
        assert select.select([more.fileno()], [], [], 10)[0]
        assert more.poll() is None
        with pytest.raises(TimeoutExpired):
            more.wait(0.01)
        assert set() == wait_any([more], timeout=0.01)
    assert 0 == more.wait()
    assert {more} == wait_any([more])
    more.close()


def test_further_command_can_be_killed_while_pid_1_is_stopped_and_another_thread_waits(running):
    more = running.popen(["sleep", "1000"])
    with stopped(running):
        waiting = threading.Thread(target=more.wait)
        waiting.start()
        more.kill()
        waiting.join()
        assert (-9, -9) == (more.returncode, more.wait())
    more.close()
    assert 0 == running.run(["true"]).returncode


def test_requests_to_a_pid_1_that_is_stopped_are_an_error_not_a_hang(running, monkeypatch):
    monkeypatch.setattr(native, "_PATIENCE", 10)
    with stopped(running):
        with pytest.raises(TimeoutError, match="is it stopped"):
            [running.send_signal(0) for _ in range(10_000)]
        running.kill()
    assert -9 == running.returncode


def test_loop_goes_on_while_a_pid_1_that_is_stopped_cannot_tell_an_end(running):
    async def main():
        process = await Sandbox().popen_async(["sleep", "1000"])
        more = await process.popen_async(["cat"], stdin=PIPE)
        with stopped(process):
            more.stdin.close()
            ended = asyncio.ensure_future(more.wait())
            pidfd = more.fileno()
            while not select.select([pidfd], [], [], 0)[0]:
                await asyncio.sleep(0.01)
            for _ in range(10):
                await asyncio.sleep(0.01)
                assert more.returncode is None
            assert not ended.done()
        assert 0 == await ended
        await more.aclose()
        killed = await process.popen_async(["sleep", "1000"])
        with stopped(process):
            await killed.aclose()
            assert -9 == killed.returncode
        assert 0 == (await process.run_async(["true"])).returncode
        await process.aclose()

    asyncio.run(main())
