"""What a payload starts with for descriptors: standard streams in subprocess' words, and further numbers."""

import fcntl
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final, TypeAlias

from sandbox.arguments import Fd, HasFileno

PIPE: Final = subprocess.PIPE
STDOUT: Final = subprocess.STDOUT
DEVNULL: Final = subprocess.DEVNULL
_WORDS: Final = frozenset({PIPE, DEVNULL, STDOUT})


Stream: TypeAlias = int | HasFileno | IO[Any] | None


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors of ours."""
    for fd in fds:
        os.close(fd)


class Streams:
    """The payload's descriptors 0, 1 and 2, and the caller's ends of pipes.

    Attributes:
        child: What becomes 0, 1 and 2.
        parent: The caller's ends of pipes, by the name of the stream.
    """

    def __init__(self) -> None:
        self.ours: list[int] = []  # closed when the launch is over
        self.pipes: list[int] = []  # those of them that are pipes
        self.parent: dict[str, int] = {}
        self.child: list[int] = []

    def add(self, name: str, stream: Stream) -> None:
        """Add the next: stdin, stdout, stderr in this order."""
        if stream is None:
            number = {"stdin": 0, "stdout": 1, "stderr": 2}[name]
            # A caller who has closed its own has nothing to hand on.
            self.child.append(number if _is_open(number) else self._null())
        elif isinstance(stream, int) and stream == PIPE:
            read_end, write_end = map(_above, os.pipe())
            mine, theirs = (write_end, read_end) if name == "stdin" else (read_end, write_end)
            self.parent[name] = mine
            self.ours.append(theirs)
            self.pipes.append(theirs)
            self.child.append(theirs)
        elif isinstance(stream, int) and stream == DEVNULL:
            self.child.append(self._null())
        elif isinstance(stream, int) and stream == STDOUT:
            if name != "stderr":
                raise ValueError("STDOUT can only be used for stderr")
            self.child.append(self.child[1])
        else:
            self.child.append(descriptor(stream, name))

    def _null(self) -> int:
        fd = _above(os.open(os.devnull, os.O_RDWR))
        self.ours.append(fd)
        return fd

    def give_pipes(self, uid: int, gid: int) -> None:
        """Let the payload's user open /dev/stdout: a pipe made by root is root's alone."""
        for fd in self.pipes:
            os.fchown(fd, uid, gid)

    def close_child(self) -> None:
        """Close what was made for the payload: after the launch it has its own."""
        for fd in self.ours:
            os.close(fd)
        self.ours = []

    def close_parent(self) -> None:
        """Close the caller's ends, after a launch that failed."""
        for fd in self.parent.values():
            os.close(fd)
        self.parent = {}


def check_stream(name: str, stream: Stream) -> None:
    """Refuse what is no stream.

    Raises:
        TypeError: It is none of what a stream can be.
        ValueError: A negative descriptor.
        OSError: EBADF: a closed one.
    """
    if stream is not None and not (isinstance(stream, int) and stream in _WORDS):
        descriptor(stream, name)


def _above(fd: int) -> int:
    """Move a descriptor of ours out of the way of the standard streams, should the caller have closed those."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def descriptor(stream: Any, name: str) -> int:
    """Return the open descriptor that an argument stands for."""
    if isinstance(stream, bool) or not (isinstance(stream, int) or hasattr(stream, "fileno")):
        raise TypeError(f"{name} must be a descriptor, a file, PIPE, DEVNULL or None, not {type(stream).__name__}")
    fd: int = stream if isinstance(stream, int) else stream.fileno()
    if fd < 0:
        raise ValueError(f"{name} must be a descriptor of at least 0, got {fd}")
    # A closed number could become one of the launch's own before the payload gets it.
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError as error:
        raise OSError(error.errno, f"{name} is descriptor {fd}, which is not open") from None
    return fd


def extra_fds(pass_fds: Iterable[int], fds: Mapping[int, Fd]) -> dict[int, int]:
    """Return the descriptors by their numbers inside, in ascending order."""
    if not isinstance(fds, Mapping):
        raise TypeError(f"fds must map numbers inside to descriptors, not {type(fds).__name__}")
    if isinstance(pass_fds, str | bytes) or not isinstance(pass_fds, Iterable):
        raise TypeError(f"pass_fds must be an iterable of descriptors, not {type(pass_fds).__name__}")
    extra = {fd: descriptor(fd, "pass_fds") for fd in pass_fds} | {
        inside: descriptor(outside, "fds") for inside, outside in fds.items()
    }
    for inside in extra:
        if isinstance(inside, bool) or not isinstance(inside, int):
            raise TypeError(f"fds must map numbers to descriptors, got {inside!r}")
        if not 3 <= inside < 1 << 20:
            raise ValueError(
                f"fds and pass_fds: a number inside must be at least 3 (stdin, stdout, stderr are the others) and below"
                f" 2**20, got {inside}"
            )
    return dict(sorted(extra.items()))
