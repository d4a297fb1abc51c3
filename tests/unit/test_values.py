"""Every public value compares, hashes where a user builds it, shows itself, and travels; what is live refuses to."""

import concurrent.futures
import copy
import dataclasses
import enum
import errno
import functools
import importlib
import inspect
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, is_typeddict

import harness
import pytest

from sandbox import (
    Allow,
    BusyError,
    CalledProcessError,
    ClockChanged,
    Condition,
    Denied,
    Difference,
    Enforced,
    Errno,
    Filter,
    FilterError,
    Kill,
    Landlock,
    Mount,
    Network,
    PolicyError,
    Reason,
    Result,
    Sandbox,
    SandboxError,
    SetupError,
    Step,
    TimeoutExpired,
    Trace,
    UnsupportedError,
    Usage,
    arg,
    events,
    primitives,
    supervise,
)
from sandbox.causes import Cause
from sandbox.events import CgroupEvent, Completion, PidfdEvent, PressureEvent, TimerVal, signalfd
from sandbox.supervise import Ready, Restart, State

MODULES = ("sandbox", "sandbox.events", "sandbox.supervise", "sandbox.primitives")


def filled(kind: type, first: int = 1) -> Any:
    """Make a record whose fields are numbers in a row: what they mean is nothing to pickle."""
    if dataclasses.is_dataclass(kind):
        return kind(**{field.name: number for number, field in enumerate(dataclasses.fields(kind), first)})
    return kind._make(range(first, first + len(kind._fields)))  # type: ignore[attr-defined]


def found_at(path: str) -> events.RecursiveEvent:
    event = events.RecursiveEvent(3, 0x100, 0, "name")
    event.path, event.found, event.old_path = path, True, None
    return event


RESULT: Callable[[], Result[str]] = lambda: Result(
    ["make", "-j2"], -9, "out", None, reason=Reason.OOM, detail="memory.oom_kill 1", usage=Usage(1.5, max_rss=7),
    enforced=ENFORCED(), truncated=True, denied=(DENIED(),),
)  # fmt: skip
DENIED: Callable[[], Denied] = lambda: Denied("bpf", (1, 2), "/x", errno.EPERM, 7, "rule 3", '.allow("bpf")')
ENFORCED: Callable[[], Enforced] = lambda: Enforced(
    1000, 1000, (5,), {"effective": frozenset({"CHOWN"})}, 0xFF, True, True, 1, 7, 2, {"net": 4026531840},
    (Mount("/", "tmpfs", frozenset({"ro"})),), (0, 1, 2), {"core": 0.0, "pids": math.inf}, "/x", ("a gap",), ("swap",),
)  # fmt: skip

