"""What `sandbox doctor` prints, of rows that are made up."""

import io
import sys

import pytest

from sandbox import cli_doctor
from sandbox.causes import cause
from sandbox.doctor import Row

CAUSE = cause("apparmor", init="/somewhere/init")
ROWS = [
    Row("proc", "/proc", "run", "works"),
    Row("user", "user namespace", "run", "blocked", "clone: Operation not permitted", "EPERM", "clone", CAUSE),
    Row("mount", "mount namespace", "run", "untried", "needs user namespace", cause=CAUSE),
    Row("tun", "tun device", "networks", "works", "with a detail that is somewhat longer than the room for it is"),
    Row("sandbox", "a whole sandbox", "run", "blocked", "step 1: clone", "EPERM", "clone", CAUSE),
]


def shown(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    cli_doctor.show(ROWS, stream)
    return stream.getvalue()


@pytest.fixture(params=["rich", "plain"])
def look(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)


@pytest.mark.usefixtures("look")
@pytest.mark.parametrize("columns", [80, 120])
def test_table_fits_the_terminal_but_for_what_is_to_be_copied(monkeypatch, columns):
    lines = shown(monkeypatch, columns).splitlines()
    assert columns >= max(len(line) for line in lines if not line.startswith("    fix: "))
    assert f"    fix: {CAUSE.fix}" in [line.rstrip() for line in lines]


@pytest.mark.usefixtures("look")
def test_table_says_each_cause_once(monkeypatch):
    text = shown(monkeypatch, 80)
    assert text.count("[1] apparmor") == 1
    assert text.count("apparmor [1]") == 2
    assert "[2]" not in text
    assert text.rstrip().endswith("sandbox run does not work here.")
    assert "\033" not in text


def test_both_looks_say_the_same_words(monkeypatch):
    rich = shown(monkeypatch, 80).split()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert rich == shown(monkeypatch, 80).split()


def test_json_has_stable_keys():
    said = cli_doctor.as_object(ROWS)
    assert {"version", "works", "kernel", "machine", "uid", "checks"} == said.keys()
    assert {"key", "title", "use", "state", "detail", "error", "call", "cause"} == said["checks"][0].keys()
    assert {"key", "text", "fix"} == said["checks"][1]["cause"].keys()
    assert said["works"] is False


def test_what_did_not_answer_in_time_is_not_blocked(monkeypatch):
    import select

    from sandbox import doctor, probing

    check = doctor.Check("slow", "something slow", "run", lambda _: select.select([], [], []))
    answer = probing.attempt(check.probe, probing.Identity(0, 0, False), 0.01)
    row = doctor._row(check, answer)
    assert ("untried", "no answer in 0.01 seconds") == (row.state, row.detail)


def test_what_goes_wrong_in_a_probe_is_said():
    from sandbox import probing

    answer = probing.attempt(lambda _: 1 / 0, probing.Identity(0, 0, False), 60)
    assert "ZeroDivisionError" in answer.detail
    assert answer.failed is not None


@pytest.mark.usefixtures("look")
def test_table_shows_no_control_characters_of_names(monkeypatch):
    evil = Row("x", "x", "run", "works", "of /tmp/\033]0;title\a")
    blocked = CAUSE._replace(text="at /tmp/\033[5m", fix="rm /tmp/\033[5m")
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    cli_doctor.show([evil, ROWS[1]._replace(cause=blocked)], stream)
    assert "\033" not in stream.getvalue()
    assert "/tmp/\\x1b]0;title\\x07" in stream.getvalue()
    assert "fix: rm /tmp/\\x1b[5m" in stream.getvalue()
