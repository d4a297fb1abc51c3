"""The plan: a small program of system calls, pure data, which init runs in fresh processes.

A plan has three segments, one for each process that runs it: *stage* in the caller's namespaces, *init* (PID 1)
and *payload*. A step is one system call; an argument is a number, a string or a structure in the data section,
the result of an earlier step, or a descriptor that is filled in at the launch. There is no loop and no branch but
one: a tolerated errno may skip the steps that would have used the result. Decisions belong to Python, before.

`csrc/init/plan.h` reads what `sandbox.template` writes.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from sandbox.arguments import integer
from sandbox.frozen import Frozen

if TYPE_CHECKING:
    from sandbox.listing import Step

Segment: TypeAlias = Literal["stage", "init", "payload"]
SEGMENTS: Final[tuple[Segment, ...]] = ("stage", "init", "payload")

# The same names in the same order as csrc/init/calls.h.
CALLS: Final = (
    "read", "write", "openat", "close", "dup3", "fcntl", "ioctl", "fstatfs", "mkdirat", "mknodat", "symlinkat",
    "unlinkat", "fchmod", "fchmodat", "fchownat", "fchdir", "chdir", "chroot", "umask", "mount", "umount2",
    "pivot_root", "open_tree", "open_tree_attr", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "openat2", "close_range", "unshare", "setns", "sethostname", "setdomainname", "socket",
    "setsid", "setpgid", "setgroups", "setresuid", "setresgid", "prctl", "capset", "keyctl", "prlimit64", "seccomp",
    "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "sched_setaffinity", "setpriority",
    "rt_sigprocmask", "dup", "getpid", "pidfd_open",
)  # fmt: skip
# Operations that straight-line calls cannot express: enum native of csrc/init/plan.h.
OPERATIONS: Final = (
    "clone", "write_proc", "release", "await_release", "check", "drop_bounding_set", "check_lifeline",
    "fork_payload", "reset_signals", "place_fds", "verify", "hold", "execve", "send_fd", "end", "skip",
    "seccomp_listen", "write_proc_self", "join_cgroup", "thaw_with", "wall_time", "limit_cpu", "join_group", "stay",
    "become_payload", "read_limits", "listen_pid", "user_namespace", "await_maps",
    "watch_caller", "look",
)  # fmt: skip
TAG_TERMINAL: Final = 2  # of send_fd: enum tag of csrc/init/init.h
SLOTS: Final = ("control", "lifeline", "claim", "stdin", "stdout", "stderr")
MAX_SLOTS: Final = 256
_OWN_GROUP, _KEEP_PRIVILEGES = 1, 2


class Data(NamedTuple):
    """A structure in the data section; the same object given twice is the same memory.

    Args:
        content: Its bytes before the step; a buffer for a result is zeros.
        show: How it prints.
        key: Tells it from others with the same content.
        pointers: Where in it the addresses of other structures go.
    """

    content: bytes
    show: str
    key: int
    pointers: tuple[tuple[int, "Data"], ...] = ()


class Ref(NamedTuple):
    """The result of an earlier step."""

    key: int
    name: str


class Slot(NamedTuple):
    """A descriptor that the launch fills in."""

    number: int
    name: str


class Late(NamedTuple):
    """A number or a piece of memory that is known at the launch only: argv, an id map, a host id."""

    name: str
    pointer: bool = False


Argument: TypeAlias = int | str | bytes | Data | Ref | Slot | Late


class Call(NamedTuple):
    """One step before it has a number.

    Args:
        tolerate: Errnos, at most two, that are no failure.
        skip: How many steps to leave out after a tolerated errno.
        equal: The result must be this.
        at_least: The result must be at least this.
        store: Where the result is written as well: (structure, offset, width of 4 or 8), or the slot that it fills.
        retry: How often EINTR and EAGAIN are tried again.
        fault: An errno to pretend instead of making the call; 0: make it.
    """

    key: int
    call: str
    args: tuple[Argument, ...]
    origin: str
    name: str = ""
    tolerate: tuple[int, ...] = ()
    skip: int = 0
    equal: int | None = None
    at_least: int | None = None
    store: tuple[Data, int, int] | Slot | None = None
    retry: int = 0
    fault: int = 0


class Command(NamedTuple):
    """What differs between two launches of one sandbox.

    Args:
        argv: The arguments, program first.
        env: NAME=value each.
        candidates: Paths to execute, the first that exists.
        values: For each `Late` name a number, or bytes for a pointer; NAME.size is the length of the latter.
    """

    argv: tuple[bytes, ...] = ()
    env: tuple[bytes, ...] = ()
    candidates: tuple[bytes, ...] = ()
    values: tuple[tuple[str, int | bytes], ...] = ()


class Program:
    """Collects the steps of the three segments."""

    def __init__(self) -> None:
        self.segments: dict[Segment, list[Call]] = {name: [] for name in SEGMENTS}
        self.origin = ""
        self.segment: Segment = "init"
        self.slots = len(SLOTS)
        self._keys = 0

    def call(
        self,
        call: str,
        *args: Argument,
        name: str = "",
        tolerate: tuple[int, ...] = (),
        skip: int = 0,
        equal: int | None = None,
        at_least: int | None = None,
        store: tuple[Data, int, int] | Slot | None = None,
        retry: int = 0,
        result: Ref | None = None,
    ) -> Ref:
        """Add one step to the current segment, for the current origin; return its result, or keep a promise of it."""
        if result is None:
            result = self.promise(name)
        self.segments[self.segment].append(
            Call(result.key, call, args, self.origin, result.name, tolerate, skip, equal, at_least, store, retry)
        )
        return result

    def promise(self, name: str) -> Ref:
        """Name the result of a step that is written later and made earlier, by another process."""
        self._keys += 1
        return Ref(self._keys, name)

    def data(self, content: bytes, show: str, pointers: tuple[tuple[int, Data], ...] = ()) -> Data:
        """Make a structure that several steps can refer to."""
        self._keys += 1
        return Data(content, show, self._keys, pointers)

    def slot(self, name: str) -> Slot:
        """Make room for one more descriptor that the launch fills in."""
        if self.slots == MAX_SLOTS:
            raise ValueError(f"a plan has room for {MAX_SLOTS} descriptors")
        self.slots += 1
        return Slot(self.slots - 1, name)

    def plan(self, command: Command, *, own_group: bool = True, keep_privileges: bool = False) -> "Plan":
        """Return what was collected as a value."""
        return Plan(
            tuple(tuple(self.segments[name]) for name in SEGMENTS),
            command,
            self.slots,
            (_OWN_GROUP if own_group else 0) | (_KEEP_PRIVILEGES if keep_privileges else 0),
        )


class Plan(Frozen):
    """What will happen, before it happens: `print(plan)` reads like strace, grouped by who asked.

    A plan is a value: it compares, pickles, and has no side effect.

    Attributes:
        segments: The steps of each of the three processes.
        command: What is executed in the end.
        slots: How many descriptors the launch fills in.
        flags: What init is told beside the steps.
    """

    segments: tuple[tuple[Call, ...], ...]
    command: Command
    slots: int
    flags: int = 0

    def calls(self) -> Iterator[tuple[Segment, Call]]:
        """Go through all steps with the segment that each belongs to."""
        for name, segment in zip(SEGMENTS, self.segments, strict=True):
            for call in segment:
                yield name, call

    @property
    def steps(self) -> "tuple[Step, ...]":
        """All steps, in order."""
        from sandbox.listing import steps_of

        return steps_of(self)

    def with_fault(self, step: int, errno: int) -> "Plan":
        """Return this plan with one step that fails without being made.

        Args:
            step: Its number, from 1.
            errno: The errno that it fails with.

        Raises:
            TypeError: No int.
            ValueError: No such step, or no such errno.
        """
        total = sum(map(len, self.segments))
        integer(step, "step", 1, total)
        integer(errno, "errno", 1, 4095)
        segments = []
        index = step - 1
        for segment in self.segments:
            if 0 <= index < len(segment):
                segment = (*segment[:index], segment[index]._replace(fault=errno), *segment[index + 1 :])
                index = -1
            elif index >= 0:
                index -= len(segment)
            segments.append(segment)
        return replace(self, segments=tuple(segments))

    def to_json(self) -> str:
        """Return the steps as JSON, one object each."""
        from sandbox.listing import to_json

        return to_json(self)

    def __repr__(self) -> str:
        """Show the command and how many steps it takes; `print` shows them."""
        words = [word.decode(errors="replace") for word in self.command.argv]
        return f"<Plan of {sum(map(len, self.segments))} steps for {words}>"

    def __str__(self) -> str:
        """Show every step, grouped by the builder call that asked for it."""
        from sandbox.listing import listing

        return listing(self)
