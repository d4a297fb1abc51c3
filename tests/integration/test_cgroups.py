"""Control groups: limits of the whole tree hold, what it used is counted, why it ended is told, nothing is left."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import sysconfig

import harness
import payloads
import plans
import pytest

from sandbox import PIPE, BusyError, Process, Reason, Sandbox, SetupError, UnsupportedError, cgroups

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_cgroup("memory", "pids")]

MEMORY = 64 << 20
# Each takes more than MEMORY, in its own way; a few pages at a time, so that nothing but the limit ends it.
BOMBS = {
    "anonymous": "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
    "tmpfs": "with open('/tmp/bomb', 'wb') as f:\n    while True: f.write(bytes(1 << 20)); f.flush()",
    "memfd": "fd = os.memfd_create('bomb')\nwhile True: os.write(fd, bytes(1 << 20))",
    "pipes": """
import fcntl
ends = []
while True:
    r, w = os.pipe()
    ends += [r, w]
    try: fcntl.fcntl(w, 1031, 1 << 20)
    except OSError: pass
    os.set_blocking(w, False)
    try:
        while os.write(w, bytes(65536)): pass
    except BlockingIOError: pass
""",
}


def tell_group(process: Process, controller: str, name: str) -> str:
    with open(os.path.join(process.cgroups[controller], name)) as stream:
        return stream.read()


def versions(controller: str) -> set[str]:
    """Return the version of control groups that has a controller here."""
    return {f"v{place.version}" for place in harness._places() if controller in place.controllers}


@pytest.fixture(params=["as found", "version 1"])
def each_version(request, monkeypatch):
    """Run a test as the host is and, where that is a mixture, with what version 1 has alone."""
    if request.param == "version 1":
        find = cgroups.find

        def only_version_1(*arguments):
            host = find(*arguments)
            return host._replace(places=tuple(place for place in host.places if place.version == 1))

        monkeypatch.setattr(cgroups, "find", only_version_1)
        monkeypatch.setattr(cgroups, "_known", None)
        needed = {"freezer", "cpuacct", "memory", "pids"}
        found = {name for place in cgroups._host().places for name in place.controllers}
        if not needed <= found:
            pytest.skip(f"version 1 of control groups has no {', '.join(sorted(needed - found))} here")
    return request.param


@pytest.fixture
def sleeper(each_version):
    with Sandbox().limit(pids=20).popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


# ── limits ──


@pytest.mark.parametrize("kind", BOMBS)
def test_memory_bomb_ends_for_want_of_memory(kind, each_version):
    done = Sandbox().limit(memory=MEMORY, open_files=4096).run(payloads.script(BOMBS[kind]), timeout=60)
    assert (-signal.SIGKILL, Reason.OOM) == (done.returncode, done.reason), done.detail
    assert "oom_kill" in done.detail and str(MEMORY) in done.detail
    assert MEMORY // 2 < done.usage.memory_peak <= MEMORY


def test_memory_bomb_runs_without_a_limit():
    """The positive control: so much memory can be had."""
    done = Sandbox().run(payloads.script(f"x = bytearray({2 * MEMORY})"), timeout=60)
    assert (0, Reason.EXITED) == (done.returncode, done.reason)


@pytest.mark.needs_kernel(4, 19)
def test_further_command_that_is_killed_for_memory_is_told(each_version):
    with Sandbox().limit(memory=MEMORY).popen(["sleep", "1000"]) as process:
        done = process.run(payloads.script(f"x = bytearray({2 * MEMORY})"), timeout=60)
        assert (-signal.SIGKILL, Reason.OOM) == (done.returncode, done.reason), done.detail
        assert "oom_kill" in done.detail
        if process.poll() is None:  # version 2 ends the whole group
            control = process.popen(["sleep", "1000"])
            os.kill(control.pid, signal.SIGKILL)
            assert Reason.SIGNALED is control.result().reason
            control.close()
        process.kill()


@pytest.mark.needs_kernel(4, 19)
def test_child_that_is_killed_for_memory_is_told_when_the_command_fails():
    done = (
        Sandbox()
        .limit(memory=MEMORY)
        .run(["sh", "-c", f"{payloads.PYTHON} -c 'x = bytearray({2 * MEMORY})'; exit 3"], timeout=60)
    )
    assert Reason.OOM is done.reason
    assert done.returncode in {3, -signal.SIGKILL}  # version 2 ends the whole group


def test_what_the_oom_killer_thinks_of_the_caller_ends_at_a_memory_limit(monkeypatch):
    """Only CAP_SYS_RESOURCE could make the value negative; any other shows that it is set."""
    monkeypatch.setattr(cgroups, "shielded", lambda: True)

    def check():
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("300")
        body = "say(open('/proc/self/oom_score_adj').read())"
        # Without a user namespace of its own only root makes a sandbox.
        for shared in [(), ("user",)] if os.geteuid() == 0 else [()]:
            box = Sandbox().limit(pids=20).share(*shared)
            assert ("300\n", "0\n") == (payloads.tell(box, body), payloads.tell(box.limit(memory=MEMORY), body))

    harness.in_child(check)


def test_swap_is_no_way_out():
    limits = Sandbox().limit(memory=MEMORY).run(["true"]).enforced.limits
    if "swap" not in limits:
        with open("/proc/swaps") as stream:
            assert 1 == len(stream.readlines())
    else:
        assert 0 == limits["swap"]


def test_fork_bomb_meets_the_limit_and_ends_with_the_sandbox():
    body = """
