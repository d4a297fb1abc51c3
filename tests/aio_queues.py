"""What the tests of Aio share: a queue of each backend, a file of numbered blocks, and its completions."""

import os

import pytest

from sandbox.errors import UnsupportedError
from sandbox.events import Aio

BACKENDS = ["io_uring", "linux_aio"]
BLOCK = 4096


def make(backend, depth=64):
    """Make a queue of a backend; the test is skipped where the host does not have it."""
    try:
        return Aio(depth, backend=backend)
    except UnsupportedError as error:
        pytest.skip(str(error))


def numbered_blocks(path):
    """Write 64 blocks, each filled with its number; return the file, open for reading and writing."""
    path.write_bytes(b"".join(bytes([number]) * BLOCK for number in range(64)))
    return os.open(path, os.O_RDWR)


def collect(aio, count):
    """Read so many completions; return them by request."""
    events = []
    while len(events) < count:
        events.append(aio.read_event(30))
    return {event.request: event for event in events}
