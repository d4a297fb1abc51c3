"""The examples do what their first lines say, and fail in words."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_userns

EXAMPLES = Path(harness.REPOSITORY) / "examples"


def example(
    name: str, *arguments: object, cwd: Path, **options: "dict[str, str]"
) -> "subprocess.CompletedProcess[str]":
    """Run one as its reader would."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, **options)


@contextmanager
def began(name: str, *arguments: object, cwd: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start one that stays, and end it."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def write(directory: Path, **files: str) -> None:
    """Make files, by name with _ for the dot."""
    for name, text in files.items():
        path = directory / name.replace("_", ".")
        path.write_text(text)
        path.chmod(0o644)


def test_every_example_is_tested_short_and_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    page = (EXAMPLES.parent / "docs/examples.md").read_text()
    here = Path(__file__).read_text()
    names = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
    assert len(names) >= 9
    assert [] == [name for name in names if f'example("{name}"' not in here and f'began("{name}"' not in here]
    assert [] == [name for name in names if f"[{name}.py]({name}.py)" not in table]
    assert [] == [name for name in names if f"```{{literalinclude}} ../examples/{name}.py\n" not in page]
    assert [] == [name for name in names if len((EXAMPLES / f"{name}.py").read_text().splitlines()) > 90]


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("*.py"))])
def test_help_of_every_example_says_what_it_takes(name, tmp_path):
    done = example(name, "--help", cwd=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(f"usage: {name}.py")


# ── judge ──

SOLUTION = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char what[100];
    scanf("%99s", what);
    if (!strcmp(what, "loop")) for (;;) ;
    if (!strcmp(what, "sleep")) for (;;) pause();
    if (!strcmp(what, "leak")) for (;;) memset(malloc(1 << 20), 1, 1 << 20);
    if (!strcmp(what, "careful")) for (char *p; (p = malloc(1 << 20)) != 0;) memset(p, 1, 1 << 20);
    if (!strcmp(what, "abort")) abort();
    if (!strcmp(what, "null")) return *(volatile int *)0;
    if (!strcmp(what, "flood")) for (;;) puts("more");
    if (!strcmp(what, "write")) return fopen("/tmp/x", "w") != 0 && puts("x") > 0 && fflush(0) == 0;
    puts(strcmp(what, "wrong") ? "right  " : "left");
}
"""
VERDICTS = {
    "right": "AC", "wrong": "WA", "loop": "TLE", "sleep": "TLE", "leak": "MLE", "careful": "MLE", "abort": "RE",
    "null": "RE", "flood": "OLE",
}  # fmt: skip


def cases(directory: Path, *words: str) -> Path:
    (directory / "cases").mkdir()
    for word in words:
        write(directory / "cases", **{f"{word}_in": word, f"{word}_out": "right\n"})
    return directory / "cases"


@pytest.mark.needs_program("gcc")
def test_judge_says_what_became_of_each_case(tmp_path):
    write(tmp_path, a_c=SOLUTION)
    done = example("judge", "a.c", cases(tmp_path, *VERDICTS), "--seconds", 0.3, cwd=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert VERDICTS == {words[0]: words[1] for words in lines[:-1]}, done.stdout
    assert (["1", "of", "9", "accepted"], 1, "") == (lines[-1], done.returncode, done.stderr)


@pytest.mark.needs_cgroup("memory", "pids")
@pytest.mark.needs_program("gcc")
def test_judge_with_a_control_group_knows_that_memory_ran_out(tmp_path):
    write(tmp_path, a_c=SOLUTION)
    done = example("judge", "a.c", cases(tmp_path, "leak"), cwd=tmp_path)
    assert ["leak", "MLE"] == done.stdout.split()[:2]
    assert "oom_kill" in done.stdout


@pytest.mark.needs_program("gcc")
def test_judge_with_all_accepted_ends_well(tmp_path):
    write(tmp_path, a_c=SOLUTION)
    done = example("judge", "a.c", cases(tmp_path, "right", "write"), "--memory", 32, cwd=tmp_path)
    assert (1, "RE") == (done.returncode, done.stdout.splitlines()[1].split()[1]), "it wrote a file"
    (tmp_path / "cases/write.in").unlink()
    done = example("judge", "a.c", "cases", "--memory", 32, cwd=tmp_path)
    assert (0, "1 of 1 accepted") == (done.returncode, done.stdout.splitlines()[-1])


@pytest.mark.needs_program("gcc")
@pytest.mark.parametrize(
    ("source", "said"), [("int main( {", "expected declaration"), ('#include "/etc/shadow"', "No such file")]
)
def test_judge_shows_the_compiler_s_errors_and_none_of_the_host_s_files(source, said, tmp_path):
    write(tmp_path, a_c=source)
    done = example("judge", "a.c", cases(tmp_path, "right"), cwd=tmp_path)
    assert (1, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("CE: exited, exit status 1\n/program.c:1:")
    assert said in done.stdout


def test_judge_without_cases_or_program_says_so(tmp_path):
    write(tmp_path, a_c=SOLUTION)
    assert "none has no file that ends in .in" in example("judge", "a.c", "none", cwd=tmp_path).stderr
    done = example("judge", "b.c", cases(tmp_path, "right"), cwd=tmp_path)
    assert (1, "judge.py: [Errno 2] No such file or directory: 'b.c'\n") == (done.returncode, done.stderr)


# ── agent ──


def test_agent_keeps_files_from_step_to_step_and_hands_them_back(tmp_path):
    write(
        tmp_path,
        a_py="import os; os.makedirs('d/e'); open('d/e/f', 'w').write('made'); os.symlink('/etc/passwd', 'link')",
        b_py="print(open('d/e/f').read()); open('big', 'wb').write(bytes(5 << 20))",
        c_py="while True: pass",
    )
    done = example("agent", "a.py", "b.py", "c.py", "--timeout", 5, "--out", "out", cwd=tmp_path)
    *steps, first, second = done.stdout.splitlines()
    a, b, c = map(json.loads, steps)
    assert ("exit status 0", "", "") == (a["ended"], a["stdout"], a["stderr"])
    assert ("made\n", "exit status 1", True) == (b["stdout"], b["ended"], "File too large" in b["stderr"])
    assert "killed after 5.0 seconds, the caller's timeout" == c["ended"]
    assert (f"'big': {4 << 20} bytes", "'d/e/f': 4 bytes", "") == (first, second, done.stderr)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if not path.is_dir()}
    assert {"big", "d/e/f"} == found, "only regular files come out"
    assert "made" == (tmp_path / "out/d/e/f").read_text()


def test_agent_of_hostile_code_survives(tmp_path):
    write(
        tmp_path,
        a_py="print('x' * (50 << 20))",
        b_py="import os\nfor i in range(40): os.truncate(os.open(f's{i}', os.O_CREAT | os.O_RDWR), 4 << 20)",
        c_py="import os, time; os.kill(2, 9); time.sleep(1000)",
    )
    done = example("agent", "a.py", "b.py", "--out", "out", cwd=tmp_path)
    step = json.loads(done.stdout.splitlines()[0])
    assert (20_000, True) == (len(step["stdout"]), step["truncated"])
    assert 4 == len(os.listdir(tmp_path / "out")), "sparse files are worth what they would take up"
    done = example("agent", "c.py", "--out", "out", cwd=tmp_path)
    assert 1 == done.returncode
    assert "a step has ended its own session" in done.stderr


def test_agent_without_its_step_says_so(tmp_path):
    done = example("agent", "none.py", "--out", "out", cwd=tmp_path)
    assert (1, "agent.py: [Errno 2] No such file or directory: 'none.py'\n") == (done.returncode, done.stderr)


# ── build ──


def project(directory: Path) -> None:
    (directory / "src").mkdir()
    write(directory / "src", hello_c='int puts(const char *);\nint main(void) { return puts("built") < 0; }\n')
    (directory / "src/Makefile").write_text(
        "hello: hello.o\nsteal:\n\tln -s /etc/shadow hello\nflood:\n\tln -s /dev/zero hello\n"
    )
    (directory / "src").chmod(0o755)


BUILD = ("--", "make", "-f", "/source/Makefile", "VPATH=/source")


@pytest.mark.needs_program("gcc", "make")
def test_build_leaves_the_source_alone_and_takes_the_artefact(tmp_path):
    project(tmp_path)
    done = example("read_only_build", "src", "--take", "hello", *BUILD, cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert "build: exit status 0" in done.stderr
    assert "built\n" == subprocess.run([tmp_path / "hello"], capture_output=True, text=True).stdout
    example("read_only_build", "src", "--take", "hello", "--out", "new/folder", *BUILD, cwd=tmp_path)
    assert os.access(tmp_path / "new/folder/hello", os.X_OK)
    assert {"Makefile", "hello.c"} == set(os.listdir(tmp_path / "src"))


@pytest.mark.needs_program("make")
def test_build_that_fails_or_has_no_artefact_says_so(tmp_path):
    project(tmp_path)
    done = example("read_only_build", "src", "--take", "hello", *BUILD, "none", cwd=tmp_path)
    assert (2, False) == (done.returncode, (tmp_path / "hello").exists())
    assert "build: exit status 2" in done.stderr
    done = example("read_only_build", "src", "--take", "hello", *BUILD, "steal", cwd=tmp_path)
    assert (1, False) == (done.returncode, (tmp_path / "hello").exists()), "a link is the sandbox's, not the host's"
    assert "read_only_build.py: the build has left no file hello" in done.stderr
    done = example("read_only_build", "src", "--size", "1M", "--take", "hello", *BUILD, "flood", cwd=tmp_path)
    assert (1, False) == (done.returncode, (tmp_path / "hello").exists())
    done = example("read_only_build", "none", "make", cwd=tmp_path)
    assert 1 == done.returncode
    assert "none" in done.stderr
    assert "must exist on the host" in done.stderr


# ── container ──


def tree(directory: Path, inittab: str) -> Path:
    """Make a tree as debootstrap would, of one static program."""
    busybox = harness.find_program("busybox")
    for name in ("bin", "dev", "etc", "proc", "run", "sbin", "tmp"):
        (directory / "tree" / name).mkdir(parents=True)
    (directory / "tree/bin/busybox").write_bytes(Path(str(busybox)).read_bytes())
    (directory / "tree/bin/busybox").chmod(0o755)
    for name in ("bin/sh", "bin/id", "bin/ps", "bin/echo", "bin/hostname", "bin/touch", "bin/chown", "bin/poweroff"):
        (directory / "tree" / name).symlink_to("busybox")
    (directory / "tree/sbin/init").symlink_to("../bin/busybox")
    (directory / "tree/etc/inittab").write_text(inittab)
    return directory / "tree"


@pytest.mark.needs_program("busybox")
def test_container_boots_its_own_init_and_powers_off(tmp_path):
    shell = "hostname; id -u; (touch /etc/made) 2>/dev/null || echo refused; touch /tmp/made && ps"
    tree(tmp_path, f"::sysinit:/bin/sh -c '{shell}'\n::wait:/bin/poweroff\n::shutdown:/bin/echo bye\n")
    done = example("container", "tree", "--name", "box", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert ["box", "0", "refused"] == done.stdout.split()[:3]
    assert "    1 0        init" in done.stdout
    assert done.stdout.endswith("bye\n")
    assert done.stderr.endswith("container: powered off\n")
    assert not (tmp_path / "tree/etc/made").exists()


@pytest.mark.needs_root
@pytest.mark.needs_program("busybox")
def test_container_of_root_has_many_users(tmp_path):
    tree(tmp_path, "::sysinit:/bin/sh -c 'touch /tmp/a; chown 33 /tmp/a && echo given'\n::wait:/bin/poweroff\n")
    done = example("container", "tree", cwd=tmp_path)
    assert ("given\n", 0) == (done.stdout, done.returncode)


@pytest.mark.needs_user
@pytest.mark.needs_program("busybox")
def test_container_of_a_user_without_ranges_says_why_it_has_one_id(tmp_path):
    tree(tmp_path, "::sysinit:/bin/sh -c 'touch /tmp/a; chown 33 /tmp/a || echo kept'\n::wait:/bin/poweroff\n")
    done = example("container", "tree", cwd=tmp_path)
    assert ("kept\n", 0) == (done.stdout, done.returncode)
    assert "container: all ids are one user, for id_ranges() is not available here" in done.stderr


@pytest.mark.needs_program("busybox")
def test_container_without_init_or_with_one_that_ends_says_so(tmp_path):
    tree(tmp_path, "")
    done = example("container", "tree", "--init", "/bin/id", cwd=tmp_path)
    assert 1 == done.returncode
    assert done.stderr.endswith("container: exit status 0\n"), "it has not powered off"
    done = example("container", "tree", "--init", "/sbin/none", cwd=tmp_path)
    assert 1 == done.returncode
    assert 'execve("/sbin/none")' in done.stderr


# ── socket activation ──


def fetched(address: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        return answer.read().decode()


def test_socket_activation_starts_for_a_visitor_and_again_for_the_next(tmp_path):
    write(tmp_path, page_txt="hello")
    tmp_path.chmod(0o755)
    with began("socket_activation", ".", "--idle", 0.2, cwd=tmp_path) as process:
        assert process.stdout is not None
        address = re.fullmatch(r"listening on (http://\S+), and nothing runs\n", process.stdout.readline())
        assert address is not None
        for _ in range(2):
            assert "hello" == fetched(f"{address[1]}/page.txt")
            assert re.fullmatch(r"started, pid \d+\n", process.stdout.readline())
            assert '"GET /page.txt HTTP/1.1" 200' in process.stdout.readline()
            assert "ended: exit status 0\n" == process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert ("stopping\n", 0) == (process.stdout.read(), process.wait(30))


def test_socket_activation_of_what_cannot_be_started_gives_up(tmp_path):
    (tmp_path / "public").mkdir()
    with began("socket_activation", "public", cwd=tmp_path) as process:
        assert process.stdout is not None
        port = int(re.search(r":(\d+),", process.stdout.readline())[1])  # type: ignore[index]
        (tmp_path / "public").rmdir()
        with socket.create_connection(("127.0.0.1", port)):
            said = process.stdout.read()
        assert (1, "given up") == (process.wait(30), said.splitlines()[-1])
        assert 4 == said.count("ended: "), said
        assert "must exist on the host" in said


def test_socket_activation_without_its_directory_or_port_says_so(tmp_path):
    done = example("socket_activation", "none", cwd=tmp_path)
    assert (2, True) == (done.returncode, "none is no directory, or" in done.stderr)
    assert 2 == example("socket_activation", ".", "--idle", 0, cwd=tmp_path).returncode
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = example("socket_activation", ".", "--port", taken.getsockname()[1], cwd=tmp_path)
    assert 1 == done.returncode
    assert "socket_activation.py: [Errno 98] Address already in use" in done.stderr


# ── tee ──


def test_tee_log_gives_the_same_to_both_and_continues_the_log(tmp_path):
    numbers = "".join(f"{i}\n" for i in range(1, 100_001))
    done = example("tee_log", "log", "--", "sh", "-c", "seq 100000; echo wrong >&2; exit 3", cwd=tmp_path)
    assert (3, numbers + "wrong\n", "") == (done.returncode, done.stdout, done.stderr)
    done = example("tee_log", "log", "--", "sh", "-c", "echo again; kill -9 $$", cwd=tmp_path)
    assert (137, "again\n") == (done.returncode, done.stdout)
    head, *body, foot, second, again, last = (tmp_path / "log").read_text().splitlines()
    assert numbers + "wrong\n" == "\n".join(body) + "\n"
    assert re.fullmatch(r"== \d{4}-\d\d-\d\d [\d:]+ sh -c 'seq 100000; echo wrong >&2; exit 3'", head)
    assert foot.startswith(f"== exit status 3, {len(numbers) + 6} bytes in ")
    assert ("again", True) == (again, "echo again" in second)
    assert last.startswith("== signal SIGKILL, 6 bytes in ")


def test_tee_log_into_what_takes_no_pages_copies(tmp_path):
    write(tmp_path, out="before\n")
    command = [sys.executable, EXAMPLES / "tee_log.py", "log", "--", "seq", "50000"]
    with open(tmp_path / "out", "ab") as out:
        done = subprocess.run(command, cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert (0, b"") == (done.returncode, done.stderr)
    assert "before\n" + "".join(f"{i}\n" for i in range(1, 50_001)) == (tmp_path / "out").read_text()


def test_tee_log_when_its_reader_leaves_ends_the_command(tmp_path):
    with began("tee_log", "log", "--", "yes", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert "y\n" == process.stdout.readline()
        process.stdout.close()
        assert 141 == process.wait(30)


def test_tee_log_without_the_program_or_a_place_for_the_log_says_so(tmp_path):
    done = example("tee_log", "log", "--", "no-such-program", cwd=tmp_path)
    assert (1, True) == (done.returncode, 'execve("no-such-program")' in done.stderr)
    done = example("tee_log", "none/log", "--", "true", cwd=tmp_path)
    assert (1, "tee_log.py: [Errno 2] No such file or directory: 'none/log'\n") == (done.returncode, done.stderr)


# ── the broker ──


def guarded(directory: Path) -> None:
    (directory / "data/below").mkdir(parents=True)
    write(directory / "data", a_csv="a\n", key_pem="secret\n")
    write(directory / "data/below", b_csv="b\n")


@pytest.mark.needs_root
def test_file_broker_lets_through_what_is_allowed(tmp_path):
    guarded(tmp_path)
    # Its errors go where its output goes: on standard error the broker alone speaks, whoever is quicker.
    shell = "exec 2>&1; cat a.csv below/b.csv; cat key.pem; cp /dev/null /tmp/key.pem && cat /tmp/key.pem"
    done = example("file_broker", "data", "--allow", "*.csv", "--", "sh", "-c", shell, cwd=tmp_path)
    assert ("a\nb\ncat: key.pem: Operation not permitted\n", 0) == (done.stdout, done.returncode)
    said = ["allow '/data/a.csv'", "allow '/data/below/b.csv'", "deny '/data/key.pem'"]
    assert [*said, "exit status 0; allowed 2, denied 1"] == done.stderr.splitlines(), "of others nobody asks"


@pytest.mark.needs_root
def test_file_broker_without_a_pattern_denies_all_and_the_host_nothing(tmp_path):
    guarded(tmp_path)
    read, over = [], threading.Event()

    def host() -> None:
        while not over.is_set():
            read.append((tmp_path / "data/a.csv").read_text())

    thread = threading.Thread(target=host)
    thread.start()
    try:
        done = example("file_broker", "data", "--", "sh", "-c", "cat a.csv below/b.csv; exit 7", cwd=tmp_path)
    finally:
        over.set()
        thread.join()
    assert ("", 7) == (done.stdout, done.returncode)
    assert done.stderr.endswith("exit status 7; allowed 0, denied 2\n")
    assert {"a\n"} == set(read)
    assert not thread.is_alive()


@pytest.mark.needs_root
def test_file_broker_without_its_directory_says_so(tmp_path):
    done = example("file_broker", "none", "--", "true", cwd=tmp_path)
    assert (1, True) == (done.returncode, "must exist on the host" in done.stderr)


@pytest.mark.needs_user
def test_file_broker_of_a_user_says_who_may(tmp_path):
    guarded(tmp_path)
    done = example("file_broker", "data", "--", "true", cwd=tmp_path)
    assert (1, True) == (done.returncode, "only root of the host, with CAP_SYS_ADMIN" in done.stderr)


# ── maps ──


def test_parallel_map_answers_and_survives_strangers(tmp_path):
    given = {
        "2 ** 10": " = 1024",
        "math.sqrt(9)": " = 3.0",
        "open('/etc/shadow').read()": ": FileNotFoundError: [Errno 2] No such file or directory: '/etc/shadow'",
        "'x' * 5000000": ": more than 1048576 bytes: output is limited to that",
        "__import__('os').kill(__import__('os').getpid(), 9)": ": signal SIGKILL",
        "'\\x1b[2J'": " = '\\x1b[2J'",
        "__import__('sys').exit('\\x1b[2J')": ": ?[2J",
        "__import__('os')._exit(0)": ": the answer is no JSON: Expecting value: line 1 column 1 (char 0)",
        "__import__('os').write(1, b'[' * 100000) and __import__('os')._exit(0)": ": the answer is no JSON: maximum",
    }
    done = example("parallel_map", *given, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert (1, "", len(given)) == (done.returncode, done.stderr, len(lines))
    wrong = [line for line, (text, said) in zip(lines, given.items(), strict=True) if not line.startswith(text + said)]
    assert [] == wrong
    done = example("parallel_map", "9 ** 9 ** 9", "1 + 1", "--seconds", 3, cwd=tmp_path)
    assert ["9 ** 9 ** 9: killed after 3.0", "1 + 1 = 2"] == [line[:29] for line in done.stdout.splitlines()]
    assert 0 == example("parallel_map", "1", cwd=tmp_path).returncode


def test_parallel_map_is_an_executor(tmp_path):
    program = """
