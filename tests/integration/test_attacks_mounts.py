"""Attacks on what is mounted: masks, read-only binds, /proc and /dev, by whoever may make mounts of his own."""

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import sys

import harness
import payloads
import plans
import pytest
from payloads import number, tell

from sandbox import Sandbox, SetupError, compiler, launch, launcher, primitives as kernel
from sandbox.compiler import draft
from sandbox.plan import Command
from sandbox.template import Template

pytestmark = pytest.mark.needs_userns

ATTRIBUTES = """
import struct
CLEAR_READONLY = ctypes.create_string_buffer(struct.pack("=4Q", 0, 1, 0, 0), 32)
def own_user_namespace(flags):
    uid, gid = os.getuid(), os.getgid()
    made = call(UNSHARE, 0x10000000 | flags)
    if made == 0 and uid:  # uid 0 would need CAP_SETFCAP for its map, and does without
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(text)
    return made
""".replace("UNSHARE", str(number("unshare")))

# ── masks and read-only binds ──

UNMASK = f"""
def secret():
    try:
        return "key" in os.listdir("/w/secret")
    except OSError:
        return False
def cloned(flags):
    fd = call({number("open_tree")}, -100, b"/w", 1 | flags)
    return isinstance(fd, int) and "key" in os.listdir(f"/proc/self/fd/{{fd}}/secret")
def bound():
    return call({number("mount")}, b"/w", b"/tmp", 0, 0x1000, 0) == 0 and "key" in os.listdir("/tmp/secret")
def moved():
    fd = call({number("open_tree")}, -100, b"/w/secret", 0)
    if isinstance(fd, int):
        call({number("move_mount")}, fd, b"", -100, b"/tmp", 4)
    return secret()
def written(path):
    return tried(os.mkdir, path) == "ok"
def cloned_writable():
    fd = call({number("open_tree")}, -100, b"/ro", 1 | 0x8000)
    if not isinstance(fd, int):
        return False
    call({number("mount_setattr")}, fd, b"", 0x9000, CLEAR_READONLY, 32)
    return written(f"/proc/self/fd/{{fd}}/made-by-clone")
def reopened():
    fd = os.open("/ro/file", os.O_PATH)
    return "ok" in [tried(os.open, f"/proc/self/fd/{{fd}}", flags) for flags in (os.O_WRONLY, os.O_RDWR | os.O_APPEND)]
say({{
    "clone": cloned(0),
    "recursive clone": cloned(0x8000),
    "bind": bound(),
    "move": moved(),
    "clone made writable": cloned_writable(),
    "reopened": reopened(),
    "unmount": (call({number("umount2")}, b"/w/secret", 2), secret())[1],
    "setattr": (call({number("mount_setattr")}, -100, b"/ro", 0x8000, CLEAR_READONLY, 32), written("/ro/a"))[1],
    "remount": (call({number("mount")}, 0, b"/ro", 0, 0x1020, 0), written("/ro/b"))[1],
    "below": (call({number("mount")}, 0, b"/ro/sub", 0, 0x1020, 0), written("/ro/sub/c"))[1],
}})
"""


def with_a_secret(host):
    for name in ("w", "w/secret", "ro", "ro/sub"):
        (host / name).mkdir()
        payloads.ours(host / name)
    (host / "w/secret/key").write_text("secret")
    (host / "ro/file").write_text("")
    (host / "ro/file").chmod(0o666)
    harness.give_away(host / "ro/file")
    return Sandbox().bind(host / "w", "/w").mask("/w/secret").bind_readonly(host / "ro", "/ro")


