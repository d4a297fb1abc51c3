"""What every event-like object does alike."""

import copy
import errno
import fcntl
import io
import os
import pickle
import select
import selectors
import signal
import sys
import threading
import warnings

import harness
import pytest
from event_kinds import KINDS, Kind, Pipe, few_descriptors_left, in_own_process

from sandbox.events import Pidfd

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
# Aio reads and writes files, and its descriptor is of no use alone.
descriptor_kind = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.name.startswith("aio")], ids=lambda kind: kind.name
)
# Those of the tests have a second descriptor or a child, which only their own close() knows.
real_kind = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name not in ("pipe", "pidfd")], ids=lambda kind: kind.name
)


def waiting_thread(target):
    """Start a thread and return it once it sleeps in poll(2)."""
    thread = threading.Thread(target=target)
    thread.start()
    path = f"/proc/self/task/{thread.native_id}/wchan"
    while True:
        with open(path) as stream:
            if "poll" in stream.read():
                return thread


@every_kind
@in_own_process
def test_with_statement_binds_the_object_and_closes_it(kind: Kind):
    with kind.make() as one:
        assert one is not None
        assert one.fileno() >= 0
        assert one.closed is False
    assert one.closed is True


@every_kind
@in_own_process
def test_event_is_readable_by_select_poll_epoll_and_selectors(kind: Kind):
    with kind.make(nonblock=True) as one, select.epoll() as epoll, selectors.DefaultSelector() as selector:
        poll = select.poll()
        poll.register(one, select.POLLIN)
        epoll.register(one, select.EPOLLIN)
        selector.register(one, selectors.EVENT_READ)
        assert ([], [], []) == select.select([one], [], [], 0)
        assert [] == poll.poll(0)
        kind.trigger(one)
        assert ([one], [], []) == select.select([one], [], [], 1)
        assert [(one.fileno(), select.POLLIN)] == poll.poll(1000)
        assert [(one.fileno(), select.EPOLLIN)] == epoll.poll(1)
        assert [one] == [key.fileobj for key, _ in selector.select(1)]
        one.read_event()


@every_kind
@in_own_process
def test_read_event_returns_what_read_events_would(kind: Kind):
    with kind.make() as one:
        kind.trigger(one)
        event = one.read_event()
        if kind.endless:
            kind.trigger(one)
        (again,) = one.read_events()
        assert type(event) is type(again)


@every_kind
@in_own_process
def test_pending_is_zero_without_events_and_more_with_one(kind: Kind):
    with kind.make() as one:
        assert 0 == one.pending()
        kind.trigger(one)
        assert one.pending() > 0
        one.read_event()


@every_kind
@in_own_process
def test_nonblock_without_event_raises_or_returns_nothing(kind: Kind):
    with kind.make(nonblock=True) as one:
        with pytest.raises(BlockingIOError) as caught:
            one.read_event()
        assert errno.EAGAIN == caught.value.errno
        assert [] == one.read_events()
        assert [] == list(one)
        kind.trigger(one)
        assert 1 == len(one.read_events())


@every_kind
@pytest.mark.parametrize("nonblock", [False, True])
@in_own_process
def test_read_event_with_timeout_raises_timeout_error(kind: Kind, nonblock: bool):
    with kind.make(nonblock=nonblock) as one:
        for timeout in (0, 0.001):
            with pytest.raises(TimeoutError):
                one.read_event(timeout)
            with pytest.raises(TimeoutError):
                one.wait(timeout=timeout)
        kind.trigger(one)
        assert one.read_event(timeout=0) is not None


@every_kind
@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
@in_own_process
def test_read_event_with_impossible_timeout_is_a_value_error(kind: Kind, timeout: float):
    with kind.make() as one, pytest.raises(ValueError, match="timeout must be"):
        one.read_event(timeout)


@every_kind
@in_own_process
def test_read_event_with_infinite_timeout_waits(kind: Kind):
    with kind.make() as one:
        kind.trigger(one)
        assert one.read_event(float("inf")) is not None


@every_kind
@in_own_process
def test_closed_object_refuses_as_files_do(kind: Kind):
    one = kind.make()
    one.close()
    one.close()
    for use in (one.fileno, one.read_event, one.read_events, one.pending, one.detach, one.__enter__):
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            use()
    for use in (one.readable, one.writable, one.seekable, one.isatty):
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            use()
    with pytest.raises(ValueError, match="I/O operation on closed file"):
        one.read_event(1)
    assert [] == list(one)


@every_kind
@in_own_process
def test_file_attributes_say_readable_and_nothing_else(kind: Kind):
    with kind.make() as one:
        assert (True, False, False, False) == (one.readable(), one.writable(), one.seekable(), one.isatty())
        assert isinstance(one.name, str)
        assert one.mode in ("r", "r+")
        assert f"fd={one.fileno()}" in repr(one)
    assert "closed" in repr(one)


