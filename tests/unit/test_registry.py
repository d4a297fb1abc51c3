"""The directory of names, and the messages of those who have them."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import registry
from sandbox.option_values import OptionError
from sandbox.registry import MOST, Channel, NobodyError, Registry, StrangerError


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr(registry, "_places", lambda: iter([str(tmp_path / "names")]))
    with Registry() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Channel(ours), theirs


def test_places_are_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/x")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert ["/x/sandbox", "/run/user/7/sandbox", "/tmp/sandbox-7"] == list(registry._places())
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert ["/run/user/7/sandbox", "/tmp/sandbox-7"] == list(registry._places())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ["/run/sandbox", "/tmp/sandbox-0"] == list(registry._places())


def test_registry_takes_the_first_place_that_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    wrong = [str(tmp_path / one) for one in ("no/such", "file/x", "link")]
    monkeypatch.setattr(registry, "_places", lambda: iter([*wrong, str(tmp_path / "good")]))
    with Registry() as made:
        assert str(tmp_path / "good") == made.path
    assert 0o700 == (tmp_path / "good").stat().st_mode & 0o777
    monkeypatch.setattr(registry, "_places", lambda: iter(wrong))
    with pytest.raises(OptionError, match="XDG_RUNTIME_DIR") as caught:
        Registry()
    assert str(tmp_path / "link") in str(caught.value)


def test_registry_refuses_a_directory_of_its_user_that_others_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names").chmod(0o710)
    monkeypatch.setattr(registry, "_places", lambda: iter([str(tmp_path / "names"), str(tmp_path / "other")]))
    with pytest.raises(OptionError, match="open to others"):
        Registry()


def test_claim_refuses_a_name_that_is_taken_until_it_is_released(names: Registry) -> None:
    with names.claim("one") as listener:
        with pytest.raises(OptionError, match=f"taken by process {os.getpid()}"):
            names.claim("one")
        assert 0o600 == os.stat(f"{names.path}/one").st_mode & 0o777
        assert ["one"] == names.names()
        names.release("one")
        names.release("one")
        with names.claim("one"):
            pass
        listener.close()


def test_name_of_a_listener_that_is_gone_is_removed(names: Registry) -> None:
    names.claim("one").close()
    assert ["one"] == names.names()
    with pytest.raises(NobodyError):
        names.connect("one")
    assert [] == names.names()


def test_names_are_only_those_that_could_be_one(names: Registry) -> None:
    for wrong in (".hidden", "-x", "a b", "x" * 65):
        Path(names.path, wrong).touch()
    assert [] == names.names()


def test_connect_to_a_listener_that_is_full_does_not_wait(names: Registry) -> None:
    with names.claim("one") as listener:
        listener.listen(0)
        names.connect("one").close()
        with pytest.raises(OptionError, match="is its owner stopped"):
            names.connect("one")


@pytest.mark.parametrize("known", [True, False], ids=["pidfd of the peer", "before Linux 6.5"])
def test_check_peer_lets_this_user_pass(
    pair: tuple[Channel, socket.socket], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(registry, "_SO_PEERPIDFD", 9999)  # ENOPROTOOPT
    registry.check_peer(pair[0].connection)
    pidfd = registry.peer_pidfd(pair[0].connection)
    assert f"Pid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    os.close(pidfd)


def test_check_peer_refuses_another_uid(pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_credentials", lambda _: (1, os.geteuid() + 1))
    with pytest.raises(StrangerError, match="uid"):
        registry.check_peer(pair[0].connection)


def test_check_peer_refuses_whoever_has_ended(names: Registry) -> None:
    with names.claim("one") as listener:
        child = os.fork()
        if child == 0:
            try:
                made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                made.connect(f"{names.path}/one")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        connection, _ = listener.accept()
        with connection, pytest.raises(StrangerError):
            registry.check_peer(connection)


def test_channel_passes_messages_with_descriptors(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    assert channel.send({"a": "\udcff"}, [0])
    data, fds, _, _ = socket.recv_fds(theirs, 100, 4)
    assert {"a": "\udcff"} == json.loads(data)
    socket.send_fds(theirs, [data], fds)
    message, got = channel.receive(1)
    assert {"a": "\udcff"} == message
    assert [False] == [os.get_inheritable(fd) for fd in got]
    for fd in (*fds, *got):
        os.close(fd)


@pytest.mark.parametrize("data", [b"x", b"[]", b"[" * 100_000, b'"', b"\xff", b"{}" + b" " * MOST])
def test_channel_refuses_what_is_no_message_and_keeps_no_descriptor(
    pair: tuple[Channel, socket.socket], data: bytes
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(pair[1], [data], [0, 0, 0])
    with pytest.raises(ValueError, match=r"."):
        pair[0].receive(1)
    assert before == len(os.listdir("/proc/self/fd"))


def test_channel_refuses_too_long_a_message(pair: tuple[Channel, socket.socket]) -> None:
    assert pair[0].send({"a": "x" * (MOST - 20)})
    with pytest.raises(OptionError, match="128 KiB"):
        pair[0].send({"a": "x" * MOST})


def test_channel_tells_the_end_and_a_silence(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    with pytest.raises(TimeoutError):
        channel.receive(0)
    theirs.close()
    with pytest.raises(EOFError):
        channel.receive(1)
    assert not channel.send({})
