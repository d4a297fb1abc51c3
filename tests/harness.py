"""What the tests share: running as another user, looking for leaks, probing the host."""

import ctypes
import functools
import gc
import json
import os
import re
import select
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

# An id without an account: nothing on the host belongs to it.
USER_ID = int(os.environ.get("SANDBOX_TEST_UID", "61234"))

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUSER = 0x10000000


def become_subreaper() -> None:
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def drop_privileges() -> None:
    """Become the unprivileged user, for ever; as login would, without root's groups."""
    os.setgroups([])
    drop_privileges_but_groups()


def drop_privileges_but_groups(uid: int = USER_ID) -> None:
    """Become the unprivileged user, and stay in the groups of this process."""
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The uid change made /proc/self root's own.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ["HOME"] = "/tmp"
    os.environ.pop("XDG_RUNTIME_DIR", None)


def give_away(path: "str | os.PathLike[str]") -> None:
    """Make the unprivileged user the owner, where root runs the test: what root binds writable must not be its own."""
    if os.geteuid() == 0:
        os.chown(path, USER_ID, USER_ID, follow_symlinks=False)


def _closed_ancestor(path: str) -> str | None:
    """Return the topmost directory above a path that other users cannot enter."""
    parts = path.split("/")
    for end in range(2, len(parts)):
        ancestor = "/".join(parts[:end])
        if not os.stat(ancestor).st_mode & stat.S_IXOTH:
            return ancestor
    return None


def make_reachable(paths: Iterable[str]) -> None:
    """Let every user reach these directories, in a mount namespace of the caller's own.

    An interpreter or a checkout below root's home is out of the unprivileged user's reach. Nothing else of
    that home becomes visible: it is covered, and only the directories asked for come back, at their own
    paths.
    """
    wanted = {form for path in paths for form in (os.path.abspath(path), os.path.realpath(path))}
    closed: dict[str, list[str]] = {}
    for path in sorted(wanted):
        ancestor = _closed_ancestor(path)
        if ancestor is not None:
            closed.setdefault(ancestor, []).append(path)
    if not closed:
        return
    # Only here: most runs have no need of it, and the harness shall start without the library under test.
    from sandbox import primitives as kernel

    cwd = os.getcwd()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    for ancestor, below in closed.items():
        clone = kernel.OPEN_TREE_CLOEXEC | kernel.OPEN_TREE_CLONE | kernel.AT_RECURSIVE
        to_there = kernel.MOVE_MOUNT_F_EMPTY_PATH | kernel.MOVE_MOUNT_T_SYMLINKS
        trees = {path: kernel.open_tree(kernel.AT_FDCWD, path, clone) for path in below}
        kernel.mount("reachable", ancestor, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
        for path, tree in trees.items():
            os.makedirs(path, exist_ok=True)  # sorted: one inside another finds its place there
            kernel.move_mount(tree, "", kernel.AT_FDCWD, path, to_there)
            os.close(tree)
    # The old working directory lies under the cover.
    os.chdir(cwd if os.path.isdir(cwd) else REPOSITORY)


# Below the suite's own, which would end the worker. An emulated machine sets that higher.
USER_TEST_TIMEOUT = float(os.environ.get("PYTEST_TIMEOUT", "120")) - 10


def read_before(fd: int, deadline: float) -> str | None:
    """Read to the end of file; None when the deadline passes first."""
    chunks = []
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 65536)
        if not chunk:
            return b"".join(chunks).decode()
        chunks.append(chunk)
    return None


_V1_OWNED = ("cgroup.procs", "tasks")
_V2_OWNED = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


def _places():
    """Return where this process may make control groups; empty where it may not."""
    from sandbox.cgroups import hierarchy

    with open("/proc/self/mountinfo") as mountinfo, open("/proc/self/cgroup") as cgroup:
        return hierarchy.find(mountinfo.read(), cgroup.read(), os.geteuid()).places


