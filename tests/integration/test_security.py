"""Attacks of a payload that knows this code; each with the control that it works with that one layer off.

What is asked is written in Python, runs inside, and comes back as JSON.
"""

import ctypes
import errno
import json
import os
import resource
import select
import socket
import subprocess
import threading

import harness
import plans
import pytest
from payloads import number

import sandbox
from sandbox import Sandbox, SetupError

pytestmark = pytest.mark.needs_userns

PYTHON = "/usr/bin/python3"
PRELUDE = """
import ctypes, errno, json, os, signal, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args])
    return ctypes.get_errno() if result < 0 else 0
def attempt(function, *args):
    try:
        result = function(*args)
        if isinstance(result, int) and result > 2: os.close(result)
        return 0
    except OSError as error:
        return error.errno
"""


MQ_OPEN, MQ_UNLINK = number("mq_open"), number("mq_unlink")


def plain():
    """The default without its system call filter: what is shown here holds without that layer."""
    return Sandbox().seccomp(None)


def inside(script, box=None, **options):
    *lines, last = script.strip().splitlines()
    code = PRELUDE + "\n".join([*lines, f"print(json.dumps({last}))"])
    box = plain() if box is None else box
    result = box.run([PYTHON, "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60, **options)
    assert 0 == result.returncode, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def host(tmp_path):
    tmp_path.chmod(0o777)
    return tmp_path


# ── descriptors and /proc ────────────────────────────────────────────────────────────────────────────────────────────


def test_no_descriptor_of_the_caller_gets_in_though_none_closes_on_exec(host):
    def check():
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(room, 4096), room))
        own, other = socket.socketpair()
        epoll = select.epoll()
        makers = [
            lambda: os.open("/etc/passwd", os.O_RDONLY),
            lambda: os.open("/", os.O_PATH | os.O_DIRECTORY),
            lambda: os.open("/proc/self/ns/mnt", os.O_RDONLY),
            lambda: os.dup(own.fileno()),
            lambda: os.pidfd_open(os.getpid()),
            lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            lambda: os.dup(epoll.fileno()),
            lambda: os.eventfd(0),
            lambda: os.memfd_create("of-this-test"),
            lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
        ]
        for i in range(300):
            os.set_inheritable(makers[i % len(makers)](), True)
        os.dup2(0, 1000, inheritable=True)
        script = "sorted(int(fd) for fd in os.listdir('/proc/self/fd'))"
        # The control: a child that is not sandboxed has them all.
        code = PRELUDE + f"print(len({script}))"
        plain = subprocess.run([PYTHON, "-S", "-c", code], close_fds=False, capture_output=True, check=True)
        assert int(plain.stdout) > 300
        # 3 is the listing's own.
        assert [0, 1, 2, 3] == inside(script)
        assert [0, 1, 2, 3, 7] == inside(script, fds={7: 1000})
        other.close()
        epoll.close()

    harness.in_child(check)


@pytest.mark.parametrize(
    "path", ["/proc/self/fd/3", "/proc/self/cwd", "/proc/1/root", "/proc/self/root", "/tmp/link", "/tmp/out"]
)
def test_working_directory_by_a_magic_link_is_refused_or_inside(path):
    box = Sandbox().symlink("/proc/1/root/etc", "/tmp/link").symlink("../../../../etc", "/tmp/out")
    with open("/dev/null") as null:
        try:
            result = box.run(["pwd", "-P"], cwd=path, fds={3: null}, capture_output=True, text=True)
        except SetupError as error:
            assert error.errno in {errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EXDEV}
            assert "/tmp/out" != path
        else:
            assert ("/tmp/out", "/etc\n") == (path, result.stdout)


def test_init_cannot_be_traced_read_or_reopened():
    script = """
found = {}
for name in ("root", "cwd", "exe", "environ", "mem", "maps", "fd/0", "ns/mnt", "stack", "syscall"):
    path = f"/proc/1/{name}"
    look = (lambda p: os.readlink(p) and 0) if name in ("root", "cwd", "exe") else (lambda p: os.open(p, os.O_RDONLY))
    found[name] = attempt(look, path)
found["mem for writing"] = attempt(os.open, "/proc/1/mem", os.O_RDWR)
found["exe for writing"] = attempt(os.open, "/proc/1/exe", os.O_RDWR)
found["ptrace"] = call(101, 16, 1, 0, 0)
found["seize"] = call(101, 0x4206, 1, 0, 0)
found["pidfd_getfd"] = call(438, os.pidfd_open(1), 3, 0)
buffer = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
local, remote = Vector(ctypes.addressof(buffer), 8), Vector(0x400000, 8)
found["process_vm_readv"] = call(310, 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
found["process_vm_writev"] = call(311, 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
child = os.fork()
if not child: signal.pause()
read = call(310, child, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
control = [call(101, 16, child, 0, 0), attempt(os.open, f"/proc/{child}/mem", os.O_RDONLY), read in (0, errno.EFAULT)]
os.kill(child, 9)
[found, control]
"""
    for box in (plain(), plain().user(0)):
        found, control = inside(script, box)
        assert [0, 0, True] == control  # the same on a process of its own
        allowed = {name: number for name, number in found.items() if number not in {errno.EPERM, errno.EACCES}}
        assert not allowed


