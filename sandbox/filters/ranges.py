"""Sets of numbers that a comparison describes: ranges of a masked word, and the smallest number in several of them."""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # ascending, disjoint, not adjacent; both ends included


class Masked(NamedTuple):
    """The numbers x with (x & mask) inside of one of the ranges."""

    mask: int
    ranges: Ranges


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sort and join ranges; empty ones (low above high) vanish."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if low > high:
            continue
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def complement(ranges: Ranges, top: int) -> Ranges:
    """Return what lies between 0 and top and outside of the ranges."""
    rest: list[tuple[int, int]] = []
    next_low = 0
    for low, high in ranges:
        if low > next_low:
            rest.append((next_low, low - 1))
        next_low = high + 1
    if next_low <= top:
        rest.append((next_low, top))
    return tuple(rest)


def holds(ranges: Ranges, number: int) -> bool:
    """Tell whether the number lies in one of the ranges."""
    return any(low <= number <= high for low, high in ranges)


def next_within(mask: int, number: int) -> int | None:
    """Return the smallest value of `x & mask` that is at least `number`, or None when there is none."""
    if number <= 0:
        return 0
    if number & ~mask == 0:
        return number
    if number > mask:
        return None
    # The highest bit that the mask cannot give: above it something must grow, below it all is zero.
    bit = 1 << ((number & ~mask).bit_length() - 1)
    kept = number & mask & ~(bit - 1)
    while bit <= mask:
        bit <<= 1
        if bit & mask and not kept & bit:
            return (kept | bit) & ~(bit - 1)
    return None


def intersection(one: Ranges, other: Ranges) -> Ranges:
    """Return what lies in both."""
    if len(one) == 1 and len(other) == 1:
        low, high = max(one[0][0], other[0][0]), min(one[0][1], other[0][1])
        return ((low, high),) if low <= high else ()
    return union((max(a, c), min(b, d)) for a, b in one for c, d in other)


def unmasked(masked: Masked, bits: int) -> Masked:
    """Return the same set without a mask, where the mask only cuts off the lowest bits."""
    mask, ranges = masked
    step = mask & -mask
    if step <= 1 or mask + step != 1 << bits:
        return masked
    whole = union((-(-low // step) * step, high // step * step + step - 1) for low, high in ranges)
    return Masked((1 << bits) - 1, whole)


def smallest(constraints: Iterable[Masked], bits: int) -> int | None:
    """Return the smallest number that belongs to every set, or None when no number does.

    Args:
        constraints: The sets.
        bits: Width of the number.
    """
    by_mask: dict[int, Ranges] = {}
    for one in constraints:
        mask, ranges = unmasked(one, bits)
        by_mask[mask] = intersection(by_mask[mask], ranges) if mask in by_mask else ranges
    if len(by_mask) <= 1:
        for mask, ranges in by_mask.items():
            for low, high in ranges:
                first = next_within(mask, low)
                if first is not None and first <= high:
                    return first
            return None
        return 0
    state = tuple(Masked(mask, ranges) for mask, ranges in sorted(by_mask.items()))
    return _descend(state, bits, set())


def _descend(state: tuple[Masked, ...], bits: int, dead: set[tuple[int, tuple[Masked, ...]]]) -> int | None:
    """Choose the bits from the highest on; a state is what the ranges leave for the bits that are still open."""
    if not state:
        return 0
    if bits == 0 or (bits, state) in dead:
        return None
    half = 1 << (bits - 1)
    for chosen in (0, half):
        rest = _narrowed(state, half, chosen)
        if rest is not None:
            lower = _descend(rest, bits - 1, dead)
            if lower is not None:
                return chosen | lower
    dead.add((bits, state))
    return None


def _narrowed(state: tuple[Masked, ...], half: int, chosen: int) -> tuple[Masked, ...] | None:
    """Return what one more bit leaves of each set; None when it leaves nothing of one."""
    rest: list[Masked] = []
    for mask, ranges in state:
        base = mask & chosen
        top = base + half - 1
        left = tuple(
            (max(low, base) - base, min(high, top) - base) for low, high in ranges if low <= top and high >= base
        )
        if not left:
            return None
        if left != ((0, half - 1),):
            rest.append(Masked(mask & (half - 1), left))
    return tuple(rest)
