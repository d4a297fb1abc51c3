"""Landlock as a layer of Sandbox: the paths inside, several layers, and what the kernel lacks."""

import errno
import os

import harness
import payloads
import pytest
from payloads import PYTHON, script, tell

from sandbox import Landlock, Sandbox, SetupError, UnsupportedError, confine

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_landlock(3)]

# What Python and its libraries need to start.
SYSTEM = ["/usr", "/lib", "/lib64", "/etc", "/proc"]
FILES = """
say([tried(open, "/data/read/file"), tried(open, "/data/write/file", "w"), tried(open, "/data/file"),
     tried(open, "/data/read/file", "w"), tried(os.rename, "/data/read/file", "/data/read/moved"),
     tried(os.rename, "/data/read/moved", "/data/read/file")])
"""


@pytest.fixture
def box(tmp_path):
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
        payloads.ours(tmp_path / name)
        (tmp_path / name / "file").touch()
        os.chmod(tmp_path / name / "file", 0o666)
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o666)
    payloads.ours(tmp_path)
    # Inside it has another name than outside.
    return Sandbox().bind(tmp_path, "/data")


def test_rules_mean_the_paths_inside(box):
    assert ["ok"] * 6 == tell(box, FILES)
    limited = box.landlock(read=[*SYSTEM, "/data/read", "/data/write"], write=["/data/write", "/tmp"])
    assert ["ok", "ok", "EACCES", "EACCES", "EACCES", "ENOENT"] == tell(limited, FILES)


def test_layers_add_up_and_are_told(box):
    first = box.landlock(read=[*SYSTEM, "/data"], write=["/data"])
    second = first.landlock(Landlock(read=[*SYSTEM, "/data/read"], write=[]))
    result = second.run(script(FILES), capture_output=True, text=True)
    assert '["ok", "EACCES", "EACCES", "EACCES", "EACCES", "ENOENT"]\n' == result.stdout
    assert 2 == result.enforced.landlock_layers
    assert Landlock.abi() == result.enforced.landlock_abi
    assert any("stat" in gap for gap in result.enforced.gaps)
    assert ["ok"] * 6 == tell(second.landlock(None), FILES)


def test_sixteen_layers_are_in_force_and_one_more_is_refused():
    box = Sandbox()
    for _ in range(15):
        box = box.landlock(read=["/"])
    box = box.landlock(read=SYSTEM)
    assert ["ok", "EACCES"] == tell(box, 'say([tried(os.listdir, "/etc"), tried(os.listdir, "/tmp")])')
    assert 16 == box.run(["true"]).enforced.landlock_layers
    with pytest.raises(ValueError, match="16 layers"):
        box.landlock(read=["/"])


@pytest.mark.needs_landlock(6)
def test_callers_own_layers_count_and_the_seventeenth_is_a_set_up_error():
    def confined():
        confine(landlock=Landlock(scope=["signal"]))
        box = Sandbox()
        for _ in range(16):
            box = box.landlock(read=["/"])
        with pytest.raises(SetupError) as caught:
            box.run(["true"])
        assert errno.E2BIG == caught.value.errno
        assert "16 layers" in caught.value.hint

    harness.in_child(confined)


def test_missing_path_is_an_error_that_names_it_unless_best_effort():
    with pytest.raises(FileNotFoundError) as caught:
        Sandbox().landlock(read=[*SYSTEM, "/no/such"]).run(["true"])
    assert isinstance(caught.value, SetupError)
    assert "/no/such" in caught.value.call
    assert ".landlock(" in caught.value.origin
    assert "best_effort=True" in caught.value.hint
    result = Sandbox().landlock(read=[*SYSTEM, "/no/such"], best_effort=True).run([PYTHON, "-c", ""])
    assert 0 == result.returncode
    assert 1 == result.enforced.landlock_layers


def test_path_of_the_host_is_not_one_inside(tmp_path):
    with pytest.raises(FileNotFoundError):
        Sandbox().landlock(read=[tmp_path]).run(["true"])


def test_program_that_may_not_be_executed_is_a_set_up_error():
    with pytest.raises(PermissionError) as caught:
        Sandbox().landlock(execute=["/etc"], read=["/"]).run(["true"])
    assert caught.value.step == caught.value.steps


@pytest.mark.parametrize(
    ("abi", "rights", "needed"),
    [
        (0, {"read": ["/"]}, "Landlock"),
        (2, {"write": ["/tmp"]}, "ABI 3"),
        (3, {"connect_tcp": [80]}, "ABI 4"),
        (5, {"scope": ["signal"]}, "ABI 6"),
        (7, {"connect_udp": [53]}, "ABI 10"),
    ],
)
def test_kernel_that_lacks_it_is_an_error_before_anything_runs(abi, rights, needed, monkeypatch, tmp_path):
    payloads.ours(tmp_path)
    monkeypatch.setattr(Landlock, "abi", staticmethod(lambda: abi))
    box = Sandbox().bind(tmp_path, "/w")
    with pytest.raises(UnsupportedError) as caught:
        box.landlock(**rights).run(["touch", "/w/ran"])
    assert needed in str(caught.value)
    assert not (tmp_path / "ran").exists()
    result = box.landlock(**rights, best_effort=True).run(["touch", "/w/ran"])
    # An older kernel's rules, or none at all; and the result says what is missing.
    assert result.enforced.missing
    assert (result.enforced.landlock_abi or 0) <= abi


@pytest.mark.needs_landlock(4)
def test_ports_are_those_of_the_rules():
    body = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
def connect(port):
    socket.create_connection(("127.0.0.1", port), 5).close()
say([tried(connect, 8080), tried(connect, 8081), tried(socket.create_server, ("127.0.0.1", 8082))])
"""
    assert ["ok", "ECONNREFUSED", "ok"] == tell(Sandbox(), body)
    assert ["ok", "EACCES", "EACCES"] == tell(Sandbox().landlock(bind_tcp=[8080], connect_tcp=[8080]), body)


@pytest.mark.parametrize("box", [Sandbox().seccomp(None), Sandbox().observe(), Sandbox().capabilities(["SYS_ADMIN"])])
def test_landlock_stands_beside_every_other_layer(box):
    box = box.landlock(read=SYSTEM)
    assert ["ok", "EACCES"] == tell(box, 'say([tried(os.listdir, "/etc"), tried(os.listdir, "/tmp")])')