@descriptor_kind
@in_own_process
def test_byte_methods_are_unsupported(kind: Kind):
    with kind.make() as one:
        for name in "read readline readlines readinto write writelines seek tell truncate".split():
            with pytest.raises(io.UnsupportedOperation):
                getattr(one, name)()


@every_kind
@in_own_process
def test_descriptor_is_close_on_exec_and_not_inheritable(kind: Kind):
    with kind.make() as one:
        assert fcntl.fcntl(one.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert os.get_inheritable(one.fileno()) is False


@every_kind
@in_own_process
def test_descriptor_zero_is_a_descriptor(kind: Kind):
    saved = os.dup(0)
    os.close(0)
    try:
        one = kind.make()
        # A pidfd's child took the number first.
        if one.fileno() != 0:
            os.dup2(one.fileno(), 0, inheritable=False)
            os.close(one.fileno())
            one._fd = one._descriptors[0] = 0
        with one:
            assert 0 == one.fileno()
            assert one.closed is False
            kind.trigger(one)
            assert one.read_event() is not None
        assert one.closed is True
        with pytest.raises(OSError):
            os.fstat(0)
    finally:
        os.dup2(saved, 0)
        os.close(saved)


@descriptor_kind
@in_own_process
def test_detach_gives_a_blocking_descriptor_and_closes_the_object(kind: Kind):
    one = kind.make()
    expected = one.fileno()
    fd = one.detach()
    try:
        assert expected == fd
        assert os.get_blocking(fd) is True
        assert one.closed is True
    finally:
        os.close(fd)
        one.close()


@every_kind
@in_own_process
def test_objects_compare_by_identity_also_when_closed(kind: Kind):
    left, right = kind.make(), kind.make()
    assert left != right
    left.close()
    right.close()
    assert left != right
    assert left == left
    assert 2 == len({left, right})


@every_kind
@in_own_process
def test_pickling_and_copying_are_refused(kind: Kind):
    with kind.make() as one:
        for use in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled"):
                use(one)


@real_kind
@in_own_process
def test_object_dropped_without_close_warns_and_leaves_no_descriptor(kind: Kind):
    before = harness.footprint().descriptors
    one = kind.make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del one
    assert before == harness.footprint().descriptors
    assert [ResourceWarning] == [warning.category for warning in caught]
    assert "unclosed" in str(caught[0].message)


@every_kind
@in_own_process
def test_close_in_another_thread_ends_a_wait(kind: Kind):
    one = kind.make()
    caught = []

    def wait():
        try:
            one.read_event()
        except ValueError as error:
            caught.append(str(error))

    thread = waiting_thread(wait)
    one.close()
    thread.join(10)
    assert ["I/O operation on closed file"] == caught


@every_kind
@in_own_process
def test_close_in_another_thread_ends_the_iteration(kind: Kind):
    one = kind.make()
    events = []
    thread = waiting_thread(lambda: events.extend(one))
    one.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [] == events


@every_kind
@in_own_process
def test_iteration_yields_events_as_they_come(kind: Kind):
    with kind.make() as one:
        kind.trigger(one)
        assert next(iter(one)) is not None


@real_kind
@in_own_process
def test_no_descriptor_left_constructor_raises_emfile_and_leaks_nothing(kind: Kind):
    kind.make().close()  # what a process does once
    refused = 0
    for left in range(10):
        try:
            with few_descriptors_left(left):
                one = kind.make()
        except OSError as error:
            assert errno.EMFILE == error.errno
            refused += 1
        else:
            one.close()
            break
    assert 1 <= refused == left


@in_own_process
def test_no_descriptor_left_pidfd_raises_emfile():
    with few_descriptors_left(), pytest.raises(OSError) as caught:
        Pidfd(os.getpid())
    assert errno.EMFILE == caught.value.errno


@every_kind
@in_own_process
def test_no_descriptor_left_reader_waits_and_is_ended_by_close(kind: Kind):
    with kind.make() as one:
        with few_descriptors_left():
            with pytest.raises(TimeoutError):
                one.read_event(0.01)
            kind.trigger(one)
            assert one.read_event() is not None
    one = kind.make()
    ended = threading.Event()

    def wait():
        with pytest.raises(ValueError):
            one.read_event()
        ended.set()

    with few_descriptors_left():
        thread = threading.Thread(target=wait)
        thread.start()
        one.close()
        assert ended.wait(10)
        thread.join()


@every_kind
@in_own_process
def test_signal_during_a_wait_runs_its_handler_and_the_wait_goes_on(kind: Kind):
    ran = []
    with kind.make() as one:

        def handler(number, frame):
            ran.append(number)
            kind.trigger(one)

        signal.signal(signal.SIGALRM, handler)  # after the fork of a pidfd's child
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert one.read_event() is not None
    assert [signal.SIGALRM] == ran


@every_kind
@in_own_process
def test_signal_handler_that_closes_the_object_ends_the_wait(kind: Kind):
    one = kind.make()
    signal.signal(signal.SIGALRM, lambda *_: one.close())
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with pytest.raises(ValueError, match="closed file"):
        one.read_event()


@in_own_process
def test_cached_events_reach_a_thread_that_waits():
    # Two threads wait, one read returns two events: the second thread must not sleep on while one is cached.
    with Pipe() as one:
        got = []
        first = waiting_thread(lambda: got.append(one.read_event()))
        second = threading.Thread(target=lambda: got.append(one.read_event()))
        second.start()
        os.write(one.writer, b"ab")
        first.join(10)
        second.join(10)
        assert [97, 98] == sorted(got)


@in_own_process
def test_threads_that_share_an_object_get_each_event_once():
    with Pipe() as one:
        got = [[] for _ in range(4)]
        threads = [threading.Thread(target=lambda mine=mine: mine.extend(one)) for mine in got]
        for thread in threads:
            thread.start()
        sent = bytes(range(256)) * 40
        for start in range(0, len(sent), 256):
            os.set_blocking(one.writer, True)
            os.write(one.writer, sent[start : start + 256])
        while sum(map(len, got)) < len(sent):
            select.select([], [], [], 0.001)
        one.close()
        for thread in threads:
            thread.join(10)
        assert sorted(sent) == sorted(event for mine in got for event in mine)


@in_own_process
def test_timeout_counts_while_another_thread_reads():
    with Pipe() as one:

        def wait():
            with pytest.raises(ValueError):
                one.read_event()

        thread = waiting_thread(wait)
        with pytest.raises(TimeoutError):
            one.read_event(0.01)
        one.close()
        thread.join(10)


@in_own_process
def test_read_events_returns_the_cached_ones_without_reading():
    with Pipe() as one:
        os.write(one.writer, b"abc")
        assert 97 == one.read_event()
        os.write(one.writer, b"d")
        assert [98, 99] == one.read_events()
        assert [100] == one.read_events()


@in_own_process
def test_iteration_that_breaks_loses_no_event():
    with Pipe() as one:
        os.write(one.writer, b"abc")
        for event in one:
            assert 97 == event
            break
        assert [98, 99] == one.read_events()


@in_own_process
def test_close_and_fork_let_go_of_cached_events():
    one = Pipe()
    os.write(one.writer, b"abc")
    one.read_event()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if one.disposed == [98, 99] else 1)
    assert (pid, 0) == os.waitpid(pid, 0)
    assert [] == one.disposed
    one.close()
    assert [98, 99] == one.disposed


