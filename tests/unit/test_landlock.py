import pickle
import struct

import pytest

from sandbox.errors import UnsupportedError
from sandbox.landlock import FILE_RIGHTS, NEWEST_ABI, Landlock, PathRule, PortRule
from sandbox.primitives.landlock import LandlockAccessFs as Fs, LandlockAccessNet as Net, LandlockScope

FS_1 = (1 << 13) - 1


def rights(ruleset, path):
    return next(rule.rights for rule in ruleset.paths if rule.path == path)


def test_landlock_is_a_value():
    one = Landlock(read=["/usr", "/usr/"], connect_tcp=[443], scope=["signal"]).path("/etc", Fs.READ_DIR)
    two = Landlock(read=("/usr",), connect_tcp={443}, scope=iter(["signal"])).path(b"/etc", Fs.READ_DIR)
    assert one == two
    assert hash(one) == hash(two)
    assert two == pickle.loads(pickle.dumps(one))
    assert one != Landlock(read=["/usr"], connect_tcp=[443], scope=["signal"])


def test_landlock_is_frozen():
    with pytest.raises(AttributeError):
        Landlock(read=["/usr"]).read = ()


def test_path_leaves_the_original_alone():
    base = Landlock(read=["/usr"])
    base.path("/etc", Fs.READ_FILE)
    assert () == base.rights


@pytest.mark.parametrize("kind", ["read", "write", "execute", "bind_tcp", "connect_tcp", "bind_udp", "scope"])
def test_kind_given_a_string_is_a_type_error_that_names_it(kind):
    with pytest.raises(TypeError, match=kind):
        Landlock(**{kind: "signal"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"read": ["usr"]}, "read must be absolute, got 'usr'"),
        ({"read": ["/a\0b"]}, "NUL"),
        ({"write": [""]}, "absolute"),
        ({"connect_tcp": [65536]}, "connect_tcp must be between 0 and 65535, got 65536"),
        ({"bind_tcp": [-1]}, "bind_tcp"),
        ({"scope": ["signals"]}, "'signal', 'abstract_unix_socket', got 'signals'"),
    ],
)
def test_argument_out_of_range_is_a_value_error(options, words):
    with pytest.raises(ValueError, match=words):
        Landlock(**options)


@pytest.mark.parametrize("options", [{"connect_tcp": [True]}, {"connect_tcp": ["443"]}, {"read": [3]}])
def test_argument_of_wrong_type_is_a_type_error(options):
    with pytest.raises(TypeError):
        Landlock(**options)


@pytest.mark.parametrize("right", [0, 1 << 17, -1])
def test_path_refuses_what_is_no_right(right):
    with pytest.raises(ValueError, match="rights"):
        Landlock().path("/usr", right)


def test_ruleset_of_nothing_is_a_value_error():
    with pytest.raises(ValueError, match="restricts nothing"):
        Landlock().ruleset(7)


def test_kind_left_out_is_not_handled():
    ruleset = Landlock(connect_tcp=[]).ruleset(7)
    assert (0, Net.CONNECT_TCP, 0) == (ruleset.handled_fs, ruleset.handled_net, ruleset.scoped)
    assert () == ruleset.ports


def test_empty_kind_is_handled_without_a_rule():
    ruleset = Landlock(execute=[]).ruleset(7)
    assert Fs.EXECUTE | Fs.REFER == ruleset.handled_fs
    assert (PathRule("/", Fs.REFER, 0),) == ruleset.paths


def test_moving_is_given_back_where_writing_is_not_restricted():
    assert Fs.REFER == rights(Landlock(read=["/usr"]).ruleset(2), "/")


def test_moving_is_not_given_back_where_writing_is_restricted():
    assert ("/tmp",) == tuple(rule.path for rule in Landlock(write=["/tmp"]).ruleset(7).paths)


def test_moving_is_not_given_back_where_an_exact_right_names_it():
    landlock = Landlock(read=["/usr"]).path("/srv", Fs.REFER)
    assert ("/usr", "/srv") == tuple(rule.path for rule in landlock.ruleset(7).paths)


