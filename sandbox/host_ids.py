"""Ids of the host for one sandbox alone, each held by a socket that PID 1 keeps: gone with the last process."""

import errno
import os
from typing import Final, NamedTuple

from sandbox.errors import UnsupportedError
from sandbox.identity import MAX_COUNT, mapped_ids
from sandbox.launch import native

# Numbers that nobody hands out to people or containers: systemd's documentation lists them as unused.
_UNUSED: Final = range(0x70000000, 0x7FFFFFFF)
# So many ids of a user namespace are left to its own users at least.
_LEAST: Final = 2000
_TRIES: Final = 1000


class Space(NamedTuple):
    """Which ids are given away.

    Args:
        single: One at a time.
        blocks: The first of each range; ranges are as long as the step.
        scope: Whose numbers they are: "" for those of the host.
    """

    single: range
    blocks: range
    scope: str = ""


def space_of(uids: list[tuple[int, int]], gids: list[tuple[int, int]]) -> Space:
    """Choose the ids to give away from those that a user namespace has.

    Where it has the numbers that nobody uses, those; otherwise the upper half of what it has, a quarter of that for
    sandboxes with one id. All who share the namespace must come to the same result.

    Raises:
        UnsupportedError: It has too few.
    """
    both = [
        range(max(a, b), min(a + m, b + n)) for a, m in uids for b, n in gids if max(a, b) < min(a + m, b + n)
    ]  # fmt: skip
    widest = max(both, key=len, default=range(0))
    if widest.start <= _UNUSED.start and _UNUSED.stop <= widest.stop:
        middle = (_UNUSED.start + _UNUSED.stop + 1) // 2
        return Space(range(_UNUSED.start, middle), range(middle, _UNUSED.stop - MAX_COUNT + 1, MAX_COUNT))
    if len(widest) < _LEAST:
        from sandbox.causes import cause

        raise UnsupportedError(
            "a fresh host uid for the sandbox",
            needed=f"at least {_LEAST} ids that both /proc/self/uid_map and gid_map have",
            found=cause("few-ids", last=widest.stop - 1),
            errno=errno.EPERM,
        )
    # The last two: of 65536 ids the second to last is nobody.
    start, end = widest.start + len(widest) // 2, widest.stop - 2
    quarter = (end - start) // 4
    size = min(quarter, MAX_COUNT)
    return Space(range(start, start + quarter), range(start + quarter, end - size + 1, size))


_space: tuple[int, Space] | None = None
# Where to begin: not where another process of this host begins.
_next = int.from_bytes(os.urandom(4), "little") >> 5


def own_space() -> Space:
    """Return the ids that this process gives away."""
    global _space
    pid = os.getpid()
    if _space is None or _space[0] != pid:
        try:
            maps = mapped_ids("uid_map"), mapped_ids("gid_map")
        except FileNotFoundError:
            from sandbox.causes import cause

            raise UnsupportedError(
                "a fresh host uid for the sandbox",
                needed="/proc/self/uid_map, to know which ids there are",
                found=cause("proc-missing"),
                errno=errno.ENOENT,
            ) from None
        space = space_of(*maps)
        if space.single.start != _UNUSED.start:
            # The same numbers mean other ids elsewhere, and may be claimed in the same network namespace.
            space = space._replace(scope=f"{os.stat('/proc/self/ns/user').st_ino}-")
        _space = pid, space
    return _space[1]


def claim(count: int | None) -> tuple[int, int]:
    """Choose ids that no other sandbox on this host has now; return the first with the socket that holds them.

    Args:
        count: Of a range; None: one id.

    Raises:
        UnsupportedError: There are not so many, or none is free.
    """
    global _next
    space = own_space()
    ids, name = (space.single, "uid") if count is None else (space.blocks, "ids")
    if count is not None and count > ids.step:
        raise UnsupportedError(
            f"id_ranges({count})",
            needed=f"{count} ids of this user namespace for the sandbox alone",
            found=f"ranges of {ids.step}: the namespace is small, see /proc/self/uid_map",
            fix=f"say id_ranges({ids.step}), or give the outer container more ids",
            errno=errno.EPERM,
        )
    for _ in range(min(_TRIES, len(ids))):
        _next += 1
        number = ids[_next % len(ids)]
        fd = native.claim(f"sandbox-{name}-{space.scope}{number}")
        if fd is not None:
            return number, fd
    raise UnsupportedError(
        "a fresh host uid" if count is None else f"id_ranges({count})",
        needed="ids that no other sandbox has",
        found=f"all of {min(_TRIES, len(ids))} that were tried are taken",
        fix="wait until another sandbox has ended",
        errno=errno.EAGAIN,
    )
