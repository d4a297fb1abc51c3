"""What stands in the way of a sandbox, and what to do about it: one table for error messages and `sandbox doctor`.

A cause is found from the call that failed, its errno, and what can be read or tried without changing anything. What is
not known for certain is no cause: then the message says what it could be, or nothing.
"""

import errno as e
import os
from typing import Any, Final, NamedTuple

from sandbox import facts, kernel as k

__all__ = ["Cause", "find"]


class Cause(NamedTuple):
    """Why something does not work here.

    Attributes:
        key: A name that stays the same between versions.
        text: What stands in the way.
        fix: What to do, a command where there is one.
    """

    key: str
    text: str
    fix: str

    def __str__(self) -> str:
        """Say both, as the hint of an error."""
        return f"{self.text}; {self.fix}" if self.fix else self.text


# What stands in the way, and the fix; {} is filled in by `cause`.
TABLE: Final[dict[str, tuple[str, str]]] = {
    "apparmor": (
        (
            "AppArmor restricts user namespaces to programs with a profile"
            " (kernel.apparmor_restrict_unprivileged_userns is 1)"
        ),
        (
            "give this program one, or run as root: printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\n"
            "profile sandbox-init {init} flags=(unconfined) {{ userns, }}\\n' | sudo tee /etc/apparmor.d/sandbox-init"
            " && sudo apparmor_parser -r /etc/apparmor.d/sandbox-init"
        ),
    ),
    "capabilities": (
        "the caller is uid 0 without the capabilities of root",
        "run as another user, or keep CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN, or say user(host_root=True)",
    ),
    "cgroups": ("{found}", "{fix}"),
    "chroot": (
        "the caller runs in a chroot, where the kernel refuses new user namespaces ({evidence})",
        "enter the tree by pivot_root, as unshare --mount or systemd-nspawn does, instead of chroot",
    ),
    "fanotify-groups": (
        "the user has as many fanotify groups as may be (fs.fanotify.max_user_groups)",
        "sudo sysctl fs.fanotify.max_user_groups=1024",
    ),
    "few-ids": (
        "the caller's user namespace has ids up to {last} only, none of which is free for a sandbox",
        "give the outer container a range of ids, or say user(host_root=True)",
    ),
    "filesystem": ("the kernel has no file system {name}", "sudo modprobe {name}, or a kernel that was built with it"),
    "foreign-mounts": (
        "the caller's mount namespace belongs to an outer user namespace, in which it has no capability",
        "make one together with the user namespace: unshare --user --map-root-user --mount",
    ),
    "io_uring-disabled": (
        "kernel.io_uring_disabled is {value}",
        "sudo sysctl kernel.io_uring_disabled=0; where it is 1, membership of kernel.io_uring_group is enough",
    ),
    "kernel-config": ("the kernel was built without {name}", "use a kernel that has it"),
    "kernel-old": ("{call} needs Linux {needed}, this is {found}", "use a newer kernel"),
    "landlock-layers": (
        "the kernel stacks 16 layers of Landlock, and the caller's own count, too",
        "confine less often, or launch before the process confines itself",
    ),
    "landlock-off": (
        "Landlock is not among the security modules that the kernel was booted with",
        'add landlock to "lsm=" on the kernel command line',
    ),
    "landlocked": (
        "the caller is confined by Landlock, under which no process can change its mounts",
        "launch sandboxes before the process confines itself",
    ),
    "listener-taken": (
        "the caller runs under a filter that has a supervisor; the kernel allows one for all filters of a process",
        "do without Notify and observe(), or without the outer supervisor",
    ),
    "masked-proc": (
        "the kernel mounts a new /proc only where the caller's own is wholly visible, and {what}",
        'in Docker or Podman: --security-opt systempaths=unconfined; elsewhere unmount that, or say share("pid")',
    ),
    "memfd-noexec": (
        "vm.memfd_noexec is {value}: no memfd can be executed",
        "nothing to do: init is run from its installed file instead",
    ),
    "namespaces-full": (
        (
            "a limit on namespaces is reached: user.max_*_namespaces of this or an outer user namespace, or 32 nested"
            " levels of user or pid namespaces"
        ),
        "sudo sysctl user.max_user_namespaces=65536 outside, or nest less deep",
    ),
    "namespaces-zero": (
        "user.{name} is 0: nobody may make such a namespace here",
        "sudo sysctl user.{name}=65536",
    ),
    "newuidmap-missing": (
        "the program {name} is not on PATH",
        "sudo apt-get install uidmap (Fedora: shadow-utils)",
    ),
    "newuidmap-privileges": (
        "{path} is neither set-uid root nor has the capability, or lies on a mount with nosuid",
        "sudo chmod u+s {path}, on a mount without nosuid",
    ),
    "no-new-privs": (
        "the caller has no_new_privs, under which set-uid programs such as newuidmap gain nothing",
        "start it without: in Docker no --security-opt no-new-privileges, in systemd NoNewPrivileges=no",
    ),
    "no-user-namespace": (
        "without a user namespace of its own, only root can make a sandbox",
        'leave out share("user")',
    ),
    "open-files": (
        "the limit on open descriptors is reached (RLIMIT_NOFILE is {limit})",
        "ulimit -n 1024; for all processes together: sudo sysctl fs.file-max",
    ),
    "pids-max": (
        "the control group {folder} has reached its pids.max",
        "raise it: in Docker --pids-limit, in systemd TasksMax=",
    ),
    "proc-foreign": (
        "/proc belongs to another pid namespace than the caller",
        "mount -t proc proc /proc, in a mount namespace of one's own (unshare --pid --fork --mount-proc)",
    ),
    "proc-missing": ("/proc is no procfs", "mount -t proc proc /proc"),
    "proc-readonly": (
        "/proc is read-only, and with it the id map of a new user namespace",
        "mount -o remount,rw /proc, or mount another one",
    ),
    "processes": (
        "the limit on processes is reached: RLIMIT_NPROC is {limit}{tasks}",
        "ulimit -u 4096",
    ),
    "seccomp": (
        "a seccomp filter of the caller refuses {call}",
        "{fix}",
    ),
    "seccomp-kills": (
        "a seccomp filter of the caller ended the process that made a call which it forbids (SIGSYS)",
        "let the filter allow what a sandbox needs, or answer ENOSYS or EPERM, which says what it refuses",
    ),
    "selinux": (
        "SELinux refuses new user namespaces",
        "allow user_namespace { create } to the caller's domain: ausearch -m avc -ts recent | audit2allow",
    ),
    "subid-missing": (
        "/etc/{name} gives no range to {user}",
        "sudo usermod --add-{option}s 100000-165535 {user}",
    ),
    "tun-denied": ("the mode of /dev/net/tun keeps the caller out", "sudo chmod 666 /dev/net/tun"),
    "tun-missing": (
        "there is no /dev/net/tun",
        "sudo modprobe tun; in a container: --device /dev/net/tun",
    ),
    "unmapped-id": (
        "the caller's own uid or gid has no meaning in its user namespace",
        "map it there (uid_map, gid_map), or run as an id that is",
    ),
    "user-unknown": (
        "uid {uid} has no account, and newuidmap serves only those that have one",
        "sudo useradd --uid {uid} NAME",
    ),
    "userns-clone": (
        "user namespaces are off for unprivileged users (kernel.unprivileged_userns_clone is 0)",
        "sudo sysctl kernel.unprivileged_userns_clone=1",
    ),
}