import time
def bomb():
    while True:
        try: pid = os.fork()
        except BlockingIOError: return
        if pid == 0:
            while True: time.sleep(1000)
bomb()
print("refused", flush=True)
"""
    done = Sandbox().limit(pids=30).run(payloads.script(body), capture_output=True, text=True, timeout=60)
    assert ("refused\n", Reason.EXITED, 30) == (done.stdout, done.reason, done.usage.pids_peak)
    assert "pids.max refused" in done.detail


def test_threads_count_as_processes():
    body = """
import threading, time
made = 1
try:
    while made < 100:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        made += 1
except RuntimeError: pass
say(made)
os._exit(0)
"""
    assert 12 == payloads.tell(Sandbox().limit(pids=12), body)
    assert 100 == payloads.tell(Sandbox(), body)


def test_limit_of_one_process_lets_the_command_run_alone():
    body = "say(tried(os.fork))"
    assert "EAGAIN" == payloads.tell(Sandbox().limit(pids=1), body)


@pytest.mark.needs_cgroup("cpu")
def test_share_of_a_processor_throttles():
    """Of many periods a busy loop is throttled in most; how long it took says nothing on a busy machine."""
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    done = Sandbox().limit(cpus=0.1).run(payloads.script(burn), timeout=110)
    assert (0, 0.1) == (done.returncode, done.enforced.limits["cpus"])
    assert done.usage.throttled > 0
    # A tenth of the time at most, but for the period that had begun: no machine is too slow for that.
    assert done.usage.cpu_time <= 0.1 * done.usage.wall + 0.2
    free = Sandbox().limit(pids=20).run(payloads.script(burn), timeout=60)
    assert not free.usage.throttled


@pytest.mark.needs_cgroup("cpuset")
def test_processors_are_those_of_the_limit_and_cannot_be_left():
    allowed = sorted(os.sched_getaffinity(0))
    body = "os.sched_setaffinity(0, {0, 1})\nsay(sorted(os.sched_getaffinity(0)))"
    assert [allowed[-1]] == payloads.tell(Sandbox().limit(cpuset=[allowed[-1]]), body)
    with pytest.raises(UnsupportedError, match="cpuset"):
        Sandbox().limit(cpuset=[4000]).run(["true"])


@pytest.mark.needs_cgroup("io")
def test_rates_of_disks_are_in_force():
    box = Sandbox().limit(io={"read": "1G", "write:/": "7M"})
    with box.popen(["sleep", "1000"]) as process:
        names = ("../blkio.throttle.read_bps_device", "../blkio.throttle.write_bps_device", "io.max")
        found = [os.path.join(process.cgroups["io"], name) for name in names]
        text = "".join(pathlib.Path(name).read_text() for name in found if os.path.exists(name))
        process.kill()
    assert str(7 << 20) in text and str(1 << 30) in text


@pytest.mark.needs_cgroup("io")
def test_what_is_written_to_a_disk_is_counted(tmp_path):
    """Direct writes: version 1 does not know whose the page cache is."""
    box = Sandbox().limit(io={"write": "1G"}).bind(payloads.ours(tmp_path), "/data")
    try:
        cgroups.files.disk_of(str(tmp_path))
    except OSError as error:
        pytest.skip(f"{tmp_path} is on no disk: {error}")
    done = box.run(["dd", "if=/dev/zero", "of=/data/x", "bs=64K", "count=16", "oflag=direct", "status=none"])
    assert 0 == done.returncode, done.detail
    assert done.usage.written_bytes >= 1 << 20


@pytest.mark.needs_cgroup("io")
def test_disk_that_is_none_is_named():
    with pytest.raises(UnsupportedError, match="/proc"):
        Sandbox().limit(io={"read:/proc": "1M"}).run(["true"])


def test_limits_are_read_back_and_the_group_is_named():
    with Sandbox().limit(memory=MEMORY, pids=9).popen(["sleep", "1000"]) as process:
        assert {"memory": MEMORY, "pids": 9}.items() <= process.enforced.limits.items()
        assert f"sandbox-sleep-{os.getpid()}-" in process.enforced.cgroup
        with open(os.path.join(process.enforced.cgroup, "payload", "cgroup.procs")) as stream:
            assert {process.init_pid, process.pid} == set(map(int, stream.read().split()))
        process.kill()


def test_without_a_limit_there_is_no_group():
    with Sandbox().popen(["sleep", "1000"]) as process:
        assert (None, {}) == (process.enforced.cgroup, process.cgroups)
        assert None is process.usage().memory_peak
        process.kill()


# ── what the payload can do about it ──


def test_payload_sees_neither_its_group_nor_the_file_system():
    body = "say([open('/proc/self/cgroup').read(), os.path.exists('/sys/fs/cgroup')])"
    text, exists = payloads.tell(Sandbox().limit(memory=MEMORY, pids=20), body)
    # What it is not in is the caller's, whose namespace is no secret.
    with open("/proc/self/cgroup") as stream:
        callers = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in stream.read().splitlines()}
    for line in text.splitlines():
        _, name, path = line.split(":", 2)
        assert "/" == path, f"{name} of the caller is {callers[name]}"
    assert not exists


def test_payload_that_may_mount_meets_nothing_that_holds_a_limit():
    """The positive control is in the same run: what an unprivileged caller's payload finds, it can write."""
    body = """
uid, gid = os.getuid(), os.getgid()
print("unshare", libc.unshare(0x10000000 | 0x00020000 | 0x02000000))
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open("/proc/self/" + name, "w") as stream: stream.write(text)
libc.mount(None, b"/", None, 0x44000, None)
os.mkdir("/tmp/g")
def lift(name, text):
    with open("/tmp/g/" + name, "w") as stream: stream.write(text)
for kind, options in ((b"cgroup", b"memory"), (b"cgroup2", None)):
    if libc.mount(b"none", b"/tmp/g", kind, 0, options) == 0:
        print(kind.decode(), sorted(os.listdir("/tmp/g"))[:1], flush=True)
        if os.path.exists("/tmp/g/memory.limit_in_bytes"): print(tried(lift, "memory.limit_in_bytes", "-1"))
        if os.path.exists("/tmp/g/memory.max"): print(tried(lift, "memory.max", "max"))
        libc.umount2(b"/tmp/g", 2)
sys.stdout.flush()
kept = []
while True: kept.append(bytearray(1 << 20))
"""
    box = Sandbox().nesting().limit(memory=MEMORY, pids=50)
    done = box.run(payloads.script(body), capture_output=True, text=True, timeout=60)
    assert Reason.OOM is done.reason, (done, done.detail)
    said = done.stdout.splitlines()
    assert "unshare 0" == said[0]
    assert any(line.startswith("cgroup") for line in said), said
    # Version 2 has no limits at the root of what can be seen. In version 1 root's files are not the payload's.
    if os.geteuid() != 0 and "v2" not in versions("memory"):
        assert "ok" in said, said


