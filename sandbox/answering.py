"""Whether the file systems that a sandbox shows answer: who looks at one that does not sleeps, and cannot be woken."""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence

from sandbox.arguments import quoted
from sandbox.errors import SetupError
from sandbox.rootfs import Bind, Root


class Look:
    """A look at each source, in a thread that nobody has to wait for.

    Args:
        entries: What has a source.
        tell: Called in that thread when all have answered, whatever they said.
    """

    def __init__(self, entries: Sequence[Bind | Root], tell: Callable[[], object]) -> None:
        self._entries = entries
        self._tell = tell
        self._at = 0
        threading.Thread(target=self._look, name="sandbox-look", daemon=True).start()

    def _look(self) -> None:
        for at, entry in enumerate(self._entries):
            self._at = at
            try:
                os.stat(entry.source)
            except OSError:
                continue  # the launch will meet it, and say so
        self._tell()

    def late(self) -> SetupError:
        """Return the error for who has waited long enough."""
        entry = self._entries[self._at]
        return SetupError(
            errno.ETIMEDOUT,
            call=f"stat({quoted(entry.source)})",
            origin=entry.origin,
            hint="its file system does not answer: is the server of NFS or FUSE gone? See findmnt --target",
            filename=entry.source,
        )


async def answer(entries: Sequence[Bind | Root], deadline: float | None) -> None:
    """Wait until each source has answered, without blocking the loop.

    Raises:
        SetupError: Of no step, with ETIMEDOUT: the time is over.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    answered = asyncio.Event()

    def tell() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(answered.set)

    look = Look(entries, tell)
    try:
        await asyncio.wait_for(answered.wait(), None if deadline is None else max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise look.late() from None
