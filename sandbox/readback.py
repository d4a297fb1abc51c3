"""What is in force for a process, read back from the kernel: never copied from what was asked for.

`read_enforced` looks at the calling thread. The parsers take text, so that a launch can feed them what it
reads of another process, and tests what no machine at hand shows.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from sandbox.capabilities import capability_names
from sandbox.errors import UnsupportedError
from sandbox.facts import count_landlock_layers
from sandbox.primitives.landlock import landlock_abi
from sandbox.primitives.process import PR_GET_DUMPABLE, PR_GET_SECUREBITS, prctl
from sandbox.result import CapabilitySet, Enforced

__all__ = ["count_landlock_layers", "read_enforced"]

_CAPABILITY_LINES: Final[Mapping[CapabilitySet, str]] = {
    "effective": "CapEff",
    "permitted": "CapPrm",
    "inheritable": "CapInh",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}
# /proc/PID/limits, in the words of Sandbox.limit() where it has one.
_LIMIT_LINES: Final = {
    "Max cpu time": "cpu_time",
    "Max file size": "file_size",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max core file size": "core",
    "Max resident set": "resident_set",
    "Max processes": "processes",
    "Max open files": "open_files",
    "Max locked memory": "locked_memory",
    "Max address space": "address_space",
    "Max file locks": "file_locks",
    "Max pending signals": "pending_signals",
    "Max msgqueue size": "message_queues",
    "Max nice priority": "nice",
    "Max realtime priority": "realtime_priority",
    "Max realtime timeout": "realtime_timeout",
}


def parse_status(text: str) -> dict[str, str]:
    """Return the lines of /proc/PID/status by name."""
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in text.splitlines())}


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a sandbox, as the kernel lists it.

    Attributes:
        target: Where, as the sandbox sees it.
        fstype: "tmpfs", "proc", "ext4" ...
        options: Of the mount and of its file system: "ro", "nosuid", "size=1024k" ...
    """

    target: str
    fstype: str
    options: frozenset[str]


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the mounts of /proc/PID/mountinfo, in the order they were made."""
    found = []
    for line in text.splitlines():
        mount, _, filesystem = line.partition(" - ")
        words, kind = mount.split(" "), filesystem.split(" ")
        options = {*words[5].split(","), *kind[2].split(",")}
        if "ro" in options:  # either the mount's or the file system's: one is enough
            options.discard("rw")
        found.append(Mount(_unescape(words[4]), kind[0], frozenset(options)))
    return tuple(found)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def parse_limits(text: str) -> dict[str, float]:
    """Return the soft limits of /proc/PID/limits by name, `math.inf` for "unlimited"."""
    found = {}
    for line in text.splitlines()[1:]:
        soft = line[26:47].strip()
        found[_LIMIT_LINES.get(line[:26].strip(), line[:26].strip())] = math.inf if soft == "unlimited" else float(soft)
    return found


def parse_cgroup(text: str) -> str | None:
    """Return the path in /proc/PID/cgroup: of the unified hierarchy, else of the memory controller."""
    paths = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    unified = paths.get("")
    return paths.get("memory", unified) if unified in {None, "/"} else unified


def confinement(status: Mapping[str, str]) -> tuple[bool, int]:
    """Return no_new_privs and the number of filters from /proc/PID/status.

    The number is 1 for a filtered process on kernels that do not count (before 5.9), and in strict mode.
    """
    filters = int(status.get("Seccomp_filters", "0"))
    return status["NoNewPrivs"] == "1", filters or int(status["Seccomp"] != "0")


def read_enforced() -> Enforced:
    """Read back what is in force for the calling thread.

    Raises:
        UnsupportedError: /proc is not mounted here.
        OSError: The kernel refused to tell.
    """
    status = parse_status(_read("status"))
    no_new_privs, filters = confinement(status)
    abi = landlock_abi()
    return Enforced(
        namespaces=_namespaces(),
        mounts=parse_mountinfo(_read("mountinfo")),
        descriptors=_descriptors(),
        uid=int(status["Uid"].split()[0]),
        gid=int(status["Gid"].split()[0]),
        groups=tuple(int(group) for group in status["Groups"].split()),
        limits=parse_limits(_read("limits")),
        cgroup=parse_cgroup(_read("cgroup")),
        capabilities={name: capability_names(int(status[line], 16)) for name, line in _CAPABILITY_LINES.items()},
        securebits=prctl(PR_GET_SECUREBITS),
        no_new_privs=no_new_privs,
        dumpable=prctl(PR_GET_DUMPABLE) == 1,
        seccomp_filters=filters,
        landlock_abi=abi or None,
        landlock_layers=count_landlock_layers() if abi else 0,
    )


def complete(enforced: Enforced, pid: int) -> Enforced:
    """Return what a process that is held was found to be, with what only its files in /proc tell.

    Args:
        enforced: What init read back.
        pid: The process; it must be dumpable.

    Raises:
        UnsupportedError: /proc is not mounted here.
        OSError: The kernel refused to tell.
    """
    where = str(pid)
    return replace(
        enforced,
        namespaces=_namespaces(where),
        mounts=parse_mountinfo(_read("mountinfo", where)),
        descriptors=_kept_on_exec(pid),
        limits={**enforced.limits, **parse_limits(_read("limits", where))},
        cgroup=parse_cgroup(_read("cgroup", where)),
    )


def _kept_on_exec(pid: int) -> tuple[int, ...]:
    """Return the descriptors that the program of a process will have."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with open(f"/proc/{pid}/fdinfo/{name}") as stream:
            flags = next(int(line.split()[1], 8) for line in stream if line.startswith("flags:"))
        if not flags & os.O_CLOEXEC:
            found.append(int(name))
    return tuple(sorted(found))


def _read(name: str, where: str = "thread-self") -> str:
    try:
        with open(f"/proc/{where}/{name}", encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except FileNotFoundError:
        raise UnsupportedError(
            "reading back what is in force", needed="/proc mounted", found=f"no /proc/{where}/{name}"
        ) from None


def _namespaces(where: str = "thread-self") -> dict[str, int]:
    found = {}
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"):
        try:
            link = os.readlink(f"/proc/{where}/ns/{name}")
        except FileNotFoundError:  # a kernel that was built without it
            continue
        found[name] = int(link.partition("[")[2].rstrip("]"))
    return found


def _descriptors() -> tuple[int, ...]:
    found = []
    for name in os.listdir("/proc/thread-self/fd"):
        try:
            os.readlink(f"/proc/thread-self/fd/{name}")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
        found.append(int(name))
    return tuple(sorted(found))
