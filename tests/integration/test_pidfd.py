"""pidfd calls, their ioctls and waitid, against the kernel."""

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal

import harness
import pytest

from sandbox import primitives as kernel


@pytest.fixture
def child():
    """A child that waits for signals, and its pidfd."""
    pid, pidfd = kernel.clone3(pidfd=True)
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        while True:
            signal.pause()
    yield pid, pidfd
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # the test may have done it
        kernel.pidfd_send_signal(pidfd, signal.SIGKILL)
        kernel.waitid(kernel.P_PIDFD, pidfd)
    os.close(pidfd)


def test_pidfd_open_is_close_on_exec_and_becomes_readable_at_the_end(child):
    fd = kernel.pidfd_open(child[0])
    assert not os.get_inheritable(fd)
    assert [] == select.select([fd], [], [], 0)[0]
    kernel.pidfd_send_signal(fd, signal.SIGKILL)
    assert [fd] == select.select([fd], [], [], 10)[0]
    os.close(fd)


def test_pidfd_open_of_nobody_is_esrch(child):
    pid, pidfd = child
    kernel.pidfd_send_signal(pidfd, signal.SIGKILL)
    kernel.waitid(kernel.P_PIDFD, pidfd)
    with pytest.raises(ProcessLookupError):
        kernel.pidfd_open(pid)
    with pytest.raises(ProcessLookupError):
        kernel.pidfd_send_signal(pidfd, 0)


def test_nonblocking_pidfd_does_not_wait(child):
    fd = kernel.pidfd_open(child[0], kernel.PIDFD_NONBLOCK)
    with pytest.raises(BlockingIOError):
        kernel.waitid(kernel.P_PIDFD, fd)
    os.close(fd)


@pytest.mark.needs_kernel(6, 9)
def test_thread_pidfd_reaches_a_thread():
    fd = kernel.pidfd_open(kernel.gettid(), kernel.PIDFD_THREAD)
    kernel.pidfd_send_signal(fd, 0, flags=kernel.PIDFD_SIGNAL_THREAD)
    kernel.pidfd_send_signal(fd, 0, flags=kernel.PIDFD_SIGNAL_THREAD_GROUP)
    os.close(fd)


@pytest.mark.needs_kernel(6, 15)
def test_self_needs_no_descriptor():
    def check():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        for target in (kernel.PIDFD_SELF, kernel.PIDFD_SELF_PROCESS):
            kernel.pidfd_send_signal(target, signal.SIGUSR1)
            assert os.getpid() == signal.sigtimedwait([signal.SIGUSR1], 5).si_pid

    harness.in_child(check)


@pytest.mark.parametrize("value", [0, 7, -1, 2**31 - 1, -(2**31)])
def test_value_travels_with_the_signal(value):
    def check():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
        fd = kernel.pidfd_open(os.getpid())
        mask = (1 << (signal.SIGRTMIN - 1)).to_bytes(128, "little")
        watch = ctypes.CDLL(None).signalfd(-1, mask, 0)
        kernel.pidfd_send_signal(fd, signal.SIGRTMIN, value)
        info = os.read(watch, 128)
        fields = [int.from_bytes(info[at : at + 4], "little", signed=True) for at in (0, 8, 12, 16, 44)]
        # ssi_signo, ssi_code SI_QUEUE, ssi_pid, ssi_uid, ssi_int
        assert [signal.SIGRTMIN, -1, os.getpid(), os.getuid(), value] == fields

    harness.in_child(check)


def test_signal_without_value_is_as_kill_sends_it():
    def check():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        fd = kernel.pidfd_open(os.getpid())
        kernel.pidfd_send_signal(fd, signal.SIGUSR1)
        info = signal.sigwaitinfo([signal.SIGUSR1])
        assert (0, os.getpid(), os.getuid()) == (info.si_code, info.si_pid, info.si_uid)

    harness.in_child(check)


def test_getfd_copies_a_descriptor_of_the_child():
    ready, done = os.pipe()
    pid, pidfd = kernel.clone3(pidfd=True)
    if pid == 0:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        fd = kernel.memfd_create("theirs")
        os.write(fd, b"secret")
        os.write(done, str(fd).encode())
        signal.pause()
    number = int(os.read(ready, 20))
    copy = kernel.pidfd_getfd(pidfd, number)
    assert not os.get_inheritable(copy)
    assert b"secret" == os.pread(copy, 10, 0)
    with pytest.raises(OSError) as caught:
        kernel.pidfd_getfd(pidfd, 500)
    assert errno.EBADF == caught.value.errno
    kernel.pidfd_send_signal(pidfd, signal.SIGKILL)
    kernel.waitid(kernel.P_PIDFD, pidfd)
    for fd in (ready, done, pidfd, copy):
        os.close(fd)


@pytest.mark.needs_user
def test_getfd_of_another_users_process_is_eperm():
    others = (int(name) for name in os.listdir("/proc") if name.isdigit())
    pid = next((pid for pid in others if os.stat(f"/proc/{pid}").st_uid != os.getuid()), None)
    if pid is None:
        pytest.skip("no process of another user is visible")
    fd = kernel.pidfd_open(pid)
    try:
        with pytest.raises(PermissionError):
            kernel.pidfd_getfd(fd, 0)
    finally:
        os.close(fd)


