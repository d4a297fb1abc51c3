"""mount(2) and mounts by descriptor, against the kernel; each in a mount namespace of its own."""

import errno
import os
import resource
import signal

import harness
import pytest

from sandbox import primitives as kernel
from sandbox.primitives import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE

pytestmark = pytest.mark.needs_userns


@pytest.fixture
def run(tmp_path):
    """Run a function in a child with a mount namespace of its own; it gets a directory."""

    def enter(function):
        kernel_root = str(tmp_path)
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        function(kernel_root)

    return lambda function: harness.in_child(enter, function)


def mount_id(path):
    """Return the unique id of the topmost mount at a path."""
    return next(one for one in reversed(kernel.listmount()) if path == kernel.statmount(one).mnt_point)


def mount_table():
    with open("/proc/self/mountinfo") as stream:
        return stream.read()


def at(path):
    return kernel.statmount(mount_id(path))


def new_tmpfs(**options):
    """Return the descriptor of a detached tmpfs."""
    fs = kernel.fsopen("tmpfs")
    for key, value in options.items():
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_STRING, key, value)
    kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE)
    mount = kernel.fsmount(fs)
    os.close(fs)
    return mount


def attach(mount, path, flags=0):
    kernel.move_mount(mount, "", AT_FDCWD, path, kernel.MOVE_MOUNT_F_EMPTY_PATH | flags)


