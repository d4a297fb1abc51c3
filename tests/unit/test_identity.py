import itertools
import os

import pytest

from sandbox import Sandbox, identity
from sandbox.host_ids import space_of
from sandbox.identity import Caller, exchange, inside_ids, lands_as_root, values
from sandbox.rootfs import Owner
from sandbox.subids import layout, parse

ALL = [(0, 2**32 - 1)]
ROOT, USER = Caller(0, 0, privileged=True), Caller(1234, 5678, privileged=False)


def translate(extents, number):
    """Return what an id map makes of an id; None: nothing."""
    for inside, outside, count in extents:
        if inside <= number < inside + count:
            return outside + number - inside
    return None


# ── the map of a mount ──


@pytest.mark.parametrize("owner", [0, 1, 1000, 65534, 70000, 0x70000005, 0x70000006, 2**32 - 2])
def test_exchange_puts_the_owner_in_the_place_of_the_payload(owner):
    extents = exchange(owner, 0, 0x70000005, 1, ALL)
    assert 0x70000005 == translate(extents, owner)
    for other in {0, 1, 999, 1000, 1001, 65534, 70000, 2**32 - 2} - {owner}:
        assert other == translate(extents, other)
    if owner != 0x70000005:
        assert translate(extents, 0x70000005) is None


@pytest.mark.parametrize("owner", [0, 1000, 70000, 1_000_000, 0x78000000, 0x78000010, 0x7800FFFF, 2**32 - 2])
@pytest.mark.parametrize("inside", [0, 1000, 65535])
@pytest.mark.parametrize("mapped", [ALL, [(0, 65536)], [(0, 1000), (5000, 100000)]])
def test_exchange_is_one_to_one(owner, inside, mapped):
    extents = exchange(owner, inside, 0x78000000, 65536, mapped)
    for side in (0, 1):
        spans = sorted((extent[side], extent[side] + extent[2]) for extent in extents)
        assert all(a < b for a, b in spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert 0x78000000 + inside == translate(extents, owner)


def test_exchange_of_a_range_follows_only_where_no_account_is():
    assert translate(exchange(1000, 1000, 0x78000000, 65536, ALL), 0) == 0
    assert translate(exchange(1000, 1000, 0x78000000, 65536, ALL), 1001) == 1001
    assert translate(exchange(100000, 1000, 0x78000000, 65536, ALL), 99000) == 0x78000000
    assert translate(exchange(0, 0, 0x78000000, 65536, ALL), 33) == 0x78000000 + 33
    assert translate(exchange(0, 1000, 0x78000000, 65536, ALL), 33) == 33
    assert translate(exchange(100000, 1000, 0x78000000, 65536, ALL), 0) == 0


# ── what a launch fills in ──


@pytest.mark.parametrize(
    ("box", "who", "ids", "uid_map"),
    [
        (Sandbox(), USER, (1234, 5678), b"1234 1234 1\n"),
        (Sandbox().user(0), USER, (1234, 5678), b"0 1234 1\n"),
        (Sandbox(), ROOT, (9000, 9000), b"1000 9000 1\n"),
        (Sandbox().user(5, 6), ROOT, (9000, 9000), b"5 9000 1\n"),
        (Sandbox().user(0, host_root=True), ROOT, (0, 0), b"0 0 1\n"),
        (Sandbox().user(5, 6).id_ranges(100), ROOT, (9005, 9006), b"0 9000 100\n"),
    ],
)
def test_values_are_the_ids_of_the_caller_or_fresh_ones(box, who, ids, uid_map):
    found, filled = values(box._spec, who, inside_ids(box._spec, who), (), 9000)
    assert ids == found
    assert uid_map == dict(filled)["uid_map"]
    assert list(ids) == [dict(filled)["host_uid"], dict(filled)["host_gid"]]


def test_values_have_two_maps_for_each_owner():
    _, filled = values(Sandbox()._spec, ROOT, (1000, 1000), (Owner(1, 2), Owner(3, 4)), 9000)
    names = {"uid_map_0", "gid_map_0", "uid_map_1", "gid_map_1"}
    assert names <= dict(filled).keys()
    assert b"3 9000 1\n" in dict(filled)["uid_map_1"]
    assert b"4 9000 1\n" in dict(filled)["gid_map_1"]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Sandbox().bind("/srv", owner=0), True),
        (Sandbox().bind("/srv"), False),
        (Sandbox().bind("/srv", owner=1), False),
        (Sandbox().bind_readonly("/srv", owner=0), False),
    ],
)
def test_lands_as_root_where_root_is_named_and_it_can_be_written(box, expected):
    assert expected == lands_as_root(box._spec, ROOT)
    assert not lands_as_root(box._spec, USER)