@pytest.mark.parametrize("options", [{}, {"init": False}])
def test_cpu_time_is_that_of_all_processes(options, each_version):
    """Many short-lived ones: no process comes near the limit by itself."""
    script = "while :; do sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done'; done"
    box = Sandbox().limit(cpu_time=1, wall_time=100)
    limited = box.limit(pids=20) if options.get("init", True) else box.limit(pids=20).init(False)
    done = limited.run(["sh", "-c", script])
    assert (Reason.CPU_TIME, -signal.SIGKILL) == (done.reason, done.returncode), done.detail
    assert "all processes" in done.detail
    assert 1 <= done.usage.cpu_time
    assert not [gap for gap in done.enforced.gaps if "cpu_time" in gap]


# ── usage ──


def test_usage_grows_while_it_runs_and_is_final_at_the_end(each_version):
    body = """
kept = bytearray(20 << 20)
sys.stdout.write("x"); sys.stdout.flush()
sys.stdin.read()
"""
    box = Sandbox().limit(memory=MEMORY, pids=20)
    with box.popen(payloads.script(body), stdin=-1, stdout=-1) as process:
        assert b"x" == process.stdout.read(1)
        running = process.usage()
        process.stdin.close()
        process.wait()
        final = process.usage()
    assert 20 << 20 <= running.memory_peak <= final.memory_peak <= MEMORY
    assert 0 < running.cpu_time <= final.cpu_time
    assert 0 < running.wall and 1 <= running.pids_peak <= final.pids_peak
    assert final == process.result().usage
    assert final.context_switches > 0


