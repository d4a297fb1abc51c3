"""Several tasks, threads and loops at one process of the asyncio face, and cancellations at a bad moment."""

import asyncio
import gc
import os
import signal
import sys
import threading
import warnings
import weakref

import harness
import plans
import pytest
import uvloop

from sandbox import DEVNULL, PIPE, BusyError, Reason, Sandbox, as_completed_async, wait_any_async

pytestmark = pytest.mark.needs_userns

BOX = Sandbox()
SLEEP = ["sleep", "1000"]
FLOOD = "head -c 1000000 /dev/zero"
PATIENCE = 30  # seconds until a test that hangs has failed
uvloop.new_event_loop().close()  # what libuv opens once in a process is no leak of the first test


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request, monkeypatch):
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")  # a loop touched by another thread is an error
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture
def unraisable(monkeypatch):
    """Collect what destructors and threads could tell nobody."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: seen.append(repr(told.exc_value)))
    return seen


def started():
    """Start a process in a loop that is closed then; uvloop's own close waits for the handles that it still has."""
    kept = []

    async def main():
        kept.append(await BOX.popen_async(SLEEP, stdin=PIPE, stdout=PIPE))

    asyncio.run(main())
    return kept


def alive(pid):
    return os.path.exists(f"/proc/{pid}")


# ── several tasks ──


def test_two_tasks_that_communicate_are_told_and_the_first_goes_on(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE, stdout=PIPE) as process:
            first = asyncio.create_task(process.communicate(b"x"))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="communicates"):
                await process.communicate()
            assert (b"x", None) == await first
            assert (b"x", None) == await process.communicate()

    run(main())


def test_loop_in_which_launches_have_waited_for_each_other_is_not_kept(run):
    async def main():
        await asyncio.gather(*(BOX.run_async(["true"]) for _ in range(3)))
        return weakref.ref(asyncio.get_running_loop())

    loop = run(main())
    gc.collect()
    assert loop() is None


def test_communicate_beside_a_task_that_reads_is_busy(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE, stdout=PIPE) as process:
            reader = asyncio.create_task(process.stdout.readline())
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="stdout"):
                await process.communicate()
            assert b"" == await reader

    run(main())


def test_result_beside_a_task_that_reads_leaves_it_what_it_reads(run):
    async def main():
        async with await BOX.popen_async(["sh", "-c", "read x; echo $x"], stdin=PIPE, stdout=PIPE) as process:
            reader = asyncio.create_task(process.stdout.read())
            await asyncio.sleep(0)
            process.stdin.write(b"theirs\n")
            result = await process.result()
            assert (b"theirs\n", b"", 0) == (await reader, result.stdout, result.returncode)

    run(main())


def test_communicate_after_a_cancellation_has_all_that_was_said(run):
    async def main(gate, key):
        script = "echo a; read x; echo $x; read y <&3; echo b"
        async with await BOX.popen_async(["sh", "-c", script], stdin=PIPE, stdout=PIPE, fds={3: gate}) as process:
            talk = asyncio.create_task(process.communicate(b"taken\n"))
            while b"taken" not in process._heard.get("stdout", b""):
                await asyncio.sleep(0.001)
            talk.cancel()
            with pytest.raises(asyncio.CancelledError):
                await talk
            with pytest.raises(ValueError, match="after starting"):
                await process.communicate(b"more")
            os.write(key, b"\n")
            assert (b"a\ntaken\nb\n", None) == await process.communicate()

    with plans.pipes() as (gate, key):
        run(main(gate, key))


def test_many_tasks_wait_and_close(run):
    async def main():
        process = await BOX.popen_async(SLEEP, stdout=PIPE)
        waiting = [asyncio.create_task(process.wait()) for _ in range(5)]
        await asyncio.gather(*(process.aclose() for _ in range(5)))
        await process.aclose()
        assert [-signal.SIGKILL] * 5 == await asyncio.gather(*waiting)

    run(main())