@pytest.mark.needs_kernel(6, 13)
def test_mount_tmpfs_has_the_flags_and_the_data(run):
    def check(path):
        kernel.mount("box", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0751")
        found = at(path)
        assert ("tmpfs", "box") == (found.fs_type, found.sb_source)
        assert kernel.MountAttr.NOSUID | kernel.MountAttr.NODEV == found.mnt_attr
        assert 0o751 == os.stat(path).st_mode & 0o7777
        assert 2**20 == os.statvfs(path).f_blocks * os.statvfs(path).f_frsize
        kernel.umount(path)

    run(check)


def test_mount_data_just_below_a_page_arrives_whole(run):
    def check(path):
        page = os.sysconf("SC_PAGE_SIZE")
        data = "mode=0700" + ",size=1m" * 400
        data += ",mode=0711".rjust(page - 1 - len(data), ",")
        assert page - 1 == len(data)
        kernel.mount(None, path, "tmpfs", 0, data)
        assert 0o711 == os.stat(path).st_mode & 0o7777

    run(check)


def test_mount_bind_then_remount_readonly_refuses_writes(run):
    def check(path):
        kernel.mount(path, path, None, kernel.MS_BIND)
        os.close(os.open(f"{path}/before", os.O_CREAT))
        kernel.mount(None, path, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
        with pytest.raises(OSError) as caught:
            os.open(f"{path}/after", os.O_CREAT)
        assert errno.EROFS == caught.value.errno

    run(check)


def test_mount_failure_names_source_and_target(tmp_path):
    with pytest.raises(OSError) as caught:
        kernel.mount("/nope", tmp_path / "missing", None, kernel.MS_BIND)
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    assert ("/nope", tmp_path / "missing") == (caught.value.filename, caught.value.filename2)


def test_umount_of_a_busy_mount_needs_detach(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(OSError) as caught:
            kernel.umount(path)
        assert (errno.EBUSY, path) == (caught.value.errno, caught.value.filename)
        kernel.umount(path, kernel.MNT_DETACH)
        os.close(fd)

    run(check)


def test_umount_expire_takes_two_calls(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        with pytest.raises(BlockingIOError):
            kernel.umount(path, kernel.MNT_EXPIRE)
        kernel.umount(path, kernel.MNT_EXPIRE)

    run(check)


def test_umount_nofollow_refuses_a_symbolic_link(run):
    def check(path):
        os.mkdir(f"{path}/real")
        os.symlink("real", f"{path}/link")
        kernel.mount("box", f"{path}/real", "tmpfs")
        with pytest.raises(OSError) as caught:
            kernel.umount(f"{path}/link", kernel.UMOUNT_NOFOLLOW)
        assert errno.EINVAL == caught.value.errno
        kernel.umount(f"{path}/link")

    run(check)


def test_pivot_root_makes_the_new_root_the_only_one(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        with open(f"{path}/here", "w"):
            pass
        os.chdir(path)
        kernel.pivot_root(".", ".")
        kernel.umount(".", kernel.MNT_DETACH)
        assert ["here"] == os.listdir("/")

    run(check)


def test_pivot_root_failure_names_both_paths(run):
    def check(path):
        with pytest.raises(OSError) as caught:
            kernel.pivot_root(path, path)
        # Which of the two depends on what is mounted at the directory for temporary files.
        assert caught.value.errno in (errno.EINVAL, errno.EBUSY)
        assert (path, path) == (caught.value.filename, caught.value.filename2)

    run(check)


def test_open_tree_clone_is_detached_until_moved(run):
    def check(path):
        os.mkdir(f"{path}/from")
        os.mkdir(f"{path}/to")
        os.close(os.open(f"{path}/from/file", os.O_CREAT))
        tree = kernel.open_tree(AT_FDCWD, f"{path}/from", kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC)
        assert not os.get_inheritable(tree)
        assert [] == os.listdir(f"{path}/to")
        attach(tree, f"{path}/to")
        os.close(tree)
        assert ["file"] == os.listdir(f"{path}/to")

    run(check)


def test_open_tree_recursive_takes_the_mounts_below(run):
    def check(path):
        os.makedirs(f"{path}/from/sub")
        kernel.mount("box", f"{path}/from/sub", "tmpfs")
        os.close(os.open(f"{path}/from/sub/file", os.O_CREAT))
        plain = kernel.open_tree(AT_FDCWD, f"{path}/from", kernel.OPEN_TREE_CLONE)
        deep = kernel.open_tree(AT_FDCWD, f"{path}/from", kernel.OPEN_TREE_CLONE | AT_RECURSIVE)
        assert [] == os.listdir(f"/proc/self/fd/{plain}/sub")
        assert ["file"] == os.listdir(f"/proc/self/fd/{deep}/sub")

    run(check)


def test_open_tree_without_clone_is_a_path_descriptor(tmp_path):
    tree = kernel.open_tree(AT_FDCWD, tmp_path)
    assert os.path.samestat(os.stat(tmp_path), os.stat(tree))
    os.close(tree)


def test_open_tree_by_descriptor_is_that_directory(tmp_path):
    directory = os.open(tmp_path, os.O_PATH)
    tree = kernel.open_tree(directory, "", AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
    assert os.path.samestat(os.stat(tmp_path), os.stat(tree))
    os.close(tree)
    os.close(directory)


@pytest.mark.needs_kernel(6, 15)
def test_open_tree_attr_is_readonly_from_the_start(run):
    def check(path):
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC
        tree = kernel.open_tree_attr(AT_FDCWD, path, flags, attr_set=kernel.MOUNT_ATTR_RDONLY)
        with pytest.raises(OSError) as caught:
            os.open("file", os.O_CREAT, dir_fd=tree)
        assert errno.EROFS == caught.value.errno

    run(check)


@pytest.mark.needs_kernel(6, 5)
def test_move_mount_beneath_appears_when_the_top_one_goes(run):
    def check(path):
        attach(new_tmpfs(mode="0711"), path)
        attach(new_tmpfs(mode="0722"), path, kernel.MOVE_MOUNT_BENEATH)
        assert 0o711 == os.stat(path).st_mode & 0o7777
        kernel.umount(path, kernel.MNT_DETACH)
        assert 0o722 == os.stat(path).st_mode & 0o7777

    run(check)


@pytest.mark.needs_kernel(6, 8)
def test_move_mount_set_group_joins_the_peer_group(run):
    def check(path):
        for name in ("a", "b"):
            os.mkdir(f"{path}/{name}")
        kernel.mount("box", f"{path}/a", "tmpfs")
        kernel.mount(None, f"{path}/a", None, kernel.MS_SHARED)
        kernel.mount(f"{path}/a", f"{path}/b", None, kernel.MS_BIND)
        kernel.mount(None, f"{path}/b", None, kernel.MS_PRIVATE)
        kernel.move_mount(AT_FDCWD, f"{path}/a", AT_FDCWD, f"{path}/b", kernel.MOVE_MOUNT_SET_GROUP)
        assert at(f"{path}/a").mnt_peer_group == at(f"{path}/b").mnt_peer_group > 0

    run(check)


@pytest.mark.needs_kernel(6, 8)
def test_mount_setattr_recursive_reaches_every_mount(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        os.mkdir(f"{path}/sub")
        kernel.mount("box", f"{path}/sub", "tmpfs")
        kernel.mount_setattr(AT_FDCWD, path, AT_RECURSIVE, attr_set=kernel.MOUNT_ATTR_RDONLY)
        assert [kernel.MountAttr.RDONLY] * 2 == [at(path).mnt_attr, at(f"{path}/sub").mnt_attr]
        kernel.mount_setattr(AT_FDCWD, path, attr_clr=kernel.MOUNT_ATTR_RDONLY)
        assert [0, kernel.MountAttr.RDONLY] == [at(path).mnt_attr, at(f"{path}/sub").mnt_attr]

    run(check)


@pytest.mark.needs_kernel(6, 8)
def test_mount_setattr_propagation_and_access_times(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        kernel.mount_setattr(
            AT_FDCWD,
            path,
            attr_set=kernel.MOUNT_ATTR_NOATIME,
            attr_clr=kernel.MOUNT_ATTR__ATIME,
            propagation=kernel.MS_SHARED,
        )
        found = at(path)
        assert kernel.MountAttr.NOATIME == found.mnt_attr & kernel.MountAttr._ATIME
        assert kernel.MS_SHARED == found.mnt_propagation

    run(check)


@pytest.mark.needs_kernel(6, 15)
def test_mount_setattr_idmap_changes_the_owner(run):
    # One id is all that an unprivileged caller may map, and it has only its own.
    seen = 7 if os.geteuid() == 0 else 0

    def check(path):
        mount = new_tmpfs()
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=mount))
        pid = kernel.clone3(kernel.CLONE_NEWUSER)
        if pid == 0:
            signal.pause()
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as stream:
                stream.write(f"0 {seen} 1")
        userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        kernel.mount_setattr(mount, "", AT_EMPTY_PATH, attr_set=kernel.MOUNT_ATTR_IDMAP, userns_fd=userns)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        attach(mount, path)
        assert kernel.MountAttr.IDMAP == at(path).mnt_attr
        assert seen == os.stat(f"{path}/file").st_uid
        assert (f"0 {seen} 1",) == at(path).mnt_uidmap

    run(check)


NEW_CALL = pytest.param("open_tree_attr", marks=pytest.mark.needs_kernel(6, 15))


@pytest.mark.parametrize("call", ["open_tree", "fsopen", "fspick", "openat2", "fsmount", NEW_CALL])
def test_no_descriptor_left_raises_emfile(run, call):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        fs = kernel.fsopen("tmpfs")
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE)
        calls = {
            "open_tree": lambda: kernel.open_tree(AT_FDCWD, path, kernel.OPEN_TREE_CLONE),
            "open_tree_attr": lambda: kernel.open_tree_attr(AT_FDCWD, path, kernel.OPEN_TREE_CLONE),
            "fsopen": lambda: kernel.fsopen("tmpfs"),
            "fspick": lambda: kernel.fspick(AT_FDCWD, path),
            "fsmount": lambda: kernel.fsmount(fs),
            "openat2": lambda: kernel.openat2(AT_FDCWD, path),
        }
        mounts = mount_table()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fs + 1, limit[1]))
        with pytest.raises(OSError) as caught:
            calls[call]()
        assert errno.EMFILE == caught.value.errno
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert mounts == mount_table()

    run(check)
