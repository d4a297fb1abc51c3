"""Go on in a new pid namespace, below a PID 1 that costs next to nothing."""

from collections.abc import Callable
from typing import Final, NoReturn

from sandbox._native import lib
from sandbox.primitives._call import Fd, check, fd_of, in_range

__all__ = ["INIT", "ENDED", "FAILED", "RECORD", "descend"]

RECORD: Final = "=ii"
"""What is written to `report`, as struct has it: one of the kinds below, and a value."""
INIT: Final = 1
"""The pid of PID 1, as the caller's namespace has it; the caller has ended, or is about to."""
ENDED: Final = 2
"""The wait status of the process that went on; then PID 1 ends, and whatever is left with it."""
FAILED: Final = 3
"""The errno of its making."""


def descend(report: Fd, then: Callable[[], NoReturn], *, copies: bool = False, not_pid: int = 0) -> None:
    """Go on as the child of a PID 1, after unshare(CLONE_NEWPID), in a process with one thread.

    The calling process ends. PID 1 is made as its sibling: the parent of both waits for it, and learns its pid from
    `report`. It reaps orphans, is in a session of its own, and is killed when the thread that made the caller ends.

    PID 1, the caller and the process that goes on share memory, so nothing is copied. Consequences: the kernel's
    OOM killer ends all of them together, before Linux 5.16 a dump of core too, and offsets of the time namespace do
    not apply; `copies` avoids them.

    Args:
        report: A descriptor to write records to, which fit a pipe.
        then: Called in the process that goes on; does not return.
        copies: The process that goes on has memory of its own, as after os.fork.
        not_pid: A pid that it does not get: by a change of pid libraries know that they were forked.

    Raises:
        OSError: EAGAIN (RLIMIT_NPROC, pids.max), ENOMEM (also: the namespace has had a PID 1 that ended), EINVAL (the
            caller is PID 1 itself).

    See clone(2), pid_namespaces(7). Since Linux 3.8.
    """
    in_range(not_pid, 0, 2**31 - 1, "not_pid")
    check(lib.sandbox_descend(fd_of(report), copies, not_pid))
    then()
