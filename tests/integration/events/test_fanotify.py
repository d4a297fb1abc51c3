"""Fanotify that only tells: handles, names, descriptors, mounts; with and without privilege."""

import asyncio
import errno
import os
import resource
import subprocess

import harness
import pytest
from event_kinds import in_own_process

from sandbox.events import Fanotify, Fanotify_async
from sandbox.events.fanotify import (
    FAN_ATTRIB,
    FAN_CLASS_CONTENT,
    FAN_CREATE,
    FAN_DELETE,
    FAN_EVENT_ON_CHILD,
    FAN_MARK_EVICTABLE,
    FAN_MARK_FILESYSTEM,
    FAN_MARK_IGNORE,
    FAN_MARK_IGNORE_SURV,
    FAN_MARK_MNTNS,
    FAN_MARK_ONLYDIR,
    FAN_MARK_REMOVE,
    FAN_MNT_ATTACH,
    FAN_MNT_DETACH,
    FAN_MODIFY,
    FAN_MOVED_TO,
    FAN_ONDIR,
    FAN_OPEN,
    FAN_RENAME,
    FAN_REPORT_DFID_NAME,
    FAN_REPORT_DFID_NAME_TARGET,
    FAN_REPORT_FID,
    FAN_REPORT_MNT,
    FAN_REPORT_PIDFD,
    str_to_events,
)
from sandbox.primitives import CLONE_NEWNS, MS_PRIVATE, MS_REC, fanotify_init, mount, name_to_handle_at, umount, unshare

AT_FDCWD = -100


def rest(fan: Fanotify) -> list:
    events = []
    while some := fan.read_events():
        events += some
    return events


def test_names_are_resolved_and_follow_the_directory(tmp_path):
    (tmp_path / "d").mkdir()
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path / "d", FAN_CREATE | FAN_ONDIR)
        (tmp_path / "d" / "file").touch()
        (tmp_path / "d" / "below").mkdir()
        one, other = rest(fan)
        assert ("file", str(tmp_path / "d" / "file"), False) == (one.name, one.filename, one.is_dir_event)
        assert ("below", str(tmp_path / "d" / "below"), True) == (other.name, other.filename, other.is_dir_event)
        assert one.fd == one.pidfd == -1


@pytest.mark.needs_root
def test_name_follows_a_directory_that_was_moved_since(tmp_path):
    (tmp_path / "d").mkdir()
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path / "d", FAN_CREATE)
        (tmp_path / "d" / "file").touch()
        os.rename(tmp_path / "d", tmp_path / "moved")
        (event,) = rest(fan)
        assert str(tmp_path / "moved" / "file") == event.filename


@pytest.mark.needs_user
def test_name_is_stale_without_privilege_once_the_path_leads_elsewhere(tmp_path):
    (tmp_path / "d").mkdir()
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path / "d", FAN_CREATE)
        (tmp_path / "d" / "file").touch()
        os.rename(tmp_path / "d", tmp_path / "moved")
        (tmp_path / "d").mkdir()
        (event,) = rest(fan)
        with pytest.raises(OSError) as caught:
            _ = event.filename
        assert errno.ESTALE == caught.value.errno


def test_directory_that_is_gone_is_stale(tmp_path):
    (tmp_path / "d").mkdir()
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path / "d", FAN_CREATE)
        (tmp_path / "d" / "file").touch()
        os.unlink(tmp_path / "d" / "file")
        os.rmdir(tmp_path / "d")
        event = rest(fan)[0]
        with pytest.raises(OSError) as caught:
            _ = event.filename
        assert errno.ESTALE == caught.value.errno


def test_handle_is_that_of_name_to_handle_at(tmp_path):
    (tmp_path / "file").touch()
    with Fanotify(FAN_REPORT_DFID_NAME_TARGET, nonblock=True) as fan:
        fan.watch(tmp_path, FAN_ATTRIB | FAN_CREATE | FAN_EVENT_ON_CHILD)
        os.utime(tmp_path / "file")
        (event,) = rest(fan)
    handle, _ = name_to_handle_at(AT_FDCWD, tmp_path / "file")
    assert handle == event.file_handle[8:]
    assert name_to_handle_at(AT_FDCWD, tmp_path)[0] == event.directory_handle[8:]


def test_rename_is_one_event_with_both_names(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "a").touch()
    with Fanotify(FAN_REPORT_DFID_NAME_TARGET, nonblock=True) as fan:
        for one in (tmp_path, tmp_path / "d"):
            fan.watch(one, FAN_RENAME)
        os.rename(tmp_path / "a", tmp_path / "d" / "b")
        event = rest(fan)[0]
        assert event.rename_event is True
        assert (str(tmp_path / "a"), str(tmp_path / "d" / "b")) == (event.filename, event.new_filename)


def test_names_that_are_no_text_come_through(tmp_path):
    name = b"caf\xe9\xff"
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(os.fsencode(tmp_path), FAN_CREATE)
        os.close(os.open(os.path.join(os.fsencode(tmp_path), name), os.O_CREAT | os.O_WRONLY))
        (event,) = rest(fan)
        assert name == os.fsencode(event.name)
        assert os.path.exists(event.filename)