def cause(key: str, **values: object) -> Cause:
    """Return a cause of the table with its values filled in."""
    text, fix = TABLE[key]
    return Cause(key, text.format_map(values), fix.format_map(values) if values else fix)


def find(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    """Return why a call failed; None when the host is not known to be the reason.

    Args:
        call: Name of the system call, or of an operation of a plan.
        args: Its arguments, as a step of a plan has them.
        number: The errno.
    """
    if number in {e.EMFILE, e.ENFILE} and call != "fanotify_init":
        return _open_files()
    if number == e.ENOSYS:
        return _not_offered(call)
    finder = _FINDERS.get(call)
    return None if finder is None else finder(call, args, number)


# ── processes and namespaces ─────────────────────────────────────────────────────────────────────────────────────────

_NAMESPACES: Final = {
    "user": (k.CLONE_NEWUSER, "max_user_namespaces"),
    "mnt": (k.CLONE_NEWNS, "max_mnt_namespaces"),
    "pid": (k.CLONE_NEWPID, "max_pid_namespaces"),
    "net": (k.CLONE_NEWNET, "max_net_namespaces"),
    "ipc": (k.CLONE_NEWIPC, "max_ipc_namespaces"),
    "uts": (k.CLONE_NEWUTS, "max_uts_namespaces"),
    "cgroup": (k.CLONE_NEWCGROUP, "max_cgroup_namespaces"),
    "time": (k.CLONE_NEWTIME, "max_time_namespaces"),
}


def _clone(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    flags = int(args[0])
    if number in {e.EPERM, e.EACCES}:
        if flags & 0xFFFFFF00 and _filter_answers(flags & 0xFFFFFF00):
            names = "|".join(flag.text for flag, _ in _NAMESPACES.values() if flag & flags)
            return _seccomp(f"{call}({names})")
        if not flags & k.CLONE_NEWUSER:
            return cause("no-user-namespace")
        return _no_user_namespace()
    if number in {e.ENOSPC, e.EUSERS}:
        for flag, name in _NAMESPACES.values():
            if flag & flags and facts.sysctl(f"user.{name}") == "0":
                return cause("namespaces-zero", name=name)
        return cause("namespaces-full")
    if number == e.EINVAL and os.path.exists("/proc/self/ns/mnt"):
        for name, (flag, _) in _NAMESPACES.items():
            if flag & flags and not os.path.exists(f"/proc/self/ns/{name}"):
                return cause("kernel-config", name=f"{name} namespaces")
    return _processes(call, args, number)


def _unshare(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    return _judged(call, args, number) if number in {e.EPERM, e.EACCES} else _clone(call, args, number)


def _filter_answers(flags: int) -> bool:
    """Say whether it is a filter that answers to clone with such flags: the kernel's answer would be EINVAL."""
    from sandbox.primitives.namespaces import clone_answer

    return clone_answer(flags) != e.EINVAL


def _no_user_namespace() -> Cause | None:
    if facts.read("/proc/self/status") is None:
        return cause("proc-missing")
    # In the order in which the kernel looks.
    if facts.sysctl("kernel.unprivileged_userns_clone") == "0" and not facts.has_capability(_SYS_ADMIN):
        return cause("userns-clone")
    evidence = facts.in_chroot()
    if evidence is not None:
        return cause("chroot", evidence=evidence)
    if not (facts.mapped("uid_map", os.geteuid()) and facts.mapped("gid_map", os.getegid())):
        return cause("unmapped-id")
    return _security_module()


_SYS_ADMIN: Final = 21
INIT: Final = os.path.join(os.path.dirname(__file__), "init")


def _security_module() -> Cause | None:
    if facts.apparmor_restricts():
        return cause("apparmor", init=INIT)
    if facts.selinux_enforces():
        return cause("selinux")
    return None


def _processes(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number != e.EAGAIN:
        return None
    folder = facts.full_pids_group()
    if folder is not None:
        return cause("pids-max", folder=folder)
    from resource import RLIM_INFINITY, RLIMIT_NPROC, getrlimit

    limit = getrlimit(RLIMIT_NPROC)[0]
    if limit == RLIM_INFINITY:
        return None
    uid = os.getuid()
    # What root launches runs as another user, of whose processes there are none yet.
    tasks = f", and user {uid} has {facts.count_tasks(uid)}" if uid else ""
    return cause("processes", limit=limit, tasks=tasks)


def _open_files() -> Cause:
    from resource import RLIMIT_NOFILE, getrlimit

    return cause("open-files", limit=getrlimit(RLIMIT_NOFILE)[0])


def _init(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    """Return why init cannot be executed."""
    value = facts.sysctl("vm.memfd_noexec")
    if number == e.EACCES and call.startswith("memfd") and value == "2":
        return cause("memfd-noexec", value=value)
    return _processes(call, args, number)


# ── system calls ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Those of a launch and of its layers that are younger than what anybody runs.
_SINCE: Final = {
    "open_tree": (5, 2), "move_mount": (5, 2), "fsopen": (5, 2), "fsconfig": (5, 2), "fsmount": (5, 2),
    "fspick": (5, 2), "mount_setattr": (5, 12), "open_tree_attr": (6, 15), "openat2": (5, 6), "close_range": (5, 9),
    "pidfd_open": (5, 3), "clone3": (5, 3), "landlock_create_ruleset": (5, 13), "landlock_add_rule": (5, 13),
    "landlock_restrict_self": (5, 13), "io_uring_setup": (5, 1), "memfd_create": (3, 17), "seccomp": (3, 17),
    "seccomp_listen": (5, 0), "execveat": (3, 19), "fanotify_init": (2, 6),
}  # fmt: skip


def _not_offered(call: str) -> Cause:
    needed = _SINCE.get(call, (0, 0))
    if facts.release() < needed:
        return cause("kernel-old", call=call, needed="{}.{}".format(*needed), found=_release())
    return _seccomp(call) if facts.has_filter() else cause("kernel-config", name=call)


def _release() -> str:
    return "{}.{}".format(*facts.release())


def _seccomp(call: str) -> Cause:
    engine = facts.engine()
    if engine is None:
        fix = (
            "let it allow that: a sandbox of this library with .nesting(), a systemd unit with RestrictNamespaces=no,"
            " a container with --security-opt seccomp=unconfined"
        )
    else:
        fix = f"{engine} run --security-opt seccomp=unconfined, or a profile that allows it"
    return cause("seccomp", call=call, fix=fix)


def _changes_mounts(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    """Judge what PID 1 asks for, which has every capability in its own user namespace."""
    if number == e.ENODEV and call == "fsopen":
        return cause("filesystem", name=str(args[0]).strip("'\""))
    if number not in {e.EPERM, e.EACCES}:
        return None
    if call in {"fsconfig", "fsmount"} and "proc" in repr(args[:1]):
        what = facts.hides_proc()
        if what is not None:
            return cause("masked-proc", what=what)
    module = _security_module()
    if module is not None:
        return module
    if call in {"move_mount", "pivot_root", "mount", "umount2"} and _landlocked():
        return cause("landlocked")
    if call == "open_tree" and not facts.owns_mounts():
        return cause("foreign-mounts")
    if "overlay" in repr(args[:1]) and facts.release() < (5, 11):
        return cause("kernel-old", call="overlayfs for everybody", needed="5.11", found=_release())
    return _seccomp(call) if facts.has_filter() else None


def _landlocked() -> bool:
    try:
        return facts.count_landlock_layers() > 0
    except OSError:  # no Landlock, or a filter
        return False


def _judged(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    """Judge a call that the kernel itself refuses to nobody who makes it here."""
    if number in {e.EPERM, e.EACCES} and facts.has_filter():
        return _seccomp(call)
    return None


def _proc(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    """Judge the writing of an id map, and what comes before it."""
    if call == "openat" and args[1:2] != ("/proc",):
        return None
    if number in {e.ENOENT, e.EPROTO, e.ENOTDIR}:
        return cause("proc-foreign" if facts.foreign_proc() else "proc-missing")
    if call == "write_proc" and number == e.EROFS:
        return cause("proc-readonly")
    if call == "write_proc" and number in {e.EPERM, e.EACCES}:
        return cause("proc-foreign") if facts.foreign_proc() else _security_module()
    return None


# ── what a sandbox can do without ────────────────────────────────────────────────────────────────────────────────────


def _detached(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number == e.EINVAL and facts.release() < (6, 15):
        return cause("kernel-old", call="to clone a tree that is mounted nowhere", needed="6.15", found=_release())
    return _changes_mounts("open_tree", args, number)


def _listen(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number == e.EBUSY:
        return cause("listener-taken")
    if number == e.EINVAL and facts.release() < (5, 19):
        return cause("kernel-old", call="observe(), and a filter that says Notify,", needed="5.19", found=_release())
    return _judged(call, args, number)


def _id_range(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if call == "id_range":
        return cause("few-ids", last=facts.last_id())
    import shutil

    path = shutil.which(call)
    kind = call[3:6]
    if path is None:
        return cause("newuidmap-missing", name=call)
    if facts.user_name().isdigit():
        return cause("user-unknown", uid=os.getuid())
    if facts.subordinate(kind) is None:
        return cause("subid-missing", name=f"sub{kind}", option=f"sub{kind}", user=facts.user_name())
    if facts.status("NoNewPrivs") == "1":
        return cause("no-new-privs")
    return None if facts.raises_privileges(path) else cause("newuidmap-privileges", path=path)


def _cgroup(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    return cause("cgroups", found=args[0], fix=args[1])


def _killed(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    from signal import SIGSYS

    return cause("seccomp-kills") if args == (SIGSYS,) else None


def _landlock(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number == e.E2BIG:
        return cause("landlock-layers")
    if number == e.EOPNOTSUPP:
        return cause("landlock-off")
    return _judged(call, args, number)


def _io_uring(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number not in {e.EPERM, e.EACCES}:
        return None
    value = facts.sysctl("kernel.io_uring_disabled")
    if value in {"1", "2"}:
        return cause("io_uring-disabled", value=value)
    return _judged(call, args, number)


def _fanotify(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number == e.EMFILE:
        return cause("fanotify-groups") if _can_open() else _open_files()
    if number == e.EPERM and facts.release() < (5, 13):
        return cause("kernel-old", call="fanotify for everybody", needed="5.13", found=_release())
    return _judged(call, args, number)


def _can_open() -> bool:
    try:
        os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _tun(call: str, args: tuple[Any, ...], number: int) -> Cause | None:
    if number in {e.ENOENT, e.ENXIO, e.ENODEV}:
        return cause("tun-missing")
    return cause("tun-denied") if number == e.EACCES else None


_FINDERS: Final = {
    "clone": _clone,
    "unshare": _unshare,
    "fork": _processes,
    "fork_payload": _processes,
    "launch": _init,
    "memfd_create": _init,
    "memfd_execute": _init,
    "execve": _processes,
    "openat": _proc,
    "check": _proc,
    "write_proc": _proc,
    **dict.fromkeys(
        ("fsopen", "fsconfig", "fsmount", "open_tree", "move_mount", "mount_setattr", "pivot_root", "umount2"),
        _changes_mounts,
    ),
    **dict.fromkeys(("sethostname", "setns", "seccomp", "io_setup", "pidfd_open", "keyctl", "socket"), _judged),
    "seccomp_listen": _listen,
    "open_tree(detached)": _detached,
    **dict.fromkeys(("id_range", "newuidmap", "newgidmap"), _id_range),
    "cgroup": _cgroup,
    "killed": _killed,
    **dict.fromkeys(("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"), _landlock),
    "io_uring_setup": _io_uring,
    "fanotify_init": _fanotify,
    "open(/dev/net/tun)": _tun,
}
