"""Reports that come out of a copy of pytest, judged; and those that are made up where a test did not live to tell."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.isolation import Isolated, Isolation
    from sandbox.pytest_mail import Mailbox

_PHASES: Final = ("setup", "call", "teardown")
_OUTCOMES: Final = ("passed", "failed", "skipped")


class Told(NamedTuple):
    """What came out of a copy.

    Args:
        phases: The report of each phase.
        logged: Reports of subtests.
        failed_subtests: How many of them pytest counts, to fail the test for.
        done: It went to its end.
        exit: What pytest.exit said, with its exit status; the session is to end.
        interrupted: By a KeyboardInterrupt that the test raised.
        broken: The traceback of an error of pytest itself.
    """

    phases: dict[str, pytest.TestReport]
    logged: list[pytest.TestReport]
    failed_subtests: int = 0
    done: bool = False
    exit: tuple[str, int | None] | None = None
    interrupted: bool = False
    broken: str | None = None


_MISSING: Final = re.compile(r"^E +FileNotFoundError: .*?'(/[^'\n]+)'", re.MULTILINE)
_REFUSED: Final = re.compile(r"^E +ConnectionRefusedError: ", re.MULTILINE)


def misses(text: str, isolation: Isolation) -> Iterator[str]:
    """Tell what a failed test most likely misses inside, that a module or a wider fixture has made outside.

    Args:
        text: Of the report; not trusted.
        isolation: What the test had.
    """
    missing = _MISSING.search(text)
    if missing is not None and isolation.covered:
        path = missing[1]
        for one in isolation.covered:
            kept = any(f"{path}/".startswith(f"{other}/") for other in one.keep)
            if path.startswith(f"{one.path}/") and not kept and os.path.lexists(path):
                yield (
                    f"{path} exists outside, but the test has a {one.path} of its own;"
                    " what a module or a wider fixture has made there is visible with tmp=False"
                )
    if isolation.network != "host" and _REFUSED.search(text):
        yield (
            "the test has a network of its own; a server that a module or a wider fixture has started can be reached"
            ' with network="host"'
        )


def read(item: pytest.Item, mailbox: Mailbox) -> Told:
    """Read what a copy said; what is no report of this test is left out."""
    told = Told({}, [])
    for message in mailbox.read():
        if isinstance(message.get("warning"), list):
            _warn(item, message["warning"])
        elif isinstance(message.get("exit"), str):
            code = message.get("returncode")
            told = told._replace(exit=(message["exit"], code if type(code) is int and 0 <= code < 256 else None))
        elif message.get("interrupted") is True:
            told = told._replace(interrupted=True)
        elif isinstance(message.get("broken"), str):
            told = told._replace(broken=message["broken"])
        elif message.get("done") is True:
            count = message.get("failed_subtests")
            told = told._replace(done=True, failed_subtests=count if type(count) is int else 0)
        else:
            report = _report(item, message.get("report"))
            if report is not None and message.get("logged") is True:
                told.logged.append(report)
            elif report is not None:
                told.phases.setdefault(str(report.when), report)
    return told


def count_subtests(item: pytest.Item, more: int = 0) -> int:
    """Return how many failed subtests pytest counts of a test, after adding some."""
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:  # before pytest 9.0
        return 0
    counts: Any = item.config.stash[failed_subtests_key]
    name = getattr(item, "id", item.nodeid)
    counts[name] += more
    return int(counts[name])


def _report(item: pytest.Item, data: Any) -> pytest.TestReport | None:
    """Build a report again; None when it is not one of this test's, in every part that anybody looks at."""
    if not isinstance(data, dict) or data.get("nodeid") != item.nodeid:
        return None
    if data.get("when") not in _PHASES or data.get("outcome") not in _OUTCOMES:
        return None
    if not all(type(data.get(name)) in (int, float) for name in ("duration", "start", "stop")):
        return None
    sections, properties = _pairs(data.get("sections")), _pairs(data.get("user_properties"))
    if sections is None or properties is None or not all(isinstance(text, str) for _, text in sections):
        return None
    known = {
        "nodeid": item.nodeid,
        "location": item.location,
        "keywords": dict.fromkeys(item.keywords, 1),
        "sections": sections,
        "user_properties": properties,
    }
    # What plugins have added, but nothing that would stand in the way of a method.
    rest = {name: one for name, one in data.items() if name not in known and not hasattr(pytest.TestReport, name)}
    if not isinstance(rest.get("wasxfail", ""), str):
        return None
    if isinstance(rest.get("longrepr"), list):  # of a skip: a tuple, which JSON does not have
        rest["longrepr"] = tuple(rest["longrepr"])
    config = item.config
    try:
        report = config.hook.pytest_report_from_serializable(config=config, data=rest | known)
        if not isinstance(report, pytest.TestReport) or not _readable(report):
            return None
    except Exception:  # noqa: BLE001 - what it is made of may be anything
        return None
    return report


