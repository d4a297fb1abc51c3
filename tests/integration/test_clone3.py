"""clone3 copies the process as os.fork does: the child's interpreter is whole."""

import errno
import gc
import os
import resource
import signal
import threading
import time

import harness
import pytest

from sandbox import primitives as kernel


def in_copy(function, **options):
    """Run a function in a copy of the process and return its exit status; a failure is 255."""
    flags = options.pop("flags", 0)
    pid = kernel.clone3(flags, **options)
    if pid == 0:
        code = 255
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_returns_zero_in_the_child_and_its_pid_in_the_parent():
    read_end, write_end = os.pipe()
    pid = kernel.clone3()
    if pid == 0:
        os.write(write_end, str((os.getpid(), os.getppid())).encode())
        os._exit(0)
    os.close(write_end)
    assert str((pid, os.getpid())).encode() == os.read(read_end, 100)
    os.close(read_end)
    assert (pid, 0) == os.waitpid(pid, 0)


def test_pidfd_is_of_the_child_and_close_on_exec():
    pid, pidfd = kernel.clone3(pidfd=True)
    if pid == 0:
        os._exit(7 if pidfd == -1 else 8)
    assert not os.get_inheritable(pidfd)
    result = kernel.waitid(kernel.P_PIDFD, pidfd)
    assert (pid, 7, os.CLD_EXITED) == (result.pid, result.status, result.code)
    os.close(pidfd)


def test_fork_hooks_of_python_run():
    calls = []
    os.register_at_fork(
        before=lambda: calls.append("before"),
        after_in_parent=lambda: calls.append("parent"),
        after_in_child=lambda: calls.append("child"),
    )
    status = in_copy(lambda: 0 if calls == ["before", "child"] else 1)
    assert (0, ["before", "parent"]) == (status, calls)


def test_failed_call_runs_the_parents_hooks_and_keeps_errno():
    calls = []
    os.register_at_fork(after_in_parent=lambda: calls.append("parent") or os.stat("/"))
    with pytest.raises(OSError) as caught:
        kernel.clone3(kernel.CLONE_PARENT)  # with an exit signal
    assert (errno.EINVAL, ["parent"]) == (caught.value.errno, calls)


def test_child_can_start_threads_and_collect_garbage():
    def work():
        assert threading.main_thread() is threading.current_thread()
        assert [threading.current_thread()] == threading.enumerate()
        done = []
        threads = [threading.Thread(target=done.append, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        return len(done)

    assert 4 == in_copy(work)


def test_thread_id_in_the_c_library_is_the_childs():
    # Made from the id that the C library remembers: of a thread that is not there it is EINVAL.
    def work():
        clock = time.pthread_getcpuclockid(threading.get_ident())
        before = time.clock_gettime(clock)
        while time.clock_gettime(clock) - before < 0.001:
            pass
        return 0

    assert 0 == in_copy(work)


def test_child_handles_signals():
    def work():
        caught = []
        signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
        signal.raise_signal(signal.SIGUSR1)
        return len(caught)

    assert 1 == in_copy(work)


def test_threads_that_allocate_meanwhile_do_not_harm():
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            [bytearray(100) for _ in range(100)]

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert [3] * 50 == [in_copy(lambda: 3) for _ in range(50)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_copy_made_in_a_thread_has_it_as_its_main_thread():
    statuses = []

    def start():
        statuses.append(in_copy(lambda: int(threading.main_thread() is threading.current_thread())))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert [1] == statuses


def test_exit_signal_zero_sends_none():
    def check():
        received = []
        signal.signal(signal.SIGCHLD, lambda *_: received.append(1))
        pid = kernel.clone3(exit_signal=0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0x80000000 - 2**32)  # __WCLONE: children without SIGCHLD are not waited for otherwise
        assert [] == received
        assert 0 == in_copy(lambda: 0)
        assert [1] == received

    harness.in_child(check)


def test_vfork_lets_the_child_go_first():
    order = []
    read_end, write_end = os.pipe()
    pid = kernel.clone3(kernel.CLONE_VFORK)
    if pid == 0:
        os.write(write_end, b"child")
        os._exit(0)
    os.set_blocking(read_end, False)
    order.append(os.read(read_end, 10))
    os.waitpid(pid, 0)
    os.close(read_end)
    os.close(write_end)
    assert [b"child"] == order


def test_clear_sighand_resets_handlers():
    def check():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        assert -signal.SIGUSR1 == in_copy(
            lambda: os.kill(os.getpid(), signal.SIGUSR1) or 0, flags=kernel.CLONE_CLEAR_SIGHAND
        )
        assert 0 == in_copy(lambda: os.kill(os.getpid(), signal.SIGUSR1) or 0)

    harness.in_child(check)


@pytest.mark.needs_userns
def test_new_pid_namespace_gives_the_pid_asked_for():
    def check():
        harness.enter_namespaces(0)
        assert 1 == in_copy(os.getpid, flags=kernel.CLONE_NEWPID)
        assert 1 == in_copy(os.getpid, flags=kernel.CLONE_NEWPID, set_tid=[1])
        with pytest.raises(OSError) as caught:
            kernel.clone3(kernel.CLONE_NEWPID, set_tid=[2])  # the first must be 1
        assert errno.EINVAL == caught.value.errno

    harness.in_child(check)


@pytest.mark.needs_userns
def test_taken_pid_is_eexist():
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWPID)

        def inside():
            with pytest.raises(FileExistsError):
                kernel.clone3(set_tid=[1])
            return 17 if 99 == in_copy(lambda: 99 if os.getpid() == 99 else 0, set_tid=[99]) else 1

        assert 17 == in_copy(inside)

    harness.in_child(check)


@pytest.mark.needs_root
def test_child_starts_in_the_cgroup():
    with open("/proc/self/mounts") as stream:
        mounts = [line.split() for line in stream]
    root = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if root is None:
        pytest.skip("needs a mounted cgroup v2")
    group = f"{root}/sandbox-test-{os.getpid()}"
    os.mkdir(group)
    try:
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)

        def work():
            with open("/proc/self/cgroup") as stream:
                return int(f"0::/{os.path.basename(group)}\n" in stream.read())

        assert 1 == in_copy(work, cgroup=fd)
        os.close(fd)
    finally:
        os.rmdir(group)


def test_cgroup_that_is_none_is_refused(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        kernel.clone3(cgroup=fd)
    assert errno.EBADF == caught.value.errno
    os.close(fd)


def test_no_descriptor_left_for_the_pidfd_raises_emfile_and_leaves_no_child():
    def check():
        fd = os.open("/", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, fd + 1))
        with pytest.raises(OSError) as caught:
            kernel.clone3(pidfd=True)
        assert errno.EMFILE == caught.value.errno
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)

    harness.in_child(check)
