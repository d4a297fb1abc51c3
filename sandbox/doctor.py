"""What works on this host, what stands in the way of the rest, and what to do about it: `sandbox doctor`.

Each thing is tried by a probe in a process of its own; at last a whole sandbox is launched, by the very code that
launches all others, so that the verdict cannot differ from what a user gets.
"""

import os
from collections.abc import Callable, Sequence
from errno import EPERM, ETIMEDOUT, errorcode
from typing import Final, Literal, NamedTuple

# Now: a probe may have no descriptor left to load it with.
import sandbox.launch.failure  # noqa: F401
from sandbox import causes, facts, host_ids, identity, probes, probing
from sandbox.builder import Sandbox
from sandbox.causes import Cause
from sandbox.cgroups import hierarchy
from sandbox.errors import SetupError, UnsupportedError
from sandbox.probing import Answer, Identity
from sandbox.spec import Spec
from sandbox.streams import DEVNULL

__all__ = ["Row", "examine"]

State = Literal["works", "blocked", "untried"]
_PATIENCE: Final = 1.0  # seconds for one probe, which takes 10 ms


class Check(NamedTuple):
    """One thing to try.

    Attributes:
        key: A name that stays the same between versions.
        title: What it is, for people.
        use: What needs it; "run" is what every sandbox needs.
        probe: Tries it.
        after: Keys of checks without which it cannot work.
    """

    key: str
    title: str
    use: str
    probe: Callable[[Identity], str]
    after: tuple[str, ...] = ()


class Row(NamedTuple):
    """What came out.

    Attributes:
        key: Of the check.
        title: What was tried, for people.
        use: What needs it; "run" is what every sandbox needs.
        state: "untried" when something blocked stands before it.
        detail: What else is to be said.
        error: Name of the errno, or None.
        call: The call that failed, or None.
        cause: What stands in the way, or None: nothing, or nothing that is known.
    """

    key: str
    title: str
    use: str
    state: State
    detail: str = ""
    error: str | None = None
    call: str | None = None
    cause: Cause | None = None


def _control_groups(_: Identity) -> str:
    """Find where a group may be made, make one there, and remove it."""
    mountinfo, groups = facts.read("/proc/self/mountinfo"), facts.read("/proc/self/cgroup")
    host = hierarchy.find(mountinfo or "", groups or "", os.geteuid())
    found: set[str] = set()
    for place in host.places:
        if not place.make:
            path = os.path.join(place.path, f"sandbox-doctor-{os.getpid()}")
            with probing.calling("cgroup", f"no group can be made in {place.path}", host.fix):
                os.mkdir(path)
                os.rmdir(path)
        found |= place.controllers
    offered = [name for name in hierarchy.CONTROLLERS if name in found]
    if not offered:
        # Of many hierarchies the first says enough.
        why = "; ".join(host.found[:2]) or "no controller is offered to groups of the caller's"
        raise probing.Failed("cgroup", (why, host.fix), EPERM)
    return ", ".join(offered)


_USER: Final = ("proc", "user")
_MOUNT: Final = (*_USER, "mount")

CHECKS: Final = (
    Check("processes", "processes", "run", probes.processes),
    Check("descriptors", "open files", "run", probes.descriptors),
    Check("proc", "/proc", "run", probes.proc),
    Check("pidfd", "pidfd", "run", probes.pidfd),
    Check("user", "user namespace, id map", "run", probes.namespace("user"), ("proc",)),
    Check("mount", "mount namespace", "run", probes.namespace("mnt"), _USER),
    Check("pid", "pid namespace", "run", probes.namespace("pid"), _USER),
    Check("net", "network namespace", "run", probes.namespace("net"), _USER),
    Check("ipc", "ipc namespace", "run", probes.namespace("ipc"), _USER),
    Check("uts", "uts namespace", "run", probes.namespace("uts"), _USER),
    Check("cgroup", "cgroup namespace", "run", probes.namespace("cgroup"), _USER),
    Check("tmpfs", "mount a tmpfs", "run", probes.mounting("tmpfs"), (*_MOUNT, "pid")),
    Check("new-proc", "mount a new /proc", "run", probes.mounting("proc"), (*_MOUNT, "pid")),
    Check("devpts", "mount a devpts", "run", probes.mounting("devpts"), (*_MOUNT, "pid")),
    Check("bind", "bind, read-only", "run", probes.bind, _MOUNT),
    Check("pivot", "pivot_root", "run", probes.pivot, (*_MOUNT, "tmpfs")),
    Check("seccomp", "seccomp filter", "run", probes.seccomp),
    Check("memfd", "execute from memory", "speed", probes.execute_memfd),
    Check("detached", "clone a detached tree", "speed", probes.detached, (*_MOUNT, "tmpfs")),
    Check("time", "time namespace", 'unshare("time")', probes.namespace("time"), (*_USER, "pid")),
    Check("id-ranges", "ranges of ids", "id_ranges()", probes.id_ranges, _USER),
    Check("overlay", "overlayfs", "nesting()", probes.overlay, (*_MOUNT, "tmpfs", "pivot")),
    Check("landlock", "Landlock", "landlock()", probes.landlocked),
    Check("listener", "seccomp notification", "observe()", probes.listener, ("seccomp",)),
    Check("cgroups", "control groups", "limit()", _control_groups),
    Check("tun", "tun device", "bind(dev=True)", probes.tun, (*_USER, "net")),
    Check("fanotify", "fanotify", "Fanotify", probes.fanotify),
    Check("io_uring", "io_uring", "Aio", probes.io_uring),
    Check("aio", "Linux AIO", "Aio", probes.linux_aio),
)


