"""Aio reads, writes, syncs, cancels and tells, on io_uring and on Linux AIO."""

import errno
import gc
import hashlib
import os
import select
import threading
import warnings

import pytest
from aio_queues import BACKENDS, BLOCK, collect, make, numbered_blocks

from sandbox.events import aligned_buffer


@pytest.fixture(params=BACKENDS)
def aio(request):
    with make(request.param) as queue:
        yield queue


@pytest.fixture
def uring():
    with make("io_uring") as queue:
        yield queue


@pytest.fixture
def file(tmp_path):
    fd = numbered_blocks(tmp_path / "file")
    yield fd
    os.close(fd)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


# ── reading and writing ───────────────────────────────────────────────────────────────────────────────────


def test_batch_of_reads_fills_every_buffer(aio, file):
    buffers = {aio.read(file, (buffer := bytearray(BLOCK)), n * BLOCK, tag=n): buffer for n in range(64)}
    events = collect(aio, 64)
    assert set(buffers) == set(events)
    for number, event in events.items():
        assert (BLOCK, None) == (event.result, event.error)
        assert bytes([event.tag]) * BLOCK == bytes(buffers[number])
    assert 0 == aio.pending()


def test_scattered_read_and_gathered_write_keep_the_order_of_buffers(aio, file):
    aio.write(file, [b"one", bytearray(b"two"), memoryview(b"three")], BLOCK - 5)
    assert 11 == aio.read_event(10).result
    buffers = [bytearray(5), bytearray(1), bytearray(5), bytearray(1)]
    aio.read(file, buffers, BLOCK - 5)
    assert 12 == aio.read_event(10).result
    assert [b"onetw", b"o", b"three", b"\1"] == [bytes(one) for one in buffers]


def test_thousand_buffers_in_one_request(aio, file):
    buffers = [bytearray(64) for _ in range(1024)]
    aio.read(file, buffers, 0)
    assert 65536 == aio.read_event(10).result
    assert os.pread(file, 65536, 0) == b"".join(buffers)


def test_fsync_completes_with_zero(aio, file):
    aio.write(file, b"x", 0)
    aio.read_event(10)
    request = aio.fsync(file, tag="synced")
    assert (request, "synced", 0, None) == aio.read_event(10)


def test_read_at_the_end_is_short_and_past_it_empty(aio, file):
    buffer = bytearray(BLOCK)
    aio.read(file, buffer, 64 * BLOCK - 10)
    assert 10 == aio.read_event(10).result
    aio.read(file, buffer, 64 * BLOCK)
    assert (0, None) == aio.read_event(10)[2:]
    aio.read(file, buffer, 2**62)
    assert 0 == aio.read_event(10).result


def test_read_of_no_bytes_is_empty(aio, file):
    aio.read(file, bytearray(0), 0)
    assert (0, None) == aio.read_event(10)[2:]


def test_kernel_refusals_are_errors_of_the_completion_and_leave_the_others(aio, file, tmp_path):
    readonly = os.open(tmp_path / "file", os.O_RDONLY)
    directory = os.open(tmp_path, os.O_RDONLY)
    bad = aio.read(1_000_000, bytearray(1), 0)
    first = aio.read(file, bytearray(1), 0)
    denied = aio.write(readonly, b"x", 0)
    is_directory = aio.read(directory, bytearray(1), 0)
    last = aio.read(file, bytearray(1), 0)
    events = collect(aio, 5)
    assert [1, 1] == [events[number].result for number in (first, last)]
    assert errno.EBADF == events[bad].error.errno
    assert errno.EBADF == events[denied].error.errno
    # Linux AIO says EINVAL where read(2) says EISDIR.
    assert events[is_directory].error.errno in {errno.EISDIR, errno.EINVAL}
    assert -1 == events[is_directory].result
    os.close(readonly)
    os.close(directory)


def test_stream_is_read_by_io_uring_and_refused_by_linux_aio(aio, pipe):
    # Linux AIO would block in io_submit.
    aio.read(pipe[0], (buffer := bytearray(5)), 0)
    aio.submit()
    os.write(pipe[1], b"hello")
    event = aio.read_event(10)
    if aio.backend == "io_uring":
        assert (5, b"hello") == (event.result, bytes(buffer))
    else:
        assert errno.ESPIPE == event.error.errno


