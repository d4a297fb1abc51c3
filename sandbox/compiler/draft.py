"""A plan while it is written: what it is made of, and what its steps have to know of each other."""

from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox.compiler.filters import guard_of, notifies, program_of
from sandbox.compiler.mounts import Writer
from sandbox.compiler.root import entries_of
from sandbox.identity import Caller, inside_ids, lands_as_root
from sandbox.plan import Program, Slot
from sandbox.rootfs import Layout, sort
from sandbox.spec import Python, Spec, System

if TYPE_CHECKING:
    from sandbox.landlock import Ruleset

_CAP_SYS_ADMIN: Final = 1 << 21


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


class Draft:
    """What the steps of one plan are written from, and where they are written to.

    Raises:
        ValueError: What the sandbox says contradicts itself.
    """

    def __init__(self, spec: Spec, caller: Caller, variant: Variant) -> None:
        self.spec = spec
        self.caller = caller
        self.variant = variant
        self.program = Program()
        if variant.python and any(isinstance(entry, System) for entry in spec.entries):
            spec = spec._replace(entries=(*spec.entries, Python("sys.executable")))
        # One more command finds the root made.
        self.layout: Layout = sort(() if variant.further else entries_of(spec, caller, shown=variant.shown))
        self.uid, self.gid = inside_ids(spec, caller)
        self.new_user = "user" in spec.new_namespaces
        # Made by stage 1, in the user namespace of the sandbox, and joined by PID 1.
        self.new_net_beside = self.new_user and "net" in spec.new_namespaces and spec.init
        self.network = self.program.promise("network")
        # The caller's /proc, which PID 1 opens for the payload's own user namespace.
        self.proc_inside = self.program.promise("proc")
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
        # A payload that shares PID 1's memory until it executes cannot have a user namespace of its own; and before
        # Linux 6.1 no other time namespace.
        self.waits = not (variant.hold or self.nested or "time" in spec.new_namespaces)
        self.code = program_of(spec, caller)
        self.guard = guard_of(spec, caller)
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
