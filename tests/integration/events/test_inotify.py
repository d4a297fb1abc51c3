"""Inotify against the kernel: what events say, and the errors of watches."""

import asyncio
import errno
import os
import resource

import pytest
from event_kinds import in_own_process

from sandbox.events import Inotify, Inotify_async
from sandbox.events.inotify import (
    IN_ALL_EVENTS,
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_MASK_CREATE,
    IN_MOVE,
    IN_ONLYDIR,
    str_to_events,
    watch as watch_once,
)
from sandbox.primitives import inotify_add_watch, inotify_init, inotify_read, inotify_rm_watch


def test_event_says_what_happened_where(tmp_path):
    with Inotify() as inotify:
        wd = inotify.watch(tmp_path, IN_CREATE)
        (tmp_path / "directory").mkdir()
        (event,) = inotify.read_events()
    assert (wd, 0x40000100, 0, "directory") == event
    assert event.create_event is True
    assert event.is_dir_event is True


def test_both_halves_of_a_rename_have_one_cookie(tmp_path):
    (tmp_path / "a").touch()
    with Inotify() as inotify:
        inotify.watch(tmp_path, IN_MOVE)
        os.rename(tmp_path / "a", tmp_path / "b")
        left, came = inotify.read_events()
    assert ("a", "b") == (left.name, came.name)
    assert left.cookie == came.cookie != 0


def test_name_that_is_no_text_can_be_opened_as_it_is(tmp_path):
    name = b"caf\xe9\xff"
    with Inotify() as inotify:
        inotify.watch(os.fsencode(tmp_path), IN_CREATE)
        os.close(os.open(os.path.join(os.fsencode(tmp_path), name), os.O_CREAT | os.O_WRONLY))
        event = inotify.read_event()
    assert name == event.name_bytes
    assert os.path.exists(tmp_path / event.name)


def test_hard_links_share_one_watch(tmp_path):
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    with Inotify() as inotify:
        assert inotify.watch(tmp_path / "a") == inotify.watch(tmp_path / "b")


def test_rename_between_hard_links_of_one_file_is_no_event(tmp_path):
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    with Inotify(nonblock=True) as inotify:
        inotify.watch(tmp_path, IN_MOVE | IN_DELETE | IN_CREATE)
        os.rename(tmp_path / "a", tmp_path / "b")
        assert [] == inotify.read_events()


def test_removed_watch_says_so_and_the_next_has_another_number(tmp_path):
    with Inotify() as inotify:
        wd = inotify.watch(tmp_path)
        inotify.ignore(wd)
        event = inotify.read_event()
        assert (wd, True) == (event.wd, event.ignored_event)
        assert wd != inotify.watch(tmp_path)


def test_overflow_is_the_event_after_the_queue_is_full(tmp_path):
    with open("/proc/sys/fs/inotify/max_queued_events") as stream:
        size = int(stream.read())
    for name in ("a", "b"):
        (tmp_path / name).touch()
    with Inotify(nonblock=True) as inotify:
        inotify.watch(tmp_path, IN_ATTRIB)
        for number in range(size + 10):
            os.utime(tmp_path / "ab"[number % 2])
        events = []
        while some := inotify.read_events():
            events += some
    assert size + 1 == len(events)
    assert [True] == [event.overflow_event for event in events if event.wd == -1]
    assert events[-1].overflow_event is True


def test_columns_hold_the_same_as_the_events(tmp_path):
    with Inotify(nonblock=True) as inotify, Inotify(nonblock=True) as other:
        for one in (inotify, other):
            one.watch(tmp_path, IN_CREATE | IN_MOVE)
        (tmp_path / "a").touch()
        os.rename(tmp_path / "a", tmp_path / "b")
        columns = other.read_columns()
        assert inotify.read_events() == list(zip(*columns, strict=True))
        assert other.read_columns() is None


def test_bytes_of_the_descriptor_are_the_same_events(tmp_path):
    with Inotify(nonblock=True) as inotify, Inotify(nonblock=True) as other:
        for one in (inotify, other):
            one.watch(tmp_path, IN_CREATE)
        for number in range(100):
            (tmp_path / ("x" * number + "y")).touch()
        assert inotify.read_events() == str_to_events(os.read(other.fileno(), 65536))


