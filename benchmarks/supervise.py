"""What supervision costs, beside supervisord, circus, runit and s6, in one run.

    python benchmarks/supervise.py [--quick] [plain boxed supervisor circus runit s6]

Restarts are seen from outside, alike for all: a service that is killed, and the first instruction of its successor,
which writes the time to a FIFO. The unit is a bare launch of the same program, interleaved: by `posix_spawn`, and by
this library without a supervisor. Peers that are not installed are left out.
"""

import contextlib
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sandbox import Sandbox
from sandbox.supervise import Restart, ServiceExited, State, Supervisor
from sandbox.supervise.plain import Plain

HERE = Path(__file__).parent
IDLE = 0.05  # seconds of nothing before each launch
SPACE = 1.15  # seconds between two kills of a peer: several wait out the first second of a service

OURS = """
import sys
from sandbox import Sandbox
from sandbox.supervise import Restart, Supervisor
box = {"plain": None, "boxed": Sandbox().bind_readonly(sys.argv[3]).bind(sys.argv[4])}[sys.argv[1]]
with Supervisor() as supervisor:
    for i in range(int(sys.argv[2])):
        supervisor.add(f"s{i}", sys.argv[3:4 + (i == 0)], sandbox=box, restart=Restart.always(backoff=0))
    supervisor.run()
"""


class Starts:
    """The FIFO that services write to when they begin."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "fifo")
        os.mkfifo(self.path)
        os.chmod(self.path, 0o666)
        self.fd = os.open(self.path, os.O_RDWR)

    def next(self, timeout: float = 15.0) -> tuple[float, int]:
        """Return when the next one began, in seconds, and its pid."""
        if not select.select([self.fd], [], [], timeout)[0]:
            raise TimeoutError("no service began")
        when, pid = os.read(self.fd, 100).split()
        return int(when) / 1e9, int(pid)


def restarts(starts: Starts, count: int, space: float, between: Callable[[], None]) -> list[float]:
    """Kill the service again and again; return the seconds until each successor began."""
    _, pid = starts.next()
    found = []
    for _ in range(count):
        between()
        time.sleep(space)
        pidfd = os.pidfd_open(pid if in_our_namespace(pid) else find())
        before = time.monotonic()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        when, pid = starts.next()
        found.append(when - before)
    return found


PROGRAM = ""


def in_our_namespace(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/exe") == PROGRAM
    except OSError:
        return False


def find() -> int:
    """Return the host's pid of the only process of the program, which says the pid that it has inside."""
    for name in os.listdir("/proc"):
        if name.isdigit() and in_our_namespace(int(name)):
            with open(f"/proc/{name}/cmdline", "rb") as stream:
                if stream.read().count(b"\0") == 2:
                    return int(name)
    raise ProcessLookupError


@contextlib.contextmanager
def running(words: list[str], **options: object) -> Iterator[int]:
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as process:  # type: ignore[call-overload]
        try:
            yield process.pid
        finally:
            # Some leave their services behind: parents first, so that nothing is started again.
            left = [os.pidfd_open(pid) for pid in tree(process.pid)[1:]]
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            for pidfd in left:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)


def supervisord(folder: Path, command: list[str], count: int) -> list[str]:
    text = f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={folder}/pid\n"
    for i in range(count):
        words = " ".join(command if i == 0 else command[:1])
        text += f"[program:s{i}]\ncommand={words}\nautorestart=true\nstartsecs=0\n"
        text += "stdout_logfile=NONE\nstderr_logfile=NONE\n"
    (folder / "supervisord.conf").write_text(text)
    return [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(folder / "supervisord.conf")]


def circus(folder: Path, command: list[str], count: int) -> list[str]:
    text = f"[circus]\nendpoint = ipc://{folder}/ep\npubsub_endpoint = ipc://{folder}/ps\n"
    for i in range(count):
        words = command if i == 0 else command[:1]
        text += f"[watcher:s{i}]\ncmd = {' '.join(words)}\n"
    (folder / "circus.ini").write_text(text)
    return [sys.executable, "-W", "ignore", "-m", "circus.circusd", str(folder / "circus.ini")]


def scanned(program: str) -> Callable[[Path, list[str], int], list[str]]:
    def prepare(folder: Path, command: list[str], count: int) -> list[str]:
        for i in range(count):
            service = folder / "services" / f"s{i}"
            service.mkdir(parents=True)
            (service / "run").write_text(f"#!/bin/sh\nexec {' '.join(command if i == 0 else command[:1])}\n")
            (service / "run").chmod(0o755)
        return [program, str(folder / "services")]

    return prepare


def contenders() -> dict[str, Callable[[Path, list[str], int], list[str]]]:
    found: dict[str, Callable[[Path, list[str], int], list[str]]] = {
        "plain": lambda _, command, count: [sys.executable, "-c", OURS, "plain", str(count), *command],
        "boxed": lambda _, command, count: [sys.executable, "-c", OURS, "boxed", str(count), *command],
    }
    for name, prepare in (("supervisor", supervisord), ("circus", circus)):
        with contextlib.suppress(ImportError):
            __import__(name)
            found[name] = prepare
    for name, program in (("runit", "runsvdir"), ("s6", "s6-svscan")):
        if shutil.which(program):
            found[name] = scanned(program)
    return found


def tree(pid: int) -> list[int]:
    """Return a process and all below it, parents first."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError), open(f"/proc/{one}/task/{one}/children") as stream:
            found += map(int, stream.read().split())
    return found


def below(pid: int) -> list[int]:
    """Return the same without the services."""
    return [one for one in tree(pid) if not in_our_namespace(one)]


def memory(pids: list[int]) -> int:
    """Return the proportional share of memory, in KiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/smaps_rollup") as stream:
            total += next(int(line.split()[1]) for line in stream if line.startswith("Pss:"))
    return total


