"""Every step of every kind of plan fails in turn: the error names it, the payload never runs, nothing is left."""

import errno
import os
from types import MappingProxyType

import harness
import plans
import pytest

from sandbox import DEVNULL, Filter, Notify, Sandbox, SetupError, compiler, hints, launch, launcher
from sandbox.plan import Command
from sandbox.template import Template

pytestmark = pytest.mark.needs_userns


# Of the launch.
OPTIONS = {
    "held": {"hold": True},
    "held and nested": {"hold": True},
    "terminal": {"pty": True},
    "descriptors": {"fds": {9: 0, 200: 0}, "cwd": "/tmp", "env": {"PATH": "/bin"}},
}


def sandboxes(path, given):
    """Return sandboxes whose plans hold every kind of step; given: a descriptor of a file."""
    data = path / "data"
    data.mkdir(exist_ok=True)
    (data / "sub").mkdir(exist_ok=True)
    (data / "file").write_text("x")
    roots = path / "roots"
    roots.mkdir(exist_ok=True)
    for one in (data, data / "sub"):
        harness.give_away(one)
    canary = Sandbox().bind(path / "canary", "/canary")
    return {
        "default": canary,
        "builder": (
            canary.bind_readonly(data, "/data")
            .bind(data / "sub", "/some", optional=True)
            .bind_readonly(data, "/opt/deep/er")
            .tmpfs("/scratch", size="1M", inodes=100, mode=0o700)
            .bind(data, "/scratch/a/b")
            .file("/etc/app.conf", b"debug=1\n", mode=0o444)
            .file("/scratch/c/d", "text")
            .dir("/var/lib/x", mode=0o700)
            .dir("/scratch/e", mode=0o700)
            .symlink("/data", "/current")
            .symlink("/data", "/scratch/f")
            .mask("/usr/share/doc")
            .mask("/etc/passwd")
            .remount_readonly("/scratch/a/b")
            .hostname("h")
            .domainname("d")
            .cwd("/scratch")
            .dev(shm="1M")
            .proc("/proc2", subset="pid")
        ),
        "host network": canary.network("host"),
        "no network": canary.network("none"),
        "shared": canary.share("ipc", "uts", "cgroup", "net"),
        "as root inside": canary.user(0),
        "landlock": canary.landlock(read=["/"], write=["/canary"], execute=["/usr"]).landlock(
            write=["/canary", "/nowhere"], best_effort=True
        ),
        "capabilities": canary.capabilities(["NET_ADMIN"], ambient=["NET_RAW"]),
        "nested": canary.user(0).capabilities(["SYS_ADMIN"], ambient=["SYS_ADMIN"]),
        "observed": canary.observe(),
        "limits": canary.limit(open_files=64, file_size="1M", stack="1M", core="1M"),
        "python": canary.python(),
        "time": canary.time_offset(monotonic=100, boottime=-0.5),
        "caller's session": canary.new_session(False).limit(wall_time=60, cpu_time=60),
        "no init": canary.init(False).limit(wall_time=60),
        "no init, all else": canary.init(False)
        .new_session(False)
        .time_offset(monotonic=1)
        .user(0)
        .capabilities(["SYS_ADMIN"]),
        "owners": canary.bind(data / "sub", "/own").bind(data, "/optional", optional=True),
        "of root": canary.bind_readonly(data, "/hers", owner=os.getuid())
        if os.getuid()
        else canary.bind(roots, "/roots", owner=0).seccomp(None),
        "many ids": canary.id_ranges() if os.getuid() == 0 else canary,
        "filter of one's own": canary.seccomp(Filter.default().deny("keyctl")),
        "filter that asks": canary.seccomp(Filter.default().rule(Notify, "mkdir")),
        "held": canary.limit(open_files=64),
        "held and nested": canary.capabilities(["SYS_ADMIN"]),
        "terminal": canary,
        "descriptors": canary.file_fd("/etc/given", given).umask(0o27).env(A="b").cwd("/usr"),
    }


