"""`popen(pty=...)`: a terminal of the sandbox's own, its two ends, its size, its end, and what is missing for one."""

import errno
import fcntl
import hashlib
import os
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import harness
import plans
import pytest

from sandbox import DEVNULL, PIPE, Process, Sandbox, SetupError, TimeoutExpired
from sandbox.compiler import compile_plan
from sandbox.compiler.draft import Variant
from sandbox.identity import caller
from sandbox.terminal import Terminal, values_of

pytestmark = pytest.mark.needs_userns

TIOCSTI = """
import fcntl
try:
    fcntl.ioctl(0, 0x5412, b"x")
    print("typed")
except OSError as error:
    print(error.errno)
"""


def said(process: Process[bytes]) -> list[str]:
    """Read all that it says, and wait for its end."""
    with process:
        assert process.stdout is not None
        return process.stdout.read().decode().replace("\r\n", "\n").splitlines()


def conversation(script: str, input: bytes | None) -> bytes:
    """Communicate, and return what it said."""
    with start(script) as process:
        out, err = process.communicate(input)
        assert err is None
        assert out is not None
        return out


def start(script: str, pty: "bool | tuple[int, int]" = True, **options: object) -> Process[bytes]:
    return Sandbox().popen(["sh", "-c", script], pty=pty, **options)  # type: ignore[call-overload, no-any-return]


def test_pty_is_the_commands_controlling_terminal_of_its_own_devpts() -> None:
    lines = said(start("tty; tty <&2; tty </dev/tty; stat -c %U /dev/pts/0; ps -o sid= -o tpgid= -p $$; ls /dev/pts"))
    assert ["/dev/pts/0", "/dev/pts/0", "/dev/tty", "user"] == lines[:4]
    assert ["2", "2"] == lines[4].split()
    assert ["0", "ptmx"] == lines[5].split()


def test_pty_leaves_no_other_descriptor_inside() -> None:
    assert ["0", "1", "2"] == " ".join(said(start("ls /proc/$$/fd"))).split()


def test_pty_beside_other_descriptors() -> None:
    with plans.pipes() as (read_end, write_end):
        process = start("tty; echo text >&3", fds={3: write_end})
        assert ["/dev/pts/0"] == said(process)
        assert b"text\n" == os.read(read_end, 100)


@pytest.mark.parametrize(("pty", "size"), [(True, "24 80"), ((50, 132), "50 132"), ((1, 65535), "1 65535")])
def test_pty_has_the_size_asked_for(pty: "bool | tuple[int, int]", size: str) -> None:
    assert [size] == said(start("stty size", pty))


def test_pty_erases_whole_characters() -> None:
    with start("read line; echo got:$line") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("aé\x7f\n".encode())
        assert "got:a\r\n" in process.stdout.read().decode()


def test_pty_streams_are_one_file_that_knows_it_is_a_terminal() -> None:
    with start("read line") as process:
        assert process.stdin is process.stdout
        assert isinstance(process.stdout, Terminal)
        assert process.stdout.isatty()
        assert process.stdout.readable() and process.stdout.writable() and not process.stdout.seekable()
        assert process.stderr is None
        process.stdin.write(b"\n")


def test_pty_text_reads_and_writes_lines() -> None:
    with Sandbox().popen(
        ["sh", "-c", "stty -echo; echo ready; read x; echo é:$x; read y; echo $y"], pty=True, text=True
    ) as p:
        assert p.stdin is not None and p.stdout is not None
        assert p.stdout.readline() == "ready\n"
        p.stdin.write("one\n")
        assert p.stdout.readline() == "é:one\n"
        p.stdin.write("two\n")
        assert p.stdout.read() == "two\n"
    assert p.returncode == 0


def test_pty_read_returns_what_is_there_then_the_end() -> None:
    with start("printf prompt; read x") as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.read(1000) == b"prompt"
        process.stdin.write(b"\n")
        assert process.stdout.read(1000) == b"\r\n"
        assert process.stdout.read(1000) == b""
        assert process.stdout.readinto(bytearray(10)) == 0
        assert process.stdout.read() == b""
        assert process.stdin.write(b"into nothing") == 12


def test_pty_output_that_nobody_has_read_outlives_the_command() -> None:
    process = start("i=0; while [ $i -lt 900 ]; do echo line $i; i=$((i+1)); done")
    assert process.wait(60) == 0
    lines = said(process)
    assert [f"line {i}" for i in range(900)] == lines


