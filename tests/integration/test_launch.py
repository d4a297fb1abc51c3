"""run(): subprocess's words and exceptions, streams, programs that are none, timeouts, and launches under stress."""

import errno
import gc
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
import time

import harness
import plans
import pytest

import sandbox
from sandbox import DEVNULL, PIPE, STDOUT, Reason, Sandbox, SetupError, launch as launch_module, launcher, records
from sandbox.launch import native
from sandbox.primitives import CLONE_NEWNET, unshare

pytestmark = pytest.mark.needs_userns

PYTHON = "/usr/bin/python3"
TEXT = {"capture_output": True, "text": True}


def shell(script, **options):
    return sandbox.run(["/bin/sh", "-c", script], **options)


# ── the words of subprocess.run ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("echo out; echo err >&2; exit 3", {"capture_output": True}),
        ("echo out; echo err >&2; exit 3", TEXT),
        ("printf 'a\\r\\nb\\rc\\n'", TEXT),
        ("printf 'a\\r\\nb\\rc\\n'", {"stdout": PIPE, "encoding": "latin-1"}),
        ("printf '\\344'", {"stdout": PIPE, "encoding": "latin-1"}),
        ("printf '\\377x'", {"stdout": PIPE, "errors": "replace", "encoding": "utf-8"}),
        ("cat", {"input": b"bytes\0in", "stdout": PIPE}),
        ("cat", {"input": "äöü\n", "stdout": PIPE, "text": True}),
        ("cat", {"input": "äöü\n", "stdout": PIPE, "encoding": "latin-1"}),
        ("echo out; echo err >&2", {"stdout": PIPE, "stderr": STDOUT}),
        ("cat; echo $?", {"stdin": DEVNULL, "stdout": PIPE}),
        ("kill -9 $$", {}),
        ("kill -TERM $$", {}),
        ("exit 255", {}),
        ("echo $A $B; env | wc -l", {"stdout": PIPE, "env": {"A": "1", "B": "x y", "PATH": "/usr/bin"}}),
        ("pwd", {"stdout": PIPE, "cwd": "/usr/lib"}),
        ("head -c 3", {"input": b"x" * 10_000_000, "stdout": PIPE}),
        ("exec <&-; exit 5", {"input": b"y" * 10_000_000}),
        ("cat", {"input": bytearray(b"z" * 3_000_000), "stdout": PIPE}),
        ("cat", {"input": b"", "stdout": PIPE}),
    ],
)
def test_run_answers_as_subprocess_does(script, options):
    expected = subprocess.run(["/bin/sh", "-c", script], **options)
    actual = shell(script, **options)
    assert (expected.returncode, expected.stdout, expected.stderr) == (
        actual.returncode,
        actual.stdout,
        actual.stderr,
    )
    assert isinstance(actual, subprocess.CompletedProcess)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capture_output": True, "stdout": PIPE}, ValueError),
        ({"capture_output": True, "stderr": PIPE}, ValueError),
        ({"input": b"x", "stdin": 0}, ValueError),
        ({"stdout": STDOUT}, ValueError),
        ({"stdout": -7}, ValueError),
        ({"stdout": "file"}, TypeError),
        ({"stdout": True}, TypeError),
        ({"input": "text"}, TypeError),
        ({"input": b"bytes", "text": True}, TypeError),
        ({"cwd": "relative"}, ValueError),
        ({"env": {"A=B": "x"}}, ValueError),
        ({"env": {"": "x"}}, ValueError),
        ({"env": {"A": "x\0y"}}, ValueError),
        ({"env": ["A=B"]}, TypeError),
        ({"fds": {2: 1}}, ValueError),
        ({"fds": {1 << 20: 1}}, ValueError),
        ({"fds": {"3": 1}}, TypeError),
        ({"fds": {3: "file"}}, TypeError),
        ({"pass_fds": [1]}, ValueError),
        ({"executable": ""}, ValueError),
        ({"shell": True}, TypeError),
    ],
    ids=str,
)
def test_run_wrong_argument_is_refused_and_nothing_is_started(options, error):
    with pytest.raises(error):
        sandbox.run(["true"], **options)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ("true", TypeError),
        (b"true", TypeError),
        ([], ValueError),
        (["a\0b"], ValueError),
        ([""], ValueError),
        ([1], TypeError),
    ],
    ids=str,
)
def test_run_wrong_command_is_refused(args, error):
    with pytest.raises(error):
        sandbox.run(args)