# One line for each method of the builder; a value is made twice, so that nothing compares by identity.
BUILDERS: dict[str, Callable[[], Sandbox]] = {
    "__init__": Sandbox,
    "empty": Sandbox.empty,
    "rootfs": lambda: Sandbox().rootfs("/srv/alpine"),
    "bind": lambda: Sandbox().bind("/srv/data", "/data", optional=True, exec=False, dev=True, owner=7),
    "bind_readonly": lambda: Sandbox().bind_readonly(b"/srv/data", "/data"),
    "tmpfs": lambda: Sandbox().tmpfs("/scratch", size="256M", mode=0o1777, inodes=9, exec=False),
    "proc": lambda: Sandbox.empty().proc(hidepid=True, subset="pid"),
    "dev": lambda: Sandbox.empty().dev(shm="1M", nodes=["null", "shm"]),
    "file": lambda: Sandbox().file("/etc/app.conf", "debug=1\n", mode=0o444),
    "dir": lambda: Sandbox().dir("/var/empty", mode=0o700),
    "symlink": lambda: Sandbox().symlink("/data/current", "/current"),
    "mask": lambda: Sandbox().mask("/usr/share/secret"),
    "remount_readonly": lambda: Sandbox().remount_readonly("/tmp"),
    "user": lambda: Sandbox().user(5, 6, groups="strict"),
    "python": lambda: Sandbox.empty().python(),
    "nesting": lambda: Sandbox().nesting(),
    "id_ranges": lambda: Sandbox().id_ranges(4096),
    "hostname": lambda: Sandbox().hostname("builder"),
    "domainname": lambda: Sandbox().domainname("example"),
    "env": lambda: Sandbox().env({"A": "secret"}, LANG=None),
    "inherit_env": lambda: Sandbox().inherit_env("PATH", "A_VARIABLE_OF_THIS_TEST"),
    "cwd": lambda: Sandbox().cwd("/data"),
    "umask": lambda: Sandbox().umask(0o077),
    "share": lambda: Sandbox().share("ipc", "uts"),
    "unshare": lambda: Sandbox().unshare("time"),
    "network": lambda: Sandbox().network("none"),
    "time_offset": lambda: Sandbox().time_offset(monotonic=3600),
    "capabilities": lambda: Sandbox().capabilities(["net_admin"], ambient=["CAP_CHOWN"]),
    "seccomp": lambda: Sandbox().seccomp(Filter.default().deny("socket", arg(0) == "AF_INET")),
    "landlock": lambda: Sandbox().landlock(read=["/usr"], connect_tcp=[443]),
    "limit": lambda: Sandbox().limit(memory="256M", cpus=1.5, io={"write": "10M"}, cpuset=[0], best_effort=True),
    "init": lambda: Sandbox().init(False),
    "new_session": lambda: Sandbox().new_session(False),
    "observe": lambda: Sandbox().observe(),
}

