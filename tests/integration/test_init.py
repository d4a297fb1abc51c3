"""init on its own: broken plans, forged requests, further payloads, and a launcher that dies at any moment."""

import ctypes
import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import harness
import plans
import pytest

import sandbox as package
from sandbox import Sandbox, SetupError, compiler, launcher
from sandbox.launch.native import ControlChannel
from sandbox.plan import Command, Program
from sandbox.records import (
    Q_KILL,
    Q_NAMESPACE,
    Q_PIDFD,
    Q_SPAWN,
    R_ENDED,
    R_FAILED,
    R_FD,
    R_INIT,
    R_REFUSED,
    R_STARTED,
    RECORD_SIZE,
    request,
)
from sandbox.template import Template, candidates

pytestmark = pytest.mark.needs_userns

INIT = os.path.join(os.path.dirname(package.__file__), "init")
HEADER = struct.Struct("<16I")


def memfd(content):
    fd = os.memfd_create("plan", 0)
    os.write(fd, content)
    return fd


def run_init(content, seconds=10, slots=True):
    """Execute init with a plan; return its exit code. Its control channel is a socket that nobody reads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = memfd(content)
    if slots and len(content) >= 68:
        os.pwrite(fd, struct.pack("<6i", theirs.fileno(), -1, -1, -1, -1, -1), 64)
    try:
        child = subprocess.Popen(["sandbox-init", str(fd)], executable=INIT, pass_fds=[fd, theirs.fileno()], env={})
        theirs.close()
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise
    finally:
        os.close(fd)
        ours.close()


def harmless():
    """A plan whose calls do nothing, whatever happens to its numbers: the fuzzer leaves the calls alone."""
    program = Program()
    program.segment, program.origin = "stage", "test"
    for i in range(6):
        buffer = program.data(bytes(64), f"buffer {i}")
        fd = program.call("getpid", name="pid", store=(buffer, 8, 4))
        program.call("getpid", fd, buffer, "text", i, tolerate=(9,), skip=1)
        program.call("getpid", program.slot(f"slot {i}"), b"bytes")
    program.call("end")
    command = Command((b"a", b"b"), (b"C=d",), (b"/x",))
    return bytes(Template(program.plan(command)).image(command))


def test_plan_that_is_whole_is_run():
    assert 0 == run_init(harmless())


def header_with(image, **changes):
    names = (
        "magic version size flags steps step_count f0 f1 f2 c0 c1 c2 relocations relocation_count slots rest"
    ).split()
    fields = dict(zip(names, HEADER.unpack_from(image), strict=True)) | changes
    return HEADER.pack(*fields.values()) + image[HEADER.size :]


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": 0},
        {"version": 99},
        {"size": 0},
        {"size": 2**32 - 1},
        {"steps": 4},
        {"steps": 2**32 - 8},
        {"step_count": 8193},
        {"step_count": 2**32 - 1},
        {"c0": 2**32 - 1},
        {"f1": 3},
        {"c1": 1},
        {"relocations": 3},
        {"relocations": 2**32 - 8},
        {"relocation_count": 2**29},
        {"relocation_count": 2**32 - 1},
        {"slots": 0},
        {"slots": 257},
        {"rest": 1},
    ],
    ids=str,
)
def test_header_that_lies_is_refused(changes):
    assert 126 == run_init(header_with(harmless(), **changes))


def test_truncated_plan_is_refused():
    image = harmless()
    for size in (0, 1, 63, 64, 1087, 1088, len(image) // 2, len(image) - 1):
        assert 126 == run_init(image[:size], slots=size > 100), size


def test_huge_plan_is_refused():
    image = harmless()
    fd = memfd(image)
    os.ftruncate(fd, (64 << 20) + 4096)
    try:
        child = subprocess.run(["sandbox-init", str(fd)], executable=INIT, pass_fds=[fd], env={}, check=False)
    finally:
        os.close(fd)
    assert 126 == child.returncode


@pytest.mark.parametrize("argument", ["", "-1", "x", "3x", " 3", "999999999999", "77"])
def test_argument_that_is_no_plan_is_refused(argument):
    child = subprocess.run(["sandbox-init", argument], executable=INIT, env={}, check=False)
    assert 126 == child.returncode


@pytest.mark.parametrize("argv", [[], ["init"], ["init", "3", "4"]])
def test_wrong_number_of_arguments_is_refused(argv):
    if not argv:
        pid = os.fork()
        if pid == 0:
            os.execve(INIT, ["x"], {})
        assert 126 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return
    assert 126 == subprocess.run(argv, executable=INIT, env={}, check=False).returncode


@pytest.mark.needs_root
def test_init_that_was_made_setuid_does_nothing(tmp_path):
    copy = tmp_path / "init"
    with open(INIT, "rb") as source:
        copy.write_bytes(source.read())
    tmp_path.chmod(0o755)
    image = memfd(harmless())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.pwrite(image, struct.pack("<6i", theirs.fileno(), -1, -1, -1, -1, -1), 64)
    os.chmod(image, 0o444)
    try:
        for mode, expected in ((0o755, 0), (0o4755, 126), (0o6755, 126)):
            copy.chmod(mode)
            child = subprocess.run(
                ["init", str(image)],
                executable=copy,
                pass_fds=[image, theirs.fileno()],
                user=harness.USER_ID,
                check=False,
            )
            assert expected == child.returncode
    finally:
        os.close(image)
        ours.close()
        theirs.close()


def test_fuzzed_plans_never_hang_and_end_in_order():
    """Bytes flip everywhere but in the numbers of calls, so that no other call is made than getpid."""
    image = harmless()
    fields = dict(enumerate(HEADER.unpack_from(image)))
    steps, count = fields[4], fields[5]
    calls = set()
    for i in range(count):
        at = steps + 96 * i + struct.calcsize("<6Qqq2I")
        calls |= {at, at + 1}
    places = [at for at in range(len(image)) if at not in calls and not 64 <= at < 88]
    front = [at for at in places if at < 64] * 4 + [at for at in places if steps <= at < steps + 96 * count]

    def check():
        # Where a number of a call comes out after all: a namespace of its own, and nobody's privileges.
        from sandbox import primitives as kernel

        program = os.open(INIT, os.O_RDONLY)
        if os.geteuid() == 0:
            harness.drop_privileges()
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET)
        dice = random.Random(20240917)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.set_inheritable(True)
        reaper = os.fork()
        if reaper == 0:  # PID 1 of the new namespace: it lasts as long as the test
            signal.pause()
        seen = set()
        try:
            for _ in range(2000):
                broken = bytearray(image)
                for _ in range(dice.choice((1, 1, 2, 5, 50))):
                    at = dice.choice(places if dice.random() < 0.5 else front)
                    broken[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
                fd = memfd(broken)
                os.pwrite(fd, struct.pack("<6i", theirs.fileno(), -1, -1, -1, -1, -1), 64)
                os.set_inheritable(fd, True)
                pid = os.posix_spawn(f"/proc/self/fd/{program}", ["sandbox-init", str(fd)], {})
                pidfd = os.pidfd_open(pid)
                ready = select.select([pidfd], [], [], 10)[0]
                if not ready:
                    os.kill(pid, signal.SIGKILL)
                seen.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(pidfd)
                os.close(fd)
                assert ready, f"it hangs: {bytes(broken).hex()}"
                while select.select([ours], [], [], 0)[0]:
                    ours.recv(2048)
        finally:
            os.kill(reaper, signal.SIGKILL)
            os.waitpid(reaper, 0)
        assert seen <= {0, 125, 126, -signal.SIGSEGV, -signal.SIGBUS}, seen
        assert {0, 126} <= seen  # the fuzzer reaches both sides

    harness.in_child(check)


# ── requests of the launcher ─────────────────────────────────────────────────────────────────────────────────────────


def running(args=("sleep", "1000")):
    return plans.launch(Sandbox().seccomp(None), list(args))


def answer(process, kinds=(R_FD, R_REFUSED)):
    while True:
        record = process._control.receive(wait=True)
        if record is None or record.type in kinds:
            return record
        for fd in record.fds:
            os.close(fd)


def test_namespaces_of_pid_1_are_handed_out():
    names = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    with running() as process:
        for number, name in enumerate(names):
            process._control.send(request(Q_NAMESPACE, id_=7, value=number))
            record = answer(process)
            assert (R_FD, 7, number) == (record.type, record.id, record.value)
            (fd,) = record.fds
            kind = fcntl.ioctl(fd, 0xB703)  # NS_GET_NSTYPE
            flags = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000,
                     "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}  # fmt: skip
            assert flags[name] == kind
            if name != "time":
                assert os.stat(f"/proc/self/ns/{name}").st_ino != os.fstat(fd).st_ino
            os.close(fd)
        for wrong in (-1, 8, 2**62):
            process._control.send(request(Q_NAMESPACE, value=wrong))
            assert (R_REFUSED, errno.EINVAL) == answer(process)[0:4:3]
        process.kill()


def test_unknown_and_empty_requests_are_refused():
    with running() as process:
        for kind in (0, 1, 5, 63, 2**32 - 1):
            process._control.send(request(kind, id_=3))
            record = answer(process)
            assert (R_REFUSED, 3, errno.EINVAL) == (record.type, record.id, record.error)
        process._control.send(request(Q_SPAWN, id_=4))  # without a plan
        assert (R_REFUSED, 4) == answer(process)[:2]
        process._control.send(request(Q_PIDFD, id_=99))  # of nobody
        assert (R_REFUSED, 99) == answer(process)[:2]
        process.kill()


@pytest.mark.parametrize("size", [1, 24, RECORD_SIZE - 1, RECORD_SIZE + 1, 100_000])
def test_request_of_another_size_is_passed_over(size):
    with running() as process:
        channel = socket.socket(fileno=os.dup(process._control.fileno()))
        with channel:
            try:
                socket.send_fds(channel, [bytes(size)], [0, 1, 2])
            except OSError as error:  # larger than a socket takes
                assert errno.EMSGSIZE == error.errno
        process._control.send(request(Q_NAMESPACE, value=0))
        record = answer(process)
        assert R_FD == record.type
        os.close(record.fds[0])
        # The descriptors that came with it are not kept.
        if os.geteuid() == 0:
            kept = os.listdir(f"/proc/{process.init_pid}/fd")
            assert len(kept) < 8
        process.kill()


def further(process, command, fds=(-1, -1, -1), **changes):
    """Ask for one more payload: the payload's segment of a plan as a plan of its own; return its channel."""
    box = Sandbox().seccomp(None)
    plan = compiler.compile_plan(box._spec, launcher.caller(box._spec), compiler.Variant(further=True)).plan
    words = tuple(word.encode() for word in command)
    spec = Command(words, (b"PATH=/usr/bin",), candidates(words[0], "/usr/bin:/bin"))
    image = bytes(Template(plan).image(spec))
    if changes:
        image = header_with(image, **changes)
    plan_fd, null = memfd(image), os.open("/dev/null", os.O_RDWR)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    given = [plan_fd, theirs.fileno(), *(null if fd < 0 else fd for fd in fds)]
    channel = socket.socket(fileno=os.dup(process._control.fileno()))
    try:
        socket.send_fds(channel, [request(Q_SPAWN, id_=5)], given)
    finally:
        channel.close()
        theirs.close()
        os.close(plan_fd)
        os.close(null)
    return ControlChannel(ours.detach())