def test_result_says_reason_usage_and_what_was_enforced():
    result = shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 3")
    assert (3, Reason.EXITED) == (result.returncode, result.reason)
    assert result.usage.wall > 0
    assert result.usage.user + result.usage.system == pytest.approx(result.usage.cpu_time)
    assert result.usage.cpu_time > 0
    assert 100_000 < result.usage.max_rss < 1 << 30
    assert result.enforced.no_new_privs
    assert not any(result.enforced.capabilities.values())
    killed = shell("kill -9 $$")
    assert (-9, Reason.SIGNALED) == (killed.returncode, killed.reason)
    assert "SIGKILL" in killed.detail


def test_check_raises_with_the_whole_result():
    with pytest.raises(sandbox.CalledProcessError) as caught:
        shell("echo out; exit 4", check=True, **TEXT)
    assert (4, "out\n") == (caught.value.returncode, caught.value.stdout)
    assert caught.value.result.usage.wall > 0
    assert isinstance(caught.value, subprocess.CalledProcessError)
    assert 0 == shell("exit 0", check=True).returncode


def test_streams_may_be_files_and_descriptors(tmp_path):
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "in", "w+") as inside:
        inside.write("hello\n")
        inside.seek(0)
        shell("cat; echo err >&2", stdin=inside, stdout=out.fileno(), stderr=out)
        out.seek(0)
        assert "hello\nerr\n" == out.read()


def test_stderr_to_stdout_goes_where_stdout_goes(tmp_path):
    with open(tmp_path / "out", "w+") as out:
        shell("echo a; echo b >&2; echo c", stdout=out, stderr=STDOUT)
        assert "a\nb\nc\n" == (out.seek(0), out.read())[1]


def test_streams_left_out_are_the_callers_and_stdin_is_empty():
    def check():
        with plans.pipes() as (read_end, write_end):
            os.dup2(write_end, 1)
            os.dup2(write_end, 2)
            os.dup2(read_end, 0)
            shell("cat; echo out; echo err >&2")
            assert b"out\nerr\n" == os.read(read_end, 100)
            os.write(write_end, b"mine")
            assert b"mi" == shell("head -c 2", stdin=None, stdout=PIPE).stdout

    harness.in_child(check)


def test_executable_replaces_the_program_and_not_its_name():
    result = sandbox.run(["name", "-c", "echo $0"], executable="/bin/sh", **TEXT)
    assert "name\n" == result.stdout


def python(script, **options):
    return sandbox.run([PYTHON, "-S", "-c", "import os\n" + script], **options)


def test_fds_appear_under_their_numbers_and_no_other():
    with plans.pipes(2) as (a, b, c, d):
        script = "os.write(5, b'five'); os.write(900, b'nine'); print(sorted(map(int, os.listdir('/proc/self/fd'))))"
        result = python(script, fds={5: b, 900: d}, **TEXT)
        assert "[0, 1, 2, 3, 5, 900]\n" == result.stdout  # 3: the directory that is listed
        assert (b"five", b"nine") == (os.read(a, 9), os.read(c, 9))
        assert (0, b"same") == (python(f"os.write({b}, b'same')", pass_fds=[b]).returncode, os.read(a, 9))


def test_fds_may_exchange_their_numbers():
    with plans.pipes(2) as (a, b, c, d):
        result = python(f"os.write({b}, b'to-d'); os.write({d}, b'to-b')", fds={b: d, d: b})
        assert (0, b"to-b", b"to-d") == (result.returncode, os.read(a, 9), os.read(c, 9))


def test_streams_of_the_librarys_making_can_be_opened_by_name():
    # By root, too, whose own pipes would be closed to the payload's user.
    result = shell("cat /dev/stdin >/dev/stdout; echo err >/dev/stderr", input="in\n", **TEXT)
    assert ("in\n", "err\n") == (result.stdout, result.stderr)
    null = os.stat("/dev/null")
    shell("echo x >/dev/stdout", stdout=DEVNULL)
    assert (null.st_uid, null.st_gid, null.st_mode) == (lambda s: (s.st_uid, s.st_gid, s.st_mode))(os.stat("/dev/null"))


