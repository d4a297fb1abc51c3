"""Real processes meet real filters: every action and condition kind, with syscall and with int 0x80."""

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import harness
import machine_code
import pytest

from sandbox.filters import Allow, Errno, Filter, Kill, KillThread, Log, Notify, Trace, Trap, arg
from sandbox.filters.table import calls

pytestmark = pytest.mark.skipif(not machine_code.SUPPORTED, reason="needs x86_64")

ERRNO = 77  # EBADFD: no call here gives it by itself
MODES = {"syscall": ("x86_64", machine_code.call64), "int80": ("i386", machine_code.call32)}
modes = pytest.mark.parametrize("mode", MODES)


def numbered(mode: str, name: str) -> int:
    return calls().numbers[MODES[mode][0]][name]


def seen(program: "bytes | None", mode: str, *attempts: "tuple[str, tuple[int, ...]]") -> list[int]:
    """Make calls in a child with the filter attached, and return their results; None: without a filter."""
    shared = mmap.mmap(-1, 8 * len(attempts))
    results = (ctypes.c_long * len(attempts)).from_buffer(shared)

    def attempt() -> None:
        _, call = MODES[mode]
        made = [(numbered(mode, name), args) for name, args in attempts]
        if program is not None:
            machine_code.load_filter(program)
        for position, (number, args) in enumerate(made):
            results[position] = call(number, *args)

    harness.in_child(attempt)
    return list(results)


# lseek of a descriptor that is none: EBADF whatever the arguments are, so that the filter's errno stands out.
LSEEK_64 = [
    (arg(1) == 2**32 + 5, [5, 2**32 + 4, 2**32 + 5, 2 * 2**32 + 5], [2**32 + 5]),
    (arg(1) != 2**32 + 5, [5, 2**32 + 4, 2**32 + 5], [5, 2**32 + 4]),
    (arg(1) < 2**32 + 5, [0, 2**32 + 4, 2**32 + 5, 2**63], [0, 2**32 + 4]),
    (arg(1) <= 2**32 + 5, [2**32 + 5, 2**32 + 6], [2**32 + 5]),
    (arg(1) > 2**32 + 5, [6, 2**32 + 5, 2**32 + 6, 2**64 - 1], [2**32 + 6, 2**64 - 1]),
    (arg(1) >= 2**32 + 5, [2**32 + 4, 2**32 + 5], [2**32 + 5]),
    ((arg(1) & (2**40 | 2)) == 2**40, [2**40, 2**40 + 1, 2**40 + 2, 1], [2**40, 2**40 + 1]),
    ((arg(1) & 2**33) != 0, [2**33 - 1, 2**33, 2**34 - 1], [2**33, 2**34 - 1]),
    (arg(1).one_of(1, 2**32, 2**64 - 1), [0, 1, 2**32, 2**32 + 1, 2**64 - 1], [1, 2**32, 2**64 - 1]),
    (arg(1).between(2**32 - 1, 2**32 + 1), [2**32 - 2, 2**32 - 1, 2**32 + 1, 2**32 + 2], [2**32 - 1, 2**32 + 1]),
]
LSEEK_32 = [
    (arg(2) == 5, [4, 5, 6], [5]),
    (arg(2) == -1, [2**32 - 1, 1], [2**32 - 1]),
    (arg(2) != 5, [4, 5], [4]),
    (arg(2) < 2**31, [2**31 - 1, 2**31], [2**31 - 1]),
    (arg(2) <= 2**31, [2**31, 2**31 + 1], [2**31]),
    (arg(2) > 2**31, [2**31, 2**31 + 1], [2**31 + 1]),
    (arg(2) >= 2**31, [2**31 - 1, 2**31], [2**31]),
    ((arg(2) & 0x80000001) == 0x80000000, [0x80000000, 0x80000001, 0], [0x80000000]),
    ((arg(2) & 6) != 0, [1, 2, 4, 8], [2, 4]),
    (arg(2).one_of(1, 3), [0, 1, 2, 3], [1, 3]),
    (arg(2).between(3, 4), [2, 3, 4, 5], [3, 4]),
]


