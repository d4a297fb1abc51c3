"""splice, tee, vmsplice and copy_file_range."""

import errno
import fcntl
import hashlib
import mmap
import os
import socket
import threading

import pytest
from event_kinds import in_own_process

from sandbox.primitives import (
    SPLICE_F_MORE,
    SPLICE_F_NONBLOCK,
    copy_file_range,
    splice,
    tee,
    vmsplice,
    vmsplice_pinned,
)


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open(path, "r+b", buffering=0) as stream:
        yield stream


def test_splice_moves_from_a_file_to_a_pipe(pipe, file):
    assert 10 == splice(file, pipe[1], 100)
    assert b"0123456789" == os.read(pipe[0], 100)
    assert 0 == splice(file, pipe[1], 100)


def test_splice_with_an_offset_leaves_the_position_alone(pipe, file):
    assert 3 == splice(file, pipe[1], 3, offset_src=4)
    assert b"456" == os.read(pipe[0], 100)
    assert 0 == file.tell()


def test_splice_with_offset_zero_is_an_offset(pipe, file):
    file.seek(5)
    assert 2 == splice(file, pipe[1], 2, offset_src=0)
    assert b"01" == os.read(pipe[0], 100)
    assert 5 == file.tell()


def test_splice_into_a_file_at_an_offset(pipe, file):
    os.write(pipe[1], b"abc")
    assert 3 == splice(pipe[0], file, 100, offset_dst=4)
    assert b"0123abc789" == os.pread(file.fileno(), 100, 0)


def test_splice_refused_by_the_kernel_keeps_its_errno(pipe, file, tmp_path):
    for arguments, expected in [
        ((file, file, 1), errno.EINVAL),  # neither is a pipe
        ((pipe[0], pipe[1], 1), errno.EINVAL),  # one pipe
        ((pipe[0], file, 1, 0), errno.ESPIPE),
        ((pipe[0], file, 1, None, None, SPLICE_F_NONBLOCK), errno.EAGAIN),
        ((999, pipe[1], 1), errno.EBADF),
    ]:
        with pytest.raises(OSError) as caught:
            splice(*arguments)
        assert expected == caught.value.errno


@pytest.mark.parametrize(
    ("count", "options"),
    [(-1, {}), (2**63, {}), (1, {"offset_src": -1}), (1, {"offset_dst": 2**63}), (1, {"flags": -1})],
)
@pytest.mark.parametrize("call", [splice, copy_file_range])
def test_out_of_range_is_a_value_error(pipe, file, call, count, options):
    with pytest.raises(ValueError, match="must be between"):
        call(file, pipe[1], count, **options)
    assert 0 == file.tell()


def test_tee_duplicates_and_leaves_the_first_pipe_as_it_was(pipe):
    read_end, write_end = os.pipe()
    try:
        os.write(pipe[1], b"abc")
        assert 2 == tee(pipe[0], write_end, 2)
        assert b"ab" == os.read(read_end, 10)
        assert b"abc" == os.read(pipe[0], 10)
        with pytest.raises(BlockingIOError):
            tee(pipe[0], write_end, 1, SPLICE_F_NONBLOCK)
        with pytest.raises(ValueError, match="count must be between"):
            tee(pipe[0], write_end, -1)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_vmsplice_copies_so_that_a_later_change_is_not_seen(pipe):
    data = bytearray(b"first")
    assert 5 == vmsplice(pipe[1], data)
    data[:] = b"later"
    assert b"first" == os.read(pipe[0], 10)
    data += b"more"  # nothing holds the buffer


def test_vmsplice_pinned_aliases_the_callers_memory(pipe):
    # Why vmsplice copies: with the kernel's own call the reader sees what was written later.
    data = mmap.mmap(-1, mmap.PAGESIZE)
    data[:5] = b"first"
    with vmsplice_pinned(pipe[1], memoryview(data)[:5]) as pinned:
        assert 5 == pinned.count
        data[:5] = b"later"
        assert b"later" == os.read(pipe[0], 10)


