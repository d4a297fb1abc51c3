"""Who the payload is: inside, on the host, and on what is bound.

Inside it has a user and a group id. On the host these are ids of the caller's, or ids that nobody else has. On a
directory of the host that is bound writable they are its owner's: a mount with an id map of its own translates.

Facts, and what follows:

- An id map is one to one. So each owner is a map of its own, in which it and the payload change places; every other
  id stays itself, for a file whose owner has no place in the map cannot be written by anybody.
- Whatever the payload writes on such a mount is the owner's on the host. Were that root, and the file had a set-id
  bit, anybody on the host could become root by it: so root is an owner only when it is named, and then a filter
  refuses what makes such files.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from sandbox import kernel as k
from sandbox.arguments import quoted
from sandbox.errors import SetupError, UnsupportedError
from sandbox.rootfs import Bind, Owner, Root

if TYPE_CHECKING:
    from sandbox.spec import Spec
    from sandbox.subids import Extent

Value: TypeAlias = tuple[str, int | bytes]

MAX_COUNT: Final = 65536
# Below are the accounts of the host: people, daemons, nobody.
_ACCOUNTS: Final = 65536
_LAST: Final = 2**32 - 2


class Caller(NamedTuple):
    """Who launches.

    Args:
        uid: Effective user id.
        gid: Effective group id.
        privileged: Real root of its user namespace: it may map ids that are not its own.
        groups: Supplementary groups that the kernel does not let it drop.
    """

    uid: int
    gid: int
    privileged: bool
    groups: tuple[int, ...] = ()


def caller(spec: "Spec") -> Caller:
    """Return who launches.

    Raises:
        UnsupportedError: It cannot have what the sandbox says about ids; or it is root without the capabilities of
            root, who would map host uid 0.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _privileged(spec):
        return Caller(uid, gid, privileged=True)
    for entry in spec.entries:
        if isinstance(entry, Bind) and entry.owner not in {None, uid}:
            raise UnsupportedError(
                entry.origin.lstrip("."),
                needed="a caller that is root, to give files another owner than itself",
                found=f"a caller with uid {uid}",
                fix="leave out owner=: what the payload writes is the caller's",
                errno=errno.EPERM,
            )
    if spec.id_ranges is not None:
        from sandbox.subids import check

        check(uid, spec.id_ranges)
        return Caller(uid, gid, privileged=False)
    kept = tuple(sorted(set(os.getgroups()) - {gid}))
    if spec.strict_groups and kept:
        raise UnsupportedError(
            'user(groups="strict")',
            needed="CAP_SETGID in the caller's user namespace, to drop its supplementary groups",
            found=f"an unprivileged caller in the groups {', '.join(map(str, kept))}",
            fix="say id_ranges(), launch as root, or from a process without supplementary groups",
            errno=errno.EPERM,
        )
    return Caller(uid, gid, privileged=False, groups=kept)


def _privileged(spec: "Spec") -> bool:
    """Say whether uid 0 can give the sandbox other ids than its own."""
    from sandbox.primitives.capabilities import Capability, capget

    needed = Capability.SETUID.mask | Capability.SETGID.mask | Capability.SYS_ADMIN.mask
    if needed & ~capget().effective:
        if spec.host_root:
            return False
        from sandbox.causes import cause

        raise UnsupportedError(
            "a sandbox launched by uid 0 without root's capabilities",
            needed="CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN, to give the sandbox another host uid than 0",
            found=cause("capabilities"),
            errno=errno.EPERM,
        )
    return not (spec.host_root and _setgroups_denied())


def _setgroups_denied() -> bool:
    """Say whether this user namespace was made by an unprivileged user, as that of a rootless container."""
    with open("/proc/self/setgroups") as stream:
        return stream.read() == "deny\n"


def inside_ids(spec: "Spec", caller: Caller) -> tuple[int, int]:
    """Return the payload's user and group id, as it sees them."""
    uid = spec.uid if spec.uid is not None else 1000 if caller.privileged else caller.uid
    gid = spec.gid if spec.gid is not None else 1000 if caller.privileged else caller.gid
    return uid, gid


def fresh(spec: "Spec", caller: Caller) -> bool:
    """Say whether the payload has ids of the host that nobody else has."""
    return caller.privileged and not spec.host_root


