"""The life of a test in namespaces of its own: set up outside, run inside, reported outside.

Facts of pytest that the shape follows from:

- Fixtures of a wider scope belong to several tests, so they live in the process that runs all of them. The nodes of
  the collection tree are set up there as usual; only the fixtures of the function are left to the copy.
- The hooks of a phase (capture, logging, xfail, other plugins) work in a copy as they do anywhere, and a report is made
  for travelling: it becomes JSON and is built again from that.
- The files behind captured output are shared with the copy: what it did not live to report can be read here.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

import pytest
from _pytest import runner

from sandbox import pytest_inside, pytest_reports
from sandbox.arguments import clock_offset, host_name, integer, parse_size, seconds
from sandbox.errors import SandboxError, UnsupportedError
from sandbox.isolation import Covered, Isolated, Isolation, cover, isolate
from sandbox.pytest_mail import SIZE, Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.cgroups import Group

Reports: TypeAlias = tuple[dict[str, pytest.TestReport], list[pytest.TestReport]]  # of the phases, of subtests
_NETWORKS: Final = ("loopback", "none", "host")
_mailbox: Final = pytest.StashKey[Mailbox]()
_kept: Final = pytest.StashKey["tuple[list[str], str, tuple[Covered, ...]]"]()


class Policy(NamedTuple):
    """What a test asked for, checked.

    Args:
        isolation: What is its own.
        memory: Bytes of all its processes.
        pids: Processes.
        timeout: Seconds.
    """

    isolation: Isolation
    memory: int | None
    pids: int | None
    timeout: float | None


def _choice(value: Any, name: str) -> Any:
    if value not in _NETWORKS:
        raise ValueError(f"{name} must be one of {', '.join(_NETWORKS)}, got {value!r}")
    return value


def _bool(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _offset(value: Any, name: str) -> float:
    return clock_offset(value, name) / 1e9


_CHECKS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "enabled": _bool,
    "network": _choice,
    "hostname": host_name,
    "tmp": _bool,
    "time_offset": _offset,
    "memory": lambda value, name: parse_size(value, name, 1 << 20),
    "pids": lambda value, name: integer(value, name, 1, 1 << 22),
    "timeout": seconds,
}


def policy_of(item: pytest.Item, words: dict[str, Any]) -> Policy:
    """Check what a test asks for.

    Raises:
        TypeError: A value of a wrong type, an unknown word.
        ValueError: A value out of range.
    """
    unknown = words.keys() - _CHECKS.keys()
    if unknown:
        raise TypeError(f"sandbox() has the arguments {', '.join(_CHECKS)}, but not {', '.join(sorted(unknown))}")
    said = {
        word: _CHECKS[word](value, f"sandbox({word}=...)")
        for word, value in words.items()
        if value is not None or word in {"enabled", "tmp", "network"}
    }
    tmp = said.get("tmp", True)
    isolation = Isolation(
        network=said.get("network", "loopback"),
        hostname=said.get("hostname"),
        time_offset=said.get("time_offset", 0.0),
        covered=_covered(item.config) if tmp else (),
    )
    return Policy(isolation, said.get("memory"), said.get("pids"), said.get("timeout"))


def _covered(config: pytest.Config) -> tuple[Covered, ...]:
    """Return what is covered, without the directories that a test needs: its own, and those of pytest."""
    here = os.getcwd()
    known = config.stash.get(_kept, None)
    if known is not None and known[:2] == (sys.path, here):
        return known[2]
    factory = getattr(config, "_tmp_path_factory", None)
    found = [str(config.rootpath), str(config.invocation_params.dir), here, sys.prefix]
    if factory is not None:
        # Chosen here, or each copy would choose another.
        found.append(str(factory.getbasetemp()))
    found += [path for path in sys.path if os.path.isdir(path)]
    covered = cover(found)
    config.stash[_kept] = (list(sys.path), here, covered)
    return covered


def protocol(item: pytest.Item, nextitem: pytest.Item | None, policy: Policy | str) -> None:
    """Run one test, as pytest's own protocol does, with the test itself in a copy of this process.

    Args:
        item: The test.
        nextitem: The one after it.
        policy: What it asks for; a str says why that cannot be had.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    request = getattr(item, "_request", None)
    if request is False:  # run again, by a plugin that repeats tests
        cast("Any", item)._initrequest()
    try:
        _phases(item, nextitem, policy)
    finally:
        if request is not None:
            cast("Any", item)._request = False
            cast("Any", item).funcargs = None
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _phases(item: pytest.Item, nextitem: pytest.Item | None, policy: Policy | str) -> None:
    log = item.ihook.pytest_runtest_logreport
    subtests: list[pytest.TestReport] = []
    inside_only = False
    if isinstance(policy, str):
        phases = {"setup": _refuse(item, policy)}
    elif _nothing_wider(item, nextitem):
        inside_only = True
        phases, subtests = _inside(item, policy)
    else:
        phases = {"setup": _set_up_outside(item)}
        if phases["setup"].passed:
            phases, subtests = _inside(item, policy)
    for report in (phases["setup"], *subtests, phases.get("call")):
        if report is not None:
            log(report=report)
    if item.session.shouldfail or item.session.shouldstop:
        nextitem = None
    if inside_only:
        if nextitem is not None and "teardown" in phases:
            log(report=phases["teardown"])
            return
        _set_up_outside(item)  # for what ends now, and did not begin with this test
    teardown = runner.call_and_report(item, "teardown", log=False, nextitem=nextitem)
    # One report for both ends, that of the fixtures inside and that of the wider ones here, unless both failed.
    ended = phases.get("teardown", teardown)
    if ended is not teardown and teardown.failed:
        if ended.failed:
            log(report=ended)
        ended = teardown
    log(report=ended)


