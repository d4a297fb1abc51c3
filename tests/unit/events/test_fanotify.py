"""Fanotify records become events, whatever the bytes, and events that were not read own nothing."""

import os
import struct

import pytest
from hypothesis import given, strategies as st

from sandbox.events.fanotify import (
    FAN_CREATE,
    FAN_DENY,
    FAN_DENY_ERRNO,
    FAN_FS_ERROR,
    FAN_MNT_ATTACH,
    FAN_OPEN_PERM,
    FAN_PRE_ACCESS,
    FAN_RENAME,
    Fanotify,
    FanotifyMask,
    str_to_events,
)

HANDLE = b"fsid8byt" + struct.pack("=Ii", 8, 1) + b"inode-12"
OTHER = b"fsid8byt" + struct.pack("=Ii", 12, 2) + b"another-file"


def info(kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def event(mask: int, *infos: bytes, fd: int = -1, pid: int = 42) -> bytes:
    rest = b"".join(infos)
    return struct.pack("=IBBHQii", 24 + len(rest), 3, 0, 24, mask, fd, pid) + rest


def test_descriptor_and_pid_are_found():
    (one,) = str_to_events(event(FAN_OPEN_PERM, fd=7, pid=99))
    assert (0x10000, 7, 99, -1, None) == (one.mask, one.fd, one.pid, one.pidfd, one.name)
    assert one.is_permission is True


def test_directory_name_and_target_are_found():
    (one,) = str_to_events(
        event(FAN_CREATE, info(2, HANDLE + b"caf\xe9\0"), info(1, OTHER), info(4, struct.pack("=i", 9)))
    )
    assert (HANDLE, OTHER, 9) == (one.directory_handle, one.file_handle, one.pidfd)
    assert b"caf\xe9" == os.fsencode(one.name)
    assert one.new_name is None


def test_rename_has_both_names():
    (one,) = str_to_events(event(FAN_RENAME, info(10, HANDLE + b"old\0"), info(12, OTHER + b"new\0")))
    assert (HANDLE, "old", OTHER, "new") == (
        one.directory_handle,
        one.name,
        one.new_directory_handle,
        one.new_name,
    )


def test_range_mount_and_error_are_found():
    events = str_to_events(
        event(FAN_PRE_ACCESS, info(6, struct.pack("=IQQ", 0, 4096, 8192)), fd=3)
        + event(FAN_MNT_ATTACH, info(7, struct.pack("=IQ", 0, 2**40)))
        + event(FAN_FS_ERROR, info(5, struct.pack("=iI", 117, 3)))
    )
    assert [(4096, 8192), None, None] == [one.range for one in events]
    assert [None, 2**40, None] == [one.mount_id for one in events]
    assert [None, None, (117, 3)] == [one.error for one in events]


def test_information_of_an_unknown_kind_is_passed_over():
    (one,) = str_to_events(event(FAN_CREATE, info(200, b"what is this"), info(2, HANDLE + b"name\0")))
    assert "name" == one.name


@given(st.integers(1, 70))
def test_str_to_events_of_a_truncated_record_is_a_value_error(cut):
    whole = event(FAN_CREATE, info(2, HANDLE + b"name\0"), info(1, OTHER))
    with pytest.raises(ValueError, match="cut short"):
        str_to_events(whole[: len(whole) - min(cut, len(whole) - 1)])


@given(st.integers(0, 91), st.integers(0, 255))
def test_str_to_events_of_a_damaged_record_stays_within_it(at, byte):
    whole = bytearray(event(FAN_CREATE, info(2, HANDLE + b"name\0"), info(1, OTHER), fd=-1))
    whole[at % len(whole)] = byte
    try:
        str_to_events(bytes(whole))
    except ValueError as error:
        assert "cut short" in str(error)


def test_str_to_events_of_a_record_full_of_handles_is_read():
    empty = b"fsid8byt" + struct.pack("=Ii", 0, 1)
    handles = [info(1, empty), info(1, HANDLE)] * 500
    (one,) = str_to_events(event(FAN_CREATE, *handles))
    assert HANDLE == one.file_handle


def test_str_to_events_of_too_much_is_a_value_error():
    with pytest.raises(ValueError, match="at most 32768 bytes"):
        str_to_events(bytes(32769))


def test_event_that_was_not_read_owns_no_descriptor_and_cannot_be_answered():
    read_end, write_end = os.pipe()
    (one,) = str_to_events(event(FAN_OPEN_PERM, fd=read_end))
    with pytest.raises(ValueError, match="cannot be answered"):
        one.allow()
    one.close()
    del one
    os.close(read_end)
    os.close(write_end)


def test_events_compare_by_identity():
    one, other = str_to_events(event(FAN_CREATE) * 2)
    assert one != other
    assert 2 == len({one, other})


def test_flags_are_the_mask():
    (one,) = str_to_events(event(FAN_CREATE | FanotifyMask.ONDIR))
    assert FanotifyMask.CREATE | FanotifyMask.ONDIR == one.flags
    assert one.is_dir_event is True


def test_deny_errno_is_in_the_upper_byte():
    assert FAN_DENY | 28 << 24 == FAN_DENY_ERRNO(28)
    with pytest.raises(ValueError, match="between 1 and 255"):
        FAN_DENY_ERRNO(256)


def test_unanswered_is_allow_or_deny():
    with pytest.raises(ValueError, match='"allow" or "deny"'):
        Fanotify(unanswered="maybe")
