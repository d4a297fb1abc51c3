import errno
import os
import select
import struct
import threading

import pytest
from event_kinds import in_own_process

from sandbox.events import Eventfd, Eventfd_async
from sandbox.events.eventfd import event_to_str, str_to_events
from sandbox.primitives import EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_read, eventfd_write

MAX = 2**64 - 2


def test_reading_returns_the_sum_and_sets_it_to_zero():
    with Eventfd(3, nonblock=True) as one:
        one.increment(4)
        one.increment()
        assert 8 == one.read_event()
        with pytest.raises(BlockingIOError):
            one.read_event()


def test_int_of_an_eventfd_is_its_event():
    with Eventfd(3) as one:
        assert 3 == int(one)


def test_semaphore_gives_one_at_a_time():
    with Eventfd(2, semaphore=True, nonblock=True) as one:
        assert [1, 1] == list(one)


def test_largest_value_goes_in_and_comes_out_whole():
    with Eventfd() as one:
        one.increment(MAX)
        assert MAX == one.read_event()


def test_full_counter_is_not_writable_and_refuses_more():
    with Eventfd(nonblock=True) as one:
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        assert [(one.fileno(), select.POLLOUT)] == poll.poll(0)
        one.increment(MAX)
        assert [] == poll.poll(0)
        with pytest.raises(BlockingIOError):
            one.increment()
        assert MAX == one.read_event()


@in_own_process
def test_increment_of_a_full_counter_waits_for_a_reader():
    with Eventfd() as one:
        one.increment(MAX)
        thread = threading.Thread(target=one.increment, args=(5,))
        thread.start()
        assert MAX == one.read_event()
        assert 5 == one.read_event()
        thread.join()


@in_own_process
def test_increment_of_a_full_counter_is_ended_by_close():
    one = Eventfd()
    one.increment(MAX)
    ended = []

    def add():
        with pytest.raises(ValueError, match="closed file"):
            one.increment()
        ended.append(True)

    thread = threading.Thread(target=add)
    thread.start()
    one.close()
    thread.join(10)
    assert [True] == ended


@pytest.mark.parametrize("value", [-1, 2**64 - 1, 2**64, 2**70])
def test_increment_out_of_range_is_a_value_error_and_changes_nothing(value):
    with Eventfd(nonblock=True) as one:
        with pytest.raises(ValueError, match="value must be between"):
            one.increment(value)
        assert [] == one.read_events()


@pytest.mark.parametrize("value", [1.0, "1", None, True])
def test_increment_of_what_is_no_int_is_a_type_error(value):
    with Eventfd() as one, pytest.raises(TypeError):
        one.increment(value)


@pytest.mark.parametrize("value", [-1, 2**32, 2**64])
def test_initial_value_over_32_bits_is_a_value_error_never_truncated(value):
    with pytest.raises(ValueError, match=r"^value must be between 0 and 4294967295"):
        Eventfd(value)
    with pytest.raises(ValueError, match=r"^value"):
        Eventfd_async(value)


def test_primitive_eventfd_makes_counts_and_reads():
    fd = eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK)
    try:
        eventfd_write(fd, 3)
        assert 10 == eventfd_read(fd)
        with pytest.raises(BlockingIOError):
            eventfd_read(fd)
        with pytest.raises(ValueError, match="value must be between"):
            eventfd_write(fd, 2**64 - 1)
    finally:
        os.close(fd)


def test_primitive_eventfd_unknown_flag_is_einval():
    with pytest.raises(OSError) as caught:
        eventfd(0, 0x40000)
    assert errno.EINVAL == caught.value.errno


def test_primitives_take_objects_with_fileno():
    with Eventfd() as one:
        eventfd_write(one, 2)
        assert 2 == eventfd_read(one)


def test_kernel_refuses_the_largest_64_bit_value():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with pytest.raises(OSError) as caught:
            os.write(fd, struct.pack("=Q", 2**64 - 1))
        assert errno.EINVAL == caught.value.errno
    finally:
        os.close(fd)


def test_event_to_str_makes_what_the_kernel_takes():
    with Eventfd() as one:
        os.write(one.fileno(), event_to_str(9))
        assert 9 == one.read_event()
    assert [1, MAX] == str_to_events(event_to_str([1, MAX]))