def _nothing_wider(item: Any, nextitem: pytest.Item | None) -> bool:
    """Tell whether all that is wider than the function is there, and stays: then all hooks are called inside alone."""
    tree = item.session._setupstate.stack
    above = item.listchain()[:-1]
    if nextitem is None or list(tree) != above or nextitem.listchain()[: len(above)] != above:
        return False
    if any(error for _, error in tree.values()):
        return False
    definitions = item._fixtureinfo.name2fixturedefs if hasattr(item, "_fixtureinfo") else {}
    for name in getattr(item, "fixturenames", ()):
        made = definitions.get(name)
        if made and made[-1].scope != "function":
            cached = made[-1].cached_result
            if cached is None or cached[2] is not None or made[-1].params is not None:
                return False
    return True


def _refuse(item: pytest.Item, why: str) -> pytest.TestReport:
    item.setup = lambda: pytest.fail(why, pytrace=False)  # type: ignore[method-assign]
    try:
        return runner.call_and_report(item, "setup", log=False)
    finally:
        del item.setup


def _set_up_outside(item: pytest.Item) -> pytest.TestReport:
    """Set up the collection tree and the fixtures of wider scope."""
    request: Any = getattr(item, "_request", None)
    if request is not None:
        request._fillfixtures = lambda: _fill_wide(item)
    try:
        return runner.call_and_report(item, "setup", log=False)
    finally:
        if request is not None:
            del request._fillfixtures


def _fill_wide(item: Any) -> None:
    definitions = item._fixtureinfo.name2fixturedefs
    for name in item.fixturenames:
        made = definitions.get(name)
        if made and made[-1].scope != "function" and name not in item.funcargs:
            item.funcargs[name] = item._request.getfixturevalue(name)


