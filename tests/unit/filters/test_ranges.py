from hypothesis import given, strategies as st

from sandbox.filters.ranges import Masked, complement, holds, intersection, next_within, smallest, union, unmasked

values = st.integers(0, 255)
sets = st.lists(st.tuples(values, values), max_size=4).map(union)


@given(values, st.integers(0, 300))
def test_next_within_is_the_smallest_value_of_the_mask(mask: int, number: int) -> None:
    expected = min((x & mask for x in range(256) if x & mask >= number), default=None)
    assert expected == next_within(mask, number)


@given(sets, sets)
def test_sets_behave_as_sets(one, other) -> None:
    for x in range(256):
        assert holds(one, x) != holds(complement(one, 255), x)
        assert (holds(one, x) and holds(other, x)) == holds(intersection(one, other), x)
        assert (holds(one, x) or holds(other, x)) == holds(union([*one, *other]), x)


@given(st.lists(st.tuples(values, sets), max_size=4))
def test_smallest_is_the_first_number_in_every_set(constraints) -> None:
    expected = min(
        (x for x in range(256) if all(holds(ranges, x & mask) for mask, ranges in constraints)), default=None
    )
    assert expected == smallest([Masked(mask, ranges) for mask, ranges in constraints], 8)


@given(values, sets)
def test_unmasked_is_the_same_set(mask: int, ranges) -> None:
    other = unmasked(Masked(mask, ranges), 8)
    for x in range(256):
        assert holds(ranges, x & mask) == holds(other.ranges, x & other.mask)


def test_unmasked_drops_a_mask_of_the_upper_bits() -> None:
    assert Masked(0xFF, ((0x20, 0x3F),)) == unmasked(Masked(0xF0, ((0x15, 0x30),)), 8)


def test_smallest_many_bits_is_found_without_trying_them_all() -> None:
    wide = Masked(0x5555555555555555, ((0, 0),))
    narrow = Masked(0xFFFFFFFFFFFFFFFE, complement(((0, 0),), 2**64 - 1))
    assert 2 == smallest([wide, narrow], 64)
    assert smallest([wide, Masked(1, ((1, 1),))], 64) is None