def test_descriptor_object_lives_until_the_completion(aio, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    buffer = bytearray(7)
    aio.read(open(tmp_path / "file", "rb"), buffer, 0)  # the queue keeps it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the file is dropped after that, unclosed
        assert 7 == aio.read_event(10).result
        gc.collect()
    assert b"content" == bytes(buffer)


# ── O_DIRECT ──────────────────────────────────────────────────────────────────────────────────────────────


def copy_direct(aio, source, target, size, block):
    """Copy with a queue of `depth` blocks, each read and then written from the same memory."""
    offsets = iter(range(0, size, block))
    idle = [aligned_buffer(block) for _ in range(16)]
    running = 0
    while True:
        while idle and (offset := next(offsets, None)) is not None:
            buffer = idle.pop()
            aio.read(source, buffer, offset, tag=("read", buffer, offset))
            running += 1
        if not running:
            return
        for event in aio.read_events():
            if event.error is not None:
                raise event.error
            kind, buffer, offset = event.tag
            if kind == "read":
                aio.write(target, buffer[: event.result], offset, tag=("write", buffer, offset))
            else:
                idle.append(buffer)
                running -= 1


def check_direct_copy(aio, tmp_path, size):
    source, target = tmp_path / "source", tmp_path / "target"
    expected = hashlib.blake2b()
    with open(source, "wb") as stream:
        seed = os.urandom(1 << 20)
        for number in range(size >> 20):
            chunk = number.to_bytes(8, "little") + seed[8:]
            stream.write(chunk)
            expected.update(chunk)
    try:
        fds = [
            os.open(source, os.O_RDONLY | os.O_DIRECT),
            os.open(target, os.O_RDWR | os.O_CREAT | os.O_DIRECT),
        ]
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {tmp_path}: {error}")
    copy_direct(aio, *fds, size, 1 << 18)
    aio.fsync(fds[1])
    assert aio.read_event(60).error is None
    for fd in fds:
        os.close(fd)
    with open(target, "rb") as stream:
        assert expected.digest() == hashlib.file_digest(stream, hashlib.blake2b).digest()


@pytest.mark.parametrize("backend", BACKENDS)
def test_direct_copy_of_64_mib_is_exact(backend, tmp_path):
    with make(backend) as aio:
        check_direct_copy(aio, tmp_path, 64 << 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.needs_user
@pytest.mark.parametrize("backend", BACKENDS)
def test_direct_copy_of_one_gib_is_exact(backend, tmp_path):
    with make(backend) as aio:
        check_direct_copy(aio, tmp_path, 1 << 30)


def test_direct_read_into_unaligned_memory_completes_with_einval(aio, tmp_path):
    (tmp_path / "file").write_bytes(bytes(BLOCK))
    fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    aio.read(fd, aligned_buffer(BLOCK + 1)[1:], 0)
    assert errno.EINVAL == aio.read_event(10).error.errno
    os.close(fd)


# ── cancelling ────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_of_a_read_on_an_empty_pipe(uring, pipe):
    request = uring.read(pipe[0], bytearray(1), 0)
    other = uring.read(pipe[0], bytearray(1), 0)
    uring.submit()
    assert uring.cancel(request)
    event = uring.read_event(10)
    assert (request, -1, errno.ECANCELED) == (event.request, event.result, event.error.errno)
    os.write(pipe[1], b"x")
    assert (other, 1) == uring.read_event(10)[0::2]


def test_cancelled_write_that_was_only_queued_is_never_carried_out(aio, file):
    kept = aio.write(file, b"kept", 0)
    cancelled = aio.write(file, b"never", BLOCK)
    also = aio.write(file, b"also", 2 * BLOCK)
    assert aio.cancel(cancelled)
    events = collect(aio, 3)
    assert [4, -1, 4] == [events[number].result for number in (kept, cancelled, also)]
    assert errno.ECANCELED == events[cancelled].error.errno
    assert b"\1" * 5 == os.pread(file, 5, BLOCK)


def test_cancel_makes_the_descriptor_readable(aio, file):
    request = aio.read(file, bytearray(1), 0)
    aio.cancel(request)
    aio.submit()
    assert [aio], [] == select.select([aio], [], [], 10)[:2]
    assert errno.ECANCELED == aio.read_event(0).error.errno


# ── readiness ─────────────────────────────────────────────────────────────────────────────────────────────


def test_descriptor_is_readable_exactly_while_completions_wait(aio, file):
    poll, epoll = select.poll(), select.epoll()
    poll.register(aio, select.POLLIN)
    epoll.register(aio, select.EPOLLIN)
    assert [] == poll.poll(0)
    aio.read(file, bytearray(1), 0)
    aio.submit()
    assert [(aio.fileno(), select.POLLIN)] == poll.poll(10_000)
    assert [(aio.fileno(), select.EPOLLIN)] == epoll.poll(10)
    assert [aio] == select.select([aio], [], [], 0)[0]
    assert 1 == len(aio.read_events())
    assert [] == poll.poll(0)
    epoll.close()


def test_descriptor_is_not_inherited(aio):
    assert not os.get_inheritable(aio.fileno())


def test_close_by_another_thread_ends_the_iteration(aio):
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(aio))
    thread.start()
    aio.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [] == seen


def test_threads_share_one_queue_without_losing_a_completion(file):
    for backend in BACKENDS:
        with make(backend, 256) as aio:
            per_thread, threads, taken, failed = 400, 4, [], []

            def produce(aio=aio, failed=failed, per_thread=per_thread):
                try:
                    for number in range(per_thread):
                        while True:
                            try:
                                aio.read(file, bytearray(16), number % 64 * BLOCK)
                                break
                            except BlockingIOError:
                                os.sched_yield()
                        if number % 5 == 0:
                            aio.submit()
                    aio.submit()
                except BaseException as error:
                    failed.append(error)
                    raise

            workers = [threading.Thread(target=produce) for _ in range(threads)]
            for worker in workers:
                worker.start()
            while len(taken) < per_thread * threads:
                taken.append(aio.read_event(30))
            for worker in workers:
                worker.join()
            assert [] == failed
            assert per_thread * threads == len({event.request for event in taken})
            # A thread that ended took its unfinished requests with it; reads of a cached file were finished.
            assert {16} == {event.result for event in taken}
