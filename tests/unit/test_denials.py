import struct

import pytest

from sandbox.denials import _PATH, asking
from sandbox.filters import Allow, Errno, Filter, Kill, Notify, arg
from sandbox.filters.table import calls


def test_asking_asks_where_the_filter_refuses_and_nowhere_else():
    original = (
        Filter(Allow)
        .deny("chown", "mount")
        .deny("clone3", action=Errno("ENOSYS"))
        .deny("bpf", action=Kill)
        .deny("sync", action=Errno(0))
        .deny("socket", arg(0) == "AF_ALG", action=Errno("EAFNOSUPPORT"))
    )
    watched = Filter.from_bytes(asking(original.to_bytes()))
    for call, args in [("chown", ()), ("mount", ()), ("socket", (38,))]:
        assert isinstance(original.simulate(call, *args), Errno)
        assert Notify == watched.simulate(call, *args)
    for call, args in [("clone3", ()), ("bpf", ()), ("sync", ()), ("socket", (1,)), ("openat", ())]:
        assert original.simulate(call, *args) == watched.simulate(call, *args)


def test_asking_leaves_jumps_and_loads_alone():
    # A constant that a jump compares with may look like an errno action.
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, 0x00050001), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("=HBBI", *one) for one in code)
    code[2] = (0x06, 0, 0, 0x7FC00000)
    assert b"".join(struct.pack("=HBBI", *one) for one in code) == asking(program)


@pytest.mark.parametrize("call", _PATH)
def test_path_argument_is_a_pointer_in_the_table(call):
    assert "p" == calls().arguments[call][0][_PATH[call]]
