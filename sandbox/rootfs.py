"""What the root file system holds.

The builder's calls become *entries*, in order. Those that the library makes in the sandbox's own root (directories,
files, links, device nodes, `/usr` and the public part of `/etc`) are the same at every launch: they form a *tree*,
a value, which can be built once and cloned. All that differs (tmpfs, /proc, devpts, the caller's binds) is mounted
on top for each launch, in the order written.
"""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

from sandbox import kernel as k

READONLY_SYSTEM: Final = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
_DEVICES: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
# It can be written to all the same; its mode, owner and times cannot be changed, which are the host's.
DEVICE: Final = _DEVICES | k.MOUNT_ATTR_RDONLY
PRIVATE_FS: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV

# What a minimal /dev has; the last two are file systems of the sandbox itself.
DEVICE_NODES: Final = ("null", "zero", "full", "random", "urandom", "tty", "pts", "shm")


class Dir(NamedTuple):
    """A directory."""

    target: str
    mode: int = 0o755
    origin: str = ""


class File(NamedTuple):
    """A file with its content."""

    target: str
    content: bytes
    mode: int = 0o644
    origin: str = ""


class Symlink(NamedTuple):
    """A symbolic link; os.symlink's order."""

    points_to: str
    target: str
    origin: str = ""


class Owner(NamedTuple):
    """Who the payload is on a mount: a user and a group of its file system."""

    uid: int
    gid: int


class Bind(NamedTuple):
    """A bind mount of a host path, recursive; `attributes` are added to those of the source.

    `system` binds never differ between launches and belong to the tree. `owner` is what the caller says, `idmap` what
    follows from it: the mount gets an id map.
    """

    source: str
    target: str
    attributes: int = 0
    optional: bool = False
    is_file: bool = False
    system: bool = False
    origin: str = ""
    owner: int | None = None
    idmap: Owner | None = None


class Filesystem(NamedTuple):
    """A new file system: tmpfs, proc, devpts; options as fsconfig takes them, without a value: a flag."""

    fstype: str
    target: str
    options: tuple[tuple[str, str | None], ...] = ()
    attributes: int = PRIVATE_FS
    strict_target: bool = False
    origin: str = ""


class Mask(NamedTuple):
    """Hide a path: an empty read-only directory over a directory, /dev/null over anything else."""

    target: str
    origin: str = ""


class Readonly(NamedTuple):
    """Make what is visible at a path read-only, recursively."""

    target: str
    origin: str = ""
    optional: bool = False


class Root(NamedTuple):
    """The directory that is the whole root."""

    source: str
    readonly: bool = True
    origin: str = ""
    idmap: Owner | None = None


Entry: TypeAlias = Dir | File | Symlink | Bind | Filesystem | Mask | Readonly | Root
# Of the tree: "point-dir" and "point-file" are mount points for what is mounted at each launch.
Node: TypeAlias = Dir | File | Symlink | Bind
RegionKind: TypeAlias = Literal["own", "tmpfs", "foreign"]


def dev(target: str, *, shm: str | None, nodes: tuple[str, ...], origin: str, own: bool) -> Iterator[Entry]:
    """Yield a minimal /dev: nodes bound from the host, a devpts instance of its own, shm, the standard links."""
    if own:
        yield Dir(target, 0o755, origin)
    else:
        yield Filesystem(
            "tmpfs", target, (("mode", "0755"), ("size", "65536")), _DEVICES, strict_target=True, origin=origin
        )
    for node in nodes:
        if node not in {"pts", "shm"}:
            yield Bind(f"/dev/{node}", f"{target}/{node}", DEVICE, is_file=True, system=own, origin=origin)
    yield Symlink("/proc/self/fd", f"{target}/fd", origin)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        yield Symlink(f"/proc/self/fd/{number}", f"{target}/{name}", origin)
    if "pts" in nodes:
        yield Symlink("pts/ptmx", f"{target}/ptmx", origin)
        yield Dir(f"{target}/pts", 0o755, origin)
        modes = (("mode", "0620"), ("ptmxmode", "0666"))
        attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
        yield Filesystem("devpts", f"{target}/pts", modes, attributes, origin=origin)
    if "shm" in nodes:
        yield Dir(f"{target}/shm", 0o755, origin)
        options = () if shm is None else (("size", shm),)
        yield Filesystem("tmpfs", f"{target}/shm", options, origin=origin)