def test_vmsplice_pinned_keeps_the_buffer_from_being_resized(pipe):
    data = bytearray(b"first")
    pinned = vmsplice_pinned(pipe[1], data)
    with pytest.raises(BufferError):
        data += b"x"
    assert b"first" == os.read(pipe[0], 10)
    pinned.release()
    pinned.release()
    data += b"x"


def test_vmsplice_gathers_several_buffers(pipe):
    assert 6 == vmsplice(pipe[1], [b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3]])
    assert b"abcdef" == os.read(pipe[0], 10)
    assert 0 == vmsplice(pipe[1], [])
    assert 0 == vmsplice(pipe[1], b"")


def test_vmsplice_on_the_reading_end_fills_memory(pipe):
    os.write(pipe[1], b"abcdef")
    first, second = bytearray(2), bytearray(10)
    assert 6 == vmsplice(pipe[0], [first, second])
    assert (b"ab", b"cdef") == (bytes(first), bytes(second[:4]))
    with pytest.raises((TypeError, BufferError)):
        vmsplice(pipe[0], b"read-only")


def test_vmsplice_takes_what_fits_into_a_full_pipe(pipe):
    size = fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    assert size == vmsplice(pipe[1], bytes(2 * size), SPLICE_F_NONBLOCK)
    with pytest.raises(BlockingIOError):
        vmsplice(pipe[1], b"x", SPLICE_F_NONBLOCK)


def test_vmsplice_bad_arguments(pipe, file):
    with pytest.raises(ValueError, match="at most 1024"):
        vmsplice(pipe[1], [b"x"] * 1025)
    with pytest.raises(TypeError):
        vmsplice(pipe[1], "text")
    with pytest.raises(TypeError):
        vmsplice(pipe[1], [b"x", 5])
    with pytest.raises(ValueError, match="writing end"):
        vmsplice_pinned(pipe[0], b"x")
    with pytest.raises(OSError) as caught:
        vmsplice(file, b"x")
    assert errno.EBADF == caught.value.errno


def test_copy_file_range_copies_with_offsets(file, tmp_path):
    with open(tmp_path / "copy", "w+b", buffering=0) as copy:
        assert 4 == copy_file_range(file, copy, 4, offset_src=3)
        assert 2 == copy_file_range(file, copy, 2, offset_dst=8)
        assert b"3456\0\0\0\0" + b"01" == os.pread(copy.fileno(), 100, 0)
        assert (2, 4) == (file.tell(), copy.tell())
        with pytest.raises(OSError) as caught:
            copy_file_range(file, copy, 1, flags=1)
        assert errno.EINVAL == caught.value.errno


def test_copy_file_range_of_overlapping_ranges_is_einval(file):
    with pytest.raises(OSError) as caught:
        copy_file_range(file, file, 5, offset_src=0, offset_dst=2)
    assert errno.EINVAL == caught.value.errno


@in_own_process
def test_file_served_over_tcp_by_splice_arrives_byte_for_byte(tmp_path):
    content = os.urandom(1 << 20) * 8 + b"tail"
    path = tmp_path / "served"
    path.write_bytes(content)
    received = hashlib.sha256()

    with socket.create_server(("127.0.0.1", 0)) as server:

        def receive():
            with socket.create_connection(server.getsockname()) as client:
                while block := client.recv(1 << 16):
                    received.update(block)

        thread = threading.Thread(target=receive)
        thread.start()
        connection, _ = server.accept()
        read_end, write_end = os.pipe()
        with connection, open(path, "rb", buffering=0) as file:
            while taken := splice(file, write_end, 1 << 16):
                while taken:
                    taken -= splice(read_end, connection, taken, flags=SPLICE_F_MORE)
        os.close(read_end)
        os.close(write_end)
        thread.join()
    assert hashlib.sha256(content).digest() == received.digest()
