"""Build a project that may not be written to, on a host where nothing may be: in memory, with what it needs.

python read_only_build.py ~/src/hello --take hello --out . -- make -f /source/Makefile VPATH=/source
"""

import argparse
import sys
from pathlib import Path

from sandbox import Sandbox, SandboxError


def main(arguments: list[str] | None = None) -> int:
    """Build, and copy the artefacts out; the exit code is the build's."""
    parser = argparse.ArgumentParser(description="Build out of tree, in memory, without network.")
    parser.add_argument("source", type=Path, help="seen inside as /source, read-only")
    parser.add_argument("command", nargs="+", help="and its arguments, after --; runs in /build, which is empty")
    parser.add_argument("--take", action="append", default=[], metavar="FILE", help="copy /build/FILE out; repeatable")
    parser.add_argument("--out", type=Path, default=Path(), help="to this directory (.)")
    parser.add_argument("--size", default="1G", help="of /build (1G)")
    options = parser.parse_args(arguments)

    box = Sandbox().bind_readonly(options.source, "/source").tmpfs("/build", size=options.size).cwd("/build")
    # Always the same: who builds, where, and when, as far as the build can tell.
    box = (
        box.hostname("builder")
        .user(1000)
        .env(SOURCE_DATE_EPOCH="0", TZ="UTC")
        .limit(wall_time=3600, file_size=options.size)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    # The sandbox lives as long as its first command, and what is in its memory with it.
    with box.popen(["sleep", "infinity"]) as builder:
        built = builder.run(options.command)
        print(f"build: {built.detail}, {built.usage.cpu_time:.1f} s of CPU", file=sys.stderr)
        for name in options.take if built.returncode == 0 else []:
            target = options.out / Path(name).name
            with target.open("wb") as stream:
                # The host opens no path of the build's: a link to /etc/shadow is one to the sandbox's own. The limit on
                # files counts for this one, too: a link to /dev/zero does not fill the disk.
                copied = builder.run(["cat", "--", name], stdout=stream, stderr=None)
            if copied.returncode != 0:
                target.unlink()
                raise FileNotFoundError(f"the build has left no file {name}, or one beyond --size")
            if builder.run(["test", "-x", name]).returncode == 0:
                target.chmod(0o755)
            print(f"{target}: {target.stat().st_size} bytes")
        builder.kill()
    return built.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, OSError) as error:
        sys.exit(f"read_only_build.py: {error}")