def test_program_of_init_is_sealed():
    with plans.launch(Sandbox(), ["sleep", "1000"]) as process:
        try:
            with open(f"/proc/{process.init_pid}/exe", "r+b"):
                pytest.fail("init's program could be opened for writing")
        except OSError as error:
            assert error.errno in {errno.ETXTBSY, errno.EPERM, errno.EACCES, errno.EROFS}
        process.kill()


def test_host_processes_are_not_there():
    host = subprocess.Popen(["sleep", "1000"])
    try:
        script = f"""
[os.path.exists("/proc/{host.pid}"), attempt(os.kill, {host.pid}, 0), os.getppid(), os.getpid()]
"""
        assert [False, errno.ESRCH, 1, 2] == inside(script)
        assert host.poll() is None
        shared = plain().share("net", "ipc")
        assert errno.ESRCH == inside(script, shared)[1]
    finally:
        host.kill()
        host.wait()


def test_flags_set_by_the_payload_do_not_reach_the_callers_end():
    result = sandbox.run(
        [PYTHON, "-S", "-c", "import os\nfor fd in (0, 1, 2): os.set_blocking(fd, False)\nprint('x' * 10)"],
        capture_output=True,
        input=b"y",
    )
    assert b"x" * 10 + b"\n" == result.stdout
    read_end, write_end = os.pipe()
    with open(read_end, "rb"), open(write_end, "wb"):
        assert os.get_blocking(read_end)
        assert os.get_blocking(write_end)


# ── mounts and paths ─────────────────────────────────────────────────────────────────────────────────────────────────

