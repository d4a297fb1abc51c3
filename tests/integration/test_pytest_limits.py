"""Limits of single tests: in control groups where they can be made, else of each process."""

import pathlib
import re

import inner_pytest
import pytest

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_cgroup("memory", "pids")]

HUNGRY = """
import os, subprocess, sys
import pytest

def eat():
    kept = []
    while True: kept.append(bytearray(1 << 20))

@pytest.mark.sandbox(memory="64M")
def test_memory(): print("before"); eat()

@pytest.mark.sandbox(memory="64M")
def test_memory_of_a_child():
    if os.fork() == 0:
        try: eat()
        finally: os._exit(1)
    os.wait()

@pytest.mark.sandbox(memory="64M")
def test_memory_of_a_file():
    with open("/tmp/file", "wb") as stream:
        while True: stream.write(bytes(1 << 20))

@pytest.mark.sandbox(memory="64M", pids=20)
def test_enough(): assert len(bytearray(20 << 20)) + len(subprocess.check_output(["echo"]))

@pytest.mark.sandbox(pids=20, timeout=30)
def test_fork_bomb():
    while True: os.fork()

@pytest.mark.sandbox(pids=3)
def test_pids():
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    with pytest.raises(BlockingIOError): os.fork()

def test_after(): pass
"""


def test_limits_by_control_group_end_one_test_with_the_reason(tmp_path: pathlib.Path) -> None:
    run = inner_pytest.run(tmp_path, test_hungry=HUNGRY)
    failures = run.failures()
    assert set(failures) == {"test_memory", "test_memory_of_a_child", "test_memory_of_a_file", "test_fork_bomb"}, (
        run.output
    )
    for name in ("test_memory", "test_memory_of_a_child", "test_memory_of_a_file"):
        assert re.match("out of memory: .*oom_kill [1-9].*limit 67108864 bytes", failures[name])
    assert "BlockingIOError" in failures["test_fork_bomb"]
    sections = {one["id"].partition("::")[2]: dict(one["sections"]) for one in run.reports if one["when"] == "call"}
    assert "before" in sections["test_memory"]["Captured stdout call"]
    assert re.match("pids.max refused [1-9]", sections["test_fork_bomb"]["sandbox"])
    assert run.outcomes()["test_after"] == "passed"


WEAK = """
import os, subprocess
import pytest
from sandbox import cgroups
from sandbox.cgroups.hierarchy import Host

@pytest.fixture(scope="session", autouse=True)
def no_groups():
    patch = pytest.MonkeyPatch()
    patch.setattr(cgroups, "_host", lambda: Host((), ("none",), "none"))
    yield
    patch.undo()

@pytest.mark.sandbox(memory="64M")
def test_memory():
    with pytest.raises(MemoryError): bytearray(100 << 20)
    bytearray(30 << 20)

@pytest.mark.sandbox(pids=5)
def test_pids():
    subprocess.run(["true"], check=True)
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    with pytest.raises(BlockingIOError):
        while True: children.append(subprocess.Popen(["sleep", "1000"]))
"""


def test_limits_without_control_groups_are_those_of_each_process(tmp_path: pathlib.Path, privilege: str) -> None:
    run = inner_pytest.run(tmp_path, test_weak=WEAK)
    assert run.outcomes()["test_memory"] == "passed", run.output
    if privilege == "user":
        assert run.outcomes()["test_pids"] == "passed", run.output
    else:  # root's processes are not counted
        assert "sandbox(pids=...) is not available here" in run.failures()["test_pids"]
        assert "sandbox doctor" in run.failures()["test_pids"]
