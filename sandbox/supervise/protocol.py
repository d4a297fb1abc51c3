"""sd_notify(3) and sd_listen_fds(3): the service's side, and how the supervisor reads what services say."""

import array
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sandbox.arguments import Fd

LISTEN_FDS_START: Final = 3
MAX_MESSAGE: Final = 4096
MAX_FDS: Final = 253  # SCM_MAX_FD of the kernel
_CREDENTIALS: Final = struct.Struct("3i")
ROOM: Final = "?" * 10  # what init replaces by the pid: see csrc/init/step.c


# ── the service's side ───────────────────────────────────────────────────────────────────────────────────────────────


def notify(state: str, *, fds: Iterable[Fd] = ()) -> bool:
    r"""Tell the supervisor something: this one, systemd, or any that speaks sd_notify(3).

    Args:
        state: Lines of NAME=value: "READY=1", "STATUS=loading", "WATCHDOG=1", "STOPPING=1", "RELOADING=1",
            "FDSTORE=1\nFDNAME=state".
        fds: Descriptors to send along, at most 253; for FDSTORE=1.

    Returns:
        False when nobody listens: NOTIFY_SOCKET is not set, or its owner is gone.

    Raises:
        ValueError: NOTIFY_SOCKET is no address of this machine; or too many descriptors.
        OSError: The kernel refused to send.

    See sd_notify(3).
    """
    if not isinstance(state, str):
        raise TypeError(f"state must be a str, not {type(state).__name__}")
    numbers = [fd if isinstance(fd, int) else fd.fileno() for fd in fds]
    if len(numbers) > MAX_FDS:
        raise ValueError(f"fds must be at most {MAX_FDS} descriptors, got {len(numbers)}")
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address[0] not in "@/":
        raise ValueError(f"NOTIFY_SOCKET must start with / or @, got {address!r}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
    where = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendmsg([state.encode("utf-8", "surrogateescape")], ancillary, 0, where)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def listen_fds() -> Mapping[str, int]:
    """Return the sockets, and stored descriptors, that the supervisor passed to this very process, by name.

    They become close-on-exec. A name that comes twice has its number behind it: "http", "http:4"; one that the
    supervisor did not give is "unknown".

    See sd_listen_fds(3).
    """
    try:
        count = int(os.environ.get("LISTEN_FDS", "0"))
        mine = int(os.environ.get("LISTEN_PID", "0")) == os.getpid()
    except ValueError:
        return {}
    if not mine or count <= 0:
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, int] = {}
    for i in range(count):
        fd = LISTEN_FDS_START + i
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        name = (names[i] if i < len(names) else "") or "unknown"
        found[name if name not in found else f"{name}:{fd}"] = fd
    return found


def fd_name(name: object, otherwise: str) -> str:
    """Return what LISTEN_FDNAMES can hold: at most 255 printable characters without a colon."""
    if isinstance(name, str) and 0 < len(name) <= 255 and name.isascii() and name.isprintable() and ":" not in name:
        return name
    return otherwise


# ── the supervisor's side ────────────────────────────────────────────────────────────────────────────────────────────


class Message(NamedTuple):
    """What came through a notification socket: who sent it, what it says, descriptors that are ours to close."""

    pid: int
    uid: int
    fields: Mapping[str, str]
    fds: tuple[int, ...]


def parse(data: bytes) -> dict[str, str]:
    """Split a notification into its fields; lines that are none are left out, as the protocol wants."""
    fields = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            fields[name] = value
    return fields


def microseconds(text: str) -> float | None:
    """Return a time of the protocol in seconds; None when it is none."""
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        return None
    return int(text) / 1e6


def abstract_socket() -> tuple[socket.socket, str]:
    """Make a notification socket with an address that leaves nothing behind; return it and NOTIFY_SOCKET."""
    name = f"sandbox-supervise-{secrets.token_hex(16)}"
    return _bound("\0" + name), "@" + name


def file_socket(path: str) -> socket.socket:
    """Make a notification socket at a path, which everybody who can reach it may write to."""
    made = _bound(path)
    os.chmod(path, 0o666)  # the service may run as another user
    return made


def _bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def receive(source: socket.socket) -> Message | None:
    """Return the next message; None when there is none."""
    space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * MAX_FDS)
    try:
        data, ancillary, flags, _ = source.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    pid, uid, fds = 0, -1, array.array("i")
    for level, kind, content in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        elif kind == socket.SCM_CREDENTIALS and len(content) == _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack(content)
    # What was cut is not understood: nothing of it counts.
    fields = {} if flags & socket.MSG_TRUNC else parse(data)
    return Message(pid, uid, fields, tuple(fds))


def descends(pid: int, ancestor: int) -> bool | None:
    """Say whether a process is below another one; None when it is gone."""
    for _ in range(4096):
        if pid == ancestor:
            return True
        if pid <= 1:
            return False
        fields = stat_fields(pid)
        if fields is None:
            return None
        pid = int(fields[1])
    return False


def stat_fields(pid: int) -> Sequence[bytes] | None:
    """Return the fields of /proc/PID/stat from the state on; None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold anything.
    return text[text.rindex(b")") + 2 :].split()