def test_fd_at_a_high_number_and_one_object_at_many():
    with open("/dev/null") as null:
        result = shell("ls /proc/self/fd", fds=dict.fromkeys((3, 4, 50, 1000), null), **TEXT)
        assert {"0", "1", "2", "3", "4", "50", "1000"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    "options",
    [{"stdout": 900}, {"stdin": 901}, {"stderr": 902}, {"fds": {7: 903}}, {"pass_fds": [904]}],
    ids=str,
)
def test_closed_descriptor_is_told_and_never_becomes_another(options):
    with pytest.raises(OSError) as caught:
        sandbox.run(["true"], **options)
    assert errno.EBADF == caught.value.errno


def test_closed_descriptor_that_the_launch_would_use_itself_is_told():
    # The lowest free numbers are the next that a launch opens: a channel of its own, perhaps.
    free = [os.open("/dev/null", os.O_RDONLY) for _ in range(6)]
    for fd in free:
        os.close(fd)
    for fd in free:
        for options in ({"stdout": fd}, {"fds": {7: fd}}):
            with pytest.raises(OSError) as caught:
                sandbox.run(["true"], **options)
            assert errno.EBADF == caught.value.errno


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"stdin": None}, {"input": b"x"}, {"stdin": None, "stdout": PIPE}], ids=str)
def test_caller_without_standard_streams_gives_none_of_its_own_instead(closed, options):
    def check():
        out = os.open("/tmp", os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
        high = os.dup2(out, 700)
        os.close(out)
        for fd in closed:
            os.close(fd)
        script = "import os\nfor i in range(3): os.write(9, os.readlink(f'/proc/self/fd/{i}').encode() + b'\\n')"
        for _ in range(3):  # also when descriptors are kept from the launches before
            os.ftruncate(high, 0)
            os.lseek(high, 0, os.SEEK_SET)
            result = sandbox.run([PYTHON, "-S", "-c", script], fds={9: high}, timeout=20, **options)
            assert 0 == result.returncode
            seen = os.pread(high, 1000, 0).decode().splitlines()
            own = {0: "stdin", 1: "stdout", 2: "stderr"}
            for fd, name in own.items():
                if fd in closed and options.get(name, None) is None and not (fd == 0 and "input" in options):
                    assert "/dev/null" == seen[fd]
        for fd in closed:
            with pytest.raises(OSError):
                os.fstat(fd)

    harness.in_child(check)


# ── programs that are none ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "number", "hint"),
    [
        (["no-such-program"], errno.ENOENT, "PATH"),
        (["/no/such/program"], errno.ENOENT, "no such file"),
        (["/etc/passwd"], errno.EACCES, "executable"),
        (["/etc"], errno.EACCES, "executable"),
        (["/etc/passwd/x"], errno.ENOENT, "no such file"),
        (["/tmp/empty-script"], errno.ENOEXEC, "#!"),
        (["/tmp/no-interpreter"], errno.ENOENT, "interpreter"),
        (["true", "x" * 200_000], errno.E2BIG, "too long"),
        (["x" * 300], errno.ENAMETOOLONG, None),
        (["/tmp/loop"], errno.ELOOP, None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_program_that_cannot_be_executed_is_a_set_up_error(command, number, hint):
    box = (
        Sandbox()
        .file("/tmp/empty-script", "no shebang\n", mode=0o755)
        .file("/tmp/no-interpreter", "#!/no/such/interpreter\n", mode=0o755)
        .symlink("loop", "/tmp/loop")
    )
    with pytest.raises(SetupError) as caught:
        box.run(command)
    assert number == caught.value.errno
    assert caught.value.call.startswith("execve(")
    assert caught.value.step == caught.value.steps
    assert command[0] == caught.value.filename
    if hint is not None:
        assert hint in caught.value.hint
    if number == errno.ENOENT:
        assert isinstance(caught.value, FileNotFoundError)


def test_program_found_on_the_host_only_is_hinted_at(tmp_path):
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(SetupError) as caught:
        sandbox.run([str(program)])
    assert f'.bind_readonly("{tmp_path}")' in caught.value.hint
    assert 0 == Sandbox().bind_readonly(tmp_path).run([str(program)]).returncode


def test_path_is_the_sandboxes_and_a_file_without_permission_is_passed_over():
    box = (
        Sandbox()
        .file("/opt/a/tool", "#!/bin/sh\necho a\n", mode=0o644)
        .file("/opt/b/tool", "#!/bin/sh\necho b\n", mode=0o755)
        .env(PATH="/nowhere:/opt/a:/opt/b:/usr/bin")
    )
    assert "b\n" == box.run(["tool"], **TEXT).stdout
    with pytest.raises(PermissionError):
        box.run(["tool"], env={"PATH": "/nowhere:/opt/a"})


def test_many_and_odd_arguments_arrive():
    words = [b"\xff\xfe", b"", b" ", b"\n", "ä".encode(), b"--", b"x" * 100_000, *(b"%d" % i for i in range(20_000))]
    script = "import sys,os;sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    result = sandbox.run([PYTHON, "-S", "-c", script, *words], stdout=PIPE)
    assert words == result.stdout.split(b"\0")


def test_surrogate_escaped_names_arrive_as_their_bytes():
    result = sandbox.run(["/bin/echo", "-n", os.fsdecode(b"a\xffb")], stdout=PIPE)
    assert b"a\xffb" == result.stdout
    result = shell('printf %s "$V"', env={"V": os.fsdecode(b"\xfe")}, stdout=PIPE)
    assert b"\xfe" == result.stdout


# ── time, trees, output ──────────────────────────────────────────────────────────────────────────────────────────────


def test_timeout_kills_the_whole_tree_and_keeps_the_output():
    # A double fork in a new session, and one that ignores signals: both hold the pipe that the test reads.
    script = (
        "import os,signal,time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    time.sleep(1000)\n"
        "if not os.fork(): time.sleep(1000)\n"
        "os.write(1, b'started')\n"
        "os.write(9, b'x')\n"
        "time.sleep(1000)\n"
    )
    with plans.pipes() as fds:
        read_end, write_end = fds
        started = time.monotonic()
        with pytest.raises(sandbox.TimeoutExpired) as caught:
            sandbox.run([PYTHON, "-S", "-c", script], timeout=1.0, fds={9: write_end}, **TEXT)
        assert 1.0 <= time.monotonic() - started
        os.close(write_end)
        fds[1] = -1
        # The end of file comes when the last of them is dead: at once.
        assert (b"x", b"") == (os.read(read_end, 1), os.read(read_end, 1))
    expired = caught.value
    assert isinstance(expired, subprocess.TimeoutExpired)
    assert (b"started", 1.0) == (expired.output, expired.timeout)
    assert (Reason.TIMEOUT, -9, "started") == (expired.result.reason, expired.result.returncode, expired.result.stdout)


def test_timeout_of_a_fast_command_is_none():
    assert 0 == sandbox.run(["true"], timeout=60).returncode


def test_timeout_of_zero_kills_at_once():
    with pytest.raises(sandbox.TimeoutExpired):
        sandbox.run(["sleep", "1000"], timeout=0)


def test_timeout_while_input_is_not_taken():
    with pytest.raises(sandbox.TimeoutExpired):
        sandbox.run(["sleep", "1000"], timeout=0.2, input=b"x" * 1_000_000)


def test_end_of_the_command_ends_what_it_left_behind():
    with plans.pipes() as fds:
        read_end, write_end = fds
        # Stdout's pipe is kept open as well, by a process that nobody waits for.
        result = shell("(setsid sleep 1000 &) ; echo done", fds={9: write_end}, stdout=PIPE)
        assert b"done\n" == result.stdout
        os.close(write_end)
        fds[1] = -1
        assert b"" == os.read(read_end, 1)


def test_large_output_arrives_whole():
    size = 100 << 20
    result = sandbox.run(["head", "-c", str(size), "/dev/zero"], stdout=PIPE)
    assert size == len(result.stdout)
    assert not result.stdout.strip(b"\0")


def test_both_outputs_are_drained_while_input_is_fed():
    script = "tee /dev/stderr"
    data = os.urandom(4 << 20)
    result = sandbox.run(["/bin/sh", "-c", script], input=data, capture_output=True)
    assert data == result.stdout == result.stderr


def test_keyboard_interrupt_in_the_wait_kills_and_reaps():
    def check():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with plans.pipes() as fds:
            read_end, write_end = fds

            def interrupt():
                os.read(read_end, 1)
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                shell("echo >&9; sleep 1000", fds={9: write_end})
            thread.join()
            assert set() == harness.children()
            os.close(write_end)
            fds[1] = -1
            assert b"" == os.read(read_end, 1)

    harness.in_child(check)


def test_exception_in_a_signal_handler_during_the_set_up_leaves_nothing():
    class Stop(Exception):
        pass

    def check():
        def stop(*_):
            raise Stop

        signal.signal(signal.SIGALRM, stop)
        box = Sandbox()
        plan = plans.held(box.plan(["true"]), "init", 5)
        before = harness.footprint()
        with plans.pipes(2) as (go, _, told, tell):
            thread = threading.Thread(target=lambda: (os.read(told, 1), os.kill(os.getpid(), signal.SIGALRM)))
            thread.start()
            with pytest.raises(Stop):
                plans.launch(box, ["true"], plan=plan, stdin=go, stdout=tell)
            thread.join()
        assert before == harness.footprint(settle=before)

    harness.in_child(check)


# ── the caller's own habits ──────────────────────────────────────────────────────────────────────────────────────────


def test_status_is_right_when_the_caller_ignores_sigchld():
    def check():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        assert [7, 0, -9] == [shell(s).returncode for s in ("exit 7", "exit 0", "kill -9 $$")]
        with pytest.raises(FileNotFoundError):
            sandbox.run(["no-such-program"])
        with pytest.raises(sandbox.TimeoutExpired):
            sandbox.run(["sleep", "1000"], timeout=0.1)
        assert set() == harness.children()

    harness.in_child(check)


def test_status_is_right_when_another_thread_reaps_every_child():
    def check():
        stop = threading.Event()

        def reap():
            while not stop.is_set():
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    time.sleep(0.0005)

        thread = threading.Thread(target=reap)
        thread.start()
        try:
            for i in range(30):
                assert i == shell(f"exit {i}").returncode
            with pytest.raises(FileNotFoundError):
                sandbox.run(["no-such-program"])
        finally:
            stop.set()
            thread.join()
        assert set() == harness.children()

    harness.in_child(check)


def test_payload_has_default_signals_and_none_blocked_whatever_the_caller_has():
    sets = {"SigBlk", "SigIgn", "SigCgt"}

    def check():
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGUSR1, 40):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        text = sandbox.run(["cat", "/proc/self/status"], **TEXT).stdout
        assert ["0" * 16] * 3 == [line.split()[1] for line in text.splitlines() if line[:6] in sets]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert len(blocked) >= 60  # the caller's own mask is as before

    harness.in_child(check)


def test_callers_umask_limits_and_directory_do_not_shape_the_root():
    def check():
        ask = ["stat", "-c", "%a", "/etc", "/tmp", "/etc/passwd", "/dev/shm", "/usr", "/a", "/a/b"]
        box = Sandbox().file("/a/b", "x", mode=0o640).file("/tmp/c", "x")
        expected = box.run(ask, **TEXT).stdout
        assert "755\n1777\n644\n1777\n" == expected[:18]
        os.umask(0o777)
        os.chdir("/proc/self")
        for again in (Sandbox().file("/a/b", "x", mode=0o640).file("/tmp/c", "x"),) * 3:
            assert expected == again.run(ask, **TEXT).stdout
        assert 0o777 == os.umask(0)

    harness.in_child(check)


@pytest.mark.usefixtures("in_flight")
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48])
def test_few_descriptors_are_enough_or_an_error_that_leaves_nothing(limit):
    def check():
        box = Sandbox()
        assert 0 == box.run(["true"]).returncode
        harness.drop_kept()
        before = harness._descriptors()
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        outcomes = set()
        for _ in range(3):
            try:
                outcomes.add(box.run(["echo", "x"], stdout=PIPE).stdout)
            except OSError as error:
                assert error.errno in {errno.EMFILE, errno.EBADF, errno.EINVAL}, error
                outcomes.add("refused")
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        harness.drop_kept()
        assert before == harness._descriptors()
        assert set() == harness.children()
        if limit >= 48:
            assert {b"x\n"} == outcomes

    harness.in_child(check)


