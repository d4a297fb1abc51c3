"""confine(): this process, all of its threads or an error, and what the kernel says about it."""

import ctypes
import errno
import fcntl
import mmap
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import threading

import harness
import pytest
from supervised import Program, number, refuse

from sandbox.confinement import confine
from sandbox.errors import FilterError, UnsupportedError
from sandbox.filters import Allow, Errno, Filter, Kill, Notify, arg
from sandbox.filters.table import calls
from sandbox.landlock import Landlock
from sandbox.primitives.process import PR_GET_NO_NEW_PRIVS, prctl
from sandbox.primitives.secure_computing import SeccompAction
from sandbox.readback import count_landlock_layers, read_enforced

libc = ctypes.CDLL(None, use_errno=True)
NO_PARENT = Program(getppid=refuse(errno.EACCES))


def attempt(name, *args):
    """Make a raw call; "ok" or the name of its errno."""
    result = libc.syscall(number(name) if isinstance(name, str) else name, *args)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"


class Bystander:
    """A thread that runs before and after, and says what a call gives it."""

    def __init__(self):
        self._ask, self._answer = threading.Semaphore(0), threading.Semaphore(0)
        self._call = None
        self._value = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while True:
            self._ask.acquire()
            self._value = self._call()
            self._answer.release()

    def says(self, call):
        self._call = call
        self._ask.release()
        self._answer.acquire()
        return self._value


def test_nothing_given_is_a_value_error():
    with pytest.raises(ValueError, match="needs a filter, a landlock, or both"):
        confine()


def test_filter_is_in_force_and_read_back():
    def confined():
        before = read_enforced()
        assert (False, 0) == (before.no_new_privs, before.seccomp_filters)
        enforced = confine(filter=NO_PARENT)
        assert (True, 1) == (enforced.no_new_privs, enforced.seccomp_filters)
        assert 2 == confine(filter=NO_PARENT).seccomp_filters
        assert "EACCES" == attempt("getppid")

    assert "ok" == attempt("getppid")
    harness.in_child(confined)


def test_what_is_read_back_is_what_is():
    def confined():
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
        before = harness.footprint()
        enforced = confine(filter=NO_PARENT)
        assert (os.getuid(), os.getgid()) == (enforced.uid, enforced.gid)
        assert tuple(sorted(os.getgroups())) == tuple(sorted(enforced.groups))
        assert 200.0 == enforced.limits["open_files"]
        assert sorted(before.descriptors) == [fd for fd in enforced.descriptors if fd in before.descriptors]
        assert before.descriptors == harness.footprint().descriptors
        assert int(os.readlink("/proc/self/ns/mnt")[5:-1]) == enforced.namespaces["mnt"]
        assert "/proc" in {one.target for one in enforced.mounts}
        assert enforced.dumpable
        expected = os.geteuid() == 0
        assert expected == ("SYS_ADMIN" in enforced.capabilities["effective"])
        assert prctl(PR_GET_NO_NEW_PRIVS) == 1

    harness.in_child(confined)


def test_filter_reaches_threads_that_run_already():
    def confined(all_threads, answer):
        other = Bystander()
        assert "ok" == other.says(lambda: attempt("getppid"))
        confine(filter=NO_PARENT, all_threads=all_threads)
        assert "EACCES" == attempt("getppid")
        assert answer == other.says(lambda: attempt("getppid"))
        nnp = other.says(lambda: prctl(PR_GET_NO_NEW_PRIVS))
        assert int(all_threads) == nnp

    harness.in_child(confined, True, "EACCES")
    harness.in_child(confined, False, "ok")


def test_thread_with_a_filter_of_its_own_is_an_error_and_nothing_changes():
    def confined():
        other = Bystander()
        other.says(lambda: confine(filter=Program(getsid=refuse(errno.EACCES)), all_threads=False))
        with pytest.raises(ProcessLookupError) as caught:
            confine(filter=NO_PARENT)
        assert "has filters that this thread does not have" in caught.value.__notes__[0]
        assert "ok" == attempt("getppid")

    harness.in_child(confined)


