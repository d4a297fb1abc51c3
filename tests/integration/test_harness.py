"""The rules of the suite hold: both privileges are real, and a leak is seen."""

import os

import harness
import pytest


def test_privilege_is_what_the_test_id_says(privilege):
    expected = {"root": 0}.get(privilege, os.geteuid() or -1)
    assert expected == os.geteuid()


@pytest.mark.needs_user
def test_unprivileged_half_has_no_capability_and_no_group_of_root(privilege):
    with open("/proc/self/status") as stream:
        status = dict(line.split(":\t", 1) for line in stream.read().splitlines() if ":\t" in line)
    assert "0000000000000000" == status["CapEff"]
    assert "0" not in status["Groups"].split()


def test_footprint_sees_a_descriptor_and_a_child():
    before = harness.footprint()
    fd = os.open("/", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert fd in harness.footprint().descriptors
    assert pid in harness.footprint().children
    os.close(fd)
    os.waitpid(pid, 0)
    assert before == harness.footprint(settle=before)