def test_usage_without_a_group_is_that_of_the_processes():
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    body = f"""
kept = bytearray(30 << 20)
import subprocess
subprocess.run([sys.executable, "-c", {busy!r}])
child = subprocess.Popen([sys.executable, "-c", {busy!r} + "\\nprint(flush=True)\\nimport time\\ntime.sleep(1000)"])
sys.stdin.read()
"""
    with Sandbox().popen(payloads.script(body), stdin=PIPE, stdout=PIPE) as process:
        process.stdout.readline()
        used = process.usage()
        assert used.cpu_time >= 0.38 and used.max_rss >= 30 << 20  # in clock ticks of 0.01 seconds
        assert (None, None) == (used.memory_peak, used.pids_peak)
        process.kill()


def test_usage_counts_what_escaped_the_reaper(each_version):
    """With a SIGKILL to PID 1 nobody reaps; the group has counted all the same."""
    body = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(1000)"
    with Sandbox().limit(pids=20).popen(payloads.script(body), stdout=-1) as process:
        process.stdout.readline()
        os.kill(process.init_pid, signal.SIGKILL)
        process.wait()
        assert Reason.INIT_DIED is process.result().reason
        assert process.result().usage.cpu_time >= 0.3
    plain = Sandbox().popen(payloads.script(body), stdout=-1)
    plain.stdout.readline()
    os.kill(plain.init_pid, signal.SIGKILL)
    plain.wait()
    assert 0 == plain.result().usage.cpu_time
    plain.close()


# ── freeze, thaw, kill ──


def frozen(process: Process) -> bool:
    group = process.cgroups["freezer"]
    if os.path.exists(os.path.join(group, "freezer.state")):
        return "FROZEN\n" == tell_group(process, "freezer", "freezer.state")
    return "frozen 1\n" in tell_group(process, "freezer", "cgroup.events")


def test_frozen_sandbox_stands_and_goes_on(each_version):
    body = """
import time
print("ready", flush=True)
for line in sys.stdin: print("heard", flush=True)
"""
    with Sandbox().limit(pids=20).popen(payloads.script(body), stdin=-1, stdout=-1, text=True, bufsize=1) as process:
        assert "ready\n" == process.stdout.readline()
        process.freeze()
        assert frozen(process)
        process.stdin.write("x\n")
        process.stdin.flush()
        before = process.usage().cpu_time
        assert frozen(process) and before == process.usage().cpu_time
        process.freeze()  # a second time changes nothing
        process.thaw()
        assert "heard\n" == process.stdout.readline()
        assert not frozen(process)
        process.stdin.close()
        assert 0 == process.wait()
        process.freeze()  # it has ended: nothing happens
        process.thaw()


