"""From what the user said to a plan: identity, namespaces, root, privileges, payload, in the order of init.

Pure but for the facts of the host that `sandbox.host` reads. A plan is compiled at the first launch of a `Sandbox`
and kept; what changes from launch to launch is `Late` or a slot.
"""

import os
from collections.abc import Iterator
from errno import ENOSYS, EPERM
from functools import lru_cache
from math import ceil
from signal import SIGKILL
from struct import iter_unpack, pack
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from sandbox import host, kernel as k
from sandbox.identity import (
    Caller,
    drops_groups,
    gaps,
    inside_ids,
    lands_as_root,
    mapped_by_program,
    owned,
)
from sandbox.kernel import Flag
from sandbox.limits import RLIMITS, Limits, resource_limits, shown
from sandbox.plan import Command, Data, Late, Plan, Program, Ref, Slot
from sandbox.rootfs import (
    DEVICE_NODES,
    Bind,
    Entry,
    File,
    Filesystem,
    Layout,
    Owner,
    Root,
    Symlink,
    Tree,
    Writer,
    dev,
    mount_attributes,
    sort,
    verified_proc,
)

if TYPE_CHECKING:
    from sandbox.filters import Filter
    from sandbox.landlock import Landlock, Ruleset
    from sandbox.sources import DescriptorSource

Namespace: TypeAlias = Literal["user", "pid", "net", "ipc", "uts", "cgroup", "time"]
NAMESPACES: Final[tuple[Namespace, ...]] = ("user", "pid", "net", "ipc", "uts", "cgroup", "time")
NEW_BY_DEFAULT: Final = frozenset(NAMESPACES) - {"time"}
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME: Final = "/tmp"

_SIGKILL: Final = Flag(9, "SIGKILL")
_CAP_SYS_ADMIN: Final = 1 << 21
_CAP_SETFCAP: Final = 1 << 31
_CHECK_IDS, _CHECK_GROUPS, _CHECK_CAPABILITIES, _CHECK_SECUREBITS, _CHECK_NO_NEW_PRIVS = (1, 2, 4, 8, 16)
_CHECKS: Final = {
    _CHECK_IDS: "ids",
    _CHECK_GROUPS: "groups",
    _CHECK_CAPABILITIES: "capabilities",
    _CHECK_SECUREBITS: "securebits",
    _CHECK_NO_NEW_PRIVS: "no_new_privs",
}


class System(NamedTuple):
    """The default root's programs and configuration: /usr, its links, the public part of /etc."""

    origin: str = ""


class Dev(NamedTuple):
    """A minimal /dev."""

    target: str = "/dev"
    shm: str | None = None
    nodes: tuple[str, ...] = DEVICE_NODES
    origin: str = ""


class Python(NamedTuple):
    """The interpreter of this process, and its packages."""

    origin: str = ".python()"


class FileFrom(NamedTuple):
    """A file whose content is read at the first launch."""

    target: str
    source: "DescriptorSource"
    mode: int = 0o644
    origin: str = ""


class Spec(NamedTuple):
    """What a `Sandbox` says; the value behind it."""

    entries: tuple[Entry | System | Dev | Python | FileFrom, ...] = ()
    new_namespaces: frozenset[str] = NEW_BY_DEFAULT
    loopback: bool = True
    hostname: str | None = "sandbox"
    hostname_origin: str = "Sandbox()"
    domainname: str | None = None
    uid: int | None = None
    gid: int | None = None
    host_root: bool = False
    strict_groups: bool = False
    id_ranges: int | None = None
    id_ranges_origin: str = ".id_ranges()"
    env: tuple[tuple[str, str], ...] = (("PATH", PATH), ("HOME", HOME), ("LANG", "C.UTF-8"))
    cwd: str | None = None
    cwd_origin: str = ".cwd()"
    umask: int = 0o022
    keep: int = 0
    ambient: int = 0
    filter: "Filter | str | None" = "default"
    filter_origin: str = "Sandbox()"
    landlock: "tuple[Landlock, ...]" = ()
    observe: bool = False
    limits: Limits = Limits()
    init: bool = True
    new_session: bool = True
    monotonic: int = 0
    boottime: int = 0