def test_pty_more_output_than_a_terminal_holds_comes_whole() -> None:
    lines = said(start("seq 100000"))
    assert [str(i) for i in range(1, 100001)] == lines


@pytest.mark.parametrize(("key", "number"), [(b"\3", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_pty_key_is_a_signal(key: bytes, number: int) -> None:
    with start("echo ready; exec sleep 1000") as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.read(100) == b"ready\r\n"
        process.stdin.write(key)
        assert -number == process.wait(60)


def test_pty_close_hangs_up() -> None:
    with start("echo ready; exec sleep 1000") as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.read(100) == b"ready\r\n"
        process.stdin.close()
        assert -signal.SIGHUP == process.wait(60)


def test_resize_is_told_inside() -> None:
    with start("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 1000 & wait; done") as process:
        assert process.stdout is not None
        assert process.stdout.read(100) == b"ready\r\n"
        process.resize(40, 120)
        assert process.stdout.read() == b"40 120\r\n"


def test_resize_without_a_terminal_is_refused() -> None:
    with Sandbox().popen(["true"]) as process, pytest.raises(ValueError, match="pty=True"):
        process.resize(24, 80)


@pytest.mark.parametrize(
    ("rows", "columns", "kind"), [(0, 80, ValueError), (24, 65536, ValueError), ("24", 80, TypeError)]
)
def test_resize_out_of_range_names_it(rows: int, columns: int, kind: type[Exception]) -> None:
    with start("true") as process, pytest.raises(kind, match=r"rows|columns"):
        process.resize(rows, columns)


# ── communicate ──


def test_communicate_types_the_input_and_its_end() -> None:
    assert conversation("stty -echo; echo ready; cat", None) == b"ready\r\n"
    assert conversation("cat >/tmp/x; cat /tmp/x", b"one\ntwo").endswith(b"one\r\ntwo")


def test_communicate_text_has_plain_line_ends() -> None:
    with Sandbox().popen(["sh", "-c", "stty -echo; read go; cat"], pty=True, text=True) as process:
        out, _ = process.communicate("go\né\n")
    assert out is not None
    assert out.endswith("é\n")
    assert "\r" not in out


def test_communicate_more_than_a_terminal_takes_at_once() -> None:
    lines = b"".join(b"%d\n" % i for i in range(20000))
    script = "stty -echo; echo ready; md5sum"
    with start(script) as process:
        assert process.stdout is not None
        assert process.stdout.read(100) == b"ready\r\n"
        out, _ = process.communicate(lines)
    assert out is not None
    assert hashlib.md5(lines).hexdigest().encode() in out


def test_communicate_to_a_command_that_does_not_read_ends() -> None:
    assert b"end" in conversation("stty -echo raw; echo end", b"x" * 1_000_000)


def test_communicate_timeout_leaves_the_terminal_in_use() -> None:
    with start("stty -echo; echo first; cat; echo second; read x; echo third:$x") as process:
        assert process.stdin is not None and process.stdout is not None
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(None, 0.5)
        # The end of the input, which was typed, has ended cat; what follows is read and typed as ever.
        assert b"first\r\nsecond\r\n".startswith(caught.value.output)
        process.stdin.write(b"go\n")
        assert process.stdout.read().endswith(b"third:go\r\n")


# ── what else the sandbox says ──


@pytest.mark.parametrize(
    "box",
    [
        Sandbox().user(0),
        Sandbox().network("host"),
        Sandbox().seccomp(None),
        Sandbox().nesting(),
        Sandbox().landlock(read=["/"], execute=["/usr"], write=["/dev", "/tmp"]),
        Sandbox().user(0).capabilities(["SYS_ADMIN"]),
        Sandbox().capabilities(["NET_ADMIN"]),
        Sandbox().observe(),
        Sandbox().cwd("/usr/share"),
        Sandbox().share("pid"),
        Sandbox().init(False),
        Sandbox().limit(open_files=16, wall_time=60),
    ],
    ids=lambda box: "",
)
def test_pty_works_with_every_layer(box: Sandbox) -> None:
    for _ in range(2):  # the second time from a kept tree
        process = box.popen(["sh", "-c", "tty && stty size && echo text >/dev/tty"], pty=True)
        assert ["/dev/pts/0", "24 80", "text"] == said(process)
        assert process.returncode == 0


def test_pty_of_a_held_command_is_there_before_it_runs() -> None:
    with Sandbox().popen(["stty", "size"], pty=True, hold=True) as process:
        process.resize(33, 99)
        process.release()
        assert process.stdout is not None
        assert process.stdout.read() == b"33 99\r\n"


def test_pty_without_a_new_session_is_refused() -> None:
    with pytest.raises(ValueError, match="new_session"):
        Sandbox().new_session(False).popen(["true"], pty=True)


@pytest.mark.needs_root
def test_pty_works_in_the_callers_user_namespace() -> None:
    assert ["/dev/pts/0"] == said(Sandbox().share("user").popen(["tty"], pty=True))


def test_pty_cannot_be_typed_into_under_the_default_filter() -> None:
    denied = said(Sandbox().popen(["python3", "-c", TIOCSTI], pty=True))
    assert [str(errno.EPERM)] == denied[-1:]
    # The positive control: without the filter it can.
    with open("/proc/sys/dev/tty/legacy_tiocsti") as stream:
        allowed = stream.read() == "1\n"
    typed = said(Sandbox().seccomp(None).popen(["python3", "-c", TIOCSTI], pty=True))
    assert "typed" in typed[-1] if allowed else str(errno.EIO) == typed[-1]


def test_pty_is_not_the_callers_terminal(tmp_path: Path) -> None:
    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        lines = said(start("stty raw -echo rows 7; stty size; ls -l /proc/self/fd"))
        assert termios.tcgetattr(slave) == before
        rows, _, _, _ = struct.unpack("4H", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))
        assert rows == 0
        assert os.ttyname(slave) not in " ".join(lines).replace("/dev/pts/0", "") or os.ttyname(slave) == "/dev/pts/0"
    finally:
        os.close(master)
        os.close(slave)


# ── what is wrong ──


@pytest.mark.parametrize("pty", [24, "yes", (24,), (24, 80, 0), [24, 80], None, 1])
def test_pty_of_a_wrong_kind_is_a_type_error(pty: object) -> None:
    with pytest.raises(TypeError, match="pty"):
        start("true", pty)  # type: ignore[arg-type]


@pytest.mark.parametrize("pty", [(0, 80), (24, -1), (65536, 80)])
def test_pty_out_of_range_is_a_value_error(pty: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="between 1 and 65535"):
        start("true", pty)


@pytest.mark.parametrize("streams", [{"stdin": PIPE}, {"stdout": PIPE}, {"stderr": DEVNULL}])
def test_pty_with_streams_is_refused(streams: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="may not be used with pty"):
        start("true", **streams)


def without_devpts(tmp_path: Path) -> Iterator[Sandbox]:
    base = Sandbox.empty().bind_readonly("/usr").symlink("usr/bin", "/bin").symlink("usr/lib", "/lib")
    base = base.symlink("usr/lib64", "/lib64")
    yield base
    yield base.dev(nodes=["null"])
    yield base.file("/dev/ptmx", "no device")
    yield base.symlink("/proc/1/root/dev/ptmx", "/dev/ptmx").proc()


def test_pty_without_a_devpts_says_what_to_add(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for box in without_devpts(tmp_path):
        with pytest.raises(SetupError) as caught:
            box.popen(["true"], pty=True)
        assert caught.value.hint is not None
        assert ".dev()" in caught.value.hint
        assert caught.value.origin == "pty"
    # The positive control: with it, such a root has a terminal.
    assert ["/dev/pts/0"] == said(next(without_devpts(tmp_path)).dev().popen(["tty"], pty=True))


def test_pty_each_step_fails_in_turn_and_nothing_stays() -> None:
    box = Sandbox()
    plan = compile_plan(box._spec, caller(box._spec), Variant(pty=True)).plan
    steps = [step for step in plan.steps if step.origin in {"pty", "descriptors"}]
    assert len(steps) == 9
    for step in steps:
        before = harness.footprint()
        with pytest.raises(SetupError) as caught:
            plans.launch(box, ["true"], plan=plan.with_fault(step.number, errno.EPERM), pty=True)
        assert (step.number, step.origin) == (caught.value.step, caught.value.origin)
        assert before == harness.footprint(settle=before)


def test_values_are_what_the_kernel_begins_with() -> None:
    master, slave = os.openpty()
    try:
        kernels = fcntl.ioctl(slave, 0x5401, bytes(36))  # TCGETS
    finally:
        os.close(master)
        os.close(slave)
    iutf8 = struct.pack("<I", struct.unpack_from("<I", kernels)[0] | 0o40000)
    assert iutf8 + kernels[4:] == dict(values_of(True))["attributes"]
