"""The records of the control channel, as csrc/init/plan.h defines them.

Nothing that comes out of a sandbox is trusted: records have a fixed size and are read field by field; init's own
word is believed because the payload cannot reach the channel, which closes when its program is executed.
"""

from collections.abc import Mapping, Sequence
from math import inf
from struct import Struct
from typing import Final, NamedTuple, Protocol

from sandbox.compiler import Layers
from sandbox.limits import RLIMITS
from sandbox.result import CapabilitySet, Enforced, Usage

RECORD_SIZE: Final = 1024
MAX_PAYLOADS: Final = 32
_RECORD = Struct("<2I2iq")
_IDENTITY = Struct("<8I5Q5Q")
_MAX_GROUPS, _NO_LIMIT = 176, 2**64 - 1
_USAGE = Struct("<10q")
UNSENT: Final = -2  # step of R_REFUSED: descriptors that the kernel did not take
R_INIT, R_FAILED, R_HELD, R_STARTED, R_ENDED, R_FD, R_REFUSED, R_MAP_IDS = range(1, 9)
Q_KILL, Q_RELEASE, Q_DETACH, Q_NAMESPACE, Q_SPAWN, Q_SIGNAL, Q_PIDFD, Q_JOINED, Q_MAPPED = range(64, 73)
Q_PLACE, Q_LET_GO = range(73, 75)  # of the janitor
_SETS: Final[tuple[CapabilitySet, ...]] = ("effective", "permitted", "inheritable", "bounding", "ambient")
_NO_CAPABILITIES: Final[Mapping[CapabilitySet, frozenset[str]]] = dict.fromkeys(_SETS, frozenset())


class Record(NamedTuple):
    """One message of init; `body` is what its type says, `fds` are ours to close."""

    type: int
    id: int
    step: int
    error: int
    value: int
    body: bytes
    fds: tuple[int, ...]


def parse_record(raw: bytes, fds: tuple[int, ...]) -> Record:
    """Split a record.

    Raises:
        ValueError: It has not the size of a record.
    """
    if len(raw) != RECORD_SIZE:
        raise ValueError(f"a record has {RECORD_SIZE} bytes, got {len(raw)}")
    type_, id_, step, error, value = _RECORD.unpack_from(raw)
    return Record(type_, id_, step, error, value, raw[_RECORD.size :], fds)


def request(type_: int, *, id_: int = 0, value: int = 0) -> bytes:
    """Make a record for init."""
    return _RECORD.pack(type_, id_, 0, 0, value) + bytes(RECORD_SIZE - _RECORD.size)


def _capabilities(mask: int) -> frozenset[str]:
    if not mask:
        return frozenset()
    # Most sandboxes have none, and the names are an enumeration, which costs at import.
    from sandbox.capabilities import capability_names

    return capability_names(mask)


def parse_identity(body: bytes, layers: Layers = Layers()) -> Enforced:  # noqa: B008  # a value
    """Read the self-check of the payload; after it come only the layers that the plan adds, and they did not fail."""
    uid, gid, securebits, no_new_privs, dumpable, seccomp, groups, _, *rest = _IDENTITY.unpack_from(body)
    sets, soft = rest[:5], rest[5:]
    shown = min(groups, _MAX_GROUPS)
    known = Struct(f"<{shown}I").unpack_from(body, _IDENTITY.size) if shown else ()
    return Enforced(
        uid=uid,
        gid=gid,
        groups=known,
        capabilities=(
            {name: _capabilities(mask) for name, mask in zip(_SETS, sets, strict=True)}
            if any(sets)
            else dict(_NO_CAPABILITIES)
        ),
        securebits=securebits,
        no_new_privs=bool(no_new_privs),
        dumpable=bool(dumpable),
        seccomp_filters=(1 if seccomp == 2 else 0) + layers.filters,
        limits={name: inf if one == _NO_LIMIT else one for name, one in zip(RLIMITS, soft, strict=True)},
        landlock_abi=layers.landlock_abi,
        landlock_layers=layers.landlock_layers,
        gaps=layers.gaps,
        missing=layers.missing,
    )


def parse_usage(body: bytes) -> Usage:
    """Read what the tree used; the kernel counts block I/O in units of 512 bytes."""
    user, system, rss, _, _, blocks_in, blocks_out, voluntary, forced, wall = _USAGE.unpack_from(body)
    return Usage(
        wall=wall / 1e9,
        user=user / 1e6,
        system=system / 1e6,
        cpu_time=(user + system) / 1e6,
        max_rss=rss * 1024,
        read_bytes=blocks_in * 512,
        written_bytes=blocks_out * 512,
        context_switches=voluntary + forced,
    )


class Control(Protocol):
    """The caller's end of the control channel."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...

    def receive(self, *, wait: bool) -> Record | None:
        """Return the next record; None at the end of file; BlockingIOError when there is none, with wait after 1 s."""
        ...

    def send(self, record: bytes, fds: Sequence[int] = ()) -> None:
        """Send a request; an end that is gone is not an error, the end of file tells."""
        ...

    def close(self) -> None:
        """Close it: init then ends the sandbox."""
        ...
