"""Many ids inside: by newuidmap for callers that are not root, directly for root, nested or not."""

import errno
import os
import subprocess
import sys

import harness
import plans
import pytest
from payloads import tell

from sandbox import Sandbox, SetupError, UnsupportedError, host_ids, identity, primitives as kernel, subids

pytestmark = pytest.mark.needs_userns

NAME, FIRST = "of-this-test", 700000
CAPABILITIES = ["CHOWN", "SETUID", "SETGID"]

WHO = """
os.close(os.open(where + "/file", os.O_CREAT, 0o644))
os.chown(where + "/file", 5, 6)
seen = os.stat(where + "/file")
child = os.fork()
if child == 0:
    os.setgroups([7, 8])
    os.setresgid(33, 33, 33)
    os.setresuid(33, 33, 33)
    ok = (os.getuid(), os.getgid(), os.getgroups()) == (33, 33, [7, 8]) and tried(open, where + "/x", "w") == "EACCES"
    os._exit(0 if ok else 1)
with open("/proc/self/uid_map") as stream:
    uid_map = [[int(word) for word in line.split()] for line in stream]
say([seen.st_uid, seen.st_gid, os.waitpid(child, 0)[1], os.getgroups(), uid_map])
"""


def who(box, where="/tmp"):
    return tell(box, f"where = {where!r}\nos.chmod(where, 0o755)\n" + WHO)


# ── root ──


@pytest.mark.needs_root
def test_root_gives_a_range_that_nobody_else_has():
    box = Sandbox().id_ranges().user(0).capabilities(CAPABILITIES).tmpfs("/work")
    *found, groups, ((inside, outside, count),) = who(box, "/work")
    assert [5, 6, 0, []] == [*found, groups]
    assert (0, 65536, 0) == (inside, count, outside % 65536)
    assert 0x78000000 <= outside < 0x7FFFFFFF
    running = [plans.launch(box, ["sleep", "1000"]) for _ in range(5)]
    firsts = set()
    for process in running:
        maps = []
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{process.init_pid}/{name}") as stream:
                maps.append(list(map(int, stream.read().split())))
        assert maps[0] == maps[1]
        firsts.add(maps[0][1])
        assert f"@sandbox-ids-{maps[0][1]}" in plans.abstract_claims()
    for process in running:
        process.close()
    assert 5 == len(firsts)
    assert plans.claims_end({f"@sandbox-ids-{first}" for first in firsts})


@pytest.mark.needs_root
def test_enforced_says_what_ranges_change():
    result = Sandbox().id_ranges().user(3, 4, groups="strict").run(["id"], capture_output=True, text=True)
    assert "uid=3" in result.stdout
    assert (3, 4, ()) == (result.enforced.uid, result.enforced.gid, result.enforced.groups)
    assert () == result.enforced.gaps


@pytest.mark.needs_root
def test_pipes_belong_to_the_payload():
    result = Sandbox().id_ranges().run(["sh", "-c", "echo x >/dev/stdout"], capture_output=True, text=True)
    assert ("x\n", "") == (result.stdout, result.stderr)


@pytest.mark.needs_root
def test_owner_of_an_account_is_the_only_id_on_a_bind(tmp_path):
    box = Sandbox().id_ranges().user(0).capabilities(CAPABILITIES).bind(tmp_path, "/w")
    body = """
open("/w/x", "w").close()
say([tried(os.chown, "/w/x", 5, 5), os.stat("/w/x").st_uid])
"""
    assert ["EOVERFLOW", 0] == tell(box, body)
    assert harness.USER_ID == os.stat(tmp_path / "x").st_uid


