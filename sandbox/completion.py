"""Completion for bash, zsh and fish, made of the table of options: `sandbox completion SHELL` prints it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from sandbox.option_values import OptionError
from sandbox.options import GROUPS, NAMED, NAMING, SUBCOMMANDS, Option, Subcommand

COMMANDS: Final = {
    "run": "run a command in a new sandbox",
    "shell": "run a shell in one, on a terminal of its own",
    "plan": "print the system calls, run nothing",
    "exec": "run one more command in one that runs",
    "list": "those that run with a name",
    "stop": "ask one to end, then kill it",
    "kill": "kill one",
    "doctor": "what works on this host, and why not",
    "seccomp": "show, simulate, compare, convert filters",
    "supervise": "run services, and start them again",
    "completion": "completion for bash, zsh or fish",
}
_ACTIONS: Final = {
    "doctor": ("--json",),
    "seccomp": ("show", "disassemble", "simulate", "explain", "diff", "convert"),
    "supervise": ("--plain", "--check"),
    "completion": ("bash", "zsh", "fish"),
}
_FILES: Final = frozenset({"seccomp", "supervise"})  # they take files, too
# They take no command.
_WITHOUT: Final = tuple(name for name in NAMED if name != "exec")
_PRESETS: Final = ("none", "default", "default-nesting", "strict", "docker")
_NAMESPACES: Final = ("user", "pid", "net", "ipc", "uts", "cgroup", "time")
# What completes a value, by how the help shows it: paths of the host, or words; all else is the person's to know.
_PATHS: Final = frozenset({"SRC[:DST]", "DIR[:rw]"})
_WORDS: Final = {
    "KIND": ("none", "loopback", "host"),
    "FORMAT": ("text", "json", "svg"),
    "NS[,NS]": _NAMESPACES,
    "FILTER": _PRESETS,
}


def _options(subcommand: Subcommand) -> Iterator[Option]:
    for _, group in GROUPS:
        for option in group:
            if option.belongs_to(subcommand):
                yield option


def _takes_next(option: Option) -> bool:
    """Say whether the next word is the option's value."""
    return bool(option.value) and not option.value.startswith("[")


def _every() -> dict[str, Option]:
    return {option.name: option for subcommand in SUBCOMMANDS for option in _options(subcommand)}


def _spellings(subcommand: Subcommand) -> Iterator[str]:
    for option in _options(subcommand):
        if option.short:
            yield option.short
        yield option.name
    yield "--help"


_BASH: Final = r"""# bash completion for sandbox(1), made by: sandbox completion bash
_sandbox() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
    local options i named=0
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '%(commands)s --help --version' -- "$current")
        return
    fi
    case $command in
%(subcommands)s
    *) return ;;
    esac
    case $command in
    %(naming)s) named=1 ;;
    esac
    # The first word that is no option and no value of one begins the command; where a name comes first, the second.
    for ((i = 2; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        %(valued)s) ((i++)) ;;
        =) ((i++)) ;;
        --) ((i++)); break ;;
        -*) ;;
        *) ((named)) || break; named=0 ;;
        esac
    done
    if ((i <= COMP_CWORD)) && { [[ ${COMP_WORDS[i-1]} == -- ]] || ((i < COMP_CWORD)); }; then
        if declare -F _command_offset >/dev/null; then
            _command_offset "$i"
        elif ((i == COMP_CWORD)); then
            mapfile -t COMPREPLY < <(compgen -c -- "$current")
        else
            compopt -o default
        fi
        return
    fi
    case $before in
%(values)s
    %(valued)s) return ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options --" -- "$current")
    elif ((named)); then
        mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" list --names 2>/dev/null)" -- "$current")
    elif [[ $command != @(%(without)s) ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$current")
    fi
}
complete -F _sandbox sandbox
"""


def bash() -> str:
    """Return the completion for bash."""
    subcommands = [f"    {name}) options='{' '.join(_spellings(name))}' ;;" for name in SUBCOMMANDS]
    for command, words in _ACTIONS.items():
        files = "compopt -o default; " if command in _FILES else ""
        made = f"mapfile -t COMPREPLY < <(compgen -W '{' '.join(words)}' -- \"$current\")"
        subcommands.append(f"    {command})\n        ((COMP_CWORD == 2)) && {made}\n        {files}return ;;")
    values = []
    for option in _every().values():
        if option.value in _WORDS:
            files = " -f" if option.value == "FILTER" else ""
            values.append(
                f"    {option.name}) mapfile -t COMPREPLY < <(compgen{files} -W '{' '.join(_WORDS[option.value])}' -- "
                '"$current"); return ;;'
            )
        elif option.value in _PATHS:
            values.append(
                f"    {option.name}) compopt -o filenames\n"
                '        mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;'
            )
    return _BASH % {
        "commands": " ".join(COMMANDS),
        "subcommands": "\n".join(subcommands),
        "naming": "|".join(NAMING),
        "without": "|".join(_WITHOUT),
        "valued": "|".join(name for name, option in _every().items() if _takes_next(option)),
        "values": "\n".join(values),
    }


_ZSH: Final = r"""#compdef sandbox
# zsh completion for sandbox(1), made by: sandbox completion zsh
_sandbox() {
    local context state state_descr line
    typeset -A opt_args
    _arguments -C \
        '(- :)--help[show help]' \
        '(- :)--version[show the version]' \
        '(-)1:subcommand:->subcommand' \
        '(-)*::argument:->argument' && return
    case $state in
    subcommand)
        local -a commands=(
%(commands)s
        )
        _describe subcommand commands
        ;;
    argument)
        case $words[1] in
%(subcommands)s
        esac
        ;;
    esac
}
if [[ $funcstack[1] == _sandbox ]]; then
    _sandbox "$@"
else
    compdef _sandbox sandbox
fi
"""


