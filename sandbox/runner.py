"""`Runner`: what can run a command, with the words of subprocess; and the launch of a compiled sandbox."""

import errno
import fcntl
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol, TypedDict, Unpack, overload

from sandbox import host, launch
from sandbox.compiler import (
    Caller,
    Compiled,
    Spec,
    Variant,
    compile_plan,
    compile_tree,
    filter_of,
    inside_ids,
    notifies,
)
from sandbox.errors import FilterError, SetupError, UnsupportedError
from sandbox.limits import refuse
from sandbox.plan import Command, Plan, Template, candidates, environment
from sandbox.process import DEVNULL, PIPE, STDOUT, Args, Process, Result, StrOrBytesPath, close_all, decoder, finish

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sandbox.rootfs import Tree


class HasFileno(Protocol):
    """Anything that stands for a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


Fd = int | HasFileno
Stream = int | HasFileno | IO[Any] | None


class LaunchOptions(TypedDict, total=False):
    """What every launch takes; public, so that wrappers can be typed."""

    stdin: Stream
    stdout: Stream
    stderr: Stream
    env: Mapping[str, str]
    cwd: StrOrBytesPath
    executable: StrOrBytesPath
    pass_fds: Iterable[int]
    fds: Mapping[int, Fd]


class RunOptions(LaunchOptions, total=False):
    """What `run` takes besides input and text."""

    capture_output: bool
    check: bool
    timeout: float | None


class PopenOptions(LaunchOptions, total=False):
    """What `popen` takes besides text."""


# Numbers that nobody hands out to people or containers: systemd's documentation lists them as unused.
_HOST_IDS: Final = range(1_879_048_192, 2_147_483_647)
_MAX_VARIANTS: Final = 16
_MAX_TREES: Final = 8
_PLAIN: Final = Variant()
_WORDS: Final = frozenset({PIPE, DEVNULL, STDOUT})


def caller(spec: Spec) -> Caller:
    """Return who launches.

    Raises:
        UnsupportedError: Root without the capabilities of root, who would map host uid 0.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        kept = set(os.getgroups()) - {gid}
        if spec.strict_groups and kept:
            raise UnsupportedError(
                'user(groups="strict")',
                needed="CAP_SETGID in the caller's user namespace, to drop its supplementary groups",
                found=f"an unprivileged caller in the groups {', '.join(map(str, sorted(kept)))}",
                fix="launch as root, or from a process without supplementary groups",
                errno=errno.EPERM,
            )
        return Caller(uid, gid, privileged=False)
    from sandbox.primitives.capabilities import Capability, capget

    needed = Capability.SETUID.mask | Capability.SETGID.mask | Capability.SYS_ADMIN.mask
    if needed & ~capget().effective:
        if spec.host_root:
            return Caller(uid, gid, privileged=False)
        raise UnsupportedError(
            "a sandbox launched by uid 0 without root's capabilities",
            needed="CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN, to give the sandbox another host uid than 0",
            found="uid 0 without them",
            fix="run as another user, or say user(host_root=True)",
            errno=errno.EPERM,
        )
    if spec.host_root and _setgroups_denied():
        return Caller(uid, gid, privileged=False)
    return Caller(uid, gid, privileged=True)


def _setgroups_denied() -> bool:
    """Say whether this user namespace was made by an unprivileged user, as that of a rootless container."""
    with open("/proc/self/setgroups") as stream:
        return stream.read() == "deny\n"


def words_of(args: Args, executable: StrOrBytesPath | None = None) -> tuple[tuple[bytes, ...], bytes]:
    """Encode a command; return its words and the program to execute.

    Raises:
        TypeError: args is one string, or holds what is no path.
        ValueError: args is empty, or something holds a NUL byte.
    """
    if isinstance(args, str | bytes | os.PathLike):
        raise TypeError(f"args must be a sequence of words, not one {type(args).__name__}: there is no shell")
    argv = tuple(map(os.fsencode, args))
    if not argv:
        raise ValueError("args must hold at least the program")
    program = argv[0] if executable is None else os.fsencode(executable)
    if not program:
        raise ValueError("the program's name is empty")
    if any(b"\0" in word for word in argv) or b"\0" in program:
        raise ValueError(f"args must not hold a NUL byte, got {args!r}")
    return argv, program


class Environment:
    """Variables, encoded once."""

    __slots__ = ("encoded", "path")

    def __init__(self, variables: Mapping[str, str]) -> None:
        if not isinstance(variables, Mapping):
            raise TypeError(f"env must be a mapping, not {type(variables).__name__}")
        self.encoded = environment(variables)
        self.path = variables.get("PATH", "/usr/bin:/bin")