def _inside(item: pytest.Item, policy: Policy) -> Reports:
    """Run the test in a copy; return its reports, one of them made up where it did not live to tell."""
    mailbox = item.config.stash.get(_mailbox, None)
    if mailbox is None:
        mailbox = item.config.stash[_mailbox] = Mailbox()
    mailbox.clear()
    started = time.time()
    try:
        with _limited(item, policy) as (isolation, group):
            copy = isolate(isolation, lambda: pytest_inside.run(item, mailbox), _directories(group))
            why = _wait(copy, policy.timeout)
            memory = group.oom() if group is not None else None
            pids = group.refusals() if group is not None else None
    except SandboxError as error:
        return {"setup": pytest_reports.failed(item, "setup", str(error), started)}, []
    if copy.failure is not None:
        return {"setup": pytest_reports.failed(item, "setup", copy.failure, started)}, []
    return _judge(item, mailbox, policy.isolation, copy, why, (memory, pids), started)


def _judge(
    item: pytest.Item,
    mailbox: Mailbox,
    isolation: Isolation,
    copy: Isolated,
    why: str | None,
    limits: tuple[str | None, ...],
    started: float,
) -> Reports:
    told = pytest_reports.read(item, mailbox)
    if told.exit is not None:
        pytest.exit(*told.exit)
    if told.interrupted:
        raise KeyboardInterrupt
    pytest_reports.count_subtests(item, told.failed_subtests)
    phases = told.phases
    memory, pids = limits
    if why is None and not told.done:
        why = memory or told.broken or pytest_reports.end_of(copy)
        if mailbox.overflowed:
            why = f"the reports of the test, with all output, have more than {SIZE >> 20} MiB"
        elif memory is None and pids is not None:
            why += f"; {pids}"
    elif why is None and memory is not None and all(report.passed for report in phases.values()):
        why = memory  # of a child, which nobody looked after
    complete = "setup" in phases and "teardown" in phases
    if why is None and not complete:
        why = "what the test reported is not what pytest reports"
    if why is not None:
        # Where it ended: a phase has a report when it is over.
        phase = "teardown" if "call" in phases and memory is None else "call"
        phases[phase] = pytest_reports.failed(item, phase, why, started)
        phases.setdefault("setup", pytest_reports.passed(item, "setup"))
    else:
        for report in phases.values():
            if report.failed:
                said = [*filter(None, limits), *pytest_reports.misses(report.longreprtext, isolation)]
                report.sections += [("sandbox", "\n".join(said))] if said else []
    return phases, told.logged


def _wait(copy: Isolated, timeout: float | None) -> str | None:
    """Wait until the copy has ended; say why it had to be made to."""
    why = None
    try:
        if copy.fileno() >= 0:
            poller = select.poll()
            poller.register(copy.fileno(), select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000 + 1):
                copy.kill()
                why = f"the test took longer than sandbox(timeout={timeout:g}), and was killed with all it had begun"
    except pytest.fail.Exception as error:  # somebody else's time limit
        copy.kill()
        why = str(error)
    except BaseException:
        copy.kill()
        raise
    finally:
        copy.join()
    return why


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _directories(group: Group | None) -> list[int]:
    return [] if group is None else [part.inner for part in group.parts]


@contextlib.contextmanager
def _limited(item: pytest.Item, policy: Policy) -> Iterator[tuple[Isolation, Group | None]]:
    """Make the control group that keeps the limits; where none can be had, limits of each process take its place."""
    if policy.memory is None and policy.pids is None:
        yield policy.isolation, None
        return
    from sandbox import cgroups
    from sandbox.limits import Limits

    limits = Limits(memory=policy.memory, pids=policy.pids, best_effort=("memory", "pids"))
    chosen = cgroups.choose(limits)
    isolation = policy.isolation
    if "memory" in chosen.weak:
        isolation = isolation._replace(address_space=policy.memory)
    if "pids" in chosen.weak:
        if os.geteuid() == 0:
            raise UnsupportedError(
                "sandbox(pids=...)",
                needed="a control group with the controller pids, or an ordinary user, whose processes are counted",
                found="none, and root, whose processes are not",
                fix="run `sandbox doctor`, which says where control groups can be made",
            )
        isolation = isolation._replace(processes=policy.pids)
    group = cgroups.make(chosen, limits, item.name) if chosen.places else None
    try:
        yield isolation, group
    finally:
        if group is not None:
            group.remove()
