"""Payloads for tests: a few lines of Python that run inside of a sandbox and say what came out, as JSON."""

import json
import os
import re
from typing import Any

import harness

from sandbox import Sandbox
from sandbox.filters.table import Arch, calls, machine

PYTHON = "/usr/bin/python3"

# `call` makes a system call by number, `say` tells the test.
PRELUDE = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *args):
    ready = [ctypes.c_ulong(one & 2**64 - 1) if isinstance(one, int) else one for one in args]
    result = libc.syscall(ctypes.c_long(number), *ready)
    return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno())) if result == -1 else result

def tried(function, *args, **options):
    try:
        function(*args, **options)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def status(name):
    with open("/proc/self/status") as stream:
        return next(line.split(":", 1)[1].strip() for line in stream if line.startswith(name + ":"))

def say(value):
    print(json.dumps(value), flush=True)
"""


def script(body: str) -> list[str]:
    """Return the command of a payload."""
    return [PYTHON, "-I", "-S", "-c", PRELUDE + body]


def tell(box: Sandbox, body: str, **options: Any) -> Any:
    """Run a payload to its end, and return what it said last."""
    done = box.run(script(body), capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, (done.returncode, done.detail, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def number(name: str, arch: Arch | None = None) -> int:
    """Return the number of a system call."""
    return calls().numbers[machine() if arch is None else arch][name]


def status(name: str, pid: int | str = "self") -> str:
    """Return a field of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as stream:
        found = re.search(rf"^{name}:\s*(.*)$", stream.read(), re.MULTILINE)
    assert found is not None
    return found[1]


def ours(path: "os.PathLike[str]") -> "os.PathLike[str]":
    """Let everybody reach and write a directory, which the payload owns."""
    harness.give_away(path)
    os.chmod(path, 0o777)
    return path
