"""Events and pressure of control groups, with real bombs: who watches reacts before the OOM killer does."""

import asyncio
import errno
import io
import os
import signal

import payloads
import pytest
from event_kinds import few_descriptors_left, in_own_process

from sandbox import PIPE, Reason, Sandbox
from sandbox.events import CgroupEvent, CgroupEvents, CgroupEvents_async, Pressure, Pressure_async

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_cgroup("memory", "pids")]

MEMORY = 128 << 20
# Takes a page at a time and tells nobody; it waits to be let go.
BOMB = """
sys.stdin.readline()
kept = []
while True: kept.append(bytearray(1 << 16))
"""
SPIN = "import threading\nfor _ in range(3): threading.Thread(target=exec, args=('while True: pass',)).start()"


def wait_for(events, name):
    """Return the first event of a name; the time limit is that of a hang, not of the event."""
    while True:
        event = events.read_event(60)
        if event.name == name:
            return event


@pytest.fixture
def bomb():
    with Sandbox().limit(memory=MEMORY, pids=20).popen(payloads.script(BOMB), stdin=PIPE) as process:
        yield process
        process.kill()


def test_watcher_reacts_before_the_oom_killer_does(bomb):
    with CgroupEvents(bomb.cgroups["memory"], memory_above=MEMORY // 4) as events:
        bomb.stdin.write(b"go\n")
        bomb.stdin.flush()
        event = wait_for(events, "memory.high")
        bomb.freeze()
        assert event.value > event.previous
        taken = bomb.usage().memory_peak
        bomb.kill()
    assert MEMORY // 4 <= taken < MEMORY
    assert (Reason.SIGNALED, -signal.SIGKILL) == (bomb.result().reason, bomb.returncode)


def test_oom_is_an_event(bomb):
    with CgroupEvents(bomb.cgroups["memory"]) as events:
        assert not events.values.get("memory.oom")
        bomb.stdin.write(b"go\n")
        bomb.stdin.flush()
        assert 0 == wait_for(events, "memory.oom").previous
        bomb.wait()
    assert Reason.OOM is bomb.result().reason


def test_asyncio_twin_reacts_as_well(bomb):
    async def watch():
        async with CgroupEvents_async(bomb.cgroups["memory"], memory_above=MEMORY // 4) as events:
            assert bomb.cgroups["memory"] == events.path
            bomb.stdin.write(b"go\n")
            bomb.stdin.flush()
            async for event in events:
                if event.name == "memory.high":
                    break
            bomb.kill()
            assert events.values["memory.high"] > 0

    asyncio.run(watch())
    assert Reason.SIGNALED is bomb.result().reason


@pytest.mark.needs_cgroup2
def test_refused_fork_is_an_event():
    body = "sys.stdin.readline()\nsay(tried(os.fork))\nsys.stdin.readline()"
    with Sandbox().limit(pids=1).popen(payloads.script(body), stdin=PIPE, stdout=PIPE) as process:
        with CgroupEvents(process.cgroups["pids"]) as events:
            assert 0 == events.values["pids.max"]
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert CgroupEvent("pids.max", 1, 0) == wait_for(events, "pids.max")
        process.kill()


@pytest.mark.needs_cgroup("v2")
def test_freezing_and_the_end_are_events():
    with Sandbox().limit(pids=9).popen(["sleep", "1000"]) as process:
        with CgroupEvents(process.cgroups["freezer"]) as events:
            assert {"populated": 1, "frozen": 0}.items() <= events.values.items()
            process.freeze()
            assert CgroupEvent("frozen", 1, 0) == wait_for(events, "frozen")
            process.thaw()
            assert CgroupEvent("frozen", 0, 1) == wait_for(events, "frozen")
            os.kill(process.pid, signal.SIGKILL)
            assert CgroupEvent("populated", 0, 1) == wait_for(events, "populated")
            process.wait()  # and now the group is removed
            with pytest.raises(OSError, match="No such device") as caught:
                events.read_events()
            assert errno.ENODEV == caught.value.errno


@pytest.mark.needs_cgroup("v2")
def test_pressure_of_a_group_is_told():
    one = sorted(os.sched_getaffinity(0))[:1]
    box = Sandbox().limit(pids=20)
    body = f"os.sched_setaffinity(0, {one})\n{SPIN}"
    with box.popen(payloads.script(body)) as process:
        with Pressure("cpu", process.cgroups["pressure"], stall=0.05) as pressure:
            event = pressure.read_event(60)
            assert ("cpu", True) == (event.resource, event.total >= 0.05)
            assert pressure.read_event(60).total > event.total
        process.freeze()
        with Pressure("cpu", process.cgroups["pressure"], stall=1.9, nonblock=True) as quiet:
            assert [] == quiet.read_events()
            assert quiet.now().total >= event.total
        process.kill()
        assert process.usage().pressure["cpu"] >= event.total


@pytest.mark.needs_cgroup("v2")
def test_pressure_comes_through_select_and_asyncio():
    import select

    async def watch(path):
        async with Pressure_async("cpu", path, stall=0.05) as pressure:
            return await pressure.get(), pressure.now()

    one = sorted(os.sched_getaffinity(0))[:1]
    with Sandbox().limit(pids=20).popen(payloads.script(f"os.sched_setaffinity(0, {one})\n{SPIN}")) as process:
        path = process.cgroups["pressure"]
        event, now = asyncio.run(watch(path))
        assert 0.05 <= event.total <= now.total
        with Pressure("cpu", path, stall=0.05, nonblock=True) as pressure:
            assert [pressure] == select.select([pressure], [], [], 60)[0]
            assert 1 == len(pressure.read_events())
        process.kill()


@pytest.mark.parametrize("make", [lambda paths: CgroupEvents(paths["memory"]), lambda _: Pressure("memory", stall=1.5)])
def test_no_descriptor_left_at_any_point_is_emfile_and_leaks_nothing(bomb, make):
    paths = bomb.cgroups

    def check():
        for left in range(20):
            try:
                with few_descriptors_left(left):
                    one = make(paths)
            except OSError as error:
                assert errno.EMFILE == error.errno
            else:
                one.close()
                break
        assert 3 <= left < 19  # it failed at each point before

    in_own_process(check)()


def test_pressure_of_the_machine_can_be_asked():
    with Pressure("memory", stall=1.5) as pressure:
        assert pressure.now().total >= 0
        with pytest.raises(io.UnsupportedOperation):
            pressure.detach()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resource": "disk"}, "cpu, memory or io.*disk"),
        ({"resource": "cpu", "window": 11}, "window.*10.*11"),
        ({"resource": "cpu", "stall": 3}, "stall.*2.0.*3"),
        ({"resource": "cpu", "stall": 0}, "stall.*0"),
    ],
)
def test_wrong_pressure_is_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words):
        Pressure(**wrong)


def test_group_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        CgroupEvents(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"gone/cpu\.pressure"):
        Pressure("cpu", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"oom_control"):
        CgroupEvents(tmp_path)
    (tmp_path / "cgroup.events").touch()
    with pytest.raises(FileNotFoundError, match=r"memory\.high"):
        CgroupEvents(tmp_path, memory_above=1)
    with pytest.raises(ValueError, match="memory_above"):
        CgroupEvents(tmp_path, memory_above=-1)