@pytest.mark.usefixtures("in_flight")
def test_init_lives_with_a_low_limit_on_descriptors():
    def check():
        for fd in set(harness._descriptors()) - {0, 1, 2}:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # the pipe to the test
                os.close(fd)
        box = Sandbox.empty().seccomp(None).bind_readonly("/usr")
        box = box.symlink("usr/lib", "/lib").symlink("usr/lib64", "/lib64")
        for limit in (34, 30, 26):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            result = box.run(["/usr/bin/sh", "-c", "sleep 0.05; exit 3"])
            assert (3, Reason.EXITED) == (result.returncode, result.reason)

    harness.in_child(check)


@pytest.mark.usefixtures("in_flight")
@pytest.mark.parametrize("box", [Sandbox(), Sandbox().observe()], ids=["plain", "with a listener"])
def test_descriptors_that_nobody_receives_are_named_where_they_stop_a_launch(box):
    def check():
        limit = 60
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert 0 == box.run(["true"]).returncode
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            sent = 0
            while sent <= limit:
                try:
                    socket.send_fds(ours, [b"x"], [0])
                    sent += 1
                except OSError as error:  # those of other tests are under way, too, and arrive
                    if error.errno != errno.ETOOMANYREFS:
                        raise
            if os.geteuid() == 0:  # who may have more resources, may have these
                assert 0 == box.run(["true"]).returncode
                return
            with pytest.raises(SetupError) as caught:
                box.run(["true"])
            assert (errno.ETOOMANYREFS, True) == (caught.value.errno, "scm_fds" in str(caught.value))
        assert 0 == box.run(["true"]).returncode

    harness.in_child(check)


