"""How limits are written in the files of a group."""

import os

import pytest

from sandbox.cgroups import files
from sandbox.limits import Limits

LIMITS = Limits(memory=1 << 30, swap=1 << 20, pids=9, cpus=1.5, cpuset=(0, 3))


@pytest.mark.parametrize(
    ("name", "second", "first"),
    [
        (
            "memory",
            [("memory.max", str(1 << 30)), ("memory.oom.group", "1")],
            [("memory.limit_in_bytes", str(1 << 30))],
        ),
        ("swap", [("memory.swap.max", str(1 << 20))], [("memory.memsw.limit_in_bytes", str((1 << 30) + (1 << 20)))]),
        ("pids", [("pids.max", "10")], [("pids.max", "10")]),
        ("cpus", [("cpu.max", "150000 100000")], [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000")]),
        ("cpuset", [("cpuset.cpus", "0,3")], [("cpuset.cpus", "0,3")]),
    ],
)
def test_limit_is_written_as_each_version_wants_it(name, second, first):
    assert (second, first) == (list(files.writes(LIMITS, name, 2)), list(files.writes(LIMITS, name, 1)))


def test_smallest_share_of_a_processor_is_the_kernels_least():
    assert [("cpu.max", "1000 100000")] == list(files.writes(Limits(cpus=0.01), "cpus", 2))


def test_rate_of_one_disk_wins_over_that_of_all(monkeypatch):
    monkeypatch.setattr(files, "_disks", lambda: iter(["8:0", "8:16"]))
    monkeypatch.setattr(files, "disk_of", {"/dev/sdb": "8:16"}.__getitem__)
    limits = Limits(io=(("read", 5), ("read:/dev/sdb", 7), ("write_ops", 3)))
    assert {
        ("io.max", "8:0 rbps=5"),
        ("io.max", "8:16 rbps=7"),
        ("io.max", "8:0 wiops=3"),
        ("io.max", "8:16 wiops=3"),
    } == set(files.writes(limits, "io", 2))
    assert ("blkio.throttle.read_bps_device", "8:16 7") in files.writes(limits, "io", 1)


@pytest.mark.parametrize(("text", "expected"), [("0-2,5\n", {0, 1, 2, 5}), ("", set()), ("7", {7})])
def test_list_of_processors_is_read(text, expected):
    assert expected == files.cpu_list(text)


def test_files_that_are_not_there_count_nothing(tmp_path):
    (tmp_path / "events").write_text("low 0\noom_kill 3\nsome avg10=0.00\n")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "peak").write_text("42\n")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert {"low": 0, "oom_kill": 3} == files.flat(fd, "events")
        assert {} == files.flat(fd, "gone")
        assert (None, None, 42) == tuple(files.number(fd, name) for name in ("gone", "max", "peak"))
    finally:
        os.close(fd)
