"""str_to_events of the fixed-size records, and signal names."""

import pickle
import signal
import struct

import pytest
from hypothesis import given, strategies as st

from sandbox.events import eventfd, signalfd, timerfd


@pytest.mark.parametrize("module", [eventfd, timerfd])
@given(values=st.lists(st.integers(0, 2**64 - 1)))
def test_str_to_events_returns_what_was_packed(module, values):
    assert values == module.str_to_events(struct.pack(f"={len(values)}Q", *values))


@pytest.mark.parametrize("module", [eventfd, timerfd])
@pytest.mark.parametrize("size", [1, 7, 9, 15])
def test_str_to_events_of_a_truncated_record_is_a_value_error(module, size):
    with pytest.raises(ValueError, match=f"whole records of 8 bytes, got {size} bytes"):
        module.str_to_events(bytes(size))


@pytest.mark.parametrize("size", [1, 127, 129, 255])
def test_signalfd_str_to_events_of_a_truncated_record_is_a_value_error(size):
    with pytest.raises(ValueError, match=f"whole records of 128 bytes, got {size} bytes"):
        signalfd.str_to_events(bytes(size))


@given(data=st.binary(max_size=600))
def test_signalfd_str_to_events_takes_whole_records_and_nothing_else(data):
    if len(data) % 128:
        with pytest.raises(ValueError):
            signalfd.str_to_events(data)
    else:
        assert len(data) // 128 == len(signalfd.str_to_events(data))


def test_signalfd_str_to_events_finds_each_field_at_its_place():
    offsets = {
        "signo": (0, "I"), "errno": (4, "i"), "code": (8, "i"), "pid": (12, "I"), "uid": (16, "I"),
        "fd": (20, "i"), "tid": (24, "I"), "band": (28, "I"), "overrun": (32, "I"), "trapno": (36, "I"),
        "status": (40, "i"), "value": (44, "i"), "ptr": (48, "Q"), "utime": (56, "Q"), "stime": (64, "Q"),
        "addr": (72, "Q"), "addr_lsb": (80, "H"), "syscall": (84, "i"), "call_addr": (88, "Q"),
        "arch": (96, "I"),
    }  # fmt: skip
    record = bytearray(128)
    for number, (offset, code) in enumerate(offsets.values(), 1):
        struct.pack_into("=" + code, record, offset, number)
    (event,) = signalfd.str_to_events(record)
    assert list(range(1, len(offsets) + 1)) == [getattr(event, name) for name in offsets]
    assert event == signalfd.str_to_events(record)[0] == pickle.loads(pickle.dumps(event))
    assert "SIGHUP" in repr(event)
    assert "arch=20" in repr(event)


def test_signalfd_event_is_its_record_and_stays_so():
    first, second = signalfd.str_to_events(bytes([1]) * 128 + bytes([2]) * 128)
    assert (bytes([1]) * 128, bytes([2]) * 128) == (bytes(first), bytes(second))
    assert 2 == len({first, second, *signalfd.str_to_events(bytes(first))})
    assert first != second
    with pytest.raises(AttributeError, match="pid"):
        first.pid = 3
    with pytest.raises(AttributeError, match="pid"):
        del first.pid
    with pytest.raises(AttributeError):
        first.note = 3
    assert (0x01010101, 0x02020202) == (first.pid, second.pid)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_str_to_events_takes_any_buffer(buffer):
    data = buffer(struct.pack("=2Q", 1, 2))
    assert [1, 2] == eventfd.str_to_events(data)
    assert [1, 2] == timerfd.str_to_events(data)


@pytest.mark.parametrize("value", [-1, 2**64 - 1, 2**64])
def test_event_to_str_out_of_range_is_a_value_error(value):
    with pytest.raises(ValueError, match="value must be between"):
        eventfd.event_to_str(value)


def test_signal_of_an_unknown_number_stays_an_int():
    record = bytearray(128)
    struct.pack_into("=I", record, 0, 40)
    (event,) = signalfd.str_to_events(record)
    assert 40 == event.signal


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (9, "SIGKILL"),
        (signal.SIGRTMIN, "SIGRTMIN"),
        (signal.SIGRTMIN + 3, "SIGRTMIN+3"),
        (signal.SIGRTMAX, "SIGRTMAX"),
        (33, "SIG33"),
    ],
)
def test_signum_to_signame_names_every_signal(number, expected):
    assert expected == signalfd.signum_to_signame(number)


def test_signum_to_signame_has_a_name_of_its_own_for_each():
    assert 64 == len({signalfd.signum_to_signame(number) for number in range(1, 65)})


@pytest.mark.parametrize("number", [0, -1, 65])
def test_signum_to_signame_out_of_range_is_a_value_error(number):
    with pytest.raises(ValueError, match="signal must be between 1 and 64"):
        signalfd.signum_to_signame(number)
