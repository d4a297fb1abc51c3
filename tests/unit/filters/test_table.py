import os
import re
from pathlib import Path

import pytest

from sandbox.errors import FilterError
from sandbox.filters import groups, table

HEADERS = {
    "x86_64": ("unistd_64.h", "x86_64"), "i386": ("unistd_32.h", "x86_64"), "x32": ("unistd_x32.h", "x86_64"),
}  # fmt: skip
INCLUDE = Path("/usr/include/x86_64-linux-gnu/asm")


@pytest.mark.skipif(not INCLUDE.is_dir(), reason="no kernel headers of x86 on this machine")
@pytest.mark.parametrize("arch", HEADERS)
def test_table_is_not_older_than_the_headers_of_the_machine(arch: str) -> None:
    text = (INCLUDE / HEADERS[arch][0]).read_text()
    found = {
        name: int(number) | (table.X32_BIT if arch == "x32" else 0)
        for name, number in re.findall(r"#define __NR_(\w+)\s+\(?(?:__X32_SYSCALL_BIT \+ )?(\d+)\)?", text)
    }
    assert len(found) > 300
    newer = {name for name in found if name not in table.calls().numbers[arch]}
    assert set() == newer, "the table is older: run scripts/kernel_tables.py with these headers"
    assert found.items() <= table.calls().numbers[arch].items()


def test_table_knows_every_call_of_the_other_machines() -> None:
    numbers = table.calls().numbers
    assert 63 == numbers["aarch64"]["read"] == numbers["riscv64"]["read"]
    assert 0xF0002 == numbers["arm"]["cacheflush"]
    assert table.X32_BIT | 514 == numbers["x32"]["ioctl"]
    assert {"x86_64", "i386", "x32", "aarch64", "arm", "riscv64"} == set(numbers)
    assert (7, 0) <= table.calls().version


@pytest.mark.parametrize(
    ("call", "index", "arch", "bits"),
    [
        ("ioctl", 1, "x86_64", 32), ("ioctl", 2, "x86_64", 64), ("ioctl", 2, "i386", 32), ("chmod", 1, "x86_64", 16),
        ("mmap", 0, "x86_64", 64), ("setuid", 0, "x86_64", 32), ("setuid", 0, "i386", 16), ("setuid32", 0, "i386", 32),
        ("clone", 0, "x86_64", 64), ("socket", 0, "aarch64", 32), ("personality", 0, "x86_64", 32),
    ],
)  # fmt: skip
def test_argument_bits_are_those_the_kernel_looks_at(call: str, index: int, arch: str, bits: int) -> None:
    assert bits == table.argument_bits(call, index, arch)


def test_constants_agree_with_the_standard_library() -> None:
    import fcntl
    import signal
    import socket
    import termios

    for module, prefix in ((socket, "AF_"), (termios, "TIO"), (signal, "SIG"), (fcntl, "F_"), (os, "O_")):
        compared = 0
        for name in table.constants():
            value = getattr(module, name, None)
            # O_LARGEFILE is 0 in 64-bit C; RT signals are the C library's.
            if not name.startswith(prefix) or value is None or name in ("O_LARGEFILE", "SIGRTMIN", "SIGRTMAX"):
                continue
            ours = table._value(name, table.machine())
            if ours is not None and name not in (
                "F_GETLK",
                "F_SETLK",
                "F_SETLKW",
                "F_GETLK64",
                "F_SETLK64",
                "F_SETLKW64",
            ):
                assert int(value) == ours, name
                compared += 1
        assert compared > 5, prefix


def test_constant_differs_by_architecture() -> None:
    assert 0x10000 == table.constant("O_DIRECTORY", "open", 1, "x86_64")
    assert 0x4000 == table.constant("O_DIRECTORY", "openat", 2, "aarch64")
    assert 0x30000000 == table.constant("CLONE_NEWUSER|CLONE_NEWPID", "clone", 0, "x86_64")


@pytest.mark.parametrize(
    ("name", "call", "index", "message"),
    [
        ("AF_INTE6", "socket", 0, "did you mean AF_INET6"),
        ("SOCK_STREAM", "socket", 0, "its names begin with"),
        ("TIOCSTY", "ioctl", 1, "TIOCSTI"),
    ],
)
def test_constant_wrong_name_lists_near_ones(name: str, call: str, index: int, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        table.constant(name, call, index, "x86_64")


def test_groups_hold_every_call_exactly_once() -> None:
    listed = [call for group in groups.GROUPS.values() for call in group.calls]
    variants = {*table.variants("i386"), *table.variants("arm")}
    assert sorted(set(listed)) == sorted(listed)
    assert set(table.calls().arguments) == {*listed, *variants, *table.MULTIPLEXED}


def test_group_unknown_lists_near_ones() -> None:
    with pytest.raises(FilterError, match="did you mean @network"):
        groups.members("@netwrok")


def test_variants_name_calls_that_exist() -> None:
    for arch in ("i386", "arm"):
        for name, (general, _) in table.variants(arch).items():
            assert name in table.calls().numbers[arch]
            assert general in table.calls().arguments
    assert ("mmap", 5) == table.variants("i386")["mmap2"]
    assert ("clock_settime", 6) == table.variants("arm")["clock_settime64"]
