"""A process while it runs: hold and release, stop, detach, its namespaces, its owner, several threads, misuse."""

import fcntl
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import warnings

import harness
import plans
import pytest

import sandbox
from sandbox import DEVNULL, PIPE, Filter, Notify, Reason, Sandbox, SetupError, TimeoutExpired

pytestmark = pytest.mark.needs_userns

NOTIFYING = Sandbox().seccomp(Filter.default().rule(Notify, "mkdir"))


def ended(pidfd, seconds=10):
    return bool(select.select([pidfd], [], [], seconds)[0])


# ── hold and release ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "box",
    [Sandbox(), Sandbox().seccomp(None).share("net", "pid"), Sandbox().capabilities(["SYS_ADMIN"])],
    ids=["default", "shared", "nested"],
)
def test_held_process_shows_what_its_program_will_find(box):
    script = (
        "readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/user; cat /proc/self/mountinfo; ls /proc/self/fd"
    )
    read_end, write_end = os.pipe()
    with box.popen(["sh", "-c", script], stdout=PIPE, text=True, hold=True, fds={7: write_end}) as process:
        enforced = process.enforced
        assert process.poll() is None
        assert not select.select([process.stdout], [], [], 0)[0]
        process.release()
        lines = process.communicate()[0].splitlines()
    os.close(read_end)
    os.close(write_end)
    assert lines[:3] == [f"{name}:[{enforced.namespaces[name]}]" for name in ("net", "mnt", "user")]
    assert {line.split()[4] for line in lines if " - " in line} == {mount.target for mount in enforced.mounts}
    assert (0, 1, 2, 7) == enforced.descriptors
    assert 0 == process.returncode
    assert enforced == process.enforced
    assert enforced.no_new_privs
    assert enforced.limits["open_files"] > 0


def test_release_a_second_time_or_of_what_was_not_held_does_nothing():
    with Sandbox().popen(["cat"], stdin=PIPE, hold=True) as process:
        process.release()
        process.release()
        process.communicate()
        process.release()
        assert 0 == process.returncode
    with Sandbox().popen(["true"]) as process:
        process.release()


def test_release_of_a_program_that_does_not_exist_is_the_error_of_a_launch():
    with Sandbox().popen(["no-such-program"], hold=True) as process:
        with pytest.raises(FileNotFoundError) as caught:
            process.release()
        assert "no-such-program" == caught.value.filename
        with pytest.raises(SetupError):
            process.wait()


@pytest.mark.parametrize("end", ["kill", "close", "stop", "exception", "garbage"])
def test_held_process_ends_without_having_run(end):
    read_end, write_end = os.pipe()
    process = Sandbox().popen(["sh", "-c", "echo ran"], stdout=write_end, hold=True)
    os.close(write_end)
    if end == "kill":
        process.kill()
        assert (-signal.SIGKILL, Reason.SIGNALED) == (process.returncode, process.result().reason)
    elif end == "stop":
        assert -signal.SIGKILL == process.stop(0.1).returncode
    elif end == "exception":
        with pytest.raises(ZeroDivisionError), process:
            raise ZeroDivisionError
    elif end == "garbage":
        references = [process]
        process = None
        with pytest.warns(ResourceWarning, match="was not closed"):
            references.clear()
    if process is not None:
        process.close()
    assert b"" == os.read(read_end, 100)
    os.close(read_end)


def test_held_process_killed_from_outside_is_a_setup_that_failed():
    with Sandbox().popen(["true"], hold=True) as process:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(SetupError, match="signal 9"):
            process.wait()


def test_held_process_cannot_be_detached():
    with Sandbox().popen(["true"], hold=True) as process:
        with pytest.raises(ValueError, match="release"):
            process.detach()
        process.release()


def test_held_process_whose_filter_asks_has_its_notifier_from_the_release_on():
    with NOTIFYING.popen(["mkdir", "/tmp/x"], stderr=DEVNULL, hold=True) as process:
        assert process.notifier is None
        process.release()
        for notification in process.notifier:
            notification.deny("EXDEV")
        assert 1 == process.wait()


def test_held_process_that_is_observed_has_its_denials_from_the_release_on():
    with Sandbox().observe().popen(["unshare", "-r", "true"], stderr=DEVNULL, hold=True) as process:
        assert process.denials is None
        process.release()
        assert "unshare" in {denied.call for denied in process.result().denied}


