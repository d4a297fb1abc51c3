"""Ids, prctl, credentials and capabilities, against the kernel."""

import errno
import os
import signal
import threading

import harness
import pytest

from sandbox import primitives as kernel


def status_field(name, task="self"):
    with open(f"/proc/self/task/{task}/status" if task != "self" else "/proc/self/status") as stream:
        return next(line.split("\t", 1)[1].strip() for line in stream if line.startswith(name + ":"))


def test_ids_are_the_kernels():
    assert (os.getpid(), os.getppid()) == (kernel.getpid(), kernel.getppid())
    assert threading.get_native_id() == kernel.gettid()


def test_prctl_returns_what_the_kernel_returns_through_an_address():
    def check():
        assert 0 == kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGUSR2)
        assert signal.SIGUSR2 == kernel.prctl(kernel.PR_GET_PDEATHSIG)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 0)
        assert 0 == kernel.prctl(kernel.PR_GET_CHILD_SUBREAPER)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        assert 1 == kernel.prctl(kernel.PR_GET_CHILD_SUBREAPER)

    harness.in_child(check)


def test_prctl_reads_and_sets_by_value():
    def check():
        assert 0 == kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS)
        assert 0 == kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        assert (1, "1") == (kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS), status_field("NoNewPrivs"))

    harness.in_child(check)


def test_prctl_unknown_option_is_einval():
    with pytest.raises(OSError) as caught:
        kernel.prctl(0x7FFFFFFF)
    assert errno.EINVAL == caught.value.errno


def test_prctl_name_is_set_and_read():
    def check():
        kernel.prctl_set_name("fifteen_letters")
        assert b"fifteen_letters" == kernel.prctl_get_name()
        kernel.prctl_set_name(b"\xff")
        assert b"\xff" == kernel.prctl_get_name()

    harness.in_child(check)


@pytest.mark.needs_kernel(6, 4)
def test_prctl_auxv_is_that_of_proc():
    with open("/proc/self/auxv", "rb") as stream:
        expected = stream.read()
    assert expected.rstrip(b"\0") == kernel.prctl_get_auxv().rstrip(b"\0")


def test_own_ids_are_read():
    assert os.getresuid() == kernel.getresuid()
    assert os.getresgid() == kernel.getresgid()
    assert os.getgroups() == kernel.getgroups()


@pytest.mark.needs_root
def test_ids_change_in_every_thread():
    def check():
        tasks, started, gate = [], threading.Event(), threading.Event()

        def wait():
            tasks.append(kernel.gettid())
            started.set()
            gate.wait()

        thread = threading.Thread(target=wait)
        thread.start()
        started.wait()
        kernel.setgroups([7, 70000])
        kernel.setresgid(8, 9, 10)
        kernel.setresuid(4, 5, 6)
        for task in (tasks[0], "self"):
            assert "8\t9\t10\t9" == status_field("Gid", task)
            assert "4\t5\t6\t5" == status_field("Uid", task)
            assert "7 70000" == status_field("Groups", task)
        assert ((4, 5, 6), (8, 9, 10), [7, 70000]) == (
            kernel.getresuid(),
            kernel.getresgid(),
            kernel.getgroups(),
        )
        gate.set()
        thread.join()

    harness.in_child(check)


@pytest.mark.needs_root
def test_minus_one_leaves_an_id():
    def check():
        kernel.setresgid(-1, 9, -1)
        assert (0, 9, 0) == kernel.getresgid()
        kernel.setresuid(-1, 5, -1)
        assert (0, 5, 0) == kernel.getresuid()

    harness.in_child(check)


@pytest.mark.needs_user
def test_unprivileged_caller_is_told_eperm():
    for call in (
        lambda: kernel.setresuid(0, 0, 0),
        lambda: kernel.setresgid(0, 0, 0),
        lambda: kernel.setgroups([]),
    ):
        with pytest.raises(PermissionError):
            call()


def test_capget_is_what_proc_shows():
    sets = kernel.capget()
    for name, value in (("CapEff", sets.effective), ("CapPrm", sets.permitted), ("CapInh", sets.inheritable)):
        assert int(status_field(name), 16) == value
    parent = kernel.capget(os.getppid())
    with open(f"/proc/{os.getppid()}/status") as stream:
        expected = next(line.split()[1] for line in stream if line.startswith("CapPrm"))
    assert int(expected, 16) == parent.permitted


def test_capget_of_nobody_is_esrch():
    with pytest.raises(ProcessLookupError):
        kernel.capget(2**31 - 1)


@pytest.mark.needs_userns
def test_capset_keeps_what_it_is_given_in_both_halves():
    def check():
        harness.enter_namespaces(0)
        kept = kernel.CAP_SYS_ADMIN.mask | kernel.CAP_CHECKPOINT_RESTORE.mask
        kernel.capset(kernel.CAP_SYS_ADMIN.mask, kept, kept)
        assert kernel.CapabilitySets(kernel.CAP_SYS_ADMIN.mask, kept, kept) == kernel.capget()
        with pytest.raises(PermissionError):
            kernel.capset(0, kept | kernel.CAP_KILL.mask, 0)
        kernel.capset(0, 0, 0)
        assert kernel.CapabilitySets(0, 0, 0) == kernel.capget()

    harness.in_child(check)


@pytest.mark.needs_userns
def test_bounding_set_ambient_set_and_securebits_by_prctl():
    def check():
        harness.enter_namespaces(0)
        kernel.prctl(kernel.PR_CAPBSET_DROP, kernel.CAP_NET_RAW)
        assert [0, 1] == [kernel.prctl(kernel.PR_CAPBSET_READ, one) for one in (kernel.CAP_NET_RAW, kernel.CAP_KILL)]
        every = kernel.capget()
        kernel.capset(every.effective, every.permitted, kernel.CAP_KILL.mask)
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_RAISE, kernel.CAP_KILL)
        assert kernel.CAP_KILL.mask == int(status_field("CapAmb"), 16)
        bits = kernel.SECBIT_NOROOT | kernel.SECBIT_NOROOT_LOCKED | kernel.SECBIT_KEEP_CAPS
        kernel.prctl(kernel.PR_SET_SECUREBITS, bits)
        assert bits == kernel.prctl(kernel.PR_GET_SECUREBITS)

    harness.in_child(check)


def test_capability_table_ends_where_the_kernel_does_or_before():
    with open("/proc/sys/kernel/cap_last_cap") as stream:
        last = int(stream.read())
    for one in kernel.Capability:
        assert (one <= last) == (kernel.prctl(kernel.PR_CAPBSET_READ, one) in (0, 1))
