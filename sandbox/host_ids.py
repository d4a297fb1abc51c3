"""Whose id a sandbox has on the host: the caller's own, or one that nobody else has.

Root never gives away its own: it chooses an id that no other sandbox has, and holds it by an abstract socket.
"""

import errno
import os
from typing import Final

from sandbox import launch
from sandbox.compiler import Caller, Spec
from sandbox.errors import UnsupportedError

# Numbers that nobody hands out to people or containers: systemd's documentation lists them as unused.
_HOST_IDS: Final = range(1_879_048_192, 2_147_483_647)


def caller(spec: Spec) -> Caller:
    """Return who launches.

    Raises:
        UnsupportedError: Root without the capabilities of root, who would map host uid 0.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        kept = set(os.getgroups()) - {gid}
        if spec.strict_groups and kept:
            raise UnsupportedError(
                'user(groups="strict")',
                needed="CAP_SETGID in the caller's user namespace, to drop its supplementary groups",
                found=f"an unprivileged caller in the groups {', '.join(map(str, sorted(kept)))}",
                fix="launch as root, or from a process without supplementary groups",
                errno=errno.EPERM,
            )
        return Caller(uid, gid, privileged=False)
    from sandbox.primitives.capabilities import Capability, capget

    needed = Capability.SETUID.mask | Capability.SETGID.mask | Capability.SYS_ADMIN.mask
    if needed & ~capget().effective:
        if spec.host_root:
            return Caller(uid, gid, privileged=False)
        from sandbox.causes import cause

        raise UnsupportedError(
            "a sandbox launched by uid 0 without root's capabilities",
            needed="CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN, to give the sandbox another host uid than 0",
            found=cause("capabilities"),
            errno=errno.EPERM,
        )
    if spec.host_root and _setgroups_denied():
        return Caller(uid, gid, privileged=False)
    return Caller(uid, gid, privileged=True)


def _setgroups_denied() -> bool:
    """Say whether this user namespace was made by an unprivileged user, as that of a rootless container."""
    with open("/proc/self/setgroups") as stream:
        return stream.read() == "deny\n"


# Where to begin: not where another process of this host begins.
_next_id = int.from_bytes(os.urandom(4), "little") >> 5


def host_ids() -> range:
    """Return the ids to choose from: all of this user namespace's when it has fewer than the usual ones."""
    from sandbox.causes import cause
    from sandbox.facts import last_id

    last = last_id()
    if last is None:
        raise UnsupportedError(
            "a fresh host uid for the sandbox",
            needed="/proc/self/uid_map, to know which ids there are",
            found=cause("proc-missing"),
            errno=errno.ENOENT,
        )
    end = last + 1
    if end > _HOST_IDS.stop:
        return _HOST_IDS
    if end < 2000:
        raise UnsupportedError(
            "a fresh host uid for the sandbox",
            needed="a range of ids in /proc/self/uid_map and gid_map",
            found=cause("few-ids", last=end - 1),
            errno=errno.EPERM,
        )
    return range(end // 2, end - 1)


def claim_host_id() -> tuple[int, int]:
    """Choose an id that no other sandbox on this host has now; return it with the socket that holds it."""
    global _next_id
    ids = _host_ids_cached()
    for _ in range(1000):
        _next_id += 1
        number = ids[_next_id % len(ids)]
        fd = launch.claim(f"sandbox-uid-{number}")
        if fd is not None:
            return number, fd
    raise UnsupportedError("a fresh host uid", needed="a free one", found="a thousand in a row are taken")


_ids: tuple[int, range] | None = None


def _host_ids_cached() -> range:
    global _ids
    pid = os.getpid()
    if _ids is None or _ids[0] != pid:
        _ids = pid, host_ids()
    return _ids[1]
