"""Each thing that the library asks of the kernel, tried alone in a process that is thrown away.

A probe makes the calls that a launch makes, in namespaces of its own, and leaves nothing: its mounts are detached or
of a mount namespace that ends with it. What it returns is a detail for people.
"""

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from typing import Final

from sandbox import facts, kernel as k
from sandbox.primitives import fscontext, landlock, memfd, mounts, process, secure_computing
from sandbox.primitives.aio import io_destroy, io_setup
from sandbox.primitives.fanotify import fanotify_init
from sandbox.primitives.fanotify_numbers import FanotifyInit
from sandbox.primitives.io_uring import io_uring_setup
from sandbox.primitives.namespaces import clone, setns, unshare
from sandbox.primitives.system import sethostname
from sandbox.probing import Failed, Identity, calling, inside

# ── what every sandbox needs ─────────────────────────────────────────────────────────────────────────────────────────


def processes(_: Identity) -> str:
    """Make a process: this one."""
    from resource import RLIM_INFINITY, RLIMIT_NPROC, getrlimit

    limit = getrlimit(RLIMIT_NPROC)[0]
    return "" if limit == RLIM_INFINITY else f"at most {limit} for this user"


def descriptors(_: Identity) -> str:
    """Open some more."""
    from resource import RLIMIT_NOFILE, getrlimit

    with calling("open"):
        for _more in range(16):
            os.open("/", os.O_PATH | os.O_CLOEXEC)
    return f"at most {getrlimit(RLIMIT_NOFILE)[0]} in a process"


def proc(_: Identity) -> str:
    """Find the caller's /proc whole enough for id maps."""
    with calling("openat", k.AT_FDCWD, "/proc"):
        os.stat("/proc/self/status")
    return ""


def namespace(name: str) -> Callable[[Identity], str]:
    """Return the probe of a kind of namespace, inside a new user namespace."""

    def probe(who: Identity) -> str:
        works = {"uts": _name_it, "net": _loopback, "pid": _as_pid_1, "time": _time}
        kinds = ["pid"] if name == "time" else [] if name in {"user", "net"} else [name]
        return inside(who, kinds, works.get(name, lambda: ""))

    return probe


def _name_it() -> str:
    with calling("sethostname"):
        sethostname("sandbox")
    return ""


def _loopback() -> str:
    import socket

    # A launch makes it beside PID 1, which joins it.
    with calling("unshare", k.CLONE_NEWNET):
        unshare(int(k.CLONE_NEWNET))
    with calling("setns"):
        fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        setns(fd, int(k.CLONE_NEWNET))
    with calling("socket"):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with one, calling("ioctl"):
        fcntl.ioctl(one, int(k.SIOCSIFFLAGS), struct.pack("<16sH22x", b"lo", 0x41))
    return "with loopback"


def _as_pid_1() -> str:
    with calling("fork_payload"):
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return ""


def _time() -> str:
    with calling("unshare", k.CLONE_NEWTIME):
        unshare(int(k.CLONE_NEWTIME))
    return ""


def _filesystem(name: str, *options: tuple[str, str | None]) -> int:
    """Return a new file system, mounted nowhere."""
    with calling("fsopen", name):
        context = fscontext.fsopen(name)
    with calling("fsconfig", f"{name}_fs"):
        for key, value in options:
            command = fscontext.FsconfigCommand.SET_FLAG if value is None else fscontext.FsconfigCommand.SET_STRING
            fscontext.fsconfig(context, command, key, value)
        fscontext.fsconfig(context, fscontext.FsconfigCommand.CMD_CREATE)
    with calling("fsmount", f"{name}_fs"):
        attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
        return fscontext.fsmount(context, attr_flags=int(attributes) if name == "proc" else 0)


def mounting(name: str) -> Callable[[Identity], str]:
    """Return the probe of a kind of file system."""

    def work() -> str:
        _filesystem(name)
        return ""

    return lambda who: inside(who, ["mnt", "pid"], work)


def bind(who: Identity) -> str:
    """Bind a tree of the host, read-only with all below it."""

    def clone_usr() -> int:
        with calling("open_tree", k.AT_FDCWD, "/usr"):
            return mounts.open_tree(k.AT_FDCWD, "/usr", int(k.OPEN_TREE_CLONE | k.AT_RECURSIVE))

    # Root's sandboxes have another uid: the caller opens what is bound.
    opened = clone_usr() if who.privileged else -1

    def work() -> str:
        tree = opened if who.privileged else clone_usr()
        with calling("mount_setattr"):
            flags = int(k.AT_EMPTY_PATH | k.AT_RECURSIVE)
            mounts.mount_setattr(tree, "", flags, attr_set=int(k.MOUNT_ATTR_RDONLY))
        return ""

    return inside(who, ["mnt"], work)


def pivot(who: Identity) -> str:
    """Make another root directory, and take the host's away."""

    def work() -> str:
        _own_root()
        return ""

    return inside(who, ["mnt"], work)


def _own_root() -> None:
    root = _filesystem("tmpfs")
    with calling("move_mount"):
        mounts.move_mount(root, "", k.AT_FDCWD, "/", int(k.MOVE_MOUNT_F_EMPTY_PATH))
    os.fchdir(root)
    with calling("pivot_root"):
        mounts.pivot_root(".", ".")
    with calling("umount2"):
        mounts.umount(".", int(k.MNT_DETACH))
    os.chdir("/")


_ALLOW: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


def seccomp(_: Identity) -> str:
    """Install a filter that allows everything."""
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    with calling("seccomp"):
        secure_computing.seccomp(secure_computing.SeccompOperation.SET_MODE_FILTER, 0, _ALLOW)
    return ""


