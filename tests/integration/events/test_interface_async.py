"""What every asyncio twin does alike, under asyncio's own loop and under uvloop."""

import asyncio
import contextlib
import copy
import errno
import os
import select
import signal

import pytest
from event_kinds import KINDS, Kind, Pipe, Pipe_async, every_loop, in_loop, in_own_process

from sandbox.events import Eventfd_async, EventLike_async, Signalfd_async
from sandbox.primitives import sigqueue

try:
    import uvloop
except ImportError:
    uvloop = None

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


async def turns(count=3):
    """Let every other task run until it waits."""
    for _ in range(count):
        await asyncio.sleep(0)


@every_kind
@in_loop
async def test_get_returns_the_event_that_was_there(kind: Kind):
    async with kind.make_async() as one:
        kind.trigger(one)
        assert await one.get() is not None


@every_kind
@in_loop
async def test_get_waits_for_the_event(kind: Kind):
    async with kind.make_async() as one:
        task = asyncio.create_task(one.get())
        await turns()
        assert not task.done()
        kind.trigger(one)
        assert await asyncio.wait_for(task, 5) is not None


@every_kind
@in_loop
async def test_butter_spellings_get_events_too(kind: Kind):
    async with kind.make_async() as one:
        kind.trigger(one)
        event = await one.get_event()
        if kind.endless:
            kind.trigger(one)
        assert type(event) is type(await one.wait())
        if kind.endless:
            kind.trigger(one)
        assert type(event) is type(one.get_event_nowait())


@every_kind
@in_loop
async def test_get_nowait_without_event_raises_queue_empty(kind: Kind):
    async with kind.make_async() as one:
        with pytest.raises(asyncio.QueueEmpty):
            one.get_nowait()
        assert one.empty() is True
        assert 0 == one.qsize()
        kind.trigger(one)
        assert one.empty() is False
        assert 1 == one.qsize()
        assert one.get_nowait() is not None


@every_kind
@in_loop
async def test_cancelled_get_loses_no_event(kind: Kind):
    async with kind.make_async() as one:
        task = asyncio.create_task(one.get())
        await turns()
        task.cancel()
        kind.trigger(one)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(one.get(), 5) is not None


@every_kind
@in_loop
async def test_get_that_timed_out_leaves_the_next_event_to_others(kind: Kind):
    async with kind.make_async() as one:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await one.get()
        kind.trigger(one)
        assert await asyncio.wait_for(one.get(), 5) is not None


@every_kind
@in_loop
async def test_close_wakes_every_waiter_with_an_error(kind: Kind):
    one = kind.make_async()
    tasks = [asyncio.create_task(one.get()) for _ in range(3)]
    await turns()
    one.close()
    one.close()
    for task in tasks:
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            await asyncio.wait_for(task, 5)
    assert one.closed is True


@every_kind
@in_loop
async def test_closed_twin_refuses_as_files_do(kind: Kind):
    one = kind.make_async()
    one.close()
    for use in (one.fileno, one.get_nowait, one.qsize, one.empty):
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            use()
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        await one.get()
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        async with one:
            pass
    assert [] == [event async for event in one]
    assert "closed" in repr(one)


@every_kind
@in_loop
async def test_iteration_ends_when_closed(kind: Kind):
    one = kind.make_async()

    async def collect():
        return [event async for event in one]

    task = asyncio.create_task(collect())
    await turns()
    one.close()
    assert [] == await asyncio.wait_for(task, 5)


@every_kind
@in_loop
async def test_reader_is_removed_before_the_descriptor_is_closed(kind: Kind):
    one = kind.make_async()
    task = asyncio.create_task(one.get())
    await turns()
    number = one.fileno()
    one.close()
    with pytest.raises(ValueError):
        await task
    # The loop must know nothing of the number that the next file gets.
    assert not asyncio.get_running_loop().remove_reader(number)
    again = kind.make_async()
    task = asyncio.create_task(again.get())
    await turns()
    kind.trigger(again)
    assert await asyncio.wait_for(task, 5) is not None
    again.close()


@every_kind
@in_own_process
def test_second_loop_is_an_error(kind: Kind):
    one = kind.make_async()
    kind.trigger(one)

    async def get():
        return await one.get()

    assert asyncio.run(get()) is not None
    if kind.endless:
        kind.trigger(one)
    with pytest.raises(RuntimeError, match="different event loop"):
        asyncio.run(get())
    with contextlib.suppress(asyncio.QueueEmpty):
        one.get_nowait()
    one.close()


@every_kind
@in_own_process
def test_close_after_the_loop_was_closed_works(kind: Kind):
    one = kind.make_async()

    async def wait():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(one.get(), 0.001)

    asyncio.run(wait())
    one.close()
    assert one.closed is True


