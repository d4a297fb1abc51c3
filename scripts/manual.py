"""Write the man page and the completions from the table of options; meson runs it with the sources and their module."""

import importlib.util
import os
import re
import sys

if __name__ == "__main__":
    _, sources, module, folder = sys.argv
    sys.path.insert(0, sources)
    # The package finds it as if it were installed with it.
    spec = importlib.util.spec_from_file_location("sandbox._native", module)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["sandbox._native"] = native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)

from sandbox import completion, help_text, options

DATE = "2026-11-22"

DESCRIPTION = """\
A sandbox is a set of namespaces, mounts, limits and filters around one command; it needs no daemon, no set-uid program
and no root. Each option is a method of the Python class sandbox.Sandbox, and they are applied in the order written.
Options end at the first word without a dash, or at "--"; what follows is the command."""


def escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fP"


def italic(text: str) -> str:
    return f"\\fI{escape(text)}\\fP"


def prose(text: str) -> str:
    return escape(text).replace("\\-", "-")


def body(text: str, level: str = "SS") -> list[str]:
    """Turn help into roff: titles between asterisks, indented lines as they are, the rest as paragraphs."""
    lines: list[str] = []
    kind = ""
    for line in text.splitlines():
        title = re.fullmatch(r"\*\*(.+)\*\*", line)
        new = "title" if title else "" if not line else "example" if line.startswith("  ") else "text"
        if kind == "example" and new != "example":
            lines.append(".EE")
        if title:
            lines.append(f".{level} {escape(title[1])}")
        elif new == "example":
            if kind != "example":
                lines += [".EX"] if kind == "title" else [".PP", ".EX"]
            lines.append(escape(line.replace("**", "")))
        elif new == "text":
            if kind == "" and lines and not lines[-1].startswith((".SS", ".SH")):
                lines.append(".PP")
            usage = line.startswith("**usage:**")
            lines.append(bold(line.removeprefix("**usage:** ")) if usage else prose(line))
        kind = new
    if kind == "example":
        lines.append(".EE")
    return lines


def option_lines(option: options.Option) -> list[str]:
    name = f"{bold(option.short)}, {bold(option.name)}" if option.short else bold(option.name)
    value = option.value
    if value.startswith("["):
        name += f"[={italic(value[2:-1])}]"
    elif value:
        name += f" {italic(value)}"
    where = [f"sandbox {one}" for one in options.SUBCOMMANDS if option.belongs_to(one)]
    only = "" if option.of == options.DESCRIBES else f" ({', '.join(where)})"
    return [".TP", name, prose(f"{option.text}{only}.")]


def manual() -> str:
    lines = [
        f'.TH SANDBOX 1 {DATE} "sandbox" "User Commands"',
        ".SH NAME",
        "sandbox \\- run commands in Linux sandboxes",
        ".SH SYNOPSIS",
    ]
    for name in completion.COMMANDS:
        rest = {
            "run": "[options] [--] COMMAND [ARGUMENT...]",
            "shell": "[options] [-- COMMAND [ARGUMENT...]]",
            "plan": "[options] [--] COMMAND [ARGUMENT...]",
            "exec": "[options] NAME [options] [--] COMMAND [ARGUMENT...]",
            "list": "[--json | --names]",
            "stop": "NAME [--grace SECONDS]",
            "kill": "NAME",
            "doctor": "[--json]",
            "seccomp": "ACTION FILTER",
            "supervise": "[--plain] [--check] FILE.toml",
            "completion": "bash|zsh|fish",
        }[name]
        lines += [f"{bold('sandbox ' + name)} {escape(rest)}", ".br"]
    lines += [bold("sandbox --version") + " | " + bold("--help"), ".SH DESCRIPTION", prose(DESCRIPTION), ".SH COMMANDS"]
    for name in options.SUBCOMMANDS:
        lines += [f".SS sandbox {name}", *body(help_text.USAGE[name], "PP\n.B")]
    lines += [".SS sandbox doctor", *body(help_text.DOCTOR, "PP\n.B")]
    lines += [".SS sandbox supervise", *body(help_text.SUPERVISE, "PP\n.B")]
    lines += [".SS sandbox seccomp", "Ask about a filter of system calls; sandbox seccomp --help lists the actions."]
    lines += [".SS sandbox completion", "Print the completion for a shell, for its configuration:"]
    lines += [".PP", ".EX", escape('  eval "$(sandbox completion bash)"'), escape('  eval "$(sandbox completion zsh)"')]
    lines += [escape("  sandbox completion fish | source"), ".EE", ".SH OPTIONS"]
    for title, group in options.GROUPS:
        lines.append(f".SS {escape(title)}")
        for option in group:
            lines += option_lines(option)
    lines += [line.upper() if line.startswith(".SH") else line for line in body(help_text.END["run"], "SH")]
    lines += [".SH SEE ALSO", ".BR unshare (1),", ".BR namespaces (7),", ".BR seccomp (2),", ".BR landlock (7)"]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """Return every file with its content."""
    made = {shell: make() for shell, make in completion.SHELLS.items()}
    return {"sandbox.1": manual(), "sandbox": made["bash"], "_sandbox": made["zsh"], "sandbox.fish": made["fish"]}


if __name__ == "__main__":
    for name, content in files().items():
        with open(os.path.join(folder, name), "w") as stream:
            stream.write(content)
