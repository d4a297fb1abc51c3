"""Plans for tests: launched with a fault in them, or held at a step until the test lets them go on."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import EACCES, EINVAL, EIO, ELOOP, EMFILE, ENOENT, ENOMEM, ENOSPC, EPERM, EPIPE
from typing import Any

from sandbox import DEVNULL, Plan, Process, Sandbox, compiler, identity, launcher
from sandbox.order import order_of
from sandbox.plan import SEGMENTS, Call, Data, Segment, Slot
from sandbox.streams import Streams

# What each call may well fail with.
PLAUSIBLE = {
    "openat": EMFILE,
    "open_tree": EACCES,
    "openat2": ELOOP,
    "fsopen": EMFILE,
    "fsconfig": EINVAL,
    "fsmount": EPERM,
    "move_mount": ENOSPC,
    "mount_setattr": EPERM,
    "mkdirat": ENOSPC,
    "mknodat": ENOSPC,
    "symlinkat": ENOSPC,
    "write": ENOSPC,
    "fcntl": EINVAL,
    "clone": ENOSPC,
    "write_proc": EPERM,
    "release": EPIPE,
    "await_release": EPIPE,
    "check_lifeline": EPIPE,
    "pivot_root": EINVAL,
    "socket": EMFILE,
    "fork_payload": ENOMEM,
    "place_fds": EMFILE,
    "execve": ENOENT,
    "verify": EPERM,
    "close": EIO,
    "keyctl": ENOMEM,
}


def plausible(call: Call) -> int:
    """Return an errno that this step may fail with, and does not tolerate."""
    number = PLAUSIBLE.get(call.call, EPERM)
    return number if number not in call.tolerate else EIO


def launch(
    sandbox: Sandbox,
    args: list[str],
    *,
    plan: Plan | None = None,
    stdin: Any = DEVNULL,
    stdout: Any = DEVNULL,
    stderr: Any = DEVNULL,
    **options: Any,
) -> Process[Any]:
    """Start a command, with a plan of its own; the streams are no pipes of the library's making."""
    streams = Streams()
    try:
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            streams.add(name, stream)
        return sandbox._launch(order_of(args, plan=plan, **options), streams)
    finally:
        streams.close_child()


def plan_of(sandbox: Sandbox, args: list[str], **options: Any) -> Plan:
    """Return the plan of a launch with these options; `Sandbox.plan` shows one without any."""
    spec = sandbox._spec
    variant = launcher._variant(order_of(args, **options))
    return compiler.compile_plan(spec, identity.caller(spec), variant).plan


def further(sandbox: Sandbox, args: list[str]) -> Plan:
    """Return the plan of one more command in a sandbox that runs."""
    compiled = compiler.compile_plan(sandbox._spec, identity.caller(sandbox._spec), compiler.Variant(further=True))
    return replace(compiled.plan, command=sandbox.plan(args).command)


def enter(
    process: Process[Any],
    args: list[str],
    *,
    plan: Plan,
    stdin: Any = DEVNULL,
    stdout: Any = DEVNULL,
) -> int:
    """Run one more command with a plan of its own; return its status."""
    streams = Streams()
    try:
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", DEVNULL)):
            streams.add(name, stream)
        with process._launch(order_of(args, plan=plan), streams) as more:
            return more.wait()
    finally:
        streams.close_child()


def held(plan: Plan, segment: Segment, position: int) -> Plan:
    """Return the plan with a barrier before a step of a segment: one byte to stdout, then one from stdin."""
    key = 1 + max(call.key for _, call in plan.calls())
    room = Data(bytes(8), "byte", key + 2)
    barrier = (
        Call(key, "write", (Slot(4, "stdout"), "!", 1), "test"),
        Call(key + 1, "read", (Slot(3, "stdin"), room, 1), "test"),
    )
    index = SEGMENTS.index(segment)
    steps = plan.segments[index]
    steps = (*steps[:position], *barrier, *steps[position:])
    return replace(plan, segments=(*plan.segments[:index], steps, *plan.segments[index + 1 :]))


def with_steps(plan: Plan, segment: Segment, position: int, *calls: tuple[Any, ...]) -> Plan:
    """Return the plan with more steps before a step of a segment."""
    key = 1 + max(call.key for _, call in plan.calls())
    added = tuple(Call(key + i, name, tuple(args), "test") for i, (name, *args) in enumerate(calls))
    index = SEGMENTS.index(segment)
    steps = plan.segments[index]
    steps = (*steps[:position], *added, *steps[position:])
    return replace(plan, segments=(*plan.segments[:index], steps, *plan.segments[index + 1 :]))


def text_of(path: str) -> str:
    """Return what a file of /proc says at this moment."""
    with open(path) as stream:
        return stream.read()


def abstract_claims() -> set[str]:
    """Return the host ids that sandboxes hold at this moment, of every process of the host."""
    with open("/proc/net/unix") as stream:
        return {line.split()[-1] for line in stream if "@sandbox-uid-" in line or "@sandbox-ids-" in line}


def claims_end(claims: set[str]) -> bool:
    """Wait until none of these ids is held any more; other processes of the host come and go meanwhile."""
    deadline = time.monotonic() + 5
    while claims & abstract_claims():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def pipes(count: int = 1) -> Iterator[list[int]]:
    """Make pipes, close what is still open of them; a test sets a number to -1 when it closes one itself."""
    fds: list[int] = []
    for _ in range(count):
        fds += os.pipe()
    try:
        yield fds
    finally:
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def reap_all(seconds: float) -> bool:
    """Reap children until none is left; False when some live on after that time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)


def without(plan: Plan, unwanted: Callable[[Call], bool]) -> Plan:
    """Return the plan without some steps: a layer that is off, for a control."""
    segments = tuple(tuple(call for call in segment if not unwanted(call)) for segment in plan.segments)
    assert segments != plan.segments
    return replace(plan, segments=segments)