from parallel_map import RemoteError, SandboxExecutor
from sandbox import Sandbox

def add(a, b):
    print("heard by nobody")
    return {"sum": a + b, "of": [a, b]}

def sleep(seconds):
    import time
    time.sleep(seconds)

with SandboxExecutor(Sandbox().limit(wall_time=5), max_workers=1) as executor:
    print(*(one["sum"] for one in executor.map(add, range(5), range(5))))
    first, second = executor.submit(add, [1], "x"), executor.submit(add, 1.5, 2)
    print(first.exception(), type(first.exception()) is RemoteError, second.result())
    running, waiting = executor.submit(sleep, 0.2), executor.submit(sleep, 1000)
    executor.shutdown(wait=False, cancel_futures=True)
    print(waiting.cancelled())
    try:
        executor.submit(add, 1, 2)
    except RuntimeError as error:
        print(error)
"""
    write(tmp_path, program_py=program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [
        "0 2 4 6 8",
        "TypeError: can only concatenate list (not \"str\") to list True {'sum': 3.5, 'of': [1.5, 2]}",
        "True",
        "cannot schedule new futures after shutdown",
    ]
    assert (said, "") == (done.stdout.splitlines(), done.stderr)


# ── Dask ──


@pytest.fixture
def orphans() -> "Iterator[None]":
    """Reap what multiprocessing leaves to init: its resource tracker ends after the program does."""
    before = harness.children()
    yield
    for pid in harness.children() - before:
        os.waitpid(pid, 0)


def settings(directory: Path, **more: str) -> dict[str, dict[str, str]]:
    return {"env": os.environ | {"DASK_TEMPORARY_DIRECTORY": str(directory)} | more}


@pytest.mark.usefixtures("orphans")
def test_cluster_spreads_over_worker_processes(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", a_txt="from the host")
    tmp_path.chmod(0o755)
    (tmp_path / "data").chmod(0o755)
    script = "import os, sys; n = int(sys.argv[1]); n == 3 and os.kill(os.getpid(), 9); print(n * n, os.getpid())\n"
    write(tmp_path, a_py=script + "print(open('/data/a.txt').read())\n")
    words = ("a.py", 1, 2, 3, 4, 5, "x", "--data", "data")
    done = example("cluster", *words, cwd=tmp_path, **settings(tmp_path))
    said = re.findall(r"^(\w) on (tcp://127.0.0.1:\d+): (.*)\n(\d+ 2\nfrom the host\n)?", done.stdout, re.MULTILINE)
    ended = ["exit status 0"] * 2 + ["signal SIGKILL"] + ["exit status 0"] * 2 + ["exit status 1"]
    assert ended == [detail for _, _, detail, _ in said], done.stdout + done.stderr
    assert ["1", "4", "16", "25"] == [text.split()[0] for *_, text in said if text]
    assert 2 == len({worker for _, worker, _, _ in said})
    assert "ValueError: invalid literal for int() with base 10: 'x'" in done.stdout
    assert (1, "") == (done.returncode, done.stderr)


@pytest.mark.usefixtures("orphans")
def test_cluster_whose_workers_cannot_launch_or_be_reached_says_so(tmp_path):
    write(tmp_path, a_py="")
    done = example("cluster", "a.py", 1, "--data", "none", cwd=tmp_path, **settings(tmp_path))
    assert 1 == done.returncode
    assert "cluster.py: [Errno 2] step" in done.stderr, done.stderr
    assert "must exist on the host" in done.stderr
    fast = settings(tmp_path, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1s")
    done = example("cluster", "a.py", 1, "--scheduler", "tcp://127.0.0.1:1", cwd=tmp_path, **fast)
    assert (1, True) == (done.returncode, "cluster.py: Timed out trying to connect to tcp://127.0.0.1:1" in done.stderr)


def test_cluster_without_dask_says_what_to_install(tmp_path):
    done = subprocess.run(
        ["/usr/bin/python3", "-S", "-P", EXAMPLES / "cluster.py", "x"], capture_output=True, text=True, timeout=60
    )
    assert (1, "cluster.py: Dask is missing: pip install 'sandbox[examples]'\n") == (done.returncode, done.stderr)
