"""Many launches on one event loop: how late the loop is meanwhile, and what they leave behind."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import NamedTuple

COMMAND = ("sleep", "0.1")
PAUSE = 0.005  # seconds between two looks at the clock


class Crowd(NamedTuple):
    """What a crowd of launches did to its loop."""

    latency: float  # seconds that the loop was late, 99th percentile
    worst: float
    seconds: float
    left: int  # descriptors and children


def _left() -> int:
    with open("/proc/thread-self/children") as stream:
        return len(os.listdir("/proc/self/fd")) + len(stream.read().split())


async def _crowd(launches: int, at_a_time: int) -> Crowd:
    import sandbox

    await sandbox.run_async(COMMAND)
    await sandbox.run_async(COMMAND)
    before = _left()
    gate = asyncio.Semaphore(at_a_time)
    late: list[float] = []

    async def one() -> None:
        async with gate:
            await sandbox.run_async(COMMAND, check=True)

    async def heartbeat() -> None:
        while True:
            begin = time.monotonic()
            await asyncio.sleep(PAUSE)
            late.append(time.monotonic() - begin - PAUSE)

    pulse = asyncio.ensure_future(heartbeat())
    begin = time.monotonic()
    await asyncio.gather(*(one() for _ in range(launches)))
    seconds = time.monotonic() - begin
    pulse.cancel()
    late.sort()
    return Crowd(late[int(len(late) * 0.99)], late[-1], seconds, _left() - before)


def crowd(launches: int, at_a_time: int, run: Callable[..., Crowd] = asyncio.run) -> Crowd:
    return run(_crowd(launches, at_a_time))
