"""Decision graphs: a verdict as nested questions about words of the call, every part that occurs twice only once."""

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from sandbox.filters.ranges import complement, next_within
from sandbox.filters.rules import Test, Verdict

WORD: Final = 0xFFFFFFFF
NUMBER: Final = 0  # offsets in struct seccomp_data
ARCH: Final = 4
ARGUMENTS: Final = 16

# A graph may have this many times the cells of the plain chain of questions before that chain is taken instead.
_GROWTH: Final = 4
_SLACK: Final = 256


class Node:
    """A question about one word: in which cell does (word & mask) lie?

    Attributes:
        offset: Where the word is.
        mask: What is kept of it.
        cells: The lowest value of each cell, ascending from 0, and what follows.
    """

    __slots__ = ("cells", "mask", "offset")

    def __init__(self, offset: int, mask: int, cells: tuple[tuple[int, "Target"], ...]) -> None:
        self.offset = offset
        self.mask = mask
        self.cells = cells


Target: TypeAlias = Node | int  # an int is the answer
Clauses: TypeAlias = tuple[tuple[tuple[Test, ...], int], ...]


def clauses_of(verdict: Verdict) -> Clauses:
    """Return the tests and the answer of each clause."""
    return tuple((clause.tests, clause.action.code) for clause in verdict)


class _TooLarge(Exception):
    pass


class Graph:
    """Makes nodes, each only once."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Node] = {}
        self._built: dict[Clauses, Target] = {}

    def word(self, offset: int, mask: int, cells: Iterable[tuple[int, Target]]) -> Target:
        """Return the node of a question, or what follows when there is nothing to ask."""
        kept: list[tuple[int, Target]] = []
        for low, target in cells:
            first = next_within(mask, low)
            if first is None:
                break
            if kept and kept[-1][0] == first:
                kept.pop()
            if not kept or kept[-1][1] != target:
                kept.append((first, target))
        if len(kept) == 1:
            return kept[0][1]
        key = (offset, mask, *((low, target if isinstance(target, int) else id(target), isinstance(target, int))
                               for low, target in kept))  # fmt: skip
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(offset, mask, tuple(kept))
        return node

    def argument(self, index: int, mask: int, cells: Sequence[tuple[int, Target]]) -> Target:
        """Return the node of a question about an argument of 64 bits: its upper word first, then its lower."""
        low_offset = ARGUMENTS + 8 * index  # all architectures of the table are little-endian
        upper, lower = mask >> 32, mask & WORD
        if not upper:
            return self.word(low_offset, lower, cells)
        halves: list[tuple[int, list[tuple[int, Target]]]] = []
        for low, target in cells:
            first = next_within(mask, low)
            if first is None:
                break
            high = first >> 32
            if not halves or halves[-1][0] != high:
                halves.append((high, []))
            halves[-1][1].append((first & WORD, target))
        questions: list[tuple[int, Target]] = []
        before = halves[0][1][0][1]
        for position, (high, parts) in enumerate(halves):
            if parts[0][0] != 0:
                parts.insert(0, (0, before))
            questions.append((high, self.word(low_offset, lower, parts)))
            before = parts[-1][1]
            following = halves[position + 1][0] if position + 1 < len(halves) else None
            if following != high + 1:
                questions.append((high + 1, before))
        return self.word(low_offset + 4, upper, questions)

    def verdict(self, verdict: Verdict) -> Target:
        """Return the graph of the clauses of a call."""
        clauses = clauses_of(verdict)
        cost = sum(1 + 2 * len(test.ranges) for tests, _ in clauses for test in tests)
        try:
            return self._shared(clauses, _GROWTH * cost + _SLACK)
        except _TooLarge:
            return self._chain(clauses)

    def _chain(self, clauses: Clauses) -> Target:
        target: Target = clauses[-1][1]
        for tests, code in reversed(clauses[:-1]):
            inside: Target = code
            for test in reversed(tests):
                cells = [(low, inside) for low, _ in test.ranges]
                cells += [(low, target) for low, _ in complement(test.ranges, test.mask)]
                inside = self.argument(test.argument, test.mask, sorted(cells, key=lambda cell: cell[0]))
            target = inside
        return target

    def _shared(self, clauses: Clauses, budget: int) -> Target:
        """Ask about one argument at a time, for all clauses at once."""
        built = self._built
        waiting: list[Clauses] = [clauses]
        split: dict[Clauses, tuple[int, int, list[tuple[int, Clauses]]]] = {}
        while waiting:
            now = waiting[-1]
            if now in built:
                waiting.pop()
            elif not now[0][0]:
                built[now] = now[0][1]
            elif now in split:
                index, mask, cells = split[now]
                built[now] = self.argument(index, mask, [(low, built[rest]) for low, rest in cells])
            else:
                test = now[0][0][0]
                cells = cells_of(now, test.argument, test.mask)
                budget -= len(cells)
                if budget < 0:
                    raise _TooLarge
                split[now] = (test.argument, test.mask, cells)
                waiting += {rest for _, rest in cells if rest not in built}
        return built[clauses]


def cells_of(clauses: Clauses, index: int, mask: int) -> list[tuple[int, Clauses]]:
    """Cut the values of one masked argument into cells, and say what remains to be asked in each."""
    edges = {0}
    for tests, _ in clauses:
        for test in tests:
            if test.argument == index and test.mask == mask:
                for low, high in test.ranges:
                    edges.update((low, high + 1))
    lows = sorted(edge for edge in edges if edge <= mask)
    place = {low: position for position, low in enumerate(lows)}
    # In the cells: the numbers of the clauses that hold there; the rest of their tests is the same in each.
    always: list[int] = []
    inside: list[list[int]] = [[] for _ in lows]
    rests: list[tuple[tuple[Test, ...], int]] = []
    for number, (tests, code) in enumerate(clauses):
        mine = [test for test in tests if test.argument == index and test.mask == mask]
        if not mine:
            always.append(number)
            rests.append((tests, code))
            continue
        rests.append((tuple(test for test in tests if test not in mine), code))
        held: set[int] | None = None
        for test in mine:
            cells = {
                position
                for low, high in test.ranges
                if low <= mask
                for position in range(place[low], place.get(high + 1, len(lows)))
            }
            held = cells if held is None else held & cells
        for position in held or ():
            inside[position].append(number)
    made: dict[tuple[int, ...], Clauses] = {}
    found: list[tuple[int, Clauses]] = []
    for low, numbers in zip(lows, inside, strict=True):
        key = tuple(numbers)
        if key not in made:
            made[key] = _cut([rests[number] for number in (sorted([*numbers, *always]) if numbers else always)])
        found.append((low, made[key]))
    return found


def _cut(clauses: list[tuple[tuple[Test, ...], int]]) -> Clauses:
    """Drop what comes after the first clause without tests."""
    for position, (tests, _) in enumerate(clauses):
        if not tests:
            return tuple(clauses[: position + 1])
    raise AssertionError("the last clause has no tests")
