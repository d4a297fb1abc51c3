"""`sandbox shell` and `run --tty`: driven in tmux, and on terminals that nobody reads."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
import screen as screens
from screen import PATIENCE, Screen

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_program("tmux", "less", "dash")]

COMMAND = [sys.executable, "-P", "-m", "sandbox"]
SANDBOX = " ".join(COMMAND)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    tmp_path.chmod(0o755)
    with screens.screen(tmp_path) as one:
        one.type(f"alias sandbox='{SANDBOX}'; cd {tmp_path}; stty -g >before; clear")
        one.wait(r"\A%:$")
        yield one


def shell(screen: Screen, *options: str) -> None:
    screen.type(f"PS1='inside> ' sandbox shell --env PS1 {' '.join(options)}")
    screen.wait(r"inside>$")


def inside(screen: Screen) -> tuple[int, int]:
    """Return the pids of the command and of PID 1 inside."""
    command = screen.command()
    (init,) = [pid for pid in screens.children(command) if screens.name_of(pid) == "sandbox-init"]
    return command, init


def restored(screen: Screen) -> None:
    """Wait until the terminal has the settings that it had before."""
    screen.type('until [ "$(stty -g)" = "$(cat before)" ]; do sleep 0.05; done; echo "as" before')
    screen.wait("as before$")


# ── working in it ──


def test_shell_job_control_works(screen: Screen) -> None:
    shell(screen)
    screen.type("sh -c 'echo begun; exec sleep 1000'")
    screen.wait("^begun$")
    screen.keys("C-z")
    screen.wait(r"\[1\]\+  Stopped ")
    screen.type("bg; jobs")
    screen.wait(r"\[1\]\+  Running ")
    screen.type("fg")
    screen.wait("^sh -c 'echo begun; exec sleep 1000'$")
    screen.keys("C-c")
    screen.type("echo ended $?")
    screen.wait("ended 130$")
    screen.type("exit 7")
    screen.wait("%:$")
    screen.type("echo status $?")
    screen.wait("status 7$")
    restored(screen)


def test_shell_is_bash_where_the_callers_is_not_inside(screen: Screen) -> None:
    screen.type("SHELL=/no/such/fish sandbox shell")
    screen.type("echo $0, $TERM, $(tty)")
    screen.wait(r"bash, (screen|tmux)\S*, /dev/pts/0$")


def test_shell_command_runs_on_the_terminal(screen: Screen) -> None:
    screen.type("sandbox shell -- sh -c 'tty; stty size; exit 3'; echo status $?")
    screen.wait("^/dev/pts/0\n30 100\nstatus 3$")


def test_run_tty_without_such_a_program_says_so_in_whole_lines(screen: Screen) -> None:
    screen.type("sandbox run -t -- no-such-program; echo status $?")
    screen.wait("^sandbox: no-such-program: No such file or directory\n  hint: .*\n?.*\nstatus 127$")
    restored(screen)


def test_shell_window_size_follows(screen: Screen) -> None:
    shell(screen)
    screen.type("trap 'stty size' WINCH; echo trap is set")
    screen.wait("^trap is set$")
    screen.tmux("resize-window", "-x", "60", "-y", "20")
    # bash runs a trap when the line is entered.
    screen.keys("Enter")
    screen.wait("20 60$")


def test_shell_full_screen_program_draws_and_leaves(screen: Screen) -> None:
    shell(screen)
    screen.type("seq 500 | LESS= less -c")
    screen.wait(r"\A1\n2\n")
    screen.keys("Space")
    screen.wait(r"\A30\n31\n")
    screen.tmux("resize-window", "-x", "90", "-y", "12")
    screen.wait(r"\A30\n31\n(.*\n){9}:\Z")  # less forgets a key that comes with the signal
    screen.keys("g")
    screen.wait(r"\A1\n2\n(.*\n){9}:\Z")
    screen.keys("q")
    screen.wait("inside>$")


def test_shell_curses_program_gets_keys_and_size(screen: Screen) -> None:
    program = (
        "import curses\n"
        "def main(screen):\n"
        "    key = ''\n"
        "    while key != 'q':\n"
        "        screen.erase()\n"
        "        screen.addstr(0, 0, 'size %dx%d key %s' % (*screen.getmaxyx(), key))\n"
        "        screen.refresh()\n"
        "        key = screen.getkey()\n"
        "curses.wrapper(main)\n"
    )
    with open(os.path.join(screen.ask("#{pane_current_path}"), "program.py"), "w") as stream:
        stream.write(program)
    screen.type("sandbox shell --file /p=@program.py -- python3 /p")
    screen.wait(r"\Asize 30x100 key$")
    screen.keys("Up")
    screen.wait(r"\Asize 30x100 key KEY_UP$")
    screen.tmux("resize-window", "-x", "70", "-y", "15")
    screen.wait(r"\Asize 15x70 key KEY_RESIZE$")
    screen.keys("q")
    screen.wait("%:$")
    restored(screen)


def test_shell_flood_does_not_keep_keys_out(screen: Screen) -> None:
    shell(screen)
    screen.type("yes flood")
    screen.wait("^flood\nflood$")
    screen.keys("C-c")
    screen.type("x=$?; clear; echo ended $x")
    screen.wait(r"\Aended 130$")


# ── the end, whatever it is ──


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGSEGV])
def test_shell_command_that_is_killed_gives_the_terminal_back(screen: Screen, number: int) -> None:
    screen.type("sandbox run -t -- sh -c 'echo ready; exec sleep 1000'")
    screen.wait("^ready$")
    command, init = inside(screen)
    pidfd = os.pidfd_open(init)
    os.kill(command, number)
    screen.wait("%:$")
    restored(screen)
    # And nothing of it is left.
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)


def test_shell_nobody_else_gives_the_terminal_back(screen: Screen) -> None:
    # The positive control: without the guardian the shell finds a raw terminal.
    screen.type("sandbox run -t -- sh -c 'echo ready; exec sleep 1000'")
    screen.wait("^ready$")
    command, init = inside(screen)
    (guardian,) = [pid for pid in screens.children(command) if pid != init]
    os.kill(guardian, signal.SIGKILL)
    os.kill(command, signal.SIGKILL)
    screen.wait("%:$")
    screen.tmux("send-keys", "-l", '[ "$(stty -g)" = "$(cat before)" ] || echo not as before')
    screen.keys("C-j")  # no Enter: nothing makes a line end of it
    screen.wait("not as before$")


def test_shell_that_is_killed_inside_gives_the_terminal_back(screen: Screen) -> None:
    shell(screen)
    screen.type("kill -9 $$")
    screen.wait("%:$")
    screen.type("echo status $?")
    screen.wait("status 137$")
    restored(screen)


def test_shell_whose_init_is_killed_gives_the_terminal_back(screen: Screen) -> None:
    shell(screen)
    os.kill(inside(screen)[1], signal.SIGKILL)
    screen.wait("sandbox: PID 1 of the sandbox ended without a report")
    restored(screen)


def test_shell_that_is_stopped_and_continued(screen: Screen) -> None:
    shell(screen)
    os.kill(inside(screen)[0], signal.SIGTSTP)
    screen.wait(r"Stopped")
    restored(screen)
    screen.type("fg")
    screen.type("echo $0 goes on")
    screen.wait("bash goes on$")
    # Raw again: Ctrl-C is a key of the shell inside.
    screen.type("sh -c 'echo begun; exec sleep 1000'")
    screen.wait("^begun$")
    screen.keys("C-c")
    screen.type("echo ended $?")
    screen.wait("ended 130$")


def test_run_tty_timeout_ends_it_and_says_so(screen: Screen) -> None:
    screen.type("sandbox run -t --timeout 0.5 -- sleep 1000; echo status $?")
    screen.wait("^sandbox: ended after 0.5 seconds, as --timeout says\nstatus 124$")
    restored(screen)


def test_shell_leaves_no_process_behind(screen: Screen) -> None:
    shell(screen)
    pids = [*screens.children(screen.command())]
    assert len(pids) == 2  # PID 1 and who guards the terminal
    screen.type("exit")
    screen.wait("%:$")
    deadline = time.monotonic() + PATIENCE
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [] == [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


# ── hostile output ──


def test_filter_output_keeps_clipboard_title_and_answers_out(screen: Screen) -> None:
    screen.tmux("set-option", "-s", "set-clipboard", "on")
    attack = (
        r"printf '\033]52;c;c3RvbGVu\007\033]2;forged\007\033[6n'; read -t 1 -d R x; printf '%s' \"$x\" | od -An -c"
    )
    with open(os.path.join(screen.ask("#{pane_current_path}"), "attack"), "w") as stream:
        stream.write(attack.replace('\\"', '"') + "; echo; printf '\\033[1mended\\033[m\\n'\n")
    run = "sandbox run --file /attack=@attack {} -- bash /attack"
    screen.type(run.format("--filter-output"))
    screen.wait("^ended$")
    assert screen.ask("#{pane_title}") != "forged"
    assert "stolen" not in screen.tmux("list-buffers")
    assert "033" not in screen.text()
    screen.type("clear")
    screen.wait(r"\A%:$")
    screen.type(run.format("--tty"))
    screen.wait("^ended$")
    # The positive control: without the filter all of it works.
    assert screen.ask("#{pane_title}") == "forged"
    assert "stolen" in screen.tmux("list-buffers")
    assert "033" in screen.text()


def test_filter_output_takes_back_what_was_left_on(screen: Screen) -> None:
    screen.type(r"sandbox run --filter-output -- printf '\033[?1049h\033[?25l\033(0left'")
    screen.wait("%:$")
    screen.type("echo qqq visible: $?")
    screen.wait("qqq visible: 0$")
    assert screen.ask("#{alternate_on} #{cursor_flag}") == "0 1"


# ── without a terminal, or with one that takes nothing ──


def run(*words: str, input: bytes | None = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*COMMAND, *words], input=input, capture_output=True, timeout=60, check=False)


def test_run_tty_without_a_terminal_types_the_input_and_its_end() -> None:
    done = run("run", "-t", "--", "sh", "-c", "stty -echo; tty; stty size; echo ready; cat; exit 5", input=None)
    assert (b"/dev/pts/0\r\n24 80\r\nready\r\n", 5) == (done.stdout, done.returncode)
    done = run("run", "-t", "--", "sh", "-c", "cat >/tmp/x; cat /tmp/x", input=b"one\ntwo")
    assert done.stdout.endswith(b"one\r\ntwo")


def test_run_tty_output_comes_whole() -> None:
    done = run("run", "-t", "--", "seq", "100000")
    assert b"".join(b"%d\r\n" % i for i in range(1, 100001)) == done.stdout


@pytest.mark.parametrize("word", ["--filter-output", "--tty"])
def test_run_tty_output_is_whole_characters(word: str) -> None:
    text = "é€😀" * 20000
    done = run("run", word, "--", "python3", "-c", "print('é€😀' * 20000, end='')")
    assert text == done.stdout.decode()


def test_run_tty_whose_output_nobody_takes_ends() -> None:
    words = [*COMMAND, "run", "-t", "--", "yes"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\r\n"
        process.stdout.close()
        assert 128 + signal.SIGPIPE == process.wait(60)


_READ_BUFFER = 4095  # N_TTY_BUF_SIZE - 1


def waiting(fd: int) -> int:
    """Return how many bytes can be read."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def wait_until_full(master: int, slave: int) -> None:
    """Wait until a terminal takes nothing more."""
    writable = os.open(os.ttyname(slave), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        deadline = time.monotonic() + PATIENCE
        # The kernel moves what was written to where it is read from, and as long as it can there is room again.
        while waiting(master) < _READ_BUFFER or select.select([], [writable], [], 0)[1]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with contextlib.suppress(BlockingIOError):  # it is called full while a little would still fit
            while True:
                os.write(writable, b"x")
    finally:
        os.close(writable)


def test_run_tty_on_a_terminal_that_takes_nothing_still_obeys() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    try:
        process = subprocess.Popen(
            [*COMMAND, "run", "-t", "--", "yes"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        wait_until_full(master, slave)
        (init,) = [pid for pid in screens.children(process.pid) if screens.name_of(pid) == "sandbox-init"]
        pidfd = os.pidfd_open(init)
        os.write(master, b"\3")  # a key: yes gets SIGINT
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
        # What it has said cannot be shown; a signal ends the wait for that.
        process.send_signal(signal.SIGTERM)
        assert 128 + signal.SIGTERM == process.wait(60)
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)
    assert set() == harness.children()
