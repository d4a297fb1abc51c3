"""A caller without descriptors or memory: the error says so, the first time too, and nothing is left."""

import errno
import os
import resource
import subprocess
import sys
import threading

import harness
import plans
import pytest

from sandbox import Sandbox, SetupError

pytestmark = pytest.mark.needs_userns

# A fresh interpreter, for what explains an error is loaded when there is one; each attempt is a fork of it.
BODY = """
import errno, gc, os, resource, sys, traceback
sys.path.insert(0, {tests!r})
import harness
from sandbox import DEVNULL, PIPE, Sandbox, SetupError

def attempt(limit, what, launches):
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 1), (limit, status)
        return status
    try:
        assert not {{"sandbox.launch.failure", "sandbox.hints", "sandbox.causes"}} & set(sys.modules)
        before = harness._descriptors()
        _, most = resource.getrlimit(what)
        resource.setrlimit(what, (limit, most))
        try:
            works = launches()
        finally:
            resource.setrlimit(what, (most, most))
        gc.collect()
        harness.drop_kept()
        assert before == harness._descriptors()
        assert set() == harness.children()
        os._exit(0 if works else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
"""
DESCRIPTORS = """
lowest = os.open("/dev/null", os.O_RDONLY)
os.close(lowest)
def check(box, args, extras=range(26)):
    def launches():
        try:
            box.run(args, stdout=DEVNULL)
        except SetupError as error:
            if error.errno == errno.ENOENT:
                return True
            assert error.errno in (errno.EMFILE, errno.EPROTO), repr(error)
            assert "ulimit -n" in (error.hint or ""), str(error)
            return False
        except OSError as error:  # the streams, before there is a launch: as subprocess has it
            assert (errno.EMFILE, os.devnull) == (error.errno, error.filename)
            return False
        return True
    seen = {attempt(lowest + extra, resource.RLIMIT_NOFILE, launches) for extra in (*extras, 64)}
    assert {0, 1} == seen, seen
check(Sandbox(), ["true"])
check(Sandbox().bind_readonly("/no/such"), ["true"])
check(Sandbox(), ["no-such-program"])
# Where PID 1, or who watches it, runs out of them at last.
check(Sandbox().init(False), ["true"], range(20, 40))
check(Sandbox().observe(), ["true"], range(20, 40))
"""
MEMORY = """
def size():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * 4096
box = Sandbox()
def launches():
    try:
        return box.run(["true"], stdout=DEVNULL).returncode == 0
    except MemoryError:
        return False
    except OSError as error:
        assert errno.ENOMEM == error.errno, repr(error)
        return False
seen = [attempt(size() + (step << 17), resource.RLIMIT_AS, launches) for step in (*range(0, 40, 4), 400)]
assert {0, 1} == set(seen), seen
"""


@pytest.mark.parametrize("what", ["DESCRIPTORS", "MEMORY"])
def test_launch_with_nothing_left_is_an_error_that_says_so_and_leaves_nothing(what):
    body = BODY.format(tests=harness.REPOSITORY + "/tests") + globals()[what]
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False, cwd="/")
    assert (0, "") == (done.returncode, done.stderr)


def test_launch_whose_pidfd_finds_no_room_is_an_error_and_leaves_nothing():
    """Another thread takes the last descriptors while PID 1 sets up."""

    def check():
        box = Sandbox()
        plan = box.plan(["sleep", "1000"])
        position = [call.call for call in plan.segments[1]].index("check_lifeline")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with plans.pipes(2) as (go, release, told, tell):
            before = harness.footprint()

            def take_all():
                os.read(told, 1)
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
                taken = []
                try:
                    while True:
                        taken.append(os.dup(0))
                except OSError as error:
                    assert errno.EMFILE == error.errno
                os.write(release, b".")
                failed.wait()
                for fd in taken:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

            failed = threading.Event()
            thread = threading.Thread(target=take_all)
            thread.start()
            with pytest.raises(SetupError, match="ulimit -n") as caught:
                plans.launch(box, ["sleep", "1000"], plan=plans.held(plan, "init", position), stdin=go, stdout=tell)
            failed.set()
            thread.join()
            assert (errno.EMFILE, "recvmsg") == (caught.value.errno, caught.value.call)
            assert before == harness.footprint(settle=before)

    harness.in_child(check)
