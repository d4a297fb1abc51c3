"""The kernel's tables: names and numbers of calls, widths of arguments, constants by name.

They are text files beside this module, read when a name is first asked for; a preset that was compiled before needs
none of them.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final, Literal, NamedTuple, TypeAlias, cast, get_args

from sandbox.errors import FilterError

Arch: TypeAlias = Literal["x86_64", "i386", "x32", "aarch64", "arm", "riscv64"]
ARCHES: Final[tuple[Arch, ...]] = get_args(Arch)

X32_BIT: Final = 0x40000000

# AUDIT_ARCH_*: the machine of the ELF header, 64 bits, little-endian. x32 is x86_64's with a bit in the number.
AUDIT: Final[Mapping[Arch, int]] = {
    "x86_64": 0xC000003E,
    "i386": 0x40000003,
    "x32": 0xC000003E,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
    "riscv64": 0xC00000F3,
}
NARROW: Final = frozenset({"i386", "arm"})  # registers of 32 bits

# The architectures that one kernel serves, the machine's own first.
FAMILIES: Final[tuple[tuple[Arch, ...], ...]] = (("x86_64", "i386", "x32"), ("aarch64", "arm"), ("riscv64",))

_MACHINES: Final[Mapping[str, Arch]] = {
    "x86_64": "x86_64", "amd64": "x86_64", "i386": "i386", "i486": "i386", "i586": "i386", "i686": "i386",
    "aarch64": "aarch64", "armv6l": "arm", "armv7l": "arm", "armv8l": "arm", "riscv64": "riscv64",
}  # fmt: skip

# Calls that exist with 32-bit registers only, and the call that every machine has: a rule for the second covers the
# first too. The number says how many arguments of both mean the same. Those with "64", "_time64" or "32" behind the
# general name are found by that.
_VARIANTS: Final[Mapping[str, tuple[str, int]]] = {
    "_llseek": ("lseek", 1),
    "_newselect": ("select", 5),
    "arm_fadvise64_64": ("fadvise64", 1),
    "arm_sync_file_range": ("sync_file_range", 1),
    "fadvise64_64": ("fadvise64", 6),
    "fstatat64": ("newfstatat", 4),
    "mmap2": ("mmap", 5),
    "oldfstat": ("fstat", 2),
    "oldlstat": ("lstat", 2),
    "oldolduname": ("uname", 1),
    "oldstat": ("stat", 2),
    "olduname": ("uname", 1),
    "readdir": ("getdents", 1),
    "recv": ("recvfrom", 4),
    "send": ("sendto", 4),
    "sgetmask": ("rt_sigprocmask", 0),
    "sigaction": ("rt_sigaction", 1),
    "signal": ("rt_sigaction", 1),
    "sigpending": ("rt_sigpending", 1),
    "sigprocmask": ("rt_sigprocmask", 1),
    "sigreturn": ("rt_sigreturn", 0),
    "sigsuspend": ("rt_sigsuspend", 0),
    "ssetmask": ("rt_sigprocmask", 0),
    "stime": ("settimeofday", 0),
    "fstatfs64": ("fstatfs", 1),
    "statfs64": ("statfs", 1),
    "ugetrlimit": ("getrlimit", 2),
    "umount": ("umount2", 1),
    "waitpid": ("wait4", 3),
}

# The calls inside socketcall(2) and ipc(2), which take the number of the call and a pointer to its arguments.
MULTIPLEXED: Final[Mapping[str, Mapping[int, str]]] = {
    "socketcall": {
        1: "socket", 2: "bind", 3: "connect", 4: "listen", 5: "accept", 6: "getsockname", 7: "getpeername",
        8: "socketpair", 9: "sendto", 10: "recvfrom", 11: "sendto", 12: "recvfrom", 13: "shutdown", 14: "setsockopt",
        15: "getsockopt", 16: "sendmsg", 17: "recvmsg", 18: "accept4", 19: "recvmmsg", 20: "sendmmsg",
    },
    "ipc": {
        1: "semop", 2: "semget", 3: "semctl", 4: "semtimedop", 11: "msgsnd", 12: "msgrcv", 13: "msgget",
        14: "msgctl", 21: "shmat", 22: "shmdt", 23: "shmget", 24: "shmctl",
    },
}  # fmt: skip

_BITS: Final = {"h": 16, "i": 32, "l": 64, "p": 64, "q": 64}


class Calls(NamedTuple):
    """The table of calls: by name the numbers and the letters of the arguments (see scripts/kernel_tables.py)."""

    version: tuple[int, int]
    numbers: Mapping[Arch, Mapping[str, int]]
    arguments: Mapping[str, tuple[str, str]]  # with 64-bit and with 32-bit registers


def machine() -> Arch:
    """Return the architecture of this process.

    Raises:
        FilterError: The tables do not know it.
    """
    name = os.uname().machine
    arch = _MACHINES.get(name)
    if arch is None:
        raise FilterError(f"the tables of system calls do not know the machine {name}")
    if sys.maxsize < 2**32 and arch in ("x86_64", "aarch64"):
        return "i386" if arch == "x86_64" else "arm"
    return arch


def served(arch: Arch) -> tuple[Arch, ...]:
    """Return what a filter for a machine covers when nobody says otherwise: its own calls and its 32-bit ones."""
    return {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}.get(arch, (arch,))  # type: ignore[return-value]  # Arch literals


def _lines(name: str) -> tuple[tuple[int, int], list[str]]:
    with open(os.path.join(os.path.dirname(__file__), "tables", name), encoding="ascii") as stream:
        text = stream.read()
    head, _, *lines = text.splitlines()
    major, minor = head.split(";")[0].removeprefix("# Linux ").split(".")
    return (int(major), int(minor)), lines


@cache
def calls() -> Calls:
    """Read the table of calls, once."""
    version, lines = _lines("syscalls.txt")
    numbers: dict[Arch, dict[str, int]] = {arch: {} for arch in ARCHES}
    columns = list(numbers.values())
    arguments: dict[str, tuple[str, str]] = {}
    for line in lines:
        name, *row, letters = line.split(" ")
        for column, number in zip(columns, row, strict=True):
            if number != "-":
                column[name] = int(number)
        wide, _, narrow = letters.partition("/")
        wide = "" if wide == "." else wide
        arguments[name] = (wide, narrow or wide)
    numbers["x32"] = {name: number | X32_BIT for name, number in numbers["x32"].items()}
    return Calls(version, numbers, arguments)


@cache
def names_of(arch: Arch) -> Mapping[int, str]:
    """Return the names by number; of two for one number (aliases) the first."""
    found: dict[int, str] = {}
    for name, number in calls().numbers[arch].items():
        found.setdefault(number, name)
    return found


@cache
def variants(arch: Arch) -> Mapping[str, tuple[str, int]]:
    """Return the calls of an architecture that a rule for another name covers, and how many arguments agree."""
    if arch not in NARROW:
        return {}
    numbers = calls().numbers
    found: dict[str, tuple[str, int]] = {}
    for name in numbers[arch]:
        if name in numbers["x86_64"]:
            continue
        general = name
        for suffix in ("_time64", "64", "32"):
            if name.endswith(suffix):
                general = name.removesuffix(suffix)
                break
        if name in _VARIANTS:
            found[name] = _VARIANTS[name]
        elif general != name and general in calls().arguments:
            found[name] = (general, 6)
    return found


def visible_arguments(name: str, arch: Arch) -> int:
    """Return how many arguments of a call the filter sees in their registers, from the first on."""
    if arch not in NARROW:
        return 6
    letters = calls().arguments[name][1]
    # From the first 64-bit argument on, which fills two registers, nothing is where the 64-bit call has it.
    return letters.index("q") if "q" in letters else len(letters)


def argument_bits(name: str, index: int, arch: Arch) -> int:
    """Return how many bits of an argument the kernel looks at: 16, 32 or 64."""
    narrow = arch in NARROW
    letters = calls().arguments[name][1 if narrow else 0]
    bits = _BITS[letters[index]] if index < len(letters) else 64
    return min(bits, 32) if narrow else bits


# ── constants ───────────────────────────────────────────────────────────────────────────────────────────────────────
@cache
def constants() -> Mapping[str, str]:
    """Return the constants as the file has them, by name; once."""
    return dict(cast("tuple[str, str]", line.split(" ", 1)) for line in _lines("constants.txt")[1])


def _value(name: str, arch: Arch) -> int | None:
    text = constants().get(name)
    if text is None:
        return None
    if ":" not in text:
        return int(text, 16)
    # x32 programs are compiled with the headers of x86_64.
    wanted = "x86_64" if arch == "x32" else arch
    for part in text.split(" "):
        value, _, arches = part.partition(":")
        if wanted in arches.split(","):
            return int(value, 16)
    return None


# What belongs where: the beginnings of the names that an argument of a call takes.
_SOCKET = ("AF_", "PF_"), ("SOCK_",), ("IPPROTO_", "NETLINK_")
_CLONE = ("CLONE_", "SIG", "CSIGNAL")
_OPEN = ("O_", "__O_", "FD_")
_MODE = ("S_",)
_EXPECTED: Final[Mapping[tuple[str, int], tuple[str, ...]]] = {
    ("socket", 0): _SOCKET[0], ("socket", 1): _SOCKET[1], ("socket", 2): _SOCKET[2],
    ("socketpair", 0): _SOCKET[0], ("socketpair", 1): _SOCKET[1], ("socketpair", 2): _SOCKET[2],
    ("socketcall", 0): ("SYS_",), ("accept4", 3): ("SOCK_",),
    ("setsockopt", 1): ("SOL_", "IPPROTO_"), ("getsockopt", 1): ("SOL_", "IPPROTO_"),
    ("clone", 0): _CLONE, ("unshare", 0): (*_CLONE, "UNSHARE_"), ("setns", 1): _CLONE,
    ("open", 1): _OPEN, ("openat", 2): _OPEN, ("dup3", 2): _OPEN, ("pipe2", 1): _OPEN,
    ("open", 2): _MODE, ("openat", 3): _MODE, ("creat", 1): _MODE, ("chmod", 1): _MODE, ("fchmod", 1): _MODE,
    ("fchmodat", 2): _MODE, ("fchmodat2", 2): _MODE, ("mkdir", 1): _MODE, ("mkdirat", 2): _MODE,
    ("mknod", 1): _MODE, ("mknodat", 2): _MODE,
    ("prctl", 0): ("PR_",), ("arch_prctl", 0): ("ARCH_",), ("ptrace", 0): ("PTRACE_",),
    ("personality", 0): ("PER_", "ADDR_", "UNAME26", "READ_IMPLIES_EXEC", "MMAP_PAGE_ZERO", "WHOLE_SECONDS",
                         "STICKY_TIMEOUTS", "SHORT_INODE", "FDPIC_FUNCPTRS"),
    ("mmap", 2): ("PROT_",), ("mprotect", 2): ("PROT_",), ("pkey_mprotect", 2): ("PROT_",), ("mmap", 3): ("MAP_",),
    ("madvise", 2): ("MADV_",), ("mremap", 3): ("MREMAP_",), ("memfd_create", 1): ("MFD_",),
    ("keyctl", 0): ("KEYCTL_",), ("bpf", 0): ("BPF_",), ("futex", 1): ("FUTEX_",), ("seccomp", 0): ("SECCOMP_",),
    ("fcntl", 1): ("F_",), ("kill", 1): ("SIG",), ("tgkill", 2): ("SIG",), ("tkill", 1): ("SIG",),
    ("clock_gettime", 0): ("CLOCK_",), ("clock_settime", 0): ("CLOCK_",), ("prlimit64", 1): ("RLIMIT_",),
    ("setrlimit", 0): ("RLIMIT_",), ("getrlimit", 0): ("RLIMIT_",),
    ("mount", 3): ("MS_",), ("umount2", 1): ("MNT_", "UMOUNT_"), ("userfaultfd", 0): ("UFFD_", "O_"),
}  # fmt: skip


def constant(text: str, call: str, index: int, arch: Arch) -> int | None:
    """Return the value of a constant, or of several joined by "|", for an argument of a call.

    Returns:
        The value; None when the architecture has no such constant though others do.

    Raises:
        FilterError: No such constant, or one of another argument; near names are listed.
    """
    value = 0
    expected = _EXPECTED.get((call, index))
    for raw in text.split("|"):
        name = raw.strip()
        if name not in constants() or (expected is not None and not name.startswith(expected)):
            pool = [one for one in constants() if expected is None or one.startswith(expected)]
            message = f"argument {index} of {call} has no constant {name!r}"
            if name in constants():
                message = f"{name} is no constant for argument {index} of {call}: its names begin with {expected}"
            raise FilterError(message + near(name, pool))
        one = _value(name, arch)
        if one is None:
            return None
        value |= one
    return value


def near(name: str, pool: Iterable[str]) -> str:
    """Return "; did you mean ..." with the nearest names, or nothing."""
    import difflib  # only for a message

    found = difflib.get_close_matches(name, list(pool), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""