class Tree(NamedTuple):
    """The part of the root that no launch changes; a value, so that it can be built once and cloned."""

    nodes: tuple[Node, ...]


class Layout(NamedTuple):
    """All entries sorted: the tree, and what each launch mounts on it."""

    root: Root | None
    tree: Tree
    mounted: tuple[tuple[Entry, str], ...]
    regions: dict[str, RegionKind]


def _parents(path: str) -> Iterator[str]:
    parts = path.strip("/").split("/")[:-1]
    for i in range(1, len(parts) + 1):
        yield "/" + "/".join(parts[:i])


class _Sorter:
    def __init__(self, root: Root | None) -> None:
        self.nodes: dict[str, Node] = {}
        self.mounted: list[tuple[Entry, str]] = []
        self.regions: dict[str, RegionKind] = {"/": "own" if root is None else "foreign"}

    def region_of(self, path: str) -> str:
        while path not in self.regions:
            path = posixpath.dirname(path)
        return path

    def resolve(self, path: str, *, follow_last: bool) -> str:
        """Follow the links that the tree itself holds: /bin/x is /usr/bin/x."""
        for _ in range(40):
            for part in (*_parents(path), *((path,) if follow_last else ())):
                node = self.nodes.get(part)
                if isinstance(node, Symlink) and self.regions[self.region_of(part)] == "own":
                    path = posixpath.normpath(
                        posixpath.join(posixpath.dirname(part), node.points_to) + path[len(part) :]
                    )
                    break
            else:
                return path
        raise ValueError(f"{path}: too many levels of symbolic links")

    def mkdirs(self, path: str, origin: str) -> None:
        for parent in _parents(path):
            if parent not in self.nodes and self.regions[self.region_of(parent)] == "own":
                self.nodes[parent] = Dir(parent, 0o755, origin)

    def put(self, node: Node, path: str) -> None:
        self.mkdirs(path, node.origin)
        # A later entry replaces an earlier one, and comes after its parents.
        self.nodes.pop(path, None)
        self.nodes[path] = node._replace(target=path)

    def add(self, entry: Entry) -> None:
        if isinstance(entry, Root):
            return
        follow = not isinstance(entry, Symlink)
        path = self.resolve(entry.target, follow_last=follow)
        own = self.regions[self.region_of(path)] == "own"
        match entry:
            case Dir() | File() | Symlink() if own:
                if isinstance(entry, Dir) and isinstance(self.nodes.get(path), Dir):
                    self.nodes[path] = entry._replace(target=path)
                else:
                    self.put(entry, path)
                return
            case Bind(system=True) if own:
                self.put(entry, path)
                self.regions[path] = "foreign"
                return
            case Bind() | Filesystem() if own:
                if path not in self.nodes:
                    point = File(path, b"", 0o444, entry.origin)
                    is_file = isinstance(entry, Bind) and entry.is_file
                    self.put(point if is_file else Dir(path, 0o755, entry.origin), path)
        self.mounted.append((entry, path))
        match entry:
            case Bind():
                self.regions[path] = "foreign"
            case Filesystem():
                self.regions[path] = "tmpfs" if entry.fstype == "tmpfs" else "foreign"


def sort(entries: Iterable[Entry]) -> Layout:
    """Sort entries into the tree and what is mounted at each launch.

    Raises:
        ValueError: A loop of symbolic links among the entries.
    """
    entries = tuple(entries)
    root = next((entry for entry in entries if isinstance(entry, Root)), None)
    sorter = _Sorter(root)
    for entry in entries:
        sorter.add(entry)
    return Layout(root, Tree(tuple(sorter.nodes.values())), tuple(sorter.mounted), sorter.regions)
