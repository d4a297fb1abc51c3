"""A filter by a word of the command line: a preset's name, a profile in JSON, or a raw program."""

import json
from collections.abc import Iterable

from sandbox.errors import FilterError
from sandbox.filters.filter import Filter

PRESETS = ("default", "default-nesting", "strict", "docker")
_MOST = 4 << 20  # bytes; /dev/zero has no end


def read_filter(source: str, *, capabilities: Iterable[str] = ()) -> Filter:
    """Return a preset, or what a file holds.

    Args:
        source: A preset's name, or a path; "./default" is a path.
        capabilities: What the container keeps, for "docker" and for profiles.

    Raises:
        FilterError: The file holds neither a profile nor a program that the kernel would take.
        OSError: It cannot be read.
    """
    if source in PRESETS:
        if source == "docker":
            return Filter.docker(capabilities=capabilities)
        return Filter.strict() if source == "strict" else Filter.default(nesting=source == "default-nesting")
    with open(source, "rb") as stream:
        data = stream.read(_MOST + 1)
    if len(data) > _MOST:
        raise FilterError(f"{source} has more than {_MOST >> 20} MiB: it is neither a profile nor a program")
    if data.lstrip()[:1] != b"{":
        return Filter.from_bytes(data)
    try:
        profile = json.loads(data)
    except ValueError as error:
        raise FilterError(f"{source} is no JSON: {error}") from error
    return Filter.from_oci(profile, capabilities=capabilities)