@pytest.mark.needs_kernel(6, 13)
def test_info_of_a_running_process(child):
    pid, pidfd = child
    info = kernel.pidfd_get_info(pidfd)
    assert (pid, pid, os.getpid()) == (info.pid, info.tgid, info.ppid)
    uid, gid = os.getuid(), os.getgid()
    assert [uid] * 4 == [info.ruid, info.euid, info.suid, info.fsuid]
    assert [gid] * 4 == [info.rgid, info.egid, info.sgid, info.fsgid]
    assert info.exit_code is None
    assert kernel.PidfdInfoMask.PID in info.mask


@pytest.mark.needs_kernel(6, 15)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_info_keeps_the_exit_status_after_the_wait(child, number):
    _, pidfd = child
    kernel.pidfd_send_signal(pidfd, number)
    kernel.waitid(kernel.P_PIDFD, pidfd)
    info = kernel.pidfd_get_info(pidfd)
    assert -number == os.waitstatus_to_exitcode(info.exit_code)
    assert info.pid is None
    with pytest.raises(ProcessLookupError):
        kernel.pidfd_get_info(pidfd, kernel.PIDFD_INFO_PID)


@pytest.mark.needs_kernel(6, 11)
@pytest.mark.parametrize("which", list(kernel.PidfdNamespace))
def test_namespace_is_that_of_the_process(child, which):
    pid, pidfd = child
    name = which.name.lower()
    fd = kernel.pidfd_get_namespace(pidfd, which)
    assert os.path.samestat(os.stat(f"/proc/{pid}/ns/{name}"), os.stat(fd))
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_waitid_tells_exit_stop_and_continue(child):
    pid, pidfd = child
    stopped = kernel.WSTOPPED | kernel.WCONTINUED | kernel.WEXITED
    assert kernel.waitid(kernel.P_PIDFD, pidfd, stopped | kernel.WNOHANG) is None
    for number, code in (
        (signal.SIGSTOP, os.CLD_STOPPED),
        (signal.SIGCONT, os.CLD_CONTINUED),
        (signal.SIGKILL, os.CLD_KILLED),
    ):
        kernel.pidfd_send_signal(pidfd, number)
        result = kernel.waitid(kernel.P_PID, pid, stopped)
        assert (pid, os.getuid(), signal.SIGCHLD, number, code) == (
            result.pid,
            result.uid,
            result.signo,
            result.status,
            result.code,
        )


def test_waitid_nowait_leaves_the_child(child):
    _, pidfd = child
    kernel.pidfd_send_signal(pidfd, signal.SIGKILL)
    first = kernel.waitid(kernel.P_PIDFD, pidfd, kernel.WEXITED | kernel.WNOWAIT)
    assert first == kernel.waitid(kernel.P_PIDFD, pidfd)
    with pytest.raises(ChildProcessError):
        kernel.waitid(kernel.P_PIDFD, pidfd)


def test_waitid_usage_is_the_childs_own():
    pid = kernel.clone3()
    if pid == 0:
        block = bytearray(64 << 20)
        while sum(os.times()[:2]) < 0.05:
            block[-1] = 1
        os._exit(0)
    usage = kernel.waitid(kernel.P_ALL, 0).rusage
    assert isinstance(usage, resource.struct_rusage)
    assert usage.ru_utime + usage.ru_stime >= 0.04
    assert usage.ru_maxrss >= 64 << 10


def test_waitid_runs_python_handlers_and_goes_on():
    def check():
        main = kernel.pidfd_open(os.getpid())
        caught = []
        gate, opened = os.pipe()
        signal.signal(signal.SIGUSR1, lambda *_: (caught.append(1), os.write(opened, b"x")))
        pid = kernel.clone3()
        if pid == 0:
            kernel.pidfd_send_signal(main, signal.SIGUSR1)
            os.read(gate, 1)  # only the handler lets the child end
            os._exit(5)
        assert 5 == kernel.waitid(kernel.P_PID, pid).status
        assert [1] == caught

    harness.in_child(check)


def sleeps(pid):
    with open(f"/proc/{pid}/stat") as stream:
        return stream.read().rpartition(") ")[2][0] == "S"


def test_handler_whose_own_call_fails_does_not_spoil_the_wait():
    def check():
        main = kernel.pidfd_open(os.getpid())
        gate, opened = os.pipe()

        def handler(*_):
            with pytest.raises(FileNotFoundError):
                kernel.openat2(kernel.AT_FDCWD, "/nope/nope")
            os.write(opened, b"x")

        signal.signal(signal.SIGUSR1, handler)
        pid = kernel.clone3()
        if pid == 0:
            while not sleeps(os.getppid()):
                pass
            kernel.pidfd_send_signal(main, signal.SIGUSR1)
            os.read(gate, 1)
            os._exit(5)
        assert 5 == kernel.waitid(kernel.P_PID, pid).status

    harness.in_child(check)


def test_handler_that_raises_ends_the_wait(child):
    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Interrupted):
            kernel.waitid(kernel.P_PIDFD, child[1])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_getfd"])
def test_no_descriptor_left_raises_emfile(call):
    def check():
        fd = kernel.pidfd_open(os.getpid())
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, fd + 1))
        calls = {
            "pidfd_open": lambda: kernel.pidfd_open(os.getpid()),
            "pidfd_getfd": lambda: kernel.pidfd_getfd(fd, fd),
        }
        with pytest.raises(OSError) as caught:
            calls[call]()
        assert errno.EMFILE == caught.value.errno

    harness.in_child(check)
