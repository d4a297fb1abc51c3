"""Bombs, strangers with our numbers, and many threads: nothing outlives its time, and nobody else is hit."""

import logging
import os
import select
import signal
import subprocess
import threading
import time

import harness
import payloads
import plans
import pytest
from supervision import alive, drive, python, shell, until

import sandbox
from sandbox import Reason, Sandbox
from sandbox.primitives import CLONE_NEWNS, CLONE_NEWPID, clone3, mount
from sandbox.supervise import (
    Ready,
    Restart,
    ServiceExited,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    State,
    Supervisor,
)

pytestmark = pytest.mark.needs_userns

# Bounded, for the control runs on the host. Each process that is left holds the pipe of number 9.
BOMBS = {
    "forks": "import os, time\nfor _ in range(6): os.fork()\n",
    "threads": "import threading, time\nfor _ in range(60): threading.Thread(target=time.sleep, args=[1000]).start()\n",
    "double fork": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n",
    "sessions": "import os, time\nfor _ in range(20):\n    if os.fork() == 0:\n        os.setsid()\n        break\n",
    "deaf": "import os, signal, time\nfor n in signal.valid_signals() - {9, 19}: signal.signal(n, 1)\nos.fork()\n",
}
ENDLESS = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(1000)\n"
READY = "os.write(9, b'.') if 'os' in globals() else open(9, 'wb', 0, closefd=False).write(b'.')\ntime.sleep(1000)\n"


def script(kind: str) -> list[str]:
    return [payloads.PYTHON, "-S", "-c", BOMBS[kind] + READY]


def ended(fd: int, seconds: float) -> bool:
    """Read to the end of file; False when somebody still holds the other end after so long."""
    while select.select([fd], [], [], seconds)[0]:
        if not os.read(fd, 4096):
            return True
    return False


@pytest.mark.parametrize("kind", BOMBS)
def test_bomb_is_gone_within_a_second_of_the_timeout(kind):
    with plans.pipes() as fds:
        with pytest.raises(sandbox.TimeoutExpired):
            sandbox.run(script(kind), fds={9: fds[1]}, timeout=0.5)
        os.close(fds[1])
        fds[1] = -1
        assert ended(fds[0], 1.0), "a process outlived the timeout by a second"


@pytest.mark.parametrize("kind", sorted(BOMBS.keys() - {"threads"}))
def test_bomb_outlives_its_parent_without_a_sandbox(kind):
    """The control: to kill the process that was started is not enough, but for its own threads."""

    def check():
        harness.become_subreaper()
        with plans.pipes() as fds:
            os.dup2(fds[1], 9)
            with subprocess.Popen(script(kind), pass_fds=[9]) as process:
                os.read(fds[0], 1)
                os.read(fds[0], 1)
                process.kill()
            os.close(9)
            os.close(fds[1])
            fds[1] = -1
            try:
                assert not ended(fds[0], 0.2)
            finally:
                while left := harness.children():
                    for pid in left:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)

    harness.in_child(check)


def test_pid_that_is_somebody_elses_by_now_is_never_signalled():
    def inside():
        # PID 1 of its namespace, where the next number can be chosen.
        mount("proc", "/proc", "proc")
        # Root of a namespace of one id: none is free for the sandbox.
        process = Sandbox().user(host_root=True).popen(["sh", "-c", "exit 3"])
        number = process.init_pid
        # Somebody else reaps, and the number is free.
        os.waitpid(number, 0)
        stranger = clone3(set_tid=[number])
        if stranger == 0:
            signal.pause()
            os._exit(0)
        assert number == stranger
        assert 3 == process.wait()
        process.send_signal(signal.SIGKILL)
        process.terminate()
        process.kill()
        process.close()
        assert alive(stranger)
        os.kill(number, signal.SIGKILL)  # the control: by number it is the stranger who dies
        assert signal.SIGKILL == os.WTERMSIG(os.waitpid(stranger, 0)[1])

    def check():
        harness.enter_namespaces(CLONE_NEWPID | CLONE_NEWNS)
        harness.in_child(inside)

    harness.in_child(check)


