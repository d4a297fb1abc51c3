"""A directory of root's, bound writable as root's: nothing in it may ever give root's privileges to who executes it.

The control of each attack is a launch of the same plan without the one filter that stands against it.
"""

import os
import shutil
import stat

import machine_code
import payloads
import plans
import pytest
from payloads import number

from sandbox import Allow, Filter, Sandbox

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_root]

ALICE = 54321
SET_ID = stat.S_ISUID | stat.S_ISGID

# What makes a file with set-id bits, or file capabilities; each leaves its outcome in `result`.
OPEN = "os.O_CREAT | os.O_WRONLY"
ATTACKS = {
    "chmod": "result = tried(os.chmod, plain, 0o4755)",
    "chmod to a group": "result = tried(os.chmod, plain, 0o2755)",
    "fchmod": "result = tried(os.fchmod, os.open(plain, os.O_WRONLY), 0o6755)",
    "fchmodat": f"result = call({number('fchmodat')}, -100, plain, 0o4755)",
    "fchmodat2": f"result = call({number('fchmodat2')}, -100, plain, 0o4755, 0)",
    "creat": "result = call(85, b'/r/made', 0o4755)",
    "open": "result = call(2, b'/r/made', os.O_CREAT | os.O_WRONLY, 0o4755)",
    "openat": f"result = call({number('openat')}, -100, b'/r/made', {OPEN}, 0o6755)",
    "openat of an unnamed file": f"""
fd = call({number("openat")}, -100, b"/r", os.O_TMPFILE | os.O_WRONLY, 0o4755)
result = call({number("linkat")}, -100, b"/proc/self/fd/%d" % fd, -100, b"/r/made", 0x400) if type(fd) is int else fd
""",
    "openat2": f"result = call({number('openat2')}, -100, b'/r/made', struct.pack('<3Q', {OPEN}, 0o4755, 0), 24)",
    "mknod": "result = call(133, b'/r/made', stat.S_IFREG | 0o4755, 0)",
    "mknodat": f"result = call({number('mknodat')}, -100, b'/r/made', stat.S_IFREG | 0o4755, 0)",
    "upper half of a register": f"result = call({number('fchmodat')}, -100, plain, 0o4755 | 7 << 32)",
    "a socket's mode": """
import socket
made = socket.socket(socket.AF_UNIX)
result = tried(os.fchmod, made.fileno(), 0o4755)
made.bind("/r/made")
""",
    "file capabilities": """
user_namespace(0)
result = tried(os.setxattr, plain, "security.capability", struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0))
""",
    "file capabilities of an open file": """
user_namespace(0)
fd = os.open(plain, os.O_WRONLY)
result = tried(os.setxattr, fd, "security.capability", struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0))
""",
    "an overlay's copy": f"""
user_namespace(0x20000)
os.mkdir("/r/upper")
os.mkdir("/r/work")
options = b"lowerdir=/a,upperdir=/r/upper,workdir=/r/work,userxattr"
result = call({number("mount")}, b"none", b"/mnt", b"overlay", 0, options)
tried(os.utime, "/mnt/evil")
""",
}
if machine_code.SUPPORTED:
    ATTACKS |= {
        f"a 32-bit {name}": f"""
sys.path.insert(0, "/")
import machine_code
address = machine_code.low_string(plain if {where} else b"/r/made")
answer = machine_code.call32({call}, *[(address if one is None else one) & 0xFFFFFFFF for one in {args}])
result = errno.errorcode.get(-answer, str(answer)) if answer < 0 else answer
"""
        for name, where, call, args in (
            ("chmod", True, 15, [None, 0o4755]),
            ("fchmodat", True, 306, [-100, None, 0o4755]),
            ("fchmodat2", True, 452, [-100, None, 0o4755, 0]),
            ("creat", False, 8, [None, 0o4755]),
            ("open", False, 5, [None, os.O_CREAT | os.O_WRONLY, 0o4755]),
            ("openat", False, 295, [-100, None, os.O_CREAT | os.O_WRONLY, 0o4755]),
            ("mknod", False, 14, [None, stat.S_IFREG | 0o4755, 0]),
            ("mknodat", False, 297, [-100, None, stat.S_IFREG | 0o4755, 0]),
        )
    }

HELPERS = """
import stat, struct
plain = b"/r/plain"

def user_namespace(more):
    uid, gid = os.getuid(), os.getgid()
    if call(UNSHARE, 0x10000000 | more):
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(text)
""".replace("UNSHARE", str(number("unshare")))


def roots_own(path):
    path.mkdir()
    (path / "plain").write_text("")


