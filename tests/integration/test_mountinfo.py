"""statmount and listmount agree with /proc/self/mountinfo, decode any name, and see other namespaces."""

import os
import signal

import harness
import pytest

from sandbox import primitives as kernel

pytestmark = [pytest.mark.needs_kernel(6, 8), pytest.mark.needs_userns]


@pytest.fixture
def run(tmp_path):
    def enter(function):
        path = str(tmp_path)
        harness.enter_namespaces(kernel.CLONE_NEWNS)
        function(path)

    return lambda function: harness.in_child(enter, function)


def mountinfo():
    with open("/proc/self/mountinfo", "rb") as stream:
        lines = [os.fsdecode(line).split() for line in stream]
    return {int(line[0]): line for line in lines}


def unescape(text):
    for escape, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, letter)
    return text


def test_listing_equals_mountinfo(run):
    def check(path):
        kernel.mount("a b", path, "tmpfs")
        expected = mountinfo()
        found = {one.mnt_id_old: one for one in map(kernel.statmount, kernel.listmount())}
        assert expected.keys() == found.keys()
        for number, line in expected.items():
            one = found[number]
            rest = line[line.index("-") + 1 :]
            assert (int(line[1]), unescape(line[3]), unescape(line[4])) == (
                one.mnt_parent_id_old,
                one.mnt_root,
                one.mnt_point,
            )
            assert rest[0] == one.fs_type
            assert line[2] == f"{one.sb_dev_major}:{one.sb_dev_minor}"

    run(check)


def test_name_that_is_no_utf8_comes_back_as_it_was(run):
    def check(path):
        raw = os.fsencode(path) + b"/\xff\xfe"
        os.mkdir(raw)
        kernel.mount(b"s\xff", raw, "tmpfs")
        found = kernel.statmount(kernel.listmount()[-1])
        assert (os.fsdecode(raw), os.fsdecode(b"s\xff")) == (found.mnt_point, found.sb_source)

    run(check)


def test_strings_beyond_the_first_buffer_are_read_whole(run):
    def check(path):
        # Four strings of nearly a page each: the first buffer has a page for the fixed part and all strings.
        deep = path + "".join("/" + letter * 250 for letter in "abcdefghijklmno")[: 4000 - len(path)]
        current = os.open("/", os.O_PATH)
        for name in deep.split("/")[1:]:
            try:
                os.mkdir(name, dir_fd=current)
            except FileExistsError:
                pass
            current = os.open(name, os.O_PATH, dir_fd=current)
        kernel.mount(deep, deep, None, kernel.MS_BIND)
        found = kernel.statmount(kernel.listmount()[-1])
        assert deep == found.mnt_point
        assert found.mnt_root.endswith(deep.rpartition("/")[2])

    run(check)


def test_mask_says_what_was_answered(run):
    def check(path):
        one = kernel.listmount()[-1]
        found = kernel.statmount(one, kernel.STATMOUNT_FS_TYPE)
        assert kernel.StatmountMask.FS_TYPE == found.mask
        assert found.fs_type is not None
        assert found.mnt_point is None
        assert found.mnt_id is None

    run(check)


def test_listmount_in_pieces_and_in_reverse(run):
    def check(path):
        for _ in range(3):
            kernel.mount("box", path, "tmpfs")
        everything = kernel.listmount()
        assert everything[:2] == kernel.listmount(count=2)
        assert everything[2:] == kernel.listmount(last_mnt_id=everything[1])
        assert everything[::-1] == kernel.listmount(flags=kernel.LISTMOUNT_REVERSE)
        assert [everything[-1]] == kernel.listmount(everything[-2])

    run(check)


def test_listmount_of_more_than_one_buffer_is_complete(run):
    def check(path):
        before = len(kernel.listmount())
        for _ in range(600):
            kernel.mount("box", path, "tmpfs")
        everything = kernel.listmount()
        assert before + 600 == len(everything) == len(set(everything))
        assert sorted(everything) == everything

    run(check)


def test_unknown_mount_is_enoent(run):
    def check(path):
        with pytest.raises(FileNotFoundError):
            kernel.statmount(2**62)

    run(check)


@pytest.mark.needs_kernel(6, 12)
def test_other_namespace_by_id(run):
    def check(path):
        pid = kernel.clone3(kernel.CLONE_NEWNS)
        if pid == 0:
            signal.pause()
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        info = kernel.ns_mnt_get_info(fd)
        listed = kernel.listmount(mnt_ns_id=info.mnt_ns_id)
        assert info.nr_mounts >= len(listed) > 0
        assert info.mnt_ns_id == kernel.statmount(listed[-1], mnt_ns_id=info.mnt_ns_id).mnt_ns_id
        assert set() == set(listed) & set(kernel.listmount())
        os.close(fd)

    run(check)


@pytest.mark.needs_kernel(6, 18)
def test_other_namespace_by_descriptor(run):
    def check(path):
        mine = kernel.listmount()
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        kernel.unshare(kernel.CLONE_NEWNS)
        assert mine == kernel.listmount(mnt_ns_fd=fd)
        assert mine[-1] == kernel.statmount(mine[-1], mnt_ns_fd=fd).mnt_id

    run(check)
