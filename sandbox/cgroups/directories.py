"""The directories of a group: made, locked, removed, swept.

A group is two directories in each hierarchy: the outer has the limits, the inner the processes. The root of the
sandbox's cgroup namespace is the inner one: who is allowed to mount inside meets nothing that holds a limit, also where
the payload has the caller's own uid.

Each group is locked (flock) by the process that made it for as long as that process lives. Whoever takes the lock of a
group knows that its owner is gone; what holds processes the kernel does not remove.
"""

import contextlib
import errno
import fcntl
import os
from typing import Final, NamedTuple

from sandbox.cgroups.hierarchy import LEAF, Place

PREFIX: Final = "sandbox-"
INNER: Final = "payload"
_BUSY: Final = {errno.EBUSY, errno.ENOTEMPTY}


class Part(NamedTuple):
    """A group in one hierarchy.

    Args:
        place: Where it was made.
        path: Directory of the outer group.
        fd: Descriptor of it, which holds the lock.
        inner: Descriptor of the inner one, O_PATH.
    """

    place: Place
    path: str
    fd: int
    inner: int


def make_part(place: Place, name: str) -> Part:
    """Make the two directories, and lock the outer one.

    Raises:
        FileExistsError: The name is taken.
        OSError: The kernel refuses; nothing is left.
    """
    path = os.path.join(place.path, name)
    os.mkdir(path, 0o755)
    fd = inner = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # A sweep that has the lock is about to remove the directory: the next call says so.
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.mkdir(INNER, 0o755, dir_fd=fd)
        inner = os.open(INNER, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except BaseException:
        remove_directories(path, fd)
        if fd >= 0:
            os.close(fd)
        raise
    return Part(place, path, fd, inner)


def remove_directories(path: str, fd: int = -1) -> bool:
    """Remove a group; False when something is in it still."""
    try:
        if fd >= 0:
            os.rmdir(INNER, dir_fd=fd)
        else:
            os.rmdir(os.path.join(path, INNER))
    except FileNotFoundError:
        pass  # never made, or removed by a sweep
    except OSError as error:
        if error.errno not in _BUSY:
            raise
        return False
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in _BUSY:
            raise
        return False
    return True


def clear(group: int) -> None:
    """Remove what is below a group, the innermost first, as far as nothing is inside.

    Whoever may mount in a sandbox may have made groups of its own, deeper than a path is long.
    """
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=group)
    depth, came_up = 0, False
    try:
        while True:
            with os.scandir(at) as entries:
                name = next((entry.name for entry in entries if entry.is_dir(follow_symlinks=False)), None)
            if name is not None:
                try:
                    os.rmdir(name, dir_fd=at)
                except OSError:
                    if came_up:
                        return
                else:
                    came_up = False
                    continue
            elif not depth:
                return
            # A group that is empty, and cannot be removed, comes up a second time.
            came_up, depth = name is None, depth + (1 if name is not None else -1)
            below = os.open(name or "..", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
    except FileNotFoundError:  # somebody else removes it
        return
    finally:
        os.close(at)


def drop_part(part: Part) -> None:
    """Remove a group that nothing has joined, and close its descriptors."""
    remove_directories(part.path, part.fd)
    os.close(part.fd)
    if part.inner >= 0:
        os.close(part.inner)
    drop_made(part.place)


def drop_made(place: Place) -> None:
    """Remove what was made beside the units of systemd, unless others use it."""
    if place.make:
        with contextlib.suppress(OSError):
            os.rmdir(place.path)


def sweep(place: Place) -> None:
    """Remove the groups at a place whose owner is gone, where nothing runs in them any more."""
    try:
        names = [name for name in os.listdir(place.path) if name.startswith(PREFIX) and name != LEAF]
    except FileNotFoundError:  # the place is yet to be made
        return
    for name in names:
        path = os.path.join(place.path, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, or somebody else's
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not remove_directories(path, fd):
                clear(fd)
                remove_directories(path, fd)
        except OSError:  # its owner lives, or it belongs to another user
            continue
        finally:
            os.close(fd)
