"""Every wrong value is refused by the method that got it; a sandbox is a value."""

import os
import pickle

import pytest

from sandbox import Network, Sandbox
from sandbox.arguments import parse_size

LONG = "/" + "x" * 256
DEEP = "/" + "x/" * 2100

TARGET_METHODS = {
    "bind": lambda target: Sandbox().bind("/usr", target),
    "bind_readonly": lambda target: Sandbox().bind_readonly("/usr", target),
    "tmpfs": lambda target: Sandbox().tmpfs(target),
    "proc": lambda target: Sandbox().proc(target),
    "dev": lambda target: Sandbox().dev(target),
    "file": lambda target: Sandbox().file(target, b""),
    "dir": lambda target: Sandbox().dir(target),
    "file_fd": lambda target: Sandbox().file_fd(target, 0),
    "symlink": lambda target: Sandbox().symlink("/x", target),
    "mask": lambda target: Sandbox().mask(target),
    "remount_readonly": lambda target: Sandbox().remount_readonly(target),
    "cwd": lambda target: Sandbox().cwd(target),
}


@pytest.mark.parametrize("method", TARGET_METHODS)
@pytest.mark.parametrize("target", ["", "relative", "./x", "/a/../b", "/..", "/a\0b", b"rel", LONG, DEEP, "~", "~/x"])
def test_target_that_is_no_absolute_path_is_refused(method, target):
    with pytest.raises(ValueError, match=r"target|path"):
        TARGET_METHODS[method](target)


@pytest.mark.parametrize("method", TARGET_METHODS)
@pytest.mark.parametrize("target", [3, 3.5, ["/x"], object()])
def test_target_of_another_type_is_refused(method, target):
    with pytest.raises(TypeError, match=r"target|path"):
        TARGET_METHODS[method](target)


@pytest.mark.parametrize("method", sorted(set(TARGET_METHODS) - {"cwd"}))
def test_root_itself_is_no_target(method):
    with pytest.raises(ValueError, match="rootfs"):
        TARGET_METHODS[method]("//")


