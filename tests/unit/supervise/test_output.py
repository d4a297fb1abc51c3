import errno
import logging
import os
import stat

import pytest
from hypothesis import given, strategies as st

from sandbox.supervise.output import Lines, RotatingFile, to_logging


@given(st.lists(st.binary(max_size=40)), st.integers(1, 16))
def test_lines_any_split_loses_and_tears_nothing(pieces, limit):
    lines = Lines(limit)
    got = [line for piece in pieces for line in lines.feed(piece)]
    rest = lines.rest()
    assert b"".join(pieces) == b"".join(got) + rest
    assert len(rest) < limit
    for line in got:
        assert line.endswith(b"\n") or len(line) == limit
        assert line.count(b"\n") <= 1


def test_lines_without_an_end_are_held():
    lines = Lines()
    assert [] == lines.feed(b"one")
    assert [b"one two\n"] == lines.feed(b" two\nthree")
    assert b"three" == lines.rest()
    assert b"" == lines.rest()


def test_rotating_file_keeps_so_many(tmp_path):
    file = RotatingFile(tmp_path / "log", size=4, keep=2)
    for i in range(5):
        file("a", b"%d\n\n" % i)
    file.close()
    found = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert {"log": b"4\n\n", "log.1": b"3\n\n", "log.2": b"2\n\n"} == found


def test_rotating_file_keep_0_begins_anew(tmp_path):
    file = RotatingFile(tmp_path / "log", size=4, keep=0)
    file("a", b"one\n")
    file("a", b"two\n")
    file.close()
    assert {"log": b"two\n"} == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}


def test_rotating_file_longer_line_than_the_file_is_not_cut(tmp_path):
    file = RotatingFile(tmp_path / "log", size=4, keep=1)
    file("a", b"longer than four\n")
    file.close()
    assert b"longer than four\n" == (tmp_path / "log").read_bytes()


def test_rotating_file_appends_and_counts_what_is_there(tmp_path):
    (tmp_path / "log").write_bytes(b"old\n")
    file = RotatingFile(tmp_path / "log", size=6, keep=1)
    file("a", b"new\n")
    file.close()
    assert (b"new\n", b"old\n") == ((tmp_path / "log").read_bytes(), (tmp_path / "log.1").read_bytes())


@pytest.mark.parametrize(
    ("options", "error"), [({"size": 0}, ValueError), ({"keep": -1}, ValueError), ({"size": "1M"}, TypeError)]
)
def test_rotating_file_wrong_argument_raises(tmp_path, options, error):
    with pytest.raises(error, match=next(iter(options))):
        RotatingFile(tmp_path / "log", **options)
    assert [] == os.listdir(tmp_path)


def test_to_logging_logs_text_with_the_service(caplog):
    with caplog.at_level(logging.INFO):
        to_logging()("web", b"caf\xc3\xa9 \xff\n")
    assert [("sandbox.supervise.web", logging.INFO, "café \\xff")] == caplog.record_tuples
    assert "web" == caplog.records[0].service


def test_rotating_file_that_is_a_device_is_never_moved(tmp_path):
    os.symlink("/dev/null", tmp_path / "log")
    file = RotatingFile(tmp_path / "log", size=4, keep=1)
    for _ in range(3):
        file("a", b"12345\n")
    file.close()
    assert {"log"} == set(os.listdir(tmp_path))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_rotating_file_that_is_a_fifo_without_a_reader_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError) as caught:
        RotatingFile(tmp_path / "log")
    assert errno.ENXIO == caught.value.errno
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    file = RotatingFile(tmp_path / "log", size=4)
    file("a", b"first\n")
    file("a", b"second\n")
    file.close()
    assert b"first\nsecond\n" == os.read(reader, 100)
    os.close(reader)


def test_rotating_file_follows_a_link_once_and_none_that_appears_between_two_files(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.symlink("folder/real", tmp_path / "log")
    target = tmp_path / "somebody else's"
    target.write_text("")
    file = RotatingFile(tmp_path / "log", size=4, keep=1)
    file("a", b"12345\n")
    assert "12345\n" == (folder / "real").read_text()
    replace = os.replace

    def planted(old, new):
        replace(old, new)
        os.symlink(target, old)

    monkeypatch.setattr(os, "replace", planted)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            file("a", b"67890\n")
        assert errno.ELOOP == caught.value.errno
    assert "" == target.read_text()
    os.unlink(folder / "real")
    monkeypatch.undo()
    file("a", b"67890\n")
    file.close()
    assert {"real": "67890\n", "real.1": "12345\n"} == {one.name: one.read_text() for one in folder.iterdir()}