@pytest.mark.needs_root
def test_tree_with_shifted_ids_has_them_all(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    os.chown(tree, 1_000_000, 1_000_000)
    tmp_path.chmod(0o755)
    box = Sandbox().id_ranges().user(0).capabilities(CAPABILITIES).bind(tree, "/w")
    assert [5, 6, 0] == who(box, "/w")[:3]
    assert (1_000_005, 1_000_006) == (os.stat(tree / "file").st_uid, os.stat(tree / "file").st_gid)


@pytest.mark.needs_root
@pytest.mark.needs_program("dpkg", "dpkg-deb")
def test_dpkg_unpacks_a_package_with_files_of_several_users(tmp_path):
    tree = tmp_path / "tree"
    for path in (tree, tree / "package", tree / "root"):
        path.mkdir()
        os.chown(path, 1_000_000, 1_000_000)
    tmp_path.chmod(0o755)
    script = """
set -e
cd /w
mkdir -p package/DEBIAN package/srv root/var/lib/dpkg/updates root/var/lib/dpkg/info
printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n' >package/DEBIAN/control
echo text >package/srv/file
chown 33:34 package/srv/file
chmod 4750 package/srv/file
dpkg-deb --build package x.deb >/dev/null
touch root/var/lib/dpkg/status root/var/lib/dpkg/available
dpkg --root=/w/root --force-script-chrootless --log=/dev/null --install x.deb >/dev/null
stat -c '%u %g %a' root/srv/file
"""
    box = Sandbox().id_ranges().user(0).capabilities([*CAPABILITIES, "DAC_OVERRIDE", "FOWNER", "FSETID"])
    done = box.bind(tree, "/w").run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert ("33 34 4750\n", 0) == (done.stdout, done.returncode), done.stderr
    assert (1_000_033, 1_000_034) == (os.stat(tree / "root/srv/file").st_uid, os.stat(tree / "root/srv/file").st_gid)


@pytest.mark.needs_root
def test_tree_of_root_has_the_ids_that_it_says_where_root_is_named(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    tmp_path.chmod(0o755)
    box = Sandbox().id_ranges().user(0).capabilities(CAPABILITIES).bind(tree, "/w", owner=0)
    assert [5, 6, 0] == who(box, "/w")[:3]
    assert (5, 6) == (os.stat(tree / "file").st_uid, os.stat(tree / "file").st_gid)
    assert "EPERM" == tell(box, 'say(tried(os.chmod, "/w/file", 0o4755))')


def test_contradictions_are_told():
    for box, words in (
        (Sandbox().id_ranges().share("user"), "leave out share"),
        (Sandbox().id_ranges().capabilities(["SYS_ADMIN"]), "CAP_SYS_ADMIN"),
    ):
        with pytest.raises((ValueError, UnsupportedError)) as caught:
            box.run(["true"])
        assert os.getuid() != 0 or words in str(caught.value)
    if os.getuid() == 0:
        with pytest.raises(ValueError, match="say one"):
            Sandbox().id_ranges().user(0, host_root=True).run(["true"])
        with pytest.raises(ValueError, match=r"0 to 999, and the user would be 1000:1000"):
            Sandbox().id_ranges(1000).run(["true"])


# ── root that is nested ──

NESTED = """
import os, sys
from sandbox import Sandbox, UnsupportedError
box = Sandbox()
kept = [box.popen(["sleep", "1000"]) for _ in range(3)]
for process in kept:
    with open(f"/proc/{process.init_pid}/uid_map") as stream:
        print(*stream.read().split())
    process.close()
try:
    Sandbox().id_ranges(int(sys.argv[1])).run(["cat", "/proc/self/uid_map"])
except UnsupportedError as error:
    print(error.fix)
"""


def nested(uid_map, script, *arguments):
    """Run a script as root of a user namespace with this map; return the lines that it prints."""
    found = []

    def check():
        with harness.user_namespace(uid_map) as holder:
            namespace = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY)
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                kernel.setns(namespace, kernel.CLONE_NEWUSER)
                os.setgroups([])
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                kernel.unshare(kernel.CLONE_NEWNS)
                os.dup2(write_end, 1)
                os.dup2(write_end, 2)
                os.execv(sys.executable, [sys.executable, "-I", "-c", script, *map(str, arguments)])
            os.close(write_end)
            os.close(namespace)
            with open(read_end) as stream:
                found.extend(stream.read().splitlines())
            assert 0 == os.waitpid(pid, 0)[1], "\n".join(found)

    check()
    return found


@pytest.mark.needs_root
def test_nested_root_gives_ids_of_its_own_namespace():
    *lines, told = nested("0 1000000 65536\n", NESTED, 4096)
    ids = [int(line.split()[1]) for line in lines]
    assert 3 == len(set(ids))
    assert all(32768 <= number < 65534 for number in ids)
    first, count = map(int, told.split()[1:])
    assert 4096 == count
    assert not set(ids) & set(range(first, first + count))
    assert first + count <= 65534


@pytest.mark.needs_root
def test_nested_root_is_not_kept_from_ids_by_claims_of_the_host(monkeypatch):
    # The host's network namespace is shared; its numbers are other ids.
    space = host_ids.space_of([(0, 65536)], [(0, 65536)])
    monkeypatch.setattr(host_ids, "own_space", lambda: space)
    held = [host_ids.claim(4096)[1] for _ in space.blocks]
    try:
        with pytest.raises(UnsupportedError, match="ids that no other sandbox has"):
            host_ids.claim(4096)
        *_, told = nested("0 1000000 65536\n", NESTED, 4096)
        assert "4096" == told.split()[2]
    finally:
        for fd in held:
            os.close(fd)


@pytest.mark.needs_root
def test_nested_root_is_told_what_its_namespace_is_too_small_for():
    *_, told = nested("0 1000000 65536\n", NESTED, 65536)
    assert "id_ranges(8191)" in told


@pytest.mark.needs_root
def test_nested_root_with_a_small_map_is_told_and_can_be_itself():
    script = """
from sandbox import Sandbox, UnsupportedError
try:
    Sandbox().run(["true"])
except UnsupportedError as error:
    print(error.found, "|", error.fix)
print(Sandbox().user(0, host_root=True).run(["id", "-u"]).returncode)
"""
    told, seen, code = nested("0 1000000 10\n", script)
    assert "ids up to 9 only" in told
    assert "host_root=True" in told
    assert ("0", "0") == (seen, code)


@pytest.mark.needs_root
def test_nested_root_cannot_write_as_an_owner_on_the_hosts_file_systems(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, 1_001_000, 1_001_000)
    tmp_path.chmod(0o755)
    script = """
import sys
from sandbox import Sandbox
try:
    Sandbox().bind(sys.argv[1], "/w").run(["true"])
except PermissionError as error:
    print(error.hint)
print(Sandbox().bind_readonly(sys.argv[1], "/w").run(["true"]).returncode)
"""
    told, code = nested("0 1000000 65536\n", script, source)
    assert "another user namespace" in told
    assert "0" == code


# ── by newuidmap ──


def as_account(function, *args, lines="{name}:{first}:65536\n", subgid=None, uid=harness.USER_ID):
    """Call a function as a user with an account and these lines in /etc/subuid and /etc/subgid."""

    def check():
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        harness.make_reachable([harness.REPOSITORY, sys.prefix, sys.base_prefix])
        with open("/etc/passwd") as stream:
            passwd = stream.read() + f"{NAME}:x:{uid}:{uid}::/:/bin/sh\n"
        kernel.mount("none", "/mnt", "tmpfs", 0, "mode=0755")
        words = {"name": NAME, "first": FIRST, "uid": uid}
        contents = {"passwd": passwd, "subuid": lines, "subgid": lines if subgid is None else subgid}
        for name, text in contents.items():
            if name != "passwd":
                text = text.format(**words)
            with open(f"/mnt/{name}", "w") as stream:
                stream.write(text)
            kernel.mount(f"/mnt/{name}", f"/etc/{name}", None, kernel.MS_BIND)
        os.setgroups([uid, 61777])
        harness.drop_privileges_but_groups(uid)
        function(*args)

    harness.in_child(check)


needs_newuidmap = pytest.mark.needs_program("newuidmap", "newgidmap")


@pytest.mark.needs_root
@needs_newuidmap
@pytest.mark.parametrize("key", ["{name}", "{uid}"])
def test_user_with_ranges_has_them_inside(key, tmp_path):
    tmp_path.chmod(0o755)

    def check():
        box = Sandbox().id_ranges().user(0, groups="strict").capabilities(CAPABILITIES).bind(tmp_path, "/w")
        uid, gid, status, groups, uid_map = who(box, "/w")
        assert (5, 6, 0, []) == (uid, gid, status, groups)
        assert [[0, harness.USER_ID, 1], [1, FIRST, 65535]] == uid_map
        assert (FIRST + 4, FIRST + 5) == (os.stat(tmp_path / "file").st_uid, os.stat(tmp_path / "file").st_gid)
        result = box.run(["true"])
        assert not any("groups" in gap for gap in result.enforced.gaps)
        assert any("id_ranges" in gap for gap in result.enforced.gaps)
        # The payload's own id stays the caller's, in the middle as well.
        *_, uid_map = who(Sandbox().id_ranges(60000).user(1000).capabilities(CAPABILITIES, ambient=CAPABILITIES))
        assert [[0, FIRST, 1000], [1000, harness.USER_ID, 1], [1001, FIRST + 1000, 58999]] == uid_map

    as_account(check, lines=key + ":{first}:65536\n")


@pytest.mark.needs_root
@needs_newuidmap
def test_dropped_group_does_not_open_a_file_any_more(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    os.chown(secret, 0, 61777)
    secret.chmod(0o640)
    tmp_path.chmod(0o755)

    def check():
        body = 'say(tried(open, "/w/secret"))'
        # The control: with the caller's id alone, the groups stay.
        assert "ok" == tell(Sandbox().bind(tmp_path, "/w"), body)
        assert "EACCES" == tell(Sandbox().id_ranges().bind(tmp_path, "/w"), body)

    as_account(check)


@pytest.mark.needs_root
@needs_newuidmap
def test_several_ranges_are_joined():
    def check():
        *_, uid_map = who(Sandbox().id_ranges(3000).user(0).capabilities(CAPABILITIES))
        assert [[0, harness.USER_ID, 1], [1, FIRST, 1000], [1001, 800000, 1999]] == uid_map

    as_account(check, lines="# a comment\nother:1:5\n{name}:{first}:1000\n{uid}:800000:5000\n")


@pytest.mark.needs_root
@needs_newuidmap
@pytest.mark.parametrize(
    ("lines", "subgid", "path", "found"),
    [("", "", "/etc/subuid", "none"), ("{name}:{first}:65536\n", "{name}:{first}:100\n", "/etc/subgid", "100")],
)
def test_missing_range_is_told_with_file_line_and_command(lines, subgid, path, found):
    def check():
        with pytest.raises(UnsupportedError) as caught:
            Sandbox().id_ranges().run(["true"])
        error = caught.value
        assert (errno.EPERM, found) == (error.errno, error.found)
        assert path in error.needed
        assert "usermod --add-sub" in str(error.fix)
        assert f"{NAME}:" in str(error.fix)
        if found == "100":
            assert 0 == Sandbox().id_ranges(101).run(["true"]).returncode

    as_account(check, lines=lines, subgid=subgid)


@pytest.mark.needs_root
@needs_newuidmap
def test_no_new_privs_of_the_caller_is_told():
    def check():
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        with pytest.raises(UnsupportedError, match="no_new_privs"):
            Sandbox().id_ranges().run(["true"])

    as_account(check)


@pytest.mark.needs_user
def test_user_without_an_account_or_range_is_told():
    with pytest.raises(UnsupportedError) as caught:
        Sandbox().id_ranges().run(["true"])
    assert caught.value.fix


@pytest.mark.needs_root
@needs_newuidmap
def test_refusal_of_newuidmap_is_told_in_its_words_and_nothing_is_left(monkeypatch):
    def check():
        sandbox = Sandbox().id_ranges()
        sandbox.run(["true"])
        before = harness.footprint()
        # The file changes between the look and the launch.
        monkeypatch.setattr(subids, "_ranges", lambda path, uid, wanted: [(FIRST + 100000, 65536)])
        with pytest.raises(SetupError) as caught:
            sandbox.run(["true"])
        assert errno.EPERM == caught.value.errno
        assert caught.value.call.startswith("newuidmap ")
        assert ".id_ranges(65536)" == caught.value.origin
        assert "/etc/subuid" in str(caught.value.hint)
        assert before == harness.footprint(settle=before)

    as_account(check)


@pytest.mark.needs_root
@needs_newuidmap
def test_each_step_of_a_plan_with_ranges_fails_in_turn():
    def check():
        sandbox = Sandbox().id_ranges()
        plan = sandbox.plan(["true"])
        default = {(s.call, s.args, s.origin) for s in Sandbox().plan(["true"]).steps}
        plans.launch(sandbox, ["true"], plan=plan).close()
        before = harness.footprint()
        numbers = [s.number for s in plan.steps if (s.call, s.args, s.origin) not in default]
        assert any(plan.steps[number - 1].call == "await_maps" for number in numbers)
        for number in numbers:
            call = [call for _, call in plan.calls()][number - 1]
            with pytest.raises(SetupError) as caught:
                plans.launch(sandbox, ["true"], plan=plan.with_fault(number, plans.plausible(call)))
            assert number == caught.value.step
        assert before == harness.footprint(settle=before)

    as_account(check)


@pytest.mark.needs_root
@needs_newuidmap
def test_launcher_that_ignores_sigchld_gets_its_ids():
    def check():
        import signal

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with Sandbox().id_ranges().user(0).popen(["cat", "/proc/self/uid_map"], stdout=subprocess.PIPE) as process:
            assert str(FIRST).encode() in process.stdout.read()

    as_account(check)


# ── claims ──


@pytest.mark.needs_root
def test_claims_of_ranges_never_overlap():
    space = host_ids.own_space()
    assert not set(space.single[:10]) & set(space.blocks[:10])
    assert space.single.stop <= space.blocks.start
    first, fd = host_ids.claim(65536)
    second, other = host_ids.claim(65536)
    os.close(fd)
    os.close(other)
    assert abs(first - second) >= identity.MAX_COUNT