KINDS = {
    "no filter": lambda box: box.seccomp(None),
    "nesting": lambda box: box.nesting(),
    "capabilities": lambda box: box.seccomp(None).capabilities(ambient=["SYS_ADMIN", "SYS_CHROOT", "DAC_OVERRIDE"]),
    "capabilities of uid 0": lambda box: box.seccomp(None).user(0).capabilities(ambient=["SYS_ADMIN"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_read_only_binds_outlast_mounts_of_ones_own(kind, tmp_path):
    box = KINDS[kind](with_a_secret(tmp_path))
    found = tell(box, ATTRIBUTES + "assert own_user_namespace(0x20000) == 0\n" + UNMASK)
    assert not [attack for attack, works in found.items() if works]
    assert ["file", "sub"] == sorted(os.listdir(tmp_path / "ro"))


def test_masks_and_read_only_binds_end_where_the_payload_has_the_mounts_themselves(tmp_path, monkeypatch):
    """The control: CAP_SYS_ADMIN over the sandbox's own mount namespace, which it never gets."""
    monkeypatch.setattr(draft, "_CAP_SYS_ADMIN", 0)
    box = with_a_secret(tmp_path).seccomp(None).capabilities(ambient=["SYS_ADMIN", "DAC_OVERRIDE"])
    found = tell(box, ATTRIBUTES + UNMASK)
    # An unprivileged caller's read-only flags are locked nowhere: they were set in the same namespace.
    assert {"clone", "bind", "unmount"} <= {attack for attack, works in found.items() if works}, found
    assert found["setattr"] or found["remount"] or found["clone made writable"], found


@pytest.mark.parametrize("target", ["/ro", "/rw"])
def test_flags_of_the_source_are_kept(target, tmp_path):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        kernel.mount("source", str(tmp_path), "tmpfs", kernel.MS_NOEXEC | kernel.MS_NOSUID, "mode=0777")
        (tmp_path / "script").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "script").chmod(0o755)
        box = Sandbox().user(host_root=True).seccomp(None)
        bound = box.bind(tmp_path, "/rw") if target == "/rw" else box.bind_readonly(tmp_path, "/ro")
        with pytest.raises(SetupError) as caught:
            bound.run([f"{target}/script"])
        assert errno.EACCES == caught.value.errno
        kernel.mount(None, str(tmp_path), None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID)
        assert 0 == bound.run([f"{target}/script"], stdout=-3).returncode  # the control
        kernel.mount(None, str(tmp_path), None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
        assert "EROFS" == tell(bound, f'say(tried(os.mkdir, "{target}/made"))')

    harness.in_child(check)


# ── /proc ──

# The files outside of its processes' own directories that can be opened for writing: opened and closed, never written.
WRITABLE = """
def writable():
    found = []
    for folder, folders, names in os.walk("/proc"):
        if folder == "/proc":
            folders[:] = [one for one in folders if not one.isdigit() and not one.endswith("self")]
        for name in names:
            path = os.path.join(folder, name)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                continue
            found.append(path)
    return found
"""
# Of namespaces that are the sandbox's own; ns_last_pid wants CAP_CHECKPOINT_RESTORE when it is written; and pressure
# takes what may be waited for.
OWN = ("/proc/sys/net/", "/proc/sys/fs/mqueue/", "/proc/sys/kernel/msg", "/proc/sys/kernel/sem", "/proc/sys/kernel/shm",
       "/proc/sys/kernel/pid_max")  # fmt: skip
HARMLESS = (*OWN, "/proc/sys/kernel/ns_last_pid", "/proc/sys/user/", "/proc/pressure/", "/proc/sys/kernel/auto_msgmni")


@pytest.mark.parametrize("uid", [0, 1000])
def test_nothing_of_the_machine_can_be_written_in_proc(uid):
    box = Sandbox().seccomp(None)
    box = box if uid and os.geteuid() else box.user(uid)
    found = tell(box, WRITABLE + "say([writable(), os.path.exists('/sys')])")
    assert [[], False] == [[path for path in found[0] if not path.startswith(HARMLESS)], found[1]]


def test_what_uid_0_writes_in_proc_is_of_its_own_namespaces():
    before = plans.text_of("/proc/sys/kernel/msgmax")
    body = """
with open("/proc/sys/kernel/msgmax", "w") as stream: stream.write("4096")
say(open("/proc/sys/kernel/msgmax").read())
"""
    assert "4096\n" == tell(Sandbox().user(0), body)
    assert before == plans.text_of("/proc/sys/kernel/msgmax") != "4096\n"


@pytest.mark.needs_root
@pytest.mark.parametrize("more", [{}, {"network": "host"}, {"pid": "host"}], ids=str)
def test_nothing_of_the_machine_can_be_written_with_roots_own_id(more, monkeypatch):
    """Root's id needs no capability for core_pattern, whose program the kernel runs with all of them."""
    box = Sandbox().seccomp(None).user(0, host_root=True)
    box = box.network("host") if "network" in more else box.share("pid") if "pid" in more else box
    body = WRITABLE + "say(writable())"
    found = tell(box, body)
    assert [] == [path for path in found if not path.startswith("/proc/pressure/")]
    # The control: without the steps that make them read-only.
    monkeypatch.setattr(compiler.root, "_OF_THE_MACHINE", ())
    assert "/proc/sys/kernel/core_pattern" in tell(box.hostname("other"), body)


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["no filter", "nesting", "capabilities"])
def test_another_proc_is_refused_to_roots_own_id(kind, monkeypatch):
    mount = f"call({number('mount')}, b'proc', b'/tmp', b'proc', 0, 0)"
    body = f"""
made = own_user_namespace(0x20020000)
child = os.fork()
if child == 0:
    say([made, {mount}, tried(os.open, "/tmp/sys/kernel/core_pattern", os.O_WRONLY)])
    os._exit(0)
os.waitpid(child, 0)
"""
    box = KINDS[kind](Sandbox().user(0, host_root=True))
    assert [0, "EPERM", "ENOENT"] == tell(box, ATTRIBUTES + body)
    # The control: where nothing is covered, it is a new /proc, in which root's own id may write.
    monkeypatch.setattr(compiler.root, "_OF_THE_MACHINE", ())
    assert [0, 0, "ok"] == tell(box.hostname("other"), ATTRIBUTES + body)


def fake_proc():
    """Cover /proc of a child's own mount namespace with what lets any number be a process's."""
    pid = os.getpid()
    kernel.mount("fake", "/proc", "tmpfs", 0, "mode=0777")
    os.mkdir("/proc/trap")
    for name in TRAPS:
        with open(f"/proc/trap/{name}", "w") as stream:
            stream.write(WHOLE)
        os.chmod(f"/proc/trap/{name}", 0o666)
    for name in ("self", "thread-self", *range(1, 200), *range(pid, pid + 3000)):
        os.symlink("trap", f"/proc/{name}")


WHOLE = "0 0 4294967295\n"  # read as the caller's own map
TRAPS = ("uid_map", "gid_map", "setgroups", "timens_offsets")


def trapped():
    return {name for name in TRAPS if plans.text_of(f"/proc/trap/{name}") != WHOLE}


@pytest.mark.needs_root
@pytest.mark.parametrize("who", ["root", "user"])
def test_nothing_is_written_to_what_only_looks_like_proc(who):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        if who == "user":
            harness.make_reachable([harness.REPOSITORY, sys.prefix, sys.base_prefix])
        fake_proc()
        if who == "user":
            harness.drop_privileges()
        nested = Sandbox().seccomp(None).capabilities(["SYS_ADMIN"])
        for box in (Sandbox(), nested, Sandbox().time_offset(monotonic=5)):
            with pytest.raises(SetupError) as caught:
                plans.launch(box, ["true"]).close()
            assert "check" in caught.value.call, caught.value
            assert set() == trapped()
        caller = launcher.caller(Sandbox()._spec)
        tree = compiler.compile_tree(compiler.compile_plan(nested._spec, caller, compiler.Variant()).tree, caller)
        if who == "user":
            ids = (("uid_map", f"{caller.uid} {caller.uid} 1\n".encode()), ("gid_map", b"0 0 1\n"))
            with pytest.raises(SetupError, match="check"):
                launch.build(Template(tree), Command(values=ids))
            assert set() == trapped()
        # The control: unchecked, it is written to.
        plan = plans.without(nested.plan(["true"]), lambda step: step.call == "check")
        with pytest.raises(SetupError):
            plans.launch(nested, ["true"], plan=plan).close()
        assert {"uid_map", "gid_map"} <= trapped()

    harness.in_child(check)


# ── /dev ──

# Without a change of what is there: chmod to the same mode. Times are what anybody may change who may write.
TOUCH = """
found = {}
for name in os.listdir("/dev"):
    path = "/dev/" + name
    if stat.S_ISCHR(os.lstat(path).st_mode):
        found[name] = [tried(os.utime, path), tried(os.chmod, path, stat.S_IMODE(os.stat(path).st_mode)),
                       tried(os.chown, path, os.getuid(), -1), tried(os.open, path, os.O_WRONLY)]
say(found)
"""


def test_device_nodes_of_the_host_can_be_used_and_not_changed():
    boxes = [Sandbox(), Sandbox().user(0), Sandbox().seccomp(None), Sandbox.empty().bind_readonly("/usr").dev()]
    if os.geteuid() == 0:
        boxes += [Sandbox().user(0, host_root=True), Sandbox().user(0, host_root=True).seccomp(None)]
    for box in boxes[:3] + boxes[4:]:
        found = tell(box, "import stat" + TOUCH)
        assert {"null", "zero", "tty", "random"} <= found.keys()
        assert all(["EROFS"] * 3 == answers[:3] for answers in found.values()), found
        assert "ok" == found["null"][3] == found["zero"][3]
    # The control: outside the same user may.
    os.utime("/dev/null")


def test_what_masks_a_file_cannot_be_changed_on_the_host(tmp_path):
    payloads.ours(tmp_path)
    (tmp_path / "file").write_text("secret")
    body = 'say([tried(os.utime, "/w/file"), tried(os.chmod, "/w/file", 0o666), open("/w/file").read()])'
    boxes = [Sandbox().user(0)] + [Sandbox().user(0, host_root=True)] * (os.geteuid() == 0)
    for box in boxes:
        assert ["EROFS", "EROFS", ""] == tell(box.bind(tmp_path, "/w").mask("/w/file"), body)
    assert "secret" == (tmp_path / "file").read_text()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# ── file systems and mounts by other names ──


@pytest.mark.needs_root
def test_files_beside_a_bind_cannot_be_opened_by_handle(tmp_path):
    """What a directory is part of is one file system: a handle names any file of it, bound or not."""
    (tmp_path / "bound").mkdir()
    payloads.ours(tmp_path / "bound")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(struct.pack("I", 128), 8 + 128)
    mount = ctypes.c_int()
    assert 0 == libc.name_to_handle_at(-100, os.fsencode(secret), handle, ctypes.byref(mount), 0)
    fd = os.open(tmp_path / "bound", os.O_RDONLY)
    opened = libc.open_by_handle_at(fd, handle, os.O_RDONLY)  # the control
    os.close(fd)
    assert b"secret" == os.read(opened, 10)
    os.close(opened)
    body = f"""
handle = ctypes.create_string_buffer(bytes.fromhex("{bytes(handle).hex()}"))
say(call({number("open_by_handle_at")}, os.open("/w", os.O_RDONLY), handle, 0))
"""
    every = ["DAC_READ_SEARCH", "DAC_OVERRIDE", "SYS_ADMIN", "SYS_CHROOT"]
    box = Sandbox().bind(tmp_path / "bound", "/w")
    for one in (
        box,
        box.seccomp(None),
        box.seccomp(None).user(0).capabilities(ambient=every),
        box.seccomp(None).capabilities(ambient=every[:2]),
        box.seccomp(None).user(0, host_root=True).capabilities(ambient=every[:2]),
        box.nesting(),
    ):
        assert "EPERM" == tell(one, body), one


@pytest.mark.needs_kernel(6, 8)
def test_mounts_of_the_host_are_not_listed():
    mount_id = kernel.listmount(2**64 - 1)[0]
    with open("/proc/self/ns/mnt") as stream:
        of_host = bytearray(8)
        fcntl.ioctl(stream, 0x8008B705, of_host)  # NS_GET_MNTNS_ID
    namespace = int.from_bytes(of_host, "little")
    body = f"""
import struct
room = ctypes.create_string_buffer(8192)
def about(number, mount, what, namespace=0):
    asked = ctypes.create_string_buffer(struct.pack("=IIQQQ", 32, 0, mount, what, namespace), 32)
    return call(number, asked, room, 512, 0)
say([about({number("listmount")}, {mount_id}, 0), about({number("statmount")}, {mount_id}, 2),
     about({number("listmount")}, {mount_id}, 0, {namespace}),
     about({number("statmount")}, {mount_id}, 2, {namespace})])
"""
    for box in (
        Sandbox(),
        Sandbox().seccomp(None),
        Sandbox().seccomp(None).user(0).capabilities(ambient=["SYS_ADMIN"]),
    ):
        assert {"ENOENT", "EPERM"} >= set(tell(box, body))
    assert mount_id in kernel.listmount(2**64 - 1)  # the control: outside it is there
    kernel.statmount(mount_id)


def test_sockets_and_pipes_of_a_read_only_bind_are_as_docs_say(tmp_path):
    """Read-only is about the file system: who may write to a socket or pipe that lies there, may."""
    payloads.ours(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo").chmod(0o666)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o666)
        server.listen()
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        body = """
import socket
say([tried(socket.socket(socket.AF_UNIX).connect, "/w/socket"), tried(os.open, "/w/fifo", os.O_WRONLY | os.O_NONBLOCK),
     tried(os.open, "/w/made", os.O_CREAT | os.O_WRONLY)])
"""
        assert ["ok", "ok", "EROFS"] == tell(Sandbox().bind_readonly(tmp_path, "/w"), body)
        assert ["ENOENT", "ENOENT", "EROFS"] == tell(Sandbox().bind_readonly(tmp_path, "/w").mask("/w"), body)
        os.close(reader)
