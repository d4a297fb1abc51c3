"""capabilities(): all five sets and securebits right after exec, and what all of them together cannot do."""

import os
import shutil
import subprocess

import harness
import payloads
import pytest
from payloads import number, tell

from sandbox import Filter, Sandbox
from sandbox.compiler import draft
from sandbox.primitives.capabilities import Capability

pytestmark = pytest.mark.needs_userns

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
LOOK = f"say([*(int(status(name), 16) for name in {SETS}), libc.prctl(27, 0, 0, 0, 0), int(status('NoNewPrivs'))])"
NET_ADMIN, NET_RAW, SYS_ADMIN = 1 << 12, 1 << 13, 1 << 21


def sets(inheritable, permitted, effective, bounding, ambient):
    return [inheritable, permitted, effective, bounding, ambient]


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("nested", [0, SYS_ADMIN], ids=["", "nested"])
def test_sets_right_after_exec(uid, nested):
    if uid == 1000 and os.geteuid() != 0:
        box = Sandbox()
    else:
        box = Sandbox().user(uid)
    more = ["SYS_ADMIN"] if nested else []
    assert sets(0, 0, 0, 0, 0) == tell(box, LOOK)[:5]
    keep = NET_ADMIN | nested
    kept = tell(box.capabilities(["net_admin", *more]), LOOK)
    # A program gets what is ambient; uid 0 gets the bounding set.
    has = keep if uid == 0 else 0
    assert sets(keep, has, has, keep, 0) == kept[:5]
    ambient = tell(box.capabilities(["CAP_NET_ADMIN", *more], ambient=["cap_net_raw"]), LOOK)
    keep |= NET_RAW
    has = keep if uid == 0 else NET_RAW
    assert sets(keep, has, has, keep, NET_RAW) == ambient[:5]


@pytest.mark.parametrize("uid", [0, 1000])
def test_securebits_are_locked_and_no_new_privs_is_set(uid):
    box = Sandbox() if uid and os.geteuid() else Sandbox().user(uid)
    for one in (box, box.capabilities(["NET_ADMIN"], ambient=["NET_RAW"]), box.capabilities(["SYS_ADMIN"])):
        result = one.run(payloads.script(LOOK), capture_output=True, text=True)
        securebits, no_new_privs = map(int, result.stdout.strip("[]\n").split(", ")[5:])
        assert 1 == no_new_privs
        assert securebits == result.enforced.securebits
        assert securebits & 0xAA == 0xAA, "every bit is locked"
        root_has_none = not (one._spec.keep and uid == 0)
        assert root_has_none == bool(securebits & 1), "SECBIT_NOROOT"


def test_enforced_is_what_the_payload_has():
    result = Sandbox().capabilities(["NET_ADMIN"], ambient=["NET_RAW"]).run(["true"])
    both = frozenset({"NET_ADMIN", "NET_RAW"})
    assert {
        "effective": both,
        "permitted": both,
        "inheritable": both,
        "bounding": both,
        "ambient": frozenset({"NET_RAW"}),
    } == result.enforced.capabilities


def test_capability_works_in_the_sandboxes_own_namespaces():
    body = """
import socket
def raw(): socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
say(tried(raw))
"""
    assert "EPERM" == tell(Sandbox(), body)
    assert "ok" == tell(Sandbox().capabilities(ambient=["NET_RAW"]), body)


# ── set-id and file capabilities ──


@pytest.fixture
def programs(tmp_path):
    """Copies of cat: one of root's with the set-id bits, one with file capabilities."""
    tmp_path.chmod(0o755)
    for name in ("setuid", "filecaps"):
        shutil.copy("/bin/cat", tmp_path / name)
        os.chmod(tmp_path / name, 0o755)
    os.chmod(tmp_path / "setuid", 0o6755)
    subprocess.run(["/sbin/setcap", "cap_net_raw,cap_sys_admin+eip", tmp_path / "filecaps"], check=True)
    return tmp_path


def fields(text):
    found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return found["Uid"].split()[1], int(found["CapPrm"], 16), int(found["CapEff"], 16)


@pytest.mark.needs_root
@pytest.mark.needs_program("setcap")
def test_programs_with_set_id_bits_or_file_capabilities_gain_nothing(programs):
    def outside(name):
        return subprocess.run(
            [programs / name, "/proc/self/status"], user=harness.USER_ID, group=harness.USER_ID, capture_output=True
        ).stdout.decode()

    # The positive control: outside they make an unprivileged user more.
    assert "0" == fields(outside("setuid"))[0]
    assert NET_RAW | SYS_ADMIN == fields(outside("filecaps"))[1]
    for box, uid, has in (
        (Sandbox(), 1000, 0),
        (Sandbox().user(0), 0, 0),
        (Sandbox().user(0, host_root=True), 0, 0),
        (Sandbox().capabilities(["NET_RAW", "SYS_ADMIN"]), 1000, 0),
        (Sandbox().user(0).capabilities(["NET_RAW"]), 0, NET_RAW),
    ):
        for name in ("setuid", "filecaps"):
            inside = box.bind_readonly(programs, "/p").run(
                [f"/p/{name}", "/proc/self/status"], capture_output=True, text=True
            )
            assert (str(uid), has, has) == fields(inside.stdout), (name, box)


# ── all of them, and no filter ──

EVERY = Sandbox().seccomp(None).capabilities(ambient=[one.name for one in Capability])