def controllers() -> set[str]:
    """Return the controllers with which this process may make control groups."""
    return {name for place in _places() for name in place.controllers} | {f"v{place.version}" for place in _places()}


def controllers_v2() -> set[str]:
    """Return the controllers of version 2 with which this process may make control groups."""
    return {name for place in _places() if place.version == 2 for name in place.controllers}


def delegate_cgroups() -> list[str]:
    """Put this process, root's, into control groups that belong to the unprivileged user; return their directories."""
    from sandbox import cgroups

    made = []
    for place in _places():
        if place.version == 2:
            cgroups._enable(place, set(place.controllers) & set(cgroups.hierarchy.CONTROLLERS))
        path = os.path.join(place.path, f"test-of-sandbox-{os.getpid()}")
        os.mkdir(path)
        made.append(path)
        if "cpuset" in place.controllers and place.version == 1:
            for name in ("mems", "cpus"):
                with open(f"{place.path}/cpuset.effective_{name}") as of, open(f"{path}/cpuset.{name}", "w") as to:
                    to.write(of.read())
        for name in ("", *(_V2_OWNED if place.version == 2 else _V1_OWNED)):
            os.chown(os.path.join(path, name), USER_ID, USER_ID)
        with open(f"{path}/cgroup.procs", "w") as stream:
            stream.write("0")
    return made


def _members(path: str) -> str:
    """Return the pids in a control group, and in the leaf that callers move into."""
    found = ""
    for group in (path, f"{path}/sandbox-callers"):
        if os.path.isdir(group):
            with open(f"{group}/cgroup.procs") as stream:
                found += stream.read()
    return found


def remove_cgroups(pid: int) -> None:
    """Remove what `delegate_cgroups` of a child made, when that has ended, and say what was left in it."""
    left = []
    for place in _places():
        path = os.path.join(place.path, f"test-of-sandbox-{pid}")
        if not os.path.isdir(path):
            continue
        # The janitor of a caller is in the group of that, and ends a moment later, when it has removed the others.
        deadline = time.monotonic() + 2
        while os.stat(path).st_nlink > 2 + os.path.isdir(f"{path}/sandbox-callers") or _members(path):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for name in sorted(os.listdir(path)):
            below = os.path.join(path, name)
            if os.path.isdir(below):
                if name != "sandbox-callers":
                    left.append(below)
                for folder, _, _ in os.walk(below, topdown=False):
                    os.rmdir(folder)
        os.rmdir(path)
    assert not left, f"control groups were left behind: {left}"


def own_cgroups() -> list[str]:
    """Return the control groups of sandboxes that this process has made and not removed."""
    if "sandbox.cgroups" not in sys.modules:
        return []
    known = sys.modules["sandbox.cgroups"]._known
    return [
        os.path.join(place.path, name)
        for place in (known[3].places if known is not None else ())
        if os.path.isdir(place.path)
        for name in os.listdir(place.path)
        if name.startswith("sandbox-") and f"-{os.getpid()}-" in name
    ]


