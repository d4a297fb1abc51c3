"""From what the user said to a plan: identity, namespaces, root, privileges, payload, in the order of init.

Pure but for the facts of the host that `sandbox.host` reads. A plan is compiled at the first launch of a `Sandbox`
and kept; what changes from launch to launch is `Late` or a slot.
"""

from typing import Final, NamedTuple

from sandbox import kernel as k
from sandbox.compiler.draft import Draft, Variant
from sandbox.compiler.mounts import Writer, mount_attributes, verified_proc
from sandbox.compiler.namespaces import limit_time, make_namespaces, make_time_namespace, set_names, tell_freezer
from sandbox.compiler.payload import start_payload
from sandbox.compiler.privileges import CAP_SETFCAP, drop_privileges
from sandbox.compiler.root import mount_root
from sandbox.identity import Caller, drops_groups, gaps
from sandbox.kernel import Flag
from sandbox.limits import Limits
from sandbox.plan import Command, Late, Plan, Program, Slot
from sandbox.rootfs import Owner, Tree
from sandbox.spec import Spec

_SIGKILL: Final = Flag(9, "SIGKILL")


class Layers(NamedTuple):
    """What the plan installs that the payload cannot be asked about: no call but execve comes after it.

    Args:
        filters: How many filters.
        landlock_abi: ABI that the Landlock layers were compiled for.
        landlock_layers: How many.
        gaps: What a layer cannot cover here, in words.
        missing: What was asked for as best effort and is not to be had.
        limits: What the end is judged by.
    """

    filters: int = 0
    landlock_abi: int | None = None
    landlock_layers: int = 0
    gaps: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    limits: Limits = Limits()


class Compiled(NamedTuple):
    """A plan, and what the launch must know beside it."""

    plan: Plan
    tree: Tree
    tree_slot: Slot | None
    fd_slots: dict[int, Slot]
    group_slots: tuple[Slot, ...]
    first_slot: Slot | None
    layers: Layers
    listens: bool
    idmaps: tuple[Owner, ...]


def compile_plan(spec: Spec, caller: Caller, variant: Variant) -> Compiled:
    """Compile a sandbox for a caller.

    Raises:
        ValueError: The entries contradict each other.
    """
    draft = Draft(spec, caller, variant)
    program = draft.program
    if not variant.further:
        # Stage 1 opens the sources of binds, for root, while PID 1's steps are written: so its own come last.
        program.segment = "init"
        _init(draft)
        program.segment = "stage"
        make_namespaces(draft)
    program.segment = "payload"
    start_payload(draft)
    return Compiled(
        # Stage 1 that stays finds PID 1 without the process group.
        program.plan(Command(), own_group=spec.init),
        draft.layout.tree,
        draft.tree_slot,
        draft.fd_slots,
        tuple(draft.group_slots),
        draft.first_slot,
        _layers(draft),
        draft.listens,
        tuple(draft.writer.idmaps),
    )


def compile_tree(tree: Tree, caller: Caller) -> Plan:
    """Compile the plan that builds a tree once and sends it; its payload segment is empty."""
    program = Program()
    program.origin = "cached tree"
    program.segment = "stage"
    flags: Flag = k.CLONE_NEWNS
    if not caller.privileged:
        proc = verified_proc(program)
        flags = flags | k.CLONE_NEWUSER
    init = program.call("clone", flags, -1, name="init")
    if not caller.privileged:
        program.call("write_proc", proc, init, "setgroups", "deny\n", 5)
        for name in ("uid_map", "gid_map"):
            program.call("write_proc", proc, init, name, Late(name, pointer=True), Late(name + ".size"))
    program.call("release", k.RELEASE_ALL)
    program.segment = "init"
    program.call("await_release", k.RELEASE_ALL)
    private = mount_attributes(program, k.NONE, private=True)
    program.call("mount_setattr", k.AT_FDCWD, "/", k.AT_RECURSIVE, private, 32)
    root = Writer(program, "init").tree(tree, attach=False)
    program.origin = "cached tree"
    # Linux 6.15 and newer clone a detached tree; where that fails, the tree is built for each launch.
    program.call("open_tree", root, "", k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE)
    program.call("send_fd", root, 0)
    program.call("end")
    return program.plan(Command())