class _Ready:
    """A compiled plan with all that a launch needs beside it."""

    __slots__ = ("compiled", "template", "tree")

    def __init__(self, compiled: Compiled, tree: "launch.Kept | None") -> None:
        self.compiled = compiled
        self.template = Template(compiled.plan)
        self.tree = tree


class _Cache:
    """What was compiled of one Sandbox for one caller."""

    __slots__ = ("env", "gid", "inside", "missing", "ready", "stamp", "uid", "who")

    def __init__(self, spec: Spec, uid: int, gid: int, stamp: int) -> None:
        self.uid, self.gid, self.stamp = uid, gid, stamp
        self.missing = refuse(spec.limits)
        self.who = caller(spec)
        self.inside = inside_ids(spec, self.who)
        self.env = Environment(dict(spec.env))
        # How often a variant was launched, then what serves it from the second time on.
        self.ready: dict[Variant, _Ready | None] = {}


class _Trees:
    """Root trees that were built once, as detached mounts; the least recently used is given up."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Tree, Caller], launch.Kept] = {}

    def get(self, tree: "Tree", who: Caller) -> "launch.Kept | None":
        """Return a tree's descriptor; None when this kernel cannot clone detached trees."""
        with launch.kept_lock:
            return self._get((tree, who))

    def _get(self, key: "tuple[Tree, Caller]") -> "launch.Kept | None":
        tree, who = key
        kept = self._kept.pop(key, None)
        if kept is None or not kept.valid():
            ids = (
                ("uid_map", f"{who.uid} {who.uid} 1\n".encode()),
                ("gid_map", f"{who.gid} {who.gid} 1\n".encode()),
            )
            try:
                (fd,) = launch.build(Template(compile_tree(tree, who)), Command(values=ids))
            except SetupError:
                # Before Linux 6.15; or a cause that the launch itself will meet and report.
                return None
            kept = launch.Kept(fd)
            # A file system that is gone may leave its device number, too, to this one.
            for other in self._kept.values():
                if other.fd == fd:
                    other.fd = -1
        self._kept[key] = kept
        while len(self._kept) > _MAX_TREES:
            self._kept.pop(next(iter(self._kept))).close()
        return kept


_trees = _Trees()
# Where to begin: not where another process of this host begins.
_next_id = int.from_bytes(os.urandom(4), "little") >> 5