# What a user makes, or a plain value that holds nothing but such, hashes too.
HASHED: dict[str, Callable[[], Any]] = {
    **{f"Sandbox.{name}": make for name, make in BUILDERS.items()},
    "Network": lambda: Network.none,
    "Filter": lambda: Filter(Errno("EPERM"), arches=["x86_64", "aarch64"]).allow("read", arg(0) == 3).deny("@clock"),
    "Filter.strict": Filter.strict,
    "Filter.docker": lambda: Filter.docker(capabilities=["CAP_SYS_ADMIN"]),
    "Filter.from_bytes": lambda: Filter.from_bytes(Filter.strict().to_bytes()),
    "Landlock": lambda: Landlock(read=["/usr"], scope=["signal"], best_effort=True).path("/tmp", 4).log(new_exec=True),
    "Action": lambda: Kill,
    "Errno": lambda: Errno("EACCES"),
    "Trace": lambda: Trace(7),
    "Condition": lambda: (arg(1) & 0xFF).one_of("TIOCSTI", 3),
    "Difference": lambda: Difference("read", "x86_64", (1,), Allow, Errno(1)),
    "Denied": DENIED,
    "Mount": lambda: Mount("/", "tmpfs", frozenset({"ro"})),
    "Plan": lambda: Sandbox.empty().tmpfs("/scratch").plan(["make", "-j2"]),
    "Step": lambda: Step(3, "open_tree", ("/srv", 1), "init", '.bind("/srv")'),
    "Usage": lambda: Usage(1.5, 0.5, 0.25, 0.75, 1 << 20, memory_peak=5),
    "TimerVal": lambda: TimerVal().after(0.5).every(1.0),
    "PidfdEvent": lambda: PidfdEvent(4, -9),
    "SignalfdEvent": lambda: signalfd.str_to_events(b"\1" + bytes(127))[0],
    "Completion": lambda: Completion(5, "a tag", 4096, None),
    "InotifyEvent": lambda: events.InotifyEvent(3, 0x8, 0, "name"),
    "RecursiveEvent": lambda: found_at("/srv/name"),
    "RecursiveEvent elsewhere": lambda: found_at("/opt/name"),
    "CgroupEvent": lambda: filled(CgroupEvent),
    "PressureEvent": lambda: filled(PressureEvent),
    "Restart": lambda: Restart.on_failure(backoff=0.5, limit=5),
    "Ready": lambda: Ready.tcp(80),
    "Ready.call": lambda: Ready.call(os.getpid, every=2),
    "ServiceStarted": lambda: supervise.ServiceStarted("web", 1.5, 7),
    "ServiceReady": lambda: supervise.ServiceReady("web", 1.5),
    "ServiceRestarting": lambda: supervise.ServiceRestarting("web", 1.5, 0.2),
    "ServiceEvent": lambda: supervise.ServiceEvent("web", 1.5),
    **{
        f"primitives.{name}": functools.partial(filled, getattr(primitives, name))
        for name in ("CapabilitySets", "FanotifyAudit", "FsMessage", "Ids", "IoEvent", "IoUringParams", "Itimerspec",
                     "MntNsInfo", "PidfdInfo", "SeccompNotif", "SeccompNotifSizes", "Statmount", "WaitidResult",
                     "InotifyColumns", "FanotifyColumns")
    },
}  # fmt: skip
UNHASHED: dict[str, Callable[[], Any]] = {
    "Result": RESULT,
    "Enforced": ENFORCED,
    "ServiceExited": lambda: supervise.ServiceExited("web", 1.5, RESULT()),
    "ServiceGaveUp": lambda: supervise.ServiceGaveUp("web", 1.5, RESULT()),
    "ServiceStatus": lambda: supervise.ServiceStatus("web", State.READY, 7, 1.5, 2, "serving", RESULT()),
}  # fmt: skip
VALUES = HASHED | UNHASHED
ERRORS: dict[str, Callable[[], BaseException]] = {
    "SandboxError": lambda: SandboxError("no"),
    "SetupError": lambda: SetupError(
        errno.ENOENT, step=3, steps=8, call='open_tree("/x")', origin='.bind("/x")', hint="a hint", filename="/x"
    ),
    "SetupError with a cause": lambda: SetupError(errno.EPERM, hint=Cause("userns", "it is forbidden", "sysctl")),
    "UnsupportedError": lambda: UnsupportedError("freeze()", needed="a group", found="none", fix="limit()", errno=95),
    "UnsupportedError with a cause": lambda: UnsupportedError("freeze()", found=Cause("userns", "forbidden", "sysctl")),
    "BusyError": lambda: BusyError("two wait"),
    "FilterError": lambda: FilterError("no such call"),
    "PolicyError": lambda: PolicyError("unknown key", path="a.toml", line=3, key="x"),
    "ClockChanged": lambda: ClockChanged(errno.ECANCELED, "the clock was set"),
    "TimeoutExpired": lambda: TimeoutExpired(["sleep"], 1.5, b"out", b"err"),
    "TimeoutExpired by keyword": lambda: TimeoutExpired(cmd=["sleep"], timeout=1.5, output=b"out"),
    "CalledProcessError": lambda: CalledProcessError(3, ["false"], b"out", b"err"),
    "CalledProcessError by keyword": lambda: CalledProcessError(cmd=["false"], returncode=3),
}
# Each owns a descriptor, a process or memory that the kernel knows.
LIVE = {
    "sandbox": {"Denials", "Denials_async", "Emulation", "Notification", "Notifier", "Notifier_async", "Process",
                "Process_async", "ProcessControl"},
    "sandbox.events": {"Aio", "Aio_async", "CgroupEvents", "CgroupEvents_async", "EventLike", "EventLike_async",
                       "Eventfd", "Eventfd_async", "Fanotify", "FanotifyEvent", "Fanotify_async", "Inotify",
                       "Inotify_async", "Notifier", "Notifier_async", "Pidfd", "Pidfd_async", "Pressure",
                       "Pressure_async", "RecursiveInotify", "RecursiveInotify_async", "Signalfd", "Signalfd_async",
                       "Timerfd", "Timerfd_async"},
    "sandbox.supervise": {"RotatingFile", "Supervisor"},
    "sandbox.primitives": {"FanotifyBatch", "InotifyBatch", "IoUring", "Iocb", "LinuxAio", "Pinned"},
}  # fmt: skip
# Compares with everything it meets, which makes a condition; there is no equality to test.
NEITHER = {"sandbox": {"Arg", "HasFileno", "Runner"}}


@pytest.fixture(autouse=True)
def _variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_VARIABLE_OF_THIS_TEST", "1")


