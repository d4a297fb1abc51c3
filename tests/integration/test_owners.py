"""Who owns what: writable binds of root with an id map of their own."""

import errno
import os
import shutil
import stat

import harness
import payloads
import plans
import pytest
from payloads import tell

from sandbox import Sandbox, SetupError, UnsupportedError, primitives as kernel

pytestmark = pytest.mark.needs_userns

ALICE, BOB, STAFF = 54321, 54322, 54400

MAKE = """
open("/w/made", "w").close()
os.mkdir("/w/folder")
os.symlink("made", "/w/link")
say(sorted((name, os.lstat(f"/w/{name}").st_uid, os.lstat(f"/w/{name}").st_gid) for name in os.listdir("/w")))
"""


def owners(path):
    """Return the owner and group of everything in a directory, as the host sees them."""
    return {(os.lstat(path / name).st_uid, os.lstat(path / name).st_gid) for name in os.listdir(path)}


def directory(path, uid, gid=None, mode=0o755):
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, uid if gid is None else gid)
    return path


# ── what is written ──


@pytest.mark.needs_root
def test_what_is_written_has_the_owner_and_group_of_the_source(tmp_path):
    source = directory(tmp_path / "alice", ALICE, STAFF)
    box = Sandbox().bind(source, "/w")
    expected = [[name, 1000, 1000] for name in ("folder", "link", "made")]
    assert expected == tell(box, MAKE)
    assert {(ALICE, STAFF)} == owners(source)
    # The control: without an id map it is the fresh id that the sandbox has.
    shared = directory(tmp_path / "shared", ALICE, STAFF, 0o777)
    with plans.launch(box, ["true"]) as process:
        assert 0 == process.wait()
    plan = Sandbox().bind(shared, "/w").plan(payloads.script(MAKE))
    unmapped = plans.without(plan, lambda step: "MOUNT_ATTR_IDMAP" in str(step))
    with plans.launch(Sandbox().bind(shared, "/w"), payloads.script(MAKE), plan=unmapped) as process:
        assert 0 == process.wait()
    assert ALICE not in {uid for uid, _ in owners(shared)}


@pytest.mark.needs_user
def test_what_an_unprivileged_caller_writes_is_its_own(tmp_path):
    source = directory(tmp_path / "own", os.getuid(), os.getgid())
    tell(Sandbox().bind(source, "/w", owner=os.getuid()).user(7, 8), MAKE)
    assert {(os.getuid(), os.getgid())} == owners(source)


@pytest.mark.needs_root
def test_what_the_owner_may_read_the_payload_may(tmp_path):
    source = directory(tmp_path / "alice", ALICE, mode=0o700)
    for name, uid in (("hers", ALICE), ("his", BOB)):
        (source / name).write_text(name)
        (source / name).chmod(0o600)
        os.chown(source / name, uid, uid)
    body = (
        'say([tried(open, "/w/hers", "a"), tried(open, "/w/his"), os.stat("/w/hers").st_uid, os.stat("/w/his").st_uid])'
    )
    assert ["ok", "EACCES", 1000, 65534] == tell(Sandbox().bind(source, "/w"), body)
    assert ["EROFS", "EACCES", 1000, 65534] == tell(Sandbox().bind_readonly(source, "/w", owner=ALICE), body)
    source.chmod(0o755)
    assert ["EACCES", "EACCES", 65534, 65534] == [
        one if one != "EROFS" else "EACCES" for one in tell(Sandbox().bind_readonly(source, "/w"), body)
    ]


@pytest.mark.needs_root
def test_several_binds_have_each_its_own_owner(tmp_path):
    binds = {
        "a": directory(tmp_path / "a", ALICE, STAFF),
        "b": directory(tmp_path / "b", BOB),
        "c": directory(tmp_path / "c", ALICE, STAFF),
        "d": directory(tmp_path / "d", BOB, mode=0o777),
        "f": directory(tmp_path / "f", ALICE) / "file",
    }
    binds["f"].write_text("")
    os.chown(binds["f"], BOB, STAFF)
    box = Sandbox()
    for name, source in binds.items():
        box = box.bind(source, f"/{name}", owner=ALICE if name == "d" else None)
    body = """
for name in "abcd": open(f"/{name}/x", "w").close()
with open("/f", "a") as stream: stream.write("written")
say([tried(os.link, "/a/x", "/c/y"), tried(os.chown, "/a/x", 0, 0), tried(os.chown, "/a/x", 1000, 1000)])
"""
    assert ["EXDEV", "EINVAL", "ok"] == tell(box, body)
    assert [(ALICE, STAFF), (BOB, BOB), (ALICE, STAFF), (ALICE, ALICE)] == [
        (one.st_uid, one.st_gid) for one in (os.stat(binds[name] / "x") for name in "abcd")
    ]
    assert ("written", BOB, STAFF) == (binds["f"].read_text(), os.stat(binds["f"]).st_uid, os.stat(binds["f"]).st_gid)
    # One user namespace an owner, not one a bind.
    assert 3 + 1 == sum(step.call == "user_namespace" for step in box.plan(["true"]).steps)