@pytest.mark.needs_landlock(1)
def test_landlock_with_other_threads_is_unsupported_and_nothing_changes():
    def confined():
        other = Bystander()
        if Landlock.abi() >= 8:
            confine(landlock=Landlock(read=[]))
            assert "EACCES" == other.says(lambda: attempt("open", b"/etc/passwd", 0))
            return
        with pytest.raises(UnsupportedError) as caught:
            confine(landlock=Landlock(read=[]))
        assert "Landlock ABI 8, Linux 7.0, or a process with one thread" == caught.value.needed
        assert "2 threads" in caught.value.found
        assert 0 == count_landlock_layers()
        assert 0 == prctl(PR_GET_NO_NEW_PRIVS)

    harness.in_child(confined)


@pytest.mark.needs_landlock(1)
def test_all_threads_are_asked_of_a_kernel_that_can_and_its_refusal_is_an_error(monkeypatch):
    import sandbox.confinement

    if Landlock.abi() >= 8:
        pytest.skip("this kernel can; the test before shows it")
    # A kernel that is taken for ABI 8 and does not know TSYNC: weaker than asked must not come out of it.
    monkeypatch.setattr(sandbox.confinement, "landlock_abi", lambda: 8)

    def confined():
        Bystander()
        with pytest.raises(OSError, match="Invalid argument"):
            confine(landlock=Landlock(read=[]))
        assert 0 == count_landlock_layers()

    harness.in_child(confined)


@pytest.mark.needs_landlock(1)
def test_landlock_for_one_thread_leaves_the_others_alone():
    def opened():
        return attempt("openat", -100, b"/etc/passwd", 0)

    def confined():
        other = Bystander()
        enforced = confine(landlock=Landlock(read=[]), all_threads=False)
        assert 1 == enforced.landlock_layers
        assert ("EACCES", "ok") == (opened(), other.says(opened))

    harness.in_child(confined)


@pytest.mark.needs_landlock(1)
def test_filter_and_landlock_together():
    def confined():
        enforced = confine(filter=NO_PARENT, landlock=Landlock(read=["/usr"]))
        assert (1, 1, True) == (enforced.seccomp_filters, enforced.landlock_layers, enforced.no_new_privs)
        assert Landlock.abi() == enforced.landlock_abi
        assert any("stat, access" in gap for gap in enforced.gaps)
        assert ("EACCES", "EACCES") == (attempt("getppid"), attempt("openat", -100, b"/etc/passwd", 0))

    harness.in_child(confined)


@pytest.mark.needs_landlock(1)
def test_filter_that_fails_after_landlock_says_that_landlock_stays():
    class Broken:
        def to_bytes(self):
            return bytes(8)  # a load that no filter may make

    def confined():
        with pytest.raises(OSError, match="Invalid argument") as caught:
            confine(filter=Broken(), landlock=Landlock(read=[]))
        assert "in force already" in caught.value.__notes__[0]
        assert "EACCES" == attempt("openat", -100, b"/etc/passwd", 0)

    harness.in_child(confined)


def test_filter_that_refuses_to_be_read_back_is_a_gap():
    def confined():
        enforced = confine(filter=Program(pread64=refuse(errno.EPERM), close=refuse(errno.EPERM)))
        assert "the filter refuses pread64" in enforced.gaps[0]
        assert "the filter refuses close" in enforced.gaps[1]

    harness.in_child(confined)


def test_filter_that_asks_a_supervisor_is_refused():
    asking = Filter(Allow).deny("getppid", action=Notify)
    with pytest.raises(FilterError, match="says Notify"):
        confine(filter=asking)


