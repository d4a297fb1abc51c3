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


@pytest.mark.needs_root
def test_user_reaches_what_a_closed_directory_holds_and_nothing_beside_it(tmp_path):
    home = tmp_path / "home"
    for name in ("wanted/deep", "other"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_text(name)
    (home / "wanted" / "inner").symlink_to("deep")
    os.chmod(tmp_path, 0o755)
    os.chmod(home, 0o700)
    wanted = str(home / "wanted")

    def refused():
        harness.drop_privileges()
        with pytest.raises(PermissionError):
            os.listdir(wanted)

    def reached():
        os.chdir(wanted)
        harness.make_reachable([wanted, f"{wanted}/inner", "/usr"])
        harness.drop_privileges()
        assert wanted == os.getcwd()
        assert ["wanted"] == os.listdir(home)
        for path in ("deep/file", "inner/file"):
            with open(path) as stream:
                assert "wanted/deep" == stream.read()
        with pytest.raises(PermissionError):
            os.mkdir(home / "new")

    harness.in_child(refused)
    harness.in_child(reached)
    assert ["other", "wanted"] == sorted(os.listdir(home))
