"""Real programs under the default filter: they say and return what they do outside, and nothing is refused them."""

import os
import re
import shutil
import subprocess
import sys

import harness
import payloads
import pytest

from sandbox import Sandbox

pytestmark = pytest.mark.needs_userns

PYTHON = """
import asyncio, concurrent.futures, multiprocessing, os, sqlite3, ssl, subprocess, sys, tempfile, threading, zlib
def square(x): return x * x
async def several():
    process = await asyncio.create_subprocess_exec("echo", "child", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    data = await reader.read()
    writer.close()
    server.close()
    return out, data, await asyncio.gather(*(asyncio.sleep(0, one) for one in range(5)))
if __name__ == "__main__":
    seen = []
    threads = [threading.Thread(target=seen.append, args=(i,)) for i in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(sorted(seen))
    print(subprocess.run("echo $((1+1)); exit 3", shell=True, capture_output=True))
    print(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1]))
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(square, range(10)))
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        print(list(pool.map(square, range(4))))
    print(asyncio.run(several()))
    with tempfile.TemporaryDirectory() as where, sqlite3.connect(where + "/db") as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (x)")
        db.executemany("insert into t values (?)", [(i,) for i in range(100)])
        print(db.execute("select sum(x) from t").fetchone())
    context = ssl.create_default_context()
    print(context.verify_mode, len(context.get_ca_certs()) >= 0)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    try: tls.do_handshake()
    except ssl.SSLWantReadError: print(outgoing.read()[:1])
    sys.exit(5)
"""

C_PROGRAM = r"""
#define _GNU_SOURCE
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static void *add(void *sum) { return __atomic_add_fetch((int *)sum, 1, __ATOMIC_SEQ_CST), sum; }
static void quiet(int number) { (void)number; }
int main(void)
{
    int sum = 0, status, pair[2], ready = epoll_create1(0);
    pthread_t thread[16];
    for (int i = 0; i < 16; i++)
        if (pthread_create(&thread[i], 0, add, &sum))
            return 1;
    for (int i = 0; i < 16; i++)
        pthread_join(thread[i], 0);
    printf("threads %d\n", sum);
    pid_t pid = fork();
    if (!pid)
        _exit(7);
    waitpid(pid, &status, 0);
    printf("fork %d\n", WEXITSTATUS(status));
    char *argv[] = {"sh", "-c", "exit 9", 0}, *envp[] = {0};
    if (posix_spawn(&pid, "/bin/sh", 0, 0, argv, envp))
        return 2;
    waitpid(pid, &status, 0);
    printf("spawn %d system %d\n", WEXITSTATUS(status), WEXITSTATUS(system("exit 4")));
    FILE *pipe = popen("echo piped", "r");
    char line[20] = "";
    if (!fgets(line, sizeof line, pipe))
        return 3;
    printf("%s%d\n", line, pclose(pipe));
    signal(SIGALRM, quiet);
    timer_t timer;
    struct itimerspec soon = {{0, 0}, {0, 1000000}};
    timer_create(CLOCK_MONOTONIC, 0, &timer);
    timer_settime(timer, 0, &soon, 0);
    pause();
    struct addrinfo *found, hints = {.ai_flags = AI_NUMERICHOST};
    printf("numeric %d\n", getaddrinfo("127.0.0.1", "80", &hints, &found));
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    void *memory = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 1, 1 << 20);
    memory = mremap(memory, 1 << 20, 1 << 21, MREMAP_MAYMOVE);
    FILE *file = tmpfile();
    printf("%d %d %d\n", ready > 0, memory != MAP_FAILED, file != 0);
    return 11;
}
"""

JAVA = """
import java.nio.file.*;
import java.util.stream.*;
public class P {
    public static void main(String[] words) throws Exception {
        System.out.println(IntStream.range(0, 1000).parallel().sum());
        Path path = Files.createTempFile("x", "y");
        Files.writeString(path, "text");
        System.out.println(Files.readString(path));
        Process process = new ProcessBuilder("echo", "child").redirectErrorStream(true).start();
        System.out.println(new String(process.getInputStream().readAllBytes()) + process.waitFor());
        System.exit(6);
    }
}
"""

