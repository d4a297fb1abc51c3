"""The root file system: its entries, with what the host knows, and the steps that make it PID 1's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sandbox import host, kernel as k
from sandbox.identity import Caller, inside_ids, owned
from sandbox.rootfs import Bind, Entry, File, Filesystem, Readonly, Root, Symlink, dev
from sandbox.spec import HOME, Dev, FileFrom, Python, Spec, System

if TYPE_CHECKING:
    from sandbox.compiler.draft import Draft

# What belongs to the whole machine in a /proc: root's own id may write there without a capability, and in core_pattern
# name a program that the kernel then runs with all of them.
_OF_THE_MACHINE: Final = (
    "acpi", "asound", "bus", "driver", "dynamic_debug", "fs", "irq", "scsi", "sys", "sysrq-trigger",
)  # fmt: skip


def entries_of(spec: Spec, caller: Caller, *, shown: bool = False) -> Iterator[Entry]:
    """Yield the entries with the host's facts filled in; shown: only to be looked at, nothing is read for it."""
    has_root = any(isinstance(entry, Root) for entry in spec.entries)
    uid, gid = inside_ids(spec, caller)
    # What follows the default's entries may replace the generated files.
    for entry in spec.entries:
        if isinstance(entry, Bind | Root):
            entry = owned(entry, spec, caller)
        if isinstance(entry, System):
            if has_root:
                continue
            yield from host.system(entry.origin)
            yield from host.accounts(uid, gid, HOME, entry.origin)
            yield from host.names(
                spec.hostname or "localhost",
                host_network="net" not in spec.new_namespaces,
                origin=entry.origin,
            )
        elif isinstance(entry, FileFrom):
            content = entry.source.known() if shown else entry.source.content()
            yield File(entry.target, b"<read at the first launch>" if content is None else content, *entry[2:])
        elif isinstance(entry, Python):
            yield from _python(spec, entry.origin)
        elif isinstance(entry, Dev):
            yield from dev(
                entry.target,
                shm=entry.shm,
                nodes=entry.nodes,
                origin=entry.origin,
                own=not has_root,
            )
        elif isinstance(entry, Filesystem) and entry.fstype == "proc" and "pid" not in spec.new_namespaces:
            # A new /proc would be of a pid namespace that is not ours: the caller's own shows the same.
            yield Bind("/proc", entry.target, entry.attributes, origin=entry.origin)
        elif isinstance(entry, Bind) and entry.owner is None and host.is_system(entry) and not has_root:
            yield entry._replace(system=True)
        elif isinstance(entry, Bind) and host.is_file(entry.source):
            yield entry._replace(is_file=True)
        else:
            yield entry
        if isinstance(entry, Filesystem) and entry.fstype == "proc" and spec.host_root and caller.uid == 0:
            for name in _OF_THE_MACHINE:
                yield Readonly(f"{entry.target}/{name}", entry.origin, optional=True)


def _python(spec: Spec, origin: str) -> Iterator[Entry]:
    """Yield what this process's interpreter needs, but for what the sandbox shows at the same path anyway."""
    from sandbox import interpreter

    covered = [entry.target for entry in spec.entries if isinstance(entry, Bind) and entry.source == entry.target]
    if any(isinstance(entry, System) for entry in spec.entries):
        covered += ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"]
    elif any(isinstance(entry, Root) for entry in spec.entries):
        if interpreter.covers(["/usr"], interpreter.visible()[0]) and "/usr" not in covered:
            raise ValueError("python(): this interpreter belongs to the host's /usr, and rootfs() has one of its own")
    else:
        yield from host.programs(origin)
        covered += ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"]
    attributes = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
    for path, points_to in interpreter.missing(covered):
        if points_to:
            yield Symlink(points_to, path, origin)
        else:
            yield Bind(path, path, attributes, is_file=host.is_file(path), origin=origin)


def mount_root(draft: "Draft") -> None:
    """Mount the root, with all that is in it, and leave the old one."""
    program = draft.program
    writer = draft.writer
    if draft.layout.root is not None:
        root = writer.rootfs(draft.layout.root)
    elif draft.variant.cached_tree:
        program.origin = "root"
        draft.tree_slot = program.slot("tree")
        clone = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE
        root = program.call("open_tree", draft.tree_slot, "", clone, name="root")
        program.call("move_mount", root, "", k.AT_FDCWD, "/", k.MOVE_MOUNT_F_EMPTY_PATH)
    else:
        root = writer.tree(draft.layout.tree, attach=True)
    writer.mounted(draft.layout, root)
    program.origin = "root"
    program.call("fchdir", root)
    # The old root ends up on top of the new one, and goes.
    program.call("pivot_root", ".", ".")
    program.call("umount2", ".", k.MNT_DETACH)
    program.call("chdir", "/")
