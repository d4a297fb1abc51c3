"""Where a caller may make groups: decided on trees that look like the kernel's."""

import os

import pytest

from sandbox.cgroups import hierarchy
from sandbox.cgroups.hierarchy import FIX, LEAF, SHARED, Mounted, Place, find, memberships, mounted, place_v1, place_v2

ALL = frozenset(hierarchy.CONTROLLERS)
UID = os.geteuid()
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
38 31 0:35 /docker/a\\040b /sys/fs/cgroup/blkio rw,relatime master:9 - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""


@pytest.fixture
def tree(tmp_path):
    """Return what makes a group that looks like version 2, with those above it."""

    def make(path, *, procs="", delegated=False, closed=False, root=False):
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("cgroup.procs", procs),
            ("cgroup.controllers", " ".join(sorted(ALL))),
            ("cgroup.subtree_control", ""),
        ):
            (folder / name).write_text(text)
        if not root:
            (folder / "cgroup.type").write_text("domain\n")
        if delegated:
            try:
                os.setxattr(folder, "user.delegate", b"1")
            except OSError as error:
                pytest.skip(f"needs extended attributes in {tmp_path}: {error}")
        if closed:
            (folder / "cgroup.procs").chmod(0o444)
        return str(folder)

    return make


def at(tmp_path, group, uid=UID):
    return place_v2(Mounted(str(tmp_path), "/", 2, frozenset()), group, uid)


def test_mounts_of_both_versions_are_found_and_the_named_one_is_left_out():
    assert [
        Mounted("/sys/fs/cgroup/cpu,cpuacct", "/", 1, frozenset({"cpu", "cpuacct"})),
        Mounted("/sys/fs/cgroup/blkio", "/docker/a b", 1, frozenset({"io"})),
        Mounted("/sys/fs/cgroup/unified", "/", 2, frozenset()),
    ] == list(mounted(HYBRID))


def test_memberships_have_a_line_for_each_controller():
    text = "5:cpu,cpuacct:/a\n2:name=systemd:/b\n1:blkio:/c:d\n0::/e\n"
    found = {"cpu": "/a", "cpuacct": "/a", "name=systemd": "/b", "io": "/c:d", "": "/e"}
    assert found == memberships(text)


def test_real_root_is_used_as_it_is(tree, tmp_path):
    top = tree(".", procs="1\n", root=True)
    assert Place(top, 2, ALL) == at(tmp_path, "/")


def test_delegated_unit_moves_its_processes(tree, tmp_path):
    tree(".", root=True)
    own = tree("app.slice/x.scope", procs="5\n", delegated=True)
    assert Place(own, 2, ALL, move=True) == at(tmp_path, "/app.slice/x.scope")


def test_leaf_of_a_delegated_unit_leads_back_to_the_unit(tree, tmp_path):
    tree(".", root=True)
    unit = tree("app.slice/x.scope", delegated=True)
    tree(f"app.slice/x.scope/{LEAF}", procs="5\n")
    assert Place(unit, 2, ALL) == at(tmp_path, f"/app.slice/x.scope/{LEAF}")


def test_group_inside_of_a_delegated_unit_whose_parent_has_processes_is_split(tree, tmp_path):
    tree(".", root=True)
    tree("x.service", procs="4\n", delegated=True)
    own = tree("x.service/sub", procs="5\n")
    assert Place(own, 2, ALL, move=True) == at(tmp_path, "/x.service/sub")


@pytest.mark.parametrize("delegated", [True, False])
def test_users_manager_is_asked_where_it_leaves_no_mark(tree, tmp_path, monkeypatch, delegated):
    asked = []
    monkeypatch.setattr(hierarchy, "_users_manager_delegates", lambda *said: asked.append(said) or delegated)
    tree(".", root=True)
    tree("user.slice/user@7.service", delegated=True)
    own = tree("user.slice/user@7.service/app.slice/x.scope", procs="5\n")
    found = at(tmp_path, "/user.slice/user@7.service/app.slice/x.scope", uid=7)
    assert (Place(own, 2, ALL, move=True) if delegated else f"{own} is not delegated to this user") == found
    assert [("x.scope", 7)] == asked


@pytest.mark.parametrize(("said", "expected"), [("echo yes", True), ("echo no", False), ("echo yes; exit 1", False)])
def test_answer_of_a_users_manager_is_read(tmp_path, monkeypatch, said, expected):
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n{said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert expected is hierarchy._users_manager_delegates("x.scope", 7)


def test_users_manager_that_is_not_there_delegates_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not hierarchy._users_manager_delegates("x.scope", 7)


def test_scope_of_a_users_manager_that_is_not_delegated_is_refused(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tree(".", root=True)
    tree("user.slice/user@7.service", delegated=True)
    own = tree("user.slice/user@7.service/app.slice/x.scope", procs="5\n")
    said = at(tmp_path, "/user.slice/user@7.service/app.slice/x.scope", uid=7)
    assert f"{own} is not delegated to this user" == said


def test_service_of_a_user_that_owns_its_group_is_delegated(tree, tmp_path):
    """Before version 251 systemd marks it for root's eyes only."""
    tree(".", root=True)
    own = tree("system.slice/x.service", procs="5\n")
    assert Place(own, 2, ALL, move=True) == at(tmp_path, "/system.slice/x.service", uid=7)


def test_root_without_delegation_makes_a_group_beside_the_units(tree, tmp_path):
    top = tree(".", root=True)
    tree("system.slice/ssh.service", procs="5\n")
    expected = Place(os.path.join(top, SHARED), 2, ALL, make=True)
    assert expected == at(tmp_path, "/system.slice/ssh.service", uid=0)


def test_container_splits_the_root_of_its_namespace(tree, tmp_path):
    own = tree(".", procs="1\n")
    assert Place(own, 2, ALL, move=True) == at(tmp_path, "/")


def test_group_of_ones_own_below_roots_is_found(tree, tmp_path):
    tree(".", root=True)
    own = tree("mine", procs="5\n")
    assert Place(own, 2, ALL, move=True) == at(tmp_path, "/mine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_closed_group_is_refused(tree, tmp_path):
    tree(".", root=True)
    own = tree("mine", closed=True)
    assert f"{own} is not writable for uid {UID}" == at(tmp_path, "/mine")


def test_group_outside_of_what_is_mounted_is_refused(tree, tmp_path):
    tree(".", root=True)
    assert "outside" in str(at(tmp_path, "/../other"))
    assert "outside" in str(place_v1(Mounted(str(tmp_path), "/docker/a", 1, frozenset({"pids"})), "/docker/ab"))


def test_group_of_version_1_is_the_callers_own(tree, tmp_path):
    own = tree("b", procs="5\n")
    place = place_v1(Mounted(str(tmp_path), "/docker", 1, frozenset({"pids"})), "/docker/b")
    assert Place(own, 1, frozenset({"pids"})) == place


@pytest.mark.parametrize(
    ("group", "uid", "fix"),
    [
        ("/a.slice/b.scope", 7, FIX.format(user=" --user")),
        ("/a.slice/b.scope", 0, FIX.format(user="")),
        ("/", 0, "mount cgroup2 writable"),
        ("/", 7, "have root make a group"),
    ],
)
def test_way_to_a_group_is_told(group, uid, fix):
    host = find("", f"0::{group}\n", uid)
    assert ((), ("no cgroup file system is mounted",)) == (host.places, host.found)
    assert fix in host.fix