def _host_ids() -> range:
    """Return the ids to choose from: all of this user namespace's when it has fewer than the usual ones."""
    ends = []
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as stream:
            extents = [tuple(map(int, line.split())) for line in stream]
        ends.append(max((start + count for start, _, count in extents), default=0))
    end = min(ends)
    if end > _HOST_IDS.stop:
        return _HOST_IDS
    if end < 2000:
        raise UnsupportedError(
            "a fresh host uid for the sandbox",
            needed="a range of ids in /proc/self/uid_map and gid_map",
            found=f"ids up to {end - 1} only",
            fix="give the outer container a range of ids, or say user(host_root=True)",
            errno=errno.EPERM,
        )
    return range(end // 2, end - 1)


def _claim_host_id() -> tuple[int, int]:
    """Choose an id that no other sandbox on this host has now; return it with the socket that holds it."""
    global _next_id
    ids = _host_ids_cached()
    for _ in range(1000):
        _next_id += 1
        number = ids[_next_id % len(ids)]
        fd = launch.claim(f"sandbox-uid-{number}")
        if fd is not None:
            return number, fd
    raise UnsupportedError("a fresh host uid", needed="a free one", found="a thousand in a row are taken")


_ids: tuple[int, range] | None = None


def _host_ids_cached() -> range:
    global _ids
    pid = os.getpid()
    if _ids is None or _ids[0] != pid:
        _ids = pid, _host_ids()
    return _ids[1]


def _compiled(cache: _Cache, spec: Spec, variant: Variant) -> Compiled:
    compiled = compile_plan(spec, cache.who, variant)
    if not cache.missing:
        return compiled
    return compiled._replace(layers=compiled.layers._replace(missing=compiled.layers.missing + cache.missing))


def _prepare(cache: _Cache, spec: Spec, variant: Variant) -> _Ready:
    """Compile a variant; the second launch of it builds the tree that all later ones clone."""
    compiled = _compiled(cache, spec, variant)
    if variant not in cache.ready:
        if len(cache.ready) >= _MAX_VARIANTS:
            cache.ready.clear()
        # One launch alone does not pay for a tree that is kept.
        cache.ready[variant] = None
        return _Ready(compiled, None)
    tree = _trees.get(compiled.tree, cache.who) if compiled.tree.nodes else None
    if tree is not None:
        compiled = _compiled(cache, spec, variant._replace(cached_tree=True))
    ready = cache.ready[variant] = _Ready(compiled, tree)
    return ready


def _renumber(error: SetupError, made: Plan, shown: Plan) -> None:
    """Give an error of a launch that cloned its tree the number that the step has in `plan()`, which builds it."""
    if error.step:
        failed = made.steps[error.step - 1]
        for step in shown.steps:
            if (step.segment, step.origin, str(step)) == (failed.segment, failed.origin, str(failed)):
                error.step, error.steps = step.number, len(shown.steps)
                return


def _supervise(process: Process[Any], spec: Spec, who: Caller) -> None:
    """Give a process the object that answers for its filter."""
    listener, process.listener = process.listener, -1
    if spec.observe:
        from sandbox.denials import Denials

        process.denials = Denials(listener, filter_of(spec, who))
    else:
        from sandbox.notify import Notifier

        process.notifier = Notifier(listener)


def _prepared(cache: _Cache, spec: Spec, variant: Variant) -> tuple[_Ready, int]:
    """Return what serves a launch, with a copy of its tree's descriptor, -1 for none, for the caller to close."""
    ready = cache.ready.get(variant)
    while True:
        if ready is None:
            ready = _prepare(cache, spec, variant)
        if ready.tree is None:
            return ready, -1
        tree = ready.tree.copy()
        if tree is not None:
            return ready, tree
        ready = None  # given up, or closed by the caller: made again


class _Streams:
    """The payload's descriptors 0, 1 and 2, and the caller's ends of pipes."""

    def __init__(self) -> None:
        self.ours: list[int] = []  # closed when the launch is over
        self.pipes: list[int] = []  # those of them that are pipes
        self.parent: dict[str, int] = {}
        self.child: list[int] = []

    def add(self, name: str, stream: Stream) -> None:
        if stream is None:
            number = {"stdin": 0, "stdout": 1, "stderr": 2}[name]
            # A caller who has closed its own has nothing to hand on.
            self.child.append(number if _is_open(number) else self._null())
        elif isinstance(stream, int) and stream == PIPE:
            read_end, write_end = map(_above, os.pipe())
            mine, theirs = (write_end, read_end) if name == "stdin" else (read_end, write_end)
            self.parent[name] = mine
            self.ours.append(theirs)
            self.pipes.append(theirs)
            self.child.append(theirs)
        elif isinstance(stream, int) and stream == DEVNULL:
            self.child.append(self._null())
        elif isinstance(stream, int) and stream == STDOUT:
            if name != "stderr":
                raise ValueError("STDOUT can only be used for stderr")
            self.child.append(self.child[1])
        else:
            self.child.append(_fd(stream, name))

    def _null(self) -> int:
        fd = _above(os.open(os.devnull, os.O_RDWR))
        self.ours.append(fd)
        return fd

    def give_pipes(self, uid: int, gid: int) -> None:
        """Let the payload's user open /dev/stdout: a pipe made by root is root's alone."""
        for fd in self.pipes:
            os.fchown(fd, uid, gid)

    def close_child(self) -> None:
        for fd in self.ours:
            os.close(fd)
        self.ours = []

    def close_parent(self) -> None:
        for fd in self.parent.values():
            os.close(fd)
        self.parent = {}


def _above(fd: int) -> int:
    """Move a descriptor of ours out of the way of the standard streams, should the caller have closed those."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _fd(stream: Any, name: str) -> int:
    if isinstance(stream, bool) or not (isinstance(stream, int) or hasattr(stream, "fileno")):
        raise TypeError(f"{name} must be a descriptor, a file, PIPE, DEVNULL or None, not {type(stream).__name__}")
    fd: int = stream if isinstance(stream, int) else stream.fileno()
    if fd < 0:
        raise ValueError(f"{name} must be a descriptor of at least 0, got {fd}")
    # A closed number could become one of the launch's own before the payload gets it.
    fcntl.fcntl(fd, fcntl.F_GETFD)
    return fd


def _extra_fds(pass_fds: Iterable[int], fds: Mapping[int, Fd]) -> dict[int, int]:
    extra = {fd: _fd(fd, "pass_fds") for fd in pass_fds} | {
        inside: _fd(outside, "fds") for inside, outside in fds.items()
    }
    for inside in extra:
        if isinstance(inside, bool) or not isinstance(inside, int):
            raise TypeError(f"fds must map numbers to descriptors, got {inside!r}")
        if not 3 <= inside < 1 << 20:
            raise ValueError(f"a descriptor's number inside must be at least 3 and below 2**20, got {inside}")
    return dict(sorted(extra.items()))


class Runner:
    """What can run a command: each run is a new sandbox."""

    __slots__ = ()
    _spec: Spec
    _cache: Any

    def _start(
        self,
        args: Args,
        streams: _Streams,
        *,
        env: Mapping[str, str] | None = None,
        cwd: StrOrBytesPath | None = None,
        executable: StrOrBytesPath | None = None,
        pass_fds: Iterable[int] = (),
        fds: Mapping[int, Fd] = {},  # read only
        plan: Plan | None = None,
    ) -> Process[Any]:
        """Launch; the caller's ends in `streams` become the caller's business."""
        spec = self._spec
        argv, program = words_of(args, executable)
        extra = _extra_fds(pass_fds, fds) if pass_fds or fds else {}
        inside_cwd = None
        if cwd is not None:
            inside_cwd = os.fsdecode(cwd)
            if not inside_cwd.startswith("/"):
                raise ValueError(f"cwd must be an absolute path inside, got {cwd!r}")
        cache: _Cache | None = self._cache
        uid, gid, stamp = os.geteuid(), os.getegid(), host.stamp()
        if cache is None or cache.uid != uid or cache.gid != gid or cache.stamp != stamp:
            cache = self._cache = _Cache(spec, uid, gid, stamp)
        variables = cache.env if env is None else Environment(env)
        variant = Variant(tuple(extra), cwd=inside_cwd) if extra or inside_cwd is not None else _PLAIN
        ready, tree = _prepared(cache, spec, variant)
        compiled, template = ready.compiled, ready.template
        if plan is not None:
            compiled, template = compile_plan(spec, cache.who, variant), Template(plan)
        slots = [-1] * template.slots
        slots[3:6] = streams.child
        for number, slot in compiled.fd_slots.items():
            slots[slot.number] = extra[number]
        if compiled.tree_slot is not None:
            slots[compiled.tree_slot.number] = tree
        claimed = -1
        try:
            if cache.who.privileged and not spec.host_root:
                uid, claimed = _claim_host_id()
                gid = uid
                slots[2] = claimed
                streams.give_pipes(uid, gid)
            inside_uid, inside_gid = cache.inside
            values = (
                ("uid_map", b"%d %d 1\n" % (inside_uid, uid)),
                ("gid_map", b"%d %d 1\n" % (inside_gid, gid)),
                ("host_uid", uid),
                ("host_gid", gid),
            )
            command = Command(argv, variables.encoded, candidates(program, variables.path), values)
            process = launch.start(template, command, args, slots, compiled.layers, compiled.listens)
        except SetupError as error:
            # Facts of the host may have changed since the plan was compiled.
            self._cache = None
            if compiled.tree_slot is not None:
                _renumber(error, compiled.plan, compile_plan(spec, cache.who, variant).plan)
            raise
        finally:
            close_all([fd for fd in (claimed, tree) if fd >= 0])
        if compiled.listens:
            _supervise(process, spec, cache.who)
        return process

    @overload
    def run(
        self,
        args: Args,
        *,
        text: Literal[True],
        input: str | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> Result[str]: ...
    @overload
    def run(
        self,
        args: Args,
        *,
        encoding: str,
        input: str | None = None,
        text: Literal[True] | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> Result[str]: ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: "Buffer | None" = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[RunOptions],
    ) -> Result[bytes]: ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> Result[Any]: ...
    def run(
        self,
        args: Args,
        *,
        input: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Any,
    ) -> Result[Any]:
        """Run a command in a new sandbox and wait for it, as `subprocess.run` does.

        Args:
            args: Program and arguments; the program is looked up on the sandbox's PATH, inside.
            input: Sent to stdin.
            text: Streams are str, not bytes.
            encoding: Of the streams; implies text.
            errors: How to decode; implies text.
            stdin: A descriptor, a file, PIPE, DEVNULL (the default) or None: the caller's.
            stdout: Likewise; the caller's when left out.
            stderr: Likewise, or STDOUT.
            capture_output: Both are pipes, and in the result.
            timeout: Seconds of the caller's patience; then the whole tree is killed.
            check: Raise when the exit status is not 0.
            **options: env (replaces the environment), cwd, executable, pass_fds, fds {inside: outside}.

        Returns:
            A CompletedProcess with reason, usage and what was enforced.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
            TimeoutExpired: The timeout passed.
            CalledProcessError: check=True, and it failed.
        """
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr arguments may not be used with capture_output")
            stdout = stderr = PIPE
        is_text = bool(text) or encoding is not None or errors is not None
        data = None
        if input is not None:
            if stdin not in {DEVNULL, PIPE}:
                raise ValueError("stdin and input arguments may not both be used")
            stdin = PIPE
            data = input.encode(encoding or "utf-8", errors or "strict") if isinstance(input, str) else input
            if is_text != isinstance(input, str):
                raise TypeError("input must be str with text, and bytes without")
        if not self._spec.observe and self._asks():
            raise FilterError(
                "this filter says Notify, and run() leaves nobody to answer: use popen() and its notifier"
            )
        process = self._open(args, stdin, stdout, stderr, 0, None, options)
        result = finish(process, data, timeout, decoder(encoding, errors) if is_text else None)
        if check:
            result.check_returncode()
        return result

    def _asks(self) -> bool:
        """Say whether the filter has questions for a supervisor."""
        return not isinstance(self._spec.filter, str | None) and notifies(self._spec.filter.to_bytes())

    def _open(
        self,
        args: Args,
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        bufsize: int,
        text: Callable[[Any], Any] | None,
        options: Mapping[str, Any],
    ) -> Process[Any]:
        """Launch with streams; the caller's ends of pipes become the process's files."""
        for name in options:
            if name not in _OPTIONS:
                raise TypeError(f"unexpected keyword argument {name!r}")
        given = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        # First of all: a pipe of ours must not take the number of a descriptor that the caller has closed.
        for name, stream in given.items():
            if stream is not None and not (isinstance(stream, int) and stream in _WORDS):
                _fd(stream, name)
        if "pass_fds" in options or "fds" in options:
            options = {**options, "pass_fds": tuple(options.get("pass_fds", ()))}
            _extra_fds(options["pass_fds"], options.get("fds", {}))
        streams = _Streams()
        try:
            for name, stream in given.items():
                streams.add(name, stream)
            if stdout is None and sys.stdout is not None:
                sys.stdout.flush()
            process = self._start(args, streams, **options)
        except BaseException:
            streams.close_parent()
            raise
        finally:
            streams.close_child()
        for name, fd in streams.parent.items():
            file: Any = io.FileIO(fd, "w" if name == "stdin" else "r")
            if bufsize:
                size = bufsize if bufsize > 1 else io.DEFAULT_BUFFER_SIZE
                file = io.BufferedWriter(file, size) if name == "stdin" else io.BufferedReader(file, size)
            setattr(process, name, file if text is None else text(file))
        return process

    @overload
    def popen(
        self,
        args: Args,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        **options: Unpack[PopenOptions],
    ) -> Process[str]: ...
    @overload
    def popen(
        self,
        args: Args,
        *,
        encoding: str,
        text: Literal[True] | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        **options: Unpack[PopenOptions],
    ) -> Process[str]: ...
    @overload
    def popen(
        self,
        args: Args,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        bufsize: int = -1,
        **options: Unpack[PopenOptions],
    ) -> Process[bytes]: ...
    def popen(
        self,
        args: Args,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        **options: Any,
    ) -> Process[Any]:
        """Start a command in a new sandbox, as `subprocess.Popen` does; return when its program was executed.

        Args:
            args: Program and arguments; the program is looked up on the sandbox's PATH, inside.
            text: Streams are str, not bytes.
            encoding: Of the streams; implies text.
            errors: How to decode; implies text.
            bufsize: Of the pipes: 0 unbuffered, 1 line by line (text), -1 the usual size.
            stdin: A descriptor, a file, PIPE, DEVNULL (the default) or None: the caller's.
            stdout: Likewise; the caller's when left out.
            stderr: Likewise, or STDOUT.
            **options: env, cwd, executable, pass_fds, fds as in `run`.

        Raises:
            SetupError: It could not be launched; the payload never ran, and nothing is left.
        """
        wrap = None
        if text or encoding is not None or errors is not None:

            def wrap(file: Any) -> Any:
                return io.TextIOWrapper(
                    file,
                    encoding=encoding,
                    errors=errors,
                    line_buffering=bufsize == 1,
                    write_through=bufsize == 0,
                )

            if bufsize == 0:
                bufsize = -1
        process = self._open(args, stdin, stdout, stderr, bufsize, wrap, options)
        if wrap is not None:
            process._decode = decoder(encoding, errors)
        return process


_OPTIONS: Final = frozenset({"env", "cwd", "executable", "pass_fds", "fds", "plan"})
