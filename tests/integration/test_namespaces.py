"""unshare, setns and the ioctls of namespaces, against the kernel."""

import errno
import os
import resource
import signal

import harness
import pytest

from sandbox import primitives as kernel

pytestmark = pytest.mark.needs_userns
NAMES = {
    "cgroup": kernel.CLONE_NEWCGROUP,
    "ipc": kernel.CLONE_NEWIPC,
    "mnt": kernel.CLONE_NEWNS,
    "net": kernel.CLONE_NEWNET,
    "uts": kernel.CLONE_NEWUTS,
}


def link(name):
    return os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.parametrize("name", NAMES)
def test_unshare_moves_the_caller_only_there(name):
    def check():
        harness.enter_namespaces(0)
        before = {one: link(one) for one in NAMES}
        kernel.unshare(NAMES[name])
        assert [name] == [one for one in NAMES if before[one] != link(one)]

    harness.in_child(check)


def test_pid_and_time_namespace_are_for_the_children():
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWPID | kernel.CLONE_NEWTIME)
        assert link("time_for_children") != link("time")
        pid = kernel.clone3()
        if pid == 0:
            os._exit(kernel.getpid())
        assert 1 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    harness.in_child(check)


def test_unknown_flag_is_einval():
    with pytest.raises(OSError) as caught:
        kernel.unshare(1 << 40)
    assert errno.EINVAL == caught.value.errno


@pytest.mark.needs_user
def test_unprivileged_unshare_without_user_namespace_is_eperm():
    with pytest.raises(PermissionError):
        kernel.unshare(kernel.CLONE_NEWNET)


def test_setns_by_namespace_descriptor_goes_back():
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWUTS)
        home, before = os.open("/proc/self/ns/uts", os.O_RDONLY), link("uts")
        kernel.unshare(kernel.CLONE_NEWUTS)
        with pytest.raises(OSError) as caught:
            kernel.setns(home, kernel.CLONE_NEWNET)
        assert errno.EINVAL == caught.value.errno
        assert before != link("uts")
        kernel.setns(home, kernel.CLONE_NEWUTS)
        assert before == link("uts")

    harness.in_child(check)


