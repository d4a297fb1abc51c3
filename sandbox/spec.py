"""What a `Sandbox` says, as a value; nothing of it depends on the host."""

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from sandbox import kernel as k
from sandbox.limits import Limits
from sandbox.rootfs import DEVICE_NODES, Entry, Filesystem

if TYPE_CHECKING:
    from sandbox.filters import Filter
    from sandbox.landlock import Landlock
    from sandbox.sources import DescriptorSource

Namespace: TypeAlias = Literal["user", "pid", "net", "ipc", "uts", "cgroup", "time"]
NAMESPACES: Final[tuple[Namespace, ...]] = ("user", "pid", "net", "ipc", "uts", "cgroup", "time")
NEW_BY_DEFAULT: Final = frozenset(NAMESPACES) - {"time"}
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME: Final = "/tmp"


class System(NamedTuple):
    """The default root's programs and configuration: /usr, its links, the public part of /etc."""

    origin: str = ""


class Dev(NamedTuple):
    """A minimal /dev."""

    target: str = "/dev"
    shm: str | None = None
    nodes: tuple[str, ...] = DEVICE_NODES
    origin: str = ""


class Python(NamedTuple):
    """The interpreter of this process, and its packages."""

    origin: str = ".python()"


class FileFrom(NamedTuple):
    """A file whose content is read at the first launch."""

    target: str
    source: "DescriptorSource"
    mode: int = 0o644
    origin: str = ""


class Spec(NamedTuple):
    """What a `Sandbox` says; the value behind it."""

    entries: tuple[Entry | System | Dev | Python | FileFrom, ...] = ()
    new_namespaces: frozenset[str] = NEW_BY_DEFAULT
    loopback: bool = True
    hostname: str | None = "sandbox"
    hostname_origin: str = "Sandbox()"
    domainname: str | None = None
    uid: int | None = None
    gid: int | None = None
    host_root: bool = False
    strict_groups: bool = False
    id_ranges: int | None = None
    id_ranges_origin: str = ".id_ranges()"
    env: tuple[tuple[str, str], ...] = (("PATH", PATH), ("HOME", HOME), ("LANG", "C.UTF-8"))
    cwd: str | None = None
    cwd_origin: str = ".cwd()"
    umask: int = 0o022
    keep: int = 0
    ambient: int = 0
    filter: "Filter | str | None" = "default"
    filter_origin: str = "Sandbox()"
    landlock: "tuple[Landlock, ...]" = ()
    observe: bool = False
    limits: Limits = Limits()
    init: bool = True
    new_session: bool = True
    monotonic: int = 0
    boottime: int = 0


class Network:
    """Which network a sandbox sees.

    Attributes:
        none: A network of its own, with nothing up.
        loopback: A network of its own, with its loopback up.
        host: The caller's.
        kind: Which of them it is.
    """

    __slots__ = ("kind",)
    kind: Literal["none", "loopback", "host"]
    none: "Network"
    loopback: "Network"
    host: "Network"

    def __init__(self, kind: Literal["none", "loopback", "host"]) -> None:
        if kind not in {"none", "loopback", "host"}:
            raise ValueError(f'kind must be "none", "loopback" or "host", got {kind!r}')
        object.__setattr__(self, "kind", kind)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: the constants are everybody's."""
        raise AttributeError(f"Network.{name} cannot be changed: it is a value")

    def __eq__(self, other: object) -> bool:
        """Compare by kind."""
        return isinstance(other, Network) and other.kind == self.kind

    def __hash__(self) -> int:
        """Hash by kind."""
        return hash((Network, self.kind))

    def __reduce__(self) -> tuple[type["Network"], tuple[str]]:
        """Pickle by kind."""
        return Network, (self.kind,)

    def __repr__(self) -> str:
        """Show the constant."""
        return f"Network.{self.kind}"


Network.none = Network("none")
Network.loopback = Network("loopback")
Network.host = Network("host")


def default_entries(*, empty: bool) -> tuple[Entry | System | Dev, ...]:
    """Return what `Sandbox()` has in its root, or `Sandbox.empty()`."""
    if empty:
        return ()
    origin = "Sandbox()"
    return (
        System(origin),
        proc_entry("/proc", origin=origin),
        Dev(origin=origin),
        tmpfs_entry("/tmp", mode=0o1777, origin=origin),
    )


def proc_entry(target: str, *, hidepid: bool = False, subset: str | None = None, origin: str = "") -> Filesystem:
    """Return a new /proc."""
    options: list[tuple[str, str | None]] = []
    if hidepid:
        options.append(("hidepid", "invisible"))
    if subset is not None:
        options.append(("subset", subset))
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
    return Filesystem("proc", target, tuple(options), attributes, strict_target=True, origin=origin)


def tmpfs_entry(
    target: str,
    *,
    mode: int,
    size: int | None = None,
    inodes: int | None = None,
    exec: bool = True,
    origin: str = "",
) -> Filesystem:
    """Return a new tmpfs; size in bytes."""
    # 1777 is what the kernel gives a tmpfs anyway.
    options: list[tuple[str, str | None]] = [] if mode == 0o1777 else [("mode", f"{mode:04o}")]
    if size is not None:
        options.append(("size", str(size)))
    if inodes is not None:
        options.append(("nr_inodes", str(inodes)))
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
    if not exec:
        attributes = attributes | k.MOUNT_ATTR_NOEXEC
    return Filesystem("tmpfs", target, tuple(options), attributes, origin=origin)
