"""A parallel map over a cluster: Dask spreads the commands, each worker launches its sandboxes itself.

python cluster.py script.py 1 2 3 4                                # on workers of its own, here
python cluster.py script.py 1 2 3 4 --scheduler tcp://host:8786    # on those of a cluster

A Sandbox is a value: it travels to the workers as any other, with the content of its files. What it binds is looked up
where it is launched. Dask is in `pip install 'sandbox[examples]'`.
"""

import argparse
import contextlib
import sys
from pathlib import Path

try:
    from distributed import Client, LocalCluster
except ModuleNotFoundError:
    sys.exit("cluster.py: Dask is missing: pip install 'sandbox[examples]'")

from sandbox import Result, Sandbox, SandboxError


def local(workers: int) -> LocalCluster:
    """Make a cluster of processes on this host."""
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")


def main(arguments: list[str] | None = None) -> int:
    """Run the script once for each argument; 0 when all went well."""
    parser = argparse.ArgumentParser(description="Run a script on a cluster, in sandboxes.")
    parser.add_argument("script", type=Path, help="a Python program, run by each worker's /usr/bin/python3")
    parser.add_argument("arguments", nargs="+", help="it is run with each of them")
    parser.add_argument("--data", type=Path, help="a directory that each worker's host has; seen inside as /data")
    parser.add_argument("--scheduler", help="address of a Dask scheduler; without it there are workers on this host")
    parser.add_argument("--workers", type=int, default=2, help="how many then (2)")
    options = parser.parse_args(arguments)
    box = Sandbox().file("/script.py", options.script.read_bytes()).limit(wall_time=60, output="1M")
    box = box.bind_readonly(options.data, "/data") if options.data else box
    commands = [["/usr/bin/python3", "-I", "/script.py", word] for word in options.arguments]

    failed = 0
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(options.scheduler or stack.enter_context(local(options.workers))))
        # A bound method of a value is a value. Impure: to run the same command twice is to run it twice.
        futures = client.map(box.run, commands, capture_output=True, text=True, errors="replace", pure=False)
        for word, future in zip(options.arguments, futures, strict=True):
            result: Result[str] = future.result()
            failed |= result.returncode
            worker = client.who_has([future])[future.key][0]
            print(f"{word} on {worker}: {result.detail}\n{result.stdout}{result.stderr}", end="")
    return int(failed != 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, OSError) as error:
        sys.exit(f"cluster.py: {error}")
