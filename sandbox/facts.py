"""What can be found out about the caller and its kernel without changing either: the evidence for `sandbox.causes`."""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator

__all__ = ["count_landlock_layers"]

_LOOK_AT = 64  # processes whose mount tables are compared with the caller's


def read(path: str) -> str | None:
    """Return a small file's text without the white space around it; None when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read().strip()
    except OSError:
        return None


def sysctl(name: str) -> str | None:
    """Return a setting of the kernel; None where this kernel has none of that name."""
    return read(f"/proc/sys/{name.replace('.', '/')}")


def status(name: str) -> str | None:
    """Return a line of the caller's status in /proc."""
    found = re.search(rf"^{name}:\s*(.*)$", read("/proc/thread-self/status") or "", re.MULTILINE)
    return None if found is None else found[1]


def foreign_proc() -> bool:
    """Say whether /proc shows another pid namespace than the caller's."""
    try:
        return os.readlink("/proc/self") != str(os.getpid())
    except OSError:
        return os.path.lexists("/proc/self")


def has_filter() -> bool:
    """Say whether a seccomp filter judges the caller's system calls."""
    return status("Seccomp") == "2"


def release() -> tuple[int, int]:
    """Return the version of the kernel."""
    numbers = re.findall(r"\d+", os.uname().release)
    return int(numbers[0]), int(numbers[1])


def has_capability(number: int) -> bool:
    """Say whether the caller has a capability in force."""
    return bool(int(status("CapEff") or "0", 16) >> number & 1)


def apparmor_restricts() -> bool:
    """Say whether AppArmor lets only programs with a profile have user namespaces of use."""
    return sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1"


def selinux_enforces() -> bool:
    """Say whether SELinux enforces its policy."""
    return read("/sys/fs/selinux/enforce") == "1"


def engine() -> str | None:
    """Return the container engine that the caller runs in, as far as it leaves its mark."""
    if os.path.exists("/run/.containerenv"):
        return "podman"
    return "docker" if os.path.exists("/.dockerenv") else None


def mapped(name: str, number: int) -> bool:
    """Say whether an id has a meaning in the caller's user namespace; `name` is uid_map or gid_map."""
    for line in (read(f"/proc/self/{name}") or "").splitlines():
        first, _, count = map(int, line.split())
        if first <= number < first + count:
            return True
    return False


def last_id() -> int | None:
    """Return the highest id that means something in the caller's user namespace; None when /proc does not tell."""
    ends = []
    for name in ("uid_map", "gid_map"):
        text = read(f"/proc/self/{name}")
        if text is None:
            return None
        lines = [line.split() for line in text.splitlines()]
        ends.append(max((int(start) + int(count) for start, _, count in lines), default=0))
    return min(ends) - 1


def raises_privileges(path: str) -> bool:
    """Say whether who executes a program gains its owner's rights, or capabilities of the file."""
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return False
    try:
        os.getxattr(path, "security.capability")
    except OSError:
        return bool(os.stat(path).st_mode & stat.S_ISUID)
    return True


def mounts(pid: int | str = "self") -> Iterator[tuple[int, str, str, str, str]]:
    """Yield of each mount that a process sees: id, place, flags, type, and what of the file system it shows."""
    for line in (read(f"/proc/{pid}/mountinfo") or "").splitlines():
        words = line.split()
        if "-" in words:
            target = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4])
            yield int(words[0]), target, words[5], words[words.index("-") + 1], words[3]


def ancestors() -> Iterator[int]:
    """Yield the processes that the caller comes from, its parent first."""
    pid = os.getppid()
    while pid:
        yield pid
        found = re.search(r"^PPid:\s*(\d+)", read(f"/proc/{pid}/status") or "", re.MULTILINE)
        pid = int(found[1]) if found else 0


def owns_mounts() -> bool:
    """Say whether the caller's mount namespace belongs to its own user namespace, or to one below."""
    from sandbox.primitives.namespaces import ns_get_userns

    try:
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True  # no /proc: nothing is known
    try:
        os.close(ns_get_userns(fd))
    except PermissionError:  # it is an outer one
        return False
    finally:
        os.close(fd)
    return True


def in_chroot() -> str | None:
    """Return what shows that the caller's root directory is not that of its mount namespace, or None."""
    root = None
    for number, target, *_ in mounts():
        if target == "/":
            root = number  # the last one covers the others
    if root is None:
        return "the root directory is no mount point" if read("/proc/self/mountinfo") else None
    # Mounts have numbers that no other mount of the kernel has meanwhile.
    others = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    for pid in (*ancestors(), *others[:_LOOK_AT]):
        for number, target, *_ in mounts(pid):
            if number == root and target != "/":
                return f"process {pid} sees the root directory at {target}"
    return None


