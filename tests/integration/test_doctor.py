"""`sandbox doctor` on made-up hosts: it names what stands in the way, and a launch there says the same."""

import os

import made_up_hosts as hosts
import pytest

from sandbox import Sandbox

pytestmark = pytest.mark.needs_userns


def filtered(rule):
    return f"""
from sandbox import Allow, Errno, Filter, Kill, arg, confine
confine(filter=Filter(Allow){rule})
"""


def zero(kind):
    """Return the lines of a host where no such namespaces may be made; the setting is a user namespace's own."""
    return f"own_user(flags=CLONE_NEWNS)\nopen('/proc/sys/user/max_{kind}_namespaces', 'w').write('0')"


def test_host_that_allows_all_works():
    answer = hosts.examine()
    hosts.agree(answer)
    assert answer["status"] == 0
    assert set() == hosts.blocked(answer)


CHROOT = """
own_all()
mount("root", "/mnt", "tmpfs")
os.mkdir("/mnt/root")
for name in os.listdir("/"):
    place = f"/mnt/root/{name}"
    if os.path.islink(f"/{name}"):
        os.symlink(os.readlink(f"/{name}"), place)
    elif os.path.isdir(f"/{name}") and name != "mnt":
        os.mkdir(place)
        mount(f"/{name}", place, None, MS_BIND | MS_REC)
os.chroot("/mnt/root")
os.chdir("/")
"""
CHROOT_MOUNT = """
own_all()
fork_into()
mount("/", "/mnt", None, MS_BIND | MS_REC)
os.chroot("/mnt")
os.chdir("/")
"""
READONLY_PROC = """
own_all()
mount("/proc", "/proc", None, MS_BIND)
mount(None, "/proc", None, MS_BIND | MS_REMOUNT | MS_RDONLY)
"""
LANDLOCK = """
from sandbox import Landlock, confine
confine(landlock=Landlock(read=["/"], write=["/"], execute=["/"]))
"""
NEW_MOUNTS = "'clone3', 'fsopen', 'fsconfig', 'fsmount', 'open_tree', 'move_mount', 'mount_setattr'"

HOSTS = {
    "filter of clone's flags": (filtered(".deny('clone', arg(0) & 0x10000000 == 0x10000000)"), "seccomp"),
    "filter of a network namespace": (filtered(".deny('unshare', arg(0) & 0x40000000 == 0x40000000)"), "seccomp"),
    "filter without setns": (filtered(".deny('setns')"), "seccomp"),
    "filter without fsopen": (filtered(".deny('fsopen')"), "seccomp"),
    "filter without mount_setattr": (filtered(".deny('mount_setattr')"), "seccomp"),
    "filter without pivot_root": (filtered(".deny('pivot_root')"), "seccomp"),
    "filter that knows no new mounts": (filtered(f".deny({NEW_MOUNTS}, action=Errno('ENOSYS'))"), "seccomp"),
    "Docker's filter": ("from sandbox import Filter, confine\nconfine(filter=Filter.docker())", "seccomp"),
    "filter that kills stage 1": (filtered(".deny('setns', action=Kill)"), "seccomp-kills"),
    "filter that kills PID 1": (filtered(".deny('pivot_root', action=Kill)"), "seccomp-kills"),
    "Landlock": (LANDLOCK, "landlocked"),
    "masked /proc": ("own_all()\nmount('mask', '/proc/irq', 'tmpfs')", "masked-proc"),
    "no /proc": ("own_all()\nmount('mask', '/proc', 'tmpfs')", "proc-missing"),
    "read-only /proc": (READONLY_PROC, "proc-readonly"),
    "/proc of another pid namespace": ("own_all(CLONE_NEWPID)\nfork_into()", "proc-foreign"),
    "no processes": ("resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))", "processes"),
    "few descriptors": ("resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))", "open-files"),
    "no user namespaces": (zero("user"), "namespaces-zero"),
    "no network namespaces": (zero("net"), "namespaces-zero"),
    "one id, seen as root": ("own_user(f'0 {os.geteuid()} 1')", "few-ids"),
    "an id that is not mapped": ("unshare(CLONE_NEWUSER)", "unmapped-id"),
    "chroot": (CHROOT, "chroot"),
    "chroot into a mount": (CHROOT_MOUNT, "chroot"),
}


@pytest.mark.parametrize("name", HOSTS)
def test_host_that_blocks_something_is_told_what(name):
    lines, key = HOSTS[name]
    answer = hosts.examine(lines)
    hosts.agree(answer)
    assert answer["status"] == 1
    assert key == answer["cause"]["key"]
    assert {key} == hosts.blocked(answer)


# ── in containers ──

BWRAP = ["bwrap", "--bind", "/", "/", "--dev", "/dev", "--unshare-user"]
NEW_PID = ["--unshare-pid", "--proc", "/proc"]


@pytest.mark.needs_program("bwrap")
@pytest.mark.needs_user
def test_host_in_bubblewrap_works():
    answer = hosts.examine(around=[*BWRAP, *NEW_PID])
    hosts.agree(answer)
    assert answer["run"] == 0


@pytest.mark.needs_program("bwrap")
@pytest.mark.needs_user
@pytest.mark.parametrize(
    ("options", "key"),
    [
        ([*NEW_PID, "--disable-userns"], "namespaces-full"),
        (["--ro-bind", "/proc", "/proc"], "proc-readonly"),
        (["--unshare-pid", "--bind", "/proc", "/proc"], "proc-foreign"),
        ([*NEW_PID, "--ro-bind", "/proc/sys", "/proc/sys"], "masked-proc"),
    ],
)
def test_host_in_bubblewrap_is_told_what_blocks(options, key):
    answer = hosts.examine(around=[*BWRAP, *options])
    hosts.agree(answer)
    assert key == answer["cause"]["key"]


