"""The pytest plugin: tests in namespaces of their own, and a `Sandbox` as a fixture.

    @pytest.mark.sandbox(hostname="node1")
    def test_server(): ...              # its own network, /tmp, host name, processes

    def test_tool(tmp_sandbox):
        assert tmp_sandbox.run(["tool"]).returncode == 0

`pytest --sandbox` does it for all tests. Fixtures of a wider scope than the function are made once, outside; those of
the function, the test and their end happen inside, in a copy of the process. What comes back are pytest's own reports,
as JSON: nothing that a test wrote is unpickled.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.builder import Sandbox

_WORDS: Final = {
    "enabled": "False: this test runs as usual, whatever --sandbox says",
    "network": '"loopback" (the default), "none" or "host"',
    "hostname": "host name, which nobody else sees",
    "tmp": "False: /tmp, /var/tmp and /dev/shm are the machine's",
    "time_offset": "seconds that the monotonic clocks are ahead",
    "memory": 'memory of all its processes, in bytes or as "64M"',
    "pids": "processes that it may have",
    "timeout": "seconds; then all its processes are killed, and it has failed",
}
_MARK: Final = f"sandbox({', '.join(f'{word}=...' for word in _WORDS)}): run the test in namespaces of its own"
_BOOLS: Final = {
    "1": True,
    "yes": True,
    "true": True,
    "on": True,
    "0": False,
    "no": False,
    "false": False,
    "off": False,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --sandbox and the ini options."""
    group = parser.getgroup("sandbox", "tests in namespaces of their own")
    group.addoption("--sandbox", action="store_true", default=None, help="run every test in namespaces of its own")
    parser.addini("sandbox", "run every test in namespaces of its own", type="bool", default=False)
    for word, what in _WORDS.items():
        if word != "enabled":
            parser.addini(f"sandbox_{word}", f"for tests in namespaces of their own: {what}", default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", _MARK)


def _from_ini(word: str, text: str) -> Any:
    """Return the value that a mark would have."""
    if word == "tmp":
        return _BOOLS.get(text.lower(), text)
    if word in {"time_offset", "timeout", "pids"}:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _asked(item: pytest.Item) -> dict[str, Any] | None:
    """Return what the marks and the ini options say of a test; None when it runs as usual.

    Raises:
        TypeError: An argument without a name.
    """
    config = item.config
    everywhere = config.getoption("--sandbox")
    if everywhere is None:
        everywhere = config.getini("sandbox")
    marks = list(item.iter_markers("sandbox"))
    if not marks and not everywhere:
        return None
    words = {}
    for word in _WORDS:
        if word != "enabled" and (said := config.getini(f"sandbox_{word}")):
            words[word] = _from_ini(word, said)
    for mark in reversed(marks):  # the closest counts
        if mark.args:
            raise TypeError(f"sandbox() takes arguments by name only, got {mark.args!r}")
        words.update(mark.kwargs)
    return None if words.get("enabled", True) is False else words


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse debuggers, before anything runs."""
    option = next(
        (name for name, key in (("--pdb", "usepdb"), ("--trace", "trace")) if config.getoption(key, False)), None
    )
    if option is None:
        return
    for item in items:
        if _asked(item) is not None:
            from sandbox.pytest_inside import NO_TERMINAL

            raise pytest.UsageError(f"{option} cannot work in {item.nodeid}: {NO_TERMINAL}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test that asks for it in namespaces of its own."""
    try:
        words = _asked(item)
        if words is None:
            return None
        # Only here: who does not use the plugin does not pay for it.
        from sandbox import pytest_run

        policy: Any = pytest_run.policy_of(item, words)
    except (TypeError, ValueError) as error:
        from sandbox import pytest_run

        policy = str(error)
    pytest_run.protocol(item, nextitem, policy)
    return True


@pytest.fixture
def tmp_sandbox(tmp_path: Path) -> Sandbox:
    """A `Sandbox` with everything as the default, and `tmp_path` as its writable working directory."""
    from sandbox.builder import Sandbox

    # Root's own directory: only by name may files of root's be made.
    return Sandbox().bind(tmp_path, owner=0 if os.geteuid() == 0 else None).cwd(tmp_path)