# Directories of /proc that are empty by their making: what is mounted there hides nothing.
_EMPTY_IN_PROC = re.compile(r"/(sys/fs/binfmt_misc|fs/nfsd|fs/nfs|openprom)$")


def hides_proc() -> str | None:
    """Return what keeps the kernel from mounting a new /proc in a user namespace: no full one can be seen."""
    found = None
    places = list(mounts())
    for number, target, flags, fstype, shown in places:
        if fstype != "proc" or shown != "/":
            continue
        above = [place for other, place, *_ in places if place.startswith(f"{target}/") and other != number]
        above = [place for place in above if not _EMPTY_IN_PROC.match(place[len(target) :])]
        if "ro" in flags.split(","):
            found = f"{target} is read-only"
        elif not above:
            return None
        else:
            rest = f" and {len(above) - 3} more" if len(above) > 3 else ""
            found = f"{', '.join(above[:3])}{rest} {'is' if len(above) == 1 else 'are'} covered"
    return found or "no /proc that shows all of it is mounted"


def count_tasks(uid: int) -> int:
    """Return how many tasks of a user can be seen: what RLIMIT_NPROC counts."""
    count = 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it ended
            continue
    return count


def cgroup_folder(controller: str, version: int) -> str | None:
    """Return the directory of the control group that the caller is in; None where none can be seen.

    Args:
        controller: Of version 1; of version 2 there is one for all.
        version: 1 or 2.
    """
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if (version == 2) != (names == "") or (version == 1 and controller not in names.split(",")):
            continue
        for _, target, _, fstype, shown in mounts():
            if fstype != ("cgroup2" if version == 2 else "cgroup"):
                continue
            if version == 1 and controller not in os.path.basename(target).split(","):
                continue
            below = os.path.relpath(path, shown)
            folder = os.path.normpath(os.path.join(target, below))
            if not below.startswith("..") and os.path.isdir(folder):
                return folder
    return None


def full_pids_group() -> str | None:
    """Return the control group whose pids.max is reached, or None."""
    for version in (2, 1):
        folder = cgroup_folder("pids", version)
        while folder is not None and os.path.exists(f"{folder}/pids.max"):
            most, now = read(f"{folder}/pids.max"), read(f"{folder}/pids.current")
            if most is not None and most.isdigit() and now is not None and int(now) >= int(most):
                return folder
            folder = os.path.dirname(folder)
    return None


def subordinate(kind: str) -> tuple[int, int] | None:
    """Return the first range of ids that /etc/subuid or /etc/subgid gives to the caller: its start and size.

    Args:
        kind: uid or gid.
    """
    names = {str(os.getuid()), user_name()}
    for line in (read(f"/etc/sub{kind}") or "").splitlines():
        name, _, rest = line.partition(":")
        start, _, count = rest.partition(":")
        if name in names and start.isdigit() and count.isdigit() and int(count):
            return int(start), int(count)
    return None


def user_name() -> str:
    """Return the caller's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def count_landlock_layers() -> int:
    """Return how many Landlock rulesets restrict the calling thread.

    The kernel has no call for it, but it takes no more than 16: a thread that inherits this one's tries how
    many more fit, and takes them away with it when it ends.

    Raises:
        OSError: ENOSYS or EOPNOTSUPP (no Landlock), or what a filter refuses with.
    """
    # Only who asks this needs them.
    from sandbox.primitives.landlock import LANDLOCK_MAX_LAYERS

    answer: list[int | OSError] = []
    thread = threading.Thread(target=_stack_layers, args=(answer,), name="landlock-layers")
    thread.start()
    thread.join()
    fitted = answer[0]
    if isinstance(fitted, OSError):
        raise fitted
    return LANDLOCK_MAX_LAYERS - fitted


def _stack_layers(answer: list[int | OSError]) -> None:
    from sandbox.primitives.landlock import LandlockAccessFs, landlock_create_ruleset, landlock_restrict_self
    from sandbox.primitives.process import PR_SET_NO_NEW_PRIVS, prctl

    try:
        prctl(PR_SET_NO_NEW_PRIVS, 1)  # this thread's alone
        ruleset = landlock_create_ruleset(LandlockAccessFs.EXECUTE)
    except OSError as error:
        answer.append(error)
        return
    fitted = 0
    try:
        while True:
            landlock_restrict_self(ruleset)
            fitted += 1
    except OSError as error:
        answer.append(fitted if error.errno == errno.E2BIG else error)
    finally:
        os.close(ruleset)