def _layers(draft: Draft) -> Layers:
    found = list(gaps(draft.spec, draft.caller))
    if draft.guard:
        found.append("the filter is what seccomp() says and one against set-id files, which observe() does not see")
    if draft.spec.filter is None:
        found.append("no system-call filter: every call of the kernel is open to the payload")
    elif draft.spec.filter == "default-nesting":
        found.append("nesting: new namespaces and mounts are open to the payload, and what they reach in the kernel")
    if draft.spec.limits.cpu_time is not None and not draft.variant.counts:
        found.append("cpu_time counts each process by itself: a command that forks can use it once in each")
    if draft.spec.limits.output is not None:
        found.append("output counts what comes through pipes: not what goes to a file or descriptor of the caller's")
    if not draft.spec.new_session:
        found.append("new_session(False): the command may signal the caller's process group, and use its terminal")
    missing: list[str] = []
    for ruleset in draft.rulesets:
        found += ruleset.gaps
        missing += ruleset.missing
    made = [ruleset for ruleset in draft.rulesets if not ruleset.empty]
    return Layers(
        bool(draft.code) + bool(draft.guard),
        made[0].abi if made else None,
        len(made),
        tuple(dict.fromkeys(found)),
        tuple(missing),
        draft.spec.limits,
    )


def _init(draft: Draft) -> None:
    """Write the steps of PID 1."""
    program = draft.program
    # What needs no id happens while stage 1 writes the id maps.
    set_names(draft)
    program.origin = "capabilities"
    program.call("drop_bounding_set", (CAP_SETFCAP if draft.uid == 0 else 0) if draft.nested else draft.spec.keep)
    program.origin = "namespaces"
    program.call("await_release", k.RELEASE_IDS)
    if draft.variant.groups:
        program.origin = "control group"
        if "cgroup" in draft.spec.new_namespaces:
            program.call("unshare", k.CLONE_NEWCGROUP)
        if draft.spec.init:
            tell_freezer(draft)
    if drops_groups(draft.spec, draft.caller):
        program.origin = "user"
        # The capabilities outlast the uid, in force: what follows needs them, and its end gives them up.
        program.call("prctl", k.PR_SET_SECUREBITS, k.SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        program.call("setgroups", 0, 0)
        uid: int | Late = draft.uid if draft.new_user else Late("host_uid")
        gid: int | Late = draft.gid if draft.new_user else Late("host_gid")
        program.call("setresgid", gid, gid, gid)
        program.call("setresuid", uid, uid, uid)
    if "time" in draft.spec.new_namespaces:
        make_time_namespace(draft)
    if draft.nested:
        # The caller's /proc, while it can be seen: the sandbox may have none.
        program.origin = "capabilities"
        verified_proc(program, draft.proc_inside)
    program.origin = "PID 1"
    program.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0)
    if not draft.new_user:
        # In a new user namespace the copied mounts are slaves already, and nothing of ours gets out.
        program.origin = "root"
        private = mount_attributes(program, k.NONE, private=True)
        program.call("mount_setattr", k.AT_FDCWD, "/", k.AT_RECURSIVE, private, 32)
    mount_root(draft)
    if draft.new_net_beside:
        program.origin = "network"
        # Its loopback comes up while the payload is cloned, unless that does not share the memory that tells.
        program.call("await_release", k.RELEASE_NETWORK if draft.waits else k.RELEASE_ALL)
        program.call("setns", draft.network, k.CLONE_NEWNET)
    if draft.nested:
        # Since Linux 5.12 a map of uid 0 wants that who made the namespace had CAP_SETFCAP.
        drop_privileges(draft, CAP_SETFCAP if draft.uid == 0 else 0, 0)
    else:
        drop_privileges(draft, draft.spec.keep, draft.spec.ambient)
    program.origin = "payload"
    program.call("check_lifeline")
    if not draft.spec.init:
        # Stage 1 waits, and is the parent: this one is told of its end.
        program.call("prctl", k.PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        program.call("become_payload")
        return
    limit_time(draft)
    if not draft.spec.new_session:
        program.origin = ".new_session(False)"
        program.call("join_group")
    program.origin = "payload"
    # Who is held or asks has to be heard of before; otherwise one word at the end wakes the caller once.
    program.call("fork_payload", int(draft.waits), int(not draft.waits or draft.listens))
