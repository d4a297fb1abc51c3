"""Landlock as a value: what is asked for, and what it comes to for one ABI of the kernel.

`Landlock` says what is wanted and knows nothing of the kernel. `Landlock.ruleset(abi)` compiles it, without a
system call, to a `Ruleset`: the exact masks and rules, and in words what this ABI leaves uncovered. The
calling process takes a ruleset on with `sandbox.confine`; a launch turns the same data into steps.

Facts that the shape follows from:

- A right that a ruleset does not handle is allowed everywhere; a right that the ABI does not have cannot be
  handled. So what was asked for and is newer than the ABI is an error, never left out in silence.
- REFER (moving or linking a file to another directory) is refused by every ruleset that handles any file
  right, handled or not. Where writing is not restricted, a rule on "/" gives it back.
- A rule for a file may only hold the rights that a file can have, EINVAL otherwise; what a path is shows only
  when it is opened. So a rule has both sets: the kernel takes the first for a directory, and the second,
  which adds nothing to a directory that has the first, for a file.
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal, Self, TypedDict

from sandbox.arguments import switch
from sandbox.errors import UnsupportedError
from sandbox.primitives._call import StrOrBytesPath, in_range, path_bytes
from sandbox.primitives.landlock import (
    LANDLOCK_MAX_LAYERS as MAX_LAYERS,
    LandlockAccessFs as Fs,
    LandlockAccessNet as Net,
    LandlockRestrictSelfFlags as Restrict,
    LandlockScope,
    landlock_abi,
    landlock_create_ruleset,
)

if TYPE_CHECKING:
    from sandbox.causes import Cause

__all__ = ["MAX_LAYERS", "NEWEST_ABI", "Landlock", "LandlockOptions", "PathRule", "PortRule", "Ruleset"]

NEWEST_ABI: Final = 11

# The ABI of each right that is newer than the first, and the kernel of each ABI.
_FS_ABI = {Fs.REFER: 2, Fs.TRUNCATE: 3, Fs.IOCTL_DEV: 5, Fs.RESOLVE_UNIX: 9}
_NET_ABI = {Net.BIND_TCP: 4, Net.CONNECT_TCP: 4, Net.BIND_UDP: 10, Net.CONNECT_SEND_UDP: 10}
_SCOPE_ABI = 6
_LOG_ABI = 7
_KERNEL = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12", 7: "6.15", 8: "7.0", 9: "7.1",
           10: "7.2", 11: "7.3"}  # fmt: skip

_ALL_FS = sum(Fs)
FILE_RIGHTS: Final = Fs.EXECUTE | Fs.WRITE_FILE | Fs.READ_FILE | Fs.TRUNCATE | Fs.IOCTL_DEV | Fs.RESOLVE_UNIX
_READ = Fs.READ_FILE | Fs.READ_DIR
_EXECUTE = Fs.EXECUTE
# Device nodes are refused wherever writing is handled and never come with it: a directory that may be written
# to is no reason to make a disk's device in it. `path` grants them by name.
_DEVICE_NODES = Fs.MAKE_CHAR | Fs.MAKE_BLOCK
_WRITE = _ALL_FS & ~(_READ | _EXECUTE)
# Without these writing is not what it says, so an ABI that lacks them is an error; the others are named as
# gaps.
_WRITE_ASKED = _WRITE & ~(Fs.REFER | Fs.IOCTL_DEV | Fs.RESOLVE_UNIX)

_SCOPES = {"signal": LandlockScope.SIGNAL, "abstract_unix_socket": LandlockScope.ABSTRACT_UNIX_SOCKET}
_PORT_KINDS = {
    "bind_tcp": Net.BIND_TCP,
    "connect_tcp": Net.CONNECT_TCP,
    "bind_udp": Net.BIND_UDP,
    "connect_udp": Net.CONNECT_SEND_UDP,
}


class LandlockOptions(TypedDict, total=False):
    """The keyword arguments of `Landlock`, so that wrappers can be typed."""

    read: Iterable[StrOrBytesPath]
    write: Iterable[StrOrBytesPath]
    execute: Iterable[StrOrBytesPath]
    bind_tcp: Iterable[int]
    connect_tcp: Iterable[int]
    bind_udp: Iterable[int]
    connect_udp: Iterable[int]
    scope: Iterable[Literal["signal", "abstract_unix_socket"]]
    best_effort: bool


@dataclass(frozen=True, slots=True)
class PathRule:
    """Rights for a file hierarchy.

    Attributes:
        path: Absolute; symbolic links are followed when the rule is made.
        rights: `LandlockAccessFs` for a directory.
        file_rights: The part of them that a file can have.
    """

    path: str
    rights: int
    file_rights: int

    def attr(self, *, file: bool = False, parent_fd: int = -1) -> bytes:
        """Return struct landlock_path_beneath_attr; the descriptor is the 4 bytes at offset 8.

        Args:
            file: With the rights of a file instead of a directory's.
            parent_fd: The opened path.
        """
        return struct.pack("=Qi", self.file_rights if file else self.rights, parent_fd)


@dataclass(frozen=True, slots=True)
class PortRule:
    """Rights for a port, `LandlockAccessNet`; binding to port 0 means the ephemeral range."""

    port: int
    rights: int

    def attr(self) -> bytes:
        """Return struct landlock_net_port_attr."""
        return struct.pack("=QQ", self.rights, self.port)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What a `Landlock` comes to for one ABI: the arguments of the system calls, and the answer in words.

    In a launch or in `confine`: landlock_create_ruleset with `attr()`; for each path open it with O_PATH, and
    landlock_add_rule with `attr()` where it has rights for directories only, otherwise with `attr()`
    tolerating EINVAL and then with `attr(file=True)`; for each port landlock_add_rule; landlock_restrict_self
    with `restrict_flags`.

    Attributes:
        abi: The ABI that it was compiled for.
        handled_fs: `LandlockAccessFs` that are refused where no rule allows them.
        handled_net: `LandlockAccessNet` likewise.
        scoped: `LandlockScope`.
        restrict_flags: `LandlockRestrictSelfFlags`.
        paths: One rule a path.
        ports: One rule a port.
        skip_missing: A path that does not exist is left out (`best_effort`) instead of an error.
        enforced: What is restricted, in words.
        gaps: What this ABI cannot cover of the kinds that were asked for, in words.
        missing: What `best_effort` asked for and this ABI does not have, in words.
    """

    abi: int
    handled_fs: int
    handled_net: int
    scoped: int
    restrict_flags: int
    paths: tuple[PathRule, ...]
    ports: tuple[PortRule, ...]
    skip_missing: bool
    enforced: tuple[str, ...]
    gaps: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing is restricted, so that there is nothing to call."""
        return not (self.handled_fs or self.handled_net or self.scoped)

    def attr(self) -> bytes:
        """Return struct landlock_ruleset_attr, as long as it was in this ABI."""
        size = 8 if self.abi < 4 else 16 if self.abi < 6 else 24
        return struct.pack("=QQQ", self.handled_fs, self.handled_net, self.scoped)[:size]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Landlock:
    """Restrict files, ports and signals for a process and all that it starts: landlock(7).

    A kind that is left out is not restricted; with an empty list nothing of the kind is allowed. Everything
    beneath a path is meant, and a path may be a file. What was opened before stays usable.

    Args:
        read: Paths whose files can be read and whose directories can be listed.
        write: Paths where files can be written, truncated, made, removed, moved and linked, device files be
            given ioctl(2), and UNIX sockets be connected to. Device nodes cannot be made there; `path` grants
            that.
        execute: Paths whose files can be executed. With `read` they must be readable too, and so must the
            loader and the libraries.
        bind_tcp: Local ports for TCP, 0 to 65535; 0 stands for the ephemeral range.
        connect_tcp: Remote ports for TCP.
        bind_udp: Local ports for UDP. A socket that sends needs port 0 here or a bind of its own.
        connect_udp: Remote ports for UDP.
        scope: "signal": none to a process outside. "abstract_unix_socket": no connection to one made outside.
        best_effort: What the kernel lacks, and a path that does not exist, is left out and reported as
            missing, where it is an error otherwise.

    Attributes:
        rights: What `path` has added.
        log_flags: What `log` has chosen.

    Raises:
        TypeError: A string where a list of paths, ports or scopes is meant.
        ValueError: A relative path, a port that is none, an unknown scope.
    """

    read: tuple[str, ...] | None
    write: tuple[str, ...] | None
    execute: tuple[str, ...] | None
    bind_tcp: tuple[int, ...] | None
    connect_tcp: tuple[int, ...] | None
    bind_udp: tuple[int, ...] | None
    connect_udp: tuple[int, ...] | None
    scope: tuple[str, ...] | None
    rights: tuple[tuple[str, int], ...]
    log_flags: int
    best_effort: bool

    def __init__(
        self,
        *,
        read: Iterable[StrOrBytesPath] | None = None,
        write: Iterable[StrOrBytesPath] | None = None,
        execute: Iterable[StrOrBytesPath] | None = None,
        bind_tcp: Iterable[int] | None = None,
        connect_tcp: Iterable[int] | None = None,
        bind_udp: Iterable[int] | None = None,
        connect_udp: Iterable[int] | None = None,
        scope: Iterable[Literal["signal", "abstract_unix_socket"]] | None = None,
        best_effort: bool = False,
    ) -> None:
        self._set(
            read=_paths(read, "read"),
            write=_paths(write, "write"),
            execute=_paths(execute, "execute"),
            bind_tcp=_ports(bind_tcp, "bind_tcp"),
            connect_tcp=_ports(connect_tcp, "connect_tcp"),
            bind_udp=_ports(bind_udp, "bind_udp"),
            connect_udp=_ports(connect_udp, "connect_udp"),
            scope=_scopes(scope),
            rights=(),
            log_flags=0,
            best_effort=switch(best_effort, "best_effort"),
        )

    def __repr__(self) -> str:
        """Show the calls that make it."""
        said = {field.name: getattr(self, field.name) for field in fields(self)[:8]}
        words = [f"{name}={list(value)!r}" for name, value in said.items() if value is not None]
        text = f"Landlock({', '.join([*words, *(['best_effort=True'] if self.best_effort else [])])})"
        text += "".join(f".path({path!r}, {rights:#x})" for path, rights in self.rights)
        if self.log_flags:
            same, new, below = (
                not self.log_flags & Restrict.LOG_SAME_EXEC_OFF,
                bool(self.log_flags & Restrict.LOG_NEW_EXEC_ON),
                not self.log_flags & Restrict.LOG_SUBDOMAINS_OFF,
            )
            text += f".log(same_exec={same}, new_exec={new}, subdomains={below})"
        return text

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _with(self, **changes: object) -> Self:
        made = object.__new__(type(self))
        made._set(**{field.name: getattr(self, field.name) for field in fields(self)} | changes)
        return made

    def path(self, path: StrOrBytesPath, rights: int) -> "Landlock":
        """Grant exact rights beneath a path; each of them is refused wherever no rule grants it.

        Args:
            path: Absolute. Rights for directories are left out where it is a file.
            rights: `LandlockAccessFs`, at least one. An ABI that lacks one of them is an error.

        Raises:
            ValueError: No right or an unknown one, or a relative path.
        """
        in_range(rights, 1, _ALL_FS, "rights")
        return self._with(rights=(*self.rights, (_path(path, "path"), int(rights))))

    def log(self, *, same_exec: bool = True, new_exec: bool = False, subdomains: bool = True) -> "Landlock":
        """Choose which refusals the kernel's audit log gets; the arguments left out are the kernel's choice.

        Args:
            same_exec: Those of the program that restricted itself.
            new_exec: Those of the programs that it executes: in a sandbox, the payload's.
            subdomains: Those of domains nested in this one.

        Anything but the kernel's choice needs ABI 7.
        """
        flags = (
            (0 if same_exec else Restrict.LOG_SAME_EXEC_OFF)
            | (Restrict.LOG_NEW_EXEC_ON if new_exec else 0)
            | (0 if subdomains else Restrict.LOG_SUBDOMAINS_OFF)
        )
        return self._with(log_flags=int(flags))

    @staticmethod
    def abi() -> int:
        """Return the Landlock ABI of this kernel; 0: it has none, or was booted without."""
        return landlock_abi()

    def ruleset(self, abi: int, *, errata: int | None = None) -> Ruleset:
        """Compile for one ABI; makes no system call.

        Args:
            abi: The kernel's, see `abi`; 0 when it has none. Newer ones than this library knows are taken as
                the newest that it knows.
            errata: The kernel's, see `landlock_errata`; None: not known, and not reported.

        Raises:
            UnsupportedError: Something that was asked for is newer than `abi`, and `best_effort` is off.
            ValueError: Nothing is restricted at all.
        """
        abi = min(in_range(abi, 0, 2**31 - 1, "abi"), NEWEST_ABI)
        handled_fs, handled_net, scoped = self._asked()
        if not (handled_fs or handled_net or scoped):
            raise ValueError("Landlock() restricts nothing: name a kind, such as read=[...] or scope=[...]")
        missing = self._missing(abi, handled_fs, handled_net, scoped)
        if missing and not self.best_effort:
            _refuse(abi, missing)

        restrict_moving = bool(handled_fs & Fs.REFER)
        handled_fs &= _known(_FS_ABI, _ALL_FS, abi)
        if handled_fs and abi >= _FS_ABI[Fs.REFER]:
            handled_fs |= Fs.REFER
        handled_net &= _known(_NET_ABI, sum(Net), abi)
        scoped = scoped if abi >= _SCOPE_ABI else 0
        return Ruleset(
            abi=abi,
            handled_fs=handled_fs,
            handled_net=handled_net,
            scoped=scoped,
            restrict_flags=self.log_flags if abi >= _LOG_ABI else 0,
            paths=self._path_rules(handled_fs, restrict_moving=restrict_moving),
            ports=self._port_rules(handled_net),
            skip_missing=self.best_effort,
            enforced=self._enforced(handled_fs, handled_net, scoped),
            gaps=self._gaps(abi, handled_fs, handled_net, scoped, errata),
            missing=tuple(text for text, _ in missing),
        )

    def _asked(self) -> tuple[int, int, int]:
        fs = 0
        for kind, rights in ((self.read, _READ), (self.write, _WRITE), (self.execute, _EXECUTE)):
            fs |= rights if kind is not None else 0
        for _, exact in self.rights:
            fs |= exact
        net = 0
        for name, right in _PORT_KINDS.items():
            net |= right if getattr(self, name) is not None else 0
        return fs, net, sum(_SCOPES[name] for name in self.scope or ())

    def _missing(self, abi: int, fs: int, net: int, scoped: int) -> list[tuple[str, int]]:
        """Name what was asked for and is newer than `abi`, each with the ABI that brought it."""
        if abi == 0:
            return [("Landlock itself", 1)]
        exact = 0
        for _, rights in self.rights:
            exact |= rights
        asked = exact | (_WRITE_ASKED if self.write is not None else 0)
        found: list[tuple[str, int]] = []
        for right, since in _FS_ABI.items():
            if asked & fs & right and abi < since:
                found.append((f"refusing {right.name} to files", since))
        for name, port_right in _PORT_KINDS.items():
            if net & port_right and abi < _NET_ABI[port_right]:
                found.append((name, _NET_ABI[port_right]))
        if abi < _SCOPE_ABI:
            found += [(f"scope {name!r}", _SCOPE_ABI) for name in self.scope or () if scoped]
        if self.log_flags and abi < _LOG_ABI:
            found.append(("log()", _LOG_ABI))
        return found

    def _path_rules(self, handled: int, *, restrict_moving: bool) -> tuple[PathRule, ...]:
        rules: dict[str, int] = {}
        for paths, rights in (
            (self.read, _READ),
            (self.write, _WRITE & ~_DEVICE_NODES),
            (self.execute, _EXECUTE),
        ):
            for path in paths or ():
                rules[path] = rules.get(path, 0) | (rights & handled)
        for path, exact in self.rights:
            rules[path] = rules.get(path, 0) | (exact & handled)
        if not restrict_moving:
            # Nobody asked for it, and the kernel does it all the same: see the facts above.
            rules["/"] = rules.get("/", 0) | (Fs.REFER & handled)
        return tuple(PathRule(path, rights, rights & FILE_RIGHTS) for path, rights in rules.items() if rights)

    def _port_rules(self, handled: int) -> tuple[PortRule, ...]:
        rules: dict[int, int] = {}
        for name, right in _PORT_KINDS.items():
            if handled & right:
                for port in getattr(self, name):
                    rules[port] = rules.get(port, 0) | right
        return tuple(PortRule(port, rights) for port, rights in rules.items())

    def _enforced(self, fs: int, net: int, scoped: int) -> tuple[str, ...]:
        found: list[str] = []
        for name, kind, rights in (
            ("read", self.read, _READ),
            ("write", self.write, _WRITE),
            ("execute", self.execute, _EXECUTE),
        ):
            if kind is not None and fs & rights:
                found.append(f"{name}: {', '.join(kind) or 'nothing'}")
        found += [f"{Fs(rights & fs)!s}: {path}" for path, rights in self.rights if rights & fs]
        for name, right in _PORT_KINDS.items():
            if net & right:
                found.append(f"{name}: {', '.join(map(str, getattr(self, name))) or 'nothing'}")
        if scoped:
            found.append(f"scope: {', '.join(self.scope or ())}")
        return tuple(found)

    def _gaps(self, abi: int, fs: int, net: int, scoped: int, errata: int | None) -> tuple[str, ...]:
        gaps: list[str] = []
        if fs or net or scoped:
            gaps.append("what was open before stays usable")
        if fs:
            gaps.append("stat, access, readlink, chdir, flock and fcntl are not restricted")
        writing = fs & _WRITE & ~Fs.REFER
        if writing:
            gaps.append("chmod, chown, setxattr and utime are not restricted")
        if fs & Fs.EXECUTE:
            gaps.append("a program that may be executed can load another one itself: ld.so, an interpreter")
        if writing and abi < 5:
            gaps.append("ioctl on device files is not restricted (needs ABI 5)")
        if writing and abi < 9:
            gaps.append("connecting to a UNIX socket by its path is not restricted (needs ABI 9)")
        if fs and abi < 2:
            gaps.append("moving and linking files to another directory is refused everywhere (ABI 1)")
        if fs and errata is not None and not errata & 4:
            gaps.append("a directory moved out of a bind mount while in use can widen rights (erratum 3)")
        if writing & Fs.MAKE_REG and errata is not None and not errata & 8:
            gaps.append("renaming can leave a whiteout where no file may be made (erratum 4)")
        if net and not net & (Net.BIND_UDP | Net.CONNECT_SEND_UDP):
            gaps.append("UDP is not restricted" + (" (needs ABI 10)" if abi < 10 else ""))
        if net:
            gaps.append("MPTCP, SCTP, raw and all other sockets are not restricted, nor listen without bind")
        if scoped & LandlockScope.ABSTRACT_UNIX_SOCKET and not fs & Fs.RESOLVE_UNIX:
            gaps.append("the scope does not hold for UNIX sockets that have a path")
        return tuple(gaps)


def _known(since: "dict[Fs, int] | dict[Net, int]", every: int, abi: int) -> int:
    """Return the part of `every` that an ABI has."""
    if abi == 0:
        return 0
    return every & ~sum(right for right, first in since.items() if abi < first)


def _why_none() -> "Cause":
    """Return why this kernel has no Landlock; the usual reason where it has, and the ABI 0 is pretended."""
    from sandbox import causes

    try:
        os.close(landlock_create_ruleset(Fs.EXECUTE))
    except OSError as error:
        cause = causes.find("landlock_create_ruleset", (), error.errno or 0)
        if cause is not None:
            return cause
    return causes.cause("landlock-off")


def _refuse(abi: int, missing: list[tuple[str, int]]) -> None:
    needed = max(since for _, since in missing)
    if abi == 0:
        cause = _why_none()
        raise UnsupportedError(
            "Landlock",
            needed="Linux 5.13 with landlock in its list of security modules",
            found=cause,
            fix=f"{cause.fix}, or ask for best_effort=True",
        )
    raise UnsupportedError(
        "Landlock: " + ", ".join(text for text, _ in missing),
        needed=f"Landlock ABI {needed}, Linux {_KERNEL[needed]}",
        found=f"Landlock ABI {abi}",
        fix="leave it out, or ask for best_effort=True and read `missing`",
    )


def _several(value: Iterable[object], name: str, what: str) -> Iterable[object]:
    if isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be a list of {what}, not one {type(value).__name__}")
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of {what}, not {type(value).__name__}")
    return value


def _path(path: object, name: str) -> str:
    raw = path_bytes(path, name)  # type: ignore[arg-type]  # it is what checks the type
    if not raw.startswith(b"/"):
        # It would mean one place here and another one in a sandbox.
        raise ValueError(f"{name} must be absolute, got {path!r}")
    return os.fsdecode(os.path.normpath(raw)) if b".." not in raw else os.fsdecode(raw)


def _paths(value: Iterable[object] | None, name: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(dict.fromkeys(_path(one, name) for one in _several(value, name, "paths")))


def _ports(value: Iterable[object] | None, name: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    ports = _several(value, name, "ports")
    return tuple(dict.fromkeys(in_range(one, 0, 65535, name) for one in ports))  # type: ignore[arg-type]


def _scopes(value: Iterable[object] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(dict.fromkeys(_several(value, "scope", "scopes")))
    for name in names:
        if name not in _SCOPES:
            raise ValueError(f"scope must be made of {', '.join(map(repr, _SCOPES))}, got {name!r}")
    return tuple(str(name) for name in names)
