"""A private tmux server for tests: keys go in, the screen is waited for."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plans

PATIENCE = 15  # seconds until a test gives up


class Screen:
    """One window with a shell that does not repair the terminal's settings by itself, as dash does not."""

    def __init__(self, folder: Path) -> None:
        self._environment = {
            "TMUX_TMPDIR": str(folder),
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "SHELL": "/bin/bash",
        }
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "exec dash -i")
        self.wait("^[#$]$")
        self.type("PS1='%: '")
        self.wait("^%:$")

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", *words], env=self._environment, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return done.stdout

    def text(self) -> str:
        return self.tmux("capture-pane", "-p", "-J").rstrip()

    def type(self, text: str, key: str = "Enter") -> None:
        """Type a line."""
        self.tmux("send-keys", "-l", text)
        self.keys(key)

    def keys(self, *names: str) -> None:
        """Press keys by their names in tmux: C-c, Enter."""
        self.tmux("send-keys", *names)

    def wait(self, pattern: str) -> str:
        """Wait until the screen matches; return the match."""
        deadline = time.monotonic() + PATIENCE
        while True:
            text = self.text()
            found = re.search(pattern, text, re.MULTILINE)
            if found:
                return found[0]
            if time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} never came; the screen:\n{text}")
            time.sleep(0.02)

    def ask(self, format: str) -> str:
        """Return what tmux says of the pane."""
        return self.tmux("display-message", "-p", format).rstrip("\n")

    def command(self) -> int:
        """Return the pid of what runs in the foreground of the shell."""
        shell = self.ask("#{pane_pid}")
        (pid,) = children(int(shell))
        return pid


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as stream:
        return [int(one) for one in stream.read().split()]


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as stream:
        return stream.read().strip()


@contextmanager
def screen(folder: Path) -> Iterator[Screen]:
    """Start a server, and end it and all in it."""
    try:
        yield Screen(folder)
    finally:
        subprocess.run(["tmux", "kill-server"], env={**os.environ, "TMUX_TMPDIR": str(folder)}, check=False)
        plans.reap_all(10)
