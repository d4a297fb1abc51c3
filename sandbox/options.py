"""The options of the command line: each is a method of `Sandbox`, and their order is kept.

One table says it all: what an option is called, what it takes, what it does and how the help describes it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, cast, get_args

from sandbox.arguments import process_name
from sandbox.builder import Sandbox

Subcommand = Literal["run", "shell", "plan", "exec", "list", "stop", "kill"]
_MOST: Final = 16 << 20
SUBCOMMANDS: Final[tuple[Subcommand, ...]] = get_args(Subcommand)
# Those that are about a sandbox that runs, and of these the ones that take its NAME.
NAMED: Final[tuple[Subcommand, ...]] = ("exec", "list", "stop", "kill")
NAMING: Final[tuple[Subcommand, ...]] = ("exec", "stop", "kill")
# Whose options these are: of all that describe a sandbox, that make one, that run a command.
DESCRIBES: Final[tuple[Subcommand, ...]] = ("run", "shell", "plan")
_MAKES: Final[tuple[Subcommand, ...]] = ("run", "shell")
_STARTS: Final[tuple[Subcommand, ...]] = (*DESCRIBES, "exec")
_RUNS: Final[tuple[Subcommand, ...]] = (*_MAKES, "exec")


class OptionError(ValueError):
    """The command line says something wrong; the message is for the person who typed it."""


class Draft:
    """What the options have said so far.

    Attributes:
        box: The sandbox.
        user: Keyword arguments of `Sandbox.user`, which takes them together.
        landlock: Those of `Landlock`: all such options together are one layer.
        capabilities: Those of `Sandbox.capabilities`.
        limits: Those of `Sandbox.limit`.
        timeout: Seconds, or None.
        format: Of the plan.
        tty: The command gets a terminal of its own.
        filter_output: What it says to the caller's terminal is filtered.
        name: Of the sandbox, for others to reach it.
        variables: What was said about the environment; None unsets.
        grace: Seconds that a command has to end.
        style: Of a list: a table, json or names.
        command: Program and arguments.
    """

    def __init__(self) -> None:
        self.start = self.box = Sandbox()
        self.user: dict[str, Any] = {}
        self.landlock: dict[str, Any] = {}
        self.capabilities: dict[str, list[str]] = {"keep": [], "ambient": []}
        self.limits: dict[str, Any] = {}
        self.timeout: float | None = None
        self.format = "text"
        self.tty = False
        self.filter_output = False
        self.name: str | None = None
        self.variables: dict[str, str | None] = {}
        self.grace = 10.0
        self.style = "table"
        self.command: list[str] = []


class Option:
    """One option.

    Args:
        name: With its dashes.
        value: What it takes, as the help shows it; "" for nothing; "[=X]" for what can only follow an equals sign.
        text: What the help says.
        apply: Does it.
        of: The subcommands that have it.
        short: One letter with a dash, too.
    """

    __slots__ = ("apply", "name", "of", "short", "text", "value")

    def __init__(
        self,
        name: str,
        value: str,
        text: str,
        apply: Callable[[Draft, str], None],
        of: tuple[Subcommand, ...] = DESCRIBES,
        short: str = "",
    ) -> None:
        self.name = name
        self.value = value
        self.text = text
        self.apply = apply
        self.of = of
        self.short = short

    def belongs_to(self, subcommand: Subcommand) -> bool:
        """Say whether a subcommand has this option."""
        return subcommand in self.of


# ── the words of a value ─────────────────────────────────────────────────────────────────────────────────────────────


def cut(text: str, separator: str) -> tuple[str, str | None]:
    """Cut at the first separator that no backslash precedes; neither part is unescaped."""
    escaped = False
    for i, letter in enumerate(text):
        if letter == separator and not escaped:
            return text[:i], text[i + 1 :]
        escaped = letter == "\\" and not escaped
    return text, None


def plain(text: str) -> str:
    r"""Take away the backslashes that made `:`, `=` and `\` plain text; any other backslash is one."""
    result = ""
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            following = next(letters, "")
            letter = following if following and following in ":=\\" else letter + following
        result += letter
    return result


def fields(text: str, most: int) -> list[str]:
    """Split at colons into at most so many parts, and make them plain; missing ones are empty.

    Raises:
        OptionError: There are more.
    """
    parts = []
    rest: str | None = text
    while rest is not None:
        part, rest = cut(rest, ":")
        parts.append(plain(part))
    if len(parts) > most:
        raise OptionError(f"{text!r} has {len(parts)} parts where at most {most} are taken")
    return parts + [""] * (most - len(parts))


def _flags(text: str, names: Sequence[str]) -> dict[str, str]:
    """Read words between commas, some with a value."""
    found = {}
    for word in text.split(",") if text else ():
        name, equals, value = word.partition("=")
        if name + equals not in names:
            known = ", ".join(name + "..." if name.endswith("=") else name for name in names)
            raise OptionError(f"{word!r} is none of {known}")
        found[name] = value
    return found


def number(text: str, what: str, base: int = 10) -> int:
    """Read a number.

    Raises:
        OptionError: It is none.
    """
    try:
        return int(text, base)
    except ValueError:
        kind = "an octal number" if base == 8 else "a number"
        raise OptionError(f"{what} must be {kind}, got {text!r}") from None


# ── what the options do ──────────────────────────────────────────────────────────────────────────────────────────────


def _bind(method: Literal["bind", "bind_readonly"]) -> Callable[[Draft, str], None]:
    def apply(draft: Draft, value: str) -> None:
        source, target, words = fields(value, 3)
        flags = _flags(words, ("optional", "noexec", "dev", "owner="))
        bind = getattr(draft.box, method)
        draft.box = bind(
            source,
            target or None,
            optional="optional" in flags,
            exec="noexec" not in flags,
            dev="dev" in flags,
            owner=number(flags["owner"], "owner") if "owner" in flags else None,
        )

    return apply


def _rootfs(draft: Draft, value: str) -> None:
    path, words = fields(value, 2)
    draft.box = draft.box.rootfs(path, readonly="rw" not in _flags(words, ("rw",)))


def _empty(draft: Draft, _: str) -> None:
    if draft.box != draft.start:
        raise OptionError("must come first: it starts from nothing")
    draft.box = Sandbox.empty()


def _tmpfs(draft: Draft, value: str) -> None:
    target, words = fields(value, 2)
    size, comma, rest = words.partition(",")
    if not size[:1].isdigit():
        size, rest = "", words
    elif comma and not rest:
        raise OptionError("something must follow the comma")
    flags = _flags(rest, ("mode=", "inodes=", "noexec"))
    draft.box = draft.box.tmpfs(
        target,
        size=size or None,
        mode=number(flags["mode"], "mode", 8) if "mode" in flags else 0o755,
        inodes=number(flags["inodes"], "inodes") if "inodes" in flags else None,
        exec="noexec" not in flags,
    )


def _proc(draft: Draft, value: str) -> None:
    target, words = fields(value, 2)
    flags = _flags(words, ("hidepid", "subset="))
    subset = cast(Literal["pid"] | None, flags.get("subset"))
    draft.box = draft.box.proc(target or "/proc", hidepid="hidepid" in flags, subset=subset)


def _dev(draft: Draft, value: str) -> None:
    target, words = fields(value, 2)
    draft.box = draft.box.dev(target or "/dev", shm=_flags(words, ("shm=",)).get("shm"))


def _file(draft: Draft, value: str) -> None:
    place, content = cut(value, "=")
    if content is None:
        raise OptionError("takes DST=TEXT or DST=@FILE")
    target, mode = fields(place, 2)
    if content.startswith("@@"):
        data = os.fsencode(content[1:])
    elif content.startswith("@"):
        with open(content[1:], "rb") as stream:
            data = stream.read(_MOST + 1)  # the builder refuses more; /dev/zero has no end
    else:
        data = os.fsencode(content)
    draft.box = draft.box.file(target, data, mode=number(mode, "the mode", 8) if mode else 0o644)


def _file_fd(draft: Draft, value: str) -> None:
    source, target, mode = fields(value, 3)
    if not target:
        raise OptionError("takes FD:DST")
    draft.box = draft.box.file_fd(target, number(source, "FD"), mode=number(mode, "the mode", 8) if mode else 0o644)


def _dir(draft: Draft, value: str) -> None:
    target, mode = fields(value, 2)
    draft.box = draft.box.dir(target, mode=number(mode, "the mode", 8) if mode else 0o755)


def _symlink(draft: Draft, value: str) -> None:
    points_to, target = fields(value, 2)
    if not target:
        raise OptionError("takes TO:DST, the order of ln -s")
    draft.box = draft.box.symlink(points_to, target)


def _user(draft: Draft, value: str) -> None:
    uid, colon, gid = value.partition(":")
    draft.user["uid"] = number(uid, "UID")
    draft.user["gid"] = number(gid, "GID") if colon else None


def _id_ranges(draft: Draft, value: str) -> None:
    draft.box = draft.box.id_ranges(number(value, "the count")) if value else draft.box.id_ranges()


def _vary(draft: Draft, variables: Mapping[str, str | None]) -> None:
    draft.box = draft.box.env(variables)
    draft.variables.update(variables)


def _env(draft: Draft, value: str) -> None:
    name, equals, content = value.partition("=")
    if equals:
        _vary(draft, {name: content})
    else:
        _inherit_env(draft, name)


def _timeout(draft: Draft, value: str) -> None:
    try:
        draft.timeout = float(value)
    except ValueError:
        draft.timeout = -1
    if not 0 < draft.timeout < 1e9:
        raise OptionError(f"takes seconds, more than 0 and less than a billion, got {value!r}")


def _grace(draft: Draft, value: str) -> None:
    draft.grace = _real(value)
    if not 0 <= draft.grace < 1e6:
        raise OptionError(f"takes seconds, 0 or more and less than a million, got {value!r}")


def _name(draft: Draft, value: str) -> None:
    draft.name = process_name(value)


def _style(name: str) -> Callable[[Draft, str], None]:
    return lambda draft, _: setattr(draft, "style", name)


def _format(draft: Draft, value: str) -> None:
    if value not in {"text", "json", "svg"}:
        raise OptionError(f"is text, json or svg, got {value!r}")
    draft.format = value


def _tty(draft: Draft, _: str) -> None:
    draft.tty = True


def _filter_output(draft: Draft, _: str) -> None:
    draft.tty = draft.filter_output = True


def _set(**changes: Any) -> Callable[[Draft, str], None]:
    return lambda draft, _: draft.user.update(changes)


def _method(name: str, *, listed: bool = False) -> Callable[[Draft, str], None]:
    """Return what calls a method of the builder with the value itself, or with the words between its commas."""

    def apply(draft: Draft, value: str) -> None:
        draft.box = getattr(draft.box, name)(*(value.split(",") if listed else (value,)))

    return apply


def _inherit_env(draft: Draft, value: str) -> None:
    names = value.split(",") if value else os.environ
    _vary(draft, {name: os.environ[name] for name in names if name in os.environ})


def _unset_env(draft: Draft, value: str) -> None:
    _vary(draft, {value: None})


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"takes a number, got {text!r}") from None


def _clock(draft: Draft, value: str) -> None:
    offsets = _flags(value, ("monotonic=", "boottime="))
    draft.box = draft.box.time_offset(**{name: _real(one) for name, one in offsets.items()})


def _plainly(name: str, *arguments: Any) -> Callable[[Draft, str], None]:
    """Return what calls a method of the builder with no value of the user's."""

    def apply(draft: Draft, _: str) -> None:
        draft.box = getattr(draft.box, name)(*arguments)

    return apply


def _umask(draft: Draft, value: str) -> None:
    draft.box = draft.box.umask(number(value, "the mask", 8))


def _seccomp(draft: Draft, value: str) -> None:
    if value == "none":
        draft.box = draft.box.seccomp(None)
        return
    from sandbox.compiler.filters import notifies
    from sandbox.filters.sources import read_filter

    filter = read_filter(value)
    if notifies(filter.to_bytes()):
        raise OptionError("this filter asks a supervisor (Notify), and a command line has none")
    draft.box = draft.box.seccomp(filter)


def _landlock(draft: Draft, value: str) -> None:
    word, equals, rest = value.partition("=")
    if value in {"best-effort", "best_effort"}:
        draft.landlock["best_effort"] = True
        return
    kind = word.replace("-", "_")
    if kind not in _LANDLOCK or not equals:
        raise OptionError(f"takes KIND=VALUE,..., a kind being {', '.join(_LANDLOCK)}; or best-effort")
    words: list[Any] = rest.split(",") if rest else []
    if kind.endswith(("_tcp", "_udp")):
        words = [number(one, "a port") for one in words]
    draft.landlock.setdefault(kind, []).extend(words)


_LANDLOCK: Final = ("read", "write", "execute", "bind_tcp", "connect_tcp", "bind_udp", "connect_udp", "scope")


def _capabilities(which: Literal["keep", "ambient"]) -> Callable[[Draft, str], None]:
    return lambda draft, value: draft.capabilities[which].extend(value.split(","))


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"takes a number, got {text!r}") from None


def _whole(text: str) -> int:
    return number(text, "the value")


def _processors(text: str) -> list[int]:
    """Read numbers and ranges between commas, as the kernel writes them."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = number(first, "a processor")
        high = number(last, "a processor") if dash else low
        if not 0 <= low <= high < 1 << 16:
            raise OptionError(f"takes processors such as 0,2-3, got {text!r}")
        found += range(low, high + 1)
    return found


def _limit(name: str, read: Callable[[str], Any] = str) -> Callable[[Draft, str], None]:
    def apply(draft: Draft, value: str) -> None:
        draft.limits[name] = read(value)
        # All of them together are one call; but what is wrong with one is said of that one.
        Sandbox().limit(**{"memory": 4096, name: draft.limits[name]})

    return apply


def _io(draft: Draft, value: str) -> None:
    word, equals, rate = value.rpartition("=")
    if not equals:
        raise OptionError("takes WORD=RATE or WORD:DISK=RATE, as in write:/dev/sda=10M")
    draft.limits["io"] = {**draft.limits.get("io", {}), word.replace("-", "_", 1): rate}
    Sandbox().limit(io=draft.limits["io"])


def _best_effort(draft: Draft, _: str) -> None:
    draft.limits["best_effort"] = True


def _nesting(draft: Draft, _: str) -> None:
    draft.box = draft.box.nesting()


def _observe(draft: Draft, _: str) -> None:
    draft.box = draft.box.observe()


GROUPS: Final[tuple[tuple[str, tuple[Option, ...]], ...]] = (
    (
        "Files, in the order written",
        (
            Option("--bind", "SRC[:DST]", "SRC of the host, writable, at DST or its own path", _bind("bind")),
            Option("--bind-readonly", "SRC[:DST]", "the same, read-only with all below it", _bind("bind_readonly")),
            Option("--tmpfs", "DST[:SIZE]", "an empty file system in memory", _tmpfs),
            Option("--file", "DST=TEXT", "a file with that text; DST=@FILE copies one", _file),
            Option("--file-fd", "FD:DST[:MODE]", "a file with what descriptor FD holds", _file_fd),
            Option("--python", "", "the Python that runs this command", _plainly("python")),
            Option("--dir", "DST[:MODE]", "a directory", _dir),
            Option("--symlink", "TO:DST", "a link at DST, in the order of ln -s", _symlink),
            Option("--mask", "DST", "hide what is there", _method("mask")),
            Option("--remount-readonly", "DST", "make what is there read-only", _method("remount_readonly")),
        ),
    ),
    (
        "Another root",
        (
            Option("--rootfs", "DIR[:rw]", "DIR is the whole root, read-only unless :rw", _rootfs),
            Option("--empty", "", "start from nothing; comes first", _empty),
            Option("--proc", "[=DST]", "mount /proc, as the default root has it", _proc),
            Option("--dev", "[=DST]", "mount a minimal /dev, likewise", _dev),
        ),
    ),
    (
        "Identity and namespaces",
        (
            Option("--user", "UID[:GID]", "who the command sees itself as", _user),
            Option("--id-ranges", "[=COUNT]", "many ids inside, by newuidmap or as root", _id_ranges),
            Option("--host-root", "", "let root's own id be mapped", _set(host_root=True)),
            Option("--strict-groups", "", "fail where groups cannot be dropped", _set(groups="strict")),
            Option("--hostname", "NAME", "host name", _method("hostname")),
            Option("--domainname", "NAME", "NIS domain name", _method("domainname")),
            Option("--network", "KIND", "none, loopback (the default) or host", _method("network")),
            Option("--share", "NS[,NS]", "keep the caller's namespaces of a kind", _method("share", listed=True)),
            Option("--unshare", "NS[,NS]", "make new ones, after all", _method("unshare", listed=True)),
            Option("--time-offset", "CLOCK=S,...", "move monotonic= or boottime= by S seconds", _clock),
            Option("--same-session", "", "stay in the session of the terminal", _plainly("new_session", False)),
            Option("--no-init", "", "the command itself is PID 1", _plainly("init", False)),
        ),
    ),
    (
        "Privileges and filters",
        (
            Option("--seccomp", "FILTER", "none, a preset (strict, docker ...) or a file", _seccomp),
            Option("--nesting", "", "let sandboxes be built inside", _nesting),
            Option("--observe", "", "say at the end what the filter refused", _observe, _MAKES),
            Option("--landlock", "KIND=V,...", "allow only these files, ports, scopes", _landlock),
            Option("--cap", "NAME[,NAME]", "keep capabilities in the sandbox", _capabilities("keep")),
            Option("--ambient-cap", "NAME[,NAME]", "and give them to every program", _capabilities("ambient")),
        ),
    ),
    (
        "Limits, of all processes together but for the last four",
        (
            Option("--memory", "SIZE", "memory; beyond it the kernel kills", _limit("memory")),
            Option("--swap", "SIZE", "swap beyond that; 0 unless said", _limit("swap")),
            Option("--pids", "COUNT", "processes and threads", _limit("pids", _whole)),
            Option("--cpus", "COUNT", "processors' worth of time, as 1.5", _limit("cpus", _decimal)),
            Option("--cpuset", "N[,N-M]", "processors to run on", _limit("cpuset", _processors)),
            Option("--io", "WORD[:DISK]=RATE", "read, write, read-ops, write-ops a second", _io),
            Option(
                "--wall-time", "SECONDS", "then it is killed, and the reason says so", _limit("wall_time", _decimal)
            ),
            Option("--cpu-time", "SECONDS", "of CPU; of each process without the above", _limit("cpu_time", _decimal)),
            Option("--best-effort", "", "run even if a limit cannot be had", _best_effort),
            Option("--open-files", "COUNT", "descriptors", _limit("open_files", _whole)),
            Option("--file-size", "SIZE", "of a file that is written", _limit("file_size")),
            Option("--stack", "SIZE", "of a program", _limit("stack")),
            Option("--core", "SIZE", "of a core dump; none unless said", _limit("core")),
        ),
    ),
    (
        "What the command starts with",
        (
            Option("--env", "NAME[=VALUE]", "set a variable; without = take it over", _env, _STARTS),
            Option("--unset-env", "NAME", "leave a variable out", _unset_env, _STARTS),
            Option("--inherit-env", "[=NAME,...]", "take over all variables, or those", _inherit_env, _STARTS),
            Option("--cwd", "DIR", "working directory inside", _method("cwd"), _STARTS),
            Option("--umask", "OCTAL", "file mode creation mask", _umask),
            Option("--tty", "", "give it a terminal of its own", _tty, _RUNS, "-t"),
            Option("--filter-output", "", "and let pass what draws, nothing else", _filter_output, _RUNS),
            Option("--timeout", "SECONDS", "then end it all, with status 124", _timeout, _RUNS),
            Option("--name", "NAME", "let others reach it: exec, list, stop, kill", _name, _MAKES),
            Option("--format", "FORMAT", "text (the default), json or svg, a picture", _format, ("plan",)),
        ),
    ),
    (
        "Sandboxes that run",
        (
            Option("--json", "", "all that is known, for programs", _style("json"), ("list",)),
            Option("--names", "", "the names alone, one a line", _style("names"), ("list",)),
            Option("--grace", "SECONDS", "time to end by itself; 10 unless said", _grace, ("stop",)),
        ),
    ),
)


def options_of(subcommand: Subcommand) -> dict[str, Option]:
    """Return a subcommand's options by name."""
    return {option.name: option for _, group in GROUPS for option in group if option.belongs_to(subcommand)}


def parse(subcommand: Subcommand, words: Sequence[str]) -> Draft | None:
    """Read a command line, without the subcommand's name; None when it asks for help.

    Options end at `--` or at the first word without a dash: what follows belongs to the command. Where a NAME comes
    first, options may stand before and after it.

    Raises:
        OptionError: It says something wrong.
        OSError: A file that an option names cannot be read.
    """
    draft = Draft()
    draft.tty = subcommand == "shell"
    rest = _read(subcommand, draft, words)
    if subcommand in NAMING and rest is not None:
        if not rest:
            raise OptionError(f"{subcommand} which sandbox?\n  hint: sandbox list shows those that run")
        try:
            draft.name = process_name(rest[0])
        except ValueError as error:
            raise OptionError(f"{error}\n  hint: sandbox list shows those that run") from error
        rest = _read(subcommand, draft, rest[1:])
    if rest is None:
        return None
    draft.command = list(rest)
    if draft.command and subcommand not in _STARTS:
        raise OptionError(f"{subcommand} takes no {draft.command[0]}\n  hint: sandbox {subcommand} --help")
    if not draft.command and subcommand in {"run", "plan", "exec"}:
        name = "NAME " if subcommand == "exec" else ""
        raise OptionError(f"what shall {subcommand}?\n  usage: sandbox {subcommand} [options] {name}-- COMMAND")
    if draft.user:
        draft.box = draft.box.user(**draft.user)
    try:
        if draft.landlock:
            draft.box = draft.box.landlock(**draft.landlock)
        if any(draft.capabilities.values()):
            draft.box = draft.box.capabilities(**draft.capabilities)
        if draft.limits:
            draft.box = draft.box.limit(**draft.limits)
    except (ValueError, TypeError) as error:
        raise OptionError(str(error)) from error
    return draft


def _read(subcommand: Subcommand, draft: Draft, words: Sequence[str]) -> Sequence[str] | None:
    """Apply the options at the beginning, and return the words after them; None when one asks for help."""
    known = options_of(subcommand)
    by_name = known | {option.short: option for option in known.values() if option.short}
    i = 0
    while i < len(words) and words[i].startswith("-"):
        name, equals, value = words[i].partition("=")
        i += 1
        if name == "--" and not equals:
            break
        if name in {"-h", "--help"}:
            return None
        option = by_name.get(name)
        if option is None:
            raise OptionError(_unknown(name, subcommand, known))
        if not option.value and equals:
            raise OptionError(f"{name} takes no value")
        if option.value and not equals and not option.value.startswith("["):
            if i == len(words):
                raise OptionError(f"{name} takes {option.value}, which is missing")
            value = words[i]
            i += 1
        _apply(option, draft, value)
    return words[i:]


def _apply(option: Option, draft: Draft, value: str) -> None:
    try:
        option.apply(draft, value)
    except (ValueError, TypeError) as error:
        hint = ""
        if ":" in value and ":" in option.value:
            hint = "\n  hint: a colon that belongs to a path is written \\:"
        raise OptionError(f"{option.name} {value}: {error}{hint}") from error


def _unknown(name: str, subcommand: Subcommand, known: dict[str, Option]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"sandbox {subcommand} --help lists them"
    return f"there is no option {name}\n  hint: {hint}"