def test_further_command_is_in_the_group_and_waits_for_a_thaw(sleeper):
    with sleeper.popen(["sleep", "1000"]) as further:
        with open(os.path.join(sleeper.cgroups["pids"], "cgroup.procs")) as stream:
            inside = set(map(int, stream.read().split()))
        if not inside:  # version 2 has the processes in the inner group
            with open(os.path.join(sleeper.cgroups["pids"], "payload", "cgroup.procs")) as stream:
                inside = set(map(int, stream.read().split()))
        assert {sleeper.init_pid, sleeper.pid, further.pid} == inside
        sleeper.freeze()
        with pytest.raises(BusyError, match="frozen"):
            sleeper.run(["true"])
        sleeper.thaw()
        assert 0 == sleeper.run(["true"]).returncode
        further.kill()


def test_payload_that_is_pid_1_is_frozen_too(each_version):
    with Sandbox().init(False).limit(pids=20).popen(["sleep", "1000"]) as process:
        process.freeze()
        assert frozen(process)
        process.kill()
    assert -signal.SIGKILL == process.returncode


def test_kill_of_a_frozen_sandbox_ends_and_counts_it(each_version):
    with Sandbox().limit(pids=20).popen(["sh", "-c", "echo; exec sleep 1000"], stdout=-1) as process:
        process.stdout.readline()
        process.freeze()
        process.kill()
        result = process.result()
    assert (-signal.SIGKILL, Reason.SIGNALED) == (process.returncode, result.reason)
    # PID 1 was there to reap, unless the host was so busy that it did not come to it in time.
    assert result.usage.max_rss > 0 or "did not answer" in result.detail


def test_vfork_parent_is_frozen_with_its_child(each_version):
    with Sandbox().limit(pids=20).popen(["sh", "-c", "sh -c 'sleep 1000; true'; true"]) as process:
        process.freeze()
        assert frozen(process)
        process.kill()


def test_frozen_sandbox_ends_with_its_caller(tmp_path, each_version):
    out = tmp_path / "pids"

    def launch_and_end():
        process = Sandbox().limit(pids=20).popen(["sleep", "1000"])
        payload = process.pid
        process.freeze()
        out.write_text(f"{process.init_pid} {payload} {process.enforced.cgroup}")
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            launch_and_end()
        finally:
            os._exit(1)
    assert signal.SIGKILL == os.WTERMSIG(os.waitpid(pid, 0)[1])
    *pids, group = out.read_text().split()
    assert plans.reap_all(10)
    assert [] == [one for one in pids if os.path.exists(f"/proc/{one}")]
    assert not os.path.exists(group)


def test_threads_launch_at_the_same_time_and_leave_nothing():
    from concurrent.futures import ThreadPoolExecutor

    box = Sandbox().limit(memory=MEMORY, pids=20)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: box.run(["sh", "-c", f"exit {i}"]), range(24)))
    assert list(range(24)) == [one.returncode for one in done]
    assert [] == harness.own_cgroups()


def test_group_of_a_living_owner_is_never_swept(sleeper):
    for place, _ in cgroups.choose(Sandbox().limit(pids=20)._spec.limits).places:
        cgroups.sweep(place)
    assert os.path.isdir(sleeper.enforced.cgroup)


def test_freeze_without_a_group_says_how_to_get_one():
    with Sandbox().popen(["sleep", "1000"]) as process:
        with pytest.raises(UnsupportedError, match="limit"):
            process.freeze()
        process.kill()


def test_shared_pid_namespace_ends_with_its_group(each_version):
    """PID 1 is none there: what hides from it is in the group."""
    box = Sandbox().share("pid").limit(pids=50)
    script = "for i in 1 2 3; do (setsid sh -c 'sleep 1000 & sleep 1000' &) ; done; echo ready; sleep 1000"
    with box.popen(["sh", "-c", script], stdout=-1) as process:
        process.stdout.readline()
        group = process.enforced.cgroup
        process.kill()
    assert not os.path.exists(group)


# ── failure ──


def test_set_up_that_runs_out_of_memory_says_so_and_leaves_nothing():
    with pytest.raises(OSError, match="some hundred KiB"):  # of the group, or of what is set up in it
        Sandbox().limit(memory="64K").run(["true"])
    assert [] == harness.own_cgroups()


