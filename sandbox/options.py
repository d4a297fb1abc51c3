"""The options of the command line: each is a method of `Sandbox`, and their order is kept.

One table says it all: what an option is called, what it takes, what it does and how the help describes it.
"""

import errno
from collections.abc import Sequence
from typing import Final, Literal, get_args

from sandbox import option_effects as effects
from sandbox.arguments import process_name
from sandbox.option_effects import Draft
from sandbox.option_values import OptionError, decimal, processors, whole

Subcommand = Literal["run", "shell", "plan", "exec", "list", "stop", "kill"]
SUBCOMMANDS: Final[tuple[Subcommand, ...]] = get_args(Subcommand)
# Those that are about a sandbox that runs, and of these the ones that take its NAME.
NAMED: Final[tuple[Subcommand, ...]] = ("exec", "list", "stop", "kill")
NAMING: Final[tuple[Subcommand, ...]] = ("exec", "stop", "kill")
# Whose options these are: of all that describe a sandbox, that make one, that run a command.
DESCRIBES: Final[tuple[Subcommand, ...]] = ("run", "shell", "plan")
_MAKES: Final[tuple[Subcommand, ...]] = ("run", "shell")
_STARTS: Final[tuple[Subcommand, ...]] = (*DESCRIBES, "exec")
_RUNS: Final[tuple[Subcommand, ...]] = (*_MAKES, "exec")


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
        apply: effects.Effect,
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


