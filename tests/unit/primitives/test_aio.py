"""The calls of Linux AIO, as their man pages have them."""

import errno
import os
import signal

import pytest

from sandbox.primitives import aio
from sandbox.primitives.aio import AioCommand, Iocb


@pytest.fixture
def context():
    number = aio.io_setup(4)
    yield number
    aio.io_destroy(number)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_io_submit_and_getevents_read_a_file(context, file):
    buffer = bytearray(4)
    block = Iocb(AioCommand.PREAD, file, buffer, 3, data=2**64 - 1)
    assert 1 == aio.io_submit(context, [block])
    assert [(2**64 - 1, block, 4, 0)] == aio.io_getevents(context, 1, 4, 5.0)
    assert b"3456" == bytes(buffer)


def test_io_submit_scatters_gathers_and_syncs(context, file):
    first, second = bytearray(2), bytearray(5)
    blocks = [
        Iocb(AioCommand.PWRITEV, file, [b"ab", b"cde"], 0),
        Iocb(AioCommand.FSYNC, file),
        Iocb(AioCommand.FDSYNC, file),
    ]
    assert 3 == aio.io_submit(context, blocks)
    assert [0, 0, 5] == sorted(event.res for event in aio.io_getevents(context, 3, 3, 5.0))
    aio.io_submit(context, [Iocb(AioCommand.PREADV, file, [first, second], 0)])
    assert 7 == aio.io_getevents(context, 1, 1, 5.0)[0].res
    assert b"abcde56" == bytes(first + second)


def test_io_submit_keeps_the_memory_of_a_running_request(context):
    # A poll of an empty pipe runs until it is cancelled, whoever forgets the control block.
    read_end, write_end = os.pipe()
    block = Iocb(AioCommand.POLL, read_end, 1, data=5)
    aio.io_submit(context, [block])
    with pytest.raises(ValueError, match="running already"):
        aio.io_submit(context, [block])
    assert [] == aio.io_getevents(context, 0, 1, 0)
    os.write(write_end, b"x")
    [event] = aio.io_getevents(context, 1, 1, 5.0)
    assert (5, block) == event[:2]
    assert event.res & 1
    os.close(read_end)
    os.close(write_end)


def test_io_cancel_ends_a_poll(context):
    read_end, write_end = os.pipe()
    block = Iocb(AioCommand.POLL, read_end, 1)
    aio.io_submit(context, [block])
    aio.io_cancel(context, block)
    assert [block] == [event.obj for event in aio.io_getevents(context, 1, 1, 5.0)]
    with pytest.raises(OSError) as caught:
        aio.io_cancel(context, block)
    assert errno.EINVAL == caught.value.errno
    os.close(read_end)
    os.close(write_end)


def test_iocb_rings_its_eventfd(context, file):
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    aio.io_submit(context, [Iocb(AioCommand.PREAD, file, bytearray(1), 0, resfd=eventfd)])
    assert 1 == os.eventfd_read(eventfd)
    os.close(eventfd)


def test_io_pgetevents_takes_a_mask_and_a_timeout(context):
    assert [] == aio.io_pgetevents(context, 1, 1, 0.001, 1 << (signal.SIGUSR1 - 1))


def test_io_submit_refused_block_raises_and_is_forgotten(context, file):
    bad = Iocb(AioCommand.PREAD, -1, bytearray(1), 0)
    good = Iocb(AioCommand.PREAD, file, bytearray(1), 0)
    with pytest.raises(OSError) as caught:
        aio.io_submit(context, [bad])
    assert errno.EBADF == caught.value.errno
    assert 1 == aio.io_submit(context, [good, bad])
    assert [good] == [event.obj for event in aio.io_getevents(context, 1, 4, 5.0)]


def test_io_calls_on_no_context_are_einval():
    for call in (
        lambda: aio.io_destroy(12345),
        lambda: aio.io_submit(12345, [Iocb(AioCommand.FSYNC, 0)]),
        lambda: aio.io_getevents(12345, 0, 1, 0),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize("count", [0, -1, 2**31])
def test_io_setup_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match="nr_events must be between"):
        aio.io_setup(count)


def test_io_setup_over_the_limit_of_the_host_is_eagain():
    with open("/proc/sys/fs/aio-max-nr") as stream:
        limit = int(stream.read())
    with pytest.raises(BlockingIOError):
        aio.io_setup(limit + 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((AioCommand.PREAD, 0, b"read-only"), TypeError),
        ((AioCommand.PREAD, 0, None), TypeError),
        ((AioCommand.PREADV, 0, bytearray(1)), TypeError),
        ((AioCommand.PREADV, 0, []), ValueError),
        ((AioCommand.PREADV, 0, 5), TypeError),
        ((AioCommand.PWRITE, 0, "text"), TypeError),
        ((AioCommand.PREAD, 0, bytearray(1), -1), ValueError),
        ((AioCommand.PREAD, 0, bytearray(1), 2**63), ValueError),
        ((AioCommand.POLL, 0, None), TypeError),
        ((2**16, 0), ValueError),
    ],
)
def test_iocb_refuses_what_the_kernel_would_cut(arguments, error):
    with pytest.raises(error):
        Iocb(*arguments)


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 1), (0, 65537)])
def test_io_getevents_counts_out_of_range_are_refused(context, low, high):
    with pytest.raises(ValueError, match="nr must be between"):
        aio.io_getevents(context, low, high, 0)


def test_io_getevents_negative_timeout_is_refused(context):
    with pytest.raises(ValueError, match="timeout"):
        aio.io_getevents(context, 0, 1, -1)
