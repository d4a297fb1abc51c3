"""`Sandbox`: says what a sandbox is, and runs commands in it.

Every method checks what it is given, and returns a new value. Nothing happens on the host before `run`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack

from sandbox import compiler
from sandbox.arguments import (
    MOST_CONTENT,
    Size,
    StrOrBytesPath,
    clock_offset,
    file_mode,
    host_name,
    id_number,
    integer,
    parse_size,
    path_text,
    quoted,
    source_path,
    target_path,
)
from sandbox.compiler import NAMESPACES, Dev, FileFrom, Namespace, Python, Spec, Variant, compile_plan
from sandbox.errors import FilterError
from sandbox.identity import MAX_COUNT, caller, inside_ids, values
from sandbox.kernel import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    NONE,
)
from sandbox.launcher import Launcher, in_groups, is_this_python
from sandbox.limits import asks_group, merged
from sandbox.plan import Command, Plan, candidates
from sandbox.rootfs import DEVICE_NODES, Bind, Dir, Entry, File, Mask, Readonly, Root, Symlink
from sandbox.runner import Args, Environment, Order, Runner, words_of
from sandbox.streams import Fd, Streams, descriptor

if TYPE_CHECKING:
    from types import EllipsisType

    from sandbox.filters import Filter
    from sandbox.landlock import Landlock, LandlockOptions
    from sandbox.process import Process
    from sandbox.process_async import Process_async


_EXAMPLE: Final = 0x70000000


class Network:
    """Which network a sandbox sees.

    Attributes:
        none: A network of its own, with nothing up.
        loopback: A network of its own, with its loopback up.
        host: The caller's.
    """

    __slots__ = ("kind",)
    none: "Network"
    loopback: "Network"
    host: "Network"

    def __init__(self, kind: Literal["none", "loopback", "host"]) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        """Compare by kind."""
        return isinstance(other, Network) and other.kind == self.kind

    def __hash__(self) -> int:
        """Hash by kind."""
        return hash((Network, self.kind))

    def __reduce__(self) -> tuple[type["Network"], tuple[str]]:
        """Pickle by kind."""
        return Network, (self.kind,)

    def __repr__(self) -> str:
        """Show the constant."""
        return f"Network.{self.kind}"


Network.none = Network("none")
Network.loopback = Network("loopback")
Network.host = Network("host")


class Sandbox(Runner):
    """A sandbox: what it has, what it may, and who it is. `Sandbox()` is safe by default.

    Without further words: new user, mount, pid, ipc, uts, net and cgroup namespaces; read-only /usr and the part of
    /etc that programs need; private /tmp, /dev and /proc; no network but its own loopback; stdin empty; a clean
    environment; no capability; no_new_privs; the default filter of system calls; no descriptor but 0, 1 and 2.

    A sandbox is a value: every method returns a new one, in the order written. It compares, hashes and pickles.
    """

    __slots__ = ("_launcher", "_spec")
    _spec: Spec

    def __init__(self) -> None:
        self._spec = Spec(entries=compiler.default_entries(empty=False), cwd=compiler.HOME)
        self._launcher = Launcher(self._spec)

    @staticmethod
    def empty() -> "Sandbox":
        """Return a sandbox with an empty root, all else as the default."""
        return Sandbox._of(Spec(entries=compiler.default_entries(empty=True)))

    @classmethod
    def _of(cls, spec: Spec) -> Self:
        self = cls.__new__(cls)
        self._spec = spec
        self._launcher = Launcher(spec)
        return self

    def _with(self, **changes: Any) -> Self:
        return self._of(self._spec._replace(**changes))

    def _add(self, entry: Entry | Dev | Python | FileFrom) -> Self:
        return self._with(entries=(*self._spec.entries, entry))

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
        return Sandbox._of, (self._spec,)

    def __repr__(self) -> str:
        """Show the builder calls that matter."""
        said = [e.origin for e in self._spec.entries if e.origin.startswith(".")]
        head = "Sandbox()" if any(isinstance(e, compiler.System) for e in self._spec.entries) else "Sandbox.empty()"
        return f"<{head}{''.join(dict.fromkeys(said))}>"

    # ── the root file system ──

    def rootfs(self, path: StrOrBytesPath, *, readonly: bool = True) -> Self:
        """Use a directory of the host as the whole root; /proc, /dev and /tmp of the default stay.

        Args:
            path: Directory of the host. It must have the directories that other calls mount on.
            readonly: Nothing below it can be written.

        Raises:
            ValueError: Not the first call that concerns the root.
        """
        source = source_path(path, "path")
        for entry in self._spec.entries:
            if entry.origin != "Sandbox()":
                raise ValueError(f"rootfs() replaces the whole root and must come before {entry.origin}")
        origin = f".rootfs({quoted(source)}{'' if readonly else ', readonly=False'})"
        kept = [entry for entry in self._spec.entries if not isinstance(entry, compiler.System)]
        return self._with(
            entries=(Root(source, readonly, origin), *kept),
            cwd=None if self._spec.cwd == compiler.HOME else self._spec.cwd,
        )

    def bind(
        self,
        source: StrOrBytesPath,
        target: StrOrBytesPath | None = None,
        *,
        optional: bool = False,
        exec: bool = True,
        dev: bool = False,
        owner: int | None = None,
    ) -> Self:
        """Make a file or directory of the host visible and writable; set-id bits never work.

        Args:
            source: Path of the host, made absolute now.
            target: Path inside; the same as the source when left out.
            optional: Skip it when the source does not exist.
            exec: Programs on it can be executed.
            dev: Device nodes on it work.
            owner: Who the payload is there, by an id of the host: what it writes is this user's, and what is this
                user's it may write. The owner of the source when left out; only root may say another, and root's own
                id counts only when it is said.
        """
        return self._bind("bind", source, target, optional, exec, dev, owner, NONE)

    def bind_readonly(
        self,
        source: StrOrBytesPath,
        target: StrOrBytesPath | None = None,
        *,
        optional: bool = False,
        exec: bool = True,
        dev: bool = False,
        owner: int | None = None,
    ) -> Self:
        """Make a file or directory of the host visible, read-only with whatever is mounted below it.

        Args:
            source: Path of the host, made absolute now.
            target: Path inside; the same as the source when left out.
            optional: Skip it when the source does not exist.
            exec: Programs on it can be executed.
            dev: Device nodes on it work.
            owner: Whose files the payload may read as its own, by an id of the host; nobody's when left out. Only
                root may say another than itself.
        """
        return self._bind("bind_readonly", source, target, optional, exec, dev, owner, MOUNT_ATTR_RDONLY)

    def _bind(
        self,
        method: str,
        source: StrOrBytesPath,
        target: StrOrBytesPath | None,
        optional: bool,
        exec: bool,
        dev: bool,
        owner: int | None,
        attributes: int,
    ) -> Self:
        path = source_path(source)
        where = target_path(path if target is None else target)
        attributes = MOUNT_ATTR_NOSUID | attributes
        if not exec:
            attributes = attributes | MOUNT_ATTR_NOEXEC
        if not dev:
            attributes = attributes | MOUNT_ATTR_NODEV
        words = [quoted(path)]
        if where != path:
            words.append(quoted(where))
        owner = id_number(owner, "owner")
        usual = (("optional", optional, False), ("exec", exec, True), ("dev", dev, False), ("owner", owner, None))
        words += [f"{word}={value}" for word, value, default in usual if value != default]
        origin = f".{method}({', '.join(words)})"
        return self._add(Bind(path, where, attributes, optional=optional, origin=origin, owner=owner))

    def tmpfs(
        self,
        target: StrOrBytesPath,
        *,
        size: Size | None = None,
        mode: int = 0o755,
        inodes: int | None = None,
        exec: bool = True,
    ) -> Self:
        """Mount an empty file system in memory, private to each run.

        Args:
            target: Path inside.
            size: Most bytes that it takes; half of the memory when left out.
            mode: Permissions of its root.
            inodes: Most files.
            exec: Programs on it can be executed.
        """
        where = target_path(target)
        limit = None if size is None else parse_size(size, "size")
        if inodes is not None and (isinstance(inodes, bool) or not isinstance(inodes, int) or inodes < 1):
            raise ValueError(f"inodes must be an int of at least 1, got {inodes!r}")
        origin = f".tmpfs({quoted(where)}{'' if limit is None else f', size={limit}'})"
        return self._add(
            compiler.tmpfs_entry(where, mode=file_mode(mode), size=limit, inodes=inodes, exec=exec, origin=origin)
        )

    def proc(
        self,
        target: StrOrBytesPath = "/proc",
        *,
        hidepid: bool = False,
        subset: Literal["pid"] | None = None,
    ) -> Self:
        """Mount a /proc of the sandbox's pid namespace.

        Args:
            target: Path inside.
            hidepid: Processes of other users are invisible.
            subset: "pid": nothing but the processes.
        """
        if subset not in {None, "pid"}:
            raise ValueError(f'subset must be None or "pid", got {subset!r}')
        where = target_path(target)
        return self._add(compiler.proc_entry(where, hidepid=hidepid, subset=subset, origin=f".proc({quoted(where)})"))

    def dev(
        self,
        target: StrOrBytesPath = "/dev",
        *,
        shm: Size | None = None,
        nodes: Iterable[str] = DEVICE_NODES,
    ) -> Self:
        """Make a minimal /dev: nodes of the host, a devpts instance of its own, shm, the standard links.

        Args:
            target: Path inside.
            shm: Most bytes that /dev/shm takes; half of the memory when left out.
            nodes: Names of nodes below the host's /dev, and "pts" and "shm", which are the sandbox's own.
        """
        where = target_path(target)
        if isinstance(nodes, str):
            raise TypeError("nodes must be names, not one str")
        names = tuple(nodes)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"nodes must be names, not {type(name).__name__}")
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name.split("/"):
                raise ValueError(f"nodes must be names below /dev, got {name!r}")
        if shm is not None and "shm" not in names:
            raise ValueError(f'shm is a size, and nodes must name "shm" then, got {names!r}')
        size = None if shm is None else str(parse_size(shm, "shm"))
        return self._add(Dev(where, size, names, f".dev({quoted(where)})"))

    def file(self, target: StrOrBytesPath, content: bytes | str, *, mode: int = 0o644) -> Self:
        """Put a file inside.

        Args:
            target: Path inside.
            content: What it holds; a str becomes UTF-8. At most 16 MiB.
            mode: Permissions.
        """
        where = target_path(target)
        if isinstance(content, str):
            content = content.encode()
        elif not isinstance(content, bytes):
            raise TypeError(f"content must be bytes or str, not {type(content).__name__}")
        if len(content) > MOST_CONTENT:
            raise ValueError(f"content must have at most 16 MiB, got {len(content)} bytes; bind a file instead")
        return self._add(File(where, content, file_mode(mode), f".file({quoted(where)})"))

    def file_fd(self, target: StrOrBytesPath, source: Fd, *, mode: int = 0o644) -> Self:
        """Put a file inside with what a descriptor holds, to its end: a pipe's or a file's.

        Such a value does not pickle.

        Args:
            target: Path inside.
            source: The descriptor, or what has a fileno(). It is read once, at the first launch, and stays the
                caller's. At most 16 MiB.
            mode: Permissions.
        """
        from sandbox.sources import DescriptorSource

        where = target_path(target)
        number = descriptor(source, "source")
        origin = f".file_fd({quoted(where)}, {number})"
        return self._add(FileFrom(where, DescriptorSource(source, origin), file_mode(mode), origin))

    def dir(self, target: StrOrBytesPath, *, mode: int = 0o755) -> Self:
        """Make a directory inside, and those above it.

        Args:
            target: Path inside.
            mode: Permissions.
        """
        where = target_path(target)
        return self._add(Dir(where, file_mode(mode), f".dir({quoted(where)})"))

    def symlink(self, points_to: StrOrBytesPath, target: StrOrBytesPath) -> Self:
        """Make a symbolic link inside; the order of os.symlink.

        Args:
            points_to: What it points to.
            target: Path of the link.
        """
        text = path_text(points_to, "points_to")
        if not text or "\0" in text:
            raise ValueError(f"points_to must be a path without NUL, got {points_to!r}")
        where = target_path(target)
        return self._add(Symlink(text, where, f".symlink({quoted(text)}, {quoted(where)})"))

    def mask(self, target: StrOrBytesPath) -> Self:
        """Hide what is at a path: an empty directory over a directory, /dev/null over anything else."""
        where = target_path(target)
        return self._add(Mask(where, f".mask({quoted(where)})"))

    def remount_readonly(self, target: StrOrBytesPath) -> Self:
        """Make what is visible at a path read-only, with whatever is mounted below it."""
        where = target_path(target)
        return self._add(Readonly(where, f".remount_readonly({quoted(where)})"))

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
            host_root=bool(host_root),
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

        Raises:
            FilterError: The filter says Notify: it has a supervisor already.
            ValueError: There is no filter.
        """
        return self._with(observe=bool(enabled))._observable()

    def _observable(self) -> Self:
        filter = self._spec.filter
        if self._spec.observe and filter is None:
            raise ValueError("observe() watches what the filter refuses, and seccomp(None) leaves none")
        if self._spec.observe and not isinstance(filter, str | None) and compiler.notifies(filter.to_bytes()):
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
        return self._with(init=bool(enabled))

    def new_session(self, enabled: bool = True) -> Self:
        """Run in a session of its own; the default.

        Args:
            enabled: False: stay in the caller's session and process group, so that the caller's terminal controls
                it: Ctrl-C and Ctrl-Z reach it. It may then signal the caller and all of that group.
        """
        return self._with(new_session=bool(enabled))

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
        return self._with(limits=merged(self._spec.limits, given, best_effort=bool(best_effort)))

    # ── what the payload starts with ──

    def env(self, mapping: Mapping[str, str | None] = {}, /, **variables: str | None) -> Self:  # read only
        """Set variables of the environment, as dict.update does; None unsets one."""
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
        """Take variables over from the caller, with the values that they have now; all of them without a name."""
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
        """Set the umask: 0 to 0o777."""
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
            raise ValueError(f"a namespace is one of {', '.join(NAMESPACES)}, got {name!r}")
    return set(names)
