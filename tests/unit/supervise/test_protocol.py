import os
import socket

import pytest
from hypothesis import given, strategies as st

from sandbox.supervise import listen_fds, notify
from sandbox.supervise.protocol import abstract_socket, descends, fd_name, microseconds, parse, receive


@pytest.fixture
def listener(monkeypatch):
    made, address = abstract_socket()
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with made:
        yield made


def test_notify_without_a_socket_says_that_nobody_listens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


@pytest.mark.parametrize("address", ["@sandbox-nobody-is-here", "/nonexistent/socket"])
def test_notify_to_nobody_says_so(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_notify_arrives_with_who_sent_it(listener):
    assert notify("READY=1\nSTATUS=it works = well")
    message = receive(listener)
    assert (os.getpid(), os.getuid()) == (message.pid, message.uid)
    assert {"READY": "1", "STATUS": "it works = well"} == message.fields
    assert receive(listener) is None


def test_notify_sends_descriptors(listener):
    with socket.socket() as one:
        assert notify("FDSTORE=1", fds=[one])
        message = receive(listener)
        (fd,) = message.fds
        assert os.path.sameopenfile(fd, one.fileno())
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.mark.parametrize(
    ("state", "fds", "address", "error"),
    [
        (b"READY=1", (), "@x", TypeError),
        ("READY=1", [0] * 254, "@x", ValueError),
        ("READY=1", (), "vsock:2", ValueError),
    ],
)
def test_notify_wrong_argument_raises(monkeypatch, state, fds, address, error):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with pytest.raises(error):
        notify(state, fds=fds)


def test_notify_too_long_says_nothing(listener):
    notify("STATUS=" + "x" * 5000 + "\nREADY=1")
    assert {} == receive(listener).fields


@given(st.binary(max_size=200))
def test_parse_takes_anything(data):
    for name, value in parse(data).items():
        assert "=" not in name
        assert "\n" not in name + value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1500000", 1.5), ("0", 0.0), ("-1", None), ("", None), ("1e6", None), ("9" * 16, None), ("٣", None)],
)
def test_microseconds(text, seconds):
    assert seconds == microseconds(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("http", "http"), ("a:b", "x"), ("", "x"), (None, "x"), ("a\nb", "x"), ("é", "x"), ("a" * 256, "x")],
)
def test_fd_name_is_what_the_protocol_allows(name, expected):
    assert expected == fd_name(name, "x")


def test_descends_knows_ancestors():
    assert descends(os.getpid(), os.getppid())
    assert descends(os.getpid(), os.getpid())
    assert False is descends(os.getppid(), os.getpid())
    assert descends(2**22 + 1, os.getpid()) is None


@pytest.mark.parametrize(
    "variables",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "y"}],
)
def test_listen_fds_of_another_process_are_none(monkeypatch, variables):
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert {} == listen_fds()


def test_listen_fds_names_that_repeat_have_their_number(monkeypatch):
    import harness

    def child() -> None:
        for fd in (3, 4, 5):
            os.dup2(0, fd)
        os.environ.update(LISTEN_FDS="3", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="http:http")
        assert {"http": 3, "http:4": 4, "unknown": 5} == listen_fds()
        assert not os.get_inheritable(4)

    harness.in_child(child)
