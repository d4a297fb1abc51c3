"""Landlock by real attempts: what is allowed, what is refused and with which errno.

`before` is the positive control of each table: the same attempts without Landlock.
"""

import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import termios
from pathlib import Path

import harness
import pytest

from sandbox.confinement import confine
from sandbox.landlock import MAX_LAYERS, Landlock
from sandbox.primitives.landlock import LandlockAccessFs as Fs

pytestmark = pytest.mark.needs_landlock(1)


def tried(attempt, *args):
    """Return "ok" or the name of the errno."""
    try:
        attempt(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def read_file(tree):
    os.close(os.open(tree / "file", os.O_RDONLY))


def list_directory(tree):
    os.listdir(tree)


def write_file(tree):
    os.close(os.open(tree / "file", os.O_WRONLY))


def truncate(tree):
    os.truncate(tree / "file", 1)


def truncate_by_open(tree):
    os.close(os.open(tree / "file", os.O_RDONLY | os.O_TRUNC))


def create(tree):
    os.close(os.open(tree / "new", os.O_RDONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(tree / "new")


def remove(tree):
    os.unlink(tree / "gone")
    Path(tree / "gone").touch()


def make_directory(tree):
    os.mkdir(tree / "newdir")
    os.rmdir(tree / "newdir")


def make_fifo(tree):
    os.mkfifo(tree / "fifo")
    os.unlink(tree / "fifo")


def make_socket(tree):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sock"))
    os.unlink(tree / "sock")


def make_symlink(tree):
    os.symlink("nowhere", tree / "link")
    os.unlink(tree / "link")


def rename_beside(tree):
    os.rename(tree / "file", tree / "renamed")
    os.rename(tree / "renamed", tree / "file")


def rename_across(tree):
    os.rename(tree / "file", tree / "sub" / "file")
    os.rename(tree / "sub" / "file", tree / "file")


def link_across(tree):
    os.link(tree / "file", tree / "sub" / "linked")
    os.unlink(tree / "sub" / "linked")


def execute(tree):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(tree / "true", ["true"])
        except OSError as error:
            os.write(write_end, bytes([error.errno]))
        os._exit(0)
    os.close(write_end)
    failed = os.read(read_end, 1)
    os.close(read_end)
    os.waitpid(pid, 0)
    if failed:
        raise OSError(failed[0], "execv")


READING = {read_file: "ok", list_directory: "ok"}
WRITING = dict.fromkeys(
    (write_file, truncate, truncate_by_open, create, remove, make_directory, make_fifo, make_socket,
     make_symlink, rename_beside, rename_across, link_across), "ok")  # fmt: skip
EXECUTING = {execute: "ok"}
ALL_OK = READING | WRITING | EXECUTING
REFUSED_WRITING = dict.fromkeys(WRITING, "EACCES")


@pytest.fixture
def tree(tmp_path):
    """Two equal trees: `in` is what rules name."""
    for name in ("in", "out"):
        made = tmp_path / name
        (made / "sub").mkdir(parents=True)
        (made / "file").write_text("hello")
        (made / "gone").touch()
        shutil.copy("/bin/true", made / "true")
    return tmp_path


def table(tree, expected, landlock):
    """Try everything in a confined child, beneath `in` and `out`, and compare."""
    before = {attempt.__name__: tried(attempt, tree / "in") for attempt in ALL_OK}
    assert {attempt.__name__: "ok" for attempt in ALL_OK} == before

    def confined():
        confine(landlock=landlock)
        for where, answers in expected.items():
            got = {attempt.__name__: tried(attempt, tree / where) for attempt in answers}
            assert {attempt.__name__: answer for attempt, answer in answers.items()} == got, where

    harness.in_child(confined)


def test_read_allows_reading_there_and_leaves_the_rest_alone(tree):
    refused = {read_file: "EACCES", list_directory: "EACCES"}
    # Opening for reading is what O_RDONLY | O_TRUNC and creation with O_RDONLY do too.
    # execve(2) opens the program, and its loader, for reading.
    free = WRITING | {truncate_by_open: "EACCES", create: "EACCES", execute: "EACCES"}
    landlock = Landlock(read=[tree / "in", "/usr", "/lib", "/lib64", "/proc"])
    table(tree, {"in": ALL_OK, "out": refused | free}, landlock)


@pytest.mark.needs_landlock(3)
def test_write_allows_writing_there_and_leaves_the_rest_alone(tree):
    out = READING | REFUSED_WRITING | EXECUTING
    table(tree, {"in": ALL_OK, "out": out}, Landlock(write=[tree / "in", "/proc"]))


def test_execute_allows_executing_there_and_leaves_the_rest_alone(tree):
    out = READING | WRITING | {execute: "EACCES"}
    table(tree, {"in": ALL_OK, "out": out}, Landlock(execute=[tree / "in", "/usr", "/lib", "/lib64"]))


@pytest.mark.needs_landlock(3)
def test_nothing_allowed_refuses_everything(tree):
    everything = dict.fromkeys(READING | EXECUTING, "EACCES") | REFUSED_WRITING
    table(tree, {"in": everything, "out": everything}, Landlock(read=[], write=[], execute=[]))


@pytest.mark.needs_landlock(3)
def test_rule_for_a_file_allows_this_file(tree):
    answers = {read_file: "ok", list_directory: "EACCES", write_file: "ok", truncate: "ok", remove: "EACCES"}
    table(tree, {"in": answers}, Landlock(read=[tree / "in/file"], write=[tree / "in/file"]))


@pytest.mark.needs_landlock(3)
def test_exact_rights_are_just_these(tree):
    landlock = Landlock(read=["/"]).path(tree / "in", Fs.WRITE_FILE).path(tree / "out", Fs.TRUNCATE)
    table(tree, {"in": {write_file: "ok", truncate: "EACCES"}, "out": {write_file: "EACCES", truncate: "ok"}},
          landlock)  # fmt: skip


@pytest.mark.needs_landlock(2)
def test_refer_is_refused_with_exdev_where_only_refer_lacks(tree):
    # EACCES would mean a missing right to make or remove; EXDEV lets mv(1) copy instead.
    table(tree, {"in": {rename_across: "EXDEV", link_across: "EXDEV", rename_beside: "ok"}},
          Landlock().path("/dev", Fs.REFER).path("/", Fs.READ_FILE))  # fmt: skip


@pytest.mark.needs_landlock(2)
def test_moving_cannot_widen_rights(tree):
    def confined():
        confine(landlock=Landlock(read=[tree / "in", "/proc"]))
        assert "EACCES" == tried(read_file, tree / "out")
        # Not restricted as such, but the file would become readable by it.
        assert "EXDEV" == tried(os.rename, tree / "out/file", tree / "in/sub/stolen")
        os.rename(tree / "in/file", tree / "out/given")

    harness.in_child(confined)


@pytest.mark.needs_root
@pytest.mark.needs_landlock(3)
def test_write_does_not_make_device_nodes(tree):
    def make(path):
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))

    assert "ok" == tried(make, tree / "in/before")

    def confined():
        confine(landlock=Landlock(write=[tree / "in"]))
        assert "EACCES" == tried(make, tree / "in/null")

    harness.in_child(confined)
    harness.in_child(lambda: (confine(landlock=Landlock().path(tree / "in", Fs.MAKE_CHAR)), make(tree / "in/named")))


@pytest.mark.needs_landlock(5)
def test_ioctl_on_device_files_comes_with_write():
    def terminal_settings(path="/dev/null"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, termios.TCGETS, bytes(64))
        finally:
            os.close(fd)

    assert "ENOTTY" == tried(terminal_settings)

    def confined(landlock, answer):
        confine(landlock=landlock)
        assert answer == tried(terminal_settings)

    harness.in_child(confined, Landlock(write=[]), "EACCES")
    harness.in_child(confined, Landlock(write=["/dev/null"]), "ENOTTY")


def test_open_descriptors_stay_usable(tree):
    def confined():
        fd = os.open(tree / "in/file", os.O_RDWR)
        confine(landlock=Landlock(read=[]))
        assert b"hello" == os.pread(fd, 5, 0)
        assert "EACCES" == tried(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY)

    harness.in_child(confined)


def test_symbolic_link_out_of_an_allowed_directory_is_refused(tree):
    (tree / "in/way_out").symlink_to(tree / "out/file")
    assert "hello" == (tree / "in/way_out").read_text()

    def confined():
        confine(landlock=Landlock(read=[tree / "in"]))
        assert "EACCES" == tried(os.open, tree / "in/way_out", os.O_RDONLY)
        assert "EACCES" == tried(os.open, tree / "in/../out/file", os.O_RDONLY)

    harness.in_child(confined)


def test_ptrace_and_memory_of_a_process_outside_are_refused():
    parent = os.getpid()

    def peek():
        os.close(os.open(f"/proc/{parent}/mem", os.O_RDONLY))

    def confined(landlock, answer):
        if landlock is not None:
            confine(landlock=landlock)
        assert answer == tried(peek)

    harness.in_child(confined, None, "ok")
    harness.in_child(confined, Landlock(execute=["/"]), "EACCES")


# ── network ──────────────────────────────────────────────────────────────────────────────────────────────


def bind(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock.getsockname()[1]


def connect(port):
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", port))


@pytest.fixture
def servers():
    """Two listening ports."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield one.getsockname()[1], two.getsockname()[1]


@pytest.mark.needs_landlock(4)
def test_connect_tcp_allows_these_ports(servers):
    allowed, other = servers
    assert ("ok", "ok") == (tried(connect, allowed), tried(connect, other))

    def confined():
        confine(landlock=Landlock(connect_tcp=[allowed]))
        assert ("ok", "EACCES") == (tried(connect, allowed), tried(connect, other))
        assert "ok" == tried(bind, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(("127.0.0.1", other))  # as the gaps say

    harness.in_child(confined)


@pytest.mark.needs_landlock(4)
def test_bind_tcp_allows_these_ports(servers):
    free = bind(0)
    assert "ok" == tried(bind, free)

    def confined(ports, answers):
        confine(landlock=Landlock(bind_tcp=ports))
        assert answers == (tried(bind, free), tried(bind, 0))
        assert "ok" == tried(connect, servers[0])

    harness.in_child(confined, [free], ("ok", "EACCES"))
    harness.in_child(confined, [0], ("EACCES", "ok"))
    harness.in_child(confined, [], ("EACCES", "EACCES"))


def send_udp(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", port))


def bind_udp(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        return sock.getsockname()[1]


@pytest.mark.needs_landlock(10)
def test_udp_is_restricted_where_the_kernel_can():
    allowed, other = bind_udp(0), bind_udp(0)
    assert ("ok", "ok") == (tried(send_udp, allowed), tried(send_udp, other))

    def confined(landlock, sends, binds):
        confine(landlock=landlock)
        assert sends == (tried(send_udp, allowed), tried(send_udp, other))
        assert binds == (tried(bind_udp, allowed), tried(bind_udp, 0))
        assert "ok" == tried(bind, 0)

    harness.in_child(confined, Landlock(connect_udp=[allowed]), ("ok", "EACCES"), ("ok", "ok"))
    harness.in_child(confined, Landlock(connect_udp=[allowed], bind_udp=[0]), ("ok", "EACCES"), ("EACCES", "ok"))
    # Sending binds, too.
    harness.in_child(confined, Landlock(bind_udp=[allowed]), ("EACCES", "EACCES"), ("ok", "EACCES"))


@pytest.mark.needs_landlock(9)
def test_connecting_to_a_unix_socket_by_path_comes_with_write(tree):
    def call(where):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tree / where / "server"))

    def confined():
        confine(landlock=Landlock(write=[tree / "in"]))
        assert ("ok", "EACCES") == (tried(call, "in"), tried(call, "out"))

    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for where, server in (("in", one), ("out", two)):
            server.bind(str(tree / where / "server"))
            server.listen(8)
            assert "ok" == tried(call, where)
        harness.in_child(confined)


# ── scopes ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.needs_landlock(6)
def test_scope_signal_reaches_nobody_outside():
    parent = os.getpid()

    def confined(landlock, answer):
        if landlock is not None:
            confine(landlock=landlock)
        assert answer == tried(os.kill, parent, 0)
        child = os.fork()
        if child == 0:
            signal.pause()
        assert "ok" == tried(os.kill, child, signal.SIGKILL)
        os.waitpid(child, 0)

    harness.in_child(confined, None, "ok")
    harness.in_child(confined, Landlock(scope=["signal"]), "EPERM")
    harness.in_child(confined, Landlock(scope=["abstract_unix_socket"]), "ok")


@pytest.mark.needs_landlock(6)
def test_scope_abstract_unix_socket_reaches_nobody_outside():
    name = f"\0sandbox-test-{os.getpid()}"

    def call(address):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(address)

    def confined(landlock, answer):
        if landlock is not None:
            confine(landlock=landlock)
        assert answer == tried(call, name)
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(f"{name}-own")
            own.listen()
            assert "ok" == tried(call, f"{name}-own")

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen(8)
        harness.in_child(confined, None, "ok")
        harness.in_child(confined, Landlock(scope=["abstract_unix_socket"]), "EPERM")
        harness.in_child(confined, Landlock(scope=["signal"]), "ok")


# ── layers and answers ───────────────────────────────────────────────────────────────────────────────────


def test_layers_only_add(tree):
    def confined():
        assert 1 == confine(landlock=Landlock(read=[tree / "in", "/proc"])).landlock_layers
        assert 2 == confine(landlock=Landlock(read=["/proc", tree / "out"])).landlock_layers
        assert "EACCES" == tried(read_file, tree / "in")
        assert "EACCES" == tried(read_file, tree / "out")

    harness.in_child(confined)


def test_seventeenth_layer_is_unsupported():
    def confined():
        for layer in range(1, MAX_LAYERS + 1):
            assert layer == confine(landlock=Landlock(execute=["/"])).landlock_layers
        with pytest.raises(OSError, match="another Landlock layer"):
            confine(landlock=Landlock(execute=["/"]))

    harness.in_child(confined)


def test_missing_path_is_an_error_and_changes_nothing(tree):
    def confined():
        before = harness.footprint().descriptors
        with pytest.raises(FileNotFoundError) as caught:
            confine(landlock=Landlock(read=[tree / "nope"]))
        assert str(tree / "nope") == caught.value.filename
        assert before == harness.footprint().descriptors
        assert "ok" == tried(read_file, tree / "out")
        with open("/proc/self/status") as status:
            assert "NoNewPrivs:\t0" in status.read()

    harness.in_child(confined)


def test_best_effort_reports_a_missing_path(tree):
    def confined():
        enforced = confine(landlock=Landlock(read=[tree / "nope", "/proc"], best_effort=True))
        assert (f"{tree}/nope: no such file or directory",) == enforced.missing
        assert "EACCES" == tried(read_file, tree / "in")

    harness.in_child(confined)


def test_directory_rights_alone_for_a_file_are_an_error(tree):
    def confined():
        with pytest.raises(NotADirectoryError):
            confine(landlock=Landlock().path(tree / "in/file", Fs.READ_DIR))

    harness.in_child(confined)


@pytest.mark.needs_landlock(7)
def test_log_flags_are_taken_by_the_kernel():
    landlock = Landlock(execute=["/"]).log(same_exec=False, new_exec=True, subdomains=False)
    harness.in_child(lambda: confine(landlock=landlock))


def test_every_ruleset_that_the_kernel_has_is_taken_by_it():
    # What is compiled for an older ABI must load on this kernel as well.
    def confined():
        from sandbox.confinement import make_ruleset

        landlock = Landlock(
            read=["/"], write=["/tmp"], execute=["/usr"], bind_tcp=[0], connect_tcp=[443], bind_udp=[0],
            connect_udp=[53], scope=["signal", "abstract_unix_socket"], best_effort=True,
        )  # fmt: skip
        for abi in range(1, Landlock.abi() + 1):
            fd, missing = make_ruleset(landlock.ruleset(abi))
            os.close(fd)
            assert () == missing

    harness.in_child(confined)
