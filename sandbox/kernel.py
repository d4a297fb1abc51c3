"""The kernel's numbers that plans use, each with its name, so that a plan can be printed as strace would.

They are plain integers with a text rather than `enum.IntFlag`: a plan is built at every first launch, and an
enumeration costs thirty times as much to create and to combine. `sandbox.primitives` has the enumerations.
"""

import os
from typing import Self


class Flag(int):
    """A number with the name that its man page gives it; `|` joins the names."""

    text: str

    def __new__(cls, value: int, text: str) -> Self:
        """Make the number `value` that prints as `text`."""
        self = super().__new__(cls, value)
        self.text = text
        return self

    def __or__(self, other: int) -> "Flag":
        """Join two flags, and their names."""
        if not other:
            return self
        return Flag(int(self) | int(other), f"{self.text}|{getattr(other, 'text', hex(other))}")

    def __reduce__(self) -> tuple[type["Flag"], tuple[int, str]]:
        """Pickle with the name."""
        return Flag, (int(self), self.text)

    def __repr__(self) -> str:
        """Show the name."""
        return self.text


NONE = Flag(0, "0")

AT_FDCWD = Flag(-100, "AT_FDCWD")
AT_EMPTY_PATH = Flag(0x1000, "AT_EMPTY_PATH")
AT_RECURSIVE = Flag(0x8000, "AT_RECURSIVE")
AT_SYMLINK_NOFOLLOW = Flag(0x100, "AT_SYMLINK_NOFOLLOW")

O_RDONLY = Flag(0, "O_RDONLY")
O_WRONLY = Flag(1, "O_WRONLY")
O_CREAT = Flag(0o100, "O_CREAT")
O_EXCL = Flag(0o200, "O_EXCL")
O_TRUNC = Flag(0o1000, "O_TRUNC")
O_RDWR = Flag(0o2, "O_RDWR")
O_NOCTTY = Flag(0o400, "O_NOCTTY")
O_CLOEXEC = Flag(0o2000000, "O_CLOEXEC")
O_PATH = Flag(0o10000000, "O_PATH")
# These two change their values between architectures.
if os.uname().machine in {"aarch64", "arm64"}:
    O_DIRECTORY = Flag(0o40000, "O_DIRECTORY")
    O_NOFOLLOW = Flag(0o100000, "O_NOFOLLOW")
else:
    O_DIRECTORY = Flag(0o200000, "O_DIRECTORY")
    O_NOFOLLOW = Flag(0o400000, "O_NOFOLLOW")

RESOLVE_NO_MAGICLINKS = Flag(0x02, "RESOLVE_NO_MAGICLINKS")
RESOLVE_NO_SYMLINKS = Flag(0x04, "RESOLVE_NO_SYMLINKS")
RESOLVE_IN_ROOT = Flag(0x10, "RESOLVE_IN_ROOT")

OPEN_TREE_CLONE = Flag(1, "OPEN_TREE_CLONE")
OPEN_TREE_CLOEXEC = Flag(0o2000000, "OPEN_TREE_CLOEXEC")
MOVE_MOUNT_F_EMPTY_PATH = Flag(0x04, "MOVE_MOUNT_F_EMPTY_PATH")
MOVE_MOUNT_T_EMPTY_PATH = Flag(0x40, "MOVE_MOUNT_T_EMPTY_PATH")
FSOPEN_CLOEXEC = Flag(1, "FSOPEN_CLOEXEC")
FSMOUNT_CLOEXEC = Flag(1, "FSMOUNT_CLOEXEC")
FSPICK_CLOEXEC = Flag(1, "FSPICK_CLOEXEC")
FSPICK_EMPTY_PATH = Flag(8, "FSPICK_EMPTY_PATH")
FSCONFIG_SET_FLAG = Flag(0, "FSCONFIG_SET_FLAG")
FSCONFIG_SET_STRING = Flag(1, "FSCONFIG_SET_STRING")
FSCONFIG_CMD_CREATE = Flag(6, "FSCONFIG_CMD_CREATE")
FSCONFIG_CMD_RECONFIGURE = Flag(7, "FSCONFIG_CMD_RECONFIGURE")
MOUNT_ATTR_RDONLY = Flag(0x01, "MOUNT_ATTR_RDONLY")
MOUNT_ATTR_NOSUID = Flag(0x02, "MOUNT_ATTR_NOSUID")
MOUNT_ATTR_NODEV = Flag(0x04, "MOUNT_ATTR_NODEV")
MOUNT_ATTR_NOEXEC = Flag(0x08, "MOUNT_ATTR_NOEXEC")
MOUNT_ATTR_IDMAP = Flag(0x00100000, "MOUNT_ATTR_IDMAP")
MS_PRIVATE = Flag(1 << 18, "MS_PRIVATE")
MNT_DETACH = Flag(2, "MNT_DETACH")
PROC_SUPER_MAGIC = Flag(0x9FA0, "PROC_SUPER_MAGIC")

