"""Runs of pytest inside of a test: sources in, reports out."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

_CONFTEST = """
import json, os

REPORTS = []

def pytest_runtest_logreport(report):
    REPORTS.append({
        "id": report.nodeid, "when": report.when, "outcome": report.outcome,
        "wasxfail": getattr(report, "wasxfail", None), "text": report.longreprtext,
        "sections": report.sections, "properties": [[name, str(one)] for name, one in report.user_properties],
        "kind": type(report).__name__,
    })

def pytest_warning_recorded(warning_message, nodeid):
    REPORTS.append({"warning": f"{nodeid}: {warning_message.category.__name__}: {warning_message.message}"})

def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        with open(os.environ["INNER_REPORTS"], "w") as stream:
            json.dump(REPORTS, stream)
"""


@dataclass
class Run:
    """What came of it.

    Attributes:
        status: Exit status of pytest.
        output: What it wrote, both streams.
        reports: In their order.
        warnings: Texts.
    """

    status: int
    output: str
    reports: list[dict[str, Any]]
    warnings: list[str]

    def outcomes(self) -> dict[str, str]:
        """Return by the name of each test what it came to: the worst of its phases, with that phase if not call."""
        found: dict[str, str] = {}
        for report in self.reports:
            name = report["id"].partition("::")[2]
            word = report["outcome"]
            if report["wasxfail"] is not None:
                word = {"skipped": "xfailed", "passed": "xpassed"}[word]
            if report["when"] != "call" and word == "passed":
                found.setdefault(name, "nothing")
            elif report["when"] != "call":
                found[name] = f"{word} in {report['when']}"
            else:
                found[name] = word
        return found

    def failures(self) -> dict[str, str]:
        """Return the text of each failure by the name of its test."""
        return {one["id"].partition("::")[2]: one["text"] for one in self.reports if one["outcome"] == "failed"}


def command(*arguments: str) -> list[str]:
    """Return a command line of pytest that knows no settings but its arguments."""
    plugins = ["no:cacheprovider", "no:randomly"]
    return [sys.executable, "-m", "pytest", *(word for one in plugins for word in ("-p", one)), *arguments]


def write(directory: pathlib.Path, **sources: str) -> None:
    """Write modules; a configuration of its own makes the directory the root."""
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(source))
    conftest = directory / "conftest.py"
    conftest.write_text((conftest.read_text() if "conftest" in sources else "") + _CONFTEST)
    if not (directory / "pytest.ini").exists():
        (directory / "pytest.ini").write_text("[pytest]\n")


def environment(directory: pathlib.Path) -> dict[str, str]:
    """Return the environment of such a run; that of the test around it is none of its business."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_", "COVERAGE_"))}
    return {**kept, "INNER_REPORTS": str(directory / "reports.json"), "PYTHONDONTWRITEBYTECODE": "1"}


def run(directory: pathlib.Path, *arguments: str, stdin: str = "", **sources: str) -> Run:
    """Write modules into a directory, and run pytest there."""
    if sources:
        write(directory, **sources)
    reports = directory / "reports.json"
    reports.unlink(missing_ok=True)
    done = subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(directory),
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=90,
    )
    found = json.loads(reports.read_text()) if reports.exists() else []
    return Run(
        done.returncode,
        done.stdout,
        [one for one in found if "id" in one],
        [one["warning"] for one in found if "warning" in one],
    )
