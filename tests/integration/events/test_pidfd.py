import asyncio
import errno
import os
import signal
import subprocess
import threading

import harness
import pytest
from event_kinds import in_own_process

from sandbox.events import Pidfd, Pidfd_async, PidfdEvent


def child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid


@pytest.mark.parametrize("status", [0, 1, 255])
def test_exit_of_a_child_is_the_event_and_reaps_it(status):
    pid = child(lambda: os._exit(status))
    with Pidfd(pid) as one:
        assert PidfdEvent(pid, status) == one.read_event(5)
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)


def test_signal_that_killed_the_child_is_negative():
    pid = child(signal.pause)
    with Pidfd(pid) as one:
        one.send_signal(signal.SIGKILL)
        assert -signal.SIGKILL == one.read_event(5).returncode


def test_exit_stays_and_iteration_ends_after_it():
    pid = child(lambda: os._exit(3))
    with Pidfd(pid) as one:
        expected = PidfdEvent(pid, 3)
        assert [expected] == list(one)
        assert [expected] == one.read_events()
        assert expected == one.read_event()


def test_reap_false_leaves_the_child_to_its_owner():
    process = subprocess.Popen(["/bin/sh", "-c", "exit 5"])
    with Pidfd(process.pid, reap=False) as one:
        assert 5 == one.read_event(5).returncode
    assert 5 == process.wait()


@pytest.mark.needs_kernel(6, 15)
def test_child_that_somebody_else_reaped_tells_its_status_all_the_same():
    pid = child(lambda: os._exit(9))
    with Pidfd(pid) as one:
        os.waitpid(pid, 0)
        assert PidfdEvent(pid, 9) == one.read_event(5)
        assert 9 << 8 == one.info()["exit_code"]


@in_own_process
def test_process_that_is_no_child_ends_without_a_status_until_it_is_reaped():
    # The grandchild's parent lives on and does not wait for it.
    harness.become_subreaper()
    read_end, write_end = os.pipe()

    def parent():
        grandchild = child(signal.pause)
        os.write(write_end, str(grandchild).encode())
        signal.pause()

    middle = child(parent)
    grandchild = int(os.read(read_end, 20))
    with Pidfd(grandchild) as one:
        with pytest.raises(TimeoutError):
            one.read_event(0)
        one.send_signal(signal.SIGTERM)
        assert PidfdEvent(grandchild, None) == one.read_event(5)
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    os.waitpid(grandchild, 0)
    os.close(read_end)
    os.close(write_end)


def test_running_process_has_no_event():
    with Pidfd(os.getpid(), nonblock=True) as one:
        assert [] == one.read_events()


def test_info_names_the_process():
    with Pidfd(os.getpid()) as one:
        info = one.info()
        assert (os.getpid(), os.getppid(), os.getuid()) == (info["pid"], info["ppid"], info["ruid"])


@in_own_process
def test_send_signal_carries_a_value():
    from sandbox.events import Signalfd

    with Signalfd(signal.SIGRTMIN) as signals, Pidfd(os.getpid()) as one:
        one.send_signal(signal.SIGRTMIN, -5)
        assert -5 == signals.read_event(5).value


def test_getfd_copies_a_descriptor():
    with open("/proc/self/status") as file, Pidfd(os.getpid()) as one:
        fd = one.getfd(file.fileno())
        try:
            assert os.path.sameopenfile(fd, file.fileno())
            assert os.get_inheritable(fd) is False
        finally:
            os.close(fd)


def test_process_that_is_gone_is_process_lookup_error():
    pid = child(lambda: None)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError) as caught:
        Pidfd(pid)
    assert errno.ESRCH == caught.value.errno


@pytest.mark.parametrize("pid", [0, -1, 2**31])
def test_pid_out_of_range_is_a_value_error(pid):
    with pytest.raises(ValueError, match="pid must be between"):
        Pidfd(pid)
    with pytest.raises(ValueError, match="pid must be between"):
        Pidfd_async(pid)


@pytest.mark.needs_kernel(6, 9)
@in_own_process
def test_end_of_a_thread_is_an_event():
    ids, ready, end = [], threading.Event(), threading.Event()

    def run():
        ids.append(threading.get_native_id())
        ready.set()
        end.wait(10)

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    with pytest.raises(OSError):
        Pidfd(ids[0])
    with Pidfd(ids[0], thread=True) as one:
        with pytest.raises(TimeoutError):
            one.read_event(0)
        end.set()
        assert ids[0] == one.read_event(5).pid
    thread.join()


@in_own_process
def test_twin_tells_everybody_who_waits():
    async def main():
        pid = child(signal.pause)
        async with Pidfd_async(pid) as one:
            assert pid == one.pid == one.info()["pid"]
            tasks = [asyncio.create_task(one.get()) for _ in range(3)]
            await asyncio.sleep(0)
            one.send_signal(signal.SIGTERM)
            expected = PidfdEvent(pid, -signal.SIGTERM)
            assert [expected] * 3 == await asyncio.wait_for(asyncio.gather(*tasks), 5)
            assert [expected] == [event async for event in one]

    asyncio.run(main())


@in_own_process
def test_twin_of_an_ended_process_does_not_keep_the_loop_busy():
    async def main():
        async with Pidfd_async(child(lambda: None)) as one:
            await asyncio.wait_for(one.get(), 5)
            await asyncio.sleep(0.01)
            assert one._registered is False

    asyncio.run(main())
