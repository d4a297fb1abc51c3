"""A counter in the kernel that wakes who waits for it: eventfd(2).

The calls go through the standard library, whose own wrappers are the fastest there are; here the ranges are
exact, where `os.eventfd_write` takes a value modulo 2**64.
"""

import enum
import os
from typing import Final

from sandbox.primitives._call import Fd, fd_of, in_range

__all__ = [
    "EventfdFlags",
    "EFD_CLOEXEC",
    "EFD_NONBLOCK",
    "EFD_SEMAPHORE",
    "EVENTFD_MAX",
    "eventfd",
    "eventfd_read",
    "eventfd_write",
]

# 2**64 - 1 does not fit: the kernel refuses it with EINVAL and keeps it as the mark of an overflow.
EVENTFD_MAX: Final = 2**64 - 2


class EventfdFlags(enum.IntFlag):
    """Flags of eventfd(2)."""

    SEMAPHORE = os.EFD_SEMAPHORE
    NONBLOCK = os.EFD_NONBLOCK
    CLOEXEC = os.EFD_CLOEXEC


EFD_SEMAPHORE: Final = EventfdFlags.SEMAPHORE
EFD_NONBLOCK: Final = EventfdFlags.NONBLOCK
EFD_CLOEXEC: Final = EventfdFlags.CLOEXEC


def eventfd(initval: int = 0, flags: int = EFD_CLOEXEC) -> int:
    """Create an eventfd and return its file descriptor, which the caller closes.

    Args:
        initval: First value of the counter, 0 to 2**32 - 1.
        flags: EventfdFlags; close-on-exec unless the caller says otherwise.

    Raises:
        ValueError: A value out of its range.
        OSError: EINVAL (unknown flag), EMFILE or ENFILE (no descriptor left).

    See eventfd(2). Since Linux 2.6.27.
    """
    return os.eventfd(in_range(initval, 0, 2**32 - 1, "initval"), in_range(flags, 0, 2**31 - 1, "flags"))


def eventfd_read(fd: Fd) -> int:
    """Return the counter and set it to 0 or, of a semaphore, return 1 and subtract 1.

    Args:
        fd: An eventfd.

    Raises:
        OSError: EAGAIN (the counter is 0 and the descriptor is non-blocking).

    See eventfd(2). Since Linux 2.6.22.
    """
    return os.eventfd_read(fd_of(fd))


def eventfd_write(fd: Fd, value: int = 1) -> None:
    """Add to the counter; waits while the sum would be over 2**64 - 2.

    Args:
        fd: The eventfd.
        value: What to add, 0 to 2**64 - 2.

    Raises:
        ValueError: A value out of its range.
        OSError: EAGAIN (the sum is too large and the descriptor is non-blocking).

    See eventfd(2). Since Linux 2.6.22.
    """
    os.eventfd_write(fd_of(fd), in_range(value, 0, EVENTFD_MAX, "value"))
