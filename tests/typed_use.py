"""What a type checker says of programs that use the library: read by mypy --strict, never run."""

import asyncio
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any, Unpack, assert_type

import sandbox
from sandbox import (
    PIPE,
    Action,
    Allow,
    Args,
    CalledProcessError,
    Condition,
    Denied,
    Emulation,
    Enforced,
    Errno,
    Filter,
    Landlock,
    Network,
    Notifier,
    Plan,
    Process,
    Process_async,
    ProcessControl,
    Reason,
    Result,
    RunOptions,
    Sandbox,
    SetupError,
    Size,
    Step,
    StrOrBytesPath,
    TimeoutExpired,
    Usage,
    Value,
    arg,
)
from sandbox.events import (
    IN_CLOSE_WRITE,
    Eventfd,
    EventLike,
    EventLike_async,
    Fanotify,
    FanotifyEvent,
    Inotify,
    Inotify_async,
    InotifyEvent,
    Pidfd,
    PidfdEvent,
    Signalfd_async,
    SignalfdEvent,
    Timerfd,
    TimerVal,
)
from sandbox.supervise import (
    Ready,
    Restart,
    ServiceEvent,
    ServiceExited,
    ServiceGaveUp,
    ServiceStatus,
    State,
    Supervisor,
)


def run_and_its_texts() -> None:
    assert_type(sandbox.run(["true"]), Result[bytes])
    assert_type(sandbox.run(["true"], text=True), Result[str])
    assert_type(sandbox.run(["true"], encoding="utf-8", input="x"), Result[str])
    assert_type(sandbox.run(("cat", b"x"), input=b"x", capture_output=True, timeout=5.0, check=True), Result[bytes])
    done = Sandbox().run(["true"], text=True, capture_output=True)
    assert_type(done.reason, Reason)
    assert_type(done.usage, Usage)
    assert_type(done.usage.memory_peak, int | None)
    assert_type(done.enforced, Enforced)
    assert_type(done.denied, tuple[Denied, ...])
    assert_type(done.enforced.capabilities["effective"], frozenset[str])
    completed: subprocess.CompletedProcess[str] = done
    completed.check_returncode()
    assert isinstance(sandbox.run(["true"]), subprocess.CompletedProcess)


def judge(args: Args, limit: Size, **options: Unpack[RunOptions]) -> Result[bytes]:
    """A wrapper with the options of run."""
    return Sandbox().limit(memory=limit, wall_time=60, io={"write": "10M"}).run(args, **options)


def popen_and_its_streams() -> None:
    with sandbox.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert_type(process, Process[str])
        assert_type(process.stdin, IO[str] | None)
        assert_type(process.communicate("x"), tuple[str, str])
        assert_type(process.wait(timeout=1), int)
        assert_type(process.poll(), int | None)
        assert_type(process.result(), Result[str])
        assert_type(process.stop(1.0), Result[str])
        assert_type(process.run(["true"]), Result[bytes])
        assert_type(process.popen(["true"], encoding="utf-8"), Process[str])
        assert_type(process.notifier, Notifier | None)
    raw = Sandbox().popen(["cat"], hold=True, pty=(24, 80), fds={3: raw_file()}, pass_fds=[4])
    assert_type(raw, Process[bytes])
    raw.release()
    both: list[ProcessControl] = [raw]
    assert_type(sandbox.wait_any(both), set[ProcessControl])
    assert_type(sandbox.wait_any([raw]), set[Process[bytes]])
    for one in sandbox.as_completed([raw], timeout=5):
        assert_type(one, Process[bytes])


def raw_file() -> IO[bytes]:
    return open("/dev/null", "rb")


async def asynchronous() -> None:
    assert_type(await sandbox.run_async(["true"]), Result[bytes])
    assert_type(await Sandbox().run_async(["true"], text=True), Result[str])
    async with await sandbox.popen_async(["cat"], stdin=PIPE, stdout=PIPE, limit=1 << 16) as process:
        assert_type(process, Process_async)
        assert_type(process.stdout, asyncio.StreamReader | None)
        assert_type(await process.communicate(b"x"), tuple[bytes, bytes])
        assert_type(await process.wait(), int)
        assert_type(await process.stop(), Result[bytes])
        assert_type(await process.result(), Result[bytes])
    assert_type(await sandbox.wait_any_async([process]), set[Process_async])
    async for one in sandbox.as_completed_async([process]):
        assert_type(one, Process_async)


def describe(folder: StrOrBytesPath) -> Plan:
    box = (
        Sandbox()
        .bind(folder, "/data", optional=True)
        .bind_readonly(b"/opt")
        .tmpfs("/scratch", size="256M")
        .file("/etc/app.conf", "x")
        .user(1000, groups="strict")
        .share("net")
        .network(Network.none)
        .env({"A": "1", "B": None}, C="2")
        .landlock(read=["/usr"], connect_tcp=[443], scope=["signal"])
        .landlock(Landlock(write=["/tmp"]))
        .limit(cpus=1.5, pids=None, when_output_full="discard")
        .seccomp(None)
    )
    assert_type(box, Sandbox)
    assert_type(box.plan(["true"]).steps, tuple[Step, ...])
    return box.plan(["true"]).with_fault(3, 1)


