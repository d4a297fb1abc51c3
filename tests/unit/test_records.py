"""Records as init writes them."""

import math
import pickle
import struct

import pytest

from sandbox.compiler import Layers
from sandbox.records import R_ENDED, RECORD_SIZE, parse_identity, parse_record, parse_usage, request
from sandbox.result import Usage


def test_record_is_read_field_by_field():
    raw = struct.pack("<2I2iq", R_ENDED, 7, -1, 2, -(2**40)).ljust(RECORD_SIZE, b"x")
    record = parse_record(raw, (5,))
    assert (R_ENDED, 7, -1, 2, -(2**40), (5,)) == (*record[:5], record.fds)
    assert b"x" * (RECORD_SIZE - 24) == record.body


@pytest.mark.parametrize("size", [0, 1, 23, 24, RECORD_SIZE - 1, RECORD_SIZE + 1, 1 << 16])
def test_record_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match="1024 bytes"):
        parse_record(bytes(size), ())


def test_request_is_a_record():
    assert (66, 3, 0, 0, 9) == parse_record(request(66, id_=3, value=9), ())[:5]


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\x80", b"A"])
def test_identity_forged_is_read_without_a_crash(filling):
    enforced = parse_identity(filling * (RECORD_SIZE - 24))
    assert len(enforced.groups) <= 200
    assert 5 == len(enforced.capabilities)


def test_identity_names_capabilities_and_groups():
    body = struct.pack("<8I5Q", 1, 2, 0xEF, 1, 0, 2, 2, 0, 1, 1 << 40, 1 << 63, 0, 0) + struct.pack(
        "<5Q176I", 1, 2, 3, 2**64 - 1, 5, 9, 8, *[0] * 174
    )
    enforced = parse_identity(body, Layers(gaps=("gap",)))
    assert (1, 2, (9, 8), 0xEF, True, False) == (
        enforced.uid,
        enforced.gid,
        enforced.groups,
        enforced.securebits,
        enforced.no_new_privs,
        enforced.dumpable,
    )
    assert frozenset({"CHOWN"}) == enforced.capabilities["effective"]
    assert frozenset({"CHECKPOINT_RESTORE"}) == enforced.capabilities["permitted"]
    assert [1, 2, 3, math.inf, 5] == list(enforced.limits.values())
    assert frozenset({"63"}) == enforced.capabilities["inheritable"]
    assert ("gap",) == enforced.gaps
    assert enforced == pickle.loads(pickle.dumps(enforced))


def test_usage_has_seconds_and_bytes():
    usage = parse_usage(struct.pack("<10q", 1_500_000, 500_000, 3, 0, 0, 2, 4, 5, 6, 2_000_000_000) + bytes(900))
    assert Usage(2.0, 1.5, 0.5, 2.0, 3072, None, None, 1024, 2048, 11, None) == usage
