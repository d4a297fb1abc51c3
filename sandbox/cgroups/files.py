"""The files of a group: one place for how a limit is written and a count is read, in both versions."""

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sandbox.limits import Limits

PERIOD: Final = 100_000  # microseconds, the kernel's own default
_IO_KEYS: Final = {
    "read": ("rbps", "read_bps"),
    "write": ("wbps", "write_bps"),
    "read_ops": ("riops", "read_iops"),
    "write_ops": ("wiops", "write_iops"),
}


def read(directory: int, name: str) -> str | None:
    """Return the content of a group's file; None where this kernel does not have it or the group is gone."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, 1 << 16).decode()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    finally:
        os.close(fd)


_GONE: Final = {19, 95}  # ENODEV: the group was removed; EOPNOTSUPP: pressure is not counted


def write(directory: int, name: str, text: str) -> None:
    """Write a group's file, in one call: the kernel takes each as a whole.

    Raises:
        OSError: With the file's name.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = name
        raise
    finally:
        os.close(fd)


def read_at(path: str, name: str) -> str:
    """Return the content of a group's file, by the path of the group."""
    with open(os.path.join(path, name)) as stream:
        return stream.read()


def write_at(path: str, name: str, text: str) -> None:
    """Write a group's file, in one call, by the path of the group."""
    fd = os.open(os.path.join(path, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def number(directory: int, name: str) -> int | None:
    """Return the number in a file; None when there is none, or it is "max"."""
    text = read(directory, name)
    return int(text) if text is not None and text.strip().isdigit() else None


def flat(directory: int, name: str) -> dict[str, int]:
    """Return a file of names and numbers; empty where it does not exist."""
    found = {}
    for line in (read(directory, name) or "").splitlines():
        key, _, value = line.rpartition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def cpu_list(text: str) -> frozenset[int]:
    """Return the numbers of a list such as 0-3,7."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def disk_of(path: str) -> str:
    """Return MAJOR:MINOR of the whole disk that a device node is, or that a file lies on.

    Raises:
        OSError: The path does not exist, or no disk is behind it.
    """
    status = os.stat(path)
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    found = f"{os.major(device)}:{os.minor(device)}"
    place = os.path.realpath(f"/sys/dev/block/{found}")
    if not os.path.exists(place):
        raise OSError(15, f"no disk is behind {path}: {os.strerror(15)}", path)  # ENOTBLK
    if os.path.exists(f"{place}/partition"):
        # Limits are of whole disks.
        with open(os.path.join(os.path.dirname(place), "dev")) as stream:
            found = stream.read().strip()
    return found


def _disks() -> Iterator[str]:
    """Go through the disks of this machine that hold something."""
    for name in sorted(os.listdir("/sys/block")):
        try:
            with open(f"/sys/block/{name}/size") as stream:
                size = int(stream.read())
            with open(f"/sys/block/{name}/dev") as stream:
                device = stream.read().strip()
        except FileNotFoundError:  # unplugged meanwhile
            continue
        if size and not name.startswith("ram"):
            yield device


def io_rates(io: tuple[tuple[str, int], ...]) -> dict[tuple[str, str], int]:
    """Return the rates by disk and word of the limit; a word without a disk is for all of them.

    Raises:
        OSError: There is no such disk.
    """
    found: dict[tuple[str, str], int] = {}
    for key, rate in sorted(io, key=lambda pair: ":" in pair[0]):  # what names a disk comes last, and wins
        word, _, path = key.partition(":")
        for disk in [disk_of(path)] if path else _disks():
            found[disk, word] = rate
    return found


def writes(limits: "Limits", name: str, version: int) -> Iterator[tuple[str, str]]:
    """Yield what one limit is in the files of a group: their names and texts.

    Args:
        limits: All of them.
        name: Which one.
        version: Of the hierarchy that has the controller.
    """
    value = getattr(limits, name)
    if name == "io":
        for (disk, word), rate in io_rates(value).items():
            if version == 2:
                yield "io.max", f"{disk} {_IO_KEYS[word][0]}={rate}"
            else:
                yield f"blkio.throttle.{_IO_KEYS[word][1]}_device", f"{disk} {rate}"
    elif name == "pids":
        yield "pids.max", str(value + 1)  # PID 1
    elif name == "cpuset":
        yield "cpuset.cpus", ",".join(map(str, value))
    elif name == "cpus":
        quota = max(1000, round(value * PERIOD))
        if version == 2:
            yield "cpu.max", f"{quota} {PERIOD}"
        else:
            yield "cpu.cfs_period_us", str(PERIOD)
            yield "cpu.cfs_quota_us", str(quota)
    elif name == "memory":
        yield ("memory.max" if version == 2 else "memory.limit_in_bytes"), str(value)
        if version == 2:
            # All of it or nothing: half a tree without its other half helps nobody, and the reason is sure.
            yield "memory.oom.group", "1"
    elif version == 2:
        yield "memory.swap.max", str(value)
    else:
        yield "memory.memsw.limit_in_bytes", str(limits.memory + value)
