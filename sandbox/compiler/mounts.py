"""The steps that make the root file system.

Facts, and what follows:
- Whatever lies below a bind is the host's, and may be changed by hostile code while we look: such a target is
  opened with openat2(RESOLVE_IN_ROOT), never by path, and no mount point is ever created there.
- A tmpfs of ours holds what our own steps put there and nothing else: its targets are plain relative paths.
- The superblock of the tree becomes read-only, not just its mount: a payload with CAP_SYS_ADMIN in its namespace
  can clear the flag of a mount, and would write to the tree that the next sandbox gets.
"""

import posixpath
from collections.abc import Iterable
from errno import EEXIST, ENOENT, ENOTDIR
from struct import pack
from typing import Literal

from sandbox import kernel as k
from sandbox.kernel import Flag
from sandbox.plan import Data, Late, Program, Ref
from sandbox.rootfs import (
    DEVICE,
    PRIVATE_FS,
    READONLY_SYSTEM,
    Bind,
    Dir,
    Entry,
    File,
    Filesystem,
    Layout,
    Mask,
    Node,
    Owner,
    Readonly,
    RegionKind,
    Root,
    Symlink,
    Tree,
)


def mount_attributes(program: Program, set_: int, *, private: bool = False) -> Data:
    """Return a struct mount_attr."""
    text = f"{{attr_set={set_!r}" + (", propagation=MS_PRIVATE}" if private else "}")
    return program.data(pack("<4Q", set_, 0, k.MS_PRIVATE if private else 0, 0), text)


def open_how(program: Program, flags: Flag, resolve: Flag) -> Data:
    """Return a struct open_how."""
    return program.data(pack("<3Q", flags, 0, resolve), f"{{flags={flags!r}, resolve={resolve!r}}}")


def new_filesystem(
    program: Program, fstype: str, options: Iterable[tuple[str, str | None]], attributes: int, name: str
) -> tuple[Ref, Ref]:
    """Make a detached file system; return the descriptors of its context and of its mount."""
    context = program.call("fsopen", fstype, k.FSOPEN_CLOEXEC, name=f"{name}_fs")
    for option, value in options:
        if value is None:
            program.call("fsconfig", context, k.FSCONFIG_SET_FLAG, option, k.NONE, 0)
        else:
            program.call("fsconfig", context, k.FSCONFIG_SET_STRING, option, value, 0)
    program.call("fsconfig", context, k.FSCONFIG_CMD_CREATE, k.NONE, k.NONE, 0)
    mount = program.call("fsmount", context, k.FSMOUNT_CLOEXEC, attributes, name=name)
    return context, mount


def _name_of(path: str) -> str:
    return path.strip("/").replace("/", "_").replace(".", "_").replace("-", "_") or "root"


def verified_proc(program: Program, result: Ref | None = None) -> Ref:
    """Open the caller's /proc: id maps are written to a real procfs or not at all."""
    flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
    proc = program.call("openat", k.AT_FDCWD, "/proc", flags, 0, name="proc", result=result)
    status = program.data(bytes(120), "status")
    program.call("fstatfs", proc, status)
    program.call("check", status, 8, k.PROC_SUPER_MAGIC, 71)
    return proc