NAMES = (
    *("default", "builder", "host network", "no network", "shared", "as root inside"),
    *("owners", "of root", "many ids"),
    *("landlock", "capabilities", "nested", "observed", "limits", "filter of one's own"),
    *("python", "time", "caller's session", "no init", "no init, all else"),
    *("filter that asks", "held", "held and nested", "terminal", "descriptors"),
)
RAN = ["/bin/sh", "-c", "echo ran >/canary/ran"]


def reached(plan):
    """Return the indices of the steps that a run makes: a mask has steps for a directory and others for a file."""
    numbers, left_out = [], 0
    for number, (_, call) in enumerate(plan.calls()):
        if left_out:
            left_out -= 1
            continue
        numbers.append(number)
        missing = errno.ENOENT in call.tolerate and b"/nowhere" in call.args
        if call.call == "skip" or missing or (errno.ENOTDIR in call.tolerate and "passwd" in call.origin):
            left_out = call.skip
    return numbers


def run(sandbox, plan, options):
    """Launch, and return the exit code; a held payload is let go on."""
    with plans.launch(sandbox, RAN, plan=plan, **options) as process:
        process.release()
        try:
            return process.wait()
        finally:
            if process.terminal is not None:
                process.terminal.close()


def fail_each(sandbox, plan, steps, canary, options=MappingProxyType({})):
    """Let each of these steps fail, and look at the error and the canary."""
    calls = [call for _, call in plan.calls()]
    for step in steps:
        fail_step(sandbox, plan, step, calls, canary, options)


def fail_step(sandbox, plan, step, calls, canary, options):
    number, call = step.number, calls[step.number - 1]
    error = plans.plausible(call)
    with pytest.raises(SetupError) as caught:
        run(sandbox, plan.with_fault(number, error), options)
    told = caught.value
    assert (number, error, call.origin) == (told.step, told.errno, told.origin), f"{call}"
    assert len(calls) == told.steps
    assert ('execve("/bin/sh")' if call.call == "execve" else str(step)) == told.call
    assert told.hint or (call.call, error) not in hints.BY_CALL, f"{call}"
    assert all(part in str(told) for part in (f"step {number} of", told.call, errno.errorcode[error], call.origin))
    assert isinstance(told, type(OSError(error, "")))
    assert [] == os.listdir(canary), f"the payload ran: {call}"


def below(path):
    """Return what there is in a directory and all below it."""
    return {(folder, *names, *files) for folder, names, files in os.walk(path)}


@pytest.mark.parametrize("name", NAMES)
def test_each_step_fails_in_turn_and_nothing_runs_or_stays(name, tmp_path):
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o777)
    canary.chmod(0o777)
    harness.give_away(canary)
    tmp_path.chmod(0o755)
    given = os.open(__file__, os.O_RDONLY)
    box, default = (sandboxes(tmp_path, given)[one] for one in (name, "default"))
    options = OPTIONS.get(name, {})
    plan = plans.plan_of(box, RAN, **options)
    before, files = harness.footprint(), below(tmp_path)
    # Most steps of the other plans are those of the default, which is gone through as a whole.
    all_steps = plan.steps
    steps = [step for step in map(all_steps.__getitem__, reached(plan)) if step.call != "skip"]
    if name != "default":
        known = {(s.call, s.args, s.origin) for s in plans.plan_of(default, RAN).steps}
        ends = {"clone", "fork_payload", "verify", "hold", "execve"}
        steps = [s for s in steps if (s.call, s.args, s.origin) not in known or s.call in ends]
    fail_each(box, plan, steps, canary, options)
    assert before == harness.footprint(settle=before)
    assert files == below(tmp_path)
    # The positive control: without a fault the same plan runs the payload.
    assert 0 == run(box, plan, options)
    assert ["ran"] == os.listdir(canary)
    os.close(given)


