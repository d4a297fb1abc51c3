"""Control groups below systemd: where they are made, who moves, and what a unit without Delegate= means."""

import os
import signal
import subprocess
import sys

import harness
import payloads
import pytest

from sandbox import Reason, Sandbox

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_cgroup2, pytest.mark.needs_program("systemd-run")]

LAUNCH = """
import os, sys
from sandbox import Sandbox, UnsupportedError
def own(): return open("/proc/self/cgroup").read().rsplit("::", 1)[1].strip()
print(own())
try:
    for _ in range(2):
        with Sandbox().limit(memory="64M", pids=20, cpus=1).popen(["sleep", "1000"]) as process:
            print(process.enforced.cgroup, process.enforced.limits["memory"], own())
            process.kill()
        print(os.path.exists(process.enforced.cgroup))
except UnsupportedError as error:
    print(error.found, error.fix, sep="\\n")
"""


def in_scope(*properties: str, script: str = LAUNCH) -> list[str]:
    """Run a program in a scope of its own; return the lines that it prints."""
    run = ["systemd-run", "--quiet", "--scope", "--collect", *([] if os.geteuid() == 0 else ["--user"])]
    run += [f"--property={one}" for one in properties]
    done = subprocess.run([*run, sys.executable, "-P", "-W", "ignore::ResourceWarning", "-c", script],
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.splitlines()


def test_delegated_scope_has_the_groups_and_the_caller_moves_into_a_leaf():
    unit, first, gone, second, _ = in_scope("Delegate=yes")
    for line in (first, second):
        path, memory, own = line.split()
        assert path.startswith(f"/sys/fs/cgroup{unit}/sandbox-sleep-")
        assert (str(64 << 20), f"{unit}/sandbox-callers") == (memory, own)
    assert "False" == gone


def test_controller_that_threads_could_have_is_given_to_groups_of_processes():
    """The kernel gives pids of a group that has processes, and those below take none then."""
    script = """
from sandbox import Sandbox
for limits in ({"pids": 20}, {"cpus": 1}, {"memory": "64M"}):
    done = Sandbox().limit(**limits).run(["true"])
    print(done.returncode, *limits)
"""
    assert ["0 pids", "0 cpus", "0 memory"] == in_scope("Delegate=yes", script=script)


@pytest.mark.needs_root
def test_root_in_a_scope_of_systemds_own_has_groups_beside_it():
    unit, first, gone, _, again = in_scope()
    path, memory, own = first.split()
    assert path.startswith("/sys/fs/cgroup/sandbox/sandbox-sleep-")
    assert (str(64 << 20), unit, "False", "False") == (memory, own, gone, again)
    assert not os.path.exists("/sys/fs/cgroup/sandbox")


@pytest.mark.needs_user
def test_user_in_a_scope_that_is_not_delegated_is_told_the_command():
    unit, found, fix = in_scope()
    assert f"version 2: /sys/fs/cgroup{unit} is not delegated to this user" == found
    assert "systemd-run --user --scope -p Delegate=yes" in fix


def test_memory_ends_the_whole_tree_and_pid_1_with_it():
    """The kernel kills the group; that there is no report of PID 1 does not hide why."""
    script = f"{payloads.PYTHON} -c 'x = bytearray(200 << 20)'; exit 3"
    done = Sandbox().limit(memory="64M", pids=20).run(["sh", "-c", script], timeout=600)
    assert (Reason.OOM, -signal.SIGKILL) == (done.reason, done.returncode)
    assert "memory.events" in done.detail and done.usage.memory_peak <= 64 << 20
    assert done.usage.cpu_time > 0 and done.usage.wall > 0


@pytest.mark.needs_root
def test_protection_of_the_caller_from_the_oom_killer_ends_where_memory_is_limited():
    def check():
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("-1000")
        box = Sandbox().limit(pids=20)
        body = "say(open('/proc/self/oom_score_adj').read())"
        assert ("-1000\n", "0\n") == (payloads.tell(box, body), payloads.tell(box.limit(memory="64M"), body))
        assert "0\n" == payloads.tell(box.limit(memory="64M").share("user"), body)

    harness.in_child(check)


def test_limits_hold_in_the_kernels_own_words():
    with Sandbox().limit(memory="64M", swap="1M", pids=20, cpus=0.5).popen(["sleep", "1000"]) as process:
        group = process.enforced.cgroup
        found = {}
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"):
            with open(os.path.join(group, name)) as stream:
                found[name] = stream.read().strip()
        process.kill()
    expected = {"memory.max": str(64 << 20), "memory.swap.max": str(1 << 20), "memory.oom.group": "1"}
    assert expected | {"pids.max": "21", "cpu.max": "50000 100000"} == found
