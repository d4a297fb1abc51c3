"""The thin calls of landlock(7)."""

import os

import harness
import pytest

from sandbox.primitives.landlock import (
    LandlockAccessFs as Fs,
    LandlockAccessNet as Net,
    LandlockRestrictSelfFlags,
    LandlockRuleType,
    LandlockScope,
    landlock_abi,
    landlock_add_rule,
    landlock_create_ruleset,
    landlock_errata,
    landlock_restrict_self,
)
from sandbox.primitives.process import PR_SET_NO_NEW_PRIVS, prctl

pytestmark = pytest.mark.needs_landlock(1)
NEWEST = [(1, Fs.MAKE_SYM), (2, Fs.REFER), (3, Fs.TRUNCATE), (5, Fs.IOCTL_DEV), (9, Fs.RESOLVE_UNIX)]


@pytest.fixture
def ruleset():
    fd = landlock_create_ruleset(Fs.READ_FILE | Fs.READ_DIR)
    yield fd
    os.close(fd)


def test_abi_is_what_another_reader_sees():
    assert harness.landlock_abi() == landlock_abi()


@pytest.mark.needs_kernel(6, 15)
def test_errata_of_a_kernel_that_tells_are_not_all_open():
    assert landlock_errata() > 0


@pytest.mark.parametrize(("abi", "right"), NEWEST)
def test_right_is_known_from_its_abi_on(abi, right):
    if landlock_abi() < abi:
        with pytest.raises(OSError, match="Invalid argument"):
            landlock_create_ruleset(right)
    else:
        os.close(landlock_create_ruleset(right))


@pytest.mark.needs_landlock(6)
def test_fields_that_the_kernel_does_not_have_are_too_big():
    if landlock_abi() < 10:
        with pytest.raises(OSError, match="too long"):
            landlock_create_ruleset(Fs.READ_FILE, quiet_access_fs=Fs.READ_FILE)
    os.close(landlock_create_ruleset(0, Net.BIND_TCP, LandlockScope.SIGNAL))


def test_nothing_handled_is_enomsg():
    with pytest.raises(OSError, match="No message"):
        landlock_create_ruleset()


def test_ruleset_is_close_on_exec(ruleset):
    assert not os.get_inheritable(ruleset)


def test_rule_that_is_not_handled_is_invalid(ruleset):
    fd = os.open("/", os.O_PATH)
    with pytest.raises(OSError, match="Invalid argument"):
        landlock_add_rule(ruleset, LandlockRuleType.PATH_BENEATH, Fs.EXECUTE, fd)
    landlock_add_rule(ruleset, LandlockRuleType.PATH_BENEATH, Fs.READ_FILE, fd)
    os.close(fd)


def test_directory_right_for_a_file_is_invalid(ruleset):
    fd = os.open("/etc/passwd", os.O_PATH)
    with pytest.raises(OSError, match="Invalid argument"):
        landlock_add_rule(ruleset, LandlockRuleType.PATH_BENEATH, Fs.READ_DIR, fd)
    os.close(fd)


@pytest.mark.needs_landlock(4)
def test_port_out_of_range_is_invalid():
    ruleset = landlock_create_ruleset(0, Net.CONNECT_TCP)
    landlock_add_rule(ruleset, LandlockRuleType.NET_PORT, Net.CONNECT_TCP, 65535)
    with pytest.raises(OSError, match="Invalid argument"):
        landlock_add_rule(ruleset, LandlockRuleType.NET_PORT, Net.CONNECT_TCP, 65536)
    os.close(ruleset)


def test_rule_type_that_is_none_is_a_value_error(ruleset):
    with pytest.raises(ValueError, match="rule_type"):
        landlock_add_rule(ruleset, 3, 1, 0)


@pytest.mark.needs_user
def test_restricting_without_no_new_privs_is_refused(ruleset):
    with pytest.raises(PermissionError):
        landlock_restrict_self(ruleset)


def test_flags_that_the_abi_does_not_have_are_invalid(ruleset):
    known = [flag for flag, since in zip(LandlockRestrictSelfFlags, (7, 7, 7, 8, 11), strict=True)
             if landlock_abi() >= since]  # fmt: skip

    def restricted():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        for flag in LandlockRestrictSelfFlags:
            if flag in known:
                landlock_restrict_self(ruleset, flag)
            else:
                with pytest.raises(OSError, match="Invalid argument"):
                    landlock_restrict_self(ruleset, flag)

    harness.in_child(restricted)


def test_restriction_holds_and_seventeenth_is_too_much(ruleset):
    def restricted():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        for _ in range(16):
            landlock_restrict_self(ruleset)
        with pytest.raises(PermissionError):
            open("/etc/passwd")
        with pytest.raises(OSError, match="too long"):
            landlock_restrict_self(ruleset)

    harness.in_child(restricted)
