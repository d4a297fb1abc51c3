"""Attacks that the default filter refuses; each of them succeeds, or goes further, without the filter."""

import os
import platform
import subprocess

import payloads
import pytest
from payloads import number, tell

from sandbox import Errno, Filter, Reason, Sandbox
from sandbox.filters.table import X32_BIT, calls

pytestmark = pytest.mark.needs_userns

x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86_64")
MULTIARCH = "x86_64-linux-gnu"  # where Debian keeps headers that both word sizes share
NEWUSER, SIGCHLD = 0x10000000, 17

# Name: what makes the attack and leaves its outcome in `result`, what the filter answers.
ATTACKS = {
    "io_uring": (f"result = call({number('io_uring_setup')}, 1, ctypes.create_string_buffer(120))", "EPERM"),
    "keyctl": (f"result = call({number('keyctl')}, 0, -3, 1)", "EPERM"),
    "add_key": (f"result = call({number('add_key')}, b'user', b'x', b'y', 1, -3)", "EPERM"),
    "request_key": (f"result = call({number('request_key')}, b'user', b'x', 0, -3)", "EPERM"),
    "unshare": (f"result = call({number('unshare')}, {NEWUSER})", "EPERM"),
    "unshare of mounts with a user": (f"result = call({number('unshare')}, {NEWUSER | 0x20000})", "EPERM"),
    "userfaultfd": (f"result = call({number('userfaultfd')}, 1)", "EPERM"),
    "ptrace": (
        f"""
child = os.fork()
if child == 0:
    import signal
    signal.pause()
result = call({number("ptrace")}, 0x4206, child, 0, 0)  # PTRACE_SEIZE
os.kill(child, 9)
""",
        "EPERM",
    ),
    "personality": (f"result = call({number('personality')}, 0x0400000)", "EPERM"),  # READ_IMPLIES_EXEC
    "setns": (
        f"""
result = call({number("setns")}, os.open("/proc/self/ns/user", os.O_RDONLY), 0)
if result == "EINVAL": result = 0  # one's own: looked at, which is what counts
""",
        "EPERM",
    ),
    "mount API": (f"result = call({number('open_tree')}, -100, b'/', 0)", "EPERM"),
    "fanotify": (f"result = call({number('fanotify_init')}, 0x200, 0)", "EPERM"),
    "netlink of another kind": (f"result = call({number('socket')}, 16, 3, 15)", "EPROTONOSUPPORT"),
    "AF_ALG": (f"result = call({number('socket')}, 38, 5, 0)", "EAFNOSUPPORT"),
    "AF_VSOCK": (f"result = call({number('socket')}, 40, 1, 0)", "EAFNOSUPPORT"),
    "AF_PACKET": (f"result = call({number('socket')}, 17, 3, 0)", "EAFNOSUPPORT"),
    "SCTP": (f"result = call({number('socket')}, 2, 1, 132)", "EPROTONOSUPPORT"),
}
# Where the kernel of the host lacks it, the attack cannot be shown to work without the filter.
MAY_BE_ABSENT = {
    "AF_ALG": {"EAFNOSUPPORT"},
    "AF_VSOCK": {"EAFNOSUPPORT"},
    "SCTP": {"EPROTONOSUPPORT"},
    "io_uring": {"ENOSYS", "EPERM"},
}
# Where nobody gets through without a capability either, but further than the filter lets anybody come.
FURTHER = {"request_key": "ENOKEY", "AF_PACKET": "EPERM"}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_and_works_without_the_filter(name):
    body, answer = ATTACKS[name]
    body += "\nsay(result)"
    control = tell(Sandbox().seccomp(None), body)
    if control in MAY_BE_ABSENT.get(name, ()):
        pytest.skip(f"this kernel does not have it: {control}")
    if name in FURTHER:
        assert FURTHER[name] == control
    else:
        assert isinstance(control, int), control
    assert answer == tell(Sandbox(), body)


