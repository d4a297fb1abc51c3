"""The supervisor's side of seccomp, against real targets."""

import asyncio
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import random
import resource
import select
import signal
import threading

import harness
import pytest
from supervised import number, supervised

from sandbox.filters import arg
from sandbox.notification import Emulation, Notification
from sandbox.notify import Notifier, Notifier_async
from sandbox.primitives.memory import process_vm_readv
from sandbox.primitives.secure_computing import (
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
    seccomp_notif_recv,
    seccomp_notif_send,
)

AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


def getppid():
    """Call it and see its errno, which neither Python's nor the C library's wrapper shows."""
    value = libc.syscall(number("getppid"))
    if value == -1:
        raise OSError(ctypes.get_errno(), "getppid")
    return value


def open_and_read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_notification_names_call_pid_and_arguments():
    with supervised(lambda: os.kill(0x7FFFFFFF, 0), "kill") as target, Notifier(target.listener) as notifier:
        with notifier.read_event() as one:
            assert ("kill", target.pid, os.uname().machine) == (one.call, one.pid, one.arch)
            assert (0x7FFFFFFF, 0) == one.args[:2]
            assert one.valid()
        assert "EPERM" == target.result()


@pytest.mark.parametrize("code", ["EACCES", errno.EACCES])
def test_deny_fails_the_call_with_that_errno(code):
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        notifier.read_event().deny(code)
        assert "EACCES" == target.result()


def test_reply_returns_a_value_without_running_the_call():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        notifier.read_event().reply(4242)
        assert 4242 == target.result()


@pytest.mark.parametrize("value", [-1, -4095, 2**63])
def test_reply_refuses_what_would_be_an_errno(value):
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        with pytest.raises(ValueError, match="value"):
            one.reply(value)
        assert not one.answered
        one.reply(1)
        assert 1 == target.result()


@pytest.mark.parametrize("code", ["ENOPE", 0, 4096, -1])
def test_deny_refuses_what_is_no_errno(code):
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        with pytest.raises(ValueError, match="errno"):
            one.deny(code)
        one.reply(1)
        assert 1 == target.result()


def test_second_answer_is_a_runtime_error():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        one.reply(7)
        for answer in (one.deny, lambda: one.reply(8), lambda: one.reply_fd(0), one.emulate):
            with pytest.raises(RuntimeError, match="answered already"):
                answer()
        assert one.answered
        assert 7 == target.result()


def test_reply_fd_gives_the_descriptor_as_the_result(tmp_path):
    (tmp_path / "secret").write_text("from the supervisor")

    def opened():
        fd = os.open("/nowhere", os.O_RDONLY)
        return [os.read(fd, 100).decode(), fcntl.fcntl(fd, fcntl.F_GETFD)]

    with supervised(opened, "openat") as target, Notifier(target.listener) as notifier:
        fd = os.open(tmp_path / "secret", os.O_RDONLY)
        notifier.read_event().reply_fd(fd, cloexec=False)
        os.close(fd)
        assert ["from the supervisor", 0] == target.result()


def test_reply_fd_takes_the_number_that_is_asked_for(tmp_path):
    def opened():
        fd = os.open("/nowhere", os.O_RDONLY)
        return [fd, fcntl.fcntl(fd, fcntl.F_GETFD)]

    with supervised(opened, "openat") as target, Notifier(target.listener) as notifier:
        notifier.read_event().reply_fd(0, number=77)
        assert [77, fcntl.FD_CLOEXEC] == target.result()


