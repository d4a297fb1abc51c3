"""Real programs inside: what they say and how they end is what they say and how they end outside."""

import os
import subprocess
import textwrap

import plans
import pytest

from sandbox import PIPE, Sandbox

pytestmark = pytest.mark.needs_userns

PYTHON = "/usr/bin/python3"


def same(command, box=None, env=None, **options):
    """Run a command inside and outside; both must agree."""
    box = Sandbox() if box is None else box
    env = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"} | (env or {})
    expected = subprocess.run(command, capture_output=True, text=True, env=env, cwd="/tmp", **options)
    assert plans.reap_all(10)  # what it left behind outside came to this process
    actual = box.run(command, capture_output=True, text=True, env=env, timeout=100, **options)
    assert (expected.returncode, expected.stdout, expected.stderr) == (
        actual.returncode,
        actual.stdout,
        actual.stderr,
    )
    return actual


SCRIPTS = {
    "hello": "print(6 * 7)",
    "status": "import sys; sys.stderr.write('no'); sys.exit(37)",
    "ssl": """
        import ssl, hashlib
        context = ssl.create_default_context()
        print(ssl.OPENSSL_VERSION, len(context.get_ca_certs()), hashlib.sha3_256(b"x").hexdigest())
    """,
    "sqlite": """
        import sqlite3, tempfile
        with tempfile.TemporaryDirectory() as folder:
            db = sqlite3.connect(folder + "/db")
            db.execute("create table t (a, b)")
            db.executemany("insert into t values (?, ?)", [(i, i * i) for i in range(1000)])
            db.commit()
            print(db.execute("select sum(b) from t where a % 2").fetchone())
    """,
    "multiprocessing": """
        import multiprocessing, math
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            with context.Pool(3) as pool:
                print(pool.map(math.factorial, range(10)))
            queue, lock = context.Queue(), context.Lock()
            with lock:
                queue.put("hi")
            print(queue.get())
    """,
    "shared memory": """
        from multiprocessing import shared_memory
        memory = shared_memory.SharedMemory(create=True, size=4096)
        memory.buf[:2] = b"hi"
        print(bytes(memory.buf[:2]))
        memory.close()
        memory.unlink()
    """,
    "subprocess": """
        import subprocess
        print(subprocess.run("echo $((6*7)) | tr 4 x; exit 3", shell=True, capture_output=True))
    """,
    "asyncio": """
        import asyncio
        async def main():
            async def serve(reader, writer):
                writer.write(await reader.readline())
                writer.close()
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"over loopback\\n")
            print(await reader.readline())
            process = await asyncio.create_subprocess_exec("echo", "child", stdout=-1)
            print(await process.communicate())
            server.close()
        asyncio.run(main())
    """,
    "threading": """
        import threading, queue
        q = queue.Queue()
        threads = [threading.Thread(target=lambda i=i: q.put(i)) for i in range(50)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(sorted(q.queue))
    """,
    "ctypes": """
        import ctypes
        libc = ctypes.CDLL("libc.so.6")
        print(libc.abs(-5), ctypes.string_at(ctypes.create_string_buffer(b"abc")))
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
        values = (ctypes.c_int * 4)(3, 1, 2, 0)
        libc.qsort(values, 4, 4, callback(lambda a, b: a[0] - b[0]))
        print(list(values))
    """,
    "zoneinfo and locale": """
        import datetime, zoneinfo, locale
        print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).isoformat())
        print(locale.setlocale(locale.LC_ALL, "C.UTF-8"))
    """,
    "mmap and tempfile": """
        import mmap, tempfile
        with tempfile.TemporaryFile() as file:
            file.truncate(8192)
            with mmap.mmap(file.fileno(), 0) as memory:
                memory[:5] = b"hello"
            file.seek(0)
            print(file.read(5))
    """,
    "signals and pty": """
        import os, pty, signal
        signal.signal(signal.SIGUSR1, lambda *_: print("caught", flush=True))
        os.kill(os.getpid(), signal.SIGUSR1)
        pid, fd = pty.fork()
        if not pid:
            print(os.isatty(0)); os._exit(0)
        print(os.read(fd, 100)); os.waitpid(pid, 0)
    """,
    "name resolution": "import socket; print(socket.gethostbyname('localhost'), socket.getservbyname('https'))",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_python_runs_its_standard_library(name):
    same([PYTHON, "-c", textwrap.dedent(SCRIPTS[name])])


@pytest.mark.needs_program("gcc")
def test_gcc_compiles_and_the_program_runs():
    source = """
#include <stdio.h>
#include <math.h>
int main(int c, char **v) { printf("%s %.3f\\n", v[1], sqrt(c)); return 42; }
"""
    script = f"cat >a.c <<'E'\n{source}\nE\ngcc -O2 -Wall a.c -o a.out -lm && ./a.out built"
    box = Sandbox()
    result = box.run(["/bin/sh", "-c", script], capture_output=True, text=True)
    assert (42, "built 1.414\n", "") == (result.returncode, result.stdout, result.stderr)


@pytest.mark.needs_program("git")
def test_git_clones_a_local_repository(tmp_path):
    repository = tmp_path / "repository"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]

    def git(*words):
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True, env=env).stdout

    git("init", "-q", str(repository))
    (repository / "file").write_text("content\n")
    git("-C", str(repository), "add", "file")
    git("-C", str(repository), "commit", "-qm", "first")
    tmp_path.chmod(0o755)
    box = Sandbox().bind_readonly(repository, "/repository")
    # The files belong to another user, as seen from inside, when root launches.
    trust = ["-c", "safe.directory=*"]
    script = (
        "git config --global --add safe.directory '*' && git clone -q /repository clone && cd clone"
        " && cat file && git log --format=%s && git fsck 2>/dev/null && git rev-parse HEAD"
    )
    result = box.run(["/bin/sh", "-c", script], capture_output=True, text=True)
    head = git(*trust, "-C", str(repository), "rev-parse", "HEAD")
    assert (0, f"content\nfirst\n{head}") == (result.returncode, result.stdout), result.stderr


