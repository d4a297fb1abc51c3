"""What a tree of processes has used so far, where no control group counts: read from /proc, process by process."""

import os
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")


def tally(pid: int) -> dict[str, float | int]:
    """Return CPU seconds and the largest resident set of a process and all below it, by the names of `Usage`.

    What has ended counts when its parent has waited for it. Who ends while this looks may be missed.
    """
    user = system = largest = 0
    left = [pid]
    while left:
        one = left.pop()
        try:
            with open(f"/proc/{one}/stat") as stream:
                # The name, in parentheses, may hold anything.
                fields = stream.read().rpartition(")")[2].split()
            with open(f"/proc/{one}/status") as stream:
                peak = next((line for line in stream if line.startswith("VmHWM:")), "VmHWM: 0 kB")
            left += _children(one)
        except (FileNotFoundError, ProcessLookupError):
            continue
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
        largest = max(largest, int(peak.split()[1]) * 1024)
    seconds = user / _TICK, system / _TICK
    return {"user": seconds[0], "system": seconds[1], "cpu_time": sum(seconds), "max_rss": largest}


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as stream:
            found += map(int, stream.read().split())
    return found
