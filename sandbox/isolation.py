"""A copy of this process in namespaces of its own: what the pytest plugin runs a test in.

It keeps tests apart from each other and from the machine; it confines nothing, for the copy sees the caller's files
and is the caller. Code that is not trusted belongs in a `Sandbox`.

The caller is copied once. The copy enters the namespaces, sets them up, and goes on as a child of their PID 1, with
which whatever a test has left behind ends.
"""

import contextlib
import errno
import fcntl
import gc
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple, NoReturn

from sandbox.errors import UnsupportedError
from sandbox.hints import hint_for
from sandbox.kernel import Flag
from sandbox.primitives._descent import ENDED, FAILED, INIT, RECORD, descend
from sandbox.primitives.capabilities import Capability, capget, capset
from sandbox.primitives.mounts import MountFlags, mount
from sandbox.primitives.namespaces import CloneFlags, unshare
from sandbox.primitives.system import sethostname

__all__ = ["BROKEN", "PRIVATE", "Covered", "Isolated", "Isolation", "cover", "isolate"]

# What programs share by name, and a test has for itself.
PRIVATE: Final = ("/tmp", "/var/tmp", "/dev/shm")
BROKEN: Final = 117
"""Exit status of a copy whose function let an exception out."""
_NOT_SET_UP: Final = 4  # beside the records of descend(): the length of the text that follows
_SIZE: Final = struct.calcsize(RECORD)
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41


# Arithmetic of enumerations is slow, and this is done for every test.
_NEW: Final = int(CloneFlags.NEWNS | CloneFlags.NEWPID | CloneFlags.NEWIPC | CloneFlags.NEWUTS)
_NEWNET, _NEWTIME, _NEWUSER = int(CloneFlags.NEWNET), int(CloneFlags.NEWTIME), int(CloneFlags.NEWUSER)
_PRIVATE_BELOW: Final = int(MountFlags.REC | MountFlags.PRIVATE)
_BOUND: Final = int(MountFlags.BIND | MountFlags.REC)
_TMP: Final = int(MountFlags.NOSUID | MountFlags.NODEV)
_PROC: Final = int(MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC)


class Covered(NamedTuple):
    """A directory that is to be empty.

    Args:
        path: The directory.
        keep: Those below it that stay visible.
    """

    path: str
    keep: tuple[str, ...]


def cover(keep: Iterable[str]) -> tuple[Covered, ...]:
    """Return how /tmp, /var/tmp and /dev/shm are covered, and these directories stay visible."""
    kept = sorted(set(map(os.path.realpath, keep)))
    # What lies in another that is kept comes with it.
    kept = [one for i, one in enumerate(kept) if not any(one.startswith(other + "/") for other in kept[:i])]
    paths = dict.fromkeys(os.path.realpath(path) for path in PRIVATE if os.path.isdir(path))
    return tuple(
        Covered(path, tuple(one for one in kept if one.startswith(path + "/")))
        for path in paths
        if path not in kept and not any(path.startswith(one + "/") for one in kept)
    )


class Isolation(NamedTuple):
    """What is the copy's own.

    Args:
        network: "loopback", with nothing else; "none": not even that; "host": the caller's.
        hostname: Of the copy; None: the caller's name, which can be changed without anybody noticing.
        time_offset: Seconds that CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead.
        covered: What is empty at first, and gone afterwards.
        address_space: Bytes that each process may add to what the caller has.
        processes: How many its user may have in the copy's user namespace.
    """

    network: Literal["loopback", "none", "host"] = "loopback"
    hostname: str | None = None
    time_offset: float = 0.0
    covered: tuple[Covered, ...] = ()
    address_space: int | None = None
    processes: int | None = None


