"""Fanotify that is asked: answers, what happens without one, and that nobody is left waiting.

A group that does not answer freezes whoever opens what it marks. So only directories of the test are marked, and each
test runs in a process that an alarm ends: the kernel then lets everybody go on.
"""

import errno
import functools
import gc
import os
import select
import signal
import subprocess
import threading
import warnings

import harness
import pytest
from event_kinds import in_own_process

from sandbox.events import Fanotify
from sandbox.events.fanotify import (
    FAN_ACCESS_PERM,
    FAN_CLASS_CONTENT,
    FAN_CLASS_PRE_CONTENT,
    FAN_ENABLE_AUDIT,
    FAN_EVENT_ON_CHILD,
    FAN_OPEN,
    FAN_OPEN_EXEC_PERM,
    FAN_OPEN_PERM,
    FAN_PRE_ACCESS,
    FanotifyAudit,
)
from sandbox.primitives import fanotify_respond

pytestmark = pytest.mark.needs_root

ON_OPEN = FAN_OPEN_PERM | FAN_EVENT_ON_CHILD


def ends_in_time(test):
    """Run the test in a process of its own, ended by force after 60 seconds."""

    @functools.wraps(test)
    def guarded(*args, **kwargs):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        test(*args, **kwargs)
        signal.alarm(0)

    return in_own_process(guarded)


@pytest.fixture
def guarded(tmp_path):
    (tmp_path / "file").write_text("content")
    return tmp_path


def reader(path) -> subprocess.Popen:
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_readable(one) -> None:
    select.select([one], [], [])


@ends_in_time
def test_allowed_access_goes_on_and_denied_access_is_refused(guarded):
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, ON_OPEN)
        allowed = reader(guarded / "file")
        with fan.read_event() as event:
            assert (True, allowed.pid) == (event.is_permission, event.pid)
            assert str(guarded / "file") == event.filename
            event.allow()
        assert b"content" == allowed.communicate()[0]
        denied = reader(guarded / "file")
        with fan.read_event() as event:
            event.deny()
        assert b"Operation not permitted" in denied.communicate()[1]


@ends_in_time
def test_second_answer_is_an_error(guarded):
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, ON_OPEN)
        process = reader(guarded / "file")
        with fan.read_event() as event:
            event.allow()
            for answer in (event.allow, event.deny):
                with pytest.raises(ValueError, match="answered before"):
                    answer()
        with pytest.raises(ValueError, match="answered before"):
            event.allow()
        assert b"content" == process.communicate()[0]


@ends_in_time
def test_event_that_is_no_question_cannot_be_answered(guarded):
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, FAN_OPEN | FAN_EVENT_ON_CHILD)
        (guarded / "file").read_bytes()
        with fan.read_event() as event, pytest.raises(ValueError, match="not a question"):
            event.allow()


@pytest.mark.parametrize(("unanswered", "status"), [("deny", 1), ("allow", 0)])
@pytest.mark.parametrize("how", ["block", "close", "drop", "group", "unread", "leak", "exception"])
@ends_in_time
def test_question_without_an_answer_gets_the_default(guarded, how, unanswered, status):
    warnings.simplefilter("ignore", ResourceWarning)
    fan = Fanotify(FAN_CLASS_CONTENT, unanswered=unanswered)
    fan.watch(guarded, ON_OPEN)
    process = reader(guarded / "file")
    wait_readable(fan)
    if how == "unread":
        fan.close()
    elif how == "leak":
        del fan
        gc.collect()
    elif how == "group":
        event = fan.read_event()
        fan.close()
        with pytest.raises(ValueError, match="closed"):
            event.allow()
        event.close()
    elif how == "exception":
        with pytest.raises(ZeroDivisionError), fan, fan.read_event():
            _ = 1 / 0
    else:
        event = fan.read_event()
        if how == "block":
            with event:
                pass
        elif how == "close":
            event.close()
        del event
    process.communicate()
    assert status == process.returncode
    if how in ("block", "close", "drop"):
        fan.close()


@ends_in_time
def test_whoever_asks_and_is_killed_is_no_error_for_who_answers(guarded):
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, ON_OPEN)
        process = reader(guarded / "file")
        with fan.read_event() as event:
            process.kill()
            process.communicate()
            event.allow()


@ends_in_time
def test_response_that_is_none_is_refused_and_the_question_stays_open(guarded):
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, ON_OPEN)
        process = reader(guarded / "file")
        with fan.read_event() as event:
            with pytest.raises(OSError) as caught:
                fanotify_respond(fan, event.fd, 0)
            assert errno.EINVAL == caught.value.errno
            with pytest.raises(OSError):
                event.deny(errno.ENOSPC)  # only a group of FAN_CLASS_PRE_CONTENT chooses the errno
            with pytest.raises(OSError):
                event.allow(audit=FanotifyAudit(1))  # a group without ENABLE_AUDIT
            event.allow()
        assert b"content" == process.communicate()[0]


@pytest.mark.needs_kernel(6, 3)
@ends_in_time
def test_answer_for_the_audit_log_is_taken(guarded):
    try:
        fan = Fanotify(FAN_CLASS_CONTENT | FAN_ENABLE_AUDIT)
    except PermissionError:
        pytest.skip("needs CAP_AUDIT_WRITE")
    with fan:
        fan.watch(guarded, ON_OPEN)
        for audit in (True, FanotifyAudit(7, 1, 0)):
            process = reader(guarded / "file")
            with fan.read_event() as event:
                event.allow(audit=audit)
            assert b"content" == process.communicate()[0]


