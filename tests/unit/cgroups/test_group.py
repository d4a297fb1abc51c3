"""A group on a tree that looks like version 1: what the kernel would seldom do."""

import os

import pytest

from sandbox.cgroups import Group, group as module
from sandbox.cgroups.directories import INNER, Part, make_part, remove_directories, sweep
from sandbox.cgroups.hierarchy import LEAF, Place


@pytest.fixture
def part(tmp_path):
    """A group of version 1 with a freezer and CPU time, which is no more than its files."""
    made = make_part(Place(str(tmp_path), 1, frozenset({"freezer", "cpuacct"})), "sandbox-x-1-1")
    for name in ("cgroup.procs", f"{INNER}/cgroup.procs", f"{INNER}/freezer.state"):
        with open(os.path.join(made.path, name), "w"):
            pass
    yield made
    os.close(made.fd)
    os.close(made.inner)


def put(part: Part, name: str, text: str) -> None:
    with open(os.path.join(part.path, name), "w") as stream:
        stream.write(text)


def get(part: Part, name: str) -> str:
    with open(os.path.join(part.path, name)) as stream:
        return stream.read()


def test_process_that_cannot_be_frozen_is_an_error_and_all_go_on(part, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    read = module.files.read
    # The kernel says FREEZING for as long as somebody does not stand.
    monkeypatch.setattr(
        module.files, "read", lambda fd, name: "FREEZING\n" if name.endswith("freezer.state") else read(fd, name)
    )
    group = Group("sandbox-x-1-1", [part])
    with pytest.raises(TimeoutError, match="could not be frozen"):
        group.freeze(7)
    assert ("THAWED", "7") == (get(part, f"{INNER}/freezer.state"), get(part, f"{INNER}/cgroup.procs"))


def test_pid_1_that_is_the_payload_is_not_moved(part):
    Group("sandbox-x-1-1", [part]).freeze(None)
    assert ("FROZEN", "") == (get(part, f"{INNER}/freezer.state"), get(part, "cgroup.procs"))


@pytest.mark.parametrize(
    ("total", "user", "system", "expected"),
    [(4_000_000_000, 1, 3, (1.0, 3.0)), (2_000_000_000, 0, 0, (2.0, 0.0))],
)
def test_cpu_time_of_version_1_is_scaled(part, total, user, system, expected):
    for name, value in (("", total), ("_user", user), ("_sys", system)):
        put(part, f"cpuacct.usage{name}", str(value))
    assert expected == Group("sandbox-x-1-1", [part]).cpu_seconds()


def test_counts_that_nobody_makes_are_left_out(part):
    group = Group("sandbox-x-1-1", [part])
    assert (None, None, None, None) == (group.cpu_seconds(), group.pressure(), group.oom(), group.refusals())
    assert {} == group.counts() == group.limits()
    assert not {"memory", "pids"} & group.paths.keys()


def test_group_that_holds_something_is_not_removed(tmp_path):
    (tmp_path / "g" / INNER / "below").mkdir(parents=True)
    assert not remove_directories(str(tmp_path / "g"))
    (tmp_path / "g" / INNER / "below").rmdir()
    assert remove_directories(str(tmp_path / "g"))
    assert remove_directories(str(tmp_path / "g"))  # somebody else has done it


def test_sweep_takes_what_nobody_holds_and_leaves_the_rest(tmp_path):
    place = Place(str(tmp_path), 1, frozenset())
    held, left = make_part(place, "sandbox-held-1-1"), make_part(place, "sandbox-left-1-2")
    os.close(left.fd)
    os.close(left.inner)
    for name in (LEAF, "other", "sandbox-full-1-3"):
        (tmp_path / name).mkdir()
    for name in ("sandbox-full-1-3", "sandbox-nested-1-4"):
        (tmp_path / name / INNER / "below" / "deeper").mkdir(parents=True)
        (tmp_path / name / INNER / "beside").mkdir()
    (tmp_path / "sandbox-full-1-3" / INNER / "below" / "process").touch()
    sweep(place)
    assert {"sandbox-held-1-1", LEAF, "other", "sandbox-full-1-3"} == set(os.listdir(tmp_path))
    os.close(held.fd)
    os.close(held.inner)
    sweep(place)
    assert {LEAF, "other", "sandbox-full-1-3"} == set(os.listdir(tmp_path))
    sweep(Place(str(tmp_path / "gone"), 1, frozenset()))


def test_group_whose_name_is_taken_leaves_the_other_alone(tmp_path):
    place = Place(str(tmp_path), 1, frozenset())
    first = make_part(place, "sandbox-x-1-1")
    with pytest.raises(FileExistsError):
        make_part(place, "sandbox-x-1-1")
    assert [INNER] == os.listdir(first.path)
    os.close(first.fd)
    os.close(first.inner)


def test_group_of_a_parent_is_closed_and_not_removed_by_its_fork(tmp_path, monkeypatch):
    made = make_part(Place(str(tmp_path), 1, frozenset()), "sandbox-x-1-1")
    group = Group("sandbox-x-1-1", [made])
    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    assert group.remove()
    assert os.path.isdir(made.path)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(made.fd)
