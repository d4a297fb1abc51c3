"""Who runs a file, by its beginning: a hostile file is read without a crash."""

import errno
import os
import struct

import pytest

from sandbox.hints import hint_for
from sandbox.programs import interpreter_of, why_not_found


def elf(interpreter=b"/lib64/ld.so", *, bits=64, offset=0x200):
    """Return the beginning of an ELF binary with one PT_LOAD and one PT_INTERP."""
    name = interpreter + b"\0"
    if bits == 64:
        head = b"\x7fELF\x02\x01\x01" + bytes(25) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<2H", 56, 2)
        entries = struct.pack("<2I6Q", 1, 5, 0, 0, 0, 0, 0, 0)
        entries += struct.pack("<2I6Q", 3, 4, offset, 0, 0, len(name), len(name), 1)
    else:
        head = b"\x7fELF\x01\x01\x01" + bytes(21) + struct.pack("<I", 64) + bytes(10) + struct.pack("<2H", 32, 2)
        entries = struct.pack("<8I", 1, 0, 0, 0, 0, 0, 5, 0) + struct.pack("<8I", 3, offset, 0, 0, len(name), 0, 4, 1)
    return (head.ljust(64, b"\0") + entries).ljust(offset, b"\0") + name


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"#!/bin/sh\necho", "/bin/sh"),
        (b"#! \t/usr/bin/env python3\n", "/usr/bin/env"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!/bin/sh\r\n", "/bin/sh\r"),
        (b"#!\n", None),
        (b"#!", None),
        (b"#!/a\0b\n", "/a"),
        (b"", None),
        (b"echo", None),
        (elf(), "/lib64/ld.so"),
        (elf(bits=32), "/lib64/ld.so"),
        (elf(b"relative"), None),
        (elf()[:100], None),
        (elf()[:0x200], None),
        (elf(offset=0x3000)[:1000], None),
    ],
)
def test_interpreter_is_read_from_the_beginning(head, expected):
    assert expected == interpreter_of(head)


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_hostile_beginning_is_read_without_a_crash(size):
    for filling in (b"\xff", b"\0", b"\x01", b"A"):
        for start in (b"", b"#!", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"):
            found = interpreter_of((start + filling * size)[:1000])
            assert found is None or isinstance(found, str)


def test_carriage_return_is_told():
    text = why_not_found("/x", "", ("/x", b"#!/bin/sh\r\necho"))
    assert "carriage return" in text


def test_name_of_a_hostile_file_is_escaped():
    assert "\033" not in why_not_found("/x", "", ("/x", b"#!/\033[31m\n"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(path, line):
    path.write_text(f"#!{line}\n")
    path.chmod(0o755)


def test_relative_program_that_only_the_host_has_wants_the_directory_too(here):
    script(here / "tool", "/bin/sh")
    assert why_not_found("./tool", "", None, "/tmp").endswith(f'.bind_readonly("{here}").cwd("{here}")')


@pytest.mark.parametrize(("line", "said"), [("/no/such", "'/no/such'"), ("/bin/sh\r", "carriage return")])
def test_relative_program_is_judged_by_the_file_of_the_host(here, line, said):
    script(here / "tool", line)
    assert said in why_not_found("./tool", "", None, str(here))


def test_plain_child_has_no_sandbox():
    assert "sandbox" not in str(hint_for("execve", ("no-such", "/bin"), errno.ENOENT, "plain child"))


def test_directory_of_the_host_is_no_program(here):
    (here / "tool").mkdir()
    assert "the host has" not in why_not_found("./tool", "", None, "/tmp")


def test_relative_program_that_is_a_pipe_is_not_waited_for(here):
    os.mkfifo(here / "tool")
    assert "working directory /tmp" in why_not_found("./tool", "", None, "/tmp")
