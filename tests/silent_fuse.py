"""A FUSE file system whose server knows its root directory, and never answers what it is asked about a name in it."""

import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOOKUP, _GETATTR, _INIT = 1, 3, 26
_IN, _OUT = struct.Struct("<2I2Q4I"), struct.Struct("<IiQ")


class Server:
    """The other end of /dev/fuse.

    Attributes:
        asked: Somebody waits for an answer that does not come; the kernel does not even let him die.
        answers: Names do not exist, and that is said.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.asked = threading.Event()
        self.answers = False
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._stopped not in (ready := select.select([self._fd, self._stopped], [], [])[0]):
            request = os.read(ready[0], 1 << 17)
            _, code, unique, _, uid, gid, _, _ = _IN.unpack_from(request)
            if code == _INIT:
                self._reply(unique, struct.pack("<4I2H2I32x", 7, 31, 0, 0, 0, 0, 1 << 16, 1))
            elif code == _GETATTR:
                attributes = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, uid, gid, 0, 4096, 0)
                self._reply(unique, struct.pack("<Q2I", 1000, 0, 0) + attributes)
            elif code == _LOOKUP and self.answers:
                self._reply(unique, b"", -2)
            elif code == _LOOKUP:
                self.asked.set()

    def _reply(self, unique: int, body: bytes, error: int = 0) -> None:
        os.write(self._fd, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def let_go(self) -> None:
        """Close it: who waits gets an error now."""
        os.write(self._stop, b".")
        self._thread.join()
        for fd in (self._fd, self._stop, self._stopped):
            os.close(fd)


@contextmanager
def silent(directory: "str | os.PathLike[str]") -> Iterator[Server]:
    """Mount one, in a mount namespace of the caller's own, who is root and a child."""
    from sandbox import primitives as kernel

    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    kernel.mount("silent", directory, "fuse", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    server = Server(fd)
    try:
        yield server
    finally:
        server.let_go()
