"""The types of arguments, and those of the builder: checked by the method that got them, they come out in one form."""

import math
import os
import posixpath
import re
from typing import Any, Final, Protocol, TypeAlias


class HasFileno(Protocol):
    """Anything that stands for a descriptor: files, sockets, event objects."""

    def fileno(self) -> int:
        """Return the file descriptor."""
        ...


StrOrBytesPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Size: TypeAlias = int | str
Fd: TypeAlias = int | HasFileno

MOST_CONTENT: Final = 16 << 20  # of one file: a plan has a size
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    return value


def integer(value: Any, name: str, least: int, most: int) -> int:
    """Return a whole number between two others.

    Raises:
        TypeError: Not an int.
        ValueError: Out of range.
    """
    value = _integer(value, name)
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    return int(value)


def seconds(value: Any, name: str, most: float = 1e9) -> float:
    """Return a time in seconds, more than 0.

    Raises:
        TypeError: Neither int nor float.
        ValueError: Not positive, too long, or not a number.
    """
    number = real(value, name)
    if not 0 < number <= most:
        raise ValueError(f"{name} must be more than 0 and at most {most:g} seconds, got {value!r}")
    return number


def real(value: Any, name: str) -> float:
    """Return a finite number.

    Raises:
        TypeError: Neither int nor float.
        ValueError: Infinite, or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def clock_offset(value: Any, name: str) -> int:
    """Return an offset of a clock in nanoseconds.

    Raises:
        TypeError: Neither int nor float.
        ValueError: More than the kernel's 146 years.
    """
    number = real(value, name)
    if abs(number) > 4.6e9:
        raise ValueError(f"{name} must be between -4.6e9 and 4.6e9 seconds, got {value!r}")
    return round(number * 1e9)


def parse_size(size: Size, name: str, least: int = 1) -> int:
    """Return a size in bytes; a string may end with K, M, G or T, powers of 1024.

    Raises:
        TypeError: Neither int nor str.
        ValueError: Not a size, or out of range.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", size.strip(), re.IGNORECASE | re.ASCII)
        if match is None:
            raise ValueError(f'{name} must be bytes or a string such as "64M", got {size!r}')
        size = int(match[1]) * _UNITS[match[2].upper()]
    elif isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be an int or a str, not {type(size).__name__}")
    if not least <= size < 1 << 63:
        raise ValueError(f"{name} must be between {least} and 2**63 - 1 bytes, got {size}")
    return size


def path_text(path: StrOrBytesPath, name: str) -> str:
    """Return a path as str.

    Raises:
        TypeError: No path.
    """
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{name} must be str, bytes or os.PathLike, not {type(path).__name__}") from None


def source_path(path: StrOrBytesPath, name: str = "source") -> str:
    """Return a path of the host, absolute from now on.

    Raises:
        TypeError: No path.
        ValueError: Empty, or with NUL.
    """
    text = path_text(path, name)
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path of the host without NUL, got {path!r}")
    if text == "~" or text.startswith("~/"):
        raise ValueError(f'{name} must be a path as it is, "~" is the shell\'s: os.path.expanduser({text!r}), or ./~')
    return os.path.abspath(text)


def target_path(path: StrOrBytesPath, name: str = "target", *, root: bool = False) -> str:
    """Return a path inside in one spelling: absolute, without doubled or trailing slashes.

    Raises:
        TypeError: No path.
        ValueError: Relative, with "..", too long, or the root itself.
    """
    text = path_text(path, name)
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{name} must be an absolute path inside, without NUL, got {path!r}")
    parts = text.split("/")
    if ".." in parts:
        raise ValueError(f'{name} must not hold "..", which depends on links, got {path!r}')
    if len(os.fsencode(text)) > 4095 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise ValueError(f"{name} must have at most 4095 bytes, and 255 a part, got {len(text)} characters")
    normal = posixpath.normpath("/" + text.lstrip("/"))
    if normal == "/" and not root:
        raise ValueError(f"{name} must be a path below the root; .rootfs() replaces the root itself")
    return normal


def file_mode(mode: int, name: str = "mode") -> int:
    """Return permissions without set-id bits.

    Raises:
        TypeError: Not an int.
        ValueError: Out of range.
    """
    if not 0 <= _integer(mode, name) <= 0o1777:
        raise ValueError(f"{name} must be between 0 and 0o1777 (no set-id bits), got {mode:#o}")
    return mode


def switch(value: Any, name: str) -> bool:
    """Return True or False: a word such as "no" would count as True.

    Raises:
        TypeError: Anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def id_number(value: int | None, name: str) -> int | None:
    """Return a user or group id, or None.

    Raises:
        TypeError: Not an int.
        ValueError: Out of range.
    """
    if value is None:
        return None
    if not 0 <= _integer(value, name) <= 2**32 - 2:
        raise ValueError(f"{name} must be between 0 and 2**32 - 2, got {value}")
    return value


def host_name(name: str, what: str) -> str:
    """Return a host name that the kernel takes.

    Raises:
        TypeError: Not a str.
        ValueError: Too long, empty, or with NUL or newline.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    size = len(name.encode())
    if not 0 < size <= 64 or "\0" in name or "\n" in name:
        raise ValueError(f"{what} must have 1 to 64 bytes, without NUL or newline, got {name!r}")
    return name


def quoted(text: str) -> str:
    """Show a text as a builder call would hold it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def process_name(name: Any) -> str:
    """Return the name of a process, which may become a file's.

    Raises:
        TypeError: Not a str.
        ValueError: Not 1 to 64 letters, digits, ".", "_" and "-", or beginning with "." or "-".
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError(
            f'name must have 1 to 64 letters, digits, ".", "_" and "-", and not begin with "." or "-", got {name!r}'
        )
    return name
