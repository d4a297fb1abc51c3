"""observe(): what the filter refuses, told while it runs and at the end; the answers stay the filter's."""

import asyncio
import errno
import select
import signal

import pytest
from payloads import number, script, tell
from supervised import supervised

from sandbox import (
    DEVNULL,
    PIPE,
    Allow,
    Errno,
    Filter,
    FilterError,
    Kill,
    Notify,
    Reason,
    Sandbox,
    SetupError,
    TimeoutExpired,
)
from sandbox.denials import Denials_async
from sandbox.notify import Notifier

pytestmark = pytest.mark.needs_userns

WATCHED = Sandbox().observe()
ATTEMPTS = f"""
say([
    call({number("unshare")}, 0x10000000),
    call({number("mount")}, b"none", b"/mnt", b"tmpfs", 0, 0),
    call({number("socket")}, 38, 5, 0),
    call({number("clone3")}, 0, 0),
    call({number("getppid")}) >= 0,
])
"""
ANSWERS = ["EPERM", "EPERM", "EAFNOSUPPORT", "ENOSYS", True]


def test_denied_tells_calls_paths_and_errnos_and_changes_none():
    assert ANSWERS == tell(Sandbox(), ATTEMPTS)
    result = WATCHED.run(script(ATTEMPTS), capture_output=True, text=True)
    assert '["EPERM", "EPERM", "EAFNOSUPPORT", "ENOSYS", true]\n' == result.stdout
    assert [
        ("unshare", None, errno.EPERM),
        ("mount", "/mnt", errno.EPERM),
        ("socket", None, errno.EAFNOSUPPORT),
    ] == [(one.call, one.path, one.errno) for one in result.denied]
    assert 0x10000000 == result.denied[0].args[0]
    assert ['.allow("unshare")', '.allow("mount")', '.allow("socket")'] == [one.suggestion for one in result.denied]
    assert len({one.pid for one in result.denied}) == 1


def test_denied_is_empty_when_nothing_was_refused():
    assert () == WATCHED.run(["true"]).denied
    assert () == Sandbox().run(script(ATTEMPTS), stdout=DEVNULL).denied


def test_suggestion_makes_the_call_work():
    denied = WATCHED.run(script(ATTEMPTS), stdout=DEVNULL).denied[0]
    filter = eval(f"Filter.default(){denied.suggestion}", {"Filter": Filter})
    assert 0 == tell(Sandbox().seccomp(filter), f"say(call({number('unshare')}, 0x10000000))")


@pytest.mark.parametrize("filter", [Filter.default(), Filter(Allow).deny("mkdir", action=Errno("EROFS"))], ids=repr)
def test_observe_keeps_the_answers_of_a_filter_of_ones_own(filter):
    body = f'say([call({number("mkdir")}, b"/tmp/x", 0o700), call({number("unshare")}, 0)])'
    box = Sandbox().seccomp(filter)
    assert tell(box, body) == tell(box.observe(), body)


def test_rule_that_decided_is_named():
    box = Sandbox().seccomp(Filter(Allow).deny("mkdir", action=Errno("EROFS"))).observe()
    (denied,) = box.run(script(f'say(call({number("mkdir")}, b"/tmp/x", 0o700))'), stdout=DEVNULL).denied
    assert (errno.EROFS, "/tmp/x") == (denied.errno, denied.path)
    assert 'deny("mkdir"' in denied.rule


def test_events_come_while_it_runs_and_can_be_polled():
    body = ATTEMPTS + "sys.stdin.read()"
    with WATCHED.popen(script(body), stdin=PIPE, stdout=DEVNULL) as process:
        seen = []
        while len(seen) < 3:
            assert [process.denials] == select.select([process.denials], [], [], 30)[0]
            seen.append(process.denials.read_event())
        assert process.poll() is None
        process.stdin.close()
        result = process.result()
    assert ["unshare", "mount", "socket"] == [one.call for one in seen]
    assert tuple(seen) == result.denied