def test_setns_by_pidfd_joins_several_at_once():
    def check():
        harness.enter_namespaces(0)
        pid, pidfd = kernel.clone3(kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC, pidfd=True)
        if pid == 0:
            signal.pause()
        expected = [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("uts", "ipc")]
        assert expected != [link("uts"), link("ipc")]
        kernel.setns(pidfd, kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
        assert expected == [link("uts"), link("ipc")]
        kernel.pidfd_send_signal(pidfd, signal.SIGKILL)
        kernel.waitid(kernel.P_PIDFD, pidfd)

    harness.in_child(check)


def test_nstype_and_owner_of_a_user_namespace():
    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    assert kernel.CLONE_NEWUSER == kernel.ns_get_nstype(fd)
    os.close(fd)
    uid = os.geteuid()

    def check():
        kernel.unshare(kernel.CLONE_NEWUSER)
        with open("/proc/self/uid_map", "w") as stream:
            stream.write(f"5 {uid} 1")
        with open("/proc/self/ns/user") as stream:
            assert 65534 == kernel.ns_get_owner_uid(stream) or 5 == kernel.ns_get_owner_uid(stream)
        with open("/proc/self/ns/uts") as stream, pytest.raises(OSError) as caught:
            kernel.ns_get_owner_uid(stream)
        assert errno.EINVAL == caught.value.errno

    harness.in_child(check)


def test_userns_and_parent_lead_to_the_own_user_namespace():
    def check():
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.unshare(kernel.CLONE_NEWUTS)
        with open("/proc/self/ns/uts") as stream:
            owner = kernel.ns_get_userns(stream)
        assert os.path.samestat(os.stat("/proc/self/ns/user"), os.stat(owner))
        assert not os.get_inheritable(owner)
        with pytest.raises(PermissionError):  # outside of what the caller may see
            kernel.ns_get_parent(owner)
        with open("/proc/self/ns/uts") as stream, pytest.raises(OSError) as caught:
            kernel.ns_get_parent(stream)
        assert errno.EINVAL == caught.value.errno

    harness.in_child(check)


def test_parent_of_a_pid_namespace_is_the_callers():
    def check():
        harness.enter_namespaces(0)
        pid = kernel.clone3(kernel.CLONE_NEWPID)
        if pid == 0:
            signal.pause()
        inner = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
        parent = kernel.ns_get_parent(inner)
        assert os.path.samestat(os.stat("/proc/self/ns/pid"), os.stat(parent))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    harness.in_child(check)


def test_ioctl_on_something_else_is_enotty(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    for call in (kernel.ns_get_userns, kernel.ns_get_nstype, kernel.ns_get_mntns_id, kernel.ns_mnt_get_info):
        with pytest.raises(OSError) as caught:
            call(fd)
        assert errno.ENOTTY == caught.value.errno
    os.close(fd)


@pytest.mark.needs_kernel(6, 11)
def test_pids_are_translated_both_ways():
    def check():
        harness.enter_namespaces(0)
        pid = kernel.clone3(kernel.CLONE_NEWPID)
        if pid == 0:
            signal.pause()
        inner = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
        assert (pid, pid) == (kernel.ns_get_pid_from_pidns(inner, 1), kernel.ns_get_tgid_from_pidns(inner, 1))
        assert (1, 1) == (kernel.ns_get_pid_in_pidns(inner, pid), kernel.ns_get_tgid_in_pidns(inner, pid))
        with pytest.raises(ProcessLookupError):
            kernel.ns_get_pid_in_pidns(inner, os.getpid())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    harness.in_child(check)


@pytest.mark.needs_kernel(6, 12)
def test_mount_namespace_info_counts_its_mounts(tmp_path):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        with open("/proc/self/ns/mnt") as stream:
            before = kernel.ns_mnt_get_info(stream)
            kernel.mount("box", tmp_path, "tmpfs")
            after = kernel.ns_mnt_get_info(stream)
            assert (before.mnt_ns_id, before.nr_mounts + 1) == (after.mnt_ns_id, after.nr_mounts)
            assert before.mnt_ns_id == kernel.ns_get_mntns_id(stream)

    harness.in_child(check)


@pytest.mark.needs_root
@pytest.mark.needs_kernel(6, 12)
def test_next_and_previous_mount_namespace():
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        first = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        kernel.unshare(kernel.CLONE_NEWNS)
        fd, info = os.dup(first), kernel.ns_mnt_get_info(first)
        with open("/proc/self/ns/mnt") as stream:
            last = kernel.ns_mnt_get_info(stream)
        # Others may come and go meanwhile; each step goes up, and the own one is met.
        while info.mnt_ns_id != last.mnt_ns_id:
            following, found = kernel.ns_mnt_get_next(fd)
            os.close(fd)
            fd = following
            assert found.mnt_ns_id > info.mnt_ns_id
            assert not os.get_inheritable(fd)
            info = found
        _, back = kernel.ns_mnt_get_prev(fd)
        assert back.mnt_ns_id < last.mnt_ns_id

    harness.in_child(check)


@pytest.mark.needs_kernel(6, 18)
def test_id_of_any_namespace_is_its_own():
    ids = set()
    for name in ("uts", "ipc", "net", "user", "mnt"):
        with open(f"/proc/self/ns/{name}") as stream:
            ids.add(kernel.ns_get_id(stream))
            assert name != "mnt" or kernel.ns_get_id(stream) == kernel.ns_get_mntns_id(stream)
    assert 5 == len(ids)


@pytest.mark.needs_root
@pytest.mark.parametrize(
    "call",
    [
        "ns_get_userns",
        pytest.param("ns_mnt_get_next", marks=pytest.mark.needs_kernel(6, 12)),
        pytest.param("pidfd_get_namespace", marks=pytest.mark.needs_kernel(6, 11)),
    ],
)
def test_no_descriptor_left_raises_emfile(call):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        kernel.unshare(kernel.CLONE_NEWNS)  # so that there is a next one
        pidfd = kernel.pidfd_open(os.getpid())
        calls = {
            "ns_get_userns": lambda: kernel.ns_get_userns(fd),
            "ns_mnt_get_next": lambda: kernel.ns_mnt_get_next(fd),
            "pidfd_get_namespace": lambda: kernel.pidfd_get_namespace(pidfd, kernel.PIDFD_GET_UTS_NAMESPACE),
        }
        resource.setrlimit(resource.RLIMIT_NOFILE, (pidfd + 1, pidfd + 1))
        with pytest.raises(OSError) as caught:
            calls[call]()
        assert errno.EMFILE == caught.value.errno

    harness.in_child(check)