@pytest.mark.parametrize(("condition", "values", "matching"), LSEEK_64, ids=repr)
def test_condition_on_64_bits_decides_in_the_kernel(condition, values, matching) -> None:
    program = Filter(Allow).deny("lseek", condition, action=Errno(ERRNO)).to_bytes()
    results = seen(program, "syscall", *(("lseek", (2**32 - 1, value, 0)) for value in values))
    assert [-ERRNO if value in matching else -errno.EBADF for value in values] == results


@modes
@pytest.mark.parametrize(("condition", "values", "matching"), LSEEK_32, ids=repr)
def test_condition_on_32_bits_decides_in_the_kernel(condition, values, matching, mode: str) -> None:
    program = Filter(Allow).deny("lseek", condition, action=Errno(ERRNO)).to_bytes()
    results = seen(program, mode, *(("lseek", (2**32 - 1, 0, value)) for value in values))
    assert [-ERRNO if value in matching else -errno.EBADF for value in values] == results


def test_condition_on_an_int_ignores_the_upper_half_in_the_kernel() -> None:
    program = Filter(Allow).deny("lseek", arg(2) == 5, action=Errno(ERRNO)).to_bytes()
    assert [-ERRNO] == seen(program, "syscall", ("lseek", (2**32 - 1, 0, 2**32 + 5)))


def test_condition_on_a_mode_ignores_all_but_16_bits_in_the_kernel() -> None:
    program = Filter(Allow).deny("fchmod", arg(1) == 0o4755, action=Errno(ERRNO)).to_bytes()
    results = seen(program, "syscall", ("fchmod", (2**32 - 1, 0o4755 | 1 << 16)), ("fchmod", (2**32 - 1, 0o755)))
    assert [-ERRNO, -errno.EBADF] == results


@modes
@pytest.mark.parametrize(
    ("action", "result"),
    [
        (Errno(ERRNO), -ERRNO), (Errno(0), 0), (Trace(1), -errno.ENOSYS), (Notify, -errno.ENOSYS), (Log, -errno.EBADF),
    ],
)  # fmt: skip
def test_action_answers_in_the_kernel(action, result: int, mode: str) -> None:
    program = Filter(Allow).rule(action, "lseek", arg(2) == 1).to_bytes()
    results = seen(program, mode, ("lseek", (2**32 - 1, 0, 1)), ("lseek", (2**32 - 1, 0, 0)))
    assert [result, -errno.EBADF] == results


@modes
def test_action_trap_sends_sigsys_in_the_kernel(mode: str) -> None:
    program = Filter(Allow).rule(Trap, "lseek").to_bytes()

    def attempt() -> None:
        caught: list[int] = []
        signal.signal(signal.SIGSYS, lambda number, _: caught.append(number))
        number = numbered(mode, "lseek")
        machine_code.load_filter(program)
        MODES[mode][1](number, 2**32 - 1)
        assert [signal.SIGSYS] == caught

    harness.in_child(attempt)


def threads_after(action, mode: str) -> "tuple[int, bool]":
    """Let a second thread meet the action; return the wait status, and whether the first thread lived on."""
    program = Filter(Allow).rule(action, "lseek").to_bytes()
    survived = mmap.mmap(-1, 1)
    pid = os.fork()
    if pid == 0:
        number = numbered(mode, "lseek")
        thread = threading.Thread(
            target=lambda: (machine_code.load_filter(program), MODES[mode][1](number)), daemon=True
        )
        thread.start()
        deadline = time.monotonic() + 10
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        survived[0] = 1
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return status, survived[0] == 1


@modes
def test_action_kill_ends_the_process_in_the_kernel(mode: str) -> None:
    status, survived = threads_after(Kill, mode)
    assert signal.SIGSYS == os.WTERMSIG(status)
    assert not survived


@modes
def test_action_kill_thread_ends_the_thread_alone_in_the_kernel(mode: str) -> None:
    assert (0, True) == threads_after(KillThread, mode)


# ── architectures ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_architecture_not_served_is_killed_in_the_kernel() -> None:
    program = Filter(Allow, arches=["x86_64"]).to_bytes()
    number = numbered("int80", "getpid")

    def attempt() -> None:
        machine_code.load_filter(program)
        machine_code.call32(number)

    pid = os.fork()
    if pid == 0:
        attempt()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert signal.SIGSYS == os.WTERMSIG(status)


