"""The command `sandbox supervise`."""

import os
import pty
import re
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest

from sandbox import help_text

pytestmark = pytest.mark.needs_userns
COMMAND = os.path.join(sysconfig.get_path("scripts"), "sandbox")


class Run:
    """A supervisor at work, whose lines are read as they come."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path / "services.toml"
        self.path.write_text(text)
        self.process = subprocess.Popen(
            [COMMAND, "supervise", "--plain", str(self.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.seen: list[str] = []

    def until(self, text: str) -> None:
        for line in self.process.stdout:
            self.seen.append(line.split(" ", 1)[1].rstrip("\n"))
            if text in line:
                return
        pytest.fail(f"{text!r} did not come: {self.seen}, {self.process.stderr.read()}")

    def rest(self) -> tuple[int, list[str]]:
        out, err = self.process.communicate()
        assert "" == err
        return self.process.returncode, [line.split(" ", 1)[1] for line in out.splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    started: list[Run] = []

    def start(text: str) -> Run:
        started.append(Run(tmp_path, text))
        return started[0]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


WEB = '[services.web]\ncommand = ["sh", "-c", "echo hello from web; exec sleep 1000"]\nsandbox = true\n'
STORE = '[services.store]\ncommand = ["sleep", "1000"]\n'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_supervise_runs_until_a_signal(run, number):
    one = run(WEB + 'after = ["store"]\n' + STORE)
    one.until("hello from web")
    assert one.seen.index("store: ready") < one.seen.index("web: ready")
    one.process.send_signal(number)
    status, rest = one.rest()
    assert (0, ["web: signal SIGTERM", "store: signal SIGTERM"]) == (status, rest)


def test_supervise_service_that_fails_for_good_is_status_1(run):
    status, rest = run('[services.a]\ncommand = ["false"]').rest()
    assert 1 == status
    assert ["a: ready", "a: exit status 1", "a: given up"] == rest[1:]


def test_supervise_sighup_reads_the_file_again(run):
    one = run(WEB + STORE)
    one.until("hello from web")
    one.path.write_text(STORE + WEB.replace("hello", "greetings") + '[services.new]\ncommand = ["sleep", "1000"]\n')
    one.process.send_signal(signal.SIGHUP)
    one.until("greetings from web")
    one.path.write_text(WEB.replace("hello", "greetings"))
    one.process.send_signal(signal.SIGHUP)
    one.until("store: signal SIGTERM")
    one.path.write_text("x = ")
    one.process.send_signal(signal.SIGHUP)
    one.until("nothing is changed")
    one.process.send_signal(signal.SIGTERM)
    status, rest = one.rest()
    assert 0 == status
    assert "web: signal SIGTERM" in rest
    assert 1 == len([line for line in one.seen if line.startswith("store: started")])


def test_supervise_wrong_file_is_125_and_says_where(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('[services.a]\ncommand = ["x"]\nrestart = 3\n')
    done = subprocess.run([COMMAND, "supervise", path], capture_output=True, text=True)
    assert 125 == done.returncode
    assert done.stderr.startswith(f"sandbox: {path}:3: services.a.restart: must be")


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--no", "x"]])
def test_supervise_wrong_words_are_125(words):
    done = subprocess.run([COMMAND, "supervise", *words], capture_output=True, text=True)
    assert (125, "") == (done.returncode, done.stdout)
    assert "supervise" in done.stderr


def test_supervise_documented_file_is_right():
    path = os.path.join(harness.REPOSITORY, "docs", "services.toml")
    done = subprocess.run([COMMAND, "supervise", "--check", path], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


def test_supervise_file_of_the_help_is_right(tmp_path):
    block = re.search(r"^  (\[services.*?)\n\n", help_text.SUPERVISE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "s.toml"
    path.write_text(f'[services.store]\ncommand = ["store"]\n{block[1]}\n')
    done = subprocess.run([COMMAND, "supervise", "--check", path], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


def test_supervise_on_a_terminal_shows_a_table(tmp_path):
    pytest.importorskip("rich")
    path = tmp_path / "s.toml"
    path.write_text('[services.a]\ncommand = ["sh", "-c", "printf \'\\\\033]0;title\\\\007\\n\'; exit 3"]\n')
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [COMMAND, "supervise", path], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # EIO: nobody has the other end any more
            pass
        os.close(ours)
    assert 1 == process.returncode
    for word in (b"service", b"failed", b"exit status 3"):
        assert word in shown
    assert b"title" in shown
    assert b"\033]0" not in shown
