"""The plan: a small program of system calls, pure data, which init runs in fresh processes.

A plan has three segments, one for each process that runs it: *stage* in the caller's namespaces, *init* (PID 1)
and *payload*. A step is one system call; an argument is a number, a string or a structure in the data section,
the result of an earlier step, or a descriptor that is filled in at the launch. There is no loop and no branch but
one: a tolerated errno may skip the steps that would have used the result. Decisions belong to Python, before.

`csrc/init/plan.h` reads what `Template` writes.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from errno import errorcode
from itertools import accumulate
from typing import Final, Literal, NamedTuple, TypeAlias

from sandbox.kernel import Flag

Segment: TypeAlias = Literal["stage", "init", "payload"]
SEGMENTS: Final[tuple[Segment, ...]] = ("stage", "init", "payload")
TITLES: Final = {
    "stage": "stage 1, in the caller's namespaces",
    "init": "PID 1, in the new namespaces",
    "payload": "the payload's process",
}

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
)  # fmt: skip
_NUMBERS: Final = {name: 0x100 + i for i, name in enumerate(OPERATIONS)} | {name: i for i, name in enumerate(CALLS)}

TAG_TERMINAL: Final = 2  # of send_fd: enum tag of csrc/init/init.h
SLOTS: Final = ("control", "lifeline", "claim", "stdin", "stdout", "stderr")
MAX_SLOTS: Final = 256
_MAGIC, _VERSION = 0x584F4253, 3
_HEADER = struct.Struct("<16I")
SLOTS_OFFSET: Final = _HEADER.size
_HEADER_SIZE = SLOTS_OFFSET + 4 * MAX_SLOTS
_STEP = struct.Struct("<6Qqq2I2H6B2B2hB7x")
_VALUE, _DATA, _RESULT, _SLOT = range(4)
_ANY, _EQUAL, _AT_LEAST = range(3)
_OWN_GROUP, _KEEP_PRIVILEGES = 1, 2
_MASK = 2**64 - 1


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


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, as people see it.

    Attributes:
        number: From 1, through all segments.
        call: Name of the system call, or of an operation of init.
        args: Its arguments; flags and descriptors print by name.
        segment: Which process makes it: stage, init or payload.
        origin: The builder call that asked for it.
    """

    number: int
    call: str
    args: tuple[object, ...]
    segment: str
    origin: str

    def __str__(self) -> str:
        """Show the call as strace would."""
        return f"{self.call}({', '.join(_show(arg) for arg in self.args)})"


class _Name(str):
    """A descriptor's or structure's name among the arguments: prints without quotes."""

    __slots__ = ()


def _quote(raw: bytes | str) -> str:
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    short = text if len(text) <= 64 else text[:61] + "..."
    return '"' + short.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _show(arg: object) -> str:
    if isinstance(arg, _Name | Flag):
        return str(arg) if isinstance(arg, _Name) else arg.text
    if isinstance(arg, str | bytes):
        return _quote(arg)
    return str(arg)


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