def test_hold_is_not_for_run():
    with pytest.raises(TypeError, match="hold"):
        sandbox.run(["true"], hold=True)


# ── stop, detach ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stop_lets_a_program_end_by_itself_and_keeps_its_output():
    script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done"
    with Sandbox().popen(["sh", "-c", script], stdout=PIPE, text=True) as process:
        assert "up\n" == process.stdout.readline()
        result = process.stop(30)
        assert (7, "bye\n", Reason.EXITED) == (result.returncode, result.stdout, result.reason)
        assert result is process.stop()


def test_stop_kills_what_ignores_the_signal_and_what_is_stopped():
    script = "trap '' TERM; echo up; while :; do sleep 1; done"
    with Sandbox().popen(["sh", "-c", script], stdout=PIPE, text=True) as process:
        assert "up\n" == process.stdout.readline()
        assert -signal.SIGKILL == process.stop(0.1).returncode
    with Sandbox().popen(["sleep", "1000"]) as process:
        process.send_signal(signal.SIGSTOP)
        while " T " not in plans.text_of(f"/proc/{process.pid}/stat"):
            time.sleep(0.001)
        assert -signal.SIGKILL == process.stop(0.1).returncode


def test_detached_sandbox_outlives_the_process_that_launched_it():
    """The whole process ends, and so does the thread, the channel and the lifeline."""
    read_end, write_end = os.pipe()
    told, tell = os.pipe()
    go, release = os.pipe()
    harness.become_subreaper()
    launcher = os.fork()
    if launcher == 0:
        try:
            os.close(release)
            script = "read line; echo alive; exit 5"
            process = Sandbox().popen(["sh", "-c", script], stdin=go, stdout=write_end)
            os.write(tell, b"%d" % process.init_pid)
            os.close(process.detach())
        finally:
            os._exit(0)
    for fd in (write_end, go, tell):
        os.close(fd)
    os.waitpid(launcher, 0)
    init = int(os.read(told, 20))
    pidfd = os.pidfd_open(init)
    assert not ended(pidfd, 0.3)
    os.write(release, b"\n")
    assert b"alive\n" == os.read(read_end, 100)
    assert ended(pidfd)
    os.waitpid(init, 0)
    for fd in (read_end, told, release, pidfd):
        os.close(fd)


def test_sandbox_that_is_not_detached_ends_with_its_launcher():
    """The positive control of the test above."""
    told, tell = os.pipe()
    harness.become_subreaper()
    launcher = os.fork()
    if launcher == 0:
        try:
            process = Sandbox().popen(["sleep", "1000"])
            os.write(tell, b"%d" % process.init_pid)
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(launcher, 0)
    init = int(os.read(told, 20))
    os.close(told)
    os.waitpid(init, 0)


def test_detached_process_object_is_done_with_and_the_pidfd_is_the_callers():
    process = Sandbox().popen(["cat"], stdin=PIPE, stdout=PIPE)
    with process:
        pidfd = process.detach()
        assert "detached" in repr(process)
        for refused in (process.poll, process.wait, process.kill, process.detach, process.terminate):
            with pytest.raises(ValueError, match="detached"):
                refused()
        with pytest.raises(ValueError, match="closed"):
            process.fileno()
        process.stdin.write(b"still")
        process.stdin.close()
        assert b"still" == process.stdout.read()
    assert fcntl.fcntl(pidfd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert 0 == info.si_status
    os.close(pidfd)


def test_detach_of_what_has_ended_says_so():
    with Sandbox().popen(["true"]) as process:
        process.wait()
        with pytest.raises(ProcessLookupError):
            process.detach()


# ── namespaces ───────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000,
         "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}  # fmt: skip


@pytest.mark.needs_kernel(6, 11)
@pytest.mark.parametrize(
    "box",
    [
        Sandbox().share("net", "ipc"),
        Sandbox.empty().bind_readonly("/usr").bind_readonly("/lib").bind_readonly("/lib64"),
    ],
    ids=["shared", "without /proc"],
)
def test_namespace_fd_is_the_sandboxs_own_or_the_shared_one(box):
    with box.popen(["/usr/bin/cat"], stdin=PIPE) as process:
        for name, kind in KINDS.items():
            fd = process.namespace_fd(name)
            assert kind == fcntl.ioctl(fd, 0xB703)  # NS_GET_NSTYPE
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            shared = name not in box._spec.new_namespaces and name != "mnt"
            assert shared == os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{name}"))
            os.close(fd)


def test_namespace_fd_of_a_wrong_name_or_of_what_has_ended():
    with Sandbox().popen(["cat"], stdin=PIPE) as process:
        with pytest.raises(ValueError, match="namespace must be one of"):
            process.namespace_fd("mount")
        process.communicate()
        with pytest.raises(ProcessLookupError):
            process.namespace_fd("net")


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_name_is_shown():
    with Sandbox().popen(["true"], name="web-1.a") as process:
        assert "'web-1.a'" in repr(process)
        assert "web-1.a" == process.name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "ä", "a" * 65, "a\n", 3, b"a"])
