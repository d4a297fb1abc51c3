"""Control groups of callers that were killed: a process that outlives them removes them, and is in nobody's way."""

import fcntl
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import harness
import payloads
import pytest

from sandbox import Sandbox, cgroups
from sandbox.cgroups import janitor

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_cgroup("pids")]

BOX = Sandbox().limit(pids=20)


def groups_of(pid: int) -> list[str]:
    """Return the directories of a caller's groups, wherever this one could make some."""
    return [
        os.path.join(place.path, name)
        for place in harness._places()
        if os.path.isdir(place.path)
        for name in os.listdir(place.path)
        if name.startswith("sandbox-") and f"-{pid}-" in name
    ]


def janitors() -> set[int]:
    """Return those that are children of this process, a subreaper: its own, and those of ended children."""
    found = set()
    for pid in harness.children():
        try:
            with open(f"/proc/{pid}/comm") as stream:
                if stream.read() == "sandbox-janitor\n":
                    found.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def caller(body: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a program that launches, and can use BOX; in the end it is killed, and what came to us is reaped."""
    before = harness.children()
    text = "import os, sys, time\nfrom sandbox import Sandbox\nBOX = Sandbox().limit(pids=20)\n" + body
    with subprocess.Popen(
        [sys.executable, "-I", "-W", "ignore", "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            wait_until(lambda: not _reap(harness.children() - before))


def _reap(pids: set[int]) -> set[int]:
    """Reap children as far as they have ended; return the others."""
    return {pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0}


WAITS = "print('ready', flush=True)\nsys.stdin.read()\n"
SLEEPS = "kept = [box.popen(['sleep', '1000']) for box in (BOX, BOX.share('pid'), BOX.init(False))]\n"


# ── the caller is killed ──


def test_killed_caller_leaves_no_group():
    with caller(SLEEPS + WAITS) as process:
        assert "ready\n" == process.stdout.readline()
        assert groups_of(process.pid)
    assert [] == groups_of(process.pid)


def test_without_its_janitor_a_killed_caller_leaves_groups():
    """The positive control, and what is then left is swept by who comes next."""
    with caller(SLEEPS + WAITS) as process:
        assert "ready\n" == process.stdout.readline()
        # What is locked by somebody else, too, no other test sweeps.
        kept = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in groups_of(process.pid)]
        for fd in kept:
            fcntl.flock(fd, fcntl.LOCK_SH)
        (found,) = janitors()
        os.kill(found, signal.SIGKILL)
    assert len(kept) == len(groups_of(process.pid)) > 0
    for fd in kept:
        os.close(fd)
    for place in harness._places():
        cgroups.sweep(place)
    assert [] == groups_of(process.pid)


LAUNCHES = """
print("ready", flush=True)
kept = [BOX.popen(["sleep", "1000"]) for _ in range(10)]
time.sleep(1000)
"""
SUPERVISES = """
from sandbox.supervise import Restart, Supervisor
supervisor = Supervisor()
for name, command in (("fails", "exit 1"), ("leaves", "sleep 1000 & exit 1"), ("stays", "sleep 1000 & sleep 1000")):
    supervisor.add(name, ["sh", "-c", command], sandbox=BOX, restart=Restart.always(backoff=0))
print("ready", flush=True)
supervisor.run()
"""


@pytest.mark.parametrize("body", [LAUNCHES, SUPERVISES], ids=["launches", "supervises"])
def test_kill_at_random_moments_leaves_no_group(body):
    """Of the first launch, which starts the janitor, above all; a supervisor is a subreaper while it runs."""
    chance = random.Random(2)
    for most in (3, 10, 30, 100, 100):
        with caller(body) as process:
            assert "ready\n" == process.stdout.readline()
            poller = select.poll()  # nothing comes: it is the clock of this test
            poller.register(process.stdout, select.POLLPRI)
            poller.poll(chance.uniform(0, most))
        assert [] == groups_of(process.pid)


def test_caller_and_pid_1_killed_at_once_leave_nothing_that_runs():
    body = """
script = "(setsid sh -c 'sleep 1000 & echo; exec sleep 1000' &); exec sleep 1000"
process = BOX.share("pid").popen(["sh", "-c", script], stdout=-1)
process.stdout.readline()
with open(os.path.join(process.enforced.cgroup, "payload", "cgroup.procs")) as stream:
    print(process.init_pid, *stream.read().split(), flush=True)
sys.stdin.read()
"""
    with caller(body) as process:
        init_pid, *inside = map(int, process.stdout.readline().split())
        assert len(inside) >= 4
        os.kill(init_pid, signal.SIGSTOP)  # it ends nobody
    assert [] == groups_of(process.pid)
    assert [] == [pid for pid in inside if os.path.exists(f"/proc/{pid}")]


def test_fork_that_holds_all_descriptors_keeps_no_group():
    body = """
kept = BOX.popen(["sleep", "1000"])
pid = os.fork()
if pid == 0:
    time.sleep(1000)
print(pid, flush=True)
sys.stdin.read()
"""
    with caller(body) as process:
        fork = int(process.stdout.readline())
        process.kill()
        process.wait()
        wait_until(lambda: not groups_of(process.pid))
        os.kill(fork, 0)
        os.kill(fork, signal.SIGKILL)


def test_fork_that_launches_has_a_janitor_of_its_own():
    body = """
kept = BOX.popen(["sleep", "1000"])
pid = os.fork()
kept = [kept, BOX.popen(["sleep", "1000"])]
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    with caller(body) as process:
        pids = {int(process.stdout.readline()) for _ in range(2)}
        (fork,) = pids - {process.pid}
        wait_until(lambda: len(janitors()) == 2)
        os.kill(fork, signal.SIGKILL)
        wait_until(lambda: not groups_of(fork))
        assert groups_of(process.pid)
    assert [] == groups_of(process.pid)


def test_caller_that_executes_another_program_leaves_no_group():
    body = SLEEPS + "print('ready', flush=True)\nsys.stdin.readline()\nos.execvp('sleep', ['sleep', '1000'])\n"
    with caller(body) as process:
        assert "ready\n" == process.stdout.readline()
        assert groups_of(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        wait_until(lambda: not groups_of(process.pid))
        assert process.poll() is None


def test_groups_of_others_are_not_touched():
    with BOX.popen(["sleep", "1000"]) as own, caller(SLEEPS + WAITS) as process:
        assert "ready\n" == process.stdout.readline()
        process.kill()
        process.wait()
        wait_until(lambda: not groups_of(process.pid))
        assert own.poll() is None
        assert os.path.isdir(own.enforced.cgroup)
        own.kill()


# ── detached ──


def test_detached_sandbox_outlives_a_killed_caller_and_its_group_is_removed_after_it():
    body = """
process = BOX.popen(["sleep", "1000"])
said = process.init_pid, process.enforced.cgroup
process.detach()
print(*said, flush=True)
sys.stdin.read()
"""
    with caller(SLEEPS + body) as process:
        init_pid, group = process.stdout.readline().split()
        process.kill()
        process.wait()
        wait_until(lambda: {os.path.basename(path) for path in groups_of(process.pid)} == {os.path.basename(group)})
        with open(f"{group}/payload/cgroup.procs") as stream:
            assert int(init_pid) in map(int, stream.read().split())
        os.kill(int(init_pid), signal.SIGKILL)
    assert [] == groups_of(process.pid)


@pytest.mark.parametrize("where", ["in a subreaper", "elsewhere"])
def test_group_of_a_detached_sandbox_is_removed_when_it_has_ended(where):
    def check():
        process = BOX.popen(["sleep", "1000"])
        init_pid = process.init_pid
        pidfd = process.detach()
        process.close()
        assert 0 == BOX.run(["true"]).returncode
        assert groups_of(os.getpid())
        os.kill(init_pid, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        wait_until(lambda: not groups_of(os.getpid()))
        assert 0 == BOX.run(["true"]).returncode

    if where == "elsewhere":
        harness.in_child(check)
    else:
        check()


# ── in nobody's way ──


def test_it_is_no_child_and_holds_nothing_of_the_caller():
    def check():
        before = set(harness.children())
        ends = os.pipe()
        os.set_inheritable(ends[1], True)
        assert 0 == BOX.run(["true"]).returncode
        assert before == harness.children()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        os.close(ends[1])
        assert b"" == os.read(ends[0], 1)

    harness.in_child(check)


def test_it_has_a_session_of_its_own_and_heeds_no_signal_but_sigkill():
    with caller(SLEEPS + WAITS) as process:
        assert "ready\n" == process.stdout.readline()
        (found,) = janitors()
        assert found == os.getsid(found) and "/" == os.readlink(f"/proc/{found}/cwd")
        kinds = set()
        for fd in os.listdir(f"/proc/{found}/fd"):
            kinds.add(re.sub(r"[:/].*", "", os.readlink(f"/proc/{found}/fd/{fd}").removeprefix("/sys/fs/cgroup")))
        assert kinds <= {"socket", "anon_inode", ""}
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1):
            os.kill(found, number)
    assert [] == groups_of(process.pid)


def test_there_is_one_for_all_launches_and_none_without_limits():
    def check():
        before = janitor._current  # of the process that has forked this one
        assert 0 == Sandbox().run(["true"]).returncode
        assert before is janitor._current
        BOX.run(["true"])
        first = janitor._current, janitor._current._kept
        BOX.run(["true"])
        assert first == (janitor._current, janitor._current._kept)

    harness.in_child(check)


def test_subreaper_has_it_as_a_child_while_there_are_groups():
    assert set() == janitors()
    with BOX.popen(["sleep", "1000"]) as first, BOX.popen(["sleep", "1000"]) as second:
        (found,) = janitors()
        first.kill()
        assert {found} == janitors()
        second.kill()
        assert set() == janitors()


@pytest.mark.needs_root
@pytest.mark.parametrize("elsewhere", [False, True])
def test_in_a_container_it_leaves_no_zombie(elsewhere):
    """Where the first process reaps nothing, an orphan stays; the positive control takes it for another place."""
    inside = "import os\nfrom sandbox import Sandbox\nfrom sandbox.cgroups import janitor\n"
    if elsewhere:
        inside += "janitor._FIRST_NAMESPACE = os.stat('/proc/self/ns/pid').st_ino\n"
    inside += "assert Sandbox().limit(pids=20).run(['true']).returncode == 0\n"
    first = f"""
import os, subprocess, sys, time
subprocess.run([sys.executable, "-I", "-c", {inside!r}], check=True)
def left(): return [pid for pid in os.listdir("/proc") if pid.isdigit() and pid != "1"]
while len([pid for pid in left() if " Z " not in open(f"/proc/{{pid}}/stat").read()]): time.sleep(0.005)
print(*[open(f"/proc/{{pid}}/comm").read().strip() for pid in left()])
"""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-I", "-c", first]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ("sandbox-janitor\n" if elsewhere else "\n", "") == (done.stdout, done.stderr)


def test_it_ends_with_a_caller_that_leaves_nothing():
    with caller("BOX.run(['true'])\n") as process:
        assert 0 == process.wait()
        wait_until(lambda: not _reap(janitors()))


def test_another_one_is_started_when_it_was_killed():
    with caller(
        SLEEPS + "print('ready', flush=True)\nsys.stdin.readline()\n" + SLEEPS.replace("kept", "more") + WAITS
    ) as process:
        assert "ready\n" == process.stdout.readline()
        (first,) = janitors()
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert "ready\n" == process.stdout.readline()
        (second,) = janitors()
        assert first != second
    assert [] == groups_of(process.pid)  # those of the first one, too


def test_caller_that_closes_descriptors_which_are_not_its_own_gets_another():
    def check():
        BOX.run(["true"])
        first = janitor._current
        os.closerange(3, 1000)
        with BOX.popen(["sleep", "1000"]) as process:
            assert first.tag != janitor._current.tag
            # The first one takes us for gone, and has nothing to do with this.
            assert 0 == BOX.run(["true"]).returncode
            assert process.poll() is None
            process.kill()
        assert [] == groups_of(os.getpid())

    harness.in_child(check)


def test_no_process_for_it_is_an_error_that_says_so():
    from sandbox import Errno, Filter, arg, confine

    def check():
        confine(filter=Filter.default(nesting=True).deny("clone", arg(0) == signal.SIGCHLD, action=Errno("EAGAIN")))
        with pytest.raises(OSError, match="remove control groups"):
            cgroups.make(cgroups.choose(BOX._spec.limits), BOX._spec.limits)
        assert [] == groups_of(os.getpid())

    harness.in_child(check)


# ── groups that a payload has made ──


@pytest.mark.parametrize("killed", [False, True])
def test_groups_of_a_payload_that_may_mount_are_removed_too(killed):
    """Only where it is the user who launches can it make some: else the group is root's."""
    deep = """
uid, gid = os.getuid(), os.getgid()
if libc.unshare(0x10000000 | 0x00020000 | 0x02000000): raise OSError("unshare")
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open("/proc/self/" + name, "w") as stream: stream.write(text)
libc.mount(None, b"/", None, 0x44000, None)
os.mkdir("/tmp/g")
made = []
for kind, options in ((b"cgroup", b"pids"), (b"cgroup2", None)):
    if libc.mount(b"none", b"/tmp/g", kind, 0, options) == 0:
        os.chdir("/tmp/g")
        for depth in range(400):
            if tried(os.mkdir, "deeper") == "ok":
                made.append(tried(os.mkdir, "other"))
                os.chdir("deeper")
        os.chdir("/")
        libc.umount2(b"/tmp/g", 2)
say(len(made))
"""
    if not killed:
        made = payloads.tell(BOX.nesting(), deep)
        assert made >= 400 or os.geteuid() == 0
        assert [] == groups_of(os.getpid())
        return
    body = f"process = BOX.nesting().popen({payloads.script(deep + 'sys.stdin.read()')!r}, stdin=-1, stdout=-1)\n"
    body += "print(process.stdout.readline().decode(), end='', flush=True)\nsys.stdin.read()\n"
    with caller(body) as process:
        assert int(process.stdout.readline()) >= 400 or os.geteuid() == 0
    assert [] == groups_of(process.pid)
