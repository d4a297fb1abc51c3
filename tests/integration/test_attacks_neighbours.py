"""Attacks on what runs beside a sandbox: the caller, its processes, another sandbox of the same caller, and init."""

import fcntl
import hashlib
import os
import select
import socket
import subprocess
from contextlib import contextmanager

import harness
import payloads
import plans
import pytest
from payloads import number, tell

from sandbox import PIPE, Sandbox, SetupError, launch

pytestmark = pytest.mark.needs_userns


@contextmanager
def victim():
    """A process of the caller's."""
    process = subprocess.Popen(["sleep", "1000"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# What one process may do to another; the signal is 0.
REACH = f"""
import ctypes
def reach(pid):
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        pidfd = errno.errorcode[error.errno]
    buffer = ctypes.create_string_buffer(16)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
    try:
        with open(f"/proc/{{pid}}/maps") as stream:
            start = int(stream.readline().split("-")[0], 16)
    except (OSError, ValueError):
        start = 0x400000
    remote = (ctypes.c_uint64 * 2)(start, 8)
    return {{
        "signal": tried(os.kill, pid, 0),
        "pidfd signal": call({number("pidfd_send_signal")}, pidfd, 0, 0, 0) if isinstance(pidfd, int) else pidfd,
        "descriptor": [one for one in (call({number("pidfd_getfd")}, pidfd, fd, 0) for fd in range(4))
                       if isinstance(one, int)] if isinstance(pidfd, int) else [],
        "read": call({number("process_vm_readv")}, pid, vector, 1, remote, 1, 0),
        "write": call({number("process_vm_writev")}, pid, vector, 1, remote, 1, 0),
        "mem": tried(os.open, f"/proc/{{pid}}/mem", os.O_RDWR),
        "environ": tried(os.open, f"/proc/{{pid}}/environ", os.O_RDONLY),
        "root": tried(os.listdir, f"/proc/{{pid}}/root/"),
        "cwd": tried(os.listdir, f"/proc/{{pid}}/cwd/"),
        "exe": tried(os.open, f"/proc/{{pid}}/exe", os.O_RDONLY),
        "ns": tried(os.open, f"/proc/{{pid}}/ns/mnt", os.O_RDONLY),
        "trace": call({number("ptrace")}, 0x4206, pid, 0, 0),
        "limits": call({number("prlimit64")}, pid, 7, 0, buffer),
        "affinity": call({number("sched_getaffinity")}, pid, 16, buffer),
        "priority": tried(os.setpriority, os.PRIO_PROCESS, pid, 0),
    }}
"""
# What leads into a process: whoever can do one of these is that process.
INTO = ("read", "write", "mem", "environ", "root", "cwd", "exe", "ns", "trace")


def own_child(box):
    """Return what the payload can do to a process of its own: all of it, the control."""
    body = (
        REACH + "import signal\nchild = os.fork()\nif child == 0: signal.pause()\nsay(reach(child)); os.kill(child, 9)"
    )
    return tell(box, body)


def test_processes_of_the_caller_are_out_of_reach():
    with victim() as process:
        for box in (Sandbox().seccomp(None), Sandbox().seccomp(None).share("net", "ipc", "uts", "cgroup")):
            for pid in (process.pid, os.getpid()):
                found = tell(box, REACH + f"say(reach({pid}))")
                assert [] == found.pop("descriptor")
                assert set(found.values()) <= {"ESRCH", "ENOENT"}, found
        control = own_child(Sandbox().seccomp(None))
        assert "ok" == control["mem"] == control["environ"] == control["root"] == control["signal"]
        assert 0 == control["trace"] == control["limits"]
        assert control["descriptor"]
        assert (8, "EFAULT") == (control["read"], control["write"])  # its beginning is read-only, not out of reach


def test_sandboxes_of_one_caller_do_not_see_each_other():
    """They have the same user where the caller is no root, and each a user namespace of its own."""
    box = Sandbox().seccomp(None)
    with box.popen(["sleep", "1000"]) as other:
        for pid in (other.pid, other.init_pid):
            found = tell(
                box, REACH + f"say([reach({pid}), sorted(int(one) for one in os.listdir('/proc') if one.isdigit())])"
            )
            assert [1, 2] == found[1]
            assert {"ESRCH", "ENOENT"} >= {found[0][name] for name in INTO}
        # With the caller's processes to be seen, still none of them can be entered.
        seen = box.share("pid")
        for pid in (other.pid, other.init_pid, os.getpid()):
            found = tell(seen, REACH + f"say(reach({pid}))")
            assert {"EPERM", "EACCES"} >= {found[name] for name in INTO}, found
            assert [] == found["descriptor"]
            # As a gap says.
            signalled = "ok" if os.geteuid() else "EPERM"
            assert [signalled, 0 if os.geteuid() else "EPERM"] == [found["signal"], found["pidfd signal"]]
        told = any("signals" in gap for gap in seen.run(["true"]).enforced.gaps)
        assert bool(os.geteuid()) == told
        assert other.poll() is None
        other.kill()


def test_gaps_name_what_shared_namespaces_open():
    def said(box, word):
        return any(word in gap for gap in box.run(["true"]).enforced.gaps)

    for box in (Sandbox().network("host"), Sandbox().share("net")):
        assert said(box, "abstract sockets")
    assert not said(Sandbox(), "abstract sockets")
    assert not said(Sandbox(), "signals")
    if os.geteuid() == 0:
        assert said(Sandbox().share("pid").user(0, host_root=True), "signals")


@pytest.mark.needs_root
def test_priorities_of_a_user_are_those_inside():
    """A payload of an unprivileged caller has its user; setpriority(2) and ioprio_set(2) know all processes of one."""

    def check():
        # A user of its own: no other test's process is slowed down.
        harness.make_reachable([harness.REPOSITORY])
        os.setgroups([])
        harness.drop_privileges_but_groups(harness.USER_ID + 7)
        with victim() as process:

            def attack(box):
                ioprio = f"call({number('ioprio_set')}, 3, os.getuid(), 3 << 13)"
                tell(box, f"os.setpriority(os.PRIO_USER, os.getuid(), 7); say({ioprio})")
                return os.getpriority(os.PRIO_PROCESS, process.pid)

            assert 0 == attack(Sandbox().seccomp(None))
            assert 0 == attack(Sandbox())
            assert 7 == attack(Sandbox().seccomp(None).share("pid"))  # the control

    harness.in_child(check)


def test_signals_to_all_and_to_init_reach_nobody_outside():
    body = f"""
import signal, time
def other(how):
    child = os.fork()
    if child == 0:
        signal.pause()
    how(child)
    return os.waitpid(child, 0)[1]
def queued(pid, number):
    information = ctypes.create_string_buffer(128)
    struct = (ctypes.c_int * 4).from_buffer(information)
    struct[0], struct[2] = number, -1
    return call({number("rt_sigqueueinfo")}, pid, number, information)
numbers = [one for one in range(1, 65) if one not in (32, 33)]
control = other(lambda child: queued(child, 9))
init = [[tried(os.kill, 1, one) for one in numbers], [queued(1, one) for one in numbers],
        [call({number("tgkill")}, 1, 1, one) for one in numbers]]
os.kill(1, signal.SIGSTOP)
all_of_them = other(lambda child: os.kill(-1, signal.SIGKILL))
with open("/proc/1/status") as stream:
    state = next(line.split()[1] for line in stream if line.startswith("State:"))
say([control, all_of_them, state in "RSD"])
"""
    with victim() as process:
        for box in (Sandbox(), Sandbox().seccomp(None).user(0), Sandbox().seccomp(None).capabilities(ambient=["KILL"])):
            done = box.run(payloads.script(body), capture_output=True, text=True, timeout=60)
            assert (0, "") == (done.returncode, done.stderr)
            assert "[9, 9, true]" == done.stdout.strip(), box
        assert process.poll() is None


# ── the program and the plan of init ──


def test_memfds_of_init_cannot_be_changed():
    Sandbox().run(["true"])
    kept = launch.native._init_program._kept.fd
    plan = launch.native.seal(bytearray(b"a plan"))
    unsealed = os.memfd_create("of-this-test", os.MFD_ALLOW_SEALING)
    os.write(unsealed, b"a program")

    def changes(fd):
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        tries = [
            lambda: os.pwrite(again, b"x", 0),
            lambda: os.ftruncate(again, 0),
            lambda: os.ftruncate(again, 1 << 20),
            lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, 0x10),
        ]
        works = []
        for one in tries:
            try:
                one()
                works.append(True)
            except PermissionError:
                works.append(False)
        os.close(again)
        return works

    before = os.pread(kept, 1 << 20, 0)
    assert [False] * 4 == changes(kept) == changes(plan)
    assert before == os.pread(kept, 1 << 20, 0)
    assert [True] * 4 == changes(unsealed)  # the control
    os.close(plan)
    os.close(unsealed)


# A script whose interpreter is whatever executes it: for a moment init's own program, run by the payload's user.
OVERWRITE = """
import time
os.write(1, b"ready\\n")
found = set()
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):
                try:
                    fd = os.open(f"/proc/{name}/exe", flags)
                    found.add(flags)
                    try:
                        os.write(fd, b"overwritten")
                        found.add("written")
                    except OSError:
                        os.close(fd)
                except OSError:
                    pass
    if os.path.exists("/w/stop") and os.O_RDONLY in found:
        break
say(["written" in found, os.O_RDONLY in found])
"""


@pytest.mark.parametrize("where", ["memfd", "file"])
def test_init_is_not_overwritten_by_a_command_whose_interpreter_is_proc_self_exe(where, tmp_path, monkeypatch):
    """Where no memfd can be executed it is the installed file, which is root's: so is this payload then."""
    payloads.ours(tmp_path)
    (tmp_path / "evil").write_text("#!/proc/self/exe\n")
    (tmp_path / "evil").chmod(0o755)
    harness.give_away(tmp_path / "evil")
    box = Sandbox().bind(tmp_path, "/w").seccomp(None)
    if where == "file":
        box = box.user(0, host_root=True) if os.geteuid() == 0 else box
        monkeypatch.setattr(launch.native._init_program, "_only_file", True)
        init = os.open(launch.native._INIT_PATH, os.O_RDONLY)
    else:
        box.run(["true"])
        init = os.dup(launch.native._init_program._kept.fd)

    def digest():
        return hashlib.sha256(os.pread(init, 1 << 20, 0)).digest()

    before = digest()
    with box.popen(payloads.script(OVERWRITE), stdout=PIPE, text=True) as process:
        assert "ready\n" == process.stdout.readline()
        ordinary = process.popen(["sleep", "1000"])  # the control: its program can be opened
        for _ in range(20):
            try:
                assert 0 != process.run(["/w/evil"]).returncode
            except SetupError:  # refused is as good
                continue
        (tmp_path / "stop").touch()
        assert "[false, true]\n" == process.stdout.readline()
        ordinary.kill()
        ordinary.close()
    assert before == digest()
    os.close(init)
    assert 0 == box.run(["true"]).returncode


# ── descriptors ──


def test_descriptor_that_is_passed_leads_to_its_file_and_a_read_only_bind_does_not(tmp_path):
    """A descriptor carries its mount: reading was meant, but who may write to the file opens it again for that."""
    payloads.ours(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o666)
    body = """
def again(path):
    return [tried(os.open, path, os.O_WRONLY), tried(os.open, path, os.O_RDWR | os.O_TRUNC)]
passed = again("/proc/self/fd/7")
bound = os.open("/w/file", os.O_RDONLY)
by_path = os.open("/w/file", os.O_PATH)
folder = os.open("/w", os.O_PATH)
say([passed, again(f"/proc/self/fd/{bound}"), again(f"/proc/self/fd/{by_path}"),
     tried(os.open, "made", os.O_CREAT | os.O_WRONLY, dir_fd=folder), tried(os.listdir, f"/proc/self/fd/{folder}/..")])
"""
    with open(tmp_path / "file") as stream:
        found = tell(Sandbox().bind_readonly(tmp_path, "/w"), body, fds={7: stream})
    assert [["ok", "ok"], ["EROFS"] * 2, ["EROFS"] * 2, "EROFS", "ok"] == found
    assert "" == (tmp_path / "file").read_text()


def test_output_that_is_handed_to_somebody_outside_keeps_nobody_waiting(tmp_path):
    payloads.ours(tmp_path)
    body = """
import array, socket
outside = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
outside.connect("WHERE")
outside.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
say("handed")
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o666)
        done = (
            Sandbox()
            .bind(tmp_path, "/w")
            .run(payloads.script(body.replace("WHERE", "/w/socket")), capture_output=True, text=True, input="left")
        )
        assert ('"handed"\n', 0) == (done.stdout, done.returncode)
        # The control: who waits for the end of the pipe itself waits for as long as it is held.
        command = payloads.script(body.replace("WHERE", str(tmp_path / "socket")))
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            process.wait()
            assert b'"handed"\n' == process.stdout.readline()
            assert [] == select.select([process.stdout], [], [], 0)[0]
            received, ancillary, *_ = server.recvmsg(10, socket.CMSG_SPACE(4 * 6))
            assert received
            held = [fd for _, _, data in ancillary for fd in memoryview(data).cast("i")]
            rest = server.recvmsg(10, socket.CMSG_SPACE(4 * 6))[1]
            held += [fd for _, _, data in rest for fd in memoryview(data).cast("i")]
            for fd in held:
                os.close(fd)
            assert b"" == process.stdout.read()


def test_terminal_that_is_passed_for_output_can_be_read_and_its_own_cannot_reach_it():
    """As the documentation says of streams: the descriptor of a terminal is open for both."""
    body = """
import select, termios
found = []
for fd in (1, 2):
    try:
        attributes = termios.tcgetattr(fd)
        attributes[3] &= ~termios.ICANON
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
        found.append(os.read(fd, 5).decode() if select.select([fd], [], [], 5)[0] else "")
    except (OSError, termios.error) as error:
        found.append(error.args[0])
os.write(7, json.dumps(found).encode())
"""
    master, slave = os.openpty()
    with plans.pipes() as (read_end, write_end):
        os.write(master, b"typed\n")
        Sandbox().run(payloads.script(body), stdout=slave, stderr=PIPE, fds={7: write_end})
        # 25: ENOTTY, of the pipe.
        assert b'["typed", 25]' == os.read(read_end, 100)
        os.write(master, b"typed\n")
        with Sandbox().popen(payloads.script(body), pty=True, fds={7: write_end}) as process:
            process.stdin.write(b"other" * 2)
            assert b'["other", "other"]' == os.read(read_end, 100)
            process.kill()
    os.close(master)
    os.close(slave)
