import asyncio
import errno
import os
import resource
import signal
import threading

import pytest
from event_kinds import in_own_process, signal_this_thread

from sandbox.events import Signalfd, Signalfd_async
from sandbox.primitives import (
    SFD_NONBLOCK,
    SIG_BLOCK,
    SIG_SETMASK,
    SIG_UNBLOCK,
    pthread_sigmask,
    rt_tgsigqueueinfo,
    signalfd,
    sigqueue,
)

RT = signal.SIGRTMIN


@in_own_process
def test_mask_given_to_the_constructor_counts():
    with Signalfd([signal.SIGUSR1, signal.SIGUSR2]) as one:
        os.kill(os.getpid(), signal.SIGUSR2)
        event = one.read_event(5)
        assert signal.SIGUSR2 == event.signal
        assert signal.Signals is type(event.signal)
        assert (os.getpid(), os.getuid(), 0) == (event.pid, event.uid, event.code)
        assert (signal.SIGUSR1 in one, signal.SIGINT in one) == (True, False)
        assert frozenset({signal.SIGUSR1, signal.SIGUSR2}) == one.signals


@in_own_process
def test_single_signal_number_is_a_mask_of_one():
    with Signalfd(signal.SIGUSR1) as one:
        assert {signal.SIGUSR1} == one.signals


@in_own_process
def test_real_time_signals_queue_with_their_values():
    with Signalfd(RT) as one:
        for value in (0, 1, -1, 2**31 - 1, -(2**31)):
            sigqueue(os.getpid(), RT, value)
        events = one.read_events()
        assert [0, 1, -1, 2**31 - 1, -(2**31)] == [event.value for event in events]
        assert {-1} == {event.code for event in events}  # SI_QUEUE
        assert RT == events[0].signal


@in_own_process
def test_standard_signals_coalesce():
    with Signalfd(signal.SIGUSR1) as one:
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert 1 == len(one.read_events())


@in_own_process
def test_one_read_takes_64_signals():
    with Signalfd(RT, nonblock=True) as one:
        for value in range(80):
            sigqueue(os.getpid(), RT, value)
        assert [64, 16, 0] == [len(one.read_events()) for _ in range(3)]


@in_own_process
def test_signal_directed_to_another_thread_is_invisible():
    with Signalfd(RT, nonblock=True) as one:
        ready, done = threading.Event(), threading.Event()
        ids = []

        def other():
            ids.append(threading.get_native_id())
            ready.set()
            done.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        ready.wait(10)
        rt_tgsigqueueinfo(os.getpid(), ids[0], RT, 5)
        assert [] == one.read_events()
        signal_this_thread(RT, 6)
        assert [6] == [event.value for event in one.read_events()]
        done.set()
        thread.join()


@in_own_process
def test_blocked_signal_that_is_ignored_is_readable_all_the_same():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with Signalfd(signal.SIGUSR1) as one:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.SIGUSR1 == one.read_event(5).signal


@in_own_process
def test_child_that_ends_fills_the_fields_of_sigchld():
    with Signalfd(signal.SIGCHLD) as one:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        event = one.read_event(5)
        os.waitpid(pid, 0)
        assert (pid, os.getuid(), 7, os.CLD_EXITED) == (event.pid, event.uid, event.status, event.code)
        assert (event.status, event.utime, event.stime, event.code) == (
            event.child_status,
            event.child_user_time,
            event.child_system_time,
            event.signal_code,
        )


@in_own_process
def test_fields_that_could_not_be_read_can_be():
    with Signalfd(RT) as one:
        signal_this_thread(RT)
        event = one.read_event(5)
        assert (0, 0, 0, 0) == (event.band, event.trapno, event.sigio_band, event.sigio_fd)


