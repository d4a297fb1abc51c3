"""The filters that come with the library. docs/filters.md says for people what they refuse and why."""

import os
from collections.abc import Iterable
from functools import cache
from typing import Final, NamedTuple

from sandbox.errors import FilterError
from sandbox.filters.actions import Action, Allow, Errno
from sandbox.filters.conditions import Condition, arg
from sandbox.filters.rules import Rule
from sandbox.filters.table import FAMILIES, Arch, near, served

_EPERM: Final = Errno("EPERM")
_ENOSYS: Final = Errno("ENOSYS")

# clone(2) cannot make a time namespace: its bit is part of the signal there.
_NEW_NAMESPACES: Final = "CLONE_NEWNS|CLONE_NEWCGROUP|CLONE_NEWUTS|CLONE_NEWIPC|CLONE_NEWUSER|CLONE_NEWPID|CLONE_NEWNET"


_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1

# CLONE_FS, CLONE_FILES, CLONE_SYSVSEM: what threads share.
_UNSHARED: Final = 0x40600


class Preset(NamedTuple):
    """What a filter starts from.

    Attributes:
        name: The expression that made it.
        default: The default action.
        unknown: The action for numbers that the table does not have.
        rules: Its rules.
        stored: Name of its compiled form in the package, without the machine; None: there is none.
        x32: Whether x32 is served beside x86_64.
    """

    name: str
    default: Action
    unknown: Action
    rules: tuple[Rule, ...]
    stored: str | None
    x32: bool = False

    def arches(self, arch: Arch) -> tuple[Arch, ...]:
        """Return the architectures that the preset serves on a machine."""
        if not self.x32:
            return served(arch)
        return next(tuple(one for one in family if arch in family[:1] or one == arch)
                    for family in FAMILIES if arch in family)  # fmt: skip


def _allow(*names: str, when: Iterable[Condition] = ()) -> Rule:
    return Rule(Allow, names, tuple(when), preset=True)


def _deny(*names: str, when: Iterable[Condition] = (), action: Action = _EPERM) -> Rule:
    return Rule(action, names, tuple(when), preset=True)


# ── default ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _internet(family: str) -> list[Rule]:
    """Sockets of a family with the protocols that need no module of the kernel."""
    protocols = ("IPPROTO_IP", "IPPROTO_ICMP", "IPPROTO_TCP", "IPPROTO_UDP", "IPPROTO_ICMPV6", "IPPROTO_RAW",
                 "IPPROTO_MPTCP")  # fmt: skip
    kinds = ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW")
    # The type's upper bits are SOCK_CLOEXEC and SOCK_NONBLOCK.
    conditions = (arg(0) == family, (arg(1) & 0xF).one_of(*kinds), arg(2).one_of(*protocols))
    return [
        _deny("socket", when=[arg(0) == family], action=Errno("EPROTONOSUPPORT")),
        _allow("socket", when=conditions),
    ]


_DEFAULT: Final = (
    _allow("@aio", "@arch", "@credentials", "@file", "@io", "@ipc", "@memory", "@network", "@process", "@resources",
           "@sandbox", "@signal", "@system", "@time"),
    # New namespaces. The flags of clone3 are in memory, where no filter sees them: without it libraries use clone.
    _deny("clone3", action=_ENOSYS),
    _deny("clone", when=[(arg(0) & _NEW_NAMESPACES) != 0]),
    # unshare by what it may: newer flags (UNSHARE_EMPTY_MNTNS) imply a namespace without naming one.
    _allow("unshare", when=[(arg(0) & ~_UNSHARED) == 0]),
    # Personalities: asking (all ones), Linux itself, 32-bit machine name, a 2.6 version, a fixed address space.
    _deny("personality"),
    _allow("personality", when=[arg(0) == -1]),
    _allow("personality", when=[(arg(0) & ~0x60008) == 0]),
    # Sockets: a family or protocol that is refused is one that this kernel does not have. Programs know how to do
    # without (EPERM would make some give up), and no module is loaded for them.
    _deny("socket", action=Errno("EAFNOSUPPORT")),
    _allow("socket", when=[arg(0) == "AF_UNIX"]),
    *_internet("AF_INET"),
    *_internet("AF_INET6"),
    _deny("socket", when=[arg(0) == "AF_NETLINK"], action=Errno("EPROTONOSUPPORT")),
    _allow("socket", when=[arg(0) == "AF_NETLINK", arg(2) == "NETLINK_ROUTE"]),
    _deny("socketpair", action=Errno("EAFNOSUPPORT")),
    _allow("socketpair", when=[arg(0) == "AF_UNIX"]),
    # PID 1 has the payload's user: its limits and its share of the processor are nobody's but its own.
    _deny("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
          when=[arg(0) == 1]),
    _deny("setpriority", when=[arg(0) == _PRIO_PROCESS, arg(1) == 1]),
    _deny("ioprio_set", when=[arg(0) == _IOPRIO_WHO_PROCESS, arg(1) == 1]),
    # Typing into the caller's terminal, its selection buffer, and line disciplines, which are modules.
    _deny("ioctl", when=[arg(1).one_of("TIOCSTI", "TIOCLINUX", "TIOCSETD")]),
)  # fmt: skip