def test_reply_fd_that_fails_leaves_the_call_waiting():
    def opened():
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return os.open("/nowhere", os.O_RDONLY)

    with supervised(opened, "openat") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        with pytest.raises(OSError, match="Bad file descriptor"):
            one.reply_fd(1000000)
        with pytest.raises(OSError, match="Too many open files"):
            one.reply_fd(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            one.reply_fd(0, number=5000)
        assert one.valid()
        assert not one.answered
        one.deny("ENFILE")
        assert "ENFILE" == target.result()


# ── proceed ──────────────────────────────────────────────────────────────────────────────────────────────


def test_proceed_lets_the_call_run_when_the_conditions_hold():
    with supervised(lambda: os.kill(os.getpid(), 0), "kill") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        assert one.proceed(arg(1) == 0, arg(0) == target.pid)
        assert one.answered
        assert None is target.result()


def test_proceed_answers_nothing_when_a_condition_fails():
    with supervised(lambda: os.kill(os.getpid(), 0), "kill") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        assert not one.proceed(arg(1) == 0, arg(0) == 1)
        assert one.valid()
        one.deny("ESRCH")
        assert "ESRCH" == target.result()


def test_proceed_compares_as_wide_as_the_kernel_reads():
    def wide():
        return libc.syscall(number("socket"), ctypes.c_ulong(0x1_0000_0001), 1, 0) >= 0  # socket(AF_UNIX | 2**32, ...)

    with supervised(wide, "socket") as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        assert 0x1_0000_0001 == one.args[0]
        assert one.proceed(arg(0) == "AF_UNIX")
        assert target.result() is True


def test_proceed_on_a_pointer_is_refused():
    with (
        supervised(lambda: os.open("/", os.O_RDONLY), "openat") as target,
        Notifier(target.listener) as notifier,
    ):
        with (
            notifier.read_event() as one,
            pytest.raises(ValueError, match="argument 1 of openat is a pointer"),
        ):
            one.proceed(arg(2) == 0, arg(1) != 0)
        assert "EPERM" == target.result()


def test_proceed_without_a_condition_lets_the_call_run():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        with notifier.read_event() as one:
            assert one.proceed()
        assert target.result() not in {"EPERM", "ENOSYS"}


def test_proceed_with_what_is_no_condition_is_a_type_error():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        with notifier.read_event() as one:
            with pytest.raises(TypeError, match="made with arg"):
                one.proceed(one.args[0] == one.args[0])
        assert "EPERM" == target.result()


# ── emulation ────────────────────────────────────────────────────────────────────────────────────────────


def test_only_emulation_reads_memory_and_only_notification_proceeds():
    assert not hasattr(Emulation, "proceed")
    assert not hasattr(Notification, "read")
    assert not hasattr(Notification, "path")


def test_notification_answers_nothing_once_it_is_emulated():
    with (
        supervised(lambda: os.open("/", os.O_RDONLY), "openat") as target,
        Notifier(target.listener) as notifier,
    ):
        one = notifier.read_event()
        emulation = one.emulate()
        for answer in (lambda: one.proceed(arg(2) >= 0), lambda: one.reply(0), one.deny, one.emulate):
            with pytest.raises(RuntimeError, match="Emulation"):
                answer()
        emulation.deny("ENOENT")
        assert "ENOENT" == target.result()


def test_emulation_reads_the_path_and_memory():
    with supervised(lambda: os.open("/some/path", os.O_RDONLY), "openat") as target, \
            Notifier(target.listener) as notifier:  # fmt: skip
        with notifier.read_event().emulate() as one:
            assert b"/some/path" == one.path(1)
            assert b"/some" == one.read(one.args[1], 5)
        assert "EPERM" == target.result()


def test_emulation_reads_a_path_up_to_the_end_of_what_is_mapped():
    def at_the_edge():
        page = mmap.PAGESIZE
        memory = mmap.mmap(-1, 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc.munmap(ctypes.c_void_p(address + page), page)
        ctypes.memmove(address + page - 6, b"/edge\0", 6)
        return libc.openat(AT_FDCWD, ctypes.c_void_p(address + page - 6), 0)

    with supervised(at_the_edge, "openat") as target, Notifier(target.listener) as notifier:
        with notifier.read_event().emulate() as one:
            assert b"/edge" == one.path(1)
            with pytest.raises(OSError, match="Bad address"):
                one.read(one.args[1], 7)
        assert -1 == target.result()


@pytest.mark.parametrize(
    ("pointer", "code"),
    [(ctypes.c_void_p(0), "EFAULT"), (ctypes.c_void_p(2**64 - 1), "EFAULT"), (b"x" * 5000, "ENAMETOOLONG")],
)
def test_emulation_of_a_bad_path_is_an_error_and_refuses(pointer, code):
    with supervised(lambda: libc.openat(AT_FDCWD, pointer, 0), "openat") as target, \
            Notifier(target.listener) as notifier:  # fmt: skip
        with pytest.raises(OSError) as caught, notifier.read_event().emulate() as one:
            one.path(1)
        assert code == errno.errorcode[caught.value.errno]
        assert -1 == target.result()


def test_emulation_reads_no_more_than_it_says_whatever_size_the_target_names():
    buffer = ctypes.create_string_buffer(100)
    with supervised(lambda: libc.pwrite(1, buffer, ctypes.c_size_t(2**31 - 1), 0), "pwrite64") as target, \
            Notifier(target.listener) as notifier:  # fmt: skip
        with notifier.read_event().emulate() as one:
            for size in (one.args[2], 2**40, (16 << 20) + 1, -1):
                with pytest.raises(ValueError, match="size"):
                    one.read(one.args[1], size)
            assert bytes(100) == one.read(one.args[1], 100)  # the control
        assert -1 == target.result()


class Race:
    """A target whose second thread rewrites the path while its first one waits in openat."""

    def __init__(self, allowed, forbidden):
        self.allowed, self.forbidden = os.fsencode(allowed), os.fsencode(forbidden)
        self.go = os.pipe()
        self.done = os.pipe()

    def __call__(self):
        buffer = ctypes.create_string_buffer(self.allowed, 4096)

        def rewrite():
            os.read(self.go[0], 1)
            buffer.value = self.forbidden
            os.write(self.done[1], b"x")

        threading.Thread(target=rewrite, daemon=True).start()
        fd = libc.openat(AT_FDCWD, buffer, os.O_RDONLY)
        return os.read(fd, 100).decode() if fd >= 0 else "refused"

    def win(self):
        os.write(self.go[1], b"x")
        os.read(self.done[0], 1)

    def close(self):
        for fd in self.go + self.done:
            os.close(fd)


@pytest.fixture
def race(tmp_path):
    (tmp_path / "allowed").write_text("allowed")
    (tmp_path / "forbidden").write_text("forbidden")
    made = Race(tmp_path / "allowed", tmp_path / "forbidden")
    yield made
    made.close()


def test_race_is_won_against_a_supervisor_that_reads_and_continues(race):
    # The positive control: what the kernel's interface allows, and this library's does not.
    with supervised(race, "openat") as target:
        notif = seccomp_notif_recv(target.listener)
        seen = process_vm_readv(notif.pid, notif.args[1], 4096).partition(b"\0")[0]
        assert race.allowed == seen
        race.win()
        seccomp_notif_send(target.listener, notif.id, flags=SECCOMP_USER_NOTIF_FLAG_CONTINUE)
        assert "forbidden" == target.result()
        os.close(target.listener)


def test_race_is_lost_against_an_emulation(race):
    with supervised(race, "openat") as target, Notifier(target.listener) as notifier:
        with notifier.read_event().emulate() as one:
            seen = one.path(1)
            race.win()
            assert race.forbidden == one.path(1)
            fd = os.open(seen, os.O_RDONLY)
            one.reply_fd(fd)
            os.close(fd)
        assert "allowed" == target.result()


# ── failing closed ───────────────────────────────────────────────────────────────────────────────────────


def test_handler_that_raises_refuses_the_call():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:

        def handle():
            for _ in notifier:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            handle()
        assert "EPERM" == target.result()


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_loop_body_that_does_not_answer_refuses_the_call():
    with supervised(lambda: [refused(getppid), refused(getppid)], "getppid") as target, \
            Notifier(target.listener) as notifier:  # fmt: skip
        assert ["getppid", "getppid"] == [one.call for one in notifier]
        assert ["EPERM", "EPERM"] == target.result()


def refused(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]


def test_loop_that_is_left_refuses_the_call():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        for _ in notifier:
            break
        assert "EPERM" == target.result()


def test_dropped_notification_refuses_the_call():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        notifier.read_event()
        gc.collect()
        assert "EPERM" == target.result()


def test_dropped_emulation_refuses_the_call():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        emulation = notifier.read_event().emulate()
        gc.collect()
        assert emulation.valid()
        del emulation
        gc.collect()
        assert "EPERM" == target.result()


def test_close_refuses_what_waits_and_the_kernel_what_comes_later():
    with supervised(lambda: [refused(getppid), refused(getppid)], "getppid") as target:
        notifier = Notifier(target.listener)
        one = notifier.read_event()
        notifier.close()
        notifier.close()
        assert ["EPERM", "ENOSYS"] == target.result()
        assert one.answered
        with pytest.raises(ValueError, match="closed"):
            one.valid()
        with pytest.raises(ValueError, match="closed"):
            one.reply(1)


def test_dropped_notifier_is_closed_and_nothing_hangs():
    with supervised(lambda: refused(getppid), "getppid") as target:
        notifier = Notifier(target.listener)
        notifier._cache.append(notifier.read_event())  # as a cancelled get() puts one back
        with pytest.warns(ResourceWarning, match="unclosed notifier"):  # noqa: PT031  # the two belong together
            del notifier
            gc.collect()
        assert target.result() in ("EPERM", "ENOSYS")


def test_death_of_the_supervisor_fails_the_call():
    with supervised(lambda: refused(getppid), "getppid") as target:
        ready, started = os.pipe()
        supervisor = os.fork()
        if supervisor == 0:
            one = Notifier(target.listener).read_event()
            os.write(started, one.call.encode())
            signal.pause()
        os.close(target.listener)
        assert b"getppid" == os.read(ready, 100)
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)
        assert "ENOSYS" == target.result()
        os.close(ready)
        os.close(started)


def test_forked_child_answers_nothing_that_waits_in_the_cache():
    with supervised(lambda: refused(getppid), "getppid") as target, Notifier(target.listener) as notifier:
        notifier._cache.append(notifier.read_event())  # as a cancelled get() puts one back
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        one = notifier.read_event()
        assert one.valid()
        one.reply(3)
        assert 3 == target.result()


def test_forked_child_does_not_keep_the_listener():
    with supervised(lambda: refused(getppid), "getppid") as target:
        notifier = Notifier(target.listener)
        one = notifier.read_event()
        child = os.fork()
        if child == 0:
            del one  # a copy: must not answer
            gc.collect()
            os._exit(0 if notifier.closed else 1)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert one.valid()
        child = os.fork()
        if child == 0:
            signal.pause()
        os.close(notifier.detach())
        assert target.result() in ("EPERM", "ENOSYS")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ── targets that go away, readers that wait ──────────────────────────────────────────────────────────────


def test_answers_to_a_killed_target_do_nothing():
    answers = [lambda one: one.deny(), lambda one: one.reply(1), lambda one: one.reply_fd(0),
               lambda one: one.proceed(arg(0) >= 0)]  # fmt: skip
    for answer in answers:
        with supervised(lambda: os.getpgid(0), "getpgid") as target, Notifier(target.listener) as notifier:
            one = notifier.read_event()
            target.kill()
            assert not one.valid()
            answer(one)
            assert one.answered


def test_memory_of_a_killed_target_is_a_process_lookup_error():
    with supervised(lambda: os.open("/x", os.O_RDONLY), "openat") as target, \
            Notifier(target.listener) as notifier:  # fmt: skip
        one = notifier.read_event().emulate()
        target.kill()
        with pytest.raises(ProcessLookupError):
            one.path(1)


def test_target_killed_before_it_was_taken_is_not_given_out():
    with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
        select.select([notifier], [], [])
        assert notifier.pending() == 80
        target.kill()
        with pytest.raises(EOFError):
            notifier.read_event()


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_end_of_all_targets_ends_the_iteration_and_is_an_eof_error():
    with supervised(lambda: 1, "getppid") as target, Notifier(target.listener) as notifier:
        assert [] == list(notifier)
        with pytest.raises(EOFError):
            notifier.read_event()
        assert 0 == notifier.pending()
        assert 1 == target.result()


@pytest.mark.parametrize("flags", [0, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV])
def test_signal_withdraws_a_received_call_unless_the_filter_says_killable(flags):
    def interrupted():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, False)  # the call begins again
        return getppid()

    with supervised(interrupted, "getppid", flags=flags) as target, Notifier(target.listener) as notifier:
        one = notifier.read_event()
        os.kill(target.pid, signal.SIGUSR1)
        if flags:
            with pytest.raises(TimeoutError):
                notifier.read_event(timeout=0.1)
            assert one.valid()
            one.reply(1)
        else:
            again = notifier.read_event()
            assert not one.valid()
            assert one.id != again.id
            one.reply(1)
            again.reply(2)
        assert 1 + (not flags) == target.result()


