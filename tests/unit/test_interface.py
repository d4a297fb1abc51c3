"""The public names: all of them are there, and nothing else is on the objects that users hold."""

import asyncio
import importlib
import inspect
import subprocess
import sys

import pytest

import sandbox
from sandbox import events
from sandbox.supervise import Supervisor

TWINS = ("Eventfd", "Fanotify", "Inotify", "Pidfd", "RecursiveInotify", "Signalfd", "Timerfd")
BOTH = {
    "args", "cgroups", "detach", "enforced", "fileno", "freeze", "init_pid", "init_pidfd", "kill", "name",
    "namespace_fd", "pid", "plan", "popen", "popen_async", "release", "resize", "returncode", "run", "run_async",
    "send_signal", "terminal", "terminate", "thaw", "usage",
}  # fmt: skip
STREAMS = {"communicate", "denials", "notifier", "result", "stderr", "stdin", "stdout", "stop", "wait"}


def shown(value: object) -> set[str]:
    return {name for name in dir(value) if not name.startswith("_")}


@pytest.mark.parametrize("module", ["sandbox", "sandbox.events", "sandbox.supervise", "sandbox.primitives"])
def test_every_public_name_can_be_imported(module):
    found = importlib.import_module(module)
    assert [] == [name for name in found.__all__ if not hasattr(found, name)]
    assert len(set(found.__all__)) == len(found.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Sandboxx'"):
        sandbox.Sandboxx  # noqa: B018


def test_type_names_are_those_of_the_signatures():
    assert sandbox.Args.__origin__ is sandbox.order.Sequence
    assert sandbox.Fd == int | sandbox.HasFileno
    assert {"user", "pid", "net", "ipc", "uts", "cgroup", "time"} == set(sandbox.Namespace.__args__)
    assert "riscv64" in sandbox.Arch.__args__
    assert issubclass(sandbox.Process, sandbox.ProcessControl)
    assert issubclass(sandbox.Process_async, sandbox.ProcessControl)


@pytest.mark.needs_userns
def test_process_shows_what_is_documented_and_no_more():
    with sandbox.popen(["true"]) as process:
        assert BOTH | STREAMS | {"close", "poll"} == shown(process)


@pytest.mark.needs_userns
def test_process_async_shows_what_is_documented_and_no_more():
    program = "import asyncio, sandbox, sys\nasync def main():\n async with await sandbox.popen_async(['true']) as p:"
    program += "\n  print(*(name for name in dir(p) if name[0] != '_'))\nasyncio.run(main())"
    told = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True)
    assert BOTH | STREAMS | {"aclose"} == set(told.stdout.split())


def test_supervisor_shows_what_is_documented_and_no_more():
    methods = {"add", "events", "events_async", "fileno", "reload", "remove", "replace", "restart", "run", "run_async"}
    with Supervisor() as supervisor:
        assert methods | {"close", "finished", "status", "step", "stop"} == shown(supervisor)


@pytest.mark.parametrize("name", TWINS)
def test_twin_takes_the_arguments_of_the_blocking_kind(name):
    blocking = inspect.signature(getattr(events, name).__init__).parameters
    twin = inspect.signature(getattr(events, f"{name}_async").__init__).parameters
    assert [*blocking, "maxsize"] == list(twin)
    assert all(twin[one].default == blocking[one].default for one in blocking)


def test_popen_async_refuses_an_unknown_option():
    with pytest.raises(TypeError, match="unexpected keyword argument 'shell'"):
        asyncio.run(sandbox.popen_async(["true"], shell=True))
