"""Work done in a process that is thrown away, to see what the kernel allows.

What fails says which call, with which arguments: that is what `sandbox.causes` judges, as it judges a failed launch.
The process that starts this must have one thread: what it starts are forks of it.
"""

import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn

from sandbox import kernel as k
from sandbox.primitives.credentials import setgroups, setresgid, setresuid
from sandbox.primitives.namespaces import clone

__all__ = ["Answer", "Failed", "Identity", "attempt", "calling", "inside", "write_maps"]

_ANSWER_SIZE: Final = 4096  # below PIPE_BUF, so that an answer is one write


class Failed(Exception):
    """A call of a probe failed.

    Args:
        call: Its name, as a plan has it.
        args: Its arguments, as far as they matter for the cause.
        number: The errno.
        detail: What a program said about it.
    """

    def __init__(self, call: str, args: tuple[Any, ...], number: int, detail: str = "") -> None:
        super().__init__(call, args, number, detail)
        self.call = call
        self.args_of_call = args
        self.number = number
        self.detail = detail


class Answer(NamedTuple):
    """What a probe found: a detail for people, or the call that failed."""

    detail: str
    failed: Failed | None = None


class Identity(NamedTuple):
    """Who the probes are, outside of the user namespaces that they make.

    Args:
        uid: The host uid that is mapped, as a launch would.
        gid: The host gid.
        privileged: Root that gives away an id which is not its own.
    """

    uid: int
    gid: int
    privileged: bool


@contextmanager
def calling(call: str, *args: Any) -> Iterator[None]:
    """Name the call that is about to be made."""
    try:
        yield
    except OSError as error:
        raise Failed(call, args, error.errno or 0) from error


def attempt(probe: "Callable[[Identity], str]", who: Identity, seconds: float) -> Answer:
    """Run a probe in a process of its own, and end it and all that it started when the time is up."""
    try:
        with calling("fork"):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            try:
                pid = os.fork()
            except OSError:
                os.close(read_end)
                os.close(write_end)
                raise
    except Failed as failed:
        return Answer("", failed)
    if pid == 0:
        _answer(write_end, lambda: probe(who))
    os.close(write_end)
    try:
        os.setpgid(pid, pid)  # it does so, too: who comes first
    except OSError:
        pass  # it has ended, or its group is set
    text = _read(read_end, time.monotonic() + seconds)
    os.close(read_end)
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # all of it has ended; or a set-uid program, that soon will
            continue
    _, status = os.waitpid(pid, 0)
    if text:
        said = json.loads(text)
        if "call" not in said:
            return Answer(said["detail"])
        args = tuple(k.Flag(*one) if isinstance(one, list) else one for one in said["args"])
        return Answer(said["detail"], Failed(said["call"], args, said["number"]))
    if text is None:
        return Answer(f"no answer in {seconds:.2g} seconds", Failed("probe", (), errno.ETIMEDOUT))
    ended = _killed(status)
    return Answer(ended.detail, ended)


def _killed(status: int) -> Failed:
    """Return why a process did not answer."""
    code = os.waitstatus_to_exitcode(status)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return Failed("killed", (-code,), errno.ECHILD, f"its process was ended {how}")


def _read(fd: int, deadline: float) -> bytes | None:
    """Return the answer; b"" when there is none to come, None when the time is up."""
    if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        return None
    return os.read(fd, _ANSWER_SIZE)


def _answer(fd: int, work: Callable[[], str]) -> NoReturn:
    """Do the work of a probe, say what came out, and end."""
    try:
        os.setpgid(0, 0)
        try:
            said: dict[str, Any] = {"detail": work()}
        except Failed as failed:
            args = [[int(one), repr(one)] if isinstance(one, int) else str(one) for one in failed.args_of_call]
            said = {"call": failed.call, "args": args, "number": failed.number, "detail": failed.detail[:1000]}
        except Exception as error:  # noqa: BLE001  # told by the parent, for here nobody would see it
            said = {"call": "probe", "args": [], "number": getattr(error, "errno", 0), "detail": repr(error)[:1000]}
        os.write(fd, json.dumps(said).encode())
    finally:
        os._exit(0)


def inside(who: Identity, namespaces: Sequence[str], work: Callable[[], str]) -> str:
    """Do work as root of new namespaces, the first of which is a user namespace; made as a launch makes them."""
    flags = k.NAMESPACE_FLAGS["user"]
    for name in namespaces:
        flags = flags | (k.CLONE_NEWNS if name == "mnt" else k.NAMESPACE_FLAGS[name])
    ready, go = os.pipe2(os.O_CLOEXEC)
    heard, say = os.pipe2(os.O_CLOEXEC)
    with calling("clone", flags):
        pid = clone(int(flags))
    if pid == 0:
        os.close(go)
        if os.read(ready, 1):
            _answer(say, lambda: _as_root(who, work))
        os._exit(0)
    os.close(say)
    try:
        write_maps(pid, who)
        os.write(go, b".")
    finally:
        os.close(go)
        _, status = os.waitpid(pid, 0)
    text = os.read(heard, _ANSWER_SIZE)
    if not text:
        raise _killed(status)
    said = json.loads(text)
    if "call" in said:
        args = tuple(k.Flag(*one) if isinstance(one, list) else one for one in said["args"])
        raise Failed(said["call"], args, said["number"], said["detail"])
    detail: str = said["detail"]
    return detail


def _as_root(who: Identity, work: Callable[[], str]) -> str:
    if who.privileged:
        setgroups([])
        setresgid(0, 0, 0)
        setresuid(0, 0, 0)
    return work()


def write_maps(pid: int, who: Identity) -> None:
    """Map one id, as stage 1 of init does it."""
    texts = {"uid_map": f"0 {who.uid} 1\n", "gid_map": f"0 {who.gid} 1\n"}
    if not who.privileged:
        texts = {"setgroups": "deny", **texts}
    for name, text in texts.items():
        with calling("write_proc", "proc", pid, name):
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
