#!/usr/bin/env python3
"""What does a test in namespaces of its own cost? Measures the pytest plugin against pytest without it.

Two figures: what a test that does nothing takes longer, within one session where both kinds take turns; and how much
longer a suite of tests of 50 ms and more takes with `--sandbox -n 2`. Of several runs the best one counts, for noise
only ever adds. The exit status is 1 when a target is missed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

CONFTEST = """
import json, os, time
import pytest

TIMES = {"plain": [], "marked": []}

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    begin = time.perf_counter()
    result = yield
    TIMES.get(item.originalname.removeprefix("test_"), []).append(time.perf_counter() - begin)
    return result

def pytest_unconfigure(config):
    if "TIMES" in os.environ and not hasattr(config, "workerinput"):
        with open(os.environ["TIMES"], "w") as stream:
            json.dump(TIMES, stream)
"""
# In the order of their parameters: the two kinds take turns.
COST = """
import pytest

@pytest.fixture(params=range({count}), scope="module")
def turn(request): return request.param

def test_plain(turn): pass

@pytest.mark.sandbox
def test_marked(turn): pass
"""
# Not all of a real test is computing: it waits, for files, processes and sockets.
SUITE = """
import os, socket, subprocess, time
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_some(number, tmp_path):
    end = time.perf_counter() + 0.05
    (tmp_path / "file").write_bytes(os.urandom(1000))
    subprocess.run(["true"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    computed = time.perf_counter() + 0.02
    while time.perf_counter() < computed: pass
    while (left := end - time.perf_counter()) > 0: time.sleep(left)
"""


def run(directory: str, name: str, *arguments: str, times: str | None = None) -> float:
    """Run one module; return the seconds of the whole run."""
    environment = {word: value for word, value in os.environ.items() if not word.startswith("PYTEST_")}
    if times:
        environment["TIMES"] = times
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments, name]
    begin = time.perf_counter()
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each figure; the best counts")
    parser.add_argument("--tests", type=int, default=200, help="of each kind, for the first figure")
    parser.add_argument("--suite", type=int, default=200, help="tests of the suite")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    more: list[float] = []
    ratios: list[float] = []
    with tempfile.TemporaryDirectory(prefix="pytest-isolation-") as directory:
        for name, text in {
            "conftest.py": CONFTEST,
            "pytest.ini": "[pytest]\n",
            "test_cost.py": COST.format(count=arguments.tests),
            "test_suite.py": SUITE.format(count=arguments.suite),
        }.items():
            with open(os.path.join(directory, name), "w") as stream:
                stream.write(text)
        times = os.path.join(directory, "times.json")
        for _ in range(arguments.runs):
            run(directory, "test_cost.py", times=times)
            with open(times) as stream:
                found = json.load(stream)
            assert len(found["plain"]) == len(found["marked"]) == arguments.tests
            plain, marked = (statistics.median(found[kind]) * 1e3 for kind in ("plain", "marked"))
            more.append(marked - plain)
            print(f"a test: {plain:.2f} ms plain, {marked:.2f} ms marked")
            pair = {}
            for words in [[], ["--sandbox"]] if len(ratios) % 2 else [["--sandbox"], []]:
                pair[bool(words)] = run(directory, "test_suite.py", "-n", "2", *words)
            ratios.append(pair[True] / pair[False])
            print(f"the suite with -n 2: {pair[False]:.2f} s plain, {pair[True]:.2f} s with --sandbox")
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    print(f"\n{machine}, uid {os.getuid()}")
    rows = [
        ("a marked test, beyond a plain one, median", "ms", min(more), 15.0),
        (f"{arguments.suite} tests of 50 ms, -n 2: with --sandbox / without", "x", min(ratios), 1.3),
    ]
    for name, unit, figure, bound in rows:
        print(f"{name:55} {figure:6.2f} {unit:2}  target {bound:5.2f}  {'met' if figure <= bound else 'MISSED'}")
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(
                [dict(zip(("name", "unit", "figure", "target"), row, strict=True)) for row in rows], stream, indent=1
            )
    return int(any(figure > bound for *_, figure, bound in rows))


if __name__ == "__main__":
    sys.exit(main())
