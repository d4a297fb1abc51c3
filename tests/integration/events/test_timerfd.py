import ctypes
import errno
import os
import select
import struct
import time

import harness
import pytest

from sandbox.errors import ClockChanged
from sandbox.events import Timerfd, Timerfd_async, TimerVal
from sandbox.primitives import (
    CLOCK_BOOTTIME,
    CLOCK_BOOTTIME_ALARM,
    CLOCK_MONOTONIC,
    CLOCK_REALTIME,
    CLOCK_REALTIME_ALARM,
    TFD_TIMER_ABSTIME,
    TFD_TIMER_CANCEL_ON_SET,
    timerfd_create,
    timerfd_gettime,
    timerfd_set_ticks,
    timerfd_settime,
)

CLOCKS = [CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME]


def readable(one, seconds=0.0):
    return bool(select.select([one], [], [], seconds)[0])


@pytest.mark.parametrize("clock", CLOCKS)
def test_after_expires_once(clock):
    with Timerfd(TimerVal().after(0.001), clock=clock) as one:
        assert 1 == one.read_event(5)
        assert TimerVal() == one.remaining()


def test_after_zero_expires_at_once():
    with Timerfd(TimerVal().after(0)) as one:
        assert 1 == one.read_event(5)


def test_every_alone_arms_the_first_expiration_too():
    before = time.monotonic()
    with Timerfd(TimerVal().every(0.002)) as one:
        assert 1 <= one.read_event(5)
        assert 1 <= one.read_event(5)
        assert time.monotonic() - before >= 0.004


def test_expirations_that_nobody_read_are_counted():
    with Timerfd(TimerVal().every(0.0001)) as one:
        assert readable(one, 5)
        deadline = time.monotonic() + 0.002
        while time.monotonic() < deadline:
            continue
        assert one.read_event() > 1


@pytest.mark.parametrize("clock", CLOCKS)
def test_at_waits_for_the_clocks_time(clock):
    when = time.clock_gettime(clock) + 0.005
    with Timerfd(TimerVal().at(when), clock=clock) as one:
        assert 1 == one.read_event(5)
        assert time.clock_gettime(clock) >= when - 1e-6


def test_at_in_the_past_expires_at_once():
    for when in (0, 1, time.monotonic() - 0.001):
        with Timerfd(TimerVal().at(when)) as one:
            assert 1 == one.read_event(5)


def test_remaining_is_relative_and_keeps_the_interval():
    with Timerfd(TimerVal().after(100).every(7)) as one:
        left = one.remaining()
        assert 99 < left.first <= 100
        assert (7.0, False) == (left.interval, left.absolute)


def test_set_returns_what_was_set_before_and_none_disarms():
    with Timerfd() as one:
        assert TimerVal() == one.set(TimerVal().after(50).every(2))
        before = one.set(None)
        assert 49 < before.first <= 50
        assert 2.0 == before.interval
        assert TimerVal() == one.remaining()
        one.set(before)
        assert 49 < one.get_current().first <= 50


def test_set_after_expiry_discards_the_count():
    with Timerfd(TimerVal().after(0), nonblock=True) as one:
        assert readable(one, 5)
        one.set(TimerVal().after(100))
        assert [] == one.read_events()


def test_nanoseconds_survive_to_the_kernel():
    with Timerfd(TimerVal().after(1000).every(0.000000001)) as one:
        assert 1 == timerfd_gettime(one).interval
        one.set(TimerVal().after(1000).every(0.1))
        assert 100_000_000 == timerfd_gettime(one).interval


def test_set_ticks_says_what_the_next_read_returns():
    with Timerfd(TimerVal().after(100)) as one:
        one.set_ticks(7)
        assert 7 == one.read_event(1)
        timerfd_set_ticks(one, 2**63)
        assert 2**63 == one.read_event(1)
        with pytest.raises(ValueError, match="ticks must be between"):
            one.set_ticks(0)


@pytest.mark.needs_user
@pytest.mark.parametrize("clock", [CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM])
def test_alarm_clock_without_the_capability_is_eperm(clock):
    with pytest.raises(PermissionError) as caught:
        Timerfd(clock=clock)
    assert errno.EPERM == caught.value.errno


@pytest.mark.needs_root
@pytest.mark.parametrize("clock", [CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM])
def test_alarm_clock_with_the_capability_expires(clock):
    try:
        one = Timerfd(TimerVal().after(0.001), clock=clock)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("no real-time clock that wakes this machine")
    with one:
        assert 1 == one.read_event(5)


