"""The documentation is true: what it shows runs, and prints what the page says.

Of every page the blocks of Python and of a console are run; the block of text below one is what it prints. A comment
above it may say `<!-- not run: why -->`, and those are counted here, or `<!-- needs: memory pids -->`, the controllers
of its control groups.
"""

import os
import re
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import harness
import pytest

import sandbox
from sandbox import events, hints, primitives
from sandbox.options import options_of
from sandbox.supervise import Supervisor

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_landlock(3), pytest.mark.needs_kernel(6, 11)]

DOCS = Path(harness.REPOSITORY) / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
NOT_RUN = 6
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?(?:<!-- needs: (?P<needs>[^\n]+) -->\n+)?"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```\n(?:\n?```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
# Languages that are no program; all others are run.
_SHOWN = {"text", "toml", "json", "ini", "dockerfile"}


class Block(NamedTuple):
    page: str
    language: str
    code: str
    output: str | None
    why: str | None
    needs: str | None


BLOCKS = [
    Block(page, found["language"], found["code"], found["output"], found["why"], found["needs"])
    for page, text in PAGES.items()
    for found in _BLOCK.finditer(text)
]


def blocks(language: str):
    """Return the blocks to run, each with what it needs of the host."""
    found = []
    for i, one in enumerate(BLOCKS):
        if one.language == language and one.why is None:
            marks = [pytest.mark.needs_program(name) for name in ("bwrap", "busybox") if name in one.code]
            if one.needs:
                marks.append(pytest.mark.needs_cgroup(*one.needs.split()))
            found.append(pytest.param(one, id=f"{one.page}:{i}", marks=marks))
    return found


LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_every_block_is_run_or_says_why_not():
    assert {"python", "console"} | _SHOWN >= {one.language for one in BLOCKS}
    assert NOT_RUN == sum(one.why is not None for one in BLOCKS)


@pytest.mark.parametrize("block", blocks("python"))
def test_program_prints_what_the_page_says(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", block.code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (block.output or "", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize("block", blocks("console"))
def test_dialogue_prints_what_the_page_says(block, tmp_path):
    env = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
    happened = ""
    for command in re.findall(r"^\$ (.*(?:\n>.*)*)\n", block.code, re.MULTILINE):
        done = subprocess.run(
            ["sh", "-c", re.sub("^> ?", "", command, flags=re.MULTILINE)],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        happened += f"$ {command}\n{done.stdout}"
        if "bwrap" in command:  # its PID 1 is left to whoever adopts orphans
            os.wait()
    assert block.code == happened


@pytest.mark.parametrize("page", PAGES)
def test_links_have_a_target(page):
    for link in LINK.findall(re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)):
        if re.match(r"\w+:", link):
            assert re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[\w./#?=&%+~-]*)?", link), link
        else:
            assert (DOCS / page).parent.joinpath(link.partition("#")[0] or page).exists(), link


@pytest.mark.parametrize("name", sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.svg")))
def test_drawing_is_well_formed_and_has_a_dark_face(name):
    text = (DOCS / name).read_text()
    assert ET.fromstring(text).findtext("{http://www.w3.org/2000/svg}title")
    assert "prefers-color-scheme:dark" in text


def test_every_page_can_be_found():
    """Sphinx says this, too; but not everybody who writes a page builds them."""
    listed = {"index.md"}
    for page, text in PAGES.items():
        for body in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            names = [line for line in body.splitlines() if line and not line.startswith(":")]
            listed |= {os.path.normpath(f"{os.path.dirname(page)}/{name}.md").lstrip("/") for name in names}
    assert listed == PAGES.keys()


def test_coming_from_names_options_and_methods_that_exist():
    options = options_of("run").keys() | {"--proc", "--dev"}
    with sandbox.popen(["true"]) as process:
        methods = {name for one in (sandbox.Sandbox, process, Supervisor) for name in dir(one)}
    wrong = []
    for page, text in PAGES.items():
        if page.startswith("from/"):
            rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
            for code in re.findall(r"`([^`]+)`", " ".join(cells[1] for cells in rows)):
                wrong += [
                    (page, option) for option in re.findall(r"(?<!\S)--[a-z][\w-]+", code) if option not in options
                ]
                wrong += [
                    (page, name)
                    for name in re.findall(r"^(?:box|process|Supervisor)?\.(\w+)", code)
                    if name not in methods
                ]
    assert [] == wrong


def test_reference_has_every_public_name():
    written = "".join(text for page, text in PAGES.items() if page.startswith("reference/"))
    names = {f"sandbox.{name}" for name in sandbox.__all__} | {f"sandbox.events.{name}" for name in events.__all__}
    names |= {f"sandbox.primitives.{name}" for name in primitives._FAMILIES}
    assert [] == sorted(name for name in names if not re.search(rf"{re.escape(name)}\b", written))


def test_hints_are_sentences_that_fit_the_catalogue():
    tables = [getattr(hints, name) for name in dir(hints) if name == "BY_CALL" or name.startswith("OF_A")]
    assert all(text and text[0].islower() and not text.endswith(".") for table in tables for text in table.values())
    catalogue = (DOCS / "_extension" / "generated.py").read_text()
    assert [] == [name for name in dir(hints) if name.startswith("OF_A") and f"hints.{name}" not in catalogue]
