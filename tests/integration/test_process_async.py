"""The asyncio face: run_async, popen_async, and waiting for several processes of either face."""

import asyncio
import errno
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import warnings

import harness
import pytest
import uvloop

import sandbox
from sandbox import PIPE, STDOUT, CalledProcessError, Filter, Notify, Reason, Sandbox, SetupError, TimeoutExpired

pytestmark = pytest.mark.needs_userns

BOX = Sandbox()
uvloop.new_event_loop().close()  # what libuv opens once in a process is no leak of the first test


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture(autouse=True)
def _strict_loops(monkeypatch):
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


# ── run_async ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_async_is_run(run):
    script = ["sh", "-c", "cat; echo err >&2; exit 3"]

    async def main():
        return await BOX.run_async(script, input="häll\r\no", text=True, capture_output=True)

    there, here = run(main()), BOX.run(script, input="häll\r\no", text=True, capture_output=True)
    assert (here.stdout, here.stderr, here.returncode, here.reason) == (
        there.stdout, there.stderr, there.returncode, there.reason,
    )  # fmt: skip
    assert here.enforced == there.enforced
    assert there.usage.max_rss > 0


def test_run_async_of_a_mebibyte_both_ways_is_exact(run):
    data = os.urandom(1 << 20)

    async def main():
        return await BOX.run_async(["cat"], input=data, stdout=PIPE)

    assert data == run(main()).stdout


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"input": b"x", "text": True}, TypeError),
        ({"input": "x"}, TypeError),
        ({"capture_output": True, "stdout": PIPE}, ValueError),
        ({"stdin": 0, "input": b""}, ValueError),
        ({"shell": True}, TypeError),
        ({"stdout": 987}, OSError),
    ],
)
def test_run_async_refuses_what_run_refuses(options, error):
    with pytest.raises(error):
        asyncio.run(BOX.run_async(["true"], **options))


def test_run_async_timeout_kills_the_tree_and_tells_what_was_said(run):
    async def main():
        with pytest.raises(TimeoutExpired) as caught:
            await BOX.run_async(["sh", "-c", "echo said; sleep 1000 & sleep 1000"], stdout=PIPE, timeout=0.3)
        return caught.value

    error = run(main())
    assert Reason.TIMEOUT == error.result.reason
    assert (b"said\n", -signal.SIGKILL) == (error.output, error.result.returncode)


def test_run_async_check_raises(run):
    with pytest.raises(CalledProcessError) as caught:
        run(BOX.run_async(["false"], check=True))
    assert 1 == caught.value.result.returncode


@pytest.mark.parametrize("moment", ["launch", "run"])
def test_cancelled_run_async_kills_reaps_and_lets_the_cancellation_through(run, moment):
    async def main():
        task = asyncio.ensure_future(BOX.run_async(["sh", "-c", "trap '' TERM; sleep 1000"], capture_output=True))
        if moment == "launch":
            await asyncio.sleep(0)
        else:
            while not harness.children():
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not harness.children()

    run(main())


def test_run_async_error_of_the_set_up_names_the_step(run):
    async def main():
        with pytest.raises(SetupError) as caught:
            await BOX.bind("/no/such").run_async(["true"])
        with pytest.raises(FileNotFoundError):
            await BOX.run_async(["no-such-program"])
        return caught.value

    error = run(main())
    assert (errno.ENOENT, '.bind("/no/such")') == (error.errno, error.origin)


def test_run_async_without_descriptors_left_leaks_none(run):
    async def main():
        await BOX.run_async(["true"])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # No number below is free, whatever the test was started with.
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
        while os.dup(0) < highest:
            pass
        failed = 0
        try:
            for extra in range(1, 17):
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + extra, hard))
                before = harness.footprint()
                try:
                    result = await BOX.run_async(["true"], input=b"x", capture_output=True)
                except OSError as error:
                    assert errno.EMFILE == error.errno
                    failed += 1
                else:
                    assert 0 == result.returncode
                assert before == harness.footprint()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert failed

    harness.in_child(lambda: run(main()))