# What sandboxes inside the sandbox call. The price: the mount API and all kinds of namespaces are reachable, and with
# a user namespace of its own the payload reaches what the kernel guards by capabilities alone.
_NESTING: Final = (
    _allow("@mount", "@namespace", "clone", "clone3"),
    _allow("keyctl", when=[arg(0) == "KEYCTL_JOIN_SESSION_KEYRING"]),
)

_SETID: Final = "S_ISUID|S_ISGID"


def _no_setid(call: str, mode: int) -> Rule:
    return _deny(call, when=[(_arg(mode) & _SETID) != 0])


def _arg(index: int):  # type: ignore[no-untyped-def]  # arg() wants a literal
    return arg(index)  # type: ignore[arg-type]  # see above


_NO_SETID: Final = (
    *(_no_setid(call, mode) for call, mode in (
        ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1), ("mknod", 1), ("mknodat", 2),
        ("mkdir", 1), ("mkdirat", 2),
    )),
    # The mode counts only where a file is made; otherwise the register holds anything.
    *(_deny(call, when=[(_arg(flags) & "O_CREAT|__O_TMPFILE") != 0, (_arg(flags + 1) & _SETID) != 0])
      for call, flags in (("open", 1), ("openat", 2))),
    # Its mode is in memory; C libraries then use openat.
    _deny("openat2", action=_ENOSYS),
    # File capabilities are set-id bits of another kind. A name is in memory, and in a user namespace of its own anybody
    # may set them: so no attribute at all, as on a file system without.
    _deny("setxattr", "lsetxattr", "fsetxattr", "setxattrat", action=Errno("EOPNOTSUPP")),
)  # fmt: skip

# Beside a filter that allows anything: what else makes files passes by a filter, or brings them from elsewhere. An
# overlay copies a file up with its owner and its bits.
_GUARD: Final = (*_NO_SETID, _deny("@io-uring", "mount", "fsopen"))


def default(*, nesting: bool, setid: bool) -> Preset:
    """Return the preset of `Sandbox()`, and its variants for nested sandboxes and for launches by root."""
    rules, options, stored = _DEFAULT, [], "default"
    if nesting:
        rules, options, stored = rules + _NESTING, ["nesting=True"], "default-nesting"
    if not setid:
        rules, options, stored = rules + _NO_SETID, [*options, "setid=False"], stored + "-nosetid"
    return Preset(f"Filter.default({', '.join(options)})", _EPERM, _ENOSYS, rules, stored)


def guard() -> Preset:
    """Return what forbids set-id files alone, for the side of another filter."""
    return Preset("the guard against set-id files", Allow, _ENOSYS, _GUARD, "guard-nosetid")


def guard_program() -> bytes:
    """Return the guard's program for this machine; the package has it, or it is compiled now."""
    from sandbox.filters.bpf import encode
    from sandbox.filters.compiler import compile_rules
    from sandbox.filters.table import machine

    preset, arch = guard(), machine()
    known = stored(f"{preset.stored}-{arch}")
    return known or encode(compile_rules(preset.rules, preset.default, preset.unknown, preset.arches(arch)))