@pytest.mark.needs_root
def test_an_owner_that_changes_between_two_launches_is_the_new_one(tmp_path):
    source = directory(tmp_path / "source", ALICE)
    box = Sandbox().bind(source, "/w")
    for number, uid in enumerate((ALICE, BOB, BOB, ALICE)):
        os.chown(source, uid, uid)
        tell(box, f'open("/w/{number}", "w").close(); say(0)')
        assert uid == os.stat(source / str(number)).st_uid
    os.chown(source, 0, 0)
    with pytest.raises(PermissionError):
        box.run(["true"])


@pytest.mark.needs_root
def test_an_optional_source_that_appears_after_the_look_cannot_be_written(tmp_path):
    source = tmp_path / "late"
    box = Sandbox().bind(source, "/w", optional=True)
    command = payloads.script('say([tried(open, "/w/x", "w")])')
    plan = box.plan(command)
    directory(source, harness.USER_ID, mode=0o777)
    read_end, write_end = os.pipe()
    with open(read_end) as stream, plans.launch(box, command, plan=plan, stdout=write_end) as process:
        os.close(write_end)
        assert '["EROFS"]\n' == stream.read()
        assert 0 == process.wait()
    # The control: a launch that looks again can.
    tell(box, 'open("/w/x", "w").close(); say(0)')


@pytest.mark.needs_root
@pytest.mark.needs_kernel(6, 3)
def test_what_is_mounted_below_has_the_same_owner(tmp_path):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        source = directory(tmp_path / "source", ALICE)
        below = directory(source / "below", ALICE)
        kernel.mount("none", str(below), "tmpfs", 0, "mode=0777")
        tell(Sandbox().bind(source, "/w"), 'open("/w/below/x", "w").close(); say(0)')
        assert (ALICE, ALICE) == (os.stat(below / "x").st_uid, os.stat(below / "x").st_gid)

    harness.in_child(check)


