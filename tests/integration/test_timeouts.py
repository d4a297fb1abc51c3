"""The caller's timeout bounds a launch, too: nothing that hangs in it is waited for."""

import asyncio
import os
import signal
import sys
import threading
import time

import harness
import pytest
from silent_fuse import silent

from sandbox import PIPE, Reason, Sandbox, SetupError, TimeoutExpired

pytestmark = [
    pytest.mark.needs_userns,
    pytest.mark.needs_root,  # it drops its privileges itself, when the file system is mounted
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]


@pytest.fixture(params=["root", "user"])
def with_silence(request, tmp_path):
    """Calls a function in a child with a file system that does not answer; nothing is left of it afterwards."""
    tmp_path.chmod(0o755)

    def call(body):
        def check():
            before = harness.footprint()
            with silent(tmp_path) as server:
                if request.param == "user":
                    harness.make_reachable([harness.REPOSITORY, sys.prefix, sys.base_prefix])
                    harness.drop_privileges()
                body(server, str(tmp_path))
            deadline = time.monotonic() + 10
            while (harness.children() or threading.active_count() > 1) and time.monotonic() < deadline:
                time.sleep(0.01)
            after = harness.footprint()
            assert (before.descriptors, before.children) == (after.descriptors, after.children)
            assert [threading.main_thread()] == threading.enumerate()

        harness.in_child(check)

    return call


def launched_once(server, path):
    """Return a sandbox whose next launch meets the silence in its set-up, not before."""
    box = Sandbox().bind_readonly(f"{path}/x", "/data", optional=True)
    server.answers = True
    for _ in range(2):  # the second launch compiles once more
        assert 0 == box.run(["true"], timeout=60).returncode
    server.answers = False
    return box


def check_expired(error, *, call):
    assert ["true"] == error.cmd
    assert (0.3, Reason.TIMEOUT, -signal.SIGKILL) == (error.timeout, error.result.reason, error.result.returncode)
    assert "never executed" in error.result.detail
    assert isinstance(error.__cause__, SetupError)
    assert error.__cause__.call.startswith(call)
    assert "does not answer" in error.__cause__.hint


def test_run_with_a_set_up_that_hangs_in_the_kernel_ends_in_time(with_silence):
    def body(server, path):
        box = launched_once(server, path)
        with pytest.raises(TimeoutExpired) as caught:
            box.run(["true"], timeout=0.3, stdout=PIPE)
        check_expired(caught.value, call="set-up")
        assert server.asked.is_set()
        assert harness.children()  # the positive control: the kernel does not let it die

    with_silence(body)


def test_run_with_a_source_that_hangs_when_it_is_looked_at_ends_in_time(with_silence):
    def body(server, path):
        box = Sandbox().bind_readonly(f"{path}/x", "/data")
        with pytest.raises(TimeoutExpired) as caught:
            box.run(["true"], timeout=0.3)
        check_expired(caught.value, call=f'stat("{path}/x")')
        assert server.asked.is_set()

    with_silence(body)


def test_run_async_with_either_ends_in_time_and_the_loop_goes_on(with_silence):
    async def both(server, path):
        turns = 0

        async def turn():
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        turning = asyncio.ensure_future(turn())
        for box, call in (
            (launched_once(server, path), "set-up"),
            (Sandbox().bind_readonly(f"{path}/y", "/data"), "stat"),
        ):
            turns = 0
            with pytest.raises(TimeoutExpired) as caught:
                await box.run_async(["true"], timeout=0.3)
            check_expired(caught.value, call=call)
            assert turns > 1
        turning.cancel()

    with_silence(lambda server, path: asyncio.run(both(server, path)))


def test_run_async_cancelled_in_a_set_up_that_hangs_ends(with_silence):
    async def cancelled(server, path):
        box = launched_once(server, path)
        running = asyncio.ensure_future(box.run_async(["true"]))
        while not server.asked.is_set():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with_silence(lambda server, path: asyncio.run(cancelled(server, path)))


def test_popen_interrupted_in_a_set_up_that_hangs_ends(with_silence):
    def body(server, path):
        box = launched_once(server, path)
        main = threading.main_thread().ident

        def interrupt():
            server.asked.wait()
            signal.pthread_kill(main, signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            box.popen(["true"])
        thread.join()

    with_silence(body)