class Writer:
    """Writes the steps of a layout into a program.

    Args:
        program: Where the steps go.
        source_segment: Who opens the sources of binds: stage 1 for root, whose PID 1 has given its uid up.

    Attributes:
        proc: The caller's /proc, where stage 1 has opened it.
        idmaps: Whose id maps the launch has to bring, in this order: `uid_map_0`, `gid_map_0`, `uid_map_1` ...
    """

    def __init__(self, program: Program, source_segment: Literal["stage", "init"]) -> None:
        self.program = program
        self.source_segment = source_segment
        self.root: Ref | None = None
        self.proc: Ref | None = None
        self.idmaps: dict[Owner, Data] = {}

    # The tree, which is the same at every launch.

    def tree(self, tree: Tree, *, attach: bool) -> Ref:
        """Make the root and everything in it that never differs, and make its superblock read-only."""
        program = self.program
        program.origin = "root"
        context, root = new_filesystem(program, "tmpfs", (("mode", "0755"),), PRIVATE_FS, "root")
        if attach:
            # Over "/", where a mount point always exists; nothing is created on the host.
            program.call("move_mount", root, "", k.AT_FDCWD, "/", k.MOVE_MOUNT_F_EMPTY_PATH)
        for node in tree.nodes:
            program.origin = node.origin
            self._node(root, node.target.lstrip("/"), node)
        program.origin = "root"
        program.call("fsconfig", context, k.FSCONFIG_SET_FLAG, "ro", k.NONE, 0)
        program.call("fsconfig", context, k.FSCONFIG_CMD_RECONFIGURE, k.NONE, k.NONE, 0)
        self.root = root
        return root

    def _node(self, at: Ref, path: str, node: Node) -> None:
        call = self.program.call
        match node:
            case Dir(mode=mode):
                call("mkdirat", at, path, Flag(mode, oct(mode)), tolerate=(EEXIST,))
            case File(content=content, mode=mode):
                if content:
                    self._write_file(at, path, content, mode)
                else:
                    call("mknodat", at, path, Flag(0o100000 | mode, f"S_IFREG|{oct(mode)}"), 0)
            case Symlink(points_to=points_to):
                call("symlinkat", points_to, at, path)
            case Bind():
                if node.is_file:
                    call("mknodat", at, path, Flag(0o100444, "S_IFREG|0o444"), 0)
                else:
                    call("mkdirat", at, path, Flag(0o755, "0o755"))
                mount = self._source(node, optional_skip=1)
                call("move_mount", mount, "", at, path, k.MOVE_MOUNT_F_EMPTY_PATH)

    def _write_file(self, at: Ref, path: str, content: bytes, mode: int) -> None:
        call = self.program.call
        flags = k.O_WRONLY | k.O_CREAT | k.O_TRUNC | k.O_CLOEXEC
        fd = call("openat", at, path, flags | k.O_NOFOLLOW, Flag(0o600, "0o600"), name=_name_of(path))
        call("write", fd, content, len(content), equal=len(content))
        call("fchmod", fd, Flag(mode, oct(mode)))
        call("close", fd)

    def _source(self, bind: Bind, *, optional_skip: int) -> Ref:
        """Open a copy of the source's mounts, private, with the attributes asked for."""
        program = self.program
        home = program.segment
        program.segment = self.source_segment
        missing = (ENOENT,) if bind.optional else ()
        name = _name_of(bind.target)
        inline = self.source_segment == home
        idmap = None if bind.idmap is None else self._idmap(bind.idmap)
        attributed = 1 if idmap is None else 2
        mount = program.call(
            "open_tree",
            k.AT_FDCWD,
            bind.source,
            k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_RECURSIVE,
            name=name,
            tolerate=missing,
            skip=(attributed + optional_skip if inline else attributed) if bind.optional else 0,
        )
        if idmap is not None:
            program.call("mount_setattr", mount, "", k.AT_EMPTY_PATH | k.AT_RECURSIVE, idmap, 32)
        program.call(
            "mount_setattr",
            mount,
            "",
            k.AT_EMPTY_PATH | k.AT_RECURSIVE,
            mount_attributes(program, bind.attributes, private=True),
            32,
        )
        program.segment = home
        if bind.optional and not inline:
            # Opened by stage 1: PID 1 learns from the descriptor whether it was there.
            program.call("fcntl", mount, 1, tolerate=(9,), skip=optional_skip)
        return mount

    def _idmap(self, owner: Owner) -> Data:
        """Make the user namespace that a mount takes its id map from; return what mount_setattr gets."""
        program = self.program
        known = self.idmaps.get(owner)
        if known is not None:
            return known
        if self.proc is None:
            self.proc = verified_proc(program)
        who = f"owner_{owner.uid}_{owner.gid}"
        text = f"{{attr_set=MOUNT_ATTR_IDMAP, userns_fd={who}}}"
        attributes = self.idmaps[owner] = program.data(pack("<4Q", k.MOUNT_ATTR_IDMAP, 0, 0, 0), text)
        maps = [Late(f"{name}_map_{len(self.idmaps) - 1}", pointer=True) for name in ("uid", "gid")]
        sizes = [Late(f"{late.name}.size") for late in maps]
        program.call(
            "user_namespace", self.proc, maps[0], sizes[0], maps[1], sizes[1], name=who, store=(attributes, 24, 8)
        )
        return attributes

    # What every launch mounts.

    def rootfs(self, root: Root) -> Ref:
        """Make a host directory the root."""
        program = self.program
        program.origin = root.origin
        attributes = READONLY_SYSTEM if root.readonly else PRIVATE_FS
        mount = self._source(Bind(root.source, "/", attributes, origin=root.origin, idmap=root.idmap), optional_skip=0)
        program.call("move_mount", mount, "", k.AT_FDCWD, "/", k.MOVE_MOUNT_F_EMPTY_PATH)
        self.root = mount
        return mount

    def mounted(self, layout: Layout, root: Ref) -> None:
        """Mount on the root what differs between launches, in the order written."""
        self.root = root
        regions: dict[str, tuple[RegionKind, Ref]] = {"/": ("own" if layout.root is None else "foreign", root)}
        for target, kind in layout.regions.items():
            if kind == "foreign" and any(
                isinstance(node, Bind) and node.target == target for node in layout.tree.nodes
            ):
                regions[target] = (kind, root)
        for entry, path in layout.mounted:
            self.program.origin = entry.origin
            region = path
            while region not in regions:
                region = posixpath.dirname(region)
            self._mounted(entry, path, region, regions)

    def _mounted(self, entry: Entry, path: str, region: str, regions: dict[str, tuple[RegionKind, Ref]]) -> None:
        kind, at = regions[region]
        relative = posixpath.relpath(path, region)
        own = kind != "foreign" and relative != "."
        match entry:
            case Dir() | File() | Symlink():
                if relative == ".":
                    return
                if own:
                    self._make_parents(at, relative)
                    self._node(at, relative, entry)
                    if isinstance(entry, Dir) and entry.mode != 0o755:
                        # It may have been made before, as the parent of another entry.
                        self.program.call("fchmodat", at, relative, Flag(entry.mode, oct(entry.mode)))
                else:
                    self._node_in_foreign(path, entry)
            case Bind():
                if own and kind == "tmpfs":
                    self._make_parents(at, relative)
                    self._point(at, relative, entry.is_file)
                mount = self._source(entry, optional_skip=1 if own else 2)
                self._attach(mount, at, relative if own else None, path, strict=False)
                regions[path] = ("foreign", mount)
            case Filesystem():
                if own and kind == "tmpfs":
                    self._make_parents(at, relative)
                    self._point(at, relative, is_file=False)
                _, mount = new_filesystem(self.program, entry.fstype, entry.options, entry.attributes, _name_of(path))
                self._attach(mount, at, relative if own else None, path, strict=entry.strict_target)
                regions[path] = ("tmpfs" if entry.fstype == "tmpfs" else "foreign", mount)
            case Mask():
                self._mask(path)
            case Readonly():
                self._readonly(path, optional=entry.optional)

    def _make_parents(self, at: Ref, relative: str) -> None:
        parts = relative.split("/")[:-1]
        for i in range(1, len(parts) + 1):
            self.program.call("mkdirat", at, "/".join(parts[:i]), Flag(0o755, "0o755"), tolerate=(EEXIST,))

    def _point(self, at: Ref, relative: str, is_file: bool) -> None:
        if is_file:
            mode = Flag(0o100444, "S_IFREG|0o444")
            self.program.call("mknodat", at, relative, mode, 0, tolerate=(EEXIST,))
        else:
            self.program.call("mkdirat", at, relative, Flag(0o755, "0o755"), tolerate=(EEXIST,))

    def _open_inside(
        self, path: str, flags: Flag, *, strict: bool = False, tolerate: tuple[int, ...] = (), skip: int = 0
    ) -> Ref:
        """Open a path as the payload will see it: links resolve inside, magic links never."""
        assert self.root is not None
        resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
        if strict:
            # /proc and /dev of a foreign root: a link there is an attack, not a convenience.
            resolve = resolve | k.RESOLVE_NO_SYMLINKS
        how = open_how(self.program, flags | k.O_CLOEXEC, resolve)
        return self.program.call(
            "openat2",
            self.root,
            path,
            how,
            24,
            name=_name_of(path) + "_at",
            retry=100,
            tolerate=tolerate,
            skip=skip,
        )

    def _attach(self, mount: Ref, at: Ref, relative: str | None, path: str, *, strict: bool) -> None:
        call = self.program.call
        if relative is not None:
            call("move_mount", mount, "", at, relative, k.MOVE_MOUNT_F_EMPTY_PATH)
            return
        point = self._open_inside(path, k.O_PATH, strict=strict)
        call("move_mount", mount, "", point, "", k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH)

    def _node_in_foreign(self, path: str, node: Dir | File | Symlink) -> None:
        """Create something where hostile code may have been: by descriptor of the parent, never through a link."""
        call = self.program.call
        parent = self._open_inside(posixpath.dirname(path), k.O_PATH | k.O_DIRECTORY)
        self._node(parent, posixpath.basename(path), node)
        call("close", parent)

    def _mask(self, path: str) -> None:
        call = self.program.call
        move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
        # Not a directory: leave the six steps that hide one, and its own end, to the file's.
        point = self._open_inside(path, k.O_PATH | k.O_DIRECTORY, tolerate=(ENOTDIR,), skip=8)
        before = len(self.program.segments[self.program.segment])
        context, mount = new_filesystem(self.program, "tmpfs", (("mode", "0555"), ("size", "4096")), PRIVATE_FS, "mask")
        call("fsconfig", context, k.FSCONFIG_SET_FLAG, "ro", k.NONE, 0)
        call("fsconfig", context, k.FSCONFIG_CMD_RECONFIGURE, k.NONE, k.NONE, 0)
        call("move_mount", mount, "", point, "", move)
        call("skip", tolerate=(11,), skip=4)
        made = len(self.program.segments[self.program.segment]) - before
        steps = self.program.segments[self.program.segment]
        steps[before - 1] = steps[before - 1]._replace(skip=made)
        point = self._open_inside(path, k.O_PATH)
        null = call("open_tree", k.AT_FDCWD, "/dev/null", k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC, name="null")
        readonly = mount_attributes(self.program, DEVICE, private=True)
        call("mount_setattr", null, "", k.AT_EMPTY_PATH, readonly, 32)
        call("move_mount", null, "", point, "", move)

    def _readonly(self, path: str, *, optional: bool) -> None:
        call = self.program.call
        point = self._open_inside(path, k.O_PATH, tolerate=(ENOENT,) if optional else (), skip=3 if optional else 0)
        clone = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_RECURSIVE | k.AT_EMPTY_PATH
        mount = call("open_tree", point, "", clone, name=_name_of(path) + "_ro")
        attributes = mount_attributes(self.program, k.MOUNT_ATTR_RDONLY, private=True)
        call("mount_setattr", mount, "", k.AT_EMPTY_PATH | k.AT_RECURSIVE, attributes, 32)
        move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
        call("move_mount", mount, "", point, "", move)