def pidfd(_: Identity) -> str:
    """Wait for a process by descriptor, and signal it."""
    with calling("fork"):
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    with calling("pidfd_open"):
        fd = os.pidfd_open(pid)
    with calling("pidfd_send_signal"):
        signal.pidfd_send_signal(fd, 0)
    with calling("waitid"):
        os.waitid(os.P_PIDFD, fd, os.WEXITED)
    return ""


# ── what some sandboxes need ─────────────────────────────────────────────────────────────────────────────────────────


def listener(_: Identity) -> str:
    """Install a filter whose questions somebody answers."""
    flags = secure_computing.SeccompFilterFlags
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    with calling("seccomp_listen"):
        wanted = flags.NEW_LISTENER | flags.WAIT_KILLABLE_RECV
        secure_computing.seccomp(secure_computing.SeccompOperation.SET_MODE_FILTER, wanted, _ALLOW)
    return ""


def landlocked(_: Identity) -> str:
    """Take a Landlock layer on."""
    with calling("landlock_create_ruleset"):
        ruleset = landlock.landlock_create_ruleset(landlock.LandlockAccessFs.EXECUTE)
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    with calling("landlock_restrict_self"):
        landlock.landlock_restrict_self(ruleset)
    return f"ABI {landlock.landlock_abi()}"


def overlay(who: Identity) -> str:
    """Write above a tree that stays as it is."""

    def work() -> str:
        _own_root()
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"/{name}")
        options = (("lowerdir", "/lower"), ("upperdir", "/upper"), ("workdir", "/work"), ("userxattr", None))
        merged = _filesystem("overlay", *options)
        with calling("move_mount"):
            mounts.move_mount(merged, "", k.AT_FDCWD, "/merged", int(k.MOVE_MOUNT_F_EMPTY_PATH))
        with calling("mkdir"):
            os.mkdir("/merged/made")
        return ""

    return inside(who, ["mnt"], work)


def detached(who: Identity) -> str:
    """Clone a tree that is mounted nowhere: what makes later launches of a sandbox cheaper."""

    def work() -> str:
        root = _filesystem("tmpfs")
        with calling("open_tree(detached)"):
            flags = k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH | k.AT_RECURSIVE
            mounts.open_tree(root, "", int(flags))
        return ""

    return inside(who, ["mnt"], work)


def execute_memfd(_: Identity) -> str:
    """Execute a program that lies in no file system: init, which ends at once without a plan."""
    from sandbox.causes import INIT

    with open(INIT, "rb") as stream:
        program = stream.read()
    with calling("memfd_create"):
        flags = memfd.MemfdFlags.CLOEXEC
        try:
            fd = memfd.memfd_create("sandbox-doctor", flags | memfd.MemfdFlags.EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 6.3
                raise
            fd = memfd.memfd_create("sandbox-doctor", flags)
    os.write(fd, program)
    heard, say = os.pipe2(os.O_CLOEXEC)
    with calling("fork"):
        pid = os.fork()
    if pid == 0:
        try:
            os.execve(fd, ["sandbox-doctor"], {})  # noqa: S606  # it is what is tried
        except OSError as error:
            os.write(say, bytes([error.errno or 255]))
        finally:
            os._exit(0)
    os.close(say)
    number = os.read(heard, 1)
    os.waitpid(pid, 0)
    if number:
        raise Failed("memfd_execute", (), number[0])
    return ""


def tun(who: Identity) -> str:
    """Make a network interface that a program serves."""

    def work() -> str:
        with calling("open(/dev/net/tun)"):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        with calling("ioctl(TUNSETIFF)"):
            fcntl.ioctl(fd, 0x400454CA, struct.pack("<16sH22x", b"sandbox0", 0x1002))
        return ""

    def in_network() -> str:
        with calling("unshare", k.CLONE_NEWNET):
            unshare(int(k.CLONE_NEWNET))
        return work()

    if not who.privileged:
        return inside(who, [], in_network)
    return in_network()


def fanotify(_: Identity) -> str:
    """Watch files, as everybody may, or with permission events, as root may."""
    with calling("fanotify_init"):
        fanotify_init(FanotifyInit.CLOEXEC | FanotifyInit.REPORT_FID)
    try:
        fanotify_init(FanotifyInit.CLOEXEC | FanotifyInit.CLASS_CONTENT)
    except PermissionError:
        return "without permission events, which are root's"
    return "with permission events"


def io_uring(_: Identity) -> str:
    """Set up a queue of io_uring."""
    with calling("io_uring_setup"):
        io_uring_setup(1)
    return ""


def linux_aio(_: Identity) -> str:
    """Set up a queue of Linux AIO."""
    with calling("io_setup"):
        io_destroy(io_setup(1))
    return ""


def id_ranges(who: Identity) -> str:
    """Map more than one id: root by itself, everybody else with newuidmap."""
    if who.privileged:
        count = 65536
        with calling("id_range"):
            if not all(facts.mapped(name, who.uid - count) for name in ("uid_map", "gid_map")):
                raise OSError(errno.EPERM, "")
        return "root maps any"
    import shutil
    import subprocess

    ready, go = os.pipe2(os.O_CLOEXEC)
    with calling("clone", k.CLONE_NEWUSER):
        pid = clone(int(k.CLONE_NEWUSER))
    if pid == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    least = 0
    try:
        for program, kind, own in (("newuidmap", "uid", who.uid), ("newgidmap", "gid", who.gid)):
            path, given = shutil.which(program), facts.subordinate(kind)
            if path is None or given is None:
                raise Failed(program, (), errno.ENOENT)
            start, count = given
            least = min(least, count) or count
            words = [path, str(pid), "0", str(own), "1", "1", str(start), str(count)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Failed(program, (), errno.EPERM, done.stderr.strip())
    finally:
        os.close(go)
        os.waitpid(pid, 0)
    return f"{least} ids"
