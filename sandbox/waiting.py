"""Waiting for several processes at once, on their pidfds."""

import os
import select
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypeVar

from sandbox.control import ProcessControl
from sandbox.exchange import deadline_of, milliseconds
from sandbox.process import Process

__all__ = ["as_completed", "as_completed_async", "wait_any", "wait_any_async"]

P = TypeVar("P", bound=ProcessControl)


def _several(processes: Iterable[P]) -> list[P]:
    """Return processes without repetition.

    Raises:
        TypeError: One alone, or something else.
    """
    if isinstance(processes, ProcessControl) or not isinstance(processes, Iterable):
        raise TypeError(f"processes must be an iterable of them, not one {type(processes).__name__}")
    found = list(dict.fromkeys(processes))
    for one in found:
        if not isinstance(one, ProcessControl):
            raise TypeError(f"processes must be made of Process or Process_async, not {type(one).__name__}")
    return found


def wait_any(processes: Iterable[P], timeout: float | None = None) -> set[P]:
    """Wait until one of several processes has ended, and return those that have.

    Args:
        processes: Of this process and either face; ended ones may be among them.
        timeout: Seconds; an empty set then.

    Raises:
        ValueError: No process is given, and nothing could end the wait; or one is closed without having ended.
    """
    waited = _several(processes)
    if not waited:
        raise ValueError("processes must hold at least one")
    return _wait(waited, deadline_of(timeout))


def _wait(waited: list[P], deadline: float | None) -> set[P]:
    ended = {process for process in waited if process._look() is not None}
    if ended:
        return ended
    poller = select.poll()
    by_fd: dict[int, Any] = {process.fileno(): process for process in waited}
    for process in waited:
        poller.register(process.fileno(), select.POLLIN)
        # What a filter refuses is refused by whoever waits.
        if isinstance(process, Process) and process.denials is not None and not process.denials.closed:
            by_fd[process.denials.fileno()] = process.denials
            poller.register(process.denials.fileno(), select.POLLIN)
    while True:
        ready = poller.poll(milliseconds(deadline))
        if not ready:
            return set()
        for fd, _ in ready:
            one = by_fd[fd]
            if isinstance(one, ProcessControl):
                continue
            owner = next(p for p in waited if isinstance(p, Process) and p.denials is one)
            if not owner._answer():
                poller.unregister(fd)
        ended = {by_fd[fd] for fd, _ in ready if isinstance(by_fd[fd], ProcessControl)}
        told = {process for process in ended if process._look() is not None}
        # Of an end that PID 1 has yet to tell, as it is stopped, there is no word.
        if told or (ended and milliseconds(deadline) == 0):
            return told


def as_completed(processes: Iterable[P], timeout: float | None = None) -> Iterator[P]:
    """Yield processes as they end.

    Args:
        processes: Of this process and either face.
        timeout: Seconds for all of them together.

    Raises:
        TimeoutError: Some still run; when the next one is asked for.
    """
    return _as_completed(_several(processes), deadline_of(timeout))


def _as_completed(left: list[P], deadline: float | None) -> Iterator[P]:
    while left:
        ended = _wait(left, deadline)
        if not ended:
            raise TimeoutError(f"{len(left)} processes still run")
        for process in [one for one in left if one in ended]:
            left.remove(process)
            yield process


async def wait_any_async(processes: Iterable[P]) -> set[P]:
    """Wait until one of several processes has ended, and return those that have.

    Raises:
        ValueError: No process is given, and nothing could end the wait.
    """
    waited = _several(processes)
    if not waited:
        raise ValueError("processes must hold at least one")
    return await _wait_async(waited)


async def _wait_async(waited: list[P]) -> set[P]:
    import asyncio

    ended = {process for process in waited if process._look() is not None}
    loop = asyncio.get_running_loop()
    while not ended:
        waiters = {asyncio.ensure_future(_end_of(loop, process)): process for process in waited}
        try:
            done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            ended = {waiters[task] for task in done if waiters[task]._look() is not None}
        finally:
            for task in waiters:
                task.cancel()
    return ended


async def _end_of(loop: Any, process: ProcessControl) -> None:
    from sandbox.process_async import Process_async

    if isinstance(process, Process_async):
        await process._until_ended()
        return
    # Of the sync face, which no loop watches. A loop has one callback for each number, and another task may wait, too.
    ended = loop.create_future()
    fds = [os.dup(process.fileno())]
    loop.add_reader(fds[0], lambda: ended.done() or ended.set_result(None))
    try:
        if isinstance(process, Process) and process.denials is not None and not process.denials.closed:
            # What a filter refuses is refused by whoever waits.
            fds.append(os.dup(process.denials.fileno()))
            loop.add_reader(fds[1], lambda: process._answer() or loop.remove_reader(fds[1]))
        await ended
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)


async def as_completed_async(processes: Iterable[P]) -> AsyncIterator[P]:
    """Yield processes as they end."""
    left = _several(processes)
    while left:
        ended = await _wait_async(left)
        for process in [one for one in left if one in ended]:
            left.remove(process)
            yield process
