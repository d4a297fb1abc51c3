"""Capabilities by name, as the builder takes them, and as `Enforced` shows them."""

import difflib
import os
from collections.abc import Iterable

from sandbox.primitives.capabilities import Capability

__all__ = ["capability_mask", "capability_names"]

_PREFIX = "CAP_"


def capability_mask(names: Iterable[str], argument: str = "keep") -> int:
    """Return the mask of capabilities given by name, with or without CAP_, in any case.

    Args:
        names: "CAP_NET_ADMIN", "net_admin" ...
        argument: What the caller calls them, for the message.

    Raises:
        TypeError: One string where several are meant, or something that is no string.
        ValueError: No such capability; the message lists near ones.
    """
    if isinstance(names, str | bytes | os.PathLike):
        raise TypeError(f"{argument} must be a list of capabilities, not one {type(names).__name__}")
    mask = 0
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be made of names, not {type(name).__name__}")
        word = name.upper().removeprefix(_PREFIX)
        if word not in Capability.__members__:
            near = difflib.get_close_matches(word, Capability.__members__)
            hint = f": did you mean {' or '.join(_PREFIX + one for one in near)}?" if near else ""
            raise ValueError(f"{argument} must be made of capabilities, got {name!r}{hint}")
        mask |= Capability[word].mask
    return mask


def capability_names(mask: int) -> frozenset[str]:
    """Return the names of a mask, without CAP_; one that is newer than the table is its number."""
    known = {one.mask: one.name for one in Capability}
    return frozenset(str(known.get(1 << number, number)) for number in range(64) if mask >> number & 1)
