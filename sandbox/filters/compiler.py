"""From rules to a program: one graph for all architectures, laid out from the last instruction to the first."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from sandbox.errors import FilterError
from sandbox.filters.actions import Action, Errno, Kill
from sandbox.filters.bpf import AND, JA, JEQ, JGE, JSET, LD, MAX_INSTRUCTIONS, RET, Instruction
from sandbox.filters.graph import ARCH, NUMBER, WORD, Graph, Node, Target
from sandbox.filters.ranges import next_within
from sandbox.filters.rules import Rule, Verdict, verdicts
from sandbox.filters.table import AUDIT, FAMILIES, X32_BIT, Arch, calls

# What a kernel answers that was built without x32, and so what a filter answers that does not serve it.
NO_X32: Final = Errno("ENOSYS")
# An architecture that the filter does not serve: its numbers mean other calls.
FOREIGN: Final = Kill

_REACH: Final = 253  # a jump reaches 255; two instructions may come between before it is laid down
_LINEAR: Final = 3  # so many single values are compared one after the other


def compile_rules(
    rules: Sequence[Rule], default: Action, unknown: Action | None, arches: Sequence[Arch]
) -> tuple[Instruction, ...]:
    """Compile rules into a program.

    Args:
        rules: The last that matches decides.
        default: The action when no rule matches.
        unknown: The action for numbers that the table does not have; None: the default.
        arches: The architectures served, the most frequent first.

    Raises:
        FilterError: It would have more than 4,096 instructions; names the rules that cost most.
    """
    graph = Graph()
    by_arch = {arch: verdicts(rules, default, arch) for arch in arches}
    program = _lay_out(_roots(graph, by_arch, default, unknown))
    if len(program) > MAX_INSTRUCTIONS:
        raise FilterError(_costs(len(program), by_arch, rules))
    return program


def _roots(
    graph: Graph, by_arch: Mapping[Arch, Mapping[str, Verdict]], default: Action, unknown: Action | None
) -> list[tuple[int, Target]]:
    """Return what follows for each AUDIT_ARCH_* value, in the order to ask."""
    other = default if unknown is None else unknown
    followers: dict[Verdict, Target] = {}
    spaces: dict[int, dict[int, Target]] = {}
    for arch, found in by_arch.items():
        space = spaces.setdefault(AUDIT[arch], {})
        for call, number in calls().numbers[arch].items():
            verdict = found.get(call)
            if verdict is None:
                # Two names of one number: a rule for either counts.
                space.setdefault(number, default.code)
            else:
                if verdict not in followers:
                    followers[verdict] = graph.verdict(verdict)
                space[number] = followers[verdict]
    roots: list[tuple[int, Target]] = []
    for audit, space in spaces.items():
        served = [arch for arch in by_arch if AUDIT[arch] == audit]
        # Two halves of one number space, where x86_64 and x32 share it.
        beyond: dict[int, Action] = {0: other}
        if audit == AUDIT["x86_64"]:
            beyond = {
                0: other if "x86_64" in served else FOREIGN,
                X32_BIT: other if "x32" in served else NO_X32,
            }
        edges = sorted({*beyond, *space, *(number + 1 for number in space)})
        cells: list[tuple[int, Target]] = []
        rest = other
        for edge in edges:
            rest = beyond.get(edge, rest)
            cells.append((edge, space.get(edge, rest.code)))
        roots.append((audit, graph.word(NUMBER, WORD, cells)))
    return roots


def _costs(length: int, by_arch: Mapping[Arch, Mapping[str, Verdict]], rules: Sequence[Rule]) -> str:
    sizes: dict[int, int] = {}
    for found in by_arch.values():
        for verdict in set(found.values()):
            size = len(_lay_out([(0, Graph().verdict(verdict))]))
            for number in {clause.rule for clause in verdict if clause.rule >= 0}:
                sizes[number] = sizes.get(number, 0) + size
    worst = sorted(sizes, key=lambda number: (-sizes[number], number))[:3]
    listed = "; ".join(f"rule {number + 1}, {rules[number]}" for number in worst)
    return (
        f"the program would have {length} instructions, the kernel takes {MAX_INSTRUCTIONS}; "
        f"the calls of these rules cost most: {listed}"
    )


# ── layout ──────────────────────────────────────────────────────────────────────────────────────────────────────────
_Segment: TypeAlias = tuple[
    int, Target, list[tuple[int, Target]]
]  # from where; what follows; single values that differ
_Key: TypeAlias = tuple[Target, int]  # a node and the offset of the word that is loaded already, or -1


def _segments(node: Node) -> list[_Segment]:
    """Cut the cells into stretches with one common follower and single values that differ from it."""
    cells, mask = node.cells, node.mask
    single = [
        next_within(mask, low + 1) == (cells[position + 1][0] if position + 1 < len(cells) else None)
        for position, (low, _) in enumerate(cells)
    ]
    found: list[_Segment] = []
    position = 0
    while position < len(cells):
        low, base = cells[position]
        differing: list[tuple[int, Target]] = []
        position += 1
        while position < len(cells):
            end = position
            while end < len(cells) and single[end] and cells[end][1] != base:
                end += 1
            if end == position or (end < len(cells) and cells[end][1] != base):
                break
            differing += cells[position:end]
            position = end + 1
        while len(differing) > _LINEAR:
            size = _LINEAR if len(differing) < 2 * _LINEAR else len(differing) // 2
            found += _halves(low, base, differing[:size])
            low = differing[size][0]
            differing = differing[size:]
        found.append((low, base, differing))
    return found


def _halves(low: int, base: Target, differing: list[tuple[int, Target]]) -> list[_Segment]:
    if len(differing) <= _LINEAR:
        return [(low, base, differing)]
    middle = len(differing) // 2
    return [*_halves(low, base, differing[:middle]), *_halves(differing[middle][0], base, differing[middle:])]


class _Layout:
    """Writes instructions from the end of the program to its start; a position counts from the end."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.placed: dict[_Key, int] = {}

    def answer(self, code: int) -> int:
        key = (code, -1)
        position = self.placed.get(key)
        if position is None or len(self.code) - position > _REACH:
            position = self.placed[key] = self._append(RET, 0, 0, code)
        return position

    def node(self, node: Node, loaded: int) -> int:
        """Write a node whose followers are written; return where it starts."""
        if _is_bit_test(node):
            (_, zero), (_, other) = node.cells
            start = self._jump(JSET, node.mask, self._follower(node, other), self._follower(node, zero))
        else:
            start = self._search(node, _segments(node))
            if node.mask != WORD:
                start = self._before(start, AND, node.mask)
        if loaded != node.offset:
            start = self._before(start, LD, node.offset)
        return start

    def roots(self, roots: Sequence[tuple[int, Target]], starts: Sequence[int]) -> None:
        position = self.answer(FOREIGN.code)
        for (audit, _), start in zip(reversed(roots), reversed(starts), strict=True):
            position = self._jump(JEQ, audit, start, position)
        self._before(position, LD, ARCH)

    def _search(self, node: Node, segments: Sequence[_Segment]) -> int:
        if len(segments) == 1:
            _, base, differing = segments[0]
            position = self._follower(node, base)
            for value, target in reversed(differing):
                position = self._jump(JEQ, value, self._follower(node, target), position)
            return position
        middle = len(segments) // 2
        above = self._search(node, segments[middle:])
        below = self._search(node, segments[:middle])
        return self._jump(JGE, segments[middle][0], above, below)

    def _follower(self, node: Node, target: Target) -> int:
        return self.answer(target) if isinstance(target, int) else self.placed[target, _left(node, target)]

    def _jump(self, code: int, k: int, yes: int, no: int) -> int:
        if yes == no:
            return yes
        yes, no = self._near(yes), self._near(no)
        here = len(self.code)
        return self._append(code, here - yes - 1, here - no - 1, k)

    def _near(self, position: int) -> int:
        """Return a position within the reach of a jump that goes where this one goes."""
        if len(self.code) - position <= _REACH:
            return position
        target = self.code[position]
        if target.code == RET:
            return self.answer(target.k)
        return self._append(JA, 0, 0, len(self.code) - position - 1)

    def _before(self, position: int, code: int, k: int) -> int:
        """Write an instruction that goes on at this position."""
        if position != len(self.code) - 1:
            target = self.code[position]
            if target.code == RET:
                self._append(*target)
            else:
                self._append(JA, 0, 0, len(self.code) - position - 1)
        return self._append(code, 0, 0, k)

    def _append(self, code: int, jt: int, jf: int, k: int) -> int:
        self.code.append(Instruction(code, jt, jf, k))
        return len(self.code) - 1


