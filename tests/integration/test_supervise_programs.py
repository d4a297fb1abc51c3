"""Real servers as services: nginx and PostgreSQL, reloaded and restarted while they are used."""

import glob
import os
import re
import shlex
import signal
import socket
import subprocess

import pytest
from supervision import drive, until

from sandbox import Sandbox
from sandbox.supervise import Ready, ServiceReady, State, Supervisor

pytestmark = [pytest.mark.needs_userns, pytest.mark.slow]

NGINX = """
daemon off;
worker_processes 2;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
        location / {{ return 200 "version one\\n"; }}
    }}
}}
"""


@pytest.mark.needs_program("nginx", "wrk")
@pytest.mark.parametrize("kind", ["plain", "sandboxed"])
def test_nginx_loses_no_request_while_it_is_reloaded_and_restarted(tmp_path, kind):
    os.chmod(tmp_path, 0o755)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, Supervisor() as supervisor:
        address = "{}:{}".format(*listener.getsockname())
        box, folder = None, str(tmp_path)
        if kind == "sandboxed":
            box, folder = Sandbox().bind(tmp_path, "/srv"), "/srv"
        config = tmp_path / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, address=address))
        supervisor.add(
            "nginx",
            ["/usr/sbin/nginx", "-p", folder, "-c", f"{folder}/nginx.conf", "-e", "stderr"],
            sandbox=box,
            env={"NGINX": "3;", "PATH": "/usr/sbin:/usr/bin"},  # its own words for inherited sockets
            sockets=[listener],
            ready=Ready.call(lambda: (tmp_path / "pid").exists(), every=0.01),
            stop_signal=signal.SIGQUIT,  # finish what was begun
            reload=signal.SIGHUP,
            watch=[config],
            output=lambda _, line: None,
        )
        until(supervisor, ServiceReady)
        # The control: wrk says so when it is not served.
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run(["wrk", "-d1", "-t1", "-c1", "http://127.0.0.1:1/"], check=True, capture_output=True)
        load = subprocess.Popen(
            ["wrk", "-t1", "-c8", "-d4s", "--timeout", "10s", "-H", "Connection: close", f"http://{address}/"],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = supervisor.status()["nginx"].pid
        for i in range(4):
            if i % 2:
                supervisor.restart("nginx")
                until(supervisor, ServiceReady)
            else:
                config.write_text(config.read_text().replace("version one", "version two"))
            supervisor.step(0.3)
            supervisor.step(0.3)
        drive(supervisor, lambda: load.poll() is not None)
        report = load.communicate()[0]
        assert first != supervisor.status()["nginx"].pid
        assert State.READY == supervisor.status()["nginx"].state
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as stream:
                assert stream.read().endswith(b"version two\n")
    served = re.search(r"(\d+) requests in", report)
    assert int(served[1]) > 100, report
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report


def postgres() -> str:
    """The directory of PostgreSQL's programs, which Debian keeps off PATH."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    if not found:
        pytest.skip("needs the program postgres")
    return os.path.dirname(found[-1])


def test_postgresql_says_that_it_is_ready_and_fails_no_transaction_while_it_is_reloaded(tmp_path):
    programs = postgres()
    os.chmod(tmp_path, 0o755)
    path = f"{programs}:/usr/bin"
    # Inside it has a user with a name, which initdb wants and the tests' own user has not.
    box = Sandbox().bind(tmp_path, "/srv").dev(shm="64M").env(PATH=path, LC_ALL="C.UTF-8")
    box.run(["initdb", "-D", "/srv/data", "-U", "user", "--no-sync"], capture_output=True, check=True, timeout=100)
    config = tmp_path / "data" / "postgresql.conf"
    server = ["postgres", "-D", "/srv/data", "-k", "/srv", "-h", "", "-c", "fsync=off"]

    def client(*words: str) -> list[str]:
        return [*words, "-h", str(tmp_path), "-U", "user", "postgres"]

    env = {"PATH": path, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    with Supervisor() as supervisor:
        supervisor.add(
            "db",
            server,
            sandbox=box,
            ready=Ready.notify(),
            ready_timeout=60,
            stop_signal=signal.SIGINT,  # end sessions, then the server
            stop_timeout=60,
            reload=signal.SIGHUP,
            watch=[config],
            output=tmp_path / "log",
        )
        until(supervisor, ServiceReady)
        first = supervisor.status()["db"].pid
        subprocess.run(client("pgbench", "-i", "-q"), env=env, check=True, capture_output=True)
        load = subprocess.Popen(client("pgbench", "-n", "-c4", "-T3"), env=env, stdout=subprocess.PIPE, text=True)
        for number in (11, 12, 13):
            with open(config, "a") as stream:
                stream.write(f"work_mem = {number}MB\n")
            supervisor.step(0.5)
            supervisor.step(0.5)
        drive(supervisor, lambda: load.poll() is not None)
        report = load.communicate()[0]
        assert 0 == load.returncode
        assert "number of failed transactions: 0 " in report
        assert first == supervisor.status()["db"].pid
        ask = ["psql", "-h", str(tmp_path), "-U", "user", "-At", "-c", "show work_mem", "postgres"]
        drive(supervisor, lambda: b"13MB\n" == subprocess.run(ask, env=env, capture_output=True, check=True).stdout)
        # Restarted, it has what it had.
        count = [
            "psql",
            "-h",
            str(tmp_path),
            "-U",
            "user",
            "-At",
            "-c",
            "select count(*) from pgbench_history",
            "postgres",
        ]
        before = subprocess.run(count, env=env, capture_output=True, check=True).stdout
        supervisor.restart("db")
        until(supervisor, ServiceReady)
        assert first != supervisor.status()["db"].pid
        assert before == subprocess.run(count, env=env, capture_output=True, check=True).stdout
        assert int(before) > 0
    log = (tmp_path / "log").read_text()
    assert "database system is shut down" in log, shlex.join(server)
