"""The names of the system in its UTS namespace: sethostname(2), gethostname(2), and the NIS domain's."""

import os
from collections.abc import Callable

from sandbox._native import ffi, lib
from sandbox.primitives._call import check, text_bytes

__all__ = ["sethostname", "setdomainname", "gethostname", "getdomainname"]


def sethostname(name: str | bytes) -> None:
    """Set the host name of the caller's UTS namespace.

    Args:
        name: At most 64 bytes.

    Raises:
        OSError: EPERM (CAP_SYS_ADMIN is missing in the UTS namespace's user namespace), EINVAL (longer than
            64 bytes).

    See sethostname(2). Since Linux 1.0.
    """
    raw = text_bytes(name, "name")
    check(lib.sethostname(raw, len(raw)))


def setdomainname(name: str | bytes) -> None:
    """Set the NIS domain name of the caller's UTS namespace.

    Args:
        name: At most 64 bytes.

    Raises:
        OSError: EPERM (CAP_SYS_ADMIN is missing in the UTS namespace's user namespace), EINVAL (longer than
            64 bytes).

    See setdomainname(2). Since Linux 1.0.
    """
    raw = text_bytes(name, "name")
    check(lib.setdomainname(raw, len(raw)))


def gethostname() -> str:
    """Return the host name of the caller's UTS namespace.

    Raises:
        OSError: None that is known.

    See gethostname(2). Since Linux 1.0.
    """
    return _read(lib.gethostname)


def getdomainname() -> str:
    """Return the NIS domain name of the caller's UTS namespace, "(none)" when it was never set.

    Raises:
        OSError: None that is known.

    See getdomainname(2). Since Linux 1.0.
    """
    return _read(lib.getdomainname)


def _read(call: Callable[[object, int], int]) -> str:
    # A name has up to 64 bytes and a NUL: with a smaller buffer libc fails or cuts.
    buffer = ffi.new("char[65]")
    check(call(buffer, 65))
    return os.fsdecode(ffi.string(buffer))