def test_name_that_could_not_be_a_files_is_refused(name):
    with pytest.raises(TypeError if not isinstance(name, str) else ValueError, match="name"):
        sandbox.run(["true"], name=name)


# ── owners, threads, signals ─────────────────────────────────────────────────────────────────────────────────────────


def test_garbage_collection_of_a_live_process_warns_and_kills():
    references = [Sandbox().popen(["sleep", "1000"])]
    pidfd = os.pidfd_open(references[0].init_pid)
    with pytest.warns(ResourceWarning, match="sleep"):
        references.clear()
    assert ended(pidfd, 0)
    os.close(pidfd)


def test_garbage_collection_of_what_has_ended_is_silent_and_closes():
    process = Sandbox().popen(["true"])
    process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del process
        gc.collect()


@pytest.mark.parametrize("where", ["process = ", "import os; os.process = ", "def f(): pass\nf.me, f.process = f, "])
def test_interpreter_that_exits_with_a_live_process_ends_it(where):
    code = f"""
import sys; sys.path = {sys.path!r}
from sandbox import Sandbox
{where}Sandbox().popen(["sleep", "1000"], fds={{9: 1}})
"""
    done = subprocess.run([sys.executable, "-I", "-Wd", "-c", code], capture_output=True, text=True, timeout=30)
    # Its end of stdout's pipe is gone, or this would have waited for it. Where orphans come to us, it is ours to reap.
    assert plans.reap_all(5)
    assert (0, "") == (done.returncode, done.stdout)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr, done.stderr


def test_fork_of_the_caller_can_only_close_its_copy():
    with Sandbox().popen(["cat"], stdin=PIPE, stdout=PIPE) as process:

        def check():
            for refused in (process.poll, process.wait, process.kill, process.terminate, process.detach):
                with pytest.raises(ChildProcessError, match="belongs to process"):
                    refused()
            with pytest.raises(ChildProcessError):
                process.namespace_fd("net")
            with pytest.raises(ZeroDivisionError), process:
                raise ZeroDivisionError

        harness.in_child(check)
        harness.in_child(process.close)
        pid = os.fork()
        if pid == 0:
            del process
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        assert process.poll() is None
        assert (b"x", None) == process.communicate(b"x")
        assert 0 == process.returncode


def test_many_threads_wait_for_one_process_and_all_are_told():
    for timeout in (None, 30):
        process = Sandbox().popen(["cat"], stdin=PIPE)
        found = []
        threads = [threading.Thread(target=append, args=(found, process, timeout)) for _ in range(8)]
        for thread in threads:
            thread.start()
        process.stdin.close()
        for thread in threads:
            thread.join()
        assert [0] * 8 == found
        process.close()


def append(found, process, timeout):
    found.append(process.wait(timeout))


def test_close_while_others_wait_tells_them_the_end():
    for _ in range(10):
        process = Sandbox().popen(["sleep", "1000"])
        found = []
        waiters = [threading.Thread(target=append, args=(found, process, t)) for t in (None, 30, None)]
        for thread in waiters:
            thread.start()
        process.close()
        for thread in waiters:
            thread.join()
        assert [-9] * 3 == found
        process.close()
        assert -9 == process.wait()