def records_of(channel, last=None):
    """Return what a payload's channel says, up to a kind of record, or to its end: then it is closed."""
    found = []
    while not found or found[-1].type != last:
        try:
            record = channel.receive(wait=True)
        except BlockingIOError:
            continue
        if record is None:
            channel.close()
            break
        for fd in record.fds:
            os.close(fd)
        found.append(record)
    return found


def test_further_payload_runs_and_reports_on_its_own_channel():
    with plans.pipes() as (read_end, write_end), running() as process:
        for code in (0, 3):
            told = records_of(further(process, ["sh", "-c", f"echo pid $$; exit {code}"], fds=(-1, write_end, -1)))
            assert [(R_INIT, 5, 1), (R_STARTED, 5, 0), (R_ENDED, 5, 0)] == [(r.type, r.id, len(r.fds)) for r in told]
            assert code << 8 == told[-1].value
            assert os.read(read_end, 100).startswith(b"pid ")
        assert process.poll() is None
        told = records_of(further(process, ["no-such-program"]))
        assert (R_FAILED, 5, errno.ENOENT) == (told[-1].type, told[-1].id, told[-1].error)
        told = records_of(further(process, ["true"], magic=0))
        assert [(R_REFUSED, errno.EPROTO)] == [(r.type, r.error) for r in told]
        assert [R_REFUSED] == [r.type for r in records_of(further(process, ["true"], fds=(-1, -1)))]
        assert process.poll() is None
        process.kill()
        assert -9 == process.returncode


