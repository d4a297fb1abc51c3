"""A whole tree under inotify: what the events tell is the tree on disk, whatever happened meanwhile."""

import asyncio
import errno
import os
import resource
import select
import shutil

import pytest
from event_kinds import in_own_process
from watching import Told, change, on_disk

from sandbox.events import RecursiveInotify, RecursiveInotify_async
from sandbox.primitives import (
    IN_ALL_EVENTS,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_MASK_ADD,
    IN_MOVE,
    IN_ONESHOT,
)

CHANGES = IN_CREATE | IN_DELETE | IN_MOVE


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    return str(tmp_path / "root")


def rest(watch: RecursiveInotify) -> list:
    """Read until the kernel has nothing more."""
    events = []
    while True:
        some = watch.read_events()
        events += some
        if not some and not watch.pending():
            return events


def told(events: list) -> list[tuple[str, str]]:
    kinds = ("create", "delete", "moved_from", "moved_to")
    return [(kind, event.path) for event in events for kind in kinds if getattr(event, f"{kind}_event")]


def assert_right(watch: RecursiveInotify, known: Told, root: str) -> None:
    directories, files = on_disk(root)
    assert directories == known.directories
    assert files == known.files
    assert directories | {root} == set(watch.directories)
    # And every one of them is alive.
    probes = {os.path.join(one, "probe") for one in directories | {root}}
    for probe in probes:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY))
    assert probes == {event.path for event in rest(watch) if event.create_event}


def test_new_directories_are_watched_and_what_is_in_them_is_reported_once(root):
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.makedirs(f"{root}/a/b/c")
        open(f"{root}/a/b/c/f", "w").close()
        events = rest(watch)
        assert [("create", f"{root}/a{rest}") for rest in ("", "/b", "/b/c", "/b/c/f")] == told(events)
        assert [False, True, True, True] == [event.found for event in events]
        open(f"{root}/a/b/c/g", "w").close()
        (event,) = rest(watch)
        assert (f"{root}/a/b/c/g", "g", False) == (event.path, event.name, event.found)


def test_what_exists_at_the_start_is_reported_when_asked_for(root):
    os.makedirs(f"{root}/a/b")
    open(f"{root}/a/f", "w").close()
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        assert [] == rest(watch)
    with RecursiveInotify(root, CHANGES, existing=True, nonblock=True) as watch:
        assert {f"{root}/a", f"{root}/a/b", f"{root}/a/f"} == {event.path for event in rest(watch)}


def test_moved_directory_keeps_its_watches_and_gets_its_new_path(root):
    os.makedirs(f"{root}/a/b")
    os.mkdir(f"{root}/z")
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.rename(f"{root}/a", f"{root}/z/new")
        open(f"{root}/z/new/b/f", "w").close()
        events = rest(watch)
    assert [("moved_from", f"{root}/a"), ("moved_to", f"{root}/z/new"), ("create", f"{root}/z/new/b/f")] == told(events)
    assert f"{root}/a" == events[1].old_path


def test_renamed_file_has_its_old_path_also_across_reads(root):
    open(f"{root}/a", "w").close()
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.rename(f"{root}/a", f"{root}/b")
        assert [None, f"{root}/a"] == [event.old_path for event in rest(watch)]


def test_directory_moved_out_is_not_watched_any_more(root, tmp_path):
    os.makedirs(f"{root}/a/b")
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.rename(f"{root}/a", tmp_path / "outside" / "a")
        assert [("moved_from", f"{root}/a")] == told(rest(watch))
        open(tmp_path / "outside" / "a" / "b" / "f", "w").close()
        assert [] == rest(watch)
        assert [root] == watch.directories


def test_directory_moved_in_is_watched_and_reported(root, tmp_path):
    (tmp_path / "outside" / "a" / "b").mkdir(parents=True)
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.rename(tmp_path / "outside" / "a", f"{root}/a")
        assert [("moved_to", f"{root}/a"), ("create", f"{root}/a/b")] == told(rest(watch))
        open(f"{root}/a/b/f", "w").close()
        assert [("create", f"{root}/a/b/f")] == told(rest(watch))


