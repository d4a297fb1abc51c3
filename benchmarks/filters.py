"""Filters: what attaching one costs, what each call costs under it, and how fast rules become a program.

    python benchmarks/filters.py             # half a minute
    python benchmarks/filters.py --quick     # one short round: does all work?

It measures the *installed* package, on x86_64; what is timed in a process is timed in a fresh one. With and without
the filter take turns; the median counts, for single calls the best. The exit status is 1 when a target is missed.
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import libseccomp  # noqa: E402  # of the tests
import machine_code  # noqa: E402  # of the tests

from sandbox import Sandbox  # noqa: E402  # after the path of the two above
from sandbox.filters import Filter  # noqa: E402  # likewise

CALLS = 100_000
PERSONALITY, GETPPID = 135, 110
OPERATIONS = {
    "SCMP_CMP_NE": "!=", "SCMP_CMP_LT": "<", "SCMP_CMP_LE": "<=", "SCMP_CMP_EQ": "==", "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">", "SCMP_CMP_MASKED_EQ": "masked",
}  # fmt: skip
PROFILES = [
    path
    for place in (TESTS.parent.parent, TESTS.parent.parent.parent)
    for path in sorted((place / "shared" / "data" / "seccomp").glob("*.json"))
]


def in_child(function: Callable[[], float]) -> float:
    """Return the number that a function finds in a forked child, which a filter does not outlive."""
    shared = mmap.mmap(-1, 8)
    result = ctypes.c_double.from_buffer(shared)
    pid = os.fork()
    if pid == 0:
        result.value = function()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the child ended with wait status {status}")
    return result.value


def attach(program: bytes) -> float:
    def timed() -> float:
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

        libc = ctypes.CDLL(None)
        libc.prctl(38, 1, 0, 0, 0)
        argument = Program(len(program) // 8, program)
        address = ctypes.addressof(argument)
        started = time.perf_counter_ns()
        failed = machine_code.call64(317, 1, 0, address)
        taken = time.perf_counter_ns() - started
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        return taken

    return in_child(timed)


def one_call(program: bytes | None, number: int, *args: int) -> float:
    def timed() -> float:
        if program is not None:
            machine_code.load_filter(program)
        machine_code.repeat(number, 1000, *args)
        started = time.perf_counter_ns()
        machine_code.repeat(number, CALLS, *args)
        return (time.perf_counter_ns() - started) / CALLS

    return in_child(timed)


def more(program: bytes, rounds: int, number: int, *args: int) -> float:
    """Return how much longer a call takes under the filter, in ns: the best of each, on a machine that others use."""
    pairs = [(one_call(program, number, *args), one_call(None, number, *args)) for _ in range(rounds)]
    return min(held for held, _ in pairs) - min(free for _, free in pairs)


def fresh(prepare: str, timed: str) -> float:
    """Return how long a statement takes in a fresh interpreter, in ms."""
    code = f"import time\n{prepare}\nt = time.perf_counter_ns()\n{timed}\nprint(time.perf_counter_ns() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return int(run.stdout) / 1e6


IMPORT = "from sandbox.filters import *; from sandbox.filters import bpf, compiler, presets"
DEFAULT = (
    "p = presets.default(nesting=False, setid=True); "
    "compiler.compile_rules(p.rules, p.default, p.unknown, p.arches('x86_64'))"
)
SPREAD = """
from sandbox.filters.table import calls
names = [n for n in sorted(calls().numbers["x86_64"]) if calls().arguments[n][0][:1] in ("i", "l", "p")]
wanted = [(names[i % len(names)], i) for i in range(400)]
"""
SPREAD_TIMED = """
f = Filter(Errno("EPERM"), arches=["x86_64", "i386"])
for name, value in wanted: f = f.allow(name, arg(0) == value)
f.to_bytes()
"""
ONE_TIMED = """
f = Filter(Errno("EPERM"), arches=["x86_64", "i386"])
for value in range(400): f = f.allow("ioctl", arg(1) == 3 * value, arg(0) < 1000)
f.to_bytes()
"""


def launches(rounds: int) -> float:
    """Return how long a launch takes with the default filter, in launches without: of three runs the best."""
    boxes = [Sandbox(), Sandbox().seccomp(None)]

    def once(box: Sandbox) -> int:
        started = time.perf_counter_ns()
        box.run(["/bin/true"])
        return time.perf_counter_ns() - started

    for box in boxes * 3:  # the first ones compile, and build the tree that the others clone
        once(box)
    medians = []
    for _ in range(3):
        ratios = []
        for number in range(rounds):
            order = [0, 1] if number % 2 else [1, 0]
            taken = {which: once(boxes[which]) for which in order}
            ratios.append(taken[0] / taken[1])
        medians.append(statistics.median(ratios))
    return min(medians)


def sizes() -> list[tuple[str, int, int]]:
    """Return the instructions of each profile: ours and libseccomp's with its binary tree, for what both know."""
    found = []
    for path in PROFILES:
        profile = json.loads(path.read_text())
        for entry in profile["syscalls"]:
            entry["names"] = [name for name in entry["names"] if libseccomp.number(name) != -1]
        profile["syscalls"] = [entry for entry in profile["syscalls"] if entry["names"]]
        ours = Filter.from_oci(profile, arch="x86_64")
        context = libseccomp.Context(0x00050000 | profile["defaultErrnoRet"], ["x86_64", "i386", "x32"], tree=True)
        for entry in profile["syscalls"]:
            includes = entry.get("includes") or {}
            if includes.get("caps") or "amd64" not in includes.get("arches", ["amd64"]):
                continue
            if entry["action"] == profile["defaultAction"] and entry.get("errnoRet", 1) == profile["defaultErrnoRet"]:
                continue
            action = 0x7FFF0000 if entry["action"] == "SCMP_ACT_ALLOW" else 0x00050000 | entry.get("errnoRet", 1)
            args = [(one["index"], OPERATIONS[one["op"]], one["value"], one.get("valueTwo", 0))
                    for one in entry.get("args") or ()]  # fmt: skip
            for name in entry["names"]:
                context.add(action, name, args)
        found.append((path.name, len(ours.to_bytes()) // 8, len(context.export()) // 8))
        context.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Costs of filters")
    parser.add_argument("--quick", action="store_true", help="two rounds of each")
    rounds = 2 if parser.parse_args().quick else 21
    program = Filter.default().to_bytes()

    def median(function: Callable[[], float]) -> float:
        return statistics.median(function() for _ in range(rounds))

    rows: list[tuple[str, float, float, str]] = [
        ("attach the default filter", median(lambda: attach(program)) / 1e6, 0.2, "ms"),
        ("a launch with the default filter / without", launches(7 * rounds), 1.08, "times"),
        ("an allowed call: getppid", more(program, rounds, GETPPID), 60, "ns more"),
        ("a conditional call: personality", more(program, rounds, PERSONALITY, 0xFFFFFFFF), 120, "ns more"),
        ("load the compiled default", median(lambda: fresh(IMPORT, "Filter.default().to_bytes()")), 1, "ms"),
        ("compile the default, tables read first", median(lambda: fresh(IMPORT, DEFAULT)), 30, "ms"),
        ("400 rules with arguments, many calls", median(lambda: fresh(IMPORT + SPREAD, SPREAD_TIMED)), 100, "ms"),
        ("400 rules with arguments, one call", median(lambda: fresh(IMPORT, ONE_TIMED)), 100, "ms"),
    ]
    for name, ours, theirs in sizes() if libseccomp.library() else ():
        rows.append((f"instructions, {name}: {ours} to {theirs}", ours / theirs, 0.8, "of libseccomp's tree"))
    print(f"{'what':56} {'measured':>9} {'target':>8}")
    for what, value, target, unit in rows:
        print(f"{what:56} {value:9.3f} {target:8g} {unit:20} {'met' if value <= target else 'MISSED'}")
    return 0 if all(value <= target for _, value, target, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