def test_each_step_of_a_root_file_system_fails_in_turn(tmp_path):
    root = tmp_path / "root"
    for name in ("bin", "dev", "proc", "tmp", "canary", "data"):
        (root / name).mkdir(parents=True)
    canary = tmp_path / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    harness.give_away(canary)
    tmp_path.chmod(0o755)
    busybox = harness.find_program("busybox")
    if busybox is None:
        pytest.skip("needs the program busybox")
    os.symlink("busybox", root / "bin/sh")
    (root / "bin/busybox").write_bytes(b"")
    sandbox = (
        Sandbox()
        .rootfs(root)
        .bind_readonly(busybox, "/bin/busybox")
        .bind(canary, "/canary")
        .tmpfs("/data")
        .file("/data/x", "y")
        .mask("/bin")
        .remount_readonly("/tmp")
    )
    plan = sandbox.plan(RAN)
    all_steps = plan.steps
    fail_each(sandbox, plan, [s for s in map(all_steps.__getitem__, reached(plan)) if s.call != "skip"], canary)
    unmasked = Sandbox().rootfs(root).bind_readonly(busybox, "/bin/busybox").bind(canary, "/canary")
    with plans.launch(unmasked, RAN) as process:
        assert 0 == process.wait()
    assert ["ran"] == os.listdir(canary)


def test_fault_of_a_launch_leaves_no_claimed_id_and_no_memfd():
    sandbox = Sandbox()
    plan = sandbox.plan(["true"])
    plans.launch(sandbox, ["true"]).close()  # init's program and the lifeline are kept from here on
    before, claims = harness.footprint(), plans.abstract_claims()
    for step in plan.steps[::17]:
        with pytest.raises(SetupError):
            plans.launch(sandbox, ["true"], plan=plan.with_fault(step.number, errno.EPERM))
    assert before == harness.footprint(settle=before)
    assert plans.claims_end(plans.abstract_claims() - claims)


def test_tolerated_errno_is_no_failure_and_skips_what_needs_the_result(tmp_path):
    sandbox = Sandbox().bind(tmp_path / "gone", "/gone", optional=True)
    plan = sandbox.plan(["true"])
    tolerant = [
        (number, error)
        for number, (_, call) in enumerate(plan.calls(), 1)
        for error in call.tolerate
        if call.call in {"open_tree", "keyctl"}
    ]
    assert len(tolerant) > 3
    for number, error in tolerant:
        with plans.launch(sandbox, ["true"], plan=plan.with_fault(number, error)) as process:
            assert 0 == process.wait()


def test_every_step_of_the_cached_tree_may_fail_and_the_launch_works_all_the_same():
    sandbox = Sandbox()
    who = launcher.caller(sandbox._spec)
    tree = compiler.compile_plan(sandbox._spec, who, compiler.Variant()).tree
    plan = compiler.compile_tree(tree, who)
    ids = (("uid_map", f"{who.uid} {who.uid} 1\n".encode()), ("gid_map", f"{who.gid} {who.gid} 1\n".encode()))
    before = harness.footprint()
    for number, (_, call) in enumerate(plan.calls(), 1):
        if call.call == "end":
            continue
        with pytest.raises(SetupError) as caught:
            launch.build(Template(plan.with_fault(number, plans.plausible(call))), Command(values=ids))
        assert number == caught.value.step
    assert before == harness.footprint(settle=before)
    (fd,) = launch.build(Template(plan), Command(values=ids))
    os.close(fd)


def test_kept_tree_that_cannot_be_built_is_done_without(monkeypatch):
    def broken(tree, who):
        plan = compiler.compile_tree(tree, who)
        return plan.with_fault(len(plan.steps) - 2, errno.EINVAL)

    monkeypatch.setattr(launcher, "compile_tree", broken)
    sandbox = Sandbox().file("/etc/of-this-test", str(os.getpid()))
    for _ in range(3):
        assert 0 == sandbox.run(["true"], stdout=DEVNULL).returncode


def test_set_up_works_again_after_a_failure():
    sandbox = Sandbox()
    plan = sandbox.plan(["true"])
    for _ in range(2):
        with pytest.raises(SetupError):
            plans.launch(sandbox, ["true"], plan=plan.with_fault(1, errno.EMFILE))
        assert 0 == sandbox.run(["true"]).returncode