def test_owner_of_what_is_gone_is_nobodys_and_cannot_be_written():
    box = Sandbox().bind("/no/such/directory", "/x", optional=True)
    entry = identity.owned(box._spec.entries[-1], box._spec, ROOT)
    assert (None, True) == (entry.idmap, bool(entry.attributes & 1))


def test_owner_of_an_id_without_an_account_has_a_group_of_the_same_number(tmp_path):
    box = Sandbox().bind(tmp_path, owner=54321)
    assert Owner(54321, 54321) == identity.owned(box._spec.entries[-1], box._spec, ROOT).idmap


def test_owner_is_the_sources_with_its_group(tmp_path):
    if os.getuid() == 0:
        os.chown(tmp_path, 54321, 54400)
    status = os.stat(tmp_path)
    box = Sandbox().bind(tmp_path)
    assert (status.st_uid, status.st_gid) == identity.owned(box._spec.entries[-1], box._spec, ROOT).idmap


# ── ranges of the caller's ──


def test_parse_takes_ranges_by_name_or_number_and_finds_the_end():
    text = "# no\nalice:100000:65536\nbob:165536:65536\n1000:300000:10\nalice:x:1\nalice:5\n"
    assert ([(100000, 65536), (300000, 10)], 300010) == parse(text, 1000, "alice")
    assert ([], 100000) == parse("", 1000, "alice")


@pytest.mark.parametrize(
    ("inside", "ranges", "count", "expected"),
    [
        (0, [(100, 50)], 10, [(0, 7, 1), (1, 100, 9)]),
        (4, [(100, 50)], 10, [(0, 100, 4), (4, 7, 1), (5, 104, 5)]),
        (9, [(100, 50)], 10, [(0, 100, 9), (9, 7, 1)]),
        (99, [(100, 50)], 10, [(0, 100, 10), (99, 7, 1)]),
        (2, [(100, 1), (200, 1), (300, 9)], 6, [(0, 100, 1), (1, 200, 1), (2, 7, 1), (3, 300, 3)]),
        (0, [], 1, [(0, 7, 1)]),
    ],
)
def test_layout_keeps_the_callers_own_id(inside, ranges, count, expected):
    assert expected == layout(inside, 7, ranges, count)


# ── which ids are given away ──


@pytest.mark.parametrize(
    ("maps", "single", "blocks"),
    [
        ((ALL, ALL), range(0x70000000, 0x78000000), range(0x78000000, 0x7FFF0000, 65536)),
        (([(0, 65536)], [(0, 65536)]), range(32768, 40959), range(40959, 57344, 8191)),
        (([(0, 1), (1, 99999)], [(0, 65536)]), range(32768, 40959), range(40959, 57344, 8191)),
    ],
)
def test_space_is_what_nobody_uses_or_the_upper_half(maps, single, blocks):
    space = space_of(*maps)
    assert single == space.single
    assert (blocks.start, blocks.step) == (space.blocks.start, space.blocks.step)
    last = space.blocks[-1] + space.blocks.step
    assert last <= min(sum(maps[0][-1]), sum(maps[1][-1])) - 2


def test_space_of_a_small_namespace_is_an_error():
    with pytest.raises(OSError, match="fresh host uid") as caught:
        space_of([(0, 100)], [(0, 65536)])
    assert "ids up to 99 only" in caught.value.found