def ours(box):
    """Return what a doctor says in a sandbox of this library."""
    box = box.bind_readonly(hosts.SITE, "/site").env(PYTHONPATH="/site")
    program = hosts.EXAMINE.replace(repr(hosts.SITE), "'/site'")
    done = box.run(["/usr/bin/python3", "-c", program], capture_output=True, text=True, timeout=60)
    return hosts.read(done)


def test_host_in_a_sandbox_is_told_of_its_filter():
    answer = ours(Sandbox())
    hosts.agree(answer)
    assert answer["cause"]["key"] == "seccomp"


def test_host_in_a_sandbox_for_nesting_works():
    answer = ours(Sandbox().nesting())
    hosts.agree(answer)
    assert answer["run"] == 0


# ── what is root's ──


@pytest.mark.needs_root
def test_host_of_root_without_capabilities_is_told_so():
    drop = "sets = capget()\nkeep = sets.permitted & ~(1 << 21)\ncapset(keep, keep, 0)\nprctl(PR_CAPBSET_DROP, 21)"
    answer = hosts.examine(drop)
    hosts.agree(answer)
    assert answer["cause"]["key"] == "capabilities"


@pytest.mark.needs_root
def test_host_of_root_with_the_mounts_of_another_is_told_so():
    answer = hosts.examine("own_user()")
    hosts.agree(answer)
    assert answer["cause"]["key"] == "foreign-mounts"
    assert {"foreign-mounts"} == hosts.blocked(answer)


@pytest.mark.needs_root
def test_host_that_executes_no_memfd_works_from_the_file():
    lines = (
        "own_all(CLONE_NEWPID)\nfork_into()\nmount('proc', '/proc', 'proc')\n"
        "open('/proc/sys/vm/memfd_noexec', 'w').write('2')"
    )
    answer = hosts.examine(lines)
    hosts.agree(answer)
    assert answer["run"] == 0
    assert answer["rows"]["memfd"]["cause"]["key"] == "memfd-noexec"


# ── ranges of ids, which an unprivileged user gets from newuidmap ──

RANGES = """
own_mounts()
mount("etc", "/mnt", "tmpfs")
for name, text in (("subuid", RANGE), ("subgid", RANGE), ("passwd", ACCOUNT)):
    with open(f"/mnt/{name}", "w") as stream:
        stream.write(text)
    mount(f"/mnt/{name}", f"/etc/{name}", None, MS_BIND)
MORE
os.setgroups([])
os.setresgid(61234, 61234, 61234)
os.setresuid(61234, 61234, 61234)
"""
NOSUID = """
import shutil
for name in ("newuidmap", "newgidmap"):
    path = shutil.which(name)
    mount(path, path, None, MS_BIND)
    mount(None, path, None, MS_BIND | MS_REMOUNT | MS_NOSUID)
"""


@pytest.mark.needs_root
@pytest.mark.needs_program("newuidmap", "newgidmap")
@pytest.mark.parametrize(
    ("given", "more", "path", "key"),
    [
        ("61234:100000:65536\n", "", os.environ["PATH"], None),
        ("", "", os.environ["PATH"], "subid-missing"),
        ("61234:100000:65536\n", "", os.environ["PATH"], "user-unknown"),
        ("61234:100000:65536\n", "prctl(PR_SET_NO_NEW_PRIVS, 1)", os.environ["PATH"], "no-new-privs"),
        ("61234:100000:65536\n", NOSUID, os.environ["PATH"], "newuidmap-privileges"),
        ("61234:100000:65536\n", "", "/nowhere", "newuidmap-missing"),
    ],
)
def test_host_says_why_there_are_no_ranges_of_ids(given, more, path, key):
    account = "" if key == "user-unknown" else "somebody:x:61234:61234::/:/bin/sh\n"
    lines = f"RANGE, ACCOUNT = {given!r}, {account!r}" + RANGES.replace("MORE", more)
    answer = hosts.examine(lines, PATH=path)
    hosts.agree(answer)
    assert answer["run"] == 0
    row = answer["rows"]["id-ranges"]
    assert (key is None) == (row["state"] == "works")
    assert key == (row["cause"] and row["cause"]["key"]), row


# ── errors of what a sandbox can do without ──


@pytest.mark.parametrize(
    ("rule", "lines", "row"),
    [
        (".deny('io_uring_setup')", "from sandbox.events import Aio\nAio(backend='io_uring')", "io_uring"),
        (".deny('io_setup')", "from sandbox.events import Aio\nAio(backend='linux_aio')", "aio"),
        (
            ".deny('landlock_create_ruleset', action=Errno('ENOSYS'))",
            "Sandbox().landlock(read=['/usr']).run(['true'])",
            "landlock",
        ),
    ],
)
def test_unsupported_error_and_doctor_name_the_same_cause(rule, lines, row):
    answer = hosts.examine(filtered(rule))
    hosts.agree(answer)
    assert answer["run"] == 0
    assert answer["rows"][row]["cause"]["key"] == "seccomp"
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    said = (
        "import json\nfrom sandbox import Sandbox, UnsupportedError\n"
        f"try:\n{body}except UnsupportedError as error:\n    print(json.dumps({{'cause': error.cause._asdict()}}))"
    )
    told = hosts.tell(filtered(rule) + said)
    assert answer["rows"][row]["cause"] == told["cause"]