NODE = """
const { execSync } = require("child_process"), { Worker } = require("worker_threads"), fs = require("fs");
const http = require("http"), crypto = require("crypto");
fs.writeFileSync("file", "text"); console.log(fs.readFileSync("file", "utf8"), execSync("echo child").toString());
new Worker("require('worker_threads').parentPort.postMessage(6*7)", { eval: true }).on("message", (answer) => {
  console.log(answer);
  const server = http.createServer((_, response) => response.end("over http")).listen(0, "127.0.0.1", () =>
    http.get({ port: server.address().port, host: "127.0.0.1" }, (response) => response.on("data", (data) => {
      console.log(data.toString(), crypto.createHash("sha256").update("x").digest("hex"));
      process.exit(8); })));
});
"""

GIT = """
export GIT_AUTHOR_DATE='2001-01-01T00:00:00Z' GIT_COMMITTER_DATE='2001-01-01T00:00:00Z' GIT_CONFIG_GLOBAL=/dev/null
git init -q -b main r && cd r && git config user.email a@b && git config user.name a
echo one >f && git add f && git commit -qm first && git log --format=%H && git gc -q && git fsck 2>/dev/null
git clone -q . ../s && cd ../s && git status --short --branch && git archive main | sha256sum; exit 3
"""

SQLITE = """
create table t(x);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 1000) insert into t select x from c;
select sum(x), count(*) from t;
"""

OPENSSL = """
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out k 2>/dev/null
openssl req -x509 -key k -subj /CN=localhost -days 2 -out c 2>/dev/null
openssl verify -CAfile c c; printf x | openssl dgst -sha256 -sign k | wc -c; printf x | openssl sha512; openssl version
"""

GCC = "gcc -O2 -pthread -o p p.c && ./p; echo $?; g++ -x c++ -fsyntax-only - </dev/null; echo $?; ldd p | wc -l; rm p"
STATIC = "{} -static -O1 -pthread -o p p.c 2>/dev/null && ./p; echo $?; rm p"

COREUTILS = """
seq 1000 | sort -R | sort -n | tail -1; cp -a p.c q.c; cmp p.c q.c; find . | wc -l; tar c p.c | tar t
df . >/dev/null; nproc >/dev/null; timeout 1 true; flock p.c true; date +%Z; stat -c %s p.c; sync p.c
truncate -s 5 q.c; shuf -e 1; exit 2
"""
PERL = "socketpair(A, B, AF_UNIX, SOCK_STREAM, 0); fork or exit 3; wait; print $? >> 8, `echo x`"

# Name: the command, the programs that it needs.
PROGRAMS = {
    "python": (["/usr/bin/python3", "p.py"], "/usr/bin/python3"),
    "gcc": (["sh", "-c", GCC], "g++"),
    "glibc static": (["sh", "-c", STATIC.format("gcc")], "gcc"),
    "musl static": (["sh", "-c", STATIC.format("musl-gcc")], "musl-gcc"),
    "go": (["sh", "-c", "printf 'apple\\nbanana\\n' | fzf --filter=ban; fzf --version | cut -c1-2"], "fzf"),
    "java": (["java", "-Xmx128m", "P.java"], "java"),
    "node": (["node", "p.js"], "node"),
    "sqlite": (["sqlite3", "db", SQLITE], "sqlite3"),
    "git": (["sh", "-c", GIT], "git"),
    "openssl": (["sh", "-c", OPENSSL], "openssl"),
    "coreutils": (["sh", "-c", COREUTILS], "tar"),
    "perl": (["perl", "-MSocket", "-e", PERL], "perl"),
}  # fmt: skip


def files(path):
    payloads.ours(path)
    for name, text in (("p.py", PYTHON), ("p.c", C_PROGRAM), ("P.java", JAVA), ("p.js", NODE)):
        (path / name).write_text(text)
    return path


def needs(programs):
    for name in programs.split():
        if harness.find_program(name) is None and not os.path.exists(name):
            pytest.skip(f"needs the program {name}")