@pytest.mark.parametrize("how", ["wait", "communicate", "result", "kill"])
def test_waiting_answers_what_nobody_reads(how):
    process = WATCHED.popen(script(ATTEMPTS), stdout=PIPE, text=True)
    try:
        if how == "communicate":
            assert "EAFNOSUPPORT" in process.communicate(timeout=30)[0]
        elif how == "kill":
            select.select([process.denials], [], [])
            process.kill()
            assert -signal.SIGKILL == process.returncode
        else:
            getattr(process, how)(30)
        if how != "kill":
            assert 3 == len(process.result().denied)
    finally:
        process.close()


def test_closing_the_denials_ends_the_wait():
    with WATCHED.popen(script(ATTEMPTS), stdout=PIPE, text=True) as process:
        select.select([process.denials], [], [])
        process.denials.close()
        out, _ = process.communicate(timeout=30)
    assert "ENOSYS" in out
    assert process.result().denied == ()


def test_timeout_while_calls_are_refused_without_end():
    with pytest.raises(TimeoutExpired) as caught:
        WATCHED.run(script(f"while True: call({number('unshare')}, 0x10000000)"), timeout=0.5)
    assert Reason.TIMEOUT == caught.value.result.reason
    assert len(caught.value.result.denied) > 10


def test_every_thread_and_child_is_watched():
    body = f"""
import threading
def one(): call({number("unshare")}, 0x10000000)
threads = [threading.Thread(target=one) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for _ in range(8):
    if os.fork() == 0:
        one()
        os._exit(0)
for _ in range(8): os.wait()
say(0)
"""
    result = WATCHED.run(script(body), stdout=DEVNULL)
    assert 16 == len(result.denied)
    assert 16 == len({one.pid for one in result.denied})


def test_killing_actions_stay_what_they_are():
    box = Sandbox().seccomp(Filter.default().deny("mkdir", action=Kill)).observe()
    result = box.run(script(f'call({number("mkdir")}, b"/tmp/x", 0o700)'))
    assert (Reason.SECCOMP, ()) == (result.reason, result.denied)


def test_observe_refuses_what_it_could_not_watch():
    asks = Filter.default().rule(Notify, "mkdir")
    for make in (lambda: WATCHED.seccomp(asks), lambda: Sandbox().seccomp(asks).observe()):
        with pytest.raises(FilterError, match="one supervisor"):
            make()
    for make in (lambda: WATCHED.seccomp(None), lambda: Sandbox().seccomp(None).observe()):
        with pytest.raises(ValueError, match="leaves none"):
            make()
    WATCHED.observe(False).seccomp(None)


def test_second_supervisor_of_a_process_is_a_set_up_error():
    """The caller runs under a filter with a listener; the kernel allows one."""

    def nested():
        with pytest.raises(SetupError) as caught:
            WATCHED.run(["true"])
        assert "supervisor" in caught.value.hint
        assert 0 == Sandbox().run(["true"]).returncode
        return caught.value.call.partition("(")[0], caught.value.errno

    with supervised(nested, "acct") as target, Notifier(target.listener):
        assert ["seccomp_listen", errno.EBUSY] == target.result()


def test_denials_come_to_asyncio_while_the_payload_runs():
    async def watch():
        with WATCHED.popen(["sh", "-c", "unshare -U true; unshare -U true; exit 3"], stderr=DEVNULL) as process:
            denials = Denials_async(process.denials)
            seen = [denied.call async for denied in denials]
            assert 3 == process.wait()
            return seen, process.result()

    seen, result = asyncio.run(asyncio.wait_for(watch(), 60))
    assert ["unshare", "unshare"] == seen
    assert 2 == len(result.denied)


def test_denials_of_an_asyncio_twin_that_is_closed_are_refused_without_a_witness():
    async def leave():
        with WATCHED.popen(["sh", "-c", "read x; unshare -U true || exit 7"], stdin=PIPE, stderr=DEVNULL) as process:
            denials = Denials_async(process.denials)
            waiting = asyncio.ensure_future(denials.get())
            await asyncio.sleep(0)
            denials.close()
            with pytest.raises(ValueError, match="closed"):
                await waiting
            process.stdin.write(b"go\n")
            process.stdin.close()
            return process.wait(30)

    assert 7 == asyncio.run(leave())
