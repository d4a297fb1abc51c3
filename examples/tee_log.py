"""A log duplicator: what a command says goes on to stdout and into a log, and no byte of it through this process.

python tee_log.py build.log -- sh -c 'echo working; sleep 1; echo done' | less
"""

import argparse
import errno
import os
import shlex
import sys
import time

from sandbox import STDOUT, Sandbox, SandboxError
from sandbox.primitives import splice, tee, vmsplice

CHUNK = 1 << 16  # what a pipe holds


def move(pipe: int, target: int, count: int) -> None:
    """Move bytes out of a pipe: the kernel hands the pages on."""
    while count:
        try:
            count -= splice(pipe, target, count)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Some take no pages, such as a file that a shell has opened by >>: those get a copy.
            data = os.read(pipe, count)
            count -= len(data)
            while data:
                data = data[os.write(target, data) :]


def duplicate(source: int, log: int, log_pipe: tuple[int, int], out: int) -> int:
    """Send what comes through a pipe to both until its end; return how many bytes that were."""
    total = 0
    # tee() waits for data, refers to it from a second pipe, and leaves it in the first.
    while count := tee(source, log_pipe[1], CHUNK):
        move(log_pipe[0], log, count)
        move(source, out, count)
        total += count
    return total


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is its, as a shell would say it."""
    parser = argparse.ArgumentParser(description="Run a command in a sandbox, and log what it says.")
    parser.add_argument("log", help="a file; it is continued")
    parser.add_argument("command", nargs="+", help="and its arguments, after --")
    options = parser.parse_args(arguments)
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.lseek(log, 0, os.SEEK_END)  # splice() refuses O_APPEND
    log_pipe, (source, said) = os.pipe(), os.pipe()
    try:
        with Sandbox().popen(options.command, stdout=said, stderr=STDOUT) as process:
            os.close(said)  # or the pipe would never end
            head = f"== {time.strftime('%F %T')} {shlex.join(options.command)}\n".encode()
            move(log_pipe[0], log, vmsplice(log_pipe[1], head[:CHUNK]))
            total = duplicate(source, log, log_pipe, sys.stdout.fileno())
            result = process.result()
        foot = f"== {result.detail}, {total} bytes in {result.usage.wall:.1f} s\n".encode()
        move(log_pipe[0], log, vmsplice(log_pipe[1], foot))
    finally:
        for fd in (log, source, *log_pipe):
            os.close(fd)
    return result.returncode if result.returncode >= 0 else 128 - result.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        sys.exit(141)  # whoever read stdout has seen enough: as if by SIGPIPE
    except (SandboxError, OSError) as error:
        sys.exit(f"tee_log.py: {error}")
