"""Rules for every test: both privileges, no leak, and a skip that counts."""

import os
import re
from collections.abc import Iterator

import harness
import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Processes of a test that outlive their parent come back to the worker, where the leak check sees them.
    harness.become_subreaper()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every integration test as root and as an unprivileged user, where root starts the suite."""
    if "integration" not in metafunc.definition.path.parts:
        return
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if os.geteuid() != 0:
        privileges = ["user"]
    elif "needs_root" in marks:
        privileges = ["root"]
    elif "needs_user" in marks:
        privileges = ["user"]
    else:
        privileges = ["root", "user"]
    metafunc.fixturenames.insert(0, "privilege")
    metafunc.parametrize("privilege", privileges, scope="session")


def privilege_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("privilege") if callspec else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other privilege, where the tests run once as each; only `vagrant/inside` does that."""
    only = os.environ.get("SANDBOX_TEST_PRIVILEGE")
    if only is None:
        return
    other = {"root": "needs_user", "user": "needs_root"}[only]
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        wrong = item.get_closest_marker(other) or privilege_of(item) not in (None, only)
        (dropped if wrong else kept).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if privilege_of(item) != "user" or os.geteuid() != 0:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in harness.run_as_user(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # The child set up and tore down what this item needs; here only what the items before left is torn down.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_root") and os.geteuid() != 0:
        pytest.skip("needs root")
    for mark in item.iter_markers("needs_kernel"):
        if harness.kernel_release() < mark.args:
            pytest.skip(f"needs Linux {mark.args[0]}.{mark.args[1]}, this is {os.uname().release}")
    for mark in item.iter_markers("needs_program"):
        for name in mark.args:
            if harness.find_program(name) is None:
                pytest.skip(f"needs the program {name}")
    for mark in item.iter_markers("needs_landlock"):
        if harness.landlock_abi() < mark.args[0]:
            pytest.skip(f"needs Landlock ABI {mark.args[0]}, the kernel has {harness.landlock_abi()}")
    for mark in item.iter_markers("needs_cgroup"):
        lacking = set(mark.args) - harness.controllers()
        if lacking:
            pytest.skip(f"needs control groups with {', '.join(sorted(lacking))}")
    if item.get_closest_marker("needs_cgroup2"):
        lacking = {"memory", "pids", "cpu"} - harness.controllers_v2()
        if lacking:
            pytest.skip(f"needs version 2 of control groups with {', '.join(sorted(lacking))}")
    if item.get_closest_marker("needs_userns"):
        reason = harness.user_namespaces_blocked()
        if reason is not None:
            pytest.skip(f"needs user namespaces: {reason}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's Result, sent into the generator
    # 1: no test may be skipped; otherwise a regular expression for the reasons that count as failures here.
    must_run = os.environ.get("SANDBOX_MUST_RUN")
    if report.skipped and not hasattr(report, "wasxfail") and must_run:
        if must_run == "1" or re.search(must_run, str(report.longrepr)):
            report.outcome = "failed"
            report.longrepr = f"SANDBOX_MUST_RUN={must_run}, and this test was skipped: {report.longrepr}"


@pytest.fixture(autouse=True)
def no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare descriptors, children and mounts before and after each test."""
    before = harness.footprint()
    yield
    after = harness.footprint(settle=before)
    assert before == after, "the test left something behind"