class Variant(NamedTuple):
    """What a launch option changes in the plan.

    Args:
        fds: Numbers inside beyond 0, 1 and 2, in the order of their slots.
        hold: Wait for release() before the program is executed.
        cwd: Instead of the sandbox's own.
        python: This process's interpreter is the program.
        shown: It is only to be looked at.
        cached_tree: Clone a tree that was built before.
        pty: A terminal of its own is the payload's input and output.
        groups: The version of each hierarchy in which it has a control group, in the order of their slots.
        counts: There is a slot for the CPU time that they count.
        thaws: One of them is the freezer of version 1, and there is a slot for its state.
        unshield: Take away what keeps the OOM killer from the caller.
        instead: Names of limits that the payload's own process keeps, where no control group does.
        further: One more payload of a sandbox that runs: nothing but the payload's own steps.
    """

    fds: tuple[int, ...] = ()
    hold: bool = False
    cwd: str | None = None
    python: bool = False
    shown: bool = False
    cached_tree: bool = False
    pty: bool = False
    groups: tuple[int, ...] = ()
    counts: bool = False
    thaws: bool = False
    unshield: bool = False
    instead: tuple[str, ...] = ()
    further: bool = False


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


def entries_of(spec: Spec, caller: Caller, *, shown: bool = False) -> Iterator[Entry]:
    """Yield the entries with the host's facts filled in; shown: only to be looked at, nothing is read for it."""
    has_root = any(isinstance(entry, Root) for entry in spec.entries)
    uid, gid = inside_ids(spec, caller)
    # What follows the default's entries may replace the generated files.
    for entry in spec.entries:
        if isinstance(entry, Bind | Root):
            entry = owned(entry, spec, caller)
        if isinstance(entry, System):
            if has_root:
                continue
            yield from host.system(entry.origin)
            yield from host.accounts(uid, gid, HOME, entry.origin)
            yield from host.names(
                spec.hostname or "localhost",
                host_network="net" not in spec.new_namespaces,
                origin=entry.origin,
            )
        elif isinstance(entry, FileFrom):
            content = entry.source.known() if shown else entry.source.content()
            yield File(entry.target, b"<read at the first launch>" if content is None else content, *entry[2:])
        elif isinstance(entry, Python):
            yield from _python(spec, entry.origin)
        elif isinstance(entry, Dev):
            yield from dev(
                entry.target,
                shm=entry.shm,
                nodes=entry.nodes,
                origin=entry.origin,
                own=not has_root,
            )
        elif isinstance(entry, Filesystem) and entry.fstype == "proc" and "pid" not in spec.new_namespaces:
            # A new /proc would be of a pid namespace that is not ours: the caller's own shows the same.
            yield Bind("/proc", entry.target, entry.attributes, origin=entry.origin)
        elif isinstance(entry, Bind) and entry.owner is None and host.is_system(entry) and not has_root:
            yield entry._replace(system=True)
        elif isinstance(entry, Bind) and host.is_file(entry.source):
            yield entry._replace(is_file=True)
        else:
            yield entry


def _python(spec: Spec, origin: str) -> Iterator[Entry]:
    """Yield what this process's interpreter needs, but for what the sandbox shows at the same path anyway."""
    from sandbox import interpreter

    covered = [entry.target for entry in spec.entries if isinstance(entry, Bind) and entry.source == entry.target]
    if any(isinstance(entry, System) for entry in spec.entries):
        covered += ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"]
    elif any(isinstance(entry, Root) for entry in spec.entries):
        if interpreter.covers(["/usr"], interpreter.visible()[0]) and "/usr" not in covered:
            raise ValueError("python(): this interpreter belongs to the host's /usr, and rootfs() has one of its own")
    else:
        yield from host.programs(origin)
        covered += ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"]
    attributes = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
    for path, points_to in interpreter.missing(covered):
        if points_to:
            yield Symlink(points_to, path, origin)
        else:
            yield Bind(path, path, attributes, is_file=host.is_file(path), origin=origin)


