"""The calls of io_uring and the mapped rings."""

import errno
import os
import struct

import pytest

from sandbox.primitives import io_uring, io_uring_numbers
from sandbox.primitives.io_uring import IoUring
from sandbox.primitives.io_uring_numbers import (
    IoUringEnter,
    IoUringFeature,
    IoUringOp,
    IoUringRegister,
    IoUringSetup,
)


@pytest.fixture
def fd():
    try:
        number, _ = io_uring.io_uring_setup(4)
    except OSError as error:
        pytest.skip(f"io_uring: {error}")
    yield number
    os.close(number)


@pytest.fixture
def ring():
    try:
        made = IoUring(4)
    except OSError as error:
        pytest.skip(f"io_uring: {error}")
    yield made
    made.stop()
    made.drain([])
    made.close()


def sqe(opcode, user_data, fd=-1, flags=0):
    return struct.pack("=BBHiQQIIQ24x", opcode, flags, 0, fd, 0, 0, 0, 0, user_data)


def test_io_uring_setup_answers_sizes_and_is_close_on_exec():
    number, params = io_uring.io_uring_setup(5, IoUringSetup.CQSIZE, cq_entries=100)
    try:
        assert (8, 128, IoUringSetup.CQSIZE) == params[:3]
        assert IoUringFeature.SUBMIT_STABLE in params.features
        assert params.cq_off["cqes"] > 0
        assert not os.get_inheritable(number)
    finally:
        os.close(number)


@pytest.mark.parametrize(("entries", "number"), [(2**20, errno.EINVAL), (2**32 - 1, errno.EINVAL)])
def test_io_uring_setup_too_large_is_einval(entries, number):
    with pytest.raises(OSError) as caught:
        io_uring.io_uring_setup(entries)
    assert number == caught.value.errno


def test_io_uring_setup_unknown_flag_is_einval():
    with pytest.raises(OSError) as caught:
        io_uring.io_uring_setup(1, 1 << 31)
    assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize("entries", [0, -1, 2**32])
def test_io_uring_setup_entries_out_of_range_are_refused(entries):
    with pytest.raises(ValueError, match="entries must be between"):
        io_uring.io_uring_setup(entries)


def test_io_uring_enter_with_a_timeout_is_etime(fd):
    with pytest.raises(OSError) as caught:
        io_uring.io_uring_enter(fd, 0, 1, IoUringEnter.GETEVENTS, timeout=0.001)
    assert errno.ETIME == caught.value.errno


def test_io_uring_enter_without_work_is_zero(fd):
    assert 0 == io_uring.io_uring_enter(fd, 0)
    assert 0 == io_uring.io_uring_enter(fd, 5, sigmask=0)


def test_io_uring_enter_on_another_file_is_eopnotsupp():
    with open("/dev/null") as file, pytest.raises(OSError) as caught:
        io_uring.io_uring_enter(file, 0)
    assert errno.EOPNOTSUPP == caught.value.errno


def test_io_uring_register_eventfd_and_probe(fd):
    eventfd = os.eventfd(0)
    try:
        io_uring.io_uring_register(fd, IoUringRegister.REGISTER_EVENTFD, struct.pack("i", eventfd), 1)
        io_uring.io_uring_register(fd, IoUringRegister.UNREGISTER_EVENTFD)
        with pytest.raises(OSError) as caught:
            io_uring.io_uring_register(fd, IoUringRegister.UNREGISTER_EVENTFD)
        assert errno.ENXIO == caught.value.errno
    finally:
        os.close(eventfd)
    probe = bytearray(16 + 8 * 64)
    io_uring.io_uring_register(fd, IoUringRegister.REGISTER_PROBE, probe, 64)
    assert probe[0] >= IoUringOp.READ  # last_op


def test_ring_push_submits_any_operation(ring):
    ring.push(sqe(IoUringOp.NOP, 7))
    ring.push(sqe(255, 8))
    ring.push(sqe(IoUringOp.NOP, 9))
    assert 3 == ring.active()
    # The kernel stops behind the entry that it refuses; the rest is submitted all the same.
    assert 3 == ring.submit()
    numbers, results = ring.reap()
    assert {7: 0, 8: -errno.EINVAL, 9: 0} == dict(zip(numbers, results, strict=True))
    assert 0 == ring.active()


def test_ring_push_of_wrong_size_is_refused(ring):
    with pytest.raises(ValueError, match="sqe must be 64 bytes, got 63"):
        ring.push(bytes(63))


@pytest.mark.parametrize("flag", [IoUringSetup.SQPOLL, IoUringSetup.CQE32, 1 << 31])
def test_ring_refuses_flags_that_change_its_layout(flag):
    with pytest.raises(ValueError, match="flags must be among"):
        IoUring(4, flag)


def test_ring_takes_depth_requests_and_no_more(ring):
    for number in range(4):
        ring.push(sqe(IoUringOp.NOP, number))
    with pytest.raises(BlockingIOError):
        ring.push(sqe(IoUringOp.NOP, 4))
    ring.submit()
    with pytest.raises(BlockingIOError):
        ring.push(sqe(IoUringOp.NOP, 4))
    ring.reap()
    ring.push(sqe(IoUringOp.NOP, 4))


def test_ring_wraps_around(ring):
    for start in range(0, 4000, 4):
        for number in range(start, start + 4):
            ring.push(sqe(IoUringOp.NOP, number))
        ring.submit()
        assert [start, start + 1, start + 2, start + 3] == ring.reap()[0]


def test_ring_cancel_while_all_entries_are_prepared_does_not_submit_them(ring):
    read_end, write_end = os.pipe()
    buffer = bytearray(1)
    from sandbox.primitives._buffers import export

    memory = export(buffer, True)
    assert 0 == ring.prepare(ring.READ, read_end, memory, 1, 0, 1)
    ring.submit()
    for number in range(2, 5):
        ring.push(sqe(IoUringOp.NOP, number))
    assert ring.cancel(1)
    assert ring.cancel(3)
    assert not ring.cancel(99)
    assert 4 == ring.active()
    numbers, results = ring.reap()
    assert ([1], [-errno.ECANCELED]) == (numbers, results)
    ring.submit()
    numbers, results = ring.reap()
    assert {2: 0, 3: -errno.ECANCELED, 4: 0} == dict(zip(numbers, results, strict=True))
    os.close(read_end)
    os.close(write_end)


def test_ring_cancels_beyond_the_size_of_the_completion_ring(ring):
    # Results of cancel requests pile up until they are reaped: the kernel keeps what finds no room.
    for _ in range(50):
        assert not ring.cancel(12345)
    ring.push(sqe(IoUringOp.NOP, 1))
    ring.submit()
    numbers: list[int] = []
    while not numbers:
        numbers, _ = ring.reap()
    assert [1] == numbers


def test_ring_after_stop_is_stale(ring):
    ring.stop()
    for call in (ring.submit, ring.reap, ring.active, lambda: ring.cancel(1)):
        with pytest.raises(OSError) as caught:
            call()
        assert errno.ESTALE == caught.value.errno


def test_every_c_name_is_its_flag():
    names = [name for name in io_uring_numbers.__all__ if name.startswith("IO")]
    constants = [name for name in names if name.isupper()]
    assert len(constants) > 140
    assert 22 == io_uring_numbers.IORING_OP_READ
    assert 14 == io_uring_numbers.IORING_OP_ASYNC_CANCEL
    assert 24 == io_uring_numbers.IORING_REGISTER_SYNC_CANCEL
    assert 1 << 13 == io_uring_numbers.IORING_SETUP_DEFER_TASKRUN