def test_tree_that_is_moved_itself_shows_its_new_path(root, tmp_path):
    os.mkdir(f"{root}/a")
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.rename(root, tmp_path / "moved")
        open(tmp_path / "moved" / "a" / "f", "w").close()
        (event,) = rest(watch)
        assert str(tmp_path / "moved" / "a" / "f") == event.path


def test_end_of_the_tree_itself_is_reported(root):
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.rmdir(root)
        assert rest(watch)[-1].ignored_event is True


def test_symlink_to_a_directory_is_an_entry_and_is_not_followed(root, tmp_path):
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.symlink(tmp_path / "outside", f"{root}/link")
        os.mkdir(tmp_path / "outside" / "a")
        assert [("create", f"{root}/link")] == told(rest(watch))
        assert [root] == watch.directories


def test_names_that_are_no_text_are_watched(root):
    name = os.fsencode(root) + b"/caf\xe9\xff"
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.mkdir(name)
        rest(watch)
        open(name + b"/\xfe", "w").close()
        (event,) = rest(watch)
        assert name + b"/\xfe" == event.path_bytes
        assert os.path.exists(event.path)


def test_path_longer_than_path_max_is_watched(root):
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        fd = os.open(root, os.O_RDONLY)
        for _ in range(30):
            os.mkdir("d" * 200, dir_fd=fd)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        rest(watch)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("directory", dir_fd=fd)
        os.close(fd)
        assert [f"{root}{('/' + 'd' * 200) * 30}/{name}" for name in ("file", "directory")] == [
            event.path for event in rest(watch)
        ]
        assert 32 == len(watch.directories)


def test_tree_deeper_than_the_scan_holds_descriptors_is_watched(root):
    path = os.path.join(root, *["d"] * 300)
    os.makedirs(path)
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        assert 301 == len(watch.directories)
        open(f"{path}/f", "w").close()
        assert [("create", f"{path}/f")] == told(rest(watch))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [1, 7])
def test_events_tell_the_tree_on_disk_after_each_change(root, tmp_path, seed, steps):
    outside = str(tmp_path / "outside")
    change(root, outside, seed, 50)
    known = Told()
    with RecursiveInotify(root, CHANGES, existing=True, nonblock=True) as watch:
        known.hear(rest(watch))
        for number in range(40):
            change(root, outside, 1000 * seed + number, steps, exchange=True)
            known.hear(rest(watch))
            assert on_disk(root) == (known.directories, known.files)
            assert known.directories | {root} == set(watch.directories)


def changer(root: str, outside: str, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            change(root, outside, seed, 400)
        finally:
            os._exit(0)
    return pid


@pytest.mark.parametrize("seed", range(8))
def test_events_tell_the_tree_on_disk_after_two_processes_changed_it(root, tmp_path, seed):
    outside = str(tmp_path / "outside")
    change(root, outside, seed, 100)
    known = Told()
    with RecursiveInotify(root, CHANGES, existing=True, nonblock=True) as watch:
        running = {changer(root, outside, 100 * seed + number) for number in range(2)}
        while running:
            select.select([watch], [], [], 0.05)
            known.hear(watch.read_events())
            running = {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0] == 0}
        known.hear(rest(watch))
        assert_right(watch, known, root)