class _Compiler:
    def __init__(self, spec: Spec, caller: Caller, variant: Variant) -> None:
        self.spec = spec
        self.caller = caller
        self.variant = variant
        self.program = Program()
        if variant.python and any(isinstance(entry, System) for entry in spec.entries):
            spec = spec._replace(entries=(*spec.entries, Python("sys.executable")))
        self.layout: Layout = sort(entries_of(spec, caller, shown=variant.shown))
        self.uid, self.gid = inside_ids(spec, caller)
        self.new_user = "user" in spec.new_namespaces
        # Made by stage 1, in the user namespace of the sandbox, and joined by PID 1.
        self.new_net_beside = self.new_user and "net" in spec.new_namespaces and spec.init
        self.network = self.program.promise("network")
        if spec.keep and not self.new_user:
            raise ValueError('capabilities() counts in a user namespace of the sandbox: leave out share("user")')
        if not spec.init and "pid" not in spec.new_namespaces:
            raise ValueError('init(False) makes the command PID 1 of a pid namespace: leave out share("pid")')
        self._check_ids()
        self.tree_slot: Slot | None = None
        self.fd_slots: dict[int, Slot] = {}
        self.first_slot: Slot | None = None
        groups = () if variant.further else variant.groups
        self.group_slots = [self.program.slot(f"cgroup v{version}") for version in groups]
        if variant.counts and not variant.further:
            self.group_slots.append(self.program.slot("CPU time"))
        if variant.thaws and not variant.further:
            self.group_slots.append(self.program.slot("freezer.state"))
        self.nested = bool(spec.keep & _CAP_SYS_ADMIN)
        self.code = self._code()
        self.guard = self._guard()
        self.writer = Writer(self.program, "stage" if caller.privileged else "init")
        self.listens = notifies(self.code)
        self.rulesets: list[Ruleset] = []
        if spec.landlock:
            from sandbox.landlock import Landlock

            self.rulesets = [layer.ruleset(Landlock.abi()) for layer in spec.landlock]

    def _check_ids(self) -> None:
        """Refuse what contradicts itself, or leaves a way to root's files."""
        spec, count = self.spec, self.spec.id_ranges
        if lands_as_root(spec, self.caller) and spec.filter == "default-nesting":
            raise ValueError(
                "owner=0 and nesting() exclude each other: who may mount can let an overlay copy a set-id file to"
                " where it is root's"
            )
        if count is None:
            return
        if not self.new_user:
            raise ValueError('id_ranges() are ids of a user namespace of the sandbox: leave out share("user")')
        if spec.host_root and self.caller.uid == 0:
            raise ValueError("id_ranges() gives ids that nobody else has, user(host_root=True) root's own: say one")
        if spec.keep & _CAP_SYS_ADMIN:
            raise ValueError(
                "id_ranges() and CAP_SYS_ADMIN exclude each other: with it the payload gets a user namespace of its"
                " own, which has one id"
            )
        if self.caller.privileged and max(self.uid, self.gid) >= count:
            raise ValueError(
                f"id_ranges({count}) has the ids 0 to {count - 1}, and the user would be {self.uid}:{self.gid}"
            )

    def compile(self) -> Compiled:
        if not self.variant.further:
            # Stage 1 opens the sources of binds, for root, while PID 1's steps are written: so its own come last.
            self.program.segment = "init"
            self._init()
            self.program.segment = "stage"
            self._stage()
        self.program.segment = "payload"
        self._payload()
        # Stage 1 that stays finds PID 1 without the process group.
        plan = self.program.plan(Command(), own_group=self.spec.init)
        return Compiled(
            plan,
            self.layout.tree,
            self.tree_slot,
            self.fd_slots,
            tuple(self.group_slots),
            self.first_slot,
            self._layers(),
            self.listens,
            tuple(self.writer.idmaps),
        )

    def _layers(self) -> Layers:
        found = list(gaps(self.spec, self.caller))
        if self.guard:
            found.append("the filter is what seccomp() says and one against set-id files, which observe() does not see")
        if self.spec.filter is None:
            found.append("no system-call filter: every call of the kernel is open to the payload")
        elif self.spec.filter == "default-nesting":
            found.append(
                "nesting: new namespaces and mounts are open to the payload, and what they reach in the kernel"
            )
        if self.spec.limits.cpu_time is not None and not self.variant.counts:
            found.append("cpu_time counts each process by itself: a command that forks can use it once in each")
        if self.spec.limits.output is not None:
            found.append(
                "output counts what comes through pipes: not what goes to a file or descriptor of the caller's"
            )
        if not self.spec.new_session:
            found.append("new_session(False): the command may signal the caller's process group, and use its terminal")
        missing: list[str] = []
        for ruleset in self.rulesets:
            found += ruleset.gaps
            missing += ruleset.missing
        made = [ruleset for ruleset in self.rulesets if not ruleset.empty]
        return Layers(
            bool(self.code) + bool(self.guard),
            made[0].abi if made else None,
            len(made),
            tuple(dict.fromkeys(found)),
            tuple(missing),
            self.spec.limits,
        )

    # ── stage 1 ──

    def _stage(self) -> None:
        program = self.program
        program.origin = "namespaces"
        flags = k.CLONE_NEWNS
        groups = self.variant.groups
        for name in ("user", "pid", "net", "ipc", "uts", "cgroup"):
            # A cgroup namespace begins at the group of who makes it: with a group of its own PID 1 makes it later.
            later = (name == "net" and self.new_net_beside) or (name == "cgroup" and bool(groups))
            if name in self.spec.new_namespaces and not later:
                flags = flags | k.NAMESPACE_FLAGS[name]
        born_in: int | Slot = self.group_slots[0] if groups[:1] == (2,) else -1
        init = program.call("clone", flags, born_in, *(() if self.spec.init else (1,)), name="init")
        program.origin = "control group"
        for version, slot in zip(groups, self.group_slots, strict=False):
            if version == 1:
                program.call("join_cgroup", slot, init)
        if self.new_user or self.variant.unshield:
            # PID 1 is at work meanwhile.
            program.origin = "user namespace" if self.new_user else "control group"
            proc = self.writer.proc or verified_proc(program)
        if self.variant.unshield:
            # What the killer passes over could not be ended at its limit.
            program.origin = shown("memory", self.spec.limits.memory)
            program.call("write_proc", proc, init, "oom_score_adj", "0\n", 2)
        if self.new_user:
            program.origin = "user namespace"
            if self.new_net_beside:
                pidfd = program.call("pidfd_open", init, 0, name="init_pidfd")
            self._map_ids(proc, init)
        if self.new_net_beside:
            # The dearest namespace by far: it is made while PID 1 mounts.
            program.origin = "network"
            # First, for soon PID 1 is not dumpable, and nobody may enter what is its own.
            program.call("setns", pidfd, k.CLONE_NEWUSER)
            program.call("release", k.RELEASE_IDS)
            program.call("unshare", k.CLONE_NEWNET)
            program.call("openat", proc, "self/ns/net", k.O_CLOEXEC, 0, result=self.network)
            program.call("release", k.RELEASE_NETWORK)
            self._loopback()
        if not self.spec.init:
            self._wall_time()
            self._thaw()
            program.origin = "namespaces"
            program.call("stay")
            return
        program.origin = "namespaces"
        program.call("release", k.RELEASE_ALL)

    def _map_ids(self, proc: Ref, init: Ref) -> None:
        """Write the id maps of PID 1, or let the caller have them written."""
        program = self.program
        if mapped_by_program(self.spec, self.caller):
            program.origin = self.spec.id_ranges_origin
            program.call("await_maps", init)
            return
        if not self.caller.privileged:
            program.call("write_proc", proc, init, "setgroups", "deny\n", 5)
        for name in ("uid_map", "gid_map"):
            program.call("write_proc", proc, init, name, Late(name, pointer=True), Late(name + ".size"))

    def _wall_time(self) -> None:
        """Tell the limits on time to who waits for the payload."""
        wall_time = self.spec.limits.wall_time
        if wall_time is not None:
            self.program.origin = shown("wall_time", wall_time)
            self.program.call("wall_time", ceil(wall_time * 1e9))
        if self.variant.counts and (cpu_time := self.spec.limits.cpu_time) is not None:
            self.program.origin = shown("cpu_time", cpu_time)
            # How fast it can be used up: PID 1 looks again when it may be.
            most = min(os.cpu_count() or 1, ceil(self.spec.limits.cpus or 1 << 16))
            self.program.call("limit_cpu", self.group_slots[len(self.variant.groups)], ceil(cpu_time * 1e9), most)

    def _thaw(self) -> None:
        """Tell who kills the payload how to thaw it."""
        if self.variant.thaws:
            self.program.origin = "control group"
            self.program.call("thaw_with", self.group_slots[-1])

    # ── PID 1 ──

    def _init(self) -> None:
        program = self.program
        # What needs no id happens while stage 1 writes the id maps.
        self._names()
        program.origin = "capabilities"
        program.call("drop_bounding_set", (_CAP_SETFCAP if self.uid == 0 else 0) if self.nested else self.spec.keep)
        program.origin = "namespaces"
        program.call("await_release", k.RELEASE_IDS)
        if self.variant.groups:
            program.origin = "control group"
            if "cgroup" in self.spec.new_namespaces:
                program.call("unshare", k.CLONE_NEWCGROUP)
            if self.spec.init:
                self._thaw()
        if drops_groups(self.spec, self.caller):
            program.origin = "user"
            # The capabilities outlast the uid, in force: what follows needs them, and its end gives them up.
            program.call("prctl", k.PR_SET_SECUREBITS, k.SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
            program.call("setgroups", 0, 0)
            uid: int | Late = self.uid if self.new_user else Late("host_uid")
            gid: int | Late = self.gid if self.new_user else Late("host_gid")
            program.call("setresgid", gid, gid, gid)
            program.call("setresuid", uid, uid, uid)
        if "time" in self.spec.new_namespaces:
            self._time()
        if self.nested:
            # The caller's /proc, while it can be seen: the sandbox may have none.
            program.origin = "capabilities"
            flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
            self.proc_inside = program.call("openat", k.AT_FDCWD, "/proc", flags, 0, name="proc")
        program.origin = "PID 1"
        program.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0)
        if not self.new_user:
            # In a new user namespace the copied mounts are slaves already, and nothing of ours gets out.
            program.origin = "root"
            private = mount_attributes(program, k.NONE, private=True)
            program.call("mount_setattr", k.AT_FDCWD, "/", k.AT_RECURSIVE, private, 32)
        self._root()
        # A payload that shares PID 1's memory until it executes cannot have a user namespace of its own; and before
        # Linux 6.1 no other time namespace.
        wait = not (self.variant.hold or self.nested or "time" in self.spec.new_namespaces)
        if self.new_net_beside:
            program.origin = "network"
            # Its loopback comes up while the payload is cloned, unless that does not share the memory that tells.
            program.call("await_release", k.RELEASE_NETWORK if wait else k.RELEASE_ALL)
            program.call("setns", self.network, k.CLONE_NEWNET)
        if self.nested:
            # Since Linux 5.12 a map of uid 0 wants that who made the namespace had CAP_SETFCAP.
            self._privileges(_CAP_SETFCAP if self.uid == 0 else 0, 0)
        else:
            self._privileges(self.spec.keep, self.spec.ambient)
        program.origin = "payload"
        program.call("check_lifeline")
        if not self.spec.init:
            # Stage 1 waits, and is the parent: this one is told of its end.
            program.call("prctl", k.PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
            program.call("become_payload")
            return
        self._wall_time()
        if not self.spec.new_session:
            program.origin = ".new_session(False)"
            program.call("join_group")
        program.origin = "payload"
        # Who is held or asks has to be heard of before; otherwise one word at the end wakes the caller once.
        program.call("fork_payload", int(wait), int(not wait or self.listens))

    def _time(self) -> None:
        """Make a time namespace with its offsets, which can be set until the first process enters it."""
        program, spec = self.program, self.spec
        program.origin = "namespaces"
        # Children enter it, PID 1 does not.
        program.call("unshare", k.CLONE_NEWTIME)
        offsets = {"monotonic": spec.monotonic, "boottime": spec.boottime}
        if not any(offsets.values()) and spec.init:
            return
        flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
        proc = program.call("openat", k.AT_FDCWD, "/proc", flags, 0, name="proc")
        if any(offsets.values()):
            said = [f"{name}={value / 1e9:g}" for name, value in offsets.items() if value]
            program.origin = f".time_offset({', '.join(said)})"
            if self.caller.privileged:
                # The uid change made the files of this process in /proc root's own.
                program.call("prctl", k.PR_SET_DUMPABLE, 1, 0, 0, 0)
            status = program.data(bytes(120), "status")
            program.call("fstatfs", proc, status)
            program.call("check", status, 8, k.PROC_SUPER_MAGIC, 71)
            text = "".join(f"{name} {value // 10**9} {value % 10**9}\n" for name, value in offsets.items())
            program.call("write_proc_self", proc, "timens_offsets", text, len(text))
        if not spec.init:
            # The payload is no child.
            fd = program.call("openat", proc, "self/ns/time_for_children", k.O_CLOEXEC, 0, name="time")
            program.call("setns", fd, k.CLONE_NEWTIME)

    def _root(self) -> None:
        program = self.program
        writer = self.writer
        if self.layout.root is not None:
            root = writer.rootfs(self.layout.root)
        elif self.variant.cached_tree:
            program.origin = "root"
            self.tree_slot = program.slot("tree")
            clone = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE
            root = program.call("open_tree", self.tree_slot, "", clone, name="root")
            program.call("move_mount", root, "", k.AT_FDCWD, "/", k.MOVE_MOUNT_F_EMPTY_PATH)
        else:
            root = writer.tree(self.layout.tree, attach=True)
        writer.mounted(self.layout, root)
        program.origin = "root"
        program.call("fchdir", root)
        # The old root ends up on top of the new one, and goes.
        program.call("pivot_root", ".", ".")
        program.call("umount2", ".", k.MNT_DETACH)
        program.call("chdir", "/")

    def _names(self) -> None:
        program, spec = self.program, self.spec
        if "uts" in spec.new_namespaces:
            program.origin = spec.hostname_origin
            if spec.hostname is not None:
                program.call("sethostname", spec.hostname, len(spec.hostname.encode()))
            if spec.domainname is not None:
                program.origin = f".domainname({spec.domainname!r})".replace("'", '"')
                program.call("setdomainname", spec.domainname, len(spec.domainname.encode()))
        if not self.new_net_beside:
            self._loopback()

    def _loopback(self) -> None:
        program = self.program
        if "net" in self.spec.new_namespaces and self.spec.loopback:
            program.origin = "network"
            fd = program.call("socket", k.AF_INET, k.SOCK_DGRAM_CLOEXEC, 0, name="socket")
            request = program.data(pack("<16sH22x", b"lo", 0x41), '{"lo", IFF_UP|IFF_RUNNING}')
            program.call("ioctl", fd, k.SIOCSIFFLAGS, request)

    def _privileges(self, keep: int, ambient: int) -> None:
        program = self.program
        program.origin = "capabilities"
        header = program.data(pack("<2I", 0x20080522, 0), "{_LINUX_CAPABILITY_VERSION_3, 0}")
        program.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        if ambient:
            # Ambient is within inheritable; what else PID 1 has goes with the last capset.
            program.call("capset", header, _capability_sets(program, (1 << 41) - 1, keep))
            for number in range(64):
                if ambient >> number & 1:
                    program.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, number, 0, 0)
        program.call("prctl", k.PR_SET_SECUREBITS, self._securebits(), 0, 0, 0)
        program.call("prctl", k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        program.call("capset", header, _capability_sets(program, keep, keep))

    def _securebits(self) -> Flag:
        # uid 0 that keeps capabilities has them as root does: a program that it executes gets the bounding set.
        return k.SECUREBITS_ROOT if self.spec.keep and self.uid == 0 else k.SECUREBITS_LOCKED

    def _nest(self) -> None:
        """Give the payload namespaces of its own, in which it has CAP_SYS_ADMIN.

        In the sandbox's own it could make a read-only bind writable; mounts that are copied into a mount namespace
        of another user namespace are locked as they are.
        """
        program = self.program
        program.origin = "capabilities"
        # Who writes its own id map must own its files in /proc; nobody else is inside yet.
        program.call("prctl", k.PR_SET_DUMPABLE, 1, 0, 0, 0)
        program.call("unshare", k.CLONE_NEWUSER | k.CLONE_NEWNS)
        program.call("write_proc_self", self.proc_inside, "setgroups", "deny\n", 5)
        for name, number in (("uid_map", self.uid), ("gid_map", self.gid)):
            text = f"{number} {number} 1\n"
            program.call("write_proc_self", self.proc_inside, name, text, len(text))
        program.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0)
        program.call("drop_bounding_set", self.spec.keep)
        self._privileges(self.spec.keep, self.spec.ambient)

    def _join_nested(self) -> None:
        """Enter the namespaces of the first payload, which PID 1, whose user made them, may."""
        program = self.program
        program.origin = "capabilities"
        self.first_slot = program.slot("first payload")
        program.call("setns", self.first_slot, k.CLONE_NEWUSER | k.CLONE_NEWNS)
        program.call("drop_bounding_set", self.spec.keep)
        self._privileges(self.spec.keep, self.spec.ambient)

    # ── payload ──

    def _payload(self) -> None:
        program, spec = self.program, self.spec
        if self.nested and self.variant.further:
            self._join_nested()
        elif self.nested:
            self._nest()
        elif self.variant.further and spec.keep:
            # PID 1 has them, but not in force.
            program.origin = "capabilities"
            header = program.data(pack("<2I", 0x20080522, 0), "{_LINUX_CAPABILITY_VERSION_3, 0}")
            program.call("capset", header, _capability_sets(program, spec.keep, spec.keep))
        program.origin = "session"
        if spec.new_session:
            program.call("setsid")
        if "pid" not in spec.new_namespaces:
            # Elsewhere the kernel ends all with PID 1. Init has one thread, so this means the end of init.
            program.call("prctl", k.PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        # No key of the caller's; where keyctl is not to be had, no program inside has it either.
        program.call("keyctl", k.KEYCTL_JOIN_SESSION_KEYRING, 0, tolerate=(ENOSYS, EPERM))
        numbers = {0: 3, 1: 4, 2: 5}
        if self.variant.pty:
            from sandbox.terminal import open_terminal

            if not spec.new_session:
                raise ValueError("a terminal controls a session of its own: leave out new_session(False), or pty")
            # Now, for the working directory still is the root, which paths are resolved in.
            open_terminal(program, Slot(numbers[0], "stdin"))
            numbers = dict.fromkeys(numbers, numbers[0])
        limits = resource_limits(spec.limits)
        # What follows needs descriptors: their number comes last.
        open_files = limits.pop("open_files", None)
        for name, bounds in limits.items():
            self._limit(name, bounds)
        self._limit_instead()
        program.origin = "payload"
        program.call("umask", Flag(spec.umask, oct(spec.umask)))
        cwd = self.variant.cwd if self.variant.cwd is not None else spec.cwd
        if cwd is not None and cwd != "/":
            program.origin = spec.cwd_origin if self.variant.cwd is None else f'cwd="{cwd}"'
            resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
            flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
            how = program.data(pack("<3Q", flags, 0, resolve), f"{{flags={flags!r}, resolve={resolve!r}}}")
            fd = program.call("openat2", k.AT_FDCWD, cwd, how, 24, name="cwd", retry=100)
            program.call("fchdir", fd)
        program.origin = "descriptors"
        for number in self.variant.fds:
            slot = self.fd_slots[number] = program.slot(f"fd {number}")
            numbers[number] = slot.number
        pairs = b"".join(pack("<2I", number, slot) for number, slot in numbers.items())
        program.call("place_fds", program.data(pairs, f"{{{', '.join(map(str, numbers))}}}"), len(numbers))
        self._verify()
        if self.new_net_beside and not (self.variant.hold or self.nested or self.variant.further):
            program.origin = "network"
            program.call("await_release", k.RELEASE_ALL)
        if self.rulesets:
            from sandbox.restrictions import restrict_self

            program.origin = ".landlock()"
            for ruleset in self.rulesets:
                restrict_self(program, ruleset)
        if open_files is not None:
            self._limit("open_files", open_files)
            program.call("read_limits")
        program.origin = "payload"
        if self.variant.hold:
            # Meanwhile the caller, who may be no more than the same user, reads back what is in force.
            program.call("prctl", k.PR_SET_DUMPABLE, 1, 0, 0, 0)
            program.call("hold")
            program.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0)
        program.call("rt_sigprocmask", k.SIG_SETMASK, program.data(bytes(8), "[]"), 0, 8)
        if "pid" not in spec.new_namespaces:
            # In a namespace of its own the payload is 2, and who writes LISTEN_PID knows it.
            program.origin = "payload"
            program.call("listen_pid", Late("envp", pointer=True))
        # The call after the filter is execve, and no other.
        self._filters()
        program.origin = "payload"
        program.call(
            "execve",
            Late("candidates", pointer=True),
            Late("candidate_count"),
            Late("argv", pointer=True),
            Late("envp", pointer=True),
        )

    def _limit(self, name: str, bounds: tuple[int, int]) -> None:
        """Set one resource limit of the payload, soft and hard."""
        value = getattr(self.spec.limits, name)
        self.program.origin = "limits" if name == "core" and value == 0 else shown(name, value)
        data = self.program.data(pack("<2Q", *bounds), f"{{{bounds[0]}, {bounds[1]}}}")
        self.program.call("prlimit64", 0, RLIMITS[name], data, 0)

    def _limit_instead(self) -> None:
        """Set what comes nearest to a limit that no control group keeps."""
        program, limits = self.program, self.spec.limits
        for name in self.variant.instead:
            value = getattr(limits, name)
            program.origin = shown(name, value)
            if name == "cpuset":
                mask = sum(1 << cpu for cpu in value).to_bytes(8 * (max(value) // 64 + 1), "little")
                program.call("sched_setaffinity", 0, len(mask), program.data(mask, f"{{{', '.join(map(str, value))}}}"))
            else:
                # PID 1 has the same user.
                bound = value + 1 if name == "pids" else value
                data = program.data(pack("<2Q", bound, bound), f"{{{bound}, {bound}}}")
                program.call("prlimit64", 0, k.RLIMIT_NPROC if name == "pids" else k.RLIMIT_AS, data, 0)

    def _code(self) -> bytes:
        """Return the program of the filter; empty without one."""
        spec = self.spec
        if spec.filter is None:
            return b""
        code = preset_program(spec, self.caller) if isinstance(spec.filter, str) else spec.filter.to_bytes()
        if spec.observe:
            from sandbox.denials import asking

            code = asking(code)
        return code

    def _guard(self) -> bytes:
        """Return the filter that stands beside one of the caller's own, or none: of their answers the stricter counts.

        The presets hold its rules already.
        """
        if isinstance(self.spec.filter, str) or not lands_as_root(self.spec, self.caller):
            return b""
        from sandbox.filters.presets import guard_program

        return guard_program()

    def _filters(self) -> None:
        program = self.program
        if self.guard:
            program.origin = "owner=0"
            program.call("seccomp", k.SECCOMP_SET_MODE_FILTER, k.NONE, self._program(self.guard))
        if not self.code:
            return
        program.origin = self.spec.filter_origin
        prog = self._program(self.code)
        if self.listens:
            flags = k.SECCOMP_FILTER_FLAG_NEW_LISTENER | k.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            program.call("seccomp_listen", flags, prog)
        else:
            program.call("seccomp", k.SECCOMP_SET_MODE_FILTER, k.NONE, prog)

    def _program(self, code: bytes) -> Data:
        """Return a struct sock_fprog."""
        length = len(code) // 8
        instructions = self.program.data(code, f"<{length} instructions>")
        return self.program.data(pack("<H6xQ", length, 0), f"{{{length}, <filter>}}", ((8, instructions),))

    def _verify(self) -> None:
        program = self.program
        program.origin = "self-check"
        mask = _CHECK_CAPABILITIES | _CHECK_SECUREBITS | _CHECK_NO_NEW_PRIVS
        if self.new_user:
            mask |= _CHECK_IDS
        if drops_groups(self.spec, self.caller):
            mask |= _CHECK_GROUPS
        keep = self.spec.keep
        sets = (keep, keep, keep, keep, self.spec.ambient)
        expected = pack("<8I5Q744x", self.uid, self.gid, self._securebits(), 1, 0, 0, 0, 0, *sets)
        show = f"{{uid={self.uid}, gid={self.gid}, capabilities={hex(keep) if keep else 'none'}, securebits=locked, "
        show += "no_new_privs=1" + (", groups=none}" if mask & _CHECK_GROUPS else "}")
        text = "|".join(name for bit, name in _CHECKS.items() if mask & bit)
        program.call("verify", program.data(expected, show), Flag(mask, text))


def _capability_sets(program: Program, permitted: int, inheritable: int) -> Data:
    """Return the data of capset(2): effective and permitted alike."""
    low = 0xFFFFFFFF
    words = [permitted & low, permitted & low, inheritable & low, permitted >> 32, permitted >> 32, inheritable >> 32]
    show = f"{{effective={permitted:#x}, permitted={permitted:#x}, inheritable={inheritable:#x}}}"
    return program.data(pack("<6I", *words), show)


@lru_cache(maxsize=64)  # asked at each run of a filter of one's own
def notifies(code: bytes) -> bool:
    """Say whether a filter's program asks a supervisor: it returns SECCOMP_RET_USER_NOTIF somewhere."""
    return any(op == 0x06 and value & 0xFFFF0000 == 0x7FC00000 for op, _, _, value in iter_unpack("=HBBI", code))


def preset_program(spec: Spec, caller: Caller) -> bytes:
    """Return the compiled program of a preset; the package has it for this machine, or it is compiled now."""
    machine = {"arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    name = f"{spec.filter}{'' if _may_set_ids(spec, caller) else '-nosetid'}-{machine}.bpf"
    try:
        with open(os.path.join(os.path.dirname(__file__), "filters", "compiled", name), "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return filter_of(spec, caller).to_bytes()


def filter_of(spec: Spec, caller: Caller) -> "Filter":
    """Return the filter of a sandbox that has one; a preset becomes what it stands for."""
    from sandbox.filters import Filter

    if isinstance(spec.filter, Filter):
        return spec.filter
    return Filter.default(nesting=spec.filter == "default-nesting", setid=_may_set_ids(spec, caller))


def _may_set_ids(spec: Spec, caller: Caller) -> bool:
    """Say whether set-id bits do no harm: with root's own id mapped, they would be root's on the host."""
    return not ((spec.host_root and caller.uid == 0) or lands_as_root(spec, caller))


def compile_plan(spec: Spec, caller: Caller, variant: Variant) -> Compiled:
    """Compile a sandbox for a caller.

    Raises:
        ValueError: The entries contradict each other.
    """
    return _Compiler(spec, caller, variant).compile()


def compile_tree(tree: Tree, caller: Caller) -> Plan:
    """Compile the plan that builds a tree once and sends it; its payload segment is empty."""
    program = Program()
    program.origin = "cached tree"
    program.segment = "stage"
    flags: Flag = k.CLONE_NEWNS
    if not caller.privileged:
        proc = program.call("openat", k.AT_FDCWD, "/proc", k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0, name="proc")
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


def default_entries(*, empty: bool) -> tuple[Entry | System | Dev, ...]:
    """Return what `Sandbox()` has in its root, or `Sandbox.empty()`."""
    if empty:
        return ()
    origin = "Sandbox()"
    return (
        System(origin),
        proc_entry("/proc", origin=origin),
        Dev(origin=origin),
        tmpfs_entry("/tmp", mode=0o1777, origin=origin),
    )


def proc_entry(target: str, *, hidepid: bool = False, subset: str | None = None, origin: str = "") -> Filesystem:
    """Return a new /proc."""
    options: list[tuple[str, str | None]] = []
    if hidepid:
        options.append(("hidepid", "invisible"))
    if subset is not None:
        options.append(("subset", subset))
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
    return Filesystem("proc", target, tuple(options), attributes, strict_target=True, origin=origin)


def tmpfs_entry(
    target: str,
    *,
    mode: int,
    size: int | None = None,
    inodes: int | None = None,
    exec: bool = True,
    origin: str = "",
) -> Filesystem:
    """Return a new tmpfs; size in bytes."""
    # 1777 is what the kernel gives a tmpfs anyway.
    options: list[tuple[str, str | None]] = [] if mode == 0o1777 else [("mode", f"{mode:04o}")]
    if size is not None:
        options.append(("size", str(size)))
    if inodes is not None:
        options.append(("nr_inodes", str(inodes)))
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
    if not exec:
        attributes = attributes | k.MOUNT_ATTR_NOEXEC
    return Filesystem("tmpfs", target, tuple(options), attributes, origin=origin)