@pytest.fixture
def roots(tmp_path):
    """A directory of root's with a file in it, and one of somebody else's that has a set-id file."""
    tmp_path.chmod(0o755)
    roots_own(tmp_path / "root")
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice/evil").write_text("#!/bin/sh\n")
    for path in (tmp_path / "alice", tmp_path / "alice/evil"):
        os.chown(path, ALICE, ALICE)
    (tmp_path / "alice/evil").chmod(0o4755)
    return tmp_path


def sandbox_of(roots):
    with open(machine_code.__file__, "rb") as stream:
        code = stream.read()
    return (
        Sandbox()
        .bind(roots / "root", "/r", owner=0)
        .bind(roots / "alice", "/a")
        .dir("/mnt")
        .file("/machine_code.py", code)
    )


def privileged_files(root):
    """Return what in a directory would give root's privileges on the host."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if status.st_mode & SET_ID and 0 in {status.st_uid, status.st_gid}:
                found.append(path)
            if "security.capability" in os.listxattr(path, follow_symlinks=False):
                found.append(path)
    return found


FILTERS = {
    "the default": lambda box: box,
    "the default, observed": lambda box: box.observe(),
    "none": lambda box: box.seccomp(None),
    "one that allows all": lambda box: box.seccomp(Filter(Allow)),
    "one's own": lambda box: box.seccomp(Filter.default().allow("openat2", "@io-uring", "mount")),
    "raw": lambda box: box.seccomp(Filter.from_bytes(Filter(Allow).to_bytes())),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_file_with_roots_privileges_is_left(name, roots):
    body = HELPERS + "result = None\n" + ATTACKS[name] + "\nsay(result)\n"
    command = payloads.script(body)
    # The control: with no filter at all the file appears.
    box = sandbox_of(roots).seccomp(None)
    plan = plans.without(box.plan(command), lambda step: step.origin == "owner=0")
    with plans.launch(box, command, plan=plan) as process:
        process.wait(60)
    assert privileged_files(roots / "root")
    for change in FILTERS.values():
        shutil.rmtree(roots / "root")
        roots_own(roots / "root")
        done = change(sandbox_of(roots)).run(command, capture_output=True, text=True, timeout=60)
        assert [] == privileged_files(roots / "root"), (done.stdout, done.stderr)


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_no_set_id_file_can_be_made(name, roots):
    body = """
os.close(os.open("/r/new", os.O_CREAT | os.O_WRONLY, 0o755))
os.chmod("/r/new", 0o1750)
os.mkdir("/r/folder", 0o755)
open("/r/other", "w").close()
say([tried(os.mknod, "/r/node", 0o600), os.stat("/r/new").st_mode & 0o7777])
"""
    done = payloads.tell(FILTERS[name](sandbox_of(roots)), body)
    assert ["ok", 0o1750] == done
    assert {0} == {os.lstat(roots / "root" / one).st_uid for one in ("new", "folder", "other", "node")}


def test_io_uring_cannot_be_used_beside_the_filter(roots):
    body = f"say(call({number('io_uring_setup')}, 1, ctypes.create_string_buffer(120)))"
    assert isinstance(payloads.tell(Sandbox().seccomp(None), body), int)
    for change in FILTERS.values():
        assert "EPERM" == payloads.tell(change(sandbox_of(roots)), body)


def test_set_group_directory_hands_on_its_bit_to_directories_only(roots):
    os.chmod(roots / "root", 0o2755)
    body = 'os.mkdir("/r/folder"); open("/r/made", "w").close(); say(0)'
    payloads.tell(sandbox_of(roots), body)
    assert [] == privileged_files(roots / "root")


def test_nesting_is_refused_where_files_are_roots(roots):
    with pytest.raises(ValueError, match="exclude each other"):
        sandbox_of(roots).nesting().run(["true"])


def test_read_only_bind_of_roots_needs_no_guard(roots):
    box = Sandbox().seccomp(None).bind_readonly(roots / "root", "/r", owner=0)
    assert not any(step.call == "seccomp" for step in box.plan(["true"]).steps)
    assert "EROFS" == payloads.tell(box, 'say(tried(os.chmod, "/r/plain", 0o4755))')


def test_enforced_counts_the_guard(roots):
    before = Sandbox().seccomp(None).run(["true"]).enforced
    with_guard = sandbox_of(roots).seccomp(None).run(["true"]).enforced
    assert before.seccomp_filters + 1 == with_guard.seccomp_filters
    assert any("set-id" in gap for gap in with_guard.gaps)
