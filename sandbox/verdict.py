"""Why a command ended, of what PID 1 and the limits say."""

import errno
import signal
from collections.abc import Mapping
from typing import Final

from sandbox.limits import Limits
from sandbox.result import Reason, Usage

# For the limit the kernel counts ticks, for the usage the time that the processor really had: on a busy virtual machine
# much less.
_SHARE_OF_CPU_TIME: Final[Mapping[int, float]] = {int(signal.SIGXCPU): 0.2, int(signal.SIGKILL): 0.5}


def ended_by(returncode: int, *, filtered: bool) -> tuple[Reason, str]:
    """Return the reason of an end and the evidence, as far as the exit code tells.

    Args:
        returncode: As `subprocess` has it.
        filtered: A filter of system calls was in force.
    """
    if returncode >= 0:
        return Reason.EXITED, f"exit status {returncode}"
    if returncode == -signal.SIGSYS and filtered:
        return Reason.SECCOMP, "SIGSYS: the seccomp filter ends a process that makes such a call"
    return Reason.SIGNALED, f"signal {_signal_name(-returncode)}"


def judge(returncode: int, error: int, limits: Limits, usage: Usage, *, filtered: bool) -> tuple[Reason, str]:
    """Return the reason of an end and the evidence, limits on time considered.

    Args:
        returncode: As `subprocess` has it.
        error: Which of the limits PID 1 enforced: ETIME, EDQUOT, or 0.
        limits: What there were.
        usage: What the whole tree used.
        filtered: A filter of system calls was in force.
    """
    reason, detail = ended_by(returncode, filtered=filtered)
    if error == errno.ETIME:
        return Reason.TIMEOUT, f"killed after {usage.wall:.2f} seconds: wall_time is limited to {limits.wall_time:g}"
    if error == errno.EDQUOT:
        said = f"killed after {limits.cpu_time:g} seconds of CPU time of all processes: cpu_time is limited to that"
        return Reason.CPU_TIME, said
    if limits.cpu_time is not None:
        # A shell whose child ends by a signal exits with 128 and the signal.
        share = _SHARE_OF_CPU_TIME.get(-returncode if returncode < 0 else returncode - 128)
        if share is not None and usage.cpu_time >= share * limits.cpu_time:
            said = (
                f"{detail}, after {usage.cpu_time:.2f} seconds of CPU time: cpu_time is limited to {limits.cpu_time:g}"
            )
            return Reason.CPU_TIME, said
    return reason, detail


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
