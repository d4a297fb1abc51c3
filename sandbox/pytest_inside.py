"""What happens in the copy of pytest: the fixtures of the function, the test, their end, and the reports of it."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest import runner

from sandbox.pytest_reports import count_subtests

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.pytest_mail import Mailbox

NO_TERMINAL: Final = (
    "it runs in a copy of pytest, which has no terminal;"
    " run pytest without --sandbox, or mark the test with sandbox(enabled=False)"
)
_SHOWN: Final = 1 << 20  # characters of each captured stream, from its begin and from its end


def run(item: pytest.Item, mailbox: Mailbox) -> None:
    """Run one test, whose collection tree and wider fixtures are set up; say what comes of it."""
    me = os.getpid()

    def send(**message: Any) -> None:
        if os.getpid() != me:
            os._exit(0)  # a child of the test, which went on where only the test should
        mailbox.send(**message)

    try:
        _prepare(item, send)
        _phases(item, send)
        # As at the end of any test: objects that die now may have a warning to give.
        if hasattr(item, "_request"):
            item._request = False
            item.funcargs = None  # type: ignore[attr-defined]
        send(done=True, failed_subtests=count_subtests(item))
        _save_coverage()
    except pytest.exit.Exception as error:
        send(exit=error.msg, returncode=error.returncode)
    except KeyboardInterrupt:
        send(interrupted=True)
    except BaseException:
        send(broken=traceback.format_exc())
        raise


def _prepare(item: pytest.Item, send: Callable[..., None]) -> None:
    def warned(message: Any, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        send(warning=[str(message), category.__module__, category.__qualname__, filename, lineno])

    # pytest's filters are in force; what it has recorded so far is recorded outside.
    warnings.showwarning = warned  # type: ignore[assignment]  # the rest is for who writes to a file
    if faulthandler.is_enabled():
        faulthandler.enable(2)  # where captured output goes, and not past it
    _refuse_debuggers()
    # Reports that are made on the way, of subtests, are for those who wait outside.
    caller = item.config.hook.pytest_runtest_logreport
    for plugin in [one.plugin for one in caller.get_hookimpls()]:
        caller._remove_plugin(plugin)
    item.config.pluginmanager.register(_Logged(item, send))
    tree = item.session._setupstate.stack
    # Where it has a place in the tree already, it takes it again, with the fixtures of the function.
    tree.pop(item, None)
    _before[:] = [(finalizers, len(finalizers)) for finalizers, _ in tree.values()]


_before: Final[list[tuple[list[Any], int]]] = []


class _Logged:
    def __init__(self, item: pytest.Item, send: Callable[..., None]) -> None:
        self._item = item
        self._send = send

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send(report=_serialised(self._item, report), logged=True)


def _phases(item: pytest.Item, send: Callable[..., None]) -> None:
    def phase(when: Any, **words: Any) -> bool:
        report = runner.call_and_report(item, when, log=False, **words)
        _shorten(report)
        send(report=_serialised(item, report))
        return report.passed

    option = item.config.getoption
    if phase("setup"):
        if option("setupshow", False):
            runner.show_test_item(item, add_space=not option("setuponly", False))
        if not option("setuponly", False):
            phase("call")
    # Wider fixtures that were asked for only now live in this copy alone, and end with the function's.
    own = item.session._setupstate.stack.get(item)
    if own is not None:  # else it was skipped before anything was set up
        for finalizers, count in _before:
            own[0][:0] = finalizers[count:]
            del finalizers[count:]
    phase("teardown", nextitem=item.parent)  # the tree above stays as it is
    item.config.get_terminal_writer().flush()


def _serialised(item: pytest.Item, report: pytest.TestReport) -> Any:
    return item.config.hook.pytest_report_to_serializable(config=item.config, report=report)


def _shorten(report: pytest.TestReport) -> None:
    """Leave the middle out of captured output that is too long for anybody to read."""
    report.sections = [
        (
            name,
            text
            if len(text) <= 2 * _SHOWN
            else f"{text[:_SHOWN]}\n[... {len(text) - 2 * _SHOWN} characters left out ...]\n{text[-_SHOWN:]}",
        )
        for name, text in report.sections
    ]


def _refuse_debuggers() -> None:
    from _pytest.debugging import pytestPDB

    def refuse(*_: object, **__: object) -> None:
        pytest.fail(f"a debugger cannot work in this test: {NO_TERMINAL}", pytrace=False)

    sys.breakpointhook = refuse
    # pytest has put it in the place of pdb.set_trace, too.
    pytestPDB._init_pdb = refuse  # type: ignore[method-assign]


def _save_coverage() -> None:
    """Write what coverage has seen in this copy to a file of its own, for the caller's to combine."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is not None:
        current.stop()
        current.save()
