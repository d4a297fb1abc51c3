"""What the kernel would cut or misread is refused before the call, and says which argument and why."""

import os

import pytest

from sandbox import primitives as kernel
from sandbox.primitives import AT_FDCWD

HUGE = 2**64

REFUSED = [
    # strings: NUL, wrong type, too long
    (lambda: kernel.mount("a\0b", "/x"), ValueError, "source"),
    (lambda: kernel.mount(None, "/x\0"), ValueError, "target"),
    (lambda: kernel.mount(None, "/x", "tmpfs\0"), ValueError, "filesystemtype"),
    (lambda: kernel.mount(None, "/x", 7), TypeError, "filesystemtype"),
    (lambda: kernel.mount(None, "/x", None, 0, "a\0"), ValueError, "data"),
    (lambda: kernel.mount(None, "/x", None, 0, b"x" * os.sysconf("SC_PAGE_SIZE")), ValueError, "data"),
    (lambda: kernel.mount(None, None), TypeError, ""),
    (lambda: kernel.umount(b"\0"), ValueError, "target"),
    (lambda: kernel.pivot_root("\0", "."), ValueError, "new_root"),
    (lambda: kernel.pivot_root(".", "\0"), ValueError, "put_old"),
    (lambda: kernel.open_tree(AT_FDCWD, "\0"), ValueError, "path"),
    (lambda: kernel.move_mount(AT_FDCWD, "\0", AT_FDCWD, ""), ValueError, "from_path"),
    (lambda: kernel.move_mount(AT_FDCWD, "", AT_FDCWD, "\0"), ValueError, "to_path"),
    (lambda: kernel.fsopen("\0"), ValueError, "fsname"),
    (lambda: kernel.fsopen(None), TypeError, "fsname"),
    (lambda: kernel.fspick(AT_FDCWD, "\0"), ValueError, "path"),
    (lambda: kernel.openat2(AT_FDCWD, "\0"), ValueError, "path"),
    (lambda: kernel.memfd_create("\0"), ValueError, "name"),
    (lambda: kernel.sethostname("a\0"), ValueError, "name"),
    (lambda: kernel.setdomainname(3), TypeError, "name"),
    (lambda: kernel.prctl_set_name("x" * 16), ValueError, "name"),
    (lambda: kernel.prctl_set_name("ä" * 8), ValueError, "name"),
    # flags and numbers
    (lambda: kernel.mount(None, "/x", None, 2**32), ValueError, "mountflags"),
    (lambda: kernel.mount(None, "/x", None, -1), ValueError, "mountflags"),
    (lambda: kernel.mount(None, "/x", None, 1.0), TypeError, "mountflags"),
    (lambda: kernel.mount(None, "/x", None, True), TypeError, "mountflags"),
    (lambda: kernel.umount("/x", 2**31), ValueError, "flags"),
    (lambda: kernel.open_tree(AT_FDCWD, "", 2**32), ValueError, "flags"),
    (lambda: kernel.move_mount(AT_FDCWD, "", AT_FDCWD, "", 2**32), ValueError, "flags"),
    (lambda: kernel.mount_setattr(AT_FDCWD, "", 2**32), ValueError, "flags"),
    (lambda: kernel.mount_setattr(AT_FDCWD, "", attr_set=HUGE), ValueError, "attr_set"),
    (lambda: kernel.mount_setattr(AT_FDCWD, "", attr_clr=-1), ValueError, "attr_clr"),
    (lambda: kernel.mount_setattr(AT_FDCWD, "", propagation=HUGE), ValueError, "propagation"),
    (lambda: kernel.mount_setattr(AT_FDCWD, "", attr_set=kernel.MOUNT_ATTR_IDMAP), ValueError, "userns_fd"),
    (lambda: kernel.mount_setattr(AT_FDCWD, "", userns_fd=3), ValueError, "userns_fd"),
    (
        lambda: kernel.open_tree_attr(AT_FDCWD, "", attr_set=kernel.MOUNT_ATTR_IDMAP, userns_fd=-1),
        ValueError,
        "userns_fd",
    ),
    (lambda: kernel.fsopen("tmpfs", 2**32), ValueError, "flags"),
    (lambda: kernel.fsmount(0, 2**32), ValueError, "flags"),
    (lambda: kernel.fsmount(0, 0, 2**32), ValueError, "attr_flags"),
    (lambda: kernel.fspick(AT_FDCWD, "", -1), ValueError, "flags"),
    (lambda: kernel.statmount(HUGE), ValueError, "mnt_id"),
    (lambda: kernel.statmount(1, HUGE), ValueError, "mask"),
    (lambda: kernel.statmount(1, mnt_ns_fd=0), ValueError, "mnt_ns_fd"),
    (lambda: kernel.statmount(1, mnt_ns_fd=3, mnt_fd=3), ValueError, "together"),
    (lambda: kernel.statmount(1, mnt_fd=3), ValueError, "STATMOUNT_BY_FD"),
    (lambda: kernel.statmount(1, flags=kernel.STATMOUNT_BY_FD), ValueError, "STATMOUNT_BY_FD"),
    (lambda: kernel.listmount(-1), ValueError, "mnt_id"),
    (lambda: kernel.listmount(count=0), ValueError, "count"),
    (lambda: kernel.listmount(count=1_000_001), ValueError, "count"),
    (lambda: kernel.listmount(mnt_ns_id=-1), ValueError, "mnt_ns_id"),
    (lambda: kernel.unshare(-1), ValueError, "flags"),
    (lambda: kernel.setns(0, 2**31), ValueError, "nstype"),
    (lambda: kernel.ns_get_pid_in_pidns(0, 0), ValueError, "pid"),
    (lambda: kernel.ns_get_pid_in_pidns(0, 2**31), ValueError, "pid"),
    (lambda: kernel.pidfd_open(0), ValueError, "pid"),
    (lambda: kernel.pidfd_open(2**32 + 1), ValueError, "pid"),
    (lambda: kernel.pidfd_send_signal(0, 65), ValueError, "sig"),
    (lambda: kernel.pidfd_send_signal(0, 9, value=2**31), ValueError, "value"),
    (lambda: kernel.pidfd_getfd(0, -1), ValueError, "targetfd"),
    (lambda: kernel.pidfd_get_namespace(0, 0xFF0B), ValueError, "namespace"),
    (lambda: kernel.pidfd_get_info(0, HUGE), ValueError, "mask"),
    (lambda: kernel.waitid(4, 1), ValueError, "idtype"),
    (lambda: kernel.waitid(kernel.P_PID, -1), ValueError, "id"),
    (lambda: kernel.waitid(kernel.P_PID, open), TypeError, "id"),
    (lambda: kernel.close_range(-1), ValueError, "first"),
    (lambda: kernel.close_range(5, 4), ValueError, "last"),
    (lambda: kernel.close_range(5, 2**32), ValueError, "last"),
    (lambda: kernel.openat2(AT_FDCWD, "x", HUGE), ValueError, "flags"),
    (lambda: kernel.openat2(AT_FDCWD, "x", 0, 0o10000), ValueError, "mode"),
    (lambda: kernel.openat2(AT_FDCWD, "x", resolve=-1), ValueError, "resolve"),
    (lambda: kernel.memfd_create("x", 2**32), ValueError, "flags"),
    (lambda: kernel.add_seals(0, 2**32), ValueError, "seals"),
    (lambda: kernel.prctl(2**31), ValueError, "option"),
    (lambda: kernel.prctl(kernel.PR_GET_DUMPABLE, HUGE), ValueError, "arg2"),
    (lambda: kernel.prctl(kernel.PR_GET_DUMPABLE, 0, 0, 0, -(2**63) - 1), ValueError, "arg5"),
    (lambda: kernel.prctl(kernel.PR_GET_PDEATHSIG, 1), ValueError, "no argument"),
    (lambda: kernel.setresuid(2**32 - 1, 0, 0), ValueError, "ruid"),
    (lambda: kernel.setresuid(0, -2, 0), ValueError, "euid"),
    (lambda: kernel.setresgid(0, 0, 2**32), ValueError, "sgid"),
    (lambda: kernel.setgroups([-1]), ValueError, "groups"),
    (lambda: kernel.setgroups(["0"]), TypeError, "groups"),
    (lambda: kernel.capget(-1), ValueError, "pid"),
    (lambda: kernel.capset(1 << 63, 0, 0), ValueError, "effective"),
    (lambda: kernel.capset(0, HUGE, 0), ValueError, "permitted"),
    (lambda: kernel.capset(0, 0, -1), ValueError, "inheritable"),
    # descriptors
    (lambda: kernel.open_tree(True, ""), TypeError, "dirfd"),
    (lambda: kernel.open_tree("3", ""), TypeError, "dirfd"),
    (lambda: kernel.openat2(2**31, "x"), ValueError, "dirfd"),
    (lambda: kernel.setns(2**32), ValueError, "fd"),
    # clone3: what a copy of the process cannot have
    (lambda: kernel.clone3(HUGE), ValueError, "flags"),
    (lambda: kernel.clone3(kernel.CLONE_VM), ValueError, "CloneFlags.VM"),
    (lambda: kernel.clone3(kernel.CLONE_THREAD), ValueError, "THREAD"),
    (lambda: kernel.clone3(kernel.CLONE_SIGHAND), ValueError, "SIGHAND"),
    (lambda: kernel.clone3(kernel.CLONE_SETTLS), ValueError, "SETTLS"),
    (lambda: kernel.clone3(kernel.CLONE_PARENT_SETTID), ValueError, "PARENT_SETTID"),
    (lambda: kernel.clone3(kernel.CLONE_CHILD_SETTID), ValueError, "CHILD_SETTID"),
    (lambda: kernel.clone3(kernel.CLONE_CHILD_CLEARTID), ValueError, "CHILD_CLEARTID"),
    (lambda: kernel.clone3(kernel.CLONE_PIDFD), ValueError, "pidfd=True"),
    (lambda: kernel.clone3(kernel.CLONE_INTO_CGROUP), ValueError, "cgroup"),
    (lambda: kernel.clone3(cgroup=-1), ValueError, "cgroup"),
    (lambda: kernel.clone3(exit_signal=65), ValueError, "exit_signal"),
    (lambda: kernel.clone3(set_tid=[0]), ValueError, "set_tid"),
    (lambda: kernel.clone3(set_tid=[2**31]), ValueError, "set_tid"),
    # fsconfig: each command takes what it takes
    (lambda: kernel.fsconfig(0, 9), ValueError, "FsconfigCommand"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_FLAG), ValueError, "key must be given"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_FLAG, "ro", "1"), ValueError, "value must be None"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_STRING, "size"), ValueError, "value must be given"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_STRING, "size", "1\0"), ValueError, "value"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_STRING, "a\0", "1"), ValueError, "key"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_STRING, "size", 1), TypeError, "value"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_STRING, "size", "1", 3), ValueError, "aux must be None"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_BINARY, "x", "text"), TypeError, "value"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_BINARY, "x", b""), ValueError, "length"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_FD, "x"), ValueError, "aux must be given"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_SET_FD, "x", None, 2**31), ValueError, "aux"),
    (lambda: kernel.fsconfig(0, kernel.FSCONFIG_CMD_CREATE, "x"), ValueError, "key must be None"),
]


@pytest.mark.parametrize(("call", "error", "names"), REFUSED)
def test_argument_that_the_kernel_would_misread_is_refused(call, error, names):
    with pytest.raises(error) as caught:
        call()
    assert names in str(caught.value)
    assert not isinstance(caught.value, OSError)


def test_object_with_fileno_stands_for_its_descriptor(tmp_path):
    directory = os.open(tmp_path, os.O_PATH)

    class Directory:
        def fileno(self):
            return directory

    (tmp_path / "file").write_text("x")
    fd = kernel.openat2(Directory(), "file")
    assert b"x" == os.read(fd, 2)
    os.close(fd)
    os.close(directory)


def test_capability_mask_is_the_bit_of_its_number():
    assert 1 << 21 == kernel.Capability.SYS_ADMIN.mask
    assert kernel.CAP_CHECKPOINT_RESTORE == kernel.CAP_LAST_CAP