def test_sixty_four_threads_launch_while_others_allocate_import_and_log(tmp_path):
    def check():
        log = logging.getLogger("test_security_lifetime")
        log.addHandler(logging.FileHandler(tmp_path / "log"))
        log.setLevel(logging.INFO)
        stop = threading.Event()

        def allocate():
            while not stop.is_set():
                [bytearray(10_000) for _ in range(100)]

        def load():
            import sys

            while not stop.is_set():
                for name in ("colorsys", "sndhdr", "wave", "chunk"):
                    sys.modules.pop(name, None)
                import colorsys
                import wave

                assert colorsys, wave

        def write():
            while not stop.is_set():
                log.info("as others launch")

        box = Sandbox()
        found: list[int] = []
        gate = threading.Barrier(64)

        def work(number: int) -> None:
            gate.wait()
            found.append(number if box.run(["sh", "-c", f"exit {number}"]).returncode == number else -1)

        before = harness.footprint()
        others = [threading.Thread(target=target) for target in (allocate, load, write)]
        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in (*others, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        for thread in others:
            thread.join()
        assert list(range(64)) == sorted(found)
        assert before == harness.footprint(settle=before)

    os.chmod(tmp_path, 0o777)
    harness.give_away(tmp_path)
    harness.in_child(check)


# ── the same as services ──


@pytest.mark.needs_cgroup("memory", "pids")
def test_service_that_is_a_fork_bomb_is_stopped_whole():
    box = Sandbox().limit(pids=30)
    with Supervisor() as supervisor:
        supervisor.add("bomb", python(ENDLESS), sandbox=box, stop_timeout=0.1)
        until(supervisor, ServiceReady)
        process = supervisor._services["bomb"]._process
        drive(supervisor, lambda: process.usage().pids_peak == 30)
        supervisor.stop()
        result = until(supervisor, ServiceExited).result
    assert 30 == result.usage.pids_peak
    assert "pids.max refused" in result.detail


@pytest.mark.needs_cgroup("memory", "pids")
def test_service_that_is_a_memory_bomb_says_so_and_is_started_again():
    bomb = "kept = []\nwhile True: kept.append(bytearray(1 << 20))"
    with Supervisor() as supervisor:
        supervisor.add(
            "bomb",
            python(bomb),
            sandbox=Sandbox().limit(memory="32M"),
            restart=Restart.on_failure(backoff=0, limit=1),
        )
        supervisor.add("bystander", shell("echo >&$READY_FD; exec sleep 1000"), ready=Ready.fd())
        for _ in range(2):
            assert Reason.OOM is until(supervisor, ServiceExited, "bomb").result.reason
        drive(supervisor, lambda: supervisor.status()["bomb"].state is State.FAILED)
        assert State.READY is supervisor.status()["bystander"].state


@pytest.mark.needs_cgroup("pids")
@pytest.mark.parametrize("how", ["frozen", "waits after vfork", "stopped"])
def test_service_that_takes_no_signal_is_stopped_all_the_same(how):
    command = python("import os; os.system('sleep 1000')") if how == "waits after vfork" else shell("sleep 1000; :")
    with Supervisor() as supervisor:
        supervisor.add("deaf", command, sandbox=Sandbox().limit(pids=20), stop_timeout=0.05)
        until(supervisor, ServiceReady)
        pid = supervisor.status()["deaf"].pid
        if how == "frozen":
            supervisor._services["deaf"]._process.freeze()
        elif how == "stopped":
            os.kill(pid, signal.SIGSTOP)
        supervisor.stop()
        until(supervisor, ServiceExited)
    assert not alive(pid)


# ── clocks ──


@pytest.mark.parametrize("leap", [-1e6, 1e6], ids=["back", "ahead"])
def test_clock_that_somebody_sets_moves_no_deadline(leap, monkeypatch):
    """Nobody here may set the clock of the machine: the calls that tell it lie instead."""
    real = time.time
    shift = [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    with Supervisor() as supervisor:
        supervisor.add("fails", shell("exit 1"), restart=Restart.on_failure(backoff=0.05, limit=2))
        supervisor.add("late", shell("sleep 1000"), ready=Ready.fd(), ready_timeout=60)
        before = until(supervisor, ServiceRestarting, "fails").time
        shift[0] = leap
        after = until(supervisor, ServiceStarted, "fails").time
        drive(supervisor, lambda: supervisor.status()["fails"].state is State.FAILED)
        assert State.STARTING is supervisor.status()["late"].state
        assert abs(after - before - leap) < 3600  # the control: the leap was seen, in what is told
    with pytest.raises(sandbox.TimeoutExpired):
        Sandbox().run(["sleep", "1000"], timeout=0.1)
    assert Reason.TIMEOUT is Sandbox().limit(wall_time=0.1).run(["sleep", "1000"]).reason
