"""popen().notifier: the supervisor's end of a sandbox whose filter asks, for every call if need be."""

import os
import signal
import threading
import time

import harness
import pytest
from payloads import number, script

from sandbox import DEVNULL, PIPE, Filter, FilterError, Notify, Sandbox, SetupError, arg

pytestmark = [pytest.mark.needs_userns, pytest.mark.needs_kernel(6, 11)]  # before, the end of all targets is not seen

EVERYTHING = Sandbox().seccomp(Filter(Notify))
MKDIR = Sandbox().seccomp(Filter.default().rule(Notify, "mkdir"))
HEAD = f"""
def mkdir(path):
    return call({number("mkdir")}, path, 0o700)
"""


def answered(process, handler):
    """Answer in a thread until no process has the filter any more."""

    def serve():
        for notification in process.notifier:
            handler(notification)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("box", [EVERYTHING, EVERYTHING.capabilities(["SYS_ADMIN"])], ids=["plain", "nested"])
def test_filter_may_ask_about_every_call_execve_first(box):
    seen = []
    with box.popen(["sh", "-c", "echo $((6*7)); exit 3"], stdout=PIPE, text=True) as process:
        assert process.enforced.no_new_privs and process.enforced.seccomp_filters >= 1
        for notification in process.notifier:
            seen.append(notification.call)
            assert notification.proceed()
        assert "42\n" == process.stdout.read()
        assert 3 == process.wait()
    assert "execve" == seen[0]
    assert {"exit_group", "write", "openat"} <= set(seen)


def test_answers_are_values_errnos_and_descriptors():
    body = (
        HEAD
        + """
fd = call(MEMFD, b"x", 0)
say([mkdir(b"/a"), mkdir(b"/b"), mkdir(b"/c"), os.read(fd, 100).decode(), os.get_inheritable(fd)])
""".replace("MEMFD", str(number("memfd_create")))
    )
    box = Sandbox().seccomp(Filter.default().rule(Notify, "mkdir").rule(Notify, "memfd_create"))
    read_end, write_end = os.pipe()
    os.write(write_end, b"of the supervisor")
    os.close(write_end)
    asked = []

    def handle(notification):
        if notification.call == "memfd_create":
            notification.reply_fd(read_end)
            return
        with notification.emulate() as call:
            asked.append(call.path(0))
            if asked[-1] == b"/a":
                call.reply(77)
            elif asked[-1] == b"/b":
                call.deny("EXDEV")

    with box.popen(script(body), stdout=PIPE, text=True) as process:
        thread = answered(process, handle)
        out, _ = process.communicate()
        thread.join()
    os.close(read_end)
    assert '[77, "EXDEV", "EPERM", "of the supervisor", false]\n' == out
    assert [b"/a", b"/b", b"/c"] == asked


def test_question_is_readable_and_names_a_thread_of_the_sandbox():
    with MKDIR.popen(script(HEAD + 'say(mkdir(b"/x"))'), stdout=DEVNULL) as process:
        with process.notifier.read_event() as notification:
            with open(f"/proc/{notification.pid}/status") as stream:
                assert any(line.startswith("NSpid:") and len(line.split()) > 2 for line in stream)
        assert 0 == process.wait()


@pytest.mark.parametrize("answer", ["denied", "closed"])
def test_execve_that_is_refused_is_a_set_up_error_of_the_wait(answer):
    process = EVERYTHING.popen(["/usr/bin/true"], stdout=DEVNULL)
    try:
        if answer == "denied":
            process.notifier.read_event().deny("ELOOP")
            for notification in process.notifier:  # whatever init still tries
                notification.deny()
        else:
            process.notifier.close()
        with pytest.raises(SetupError) as caught:
            process.wait(10)
        assert caught.value.call.startswith("execve(")
        assert ("ELOOP" if answer == "denied" else "ENOSYS") in str(caught.value)
    finally:
        process.close()


def test_missing_program_is_an_error_of_popen_where_execve_is_not_asked_about():
    with pytest.raises(FileNotFoundError):
        MKDIR.popen(["/usr/bin/no-such-program"])
    with pytest.raises(FileNotFoundError):
        Sandbox().observe().popen(["/usr/bin/no-such-program"])


@pytest.mark.parametrize("waiting", ["taken", "not taken"])
def test_closing_the_notifier_ends_the_wait(waiting):
    with MKDIR.popen(script(HEAD + 'say([mkdir(b"/a"), mkdir(b"/b")])'), stdout=PIPE, text=True) as process:
        if waiting == "taken":
            notification = process.notifier.read_event()
            process.notifier.close()
            assert notification.answered
        else:
            while not process.notifier.pending():
                time.sleep(0.001)
            process.notifier.close()
        out, _ = process.communicate(timeout=10)
    assert ('["EPERM", "ENOSYS"]\n' if waiting == "taken" else '["ENOSYS", "ENOSYS"]\n') == out


@pytest.mark.parametrize("at", ["execve", "mkdir"])
def test_sandbox_is_killed_while_it_waits_for_an_answer(at):
    box, body = (EVERYTHING, ["true"]) if at == "execve" else (MKDIR, script(HEAD + 'mkdir(b"/a")'))
    process = box.popen(body, stdout=DEVNULL)
    notification = process.notifier.read_event()
    assert at == notification.call
    process.kill()
    assert -signal.SIGKILL == process.returncode
    assert not notification.valid()
    process.close()


@pytest.mark.parametrize("at", ["execve", "mkdir"])
def test_supervisor_that_is_killed_takes_the_sandbox_along(at):
    box, body = (EVERYTHING, ["cat"]) if at == "execve" else (MKDIR, script(HEAD + 'say("up"); mkdir(b"/a")'))
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            process = box.popen(body, stdout=write_end)
            os.close(write_end)
            process.notifier.read_event()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.close(write_end)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # The payload has the pipe's only other end: this returns when it has gone.
    with open(read_end) as stream:
        stream.read()
    deadline = time.monotonic() + 5
    while harness.children() and time.monotonic() < deadline:  # PID 1 comes to us, who are a subreaper
        os.waitpid(-1, 0)
    assert not harness.children()


def test_leaving_the_block_by_an_exception_kills_what_waits():
    with pytest.raises(ZeroDivisionError), EVERYTHING.popen(["true"], stdout=DEVNULL) as process:
        raise ZeroDivisionError
    assert process.returncode is not None


def test_run_with_a_filter_that_asks_is_an_error():
    for box in (EVERYTHING, MKDIR, Sandbox().seccomp(Filter.default().rule(Notify, "socket", arg(0) == "AF_UNIX"))):
        with pytest.raises(FilterError, match="popen"):
            box.run(["true"])


def test_payload_has_not_the_listener():
    body = 'say(sorted(int(one) for one in os.listdir("/proc/self/fd")))'
    with MKDIR.popen(script(body), stdout=PIPE, text=True) as process:
        assert "[0, 1, 2, 3]\n" == process.communicate()[0]  # 3 is the listing itself
