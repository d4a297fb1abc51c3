"""Socket activation: a web server that its first visitor starts, and that leaves when nobody comes any more.

python socket_activation.py ~/public --port 8080 --idle 10
"""

import argparse
import select
import signal
import socket
import sys
from pathlib import Path

from sandbox import Sandbox, SandboxError
from sandbox.events import Signalfd
from sandbox.supervise import Restart, ServiceExited, ServiceGaveUp, ServiceStarted, Supervisor

# The service. It has no network but the socket that it is given, and no files but /www.
SERVER = """
import functools, http.server, socket, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/www")
server = http.server.HTTPServer(("", 0), handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)  # the first of LISTEN_FDS, as systemd would pass it
server.timeout, server.handle_timeout = float(sys.argv[1]), sys.exit
while True:
    server.handle_request()
"""


def serve(listener: socket.socket, box: Sandbox, idle: float) -> int:
    """Watch the socket while the service is down, and the service while it is up, until SIGINT or SIGTERM."""
    command, policy = [sys.executable, "/server.py", str(idle)], Restart.on_failure(limit=3)
    with Supervisor() as supervisor, Signalfd([signal.SIGINT, signal.SIGTERM]) as signals:
        while True:
            for event in supervisor.step():
                match event:
                    case ServiceStarted(pid=pid):
                        print(f"started, pid {pid}", flush=True)
                    case ServiceExited(result=result):
                        print(f"ended: {result.detail}", flush=True)
                    case ServiceGaveUp():
                        print("given up", flush=True)
                        return 1
            # A visitor who comes too late for the service waits in the socket, and starts the next one.
            ready, _, _ = select.select([signals, listener if supervisor.finished else supervisor], [], [])
            if signals in ready:
                signals.read_event()  # or it would wait until signals are no longer ours, and end us
                print("stopping", flush=True)
                return 0
            if listener in ready and "web" in supervisor.status():
                supervisor.restart("web")
            elif listener in ready:
                supervisor.add("web", command, sandbox=box, sockets=[listener], restart=policy)


def main(arguments: list[str] | None = None) -> int:
    """Listen, and serve."""
    parser = argparse.ArgumentParser(description="Serve a directory, on demand.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (0)")
    parser.add_argument("--idle", type=float, default=10, help="seconds without a visitor until it leaves (10)")
    options = parser.parse_args(arguments)
    if not options.directory.is_dir() or options.idle <= 0:
        parser.error(f"{options.directory} is no directory, or --idle is not positive")
    box = Sandbox().bind_readonly(options.directory, "/www").file("/server.py", SERVER).limit(open_files=64)
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}, and nothing runs", flush=True)
        return serve(listener, box, options.idle)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, OSError) as error:
        sys.exit(f"socket_activation.py: {error}")
