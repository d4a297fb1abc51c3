"""The names of running sandboxes: a directory of this user's, in it a socket for each, on which its owner listens.

Facts, and what follows:
- A payload of an unprivileged caller has that caller's uid: the directory may be bound into a sandbox, and then its
  mode and the uid of a peer keep nobody out. The user namespace does: both sides ask the kernel whose it is.
- SO_PEERCRED tells who called connect() or listen(), whoever has the socket now. The pid in it may be another process's
  meanwhile; a pidfd that still lives after the look says that it was not.
- A socket that nobody listens on any more refuses connections: that is how an owner that was killed is known. Who makes
  or removes a name holds the lock of the directory, and so nobody takes one that is about to be listened on for dead.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

from sandbox.arguments import process_name
from sandbox.exchange import deadline_of
from sandbox.option_values import OptionError
from sandbox.pidfds import readable

# Of a message; one of a command with its variables is the largest.
MOST: Final = 128 << 10
_MOST_FDS: Final = 3
_SO_PEERPIDFD: Final = 77
_MODE: Final = 0o600


class NobodyError(OptionError):
    """No sandbox has that name."""


class StrangerError(Exception):
    """The other end of a connection is not somebody to talk to."""


def _places() -> Iterator[str]:
    uid = os.geteuid()
    if uid == 0:
        yield "/run/sandbox"
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if runtime.startswith("/"):
            yield f"{runtime}/sandbox"
        yield f"/run/user/{uid}/sandbox"
    yield f"/tmp/sandbox-{uid}"


def _opened(path: str) -> int:
    """Open a directory that is this user's alone; make it when there is none.

    Raises:
        OSError: It cannot be made, or is somebody else's.
        OptionError: It is this user's, and others may enter it.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass  # looked at below
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return fd
    os.close(fd)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"is of uid {found.st_uid}", path)
    # Not elsewhere instead: then this command would not see what another one has started.
    raise OptionError(
        f"{path} is open to others ({stat.filemode(found.st_mode)})\n  hint: when you know why, chmod 700 {path}"
    )


class Registry:
    """The directory, open. It is found in the same way by everybody: the first place that can be had."""

    def __init__(self) -> None:
        problems = []
        for path in _places():
            try:
                self._fd = _opened(path)
            except OSError as error:
                problems.append(f"{path}: {error.strerror}")
            else:
                self.path = path
                return
        raise OptionError(
            "there is no directory for the names of sandboxes\n  "
            + "\n  ".join(problems)
            + "\n  hint: let XDG_RUNTIME_DIR name a directory of yours with mode 0700"
        )

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def names(self) -> list[str]:
        """Return the names, of owners that were killed as well."""
        found = []
        for name in sorted(os.listdir(self._fd)):
            try:
                found.append(process_name(name))
            except ValueError:
                continue  # nobody's
        return found

    def claim(self, name: str) -> socket.socket:
        """Take a name, and return what listens on it.

        Raises:
            OptionError: Somebody has it.
        """
        listener = _socket()
        try:
            with self._locked():
                taken = self._reached(name)
                if taken is not None:
                    pid = peer_pid(taken)
                    taken.close()
                    raise OptionError(
                        f"the name {name} is taken by process {pid}\n"
                        f"  hint: sandbox list shows what it runs, sandbox stop {name} ends it"
                    )
                # The mode of the socket becomes that of the file: at no time may others connect.
                os.fchmod(listener.fileno(), _MODE)
                listener.bind(self._path(name))
                listener.listen(socket.SOMAXCONN)
        except BaseException:
            listener.close()
            raise
        return listener

    def release(self, name: str) -> None:
        """Give a name up, before its listener is closed: until then nobody else can have taken it."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:  # the user has logged out, or removed it
            return

    def connect(self, name: str) -> "Channel":
        """Return a connection to the owner of a name.

        Raises:
            NobodyError: No sandbox has it.
        """
        made = self._tried(name)
        if made is None:
            # Dead, or not listening yet: with the lock it can be told.
            with self._locked():
                made = self._reached(name)
        if made is None:
            raise NobodyError(f"no sandbox is called {name}\n  hint: sandbox list shows those that run")
        try:
            check_peer(made)
        except BaseException as error:
            made.close()
            if isinstance(error, StrangerError):
                raise OptionError(f"{self.path}/{name} is not a sandbox of this user's: {error}") from None
            raise
        return Channel(made)

    def _reached(self, name: str) -> socket.socket | None:
        """Return a connection, with the lock held; of one that is dead the name is removed."""
        made = self._tried(name)
        if made is None:
            try:
                os.unlink(name, dir_fd=self._fd)
            except FileNotFoundError:  # there was none
                pass
        return made

    def _tried(self, name: str) -> socket.socket | None:
        """Return a connection, None when nobody listens; it does not wait for a listener that is stopped."""
        made = _socket()
        made.setblocking(False)
        try:
            made.connect(self._path(name))
            made.setblocking(True)
        except (FileNotFoundError, ConnectionRefusedError):
            made.close()
            return None
        except BlockingIOError:
            made.close()
            raise OptionError(f"the sandbox {name} does not take connections any more: is its owner stopped?") from None
        except BaseException:
            made.close()
            raise
        return made

    def _path(self, name: str) -> str:
        # Of the directory that was looked at, and short: the path of a socket has at most 107 bytes.
        return f"/proc/self/fd/{self._fd}/{name}"


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


# ── who is there ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _credentials(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def peer_pid(connection: socket.socket) -> int:
    """Return the process at the other end; 0 when it is in a pid namespace that this one does not see."""
    return _credentials(connection)[0]


def peer_pidfd(connection: socket.socket) -> int:
    """Return a pidfd of the process at the other end.

    Raises:
        ProcessLookupError: It has ended.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # before Linux 6.5
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    return os.pidfd_open(peer_pid(connection))


