"""What the tests share: running as another user, looking for leaks, probing the host."""

import ctypes
import functools
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from typing import NamedTuple

import pytest

# An id without an account: nothing on the host belongs to it.
USER_ID = int(os.environ.get("SANDBOX_TEST_UID", "61234"))

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUSER = 0x10000000


def become_subreaper() -> None:
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def drop_privileges() -> None:
    """Become the unprivileged user, for ever; as login would, without root's groups."""
    os.setgroups([])
    os.setresgid(USER_ID, USER_ID, USER_ID)
    os.setresuid(USER_ID, USER_ID, USER_ID)
    # The uid change made /proc/self root's own.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ["HOME"] = "/tmp"
    os.environ.pop("XDG_RUNTIME_DIR", None)


def run_as_user(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run one test, fixtures and all, in a forked child that has dropped its privileges."""
    from _pytest.runner import runtestprotocol

    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        try:
            drop_privileges()
            become_subreaper()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            hook = item.config.hook
            data = [hook.pytest_report_to_serializable(config=item.config, report=one) for one in reports]
            text = json.dumps(data)
        except BaseException:
            text = json.dumps({"crash": traceback.format_exc()})
        with open(write_end, "w") as stream:
            stream.write(text)
        os._exit(0)
    os.close(write_end)
    with open(read_end) as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    data = json.loads(text) if text else {"crash": f"the test's process ended with wait status {status}"}
    if isinstance(data, dict):
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", data["crash"], "call", [], 0.0)]
    restore = item.config.hook.pytest_report_from_serializable
    return [restore(config=item.config, data=one) for one in data]


class Footprint(NamedTuple):
    descriptors: dict[int, str]
    children: set[int]
    mounts: str


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def children() -> set[int]:
    """Return the pids of all children, zombies too."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as stream:
                found.update(int(pid) for pid in stream.read().split())
        except FileNotFoundError:  # the thread ended
            continue
    return found


def footprint(settle: Footprint | None = None) -> Footprint:
    """Look at what this process holds; with `settle`, wait up to 2 s for the end of what is ending."""
    deadline = time.monotonic() + 2
    while True:
        with open("/proc/self/mountinfo") as stream:
            mounts = stream.read()
        now = Footprint(_descriptors(), children(), mounts)
        if settle is None or now == settle or time.monotonic() > deadline:
            return now
        gc.collect()
        time.sleep(0.01)


def find_program(name: str) -> str | None:
    return shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


@functools.cache
def landlock_abi() -> int:
    return max(0, _libc.syscall(444, None, 0, 1))


@functools.cache
def user_namespaces_blocked() -> str | None:
    """Say why user namespaces cannot be made here, or None when they can."""
    pid = os.fork()
    if pid == 0:
        failed = _libc.unshare(_CLONE_NEWUSER) != 0
        os._exit(ctypes.get_errno() if failed else 0)
    _, status = os.waitpid(pid, 0)
    number = os.waitstatus_to_exitcode(status)
    return os.strerror(number) if number else None


def in_child(function: "object", *args: object) -> None:
    """Call a function in a forked child, for what changes the process; its exception fails the test."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        code = 1
        try:
            function(*args)  # type: ignore[operator]
            code = 0
        except BaseException:
            os.write(write_end, traceback.format_exc().encode()[:65536])
        os._exit(code)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else str(code)
        pytest.fail(f"in the child ({name}):\n{text}", pytrace=False)
