"""A child under a filter that notifies, for the tests of the supervisor's side."""

import errno
import json
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sandbox.filters.table import AUDIT, calls, machine
from sandbox.primitives.process import PR_SET_NO_NEW_PRIVS, prctl
from sandbox.primitives.secure_computing import (
    SeccompAction,
    SeccompFilterFlags,
    SeccompOperation,
    seccomp,
)


def program(actions: dict[int, int], default: int = SeccompAction.ALLOW, arch: int = 0) -> bytes:
    """Return a filter by hand: {number: what it returns}; of another architecture everything is allowed."""
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, arch or AUDIT[machine()]), (0x06, 0, 0, SeccompAction.ALLOW)]
    code.append((0x20, 0, 0, 0))
    for number, action in actions.items():
        code += [(0x15, 0, 1, number), (0x06, 0, 0, action)]
    code.append((0x06, 0, 0, default))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def number(name: str) -> int:
    return calls().numbers[machine()][name]


class Program:
    """What `confine` takes as a filter: raw bytes."""

    def __init__(self, **actions: int) -> None:
        self.bytes = program({number(name): action for name, action in actions.items()})

    def to_bytes(self) -> bytes:
        return self.bytes


def refuse(code: int) -> int:
    return SeccompAction.ERRNO | code


class Target:
    """The child: its pid, its listener, and what its function returned."""

    def __init__(self, pid: int, listener: int, results: int) -> None:
        self.pid = pid
        self.listener = listener  # owned by whoever makes a Notifier of it
        self._results = results
        self.ended = False

    def result(self) -> Any:
        """Wait for the end, and return what the function returned: the name of the errno where it failed."""
        with open(self._results, "rb", closefd=False) as stream:
            text = stream.read()
        if not self.ended:
            self.ended = True
            os.waitpid(self.pid, 0)
        if not text:
            return None
        value = json.loads(text)
        if isinstance(value, dict) and "crash" in value:
            raise AssertionError(f"in the target:\n{value['crash']}")
        return value

    def kill(self) -> None:
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True


@contextmanager
def supervised(function: Callable[[], Any], *notify: str, flags: int = 0, extra: bytes = b"") -> Iterator[Target]:
    """Fork a child in which the calls `notify` wait for an answer, and run a function there."""
    here, there = socket.socketpair()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            here.close()
            os.close(read_end)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            if extra:
                seccomp(SeccompOperation.SET_MODE_FILTER, 0, extra)
            waiting = program({number(name): SeccompAction.USER_NOTIF for name in notify})
            listener = seccomp(SeccompOperation.SET_MODE_FILTER, SeccompFilterFlags.NEW_LISTENER | flags, waiting)
            socket.send_fds(there, [b"L"], [listener])
            os.close(listener)
            there.close()
            try:
                value = function()
            except OSError as error:
                value = errno.errorcode[error.errno or 0]
            text = json.dumps(value)
        except BaseException:
            text = json.dumps({"crash": traceback.format_exc()})
        os.write(write_end, text.encode())
        os._exit(0)
    there.close()
    os.close(write_end)
    with here:
        _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
    target = Target(pid, descriptors[0], read_end)
    try:
        yield target
    finally:
        target.kill()
        os.close(read_end)
