"""The filter: rules for system calls, as a value."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, overload

from sandbox.errors import FilterError
from sandbox.filters import bpf, presets
from sandbox.filters.actions import Action, Errno, decode
from sandbox.filters.compiler import FOREIGN, NO_X32, compile_rules, order_arches
from sandbox.filters.conditions import Condition
from sandbox.filters.difference import Difference, differences
from sandbox.filters.disassembler import listing
from sandbox.filters.ranges import holds
from sandbox.filters.rules import Rule, check, check_reachable, expand, verdicts
from sandbox.filters.table import ARCHES, AUDIT, X32_BIT, Arch, calls, machine, names_of, near, served

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sandbox.arguments import StrOrBytesPath

_EPERM: Final = Errno("EPERM")


class Filter:
    """Which system calls a process may make; frozen, every method returns a new one.

    **The last rule that matches decides.** A call that no rule matches gets the default action. So what is written
    later refines what stands before: `Filter.default().deny("chown")` takes one call away,
    `.deny("@network").allow("socket", arg(0) == "AF_UNIX")` makes an exception. All conditions of one rule must hold;
    several rules are alternatives. A rule that can never decide, because a later one answers differently to all
    that it matches, is an error that names both; rules of a preset may be overridden.

    A name stands for the call on every architecture of the filter, and for its 32-bit variants there (`mmap2`,
    `chown32`, `clock_settime64`, the calls inside of `socketcall` and `ipc`). Where those hide the arguments that a
    rule asks for, the call gets the strictest answer that any arguments could get.

    Args:
        default_action: For the calls that no rule matches.
        arches: The architectures served, with the same rules. Default: this machine's and its 32-bit one. All others
            are killed; x32, where x86_64 is served and x32 is not, is answered ENOSYS, as by a kernel without it.
        unknown_action: For numbers that the table does not have, of newer kernels; None: the default action.

    Raises:
        FilterError: The machine or an architecture is not known.

    See seccomp(2), seccomp_filter in the kernel's documentation. Since Linux 3.5.
    """

    __slots__ = ("_arches", "_default", "_name", "_preset", "_program", "_rules", "_unknown")
    _arches: tuple[Arch, ...]
    _default: Action
    _name: str  # how it began, for repr
    _preset: str | None  # the file of its compiled form, while nothing was added
    _program: bytes | None  # compiled, or from from_bytes
    _rules: tuple[Rule, ...] | None  # None: made from bytes
    _unknown: Action | None

    def __init__(
        self,
        default_action: Action,
        *,
        arches: Iterable[Arch] | None = None,
        unknown_action: Action | None = None,
    ) -> None:
        for name, action in (("default_action", default_action), ("unknown_action", unknown_action)):
            if not isinstance(action, Action) and not (action is None and name == "unknown_action"):
                raise TypeError(f"{name} must be an Action, not {type(action).__name__}")
        if isinstance(arches, str):
            raise TypeError("arches must be an iterable of names, not str")
        wanted = served(machine()) if arches is None else tuple(arches)
        for arch in wanted:
            if arch not in ARCHES:
                raise FilterError(f"no architecture is named {arch!r}; there are {', '.join(ARCHES)}")
        if not wanted:
            raise FilterError("arches must name at least one architecture")
        self._set(default_action, unknown_action, order_arches(wanted), (), "", None, None)

    def _set(
        self,
        default: Action,
        unknown: Action | None,
        arches: tuple[Arch, ...],
        rules: tuple[Rule, ...] | None,
        name: str,
        preset: str | None,
        program: bytes | None,
    ) -> None:
        values = {
            "_default": default, "_unknown": unknown, "_arches": arches, "_rules": rules, "_name": name,
            "_preset": preset, "_program": program,
        }  # fmt: skip
        for slot, value in values.items():
            object.__setattr__(self, slot, value)

    @classmethod
    def _make(cls, *values: Any) -> "Filter":
        made = object.__new__(cls)
        made._set(*values)
        return made

    # ── presets and other sources ───────────────────────────────────────────────────────────────────────────────────
    @classmethod
    def default(cls, *, nesting: bool = False, setid: bool = True) -> "Filter":
        """Return what `Sandbox()` has: all that ordinary programs need, nothing that widens the kernel's surface.

        Known calls that it refuses fail with EPERM; numbers that the table does not know fail with ENOSYS, as does
        clone3, whose arguments no filter can see (C libraries then use clone). docs/filters.md lists the rest.

        Args:
            nesting: Open what sandboxes inside the sandbox need: namespaces, mounts, clone3.
            setid: False refuses to make set-user-id and set-group-id files.
        """
        return cls._preset_filter(presets.default(nesting=nesting, setid=setid))

    @classmethod
    def strict(cls) -> "Filter":
        """Return pure computation on open descriptors: no new file, process, socket or executable memory.

        It forbids execve too, so it is for `confine()`; a sandbox needs `.allow("execve")` and, for programs that
        are not static, what their loader calls.
        """
        return cls._preset_filter(presets.strict())

    @classmethod
    def docker(cls, *, capabilities: Iterable[str] = ()) -> "Filter":
        """Return the verdicts of Docker's default profile.

        Args:
            capabilities: What the container keeps, with or without CAP_: it opens more calls.

        Raises:
            FilterError: No such capability.
        """
        return cls._preset_filter(presets.docker(capabilities))

    @classmethod
    def _preset_filter(cls, preset: presets.Preset) -> "Filter":
        arch = machine()
        arches = preset.arches(arch)
        stored = f"{preset.stored}-{arch}" if preset.stored else None
        return cls._make(preset.default, preset.unknown, arches, preset.rules, preset.name, stored, None)

    @classmethod
    def from_bytes(cls, program: "Buffer", /) -> "Filter":
        """Return a filter from a raw program: an array of struct sock_filter, native byte order.

        It can be simulated, disassembled, compared and loaded; rules cannot be added to it.

        Raises:
            FilterError: The kernel would refuse the program; says which instruction and why.
        """
        raw = bytes(program)
        bpf.decode(raw)
        return cls._make(FOREIGN, None, ARCHES, None, "Filter.from_bytes(...)", None, raw)

    @classmethod
    def from_oci(
        cls,
        source: "StrOrBytesPath | Mapping[str, Any]",
        *,
        capabilities: Iterable[str] = (),
        arch: Arch | None = None,
        kernel: tuple[int, int] = (6, 18),
    ) -> "Filter":
        """Return the filter of a profile: Docker's and Podman's JSON, or linux.seccomp of an OCI configuration.

        Args:
            source: A file, or its content read by json.
            capabilities: What the container keeps, for `includes` and `excludes`.
            arch: The machine, for `includes`, `excludes` and `archMap`; None: this one.
            kernel: The kernel's version, for `minKernel`.

        Raises:
            FilterError: The profile says something that it cannot mean; names the place.
            ValueError: The text of a profile instead of its path.
            OSError: The file cannot be read.
        """
        from sandbox.filters import oci  # only a profile needs it

        read = oci.read(source, capabilities, machine() if arch is None else arch, kernel)
        return cls._make(read.default, None, order_arches(read.arches), read.rules, "Filter.from_oci(...)", None, None)

    # ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def rule(self, action: Action, call: str, /, *conditions: Condition) -> "Filter":
        """Add a rule: this action for a call, or a group of calls, when all conditions hold.

        Args:
            action: `Allow`, `Errno(...)`, `Kill`, `KillThread`, `Trap`, `Trace(...)`, `Log` or `Notify`.
            call: A call's name or a group's, such as "@clock".
            conditions: On its arguments; none: always.

        Raises:
            FilterError: Unknown name (near ones are listed), a rule that can never match, or one that hides another.
        """
        return self._add(action, (call,), conditions)

    @overload
    def allow(self, call: str, /, *more: str) -> "Filter": ...
    @overload
    def allow(self, call: str, /, *conditions: Condition) -> "Filter": ...
    def allow(self, call: str, /, *more: Any) -> "Filter":
        """Add a rule that allows: several calls or groups, or one with conditions that must all hold.

        Args:
            call: A call's name or a group's.
            more: More names, or conditions.

        Raises:
            FilterError: As `rule()`.
        """
        return self._add(Action("Allow"), *_split(call, more))

    @overload
    def deny(self, call: str, /, *more: str, action: Action = ...) -> "Filter": ...
    @overload
    def deny(self, call: str, /, *conditions: Condition, action: Action = ...) -> "Filter": ...
    def deny(self, call: str, /, *more: Any, action: Action = _EPERM) -> "Filter":
        """Add a rule that refuses: several calls or groups, or one with conditions that must all hold.

        Args:
            call: A call's name or a group's.
            more: More names, or conditions.
            action: What happens instead; any action but Allow.

        Raises:
            FilterError: As `rule()`.
        """
        if action == Action("Allow"):
            raise ValueError("action must not be Allow: that is allow()")
        return self._add(action, *_split(call, more))

    def _add(self, action: Action, names: tuple[str, ...], conditions: tuple[Condition, ...]) -> "Filter":
        if not isinstance(action, Action):
            raise TypeError(f"action must be an Action, not {type(action).__name__}")
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"call must be a str, not {type(name).__name__}")
        for condition in conditions:
            if not isinstance(condition, Condition):
                raise TypeError(f"conditions must be of arg(), not {type(condition).__name__}")
        rule = Rule(action, names, conditions)
        check(rule, self._arches)
        rules = (*self._ruled("take more rules"), rule)
        check_reachable(rules, self._arches)
        return self._make(self._default, self._unknown, self._arches, rules, self._name, None, None)

    def _ruled(self, purpose: str) -> tuple[Rule, ...]:
        if self._rules is None:
            raise FilterError(f"a filter made from bytes has no rules: it cannot {purpose}")
        return self._rules

    # ── without a kernel ────────────────────────────────────────────────────────────────────────────────────────────
    def to_bytes(self) -> bytes:
        """Return the compiled program: an array of struct sock_filter, native byte order, as seccomp(2) takes it.

        Raises:
            FilterError: More than 4,096 instructions; names the rules that cost most.
        """
        if self._program is None:
            stored = presets.stored(self._preset) if self._preset else None
            if stored is None:
                rules = self._ruled("be compiled")
                stored = bpf.encode(compile_rules(rules, self._default, self._unknown, self._arches))
            object.__setattr__(self, "_program", stored)
        assert self._program is not None  # mypy: set above
        return self._program

    def simulate(self, call: str | int, /, *args: int, arch: Arch | None = None) -> Action:
        """Run the compiled program on a call, without a kernel, and return its answer.

        Args:
            call: A name or a number.
            args: Its arguments, as 64-bit registers hold them; those left out are 0.
            arch: The architecture of the call; None: this machine's.

        Raises:
            FilterError: No such call on that architecture; near names are listed.
        """
        number, arch = self._numbered(call, args, arch)
        answer, _ = bpf.run(bpf.decode(self.to_bytes()), bpf.call_data(number, AUDIT[arch], args))
        return decode(answer)

    def explain(self, call: str | int, /, *args: int, arch: Arch | None = None) -> str:
        """Say what happens to a call, and which rule decides.

        Args and Raises: as `simulate()`.
        """
        number, arch = self._numbered(call, args, arch)
        name = names_of(arch).get(number)
        shown = f"{name or number}({', '.join(hex(value) if value > 9 else str(value) for value in args)}) on {arch}"
        answer = f"{shown}: {self.simulate(number, *args, arch=arch)}"
        if self._rules is None:
            _, path = bpf.run(bpf.decode(self.to_bytes()), bpf.call_data(number, AUDIT[arch], args))
            return f"{answer}\n  by instruction {path[-1]}, after {', '.join(map(str, path[:-1]))}"
        return f"{answer}\n  {self._reason(name, number, args, arch)}"

    def _reason(self, name: str | None, number: int, args: Sequence[int], arch: Arch) -> str:
        rules = self._ruled("be explained")
        if arch == "x32" and arch not in self._arches and "x86_64" in self._arches:
            return f"x32 is not served: {NO_X32!r}, as by a kernel without it"
        if arch not in self._arches:
            return f"the filter serves {', '.join(self._arches)} alone: {FOREIGN!r}"
        if name is None:
            if self._unknown is None:
                return f"no rule matches: the default action, {self._default!r}"
            return f"the table (Linux {'.'.join(map(str, calls().version))}) has no call {number}: {self._unknown!r}"
        words = [value & 0xFFFFFFFFFFFFFFFF for value in args] + [0] * (6 - len(args))
        for clause in verdicts(rules, self._default, arch).get(name, ()):
            if clause.rule >= 0 and all(holds(t.ranges, words[t.argument] & t.mask) for t in clause.tests):
                rule = rules[clause.rule]
                origin = f" of {self._name}" if rule.preset else ""
                text = f"by rule {clause.rule + 1}{origin}: {rule}"
                if rule.names != (name,) and name not in expand(rule.names):
                    text += f" ({name} is its variant)"
                return text
        return f"no rule matches: the default action, {self._default!r}"

    def _numbered(self, call: str | int, args: Sequence[int], arch: Arch | None) -> tuple[int, Arch]:
        if len(args) > 6:
            raise ValueError(f"args must be at most 6 numbers, got {len(args)}")
        for value in args:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"args must be numbers, not {type(value).__name__}")
            if not -(2**63) <= value < 2**64:
                raise ValueError(f"args must fit into 64 bits, got {value}")
        if arch is None:
            arch = machine()
        elif arch not in ARCHES:
            raise FilterError(f"no architecture is named {arch!r}; there are {', '.join(ARCHES)}")
        if isinstance(call, str):
            number = calls().numbers[arch].get(call)
            if number is None:
                raise FilterError(f"{arch} has no system call {call!r}{near(call, calls().numbers[arch])}")
            return number, arch
        if not -(2**31) <= call < 2**32:
            raise ValueError(f"call must be a name or a number of 32 bits, got {call}")
        number = call & 0xFFFFFFFF
        return (number | X32_BIT if arch == "x32" else number), arch

    def disassemble(self) -> str:
        """Return the compiled program, readable: labels, names of calls, actions."""
        return listing(bpf.decode(self.to_bytes()))

    def diff(self, other: "Filter") -> Sequence[Difference]:
        """Return where two filters differ: each call and architecture, with an example of arguments.

        Both programs are followed through all their branches, so nothing that differs is missed.

        Args:
            other: To compare with.

        Raises:
            TypeError: No filter.
            FilterError: A program made from bytes computes with arguments in a way that cannot be followed.
        """
        if not isinstance(other, Filter):
            raise TypeError(f"other must be a Filter, not {type(other).__name__}")
        return differences(bpf.decode(self.to_bytes()), bpf.decode(other.to_bytes()))

    def to_oci(self) -> dict[str, Any]:
        """Return linux.seccomp of the OCI runtime specification, resolved: what runc and crun take.

        The form has no word for numbers that the table does not know: they get its default action.

        Raises:
            FilterError: Made from bytes, or a call has rules that the form cannot express; names it.
        """
        from sandbox.filters import oci

        return oci.write(self._ruled("be written as a profile"), self._default, self._arches)

    # ── a value ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _key(self) -> tuple[object, ...]:
        return self._default, self._unknown, self._arches, self._rules, self._program if self._rules is None else None

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        program = self._program if self._rules is None else None
        values = (self._default, self._unknown, self._arches, self._rules, self._name, self._preset, program)
        return Filter._make, values

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Filter is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Filter is frozen: {name} cannot be deleted")

    def __repr__(self) -> str:
        arches = "" if self._name or self._arches == served(machine()) else f", arches={self._arches}"
        unknown = "" if self._name or self._unknown is None else f", unknown_action={self._unknown!r}"
        text = self._name or f"Filter({self._default!r}{arches}{unknown})"
        return text + "".join(f".{rule}" for rule in self._rules or () if not rule.preset)


def _split(call: str, more: tuple[Any, ...]) -> tuple[tuple[str, ...], tuple[Condition, ...]]:
    """Tell names from conditions; both at once have no meaning."""
    if not isinstance(call, str):
        raise TypeError(f"call must be a str, not {type(call).__name__}")
    names = tuple(one for one in more if isinstance(one, str))
    conditions = tuple(one for one in more if not isinstance(one, str))
    if names and conditions:
        raise TypeError("give one call with conditions, or several calls without")
    return (call, *names), conditions