@pytest.mark.parametrize("limits", [{"memory": MEMORY, "pids": 20}, {"pids": 20}])
def test_step_of_the_control_group_that_fails_leaves_none(limits):
    box = Sandbox().limit(**limits)
    plan = box.plan(["true"])
    steps = [step for step in plan.steps if step.origin == "control group" or step.call in {"clone", "execve"}]
    assert {"clone", "unshare", "execve"} <= {step.call for step in steps}
    for step in steps:
        with pytest.raises(SetupError) as caught:
            plans.launch(box, ["true"], plan=plan.with_fault(step.number, errno.EIO))
        assert step.call in caught.value.call
        assert [] == harness.own_cgroups()


@pytest.mark.usefixtures("in_flight")
def test_no_descriptor_left_at_any_moment_leaves_no_group():
    def check():
        import resource

        box = Sandbox().limit(memory=MEMORY, pids=20)
        assert 0 == box.run(["true"]).returncode
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        while os.dup(0) <= highest:  # no hole is left below
            pass
        highest += 2
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        failures = 0
        for extra in range(60):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + extra, hard))
            try:
                box.run(["true"])
            except OSError:
                failures += 1
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert [] == harness.own_cgroups(), extra
        assert 5 < failures < 60

    harness.in_child(check)


def test_clone3_that_is_refused_is_done_without(monkeypatch):
    """A container's filter may not know clone3; PID 1 is put into its group before it is released."""
    from sandbox import Errno, Filter

    def check():
        from sandbox import confine

        confine(filter=Filter.default(nesting=True).deny("clone3", action=Errno("ENOSYS")))
        done = Sandbox().limit(pids=7).run(payloads.script("say(open('/proc/self/cgroup').read())"), timeout=60)
        assert (0, 7) == (done.returncode, done.enforced.limits["pids"]), done

    harness.in_child(check)


def test_unknown_place_is_an_error_that_names_the_way(monkeypatch):
    monkeypatch.setattr(cgroups, "find", lambda *_: cgroups.Host((), ("version 2: nothing",), "do this"))
    monkeypatch.setattr(cgroups, "_known", None)
    with pytest.raises(UnsupportedError) as caught:
        Sandbox().limit(memory=MEMORY).run(["true"])
    assert ("version 2: nothing", True) == (caught.value.found, caught.value.fix.startswith("do this"))


def test_best_effort_falls_back_to_the_process_and_says_so(monkeypatch):
    monkeypatch.setattr(cgroups, "find", lambda *_: cgroups.Host((), ("version 2: nothing",), "do this"))
    monkeypatch.setattr(cgroups, "_known", None)
    box = Sandbox().limit(memory=MEMORY, pids=30, cpuset=[0], cpus=0.5, io={"read": 1}, best_effort=True)
    body = """
import resource
def take(): bytearray(100 << 20)
try: take(); took = True
except MemoryError: took = False
say([took, resource.getrlimit(resource.RLIMIT_NPROC)[0], sorted(os.sched_getaffinity(0))])
"""
    done = box.run(payloads.script(body), capture_output=True, text=True, timeout=60)
    assert "[false, 31, [0]]\n" == done.stdout, done.stderr
    words = [missing.split("(")[1].split("=")[0] for missing in done.enforced.missing]
    assert ["memory", "swap", "pids", "cpus", "cpuset", "io"] == words
    assert None is done.enforced.cgroup


def test_command_says_that_memory_ran_out():
    command = [os.path.join(sysconfig.get_path("scripts"), "sandbox"), "run", "--memory", "64M", "--pids", "20", "--"]
    done = subprocess.run([*command, "sh", "-c", "echo $((6*7))"], capture_output=True, text=True, timeout=60)
    assert (0, "42\n", "") == (done.returncode, done.stdout, done.stderr)
    done = subprocess.run([*command, *payloads.script("x = bytearray(200 << 20)")], capture_output=True, timeout=60)
    assert 128 + signal.SIGKILL == done.returncode
    assert b"sandbox: out of memory" in done.stderr


def test_example_of_the_documentation_prints_what_it_says():
    text = pathlib.Path(harness.REPOSITORY, "docs/limits.md").read_text()
    programs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(programs) == text.count("```python")
    for program, output in programs:
        done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
        assert (output, "") == (done.stdout, done.stderr)