def test_many_at_once_each_get_their_own(run):
    async def main():
        gate = asyncio.Semaphore(32)

        async def one(number):
            async with gate:
                return (await BOX.run_async(["echo", str(number)], stdout=PIPE)).stdout

        return await asyncio.gather(*map(one, range(200)))

    assert [b"%d\n" % number for number in range(200)] == run(main())


# Python 3.12's asyncio hides a warning of its own with warnings.catch_warnings, which threads disturb for each other.
@pytest.mark.filterwarnings("ignore:'get_child_watcher' is deprecated:DeprecationWarning")
def test_loop_in_a_thread_beside_other_children():
    def work():
        async def main():
            other = await asyncio.create_subprocess_exec("sleep", "0.01")
            result = await BOX.run_async(["echo", "in"], stdout=PIPE)
            return result.stdout, await other.wait()

        said.append(asyncio.run(main()))

    said = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(b"in\n", 0)] * 4 == said


def test_sigchld_ignored_and_a_stranger_who_reaps_change_nothing():
    def check():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        assert 7 == asyncio.run(BOX.run_async(["sh", "-c", "exit 7"])).returncode
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

        async def main():
            process = await BOX.popen_async(["sh", "-c", "sleep 0.05; exit 7"])
            os.waitpid(-1, 0)  # blocks the loop until the end, and takes the status
            assert 7 == await process.wait()
            await process.aclose()

        asyncio.run(main())

    harness.in_child(check)


# ── popen_async ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_streams_are_those_of_asyncio(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE, stdout=PIPE) as process:
            process.stdin.write(b"one\ntwo\n")
            await process.stdin.drain()
            assert b"one\n" == await process.stdout.readline()
            assert b"two\n" == await process.stdout.readline()
            process.stdin.close()
            await process.stdin.wait_closed()
            assert b"" == await process.stdout.read()
            assert 0 == await process.wait()
        assert 0 == process.returncode

    run(main())


