"""Pidfds: whose they are, waiting for their end, and reaping."""

import errno
import os
import select

from sandbox.exchange import milliseconds


def reap(pidfd: int) -> int | None:
    """Reap a child by its pidfd; None when somebody else did, or SIGCHLD is ignored."""
    while True:
        try:
            info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        except ChildProcessError:
            return None
        except BlockingIOError:
            # libuv makes every descriptor non-blocking that it is told to watch.
            readable(pidfd, None)
            continue
        return None if info is None else info.si_status


def pid_of(pidfd: int) -> int:
    """Return the pid that a pidfd stands for, in this process's namespace."""
    with open(f"/proc/self/fdinfo/{pidfd}") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if name == "Pid":
                pid = int(value)
                if pid > 0:
                    return pid
    raise ProcessLookupError(errno.ESRCH, "the payload has ended")


def readable(fd: int, deadline: float | None) -> bool:
    """Wait until a descriptor is readable; False when the deadline passes first, 0: at once."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0 if deadline == 0 else milliseconds(deadline)))