@pytest.mark.needs_root
def test_root_file_system_that_can_be_written_has_its_owner(tmp_path):
    root = directory(tmp_path / "root", ALICE, STAFF)
    for name in ("bin", "dev", "proc", "tmp", "w"):
        directory(root / name, ALICE, STAFF)
    busybox = harness.find_program("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    box = Sandbox().rootfs(root, readonly=False)
    assert 0 == box.run(["/bin/busybox", "touch", "/w/x"]).returncode
    assert {(ALICE, STAFF)} == owners(root / "w")
    os.chown(root, 0, 0)
    with pytest.raises(PermissionError) as caught:
        box.run(["/bin/busybox", "true"])
    assert "host_root=True" in str(caught.value)


# ── root's own ──


@pytest.mark.needs_root
def test_directory_of_root_is_an_error_until_somebody_is_named(tmp_path):
    source = directory(tmp_path / "root", 0, mode=0o777)
    with pytest.raises(SetupError) as caught:
        Sandbox().bind(source, "/w").run(["true"])
    assert (errno.EPERM, f'.bind("{source}", "/w")') == (caught.value.errno, caught.value.origin)
    assert "owner=0" in str(caught.value)
    assert "bind_readonly" in str(caught.value)
    assert [] == os.listdir(source)
    tell(Sandbox().bind(source, "/w", owner=BOB), MAKE)
    assert {(BOB, BOB)} == owners(source)
    assert 0 == Sandbox().bind_readonly(source, "/w").run(["true"]).returncode


@pytest.mark.needs_root
def test_files_of_root_are_written_only_as_their_mode_says(tmp_path):
    source = tmp_path / "file"
    body = 'say([tried(open, "/w", "a"), tried(os.chmod, "/w", 0o777)])'
    for mode, expected in ((0o644, "EACCES"), (0o666, "ok")):
        source.write_text("")
        os.chown(source, 0, 0)
        source.chmod(mode)
        assert [expected, "EPERM"] == tell(Sandbox().bind(source, "/w"), body)
    source.chmod(0o644)
    assert ["ok", "ok"] == tell(Sandbox().bind(source, "/w", owner=0), body)


@pytest.mark.needs_root
@pytest.mark.parametrize("named", [None, ALICE])
def test_group_of_root_is_nobodys_unless_root_is_named(named, tmp_path):
    source = directory(tmp_path / "source", ALICE, 0)
    (source / "secret").write_text("x")
    os.chown(source / "secret", 0, 0)
    (source / "secret").chmod(0o660)
    body = 'open("/w/x", "w").close(); say([tried(open, "/w/secret")])'
    assert ["EACCES"] == tell(Sandbox().bind(source, "/w", owner=named), body)
    assert (ALICE, ALICE) == (os.stat(source / "x").st_uid, os.stat(source / "x").st_gid)
    assert ["EACCES"] != tell(Sandbox().bind(source, "/w", owner=0).cwd("/"), 'say([tried(open, "/w/secret")])')


@pytest.mark.needs_root
def test_host_root_needs_no_id_map_but_for_somebody_named(tmp_path):
    source = directory(tmp_path / "source", 0)
    box = Sandbox().user(0, host_root=True)
    assert not any(step.call == "user_namespace" for step in box.bind(source, "/w").plan(["true"]).steps)
    tell(box.bind(source, "/w"), 'open("/w/x", "w").close(); say(0)')
    assert {(0, 0)} == owners(source)
    hers = directory(tmp_path / "hers", ALICE)
    tell(box.bind(hers, "/w", owner=ALICE), 'open("/w/x", "w").close(); say(0)')
    assert {(ALICE, ALICE)} == owners(hers)
    assert any("root's own id" in gap for gap in box.run(["true"]).enforced.gaps)


@pytest.mark.needs_user
def test_unprivileged_caller_cannot_name_another(tmp_path):
    for owner in (0, os.getuid() + 1):
        for box in (Sandbox().bind(tmp_path, "/w", owner=owner), Sandbox().bind_readonly(tmp_path, owner=owner)):
            with pytest.raises(UnsupportedError, match=f"owner={owner}") as caught:
                box.run(["true"])
            assert errno.EPERM == caught.value.errno
            assert str(os.getuid()) in caught.value.found


# ── file systems that cannot ──


@pytest.mark.needs_root
@pytest.mark.parametrize("where", ["itself", "below"])
def test_mount_without_id_maps_is_named(where, tmp_path):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        tmp_path.chmod(0o755)
        parts = [tmp_path / name for name in ("lower", "upper", "work")]
        for path in parts:
            directory(path, ALICE)
        source = directory(tmp_path / "so urce", ALICE)
        point = source if where == "itself" else directory(source / "below", ALICE)
        options = "lowerdir={},upperdir={},workdir={}".format(*parts)
        kernel.mount("none", str(point), "overlay", 0, options)
        os.chown(point, ALICE, ALICE)
        with pytest.raises(SetupError) as caught:
            Sandbox().bind(source, "/w").run(["true"])
        assert errno.EINVAL == caught.value.errno
        assert f"the overlay file system at {point} " in str(caught.value.hint)
        assert "bind_readonly()" in str(caught.value.hint)
        assert [] == os.listdir(parts[1])
        # The control: where nothing needs an id map, it can be bound.
        assert 0 == Sandbox().bind_readonly(source, "/w").run(["true"]).returncode
        assert 0 == Sandbox().user(0, host_root=True).bind(source, "/w").run(["true"]).returncode

    harness.in_child(check)


@pytest.mark.needs_root
def test_mount_with_an_id_map_of_its_own_is_told(tmp_path):
    """The kernel gives a mount one id map, for ever."""
    source = directory(tmp_path / "source", ALICE)

    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        with harness.user_namespace("0 0 4294967295\n") as holder:
            tree = kernel.open_tree(kernel.AT_FDCWD, str(source), kernel.OPEN_TREE_CLONE)
            namespace = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY)
            kernel.mount_setattr(tree, "", kernel.AT_EMPTY_PATH, attr_set=kernel.MOUNT_ATTR_IDMAP, userns_fd=namespace)
            kernel.move_mount(tree, "", kernel.AT_FDCWD, str(source), kernel.MOVE_MOUNT_F_EMPTY_PATH)
            os.close(namespace)
            os.close(tree)
        with pytest.raises(SetupError) as caught:
            Sandbox().bind(source, "/w").run(["true"])
        assert errno.EPERM == caught.value.errno
        assert "id map already" in str(caught.value.hint)
        assert 0 == Sandbox().bind_readonly(source, "/w").run(["true"]).returncode

    harness.in_child(check)


def test_modes_stay_what_the_payload_says(tmp_path):
    payloads.ours(tmp_path)
    tell(Sandbox().bind(tmp_path, "/w").umask(0), 'os.close(os.open("/w/x", os.O_CREAT, 0o640)); say(0)')
    assert 0o640 == stat.S_IMODE(os.stat(tmp_path / "x").st_mode)