def drops_groups(spec: "Spec", caller: Caller) -> bool:
    """Say whether the set-up may change groups, and does."""
    return caller.privileged or spec.id_ranges is not None


def mapped_by_program(spec: "Spec", caller: Caller) -> bool:
    """Say whether newuidmap and newgidmap write PID 1's id maps."""
    return spec.id_ranges is not None and not caller.privileged


def lands_as_root(spec: "Spec", caller: Caller) -> bool:
    """Say whether something that the payload writes is root's on the host because `owner` says so."""
    return caller.privileged and any(
        isinstance(entry, Bind) and entry.owner == 0 and not entry.attributes & k.MOUNT_ATTR_RDONLY
        for entry in spec.entries
    )


def gaps(spec: "Spec", caller: Caller) -> Iterator[str]:
    """Yield what is not separated, in words."""
    if caller.groups:
        kept = ", ".join(map(str, caller.groups))
        yield f"supplementary groups of the caller are kept ({kept}): an unprivileged caller cannot drop them"
    if spec.host_root and caller.uid == 0:
        yield "root's own id is mapped: what root may do with the files that are visible, the payload may"
    if "net" not in spec.new_namespaces:
        yield "the network is the caller's: what listens on its loopback and on abstract sockets can be reached"
    if "pid" not in spec.new_namespaces and not fresh(spec, caller):
        yield 'share("pid"): the payload has the caller\'s user, and may send signals to what that runs'
    if "pid" not in spec.new_namespaces:
        yield 'share("pid"): a payload that kills the process above it outlives the sandbox, unless a group is limited'
    if mapped_by_program(spec, caller):
        yield "the ids of id_ranges() are the caller's: every sandbox that it launches has the same"


# ── owners ──


def _has_owner(entry: Bind | Root, spec: "Spec") -> bool:
    """Say whether it matters who owns what is bound: something can be written there, or somebody is named."""
    if isinstance(entry, Root):
        return not entry.readonly and not spec.host_root
    if entry.owner is not None:
        return True
    return not entry.attributes & k.MOUNT_ATTR_RDONLY and not spec.host_root


def owned(entry: Bind | Root, spec: "Spec", caller: Caller) -> Bind | Root:
    """Return an entry with the owner that the payload is on it; what is gone is left to the launch to report.

    Raises:
        SetupError: It belongs to root, and nobody has said that what is written there shall, too.
    """
    if not caller.privileged or not _has_owner(entry, spec):
        return entry
    named = entry.owner if isinstance(entry, Bind) else None
    try:
        status = os.stat(entry.source)
    except OSError:
        # What appears between this look and the launch has no owner yet.
        if isinstance(entry, Root):
            return entry._replace(readonly=True)
        return entry._replace(attributes=entry.attributes | k.MOUNT_ATTR_RDONLY)
    if named is None and status.st_uid == 0 and stat.S_ISDIR(status.st_mode):
        raise SetupError(
            errno.EPERM,
            call=f"stat({quoted(entry.source)})",
            origin=entry.origin,
            hint="it belongs to root, and what the payload writes there would be root's on the host: "
            + (
                "say owner=0 if that is meant, owner=UID for somebody else, or bind_readonly()"
                if isinstance(entry, Bind)
                else "give the tree to another owner, or say user(host_root=True)"
            ),
            filename=entry.source,
        )
    if named is None and (status.st_uid == 0 or stat.S_IFMT(status.st_mode) not in {stat.S_IFDIR, stat.S_IFREG}):
        return entry  # nothing can be made below it, and its mode says who may write to it
    uid = status.st_uid if named is None else named
    gid = status.st_gid if status.st_uid == uid and (status.st_gid or uid == 0) else _login_group(uid)
    if spec.host_root and (uid, gid) == (caller.uid, caller.gid):
        return entry
    return entry._replace(idmap=Owner(uid, gid))


def owners(spec: "Spec", caller: Caller) -> tuple[Owner | None, ...]:
    """Return the owners of what is bound as they are now, to tell a plan that is out of date."""
    if not caller.privileged:
        return ()
    return tuple(
        owned(entry, spec, caller).idmap
        for entry in spec.entries
        if isinstance(entry, Bind | Root) and _has_owner(entry, spec)
    )