@in_own_process
def test_forked_child_forgets_the_cache_and_the_parent_does_not():
    with Pipe(nonblock=True) as one:
        os.write(one.writer, b"ab")
        assert 97 == one.read_event()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if one.read_events() == [] else 1)
        assert (pid, 0) == os.waitpid(pid, 0)
        assert 98 == one.read_event()


@in_own_process
def test_forked_child_can_read_though_a_thread_of_the_parent_held_the_lock():
    with Pipe() as one:
        got = []
        thread = waiting_thread(lambda: got.append(one.read_event()))
        pid = os.fork()
        if pid == 0:
            with pytest.raises(TimeoutError):
                one.read_event(0)
            one.close()
            os._exit(0)
        assert (pid, 0) == os.waitpid(pid, 0)
        # The child's close() must not have woken the parent's thread.
        os.write(one.writer, b"x")
        thread.join(10)
        assert [120] == got


@in_own_process
def test_error_of_a_read_is_raised_and_the_next_read_works():
    with Pipe() as one:
        one.error = OSError(errno.EIO, "Input/output error", "pipe")
        with pytest.raises(OSError) as caught:
            one.read_event()
        assert (errno.EIO, "pipe") == (caught.value.errno, caught.value.filename)
        os.write(one.writer, b"a")
        assert 97 == one.read_event()


@in_own_process
def test_poll_works_with_descriptors_that_select_cannot_take():
    with Pipe() as one:
        high = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        os.close(one.fileno())
        one._fd = one._descriptors[0] = high
        os.write(one.writer, b"a")
        assert 97 == one.read_event(1)
        with pytest.raises(TimeoutError):
            one.read_event(0.001)


@in_own_process
def test_reading_many_cached_events_one_by_one_is_linear():
    # Counted, not timed: the cache is popped from the left in constant time.
    with Pipe(nonblock=True) as one:
        one._cache.extend(range(200_000))
        assert list(range(200_000)) == [one.read_event() for _ in range(200_000)]


def test_events_package_does_not_import_asyncio():
    code = (
        "import sys; from sandbox.events import Eventfd, Signalfd, Timerfd, Pidfd, Eventfd_async\n"
        "with Eventfd(1) as e: e.read_event()\n"
        "sys.exit('asyncio' in sys.modules)"
    )
    assert 0 == os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-I", "-c", code])
