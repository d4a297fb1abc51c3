"""Rows of a benchmark: contenders that take turns, CPU time, ratios, a table and a chart."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from charts import Bar, Group, bars
from rich.console import Console
from rich.table import Table


@dataclass
class Contender:
    """Something that does the work of a row.

    Attributes:
        run: Does it once; returns how many operations that were. Only this is timed; one whose preparation does not
            fit before it times itself, and returns the CPU nanoseconds too.
        prepare: Makes the work, before each run.
        close: Puts everything away.
    """

    run: Callable[[], int | tuple[int, int]]
    prepare: Callable[[], object] = lambda: None
    close: Callable[[], object] = lambda: None


@dataclass
class Target:
    """How fast one contender has to be, measured by another.

    Attributes:
        who: The contender.
        peer: The yardstick.
        at_least: Times as fast: the peer's CPU time over the contender's. Below 1 it may be slower.
        beyond: A contender that does only what neither of the two can spare: its time is taken off both.
    """

    who: str
    peer: str
    at_least: float
    beyond: str | None = None


class Row:
    """One line of the table: what is measured, by whom, and what has to come out.

    A subclass sets `title`, `unit` and `targets` and makes its contenders; one that cannot be made here (a module or
    a peer that is not installed, a privilege that is missing) says why by ImportError, AttributeError, OSError.
    """

    title = ""
    unit = "operation"
    targets: Sequence[Target] = ()

    def contenders(self) -> Iterable[tuple[str, Callable[[], Contender]]]:
        raise NotImplementedError

    def close(self) -> None:
        """Put away what the contenders shared."""


@dataclass
class Result:
    """What came out of a row.

    Attributes:
        cost: Median CPU nanoseconds an operation, by contender.
        missing: Why a contender did not run.
        ratios: The ratio of each target, None when one of its two did not run.
    """

    row: Row
    cost: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ratios: list[float | None] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        pairs = zip(self.row.targets, self.ratios, strict=True)
        return all(ratio is not None and ratio >= target.at_least for target, ratio in pairs)


def measure(row: Row, rounds: int) -> Result:
    """Let the contenders of a row take turns; the median of the ratios within each round counts."""
    result = Result(row)
    made: dict[str, Contender] = {}
    costs: dict[str, list[float]] = {}
    try:
        for name, make in row.contenders():
            try:
                made[name] = make()
                made[name].prepare()
                made[name].run()  # warms up, and shows whether it works at all
                costs[name] = []
            except (ImportError, AttributeError, OSError) as error:
                result.missing[name] = f"{type(error).__name__}: {error}"
        names = list(costs)
        for number in range(rounds):
            # In an order that changes: whoever is first finds colder caches.
            for name in names[number % len(names) :] + names[: number % len(names)] if names else ():
                one = made[name]
                one.prepare()
                gc.collect()
                gc.disable()
                before = time.process_time_ns()
                done = one.run()
                spent = time.process_time_ns() - before
                if isinstance(done, tuple):
                    done, spent = done
                gc.enable()
                costs[name].append(spent / done)
    finally:
        for one in made.values():
            one.close()
        row.close()
    result.cost = {name: statistics.median(values) for name, values in costs.items()}
    for target in row.targets:
        if {target.who, target.peer, target.beyond or target.peer} <= costs.keys():
            common = costs[target.beyond] if target.beyond else [0.0] * rounds
            three = zip(costs[target.peer], costs[target.who], common, strict=True)
            result.ratios.append(statistics.median((peer - base) / max(ours - base, 1) for peer, ours, base in three))
        else:
            result.ratios.append(None)
    return result


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table."""
    table = Table(title="CPU time, contenders interleaved; ratio: times as fast as the peer")
    for name, justify in [("what", "left"), ("contender", "left"), ("ns each", "right"), ("peer", "left"),
                          ("at least", "right"), ("ratio", "right"), ("", "left")]:  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for result in results:
        row = result.row
        first = f"{row.title} [dim]({row.unit})[/dim]"
        for target, ratio in zip(row.targets, result.ratios, strict=True):
            cost = result.cost.get(target.who)
            if ratio is None:
                named = (target.who, target.peer, target.beyond or "")
                absent = next((name for name in named if name in result.missing), target.peer)
                verdict = f"[yellow]missing: {absent}: {result.missing.get(absent, 'not there')}"
            else:
                verdict = "[green]pass" if ratio >= target.at_least else "[red]MISS"
            table.add_row(
                first,
                target.who,
                "" if cost is None else f"{cost:,.0f}",
                target.peer + (f", beyond {target.beyond}" if target.beyond else ""),
                f"{target.at_least:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                verdict,
            )
            first = ""
        aimed = {target.who for target in row.targets}
        for name, cost in result.cost.items():
            if name not in aimed:
                table.add_row(first, f"[dim]{name}", f"[dim]{cost:,.0f}", "", "", "", "")
                first = ""
        for name, why in result.missing.items():
            if name not in aimed and name not in {target.peer for target in row.targets}:
                table.add_row(first, f"[dim]{name}", "", "", "", "", f"[dim]{why}")
                first = ""
        table.add_section()
    console.print(table)


def chart(results: Sequence[Result]) -> str:
    """Return a chart as SVG: for each row, how long each contender takes next to the slowest."""
    groups = [
        Group(
            result.row.title,
            [
                Bar(name, cost, _nanoseconds(cost), _kind(name))
                for name, cost in sorted(result.cost.items(), key=lambda item: item[1])
            ],
        )
        for result in results
        if result.cost
    ]
    return bars("CPU time for each event or operation, shorter is better", groups)


def _kind(name: str) -> str:
    return "ours" if name.startswith("sandbox") else "limit" if "C loop" in name else "peer"


def _nanoseconds(cost: float) -> str:
    if cost >= 10_000_000:
        return f"{cost / 1e6:,.0f} ms"
    return f"{cost:,.0f} ns" if cost < 10_000 else f"{cost / 1000:,.1f} µs"