@every_kind
@in_own_process
def test_twin_without_a_loop_can_be_asked_and_closed(kind: Kind):
    one = kind.make_async()
    kind.trigger(one)
    assert one.get_nowait() is not None
    one.close()


@every_kind
@in_own_process
def test_pickling_and_copying_are_refused(kind: Kind):
    one = kind.make_async()
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.copy(one)
    one.close()


@every_kind
@pytest.mark.parametrize("maxsize", ["1", 1.0, None, True])
@in_own_process
def test_maxsize_that_is_no_int_is_a_type_error(kind: Kind, maxsize: object):
    if kind.name == "pidfd":
        return  # its child would be left
    with pytest.raises(TypeError, match="maxsize must be an int"):
        kind.make_async(maxsize=maxsize)


@in_loop
async def test_waiters_are_served_in_the_order_they_came():
    async with Pipe_async() as one:
        order = []

        async def wait(name):
            order.append((name, await one.get()))

        tasks = [asyncio.create_task(wait(name)) for name in "abcd"]
        await turns()
        one.trigger(b"\1\2")
        await asyncio.gather(*tasks[:2])
        one.trigger(b"\3")
        one.trigger(b"\4")
        await asyncio.gather(*tasks)
        assert [("a", 1), ("b", 2), ("c", 3), ("d", 4)] == order


@in_loop
async def test_get_that_comes_later_does_not_overtake_a_waiter():
    async with Pipe_async() as one:
        first = asyncio.create_task(one.get())
        await turns()
        one.trigger(b"\1")
        with pytest.raises(asyncio.QueueEmpty):
            one.get_nowait()
        one.trigger(b"\2")
        assert (1, 2) == (await first, await one.get())


@in_loop
async def test_get_cancelled_after_the_event_was_handed_over_gives_it_back():
    async with Pipe_async() as one:
        first, second = (asyncio.create_task(one.get()) for _ in range(2))
        await turns()
        one.trigger(b"\1")
        one._on_readable()  # hands the event to the first task, which has not run yet
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert 1 == await asyncio.wait_for(second, 5)
        assert one.empty()


@in_loop
async def test_error_handed_to_a_cancelled_get_goes_to_the_next():
    async with Pipe_async() as one:
        first = asyncio.create_task(one.get())
        await turns()
        one.source.error = OSError(errno.EIO, "x")
        one._on_readable()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(OSError, match="x"):
            await one.get()


@in_loop
async def test_random_cancellation_delivers_each_event_once_and_in_order():
    import random

    random.seed(7)
    got = []
    async with Pipe_async() as one:

        async def consume():
            while True:
                got.append(await one.get())

        tasks = [asyncio.create_task(consume()) for _ in range(5)]
        for number in range(200):
            one.trigger(bytes([number]))
            if random.random() < 0.5:
                victim = random.randrange(len(tasks))
                tasks[victim].cancel()
                await asyncio.gather(tasks[victim], return_exceptions=True)
                tasks[victim] = asyncio.create_task(consume())
            await turns(random.randrange(4))
        while len(got) < 200:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert list(range(200)) == sorted(got)


@in_loop
async def test_error_of_a_read_goes_to_one_waiter_and_reading_goes_on():
    async with Pipe_async() as one:
        first, second = (asyncio.create_task(one.get()) for _ in range(2))
        await turns()
        one.source.error = OSError(errno.EIO, "Input/output error", "pipe")
        one.trigger(b"\1")
        with pytest.raises(OSError) as caught:
            await asyncio.wait_for(first, 5)
        assert (errno.EIO, "pipe") == (caught.value.errno, caught.value.filename)
        assert 1 == await asyncio.wait_for(second, 5)


@in_loop
async def test_error_of_a_read_that_nobody_waits_for_is_kept_for_the_next_get():
    async with Pipe_async() as one:
        one.trigger(b"\1")
        assert 1 == await one.get()
        one.source.error = OSError(errno.EIO, "x")
        one.trigger(b"\2")
        await asyncio.sleep(0.01)  # the reader runs, and must not spin
        assert one.empty() is False
        with pytest.raises(OSError, match="x"):
            await one.get()
        assert 2 == await asyncio.wait_for(one.get(), 5)


@in_loop
async def test_bounded_queue_that_is_full_leaves_events_to_the_kernel():
    async with Pipe_async(maxsize=2) as one:
        assert 2 == one.maxsize
        one.trigger(b"\0")
        assert 0 == await one.get()
        for number in (1, 2, 3):
            one.trigger(bytes([number]))
            await asyncio.sleep(0.01)
        assert one.full() is True
        assert 2 == one.qsize()
        assert 1 == one.source.pending()
        assert [1, 2, 3] == [await one.get() for _ in range(3)]
        assert one.full() is False
        one.trigger(b"\4")
        assert 4 == await asyncio.wait_for(one.get(), 5)


