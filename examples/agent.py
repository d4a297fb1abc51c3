"""An AI agent's Python tool: run the code that a model wrote, with limits; hand back its output and its files.

python agent.py step1.py step2.py --out artefacts/      # one session: the second step finds what the first has written
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path, PurePosixPath

from sandbox import Process, Sandbox, SandboxError, TimeoutExpired

FILE, TOTAL, TEXT = 4 << 20, 16 << 20, 20_000  # bytes of a file, of all files, characters that the model gets to read

# All that the code can write to is in memory and ends with the session: no directory of the host is at stake.
BOX = (
    Sandbox()
    .python()
    .tmpfs("/session", size=TOTAL, inodes=1000)
    .cwd("/session")
    .env(HOME="/session", MPLBACKEND="Agg")
    .limit(file_size=FILE, open_files=256, output=2 * TOTAL, when_output_full="discard")
    .limit(memory="512M", pids=64, best_effort=True)
)


def run(session: Process[bytes], code: str, timeout: float) -> dict[str, object]:
    """Run one step as a further command of the session, and say what a model needs to know of it."""
    words = [sys.executable, "-c", code]
    try:
        done = session.run(words, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout)
    except TimeoutExpired as expired:
        done = expired.result
    out, err = done.stdout, done.stderr
    cut = done.truncated or max(len(out), len(err)) > TEXT
    return {"ended": done.detail, "stdout": out[:TEXT], "stderr": err[-TEXT:], "truncated": cut}


def files(session: Process[bytes]) -> dict[PurePosixPath, bytes]:
    """Return the regular files that the code has left. The archive is as hostile as they are: it is only read."""
    packed = session.run(["tar", "-C", "/session", "--sparse", "-cf-", "."], capture_output=True)
    found, left = {}, TOTAL
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if member.isreg() and member.size <= min(FILE, left) and not {"..", "/"} & {*path.parts}:
                content = archive.extractfile(member)
                found[path] = content.read() if content else b""
                left -= member.size
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run each script as one step; print one JSON object a step; write the files below --out."""
    parser = argparse.ArgumentParser(description="Run a model's Python in a sandbox.")
    parser.add_argument("steps", type=Path, nargs="+", metavar="STEP.py")
    parser.add_argument("--out", type=Path, required=True, help="directory for the files that the steps write")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds a step (10)")
    options = parser.parse_args(arguments)
    codes = [step.read_text() for step in options.steps]
    with BOX.popen(["sleep", "infinity"]) as session:
        for code in codes:
            print(json.dumps(run(session, code, options.timeout)))
        artefacts = files(session)
        session.kill()
    for path, content in sorted(artefacts.items()):
        target = options.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(f"{str(path)!r}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProcessLookupError:
        sys.exit("agent.py: a step has ended its own session, by a signal or by want of memory; its files went with it")
    except (SandboxError, OSError, tarfile.TarError) as error:
        sys.exit(f"agent.py: {error}")
