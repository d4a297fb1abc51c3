#!/usr/bin/env python3
"""What does a sandbox cost? Measures `sandbox.run` against the C program limit.c and against peers.

All contenders take turns in one run, so that the machine's noise falls on all alike, and a figure is the
median of the ratios within each round. Of three runs the best one counts. The exit status is 1 when a target
is missed or could not be measured.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable

import charts
import contenders
import loops
import processes
from contenders import Missing
from processes import Worker, interleave, percentile

GIB = 1 << 30


@dataclasses.dataclass
class Row:
    """One figure. `bound` is the target; a row without one is there to be read."""

    group: str
    name: str
    unit: str
    bound: float | None = None
    aim: float | None = None
    more_is_better: bool = False
    runs: list[float] = dataclasses.field(default_factory=list)
    note: str = ""
    skipped: bool = False  # cannot be measured with these privileges; not the fault of what is measured

    @property
    def figure(self) -> float | None:
        if not self.runs:
            return None
        return max(self.runs) if self.more_is_better else min(self.runs)

    def meets(self, wanted: float) -> bool:
        assert self.figure is not None
        return self.figure >= wanted if self.more_is_better else self.figure <= wanted

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "skipped"
        if self.figure is None:
            return "MISSING" if self.bound is not None else "missing"
        if self.bound is None:
            return ""
        if not self.meets(self.bound):
            return "MISSED"
        return "aim met" if self.aim is not None and self.meets(self.aim) else "met"


@dataclasses.dataclass
class Times:
    """How long one contender took, in ns, and its ratios to limit.c; of all rounds of all runs."""

    name: str
    values: list[int] = dataclasses.field(default_factory=list)
    ratios: list[float] = dataclasses.field(default_factory=list)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None


@dataclasses.dataclass
class Settings:
    rounds: int
    runs: int
    quick: bool
    subject: str
    peers: bool
    variants: bool
    observer: Worker | None  # a process that kept root's eyes
    leak_finder: Worker | None


Result = tuple[list[Row], list[Times]]


# ---- the groups


def ratios_of(left: Iterable[float], right: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(left, right, strict=True)]


def median_ratio(left: Iterable[float], right: Iterable[float]) -> float:
    return statistics.median(ratios_of(left, right))


def measure_launch(settings: Settings) -> Result:
    """Launch latency, one after the other."""
    names = list(contenders.CONTENDERS)
    names += contenders.VARIANTS if settings.variants else ()
    names += contenders.PEERS if settings.peers else ()
    ready, missing = {}, {}
    for name in names:
        try:
            ready[name] = contenders.make(name)
        except Missing as reason:
            missing[name] = str(reason)
    times = {name: Times(name, note=missing.get(name, "")) for name in names}
    bare = "without network namespace"
    ratios = [
        (Row("launch", "the job / limit", "x", 1.30, 1.15), "the job", "limit"),
        (Row("launch", f"the job / limit, {bare}", "x", 1.55, 1.35), "the job, no netns", "limit, no netns"),
        (Row("launch", "sandbox.run / limit", "x", 1.60), "sandbox.run", "limit"),
        (Row("launch", "popen and wait / sandbox.run", "x", 1.05), "popen and wait", "sandbox.run"),
        (Row("launch", "bwrap / the job", "x", 2.2, 3.0, more_is_better=True), "bwrap", "the job"),
    ]
    for _ in range(settings.runs):
        run = interleave(ready, settings.rounds)
        for row, left, right in ratios:
            if left in ready and right in ready:
                row.runs.append(median_ratio(run[left], run[right]))
            else:
                row.note = next(f"{name}: {missing[name]}" for name in (left, right) if name in missing)
        for name in ready:
            times[name].values += run[name]
            if "limit" in ready:
                times[name].ratios += ratios_of(run[name], run["limit"])
    return [row for row, _, _ in ratios], list(times.values())


def measure_memory(settings: Settings) -> Result:
    """The launch of a large process against that of a small one."""
    rows = []
    small, large = Worker(), Worker(touched=GIB)
    for name in dict.fromkeys([settings.subject, "limit", "subprocess.run"]):
        title = f"{name}: 1 GiB touched / small parent"
        row = Row("memory", title, "x", 1.10 if name == settings.subject else None)
        rows.append(row)
        try:
            for worker in (small, large):
                worker.call(processes.make, name)
            for _ in range(settings.runs):
                turns = {
                    "small": lambda: small.call(processes.time_one, name),  # noqa: B023 - called in this turn
                    "large": lambda: large.call(processes.time_one, name),  # noqa: B023
                }
                times: dict[str, list[int]] = {"small": [], "large": []}
                for turn in range(settings.rounds):
                    for who in sorted(turns, reverse=bool(turn % 2)):
                        times[who].append(turns[who]())
                row.runs.append(percentile(times["large"], 0.1) / percentile(times["small"], 0.1))
        except Missing as reason:
            row.note = str(reason)
    small.close()
    large.close()
    return rows, []


def measure_workers(settings: Settings) -> Result:
    """Launches per second of two processes against one."""
    slice_seconds, slices = (0.1, 4) if settings.quick else (0.25, 8)
    names = list(dict.fromkeys([settings.subject, "limit"]))
    pair = [Worker(), Worker()]
    row = Row("workers", f"{settings.subject}: gain of a 2nd worker / that of limit", "x", 0.85, more_is_better=True)
    gains = {name: Row("workers", f"{name}: 2 workers / 1", "x", more_is_better=True) for name in names}

    def rate(name: str, workers: list[Worker]) -> float:
        for worker in workers:
            worker.ask(processes.launches_per_second, name, slice_seconds)
        return sum(float(worker.answer()) for worker in workers)

    try:
        for worker in pair:
            for name in names:
                worker.call(processes.make, name)
        for _ in range(settings.runs):
            scale: dict[str, list[float]] = {name: [] for name in names}
            for turn in range(slices):
                for name in names if turn % 2 else reversed(names):
                    one = rate(name, [pair[turn % 2]])
                    scale[name].append(rate(name, pair) / one)
            row.runs.append(median_ratio(scale[settings.subject], scale["limit"]))
            for name in names:
                gains[name].runs.append(statistics.median(scale[name]))
    except Missing as reason:
        row.note = str(reason)
    for worker in pair:
        worker.close()
    return [row, *(gain for gain in gains.values() if gain.runs)], []


def measure_idle(settings: Settings) -> Result:
    """What a sandbox that does nothing keeps."""
    memory = Row("idle", "init of an idle sandbox, PSS", "KiB", 40)
    beside = Row("idle", "processes beside the payload", "", 1)
    try:
        contenders.make("the job")
        for _ in range(settings.runs):
            before = processes.descendants()
            process = contenders.the_job().popen(["/bin/sleep", "1000"])
            try:
                started = processes.descendants().keys() - before.keys()
                beside.runs.append(len(started - {process.pid}))
                if settings.observer is not None:
                    memory.runs.append(settings.observer.call(processes.proportional_set_size, process.init_pid))
                else:
                    memory.skipped, memory.note = True, "init is not dumpable: start as root, with --as"
            finally:
                process.kill()
                process.close()
    except Exception as error:
        memory.note = beside.note = str(contenders.as_missing(error))
    return [memory, beside], []


def measure_leaks(settings: Settings) -> Result:
    """What many launches leave behind: descriptors, processes, mounts, abstract sockets."""
    assert settings.leak_finder is not None
    rows = []
    for threads, launches in ((8, 40 if settings.quick else 200), (1, 500 if settings.quick else 10_000)):
        how = f"{launches:,} launches" + (f" from {threads} threads" if threads > 1 else " in a row")
        row = Row("leaks", f"{settings.subject}: left after {how}", "", 0)
        rows.append(row)
        try:
            leaks = settings.leak_finder.call(processes.find_leaks, settings.subject, threads, launches)
        except Missing as reason:
            row.note = str(reason)
            continue
        row.runs.append(leaks.left.total())
        row.note = ", ".join(f"{count} x {what}" for what, count in leaks.left.items())
        if threads == 1:
            rows.append(Row("leaks", "last tenth of them / first tenth", "x", runs=[leaks.slower]))
            rows.append(Row("leaks", "growth of the resident set", "KiB", runs=[leaks.memory]))
    return rows, []


def measure_loop(settings: Settings) -> Result:
    """Many at once on one event loop."""
    launches = 200 if settings.quick else 1000
    what = f"{launches:,} run_async of sleep 0.1, 64 at a time"
    late = Row("loop", f"{what}: the loop is late, 99th percentile", "ms", 50)
    left = Row("loop", f"{what}: descriptors and children left", "", 0)
    took = Row("loop", f"{what}: all of them", "s")
    for _ in range(settings.runs):
        crowd = loops.crowd(launches, 64)
        late.runs.append(crowd.latency * 1e3)
        left.runs.append(crowd.left)
        took.runs.append(crowd.seconds)
    return [late, left, took], []


def measure_start(settings: Settings) -> Result:
    """What the import and the command cost."""
    rounds = max(5, settings.rounds // 5)
    python = [sys.executable, "-I", "-c"]
    base = "import subprocess, dataclasses, typing, cffi"
    command = os.path.join(sysconfig.get_path("scripts"), "sandbox")
    pairs = [
        (
            Row("start", "import sandbox, beyond its base", "ms", 15),
            [*python, f"{base}, sandbox"],
            [*python, base],
        ),
        (
            Row("start", "sandbox run -- true, above python -c pass", "ms", 60),
            [command, "run", "--", "true"],
            [sys.executable, "-c", "pass"],
        ),
    ]
    for row, *commands in pairs:
        try:
            left, right = (_program(argv) for argv in commands)
            for _ in range(settings.runs):
                times = interleave({"left": left, "right": right}, rounds)
                differences = [a - b for a, b in zip(times["left"], times["right"], strict=True)]
                row.runs.append(statistics.median(differences) / 1e6)
        except Missing as reason:
            row.note = str(reason)
    doctor = Row("start", "sandbox doctor", "ms", 2000)
    try:
        examine = _program([command, "doctor"])
        for _ in range(settings.runs):
            times = interleave({"doctor": examine}, 5)
            doctor.runs.append(statistics.median(times["doctor"]) / 1e6)
    except Missing as reason:
        doctor.note = str(reason)
    eager = Row("start", "imported with it: asyncio, pyroute2", "", 0)
    check = "import sys, sandbox; sandbox.run; print(sum(m in sys.modules for m in ('asyncio', 'pyroute2')))"
    try:
        eager.runs.append(int(_output([*python, check])))
    except Missing as reason:
        eager.note = str(reason)
    return [*(row for row, *_ in pairs), doctor, eager], []


def _output(argv: list[str]) -> str:
    """Run a command. Not in the checkout: its directory `sandbox` is not the package that is installed."""
    try:
        done = subprocess.run(argv, cwd="/", check=False, capture_output=True, text=True)
    except OSError as error:
        raise Missing(str(error)) from error
    if done.returncode:
        raise Missing((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return done.stdout


def _program(argv: list[str]) -> Callable[[], object]:
    _output(argv)
    return lambda: subprocess.run(argv, cwd="/", check=True, stdout=subprocess.DEVNULL)


GROUPS: dict[str, Callable[[Settings], Result]] = {
    "launch": measure_launch,
    "memory": measure_memory,
    "workers": measure_workers,
    "idle": measure_idle,
    "leaks": measure_leaks,
    "loop": measure_loop,
    "start": measure_start,
}


# ---- the report


def table(head: list[str], lines: list[list[str]]) -> None:
    """Print left-aligned text first and last, numbers right-aligned between."""
    if not lines:
        return
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, ["-" * width for width in widths], *lines]:
        cells = [f"{cell:{'<' if i in (0, len(head) - 1) else '>'}{widths[i]}}" for i, cell in enumerate(line)]
        print("  ".join(cells).rstrip())
    print()


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    text = f"{value:.2f}" if unit in ("x", "ms") else f"{value:.0f}"
    return f"{text} {unit}".strip() if unit != "x" else text


def show(rows: list[Row], times: list[Times]) -> None:
    lines = []
    for row in rows:
        sign = ">= " if row.more_is_better else "<= "
        target = "" if row.bound is None else sign + number(row.bound, row.unit)
        aim = "" if row.aim is None else number(row.aim, row.unit)
        runs = " ".join(number(run, row.unit).split()[0] for run in row.runs)
        verdict = row.verdict + (f" ({row.note:.80})" if row.note else "")
        lines.append([row.name, number(row.figure, row.unit), target, aim, runs, verdict])
    table(["figure", "best", "target", "aim", "runs", "verdict"], lines)
    lines = []
    for one in sorted(times, key=lambda one: statistics.median(one.values) if one.values else float("inf")):
        micro = [f"{percentile(one.values, part) / 1e3:.0f}" if one.values else "-" for part in (0.5, 0.1, 0.9)]
        lines.append([one.name, *micro, number(one.ratio, "x"), one.note and f"missing: {one.note:.60}"])
    table(["microseconds", "median", "10 %", "90 %", "/ limit", ""], lines)


def as_json(rows: list[Row], times: list[Times]) -> dict[str, object]:
    return {
        "machine": {
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "uid": os.getuid(),
        },
        "rows": [{**dataclasses.asdict(row), "figure": row.figure, "verdict": row.verdict} for row in rows],
        "times": [{**dataclasses.asdict(one), "ratio": one.ratio} for one in times],
    }


# What the chart calls the contenders that it shows.
CHARTED = {
    "limit": ("bare system calls, in C", "limit"),
    "the job": ("sandbox, the same job", "ours"),
    "sandbox.run": ("sandbox.run, its whole default", "ours"),
    "bwrap": ("bubblewrap", "peer"),
    "nsjail": ("nsjail", "peer"),
    "crun": ("crun", "peer"),
    "runc": ("runc", "peer"),
    "firejail (host's root)": ("firejail", "peer"),
    "subprocess.run": ("subprocess.run, no sandbox", "limit"),
}


def chart(times: list[Times]) -> str:
    """Draw how long each contender takes, from the call to the end of /bin/true."""
    made = []
    for one in times:
        if one.name in CHARTED and one.values:
            title, kind = CHARTED[one.name]
            median = statistics.median(one.values)
            made.append(charts.Bar(title, median, f"{median / 1e6:.2f} ms", kind))
    made.sort(key=lambda bar: bar.value)
    # What takes ten times as long would leave nothing of the others to be seen.
    most = 10 * min((bar.value for bar in made if bar.kind == "ours"), default=0)
    groups = [charts.Group("", [bar for bar in made if bar.value < most])]
    slow = [bar for bar in made if bar.value >= most]
    if slow:
        groups.append(charts.Group("Much slower, on another scale", slow))
    return charts.bars("Launch a sandbox, run /bin/true in it, see its end", groups)


# ---- the command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run of each: to see that all works")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds per run (150; 30 with --quick)")
    parser.add_argument("--runs", type=int, metavar="N", help="runs, of which the best one counts (3; 1 with --quick)")
    parser.add_argument("--only", metavar="GROUP,...", help="of " + ", ".join(GROUPS))
    parser.add_argument("--as", dest="user", metavar="USER", help="name or number: measure as this user (as root only)")
    parser.add_argument("--peers", action="store_true", help="launch: other sandboxes too, where installed")
    parser.add_argument(
        "--variants", action="store_true", help="launch: the job with one part changed, to find the time"
    )
    parser.add_argument("--subject", default="the job", help="memory, workers, leaks: measure another contender")
    parser.add_argument("--json", metavar="FILE", help="write every row and time there")
    parser.add_argument("--chart", metavar="FILE", help="launch: draw the times as SVG")
    arguments = parser.parse_args()
    arguments.groups = arguments.only.split(",") if arguments.only else list(GROUPS)
    if unknown := set(arguments.groups) - GROUPS.keys():
        parser.error(f"--only {', '.join(unknown)}: the groups are {', '.join(GROUPS)}")
    if arguments.subject not in contenders.EVERYONE:
        parser.error(f"--subject {arguments.subject}: the contenders are {', '.join(contenders.EVERYONE)}")
    for name in ("rounds", "runs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name}: at least 1")
    if arguments.user and os.geteuid() != 0:
        parser.error("--as: only root can become another user")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    output = open(arguments.json, "w") if arguments.json else None  # noqa: SIM115 - opened with root's rights
    picture = open(arguments.chart, "w") if arguments.chart else None  # noqa: SIM115 - likewise
    contenders.load_limit()
    root = os.geteuid() == 0

    def look_for_leaks() -> None:
        if root:
            processes.own_network_namespace()
        processes.become_subreaper()
        if arguments.user:
            processes.drop_privileges(arguments.user)

    settings = Settings(
        rounds=arguments.rounds or (30 if arguments.quick else 150),
        runs=arguments.runs or (1 if arguments.quick else 3),
        quick=arguments.quick,
        subject=arguments.subject,
        peers=arguments.peers,
        variants=arguments.variants,
        observer=Worker() if root and "idle" in arguments.groups else None,
        leak_finder=Worker(look_for_leaks) if "leaks" in arguments.groups else None,
    )
    if arguments.user:
        processes.drop_privileges(arguments.user)
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    print(f"{machine}, uid {os.getuid()}; {settings.runs} runs of {settings.rounds} rounds\n")
    rows: list[Row] = []
    times: list[Times] = []
    begin = time.monotonic()
    for group in arguments.groups:
        new_rows, new_times = GROUPS[group](settings)
        rows += new_rows
        times += new_times
    show(rows, times)
    for worker in (settings.observer, settings.leak_finder):
        if worker is not None:
            worker.close()
    contenders.remove_bundles()
    if output is not None:
        with output:
            json.dump(as_json(rows, times), output, indent=1)
    if picture is not None:
        with picture:
            picture.write(chart(times))
    missed = [row for row in rows if row.verdict in ("MISSED", "MISSING")]
    print(f"{len(missed)} targets missed or not measured, {time.monotonic() - begin:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