def _login_group(uid: int) -> int:
    """Return the group that a user's files have; root's for root alone."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_gid or uid
    except KeyError:
        return uid


# ── id maps ──


def exchange(owner: int, inside: int, first: int, count: int, mapped: Sequence[tuple[int, int]]) -> "list[Extent]":
    """Return the id map of a mount on which the payload is an owner.

    Args:
        owner: Id on the file system.
        inside: The payload's id, counted from the first of the sandbox.
        first: The sandbox's first id on the host.
        count: How many it has.
        mapped: What the caller's own user namespace maps: first id and how many, ascending.
    """
    extents = [(owner, first + inside, 1)]
    if count > 1 and (owner == 0 == inside or _ACCOUNTS <= owner <= _LAST - count):
        # The ids around the payload's have places around the owner's: no account of the host is among them.
        extents = [(owner - inside, first, count)]
    inner = sorted([(extents[0][0], extents[0][2]), (first, count)])
    for start, size in mapped:
        end = start + size
        for hole, width in inner:
            if hole > start and min(hole, end) > start:
                extents.append((start, start, min(hole, end) - start))
            start = max(start, hole + width)
        if start < end:
            extents.append((start, start, end - start))
    return sorted(extents)


def encode(extents: "Iterable[Extent]") -> bytes:
    """Return a map as the kernel reads it."""
    return b"".join(b"%d %d %d\n" % extent for extent in extents)


def mapped_ids(name: str) -> list[tuple[int, int]]:
    """Return which ids this user namespace has, from /proc/self/uid_map or gid_map; neighbours are joined."""
    with open(f"/proc/self/{name}") as stream:
        extents = sorted((int(line.split()[0]), int(line.split()[2])) for line in stream)
    joined: list[tuple[int, int]] = []
    for start, count in extents:
        count = min(count, _LAST + 1 - start)
        if joined and sum(joined[-1]) == start:
            joined[-1] = joined[-1][0], joined[-1][1] + count
        else:
            joined.append((start, count))
    return joined


def values(
    spec: "Spec", caller: Caller, inside: tuple[int, int], idmaps: Sequence[Owner], claimed: int
) -> tuple[tuple[int, int], tuple[Value, ...]]:
    """Return the payload's ids on the host, and what a launch fills into its plan.

    Args:
        spec: The sandbox.
        caller: Who launches.
        inside: The payload's ids, as it sees them.
        idmaps: The owners that the plan has maps for, in its order.
        claimed: First id of the host that was claimed for this launch, where it has fresh ones.
    """
    count = spec.id_ranges
    if not fresh(spec, caller):
        uid, gid = caller.uid, caller.gid
    elif count is None:
        uid = gid = claimed
    else:
        uid, gid = claimed + inside[0], claimed + inside[1]
    if count is None or not caller.privileged:  # what newuidmap will write is not in the plan
        maps = b"%d %d 1\n" % (inside[0], uid), b"%d %d 1\n" % (inside[1], gid)
    else:
        maps = (b"0 %d %d\n" % (claimed, count),) * 2
    known: tuple[Value, ...] = (("uid_map", maps[0]), ("gid_map", maps[1]), ("host_uid", uid), ("host_gid", gid))
    found: list[Value] = []
    if idmaps:
        for which, (name, host) in enumerate((("uid_map", uid), ("gid_map", gid))):
            mapped = mapped_ids(name)
            block = (0, host, 1) if count is None else (inside[which], claimed, count)
            for number, owner in enumerate(idmaps):
                found.append((f"{name}_{number}", encode(exchange(owner[which], *block, mapped))))
    return (uid, gid), (*known, *found)


def id_mapper(spec: "Spec", caller: Caller) -> Callable[[int], None] | None:
    """Return what writes the id maps of a process, where the caller has to have that done."""
    if not mapped_by_program(spec, caller) or spec.id_ranges is None:
        return None
    from sandbox.subids import map_ids

    uid, gid = inside_ids(spec, caller)
    ids = (uid, caller.uid), (gid, caller.gid)
    return partial(map_ids, ids=ids, uid=caller.uid, count=spec.id_ranges, origin=spec.id_ranges_origin)