def run_as_user(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run one test, fixtures and all, in a forked child that has dropped its privileges."""
    from _pytest.runner import runtestprotocol

    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        text = json.dumps({"crash": "the test's process did not get to its report"})
        try:
            if item.get_closest_marker("needs_cgroup"):
                delegate_cgroups()
            make_reachable([REPOSITORY, sys.prefix, sys.base_prefix])
            drop_privileges()
            become_subreaper()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            hook = item.config.hook
            data = [hook.pytest_report_to_serializable(config=item.config, report=one) for one in reports]
            text = json.dumps(data)
        except BaseException:
            text = json.dumps({"crash": traceback.format_exc()})
        finally:
            # Whatever happens: a child that went on would be a second worker.
            try:
                with open(write_end, "w") as stream:
                    stream.write(text)
            finally:
                os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        text = read_before(stream.fileno(), time.monotonic() + USER_TEST_TIMEOUT)
    if text is None:
        os.kill(pid, signal.SIGKILL)
        text = json.dumps({"crash": f"the test took longer than {USER_TEST_TIMEOUT} seconds and was killed"})
    _, status = os.waitpid(pid, 0)
    if item.get_closest_marker("needs_cgroup"):
        remove_cgroups(pid)
    data = json.loads(text) if text else {"crash": f"the test's process ended with wait status {status}"}
    if isinstance(data, dict):
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", data["crash"], "call", [], 0.0)]
    restore = item.config.hook.pytest_report_from_serializable
    reports = [restore(config=item.config, data=one) for one in data]
    for report in reports:
        if isinstance(report.longrepr, list):  # of a skip: a tuple, which JSON does not have
            report.longrepr = tuple(report.longrepr)
    return reports


class Footprint(NamedTuple):
    descriptors: dict[int, str]
    children: set[int]
    mounts: str
    cgroups: list[str]


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


def reap_janitors() -> None:
    """Reap, as init would, what removed the control groups of callers that have ended: a subreaper gets them."""
    for pid in children():
        try:
            with open(f"/proc/{pid}/stat") as stream:
                text = stream.read()
            if "(sandbox-janitor) Z" in text:
                os.waitpid(pid, os.WNOHANG)
        except (FileNotFoundError, ProcessLookupError, ChildProcessError):  # reaped meanwhile
            continue


def drop_kept() -> None:
    """Close the descriptors that the library keeps between launches, so that only a leak is left to be seen."""
    native, launcher = sys.modules.get("sandbox.launch.native"), sys.modules.get("sandbox.launcher")
    if native is None or launcher is None:
        return
    janitor = sys.modules.get("sandbox.cgroups.janitor")
    if janitor is not None:
        janitor.reap_leaving()
    kept = [*launcher._trees._kept.values(), native._init_program._kept, native._lifeline and native._lifeline[1]]
    for one in kept:
        if one is not None:
            one.close()
    launcher._trees._kept.clear()
    native._init_program._kept = native._lifeline = None


def footprint(settle: Footprint | None = None) -> Footprint:
    """Look at what this process holds; with `settle`, wait up to 10 s for the end of what is ending."""
    drop_kept()
    deadline = time.monotonic() + 10
    while True:
        with open("/proc/self/mountinfo") as stream:
            mounts = stream.read()
        reap_janitors()
        now = Footprint(_descriptors(), children(), mounts, own_cgroups())
        if settle is None or now == settle or time.monotonic() > deadline:
            return now
        gc.collect()
        time.sleep(0.01)


def kernel_release() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


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


def enter_namespaces(flags: int) -> None:
    """Give the calling process (a child) namespaces of its own; an unprivileged one becomes root in them.

    A failure ends the test: what follows would change the host.
    """
    from sandbox import primitives as kernel

    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(flags if uid == 0 else flags | kernel.CLONE_NEWUSER)
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(text)
    if flags & kernel.CLONE_NEWNS:
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)


@contextmanager
def user_namespace(uid_map: str, gid_map: str | None = None) -> Iterator[int]:
    """Make a user namespace with these maps; yield the pid of a process in it that does nothing."""
    from sandbox import primitives as kernel

    gate, held = os.pipe()
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(held)
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(told, b"x")
            os.read(gate, 1)
        finally:
            os._exit(0)
    os.close(told)
    os.close(gate)
    try:
        assert os.read(ready, 1) == b"x", "no user namespace could be made"
        for name, text in (("uid_map", uid_map), ("gid_map", uid_map if gid_map is None else gid_map)):
            with open(f"/proc/{pid}/{name}", "w") as stream:
                stream.write(text)
        yield pid
    finally:
        os.close(ready)
        os.close(held)
        os.waitpid(pid, 0)


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
        finally:
            # Whatever happens: a child that went on would be a second worker.
            os._exit(code)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else str(code)
        pytest.fail(f"in the child ({name}):\n{text}", pytrace=False)


def raising(error: BaseException) -> None:
    """Raise an error; for a worker, which finds this module by its name."""
    raise error