def filters() -> None:
    deadly: Value = "AF_INET6"
    condition = arg(0).one_of("AF_UNIX", deadly)
    assert_type(condition, Condition)
    assert_type(arg(1) == "TIOCSTI", Condition)
    assert_type(arg(1) & 0xFF == 3, Condition)
    mine = (
        Filter.default()
        .deny("@clock", "@module", action=Errno("EPERM"))
        .allow("socket", condition)
        .rule(Allow, "ioctl", arg(1) != 3, arg(0) < 9)
    )
    assert_type(mine, Filter)
    verdict = mine.simulate("ioctl", 0, 5)
    assert_type(verdict, Action)
    match verdict:
        case Errno(errno=number):
            assert_type(number, int)
        case _:
            pass


def answers(notifier: Notifier) -> None:
    for call in notifier:
        if call.call == "socket" and call.proceed(arg(0) == "AF_UNIX"):
            continue
        asked = call.emulate()
        assert_type(asked, Emulation)
        assert_type(asked.path(0), bytes)
        asked.deny("EACCES")


def supervise() -> None:
    with Supervisor() as supervisor:
        supervisor.add(
            "web",
            ["server"],
            sandbox=Sandbox(),
            restart=Restart.on_failure(backoff=0.1, limit=5),
            ready=Ready.fd(),
            after=["db"],
        )
        for event in supervisor.events():
            assert_type(event, ServiceEvent)
            match event:
                case ServiceExited(service=name, result=result):
                    assert_type(name, str)
                    assert_type(result, Result[bytes])
                case ServiceGaveUp(time=moment):
                    assert_type(moment, float)
        assert_type(supervisor.step(0.0), list[ServiceEvent])
        assert_type(supervisor.status(), Mapping[str, ServiceStatus])
        assert_type(supervisor.status()["web"].state, State)
        assert_type(supervisor.run(), int)


async def supervise_async() -> int:
    async with Supervisor() as supervisor:
        async for event in supervisor.events_async():
            assert_type(event, ServiceEvent)
        return await supervisor.run_async()


def first(source: EventLike[Any], other: EventLike_async[Any]) -> tuple[int, int]:
    return source.fileno(), other.qsize()


def events() -> None:
    with Inotify() as watch, Timerfd(TimerVal().after(0.5).every(1.0)) as timer, Eventfd(3, semaphore=True) as counter:
        assert_type(watch.watch("conf.d", IN_CLOSE_WRITE), int)
        for event in watch:
            assert_type(event, InotifyEvent)
            assert_type(event.name, str)
        assert_type(timer.read_event(timeout=1), int)
        assert_type(timer.set(None), TimerVal)
        assert_type(counter.read_events(), list[int])
    with Pidfd(1) as process:
        assert_type(process.read_event(), PidfdEvent)
    with Fanotify() as fan:
        for question in fan:
            assert_type(question, FanotifyEvent)
            with question:
                question.allow() if question.filename.endswith(".txt") else question.deny()


async def events_async() -> None:
    async with Inotify_async(nonblock=True, maxsize=5) as watch, Signalfd_async([signal.SIGTERM]) as signals:
        assert_type(await watch.get(), InotifyEvent)
        assert_type(watch.get_nowait(), InotifyEvent)
        async for event in signals:
            assert_type(event, SignalfdEvent)
            assert_type(event.pid, int)
        first(Eventfd(), watch)


def errors() -> Sequence[str]:
    try:
        sandbox.run(["x"], timeout=1, check=True)
    except SetupError as error:
        assert_type(error.step, int)
        return [error.call, error.origin, error.hint or "", str(error.errno)]
    except TimeoutExpired as expired:
        assert_type(expired.result.reason, Reason)
    except CalledProcessError as failed:
        assert_type(failed.result.usage.cpu_time, float)
    return []


def what_is_wrong() -> None:
    # Each of these has its comment because it is an error: without one, warn_unused_ignores tells.
    sandbox.run("ls", shell=True)  # type: ignore[call-overload]
    sandbox.run(["ls"], hold=True)  # type: ignore[call-overload]
    Sandbox().popen(["ls"], timeout=5)  # type: ignore[call-overload]
    Sandbox().share("network")  # type: ignore[arg-type]
    Sandbox().limit(mem="1G")  # type: ignore[call-arg]
    Sandbox().landlock(reads=["/usr"])  # type: ignore[call-arg]
    Sandbox().network("bridge")  # type: ignore[arg-type]
    arg(0).eq(1.5)  # type: ignore[arg-type]
    arg(6)  # type: ignore[arg-type]
    Supervisor().add("web", ["server"], restrat=Restart.never())  # type: ignore[call-arg]


async def what_is_wrong_async() -> None:
    await sandbox.popen_async(["ls"], text=True)  # type: ignore[call-arg]
