"""What the command says, and what a signal does while it launches."""

import errno
import io
import os
import re
import signal

import harness
import pytest

from sandbox import attendance, cli, complaints
from sandbox.errors import SetupError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('.bind("/a b", "/c")', "--bind '/a b:/c'"),
        ('.bind("/a:b", "/c\\\\d")', r"--bind '/a\:b:/c\\d'"),
        ('.bind("/new\nline")', "--bind $'/new\\nline'"),
        ('.bind("/\udcff")', "--bind $'/\\xff'"),
        ('with .bind_readonly("/a").cwd("/b") and', "with --bind-readonly /a --cwd /b and"),
        ("make it with .tmpfs(), .dir() or .bind()", "make it with --tmpfs, --dir or --bind"),
        ('seccomp(SECCOMP_SET_MODE_FILTER) or share("pid")', "seccomp(SECCOMP_SET_MODE_FILTER) or --share pid"),
        ("id_ranges() is not available here", "--id-ranges is not available here"),
        (".limit(cpuset=(99,)) is not available here", "--cpuset is not available here"),
        ("killed after 1.00 seconds: limit(wall_time=1)", "killed after 1.00 seconds: --wall-time 1"),
        ("say limit(memory=..., swap=...)", "say --memory"),
        ('Filter.default().allow("unshare")', 'Filter.default().allow("unshare")'),
        ('.bind_readonly("/a")', "--bind-readonly /a"),
        ('.tmpfs("/x", size=5)', "--tmpfs /x"),
        ('make it visible with .bind_readonly("/opt/x")', "make it visible with --bind-readonly /opt/x"),
        ("pass optional=True to skip it", "append :optional (SRC:DST:optional) to skip it"),
        ("run as another user, or say user(host_root=True)", "run as another user, or say --host-root"),
        ("it ends in 0.5 seconds (or so).", "it ends in 0.5 seconds (or so)."),
    ],
)
def test_as_options_says_it_in_the_words_of_the_command(text: str, expected: str) -> None:
    assert expected == complaints._as_options(text)


def test_setup_text_names_step_call_option_and_hint() -> None:
    error = SetupError(
        errno.ENOENT, step=3, steps=9, call='open_tree("/a")', origin='.bind("/a", "/b")', hint="it must exist"
    )
    assert complaints._setup_text(error) == (
        'step 3 of 9: open_tree("/a"): No such file or directory (ENOENT)\n  from: --bind /a:/b\n  hint: it must exist'
    )


def test_setup_text_of_a_program_is_that_of_a_shell() -> None:
    error = SetupError(errno.EACCES, step=9, steps=9, call='execve("x")', origin="payload", filename="x")
    assert complaints._setup_text(error) == "x: Permission denied"


def _signals_while_launching() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job has it ignored
    with attendance.Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert bytes([signal.SIGINT]) == signals.take()
        with pytest.raises(attendance.SignalledError) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.SIGTERM == caught.value.number
    assert signal.SIG_DFL == signal.getsignal(signal.SIGTERM)


def test_signals_while_launching_interrupt_at_the_second() -> None:
    harness.in_child(_signals_while_launching)


def _signal_while_waiting() -> None:
    with attendance.Signals() as signals:
        signals.launching = False
        os.kill(os.getpid(), signal.SIGHUP)
        assert bytes([signal.SIGHUP]) == signals.take()


def test_signals_while_waiting_are_read_from_the_pipe() -> None:
    harness.in_child(_signal_while_waiting)


def _closed_streams() -> None:
    os.close(0)
    os.close(2)
    cli._open_standard_streams()
    for fd in (0, 2):
        assert "/dev/null" == os.readlink(f"/proc/self/fd/{fd}")
        assert os.get_inheritable(fd)


def test_open_standard_streams_opens_what_is_closed() -> None:
    harness.in_child(_closed_streams)


def test_complaint_about_a_hostile_name_does_not_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complaints.complain("/tmp/\x1b]52;c;QQ==\x07: no such file\n  hint: look\r")
    assert capsys.readouterr().err == "sandbox: /tmp/\\x1b]52;c;QQ==\\x07: no such file\n  hint: look\\r\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ls"], "no subcommand ls\n  hint: did you mean sandbox list\\? .*to run a program: sandbox run -- ls"),
        (["frobnicate"], "hint: sandbox --help lists them"),
        (["--verbose", "run"], "no option --verbose\n  hint: a subcommand comes first"),
    ],
)
def test_unknown_subcommand_is_told_what_there_is(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attendance.FAILED == cli.main(words)
    assert re.search(said, capsys.readouterr().err)


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "harmless"), [(Terminal, True), (io.TextIOWrapper, False)])
def test_plan_of_a_path_does_not_speak_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, kind: type[io.TextIOWrapper], harmless: bool
) -> None:
    before = signal.getsignal(signal.SIGPIPE)
    raw = io.BytesIO()
    stream = kind(raw)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        try:
            assert 0 == cli.main(["plan", "--env", "A=\033[5m", "--bind", "/tmp/\033[5m:/x", "true"])
        finally:
            signal.signal(signal.SIGPIPE, before)
    assert harmless == (b"\033" not in raw.getvalue())
