"""What a filter refuses, seen from outside while the calls fail as they would have."""

import ctypes
import errno
import os

import pytest
import supervised
from supervised import number

from sandbox.denials import asking, refuse
from sandbox.filters import Allow, Errno, Filter, arg
from sandbox.notify import Notifier

libc = ctypes.CDLL(None, use_errno=True)
FILTER = (
    Filter(Allow)
    .deny("mkdir", "mkdirat", action=Errno("EROFS"))
    .deny("socket", arg(0) == "AF_ALG", action=Errno("EAFNOSUPPORT"))
)


def attempt(name, *args):
    result = libc.syscall(number(name), *args)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"


def attempts(tmp_path):
    return [
        attempt("mkdir", os.fsencode(tmp_path / "made"), 0o700),
        attempt("mkdir", None, 0o700),
        attempt("socket", 38, 5, 0),
        attempt("getppid"),
    ]


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_refusals_are_seen_and_stay_refusals(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "program", lambda *_: asking(FILTER.to_bytes()))
    with supervised.supervised(lambda: attempts(tmp_path)) as target, Notifier(target.listener) as notifier:
        denied = [refuse(one, FILTER) for one in notifier]
        assert ["EROFS", "EROFS", "EAFNOSUPPORT", "ok"] == target.result()
    assert [
        ("mkdir", str(tmp_path / "made"), errno.EROFS),
        ("mkdir", None, errno.EROFS),
        ("socket", None, errno.EAFNOSUPPORT),
    ] == [(one.call, one.path, one.errno) for one in denied]
    assert [target.pid] * 3 == [one.pid for one in denied]
    assert '.allow("mkdir")' == denied[0].suggestion
    assert "mkdir" in denied[0].rule
    assert not (tmp_path / "made").exists()


@pytest.mark.needs_kernel(6, 11)  # before, a target counts until it was waited for
def test_the_same_filter_unwatched_answers_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "program", lambda *_: FILTER.to_bytes())
    with supervised.supervised(lambda: attempts(tmp_path)) as target, Notifier(target.listener) as notifier:
        assert ["EROFS", "EROFS", "EAFNOSUPPORT", "ok"] == target.result()
        assert [] == list(notifier)