@pytest.mark.needs_program("busybox")
def test_busybox_is_a_whole_root(tmp_path):
    for name in ("bin", "proc", "dev", "tmp"):
        (tmp_path / name).mkdir()
    with open("/usr/bin/busybox" if os.path.exists("/usr/bin/busybox") else "/bin/busybox", "rb") as source:
        (tmp_path / "bin/busybox").write_bytes(source.read())
    (tmp_path / "bin/busybox").chmod(0o755)
    tmp_path.chmod(0o755)
    for applet in ("sh", "seq", "awk", "sort", "tail", "id", "ps", "ls"):
        (tmp_path / "bin" / applet).symlink_to("busybox")
    box = Sandbox().rootfs(tmp_path).env(PATH="/bin")
    script = "seq 1 100 | awk '{ s += $1 } END { print s }'; seq 5 | sort -rn | tail -1; ls /; exit 9"
    result = box.run(["sh", "-c", script], capture_output=True, text=True)
    assert (9, "5050\n1\nbin\ndev\nproc\ntmp\n", "") == (result.returncode, result.stdout, result.stderr)


def test_a_gibibyte_comes_through_a_pipe(tmp_path):
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(1 << 30)
    tmp_path.chmod(0o755)
    box = Sandbox().bind_readonly(tmp_path, "/data")
    read_end, write_end = os.pipe()
    counter = subprocess.Popen(["wc", "-c"], stdin=read_end, stdout=PIPE)
    os.close(read_end)
    try:
        assert 0 == box.run(["cat", "/data/sparse"], stdout=write_end).returncode
    finally:
        os.close(write_end)
    assert b"1073741824\n" == counter.communicate()[0]


@pytest.mark.needs_program("node")
def test_node_runs():
    script = (
        "const {Worker} = require('worker_threads'); const fs = require('fs');"
        "fs.writeFileSync('/tmp/of-a-test-' + process.pid, 'x'); fs.unlinkSync('/tmp/of-a-test-' + process.pid);"
        "require('net').createServer(s => s.end('hi')).listen(0, '127.0.0.1', function () {"
        "  require('net').connect(this.address().port).on('data', d => { console.log('' + d); process.exit(4); }) })"
    )
    assert 4 == same(["node", "-e", script]).returncode


@pytest.mark.needs_program("java")
def test_java_runs():
    result = Sandbox().run(["java", "-Xshare:auto", "-XX:+UseSerialGC", "-version"], capture_output=True, text=True)
    outside = subprocess.run(["java", "-XX:+UseSerialGC", "-version"], capture_output=True, text=True, check=True)
    assert (0, outside.stderr) == (result.returncode, result.stderr)


@pytest.mark.needs_program("openssl")
def test_openssl_signs_and_verifies():
    script = (
        "openssl genpkey -algorithm ed25519 -out k 2>/dev/null && openssl pkey -in k -pubout -out p"
        " && echo data >d && openssl pkeyutl -sign -inkey k -rawin -in d -out s"
        " && openssl pkeyutl -verify -pubin -inkey p -rawin -in d -sigfile s; openssl version; openssl dgst -sha256 d"
    )
    result = Sandbox().run(["/bin/sh", "-c", script], capture_output=True, text=True)
    version = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout
    assert 0 == result.returncode, result.stderr
    assert "Verified Successfully" in result.stdout
    assert version in result.stdout


@pytest.mark.needs_program("sqlite3")
def test_sqlite_shell_runs():
    same(["sqlite3", ":memory:", "create table t(a); insert into t values (1), (2); select sum(a) from t;"])


@pytest.mark.parametrize(
    "command",
    [
        ["ls", "-l", "/usr/bin/env"],
        ["sort", "--parallel=2", "/usr/share/common-licenses/GPL-3"],
        ["perl", "-e", "print join ',', map { $_ ** 2 } 1 .. 9; exit 7"],
        ["tar", "-cf", "/dev/null", "/usr/share/common-licenses"],
        ["/bin/sh", "-c", "exec 3<>/dev/null; trap 'echo trapped; exit 5' TERM; kill -TERM $$"],
        ["date", "-d", "@0", "+%FT%T %Z"],
        ["ldd", "/usr/bin/python3"],
        ["cat", "/no/such/file"],
    ],
    ids=lambda command: command[0],
)
def test_everyday_programs_agree(command):
    if command[0] == "ldd":  # addresses differ from run to run
        result = Sandbox().run(command, capture_output=True, text=True)
        assert (0, False) == (result.returncode, "not found" in result.stdout)
        return
    if command[1:2] == ["-l"]:  # owners look different from inside a user namespace
        command = ["ls", "-gGn", *command[2:]]
    same(command)