def test_new_namespaces_by_clone_are_refused_and_threads_work():
    body = f"""
import struct, threading
def clone(flags):
    result = call({number("clone")}, flags | {SIGCHLD}, 0, 0, 0, 0)
    if result == 0:
        os._exit(0)
    if isinstance(result, int):
        os.waitpid(result, 0)
        result = 0
    return result
def clone3(flags):
    made = ctypes.create_string_buffer(struct.pack("=11Q", flags, 0, 0, 0, {SIGCHLD}, 0, 0, 0, 0, 0, 0), 88)
    result = call({number("clone3")}, made, 88)
    if result == 0:
        os._exit(0)
    if isinstance(result, int):
        os.waitpid(result, 0)
        result = 0
    return result
seen = []
threads = [threading.Thread(target=seen.append, args=(one,)) for one in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
kinds = [{NEWUSER}, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x20000000, 0x40000000]
say([[clone(one) for one in (0, *kinds)], clone3(0), clone3({NEWUSER}), sorted(seen)])
"""
    clones, plain, user, _ = tell(Sandbox().seccomp(None), body)
    assert [0, 0] == clones[:2], "a new user namespace, the positive control"
    assert (0, 0) == (plain, user)
    refused = tell(Sandbox(), body)
    assert [[0] + ["EPERM"] * 7, "ENOSYS", "ENOSYS", list(range(8))] == refused


# ── terminals ──

TERMINAL = f"""
import fcntl, termios, time
master, slave = os.openpty()
os.close(os.open(os.ttyname(slave), os.O_RDWR))  # a session without a terminal: it becomes its terminal
call({number("ioctl")}, slave, 0x540E, 0)
import tty
tty.setraw(slave)
def typed(request):
    result = call({number("ioctl")}, slave, request, b"x")
    waiting = fcntl.ioctl(slave, termios.FIONREAD, bytes(4))
    if waiting != bytes(4):
        os.read(slave, 10)
    return [result, waiting != bytes(4)]
say([typed(0x5412), typed(0x5412 | 1 << 32), typed(0x5412 | 0xFFFF << 48),
     call({number("ioctl")}, slave, 0x541C, b"\\x02"), call({number("ioctl")}, slave, 0x541C | 1 << 63, b"\\x02"),
     call({number("ioctl")}, slave, 0x5423, ctypes.byref(ctypes.c_int(0)))])
"""


@pytest.mark.parametrize("uid", [0, 1000])
def test_nothing_is_typed_into_a_terminal(uid):
    box = Sandbox() if uid and os.geteuid() else Sandbox().user(uid)
    *typed, linux, upper, discipline = tell(box.seccomp(None), TERMINAL)
    if typed[0] == ["EIO", False]:
        pytest.skip("this kernel has no TIOCSTI")
    assert [[0, True]] * 3 == typed, "the kernel looks at 32 bits of the request"
    assert "EPERM" not in (linux, upper)
    assert 0 == discipline
    assert [*[["EPERM", False]] * 3, *["EPERM"] * 3] == tell(box, TERMINAL)


# ── other tables of the same kernel ──

# The number and three arguments of a function, in the registers of int 0x80.
INT_80 = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("53 89f8 89f3 89cf 89d1 89fa cd80 4898 5b c3"))
function = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_ulong] * 4)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
def int80(number, a=0, b=0, c=0):
    result = function(number, a, b, c)
    return errno.errorcode[-result] if result < 0 else result
"""


@x86_64
def test_32_bit_entry_has_the_same_answers():
    i386 = calls().numbers["i386"]
    body = (
        INT_80
        + f"""
# Arguments of socketcall are in memory below 4 GiB.
low = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)  # MAP_32BIT
address = ctypes.addressof(ctypes.c_char.from_buffer(low))
def socketcall(*args):
    low.seek(0)
    low.write(b"".join(one.to_bytes(4, "little") for one in args))
    return int80({i386["socketcall"]}, 1, address)
say([int80({i386["getpid"]}) == os.getpid(), int80({i386["personality"]}, 0x0400000),
     int80({i386["keyctl"]}, 0, 2**32 - 3, 1), int80({i386["io_uring_setup"]}, 1, address),
     int80({i386["mkdir"]}, 0, 0), int80({i386["unshare"]}, {NEWUSER}),
     socketcall(16, 3, 15), int80({i386["socket"]}, 16, 3, 15)])
"""
    )
    control = tell(Sandbox().seccomp(None), body)
    if control[0] is not True:
        pytest.skip("this kernel has no 32-bit calls")
    assert all(isinstance(one, int) for one in (*control[1:3], *control[5:])), control
    refused = tell(Sandbox(), body)
    # mkdir is allowed: it comes as far as to its bad address. The arguments of socketcall are hidden from filters.
    assert [True, "EPERM", "EPERM", "EPERM", "EFAULT", "EPERM"] == refused[:6]
    assert isinstance(refused[6], str) and "EPROTONOSUPPORT" == refused[7], refused


PROGRAM_32 = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static const char *answer(long result) { return result < 0 ? strerrorname_np(errno) : "ok"; }
int main(void)
{
    char params[120] = {0};
    printf("%d %s ", (int)sizeof(long), answer(syscall(SYS_keyctl, 0, -3, 1)));
    printf("%s ", answer(syscall(SYS_io_uring_setup, 1, params)));
    printf("%s ", answer(syscall(SYS_unshare, 0x10000000)));
    printf("%s\\n", answer(syscall(SYS_socket, 16, 3, 15)));
    return 0;
}
"""