# ── strict ──────────────────────────────────────────────────────────────────────────────────────────────────────────
_STRICT: Final = (
    _allow("close", "dup", "dup2", "dup3", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "fdatasync",
           "fstat", "fsync", "ftruncate", "lseek", "poll", "ppoll", "pread64", "preadv", "preadv2", "pselect6",
           "pwrite64", "pwritev", "pwritev2", "read", "readv", "recvfrom", "select", "shutdown", "write", "writev"),
    _allow("sendto", when=[arg(4) == 0]),  # no address: to whom the socket is connected
    _allow("fcntl", when=[arg(1).one_of("F_DUPFD", "F_DUPFD_CLOEXEC", "F_GETFD", "F_SETFD", "F_GETFL", "F_SETFL")]),
    _allow("ioctl", when=[arg(1).one_of("FIONREAD", "FIONBIO", "FIOCLEX", "FIONCLEX", "TCGETS", "TIOCGWINSZ")]),
    _allow("brk", "madvise", "membarrier", "mremap", "munmap"),
    _allow("mmap", when=[(arg(2) & "PROT_EXEC") == 0]),
    _allow("mprotect", when=[(arg(2) & "PROT_EXEC") == 0]),
    _allow("exit", "exit_group", "futex", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "getpid",
           "gettid", "rseq", "rseq_slice_yield", "sched_getaffinity", "sched_yield", "set_robust_list"),
    _allow("restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    _allow("clock_getres", "clock_gettime", "clock_nanosleep", "getrandom", "getrusage", "gettimeofday", "nanosleep",
           "time", "times"),
)  # fmt: skip


def strict() -> Preset:
    """Return the preset of pure computation on open descriptors."""
    return Preset("Filter.strict()", _EPERM, _ENOSYS, _STRICT, "strict")


# ── docker ──────────────────────────────────────────────────────────────────────────────────────────────────────────
_DOCKER: Final = (
    _allow("@aio", "@arch", "@credentials", "@file", "@io", "@ipc", "@memory", "@network", "@process", "@resources",
           "@sandbox", "@signal", "@system", "@time"),
    _allow("adjtimex", "clock_adjtime", "epoll_ctl_old", "epoll_wait_old", "fanotify_mark", "modify_ldt",
           "process_vm_readv", "process_vm_writev", "ptrace"),
    _deny("file_getattr", "file_setattr", "get_mempolicy", "get_tls", "lsm_get_self_attr", "lsm_list_modules",
          "lsm_set_self_attr", "mbind", "nice", "rseq_slice_yield", "set_mempolicy", "set_mempolicy_home_node",
          "uprobe"),
    _deny("oldfstat", "oldlstat", "oldolduname", "oldstat", "olduname", "readdir", "sgetmask", "sigaction", "signal",
          "sigpending", "sigsuspend", "ssetmask"),
    _deny("personality"),
    _allow("personality", when=[arg(0).one_of(0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)]),
    _deny("socket", when=[arg(0).one_of("AF_ALG", "AF_VSOCK")]),
    _deny("clone", when=[(arg(0) & _NEW_NAMESPACES) != 0]),
    _deny("clone3", action=_ENOSYS),
    _allow("ipc", "socketcall"),
)  # fmt: skip

_DOCKER_CAPABILITIES: Final = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
        quotactl_fd setdomainname sethostname setns syslog umount2 unshare""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime settimeofday",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}


@cache
def _capability_names() -> tuple[str, ...]:
    from sandbox.filters.table import constants

    return tuple(name for name in constants() if name.startswith("CAP_") and name != "CAP_LAST_CAP")


def capability_set(capabilities: Iterable[str]) -> frozenset[str]:
    """Return capabilities with CAP_ and in capitals.

    Raises:
        TypeError: One name instead of several.
        FilterError: No such capability; near names are listed.
    """
    if isinstance(capabilities, str):
        raise TypeError("capabilities must be an iterable of names, not str")
    found = set()
    for name in capabilities:
        full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
        if full not in _capability_names():
            raise FilterError(f"no capability is named {name!r}{near(full, _capability_names())}")
        found.add(full)
    return frozenset(found)


def docker(capabilities: Iterable[str]) -> Preset:
    """Return the preset with the verdicts of Docker's default profile."""
    kept = capability_set(capabilities)
    opened = " ".join(calls for name, calls in _DOCKER_CAPABILITIES.items() if name in kept).split()
    rules = (*_DOCKER, _allow(*opened)) if opened else _DOCKER
    shown = f"capabilities={sorted(kept)}" if kept else ""
    return Preset(f"Filter.docker({shown})", _EPERM, _ENOSYS, rules, None, x32=True)


# The presets that are compiled when the package is made, by scripts/compile_presets.py, and for which machines.
STORED: Final = tuple(
    [default(nesting=nesting, setid=setid) for nesting in (False, True) for setid in (True, False)]
    + [strict(), guard()]
)
STORED_MACHINES: Final[tuple[Arch, ...]] = ("x86_64", "aarch64", "riscv64")


def stored(name: str) -> bytes | None:
    """Return the compiled form of a preset that is in the package; None: there is none for this machine."""
    try:
        with open(os.path.join(os.path.dirname(__file__), "compiled", f"{name}.bpf"), "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
