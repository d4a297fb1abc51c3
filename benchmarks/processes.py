"""Workers that launch on request, and what can be seen of processes from outside."""

import array
import ctypes
import itertools
import mmap
import multiprocessing
import os
import pwd
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import contenders
from contenders import Contender

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PAGE = 4096


def drop_privileges(user: str) -> None:
    """Become a user, for ever. A number needs no account."""
    if user.isdecimal():
        uid = gid = int(user)
    else:
        account = pwd.getpwnam(user)
        uid, gid = account.pw_uid, account.pw_gid
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # The change of the uid gave /proc/self to root.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ["HOME"] = "/tmp"
    os.environ.pop("XDG_RUNTIME_DIR", None)


def own_network_namespace() -> None:
    """Leave the host's abstract sockets behind, so that each one seen is ours."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")


def become_subreaper() -> None:
    """Keep orphans among our descendants, where they are counted."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


# ---- rounds


def interleave(jobs: Mapping[str, Contender], rounds: int) -> dict[str, list[int]]:
    """Time every job once per round, in nanoseconds.

    The order changes from round to round: the kernel tears down namespaces later, in somebody else's time.
    """
    times: dict[str, list[int]] = {name: [] for name in jobs}
    order = list(jobs)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            begin = time.perf_counter_ns()
            jobs[name]()
            times[name].append(time.perf_counter_ns() - begin)
    return times


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[round(part * (len(values) - 1))]


# ---- workers


class Worker:
    """A forked process that calls this module's functions on request, one at a time.

    Args:
        prepare: Called first, in the new process.
        touched: Memory that the process has written to, in bytes.
    """

    def __init__(self, prepare: Callable[[], None] = lambda: None, touched: int = 0) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, touched), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, function: Callable[..., Any], *arguments: object) -> None:
        self._connection.send((function, arguments))

    def answer(self) -> Any:
        result = self._connection.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        self.ask(function, *arguments)
        return self.answer()

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()
        self._connection.close()


def _serve(connection: Any, prepare: Callable[[], None], touched: int) -> None:
    contenders.forget()
    prepare()
    memory = _touch(touched)
    while (request := connection.recv()) is not None:
        function, arguments = request
        try:
            connection.send(function(*arguments))
        except Exception as error:
            connection.send(contenders.as_missing(error))
    contenders.remove_bundles()
    if memory is not None:
        memory.close()


def _touch(size: int) -> mmap.mmap | None:
    if not size:
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # An ordinary heap has small pages, and those are what a copy of the process would pay for.
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, size, _PAGE):
        memory[offset] = 1
    return memory


def make(name: str) -> None:
    contenders.make(name)


def time_one(name: str) -> int:
    """Launch once; return the time in nanoseconds."""
    launch = contenders.make(name)
    begin = time.perf_counter_ns()
    launch()
    return time.perf_counter_ns() - begin


def launches_per_second(name: str, seconds: float) -> float:
    launch = contenders.make(name)
    count, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        launch()
        count += 1
    return count / passed


# ---- what is left behind


class Footprint(NamedTuple):
    descriptors: Counter[str]
    processes: Counter[str]
    mounts: Counter[str]
    sockets: Counter[str]


def footprint() -> Footprint:
    descriptors: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors[_kind(os.readlink(f"/proc/self/fd/{number}"))] += 1
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    with open("/proc/self/mountinfo") as stream:
        mounts = Counter(line.split()[4] for line in stream)
    with open("/proc/net/unix") as stream:
        fields = (line.split() for line in stream)
        sockets = Counter(field[7] for field in fields if len(field) > 7 and field[7].startswith("@"))
    return Footprint(descriptors, Counter(descendants().values()), mounts, sockets)


def _kind(link: str) -> str:
    """Take the inode off: pipe:[123] is a pipe."""
    return link.split(":[")[0]


def descendants() -> dict[int, str]:
    """Return pid and name of all children, their children and so on, zombies too."""
    children: dict[int, list[int]] = {}
    names = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/stat") as stream:
                text = stream.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name is the program's own choice: brackets and spaces too.
        name, _, rest = text.partition("(")[2].rpartition(") ")
        children.setdefault(int(rest.split()[1]), []).append(int(entry))
        names[int(entry)] = name
    found: dict[int, str] = {}
    waiting = [os.getpid()]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = names[child]
            waiting.append(child)
    return found


def _left_since(before: Footprint) -> Counter[str]:
    """Wait up to 5 s for the end of what is ending, then count what is left."""
    deadline = time.monotonic() + 5
    while True:
        now = footprint()
        left: Counter[str] = Counter()
        for new, old in zip(now, before, strict=True):
            left += new - old
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


class Leaks(NamedTuple):
    left: Counter[str]  # what, and how many of it
    slower: float  # the last tenth of the launches against the first tenth, medians
    memory: int  # growth of the resident set, in KiB


def find_leaks(name: str, threads: int, launches: int) -> Leaks:
    """Launch from several threads at once, `launches` times altogether."""
    launch = contenders.make(name)
    times = array.array("d", bytes(8 * (launches // threads) * threads))
    position = itertools.count()
    before, memory = footprint(), _resident()
    errors: list[Exception] = []
    barrier = threading.Barrier(threads)

    def work() -> None:
        barrier.wait()
        try:
            for _ in range(launches // threads):
                begin = time.perf_counter()
                launch()
                times[next(position)] = time.perf_counter() - begin
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    tenth = max(1, len(times) // 10)
    slower = percentile(times[-tenth:], 0.5) / percentile(times[:tenth], 0.5)
    return Leaks(_left_since(before), slower, _resident() - memory)


def _resident() -> int:
    return _kib("/proc/self/status", "VmRSS:")


def proportional_set_size(pid: int) -> int:
    """Return the PSS in KiB. Only root may look at a process that is not dumpable."""
    return _kib(f"/proc/{pid}/smaps_rollup", "Pss:")


def _kib(path: str, key: str) -> int:
    with open(path) as stream:
        for line in stream:
            if line.startswith(key):
                return int(line.split()[1])
    raise ValueError(f"{path} has no {key}")