@in_loop
async def test_unbounded_queue_empties_the_kernel_while_nobody_waits():
    async with Pipe_async() as one:
        one.trigger(b"\0")
        assert 0 == await one.get()
        one.trigger(b"\1\2\3")
        poll = select.poll()
        poll.register(one, select.POLLIN)
        while poll.poll(0):
            await asyncio.sleep(0.001)
        assert 3 == one.qsize()
        assert one.full() is False


@in_loop
async def test_events_of_one_read_beyond_maxsize_wait_behind_the_queue():
    async with Pipe_async(maxsize=2) as one:
        one.trigger(b"\1\2\3\4\5")
        assert 2 == one.qsize()
        assert [1, 2, 3, 4, 5] == [await one.get() for _ in range(5)]
        assert 0 == one.qsize()


@in_loop
async def test_kind_that_does_not_prefetch_leaves_events_to_the_kernel():
    async with Pipe_async(prefetch=False) as one:
        task = asyncio.create_task(one.get())
        await turns()
        one.trigger(b"\1")
        assert 1 == await asyncio.wait_for(task, 5)
        one.trigger(b"\2")
        await asyncio.sleep(0.01)
        assert 1 == one.source.pending()
        assert 2 == await one.get()


@in_loop
async def test_eventfd_adds_up_while_nobody_waits():
    async with Eventfd_async() as one:
        task = asyncio.create_task(one.get())
        await turns()
        one.increment(5)
        assert 5 == await task
        one.increment(2)
        await asyncio.sleep(0.01)
        one.increment(3)
        assert 5 == await one.get()


@in_loop
async def test_one_registration_serves_many_waits():
    loop = asyncio.get_running_loop()
    async with Pipe_async() as one:
        registered = []
        register = one._register
        one._register = lambda: (registered.append(1), register())
        for number in range(50):
            task = asyncio.create_task(one.get())
            await turns()
            one.trigger(bytes([number]))
            assert number == await task
        assert 1 == len(registered)
        assert loop is one._loop


@in_loop
async def test_flood_of_events_does_not_starve_other_tasks():
    async with Eventfd_async(2**32 - 1, semaphore=True) as one:
        taken = 0

        async def consume():
            nonlocal taken
            async for _ in one:
                taken += 1

        task = asyncio.create_task(consume())
        await turns(5)  # comes back only if the consumer gives way
        assert taken > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@in_loop
async def test_thousand_waiters_get_one_event_each():
    async with Pipe_async() as one:
        tasks = [asyncio.create_task(one.get()) for _ in range(1000)]
        await turns()
        one.trigger(bytes(250) * 4)
        assert [0] * 1000 == await asyncio.wait_for(asyncio.gather(*tasks), 10)


@in_loop
async def test_signals_and_their_values_arrive_in_order():
    async with Signalfd_async(signal.SIGRTMIN) as one:
        for value in range(70):
            sigqueue(os.getpid(), signal.SIGRTMIN, value)
        assert list(range(70)) == [(await one.get()).value for _ in range(70)]


@every_loop
@in_own_process
def test_forked_child_forgets_the_loop_and_leaves_the_parents_alone(loop):
    if loop == "uvloop" and uvloop is None:
        pytest.skip("needs uvloop")

    async def main():
        one = Pipe_async()
        task = asyncio.create_task(one.get())
        await turns()
        pid = os.fork()
        if pid == 0:
            # No loop, no waiter, no registration: the epoll instance is the parent's too.
            fine = one._loop is None and not one._waiters and not one._registered
            one.close()
            os._exit(0 if fine and one.closed else 1)
        assert (pid, 0) == os.waitpid(pid, 0)
        one.trigger(b"\7")
        assert 7 == await asyncio.wait_for(task, 5)
        one.close()

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@in_own_process
def test_forked_child_can_use_the_twin_in_a_loop_of_its_own():
    one = Pipe_async()

    async def get():
        return await asyncio.wait_for(one.get(), 5)

    one.trigger(b"\1\2")
    assert 1 == asyncio.run(get())
    pid = os.fork()
    if pid == 0:
        one.trigger(b"\3")
        os._exit(asyncio.run(get()))
    _, status = os.waitpid(pid, 0)
    assert 3 == os.waitstatus_to_exitcode(status)
    assert 2 == one.get_nowait()
    one.close()


@in_own_process
def test_twin_is_no_event_like_object_itself():
    one = Pipe_async()
    assert not hasattr(one, "read_event")
    assert not hasattr(one, "put")
    assert isinstance(one, EventLike_async)
    assert isinstance(one.source, Pipe)
    one.close()
