"""Completion in the shells themselves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import screen as screens
from screen import Screen

SANDBOX = f"{sys.executable} -P -m sandbox"
CASES = [
    ("sandbox sh", "sandbox shell"),
    ("sandbox run --filter-o", "sandbox run --filter-output"),
    ("sandbox shell --bind-r", "sandbox shell --bind-readonly"),
    ("sandbox run --network loop", "sandbox run --network loopback"),
    ("sandbox run --tty --seccomp default-n", "sandbox run --tty --seccomp default-nesting"),
    ("sandbox plan --format j", "sandbox plan --format json"),
    ("sandbox run --bind-readonly ./unique", "sandbox run --bind-readonly ./unique-file"),
    ("sandbox run --bind /a --hostname x -- md5su", "sandbox run --bind /a --hostname x -- md5sum"),
    ("sandbox doctor --j", "sandbox doctor --json"),
    ("sandbox completion fi", "sandbox completion fish"),
    ("sandbox seccomp simu", "sandbox seccomp simulate"),
    ("sandbox exec uniq", "sandbox exec unique-name"),
    ("sandbox stop --grace 1 uniq", "sandbox stop --grace 1 unique-name"),
    ("sandbox exec unique-name --filter-o", "sandbox exec unique-name --filter-output"),
    ("sandbox exec -t unique-name -- md5su", "sandbox exec -t unique-name -- md5sum"),
    ("sandbox list --js", "sandbox list --json"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unique-file").touch()
    # What completion asks for names.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sandbox").write_text("#!/bin/sh\n[ \"$*\" = 'list --names' ] && echo unique-name\n")
    (tmp_path / "bin" / "sandbox").chmod(0o755)
    for name in ("bash", "zsh", "fish"):
        done = subprocess.run([*SANDBOX.split(), "completion", name], capture_output=True, text=True, check=True)
        (tmp_path / name).write_text(done.stdout)
    return tmp_path


@pytest.fixture
def screen(folder: Path) -> Iterator[Screen]:
    with screens.screen(folder) as one:
        one.type(f"cd {folder}; PATH={folder}/bin:$PATH")
        yield one


@pytest.mark.needs_program("tmux", "zsh", "dash", "bash")
@pytest.mark.parametrize(
    "start",
    [
        "exec bash --norc --noprofile",
        "exec zsh -f",
    ],
    ids=["bash", "zsh"],
)
def test_completion_by_the_tab_key(screen: Screen, start: str) -> None:
    screen.type(start)
    screen.type("PS1='ready> '")
    screen.wait("^ready>$")
    if "zsh" in start:
        screen.type("autoload -Uz compinit; compinit -u -D; source ./zsh; clear")
    else:
        screen.type("source ./bash; clear")
    screen.wait(r"\Aready>$")
    for typed, completed in CASES:
        screen.type(typed, key="Tab")
        screen.wait(rf"^ready> {completed}=?\s*$")
        screen.keys("C-c")
        screen.wait(r"^ready>\Z")
        screen.type("clear")
        screen.wait(r"\Aready>\Z")


@pytest.mark.needs_program("fish")
@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_completion_in_fish(folder: Path, typed: str, completed: str) -> None:
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "LANG": "C.UTF-8"}
    script = f"source ./fish; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert completed.split()[-1] in {line.partition("\t")[0] for line in done.stdout.splitlines()}
