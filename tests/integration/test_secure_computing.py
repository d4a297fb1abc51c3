"""The thin calls: seccomp(2), its listener, and the memory of another process."""

import ctypes
import errno
import mmap
import os
import threading

import harness
import pytest
from supervised import number, program, refuse, supervised

from sandbox.primitives.memory import process_vm_readv
from sandbox.primitives.process import PR_SET_NO_NEW_PRIVS, prctl
from sandbox.primitives.secure_computing import (
    SeccompAction,
    SeccompAddfdFlags,
    SeccompFdFlags,
    SeccompFilterFlags,
    SeccompOperation,
    seccomp,
    seccomp_notif_addfd,
    seccomp_notif_id_valid,
    seccomp_notif_recv,
    seccomp_notif_send,
    seccomp_notif_set_flags,
    seccomp_notif_sizes,
)

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
FILTER = SeccompOperation.SET_MODE_FILTER
NO_PARENT = {number("getppid"): refuse(errno.EACCES)}


@pytest.mark.parametrize("action", SeccompAction)
def test_every_action_is_available(action):
    assert 0 == seccomp(SeccompOperation.GET_ACTION_AVAIL, args=action)


def test_unknown_action_is_not_supported():
    with pytest.raises(OSError, match="not supported"):
        seccomp(SeccompOperation.GET_ACTION_AVAIL, args=0x12340000)


def test_notif_sizes_are_those_of_the_structures():
    assert (80, 24, 64) == seccomp_notif_sizes()


def test_strict_mode_leaves_four_calls():
    pid = os.fork()
    if pid == 0:
        seccomp(SeccompOperation.SET_MODE_STRICT)
        libc.syscall(number("getppid"))
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("size", [0, 7, 12, 8 * 4097])
def test_program_of_a_wrong_length_is_a_value_error(size):
    with pytest.raises(ValueError, match="1 to 4096 instructions"):
        seccomp(FILTER, args=bytes(size))


@pytest.mark.parametrize(
    ("operation", "args"), [(FILTER, None), (FILTER, 1), (SeccompOperation.SET_MODE_STRICT, b""),
                            (SeccompOperation.GET_ACTION_AVAIL, None)]
)  # fmt: skip
def test_argument_of_another_operation_is_a_type_error(operation, args):
    with pytest.raises(TypeError, match="args"):
        seccomp(operation, args=args)


@pytest.mark.parametrize("operation", [3, 99])
def test_operation_that_is_none_is_a_value_error(operation):
    with pytest.raises(ValueError, match="operation"):
        seccomp(operation)


@pytest.mark.needs_user
def test_filter_without_no_new_privs_is_refused():
    with pytest.raises(PermissionError):
        seccomp(FILTER, args=program(NO_PARENT))


@pytest.mark.parametrize("flags", [SeccompFilterFlags.LOG, SeccompFilterFlags.SPEC_ALLOW, SeccompFilterFlags.TSYNC])
def test_flags_are_taken(flags):
    def loaded():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        assert 0 == seccomp(FILTER, flags, program(NO_PARENT))

    harness.in_child(loaded)


def test_unknown_flag_is_invalid():
    def loaded():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        with pytest.raises(OSError, match="Invalid argument"):
            seccomp(FILTER, 1 << 30, program(NO_PARENT))

    harness.in_child(loaded)


@pytest.mark.parametrize("flags", [SeccompFilterFlags.TSYNC, SeccompFilterFlags.TSYNC | SeccompFilterFlags.TSYNC_ESRCH])
def test_tsync_with_a_thread_that_differs_is_esrch(flags):
    def loaded():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        ready, end = threading.Event(), threading.Event()

        def differ():
            seccomp(FILTER, args=program(NO_PARENT))
            ready.set()
            end.wait()

        thread = threading.Thread(target=differ)
        thread.start()
        ready.wait()
        with pytest.raises(ProcessLookupError) as caught:
            seccomp(FILTER, flags, program(NO_PARENT))
        if not flags & SeccompFilterFlags.TSYNC_ESRCH:
            assert [f"thread {thread.native_id} has filters that this thread does not have"] == caught.value.__notes__
        end.set()
        thread.join()

    harness.in_child(loaded)


def test_second_listener_is_busy():
    def loaded():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        first = seccomp(FILTER, SeccompFilterFlags.NEW_LISTENER, program(NO_PARENT))
        assert not os.get_inheritable(first)
        with pytest.raises(OSError, match="busy"):
            seccomp(FILTER, SeccompFilterFlags.NEW_LISTENER, program(NO_PARENT))

    harness.in_child(loaded)


def test_notification_is_received_and_answered():
    with supervised(lambda: libc.syscall(number("getppid"), *map(ctypes.c_long, range(1, 7))), "getppid") as target:
        notif = seccomp_notif_recv(target.listener)
        assert (number("getppid"), target.pid, (1, 2, 3, 4, 5, 6)) == (notif.nr, notif.pid, notif.args)
        assert seccomp_notif_id_valid(target.listener, notif.id)
        assert not seccomp_notif_id_valid(target.listener, notif.id + 1)
        seccomp_notif_send(target.listener, notif.id, 2**40)
        with pytest.raises(FileNotFoundError):
            seccomp_notif_send(target.listener, notif.id + 1)
        assert 2**40 == target.result()
        os.close(target.listener)


def test_descriptor_is_installed_before_the_answer():
    def installed():
        ctypes.set_errno(0)
        fd = libc.syscall(number("getppid"))
        return os.read(fd, 5).decode()

    with supervised(installed, "getppid") as target:
        read_end, write_end = os.pipe()
        os.write(write_end, b"hello")
        notif = seccomp_notif_recv(target.listener)
        there = seccomp_notif_addfd(target.listener, notif.id, read_end, 50, SeccompAddfdFlags.SETFD)
        assert 50 == there
        seccomp_notif_send(target.listener, notif.id, there)
        assert "hello" == target.result()
        for fd in (read_end, write_end, target.listener):
            os.close(fd)


@pytest.mark.needs_kernel(6, 6)
def test_listener_flags_are_taken_and_unknown_ones_are_not():
    with supervised(lambda: 1, "getppid") as target:
        seccomp_notif_set_flags(target.listener, SeccompFdFlags.SYNC_WAKE_UP)
        with pytest.raises(OSError, match="Invalid argument"):
            seccomp_notif_set_flags(target.listener, 1 << 7)
        os.close(target.listener)


def test_memory_of_another_process_is_read_as_far_as_it_goes():
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    memory[page - 4 : page] = b"last"
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc.munmap(ctypes.c_void_p(address + page), page)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    assert b"last" == process_vm_readv(child, address + page - 4, 4)
    assert b"last" == process_vm_readv(child, address + page - 4, 100)
    assert b"" == process_vm_readv(child, address, 0)
    with pytest.raises(OSError, match="Bad address"):
        process_vm_readv(child, address + page, 4)
    os.close(write_end)
    os.waitpid(child, 0)
    os.close(read_end)
    with pytest.raises(ProcessLookupError):
        process_vm_readv(child, address, 4)
    # The second page is gone: what is left must not be unmapped by the object, which knows of two.
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 3, 0x32, -1, ctypes.c_long(0))
