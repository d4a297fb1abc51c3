"""Limits: each wrong value is refused by name, calls merge, and they are values."""

import math
import pickle

import pytest

from sandbox import Sandbox
from sandbox.limits import CGROUP, RLIMITS, Limits, asks_group, merged, resource_limits


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"memory": 0}, ValueError, "memory.*4096"),
        ({"memory": "64X"}, ValueError, "memory.*64X"),
        ({"memory": 1.5}, TypeError, "memory.*float"),
        ({"swap": -1}, ValueError, "swap"),
        ({"pids": 0}, ValueError, "pids.*1"),
        ({"pids": "5"}, TypeError, "pids.*str"),
        ({"pids": True}, TypeError, "pids.*bool"),
        ({"cpus": 0}, ValueError, "cpus"),
        ({"cpus": "1"}, TypeError, "cpus"),
        ({"cpus": math.nan}, ValueError, "cpus.*finite"),
        ({"cpuset": "0-3"}, TypeError, "cpuset.*str"),
        ({"cpuset": 3}, TypeError, "cpuset"),
        ({"cpuset": []}, ValueError, "cpuset.*at least one"),
        ({"cpuset": [-1]}, ValueError, "cpuset.*-1"),
        ({"io": [("a", 1)]}, TypeError, "io.*mapping"),
        ({"io": {1: 2}}, TypeError, "io.*1"),
        ({"io": {"read": "fast"}}, ValueError, r"io\['read'\].*fast"),
        ({"io": {"reads": 1}}, ValueError, "io.*read_ops.*reads"),
        ({"io": {"read:sda": 1}}, ValueError, "io.*read:sda"),
        ({"swap": "1M"}, ValueError, "memory"),
        ({"wall_time": 0}, ValueError, "wall_time.*more than 0"),
        ({"wall_time": -1.5}, ValueError, "wall_time"),
        ({"wall_time": math.inf}, ValueError, "wall_time"),
        ({"wall_time": 10**400}, ValueError, "wall_time"),
        ({"wall_time": "60"}, TypeError, "wall_time"),
        ({"cpu_time": 0}, ValueError, "cpu_time"),
        ({"cpu_time": 2e9}, ValueError, "cpu_time"),
        ({"open_files": 3}, ValueError, "open_files.*4"),
        ({"open_files": 1 << 31}, ValueError, "open_files"),
        ({"open_files": 16.0}, TypeError, "open_files"),
        ({"file_size": -1}, ValueError, "file_size"),
        ({"stack": "4K"}, ValueError, "stack.*65536"),
        ({"core": 1 << 63}, ValueError, "core"),
        ({"output": "lots"}, ValueError, "output.*lots"),
        ({"when_output_full": "stop"}, ValueError, "when_output_full.*stop"),
        ({"when_output_full": None}, ValueError, "when_output_full.*None"),
    ],
)
def test_wrong_limit_is_refused_by_name(given, error, words):
    with pytest.raises(error, match=words):
        Sandbox().limit(**given)


def test_unknown_limit_is_refused():
    with pytest.raises(TypeError, match="memroy"):
        Sandbox().limit(memroy="1G")


def test_calls_merge_and_none_takes_away():
    box = Sandbox().limit(memory="1G", open_files=64).limit(memory=None, wall_time=5, core="1M")
    assert box == Sandbox().limit(wall_time=5, open_files=64, core=1 << 20)
    assert Sandbox() == Sandbox().limit(memory=5000).limit(memory=None)
    assert Sandbox() == Sandbox().limit()
    assert Sandbox() != Sandbox().limit(core=None)


def test_limits_are_values():
    everything = {
        "memory": "1G",
        "swap": 0,
        "pids": 64,
        "cpus": 1.5,
        "cpuset": [2, 0, 2],
        "io": {"write": 1, "read": "2K"},
        "wall_time": 1,
        "cpu_time": 0.5,
        "open_files": 64,
        "file_size": 0,
        "stack": "1M",
        "core": 0,
        "output": "1M",
        "when_output_full": "discard",
    }
    box = Sandbox().limit(**everything)
    assert box == pickle.loads(pickle.dumps(box)) == Sandbox().limit(**everything)
    assert hash(box) == hash(Sandbox().limit(**everything))
    limits = box._spec.limits
    assert ((0, 2), (("read", 2048), ("write", 1)), 1 << 30) == (limits.cpuset, limits.io, limits.memory)


def test_best_effort_is_of_the_call_that_says_it():
    limits = merged(Limits(), {"memory": "1G", "swap": 0}, best_effort=True)
    limits = merged(limits, {"pids": 5, "memory": "2G"}, best_effort=False)
    assert ("swap",) == limits.best_effort
    assert () == merged(limits, {"swap": None}, best_effort=False).best_effort


def test_cpu_time_is_whole_seconds_and_core_stays_one():
    assert {"core": (1, 1)} == resource_limits(Limits())
    assert {"cpu_time": (2, 3)} == resource_limits(Limits(cpu_time=1.2, core=None))
    assert set(RLIMITS) == set(resource_limits(Limits(cpu_time=1, file_size=0, stack=1, core=0, open_files=4)))


@pytest.mark.parametrize("name", CGROUP)
def test_limit_of_the_whole_tree_asks_for_a_control_group(name):
    value = {"cpuset": (0,), "io": (("read", 1),)}.get(name, 1)
    assert name in asks_group(Limits(memory=4096)._replace(**{name: value}))


def test_no_control_group_is_asked_for_without_such_a_limit():
    assert () == asks_group(Limits(wall_time=1, open_files=5))
    assert ("pids",) == asks_group(Limits(pids=1))  # swap counts with memory only
    assert ("memory",) == asks_group(Limits(memory=4096, swap=None))
