"""Inotify records become events, whatever the bytes."""

import os
import struct

import pytest
from hypothesis import given, strategies as st

from sandbox.events.inotify import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_IGNORED,
    IN_ISDIR,
    IN_MOVED_FROM,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    InotifyEvent,
    InotifyMask,
    event_name,
    str_to_events,
)

names = st.binary(max_size=255).filter(lambda name: b"\0" not in name and b"/" not in name)
fields = st.tuples(st.integers(-1, 2**31 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), names)


def record(wd: int, mask: int, cookie: int, name: bytes) -> bytes:
    padded = name + b"\0" * (16 - len(name) % 16) if name else b""
    return struct.pack("=iIII", wd, mask, cookie, len(padded)) + padded


@given(st.lists(fields, max_size=50))
def test_str_to_events_returns_what_was_packed(rows):
    events = str_to_events(b"".join(record(*row) for row in rows))
    assert rows == [(event.wd, event.mask, event.cookie, event.name_bytes) for event in events]


def test_str_to_events_takes_more_than_one_batch():
    rows = [(number, 1, 0, b"x" * (number % 256)) for number in range(5000)]
    events = str_to_events(b"".join(record(*row) for row in rows))
    assert [(wd, mask, cookie, name.decode()) for wd, mask, cookie, name in rows] == events


@given(st.lists(fields, min_size=1, max_size=4), st.integers(1, 15))
def test_str_to_events_of_a_truncated_record_is_a_value_error(rows, cut):
    with pytest.raises(ValueError, match="cut short"):
        str_to_events(b"".join(record(*row) for row in rows)[:-cut])


@given(st.binary(max_size=400))
def test_str_to_events_of_any_bytes_returns_events_or_raises_value_error(data):
    try:
        events = str_to_events(data)
    except ValueError:
        return
    assert all(isinstance(event, InotifyEvent) for event in events)


def test_str_to_events_with_a_length_beyond_the_end_is_a_value_error():
    with pytest.raises(ValueError, match="cut short"):
        str_to_events(struct.pack("=iIII", 1, 1, 0, 2**32 - 1) + bytes(64))


def test_event_is_a_tuple_of_its_fields():
    event = InotifyEvent(1, IN_CREATE | IN_ISDIR, 7, "name")
    assert (1, 0x40000100, 7, "name") == event
    assert InotifyMask.CREATE | InotifyMask.ISDIR == event.flags
    assert "name" == event.filename


@pytest.mark.parametrize(
    ("bit", "says"),
    [
        (IN_CREATE, {"create_event"}),
        (IN_CLOSE_WRITE, {"close_write_event", "close_event"}),
        (IN_MOVED_FROM, {"moved_from_event", "move_event"}),
        (IN_Q_OVERFLOW, {"overflow_event"}),
        (IN_IGNORED, {"ignored_event"}),
        (IN_UNMOUNT, {"unmount_event"}),
        (IN_ISDIR, {"is_dir_event"}),
    ],
)
def test_event_properties_say_what_the_mask_says(bit, says):
    event = InotifyEvent(1, bit, 0, "")
    questions = [name for name in dir(InotifyEvent) if name.endswith("_event")]
    assert 18 == len(questions)
    assert says == {name for name in questions if getattr(event, name)}


def test_name_that_is_no_text_comes_through():
    (event,) = str_to_events(record(1, 1, 0, b"caf\xe9\xff"))
    assert b"caf\xe9\xff" == event.name_bytes
    assert b"caf\xe9\xff" == os.fsencode(event.name)


@pytest.mark.parametrize(
    ("mask", "name"), [(0x100, "IN_CREATE"), (0x40000100, "IN_CREATE|IN_ISDIR"), (0, ""), (0x10000, "0x10000")]
)
def test_event_name_names_each_bit(mask, name):
    assert name == event_name(mask)