def _is_bit_test(node: Node) -> bool:
    """Tell whether the question is only: is any bit of the mask set?"""
    return node.mask != WORD and len(node.cells) == 2 and node.cells[1][0] == node.mask & -node.mask


def _left(node: Node, follower: Node) -> int:
    """Return the word that a node leaves loaded, if its follower asks about the same: its offset, or -1."""
    unchanged = node.mask == WORD or _is_bit_test(node)
    return node.offset if unchanged and follower.offset == node.offset else -1


def _lay_out(roots: Sequence[tuple[int, Target]]) -> tuple[Instruction, ...]:
    layout = _Layout()
    starts = []
    # The first architecture last, so that it lies nearest to the start.
    for _, root in reversed(roots):
        if isinstance(root, int):
            starts.append(layout.answer(root))
            continue
        waiting: list[tuple[Node, int]] = [(root, -1)]
        while waiting:
            node, loaded = waiting[-1]
            if (node, loaded) in layout.placed:
                waiting.pop()
                continue
            missing = [
                (follower, _left(node, follower))
                for _, follower in node.cells
                if isinstance(follower, Node) and (follower, _left(node, follower)) not in layout.placed
            ]
            if missing:
                waiting += missing
            else:
                layout.placed[node, loaded] = layout.node(node, loaded)
                waiting.pop()
        starts.append(layout.placed[root, -1])
    layout.roots(roots, starts[::-1])
    return tuple(reversed(layout.code))


def order_arches(arches: Sequence[Arch]) -> tuple[Arch, ...]:
    """Return architectures in one order, whatever order they were named in: equal filters are equal programs."""
    return tuple(arch for family in FAMILIES for arch in family if arch in arches)