# Init's program, the caller's pidfd, and a tree where the kernel can clone one that is mounted nowhere.
KEPT = 3 if harness.kernel_release() >= (6, 15) else 2


def test_kept_descriptors_closed_by_the_caller_are_made_again():
    def check():
        box = Sandbox()
        before = set(harness._descriptors())
        for _ in range(3):
            for _ in range(3):
                assert b"x\n" == box.run(["echo", "x"], stdout=PIPE).stdout
            kept = set(harness._descriptors()) - before
            assert KEPT == len(kept)
            for fd in kept:
                os.close(fd)

    harness.in_child(check)


def test_kept_descriptors_replaced_by_the_caller_stay_the_callers():
    def check():
        box = Sandbox()
        for _ in range(3):
            box.run(["true"])
        kept = [
            native._init_program._kept.fd,
            native._lifeline[1].fd,
            *(one.fd for one in launcher._trees._kept.values()),
        ]
        assert KEPT == len(kept)
        for fd in kept:
            stranger = os.open("/dev/zero", os.O_RDONLY)
            os.dup2(stranger, fd)
            os.close(stranger)
        for _ in range(2):
            assert b"x\n" == box.run(["echo", "x"], stdout=PIPE).stdout
        for fd in kept:
            assert os.stat("/dev/zero").st_rdev == os.fstat(fd).st_rdev

    harness.in_child(check)


