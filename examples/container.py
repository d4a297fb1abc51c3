"""A container: boot a directory tree with its own init as PID 1, until it powers itself off.

python container.py tree        # README.md says how to make a tree of Debian, in four lines
"""

import argparse
import signal
import sys
from pathlib import Path

from sandbox import Filter, Sandbox, SandboxError, UnsupportedError

# What init and its services need to be root of their own ids, and no more; nothing of it reaches beyond the tree.
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_BOOT"]


def container(tree: Path, name: str) -> Sandbox:
    """Describe it: the tree read-only, what a running system writes in memory, and root inside."""
    box = Sandbox().rootfs(tree).init(False).user(0).hostname(name).env(container="sandbox", TERM="linux")
    for path in ("/run", "/tmp", "/var/log", "/var/tmp"):  # mounted in the order written
        if (tree / path[1:]).is_dir():
            box = box.tmpfs(path, size="64M", mode=0o1777 if path.endswith("tmp") else 0o755)
    # In a pid namespace of one's own reboot(2) ends PID 1 and nothing else.
    return box.capabilities(CAPABILITIES).seccomp(Filter.default().allow("reboot"))


def boot(box: Sandbox, init: str) -> str:
    """Boot once; say how it ended: the kernel ends PID 1 by SIGINT to power off, by SIGHUP to restart."""
    with box.popen([init], stdin=None) as machine:
        try:
            result = machine.result()
        except KeyboardInterrupt:
            print("container: powering off", file=sys.stderr)
            machine.kill()
            return "killed"
    return {-signal.SIGINT: "powered off", -signal.SIGHUP: "restarted"}.get(result.returncode, result.detail)


def main(arguments: list[str] | None = None) -> int:
    """Boot until it has powered off; 0 when it did that by itself."""
    parser = argparse.ArgumentParser(description="Boot a directory tree with its own init.")
    parser.add_argument("tree", type=Path)
    parser.add_argument("--init", default="/sbin/init", help="the program in the tree that is PID 1 (/sbin/init)")
    parser.add_argument("--name", default="container", help="its host name")
    options = parser.parse_args(arguments)
    box = container(options.tree, options.name)
    try:
        with box.id_ranges().popen([options.init], hold=True) as trial:  # everything set up, nothing run
            trial.kill()
        box = box.id_ranges()
    except UnsupportedError as error:
        print(f"container: all ids are one user, for {error}", file=sys.stderr)
    while (end := boot(box, options.init)) == "restarted":
        print(f"container: {end}", file=sys.stderr)
    print(f"container: {end}", file=sys.stderr)
    return int(end != "powered off")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, OSError) as error:
        sys.exit(f"container.py: {error}")