def outside(command, path):
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    done = subprocess.run(command, cwd=path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    while harness.children():  # what it left behind, multiprocessing's servers, ends by itself
        os.waitpid(-1, 0)
    return done


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_says_inside_what_it_says_outside_and_nothing_is_refused(name, tmp_path):
    command, programs = PROGRAMS[name]
    needs(programs)
    expected = outside(command, files(tmp_path))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    box = Sandbox().bind(files(tmp_path), "/w").cwd("/w").observe()
    actual = box.run(command, capture_output=True, text=True, timeout=100)
    assert (expected.stdout, expected.stderr, expected.returncode) == (actual.stdout, actual.stderr, actual.returncode)
    assert expected.stdout
    assert [] == [(one.call, one.args[:3]) for one in actual.denied]


# ── apt's https, against a server inside ──

APT = """
import http.server, ssl, subprocess, threading, os
subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem",
                "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost", "-addext",
                "subjectAltName=DNS:localhost"], check=True, capture_output=True)
os.makedirs("served")
with open("served/file", "w") as stream:
    stream.write("over https")
class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args): super().__init__(*args, directory="served")
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
uri = f"https://localhost:{server.server_address[1]}/file"
asked = f"601 Configuration\\nConfig-Item: Acquire::https::CAInfo={os.getcwd()}/cert.pem\\n\\n"
asked += f"600 URI Acquire\\nURI: {uri}\\nFilename: {os.getcwd()}/fetched\\n\\n"
method = subprocess.Popen(["/usr/lib/apt/methods/https"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
method.stdin.write(asked)
method.stdin.flush()
for line in method.stdout:
    if line.startswith(("201", "400", "401")):
        print(line.strip())
        break
method.stdin.close()
method.stdout.read()
method.wait()
print(open("fetched").read() if os.path.exists("fetched") else None)
"""


def test_apt_fetches_over_https_from_a_server_inside(tmp_path):
    needs("/usr/lib/apt/methods/https openssl")
    payloads.ours(tmp_path)
    box = Sandbox().bind(tmp_path, "/w").cwd("/w").observe()
    done = box.run(["/usr/bin/python3", "-c", APT], capture_output=True, text=True, timeout=60)
    assert ("201 URI Done\nover https\n", "") == (done.stdout, done.stderr)
    assert [] == [(one.call, one.args[:3]) for one in done.denied]


# ── what strace sees ──

# A refusal that is part of how a program works, by call and errno.
EXPECTED = {
    ("clone3", "ENOSYS"): "the C library tries it first, and then uses clone: a filter cannot see its flags",
}
LINE = re.compile(r"^(\d+)\s+(?:<\.\.\. )?(\w+)(?:\(| resumed)")


def refusals(command, path):
    """Return the calls that failed as a filter makes them fail, and how many were made, of all processes inside."""
    log = path / "trace"
    body = "import sys; from sandbox import Sandbox\nbox = Sandbox().bind(sys.argv[1], '/w').cwd('/w')\n"
    body += "box.run(sys.argv[2:], timeout=100)"
    traced = ["strace", "-f", "-qq", "-o", log, "-e", "signal=none", sys.executable, "-P", "-c", body, path, *command]
    done = subprocess.run(traced, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The payload is who installs the filter, and who comes after that.
    before, payload, found, count = set(), set(), set(), 0
    with open(log, errors="replace") as stream:
        for line in stream:
            match = LINE.match(line)
            if match is None:
                continue
            pid, call = match.groups()
            if call == "seccomp" and "SECCOMP_SET_MODE_FILTER" in line and pid not in payload:
                payload.add(pid)
            elif pid in payload or (payload and pid not in before):
                payload.add(pid)
                count += 1
                failed = re.search(r" = -1 (ENOSYS|EPERM|EAFNOSUPPORT|EPROTONOSUPPORT) ", line)
                if failed is not None:
                    found.add((call, failed[1]))
            else:
                before.add(pid)
    return found, count


@pytest.mark.needs_program("strace")
@pytest.mark.parametrize("name", ["python", "glibc static", "musl static", "go", "node", "java", "git", "sqlite"])
def test_strace_shows_no_unexpected_refusal(name, tmp_path):
    command, programs = PROGRAMS[name]
    needs(programs)
    found, count = refusals(command, files(tmp_path))
    assert count > 20
    assert set() == found - EXPECTED.keys()


@pytest.mark.needs_program("strace")
def test_strace_would_show_a_refusal(tmp_path):
    found, _ = refusals(["sh", "-c", "unshare -U true"], payloads.ours(tmp_path))
    assert {("unshare", "EPERM")} == found - EXPECTED.keys()