def test_lifeline_replaced_by_a_pidfd_of_another_process_is_noticed():
    def check():
        Sandbox().run(["true"])
        old = native._lifeline[1].fd
        child = os.fork()
        if child == 0:
            signal.pause()
        other = os.pidfd_open(child)
        os.dup2(other, old)
        with plans.launch(Sandbox(), ["sleep", "1000"]) as running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with pytest.raises(sandbox.TimeoutExpired):
                running.wait(0.3)  # it does not hang on the other process's life
            running.kill()

    harness.in_child(check)


def test_launch_after_fork_in_the_child_belongs_to_the_child():
    def check():
        harness.become_subreaper()
        box = Sandbox()
        for _ in range(3):
            box.run(["true"])
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                plans.launch(box, ["sleep", "1000"], fds={9: write_end})
                assert os.getpid() == native._lifeline[0]
                code = 0
            finally:
                os._exit(code)  # without a word to the sandbox
        os.close(write_end)
        assert 0 == os.waitpid(pid, 0)[1]
        # The sandbox ends with the process that launched it, not with the one that it was forked from.
        assert b"" == os.read(read_end, 1)
        assert 0 == box.run(["true"]).returncode
        assert plans.reap_all(2)

    harness.in_child(check)


def test_sandbox_outlives_the_thread_that_launched_it():
    box = Sandbox()
    started = []
    thread = threading.Thread(target=lambda: started.append(plans.launch(box, ["cat"], stdin=DEVNULL)))
    thread.start()
    thread.join()
    with started[0] as running:
        assert 0 == running.wait()
    started = []
    thread = threading.Thread(target=lambda: started.append(plans.launch(box, ["sleep", "1000"])))
    thread.start()
    thread.join()
    with pytest.raises(sandbox.TimeoutExpired):
        started[0].wait(0.2)
    started[0].close()


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_hundred_launches_from_eight_threads_leak_nothing():
    def check():
        if os.geteuid() == 0:
            # Names of our own: others launch, too, while this runs.
            unshare(CLONE_NEWNET)
        before, claims = harness.footprint(), plans.abstract_claims()
        box = Sandbox()
        wrong = []

        def work(thread):
            for i in range(25):
                code = (thread * 25 + i) % 256
                result = (box if i % 2 else Sandbox()).run(["/bin/sh", "-c", f"echo {code}; exit {code}"], stdout=PIPE)
                if (code, b"%d\n" % code) != (result.returncode, result.stdout):
                    wrong.append(result)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [] == wrong
        gc.collect()
        assert before == harness.footprint(settle=before)
        assert plans.claims_end(plans.abstract_claims() - claims)

    harness.in_child(check)