GROUPS: Final[tuple[tuple[str, tuple[Option, ...]], ...]] = (
    (
        "Files, in the order written",
        (
            Option("--bind", "SRC[:DST]", "SRC of the host, writable, at DST or its own path", effects.bind("bind")),
            Option(
                "--bind-readonly", "SRC[:DST]", "the same, read-only with all below it", effects.bind("bind_readonly")
            ),
            Option("--tmpfs", "DST[:SIZE]", "an empty file system in memory", effects.tmpfs),
            Option("--file", "DST=TEXT", "a file with that text; DST=@FILE copies one", effects.file),
            Option("--file-fd", "FD:DST[:MODE]", "a file with what descriptor FD holds", effects.file_fd),
            Option("--python", "", "the Python that runs sandbox, at its own path", effects.calls_plainly("python")),
            Option("--dir", "DST[:MODE]", "a directory", effects.directory),
            Option("--symlink", "TO:DST", "a link at DST, in the order of ln -s", effects.symlink),
            Option("--mask", "DST", "hide what is there", effects.calls("mask")),
            Option("--remount-readonly", "DST", "make what is there read-only", effects.calls("remount_readonly")),
        ),
    ),
    (
        "Another root",
        (
            Option("--rootfs", "DIR[:rw]", "DIR is the whole root, read-only unless :rw", effects.rootfs),
            Option("--empty", "", "start from nothing; comes first", effects.empty),
            Option("--proc", "[=DST]", "mount /proc, as the default root has it", effects.proc),
            Option("--dev", "[=DST]", "mount a minimal /dev, likewise", effects.dev),
        ),
    ),
    (
        "Identity and namespaces",
        (
            Option("--user", "UID[:GID]", "who the command sees itself as", effects.user),
            Option("--id-ranges", "[=COUNT]", "many ids inside, by newuidmap or as root", effects.id_ranges),
            Option("--host-root", "", "let root's own id be mapped", effects.user_with(host_root=True)),
            Option("--strict-groups", "", "fail where groups cannot be dropped", effects.user_with(groups="strict")),
            Option("--hostname", "NAME", "host name", effects.calls("hostname")),
            Option("--domainname", "NAME", "NIS domain name", effects.calls("domainname")),
            Option("--network", "KIND", "none, loopback (the default) or host", effects.calls("network")),
            Option(
                "--share",
                "NS[,NS]",
                "keep the caller's net, ipc, uts, pid, user ...",
                effects.calls("share", listed=True),
            ),
            Option(
                "--unshare", "NS[,NS]", "make new ones: time, or after --share", effects.calls("unshare", listed=True)
            ),
            Option("--time-offset", "CLOCK=S,...", "move monotonic= or boottime= by S seconds", effects.clock),
            Option(
                "--same-session", "", "stay in the session of the terminal", effects.calls_plainly("new_session", False)
            ),
            Option("--no-init", "", "the command itself is PID 1", effects.calls_plainly("init", False)),
        ),
    ),
    (
        "Privileges and filters",
        (
            Option("--seccomp", "FILTER", "none, a preset (strict, docker ...) or a file", effects.seccomp),
            Option("--nesting", "", "let sandboxes be built inside", effects.calls_plainly("nesting")),
            Option("--observe", "", "say at the end what the filter refused", effects.calls_plainly("observe"), _MAKES),
            Option("--landlock", "KIND=V,...", "allow only these files, ports, scopes", effects.landlock),
            Option("--cap", "NAME[,NAME]", "keep capabilities in the sandbox", effects.capabilities("keep")),
            Option("--ambient-cap", "NAME[,NAME]", "and give them to every program", effects.capabilities("ambient")),
        ),
    ),
    (
        "Limits, of all processes together but for the last four",
        (
            Option("--memory", "SIZE", "memory; beyond it the kernel kills", effects.limit("memory")),
            Option("--swap", "SIZE", "swap beyond that; 0 unless said", effects.limit("swap")),
            Option("--pids", "COUNT", "processes and threads", effects.limit("pids", whole)),
            Option("--cpus", "COUNT", "processors' worth of time, as 1.5", effects.limit("cpus", decimal)),
            Option("--cpuset", "N[,N-M]", "processors to run on", effects.limit("cpuset", processors)),
            Option("--io", "WORD[:DISK]=RATE", "read, write, read-ops, write-ops a second", effects.io),
            Option(
                "--wall-time",
                "SECONDS",
                "then it is killed, and the reason says so",
                effects.limit("wall_time", decimal),
            ),
            Option(
                "--cpu-time", "SECONDS", "of CPU; of each process without the above", effects.limit("cpu_time", decimal)
            ),
            Option("--best-effort", "", "run even if a limit cannot be had", effects.best_effort),
            Option("--open-files", "COUNT", "descriptors", effects.limit("open_files", whole)),
            Option("--file-size", "SIZE", "of a file that is written", effects.limit("file_size")),
            Option("--stack", "SIZE", "of a program", effects.limit("stack")),
            Option("--core", "SIZE", "of a core dump; none unless said", effects.limit("core")),
        ),
    ),
    (
        "What the command starts with",
        (
            Option("--env", "NAME[=VALUE]", "set a variable; without = take it over", effects.env, _STARTS),
            Option("--unset-env", "NAME", "leave a variable out", effects.unset_env, _STARTS),
            Option("--inherit-env", "[=NAME,...]", "take over all variables, or those", effects.inherit_env, _STARTS),
            Option("--cwd", "DIR", "working directory inside", effects.calls("cwd"), _STARTS),
            Option("--umask", "OCTAL", "file mode creation mask", effects.umask),
            Option("--tty", "", "give it a terminal of its own", effects.tty, _RUNS, "-t"),
            Option("--filter-output", "", "and let pass what draws, nothing else", effects.filter_output, _RUNS),
            Option("--timeout", "SECONDS", "then end it all, with status 124", effects.timeout, _RUNS),
            Option("--name", "NAME", "let others reach it: exec, list, stop, kill", effects.name, _MAKES),
            Option(
                "--format", "FORMAT", "text (the default), json or svg, a picture", effects.output_format, ("plan",)
            ),
        ),
    ),
    (
        "Sandboxes that run",
        (
            Option("--json", "", "all that is known, for programs", effects.style("json"), ("list",)),
            Option("--names", "", "the names alone, one a line", effects.style("names"), ("list",)),
            Option("--grace", "SECONDS", "time to end by itself; 10 unless said", effects.grace, ("stop",)),
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
            if i == len(words) or words[i] == "--":
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
        raise OptionError(f"{option.name} {value or repr(value)}: {error}{hint}") from error
    except OSError as error:
        what = f"{error.filename}: " if error.filename not in {None, value} else ""
        hint = ""
        if option.name == "--seccomp":
            hint = f"\n  hint: it is none, {', '.join(_presets())}, or a file"
        elif error.filename is None and error.errno == errno.ENOENT:
            what = "the current directory has been removed: "
        raise OptionError(f"{option.name} {value}: {what}{error.strerror or error}{hint}") from error


def _presets() -> tuple[str, ...]:
    from sandbox.filters.sources import PRESETS

    return PRESETS


def _unknown(name: str, subcommand: Subcommand, known: dict[str, Option]) -> str:
    from sandbox import suggestions

    hint = suggestions.for_option(name, known) or f"sandbox {subcommand} --help lists them"
    return f"there is no option {name}\n  hint: {hint}"
