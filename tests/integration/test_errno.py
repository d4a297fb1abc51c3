"""The errno of a call is its own, whatever the handler of a signal that came meanwhile does."""

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from harness import in_child

from sandbox.primitives import (
    close_range,
    inotify_add_watch,
    io_getevents,
    io_setup,
    memfd_create,
    open_tree,
    pidfd_open,
    prctl,
    setns,
    tee,
    timerfd_create,
    timerfd_gettime,
    umount,
    unshare,
    vmsplice,
)

# Each with the errno that is its own; the handler's call fails with EBADF.
FAILING: dict[str, tuple[Callable[[], Any], int]] = {
    "close_range": (lambda: close_range(7, 8, 0x80000000), errno.EINVAL),
    "inotify_add_watch": (lambda: inotify_add_watch(0, "/", 2), errno.EINVAL),
    "memfd_create": (lambda: memfd_create("x", 0x80000000), errno.EINVAL),
    "open_tree": (lambda: open_tree(-100, "/no/such/path"), errno.ENOENT),
    "pidfd_open": (lambda: pidfd_open(os.getpid(), 0x7FFFFFFF), errno.EINVAL),
    "prctl": (lambda: prctl(0x7FFFFFFF), errno.EINVAL),
    "setns": (lambda: setns(0, 0x7FFFFFFF), errno.EINVAL),
    "timerfd_create": (lambda: timerfd_create(0x7FFF), errno.EINVAL),
    "umount": (lambda: umount("/no/such/path"), errno.ENOENT),
    "unshare": (lambda: unshare(0x1), errno.EINVAL),
}


def full_pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, bytes(65536))
    except BlockingIOError:
        os.set_blocking(write_end, True)
    return read_end, write_end


# Each waits until the signal interrupts it; the kernel then says EINTR, and the handler runs before anybody else.
WAITING: dict[str, Callable[[], Any]] = {
    "tee": lambda: tee(os.pipe()[0], os.pipe()[1], 1),
    "vmsplice": lambda: vmsplice(full_pipe()[1], [b"x"]),
    "io_getevents": lambda: io_getevents(io_setup(1), 1, 1),
}


def fail(*_: object) -> None:
    try:
        timerfd_gettime(-1)
    except OSError as error:
        assert errno.EBADF == error.errno  # in a signal handler


@pytest.mark.parametrize("call", WAITING)
def test_errno_of_an_interrupted_call_outlives_a_handler_that_fails(call: str) -> None:
    def check() -> None:
        signal.signal(signal.SIGALRM, fail)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(OSError) as caught:
            WAITING[call]()
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert errno.EINTR == caught.value.errno

    in_child(check)


def test_errno_of_each_call_outlives_a_storm_of_signals() -> None:
    def check() -> None:
        storms = 0

        def count(*_: object) -> None:
            nonlocal storms
            storms += 1
            fail()

        signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
        try:
            while storms < 2000:
                for name, (call, expected) in FAILING.items():
                    try:
                        call()
                    except OSError as error:
                        assert (name, expected) == (name, error.errno)  # of thousands of calls
                    else:
                        raise AssertionError(f"{name} did not fail")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    in_child(check)