def test_x32_number_is_refused_in_the_kernel() -> None:
    number = 0x40000000 | calls().numbers["x86_64"]["getpid"]
    served = Filter(Allow, arches=["x86_64", "x32"]).deny("getpid", action=Errno(ERRNO)).to_bytes()
    without = Filter(Allow, arches=["x86_64"]).deny("getpid", action=Errno(ERRNO)).to_bytes()
    for program, expected in ((served, -ERRNO), (without, -errno.ENOSYS)):

        def attempt(program: bytes = program, expected: int = expected) -> None:
            machine_code.load_filter(program)
            assert expected == machine_code.call64(number)

        harness.in_child(attempt)


def test_number_newer_than_the_table_gets_the_unknown_action_in_the_kernel() -> None:
    program = Filter(Allow, unknown_action=Errno(ERRNO)).to_bytes()

    def attempt() -> None:
        machine_code.load_filter(program)
        assert -ERRNO == machine_code.call64(1000)
        assert -ERRNO == machine_code.call32(1000)
        assert os.getpid() == machine_code.call64(39)

    harness.in_child(attempt)


def test_variant_of_32_bit_programs_is_covered_in_the_kernel() -> None:
    program = Filter(Allow).deny("getuid", "socket", action=Errno(ERRNO)).to_bytes()
    # getuid, getuid32, socketcall(SYS_SOCKET), socketcall(SYS_BIND)
    plain = [("getuid", ()), ("getuid32", ()), ("socketcall", (1, 0)), ("socketcall", (2, 0))]
    assert [-ERRNO, -ERRNO, -ERRNO, -errno.EFAULT] == seen(program, "int80", *plain)


# ── the default filter ──────────────────────────────────────────────────────────────────────────────────────────────
NONE = 2**32 - 1  # no descriptor
ATTACKS = [
    ("ioctl", (NONE, 0x5412), errno.EPERM),
    ("ioctl", (NONE, 0x541C), errno.EPERM),
    ("io_uring_setup", (1, 0), errno.EPERM),
    ("keyctl", (0, 2**32 - 3, 0), errno.EPERM),
    ("add_key", (0, 0, 0, 0, 0), errno.EPERM),
    ("ptrace", (0,), errno.EPERM),
    ("pidfd_getfd", (NONE, 0, 0), errno.EPERM),
    ("setns", (NONE, 0), errno.EPERM),
    ("clone3", (0, 0), errno.ENOSYS),
    ("personality", (0x400000,), errno.EPERM),
    ("quotactl_fd", (NONE, 0, 0, 0), errno.EPERM),
    ("perf_event_open", (0, 0, 0, 0, 0), errno.EPERM),
    ("socket", (16, 3, 15), errno.EPROTONOSUPPORT),
    ("socket", (1, 1, 0), None),
    ("socket", (16, 3, 0), None),
    ("unshare", (0,), None),
    ("memfd_create", (0, 0), None),
]


@modes
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: f"{one[0]}{one[1]}")
def test_default_filter_refuses_in_the_kernel(attack, mode: str) -> None:
    name, args, refused = attack
    program = Filter.default().to_bytes()
    (free,), (held,) = seen(None, mode, (name, args)), seen(program, mode, (name, args))
    if refused is None:
        assert (free >= 0) == (held >= 0)
        assert held not in (-errno.EPERM, -errno.ENOSYS)
    else:
        assert -refused != free, "the positive control is refused, too"
        assert -refused == held


def test_default_filter_refuses_tiocsti_with_an_upper_half_in_the_kernel() -> None:
    attack = ("ioctl", (NONE, 2**32 + 0x5412))
    assert [-errno.EBADF] == seen(None, "syscall", attack)
    assert [-errno.EPERM] == seen(Filter.default().to_bytes(), "syscall", attack)


@pytest.mark.needs_userns
@modes
def test_default_filter_refuses_namespaces_in_the_kernel(mode: str) -> None:
    attack = ("unshare", (0x10000000,))
    assert [0] == seen(None, mode, attack)
    assert [-errno.EPERM] == seen(Filter.default().to_bytes(), mode, attack)
    assert [0] == seen(Filter.default(nesting=True).to_bytes(), mode, attack)


