"""Aio's memory and descriptors under close, threads, fork, the end of Python, and what the host refuses."""

import contextlib
import ctypes
import errno
import gc
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import warnings

import harness
import pytest
from aio_queues import BACKENDS, BLOCK, collect, make, numbered_blocks

from sandbox.errors import UnsupportedError
from sandbox.events import Aio, aligned_buffer


@pytest.fixture(params=BACKENDS)
def aio(request):
    with make(request.param) as queue:
        yield queue


@pytest.fixture
def uring():
    with make("io_uring") as queue:
        yield queue


@pytest.fixture
def file(tmp_path):
    fd = numbered_blocks(tmp_path / "file")
    yield fd
    os.close(fd)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────


def test_buffer_cannot_be_resized_until_its_completion_was_read(aio, file):
    buffer = bytearray(BLOCK)
    aio.read(file, buffer, 0)
    aio.submit()
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    aio.read_event(10)
    buffer.extend(b"x")


def test_buffer_that_only_the_queue_knows_is_written_safely(uring, pipe):
    class Memory(bytearray):
        pass

    import weakref

    buffer = Memory(5)
    ghost = weakref.ref(buffer)
    uring.read(pipe[0], buffer, 0)
    uring.submit()
    del buffer
    gc.collect()
    assert ghost() is not None
    os.write(pipe[1], b"hello")
    assert 5 == uring.read_event(10).result
    gc.collect()
    assert ghost() is None


def test_close_ends_what_runs_and_lets_go_of_the_buffers(uring, pipe):
    buffers = [bytearray(5) for _ in range(20)]
    for buffer in buffers:
        uring.read(pipe[0], buffer, 0)
    uring.submit()
    uring.read(pipe[0], (queued := bytearray(5)), 0)
    uring.close()
    os.write(pipe[1], b"hello" * 21)
    assert b"hello" * 21 == os.read(pipe[0], 1000)
    for buffer in [*buffers, queued]:
        buffer.extend(b"x")
        assert bytes(5) + b"x" == bytes(buffer)