def test_creation_and_deletion_of_one_name_become_one_event(tmp_path):
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path, FAN_CREATE | FAN_DELETE)
        (tmp_path / "a").touch()
        (tmp_path / "a").unlink()
        (event,) = rest(fan)
        assert event.create_event and event.delete_event


def test_bytes_of_the_descriptor_are_the_same_events(tmp_path):
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path, FAN_CREATE)
        (tmp_path / "a").touch()
        (event,) = str_to_events(os.read(fan.fileno(), 4096))
        assert ("a", True) == (event.name, event.create_event)


def test_ignored_mark_tells_nothing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    with Fanotify(FAN_REPORT_FID, nonblock=True) as fan:
        fan.watch(tmp_path, FAN_OPEN | FAN_EVENT_ON_CHILD)
        fan.watch(tmp_path / "a", FAN_OPEN, FAN_MARK_IGNORE_SURV)
        for name in ("a", "b"):
            (tmp_path / name).read_bytes()
        handles = [event.file_handle[8:] for event in rest(fan)]
        assert [name_to_handle_at(AT_FDCWD, tmp_path / "b")[0]] == handles


def test_ignore_of_a_directory_without_surviving_is_refused(tmp_path):
    with Fanotify(FAN_REPORT_FID) as fan, pytest.raises(IsADirectoryError):
        fan.watch(tmp_path, FAN_OPEN, FAN_MARK_IGNORE)


def test_ignore_takes_the_mark_away_and_flush_all(tmp_path):
    with Fanotify(FAN_REPORT_FID, nonblock=True) as fan:
        fan.watch(tmp_path, FAN_ATTRIB | FAN_ONDIR)
        fan.ignore(tmp_path, FAN_ATTRIB | FAN_ONDIR)
        os.utime(tmp_path)
        fan.watch(tmp_path, FAN_ATTRIB | FAN_ONDIR)
        fan.flush()
        os.utime(tmp_path)
        assert [] == rest(fan)


def test_overflow_is_an_event(tmp_path):
    with open("/proc/sys/fs/fanotify/max_queued_events") as stream:
        size = int(stream.read())
    with Fanotify(FAN_REPORT_DFID_NAME, nonblock=True) as fan:
        fan.watch(tmp_path, FAN_CREATE)
        for number in range(size + 10):
            os.close(os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY))
        events = rest(fan)
        assert size + 1 == len(events)
        assert events[-1].overflow_event is True
        with pytest.raises(OSError):
            _ = events[-1].filename


@pytest.mark.parametrize(
    ("path", "mask", "flags", "kind"),
    [
        ("missing", FAN_OPEN, 0, FileNotFoundError),
        ("file", FAN_OPEN, FAN_MARK_ONLYDIR, NotADirectoryError),
        ("file", 0, 0, ValueError),
        ("file", FAN_OPEN, FAN_MARK_REMOVE, ValueError),
        ("file", -1, 0, ValueError),
    ],
)
def test_refused_mark_is_an_error(tmp_path, path, mask, flags, kind):
    (tmp_path / "file").touch()
    with Fanotify(FAN_REPORT_FID) as fan, pytest.raises(kind):
        fan.watch(tmp_path / path, mask, flags)


@pytest.mark.parametrize("flags", [FAN_REPORT_FID | FAN_CLASS_CONTENT, 1 << 31])
def test_flags_that_contradict_each_other_are_refused(flags):
    with pytest.raises(OSError) as caught:
        Fanotify(flags)
    assert caught.value.errno in (errno.EINVAL, errno.EPERM)


@pytest.mark.needs_user
@pytest.mark.parametrize("flags", [0, FAN_CLASS_CONTENT, FAN_REPORT_FID | FAN_REPORT_PIDFD])
def test_what_needs_privilege_is_refused_without(flags):
    with pytest.raises(PermissionError, match=r"FAN_REPORT_DFID_NAME.* for everybody"):
        Fanotify(flags)


@pytest.mark.needs_user
def test_wide_mark_is_refused_without_privilege(tmp_path):
    with Fanotify(FAN_REPORT_FID) as fan, pytest.raises(PermissionError, match="only files and directories") as caught:
        fan.watch(tmp_path, FAN_OPEN, FAN_MARK_FILESYSTEM)
    assert (errno.EPERM, str(tmp_path)) == (caught.value.errno, str(caught.value.filename))


@pytest.mark.parametrize("make", [Fanotify, Fanotify_async, fanotify_init])
def test_no_descriptor_left_is_an_error(make):
    def check() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(OSError) as caught:
            make(FAN_REPORT_FID)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert errno.EMFILE == caught.value.errno

    in_own_process(check)()


def test_twin_yields_events(tmp_path):
    async def watched() -> list[str]:
        async with Fanotify_async(FAN_REPORT_DFID_NAME) as fan:
            fan.watch(tmp_path, FAN_CREATE)
            for name in "abc":
                (tmp_path / name).touch()
            return [(await fan.get()).name for _ in range(3)]

    assert ["a", "b", "c"] == asyncio.run(watched())


