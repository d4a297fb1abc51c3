"""The virtual machine has what tests come to it for: a control group of one's own, with every controller."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_cgroup2


def own_group() -> Path:
    """Return the directory of this process's control group, found without the library that the others test."""
    with open("/proc/self/cgroup") as stream:
        path = next(line[3:].rstrip("\n") for line in stream if line.startswith("0::"))
    with open("/proc/self/mountinfo") as stream:
        mounted = next(line.split(" ")[4] for line in stream if " - cgroup2 " in line)
    return Path(mounted + path)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with the memory and pids controllers, below the one that was delegated.

    Controllers can be given to children only where no process is: this one moves to a child meanwhile.
    """
    own = own_group()
    if own.name == "sandbox-callers":  # moved there for an earlier test's limits
        own = own.parent
    name = f"test-{uuid.uuid4().hex[:8]}"
    leaf, below = own / f"{name}-self", own / name
    leaf.mkdir()
    inside = (own / "cgroup.procs").read_text().split()
    for pid in inside:
        (leaf / "cgroup.procs").write_text(pid)
    (own / "cgroup.subtree_control").write_text("+memory +pids")
    below.mkdir()
    yield below
    below.rmdir()
    (own / "cgroup.subtree_control").write_text("-memory -pids")
    for pid in (leaf / "cgroup.procs").read_text().split():
        (own / "cgroup.procs").write_text(pid)
    leaf.rmdir()


def run_in(group: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'echo $$ >"$0/cgroup.procs" && {script}', str(group)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_pids_max_reached_refuses_the_fork(group: Path) -> None:
    (group / "pids.max").write_text("1")
    result = run_in(group, "/bin/true; echo not reached")
    assert "fork" in result.stderr
    assert "max 1" in (group / "pids.events").read_text()


def test_pids_max_not_reached_lets_it_fork(group: Path) -> None:
    (group / "pids.max").write_text("2")
    assert "reached\n" == run_in(group, "/bin/true; echo reached").stdout


def test_memory_max_reached_kills_the_process(group: Path) -> None:
    (group / "memory.max").write_text(str(16 << 20))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")
    result = run_in(group, "exec python3 -c 'b\"x\" * (64 << 20)'")
    assert -signal.SIGKILL == result.returncode
    assert "oom_kill 1" in (group / "memory.events").read_text()


def test_kill_ends_what_is_inside(group: Path) -> None:
    with subprocess.Popen(["sh", "-c", 'echo $$ >"$0/cgroup.procs"; echo in; exec sleep 1000', str(group)],
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.read(3) == b"in\n"
        (group / "cgroup.kill").write_text("1")
        assert -signal.SIGKILL == process.wait()


@pytest.mark.needs_root
def test_delegated_root_has_every_controller() -> None:
    own = own_group()
    # Sandboxes with limits may have moved this process to a child of its unit.
    unit = next(path for path in (own, *own.parents) if path.suffix == ".service")
    controllers = set((unit / "cgroup.controllers").read_text().split())
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= controllers


@pytest.mark.needs_user
def test_delegated_user_has_a_session_bus_and_owns_its_group(group: Path) -> None:
    assert os.geteuid() == group.parent.stat().st_uid
    assert os.path.exists(f"/run/user/{os.geteuid()}/bus")
