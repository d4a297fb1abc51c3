"""Aio_async: completions as an asyncio queue, on both loops and both backends."""

import asyncio
import errno
import os

import pytest

from sandbox.errors import UnsupportedError
from sandbox.events import Aio_async

BLOCK = 4096
try:
    import uvloop
except ImportError:
    uvloop = None
else:
    uvloop.new_event_loop().close()  # what libuv opens once in a process is no leak of the first test


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    if request.param == "asyncio":
        return asyncio.run
    if uvloop is None:
        pytest.skip("needs uvloop")

    def run_on_uvloop(coroutine):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(coroutine)

    return run_on_uvloop


@pytest.fixture(params=["io_uring", "linux_aio"])
def make(request):
    def make(*args, **kwargs):
        try:
            return Aio_async(*args, backend=request.param, **kwargs)
        except UnsupportedError as error:
            pytest.skip(str(error))

    return make


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([number]) * BLOCK for number in range(64)))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_queued_reads_are_submitted_by_the_loop_and_come_to_a_waiter(run, make, file):
    async def main():
        async with make() as aio:
            waiting = asyncio.ensure_future(aio.get())
            await asyncio.sleep(0)  # it waits now, with nothing queued
            buffers = [bytearray(BLOCK) for _ in range(64)]
            for number, buffer in enumerate(buffers):
                aio.read(file, buffer, number * BLOCK, tag=number)
            events = [await asyncio.wait_for(waiting, 10)]
            events += [await asyncio.wait_for(aio.get(), 10) for _ in range(63)]
            assert {BLOCK} == {event.result for event in events}
            for event in events:
                assert bytes([event.tag]) * BLOCK == bytes(buffers[event.tag])
            assert 0 == aio.pending()
            assert aio.empty()

    run(main())


def test_direct_reads_wake_the_loop(run, make, tmp_path, file):
    from sandbox.events import aligned_buffer

    async def main():
        fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
        try:
            async with make() as aio:
                buffers = [aligned_buffer(BLOCK) for _ in range(64)]
                for number, buffer in enumerate(buffers):
                    aio.read(fd, buffer, number * BLOCK, tag=number)
                async with asyncio.timeout(30):
                    for _ in range(64):
                        event = await aio.get()
                        assert bytes([event.tag]) * BLOCK == bytes(buffers[event.tag])
        finally:
            os.close(fd)

    run(main())


def test_write_fsync_and_errors_are_completions(run, make, file):
    async def main():
        async with make() as aio:
            aio.write(file, [b"ab", b"cd"], 0)
            assert 4 == (await aio.get()).result
            request = aio.fsync(file, tag="synced")
            assert (request, "synced", 0, None) == await aio.get()
            aio.read(1_000_000, bytearray(1), 0)
            assert errno.EBADF == (await aio.get()).error.errno

    run(main())
    assert b"abcd" == os.pread(file, 4, 0)


def test_cancelled_get_loses_no_completion(run, make, file):
    async def main():
        async with make() as aio:
            waiting = asyncio.ensure_future(aio.get())
            await asyncio.sleep(0)
            request = aio.read(file, bytearray(1), 0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert request == (await asyncio.wait_for(aio.get(), 10)).request

    run(main())


def test_cancel_of_a_queued_write_is_never_carried_out(run, make, file):
    async def main():
        async with make() as aio:
            request = aio.write(file, b"never", 0)
            assert aio.cancel(request)
            assert errno.ECANCELED == (await aio.get()).error.errno

    run(main())
    assert bytes(5) == os.pread(file, 5, 0)


def test_full_queue_leaves_completions_to_the_kernel_and_depth_pushes_back(run, make, file):
    async def main():
        async with make(8, maxsize=2) as aio:
            for round_ in range(3):
                for _ in range(8):
                    aio.read(file, bytearray(1), 0, tag=round_)
                with pytest.raises(BlockingIOError):
                    aio.read(file, bytearray(1), 0)
                async with asyncio.timeout(10):
                    assert [round_] * 8 == [(await aio.get()).tag for _ in range(8)]

    run(main())


def test_close_wakes_who_waits_and_ends_the_iteration(run, make):
    async def main():
        aio = make()
        seen = []

        async def consume():
            seen.extend([event async for event in aio])

        consumer = asyncio.ensure_future(consume())
        waiting = asyncio.ensure_future(aio.get())
        await asyncio.sleep(0)
        aio.close()
        with pytest.raises(ValueError, match="closed file"):
            await waiting
        await asyncio.wait_for(consumer, 10)
        assert [] == seen
        with pytest.raises(ValueError, match="closed file"):
            aio.read(0, bytearray(1), 0)

    run(main())


def test_close_with_requests_running_lets_go_of_the_buffers(run, make, pipe):
    async def main():
        aio = make()
        buffer = bytearray(5)
        aio.read(pipe[0], buffer, 0)
        await asyncio.sleep(0)
        aio.close()
        buffer.extend(b"x")
        aio.close()

    run(main())


def test_read_outside_of_a_loop_is_refused(make, file):
    aio = make()
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.read(file, bytearray(1), 0)
    aio.close()


def test_many_tasks_share_one_queue(run, make, file):
    async def main():
        async with make(16) as aio:
            waiting = {}

            async def dispatch():
                async for event in aio:
                    waiting.pop(event.request).set_result(event)

            async def read(number):
                buffer = bytearray(BLOCK)
                while True:
                    try:
                        request = aio.read(file, buffer, number * BLOCK)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0)
                future = waiting[request] = asyncio.get_running_loop().create_future()
                event = await future
                assert (BLOCK, bytes([number]) * BLOCK) == (event.result, bytes(buffer))

            dispatcher = asyncio.ensure_future(dispatch())
            async with asyncio.timeout(30):
                await asyncio.gather(*(read(number) for number in range(64)))
            aio.close()
            await dispatcher

    run(main())
