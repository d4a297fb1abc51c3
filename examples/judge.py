"""An online judge: compile a C program, run it on each case, and say AC, WA, TLE, MLE, OLE or RE.

python judge.py solution.c cases/        # cases/1.in with cases/1.out, cases/2.in with cases/2.out ...
"""

import argparse
import math
import sys
from pathlib import Path

from sandbox import Reason, Result, Sandbox, SandboxError, UnsupportedError

COMPILE = "gcc -O2 -o /tmp/program /program.c -lm && cat /tmp/program"


def compiled(source: bytes) -> Result[bytes]:
    """Compile where #include finds nothing of the host's but its headers; the program comes out on stdout."""
    box = Sandbox().file("/program.c", source).limit(wall_time=30, file_size="64M", output="64M")
    return box.run(["sh", "-c", COMPILE], capture_output=True)


def box_for(program: bytes, seconds: float, memory: int) -> Sandbox:
    """Describe where the program runs: no file that it could write, no network, so much time and memory."""
    box = Sandbox().file("/program", program, mode=0o555).limit(file_size=0, output="16M")
    box = box.limit(cpu_time=math.ceil(seconds), wall_time=3 * seconds + 1).limit(pids=8, best_effort=True)
    try:
        box.limit(memory=memory).run(["true"])
    except UnsupportedError:
        # Without a control group only address space can be limited, and who is refused some crashes in any way.
        # So there is more than is allowed, and the peak of what was touched tells. A single allocation beyond that
        # is refused untouched: it counts as RE.
        return box.limit(memory=4 * memory, best_effort=True)
    return box.limit(memory=memory)


def verdict(done: Result[bytes], expected: bytes, seconds: float, memory: int) -> str:
    """Say what became of one case. The kernel and PID 1 of the sandbox were asked, never the program."""
    if done.reason is Reason.OOM or (done.usage.memory_peak or done.usage.max_rss) > memory:
        return "MLE"
    if done.reason in {Reason.TIMEOUT, Reason.CPU_TIME} or done.usage.cpu_time > seconds:
        return "TLE"
    if done.reason is Reason.OUTPUT_LIMIT:
        return "OLE"
    if done.returncode != 0:
        return "RE"
    return "AC" if done.stdout.split() == expected.split() else "WA"


def main(arguments: list[str] | None = None) -> int:
    """Judge one program; 0 when every case is accepted."""
    parser = argparse.ArgumentParser(description="Judge a C program.")
    parser.add_argument("solution", type=Path)
    parser.add_argument("cases", type=Path, help="a directory of NAME.in and NAME.out")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time of a case (1)")
    parser.add_argument("--memory", type=int, default=64, help="MiB (64)")
    options = parser.parse_args(arguments)
    cases = sorted(options.cases.glob("*.in"))
    if not cases:
        parser.error(f"{options.cases} has no file that ends in .in")
    memory = options.memory << 20

    build = compiled(options.solution.read_bytes())
    if build.returncode != 0:
        said = build.stderr.decode("ascii", errors="backslashreplace").replace("\x1b", "?")  # it quotes the program
        print(f"CE: {build.reason}, {build.detail}\n{said}")
        return 1
    box, verdicts = box_for(build.stdout, options.seconds, memory), []
    for case in cases:
        done = box.run(["/program"], input=case.read_bytes(), capture_output=True)
        verdicts.append(verdict(done, case.with_suffix(".out").read_bytes(), options.seconds, memory))
        cpu, peak = done.usage.cpu_time, (done.usage.memory_peak or done.usage.max_rss) / 2**20
        print(f"{case.stem:12} {verdicts[-1]:3}  {cpu:6.2f} s {peak:7.1f} MiB  {done.detail}")
    print(f"{verdicts.count('AC')} of {len(verdicts)} accepted")
    return int(set(verdicts) != {"AC"})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, OSError) as error:
        sys.exit(f"judge.py: {error}")