def test_read_event_gives_up_in_time():
    with supervised(signal.pause, "getppid") as target, Notifier(target.listener) as notifier:
        with pytest.raises(TimeoutError):
            notifier.read_event(timeout=0.01)
        with Notifier(os.dup(notifier.fileno()), nonblock=True) as twin:
            with pytest.raises(BlockingIOError):
                twin.read_event()
            assert [] == twin.read_events()
            assert [] == list(twin)


def test_close_wakes_a_reader_that_waits():
    with supervised(signal.pause, "getppid") as target:
        notifier = Notifier(target.listener)
        answers = []
        waiting = threading.Thread(target=lambda: answers.extend(list(notifier) or ["ended"]))
        waiting.start()
        notifier.close()
        waiting.join(10)
        assert ["ended"] == answers


def test_one_thread_answers_while_another_waits():
    with supervised(lambda: [getppid(), getppid()], "getppid") as target, \
            Notifier(target.listener) as notifier:  # fmt: skip
        first = notifier.read_event()
        taken = []
        waiting = threading.Thread(target=lambda: taken.append(notifier.read_event()))
        waiting.start()
        first.reply(1)
        waiting.join(10)
        taken[0].reply(2)
        assert [1, 2] == target.result()


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_every_call_is_given_to_one_of_several_threads():
    def many():
        threads = [threading.Thread(target=lambda: [getppid() for _ in range(25)]) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return "done"

    with supervised(many, "getppid") as target, Notifier(target.listener) as notifier:
        seen = []

        def handle():
            for one in notifier:
                seen.append(one.id)
                one.reply(1)

        handlers = [threading.Thread(target=handle) for _ in range(3)]
        for one in handlers:
            one.start()
        assert "done" == target.result()
        for one in handlers:
            one.join(10)
        assert (100, 100) == (len(seen), len(set(seen)))


def test_what_is_no_listener_is_refused_and_stays_open():
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        Notifier(read_end)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="int 0x80 is x86's")
def test_call_by_int_0x80_has_its_own_names():
    from supervised import program

    from sandbox.filters.table import AUDIT, calls
    from sandbox.primitives.secure_computing import SeccompAction

    def old_gate():
        # push rbx; mov eax, edi; int 0x80; pop rbx; ret
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("53 89f8 cd80 5b c3"))
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(address)(calls().numbers["i386"]["getppid"])

    import supervised as module

    narrow = program({calls().numbers["i386"]["getppid"]: SeccompAction.USER_NOTIF}, arch=AUDIT["i386"])
    before, module.program = module.program, lambda *_: narrow
    try:
        with supervised(old_gate) as target, Notifier(target.listener) as notifier:
            one = notifier.read_event()
            assert ("getppid", "i386") == (one.call, one.arch)
            one.reply(64)
            assert 64 == target.result()
    finally:
        module.program = before


