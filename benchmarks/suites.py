#!/usr/bin/env python3
"""Do the test suites of other packages come out the same in namespaces of their own?

Takes the sdists of three packages whose tests use sockets, files, subprocesses and asyncio from the package index, runs
their suites with and without `--sandbox`, and compares the outcome of every test. Tests whose outcome differs are run
again both ways, for some are a matter of luck on a busy machine. The exit status is 1 when a difference stays.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

PLUGIN = """
import json, os

WORST = {}
RANK = ["passed", "xpassed", "xfailed", "skipped", "failed", "error"]

def pytest_runtest_logreport(report):
    word = report.outcome
    if hasattr(report, "wasxfail"):
        word = "xfailed" if report.skipped else "xpassed"
    elif report.failed and report.when != "call":
        word = "error"
    elif report.passed and report.when != "call":
        return
    WORST[report.nodeid] = max(WORST.get(report.nodeid, "passed"), word, key=RANK.index)

def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        with open(os.environ["SUITE_OUTCOMES"], "w") as stream:
            json.dump(WORST, stream)
"""


@dataclass
class Suite:
    """A package and how its tests are run.

    Attributes:
        name: With the version.
        needs: What its tests import beside it.
        arguments: Of pytest.
        without: Tests that are left out, and why.
        inside: Further arguments of pytest for the run with `--sandbox`.
        before: Python that the suite's own runner executes before the tests.
    """

    name: str
    needs: list[str]
    arguments: list[str]
    without: dict[str, str] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)
    before: str = ""


SUITES = [
    Suite(
        "anyio==4.16.0",
        ["pytest-mock", "trio", "psutil", "trustme", "truststore", "exceptiongroup", "blockbuster"],
        ["-c", "pyproject.toml", "tests", "-m", "not network"],
        {"test_pytest_plugin": "runs pytest in pytest, with settings of its own"},
    ),
    Suite(
        "tornado==6.6.1",
        [],
        ["tornado/test"],
        before="import logging; logging.getLogger('tornado.access').setLevel(logging.CRITICAL)",
    ),
    Suite(
        "watchdog==6.0.0",
        ["flaky", "pyyaml"],
        ["-o", "addopts=", "tests"],
        inside=["-o", "sandbox_tmp=false"],  # a module of tests makes its directory in /tmp when it is imported
    ),
]


def prepare(suite: Suite, directory: str) -> str:
    """Fetch, unpack and install; return the directory with the tests."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    site = os.path.join(directory, "site")
    subprocess.run([*pip, "install", "--target", site, suite.name, *suite.needs], check=True, stdout=subprocess.DEVNULL)
    name = suite.name.partition("==")[0]
    words = [*pip, "download", "--no-deps", "--no-binary", name, "-d", directory, suite.name]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    (archive,) = [one for one in os.listdir(directory) if one.endswith(".tar.gz")]
    subprocess.run(["tar", "-xzf", archive], cwd=directory, check=True)
    return os.path.join(directory, archive.removesuffix(".tar.gz"))


def run(suite: Suite, directory: str, tree: str, *more: str) -> tuple[dict[str, str], float]:
    """Run the suite; return the outcome of each test, and how many seconds it took."""
    outcomes = os.path.join(directory, "outcomes.json")
    with open(os.path.join(directory, "suite_outcomes.py"), "w") as stream:
        stream.write(PLUGIN + suite.before)
    environment = {word: value for word, value in os.environ.items() if not word.startswith("PYTEST_")}
    environment |= {"SUITE_OUTCOMES": outcomes, "PYTHONPATH": f"{directory}/site:{directory}"}
    words = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "suite_outcomes",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
    ]
    words += ["-p", "no:randomly", *suite.arguments]
    if suite.without:
        words += ["-k", " and ".join(f"not {name}" for name in suite.without)]
    begin = time.monotonic()
    done = subprocess.run([*words, *more], cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{suite.name}: pytest ended with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    with open(outcomes) as stream:
        return json.load(stream), time.monotonic() - begin


def _settings(suite: Suite) -> list[str]:
    """Return the arguments of a suite without those that choose tests."""
    return suite.arguments[:2] if suite.arguments[0] in ("-c", "-o") else []


def compare(suite: Suite, directory: str) -> tuple[str, list[str]]:
    """Return a row of the table, and the tests whose outcome stays different."""
    tree = prepare(suite, directory)
    (plain, seconds), (inside, more) = (
        run(suite, directory, tree, *words) for words in ([], ["--sandbox", *suite.inside])
    )
    different = sorted(name for name in plain.keys() | inside.keys() if plain.get(name) != inside.get(name))
    left = []
    for name in different:
        seen: dict[str, set[str]] = {}
        for words in ([], ["--sandbox", *suite.inside]) * 3:
            one = Suite(suite.name, [], [*_settings(suite), name], before=suite.before)
            found, _ = run(one, directory, tree, *words)
            seen.setdefault("inside" if words else "outside", set()).update(found.values())
        if not seen["inside"] & seen["outside"]:
            left.append(f"{suite.name} {name}: outside {seen['outside']}, inside {seen['inside']}")
    counts = [sum(one == word for one in plain.values()) for word in ("passed", "skipped", "failed", "error")]
    row = f"| {suite.name} | {len(plain)} | {' | '.join(map(str, counts))} | {len(different)} | {len(left)} |"
    return f"{row} {seconds:.0f} s | {more:.0f} s |", left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="one of " + ", ".join(suite.name for suite in SUITES))
    arguments = parser.parse_args()
    left: list[str] = []
    print("| suite | tests | passed | skipped | failed | errors | differ at first | differ | outside | inside |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for suite in SUITES:
        if arguments.only and not suite.name.startswith(arguments.only):
            continue
        with tempfile.TemporaryDirectory(prefix="suites-", ignore_cleanup_errors=True) as directory:
            row, more = compare(suite, directory)
        print(row, flush=True)
        left += more
    print(*left, sep="\n")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