def test_close_waits_for_direct_reads_that_cannot_be_cancelled(aio, file, tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    buffers = [aligned_buffer(BLOCK) for _ in range(64)]
    for number, buffer in enumerate(buffers):
        aio.read(fd, buffer, number * BLOCK)
    aio.submit()
    aio.close()
    os.close(fd)
    snapshot = [bytes(buffer) for buffer in buffers]
    for number, content in enumerate(snapshot):
        assert content in {bytes(BLOCK), bytes([number]) * BLOCK}
    assert snapshot == [bytes(buffer) for buffer in buffers]
    for buffer in buffers:
        buffer.release()


def test_queued_write_is_not_carried_out_by_close(aio, file):
    aio.write(file, b"never", 0)
    aio.close()
    assert bytes(5) == os.pread(file, 5, 0)


def test_close_interrupted_while_it_waits_keeps_the_buffers_for_ever(uring, pipe, monkeypatch):
    from sandbox.events import _aio_queue

    def interrupted(_):
        raise KeyboardInterrupt

    aio = make(uring.backend)
    buffer = bytearray(5)
    aio.read(pipe[0], buffer, 0)
    aio.submit()
    monkeypatch.setattr(aio._queue, "drain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        aio.close()
    assert aio.closed
    del aio
    gc.collect()
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    _aio_queue._abandoned.clear()  # nothing will come through this pipe


def test_dropped_queue_warns_and_leaves_nothing(uring, pipe, recwarn):
    buffer = bytearray(5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dropped = Aio(8, backend=uring.backend)
        dropped.read(pipe[0], buffer, 0)
        dropped.submit()
        del dropped
        gc.collect()
    assert ["unclosed aio"] == [str(one.message).rsplit(" ", 1)[0] for one in caught]
    buffer.extend(b"x")
    os.write(pipe[1], b"hello")
    assert b"hello" == os.read(pipe[0], 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interpreter_ends_quietly_with_requests_running(backend, tmp_path):
    make(backend).close()
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    program = """
import os, sys
from sandbox.events import Aio, aligned_buffer
aio = Aio(64, backend=sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECT)
for number in range(63):
    aio.read(fd, aligned_buffer(4096), number * 4096)
if aio.backend == "io_uring":
    aio.read(os.pipe()[0], bytearray(100), 0)
aio.submit()
print("running", aio.pending() > 0)
"""
    ended = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program, backend, tmp_path / "file"],
        capture_output=True,
        text=True,
    )
    assert (0, "running True\n", "") == (ended.returncode, ended.stdout, ended.stderr)


# ── threads ───────────────────────────────────────────────────────────────────────────────────────────────


def in_a_thread_that_ends(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
    # Python's thread is over a little before the kernel's.
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        os.sched_yield()


def test_read_of_a_stream_is_cancelled_when_the_thread_that_submitted_it_has_ended(uring, pipe):
    def submit():
        uring.read(pipe[0], bytearray(5), 0)
        uring.submit()

    in_a_thread_that_ends(submit)
    os.write(pipe[1], b"hello")  # the kernel notices when it would read
    assert errno.ECANCELED == uring.read_event(10).error.errno
    assert b"hello" == os.read(pipe[0], 5)


def test_direct_reads_complete_though_the_thread_that_submitted_them_has_ended(aio, file, tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    buffer = aligned_buffer(64 * BLOCK)

    def submit():
        for number in range(64):
            aio.read(fd, buffer[number * BLOCK : (number + 1) * BLOCK], number * BLOCK)
        aio.submit()

    in_a_thread_that_ends(submit)
    assert {BLOCK} == {event.result for event in collect(aio, 64).values()}
    assert os.pread(file, 64 * BLOCK, 0) == bytes(buffer)
    os.close(fd)


def test_close_ends_requests_of_a_thread_that_has_ended(uring, pipe):
    buffer = bytearray(5)

    def submit():
        uring.read(pipe[0], buffer, 0)
        uring.submit()

    in_a_thread_that_ends(submit)
    uring.close()
    buffer.extend(b"x")


# ── fork ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_forked_child_can_only_close_and_does_not_disturb_its_parent(aio, file):
    requests = [aio.read(file, bytearray(1), 0) for _ in range(8)]
    aio.submit()
    queued = aio.read(file, bytearray(1), 0)

    def child():
        for call in (
            lambda: aio.read(file, bytearray(1), 0),
            aio.submit,
            aio.pending,
            lambda: aio.read_event(0),
        ):
            with pytest.raises(ValueError, match="process that forked"):
                call()
        assert not aio.cancel(queued)
        aio.close()
        assert aio.closed
        with Aio(8, backend=aio.backend) as own:
            own.read(file, bytearray(1), 0)
            assert 1 == own.read_event(10).result

    harness.in_child(child)
    assert {*requests, queued} == set(collect(aio, 9))


@pytest.mark.parametrize("end", ["drop", "exit"])
def test_forked_child_that_drops_the_queue_leaves_the_parents_requests(pipe, file, end):
    holder = [make("io_uring"), make("linux_aio")]
    request = holder[0].read(pipe[0], (buffer := bytearray(5)), 0)
    holder[0].submit()
    holder[1].read(file, bytearray(1), 0)

    def child():
        if end == "drop":
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                holder.clear()
                gc.collect()
            assert ["ResourceWarning"] * 2 == [one.category.__name__ for one in caught]
        else:
            from sandbox.events import _aio_queue

            _aio_queue._at_exit()

    harness.in_child(child)
    os.write(pipe[1], b"hello")
    assert (request, 5) == holder[0].read_event(10)[0::2]
    assert b"hello" == bytes(buffer)
    assert 1 == holder[1].read_event(10).result
    for one in holder:
        one.close()


def test_direct_reads_are_right_while_the_process_forks(aio, file, tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    buffers = [aligned_buffer(BLOCK) for _ in range(64)]
    for _ in range(5):
        for number, buffer in enumerate(buffers):
            buffer[:] = b"\xff" * BLOCK
            aio.read(fd, buffer, number * BLOCK, tag=number)
        aio.submit()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        for event in collect(aio, 64).values():
            assert bytes([event.tag]) * BLOCK == bytes(buffers[event.tag])
        os.waitpid(pid, 0)
    os.close(fd)


# ── what can be missing ───────────────────────────────────────────────────────────────────────────────────


def refuse_calls(number, *calls):
    """Install a seccomp filter that fails the calls named; for this process and for ever."""
    program = b""

    def instruction(code, jt, jf, k):
        return struct.pack("=HBBI", code, jt, jf, k)

    program += instruction(0x20, 0, 0, 0)  # A = seccomp_data.nr
    for call in calls:
        program += instruction(0x15, 0, 1, call)  # if A != call, skip one
        program += instruction(0x06, 0, 0, 0x00050000 | number)  # SECCOMP_RET_ERRNO
    program += instruction(0x06, 0, 0, 0x7FFF0000)  # SECCOMP_RET_ALLOW
    memory = ctypes.create_string_buffer(program)
    prog = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert 0 == libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    assert 0 == libc.prctl(22, 2, ctypes.c_char_p(prog), 0, 0), os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP


IO_URING_SETUP, IO_URING_ENTER = 425, 426
IO_SETUP = {"x86_64": 206, "aarch64": 0, "riscv64": 0}[os.uname().machine]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EACCES])
@pytest.mark.parametrize("call", [IO_URING_SETUP, IO_URING_ENTER])
def test_filter_that_refuses_io_uring_leaves_linux_aio(file, number, call):
    make("io_uring").close()  # the control: without the filter it works

    def child():
        refuse_calls(number, call)
        with Aio() as aio:
            assert "linux_aio" == aio.backend
            aio.read(file, bytearray(1), 0)
            assert 1 == aio.read_event(10).result
        before = harness.footprint()
        with pytest.raises(UnsupportedError, match=r"io_uring is not available here(.|\n)*fix: ") as caught:
            Aio(backend="io_uring")
        assert number == caught.value.errno
        assert caught.value.found
        assert before == harness.footprint(settle=before)

    harness.in_child(child)


def test_filter_that_refuses_both_is_unsupported_error():
    def child():
        refuse_calls(errno.EPERM, IO_URING_SETUP, IO_SETUP)
        for backend in ("auto", "linux_aio"):
            with pytest.raises(UnsupportedError, match="Linux AIO is not available here") as caught:
                Aio(backend=backend)
            assert errno.EPERM == caught.value.errno

    harness.in_child(child)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_descriptor_left_is_emfile_and_leaks_nothing(backend):
    make(backend).close()

    def child():
        before = harness.footprint()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The lowest free number is the limit: nothing can be opened.
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        with pytest.raises(OSError) as caught:
            Aio(backend=backend)
        assert errno.EMFILE == caught.value.errno
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert before == harness.footprint(settle=before)

    harness.in_child(child)


def test_no_context_left_is_eagain_and_leaks_no_eventfd():
    with open("/proc/sys/fs/aio-max-nr") as stream:
        limit = int(stream.read())
    made = []
    try:
        before = harness.footprint()
        with contextlib.suppress(BlockingIOError):
            for _ in range(limit // 32767 + 1):
                made.append(Aio(32767, backend="linux_aio"))
            pytest.fail("the limit of the host was not met")
        assert len(made) + len(before.descriptors) == len(harness.footprint().descriptors)
    finally:
        for one in made:
            one.close()


def test_signal_handler_interrupts_a_wait_and_the_queue_goes_on(uring, pipe):
    def interrupt(*_):
        raise InterruptedError("by the handler")

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        request = uring.read(pipe[0], bytearray(1), 0)
        uring.submit()
        main = threading.main_thread().ident
        timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGUSR1))
        timer.start()
        with pytest.raises(InterruptedError, match="by the handler"):
            uring.read_event()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    os.write(pipe[1], b"x")
    assert (request, 1) == uring.read_event(10)[0::2]