@in_own_process
def test_sigio_fills_descriptor_and_band():
    import fcntl

    read_end, write_end = os.pipe()
    with Signalfd(RT) as one:
        fcntl.fcntl(read_end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(read_end, fcntl.F_SETSIG, RT)
        fcntl.fcntl(read_end, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(write_end, b"x")
        event = one.read_event(5)
        assert read_end == event.fd
        assert event.band & 1  # POLLIN
    os.close(read_end)
    os.close(write_end)


@in_own_process
def test_constructor_blocks_and_close_gives_the_mask_back():
    pthread_sigmask(SIG_SETMASK, [signal.SIGUSR2])
    with Signalfd([signal.SIGUSR1, signal.SIGUSR2]):
        assert {signal.SIGUSR1, signal.SIGUSR2} == pthread_sigmask(SIG_BLOCK)
    assert {signal.SIGUSR2} == pthread_sigmask(SIG_BLOCK)


@in_own_process
def test_block_false_leaves_the_mask_alone():
    before = pthread_sigmask(SIG_BLOCK)
    with Signalfd(signal.SIGUSR1, block=False) as one:
        one.enable(signal.SIGUSR2)
        assert before == pthread_sigmask(SIG_BLOCK)
    assert before == pthread_sigmask(SIG_BLOCK)


@in_own_process
def test_close_in_another_thread_leaves_its_mask_alone():
    one = Signalfd(signal.SIGUSR1)
    pthread_sigmask(SIG_BLOCK, signal.SIGUSR2)
    masks = []

    def close():
        one.close()
        masks.append(pthread_sigmask(SIG_BLOCK))

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert [{signal.SIGUSR1, signal.SIGUSR2}] == masks


@in_own_process
def test_unread_signal_is_delivered_when_the_object_is_closed():
    got = []
    signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    with Signalfd(signal.SIGUSR1):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [] == got
    assert [signal.SIGUSR1] == got


@in_own_process
def test_enable_and_disable_change_what_arrives():
    with Signalfd(nonblock=True) as one:
        assert [] == one.read_events()
        one.enable(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [signal.SIGUSR1] == [event.signal for event in one.read_events()]
        one.disable(signal.SIGUSR1)
        assert signal.SIGUSR1 not in one
        assert signal.SIGUSR1 not in pthread_sigmask(SIG_BLOCK)


@in_own_process
def test_enable_all_takes_every_signal_that_can_be_caught():
    with Signalfd() as one:
        one.enable_all()
        assert 62 == len(one.signals)
        assert signal.SIGKILL not in one
        one.disable_all()
        assert frozenset() == one.signals
    assert set() == pthread_sigmask(SIG_BLOCK)


@pytest.mark.parametrize("face", [Signalfd, Signalfd_async])
@pytest.mark.parametrize("bad", [0, 65, -1, [signal.SIGTERM, 65], signal.SIGKILL, [signal.SIGSTOP]])
@in_own_process
def test_signal_that_cannot_arrive_is_a_value_error(face, bad):
    before = pthread_sigmask(SIG_BLOCK)
    with pytest.raises(ValueError, match="signal"):
        face(bad)
    assert before == pthread_sigmask(SIG_BLOCK)


@pytest.mark.parametrize("bad", ["TERM", ["TERM"], [1.0], [True], None])
@in_own_process
def test_signal_that_is_no_number_is_a_type_error(bad):
    with pytest.raises(TypeError):
        Signalfd(bad)


@in_own_process
def test_kernel_drops_sigkill_from_the_mask_silently():
    # Why Signalfd refuses it.
    fd = signalfd(-1, [signal.SIGKILL, signal.SIGUSR1], SFD_NONBLOCK)
    with open(f"/proc/self/fdinfo/{fd}") as stream:
        assert f"sigmask:\t{1 << (signal.SIGUSR1 - 1):016x}" in stream.read()
    os.close(fd)


@in_own_process
def test_twin_changes_its_signals_too():
    async def main():
        async with Signalfd_async(signal.SIGUSR1) as one:
            one.enable(RT)
            assert RT in one
            assert {signal.SIGUSR1, RT} == one.signals
            task = asyncio.create_task(one.get())
            await asyncio.sleep(0)
            sigqueue(os.getpid(), RT, 4)
            assert 4 == (await asyncio.wait_for(task, 5)).value
            one.disable(RT)
            assert {signal.SIGUSR1} == one.signals
        assert set() == pthread_sigmask(SIG_BLOCK)

    asyncio.run(main())


@in_own_process
def test_pthread_sigmask_returns_the_old_set():
    assert set() == pthread_sigmask(SIG_BLOCK, [signal.SIGUSR1, RT + 1])
    assert {signal.SIGUSR1, RT + 1} == pthread_sigmask(SIG_UNBLOCK, [RT + 1])
    assert {signal.SIGUSR1} == pthread_sigmask(SIG_SETMASK, [])
    assert set() == pthread_sigmask(SIG_SETMASK)


@in_own_process
def test_pthread_sigmask_raises():
    with pytest.raises(OSError) as caught:
        pthread_sigmask(99, [signal.SIGUSR1])
    assert errno.EINVAL == caught.value.errno


@in_own_process
def test_pthread_sigmask_never_blocks_the_c_librarys_own_signals():
    pthread_sigmask(SIG_SETMASK, range(1, 65))
    blocked = pthread_sigmask(SIG_SETMASK, [])
    assert 60 == len(blocked)
    assert {32, 33, signal.SIGKILL, signal.SIGSTOP}.isdisjoint(blocked)


@in_own_process
def test_sigqueue_refused_by_the_kernel_keeps_its_errno():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        sigqueue(pid, RT)
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]))
    pthread_sigmask(SIG_BLOCK, RT)
    with pytest.raises(BlockingIOError) as caught:
        sigqueue(os.getpid(), RT)
    assert errno.EAGAIN == caught.value.errno


@pytest.mark.parametrize(
    ("pid", "number", "value"),
    [(0, 1, 0), (-1, 1, 0), (1, 65, 0), (1, -1, 0), (1, 1, 2**31), (1, 1, -(2**31) - 1)],
)
def test_sigqueue_out_of_range_is_a_value_error(pid, number, value):
    with pytest.raises(ValueError, match="must be between"):
        sigqueue(pid, number, value)


@in_own_process
def test_primitive_signalfd_changes_the_set_of_one():
    pthread_sigmask(SIG_BLOCK, RT)
    fd = signalfd(-1, (), SFD_NONBLOCK)
    sigqueue(os.getpid(), RT)
    with pytest.raises(BlockingIOError):
        os.read(fd, 128)
    assert fd == signalfd(fd, [RT])
    assert 128 == len(os.read(fd, 128))
    with open("/dev/null") as file, pytest.raises(OSError) as caught:
        signalfd(file, [RT])
    assert errno.EINVAL == caught.value.errno
    os.close(fd)