def test_requests_of_several_threads_get_their_own_answers():
    with Sandbox().popen(["cat"], stdin=PIPE) as process:
        wrong = []

        def ask(name):
            for _ in range(50):
                fd = process.namespace_fd(name)
                if KINDS[name] != fcntl.ioctl(fd, 0xB703):
                    wrong.append(name)
                os.close(fd)
                process.send_signal(0)

        waiter = threading.Thread(target=process.wait)
        threads = [threading.Thread(target=ask, args=(name,)) for name in KINDS]
        for thread in (waiter, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        process.stdin.close()
        waiter.join()
        assert [] == wrong
        assert 0 == process.returncode


def test_detach_while_another_thread_waits_is_refused():
    with Sandbox().popen(["cat"], stdin=PIPE) as process:
        thread = threading.Thread(target=process.wait)
        thread.start()
        while not process._waiting:
            thread.join(0.001)
        with pytest.raises(sandbox.BusyError):
            process.detach()
        process.stdin.close()
        thread.join()


def test_signal_handler_may_end_the_process_that_is_waited_for():
    def check():
        process = Sandbox().popen(["sleep", "1000"])
        signal.signal(signal.SIGALRM, lambda *_: process.terminate())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert -signal.SIGTERM == process.wait()
        process.close()
        process = Sandbox().popen(["sleep", "1000"])
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert -signal.SIGKILL == process.wait(30)
        process.close()

    harness.in_child(check)


def test_status_is_right_although_the_caller_ignores_sigchld_or_waits_for_all():
    def ignoring():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with Sandbox().popen(["sh", "-c", "exit 3"]) as process:
            assert 3 == process.wait()
        with Sandbox().popen(["sh", "-c", "exit 4"]) as process:
            assert 4 == process.wait(30)

    def reaping():
        with Sandbox().popen(["sh", "-c", "exit 3"]) as process:
            os.waitpid(-1, 0)
            assert 3 == process.wait()

    harness.in_child(ignoring)
    harness.in_child(reaping)


def test_pid_1_that_is_stopped_is_killed_and_the_result_says_that_it_counted_nothing():
    process = Sandbox().popen(["sleep", "1000"])
    os.kill(process.init_pid, signal.SIGSTOP)
    process.kill()
    result = process.result()
    assert (Reason.SIGNALED, -signal.SIGKILL) == (result.reason, result.returncode)
    assert "PID 1 did not answer" in result.detail
    process.close()


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_communicate_goes_on_after_its_timeout():
    with Sandbox().popen(["sh", "-c", "cat; read x <&9; echo done"], stdin=PIPE, stdout=PIPE, text=True,
                         fds={9: (end := plans.pipes()).__enter__()[0]}) as process:  # fmt: skip
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate("all of it\n", timeout=0.3)
        assert b"all of it\n" == caught.value.output
        with pytest.raises(ValueError, match="Cannot send input"):
            process.communicate("more")
        end.__exit__(None, None, None)
        assert ("all of it\ndone\n", None) == process.communicate()
        assert ("all of it\ndone\n", None) == process.communicate()
        assert "all of it\ndone\n" == process.result().stdout


def test_result_drains_what_nobody_read():
    with Sandbox().popen(["sh", "-c", "head -c 300000 /dev/zero; echo e >&2"], stdout=PIPE, stderr=PIPE) as process:
        result = process.result()
        assert (300_000, b"e\n") == (len(result.stdout), result.stderr)
        assert result is process.result()
        assert result == pickle.loads(pickle.dumps(result))


def test_payload_that_never_reads_or_closes_its_streams_is_no_obstacle():
    with Sandbox().popen(["true"], stdin=PIPE) as process:
        process.communicate(b"x" * 1_000_000)
        assert 0 == process.returncode
    with Sandbox().popen(["sh", "-c", "exec <&- >&- 2>&-; sleep 0.1"], stdin=PIPE, stdout=PIPE) as process:
        assert (b"", None) == process.communicate(b"x" * 1_000_000)


def test_communicate_after_the_caller_closed_a_stream():
    with Sandbox().popen(["sh", "-c", "echo e >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        process.stdin.close()
        process.stdout.close()
        assert (b"", b"e\n") == process.communicate()


def test_block_left_with_a_broken_pipe_waits_and_says_so():
    process = Sandbox().popen(["true"], stdin=PIPE)
    with pytest.raises(BrokenPipeError), process:  # noqa: PT012  # the block's end raises
        process.stdin.write(b"nobody reads")
        process.wait()
    assert 0 == process.returncode
    assert process.stdin.closed


def test_process_does_not_pickle_and_compares_by_identity():
    with Sandbox().popen(["true"]) as process, Sandbox().popen(["true"]) as other:
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(process)
        assert process != other
        assert {process: 1}[process] == 1
        assert process.init_pidfd == process.fileno()
    with pytest.raises(ValueError, match="closed"):
        process.fileno()