def test_channel_of_a_further_payload_takes_no_request_of_the_sandbox():
    with running() as process:
        channel = further(process, ["sleep", "1000"])
        records_of(channel, R_STARTED)
        for kind in (Q_SPAWN, Q_NAMESPACE, 0, 2**32 - 1):
            channel.send(request(kind))
        channel.send(request(Q_KILL))
        told = records_of(channel)
        assert [errno.EINVAL] * 4 == [record.error for record in told if record.type == R_REFUSED]
        assert (R_ENDED, signal.SIGKILL) == (told[-1].type, told[-1].value)
        assert process.poll() is None
        process.kill()


def test_many_further_payloads_at_once_and_no_more_than_there_is_room_for():
    with running() as process:
        channels = [further(process, ["sleep", "1000"]) for _ in range(40)]
        process.send_signal(0)
        for channel in channels[:31]:
            assert R_STARTED == records_of(channel, R_STARTED)[-1].type
        process.kill()
        ends = [records_of(channel)[-1].type for channel in channels]
        assert [R_ENDED] * 31 + [R_REFUSED] * 9 == ends


# ── the launcher dies ────────────────────────────────────────────────────────────────────────────────────────────────

SECONDS = 5  # a second is the promise; the machine may be busy


def orphan(function):
    """Run a function in a forked child, in which it never returns; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(99)
    return pid


def points(plan):
    """Return places of a barrier: around each turn that the set-up takes."""
    wanted = {"open_tree", "clone", "write_proc", "release", "pivot_root", "capset", "check_lifeline", "fork_payload",
              "setsid", "place_fds", "verify", "execve", "sethostname", "fsopen"}  # fmt: skip
    for segment, calls in zip(("stage", "init", "payload"), plan.segments, strict=True):
        last = ""
        for position, call in enumerate(calls):
            if call.call in wanted and call.call != last:
                yield segment, position, call.call
            last = call.call


def test_launcher_killed_at_every_phase_leaves_nothing_and_nothing_runs():
    def check():
        harness.become_subreaper()
        box = Sandbox().seccomp(None)
        command = ["/bin/sh", "-c", "echo ran >&9; sleep 1000"]
        plan = box.plan(command)
        chosen = list(points(plan))
        assert len(chosen) > 12
        for segment, position, name in chosen:
            if segment == "payload" and name == "execve":
                continue  # nothing may come between the last layers and the program
            held = plans.held(plan, segment, position)
            with plans.pipes(3) as fds:
                go, release, told, tell, ran, runs = fds

                def start(held=held, go=go, tell=tell, release=release):
                    os.close(release)
                    plans.launch(box, command, plan=held, stdin=go, stdout=tell)
                    signal.pause()

                pid = orphan(start)
                os.close(go)
                os.close(tell)
                fds[0] = fds[3] = -1
                assert b"!" == os.read(told, 1), (segment, position, name)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.write(release, b".")
                assert plans.reap_all(SECONDS), f"something is left: killed before {segment} {position}, {name}"
                os.close(runs)
                fds[5] = -1
                assert b"" == os.read(ran, 10)

    harness.in_child(check)


@pytest.mark.parametrize("how", ["killed", "sibling holds its descriptors", "executes another program"])
def test_sandbox_ends_with_its_launcher(how):
    def check():
        harness.become_subreaper()
        with plans.pipes(2) as (ready, started, wait, hold):

            def start():
                box = Sandbox()
                with open("/dev/null") as null:
                    process = plans.launch(box, ["/bin/sh", "-c", "(setsid sleep 1000 &) ; sleep 1000"])
                    if how == "sibling holds its descriptors" and os.fork() == 0:
                        os.close(hold)
                        os.read(wait, 1)  # with the control channel open, until the test is over
                        os._exit(0)
                    os.write(started, struct.pack("<i", process.init_pid))
                    if how == "executes another program":
                        os.execv("/bin/sleep", ["sleep", "1000"])
                    null.fileno()
                    signal.pause()

            pid = orphan(start)
            (init_pid,) = struct.unpack("<i", os.read(ready, 4))
            if how != "executes another program":
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            deadline = time.monotonic() + SECONDS
            while alive(init_pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not alive(init_pid)
            if how == "executes another program":
                os.kill(pid, signal.SIGKILL)
            os.write(hold, b"x")
            assert plans.reap_all(SECONDS)

    harness.in_child(check)


def alive(pid):
    """Say whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def test_launcher_killed_at_random_moments_leaves_nothing():
    def check():
        harness.become_subreaper()
        dice = random.Random(7)
        for _ in range(40):

            def start():
                box = Sandbox()
                while True:
                    box.run(["true"])

            pid = orphan(start)
            time.sleep(dice.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            assert plans.reap_all(SECONDS)

    harness.in_child(check)


# ── somebody harms init ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    ("segment", "call"),
    [
        ("stage", "clone"),
        ("stage", "release"),
        ("init", "pivot_root"),
        ("init", "check_lifeline"),
        ("payload", "verify"),
    ],
)
def test_process_of_the_set_up_killed_or_stopped_is_noticed(segment, call, number):
    def check():
        harness.become_subreaper()
        box = Sandbox().seccomp(None)
        plan = box.plan(["true"])
        index = ("stage", "init", "payload").index(segment)
        position = [one.call for one in plan.segments[index]].index(call)
        before = harness.footprint()
        with plans.pipes(2) as (go, _, told, tell):

            def harm():
                os.read(told, 1)
                stage, init = min(harness.children()), max(harness.children())
                target = {"stage": stage, "init": init}.get(segment)
                if target is None:
                    with open(f"/proc/{init}/task/{init}/children") as stream:
                        target = int(stream.read())
                os.kill(target, number)

            thread = threading.Thread(target=harm)
            thread.start()
            with pytest.raises(SetupError) as caught:
                plans.launch(box, ["true"], plan=plans.held(plan, segment, position), stdin=go, stdout=tell)
            thread.join()
        assert caught.value.hint
        after = harness.footprint(settle=before)
        assert (before.descriptors, before.children) == (after.descriptors, after.children)

    harness.in_child(check)