def examine() -> list[Row]:
    """Try everything, and at last a whole sandbox; the calling process must have one thread.

    Returns:
        The rows, in the order tried; the last one, "sandbox", says whether `sandbox run` works.
    """
    rows: dict[str, Row] = {}
    who = _identity(rows)
    for check in CHECKS:
        key, title, use = check.key, check.title, check.use
        before = (*check.after, "processes") if rows.keys() >= {"processes"} else ()
        blocked = next((rows[one] for one in before if rows[one].state != "works"), None)
        if blocked is not None:
            first = blocked.detail if blocked.state == "untried" else f"needs {blocked.title}"
            rows[key] = Row(key, title, use, "untried", first, cause=blocked.cause)
        else:
            rows[key] = _row(check, probing.attempt(check.probe, who, _PATIENCE))
    rows["sandbox"] = _whole()
    return list(rows.values())


def works(rows: Sequence[Row]) -> bool:
    """Say whether `sandbox run` works here: the whole did, and nothing that it needs is blocked."""
    return rows[-1].state == "works" and all(row.state != "blocked" for row in rows if row.use == "run")


def _identity(rows: dict[str, Row]) -> Identity:
    """Find out whose id a sandbox would have on the host, as a launch does."""
    uid, gid = os.geteuid(), os.getegid()
    privileged = False
    detail = "the caller's own"
    key, title, use = "identity", "id on the host", "run"
    try:
        privileged = identity.caller(Spec()).privileged
        if privileged:
            ids = host_ids.own_space().single
            uid = gid = ids[-1]
            detail = f"one of {ids[0]} to {ids[-1]}"
    except UnsupportedError as error:
        privileged = False
        rows[key] = Row(key, title, use, "blocked", error=_name(error.errno or 0), cause=_of_unsupported(error))
    else:
        rows[key] = Row(key, title, use, "works", detail)
    return Identity(uid, gid, privileged)


def _row(check: Check, answer: Answer) -> Row:
    key, title, use = check.key, check.title, check.use
    failed = answer.failed
    if failed is None:
        return Row(key, title, use, "works", answer.detail)
    if failed.call == "probe" and failed.number == ETIMEDOUT:
        return Row(key, title, use, "untried", answer.detail)
    cause = causes.find(failed.call, failed.args_of_call, failed.number)
    detail = answer.detail or f"{failed.call}: {os.strerror(failed.number)}"
    return Row(key, title, use, "blocked", detail, _name(failed.number), failed.call, cause)


def _whole() -> Row:
    """Launch what `sandbox run -- true` launches."""
    key, title, use = "sandbox", "a whole sandbox", "run"
    try:
        result = Sandbox().run(["true"], stdout=DEVNULL, stderr=DEVNULL)
    except SetupError as error:
        where = f"step {error.step} of {error.steps}: " if error.step else ""
        cause = error.cause or (Cause("other", error.hint, "") if error.hint else None)
        detail = f"{where}{error.call}: {error.strerror}"
        return Row(key, title, use, "blocked", detail, _name(error.errno or 0), error.call, cause)
    except UnsupportedError as error:
        detail = f"{error.feature}: needs {error.needed}"
        return Row(key, title, use, "blocked", detail, _name(error.errno or 0), cause=_of_unsupported(error))
    except OSError as error:
        return Row(key, title, use, "blocked", str(error), _name(error.errno or 0))
    if result.returncode:
        return Row(key, title, use, "blocked", f"true {result.detail}")
    return Row(key, title, use, "works")


def _of_unsupported(error: UnsupportedError) -> Cause:
    return error.cause or Cause("other", error.found, error.fix or "")


def _name(number: int) -> str:
    return errorcode.get(number, str(number))
