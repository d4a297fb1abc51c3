"""A file broker: a command in a sandbox asks, file by file, before it may open what lies in a directory. Needs root.

sudo python file_broker.py ~/data --allow '*.csv' -- sh -c 'cat /data/*'
"""

import argparse
import fnmatch
import os
import select
import sys
from collections import Counter
from pathlib import Path

from sandbox import Process, Sandbox, SandboxError
from sandbox.events import FAN_CLASS_CONTENT, FAN_EVENT_ON_CHILD, FAN_OPEN_PERM, Fanotify, FanotifyEvent

QUESTIONS = FAN_OPEN_PERM | FAN_EVENT_ON_CHILD


def directories(top: Path) -> list[Path]:
    """Return a directory and those below: a mark is for the files of one, through whatever mount they are reached."""
    return [top, *(path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())]


def is_inside(event: FanotifyEvent, process: Process[bytes]) -> bool:
    """Say who asks. Who waits for the answer cannot end meanwhile, so its pid is still its own."""
    try:
        return os.stat(f"/proc/{event.pid}/ns/pid").st_ino == process.enforced.namespaces["pid"]
    except FileNotFoundError:
        return True  # killed while it waited


def broker(fan: Fanotify, process: Process[bytes], allowed: list[str]) -> Counter[str]:
    """Answer until the command has ended; return how often what was said."""
    said: Counter[str] = Counter()
    while True:
        ready, _, _ = select.select([fan.fileno(), process.fileno()], [], [])
        if fan.fileno() not in ready:
            return said
        for event in fan.read_events():
            with event:  # unanswered means denied
                if not is_inside(event, process):
                    event.allow()  # the rest of the host goes its way
                    continue
                name = os.path.basename(event.filename)
                verdict = "allow" if any(fnmatch.fnmatch(name, pattern) for pattern in allowed) else "deny"
                event.allow() if verdict == "allow" else event.deny()
                said[verdict] += 1
                print(f"{verdict} {event.filename!r}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and answer for it; the exit code is its, as a shell would say it."""
    parser = argparse.ArgumentParser(description="Ask before each file of a directory is opened.")
    parser.add_argument("directory", type=Path, help="seen inside as /data, read-only")
    parser.add_argument("command", nargs="+", help="and its arguments, after --")
    parser.add_argument("--allow", action="append", default=[], metavar="PATTERN", help="of file names; repeatable")
    options = parser.parse_args(arguments)
    box = Sandbox().bind_readonly(options.directory, "/data").cwd("/data")
    with Fanotify(FAN_CLASS_CONTENT) as fan, box.popen(options.command, stdout=None, stderr=None, hold=True) as process:
        marked = directories(options.directory)
        for directory in marked:
            fan.watch(directory, QUESTIONS)
        process.release()
        said = broker(fan, process, options.allow)
        result = process.result()
        for directory in marked:
            fan.ignore(directory, QUESTIONS)
        while select.select([fan], [], [], 0)[0]:  # whoever else has asked meanwhile
            for event in fan.read_events():
                with event:
                    event.allow()
    print(f"{result.detail}; allowed {said['allow']}, denied {said['deny']}", file=sys.stderr)
    return result.returncode if result.returncode >= 0 else 128 - result.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PermissionError as error:
        sys.exit(f"file_broker.py: {error}\n  hint: only root of the host, with CAP_SYS_ADMIN, is asked about files")
    except (SandboxError, OSError) as error:
        sys.exit(f"file_broker.py: {error}")