@pytest.mark.parametrize(
    ("path", "mask", "kind", "number"),
    [
        ("missing", IN_ALL_EVENTS, FileNotFoundError, errno.ENOENT),
        ("file", IN_ONLYDIR | IN_CREATE, NotADirectoryError, errno.ENOTDIR),
        ("file", 0, OSError, errno.EINVAL),
    ],
)
def test_refused_watch_is_an_error_with_errno_and_name(tmp_path, path, mask, kind, number):
    (tmp_path / "file").touch()
    with Inotify() as inotify, pytest.raises(kind) as caught:
        inotify.watch(tmp_path / path, mask)
    assert (number, tmp_path / path) == (caught.value.errno, caught.value.filename)
    assert isinstance(caught.value, ValueError) is (number in (errno.ENOENT, errno.EINVAL))


@pytest.mark.needs_user
def test_unreadable_file_is_refused(tmp_path):
    (tmp_path / "file").touch(mode=0o200)
    with Inotify() as inotify, pytest.raises(PermissionError):
        inotify.watch(tmp_path / "file")


def test_second_watch_with_mask_create_is_refused(tmp_path):
    with Inotify() as inotify:
        inotify.watch(tmp_path, IN_CREATE)
        with pytest.raises(FileExistsError):
            inotify.watch(tmp_path, IN_CREATE | IN_MASK_CREATE)


def test_watch_that_is_not_there_cannot_be_ignored(tmp_path):
    with Inotify() as inotify, pytest.raises(ValueError) as caught:
        inotify.ignore(12345)
    assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize("mask", [-1, 1 << 32])
def test_mask_outside_of_32_bits_is_refused_before_the_call(tmp_path, mask):
    with Inotify() as inotify, pytest.raises(ValueError, match="mask must be between 0 and"):
        inotify.watch(tmp_path, mask)


def test_path_with_nul_is_refused_before_the_call():
    with Inotify() as inotify, pytest.raises(ValueError, match="NUL"):
        inotify.watch("/tmp\0/x")


@pytest.mark.parametrize(("cloexec", "inherited"), [(True, False), (False, True)])
def test_descriptor_is_closed_on_exec_unless_asked_otherwise(cloexec, inherited):
    with Inotify(cloexec=cloexec) as inotify:
        assert inherited is os.get_inheritable(inotify.fileno())


@pytest.mark.parametrize("make", [Inotify, Inotify_async, inotify_init])
def test_no_descriptor_left_is_an_error(make):
    def check() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(OSError) as caught:
            make()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert errno.EMFILE == caught.value.errno

    in_own_process(check)()


def test_watch_once_returns_the_first_event(tmp_path):
    pid = os.fork()
    if pid == 0:
        # Until the parent has its watch, this one sees nothing of it; so it goes on until it is stopped.
        while not (tmp_path / "stop").exists():
            os.utime(tmp_path)
        os._exit(0)
    event = watch_once(tmp_path, IN_ATTRIB)
    (tmp_path / "stop").touch()
    os.waitpid(pid, 0)
    assert event.attrib_event is True


def test_primitives_take_objects_with_fileno(tmp_path):
    with Inotify() as inotify:
        wd = inotify_add_watch(inotify, tmp_path, IN_CREATE)
        (tmp_path / "a").touch()
        assert ["a"] == inotify_read(inotify).name
        inotify_rm_watch(inotify, wd)
        with pytest.raises(OSError):
            inotify_rm_watch(inotify, wd)


def test_twin_yields_every_event_in_order(tmp_path):
    async def watched() -> list[str]:
        async with Inotify_async() as inotify:
            inotify.watch(tmp_path, IN_CREATE)
            for number in range(5000):
                os.mkdir(tmp_path / str(number))
            names = [(await inotify.get()).name for _ in range(2500)]
            async for event in inotify:
                names.append(event.name)
                if len(names) == 5000:
                    break
            return names

    assert [str(number) for number in range(5000)] == asyncio.run(watched())
