"""What every primitive needs: the check of a result, and arguments made exact before the call."""

import os
from typing import NoReturn

from sandbox.arguments import Fd as Fd, HasFileno as HasFileno, StrOrBytesPath as StrOrBytesPath


class Held:
    """What the kernel knows by its address, or by a descriptor that it owns."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError(f"{type(self).__name__} cannot be pickled: its memory is this process's own; make one there")


def check(result: int, filename: StrOrBytesPath | None = None, filename2: StrOrBytesPath | None = None) -> int:
    """Return the result of a system call, or raise the OSError that its errno stands for.

    Args:
        result: What the call returned; -errno is a failure.
        filename: The path that the call was about, for the message.
        filename2: The second path, of calls that take two.

    Raises:
        OSError: The right subclass, with errno and the file names.
    """
    if result < 0:
        raise os_error(-result, filename, filename2)
    return result


def os_error(number: int, filename: StrOrBytesPath | None = None, filename2: StrOrBytesPath | None = None) -> OSError:
    """Make the OSError of an errno; the one place where it is made."""
    if filename2 is not None:
        return OSError(number, os.strerror(number), filename, None, filename2)
    if filename is not None:
        return OSError(number, os.strerror(number), filename)
    return OSError(number, os.strerror(number))


def fd_of(fd: Fd, name: str = "fd") -> int:
    """Return the number of a descriptor or of an object with `fileno()`.

    Raises:
        TypeError: Neither an int nor an object with fileno(); a bool is not a descriptor.
        ValueError: Out of the range of a C int.
    """
    if isinstance(fd, bool):
        raise TypeError(f"{name} must be a file descriptor or have fileno(), not bool")
    if not isinstance(fd, int):
        try:
            fileno = fd.fileno
        except AttributeError:
            raise TypeError(f"{name} must be a file descriptor or have fileno(), not {type(fd).__name__}") from None
        fd = fileno()
    if not -(2**31) <= fd < 2**31:
        raise ValueError(f"{name} must be a file descriptor, got {fd}")
    return fd


def path_bytes(path: StrOrBytesPath, name: str = "path") -> bytes:
    """Return the bytes of a path for the kernel.

    Raises:
        TypeError: Not a path.
        ValueError: It holds a NUL byte, where the kernel would cut it short.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"{name} must not hold a NUL byte, got {path!r}")
    return raw


def text_bytes(text: str | bytes, name: str) -> bytes:
    """Return the bytes of a string argument (a file-system type, a host name) for the kernel.

    Raises:
        TypeError: Neither str nor bytes.
        ValueError: It holds a NUL byte.
    """
    if not isinstance(text, str | bytes):
        raise TypeError(f"{name} must be str or bytes, not {type(text).__name__}")
    return path_bytes(text, name)


def in_range(value: int, low: int, high: int, name: str) -> int:
    """Return an integer argument, refused before the call when the kernel would truncate it.

    Raises:
        TypeError: Not an int.
        ValueError: Outside of low..high.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
    return value