@pytest.mark.parametrize("clock", [4, 2, 99])
def test_clock_that_has_no_timers_is_einval_and_a_value_error(clock):
    with pytest.raises(OSError) as caught:
        Timerfd(clock=clock)
    assert errno.EINVAL == caught.value.errno
    assert isinstance(caught.value, ValueError)


def test_cancel_on_set_with_a_clock_that_nobody_sets_is_a_value_error_and_leaks_nothing():
    value = TimerVal().at(2e9, cancel_on_set=True)
    with pytest.raises(ValueError, match="cancel_on_set needs CLOCK_REALTIME"):
        Timerfd(value, clock=CLOCK_MONOTONIC)
    with Timerfd(value, clock=CLOCK_REALTIME, nonblock=True) as one:
        assert [] == one.read_events()


def test_kernel_accepts_cancel_on_set_without_abstime_and_does_nothing():
    # Why TimerVal refuses it.
    fd = timerfd_create(CLOCK_REALTIME)
    try:
        timerfd_settime(fd, TFD_TIMER_CANCEL_ON_SET, 10**12)
        assert timerfd_gettime(fd).value > 0
    finally:
        os.close(fd)


def test_kernel_leaves_an_interval_with_value_zero_disarmed():
    # Why `every` sets the first expiration.
    fd = timerfd_create()
    try:
        timerfd_settime(fd, 0, 0, 1000)
        assert 0 == timerfd_gettime(fd).value
        assert not readable(fd, 0.002)
    finally:
        os.close(fd)


@pytest.mark.parametrize("face", [Timerfd, Timerfd_async])
def test_clock_that_was_set_is_clock_changed(face):
    # Nothing here may set the machine's clock: a filter answers read(2) on the timer as the kernel does then.
    def body():
        one = face(TimerVal().at(time.time() + 1000, cancel_on_set=True), clock=CLOCK_REALTIME)
        answer_read_with(one.fileno(), errno.ECANCELED)
        read = one.read_event if face is Timerfd else one.get_nowait
        with pytest.raises(ClockChanged) as caught:
            read()
        assert errno.ECANCELED == caught.value.errno
        assert isinstance(caught.value, OSError)

    harness.in_child(body)


def answer_read_with(fd: int, number: int) -> None:
    """Let read(2) on one descriptor fail from now on, by a seccomp filter of this process."""
    if os.uname().machine != "x86_64":
        pytest.skip("the filter is written for x86_64")

    def instruction(code, jump_true, jump_false, k):
        return struct.pack("=HBBI", code, jump_true, jump_false, k)

    program = b"".join(
        [
            instruction(0x20, 0, 0, 0),  # load the number of the call
            instruction(0x15, 0, 3, 0),  # read
            instruction(0x20, 0, 0, 16),  # load the first argument
            instruction(0x15, 0, 1, fd),
            instruction(0x06, 0, 0, 0x00050000 | number),  # SECCOMP_RET_ERRNO
            instruction(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        ]
    )
    buffer = ctypes.create_string_buffer(program)
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert 0 == libc.prctl(38, 1, 0, 0, 0)
    assert 0 == libc.prctl(22, 2, head), os.strerror(ctypes.get_errno())


def test_primitive_settime_returns_what_was_set_before_in_nanoseconds():
    fd = timerfd_create()
    try:
        assert (0, 0) == timerfd_settime(fd, 0, 10**15, 5)
        value, interval = timerfd_settime(fd, TFD_TIMER_ABSTIME, 0)
        assert 10**15 - 10**12 < value <= 10**15
        assert 5 == interval
    finally:
        os.close(fd)


@pytest.mark.parametrize(("value", "interval"), [(-1, 0), (0, -1), (2**63, 0), (0, 2**63)])
def test_primitive_settime_out_of_range_is_a_value_error(value, interval):
    fd = timerfd_create()
    try:
        with pytest.raises(ValueError, match="must be between"):
            timerfd_settime(fd, 0, value, interval)
    finally:
        os.close(fd)


def test_primitive_on_what_is_no_timer_is_einval():
    with open("/dev/null") as file:
        with pytest.raises(OSError) as caught:
            timerfd_settime(file, 0, 1)
        assert errno.EINVAL == caught.value.errno
        with pytest.raises(OSError) as caught:
            timerfd_gettime(file)
        assert errno.EINVAL == caught.value.errno
