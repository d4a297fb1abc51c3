"""Events: CPU time of each kind against its peers and, where there is one, against a loop in C that builds nothing.

    python benchmarks/events.py                     # everything, two minutes; root for fanotify in FD mode
    python benchmarks/events.py --quick             # one short round of each: does all work?
    python benchmarks/events.py --only inotify      # the rows whose title holds the word
    python benchmarks/events.py --chart docs/events.svg

It measures the *installed* package. The exit status is 1 when a target is missed or could not be measured.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from event_rows import ROWS
from rich.console import Console
from rows import chart, measure, show


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time of event-like objects against their peers")
    parser.add_argument("--quick", action="store_true", help="two rounds of each row")
    parser.add_argument("--rounds", type=int, default=31, help="how often the contenders take turns (31)")
    parser.add_argument("--only", default="", help="rows whose title holds this")
    parser.add_argument("--chart", type=Path, help="write a chart (SVG)")
    parser.add_argument("--json", type=Path, help="write everything")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = []
    for row in ROWS:
        if options.only in row.title:
            console.print(f"[dim]{row.title} ...", highlight=False)
            results.append(measure(row(), 2 if options.quick else options.rounds))
    show(results, console)
    if options.chart:
        options.chart.write_text(chart(results))
    if options.json:
        data = [{"what": one.row.title, "ns": one.cost, "missing": one.missing, "ratios": one.ratios,
                 "targets": [vars(target) for target in one.row.targets]} for one in results]  # fmt: skip
        options.json.write_text(json.dumps(data, indent=1))
    if os.geteuid() != 0:
        console.print("[dim]not root: fanotify in FD mode was not measured")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
