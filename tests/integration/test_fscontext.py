"""fsopen, fsconfig, fsmount, fspick and the message log, against the kernel."""

import errno
import os

import harness
import pytest

from sandbox import primitives as kernel
from sandbox.primitives import AT_FDCWD

pytestmark = pytest.mark.needs_userns


@pytest.fixture
def run(tmp_path):
    def enter(function):
        path = str(tmp_path)
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        function(path)

    return lambda function: harness.in_child(enter, function)


def test_unknown_type_names_it(run):
    def check(path):
        with pytest.raises(OSError) as caught:
            kernel.fsopen("nosuchfs")
        assert (errno.ENODEV, "nosuchfs") == (caught.value.errno, caught.value.filename)

    run(check)


def test_descriptors_are_close_on_exec(run):
    def check(path):
        fs = kernel.fsopen("tmpfs")
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE)
        mount = kernel.fsmount(fs)
        kernel.move_mount(mount, "", AT_FDCWD, path, kernel.MOVE_MOUNT_F_EMPTY_PATH)
        picked = kernel.fspick(AT_FDCWD, path)
        assert [False] * 3 == [os.get_inheritable(fd) for fd in (fs, mount, picked)]
        assert os.get_inheritable(kernel.fsopen("tmpfs", 0))

    run(check)


@pytest.mark.needs_kernel(6, 13)
def test_fsconfig_string_and_flag_reach_the_file_system(run):
    def check(path):
        fs = kernel.fsopen("tmpfs")
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_STRING, "source", "box")
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_STRING, "size", b"1m")
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_FLAG, "ro")
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE)
        mount = kernel.fsmount(fs, attr_flags=kernel.MOUNT_ATTR_NOEXEC)
        kernel.move_mount(mount, "", AT_FDCWD, path, kernel.MOVE_MOUNT_F_EMPTY_PATH)
        found = kernel.statmount(kernel.listmount()[-1])
        assert (path, "box", kernel.MS_RDONLY) == (found.mnt_point, found.sb_source, found.sb_flags)
        assert kernel.MOUNT_ATTR_NOEXEC == found.mnt_attr & kernel.MOUNT_ATTR_NOEXEC
        assert "size=1024k" in found.opt_array

    run(check)


@pytest.mark.needs_kernel(6, 13)
def test_fsconfig_descriptor_stacks_overlay_layers(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        os.makedirs(f"{path}/lower/one")
        os.makedirs(f"{path}/top/two")
        fs = kernel.fsopen("overlay")
        for name in ("top", "lower"):
            layer = os.open(f"{path}/{name}", os.O_PATH)
            kernel.fsconfig(fs, kernel.FSCONFIG_SET_FD, "lowerdir+", None, layer)
            os.close(layer)
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE)
        mount = kernel.fsmount(fs)
        assert ["one", "two"] == sorted(os.listdir(f"/proc/self/fd/{mount}"))

    run(check)


def test_fsconfig_commands_that_the_file_system_does_not_take_reach_it(run):
    def check(path):
        fs = kernel.fsopen("tmpfs")
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        for command, value, aux in (
            (kernel.FSCONFIG_SET_PATH, path, None),
            (kernel.FSCONFIG_SET_PATH, ".", directory),
            (kernel.FSCONFIG_SET_PATH_EMPTY, "", directory),
            (kernel.FSCONFIG_SET_BINARY, b"\0\1", None),
            (kernel.FSCONFIG_SET_FD, None, directory),
        ):
            with pytest.raises(OSError) as caught:
                kernel.fsconfig(fs, command, "size", value, aux)
            assert errno.EINVAL == caught.value.errno

    run(check)


@pytest.mark.needs_kernel(6, 6)
def test_create_excl_makes_a_superblock_of_its_own(run):
    def check(path):
        fs = kernel.fsopen("tmpfs")
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_CREATE_EXCL)
        os.close(kernel.fsmount(fs))

    run(check)


def test_message_log_says_what_was_wrong_and_is_empty_then(run):
    def check(path):
        fs = kernel.fsopen("tmpfs")
        assert [] == kernel.read_fs_messages(fs)
        for key in ("nonsense", "rubbish"):
            with pytest.raises(OSError) as caught:
                kernel.fsconfig(fs, kernel.FSCONFIG_SET_STRING, key, "1")
            assert (errno.EINVAL, key) == (caught.value.errno, caught.value.filename)
        expected = [
            kernel.FsMessage("e", "tmpfs: Unknown parameter 'nonsense'"),
            kernel.FsMessage("e", "tmpfs: Unknown parameter 'rubbish'"),
        ]
        assert expected == kernel.read_fs_messages(fs)
        assert [] == kernel.read_fs_messages(fs)

    run(check)


def test_fspick_reconfigures_the_superblock(run):
    def check(path):
        kernel.mount("box", path, "tmpfs")
        fs = kernel.fspick(AT_FDCWD, path)
        kernel.fsconfig(fs, kernel.FSCONFIG_SET_FLAG, "ro")
        kernel.fsconfig(fs, kernel.FSCONFIG_CMD_RECONFIGURE)
        with pytest.raises(OSError) as caught:
            os.mkdir(f"{path}/x")
        assert errno.EROFS == caught.value.errno

    run(check)


def test_fsmount_before_create_is_refused(run):
    def check(path):
        with pytest.raises(OSError) as caught:
            kernel.fsmount(kernel.fsopen("tmpfs"))
        assert errno.EINVAL == caught.value.errno

    run(check)


@pytest.mark.needs_user
def test_unprivileged_caller_is_told_eperm():
    with pytest.raises(PermissionError):
        kernel.fsopen("tmpfs")