def test_overflow_is_an_event_and_what_there_is_comes_after_it(root, tmp_path):
    with open("/proc/sys/fs/inotify/max_queued_events") as stream:
        size = int(stream.read())
    known = Told()
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.mkdir(f"{root}/seen")
        open(f"{root}/seen/0", "w").close()
        known.hear(rest(watch))
        for number in range(size // 2 + 100):
            os.rename(f"{root}/seen/{number % 2}", f"{root}/seen/{1 - number % 2}")
        os.makedirs(f"{root}/unseen/below")
        open(f"{root}/unseen/below/f", "w").close()
        known.hear(rest(watch))
        assert 1 == known.overflows
        assert_right(watch, known, root)


def test_mask_without_tree_events_reports_what_is_found_and_what_was_asked_for(root):
    with RecursiveInotify(root, IN_CLOSE_WRITE, nonblock=True) as watch:
        os.mkdir(f"{root}/a")
        open(f"{root}/a/early", "w").close()
        assert [(f"{root}/a/early", True)] == [(event.path, event.found) for event in rest(watch)]
        open(f"{root}/a/late", "w").close()
        (event,) = rest(watch)
        assert event.close_write_event is True
        assert f"{root}/a/late" == event.path


@pytest.mark.parametrize("mask", [0, IN_MASK_ADD | IN_CREATE, IN_ONESHOT | IN_CREATE, 1 << 40])
def test_mask_that_makes_no_sense_for_a_tree_is_a_value_error(root, mask):
    with pytest.raises(ValueError, match="mask must be"):
        RecursiveInotify(root, mask)


def test_missing_tree_is_an_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        RecursiveInotify(tmp_path / "missing")
    assert str(tmp_path / "missing") == os.fspath(caught.value.filename)
    assert isinstance(caught.value, ValueError)


def test_file_instead_of_a_tree_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        RecursiveInotify(tmp_path / "file")


@pytest.mark.needs_user
def test_unreadable_directory_is_named_and_the_rest_is_watched(root):
    os.makedirs(f"{root}/closed")
    os.makedirs(f"{root}/open")
    os.chmod(f"{root}/closed", 0)
    try:
        with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
            assert [f"{root}/closed"] == list(watch.unwatched)
            assert errno.EACCES == watch.unwatched[f"{root}/closed"].errno
            assert {root, f"{root}/open"} == set(watch.directories)
    finally:
        os.chmod(f"{root}/closed", 0o700)


@in_own_process
def test_no_descriptor_left_is_an_error_once_and_the_directory_is_tried_again(tmp_path):
    root = str(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = Told()
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.makedirs(f"{root}/a/b/c")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        known.hear(watch.read_events())
        assert {f"{root}/a"} == known.directories
        with pytest.raises(OSError) as caught:
            watch.read_events()
        assert errno.EMFILE == caught.value.errno
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        known.hear(rest(watch))
        assert_right(watch, known, root)


def test_no_descriptor_left_for_a_new_tree_leaves_none_open(tmp_path):
    def check() -> None:
        os.makedirs(tmp_path / "a" / "b")
        before = sorted(os.listdir("/proc/self/fd"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for more in range(4):
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + more, hard))
            with pytest.raises(OSError) as caught:
                RecursiveInotify(tmp_path)
            assert errno.EMFILE == caught.value.errno
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert before == sorted(os.listdir("/proc/self/fd"))

    in_own_process(check)()


def test_twin_yields_what_is_found(root):
    async def watched() -> list[str]:
        async with RecursiveInotify_async(root, IN_ALL_EVENTS) as watch:
            os.makedirs(f"{root}/a/b")
            paths = []
            async for event in watch:
                if event.create_event:
                    paths.append(event.path)
                if event.path.endswith("/b"):
                    return paths
        return []

    assert [f"{root}/a", f"{root}/a/b"] == asyncio.run(watched())


def test_forked_child_does_not_take_the_events_of_its_parent(root):
    with RecursiveInotify(root, CHANGES, nonblock=True) as watch:
        os.mkdir(f"{root}/a")
        pid = os.fork()
        if pid == 0:
            watch.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert [("create", f"{root}/a")] == told(rest(watch))
        shutil.rmtree(f"{root}/a")
        assert [("delete", f"{root}/a")] == told(rest(watch))