@pytest.mark.parametrize(
    ("abi", "newest"),
    [(3, Fs.TRUNCATE), (4, Fs.TRUNCATE), (5, Fs.IOCTL_DEV), (7, Fs.IOCTL_DEV), (8, Fs.IOCTL_DEV),
     (9, Fs.RESOLVE_UNIX), (11, Fs.RESOLVE_UNIX)],
)  # fmt: skip
def test_write_handles_all_that_the_abi_has(abi, newest):
    every = (int(newest) << 1) - 1
    assert every & ~(Fs.READ_FILE | Fs.READ_DIR | Fs.EXECUTE) == Landlock(write=["/tmp"]).ruleset(abi).handled_fs


def test_write_does_not_grant_device_nodes():
    ruleset = Landlock(write=["/tmp"]).ruleset(7)
    assert Fs.MAKE_CHAR | Fs.MAKE_BLOCK == ruleset.handled_fs & ~rights(ruleset, "/tmp")


@pytest.mark.parametrize("abi", [1, 2])
def test_write_before_truncate_could_be_refused_is_unsupported(abi):
    with pytest.raises(UnsupportedError) as caught:
        Landlock(write=["/tmp"]).ruleset(abi)
    assert "TRUNCATE" in caught.value.feature
    assert "Landlock ABI 3, Linux 6.2" == caught.value.needed
    assert f"Landlock ABI {abi}" == caught.value.found


@pytest.mark.parametrize(
    ("options", "since"),
    [
        ({"read": ["/"]}, 1),
        ({"execute": ["/"]}, 1),
        ({"write": ["/"]}, 3),
        ({"bind_tcp": [0]}, 4),
        ({"connect_tcp": []}, 4),
        ({"scope": ["signal"]}, 6),
        ({"scope": ["abstract_unix_socket"]}, 6),
        ({"bind_udp": [0]}, 10),
        ({"connect_udp": [53]}, 10),
    ],
)
def test_each_kind_is_had_from_its_abi_on_and_an_error_before(options, since):
    for abi in range(since):
        with pytest.raises(UnsupportedError):
            Landlock(**options).ruleset(abi)
        assert Landlock(**options, best_effort=True).ruleset(abi).missing
    for abi in range(since, NEWEST_ABI + 1):
        assert () == Landlock(**options).ruleset(abi).missing
        assert not Landlock(**options).ruleset(abi).empty


@pytest.mark.parametrize(("right", "since"), [(Fs.REFER, 2), (Fs.TRUNCATE, 3), (Fs.IOCTL_DEV, 5), (Fs.RESOLVE_UNIX, 9)])
def test_exact_right_is_had_from_its_abi_on_and_an_error_before(right, since):
    with pytest.raises(UnsupportedError, match=right.name):
        Landlock().path("/dev", right).ruleset(since - 1)
    assert right == rights(Landlock().path("/dev", right).ruleset(since), "/dev")


def test_no_landlock_is_unsupported_with_a_fix():
    with pytest.raises(UnsupportedError) as caught:
        Landlock(read=["/usr"]).ruleset(0)
    assert "lsm=" in caught.value.fix


def test_best_effort_without_landlock_has_nothing_to_call():
    ruleset = Landlock(read=["/usr"], scope=["signal"], best_effort=True).ruleset(0)
    assert ruleset.empty
    assert ("Landlock itself",) == ruleset.missing
    assert () == ruleset.enforced
    assert () == ruleset.paths


def test_best_effort_keeps_what_there_is_and_names_the_rest():
    landlock = Landlock(read=["/usr"], connect_tcp=[443], scope=["signal"], best_effort=True)
    ruleset = landlock.ruleset(4)
    assert Net.CONNECT_TCP == ruleset.handled_net
    assert 0 == ruleset.scoped
    assert ("scope 'signal'",) == ruleset.missing
    assert ("read: /usr", "connect_tcp: 443") == ruleset.enforced


def test_abi_newer_than_known_is_the_newest_known():
    assert Landlock(write=["/tmp"]).ruleset(NEWEST_ABI) == Landlock(write=["/tmp"]).ruleset(NEWEST_ABI + 5)


