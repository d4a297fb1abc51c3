"""`Sandbox`: says what a sandbox is, and runs commands in it.

Every method checks what it is given, and returns a new value. Nothing happens on the host before `run`.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack

from sandbox.arguments import (
    Size,
    StrOrBytesPath,
    clock_offset,
    host_name,
    id_number,
    integer,
    quoted,
    switch,
    target_path,
)
from sandbox.builder_root import RootBuilder
from sandbox.compiler import compile_plan
from sandbox.compiler.draft import Variant
from sandbox.compiler.filters import notifies
from sandbox.errors import FilterError
from sandbox.identity import MAX_COUNT, caller, inside_ids, values
from sandbox.launcher import Launcher, in_groups, is_this_python
from sandbox.limits import asks_group, merged
from sandbox.order import Args, Environment, Order, words_of
from sandbox.plan import Command, Plan
from sandbox.spec import HOME, NAMESPACES, Namespace, Network, Python, Spec, default_entries
from sandbox.streams import Streams
from sandbox.template import candidates

if TYPE_CHECKING:
    from types import EllipsisType

    from sandbox.filters import Filter
    from sandbox.landlock import Landlock, LandlockOptions
    from sandbox.process import Process
    from sandbox.process_async import Process_async


_EXAMPLE: Final = 0x70000000


class Sandbox(RootBuilder):
    """A sandbox: what it has, what it may, and who it is. `Sandbox()` is safe by default.

    Without further words: new user, mount, pid, ipc, uts, net and cgroup namespaces; read-only /usr and the part of
    /etc that programs need; private /tmp, /dev and /proc; no network but its own loopback; stdin empty; a clean
    environment; no capability; no_new_privs; the default filter of system calls; no descriptor but 0, 1 and 2.

    A sandbox is a value: every method returns a new one, in the order written. It compares, hashes and pickles.
    """

    __slots__ = ("_launcher", "_spec")

    def __init__(self) -> None:
        self._spec = Spec(entries=default_entries(empty=False), cwd=HOME)
        self._launcher = Launcher(self._spec)

    @staticmethod
    def empty() -> "Sandbox":
        """Return a sandbox with an empty root, all else as the default."""
        return Sandbox._of(Spec(entries=default_entries(empty=True)))

    @classmethod
    def _of(cls, spec: Spec) -> Self:
        self = cls.__new__(cls)
        self._spec = spec
        self._launcher = Launcher(spec)
        return self

    def _launch(self, order: Order, streams: Streams) -> "Process[Any]":
        return self._launcher.launch(order, streams)

    async def _launch_async(self, order: Order, streams: Streams) -> "Process_async":
        return await self._launcher.launch_async(order, streams)

    def __eq__(self, other: object) -> bool:
        """Compare what they say."""
        return isinstance(other, Sandbox) and other._spec == self._spec

    def __hash__(self) -> int:
        """Hash what it says."""
        return hash(self._spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it says; nothing that was compiled for this machine."""
        return type(self)._of, (self._spec,)

    def __repr__(self) -> str:
        """Show the builder calls that make it; values of the environment are left out, for they may be secrets."""
        from sandbox.shown import shown

        return f"<{shown(self._spec)}>"

    def python(self) -> Self:
        """Make the interpreter that runs this program visible, with its packages, read-only at their own paths.

        That is sys.executable and the links on the way to it, sys.prefix and sys.base_prefix, the user's packages
        (PYTHONUSERBASE is set) and what editable installs and .pth files name. The directory of the running script and
        PYTHONPATH are not among them: bind what of those is wanted. A sandbox with the host's /usr does this by
        itself, but for PYTHONUSERBASE, when the program is sys.executable.
        """
        from sandbox import interpreter

        base = interpreter.user_base()
        return (self if base is None else self.env(PYTHONUSERBASE=base))._add(Python())

    # ── identity, names, namespaces ──

    def user(
        self,
        uid: int | None = None,
        gid: int | None = None,
        *,
        host_root: bool = False,
        groups: Literal["drop", "strict"] = "drop",
    ) -> Self:
        """Say who the payload is, as it sees itself.

        Args:
            uid: User id inside; the caller's own (root: 1000) when left out.
            gid: Group id inside; the uid when only that is given.
            host_root: Root's own id may be mapped: what it may do on the host's files, the payload may.
            groups: "strict": an error where the kernel won't drop the caller's supplementary groups.
        """
        if groups not in {"drop", "strict"}:
            raise ValueError(f'groups must be "drop" or "strict", got {groups!r}')
        uid = id_number(uid, "uid")
        gid = id_number(gid, "gid")
        return self._with(
            uid=uid,
            gid=uid if gid is None else gid,
            host_root=switch(host_root, "host_root"),
            strict_groups=groups == "strict",
        )

    def id_ranges(self, count: int = 65536) -> Self:
        """Have many user and group ids inside: files can be given away, and programs can become somebody else.

        Root takes a range of the host that nobody else has, for each sandbox. Other callers have the ranges that
        /etc/subuid and /etc/subgid give them, by newuidmap and newgidmap: the payload's own id stays the caller's.
        Either way the caller's supplementary groups are dropped.

        Args:
            count: The ids 0 to count - 1; at most 65536.

        Raises:
            UnsupportedError: At the launch: a range or a program is missing, or the caller has no_new_privs.
        """
        count = integer(count, "count", 1, MAX_COUNT)
        return self._with(id_ranges=count, id_ranges_origin=f".id_ranges({count})")

    def hostname(self, name: str) -> Self:
        """Set the host name: 1 to 64 bytes."""
        name = host_name(name, "name")
        return self._with(hostname=name, hostname_origin=f".hostname({quoted(name)})")

    def domainname(self, name: str) -> Self:
        """Set the NIS domain name: 1 to 64 bytes."""
        return self._with(domainname=host_name(name, "name"))

    def share(self, *namespaces: Namespace) -> Self:
        """Use the caller's namespaces instead of new ones."""
        return self._with(new_namespaces=self._spec.new_namespaces - _namespaces(namespaces))

    def unshare(self, *namespaces: Namespace) -> Self:
        """Make new namespaces again; the default for all but "time"."""
        return self._with(new_namespaces=self._spec.new_namespaces | _namespaces(namespaces))

    def network(self, network: Network | Literal["none", "loopback", "host"], /) -> Self:
        """Choose the network: "loopback" is the default, "none" has nothing up, "host" is the caller's."""
        kind = network.kind if isinstance(network, Network) else network
        if kind not in {"none", "loopback", "host"}:
            raise ValueError(f'network must be "none", "loopback" or "host", got {network!r}')
        new = self._spec.new_namespaces
        return self._with(new_namespaces=new - {"net"} if kind == "host" else new | {"net"}, loopback=kind != "none")

    # ── privileges and filters ──

    def capabilities(self, keep: Iterable[str] = (), *, ambient: Iterable[str] = ()) -> Self:
        """Keep capabilities in the sandbox's own user namespace; by default there is none.

        What they allow ends at the sandbox: they count for its own namespaces. As everywhere, a program that is not
        executed by uid 0 has those that are ambient; uid 0 has all that are kept. With CAP_SYS_ADMIN the payload gets
        a user and mount namespace of its own, so that read-only binds stay read-only.

        Args:
            keep: Names, with or without CAP_: the bounding, permitted and inheritable sets.
            ambient: Those that every program executed has, too; kept in any case.
        """
        from sandbox.capabilities import capability_mask

        raised = capability_mask(ambient, "ambient")
        return self._with(keep=capability_mask(keep, "keep") | raised, ambient=raised)

    def seccomp(self, filter: "Filter | None", /) -> Self:
        """Use another filter of system calls; the default is `Filter.default()`.

        Args:
            filter: It replaces the one before. None: no filter, so the payload meets the kernel's whole surface;
                `enforced.gaps` says so.

        Raises:
            FilterError: It forbids execve, which is the first call that it would see; or with `observe()` it says
                Notify, for a filter has one supervisor.
            ValueError: None, with `observe()`.
        """
        if filter is None:
            return self._with(filter=None, filter_origin=".seccomp(None)")._observable()
        from sandbox.filters import Allow, Filter, Log, Notify, Trace

        if not isinstance(filter, Filter):
            raise TypeError(f"filter must be a Filter or None, not {type(filter).__name__}")
        verdict = filter.simulate("execve")
        if verdict not in {Allow, Log, Notify} and not isinstance(verdict, Trace):
            raise FilterError(
                f"the filter answers execve with {verdict!r}, so that no program could be started:"
                ' the first call that a sandbox makes under it is execve; say .allow("execve")'
            )
        return self._with(filter=filter, filter_origin=f".seccomp({filter!r})")._observable()

    def nesting(self) -> Self:
        """Let sandboxes be built inside: opens new namespaces and mounts, with what they reach in the kernel.

        Raises:
            ValueError: The filter is not the default one: it alone decides what is open.
        """
        if self._spec.filter not in {"default", "default-nesting"}:
            raise ValueError(
                "nesting() opens the default filter; with one of your own say Filter.default(nesting=True)"
            )
        return self._with(filter="default-nesting", filter_origin=".nesting()")

    def landlock(self, ruleset: "Landlock | EllipsisType | None" = ..., /, **rights: "Unpack[LandlockOptions]") -> Self:
        """Add a layer of access rules for files, ports and scopes; with None remove all of them.

        The paths are those inside, opened when the sandbox is set up.

        Args:
            ruleset: The rules, or None.
            **rights: The arguments of `Landlock`, instead of a ruleset.

        Raises:
            ValueError: Neither is given, or both are; more than 16 layers.
            UnsupportedError: At the launch: the kernel lacks what was asked for, and it is not best_effort.
        """
        from sandbox.landlock import MAX_LAYERS, Landlock

        if (ruleset is ...) != bool(rights):
            raise ValueError("landlock() takes a ruleset or its arguments: one of them, not both")
        if ruleset is None:
            return self._with(landlock=())
        layer = Landlock(**rights) if ruleset is ... else ruleset
        if not isinstance(layer, Landlock):
            raise TypeError(f"ruleset must be a Landlock or None, not {type(layer).__name__}")
        if len(self._spec.landlock) == MAX_LAYERS:
            raise ValueError(f"the kernel stacks at most {MAX_LAYERS} layers of Landlock")
        return self._with(landlock=(*self._spec.landlock, layer))

    def observe(self, enabled: bool = True) -> Self:
        """Watch what the filter refuses: `Process.denials` while it runs, `Result.denied` at the end.

        The answers stay those of the filter. A refused call takes longer, for it waits until it was seen.

        Args:
            enabled: False: as without the call.

        Raises:
            FilterError: The filter says Notify: it has a supervisor already.
            ValueError: There is no filter.
        """
        return self._with(observe=switch(enabled, "enabled"))._observable()

    def _observable(self) -> Self:
        filter = self._spec.filter
        if self._spec.observe and filter is None:
            raise ValueError("observe() watches what the filter refuses, and seccomp(None) leaves none")
        if self._spec.observe and not isinstance(filter, str | None) and notifies(filter.to_bytes()):
            raise FilterError("observe() answers for the filter, and this one says Notify: it has one supervisor")
        return self

    def time_offset(self, *, monotonic: float = 0.0, boottime: float = 0.0) -> Self:
        """Move the clocks that count from the boot, in a time namespace of the sandbox; implies unshare("time").

        Args:
            monotonic: Seconds to add to CLOCK_MONOTONIC; negative: earlier, but never before the boot.
            boottime: Likewise to CLOCK_BOOTTIME, and so to what uptime says.
        """
        clocks = {"monotonic": clock_offset(monotonic, "monotonic"), "boottime": clock_offset(boottime, "boottime")}
        return self._with(**clocks).unshare("time")

    # ── the process that looks after it ──

    def init(self, enabled: bool = True) -> Self:
        """Have a PID 1 that reaps and passes signals on; the default.

        Args:
            enabled: False: the command itself is PID 1. Nobody reaps but itself, and of signals it gets SIGKILL and
                SIGSTOP, and those that it handles. A process outside of the sandbox watches it: whoever kills that
                one kills the sandbox, and only a command that has given up its parent-death signal survives it.
        """
        return self._with(init=switch(enabled, "enabled"))

    def new_session(self, enabled: bool = True) -> Self:
        """Run in a session of its own; the default.

        Args:
            enabled: False: stay in the caller's session and process group, so that the caller's terminal controls
                it: Ctrl-C and Ctrl-Z reach it. It may then signal the caller and all of that group.
        """
        return self._with(new_session=switch(enabled, "enabled"))

    # ── limits ──

    def limit(
        self,
        *,
        memory: "Size | EllipsisType | None" = ...,
        swap: "Size | EllipsisType | None" = ...,
        pids: "int | EllipsisType | None" = ...,
        cpus: "float | EllipsisType | None" = ...,
        cpuset: "Iterable[int] | EllipsisType | None" = ...,
        io: "Mapping[str, Size] | EllipsisType | None" = ...,
        wall_time: "float | EllipsisType | None" = ...,
        cpu_time: "float | EllipsisType | None" = ...,
        open_files: "int | EllipsisType | None" = ...,
        file_size: "Size | EllipsisType | None" = ...,
        stack: "Size | EllipsisType | None" = ...,
        core: "Size | EllipsisType | None" = ...,
        output: "Size | EllipsisType | None" = ...,
        when_output_full: "Literal['kill', 'discard'] | EllipsisType" = ...,
        best_effort: bool = False,
    ) -> Self:
        """Limit what the command may use. Calls merge: what is left out stays as it was, None takes a limit away.

        Args:
            memory: Bytes of all processes together, files in memory included; beyond it the kernel kills.
            swap: Bytes of swap beyond `memory`; 0 unless said.
            pids: Most processes and threads at a time.
            cpus: Most processors' worth of time, 1.5 for example.
            cpuset: Numbers of the processors to run on.
            io: Rates of disks, a second: bytes by "read" and "write", requests by "read_ops" and "write_ops"; of all
                disks, or of one, as in {"write:/dev/sda": "10M"}.
            wall_time: Seconds that the program may run; then everything inside is killed.
            cpu_time: Seconds of CPU that one process may use, rounded up to whole ones; where another limit takes a
                control group, all processes together.
            open_files: Most open descriptors of one process.
            file_size: Most bytes of a file that it writes.
            stack: Bytes of a program's stack.
            core: Bytes of a core dump; 0, the default: none.
            output: Bytes of output that are taken, of stdout and stderr together.
            when_output_full: "kill" everything inside, or "discard" what is too much.
            best_effort: What this call asks for may be missing; `enforced.missing` then says so.

        Raises:
            UnsupportedError: At the launch: a limit cannot be had here, and it is not best_effort.
        """
        given = {name: value for name, value in locals().items() if name not in {"self", "best_effort"}}
        return self._with(limits=merged(self._spec.limits, given, best_effort=switch(best_effort, "best_effort")))

    # ── what the payload starts with ──

    def env(self, mapping: Mapping[str, str | None] = {}, /, **variables: str | None) -> Self:  # read only
        """Set variables of the environment, as dict.update does; None unsets one.

        Args:
            mapping: Names and values.
            **variables: The same, as keywords.

        Raises:
            TypeError: A name that is no str, a value that is neither str nor None.
            ValueError: An empty name, "=" in one, NUL anywhere.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must map str to str or None, not {type(mapping).__name__}")
        merged: dict[str, str] = dict(self._spec.env)
        for name, value in {**mapping, **variables}.items():
            if not isinstance(name, str) or not isinstance(value, str | None):
                raise TypeError(f"env must map str to str or None, got {name!r}: {value!r}")
            if not name or "=" in name or "\0" in name or (value is not None and "\0" in value):
                raise ValueError(f"env: a name must not be empty, nothing may hold NUL, a name no '=', got {name!r}")
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = value
        return self._with(env=tuple(merged.items()))

    def inherit_env(self, *names: str) -> Self:
        """Take variables over from the caller, with the values that they have now; all of them without a name.

        Args:
            *names: Those that the caller does not have are passed over.
        """
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"names must be str, not {type(name).__name__}")
        chosen = names or tuple(os.environ)
        return self.env({name: os.environ[name] for name in chosen if name in os.environ})

    def cwd(self, path: StrOrBytesPath) -> Self:
        """Start in a directory: an absolute path inside."""
        where = target_path(path, "path", root=True)
        return self._with(cwd=where, cwd_origin=f".cwd({quoted(where)})")

    def umask(self, mask: int) -> Self:
        """Set the umask: 0 to 0o777.

        Args:
            mask: Permissions that a new file does not get.
        """
        if isinstance(mask, bool) or not isinstance(mask, int):
            raise TypeError(f"mask must be an int, not {type(mask).__name__}")
        if not 0 <= mask <= 0o777:
            raise ValueError(f"mask must be between 0 and 0o777, got {mask:#o}")
        return self._with(umask=mask)

    # ── what will happen ──

    def plan(self, args: Args) -> Plan:
        """Return the system calls of a run, in order, before anything runs; `print` reads like strace.

        Args:
            args: The command.
        """
        who = caller(self._spec)
        argv, program = words_of(args)
        variant = Variant(python=is_this_python(program))
        if asks_group(self._spec.limits):
            variant = in_groups(self._spec, variant)[0]
        compiled = compile_plan(self._spec, who, variant._replace(shown=True))
        # Which fresh ids they will be, the launch decides.
        _, ids = values(self._spec, who, inside_ids(self._spec, who), compiled.idmaps, _EXAMPLE)
        env = Environment(dict(self._spec.env))
        return replace(compiled.plan, command=Command(argv, env.encoded, candidates(program, env.path), ids))


def _namespaces(names: tuple[str, ...]) -> set[str]:
    for name in names:
        if name not in NAMESPACES:
            raise ValueError(f"namespaces must be of {', '.join(map(quoted, NAMESPACES))}, got {name!r}")
    return set(names)