@x86_64
@pytest.mark.needs_program("gcc")
def test_32_bit_programs_have_the_same_answers(tmp_path):
    (tmp_path / "p.c").write_text(PROGRAM_32)
    command = [
        "gcc",
        "-m32",
        "-static",
        "-idirafter",
        f"/usr/include/{MULTIARCH}",
        "-o",
        tmp_path / "p",
        tmp_path / "p.c",
    ]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the 32-bit C library")
    payloads.ours(tmp_path)
    box = Sandbox().bind_readonly(tmp_path, "/p")

    def said(box):
        return box.run(["/p/p"], capture_output=True, text=True).stdout.split()

    assert ["4", "ok", "ok", "ok", "ok"] == said(box.seccomp(None))
    assert ["4", "EPERM", "EPERM", "EPERM", "EPROTONOSUPPORT"] == said(box)


@x86_64
def test_x32_numbers_never_reach_a_call():
    names = calls().numbers["x32"]
    wanted = [value for name, value in names.items()]
    body = f"say(sorted({{call(one, 0, 0, 0, 0, 0, 0) for one in {wanted!r} }}))"
    assert all(value & X32_BIT for value in wanted)
    assert ["ENOSYS"] == tell(Sandbox(), body)
    # Most kernels have no x32 and answer that by themselves: here it is the filter that does.
    assert {Errno("ENOSYS")} == {Filter.default().simulate(value) for value in wanted}


def test_numbers_newer_than_the_table_are_enosys():
    newest = max(one for one in calls().numbers["x86_64"].values() if one < X32_BIT)
    unknown = [newest + 1, newest + 100, 1000, 4095, 2**30 - 1]
    assert ["ENOSYS"] == tell(Sandbox(), f"say(sorted({{call(one, 0) for one in {unknown} }}))")
    assert {Errno("ENOSYS")} == {Filter.default().simulate(one) for one in unknown}


# ── init, which has the payload's user ──

ON_INIT = f"""
limit = (ctypes.c_ulong * 2)(64, 64)
say([call({number("prlimit64")}, 1, 7, limit, 0),
     call({number("sched_setaffinity")}, 1, 8, ctypes.byref(ctypes.c_ulong(1))),
     call({number("sched_setscheduler")}, 1, 5, ctypes.byref(ctypes.c_int(0))),
     call({number("sched_setparam")}, 1, ctypes.byref(ctypes.c_int(0))),
     call({number("sched_setattr")}, 1, (ctypes.c_uint * 14)(56, 5), 0),
     call({number("setpriority")}, 0, 1, 5),
     call({number("ioprio_set")}, 1, 1, 3 << 13),
     call({number("prlimit64")}, 0, 7, limit, 0),
     call({number("sched_setscheduler")}, 0, 0, ctypes.byref(ctypes.c_int(0))),
     call({number("setpriority")}, 0, 0, 5), call({number("ioprio_set")}, 1, 0, 3 << 13)])
"""


def test_limits_and_priority_of_init_are_not_the_payloads():
    assert [0] * 11 == tell(Sandbox().seccomp(None), ON_INIT)
    for box in (Sandbox(), Sandbox().nesting(), Sandbox().user(0), Sandbox().capabilities(ambient=["SYS_RESOURCE"])):
        assert ["EPERM"] * 7 + [0] * 4 == tell(box, ON_INIT)


def test_payload_cannot_hide_how_it_ended():
    """Where its limit on descriptors is 0, init cannot wait for the next event: with its end nothing is known."""
    body = f"""
import signal
changed = call({number("prlimit64")}, 1, 7, (ctypes.c_ulong * 2)(0, 0), 0)
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != 1: pass
    os._exit(0)  # and init has somebody to reap
os.wait()
if changed == 0: signal.pause()
os._exit(3)
"""
    hidden = Sandbox().seccomp(None).run(payloads.script(body), timeout=60)
    assert Reason.INIT_DIED is hidden.reason
    told = Sandbox().run(payloads.script(body))
    assert (Reason.EXITED, 3) == (told.reason, told.returncode)