ATTACKS = {
    "absolute": lambda out: "/",
    "up": lambda out: "../../../../../..",
    "magic": lambda out: "/proc/1/root",
    "self": lambda out: "/proc/self/root",
    "outside": lambda out: str(out),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_links_in_a_bind_never_lead_a_step_to_the_host(name, host):
    work, out = host / "work", host / "out"
    work.mkdir()
    out.mkdir()
    (work / "file").write_text("")
    for path in (work, out, work / "file"):
        path.chmod(0o777)
        harness.give_away(path)
    os.symlink(ATTACKS[name](out), work / "d")
    before = sorted(os.listdir("/")), sorted(os.listdir(out))
    base = Sandbox().bind(work, "/w")
    for box in (
        base.file("/w/d/of-this-test", "x"),
        base.dir("/w/d/of-this-test"),
        base.symlink("/etc", "/w/d/of-this-test"),
        base.bind_readonly("/usr", "/w/d/of-this-test"),
        base.tmpfs("/w/d/of-this-test"),
        base.tmpfs("/w/d"),
        base.mask("/w/d"),
        base.cwd("/w/d"),
        base.remount_readonly("/w/d"),
    ):
        try:
            result = box.run(["true"])
        except SetupError as error:
            assert error.errno in {errno.ENOENT, errno.ELOOP, errno.EROFS, errno.EXDEV, errno.EINVAL, errno.EACCES}
        else:
            assert result.returncode in {0, 127}
        assert before == (sorted(os.listdir("/")), sorted(os.listdir(out)))
        assert {"d", "file"} == set(os.listdir(work))


def test_link_that_changes_while_the_launch_looks_never_leads_out(host):
    work, out = host / "work", host / "out"
    for path in (work, out, work / "dir"):
        path.mkdir()
        path.chmod(0o777)
        harness.give_away(path)
    os.symlink(str(out), work / "link")
    stop = threading.Event()

    def swap():

        libc = ctypes.CDLL(None)
        a, b = os.fsencode(work / "dir"), os.fsencode(work / "link")
        while not stop.is_set():
            libc.renameat2(-100, a, -100, b, 2)  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    box = Sandbox().bind(work, "/w").file("/w/dir/canary", "x")
    ends = set()
    try:
        for _ in range(60):
            try:
                box.run(["true"])
                ends.add("ok")
            except SetupError as error:
                ends.add(error.errno)
            assert [] == os.listdir(out)
    finally:
        stop.set()
        thread.join()
    assert ends & {"ok", errno.ENOENT}


@pytest.mark.parametrize("what", ["proc", "dev", "tmp"])
def test_foreign_root_with_a_link_for_a_directory_is_refused(what, host):
    root, out = host / "root", host / "out"
    out.mkdir()
    for name in {"proc", "dev", "tmp", "bin"} - {what}:
        (root / name).mkdir(parents=True)
    os.symlink(str(out), root / what)
    with pytest.raises(SetupError) as caught:
        Sandbox().rootfs(root).run(["/bin/sh"])
    assert caught.value.errno in {errno.ELOOP, errno.ENOENT}
    assert [] == os.listdir(out)


def test_host_mounts_and_files_are_as_before(host):
    with open("/proc/self/mountinfo") as stream:
        before = stream.read(), sorted(os.listdir(host)), sorted(os.listdir("/"))
    inside("os.listdir('/')", plain().bind(host, "/data").tmpfs("/a/b").dir("/c/d").mask("/usr/share"))
    for bad in (Sandbox().tmpfs("/usr/not/there"), Sandbox().bind(host, "/data").bind("/nope", "/data/x")):
        with pytest.raises(SetupError):
            bad.run(["true"])
    with open("/proc/self/mountinfo") as stream:
        assert before == (stream.read(), sorted(os.listdir(host)), sorted(os.listdir("/")))


def test_mounts_of_the_host_do_not_spread_in_nor_out(host):
    """A mount made on the host while the sandbox runs is not seen inside."""

    def check():
        from sandbox import primitives as kernel

        harness.enter_namespaces(kernel.CLONE_NEWNS)
        (host / "sub").mkdir()
        kernel.mount(str(host), str(host), None, kernel.MS_BIND)
        kernel.mount(None, str(host), None, kernel.MS_SHARED)
        read_end, write_end = os.pipe()
        out_read, out_write = os.pipe()
        box = plain().user(host_root=True).bind(host, "/data")
        code = PRELUDE + "os.read(8, 1); os.write(9, json.dumps(os.listdir('/data/sub')).encode())"
        with plans.launch(box, [PYTHON, "-S", "-c", code], fds={8: read_end, 9: out_write}) as process:
            # The control: a shared peer gets it.
            kernel.mount("late", str(host / "sub"), "tmpfs", 0, None)
            (host / "sub" / "late").write_text("")
            os.write(write_end, b"x")
            assert b"[]" == os.read(out_read, 100)
            assert 0 == process.wait(30)

    harness.in_child(check)


def test_no_old_root_is_reachable():
    canary = "/work" if os.path.isdir("/work") else "/home"
    script = f"""
found = [os.path.exists({canary!r})]
os.chdir("/")
for _ in range(40): os.chdir("..")
found += [os.path.exists("." + {canary!r}), os.stat("/").st_ino == os.stat("/..").st_ino]
found.append(attempt(os.chroot, "/tmp"))
found.append(call(166, b"/tmp", 2))
found.append(call(155, b".", b"."))
found.append(call(165, b"x", b"/tmp", b"tmpfs", 0, 0))
found.append(sum(1 for line in open("/proc/self/mountinfo") if line.split()[4] == "/"))
found
"""
    exists, below, same, *refused, roots = inside(script)
    assert (False, False, True, 1) == (exists, below, same, roots)
    assert {errno.EPERM} == set(refused)


# ── identity and privileges ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.needs_root
def test_host_root_is_never_mapped_and_each_sandbox_has_its_own_uid():
    ids = []
    running = [plans.launch(Sandbox(), ["sleep", "1000"]) for _ in range(5)]
    for process in running:
        with open(f"/proc/{process.init_pid}/uid_map") as stream:
            _, outside, count = map(int, stream.read().split())
        with open(f"/proc/{process.init_pid}/gid_map") as stream:
            assert [outside, count] == list(map(int, stream.read().split()))[1:]
        assert 1 == count
        assert outside > 1 << 30
        assert f"@sandbox-uid-{outside}" in plans.abstract_claims()
        ids.append(outside)
    claims = {f"@sandbox-uid-{number}" for number in ids}
    for process in running:
        process.close()
    assert 5 == len(set(ids))
    assert plans.claims_end(claims)


@pytest.mark.needs_root
def test_even_uid_0_inside_is_nobody_on_the_host(host):
    (host / "secret").write_text("secret")
    (host / "secret").chmod(0o600)
    script = """
found = [attempt(os.open, path, os.O_WRONLY) for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")]
[*found, attempt(os.open, "/data/secret", os.O_RDONLY), os.getuid()]
"""
    box = plain().bind(host, "/data").user(0)
    *refused, uid = inside(script, box)
    assert (0, errno.EACCES, errno.EACCES) == (uid, refused[0], refused[2])
    assert refused[1] in {errno.EACCES, errno.ENOENT}  # a kernel without sysrq
    # The control: with the host's uid 0 the file is readable.
    assert 0 == inside(script, box.user(0, host_root=True))[2]


@pytest.mark.needs_root
def test_groups_of_root_are_dropped(host):
    def check():
        os.setgroups([0, 4, 61777])
        secret = host / "of-the-group"
        secret.write_text("x")
        os.chown(secret, -1, 61777)
        secret.chmod(0o640)
        script = "[os.getgroups(), attempt(os.open, '/data/of-the-group', os.O_RDONLY)]"
        assert [[], errno.EACCES] == inside(script, plain().bind(host, "/data"))
        # The control: another user in that group can.
        pid = os.fork()
        if pid == 0:
            os.setgroups([61777])
            os.setresuid(harness.USER_ID, harness.USER_ID, harness.USER_ID)
            os._exit(0 if secret.read_text() == "x" else 1)
        assert 0 == os.waitpid(pid, 0)[1]

    harness.in_child(check)


@pytest.mark.needs_root
def test_groups_that_stay_are_told_as_a_gap():
    def check(groups):
        os.setgroups(groups)
        harness.drop_privileges_but_groups()
        gaps = " ".join(sandbox.run(["true"]).enforced.gaps)
        assert bool(groups) == ("groups" in gaps)
        assert all(str(group) in gaps for group in groups)

    harness.in_child(check, [61777, 61778])
    harness.in_child(check, [])
    assert "groups" not in " ".join(sandbox.run(["true"]).enforced.gaps)


@pytest.mark.needs_user
def test_groups_cannot_be_changed_inside():
    assert errno.EPERM == inside("attempt(os.setgroups, [])")


def test_capabilities_securebits_and_no_new_privs():
    script = """
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
caps = [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
change = [attempt(os.setuid, 1), attempt(os.setgid, 1), attempt(os.setresuid, -1, 7, -1)]
[caps, status["NoNewPrivs"], libc.prctl(27, 0, 0, 0, 0), call(157, 28, 0, 0, 0, 0), change]
"""
    for box in (plain(), plain().user(0), plain().network("host")):
        caps, no_new_privs, securebits, unlocked, change = inside(script, box)
        assert ["0" * 16] * 5 == caps
        assert ("1", 0xEF, errno.EPERM) == (no_new_privs, securebits, unlocked)
        assert set(change) <= {errno.EPERM, errno.EINVAL}  # EINVAL: this namespace has no such id


@pytest.mark.needs_root
def test_setuid_program_gains_nothing(host):
    copy = host / "id"
    with open("/usr/bin/id", "rb") as source:
        copy.write_bytes(source.read())
    copy.chmod(0o4755)
    box = plain().bind(host, "/data")
    assert "1000\n" == box.run(["/data/id", "-u"], capture_output=True, text=True).stdout
    # The control: outside, for another user, it is root.
    outside = subprocess.run([copy, "-u"], user=harness.USER_ID, group=harness.USER_ID, capture_output=True, text=True)
    assert "0\n" == outside.stdout


def test_no_set_id_file_of_root_is_left_on_the_host(host):
    script = """
open("/data/file", "w").close()
attempt(os.chmod, "/data/file", 0o6755)
[attempt(os.mknod, "/data/node", 0o20666, os.makedev(1, 3))]
"""
    assert [errno.EPERM] == inside(script, plain().bind(host, "/data"))
    status = os.stat(host / "file")
    # Set-id bits are the owner's right; but the owner is not root.
    assert 0 != status.st_uid
    assert not (host / "node").exists()
    (host / "file").unlink()


def test_session_keyring_is_new():
    def check():
        libc = ctypes.CDLL(None)
        libc.syscall(250, 1, 0)  # a session keyring of our own
        key = libc.syscall(248, b"user", b"of-this-test", b"secret", 6, -3)
        if key < 0:
            pytest.skip("no kernel keys here")
        script = "call(250, 10, -3, b'user', b'of-this-test', 0)"
        code = PRELUDE + f"print({script})"
        outside = subprocess.run([PYTHON, "-S", "-c", code], capture_output=True, text=True, check=True)
        assert "0\n" == outside.stdout  # the control
        assert 0 != inside(script)
        read = f"call(250, 11, {key}, 0, 0)"
        assert 0 != inside(read)

    harness.in_child(check)


def test_abstract_sockets_ipc_and_queues_of_the_host_are_unreachable():
    name = f"\0of-this-test-{os.getpid()}"
    libc = ctypes.CDLL(None)
    with socket.socket(socket.AF_UNIX) as server, socket.socket() as tcp:
        server.bind(name)
        server.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        segment = libc.shmget(0x5A5A0000 | os.getpid() & 0xFFFF, 4096, 0o1666)
        queue = f"of-this-test-{os.getpid()}".encode()
        posix = libc.syscall(MQ_OPEN, queue, os.O_RDONLY | os.O_CREAT, 0o666, None)
        assert posix >= 0
        os.fchmod(posix, 0o666)
        try:
            script = f"""
connect = attempt(socket.socket(socket.AF_UNIX).connect, {name!r})
port = attempt(socket.socket().connect, ("127.0.0.1", {tcp.getsockname()[1]}))
[connect, port, libc.shmget({0x5A5A0000 | os.getpid() & 0xFFFF}, 4096, 0o666) >= 0, call({MQ_OPEN}, {queue!r}, 0, 0, 0)]
"""
            assert [errno.ECONNREFUSED, errno.ECONNREFUSED, False, errno.ENOENT] == inside(script)
            # The control: each is reachable where its namespace is shared.
            assert [0, 0, True, 0] == inside(script, plain().share("net", "ipc"))
        finally:
            libc.shmctl(segment, 0, None)
            libc.syscall(MQ_UNLINK, queue)
            os.close(posix)


def test_no_core_dump(host):
    script = "import resource\nresource.getrlimit(resource.RLIMIT_CORE)"
    assert [1, 1] == inside(script)
    box = plain().bind(host, "/data").cwd("/data")
    result = box.run(["/bin/sh", "-c", "ulimit -c unlimited 2>/dev/null; kill -SEGV $$"], stderr=sandbox.DEVNULL)
    assert -11 == result.returncode
    assert [] == os.listdir(host)
    pattern = plans.text_of("/proc/sys/kernel/core_pattern").strip()
    if "|" in pattern or "/" in pattern:
        return  # where it would be is not for a test to look at
    # The control: with a limit of its own it is written.
    box.limit(core="16M").run(["/bin/sh", "-c", "kill -SEGV $$"], stderr=sandbox.DEVNULL)
    assert [pattern] == [name.partition(".")[0] for name in os.listdir(host)]


def test_controlling_terminal_is_none():
    def check():
        import pty

        pid, master = pty.fork()
        if pid == 0:
            code = 1
            try:
                outside = os.open("/dev/tty", os.O_RDWR)  # the control
                os.close(outside)
                found = inside("[attempt(os.open, '/dev/tty', os.O_RDWR), os.getsid(0), os.getpgrp()]", stdin=0)
                code = 0 if found == [errno.ENXIO, 2, 2] else 2
            finally:
                os._exit(code)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(master)

    harness.in_child(check)


# ── resources and lifetime ───────────────────────────────────────────────────────────────────────────────────────────


def test_fork_bomb_is_gone_after_the_timeout():
    def check():
        resource.setrlimit(resource.RLIMIT_NPROC, (400, 400))
        bomb = """
import os, time
for _ in range(7): os.fork()
if os.getsid(0) != os.getpid(): os.setsid()
time.sleep(1000)
"""
        with plans.pipes() as fds:
            with pytest.raises(sandbox.TimeoutExpired):
                sandbox.run([PYTHON, "-S", "-c", bomb], fds={9: fds[1]}, timeout=1, stderr=sandbox.DEVNULL)
            os.close(fds[1])
            fds[1] = -1
            assert b"" == os.read(fds[0], 1)
        assert set() == harness.children()

    harness.in_child(check)


def test_ignoring_every_signal_does_not_help():
    script = "import signal, time\nfor n in signal.valid_signals() - {9, 19}: signal.signal(n, 1)\ntime.sleep(1000)"
    with pytest.raises(sandbox.TimeoutExpired):
        sandbox.run([PYTHON, "-S", "-c", script], timeout=0.5)
    assert -9 == plain().run([PYTHON, "-S", "-c", "import os; os.kill(os.getpid(), 9)"]).returncode


def test_payload_cannot_end_or_stop_its_init():
    script = "[attempt(os.kill, 1, n) for n in (9, 15, 19, 11, 2)]"
    answers = inside(script + "\n" + script)
    assert len(answers) == 5  # and the launch told how it ended