def _pairs(value: Any) -> list[tuple[str, Any]] | None:
    if not isinstance(value, list):
        return None
    if not all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in value):
        return None
    return [(name, content) for name, content in value]


def _readable(report: pytest.TestReport) -> bool:
    longrepr: Any = report.longrepr
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        # Where, and why; terminal and junitxml rely on it.
        return (
            isinstance(longrepr, tuple)
            and [type(part) for part in longrepr][::2] == [str, str]
            and (len(longrepr) == 3 and type(longrepr[1]) in (int, type(None)))
        )
    if longrepr is None:
        return report.outcome == "passed" or hasattr(report, "wasxfail")
    if isinstance(longrepr, str):
        return True
    # Every part is looked at when it is written out.
    crash = longrepr.reprcrash
    return isinstance(report.longreprtext, str) and (crash is None or isinstance(crash.message, str))


def _warn(item: pytest.Item, said: list[Any]) -> None:
    """Pass a warning on, as a new one of the same words and, where it is known here, of its class."""
    if len(said) != 5 or not all(isinstance(one, str) for one in said[:4]) or type(said[4]) is not int:
        return
    text, module, name, filename, line = said
    category: Any = sys.modules.get(module)
    for part in name.split("."):
        category = getattr(category, part, None)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = pytest.PytestWarning
    message = warnings.WarningMessage(text, category, filename, line)
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
    )


# ── made up ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def end_of(copy: Isolated) -> str:
    """Say how a test ended that did not live to report."""
    if copy.status is None:
        return "the processes of the test were killed from outside, or the machine has no memory left"
    code = os.waitstatus_to_exitcode(copy.status)
    if code >= 0:
        return f"the test ended its own process, with exit status {code}, before pytest could report"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process of the test was killed by {name}"


def passed(item: pytest.Item, when: Any) -> pytest.TestReport:
    """Return the report of a phase that went well."""
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "passed", None, when)


def failed(item: pytest.Item, when: Any, why: str, started: float | None = None) -> pytest.TestReport:
    """Return the report of a phase that has no other, with the output that is left of it."""
    now = time.time()
    started = now if started is None else started
    return pytest.TestReport(
        item.nodeid,
        item.location,
        dict.fromkeys(item.keywords, 1),
        "failed",
        why,
        when,
        sections=_captured(item),
        duration=now - started,
        start=started,
        stop=now,
    )


def _captured(item: pytest.Item) -> list[tuple[str, str]]:
    """Return the output that a copy left in the files of the capture, which it shares with us."""
    manager = item.config.pluginmanager.getplugin("capturemanager")
    if manager is None or not manager.is_globally_capturing():
        return []
    captured = manager.read_global_capture()
    return [
        (f"Captured {name} call", text) for name, text in (("stdout", captured.out), ("stderr", captured.err)) if text
    ]