@pytest.mark.parametrize("seed", range(6))
def test_answers_of_all_kinds_kills_and_closing_at_any_moment_leave_nothing_waiting(seed):
    chance = random.Random(seed)
    enough = threading.Event()
    wanted = chance.randrange(1, 300)
    seen, surprises = [], []

    def busy():
        threads = [threading.Thread(target=lambda: [refused(os.getpgid, 0) for _ in range(200)]) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return "done"

    def answer(one):
        seen.append(one.id)
        if len(seen) >= wanted:
            enough.set()
        match chance.randrange(5):
            case 0:
                one.reply(1)
            case 1:
                one.reply_fd(0, number=100)
            case 2:
                one.emulate()
            case 3:
                one.proceed(arg(0) >= 0)

    def handle(notifier):
        try:
            for one in notifier:
                answer(one)
        except ValueError as error:  # closed while it was about to answer
            if "closed" not in str(error):
                surprises.append(error)
        except BaseException as error:
            surprises.append(error)
        enough.set()

    with supervised(busy, "getpgid") as target:
        notifier = Notifier(target.listener)
        handlers = [threading.Thread(target=handle, args=(notifier,)) for _ in range(3)]
        for one in handlers:
            one.start()
        enough.wait()
        if seed % 2:
            target.kill()
        notifier.close()
        for one in handlers:
            one.join(10)
        assert [False] * 3 == [one.is_alive() for one in handlers]
        assert [] == surprises
        assert target.result() in ("done", None)


# ── asyncio ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_async_iteration_answers_and_ends_with_the_targets():
    async def supervise(listener):
        async with Notifier_async(listener) as notifier:
            async for one in notifier:
                if one.call == "getppid":
                    one.reply(5)

    with supervised(lambda: [getppid(), refused(os.getpgid, 0)], "getppid", "getpgid") as target:
        asyncio.run(supervise(target.listener))
        assert [5, "EPERM"] == target.result()


def test_async_handler_that_raises_refuses_the_call():
    async def supervise(listener):
        async with Notifier_async(listener) as notifier:
            async for one in notifier:
                raise KeyError(one.call)

    with supervised(lambda: refused(getppid), "getppid") as target:
        with pytest.raises(KeyError):
            asyncio.run(supervise(target.listener))
        assert "EPERM" == target.result()


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_async_cancelled_get_loses_nothing():
    go, proceed = os.pipe()

    def late():
        os.read(go, 1)
        return getppid()

    async def supervise(listener):
        async with Notifier_async(listener) as notifier:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(notifier.get(), 0.01)
            os.write(proceed, b"x")
            (await notifier.get()).reply(9)
            with pytest.raises(EOFError):
                await notifier.get()

    with supervised(late, "getppid") as target:
        asyncio.run(supervise(target.listener))
        assert 9 == target.result()
    os.close(go)
    os.close(proceed)


def test_async_close_wakes_who_waits_and_refuses_what_was_given():
    async def supervise(listener):
        notifier = Notifier_async(listener)
        one = await notifier.get()
        waiting = asyncio.ensure_future(notifier.get())
        await asyncio.sleep(0)
        notifier.close()
        with pytest.raises(ValueError, match="closed"):
            await waiting
        assert one.answered

    with supervised(lambda: refused(getppid), "getppid") as target:
        asyncio.run(supervise(target.listener))
        assert "EPERM" == target.result()


def test_supervision_leaves_no_descriptor():
    def run():
        before = harness.footprint().descriptors
        with supervised(getppid, "getppid") as target, Notifier(target.listener) as notifier:
            notifier.read_event().reply(1)
            target.result()
        assert before == harness.footprint().descriptors

    harness.in_child(run)