@dataclass(frozen=True, slots=True)
class Plan:
    """What will happen, before it happens: `print(plan)` reads like strace, grouped by who asked.

    A plan is a value: it compares, pickles, and has no side effect.
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
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return tuple(
            Step(number, call.call, tuple(self._shown(arg) for arg in call.args), segment, call.origin)
            for number, (segment, call) in enumerate(self.calls(), 1)
        )

    def _shown(self, arg: Argument) -> object:
        match arg:
            case Data():
                return _Name(arg.show)
            case Ref() | Slot():
                return _Name(arg.name)
            case Late():
                return self._late(arg)
        return arg

    def _late(self, arg: Late) -> object:
        command = self.command
        match arg.name:
            case "argv":
                return _Name("[" + ", ".join(_quote(word) for word in command.argv) + "]")
            case "envp":
                return _Name("[" + ", ".join(_quote(word) for word in command.env) + "]")
            case "candidates":
                return _Name(" or ".join(_quote(path) for path in command.candidates))
        values = dict(command.values)
        return values.get(arg.name, _Name(f"<{arg.name}>"))

    def with_fault(self, step: int, errno: int) -> "Plan":
        """Return this plan with one step that fails without being made.

        Args:
            step: Its number, from 1.
            errno: The errno that it fails with.

        Raises:
            ValueError: No such step, or no such errno.
        """
        total = sum(map(len, self.segments))
        if not 1 <= step <= total:
            raise ValueError(f"step must be between 1 and {total}, got {step}")
        if not 1 <= errno < 4096:
            raise ValueError(f"errno must be between 1 and 4095, got {errno}")
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
        steps = [
            {
                "number": step.number,
                "segment": step.segment,
                "origin": step.origin,
                "call": step.call,
                "args": [_show(arg) if isinstance(arg, Flag | _Name) else _plain(arg) for arg in step.args],
            }
            for step in self.steps
        ]
        import json

        return json.dumps({"steps": steps}, indent=1)

    def __str__(self) -> str:
        """Show every step, grouped by the builder call that asked for it."""
        lines: list[str] = []
        number, segment, origin = 0, "", ""
        for number, (where, call) in enumerate(self.calls(), 1):
            if where != segment:
                segment, origin = where, ""
                lines += ["", f"# {TITLES[where]}"]
            if call.origin != origin:
                origin = call.origin
                lines.append(f"from: {origin}")
            text = f"{call.call}({', '.join(_show(self._shown(arg)) for arg in call.args)})"
            if call.name:
                text += f" = {call.name}"
            if call.tolerate:
                text += "  # unless " + " or ".join(errorcode.get(one, str(one)) for one in call.tolerate)
            if call.fault:
                text += f"  # fault: {errorcode.get(call.fault, call.fault)}"
            lines.append(f"{number:4}  {text}")
        return "\n".join(lines[1:])


def _plain(arg: object) -> object:
    if isinstance(arg, bytes):
        return arg.decode("utf-8", "surrogateescape")
    return arg


class Template:
    """A plan encoded for init, all but what a `Command` brings; made once, used for every launch."""

    def __init__(self, plan: Plan) -> None:
        calls = [call for _, call in plan.calls()]
        self.plan = plan
        self.slots = plan.slots
        self._index = {call.key: i for i, call in enumerate(calls)}
        self._late: list[tuple[int, str]] = []
        self._data_at: dict[int | bytes, int] = {}
        self._data = bytearray()
        self._relocations: list[tuple[int, int]] = []
        self._data_base = _HEADER_SIZE + _STEP.size * len(calls)
        steps = bytearray()
        for i, call in enumerate(calls):
            steps += self._step(call, _HEADER_SIZE + _STEP.size * i)
        self._data += bytes(-len(self._data) % 8)
        firsts = []
        first = 0
        for segment in plan.segments:
            firsts.append(first)
            first += len(segment)
        self._head = (
            _MAGIC,
            _VERSION,
            plan.flags,
            _HEADER_SIZE,
            len(calls),
            *firsts,
            *map(len, plan.segments),
        )
        self._fixed = bytes(_HEADER_SIZE) + bytes(steps) + bytes(self._data)
        self._last: tuple[tuple[tuple[bytes, ...], ...], bytes, int, dict[str, int]] = (), b"", 0, {}
        self._fixed_relocations = b"".join(struct.pack("<2I", at, count) for at, count in self._relocations)

    def _place(self, content: bytes, key: int | None) -> int:
        known: int | bytes = content if key is None else key
        at = self._data_at.get(known)
        if at is None:
            if key is not None:
                self._data += bytes(-len(self._data) % 8)
            at = self._data_at[known] = self._data_base + len(self._data)
            self._data += content
            if key is not None:
                # Results are stored with a width of up to 8 bytes, and read as such.
                self._data += bytes(max(0, 8 - len(content)))
        return at

    def _place_data(self, data: Data) -> int:
        known = self._data_at.get(data.key)
        if known is not None:
            return known
        content = bytearray(data.content)
        targets = [(offset, self._place_data(target)) for offset, target in data.pointers]
        for offset, target in targets:
            struct.pack_into("<Q", content, offset, target)
        at = self._place(bytes(content), data.key)
        self._relocations += [(at + offset, 1) for offset, _ in targets]
        return at

    def _step(self, call: Call, at: int) -> bytes:
        values = [0] * 6
        kinds = [_VALUE] * 6
        for i, arg in enumerate(call.args):
            match arg:
                case int():
                    values[i] = int(arg) & _MASK
                case str() | bytes():
                    raw = arg.encode("utf-8", "surrogateescape") if isinstance(arg, str) else arg
                    values[i], kinds[i] = self._place(raw + b"\0", None), _DATA
                case Data():
                    values[i], kinds[i] = self._place_data(arg), _DATA
                case Ref():
                    values[i], kinds[i] = self._index[arg.key], _RESULT
                case Slot():
                    values[i], kinds[i] = arg.number, _SLOT
                case Late():
                    self._late.append((at // 8 + i, arg.name))
                    kinds[i] = _DATA if arg.pointer else _VALUE
        store, width = 0, 0
        if isinstance(call.store, Slot):
            store, width = SLOTS_OFFSET + 4 * call.store.number, 4
        elif call.store is not None:
            data, offset, width = call.store
            store = self._place_data(data) + offset
        expectation, expect = _ANY, 0
        if call.equal is not None:
            expectation, expect = _EQUAL, call.equal
        elif call.at_least is not None:
            expectation, expect = _AT_LEAST, call.at_least
        tolerate = (*call.tolerate, 0, 0)[:2]
        return _STEP.pack(
            *values, expect, 0, store, call.fault, _NUMBERS[call.call], call.skip, *kinds, expectation, width,
            *tolerate, call.retry,
        )  # fmt: skip

    def _words(
        self, argv: tuple[bytes, ...], env: tuple[bytes, ...], candidates: tuple[bytes, ...]
    ) -> tuple[bytes, int, dict[str, int]]:
        """Lay out the strings of a command behind the fixed part: their bytes, how many pointers, where what is."""
        words = (*argv, *env, *candidates)
        pointers = len(self._fixed)
        # argv and envp end with a null pointer; candidates are counted.
        count = len(words) + 2
        strings = pointers + 8 * count
        offsets = [strings + at for at in accumulate([len(word) + 1 for word in words], initial=0)]
        argc, envc = len(argv), len(env)
        places = {
            "argv": pointers,
            "envp": pointers + 8 * (argc + 1),
            "candidates": pointers + 8 * (argc + envc + 2),
            "candidate_count": len(candidates),
        }
        tail = struct.pack(
            f"<{count}Q", *offsets[:argc], 0, *offsets[argc : argc + envc], 0, *offsets[argc + envc : -1]
        )
        if words:
            tail += b"\0".join(words) + b"\0"
        return tail, count, places

    def image(self, command: Command) -> bytearray:
        """Return the whole plan for one launch, without its slots.

        Raises:
            KeyError: The command lacks a value that the plan needs.
        """
        words = command[:3]
        # Most launches repeat the one before. Taken once: another thread may launch something else meanwhile.
        last = self._last
        if words != last[0]:
            last = self._last = words, *self._words(*words)
        _, tail, count, known = last
        pointers = len(self._fixed)
        out = bytearray(self._fixed)
        out += tail
        places = known.copy()
        for name, value in command.values:
            if isinstance(value, bytes):
                places[name] = len(out)
                places[name + ".size"] = len(value)
                out += value + b"\0"
            else:
                places[name] = value
        out += bytes(-len(out) % 8)
        with memoryview(out).cast("Q") as numbers:
            for at, name in self._late:
                numbers[at] = places[name]
        relocations = len(out)
        out += self._fixed_relocations + struct.pack("<2I", pointers, count)
        magic, version, flags, steps, step_count, *segments = self._head
        _HEADER.pack_into(
            out,
            0,
            magic,
            version,
            len(out),
            flags,
            steps,
            step_count,
            *segments,
            relocations,
            len(self._relocations) + 1,
            self.slots,
            0,
        )
        return out


def environment(variables: Mapping[str, str]) -> tuple[bytes, ...]:
    """Encode variables as execve wants them.

    Raises:
        ValueError: A name is empty or holds "=", or anything holds a NUL byte.
    """
    return tuple(_variable(name, value) for name, value in variables.items())


def _variable(name: str, value: str) -> bytes:
    raw_name = name.encode("utf-8", "surrogateescape")
    raw = raw_name + b"=" + value.encode("utf-8", "surrogateescape")
    if not raw_name or b"=" in raw_name or b"\0" in raw:
        raise ValueError(f"an environment variable's name must not be empty or hold '=' or NUL, got {name!r}")
    return raw


def candidates(program: bytes, path: str) -> tuple[bytes, ...]:
    """Return the paths that execve tries for a program: itself with a slash in it, else one a directory of PATH."""
    if b"/" in program:
        return (program,)
    folders = path.encode("utf-8", "surrogateescape").split(b":")
    return tuple([(folder.rstrip(b"/") or b"/.") + b"/" + program for folder in folders if folder]) or (program,)