def test_first_launches_at_once_keep_one_descriptor_of_each_kind():
    def check():
        before = harness.footprint()
        box = Sandbox()
        for _ in range(5):
            gate = threading.Barrier(8)

            def work(gate=gate):
                gate.wait()
                box.run(["true"])

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert before == harness.footprint(settle=before)  # which drops what is kept on purpose

    harness.in_child(check)


def test_thousands_of_launches_from_many_threads_under_a_storm_of_signals():
    count = 250

    def check():
        handled = []
        signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
        signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        box = Sandbox.empty().bind_readonly("/usr").symlink("usr/bin", "/bin").symlink("usr/lib", "/lib")
        if os.path.islink("/lib64"):
            box = box.symlink("usr/lib64", "/lib64")
        stop = threading.Event()
        wrong, done = [], []

        def work(thread):
            for i in range(count):
                code = (thread + i) % 200
                try:
                    result = box.run(["/bin/sh", "-c", f"exit {code}"])
                    if result.returncode != code:
                        wrong.append(result)
                except BaseException as error:
                    wrong.append(error)
                done.append(1)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]

        def storm():
            while not stop.is_set():
                for thread in threads:
                    if thread.is_alive():
                        try:
                            signal.pthread_kill(thread.ident, signal.SIGUSR1)
                        except ProcessLookupError:
                            continue
                time.sleep(0.0005)

        before = harness.footprint()
        for thread in threads:
            thread.start()
        sender = threading.Thread(target=storm)
        sender.start()
        for thread in threads:
            thread.join()
        stop.set()
        sender.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert [] == wrong
        assert 8 * count == len(done)
        assert len(handled) > 100
        after = harness.footprint(settle=before)
        assert (before.descriptors, before.children) == (after.descriptors, after.children)

    harness.in_child(check)


def test_threads_that_fork_import_and_allocate_do_not_disturb():
    def check():
        stop = threading.Event()

        def noise():
            while not stop.is_set():
                list(map(str, range(1000)))
                subprocess.run(["/bin/true"], check=True)

        noisy = [threading.Thread(target=noise) for _ in range(3)]
        for thread in noisy:
            thread.start()
        box = Sandbox()
        try:
            assert list(range(40)) == [box.run(["/bin/sh", "-c", f"exit {i}"]).returncode for i in range(40)]
        finally:
            stop.set()
            for thread in noisy:
                thread.join()

    harness.in_child(check)


# ── Process ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_process_signals_polls_waits_and_closes():
    running = plans.launch(Sandbox(), ["sleep", "1000"])
    assert running.poll() is None
    with pytest.raises(sandbox.TimeoutExpired):
        running.wait(0.05)
    running.terminate()
    assert -signal.SIGTERM == running.wait()
    assert (-signal.SIGTERM, -signal.SIGTERM) == (running.poll(), running.returncode)
    running.send_signal(signal.SIGKILL)
    running.kill()
    running.close()
    running.close()
    with pytest.raises(ValueError, match="closed"):
        running.fileno()


def test_process_killed_from_outside_says_init_died():
    with plans.launch(Sandbox(), ["sleep", "1000"]) as running:
        os.kill(running.init_pid, signal.SIGKILL)
        result = running.result(20)
    assert (Reason.INIT_DIED, -9) == (result.reason, result.returncode)


def test_process_killed_when_its_init_is_stopped():
    with plans.launch(Sandbox(), ["sleep", "1000"]) as running:
        os.kill(running.init_pid, signal.SIGSTOP)
        running.kill()
        assert -9 == running.returncode


