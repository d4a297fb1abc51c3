"""What the payload sees of every builder method."""

import errno
import json
import os
import socket
import stat

import harness
import plans
import pytest

import sandbox
from sandbox import Network, Sandbox, SetupError, UnsupportedError
from sandbox.spec import NAMESPACES

pytestmark = pytest.mark.needs_userns

PYTHON = "/usr/bin/python3"


def inside(box, script, **options):
    """Run Python inside; its last expression comes back."""
    *lines, last = script.strip().splitlines()
    code = "\n".join(["import os, json, socket, stat", *lines, f"print(json.dumps({last}))"])
    result = box.run([PYTHON, "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60, **options)
    assert 0 == result.returncode, result.stderr
    return json.loads(result.stdout)


def mounts(box):
    """Return the mounts inside: {target: (type, options)}."""
    found = {}
    for line in inside(box, "open('/proc/self/mountinfo').read().splitlines()"):
        left, right = line.split(" - ")
        fields = left.split()
        found[fields[4]] = (right.split()[0], set(fields[5].split(",")), set(right.split()[2].split(",")))
    return found


@pytest.fixture
def host(tmp_path):
    """A directory of the host that everybody may enter and write."""
    tmp_path.chmod(0o777)
    (tmp_path / "file").write_text("content")
    (tmp_path / "file").chmod(0o666)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub").chmod(0o777)
    return tmp_path


# ── the root ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_default_root_is_readonly_but_tmp_and_shm():
    script = """
def writable(path):
    try: open(path + "/of-this-test", "w").close(); return True
    except OSError as error: return error.errno
{path: writable(path) for path in ("/", "/usr", "/etc", "/dev", "/run", "/var", "/etc/ssl/certs", "/tmp", "/dev/shm")}
"""
    seen = inside(Sandbox(), script)
    assert {"/tmp": True, "/dev/shm": True} == {path: ok for path, ok in seen.items() if ok is True}
    assert {errno.EROFS} == {ok for ok in seen.values() if ok is not True}


def test_default_dev_has_its_nodes_and_works():
    script = """
nodes = sorted(name for name in os.listdir("/dev") if stat.S_ISCHR(os.stat("/dev/" + name).st_mode))
open("/dev/null", "w").write("x")
assert open("/dev/zero", "rb").read(3) == bytes(3) and len(open("/dev/urandom", "rb").read(9)) == 9
try: open("/dev/full", "w", buffering=1).write("x\\n")
except OSError as error: full = error.errno
master, slave = os.openpty()
os.write(slave, b"hi\\n")
[nodes, full, os.read(master, 9).decode(), os.ttyname(slave), os.readlink("/dev/fd"), os.readlink("/dev/ptmx")]
"""
    expected = ["full", "null", "ptmx", "random", "urandom", "zero"]
    nodes, full, said, name, fd, ptmx = inside(Sandbox(), script)
    assert expected == [one for one in nodes if one not in {"tty", "stdin", "stdout", "stderr"}]
    assert (errno.ENOSPC, "hi\r\n", "/dev/pts/0", "/proc/self/fd", "pts/ptmx") == (full, said, name, fd, ptmx)


def test_mounts_are_those_of_the_plan():
    box = Sandbox().tmpfs("/scratch", size="1M", exec=False).mask("/usr/share")
    found = mounts(box)
    assert {"/", "/usr", "/proc", "/dev/pts", "/dev/shm", "/tmp", "/scratch", "/usr/share"} <= set(found)
    for target, (kind, options, _) in found.items():
        assert "nosuid" in options, target
        if kind not in {"devtmpfs", "devpts"}:
            assert "nodev" in options, target
    assert {"ro"} <= found["/usr"][1]
    assert {"ro"} <= found["/"][2]  # the file system itself, not just this mount of it
    assert {"noexec"} <= found["/scratch"][1]
    assert {"noexec", "nodev"} <= found["/proc"][1]
    assert "/etc" not in found
    assert not [target for target in found if target.startswith(("/home", "/root", "/var", "/sys"))]


def test_empty_has_nothing():
    with pytest.raises(FileNotFoundError):
        Sandbox.empty().run(["/bin/true"])
    box = Sandbox.empty().bind_readonly("/usr").symlink("usr/lib", "/lib").symlink("usr/lib64", "/lib64")
    assert ["lib", "lib64", "usr"] == inside(box, "sorted(os.listdir('/'))")


def test_bind_is_writable_and_private(host):
    box = Sandbox().bind(host, "/data")
    script = """
open("/data/new", "w").write("from inside")
open("/data/file").read()
"""
    assert "content" == inside(box, script)
    assert "from inside" == (host / "new").read_text()
    found = mounts(box)["/data"]
    assert {"rw", "nosuid", "nodev"} <= found[1]


def test_bind_readonly_is_recursive(host):
    """A mount below the source is read-only inside, too."""

    def check():
        from sandbox import primitives as kernel

        harness.enter_namespaces(kernel.CLONE_NEWNS)
        kernel.mount("below", str(host / "sub"), "tmpfs", 0, "mode=0777")
        script = """
def write(path):
    try: open(path, "w").close(); return 0
    except OSError as error: return error.errno
[write("/data/x"), write("/data/sub/x"), write("/data/file")]
"""
        # The positive control: writable without read-only.
        assert [0, 0, 0] == inside(Sandbox().bind(host, "/data").user(host_root=True), script)
        box = Sandbox().bind_readonly(host, "/data").user(host_root=True)
        assert [errno.EROFS] * 3 == inside(box, script)

    harness.in_child(check)


@pytest.mark.parametrize("target", ["/file", "/new/deep/file", "/tmp/file", "/tmp/a/b/file", "/etc/hostname"])
def test_bind_of_a_file_has_a_file_as_its_place(host, target):
    for box in (Sandbox().bind_readonly(host / "file", target), Sandbox().bind(host / "file", target)):
        assert "content" == inside(box, f"open({target!r}).read()")


def test_bind_follows_a_source_that_changes_its_kind(host):
    box = Sandbox().bind_readonly(host / "thing", "/thing")
    (host / "thing").write_text("file")
    for _ in range(3):
        assert "file" == inside(box, "open('/thing').read()")
    (host / "thing").unlink()
    (host / "thing").mkdir()
    with pytest.raises(SetupError):
        box.run(["true"])
    assert [] == inside(box, "os.listdir('/thing')")


def test_bind_missing_is_an_error_that_names_it_or_skipped():
    with pytest.raises(SetupError) as caught:
        Sandbox().bind("/no/such").run(["true"])
    assert "/no/such" == caught.value.filename
    assert '.bind("/no/such")' == caught.value.origin
    assert "optional=True" in caught.value.hint
    box = Sandbox().bind("/no/such", optional=True).bind_readonly("/nor/this", "/x", optional=True)
    assert 0 == box.run(["true"]).returncode


def test_bind_without_exec_runs_no_program(host):
    program = host / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert 0 == Sandbox().bind(host, "/data").run(["/data/program"]).returncode
    with pytest.raises(PermissionError):
        Sandbox().bind(host, "/data", exec=False).run(["/data/program"])


def test_tmpfs_has_its_size_mode_and_inodes():
    box = Sandbox().tmpfs("/a/b", size="64K", mode=0o700, inodes=4)
    script = """
files = 0
try:
    for i in range(9): open(f"/a/b/{i}", "w").close(); files += 1
except OSError as error: count = error.errno
os.unlink("/a/b/0")
try: open("/a/b/1", "wb", buffering=0).write(bytes(1 << 17)); written = 1 << 17
except OSError as error: written = error.errno
written = os.stat("/a/b/1").st_size
[oct(os.stat("/a/b").st_mode & 0o7777), files, count, written]
"""
    assert ["0o700", 3, errno.ENOSPC, 65536] == inside(box, script)


def test_tmpfs_is_new_for_each_run():
    box = Sandbox()
    script = """
before = [os.listdir(path) for path in ("/tmp", "/dev/shm")]
open("/tmp/x", "w").close()
open("/dev/shm/y", "w").close()
before
"""
    for _ in range(3):
        assert [[], []] == inside(box, script)


def test_file_dir_and_symlink_are_as_said():
    box = (
        Sandbox()
        .file("/etc/app.conf", b"\x00\xff", mode=0o440)
        .file("/tmp/deep/er/file", "ä")
        .dir("/var/lib/app", mode=0o711)
        .dir("/tmp/d", mode=0o1777)
        .symlink("../x", "/etc/link")
        .file("/etc/passwd", "mine")
    )
    script = """
def mode(path): return oct(os.lstat(path).st_mode & 0o7777)
paths = ("/etc/app.conf", "/tmp/deep/er", "/tmp/deep/er/file", "/var/lib", "/var/lib/app", "/tmp/d")
[open("/etc/app.conf", "rb").read().hex(), open("/tmp/deep/er/file").read(), os.readlink("/etc/link"),
 open("/etc/passwd").read(), [mode(p) for p in paths]]
"""
    code = script.replace("\n [", " [").replace(",\n open", ", open")
    expected = ["00ff", "ä", "../x", "mine", ["0o440", "0o755", "0o644", "0o755", "0o711", "0o1777"]]
    assert expected == inside(box, code)


def test_file_of_16_mib_fits():
    box = Sandbox().file("/tmp/big", bytes(16 << 20))
    assert 16 << 20 == inside(box, "os.stat('/tmp/big').st_size")


@pytest.mark.parametrize(
    "target", ["/usr/share", "/tmp/dir", "/etc/passwd", "/usr/bin/env", "/proc/cpuinfo", "/tmp/file"]
)
def test_mask_hides_directories_and_files(target):
    box = Sandbox().dir("/tmp/dir").file("/tmp/dir/x", "y").file("/tmp/file", "secret")
    script = f"os.listdir({target!r}) if os.path.isdir({target!r}) else open({target!r}, errors='replace').read()"
    assert inside(box, script)  # the control: there is something
    assert not inside(box.mask(target), script)
    with pytest.raises(FileNotFoundError):
        box.mask("/no/such/path").run(["true"])


def test_masked_directory_cannot_be_written_or_unmasked():
    box = Sandbox().dir("/tmp/dir").mask("/tmp/dir")
    result = box.run(["/bin/sh", "-c", "touch /tmp/dir/x; umount /tmp/dir"], capture_output=True, text=True)
    assert "Read-only" in result.stderr
    assert result.returncode


def test_remount_readonly_with_what_is_below(host):
    box = Sandbox().bind(host, "/data").tmpfs("/data/sub").remount_readonly("/data")
    script = """
def write(path):
    try: open(path, "w").close(); return 0
    except OSError as error: return error.errno
[write("/data/x"), write("/data/sub/x"), write("/tmp/x")]
"""
    assert [errno.EROFS, errno.EROFS, 0] == inside(box, script)


def test_proc_shows_the_sandboxes_processes_only():
    assert ["1", "2"] == inside(Sandbox(), "[n for n in os.listdir('/proc') if n.isdigit()]")
    assert ["2"] == inside(Sandbox().proc(hidepid=True), "[n for n in os.listdir('/proc') if n.isdigit()]")
    assert "meminfo" not in inside(Sandbox().proc("/p", subset="pid"), "os.listdir('/p')")


def test_dev_elsewhere_with_fewer_nodes_and_a_limit():
    box = Sandbox.empty().bind_readonly("/usr").symlink("usr/lib", "/lib").symlink("usr/lib64", "/lib64")
    box = box.proc().dev(shm="64K", nodes=["null", "zero", "shm"])
    script = """
size = os.statvfs("/dev/shm")
[sorted(n for n in os.listdir("/dev")), size.f_blocks * size.f_frsize]
"""
    names = ["fd", "null", "shm", "stderr", "stdin", "stdout", "zero"]
    assert [names, 65536] == inside(box, script)
    with pytest.raises(FileNotFoundError):
        Sandbox().dev(nodes=["no-such-node"]).run(["true"])


@pytest.mark.needs_program("busybox")
def test_rootfs_is_the_whole_root(host):
    for name in ("bin", "proc", "dev", "tmp", "etc"):
        (host / "root" / name).mkdir(parents=True)
    busybox = harness.find_program("busybox")
    with open(busybox, "rb") as source:
        (host / "root/bin/busybox").write_bytes(source.read())
    (host / "root/bin/busybox").chmod(0o755)
    (host / "root/bin/sh").symlink_to("busybox")
    box = Sandbox().rootfs(host / "root")
    script = "busybox ls /; busybox touch /etc/x; busybox touch /tmp/y && echo tmp; busybox ls /dev/pts /proc/self/comm"
    result = box.run(["sh", "-c", script], capture_output=True, text=True)
    assert "bin\ndev\netc\nproc\ntmp\ntmp\n" == result.stdout[:25]
    assert "Read-only" in result.stderr
    assert [] == os.listdir(host / "root/etc")
    assert [] == os.listdir(host / "root/tmp")
    (host / "root/etc").chmod(0o777)
    harness.give_away(host / "root")
    writable = Sandbox().rootfs(host / "root", readonly=False)
    assert 0 == writable.run(["sh", "-c", "busybox touch /etc/x"], capture_output=True).returncode
    assert ["x"] == os.listdir(host / "root/etc")


# ── identity, names, namespaces ──────────────────────────────────────────────────────────────────────────────────────


def test_user_is_the_one_asked_for():
    usual = 1000 if os.geteuid() == 0 else os.geteuid()
    script = "[os.getresuid(), os.getresgid()]"
    assert [[usual] * 3, [usual] * 3] == inside(Sandbox(), script)
    assert [[0] * 3, [0] * 3] == inside(Sandbox().user(0), script)
    assert [[5] * 3, [5] * 3] == inside(Sandbox().user(5), script)
    assert [[5] * 3, [6] * 3] == inside(Sandbox().user(5, 6), script)
    top = 2**32 - 2
    assert [[top] * 3, [top] * 3] == inside(Sandbox().user(top), script)


def test_accounts_inside_name_the_user():
    script = """
import pwd, grp
[pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name, os.path.expanduser("~")]
"""
    assert ["user", "user", "/tmp"] == inside(Sandbox(), script)
    assert ["root", "root", "/tmp"] == inside(Sandbox().user(0), script)


def test_names_are_set_and_the_hosts_stay():
    before = socket.gethostname()
    script = "[socket.gethostname(), open('/proc/sys/kernel/domainname').read(), open('/etc/hostname').read()]"
    assert ["box", "nis\n", "box\n"] == inside(Sandbox().hostname("box").domainname("nis"), script)
    assert "sandbox" == inside(Sandbox(), "socket.gethostname()")
    assert before == socket.gethostname()


def namespaces_of(path):
    names = {"user", "pid", "net", "ipc", "uts", "cgroup", "time", "mnt"}
    return {name: os.readlink(f"{path}/{name}") for name in names}


SHOW = "{n: os.readlink('/proc/self/ns/' + n) for n in ('user', 'pid', 'net', 'ipc', 'uts', 'cgroup', 'time', 'mnt')}"


def test_namespaces_are_new_by_default_but_time():
    own, seen = namespaces_of("/proc/self/ns"), inside(Sandbox(), SHOW)
    assert {"time"} == {name for name in own if own[name] == seen[name]}


@pytest.mark.parametrize("name", sorted(set(NAMESPACES) - {"user", "time"}))
def test_shared_namespace_is_the_callers(name):
    own, seen = namespaces_of("/proc/self/ns"), inside(Sandbox().share(name), SHOW)
    assert {name, "time"} == {one for one in own if own[one] == seen[one]}


def test_unshared_time_is_a_new_namespace():
    own, seen = namespaces_of("/proc/self/ns"), inside(Sandbox().unshare("time"), SHOW)
    assert set() == {name for name in own if own[name] == seen[name]}


@pytest.mark.needs_root
def test_shared_user_namespace_gives_root_a_fresh_uid_and_no_privilege():
    box = Sandbox().share("user")
    own, seen = namespaces_of("/proc/self/ns"), inside(box, SHOW)
    assert {"user", "time"} == {name for name in own if own[name] == seen[name]}
    uid = inside(box, "os.getuid()")
    assert 1 << 30 < uid < 1 << 31
    caps = inside(box, "[l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')]")
    assert ["0" * 16] * 5 == caps


@pytest.mark.needs_user
def test_shared_user_namespace_is_for_root_and_the_hint_says_so():
    with pytest.raises(PermissionError) as caught:
        Sandbox().share("user").run(["true"])
    assert 'share("user")' in caught.value.hint


def test_network_kinds():
    script = """
flags = {}
for _, name in socket.if_nameindex():
    flags[name] = int(__import__("fcntl").ioctl(socket.socket(), 0x8913, name.encode().ljust(40, b"\\0"))[16])
flags
"""
    assert [0x49 & 1] == [flags & 1 for flags in inside(Sandbox(), script).values()]
    assert [0] == [flags & 1 for flags in inside(Sandbox().network("none"), script).values()]
    host_names = sorted(name for _, name in socket.if_nameindex())
    assert host_names == sorted(inside(Sandbox().network(Network.host), script))


def test_loopback_carries_a_connection():
    script = """
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
client.sendall(b"hi")
server.accept()[0].recv(2).decode()
"""
    assert "hi" == inside(Sandbox(), script)


# ── what the payload starts with ─────────────────────────────────────────────────────────────────────────────────────


def test_environment_is_clean_and_as_said(monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
    monkeypatch.setenv("WANTED", "y")
    seen = inside(Sandbox(), "dict(os.environ)")
    assert {"PATH", "HOME", "LANG"} == set(seen) - {"LC_CTYPE"}
    seen = inside(Sandbox().env(A="1", LANG=None).inherit_env("WANTED"), "dict(os.environ)")
    assert ("1", "y") == (seen["A"], seen["WANTED"])
    assert not {"SECRET_OF_THE_CALLER", "LANG"} & set(seen)
    seen = inside(Sandbox().env(A="1"), "dict(os.environ)", env={"ONLY": "z"})
    assert {"ONLY"} == set(seen) - {"LC_CTYPE"}


def test_cwd_and_umask():
    assert "/tmp" == inside(Sandbox(), "os.getcwd()")
    assert "/usr/lib" == inside(Sandbox().cwd("/usr/lib"), "os.getcwd()")
    assert "/usr/lib" == inside(Sandbox().cwd("/lib"), "os.getcwd()")
    assert "/" == inside(Sandbox().cwd("/"), "os.getcwd()")
    assert "/usr/share" == inside(Sandbox().cwd("/etc"), "os.getcwd()", cwd="/usr/share")
    assert 0o22 == inside(Sandbox(), "os.umask(0)")
    assert 0o777 == inside(Sandbox().umask(0o777), "os.umask(0)")


@pytest.mark.parametrize("path", ["/no/such", "/etc/passwd", "/tmp/x"])
def test_cwd_that_is_none_is_told(path):
    with pytest.raises(SetupError) as caught:
        Sandbox().cwd(path).run(["true"])
    assert caught.value.errno in {errno.ENOENT, errno.ENOTDIR}
    assert f'.cwd("{path}")' == caught.value.origin


def test_order_written_is_the_order_mounted(host):
    shadowed = Sandbox().file("/opt/x", "below").tmpfs("/opt")
    assert [] == inside(shadowed, "os.listdir('/opt')")
    within = Sandbox().tmpfs("/opt").file("/opt/x", "within").bind(host, "/opt/deep/er").tmpfs("/opt/deep/er/sub")
    assert ["within", "content", []] == inside(
        within, "[open('/opt/x').read(), open('/opt/deep/er/file').read(), os.listdir('/opt/deep/er/sub')]"
    )
    assert ["file", "sub"] == sorted(os.listdir(host))


def test_nothing_is_made_on_the_host_for_a_target_below_a_bind(host):
    for box in (
        Sandbox().bind(host, "/data").tmpfs("/data/not-there"),
        Sandbox().bind(host, "/data").bind_readonly("/usr", "/data/not-there"),
        Sandbox().bind_readonly(host, "/data").tmpfs("/data/not-there/deep"),
    ):
        with pytest.raises(FileNotFoundError):
            box.run(["true"])
        assert ["file", "sub"] == sorted(os.listdir(host))


def test_enforced_is_what_the_payload_reads_itself():
    result = sandbox.run(["cat", "/proc/self/status"], capture_output=True, text=True)
    status = dict(line.split(":\t", 1) for line in result.stdout.splitlines() if ":\t" in line)
    told = result.enforced
    assert (int(status["Uid"].split()[0]), int(status["Gid"].split()[0])) == (told.uid, told.gid)
    assert status["NoNewPrivs"] == str(int(told.no_new_privs))
    assert 0xEF == told.securebits
    sets = dict(zip(("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"), told.capabilities.values(), strict=True))
    assert all(int(status[name], 16) == 0 and not names for name, names in sets.items())


def test_wrong_kinds_are_clear_errors(host):
    os.mkfifo(host / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(host / "socket"))
        for name in ("fifo", "socket"):
            kind = inside(Sandbox().bind(host / name, "/x"), "os.stat('/x').st_mode")
            assert stat.S_IFMT(kind) == stat.S_IFMT(os.stat(host / name).st_mode)
    cases = [
        Sandbox().bind(host / "file", "/usr/share"),
        Sandbox().bind(host, "/usr/bin/env"),
        Sandbox().bind(host / "file" / "x", "/y"),
        Sandbox().bind("/" + "x/" * 2040, "/y"),
        Sandbox().bind("/" + "x" * 300, "/y"),
    ]
    (host / "loop").symlink_to("loop")
    cases.append(Sandbox().bind(host / "loop", "/y"))
    for box in cases:
        with pytest.raises(SetupError) as caught:
            box.run(["true"])
        assert caught.value.hint, caught.value
    odd = host / "a:b,c\\d\ne"
    odd.mkdir()
    odd.chmod(0o755)
    harness.give_away(odd)
    (odd / "x").write_text("odd")
    assert "odd" == inside(Sandbox().bind(odd, "/odd"), "open('/odd/x').read()")


def test_plans_of_tests_start_the_same():
    with plans.launch(Sandbox(), ["true"], plan=Sandbox().plan(["true"])) as running:
        assert 0 == running.wait()


@pytest.mark.needs_root
def test_strict_groups_are_an_error_where_the_caller_cannot_drop_its_own():
    def check():
        os.setgroups([12345, 12346])
        os.setresgid(harness.USER_ID, harness.USER_ID, harness.USER_ID)
        os.setresuid(harness.USER_ID, harness.USER_ID, harness.USER_ID)
        with pytest.raises(UnsupportedError, match="12345, 12346"):
            Sandbox().user(groups="strict").run(["true"])

    harness.in_child(check)
    assert 0 == Sandbox().user(groups="strict").run(["true"]).returncode


def test_shared_pid_namespace_is_left_without_a_descendant(tmp_path):
    tmp_path.chmod(0o777)
    script = "(setsid sh -c 'echo $$ > /d/pid; exec sleep 1000' &) ; while [ ! -s /d/pid ]; do :; done; exit 3"
    assert 3 == Sandbox().share("pid").bind(tmp_path, "/d").run(["sh", "-c", script], timeout=30).returncode
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