def public_classes(module: str) -> dict[str, type]:
    found = importlib.import_module(module)
    named = {name: getattr(found, name) for name in found.__all__}
    return {name: value for name, value in named.items() if inspect.isclass(value)}


def travelled(value: Any) -> list[Any]:
    """Return what comes of a value by every way there is."""
    ways = [pickle.loads(pickle.dumps(value, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    return [*ways, copy.copy(value), copy.deepcopy(value)]


def told(error: BaseException) -> tuple[object, ...]:
    """Return all that an error says."""
    number = (error.errno, error.strerror, error.filename) if isinstance(error, OSError) else ()
    return type(error), str(error), error.args, number, vars(error)


# ── the tables are complete ──


@pytest.mark.parametrize("module", MODULES)
def test_every_public_class_is_in_a_table(module):
    listed = LIVE.get(module, set()) | NEITHER.get(module, set())
    made = {type(make()) for make in VALUES.values()} | {type(make()) for make in ERRORS.values()}
    made |= {SetupError, Condition}
    left = {
        name: kind
        for name, kind in public_classes(module).items()
        if name not in listed and kind not in made and not is_typeddict(kind) and not issubclass(kind, enum.Enum)
    }
    assert {} == left
    assert set() == listed - set(public_classes(module))


def test_every_builder_method_is_in_the_table():
    methods = {name for name in dir(Sandbox) if not name.startswith("_")}
    # file_fd() holds a descriptor, which no other process has.
    running = {"run", "popen", "run_async", "popen_async", "plan"}
    assert methods - running - {"file_fd"} == set(BUILDERS) - {"__init__"}


# ── values ──


@pytest.mark.parametrize("name", VALUES)
def test_value_is_equal_to_one_made_alike(name):
    make = VALUES[name]
    assert make() == make()
    assert not make() != make()
    assert make() != object()


def test_values_that_say_different_things_differ():
    made = [make() for make in VALUES.values()]
    # A named tuple is equal to any other tuple of the same numbers.
    assert len(made) == sum(one == other for one in made for other in made if type(one) is type(other))


@pytest.mark.parametrize("name", VALUES)
def test_value_comes_back_equal_from_pickle_and_copy(name):
    value = VALUES[name]()
    for again in travelled(value):
        assert type(value) is type(again)
        assert value == again
        assert repr(value) == repr(again)


@pytest.mark.parametrize("name", HASHED)
def test_value_that_a_user_builds_hashes_by_what_it_says(name):
    value = HASHED[name]()
    assert {hash(value)} == set(map(hash, [HASHED[name](), *travelled(value)]))


@pytest.mark.parametrize("name", UNHASHED)
def test_value_with_a_mapping_inside_does_not_hash(name):
    with pytest.raises(TypeError, match="unhashable"):
        hash(UNHASHED[name]())


@pytest.mark.parametrize("name", VALUES)
def test_value_shows_itself(name):
    shown = repr(VALUES[name]())
    assert " object at 0x" not in shown
    assert len(shown) < 1000
    assert "\n" not in shown


@pytest.mark.parametrize("name", BUILDERS)
def test_sandbox_shows_the_call_that_made_it(name):
    shown = repr(BUILDERS[name]())
    word = {"__init__": "<Sandbox()", "empty": "<Sandbox.empty()", "inherit_env": ".env("}.get(name, f".{name}(")
    assert word in shown
    assert "secret" not in shown.replace("/usr/share/secret", "")


def test_sandboxes_that_differ_look_different():
    # Of the environment the names alone are shown.
    shown = {repr(make()) for make in BUILDERS.values()}
    assert len(BUILDERS) == len(shown)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in {"env", "inherit_env", "file"}])
def test_what_a_sandbox_shows_makes_it_again(name):
    words = {"Sandbox": Sandbox, "Filter": Filter, "Landlock": Landlock, "arg": arg}
    box = BUILDERS[name]()
    shown = repr(box)[1:-1]
    assert box == eval(shown, words)


@pytest.mark.parametrize("name", [name for name, make in VALUES.items() if dataclasses.is_dataclass(make())])
def test_field_of_a_frozen_value_cannot_be_set(name):
    value = VALUES[name]()
    for field in dataclasses.fields(value):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            setattr(value, field.name, 1)


def test_network_is_not_changed_by_anybody():
    with pytest.raises(AttributeError, match="kind cannot be changed"):
        Network.none.kind = "host"
    with pytest.raises(ValueError, match=r'^kind must be "none", "loopback" or "host", got \'bridge\'$'):
        Network("bridge")
    assert "Network.none" == repr(Network.none)


def test_values_are_the_same_to_another_process():
    made = {name: make() for name, make in VALUES.items() if name != "Sandbox.inherit_env"}
    program = "import pickle, sys; v = pickle.load(sys.stdin.buffer)\nprint({n: repr(o) for n, o in v.items()}, end='')"
    # Strings hash differently there: nothing may depend on that.
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], input=pickle.dumps(made), stdout=subprocess.PIPE, check=True,
        env=os.environ | {"PYTHONHASHSEED": "77"},
    )  # fmt: skip
    said = eval(run.stdout)
    for name, value in made.items():
        if "frozenset" not in repr(value):
            assert repr(value) == said[name]
    assert set(made) == set(said)


