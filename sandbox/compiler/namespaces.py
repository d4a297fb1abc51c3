"""The steps that make the namespaces, put PID 1 into them, and fill them."""

import os
from math import ceil
from struct import pack
from typing import TYPE_CHECKING

from sandbox import kernel as k
from sandbox.compiler.mounts import verified_proc
from sandbox.identity import mapped_by_program
from sandbox.limits import shown
from sandbox.plan import Late, Ref, Slot

if TYPE_CHECKING:
    from sandbox.compiler.draft import Draft


def make_namespaces(draft: "Draft") -> None:
    """Make PID 1 in its namespaces, and what has to be done from outside of them: the whole of stage 1."""
    program = draft.program
    program.origin = "namespaces"
    flags = k.CLONE_NEWNS
    groups = draft.variant.groups
    for name in ("user", "pid", "net", "ipc", "uts", "cgroup"):
        # A cgroup namespace begins at the group of who makes it: with a group of its own PID 1 makes it later.
        later = (name == "net" and draft.new_net_beside) or (name == "cgroup" and bool(groups))
        if name in draft.spec.new_namespaces and not later:
            flags = flags | k.NAMESPACE_FLAGS[name]
    born_in: int | Slot = draft.group_slots[0] if groups[:1] == (2,) else -1
    init = program.call("clone", flags, born_in, *(() if draft.spec.init else (1,)), name="init")
    program.origin = "control group"
    for version, slot in zip(groups, draft.group_slots, strict=False):
        if version == 1:
            program.call("join_cgroup", slot, init)
    if draft.new_user or draft.variant.unshield:
        # PID 1 is at work meanwhile.
        program.origin = "user namespace" if draft.new_user else "control group"
        proc = draft.writer.proc or verified_proc(program)
    if draft.variant.unshield:
        # What the killer passes over could not be ended at its limit.
        program.origin = shown("memory", draft.spec.limits.memory)
        program.call("write_proc", proc, init, "oom_score_adj", "0\n", 2)
    if draft.new_user:
        program.origin = "user namespace"
        if draft.new_net_beside:
            pidfd = program.call("pidfd_open", init, 0, name="init_pidfd")
        _map_ids(draft, proc, init)
    if draft.new_net_beside:
        # The dearest namespace by far: it is made while PID 1 mounts.
        program.origin = "network"
        # First, for soon PID 1 is not dumpable, and nobody may enter what is its own.
        program.call("setns", pidfd, k.CLONE_NEWUSER)
        program.call("release", k.RELEASE_IDS)
        program.call("unshare", k.CLONE_NEWNET)
        program.call("openat", proc, "self/ns/net", k.O_CLOEXEC, 0, result=draft.network)
        program.call("release", k.RELEASE_NETWORK)
        _raise_loopback(draft)
    if not draft.spec.init:
        limit_time(draft)
        tell_freezer(draft)
        program.origin = "namespaces"
        program.call("stay")
        return
    program.origin = "namespaces"
    program.call("release", k.RELEASE_ALL)


def _map_ids(draft: "Draft", proc: Ref, init: Ref) -> None:
    """Write the id maps of PID 1, or let the caller have them written."""
    program = draft.program
    if mapped_by_program(draft.spec, draft.caller):
        program.origin = draft.spec.id_ranges_origin
        program.call("await_maps", init)
        return
    if not draft.caller.privileged:
        program.call("write_proc", proc, init, "setgroups", "deny\n", 5)
    for name in ("uid_map", "gid_map"):
        program.call("write_proc", proc, init, name, Late(name, pointer=True), Late(name + ".size"))


def limit_time(draft: "Draft") -> None:
    """Tell the limits on time to who waits for the payload."""
    wall_time = draft.spec.limits.wall_time
    if wall_time is not None:
        draft.program.origin = shown("wall_time", wall_time)
        draft.program.call("wall_time", ceil(wall_time * 1e9))
    if draft.variant.counts and (cpu_time := draft.spec.limits.cpu_time) is not None:
        draft.program.origin = shown("cpu_time", cpu_time)
        # How fast it can be used up: PID 1 looks again when it may be.
        most = min(os.cpu_count() or 1, ceil(draft.spec.limits.cpus or 1 << 16))
        draft.program.call("limit_cpu", draft.group_slots[len(draft.variant.groups)], ceil(cpu_time * 1e9), most)


def tell_freezer(draft: "Draft") -> None:
    """Tell who kills the payload how to thaw it."""
    if draft.variant.thaws:
        draft.program.origin = "control group"
        draft.program.call("thaw_with", draft.group_slots[-1])


def set_names(draft: "Draft") -> None:
    """Set what needs no id: the host names, and the loopback unless stage 1 does."""
    program, spec = draft.program, draft.spec
    if "uts" in spec.new_namespaces:
        program.origin = spec.hostname_origin
        if spec.hostname is not None:
            program.call("sethostname", spec.hostname, len(spec.hostname.encode()))
        if spec.domainname is not None:
            program.origin = f".domainname({spec.domainname!r})".replace("'", '"')
            program.call("setdomainname", spec.domainname, len(spec.domainname.encode()))
    if not draft.new_net_beside:
        _raise_loopback(draft)


def _raise_loopback(draft: "Draft") -> None:
    program = draft.program
    if "net" in draft.spec.new_namespaces and draft.spec.loopback:
        program.origin = "network"
        fd = program.call("socket", k.AF_INET, k.SOCK_DGRAM_CLOEXEC, 0, name="socket")
        request = program.data(pack("<16sH22x", b"lo", 0x41), '{"lo", IFF_UP|IFF_RUNNING}')
        program.call("ioctl", fd, k.SIOCSIFFLAGS, request)


def make_time_namespace(draft: "Draft") -> None:
    """Make a time namespace with its offsets, which can be set until the first process enters it."""
    program, spec = draft.program, draft.spec
    program.origin = "namespaces"
    # Children enter it, PID 1 does not.
    program.call("unshare", k.CLONE_NEWTIME)
    offsets = {"monotonic": spec.monotonic, "boottime": spec.boottime}
    if not any(offsets.values()) and spec.init:
        return
    proc = verified_proc(program)
    if any(offsets.values()):
        said = [f"{name}={value / 1e9:g}" for name, value in offsets.items() if value]
        program.origin = f".time_offset({', '.join(said)})"
        if draft.caller.privileged:
            # The uid change made the files of this process in /proc root's own.
            program.call("prctl", k.PR_SET_DUMPABLE, 1, 0, 0, 0)
        text = "".join(f"{name} {value // 10**9} {value % 10**9}\n" for name, value in offsets.items())
        program.call("write_proc_self", proc, "timens_offsets", text, len(text))
    if not spec.init:
        # The payload is no child.
        fd = program.call("openat", proc, "self/ns/time_for_children", k.O_CLOEXEC, 0, name="time")
        program.call("setns", fd, k.CLONE_NEWTIME)
