"""The launch of one more payload in a sandbox that runs."""

import errno
from collections.abc import Callable, Sequence

from sandbox.errors import SetupError
from sandbox.launch import Setup
from sandbox.launch.native import seal, socketpair
from sandbox.pidfds import pid_of
from sandbox.plan import SLOTS, Command
from sandbox.records import MAX_PAYLOADS, Q_SPAWN, R_REFUSED, UNSENT, Record, request
from sandbox.streams import close_all
from sandbox.template import Template


class Entry(Setup):
    """The launch of one more payload in a sandbox that runs; it has a channel of its own.

    Args:
        send: Sends a request with descriptors to PID 1; False when that has ended.
    """

    def __init__(
        self,
        template: Template,
        command: Command,
        send: Callable[[bytes, Sequence[int]], bool],
        *,
        listens: bool,
        deadline: float | None = None,
    ) -> None:
        super().__init__(template, command, listens=listens, deadline=deadline)
        self._send = send

    def begin(self, slots: list[int]) -> None:
        """Ask PID 1 for it; whatever happens here or later, abort() ends it."""
        image = self._template.image(self._command)
        ours, theirs = socketpair()
        self.control.open(ours)
        plan = -1
        try:
            plan = seal(image)
            # A slot that the plan itself fills has no descriptor yet, and something must be sent.
            given = [theirs if fd < 0 else fd for fd in slots[len(SLOTS) - 3 :]]
            if not self._send(request(Q_SPAWN), [plan, theirs, *given]):
                raise self._died()
        finally:
            close_all([fd for fd in (plan, theirs) if fd >= 0])

    def stalled(self) -> SetupError | None:
        """Look whether somebody inside stopped it, after a time without a word: it has their user."""
        if self.init_pidfd < 0:
            return None
        try:
            with open(f"/proc/{pid_of(self.init_pidfd)}/stat") as stream:
                stopped = stream.read().rpartition(")")[2].split()[0] in {"T", "t"}
        except ProcessLookupError:
            return None
        return self._lost("a process inside stopped it before its program was executed") if stopped else None

    def failed(self, record: Record) -> SetupError:
        """Return the error that a record of failure stands for."""
        if record.type == R_REFUSED and record.step != UNSENT:
            full = record.error == errno.EAGAIN
            return self._lost(
                f"a sandbox runs at most {MAX_PAYLOADS} commands at a time: wait for one, or start another sandbox"
                if full
                else "PID 1 of the sandbox could not start it",
                record.error,
            )
        return super().failed(record)

    def _died(self) -> SetupError:
        return self._lost("the sandbox has ended: its first command is what it lives for", errno.ESRCH)

    def _lost(self, hint: str, number: int = errno.ECANCELED) -> SetupError:
        return SetupError(number, call="one more command in a running sandbox", origin="Process", hint=hint)
