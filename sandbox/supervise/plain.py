"""A plain child: a command with everything of the caller's, below a process that sees to its end.

`PR_SET_PDEATHSIG` goes with the thread that launched and does not reach grandchildren, and a session or process group
is left by whoever wants to. So a plain child is launched as a sandbox is, without any new namespace: the process above
it adopts what it leaves behind (PR_SET_CHILD_SUBREAPER), watches the caller by pidfd, kills and reaps the whole tree,
and counts what it used.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import pack
from typing import Any, Final

from sandbox import Enforced, Process, kernel as k, launch
from sandbox.launch import Setup
from sandbox.plan import Command, Late, Plan, Program
from sandbox.records import R_STARTED, Record
from sandbox.template import Template, candidates, environment

_NOTHING: Final = Enforced()


def compile_plain(numbers: tuple[int, ...] = (), cwd: bytes | None = None, mask: int = 0o022) -> Plan:
    """Compile the plan of a plain child.

    Args:
        numbers: Descriptors inside beyond 0, 1 and 2; their slots have the same order.
        cwd: Working directory; None: the caller's.
        mask: The caller's umask, which init does not keep.
    """
    program = Program()
    program.origin = "plain child"
    program.segment = "stage"
    program.call("clone", k.NONE, -1, name="init")
    program.call("release", k.RELEASE_ALL)
    program.segment = "init"
    program.call("await_release", k.RELEASE_IDS)
    program.call("check_lifeline")
    program.call("fork_payload", 1, 0)
    program.segment = "payload"
    program.call("setsid")
    # Init has one thread, so this means the end of init, not of a thread; what else is below it is looked for.
    program.call("prctl", k.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    program.call("umask", mask)
    if cwd is not None:
        program.call("chdir", cwd)
    pairs = [(0, 3), (1, 4), (2, 5)] + [(number, program.slot(f"fd {number}").number) for number in numbers]
    raw = b"".join(pack("<2I", *pair) for pair in pairs)
    program.call("place_fds", program.data(raw, f"{{{', '.join(str(number) for number, _ in pairs)}}}"), len(pairs))
    program.call("listen_pid", Late("envp", pointer=True))
    program.call("rt_sigprocmask", k.SIG_SETMASK, program.data(bytes(8), "[]"), 0, 8)
    program.call(
        "execve",
        Late("candidates", pointer=True),
        Late("candidate_count"),
        Late("argv", pointer=True),
        Late("envp", pointer=True),
    )
    return program.plan(Command(), keep_privileges=True)


@lru_cache(maxsize=64)
def _template(numbers: tuple[int, ...], cwd: bytes | None, mask: int) -> Template:
    return Template(compile_plain(numbers, cwd, mask))


def _umask() -> int:
    """Return the caller's umask without setting it, which another thread could see."""
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith("Umask:"):
                return int(line[6:], 8)
    return 0o022


class _Setup(Setup):
    """A launch that keeps the pid of its payload, which here is the same inside and outside."""

    pid: int | None = None

    def take(self, record: Record | None) -> bool:
        """Take one record; True when the payload has started."""
        if record is not None and record.type == R_STARTED:
            self.pid = record.value
        return super().take(record)


class Plain:
    """A command that is launched as a plain child, again and again.

    Args:
        args: Program and arguments, encoded; the program is looked up on the PATH of `env`.
        cwd: Working directory; None: the caller's.
    """

    def __init__(self, args: tuple[bytes, ...], cwd: bytes | None) -> None:
        self._args = args
        self._cwd = cwd
        self._mask = _umask()
        self._last: tuple[Mapping[str, str], tuple[bytes, ...], tuple[bytes, ...]] | None = None

    def _encoded(self, env: Mapping[str, str]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        last = self._last
        if last is None or last[0] != env:
            path = env.get("PATH", os.defpath)
            last = self._last = dict(env), environment(env), candidates(self._args[0], path)
        return last[1], last[2]

    def start(
        self, args: Any, env: Mapping[str, str], streams: Sequence[int], fds: Mapping[int, int]
    ) -> Process[bytes]:
        """Launch it.

        Args:
            args: The command as the caller gave it, for the result.
            env: Its whole environment.
            streams: Descriptors for 0, 1 and 2.
            fds: {number inside: descriptor}; all stay the caller's.

        Raises:
            SetupError: It could not be launched; nothing is left behind.
        """
        encoded, paths = self._encoded(env)
        template = _template(tuple(fds), self._cwd, self._mask)
        slots = [-1] * template.slots
        slots[3:6] = streams
        slots[6:] = fds.values()
        setup = _Setup(template, Command(self._args, encoded, paths))
        launch.run(setup, slots)
        # No self-check: nothing is promised.
        process: Process[bytes] = Process(args, setup.control, setup.init_pid, setup.init_pidfd, _NOTHING)
        process._pid = setup.pid
        if setup.ended is not None:
            process._take(setup.ended)
        return process