def test_two_tasks_wait_for_one_process_of_the_sync_face_and_one_may_be_cancelled(run):
    async def main():
        with BOX.popen(["cat"], stdin=PIPE, stdout=DEVNULL) as process:
            tasks = [asyncio.create_task(wait_any_async([process])) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tasks[2].cancel()
            await asyncio.wait([tasks[2]])
            process.stdin.close()
            assert [{process}] * 2 == await asyncio.wait_for(asyncio.gather(*tasks[:2]), PATIENCE)

    run(main())


def test_waiting_in_a_loop_for_the_sync_face_answers_what_filters_refuse(run):
    async def main():
        with BOX.observe().popen(["unshare", "-U", "true"], stderr=DEVNULL) as process:
            first, second = wait_any_async([process]), anext(as_completed_async([process]))
            await asyncio.wait_for(asyncio.gather(first, second), PATIENCE)
            assert "unshare" in {one.call for one in process.denials.seen}
            assert process.returncode

    run(main())


# ── leaving and stopping ──


def test_leaving_the_block_with_unread_output_ends_who_writes_as_popen_does(run):
    async def main():
        async with await BOX.popen_async(["sh", "-c", FLOOD], stdout=PIPE) as process:
            pass
        return process.returncode

    with BOX.popen(["sh", "-c", FLOOD], stdout=PIPE) as there:
        pass
    assert there.returncode == run(asyncio.wait_for(main(), PATIENCE)) != 0


def test_stop_takes_what_a_command_says_at_its_end(run):
    async def main():
        script = f"trap '{FLOOD}; exit 3' TERM; echo; while :; do read x; done"
        async with await BOX.popen_async(["sh", "-c", script], stdin=DEVNULL, stdout=PIPE) as process:
            await process.stdout.readline()
            return await process.stop(PATIENCE)

    result = run(main())
    assert (3, 1_000_000, Reason.EXITED) == (result.returncode, len(result.stdout), result.reason)


def test_cancelled_aclose_ends_and_closes_all_the_same_and_says_that_it_was_cancelled(run):
    async def main():
        process = await BOX.popen_async(SLEEP, stdout=PIPE)
        os.kill(process.init_pid, signal.SIGSTOP)  # the end takes its time
        task = asyncio.create_task(process.aclose())
        await asyncio.sleep(0)
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not alive(process.init_pid)
        with pytest.raises(ValueError, match="closed"):
            process.fileno()

    run(main())


def test_cancellation_during_a_block_is_never_lost(run):
    async def body(inside):
        async with await BOX.popen_async(SLEEP, stdin=PIPE, stdout=PIPE) as process:
            inside.set_result(process)
            await process.wait()

    async def main():
        inside = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(body(inside))
        process = await inside
        os.kill(process.init_pid, signal.SIGSTOP)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert -signal.SIGKILL == process.returncode

    run(main())


@pytest.mark.parametrize("box", [BOX, BOX.observe()], ids=["plain", "observed"])
def test_cancelled_at_any_turn_of_a_launch_leaves_nothing(box, run):
    async def main():
        cancelled = 0
        for turns in (*range(12), 15, 20, 30, 60):
            task = asyncio.create_task(box.popen_async(SLEEP, stdin=PIPE, stdout=PIPE))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                process = await task
            except asyncio.CancelledError:
                cancelled += 1
            else:
                await process.aclose()
        return cancelled

    before = harness.footprint()
    assert run(main()) > 5
    assert before == harness.footprint(settle=before)


# ── other loops and threads ──


def test_garbage_after_the_end_of_its_loop_is_killed_and_closed(unraisable):
    (process,) = kept = started()
    pid = process.init_pid
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del process
        kept.clear()
        gc.collect()
    assert not unraisable
    assert not alive(pid)


@pytest.mark.parametrize("how", ["aclose", "kill and aclose"])
def test_process_whose_loop_was_closed_can_be_ended_in_another(how, unraisable):
    (process,) = started()
    pid = process.init_pid
    if how != "aclose":
        process.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, of a pipe whose loop has gone
        asyncio.run(asyncio.wait_for(process.aclose(), PATIENCE))
        assert -signal.SIGKILL == process.returncode
        del process
        gc.collect()
    assert not unraisable
    assert not alive(pid)


def test_garbage_collected_by_another_thread_is_ended_by_its_loop(run, unraisable):
    async def main():
        process = await BOX.popen_async(SLEEP, stdin=PIPE, stdout=PIPE)
        pid = process.init_pid
        kept = [process]
        closed_by = []
        abandon = type(process)._abandon

        def noted(self):
            closed_by.append(threading.get_ident())
            abandon(self)

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            patch.setattr(type(process), "_abandon", noted)
            del process
            await asyncio.get_running_loop().run_in_executor(None, kept.clear)
            while not closed_by:
                await asyncio.sleep(0.001)
        assert [threading.get_ident()] == closed_by
        assert not alive(pid)

    run(main())
    gc.collect()
    assert not unraisable


def test_awaiting_in_another_loop_says_so_and_disturbs_nothing(run):
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE, stdout=PIPE) as process:
            errors = []

            def elsewhere():
                for wait in (process.wait, process.aclose):
                    try:
                        asyncio.run(wait())
                    except RuntimeError as error:
                        errors.append(str(error))

            await asyncio.get_running_loop().run_in_executor(None, elsewhere)
            assert 2 == len(errors)
            assert "belongs to the loop" in errors[0]
            assert (b"still", None) == await process.communicate(b"still")

    run(main())
