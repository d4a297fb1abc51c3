"""What the host looks like: the facts that the default root is made of, read when a sandbox is first compiled."""

import os
import stat
from collections.abc import Iterator

from sandbox.kernel import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from sandbox.rootfs import Bind, Dir, Entry, File, Symlink

_SYSTEM = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV

# Where /usr's own programs look outside of /usr. An allow-list: never the tree, never a private key.
_ETC = (
    "alternatives", "crypto-policies", "debian_version", "fonts", "gai.conf", "host.conf", "java", "java-*",
    "ld.so.cache", "ld.so.conf", "locale.alias", "locale.conf", "localtime", "magic", "mime.types", "netconfig",
    "networks", "nsswitch.conf", "os-release", "perl", "pki/ca-trust", "pki/java", "pki/tls/cert.pem",
    "pki/tls/certs", "protocols", "python*", "redhat-release", "rpc", "services", "shells", "ssl/cert.pem",
    "ssl/certs", "ssl/openssl.cnf", "timezone", "xattr.conf",
)  # fmt: skip
_COPY_UP_TO = 1 << 20


def stamp() -> int:
    """Return what changes when an entry of /etc is replaced, so that facts can be read again."""
    return os.stat("/etc").st_mtime_ns


def is_system(bind: Bind) -> bool:
    """Say whether a bind is one that the default root has as well: the same at every launch, then."""
    return bind.source == bind.target == "/usr" and bind.attributes == _SYSTEM and not bind.optional


def is_file(path: str) -> bool:
    """Say whether a mount point for this must be a file; what is missing or out of reach counts as a directory."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def programs(origin: str) -> Iterator[Entry]:
    """Yield the host's /usr, and the links to it."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = f"/{name}"
        if os.path.islink(path):
            yield Symlink(os.readlink(path), path, origin)
        elif os.path.isdir(path):
            yield Bind(path, path, _SYSTEM, system=True, origin=origin)
    yield Bind("/usr", "/usr", _SYSTEM, system=True, origin=origin)


def system(origin: str) -> Iterator[Entry]:
    """Yield the host's programs and the public part of its /etc, read-only."""
    yield from programs(origin)
    yield Dir("/etc", 0o755, origin)
    names = sorted(os.listdir("/etc"))
    for wanted in _ETC:
        if wanted.endswith("*"):
            for name in names:
                if name.startswith(wanted[:-1]):
                    yield from _etc(f"/etc/{name}", origin)
        else:
            yield from _etc(f"/etc/{wanted}", origin)
    yield Dir("/run", 0o755, origin)
    yield Dir("/var", 0o755, origin)
    yield Symlink("/run", "/var/run", origin)
    yield Symlink("/tmp", "/var/tmp", origin)


def _etc(path: str, origin: str) -> Iterator[Entry]:
    if not os.path.exists(path):
        return
    real = os.path.realpath(path)
    if os.path.islink(path) and real.startswith("/usr/"):
        yield Symlink(os.readlink(path), path, origin)
        return
    is_file = not os.path.isdir(real)
    if is_file and os.path.getsize(real) <= _COPY_UP_TO:
        # A copy costs nothing when the tree is cloned, a mount does. Whoever edits /etc replaces the file, and
        # the directory's time tells.
        try:
            with open(real, "rb") as stream:
                yield File(path, stream.read(), 0o444, origin)
        except PermissionError:  # not public after all
            return
    else:
        # Optional: an update of the host may take it away between this look and the launch.
        yield Bind(real, path, _SYSTEM, optional=True, is_file=is_file, system=True, origin=origin)


def accounts(uid: int, gid: int, home: str, origin: str) -> Iterator[Entry]:
    """Yield passwd and group: the user of the sandbox, root and nobody, and no other account of the host."""
    shell = "/bin/sh"
    users = {0: ("root", 0, "/root"), uid: ("root" if uid == 0 else "user", gid, home)}
    users.setdefault(65534, ("nobody", 65534, "/nonexistent"))
    groups = {0: "root", gid: "root" if gid == 0 else "user"}
    groups.setdefault(65534, "nogroup")
    passwd = "".join(f"{name}:x:{u}:{g}:{name}:{where}:{shell}\n" for u, (name, g, where) in users.items())
    group = "".join(f"{name}:x:{g}:\n" for g, name in groups.items())
    yield File("/etc/passwd", passwd.encode(), origin=origin)
    yield File("/etc/group", group.encode(), origin=origin)


def names(hostname: str, *, host_network: bool, origin: str) -> Iterator[Entry]:
    """Yield hostname, hosts and resolv.conf."""
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
    resolv = b"# no name server: this network has nothing but its own loopback\n"
    if host_network:
        try:
            with open("/etc/resolv.conf", "rb") as stream:
                resolv = stream.read()
            with open("/etc/hosts") as text:
                hosts = text.read()
        except FileNotFoundError:
            resolv = b"# the host has none\n"
    yield File("/etc/hostname", hostname.encode() + b"\n", origin=origin)
    yield File("/etc/hosts", hosts.encode(), origin=origin)
    yield File("/etc/resolv.conf", resolv, origin=origin)