def test_best_effort_without_landlock_confines_nothing_and_says_so(monkeypatch):
    import sandbox.confinement

    def confined():
        monkeypatch.setattr(sandbox.confinement, "landlock_abi", lambda: 0)
        enforced = confine(landlock=Landlock(read=[], best_effort=True))
        assert ("Landlock itself",) == enforced.missing
        with open("/etc/passwd"):
            pass
        with pytest.raises(UnsupportedError):
            confine(landlock=Landlock(read=[]))

    harness.in_child(confined)


def test_what_it_starts_is_confined_too(tmp_path):
    program = [sys.executable, "-S", "-c", "import os, sys; os.mkdir(sys.argv[1])", tmp_path / "made"]
    subprocess.run(program, check=True)
    os.rmdir(tmp_path / "made")

    def confined():
        confine(filter=Program(mkdir=refuse(errno.EROFS), mkdirat=refuse(errno.EROFS)))
        ran = subprocess.run(program, stderr=subprocess.PIPE, text=True)
        assert "Read-only file system" in ran.stderr

    harness.in_child(confined)
    assert not (tmp_path / "made").exists()


# ── actions of the kernel ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("action", "status"),
    [(SeccompAction.KILL_PROCESS, -signal.SIGSYS), (SeccompAction.TRAP, -signal.SIGSYS), (SeccompAction.LOG, 0)],
)
def test_action_of_a_filter_is_the_kernels(action, status):
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        confine(filter=Program(getppid=action))
        os._exit(0 if attempt("getppid") == "ok" else 1)
    assert status == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ── attacks, each with the control that it works without the layer ───────────────────────────────────────


def by_old_gate(name, *args):
    """Call through int 0x80, with i386's numbers."""
    # push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; int 0x80; pop rbx; ret
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("53 89f8 89f3 89d1 cd80 5b c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)(address)
    result = function(calls().numbers["i386"][name], *args)
    return errno.errorcode[-result] if -4096 < result < 0 else "ok"


x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="a gate that only x86-64 has")


def compared(attack, filter, before, after):
    def control():
        assert before == attack()

    def confined():
        confine(filter=filter)
        assert after == attack()

    harness.in_child(control)
    harness.in_child(confined)


@x86_64
def test_int_0x80_does_not_pass_a_denied_call():
    compared(lambda: by_old_gate("getppid", 0, 0), Filter(Allow).deny("getppid"), "ok", "EPERM")


def test_io_uring_is_refused_by_the_default_filter():
    parameters = ctypes.create_string_buffer(120)
    compared(lambda: attempt("io_uring_setup", 1, parameters), Filter.default(), "ok", "EPERM")


def tiocsti_is_for_root_only():
    try:
        with open("/proc/sys/dev/tty/legacy_tiocsti") as setting:
            return setting.read() == "0\n" and os.geteuid() != 0
    except FileNotFoundError:
        return False


def test_upper_half_of_a_32_bit_argument_does_not_hide_it():
    if tiocsti_is_for_root_only():
        pytest.skip("this kernel refuses TIOCSTI itself")

    def push(request=0x1_0000_5412):  # TIOCSTI with a bit that the kernel does not look at
        os.setsid()
        _, slave = pty.openpty()
        fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
        return attempt("ioctl", slave, ctypes.c_ulong(request), b"x")

    compared(push, Filter(Allow).deny("ioctl", arg(1) == "TIOCSTI"), "ok", "EPERM")
    compared(push, Filter.default(), "ok", "EPERM")


def test_socket_family_is_compared_as_wide_as_the_kernel_does():
    def wide():
        return attempt("socket", ctypes.c_ulong(0x1_0000_0000 | socket.AF_UNIX), 1, 0)

    compared(wide, Filter(Allow).deny("socket", arg(0) == "AF_UNIX", action=Errno("EACCES")), "ok", "EACCES")


def test_a_denied_call_that_kills_cannot_be_caught():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGSYS, lambda *_: None)
        confine(filter=Filter(Allow).deny("getppid", action=Kill))
        attempt("getppid")
        os._exit(0)
    assert -signal.SIGSYS == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
