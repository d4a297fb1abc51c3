"""Files without a name, and seals on them: memfd_create(2) and F_ADD_SEALS of fcntl(2)."""

from enum import IntFlag

from sandbox._native import lib
from sandbox.primitives._call import Fd, check, fd_of, in_range, text_bytes

__all__ = ["MemfdFlags", "Seals", "memfd_create", "add_seals", "get_seals"]
__all__ += ["MFD_CLOEXEC", "MFD_ALLOW_SEALING", "MFD_HUGETLB", "MFD_NOEXEC_SEAL", "MFD_EXEC"]
__all__ += ["MFD_HUGE_SHIFT", "MFD_HUGE_MASK", "MFD_HUGE_64KB", "MFD_HUGE_512KB", "MFD_HUGE_1MB"]
__all__ += ["MFD_HUGE_2MB", "MFD_HUGE_8MB", "MFD_HUGE_16MB", "MFD_HUGE_32MB", "MFD_HUGE_256MB"]
__all__ += ["MFD_HUGE_512MB", "MFD_HUGE_1GB", "MFD_HUGE_2GB", "MFD_HUGE_16GB"]
__all__ += [
    "F_SEAL_SEAL",
    "F_SEAL_SHRINK",
    "F_SEAL_GROW",
    "F_SEAL_WRITE",
    "F_SEAL_FUTURE_WRITE",
    "F_SEAL_EXEC",
]


class MemfdFlags(IntFlag):
    """Flags of memfd_create(2); MFD_HUGE_* beside HUGETLB choose the size of a page."""

    CLOEXEC = 0x01
    ALLOW_SEALING = 0x02
    HUGETLB = 0x04  # 4.14
    NOEXEC_SEAL = 0x08  # 6.3
    EXEC = 0x10  # 6.3


MFD_CLOEXEC = MemfdFlags.CLOEXEC
MFD_ALLOW_SEALING = MemfdFlags.ALLOW_SEALING
MFD_HUGETLB = MemfdFlags.HUGETLB
MFD_NOEXEC_SEAL = MemfdFlags.NOEXEC_SEAL
MFD_EXEC = MemfdFlags.EXEC

# The size of a page as its logarithm, in a field of six bits.
MFD_HUGE_SHIFT = 26
MFD_HUGE_MASK = 0x3F
MFD_HUGE_64KB = 16 << MFD_HUGE_SHIFT
MFD_HUGE_512KB = 19 << MFD_HUGE_SHIFT
MFD_HUGE_1MB = 20 << MFD_HUGE_SHIFT
MFD_HUGE_2MB = 21 << MFD_HUGE_SHIFT
MFD_HUGE_8MB = 23 << MFD_HUGE_SHIFT
MFD_HUGE_16MB = 24 << MFD_HUGE_SHIFT
MFD_HUGE_32MB = 25 << MFD_HUGE_SHIFT
MFD_HUGE_256MB = 28 << MFD_HUGE_SHIFT
MFD_HUGE_512MB = 29 << MFD_HUGE_SHIFT
MFD_HUGE_1GB = 30 << MFD_HUGE_SHIFT
MFD_HUGE_2GB = 31 << MFD_HUGE_SHIFT
MFD_HUGE_16GB = 34 << MFD_HUGE_SHIFT


class Seals(IntFlag):
    """What can no longer be done to a file."""

    SEAL = 0x01
    SHRINK = 0x02
    GROW = 0x04
    WRITE = 0x08
    FUTURE_WRITE = 0x10  # 5.1
    EXEC = 0x20  # 6.3


F_SEAL_SEAL = Seals.SEAL
F_SEAL_SHRINK = Seals.SHRINK
F_SEAL_GROW = Seals.GROW
F_SEAL_WRITE = Seals.WRITE
F_SEAL_FUTURE_WRITE = Seals.FUTURE_WRITE
F_SEAL_EXEC = Seals.EXEC


def memfd_create(name: str | bytes, flags: int = MemfdFlags.CLOEXEC) -> int:
    """Create a file that lives in memory and return its descriptor, which the caller closes.

    Args:
        name: What /proc/PID/fd shows after "memfd:", at most 249 bytes; it names nothing.
        flags: MemfdFlags; close-on-exec by default, and only as given otherwise. MFD_EXEC says that the file
            will be executed; where the sysctl vm.memfd_noexec is 2 it is refused.

    Raises:
        OSError: EINVAL (unknown flag, name too long, MFD_EXEC or MFD_NOEXEC_SEAL before Linux 6.3), EACCES
            (vm.memfd_noexec), EPERM (MFD_HUGETLB without the privilege), ENOMEM, EMFILE, ENFILE.

    See memfd_create(2). Since Linux 3.17.
    """
    raw = text_bytes(name, "name")
    in_range(flags, 0, 2**32 - 1, "flags")
    return check(lib.sandbox_memfd_create(raw, flags))


def add_seals(fd: Fd, seals: int) -> None:
    """Forbid operations on a file, for everyone and for ever: F_ADD_SEALS.

    Args:
        fd: From memfd_create with MFD_ALLOW_SEALING or MFD_NOEXEC_SEAL, open for writing.
        seals: Seals.

    Raises:
        OSError: EPERM (F_SEAL_SEAL is set, or the file was made without MFD_ALLOW_SEALING, or it is not open
            for writing), EBUSY (F_SEAL_WRITE while it is mapped writable), EINVAL (unknown seal, or not such
            a file).

    See fcntl(2). Since Linux 3.17.
    """
    number = fd_of(fd)
    in_range(seals, 0, 2**32 - 1, "seals")
    check(lib.sandbox_add_seals(number, seals))


def get_seals(fd: Fd) -> Seals:
    """Return what is forbidden on a file: F_GET_SEALS.

    Args:
        fd: From memfd_create.

    Raises:
        OSError: EINVAL (a file that cannot have seals).

    See fcntl(2). Since Linux 3.17.
    """
    return Seals(check(lib.sandbox_get_seals(fd_of(fd))))