@pytest.mark.needs_kernel(6, 14)
@ends_in_time
def test_question_about_content_has_a_range_and_the_errno_of_the_answer(guarded):
    (guarded / "large").write_bytes(bytes(1 << 20))
    with Fanotify(FAN_CLASS_PRE_CONTENT) as fan:
        fan.watch(guarded, FAN_PRE_ACCESS | FAN_EVENT_ON_CHILD)
        code = (
            "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "try: os.pread(fd, 4096, 65536)\n"
            "except OSError as error: sys.exit(error.errno)\n"
        )
        process = subprocess.Popen(["python3", "-c", code, guarded / "large"])
        with fan.read_event() as event:
            assert event.pre_access_event is True
            offset, count = event.range
            assert offset <= 65536
            assert 65536 + 4096 <= offset + count
            event.deny(errno.ENOSPC)
        # A denied range is asked for again by the retry of a smaller read, if any.
        while process.poll() is None:
            for event in _now(fan):
                with event:
                    event.deny(errno.ENOSPC)
        assert errno.ENOSPC == process.returncode


def _now(fan: Fanotify) -> list:
    try:
        return [fan.read_event(0.01)]
    except TimeoutError:
        return []


@ends_in_time
def test_execution_and_reading_are_asked_for(guarded):
    script = guarded / "program"
    script.write_text("#!/bin/sh\nexit 7\n")
    script.chmod(0o755)
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, FAN_OPEN_EXEC_PERM | FAN_ACCESS_PERM | FAN_EVENT_ON_CHILD)
        kinds = set()

        def answer() -> None:
            for event in fan:
                with event:
                    kinds.update(name for name in ("open_exec_perm_event", "access_perm_event") if getattr(event, name))
                    event.allow()

        thread = threading.Thread(target=answer)
        thread.start()
        # By a shell: subprocess itself holds the interpreter until the program is executed.
        assert 7 == subprocess.run(["sh", "-c", script]).returncode
        fan.close()
        thread.join()
    assert {"open_exec_perm_event", "access_perm_event"} == kinds


@ends_in_time
def test_forked_child_has_no_group_and_does_not_answer_for_its_parent(guarded):
    with Fanotify(FAN_CLASS_CONTENT) as fan:
        fan.watch(guarded, ON_OPEN)
        process = reader(guarded / "file")
        event = fan.read_event()
        fd = fan.fileno()
        pid = os.fork()
        if pid == 0:
            try:
                os.fstat(fd)
            except OSError:
                open_in_child = False
            else:
                open_in_child = os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[fanotify]"
            event.close()
            os._exit(open_in_child or not fan.closed)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert process.poll() is None
        with event:
            event.allow()
        assert b"content" == process.communicate()[0]


@ends_in_time
def test_group_ends_with_its_process_although_a_child_lives_on(guarded):
    harness.become_subreaper()
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()
    broker = os.fork()
    if broker == 0:
        fan = Fanotify(FAN_CLASS_CONTENT)
        fan.watch(guarded, ON_OPEN)
        if os.fork() == 0:
            os.close(end_write)
            os.read(end_read, 1)
            os._exit(0)
        os.write(ready_write, b"x")
        wait_readable(fan)
        os.kill(os.getpid(), signal.SIGKILL)
    os.read(ready_read, 1)
    # The kernel allows what nobody is left to answer.
    assert b"content" == reader(guarded / "file").communicate()[0]
    os.waitpid(broker, 0)
    for fd in (ready_read, ready_write, end_read, end_write):
        os.close(fd)
    os.waitpid(-1, 0)


@pytest.mark.needs_program("gcc")
@ends_in_time
def test_broker_guards_a_directory_against_a_compiler_run(guarded):
    for number in range(20):
        (guarded / f"part{number}.h").write_text(f"#define PART{number} {number}\n")
    (guarded / "secret.h").write_text("#define SECRET 1\n")
    includes = "".join(f'#include "part{number}.h"\n' for number in range(20))
    (guarded / "good.c").write_text(f"{includes}int main(void) {{ return PART19; }}\n")
    (guarded / "bad.c").write_text('#include "secret.h"\nint main(void) { return SECRET; }\n')
    seen = []
    fan = Fanotify(FAN_CLASS_CONTENT)

    def broker() -> None:
        for event in fan:
            with event:
                name = os.path.basename(event.filename)
                seen.append(name)
                if name == "secret.h":
                    event.deny()
                else:
                    event.allow()

    with fan:
        fan.watch(guarded, ON_OPEN)
        thread = threading.Thread(target=broker)
        thread.start()
        runs = {
            name: subprocess.Popen(
                ["gcc", "-o", f"/dev/shm/sandbox-test-{os.getpid()}-{name}", guarded / f"{name}.c"],
                stderr=subprocess.PIPE,
            )
            for name in ("good", "bad")
        }
        errors = {name: run.communicate()[1] for name, run in runs.items()}
        fan.close()
        thread.join()
    assert (0, 1) == (runs["good"].returncode, runs["bad"].returncode)
    os.unlink(f"/dev/shm/sandbox-test-{os.getpid()}-good")
    assert b"secret.h" in errors["bad"]
    assert {f"part{number}.h" for number in range(20)} | {"good.c", "bad.c", "secret.h"} <= set(seen)
