"""The README is true: its commands and its Python print what it says they print."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import harness
import pytest

pytestmark = pytest.mark.needs_userns

ROOT = Path(harness.REPOSITORY)
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def dialogues() -> list[tuple[str, str]]:
    """Return the commands of the console blocks, each with what is printed below it."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def printed(command: str, tmp_path: Path) -> str:
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    ).stdout


@pytest.mark.parametrize(("command", "output"), [one for one in dialogues() if one[0].startswith("sandbox ")])
def test_readme_command_prints_what_it_says(command: str, output: str, tmp_path: Path) -> None:
    assert output == printed(command, tmp_path)


def test_readme_first_command_runs_what_it_says(tmp_path: Path) -> None:
    said, output = next(one for one in dialogues() if one[0].startswith("./dev run"))
    command = said.partition("runs: ")[2]
    assert command
    assert output == printed(command, tmp_path)
    # ./dev itself builds, and needs the network the first time: here only what it would then run.
    words = re.search(r"^ +set -- (-- .*)$", (ROOT / "dev").read_text(), re.MULTILINE)
    assert words is not None
    assert command == f"sandbox run {words[1]}"


def test_readme_python_prints_what_it_says(tmp_path: Path) -> None:
    (program,), (output,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (output, "") == (done.stdout, done.stderr)


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^):]+)\)", README)
    assert links
    assert [] == [link for link in links if not (ROOT / link).exists()]