def test_communicate_feeds_and_drains(run):
    data = bytes(300_000)

    async def main():
        process = await BOX.popen_async(["sh", "-c", "cat; echo err >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
        async with process:
            assert (data, b"err\n") == await process.communicate(data)
        async with await BOX.popen_async(["true"], stdin=PIPE) as process:
            assert (None, None) == await process.communicate(data)  # it never reads
        async with await BOX.popen_async(["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT) as process:
            assert b"a\nb\n" == (await process.result()).stdout

    run(main())


def test_writer_is_told_that_nobody_reads_any_more(run):
    async def main(waiting):
        # What the pipe does not take waits, and is lost then.
        script = ["sh", "-c", "exec <&-; echo closed; sleep 1000"]
        async with await BOX.popen_async(script, stdin=PIPE, stdout=PIPE) as process:
            process.stdin.write(waiting)
            assert b"closed\n" == await process.stdout.readline()
            while not process.stdin.is_closing():
                await asyncio.sleep(0.001)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await process.stdin.drain()
            process.stdin.write(b"ignored")
            process.kill()

    run(main(b""))
    run(main(bytes(1 << 20)))


def test_who_is_faster_than_the_other_side_waits(run):
    size = 2 << 20

    async def main():
        async with await BOX.popen_async(["sh", "-c", "read go; exec cat"], stdin=PIPE, stdout=PIPE) as process:
            transport = process.stdin.transport
            process.stdin.write(b"x" * size)
            assert transport.get_write_buffer_size() > size - (1 << 17)
            writing = asyncio.create_task(process.stdin.drain())
            await asyncio.sleep(0.01)
            assert not writing.done()
            process.stdin.write(b"\n" + bytes(size))
            process.stdin.write_eof()
            # Nobody reads yet: two limits are kept here, a pipe's worth in the kernel, and the rest is the writer's.
            while process.stdout._transport.is_reading():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert transport.get_write_buffer_size() > size // 2
            assert bytes(size) == await process.stdout.read()
            await writing
            assert 0 == await process.wait()

    run(main())


CLOSES = """
import asyncio, os, sys, uvloop
from sandbox import PIPE, Sandbox

async def main():
    async with await Sandbox().popen_async(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        await process.communicate(b"x")
    task = asyncio.create_task(Sandbox().popen_async(["cat"], stdin=PIPE, stdout=PIPE))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

(uvloop if sys.argv[1] == "uvloop" else asyncio).run(main())
try:
    os.close(1000)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.needs_program("strace")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_descriptor_is_closed_twice(loop, tmp_path):
    log = tmp_path / "log"
    traced = ["strace", "-f", "-qq", "-o", log, "-e", "trace=close", sys.executable, "-P", "-c", CLOSES, loop]
    done = subprocess.run(traced, capture_output=True, text=True)
    assert ("Bad file descriptor\n", "", 0) == (done.stdout, done.stderr, done.returncode)
    with open(log) as stream:
        # The process itself; children close what they were given, and may not have.
        lines = [line.split(maxsplit=1) for line in stream]
    failed = [call for pid, call in lines if pid == lines[0][0] and "EBADF" in call]
    assert ["close(1000)"] == [call.split("  ")[0].split(" = ")[0].strip() for call in failed]


def test_limit_is_that_of_the_reader(run):
    async def main():
        async with await BOX.popen_async(["echo", "x" * 100], stdout=PIPE, limit=10) as process:
            with pytest.raises(ValueError, match="limit"):
                await process.stdout.readline()

    run(main())


@pytest.mark.parametrize("options", [{"text": True}, {"encoding": "utf-8"}, {"bufsize": 1}])
def test_popen_async_is_of_bytes(options):
    with pytest.raises((ValueError, TypeError)):
        asyncio.run(BOX.popen_async(["true"], **options))


def test_cancelled_wait_kills_nothing(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE) as process:
            for _ in range(2):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(process.wait(), 0.01)
            assert process.returncode is None
            process.stdin.close()
            first, second = await asyncio.gather(process.wait(), process.wait())
            assert (0, 0) == (first, second)

    run(main())


def test_leaving_by_an_exception_kills_and_otherwise_waits(run):
    async def main():
        with pytest.raises(KeyError):
            async with await BOX.popen_async(["sleep", "1000"]) as process:
                raise KeyError
        assert -signal.SIGKILL == process.returncode
        async with await BOX.popen_async(["sh", "-c", "cat; exit 5"], stdin=PIPE) as process:
            pass
        assert 5 == process.returncode

    run(main())


def test_stop_asks_first_and_then_kills(run):
    async def main():
        process = await BOX.popen_async(["sh", "-c", "trap 'exit 4' TERM; echo; while :; do sleep 0.01; done"],
                                        stdout=PIPE)  # fmt: skip
        async with process:
            await process.stdout.readline()
            assert 4 == (await process.stop()).returncode
        process = await BOX.popen_async(["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.01; done"], stdout=PIPE)
        async with process:
            await process.stdout.readline()
            assert -signal.SIGKILL == (await process.stop(0.05)).returncode

    run(main())


def test_kill_of_a_stopped_init_is_certain(run):
    async def main():
        async with await BOX.popen_async(["sleep", "1000"]) as process:
            os.kill(process.init_pid, signal.SIGSTOP)
            process.kill()
            assert -signal.SIGKILL == await process.wait()

    run(main())


def test_signals_and_pid(run):
    async def main():
        async with await BOX.popen_async(["sleep", "1000"]) as process:
            assert os.path.exists(f"/proc/{process.pid}")
            process.send_signal(signal.SIGINT)
            assert -signal.SIGINT == await process.wait()
            process.terminate()
            process.kill()

    run(main())


def test_held_process_waits_for_release(run):
    async def main():
        async with await BOX.popen_async(["echo", "go"], stdout=PIPE, hold=True) as process:
            assert process.enforced.mounts
            assert not process.stdout._buffer
            process.release()
            assert b"go\n" == await process.stdout.read()
        async with await BOX.popen_async(["no-such-program"], hold=True) as process:
            process.release()
            with pytest.raises(FileNotFoundError):
                await process.wait()

    run(main())


def test_terminal_is_a_pair_of_streams(run):
    async def main():
        async with await BOX.popen_async(["sh", "-c", "tty; stty size; read x; echo got $x"], pty=(33, 99)) as process:
            assert b"/dev/pts/0\r\n" == await process.stdout.readline()
            assert b"33 99\r\n" == await process.stdout.readline()
            process.resize(20, 40)
            process.stdin.write(b"it\n")
            rest = await process.stdout.read()
            assert b"got it" in rest

    run(main())


def test_terminal_takes_more_than_it_holds(run):
    async def main():
        script = "stty raw -echo; echo; head -c 300000 | wc -c"
        async with await BOX.popen_async(["sh", "-c", script], pty=True) as process:
            await process.stdout.readline()
            process.stdin.write(b"x" * 200_000)
            process.stdin.write(b"y" * 100_000)
            await process.stdin.drain()
            assert b"300000" in await process.stdout.read()
            process.stdin.write(b"nobody reads this")

    run(main())


def test_output_over_its_limit_ends_or_cuts(run):
    flood = ["sh", "-c", "while :; do echo flood; done"]

    async def main():
        result = await BOX.limit(output=10_000).run_async(flood, stdout=PIPE)
        assert (Reason.OUTPUT_LIMIT, True, 10_000) == (result.reason, result.truncated, len(result.stdout))
        box = BOX.limit(output=10_000, when_output_full="discard")
        result = await box.run_async(["head", "-c", "50000", "/dev/zero"], stdout=PIPE)
        assert (Reason.EXITED, True, 10_000) == (result.reason, result.truncated, len(result.stdout))
        async with await BOX.limit(output=10_000).popen_async(flood, stdout=PIPE) as process:
            result = await process.result()
            assert (Reason.OUTPUT_LIMIT, True, 10_000) == (result.reason, result.truncated, len(result.stdout))

    run(main())


def test_observed_calls_are_refused_while_nobody_asks(run):
    async def main():
        result = await BOX.observe().run_async(["mount", "-t", "tmpfs", "x", "/tmp"], stderr=PIPE)
        assert "mount" in {one.call for one in result.denied}
        async with await BOX.observe().popen_async(["sh", "-c", "unshare -n true 2>&-; true"]) as process:
            denied = [one async for one in process.denials]
            assert "unshare" in {one.call for one in denied}

    run(main())


def test_notifier_answers_for_the_filter(run):
    async def main():
        box = BOX.seccomp(Filter.default().rule(Notify, "mkdir"))
        async with await box.popen_async(["sh", "-c", "mkdir /tmp/a 2>&1; mkdir /tmp/b"], stdout=PIPE) as process:
            answers = iter([errno.EXDEV, 0])
            async for asked in process.notifier:
                number = next(answers)
                asked.deny(number) if number else asked.reply(0)
            out, _ = await process.communicate()
            assert b"cross-device" in out
            assert 0 == process.returncode

    run(main())


def test_detached_process_is_the_callers(run):
    async def main():
        process = await BOX.popen_async(["sleep", "1000"])
        pidfd = process.detach()
        with pytest.raises(ValueError, match="detached"):
            await process.wait()
        await process.aclose()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)

    run(main())


def test_dropped_process_is_killed_with_a_warning(run):
    async def main():
        process = await BOX.popen_async(["sleep", "1000"])
        with pytest.warns(ResourceWarning, match="was not closed"):  # noqa: PT031  # the two belong together
            del process
            gc.collect()
        assert not harness.children()

    run(main())


def test_fork_of_the_caller_lets_go(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE) as process:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                try:
                    process.terminate()
                except ChildProcessError:
                    os._exit(0)
                os._exit(1)
            assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert process.returncode is None

    run(main())


def test_running_process_does_not_pickle():
    async def main():
        async with await BOX.popen_async(["true"]) as process:
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(process)

    asyncio.run(main())


# ── several ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wait_any_returns_who_has_ended():
    slow, quick = BOX.popen(["cat"], stdin=PIPE), BOX.popen(["true"])
    with slow, quick:
        assert {quick} == sandbox.wait_any([slow, quick])
        assert {quick} == sandbox.wait_any([slow, quick])
        assert set() == sandbox.wait_any([slow], timeout=0.01)
        assert set() == sandbox.wait_any([slow], timeout=0)
    with pytest.raises(ValueError, match="at least one"):
        sandbox.wait_any([])


def test_as_completed_yields_in_order_of_the_end():
    waiting = [BOX.popen(["cat"], stdin=PIPE) for _ in range(3)]
    order = []
    waiting[1].stdin.close()
    for process in sandbox.as_completed(waiting, timeout=30):
        order.append(waiting.index(process))
        left = [one for one in (2, 0) if one not in order]
        if left:
            waiting[left[0]].stdin.close()
    assert [1, 2, 0] == order
    for process in waiting:
        process.close()


def test_as_completed_gives_up_in_time():
    with BOX.popen(["cat"], stdin=PIPE) as process:
        with pytest.raises(TimeoutError, match="1 processes still run"):
            next(sandbox.as_completed([process], timeout=0.01))
        with pytest.raises(TimeoutError):
            list(sandbox.as_completed([process], timeout=0))


def test_waiting_for_several_answers_what_filters_refuse():
    with BOX.observe().popen(["sh", "-c", "unshare -n true 2>&-; true"]) as watched:
        assert {watched} == sandbox.wait_any([watched], timeout=30)
        assert "unshare" in {one.call for one in watched.result().denied}


def test_either_face_can_be_waited_for_in_a_loop(run):
    async def main():
        ours = await BOX.popen_async(["cat"], stdin=PIPE)
        plain = BOX.popen(["cat"], stdin=PIPE)
        plain.stdin.close()
        assert {plain} == await sandbox.wait_any_async([ours, plain])
        waiter = asyncio.ensure_future(sandbox.wait_any_async([ours]))
        await asyncio.sleep(0)
        ours.stdin.close()
        assert {ours} == await waiter
        assert [{ours, plain}] == [{one async for one in sandbox.as_completed_async([ours, plain])}]
        await ours.aclose()
        plain.close()
        with pytest.raises(ValueError, match="at least one"):
            await sandbox.wait_any_async([])

    run(main())


# ── further commands in a sandbox that runs ──────────────────────────────────────────────────────────────────────────


def test_further_commands_run_beside_the_first(run):
    async def main():
        async with await BOX.hostname("one").popen_async(["cat"], stdin=PIPE) as first:
            results = await asyncio.gather(
                *(first.run_async(["sh", "-c", f"hostname; exit {number}"], stdout=PIPE) for number in range(8))
            )
            assert [(b"one\n", number) for number in range(8)] == [(one.stdout, one.returncode) for one in results]
            async with await first.popen_async(["cat"], stdin=PIPE, stdout=PIPE) as second:
                assert (b"in", None) == await second.communicate(b"in")
                assert second.init_pid == first.init_pid
            with pytest.raises(FileNotFoundError):
                await first.run_async(["no-such-program"])
            # The sync face of Runner is there, too; it blocks the loop for as long as it takes.
            assert 0 == first.run(["true"]).returncode
            with pytest.raises(TimeoutExpired):
                await first.run_async(["sleep", "1000"], timeout=0.1)
            assert first.returncode is None
        with pytest.raises(SetupError, match="ended"):
            await first.run_async(["true"])

    run(main())


def test_further_command_ends_with_the_sandbox(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE) as first:
            second = await first.popen_async(["sleep", "1000"])
            first.kill()
            assert -signal.SIGKILL == await second.wait()
            await second.aclose()

    run(main())