class Isolated:
    """The copy, as the caller sees it.

    Attributes:
        pid: PID 1 of the copy, a child of the caller; when it has ended, everything in the namespaces has. 0 when the
            set-up failed.
        status: How the function's process ended, as wait(2) says it; None when nobody could say.
        failure: Why there is no copy; None when there is one.
    """

    def __init__(self, pid: int, status_fd: int, said: bytes) -> None:
        self.pid = pid
        self.status: int | None = None
        self.failure: str | None = None
        self._said = said
        self._status_fd = status_fd
        self._pidfd = -1
        if pid:
            try:
                self._pidfd = os.pidfd_open(pid)
            except ProcessLookupError:  # SIGCHLD is ignored, and it has ended
                self.pid = 0

    def fileno(self) -> int:
        """Return a descriptor that is readable when all of it has ended; -1 when there is nothing to wait for."""
        return self._pidfd

    def kill(self) -> None:
        """End everything in the namespaces."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return

    def join(self) -> None:
        """Wait for the end, and reap."""
        if self._pidfd >= 0:
            try:
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            except ChildProcessError:
                pass  # SIGCHLD is ignored: nobody can be reaped, and the wait was for the end
            os.close(self._pidfd)
            self._pidfd = -1
        if self._status_fd >= 0:
            self._read(self._said + os.read(self._status_fd, 65536))
            os.close(self._status_fd)
            self._status_fd = -1

    def _read(self, said: bytes) -> None:
        """Understand the records, which only the set-up and PID 1 can have written."""
        while len(said) >= _SIZE:
            kind, value = struct.unpack_from(RECORD, said)
            said = said[_SIZE:]
            if kind == ENDED:
                self.status = value
            elif kind == FAILED:
                self.failure = f"the process of the test could not be made: {os.strerror(value)}"
            elif kind == _NOT_SET_UP:
                self.failure = said[:value].decode("utf-8", "replace")
                said = said[value:]
        if not self.pid and self.failure is None:
            self.failure = "the process that sets the namespaces up was killed from outside"


def isolate(isolation: Isolation, function: Callable[[], None], groups: Iterable[int] = ()) -> Isolated:
    """Call a function in a copy of this process, in namespaces of its own.

    What is open here is open there. Only the calling thread exists in the copy, as after `os.fork`; when it ends here,
    the copy is killed.

    Args:
        isolation: What is its own.
        function: Called in the copy, which ends with it.
        groups: Directories of control groups, open, which the copy joins.

    Returns:
        The copy, under way; one whose set-up failed has a `failure`.
    """
    theirs, ours = -1, -1
    try:
        ours, theirs = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Only the calling thread goes on in the copy, which the caller was told.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _begin(isolation, function, tuple(groups), theirs, parent)
        os.close(theirs)
        theirs = -1
        made, ours = _made(pid, ours), -1
        return made
    finally:
        for fd in (ours, theirs):
            if fd >= 0:
                os.close(fd)


def _made(pid: int, status_fd: int) -> Isolated:
    """Learn what became of the set-up, and reap who did it."""
    said = os.read(status_fd, 65536)  # what is written comes in whole messages, and this is the first
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
        os.waitpid(pid, 0)
    kind, value = struct.unpack_from(RECORD, said) if said else (0, 0)
    return Isolated(value if kind == INIT else 0, status_fd, said)


def _begin(
    isolation: Isolation, function: Callable[[], None], groups: tuple[int, ...], report: int, parent: int
) -> NoReturn:
    """Set up, and go on below PID 1; never return into the caller's code."""

    def go_on() -> NoReturn:
        _finish(isolation)
        status = BROKEN
        try:
            os.close(report)
            function()
            status = 0
        finally:
            os._exit(status)

    try:
        # Objects of the caller are none of a collection's business here: it would copy the pages of all of them.
        gc.freeze()
        for group in groups:
            _write(f"/proc/self/fd/{group}/cgroup.procs", "0")
        _unshare(isolation)
        _set_up(isolation)
        descend(report, go_on, copies=bool(isolation.time_offset), not_pid=parent)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller has to be told
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        data = text.encode("utf-8", "replace")[:4000]
        os.write(report, struct.pack(RECORD, _NOT_SET_UP, len(data)) + data)
    finally:
        os._exit(BROKEN)


def _unshare(isolation: Isolation) -> None:
    flags = _NEW
    if isolation.network != "host":
        flags |= _NEWNET
    if isolation.time_offset:
        flags |= _NEWTIME
    privileged = bool(capget().effective & Capability.SYS_ADMIN.mask)
    if not privileged:
        flags |= _NEWUSER
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(flags)
    except OSError as error:
        found = hint_for("clone", (Flag(flags, str(CloneFlags(flags))),), error.errno or 0)
        raise UnsupportedError(
            "a test in namespaces of its own",
            needed="new namespaces: mount, pid, ipc, uts, network, and as an ordinary user a user namespace",
            found=f"unshare: {error.strerror}" if isinstance(found, str) or found is None else found,
            fix="run `sandbox doctor`, which says what stands in the way and what to do"
            + (f": {found}" if isinstance(found, str) else ""),
            errno=error.errno or 0,
        ) from error
    if not privileged:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    if isolation.time_offset:
        seconds, fraction = divmod(isolation.time_offset, 1)
        offset = f"{int(seconds)} {int(fraction * 1e9)}\n"
        _write("/proc/self/timens_offsets", f"monotonic {offset}boottime {offset}")


def _set_up(isolation: Isolation) -> None:
    mount(None, "/", None, _PRIVATE_BELOW)
    if isolation.hostname is not None:
        sethostname(isolation.hostname)
    if isolation.network == "loopback":
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("<16sH22x", b"lo", _IFF_UP_RUNNING))
    for path, keep in isolation.covered:
        _cover(path, keep)


def _finish(isolation: Isolation) -> None:
    """Do what only the process in the new pid namespace can, or ends its rights to do more."""
    try:
        mount("proc", "/proc", "proc", _PROC)
    except PermissionError as error:
        found = hint_for("fsmount", (), errno.EPERM, "proc")
        raise UnsupportedError(
            "a /proc for the processes of a test",
            needed="a /proc of the caller's that is wholly visible",
            found="one with masked parts, as in a container" if isinstance(found, str) or found is None else found,
            fix="run `sandbox doctor`, which says what stands in the way and what to do",
            errno=errno.EPERM,
        ) from error
    if os.geteuid() != 0:
        # What the new user namespace gave; with it, no permission would be refused that a test wants refused.
        capset(0, 0, 0)
    if isolation.address_space is not None:
        with open("/proc/self/statm") as stream:
            has = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + isolation.address_space,) * 2)
    if isolation.processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (isolation.processes,) * 2)


def _cover(path: str, keep: tuple[str, ...]) -> None:
    """Mount an empty file system, with what has to stay visible in its place."""
    here = os.getcwd()
    opened = []
    for one in keep:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # gone meanwhile
            opened.append((one, os.open(one, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
    mount("tmpfs", path, "tmpfs", _TMP, "mode=1777")
    for one, fd in opened:
        os.makedirs(one, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", one, None, _BOUND)
        os.close(fd)
    if here.startswith(path + "/") and os.path.isdir(here):
        os.chdir(here)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