REMOUNT = f"""
import struct
def writable():
    return "ro" if os.statvfs("/data").f_flag & os.ST_RDONLY else tried(os.open, "/data/file", os.O_WRONLY)
def fspick():
    fd = call({number("fspick")}, -100, b"/data", 0)
    return fd if isinstance(fd, str) else [call({number("fsconfig")}, fd, 0, b"rw", 0, 0),
                                           call({number("fsconfig")}, fd, 7, 0, 0, 0)]
clear = ctypes.create_string_buffer(struct.pack("=4Q", 0, 1, 0, 0), 32)
made = [call({number("mount")}, 0, b"/data", 0, 0x1000 | 0x20, 0),
        call({number("mount")}, 0, b"/data", 0, 0x20, 0),
        call({number("mount_setattr")}, -100, b"/data", 0, clear, 32),
        call({number("mount_setattr")}, -100, b"/", 0x8000, clear, 32),
        call({number("umount2")}, b"/data", 2),
        fspick()]
if not os.path.exists("/data/file"):
    say(["gone", made])
else:
    say([writable(), made])
"""


def test_read_only_bind_stays_read_only_for_cap_sys_admin(tmp_path, monkeypatch):
    payloads.ours(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o666)
    for box in (EVERY, EVERY.user(0), EVERY.seccomp(Filter.default(nesting=True))):
        said = tell(box.bind_readonly(tmp_path, "/data"), REMOUNT)
        assert "ro" == said[0], said
        assert 0 not in said[1][:5]
    # The positive control: without namespaces of its own the payload undoes what the sandbox did.
    monkeypatch.setattr(draft, "_CAP_SYS_ADMIN", 0)
    said = tell(EVERY.bind_readonly(tmp_path, "/data"), REMOUNT)
    assert said[0] in ("ok", "gone"), said
    assert 0 in said[1]


POISON = f"""
import struct
clear = ctypes.create_string_buffer(struct.pack("=4Q", 0, 1, 0, 0), 32)
for where in (b"/", b"/usr", b"/bin", b"/etc"):
    call({number("mount")}, 0, where, 0, 0x1000 | 0x20, 0)
    call({number("mount")}, 0, where, 0, 0x20, 0)
    call({number("mount_setattr")}, -100, where, 0x8000, clear, 32)
    fd = call({number("fspick")}, -100, where, 0)
    if not isinstance(fd, str):
        call({number("fsconfig")}, fd, 0, b"rw", 0, 0)
        call({number("fsconfig")}, fd, 7, 0, 0, 0)
say([tried(os.mkdir, "/poison"), tried(os.symlink, "/tmp", "/etc/poison"), tried(os.unlink, "/bin"),
     tried(os.mkdir, "/usr/poison")])
"""


@pytest.mark.parametrize("nested", [True, False])
def test_next_sandbox_is_not_changed_by_the_one_before(nested, monkeypatch):
    look = """say([sorted(os.listdir("/")), sorted(os.listdir("/etc")), os.readlink("/bin"),
                   bool(os.statvfs("/").f_flag & os.ST_RDONLY)])"""
    before = tell(EVERY, look)
    for _ in range(3):  # the second launch builds the tree that later ones clone
        assert before == tell(EVERY, look)
    if not nested:  # even with the mounts of the sandbox in its hands, it cannot write what others share
        monkeypatch.setattr(draft, "_CAP_SYS_ADMIN", 0)
    for box in (EVERY, EVERY.user(0)):
        for _ in range(3):
            said = tell(box, POISON)
            assert not nested or "ok" not in said
        assert before == tell(EVERY, look)
        assert before == tell(Sandbox(), look)


STEAL = f"""
def memory(pid):
    try:
        with open(f"/proc/{{pid}}/mem", "rb") as stream, open(f"/proc/{{pid}}/maps") as maps:
            stream.seek(int(maps.readline().split("-")[0], 16))
            return len(stream.read(16))
    except OSError as error:
        return errno.errorcode[error.errno]
def stolen(pid):
    pidfd = os.pidfd_open(pid)
    return [call({number("pidfd_getfd")}, pidfd, fd, 0) for fd in range(8)]
def traced(pid):
    result = call({number("ptrace")}, 16, pid, 0, 0)  # PTRACE_ATTACH
    if result == 0:
        os.waitpid(pid, 0x40000000)
        call({number("ptrace")}, 17, pid, 0, 0)
    return result
child = os.fork()
if child == 0:
    import signal
    signal.pause()
attacks = lambda pid: [memory(pid), [one for one in stolen(pid) if not isinstance(one, str)], traced(pid),
                       tried(os.listdir, f"/proc/{{pid}}/fd"), tried(os.readlink, f"/proc/{{pid}}/exe")]
inside = attacks(1)
control = attacks(child)
os.kill(child, 9)
say([inside, control])
"""


@pytest.mark.parametrize("uid", [0, 1000])
def test_pid_1_is_out_of_reach_of_every_capability(uid):
    box = EVERY if uid and os.geteuid() else EVERY.user(uid)
    pid_1, child = tell(box, STEAL)
    # The same attacks on a process of its own are the positive control.
    assert [16, 0, "ok", "ok"] == [child[0], *child[2:]] and len(child[1]) >= 3
    assert not isinstance(pid_1[0], int)
    assert [] == pid_1[1]
    assert "EPERM" == pid_1[2]
    assert ["EACCES", "EACCES"] == pid_1[3:]


def test_kept_capabilities_without_a_user_namespace_are_refused():
    # They would be the host's own.
    with pytest.raises(ValueError, match='share\\("user"\\)'):
        Sandbox().share("user").capabilities(["DAC_OVERRIDE"]).plan(["true"])
    assert Sandbox().capabilities(["DAC_OVERRIDE"]).plan(["true"])