_SIGACTION, _CLOSE_RANGE = {"x86_64": 13}.get(os.uname().machine, 134), 436
_PTRACE_SYSCALL, _PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 24, 17, 0x4206, 0x4207


def test_end_of_a_payload_that_is_pid_1_is_heard_whatever_its_watcher_is_doing():
    """A signal that waits is discarded when its disposition is set: the watcher must not do that now."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4

    def check():
        box = Sandbox().init(False)
        plan = box.plan(["true"])
        verify = next(number for number, (_, call) in enumerate(plan.calls(), 1) if call.call == "verify")
        position = [call.call for call in plan.segments[0]].index("stay")
        held = plans.held(plan.with_fault(verify, errno.EPERM), "stage", position)
        caught = []

        def launch(go, tell):
            try:
                plans.launch(box, ["true"], plan=held, stdin=go, stdout=tell)
            except SetupError as error:
                caught.append(error.call.partition("(")[0])

        with plans.pipes(2) as (go, release, told, tell):
            thread = threading.Thread(target=launch, args=(go, tell), daemon=True)
            thread.start()
            assert b"!" == os.read(told, 1)
            (stage,) = harness.children()
            with open(f"/proc/{stage}/task/{stage}/children") as stream:
                init = int(stream.read())
            assert 0 == libc.ptrace(_PTRACE_SEIZE, stage, 0, 0), os.strerror(ctypes.get_errno())
            assert 0 == libc.ptrace(_PTRACE_INTERRUPT, stage, 0, 0)
            os.write(release, b".")
            call = None
            while call not in {_SIGACTION, _CLOSE_RANGE}:
                os.waitpid(stage, 0)
                call = int(plans.text_of(f"/proc/{stage}/syscall").split()[0])
                if call not in {_SIGACTION, _CLOSE_RANGE}:
                    assert 0 == libc.ptrace(_PTRACE_SYSCALL, stage, 0, 0)
            while alive(init):
                time.sleep(0.001)
            assert 0 == libc.ptrace(_PTRACE_DETACH, stage, 0, 0)
            thread.join(SECONDS)
            assert ["verify"] == caught

    harness.in_child(check)
