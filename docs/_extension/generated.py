"""Directives for what the pages take from the library itself, so that they cannot say something else.

- `sandbox-picture OPTIONS -- COMMAND`: what `sandbox plan --format svg` draws
- `sandbox-output COMMAND`: what `sandbox COMMAND` prints
- `sandbox-causes`, `sandbox-hints`: the tables of `sandbox.causes` and `sandbox.hints`
- `svg-file PATH`: a drawing of this directory, in the page itself, so that it follows light and dark
"""

import errno
import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from sandbox import causes, hints
from sandbox.frozen import Frozen

_HERE = Path(__file__).parents[1]


def sandbox(*words: str) -> str:
    """Return what the command prints."""
    command = os.path.join(sysconfig.get_path("scripts"), "sandbox")
    done = subprocess.run([command, *words], cwd="/", capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"sandbox {shlex.join(words)}: {done.stderr}")
    return done.stdout


class _Words(Directive):
    """A directive whose arguments are a command line."""

    required_arguments = 1
    final_argument_whitespace = True

    def words(self) -> list[str]:
        return shlex.split(self.arguments[0])


def _drawing(svg: str) -> list[nodes.Node]:
    # A drawing is read from left to right: on a narrow screen it is scrolled, not shrunk.
    return [nodes.raw("", f'<div class="drawing">{svg}</div>', format="html")]


class Picture(_Words):
    def run(self) -> list[nodes.Node]:
        said = _folded(f"$ sandbox plan --format svg {self.arguments[0]} > sandbox.svg")
        return [
            nodes.literal_block(said, said, language="console"),
            *_drawing(sandbox("plan", "--format", "svg", *self.words())),
        ]


def _folded(command: str) -> str:
    """Continue a long command on further lines."""
    lines = [""]
    for part in re.split(r" (?=-)", command):
        if lines[-1] and len(lines[-1]) + len(part) > 84:
            lines.append(">   ")
        lines[-1] += f" {part}" if lines[-1].strip("> ") else part
    return " \\\n".join(lines)


class Output(_Words):
    def run(self) -> list[nodes.Node]:
        text = sandbox(*self.words())
        return [nodes.literal_block(text, text, language="text")]


class SvgFile(_Words):
    def run(self) -> list[nodes.Node]:
        path = _HERE / self.arguments[0]
        self.state.document.settings.env.note_dependency(str(path))
        return _drawing(path.read_text())


class _Rows(Directive):
    """A directive that writes the Markdown of a table."""

    head: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, ...]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows()]
        text = ["| " + " | ".join(line) + " |" for line in lines]
        holder = nodes.Element()
        self.state.nested_parse(StringList(text, "generated"), self.content_offset, holder)
        return holder.children


def _plain(text: str) -> str:
    """Escape what would be Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text).replace("\n", " ")


def _filled(text: str) -> str:
    """Show a template: what is filled in is in capitals."""
    return re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), text.replace("{{", "\0").replace("}}", "\1")).translate(
        {0: "{", 1: "}"}
    )


class Causes(_Rows):
    head = ("key", "what stands in the way", "what to do")

    def rows(self) -> list[tuple[str, ...]]:
        rows = {key: tuple(_plain(_filled(part)) for part in parts) for key, parts in causes.TABLE.items()}
        # Its text depends on what was found: the page says more.
        rows["cgroups"] = ("no control group may be made here: each place that refuses is named", "[limits](limits.md)")
        return [(f"`{key}`", *parts) for key, parts in sorted(rows.items())]


class Hints(_Rows):
    head = ("call", "errno", "hint")

    def rows(self) -> list[tuple[str, ...]]:
        tables = {
            "a terminal": hints.OF_A_TERMINAL,
            "a rule of Landlock": hints.OF_A_RULE,
            "a root": hints.OF_A_ROOT,
            "a node of /dev": hints.OF_A_NODE,
            "the default mounts of a root": hints.OF_A_TREE,
            "the working directory": hints.OF_A_CWD,
            "any": hints.OF_ANY,
        }
        every = {(f"`{call}`", number): text for (call, number), text in hints.BY_CALL.items()}
        every |= {(what, number): text for what, table in tables.items() for number, text in table.items()}
        together: dict[tuple[str, str], list[str]] = {}
        for (call, number), text in sorted(every.items()):
            together.setdefault((call, text), []).append(errno.errorcode[number])
        return [(call, ", ".join(names), _plain(text)) for (call, text), names in together.items()]


def docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make of a docstring, which is written like Markdown, what reStructuredText understands."""
    made: list[str] = []
    fenced = False
    for line in lines:
        if line.strip() == "```":
            fenced = not fenced
            made += ["::", ""] if fenced else [""]
        elif fenced:
            made.append(f"    {line}")
        else:
            parts = line.split("`")
            # A word that ends with an underscore would be a link.
            parts[::2] = [re.sub(r"(\w)_(?!\w)", r"\1\_", part) for part in parts[::2]]
            made.append("`".join(parts))
    lines[:] = made


def dashes(app: Sphinx, document: nodes.document, name: str) -> None:
    """Write the dash between an argument and its text, which the switched-off smartquotes would have made."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def skip_member(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples: the class says what they are."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def signature(app: Sphinx, what: str, name: str, obj: object, *_: object) -> tuple[str, str] | None:
    """Leave out how a value is made that the library makes: its fields are said below."""
    return ("", "") if isinstance(obj, type) and issubclass(obj, Frozen) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("sandbox-picture", Picture)
    app.add_directive("sandbox-output", Output)
    app.add_directive("sandbox-causes", Causes)
    app.add_directive("sandbox-hints", Hints)
    app.add_directive("svg-file", SvgFile)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("doctree-resolved", dashes)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
