"""A parallel map over sandboxes: an Executor as in concurrent.futures, for work on what nobody vouches for.

python parallel_map.py '2 ** 64' 'math.pi' '9 ** 9 ** 9' 'open("/etc/shadow").read()'
"""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from sandbox import Sandbox, SandboxError

# Runs inside. What it answers may be anything by then, so it is JSON: unlike a pickle, that is nothing but data.
INSIDE = """
import json, sys
source, name, arguments = json.load(sys.stdin)
answer, sys.stdout = sys.stdout, sys.stderr
exec(source, names := {})
json.dump(names[name](*arguments), answer)
"""


class RemoteError(Exception):
    """A call inside has failed; why, in words."""


class SandboxExecutor(Executor):
    """Calls functions, each time in a fresh sandbox. Their source goes in, so they know only what they import."""

    def __init__(self, box: Sandbox, max_workers: int | None = None) -> None:
        self._box = box
        self._threads = ThreadPoolExecutor(max_workers or os.cpu_count())  # they only wait

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        """Return the future of function(*arguments); arguments and result are what JSON can say."""
        return self._threads.submit(self._call, [inspect.getsource(function), function.__name__, arguments])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do as every Executor does."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def _call(self, call: list[Any]) -> Any:
        words = [sys.executable, "-I", "-c", INSIDE]
        done = self._box.run(words, input=json.dumps(call).encode(), capture_output=True)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").splitlines()
            raise RemoteError(said[-1] if said and done.returncode > 0 else done.detail)
        try:
            return json.loads(done.stdout)
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"the answer is no JSON: {error}") from None


def evaluate(expression: str) -> str:
    """Say what an expression of a stranger's is worth."""
    import math

    return repr(eval(expression, {"math": math}))


def main(arguments: list[str] | None = None) -> int:
    """Evaluate all; 0 when all have a value."""
    parser = argparse.ArgumentParser(description="Evaluate Python expressions of anybody's, several at a time.")
    parser.add_argument("expressions", nargs="+")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each (5)")
    options = parser.parse_args(arguments)
    box = Sandbox().limit(wall_time=options.seconds, output="1M").limit(memory="256M", pids=8, best_effort=True)
    failed = 0
    with SandboxExecutor(box) as executor:
        for text, future in [(text, executor.submit(evaluate, text)) for text in options.expressions]:
            try:
                said = f"{text} = {future.result()}"
            except RemoteError as error:
                failed, said = 1, f"{text}: {error}"
            print("".join(one if one.isprintable() else "?" for one in said))  # nothing that a terminal obeys
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, OSError) as error:
        sys.exit(f"parallel_map.py: {error}")