def cpu(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stream:
            total += sum(map(int, stream.read().rpartition(")")[2].split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def services(count: int) -> None:
    """Wait until so many processes of the program run."""
    deadline = time.monotonic() + 120
    while sum(in_our_namespace(int(n)) for n in os.listdir("/proc") if n.isdigit()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError("the services do not start")
        time.sleep(0.2)


class Bare:
    """Launches of the same program without a supervisor, each of the three ways."""

    def __init__(self, starts: Starts, command: list[str]) -> None:
        self._starts, self._command, self._env = starts, command, dict(os.environ)
        self._plain = Plain(tuple(map(os.fsencode, command)), None)
        self._box = Sandbox().bind_readonly(command[0]).bind(starts.path)
        self._null = os.open("/dev/null", os.O_RDWR)
        self.took: dict[str, list[float]] = {}

    def launch(self, way: str) -> None:
        """Launch one, and note the seconds until its first instruction."""
        time.sleep(IDLE)
        before = time.monotonic()
        if way == "posix_spawn":
            pid = os.posix_spawn(self._command[0], self._command, self._env)
        elif way == "plain":
            process = self._plain.start(self._command, self._env, (self._null,) * 3, {})
        else:
            process = self._box.popen(self._command)
        self.took.setdefault(way, []).append(self._starts.next()[0] - before)
        if way == "posix_spawn":
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        else:
            process.close()

    def launches(self, ways: tuple[str, ...]) -> None:
        for way in ways:
            self.launch(way)


def thousand_exits(program: str, count: int) -> tuple[float, float, float]:
    """Kill a service each millisecond; return median and largest lag of the event, and the share of a core used."""
    with Supervisor() as supervisor:
        for i in range(count):
            supervisor.add(f"s{i}", [program], restart=Restart.never())
        while any(one.state is not State.READY for one in supervisor.status().values()):
            supervisor.step(1.0)
        pids = {name: one.pid for name, one in supervisor.status().items()}
        killer = os.fork()
        begin = time.monotonic() + 0.2
        names = list(pids)
        if killer == 0:
            for i, name in enumerate(names):
                while (left := begin + i / 1000 - time.monotonic()) > 0:
                    time.sleep(left)
                os.kill(pids[name] or 0, signal.SIGKILL)
            os._exit(0)
        lags = []
        before = time.process_time()
        while len(lags) < count:
            for event in supervisor.step(1.0):
                if isinstance(event, ServiceExited):
                    lags.append(time.monotonic() - begin - names.index(event.service) / 1000)
        used = time.process_time() - before
        os.waitpid(killer, 0)
    return statistics.median(lags), max(lags), used / (count / 1000)


def main() -> None:
    global PROGRAM
    quick = "--quick" in sys.argv[1:]
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        PROGRAM = str(folder / "service")
        subprocess.run(["cc", "-O2", "-o", PROGRAM, HERE / "supervise.c"], check=True)
        starts = Starts(folder)
        command = [PROGRAM, starts.path]
        rows(console, folder, starts, command, quick)


def rows(console: Console, folder: Path, starts: Starts, command: list[str], quick: bool) -> None:
    bare = Bare(starts, command)
    table = Table(title="restarts and idle services")
    for title in ("", "restart, ms", "of a bare launch", "of posix_spawn", "memory a service, KiB", "CPU idle, %"):
        table.add_column(title, no_wrap=True, justify="right" if title else "left")
    many = 20 if quick else 200
    only = [word for word in sys.argv[1:] if not word.startswith("-")]
    for label, prepare in contenders().items():
        if only and label not in only:
            continue
        ours = label in {"plain", "boxed"}
        place = folder / label
        place.mkdir()
        console.print(f"{label} ...", style="dim")
        with running(prepare(place, command, 1)) as pid:
            ways = ("posix_spawn", label) if ours else ("posix_spawn",)
            bare.took.clear()
            count = (10 if quick else 100) if ours else (3 if quick else 8)
            # In turns: an hour or a minute later all of it takes another time.
            found = restarts(starts, count, IDLE if ours else SPACE, partial(bare.launches, ways))
            launched = {way: statistics.median(times) for way, times in bare.took.items()}
            time.sleep(0.5)
            alone = memory(below(pid))
        place = folder / f"{label}-many"
        place.mkdir()
        with running(prepare(place, command, many)) as pid:
            services(many)
            starts.next()
            time.sleep(2 if quick else 6)
            pids = below(pid)
            each = (memory(pids) - alone) / (many - 1)
            before = cpu(pids)
            time.sleep(3 if quick else 10)
            idle = (cpu(pids) - before) / (3 if quick else 10)
        restart = statistics.median(found)
        launch = f"{restart / launched[label]:.2f}" if ours else ""
        table.add_row(
            {"plain": "Supervisor, plain", "boxed": "Supervisor, sandboxed"}.get(label, label),
            f"{restart * 1000:.2f}",
            launch,
            f"{restart / launched['posix_spawn']:.2f}",
            f"{each:.0f}",
            f"{idle * 100:.2f}",
        )
    console.print(table)
    middle, largest, used = thousand_exits(command[0], 200 if quick else 1000)
    console.print(
        f"1000 exits a second: each heard of after {middle * 1000:.2f} ms (at most {largest * 1000:.1f}), "
        f"with {used * 100:.0f} % of a core"
    )


if __name__ == "__main__":
    main()
