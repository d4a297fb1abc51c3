"""Aio's arguments, its numbers and its refusals: what needs no file of its own."""

import array
import errno
import os

import pytest

from sandbox.errors import UnsupportedError
from sandbox.events import Aio, Completion, aligned_buffer
from sandbox.primitives._buffers import address_of, export


@pytest.fixture(params=["io_uring", "linux_aio"])
def aio(request):
    try:
        queue = Aio(8, backend=request.param)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with queue:
        yield queue


@pytest.fixture
def zeros():
    fd = os.open("/proc/self/exe", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_aio_backend_says_which_was_asked_for(aio, request):
    assert request.node.callspec.params["aio"] == aio.backend


@pytest.mark.parametrize("depth", [0, -1, 32768, 2**40])
def test_aio_depth_out_of_range_is_refused(depth):
    with pytest.raises(ValueError, match="depth must be between 1 and 32767"):
        Aio(depth)


@pytest.mark.parametrize("depth", [1.5, "64", True, None])
def test_aio_depth_of_wrong_type_is_refused(depth):
    with pytest.raises(TypeError, match="depth"):
        Aio(depth)


def test_aio_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be 'auto', 'io_uring' or 'linux_aio', got 'threads'"):
        Aio(backend="threads")


@pytest.mark.parametrize("buffers", [b"read-only", memoryview(b"read-only"), "text", 5, None, object()])
def test_read_into_what_is_no_writable_buffer_is_refused(aio, zeros, buffers):
    with pytest.raises(TypeError, match="buffers must be a contiguous writable bytes-like object"):
        aio.read(zeros, buffers, 0)
    assert 0 == aio.pending()


@pytest.mark.parametrize("buffers", ["text", 5, None, object()])
def test_write_of_what_is_no_buffer_is_refused(aio, zeros, buffers):
    with pytest.raises(TypeError, match="buffers must be a contiguous bytes-like object"):
        aio.write(zeros, buffers, 0)


def test_read_into_a_buffer_with_gaps_is_refused(aio, zeros):
    with pytest.raises(TypeError, match="contiguous"):
        aio.read(zeros, memoryview(bytearray(8))[::2], 0)


def test_read_into_a_sequence_with_a_readonly_buffer_names_its_place(aio, zeros):
    with pytest.raises(TypeError, match=r"buffers\[1\] must be a contiguous writable"):
        aio.read(zeros, [bytearray(1), b"x"], 0)


@pytest.mark.parametrize("count", [0, 1025])
def test_read_into_too_few_or_too_many_buffers_is_refused(aio, zeros, count):
    with pytest.raises(ValueError, match=f"buffers must hold 1 to 1024 buffers, got {count}"):
        aio.read(zeros, [bytearray(1)] * count, 0)


@pytest.mark.parametrize("offset", [-1, -(2**63), 2**63, 2**70])
def test_read_at_an_offset_out_of_range_is_refused(aio, zeros, offset):
    with pytest.raises(ValueError, match="offset must be between 0 and"):
        aio.read(zeros, bytearray(1), offset)
    assert 0 == aio.pending()


@pytest.mark.parametrize("offset", [1.0, "0", None])
def test_read_at_an_offset_of_wrong_type_is_refused(aio, zeros, offset):
    with pytest.raises(TypeError, match="offset must be an int"):
        aio.read(zeros, bytearray(1), offset)
    assert 0 == aio.pending()


@pytest.mark.parametrize("fd", [True, None, "3", 1.0])
def test_read_from_what_is_no_descriptor_is_refused(aio, fd):
    with pytest.raises(TypeError, match="fd must be a file descriptor"):
        aio.read(fd, bytearray(1), 0)


@pytest.mark.parametrize("fd", [2**31, -(2**31) - 1])
def test_read_from_a_number_that_no_descriptor_has_is_refused(aio, fd):
    with pytest.raises(ValueError, match="fd must be a file descriptor"):
        aio.read(fd, bytearray(1), 0)
    assert 0 == aio.pending()


@pytest.mark.parametrize("fd", [-1, 1_000_000])
def test_read_from_a_descriptor_that_is_not_open_completes_with_ebadf(aio, fd):
    request = aio.read(fd, bytearray(1), 0, tag="t")
    event = aio.read_event(10)
    assert (request, "t", -1) == event[:3]
    assert errno.EBADF == event.error.errno
    assert isinstance(event.error, OSError)


def test_read_takes_everything_with_fileno_and_every_kind_of_buffer(aio):
    with open("/proc/self/exe", "rb") as file:
        expected = os.pread(file.fileno(), 8, 0)
        for buffer in (bytearray(8), memoryview(bytearray(8)), array.array("q", [0]), aligned_buffer(8)):
            aio.read(file, buffer, 0)
            assert 8 == aio.read_event(10).result
            assert expected == bytes(memoryview(buffer).cast("B"))


def test_requests_are_numbered_from_one_and_carry_their_tag(aio, zeros):
    tag = object()
    assert [1, 2] == [aio.read(zeros, bytearray(1), 0, tag=tag) for _ in range(2)]
    events = [aio.read_event(10), aio.read_event(10)]
    assert [Completion(1, tag, 1, None), Completion(2, tag, 1, None)] == sorted(events)


def test_submit_returns_how_many_were_queued(aio, zeros):
    for _ in range(3):
        aio.read(zeros, bytearray(1), 0)
    assert [3, 0] == [aio.submit(), aio.submit()]


def test_depth_exceeded_is_blocking_io_error_until_a_completion_was_read(aio, zeros):
    for _ in range(8):
        aio.read(zeros, bytearray(1), 0)
    with pytest.raises(BlockingIOError) as caught:
        aio.read(zeros, bytearray(1), 0)
    assert errno.EAGAIN == caught.value.errno
    assert 8 == aio.pending()
    aio.read_event(10)
    aio.read(zeros, bytearray(1), 0)


@pytest.mark.parametrize("request_number", [0, -1, 2**63])
def test_cancel_of_a_number_out_of_range_is_refused(aio, request_number):
    with pytest.raises(ValueError, match="request must be between 1 and"):
        aio.cancel(request_number)


def test_cancel_of_an_unknown_or_completed_request_is_false(aio, zeros):
    assert not aio.cancel(77)
    request = aio.read(zeros, bytearray(1), 0)
    aio.read_event(10)
    assert not aio.cancel(request)


def test_read_event_with_nothing_queued_times_out(aio):
    with pytest.raises(TimeoutError):
        aio.read_event(0)


def test_closed_aio_refuses_everything_as_files_do(aio, zeros):
    aio.close()
    aio.close()
    calls = [
        lambda: aio.read(zeros, bytearray(1), 0),
        lambda: aio.write(zeros, b"x", 0),
        lambda: aio.fsync(zeros),
        aio.submit,
        aio.pending,
        aio.fileno,
        aio.read_event,
        aio.read_events,
        aio.__enter__,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed file"):
            call()
    assert not aio.cancel(1)
    assert aio.closed


def test_detach_is_refused(aio):
    with pytest.raises(OSError, match="no use"):
        aio.detach()
    assert not aio.closed


@pytest.mark.parametrize("alignment", [1, 512, 4096, 65536, 2**21])
@pytest.mark.parametrize("size", [1, 512, 5000])
def test_aligned_buffer_is_zeroed_writable_and_at_a_multiple(size, alignment):
    buffer = aligned_buffer(size, alignment)
    assert bytes(size) == bytes(buffer)
    assert 0 == address_of(export(buffer, True)) % alignment
    buffer[-1] = 1


@pytest.mark.parametrize("alignment", [0, 3, 4095, 2**31, -4096])
def test_aligned_buffer_refuses_an_alignment_that_is_none(alignment):
    with pytest.raises(ValueError, match="alignment must be"):
        aligned_buffer(4096, alignment)


@pytest.mark.parametrize("size", [0, -1])
def test_aligned_buffer_refuses_a_size_that_is_none(size):
    with pytest.raises(ValueError, match="size must be"):
        aligned_buffer(size)