def test_process_left_by_an_exception_is_killed():
    with pytest.raises(RuntimeError), plans.launch(Sandbox(), ["sleep", "1000"]) as running:
        raise RuntimeError
    assert -9 == running.returncode


def test_process_communicate_feeds_drains_and_expires():
    command = ["/bin/sh", "-c", "cat; echo err >&2; sleep 1000"]
    running = Sandbox().popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    with pytest.raises(sandbox.TimeoutExpired):
        running.communicate(b"hello", timeout=0.3)
    running.kill()
    running.close()


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def channel():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return native.ControlChannel(ours.detach()), theirs


def record(type_, value=0):
    return struct.pack("<2I2iq", type_, 0, 0, 0, value) + bytes(records.RECORD_SIZE - 24)


def test_last_record_is_read_although_a_request_came_too_late():
    control, theirs = channel()
    theirs.send(record(records.R_ENDED, 7 << 8))
    control.send(records.request(records.Q_KILL))
    theirs.close()  # with the request unread: the kernel resets the channel
    assert 7 << 8 == control.receive(wait=True).value
    assert control.receive(wait=True) is None
    control.send(records.request(records.Q_KILL))
    control.close()


def test_channel_without_a_word_says_so():
    control, theirs = channel()
    with pytest.raises(BlockingIOError):
        control.receive(wait=False)
    theirs.close()
    assert control.receive(wait=False) is None
    control.close()


@pytest.mark.parametrize("size", [1, 24, records.RECORD_SIZE - 1, records.RECORD_SIZE + 1, 60_000])
def test_record_of_another_size_is_no_record(size):
    control, theirs = channel()
    theirs.send(bytes(size))
    try:
        if size > records.RECORD_SIZE:  # cut to its size: nobody else can send on this channel
            assert 0 == control.receive(wait=True).type
        else:
            with pytest.raises(ValueError, match="1024"):
                control.receive(wait=True)
    finally:
        theirs.close()
        control.close()


def test_program_that_ends_before_the_launch_has_heard_of_its_init(monkeypatch):
    class Late(native.ControlChannel):
        """Stage 1 gets the processor late: what it says comes last."""

        __slots__ = ("kept",)

        def receive(self, *, wait):
            if not hasattr(self, "kept"):
                self.kept = []
                while not self.kept or self.kept[-1].type != records.R_ENDED:
                    self.kept.append(super().receive(wait=wait))
                self.kept.sort(key=lambda one: one.type == records.R_INIT)
            return self.kept.pop(0) if self.kept else super().receive(wait=wait)

    monkeypatch.setattr(launch_module, "ControlChannel", Late)
    for options in ({}, {"stdout": PIPE}, {"timeout": 60}):
        result = Sandbox().run(["/bin/sh", "-c", "echo x; exit 7"], **({"stdout": DEVNULL} | options))
        assert (7, Reason.EXITED) == (result.returncode, result.reason)


def test_sandboxes_beyond_the_kept_trees_each_have_their_own():
    boxes = [Sandbox().file("/etc/mine", str(i)) for i in range(2 * launcher._MAX_TREES)]
    for _ in range(4):
        for i, box in enumerate(boxes):
            assert str(i).encode() == box.run(["cat", "/etc/mine"], stdout=PIPE).stdout
    for _ in range(4):  # and when the caller closes them
        for i, box in enumerate(boxes):
            assert str(i).encode() == box.run(["cat", "/etc/mine"], stdout=PIPE).stdout
            for kept in list(launcher._trees._kept.values())[-1:]:
                os.close(kept.fd)


def test_pid_is_the_payloads_as_the_host_sees_it_until_it_has_ended():
    with Sandbox().popen(["cat"], stdin=PIPE, stdout=PIPE, bufsize=0) as running:
        # The kernel gives the name a moment after execve can no longer fail: when the program answers, it has it.
        running.stdin.write(b"?")
        assert b"?" == running.stdout.read(1)
        with open(f"/proc/{running.pid}/comm") as stream:
            assert "cat\n" == stream.read()
        running.stdin.close()
        assert 0 == running.wait()
    with Sandbox().popen(["true"]) as ended:
        ended.wait()
        with pytest.raises(ProcessLookupError):
            assert not ended.pid