def test_rules_for_one_path_and_one_port_are_merged():
    ruleset = Landlock(read=["/srv"], execute=["/srv"], bind_tcp=[80], connect_tcp=[80]).ruleset(7)
    assert Fs.READ_FILE | Fs.READ_DIR | Fs.EXECUTE == rights(ruleset, "/srv")
    assert (PortRule(80, Net.BIND_TCP | Net.CONNECT_TCP),) == ruleset.ports


def test_every_rule_is_within_what_is_handled():
    landlock = Landlock(
        read=["/a"],
        write=["/b"],
        execute=["/c"],
        bind_tcp=[1],
        connect_tcp=[2],
        bind_udp=[3],
        best_effort=True,
    ).path("/d", sum(Fs))
    for abi in range(NEWEST_ABI + 1):
        ruleset = landlock.ruleset(abi)
        for rule in ruleset.paths:
            assert 0 == rule.rights & ~ruleset.handled_fs
            assert rule.rights & FILE_RIGHTS == rule.file_rights
        for port in ruleset.ports:
            assert 0 == port.rights & ~ruleset.handled_net


def test_attr_is_as_long_as_the_structure_of_the_abi():
    landlock = Landlock(read=["/"], connect_tcp=[1], scope=["signal"], best_effort=True)
    assert [8, 8, 8, 16, 16, 24, 24] == [len(landlock.ruleset(abi).attr()) for abi in range(1, 8)]
    assert (Fs.READ_FILE | Fs.READ_DIR | Fs.REFER, Net.CONNECT_TCP, LandlockScope.SIGNAL) == struct.unpack(
        "=QQQ", landlock.ruleset(7).attr()
    )


def test_rule_attrs_are_the_kernels_structures():
    rule = PathRule("/", Fs.READ_FILE | Fs.READ_DIR, Fs.READ_FILE)
    assert struct.pack("<Qi", 12, 9) == rule.attr(parent_fd=9)
    assert struct.pack("<Qi", 4, -1) == rule.attr(file=True)
    assert struct.pack("<QQ", 2, 443) == PortRule(443, Net.CONNECT_TCP).attr()


@pytest.mark.parametrize(
    ("options", "abi", "words", "said"),
    [
        ({"read": ["/"]}, 7, "stat, access", True),
        ({"read": ["/"]}, 7, "chmod", False),
        ({"write": ["/"]}, 7, "chmod, chown", True),
        ({"write": ["/"]}, 4, "ioctl", True),
        ({"write": ["/"]}, 5, "ioctl", False),
        ({"write": ["/"]}, 8, "UNIX socket by its path", True),
        ({"write": ["/"]}, 9, "UNIX socket by its path", False),
        ({"connect_tcp": []}, 7, "UDP is not restricted (needs ABI 10)", True),
        ({"connect_tcp": []}, 10, "UDP is not restricted", True),
        ({"connect_tcp": [], "connect_udp": []}, 10, "UDP is not", False),
        ({"scope": ["abstract_unix_socket"]}, 7, "that have a path", True),
        ({"read": ["/"]}, 1, "moving and linking", True),
        ({"read": ["/"]}, 2, "moving and linking", False),
    ],
)
def test_gaps_say_what_the_abi_does_not_cover(options, abi, words, said):
    assert said == any(words in gap for gap in Landlock(**options).ruleset(abi).gaps)


def test_gaps_name_an_unmended_erratum_only_where_it_is_known():
    landlock = Landlock(read=["/"])
    assert any("erratum 3" in gap for gap in landlock.ruleset(7, errata=3).gaps)
    assert not any("erratum" in gap for gap in landlock.ruleset(7, errata=7).gaps)
    assert any("erratum 4" in gap for gap in Landlock(write=["/"]).ruleset(7, errata=7).gaps)
    assert not any("erratum" in gap for gap in Landlock(write=["/"]).ruleset(7, errata=15).gaps)
    assert not any("erratum" in gap for gap in landlock.ruleset(7).gaps)


def test_log_needs_abi_7():
    landlock = Landlock(read=["/"]).log(same_exec=False, new_exec=True, subdomains=False)
    assert 7 == landlock.ruleset(7).restrict_flags
    with pytest.raises(UnsupportedError, match="log"):
        landlock.ruleset(6)


def test_log_as_the_kernel_does_needs_nothing():
    assert 0 == Landlock(read=["/"]).log().ruleset(1).restrict_flags
