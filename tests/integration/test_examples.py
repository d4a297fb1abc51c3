"""The examples do what their first lines say, and fail in words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest

pytestmark = pytest.mark.needs_userns

EXAMPLES = Path(harness.REPOSITORY) / "examples"


def example(name: str, *arguments: object, cwd: Path, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    """Run one as its reader would."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def write(directory: Path, **files: str) -> None:
    """Make files, by name with _ for the dot."""
    for name, text in files.items():
        path = directory / name.replace("_", ".")
        path.write_text(text)
        path.chmod(0o644)


def test_every_example_is_tested_short_and_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    here = Path(__file__).read_text()
    names = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
    assert len(names) >= 4
    assert [] == [name for name in names if f'example("{name}"' not in here and f'began("{name}"' not in here]
    assert [] == [name for name in names if f"[{name}.py]({name}.py)" not in table]
    assert [] == [name for name in names if len((EXAMPLES / f"{name}.py").read_text().splitlines()) > 85]


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
        c_py="import os; os.kill(2, 9)",
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
    (directory / "src/Makefile").write_text("hello: hello.o\nsteal:\n\tln -s /etc/shadow hello\n")
    (directory / "src").chmod(0o755)


BUILD = ("--", "make", "-f", "/source/Makefile", "VPATH=/source")


@pytest.mark.needs_program("gcc", "make")
def test_build_leaves_the_source_alone_and_takes_the_artefact(tmp_path):
    project(tmp_path)
    done = example("read_only_build", "src", "--take", "hello", *BUILD, cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert "build: exit status 0" in done.stderr
    assert "built\n" == subprocess.run([tmp_path / "hello"], capture_output=True, text=True).stdout
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
