"""The documentation is true: an example that is followed by what it prints prints just that."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import harness
import pytest

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_landlock(3), pytest.mark.needs_kernel(6, 11)]

PAGES = {
    name: (Path(harness.REPOSITORY) / "docs" / name).read_text()
    for name in ("filters.md", "identity.md", "landlock.md", "notify.md", "process.md", "supervise.md", "terminal.md")
}
PROGRAMS = [
    (page, *found)
    for page, text in PAGES.items()
    for found in re.findall(r"^```python\n((?:(?!```).*\n)*)```\n```text\n((?:(?!```).*\n)*)```$", text, re.MULTILINE)
]
COMMANDS = [
    (page, command, output)
    for page, text in PAGES.items()
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


def test_every_page_has_an_example():
    assert PAGES.keys() == {page for page, *_ in PROGRAMS}
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize(("page", "program", "output"), PROGRAMS, ids=[page for page, *_ in PROGRAMS])
def test_program_prints_what_the_page_says(page, program, output):
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert (output, "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(("page", "command", "output"), COMMANDS, ids=[command for _, command, _ in COMMANDS])
def test_command_prints_what_the_page_says(page, command, output):
    env = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert output == done.stdout
