"""Why a step most likely failed, and what to do: one sentence for the cases that people meet."""

import errno as e
import os
import re
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from sandbox.causes import Cause


# File systems that a mount can have an id map on, as of Linux 6.18; FUSE's server has a say in it.
_IDMAPPED = frozenset({
    "bcachefs", "btrfs", "ceph", "erofs", "ext2", "ext3", "ext4", "f2fs", "fuse", "fuseblk", "hugetlbfs", "msdos",
    "ntfs3", "ramfs", "squashfs", "tmpfs", "vfat", "virtiofs", "xfs", "zfs",
})  # fmt: skip


def _idmap(origin: str, number: int) -> str | None:
    """Name the mount that cannot have an id map: that of the source, or one below it."""
    if number == e.EPERM:
        return (
            "a mount that has an id map already, or whose file system belongs to another user namespace (that of the"
            " host, where root is a container's), cannot have this one: bind_readonly(), or user(host_root=True)"
        )
    if number != e.EINVAL:
        return None
    quoted = re.search(r'\("((?:[^"\\]|\\.)*)"', origin)
    if quoted is None:
        return None
    source = os.path.realpath(re.sub(r"\\(.)", r"\1", quoted[1]))
    below, above = [], ("/", "rootfs")
    try:
        with open("/proc/self/mountinfo") as stream:
            for line in stream:
                left, _, right = line.partition(" - ")
                point, kind = _unescaped(left.split(" ")[4]), right.split(" ")[0]
                if point.startswith(source.rstrip("/") + "/"):
                    below.append((point, kind))
                elif (source + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(above[0]):
                    above = point, kind
    except OSError:
        return None
    found = [mount for mount in (above, *below) if mount[1] not in _IDMAPPED] or [above, *below]
    names = " and ".join(f"the {kind} file system at {point}" for point, kind in found[:3])
    return (
        f"root's writable binds have an id map, which {names} cannot have: bind a directory of another file system,"
        " without that one below it; or bind_readonly(); or user(host_root=True), which needs none"
    )


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


_REFUSED: Final = "the kernel itself refuses new user namespaces: a security module, or a chroot that does not show"
_PROCESSES: Final = "the limit on processes is reached: RLIMIT_NPROC, kernel.pid_max or pids.max of the control group"
_MOUNTS: Final = "the limit on mounts of one namespace is reached (fs.mount-max)"
# By the call that failed and its errno.
BY_CALL: Final[dict[tuple[str, int], str]] = {
    ("open_tree", e.ENOENT): (
        "the source of a bind mount must exist on the host; pass optional=True to skip it when it is missing"
    ),
    ("open_tree", e.ENOTDIR): "a part of the path is a file, not a directory",
    ("open_tree", e.EACCES): "the caller may not search a directory on the way to the source",
    ("open_tree", e.ELOOP): "too many symbolic links on the way to the source",
    ("open_tree", e.ENAMETOOLONG): "the path is longer than 4095 bytes, or a part of it than 255",
    ("move_mount", e.ENOENT): (
        "the mount point must exist: below a bind nothing is ever created, because that would be on the host"
    ),
    ("move_mount", e.ENOTDIR): "a directory can be mounted on a directory only, and a file on a file",
    ("move_mount", e.EINVAL): "a directory can be mounted on a directory only, and a file on a file",
    ("openat2", e.ENOENT): (
        "the path must exist inside: below a bind or in a root file system nothing is created for mounts,"
        " because that would be on the host"
    ),
    (
        "openat2",
        e.ELOOP,
    ): "a symbolic link stands there, where only a real directory is accepted, or a magic link",
    ("openat2", e.ENOTDIR): "a part of the path is a file, not a directory",
    ("openat2", e.EXDEV): "a link on the way leads out of the root",
    ("openat", e.EROFS): "the target lies on a read-only mount; write to a tmpfs or a bind instead",
    ("mkdirat", e.EROFS): "the target lies on a read-only mount; make it before the bind, or use a tmpfs",
    ("mkdirat", e.ENOTDIR): "a part of the path is a file, not a directory",
    ("symlinkat", e.EEXIST): "something with that name is there already",
    ("write_proc", e.EPERM): (
        "the id map was refused: an unprivileged caller can map its own id only, and a security module may"
        " forbid even that"
    ),
    ("prlimit64", e.EPERM): "the caller's own hard limit is lower, and only root may go beyond it; see ulimit -H",
    ("prlimit64", e.EINVAL): "the kernel takes no more open files than fs.nr_open says",
    ("write_proc_self", e.ERANGE): "the clock would be before the boot, or more than 146 years after it",
    ("become_payload", e.EPIPE): "the process that watches over the sandbox was killed from outside",
    ("user_namespace", e.EPERM): (
        "the id map of a mount was refused: root needs CAP_SETFCAP to map id 0, and a security module may forbid it"
    ),
    ("user_namespace", e.EINVAL): "the owner's id is none of the caller's user namespace: see /proc/self/uid_map",
    ("await_maps", e.EPIPE): "the process that launched ended meanwhile",
    ("sethostname", e.EPERM): "the host name belongs to the caller's uts namespace, which is shared",
    ("setgroups", e.EPERM): "the groups cannot be dropped in this user namespace",
    ("keyctl", e.EDQUOT): "the caller's quota of kernel keys is used up (kernel.keys.maxkeys)",
    ("check_lifeline", e.EPIPE): "the process that launched ended meanwhile",
    ("await_release", e.EPIPE): "stage 1 was killed from outside before its work was done",
    ("clone", e.EPERM): _REFUSED,
    ("clone", e.EACCES): _REFUSED,
    ("clone", e.EINVAL): "the kernel was built without one of these namespaces",
    **dict.fromkeys([(call, e.EAGAIN) for call in ("clone", "launch", "fork_payload", "execve")], _PROCESSES),
    **dict.fromkeys([(call, e.ENOSPC) for call in ("move_mount", "open_tree", "fsmount")], _MOUNTS),
    ("execve", e.EACCES): "it is no executable file, or lies on a mount without exec, or its user may not run it",
    ("execve", e.ENOEXEC): "it is neither a binary for this machine nor a script that starts with #!",
    ("execve", e.E2BIG): "arguments and environment are too long together, or one of them is over 128 KiB",
    ("execve", e.ETXTBSY): "somebody has the program open for writing",
}
# Of any call that makes a terminal.
OF_A_TERMINAL: Final[dict[int, str]] = {
    e.ENOSPC: ("all pseudo-terminals of the host, or of its containers, are in use (kernel.pty.max, kernel.pty.nr)"),
    **dict.fromkeys(
        (e.ENOENT, e.ENOTTY, e.ENOTDIR, e.EACCES, e.ENODEV, e.ENXIO, e.EISDIR, e.ELOOP, e.EXDEV, e.EROFS),
        "a terminal needs a devpts of the sandbox's own, which .dev() mounts at /dev/pts",
    ),
}
# Of the paths in rules of Landlock.
OF_A_RULE: Final[dict[int, str]] = {
    e.ENOENT: "the path of a rule must exist inside the sandbox; best_effort=True leaves out what is missing",
}
# Of the directory that is to be the root.
OF_A_ROOT: Final[dict[int, str]] = {
    e.ENOENT: "the directory that is to be the root must exist on the host",
    e.EINVAL: "what is to be the root must be a directory",
    e.ENOTDIR: "what is to be the root must be a directory",
}
# Of the nodes of .dev().
OF_A_NODE: Final[dict[int, str]] = {
    e.ENOENT: "the host's /dev has no such node: leave it out of nodes",
}
# Of what the default mounts in a root of the caller's, where no method of the builder asked for it.
OF_A_TREE: Final[dict[int, str]] = {
    e.ENOENT: (
        "the tree that is the root needs the directories /proc, /dev and /tmp, for the mounts of the same names: make"
        " them in it; nothing is created there for mounts, because that would be on the host"
    ),
}
# Of the working directory.
OF_A_CWD: Final[dict[int, str]] = {
    e.ENOENT: "the working directory must exist inside: make it with .tmpfs(), .dir() or .bind()",
    e.ENOTDIR: "the working directory must be a directory, and what stands there is a file",
}
# Of any call.
OF_ANY: Final[dict[int, str]] = {
    e.ENOMEM: "no memory left for the kernel, or for the control group of the caller",
    e.ETOOMANYREFS: (
        "processes of this user have sent more descriptors over sockets than `ulimit -n` allows, and nobody has "
        "received them; `grep scm_fds /proc/[0-9]*/fdinfo/*` shows where they wait"
    ),
}


def hint_for(call: str, args: tuple[object, ...], number: int, origin: str = "") -> "str | Cause | None":
    """Return the hint for a failed step, or None; a cause where the host is known to be it.

    Args:
        call: Name of the system call or operation; "execve" and "launch" have arguments of their own.
        args: Its arguments; of execve: program, the sandbox's PATH, and the file that is there all the same, with its
            beginning, or None; and the working directory.
        number: The errno.
        origin: The builder call that asked for it.
    """
    from sandbox import causes

    cause = causes.find(call, args, number)
    if cause is not None:
        return cause
    if call == "mount_setattr" and "MOUNT_ATTR_IDMAP" in repr(args[3:4]):
        hint = _idmap(origin, number)
        if hint is not None:
            return hint
    if call == "execve" and number == e.ENOENT:
        from sandbox.programs import why_not_found

        inside = cast("tuple[str, bytes] | None", args[2]) if len(args) > 2 else None
        if origin == "plain child":  # of a supervisor, in no sandbox
            return why_not_found(str(args[0]), str(args[1]), inside, ".", "its")
        return why_not_found(str(args[0]), str(args[1]), inside, str(args[3]) if len(args) > 3 else "/")
    if origin == "pty" and number in OF_A_TERMINAL:
        return OF_A_TERMINAL[number]
    if call == "openat" and origin == ".landlock()" and number in OF_A_RULE:
        return OF_A_RULE[number]
    if call in {"open_tree", "move_mount"} and origin.startswith(".rootfs(") and number in OF_A_ROOT:
        return OF_A_ROOT[number]
    if call == "openat2" and origin.startswith((".cwd(", "cwd=")) and number in OF_A_CWD:
        return OF_A_CWD[number]
    if call == "openat2" and origin == "Sandbox()" and number in OF_A_TREE:
        return OF_A_TREE[number]
    if call == "open_tree" and origin.startswith(".dev(") and number in OF_A_NODE:
        return OF_A_NODE[number]
    return BY_CALL.get((call, number)) or OF_ANY.get(number)