CLONE_NEWTIME = Flag(0x00000080, "CLONE_NEWTIME")
CLONE_NEWNS = Flag(0x00020000, "CLONE_NEWNS")
CLONE_NEWCGROUP = Flag(0x02000000, "CLONE_NEWCGROUP")
CLONE_NEWUTS = Flag(0x04000000, "CLONE_NEWUTS")
CLONE_NEWIPC = Flag(0x08000000, "CLONE_NEWIPC")
CLONE_NEWUSER = Flag(0x10000000, "CLONE_NEWUSER")
CLONE_NEWPID = Flag(0x20000000, "CLONE_NEWPID")
CLONE_NEWNET = Flag(0x40000000, "CLONE_NEWNET")

PR_SET_PDEATHSIG = Flag(1, "PR_SET_PDEATHSIG")
PR_SET_DUMPABLE = Flag(4, "PR_SET_DUMPABLE")
PR_SET_SECUREBITS = Flag(28, "PR_SET_SECUREBITS")
PR_SET_NO_NEW_PRIVS = Flag(38, "PR_SET_NO_NEW_PRIVS")
PR_CAP_AMBIENT = Flag(47, "PR_CAP_AMBIENT")
PR_CAP_AMBIENT_CLEAR_ALL = Flag(4, "PR_CAP_AMBIENT_CLEAR_ALL")
SECBIT_NO_SETUID_FIXUP = Flag(4, "SECBIT_NO_SETUID_FIXUP")
# SECBIT_NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each with its lock.
SECUREBITS_LOCKED = Flag(0xEF, "SECBIT_NOROOT|SECBIT_NO_SETUID_FIXUP|SECBIT_NO_CAP_AMBIENT_RAISE|SECURE_ALL_LOCKS")

PR_CAP_AMBIENT_RAISE = Flag(2, "PR_CAP_AMBIENT_RAISE")
# As above, but a program of uid 0 gets what the bounding set holds.
SECUREBITS_ROOT = Flag(0xEE, "SECBIT_NO_SETUID_FIXUP|SECBIT_NO_CAP_AMBIENT_RAISE|SECURE_ALL_LOCKS")
SECCOMP_SET_MODE_FILTER = Flag(1, "SECCOMP_SET_MODE_FILTER")
SECCOMP_FILTER_FLAG_NEW_LISTENER = Flag(8, "SECCOMP_FILTER_FLAG_NEW_LISTENER")
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = Flag(32, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")

KEYCTL_JOIN_SESSION_KEYRING = Flag(1, "KEYCTL_JOIN_SESSION_KEYRING")
RLIMIT_CPU = Flag(0, "RLIMIT_CPU")
RLIMIT_FSIZE = Flag(1, "RLIMIT_FSIZE")
RLIMIT_STACK = Flag(3, "RLIMIT_STACK")
RLIMIT_CORE = Flag(4, "RLIMIT_CORE")
RLIMIT_NPROC = Flag(6, "RLIMIT_NPROC")
RLIMIT_NOFILE = Flag(7, "RLIMIT_NOFILE")
RLIMIT_AS = Flag(9, "RLIMIT_AS")
SIG_SETMASK = Flag(2, "SIG_SETMASK")

AF_INET = Flag(2, "AF_INET")
SOCK_DGRAM_CLOEXEC = Flag(2 | 0o2000000, "SOCK_DGRAM|SOCK_CLOEXEC")
SIOCSIFFLAGS = Flag(0x8914, "SIOCSIFFLAGS")

TCSETS = Flag(0x5402, "TCSETS")
TIOCSCTTY = Flag(0x540E, "TIOCSCTTY")
TIOCSWINSZ = Flag(0x5414, "TIOCSWINSZ")
TIOCSPTLCK = Flag(0x40045431, "TIOCSPTLCK")
TIOCGPTPEER = Flag(0x5441, "TIOCGPTPEER")

# How far stage 1 is: csrc/init/plan.h.
RELEASE_IDS = Flag(2, "ID_MAPS")
RELEASE_NETWORK = Flag(3, "NETWORK")
RELEASE_ALL = Flag(4, "ALL")

NAMESPACE_FLAGS = {
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}