@pytest.mark.parametrize("method", sorted(set(TARGET_METHODS) - {"file_fd"}))
def test_target_spellings_are_one(method):
    expected = TARGET_METHODS[method]("/a/b")
    for spelling in ("//a///b/", "/a/./b", b"/a/b", os.fspath("/a/b")):
        assert expected == TARGET_METHODS[method](spelling)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.bind(""), ValueError, "source"),
        (lambda s: s.bind("/a\0b"), ValueError, "source"),
        (lambda s: s.bind(None), TypeError, "source"),
        (lambda s: s.rootfs(""), ValueError, "path"),
        (lambda s: s.rootfs("/a\0"), ValueError, "path"),
        (lambda s: s.bind("/usr").rootfs("/x"), ValueError, r"before \.bind"),
        (lambda s: s.dir("/a").rootfs("/x"), ValueError, r"before \.dir"),
        (lambda s: s.rootfs("/x").rootfs("/y"), ValueError, "before"),
        (lambda s: s.tmpfs("/a", size=0), ValueError, "size.*0"),
        (lambda s: s.tmpfs("/a", size=-1), ValueError, "size.*-1"),
        (lambda s: s.tmpfs("/a", size=1 << 63), ValueError, "size"),
        (lambda s: s.tmpfs("/a", size="64X"), ValueError, "size.*64X"),
        (lambda s: s.tmpfs("/a", size="-1M"), ValueError, "size"),
        (lambda s: s.tmpfs("/a", size=""), ValueError, "size"),
        (lambda s: s.tmpfs("/a", size=1.5), TypeError, "size"),
        (lambda s: s.tmpfs("/a", size=True), TypeError, "size"),
        (lambda s: s.tmpfs("/a", mode=0o2755), ValueError, "mode"),
        (lambda s: s.tmpfs("/a", mode=-1), ValueError, "mode"),
        (lambda s: s.tmpfs("/a", mode="755"), TypeError, "mode"),
        (lambda s: s.tmpfs("/a", mode=True), TypeError, "mode"),
        (lambda s: s.tmpfs("/a", inodes=0), ValueError, "inodes"),
        (lambda s: s.tmpfs("/a", inodes=True), ValueError, "inodes"),
        (lambda s: s.tmpfs("/a", inodes="5"), ValueError, "inodes"),
        (lambda s: s.proc(subset="all"), ValueError, "subset.*all"),
        (lambda s: s.dev(nodes="null"), TypeError, "nodes"),
        (lambda s: s.dev(nodes=["../sda"]), ValueError, "nodes"),
        (lambda s: s.dev(nodes=["/dev/null"]), ValueError, "nodes"),
        (lambda s: s.dev(nodes=["a/../../b"]), ValueError, "nodes"),
        (lambda s: s.dev(nodes=["nul\n"]), ValueError, "nodes"),
        (lambda s: s.dev(nodes=[""]), ValueError, "nodes"),
        (lambda s: s.dev(nodes=[1]), TypeError, "nodes"),
        (lambda s: s.dev(shm="lots"), ValueError, "shm"),
        (lambda s: s.dev(shm="1M", nodes=["null"]), ValueError, "shm"),
        (lambda s: s.file("/a", 5), TypeError, "content"),
        (lambda s: s.file("/a", bytes((16 << 20) + 1)), ValueError, "16 MiB"),
        (lambda s: s.file("/a", b"", mode=0o4755), ValueError, "mode"),
        (lambda s: s.file_fd("/a", "x"), TypeError, "source"),
        (lambda s: s.file_fd("/a", -1), ValueError, "source.*-1"),
        (lambda s: s.file_fd("/a", 0, mode=0o4755), ValueError, "mode"),
        (lambda s: pickle.dumps(s.file_fd("/a", 0)), TypeError, r"file_fd\(.*cannot be pickled"),
        (lambda s: s.dir("/a", mode=0o10000), ValueError, "mode"),
        (lambda s: s.symlink("", "/a"), ValueError, "points_to"),
        (lambda s: s.symlink("a\0", "/a"), ValueError, "points_to"),
        (lambda s: s.user(-1), ValueError, "uid.*-1"),
        (lambda s: s.user(2**32 - 1), ValueError, "uid"),
        (lambda s: s.user(True), TypeError, "uid"),
        (lambda s: s.user("0"), TypeError, "uid"),
        (lambda s: s.user(1, -2), ValueError, "gid.*-2"),
        (lambda s: s.user(1, 2**32), ValueError, "gid"),
        (lambda s: s.user(groups="keep"), ValueError, "groups.*keep"),
        (lambda s: s.hostname(""), ValueError, "name"),
        (lambda s: s.hostname("x" * 65), ValueError, "64"),
        (lambda s: s.hostname("ä" * 33), ValueError, "64"),
        (lambda s: s.hostname("a\nb"), ValueError, "newline"),
        (lambda s: s.hostname("a\0b"), ValueError, "NUL"),
        (lambda s: s.hostname(b"a"), TypeError, "name"),
        (lambda s: s.domainname(""), ValueError, "name"),
        (lambda s: s.share("mnt"), ValueError, "mnt"),
        (lambda s: s.share("network"), ValueError, "network"),
        (lambda s: s.unshare("everything"), ValueError, "everything"),
        (lambda s: s.network("bridge"), ValueError, "bridge"),
        (lambda s: s.network(None), ValueError, "None"),
        (lambda s: s.env({"A": 1}), TypeError, "A"),
        (lambda s: s.env({1: "A"}), TypeError, "1"),
        (lambda s: s.env({"": "x"}), ValueError, "name"),
        (lambda s: s.env({"A=": "x"}), ValueError, "A="),
        (lambda s: s.env({"A=": None}), ValueError, "A="),
        (lambda s: s.env(A="x\0"), ValueError, "NUL"),
        (lambda s: s.inherit_env(5), TypeError, "names"),
        (lambda s: s.umask(-1), ValueError, "mask"),
        (lambda s: s.umask(0o1000), ValueError, "mask"),
        (lambda s: s.umask("022"), TypeError, "mask"),
        (lambda s: s.umask(False), TypeError, "mask"),
        (lambda s: s.time_offset(monotonic="1"), TypeError, "monotonic"),
        (lambda s: s.time_offset(boottime=float("nan")), ValueError, "boottime"),
        (lambda s: s.time_offset(boottime=1e10), ValueError, "boottime.*1"),
        (lambda s: s.plan("ls"), TypeError, "sequence"),
        (lambda s: s.plan([]), ValueError, "program"),
    ],
)
def test_wrong_value_is_refused_by_its_method(call, error, words):
    with pytest.raises(error, match=words):
        call(Sandbox())


