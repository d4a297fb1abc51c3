"""Why it ended: every `Reason` is provoked on either face, with its evidence, and none is told of an innocent."""

import asyncio
import os
import re
import signal

import payloads
import pytest

from sandbox import PIPE, Filter, Kill, Reason, Sandbox, TimeoutExpired

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_cgroup("memory", "pids")]

BUSY = ["sh", "-c", "while :; do :; done"]
BOMB = [payloads.PYTHON, "-S", "-c", "kept = []\nwhile True: kept.append(bytearray(1 << 20))"]
FLOOD = ["sh", "-c", "yes"]
SLEEP = ["sleep", "1000"]


class Stop(Exception):
    """What the caller is interrupted by."""


def finished(process):
    return process.result()


def killed_init(process):
    os.kill(process.init_pid, signal.SIGKILL)
    return process.result()


def interrupted(process):
    with pytest.raises(Stop), process:
        raise Stop
    return process.result()


# For each: the sandbox, the command, what the caller does, the return code and the evidence.
TABLE = {
    Reason.EXITED: (Sandbox(), ["sh", "-c", "exit 3"], finished, 3, "exit status 3"),
    Reason.SIGNALED: (Sandbox(), ["sh", "-c", "kill -HUP $$"], finished, -1, "signal SIGHUP"),
    Reason.TIMEOUT: (Sandbox().limit(wall_time=0.2), SLEEP, finished, -9, r"0\.\d+ seconds: wall_time .* 0\.2"),
    Reason.CPU_TIME: (Sandbox().limit(cpu_time=1), BUSY, finished, None, r"CPU time: cpu_time is limited to 1"),
    Reason.OOM: (Sandbox().limit(memory="32M"), BOMB, finished, -9, r"memory"),
    Reason.SECCOMP: (
        Sandbox().seccomp(Filter.default().deny("getpriority", action=Kill)),
        [payloads.PYTHON, "-S", "-c", "import os; os.getpriority(0, 0)"],
        finished,
        -signal.SIGSYS,
        "SIGSYS: the seccomp filter",
    ),
    Reason.OUTPUT_LIMIT: (Sandbox().limit(output=1000), FLOOD, finished, -9, r"1000 bytes: output is limited"),
    Reason.CANCELLED: (Sandbox(), SLEEP, interrupted, -9, "interrupted: Stop"),
    Reason.INIT_DIED: (Sandbox(), SLEEP, killed_init, -9, "PID 1 of the sandbox ended without a report"),
}
ALL = pytest.mark.parametrize("reason", list(Reason))


def check(reason: Reason, result) -> None:
    _, _, _, status, evidence = TABLE[reason]
    assert reason is result.reason, result
    assert status is None or status == result.returncode, result
    assert re.search(evidence, result.detail), result.detail


@ALL
def test_reason_is_told_with_its_evidence(reason):
    box, command, act, _, _ = TABLE[reason]
    with box.popen(command, stdout=PIPE, bufsize=0) as process:
        check(reason, act(process))


@ALL
def test_reason_is_the_same_in_asyncio(reason):
    box, command, act, _, _ = TABLE[reason]

    async def main():
        process = await box.popen_async(command, stdout=PIPE)
        if act is interrupted:
            with pytest.raises(Stop):
                async with process:
                    raise Stop
        elif act is killed_init:
            os.kill(process.init_pid, signal.SIGKILL)
        async with process:
            return await process.result()

    check(reason, asyncio.run(main()))


@ALL
def test_reason_is_of_the_limit_alone(reason):
    """The control: what does the same harm with nothing in its way, or stays below, ends as it wants to."""
    box = TABLE[reason][0]
    quiet = box.run(["sh", "-c", "echo well; exit 7"], stdout=PIPE)
    assert (Reason.EXITED, "exit status 7", b"well\n") == (quiet.reason, quiet.detail, quiet.stdout)


def test_timeout_of_the_caller_is_one_too():
    with pytest.raises(TimeoutExpired) as caught:
        Sandbox().run(SLEEP, timeout=0.1)
    assert Reason.TIMEOUT is caught.value.result.reason
    assert "0.1 seconds, the caller's timeout" in caught.value.result.detail


def test_interrupted_after_the_end_is_no_cancellation():
    process = Sandbox().popen(["sh", "-c", "exit 3"])
    process.wait()
    interrupted(process)
    assert (Reason.EXITED, 3) == (process.result().reason, process.returncode)


# ── the caller's patience ends, whatever the command does at that moment ──

THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=[1000]).start()"
PHASES = {
    "it starts": (SLEEP, {"timeout": 0}),
    "it waits for a writer": (["sh", "-c", "mkfifo /tmp/f; read x < /tmp/f"], {}),
    "it takes no input": (SLEEP, {"input": bytes(1 << 20)}),
    "it floods": (FLOOD, {"stdout": PIPE}),
    "it has closed its streams": (["sh", "-c", "exec <&- >&- 2>&-; sleep 1000"], {"capture_output": True}),
    "it is stopped": (["sh", "-c", "kill -STOP $$"], {}),
    "it ignores signals": (["sh", "-c", "trap '' TERM INT HUP; sleep 1000 & wait"], {}),
    "it forks in new sessions": (["sh", "-c", "while :; do setsid sleep 1000 & sleep 0.05; done"], {}),
    "its parent waits after vfork": ([payloads.PYTHON, "-S", "-c", "import os; os.system('sleep 1000')"], {}),
    "a thread of it goes on": ([payloads.PYTHON, "-S", "-c", THREAD], {}),
}


@pytest.mark.parametrize("how", ["run", "run_async", "wall_time"])
@pytest.mark.parametrize("phase", PHASES)
def test_timeout_ends_it_in_every_phase(phase, how):
    command, options = PHASES[phase]
    box = Sandbox().limit(output="1M", when_output_full="discard")
    options = {"timeout": 0.3, **options}
    if how == "wall_time":
        seconds = options.pop("timeout") or 0.001
        result = box.limit(wall_time=seconds).run(command, **options)
        assert (Reason.TIMEOUT, -9) == (result.reason, result.returncode)
        return
    with pytest.raises(TimeoutExpired) as caught:
        box.run(command, **options) if how == "run" else asyncio.run(box.run_async(command, **options))
    assert (Reason.TIMEOUT, -9) == (caught.value.result.reason, caught.value.result.returncode)


def test_timeout_ends_what_is_frozen():
    with Sandbox().limit(pids=20, wall_time=0.5).popen(SLEEP) as process:
        process.freeze()
        assert Reason.TIMEOUT is process.result(30).reason