def test_sandbox_that_reads_a_descriptor_says_why_it_does_not_pickle():
    read_end, write_end = os.pipe()
    try:
        box = Sandbox().file_fd("/etc/token", read_end)
        with pytest.raises(TypeError, match=r"\.file_fd\(.*the descriptor is this process's own"):
            pickle.dumps(box)
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("module", MODULES)
def test_members_of_enumerations_come_back_as_themselves(module):
    for kind in public_classes(module).values():
        if issubclass(kind, enum.Enum):
            for member in kind:
                assert all(member is again for again in travelled(member))


# ── errors ──


def noted(name: str) -> BaseException:
    error = ERRORS[name]()
    error.add_note("while building the thing")
    error.add_note("on node 7")
    return error


@pytest.mark.parametrize("name", ERRORS)
def test_error_comes_back_whole_with_its_notes(name):
    error = noted(name)
    for again in travelled(error):
        assert told(error) == told(again)
        assert ["while building the thing", "on node 7"] == again.__notes__


@pytest.mark.parametrize("name", ["TimeoutExpired", "CalledProcessError", "CalledProcessError by keyword"])
def test_error_of_a_command_brings_its_result(name):
    error: Any = ERRORS[name]()
    error.result = RESULT()
    assert [RESULT()] * len(travelled(error)) == [again.result for again in travelled(error)]


def test_hint_that_was_found_later_is_the_one_that_travels():
    error: Any = ERRORS["SetupError with a cause"]()
    error.hint = "the control group was out of memory"
    again = pickle.loads(pickle.dumps(error))
    assert ("the control group was out of memory", "userns") == (again.hint, again.cause.key)
    assert isinstance(again, PermissionError)


def test_error_raised_in_a_worker_arrives_with_its_notes():
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        for name in ERRORS:
            error = pool.submit(harness.raising, noted(name)).exception()
            assert error is not None
            assert told(noted(name)) == told(error)
            assert "in raising" in str(error.__cause__)  # where it was raised, as the executor tells it


@pytest.mark.needs_userns
def test_launch_that_fails_in_a_worker_is_told_as_here():
    box = Sandbox().bind("/nonexistent/source", "/data")
    with pytest.raises(FileNotFoundError) as here:
        box.run(["true"])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        error = pool.submit(box.run, ["true"]).exception()
    assert isinstance(error, FileNotFoundError)
    assert told(here.value) == told(error)
    assert "must exist" in str(error)


# ── what is live ──


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in LIVE.items() for name in sorted(names)]
)
def test_live_thing_refuses_to_be_pickled_or_copied(module, name):
    kind = getattr(importlib.import_module(module), name)
    # Nothing in it: what refuses is the class, whatever its state.
    bare = object.__new__(kind) if not issubclass(kind, tuple) else tuple.__new__(kind, range(20))
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=rf"^{name} cannot be pickled: .*; (make|send) .*"):
            attempt(bare)