def test_default_filter_without_setid_refuses_the_bits_in_the_kernel(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    program = Filter.default(setid=False).to_bytes()

    def attempt() -> None:
        for mode in (0o4755, 0o2755):
            with pytest.raises(PermissionError):
                os.chmod(path, mode)
            with pytest.raises(PermissionError):
                os.open(path + "2", os.O_CREAT | os.O_WRONLY, mode)
        os.chmod(path, 0o1755)
        os.close(os.open(path + "3", os.O_CREAT | os.O_WRONLY, 0o644))

    def control() -> None:
        os.chmod(path, 0o4755)
        assert 0o4755 == os.stat(path).st_mode & 0o7777

    os.close(os.open(path, os.O_CREAT, 0o755))
    harness.in_child(control)
    harness.in_child(lambda: (machine_code.load_filter(program), attempt()))


def run_filtered(program: bytes, args: "list[str]", cwd: Path) -> subprocess.CompletedProcess:
    """Run a program with the filter attached before exec."""
    runner = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); import machine_code; "
        "machine_code.load_filter(bytes.fromhex(sys.argv[2])); os.execvp(sys.argv[3], sys.argv[3:])"
    )
    command = ["/usr/bin/python3", "-c", runner, str(cwd), program.hex(), *args]
    (cwd / "machine_code.py").write_text(Path(machine_code.__file__).read_text())
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


WORKLOAD = """
import asyncio, multiprocessing, socket, sqlite3, subprocess, threading

async def child():
    process = await asyncio.create_subprocess_exec("/bin/true")
    return await process.wait()

def main():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert subprocess.run(["/bin/sh", "-c", "echo hi | cat"], capture_output=True).stdout == b"hi\\n"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    one, other = socket.socketpair()
    one.send(b"x")
    assert other.recv(1) == b"x"
    assert sqlite3.connect("w.db").execute("select 6*7").fetchone() == (42,)
    assert asyncio.run(child()) == 0
    process = multiprocessing.get_context("fork").Process(target=abs, args=(1,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    print("done")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("options", [{}, {"setid": False}, {"nesting": True}], ids=str)
def test_default_filter_runs_python_in_the_kernel(options: "dict[str, bool]", tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORKLOAD)
    result = run_filtered(Filter.default(**options).to_bytes(), ["/usr/bin/python3", "work.py"], tmp_path)
    assert ("done\n", 0) == (result.stdout, result.returncode), result.stderr


@pytest.mark.needs_program("gcc")
@pytest.mark.parametrize("flags", [["-m64"], ["-m64", "-static"], ["-m32"], ["-m32", "-static"]], ids=" ".join)
def test_default_filter_compiles_and_runs_c_in_the_kernel(flags: "list[str]", tmp_path: Path) -> None:
    # Without the kernel's headers, which a 32-bit compilation may not find.
    source = (
        "#include <stdio.h>\n#include <pthread.h>\n"
        "long syscall(long, ...); int *__errno_location(void);\n"
        "static void *run(void *x) { return x; }\n"
        "int main(void) { pthread_t t; if (pthread_create(&t, 0, run, 0) || pthread_join(t, 0)) return 2;\n"
        "  long r = syscall(sizeof(long) == 8 ? 250 : 288, 0, -3, 0);\n"  # keyctl
        '  printf("%ld %d\\n", r, *__errno_location()); return 0; }\n'
    )
    (tmp_path / "main.c").write_text(source)
    program = Filter.default().to_bytes()
    command = ["gcc", *flags, "-o", "main", "main.c", "-lpthread"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip(f"gcc {' '.join(flags)} does not work on this machine")
    compiled = run_filtered(program, command, tmp_path)
    assert 0 == compiled.returncode, compiled.stderr
    result = run_filtered(program, [str(tmp_path / "main")], tmp_path)
    assert (f"-1 {errno.EPERM}\n", 0) == (result.stdout, result.returncode), result.stderr


@modes
def test_strict_filter_computes_and_nothing_else_in_the_kernel(mode: str) -> None:
    program = Filter.strict().to_bytes()
    refused = [("chdir", (0,)), ("kill", (0, 0)), ("fork", ()), ("execve", (0, 0, 0)), ("socket", (1, 1, 0))]
    results = seen(program, mode, ("getpid", ()), ("lseek", (NONE, 0, 0)), *refused)
    assert results[0] > 0
    assert -errno.EBADF == results[1]
    assert [-errno.EPERM] * len(refused) == results[2:]