# ── with a descriptor for each event ─────────────────────────────────────────────────────────────


@pytest.mark.needs_root
def test_descriptor_is_of_the_file_and_closed_with_the_event(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with Fanotify() as fan:
        fan.watch(tmp_path, FAN_OPEN | FAN_EVENT_ON_CHILD)
        (tmp_path / "a").read_bytes()
        with fan.read_event() as event:
            assert b"content" == os.pread(event.fd, 100, 0)
            assert str(tmp_path / "a") == event.filename
            assert os.getpid() == event.pid
            assert os.get_inheritable(event.fd) is False
            fd = event.fd
        assert -1 == event.fd
        with pytest.raises(OSError):
            os.fstat(fd)
        with pytest.raises(ValueError, match="closed"):
            _ = event.filename
        event.close()


@pytest.mark.needs_root
def test_pidfd_is_of_who_did_it_and_missing_once_it_is_reaped(tmp_path):
    (tmp_path / "a").touch()
    with Fanotify(FAN_REPORT_DFID_NAME | FAN_REPORT_PIDFD) as fan:
        fan.watch(tmp_path, FAN_OPEN | FAN_EVENT_ON_CHILD)
        (tmp_path / "a").read_bytes()
        with fan.read_event() as event:
            with open(f"/proc/self/fdinfo/{event.pidfd}") as stream:
                assert f"Pid:\t{os.getpid()}\n" in stream.read()
        subprocess.run(["cat", tmp_path / "a"], check=True)
        with fan.read_event() as event:
            assert -1 == event.pidfd


@pytest.mark.needs_root
def test_one_read_installs_no_more_than_64_descriptors(tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    for flags in (0, FAN_REPORT_PIDFD, FAN_REPORT_PIDFD | FAN_REPORT_DFID_NAME):
        with Fanotify(flags, nonblock=True) as fan:
            fan.watch(tmp_path, FAN_OPEN | FAN_EVENT_ON_CHILD)
            for number in range(200):
                (tmp_path / str(number)).read_bytes()
            before = len(os.listdir("/proc/self/fd"))
            events = fan.read_events()
            assert 30 <= len(os.listdir("/proc/self/fd")) - before <= 64
            while events:
                for event in events:
                    event.close()
                events = fan.read_events()


@pytest.mark.needs_root
@pytest.mark.needs_kernel(6, 13)
def test_event_without_a_descriptor_left_says_so_and_is_not_lost(tmp_path):
    def check() -> None:
        for name in "ab":
            (tmp_path / name).touch()
        with Fanotify(nonblock=True) as fan:
            fan.watch(tmp_path, FAN_OPEN | FAN_EVENT_ON_CHILD)
            for name in "ab":
                (tmp_path / name).read_bytes()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
            one, other = rest(fan)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert one.fd >= 0
            assert -errno.EMFILE == other.fd
            with pytest.raises(OSError) as caught:
                _ = other.filename
            assert errno.EMFILE == caught.value.errno
            one.close()

    in_own_process(check)()


@pytest.mark.needs_root
def test_dropped_event_warns_and_leaves_no_descriptor(tmp_path):
    (tmp_path / "a").touch()
    with Fanotify() as fan:
        fan.watch(tmp_path, FAN_OPEN | FAN_EVENT_ON_CHILD)
        (tmp_path / "a").read_bytes()
        event = fan.read_event()
        with pytest.warns(ResourceWarning, match="unclosed fanotify events: fds="):
            del event


@pytest.mark.needs_root
def test_evictable_mark_is_set(tmp_path):
    (tmp_path / "a").touch()
    with Fanotify(FAN_REPORT_FID, nonblock=True) as fan:
        fan.watch(tmp_path / "a", FAN_MODIFY, FAN_MARK_EVICTABLE)
        with open(f"/proc/self/fdinfo/{fan.fileno()}") as stream:
            assert "mflags:200" in stream.read()


@pytest.mark.needs_root
def test_closed_group_leaves_no_descriptor_on_the_file_system(tmp_path):
    before = harness.footprint().descriptors
    with Fanotify(FAN_REPORT_DFID_NAME) as fan:
        fan.watch(tmp_path, FAN_CREATE | FAN_MOVED_TO)
        assert 2 == len(harness.footprint().descriptors) - len(before)
    assert before == harness.footprint().descriptors


@pytest.mark.needs_root
@pytest.mark.needs_kernel(6, 15)
def test_mounts_of_a_mount_namespace_are_told(tmp_path):
    def check() -> None:
        unshare(CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        with Fanotify(FAN_REPORT_MNT, nonblock=True) as fan:
            fan.watch(None, FAN_MNT_ATTACH | FAN_MNT_DETACH, FAN_MARK_MNTNS, namespace)
            mount("tmpfs", tmp_path, "tmpfs")
            (attached,) = rest(fan)
            umount(tmp_path)
            (detached,) = rest(fan)
        os.close(namespace)
        assert attached.mnt_attach_event and detached.mnt_detach_event
        assert attached.mount_id == detached.mount_id > 0

    harness.in_child(check)