CHAIN = [
    lambda s: s.bind("/srv", "/data"),
    lambda s: s.bind_readonly("/opt", optional=True, exec=False, dev=True),
    lambda s: s.tmpfs("/scratch", size="256M", mode=0o1777, inodes=10, exec=False),
    lambda s: s.proc("/proc2", hidepid=True, subset="pid"),
    lambda s: s.dev("/dev2", shm="1M", nodes=["null", "shm"]),
    lambda s: s.file("/etc/app.conf", b"debug\xff", mode=0o444),
    lambda s: s.dir("/x/y", mode=0o700),
    lambda s: s.symlink("/data", "/current"),
    lambda s: s.mask("/usr/share"),
    lambda s: s.remount_readonly("/scratch"),
    lambda s: s.user(5, 6, groups="strict", host_root=True),
    lambda s: s.hostname("h"),
    lambda s: s.domainname("d"),
    lambda s: s.share("ipc", "uts"),
    lambda s: s.unshare("time"),
    lambda s: s.network("none"),
    lambda s: s.network(Network.host),
    lambda s: s.env({"A": "1", "LANG": None}, B="2"),
    lambda s: s.cwd("/"),
    lambda s: s.umask(0o77),
    lambda s: s.limit(memory="1G", best_effort=True),
    lambda s: s.time_offset(monotonic=1.5),
    lambda s: s.init(False),
    lambda s: s.python(),
    lambda s: s.new_session(False),
    lambda s: s.rootfs("/srv", readonly=False),
]


@pytest.mark.parametrize("number", range(len(CHAIN)))
def test_every_method_returns_a_new_value_that_compares_hashes_and_pickles(number):
    base = Sandbox()
    method = CHAIN[number]
    changed = method(base)
    assert changed is not base
    assert Sandbox() == base
    assert changed != base
    assert method(Sandbox()) == changed
    assert hash(method(Sandbox())) == hash(changed)
    again = pickle.loads(pickle.dumps(changed))
    assert changed == again
    assert hash(changed) == hash(again)
    with pytest.raises(AttributeError):
        changed.new_attribute = 1


def test_whole_chain_is_a_value_and_keeps_the_order():
    box = Sandbox()
    for method in CHAIN[:-1]:
        box = method(box)
    assert box == pickle.loads(pickle.dumps(box))
    origins = [entry.origin for entry in box._spec.entries if entry.origin.startswith(".")]
    methods = "bind bind_readonly tmpfs proc dev file dir symlink mask remount_readonly python"
    assert methods.split() == [origin[1:].partition("(")[0] for origin in origins]
    assert 'bind("/srv", "/data")' in repr(box)


def test_order_of_calls_matters_where_it_should():
    assert Sandbox().tmpfs("/a").file("/a/b", "") != Sandbox().file("/a/b", "").tmpfs("/a")


def test_last_word_wins():
    assert Sandbox().hostname("b") == Sandbox().hostname("a").hostname("b")
    assert Sandbox().network("host") == Sandbox().share("net")
    assert Sandbox() == Sandbox().share("net").unshare("net")
    assert Sandbox() == Sandbox().network("none").network("loopback")
    assert Sandbox().user(5) == Sandbox().user(5, 5)


def test_network_is_a_value():
    assert Network.host == pickle.loads(pickle.dumps(Network.host))
    assert len({Network.host, Network.none, Network.loopback, Network("host")}) == 3
    assert "Network.none" == repr(Network.none)


def test_env_merges_and_unsets(monkeypatch):
    monkeypatch.setenv("OF_THE_CALLER", "1")
    box = Sandbox().env(A="1", B="2").env({"B": None}, C="3").inherit_env("OF_THE_CALLER", "NOT_THERE_AT_ALL")
    env = dict(box._spec.env)
    assert ("1", "3", "1") == (env["A"], env["C"], env["OF_THE_CALLER"])
    assert not {"B", "NOT_THERE_AT_ALL"} & set(env)
    assert dict(os.environ).items() <= dict(Sandbox().inherit_env()._spec.env).items()


def test_source_is_made_absolute_at_the_call(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Sandbox().bind(str(tmp_path / "x"), "/x") == Sandbox().bind("x", "/x")


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, 1), ("1", 1), ("1K", 1024), ("2k", 2048), ("64M", 64 << 20), ("1G", 1 << 30), ("1T", 1 << 40),
     (" 3 MiB ", 3 << 20), ("3MB", 3 << 20), (2**63 - 1, 2**63 - 1)],
)  # fmt: skip
def test_parse_size_reads_units_of_1024(size, expected):
    assert expected == parse_size(size, "size")


def test_rootfs_comes_first_and_keeps_proc_dev_and_tmp():
    box = Sandbox().rootfs("/srv/x").bind("/usr")
    targets = [getattr(entry, "target", None) for entry in box._spec.entries]
    assert ["/proc", "/dev", "/tmp", "/usr"] == targets[1:]
    assert 'rootfs("/srv/x")' in repr(box)


def test_plan_has_no_effect_and_names_the_callers():
    text = str(Sandbox().bind("/no/such/source").file("/etc/x", "y").plan(["true"]))
    assert 'from: .bind("/no/such/source")' in text
    assert 'from: .file("/etc/x")' in text
    assert "from: Sandbox()" in text