def _zsh_quoted(text: str) -> str:
    for letter in "\\[]:":
        text = text.replace(letter, "\\" + letter)
    return text.replace("'", "'\\''")


def _zsh_option(option: Option) -> str:
    text = f"[{_zsh_quoted(option.text)}]"
    if not option.value:
        names = (option.short, option.name) if option.short else (option.name,)
        return " ".join(f"'({' '.join(names)}){name}{text}'" for name in names)
    if option.value in _WORDS:
        words = f"({' '.join(_WORDS[option.value])})"
        action = (
            f'{{_alternative "words\\:word\\:{words}" "files\\:file\\:_files"}}' if option.value == "FILTER" else words
        )
    else:
        action = "_files" if option.value in _PATHS else " "
    if _takes_next(option):
        return f"'*{option.name}={text}:{_zsh_quoted(option.value)}:{action}'"
    return f"'*{option.name}=-{text}::{_zsh_quoted(option.value[2:-1])}:{action}'"


def zsh() -> str:
    """Return the completion for zsh."""
    commands = [f"            '{name}:{_zsh_quoted(text)}'" for name, text in COMMANDS.items()]
    subcommands = []
    for name in SUBCOMMANDS:
        specs = [_zsh_option(option) for option in _options(name)]
        specs.append("'(- :)--help[show help]'")
        if name in NAMING:
            specs.append("""'1:name:{compadd -- ${(f)"$(sandbox list --names 2>/dev/null)"}}'""")
        if name == "exec":
            specs.append("'(-)2:command: _command_names -e'")
            # The words are all but options: first the name; a -- after it is one of them.
            skip = "shift words; ((CURRENT--))"
            specs.append(f"'*::argument:{{ {skip}; [[ $words[1] == -- ]] && {{ {skip} }}; _normal }}'")
        elif name not in NAMED:
            specs += ["'(-):command: _command_names -e'", "'*::argument: _normal'"]
        subcommands.append(
            f"        {name})\n            _arguments -S \\\n                " + " \\\n                ".join(specs)
        )
        subcommands.append("            ;;")
    for command, words in _ACTIONS.items():
        rest = " '*:filter:_files'" if command in _FILES else ""
        subcommands.append(f"        {command}) _arguments '1:argument:({' '.join(words)})'{rest} ;;")
    return _ZSH % {"commands": "\n".join(commands), "subcommands": "\n".join(subcommands)}


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_option(option: Option, subcommands: list[str]) -> str:
    line = f"complete -c sandbox -n '__fish_seen_subcommand_from {' '.join(subcommands)}' -l {option.name[2:]}"
    if option.short:
        line += f" -s {option.short[1:]}"
    if option.value in _WORDS:
        line += f" {'-r' if option.value == 'FILTER' else '-x'} -a {_fish_quoted(' '.join(_WORDS[option.value]))}"
    elif _takes_next(option):
        line += " -r -F" if option.value in _PATHS else " -x"
    return f"{line} -d {_fish_quoted(option.text)}"


def fish() -> str:
    """Return the completion for fish."""
    lines = ["# fish completion for sandbox(1), made by: sandbox completion fish", "complete -c sandbox -f"]
    for name, text in COMMANDS.items():
        lines.append(f"complete -c sandbox -n __fish_use_subcommand -a {name} -d {_fish_quoted(text)}")
    lines.append("complete -c sandbox -n __fish_use_subcommand -l help -d 'show help'")
    lines.append("complete -c sandbox -n __fish_use_subcommand -l version -d 'show the version'")
    lines += [_fish_option(one, [name for name in SUBCOMMANDS if one.belongs_to(name)]) for one in _every().values()]
    for name, words in _ACTIONS.items():
        lines.append(
            f"complete -c sandbox -n '__fish_seen_subcommand_from {name}' -a {_fish_quoted(' '.join(words))}"
            + (" -F" if name in _FILES else "")
        )
    # The word before them is there for a loop of that function, which takes whatever looks like an option of its own.
    valued = " ".join(name for name, option in _every().items() if _takes_next(option))
    for commands, skipped in ((tuple(name for name in SUBCOMMANDS if name not in NAMED), 2), (("exec",), 3)):
        lines.append(
            f"complete -c sandbox -n '__fish_seen_subcommand_from {' '.join(commands)}'"
            f" -a '(__fish_complete_subcommand --fcs-skip={skipped} _ {valued})'"
        )
    names = "(sandbox list --names 2>/dev/null)"
    lines.append(
        f"complete -c sandbox -n '__fish_seen_subcommand_from {' '.join(NAMING)};"
        f" and not __fish_seen_subcommand_from {names}' -a '{names}'"
    )
    return "\n".join(lines) + "\n"


SHELLS: Final[dict[str, Callable[[], str]]] = {"bash": bash, "zsh": zsh, "fish": fish}


def made_for(words: Sequence[str]) -> str:
    """Return the completion for the shell that the words of a command line name.

    Raises:
        OptionError: They name none that is known.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise OptionError(f"completion takes one of {', '.join(SHELLS)}, got {' '.join(words) or 'nothing'}")
    return SHELLS[words[0]]()