def check_peer(connection: socket.socket) -> None:
    """Make sure that the process at the other end is this user's, or root's, and is not inside of a sandbox.

    Raises:
        StrangerError: It is not.
    """
    pid, uid = _credentials(connection)
    me = os.geteuid()
    if uid == 0 != me:
        return  # whom nothing of this user's is closed to; and who is not ours to look at
    if uid != me:
        raise StrangerError(f"process {pid} is of uid {uid}")
    try:
        pidfd = peer_pidfd(connection)
        try:
            same = os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user"))
            alive = not readable(pidfd, 0)
        finally:
            os.close(pidfd)
    except OSError as error:
        raise StrangerError(f"process {pid} cannot be looked at: {error.strerror}") from None
    if not alive:
        raise StrangerError(f"process {pid} has ended")
    if not same:
        raise StrangerError(f"process {pid} is in another user namespace, as those inside of a sandbox are")


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Channel:
    """Messages in both directions: a small JSON object each, with up to three descriptors."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        """Return its descriptor, readable when there is a message, or when the other end has gone."""
        return self._socket.fileno()

    @property
    def connection(self) -> socket.socket:
        """The socket."""
        return self._socket

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send a message; False when the other end has gone, or takes nothing.

        Raises:
            OptionError: It is too long.
        """
        data = json.dumps(message).encode()
        if len(data) > MOST:
            raise OptionError(f"a command and its variables may take {MOST >> 10} KiB, not {len(data) >> 10}")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """Return a message, and the descriptors, which are the caller's to close.

        Raises:
            EOFError: The other end has gone.
            TimeoutError: Nothing came.
            ValueError: It is no message.
        """
        if not readable(self.fileno(), deadline_of(timeout)):
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            data, extra, got, _ = self._socket.recvmsg(MOST, socket.CMSG_SPACE(4 * _MOST_FDS), flags)
        except ConnectionResetError:
            raise EOFError from None
        fds: list[int] = []
        for level, kind, content in extra:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        try:
            if not data:
                raise EOFError
            if got & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("it is too long, or has too many descriptors")
            try:
                message = json.loads(data)
            except RecursionError:
                raise ValueError("it has too many brackets") from None
            if not isinstance(message, dict):
                raise ValueError(f"it is no object: {data[:40]!r}")  # noqa: TRY004  # of the message, not of a caller
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return message, fds

    def finish(self) -> None:
        """Say that nothing more comes."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise

    def drain(self, timeout: float) -> None:
        """Wait until the other end has gone: closing before all was read takes from it what it has not read yet."""
        self.finish()
        deadline = deadline_of(timeout)
        try:
            while readable(self.fileno(), deadline) and self._socket.recv(1):
                pass
        except ConnectionResetError:
            return

    def close(self) -> None:
        """Close it."""
        self._socket.close()
