"""The steps of the payload's own process, up to execve."""

from errno import ENOSYS, EPERM
from signal import SIGKILL
from struct import pack
from typing import TYPE_CHECKING

from sandbox import kernel as k
from sandbox.compiler.filters import install_filters
from sandbox.compiler.privileges import capability_sets, join_nested, nest, verify
from sandbox.kernel import Flag
from sandbox.limits import RLIMITS, resource_limits, shown
from sandbox.plan import Late, Slot

if TYPE_CHECKING:
    from sandbox.compiler.draft import Draft


def start_payload(draft: "Draft") -> None:
    """Prepare the process that is the payload's, check it, and execute the program."""
    program, spec = draft.program, draft.spec
    if draft.nested and draft.variant.further:
        join_nested(draft)
    elif draft.nested:
        nest(draft)
    elif draft.variant.further and spec.keep:
        # PID 1 has them, but not in force.
        program.origin = "capabilities"
        header = program.data(pack("<2I", 0x20080522, 0), "{_LINUX_CAPABILITY_VERSION_3, 0}")
        program.call("capset", header, capability_sets(program, spec.keep, spec.keep))
    program.origin = "session"
    if spec.new_session:
        program.call("setsid")
    if "pid" not in spec.new_namespaces:
        # Elsewhere the kernel ends all with PID 1. Init has one thread, so this means the end of init.
        program.call("prctl", k.PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    # No key of the caller's; where keyctl is not to be had, no program inside has it either.
    program.call("keyctl", k.KEYCTL_JOIN_SESSION_KEYRING, 0, tolerate=(ENOSYS, EPERM))
    numbers = {0: 3, 1: 4, 2: 5}
    if draft.variant.pty:
        from sandbox.terminal import open_terminal

        if not spec.new_session:
            raise ValueError("a terminal controls a session of its own: leave out new_session(False), or pty")
        # Now, for the working directory still is the root, which paths are resolved in.
        open_terminal(program, Slot(numbers[0], "stdin"))
        numbers = dict.fromkeys(numbers, numbers[0])
    limits = resource_limits(spec.limits)
    # What follows needs descriptors: their number comes last.
    open_files = limits.pop("open_files", None)
    for name, bounds in limits.items():
        _limit(draft, name, bounds)
    _limit_instead(draft)
    program.origin = "payload"
    program.call("umask", Flag(spec.umask, oct(spec.umask)))
    cwd = draft.variant.cwd if draft.variant.cwd is not None else spec.cwd
    if cwd is not None and cwd != "/":
        program.origin = spec.cwd_origin if draft.variant.cwd is None else f'cwd="{cwd}"'
        resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
        flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
        how = program.data(pack("<3Q", flags, 0, resolve), f"{{flags={flags!r}, resolve={resolve!r}}}")
        fd = program.call("openat2", k.AT_FDCWD, cwd, how, 24, name="cwd", retry=100)
        program.call("fchdir", fd)
    program.origin = "descriptors"
    for number in draft.variant.fds:
        slot = draft.fd_slots[number] = program.slot(f"fd {number}")
        numbers[number] = slot.number
    pairs = b"".join(pack("<2I", number, slot) for number, slot in numbers.items())
    program.call("place_fds", program.data(pairs, f"{{{', '.join(map(str, numbers))}}}"), len(numbers))
    verify(draft)
    if draft.new_net_beside and not (draft.variant.hold or draft.nested or draft.variant.further):
        program.origin = "network"
        program.call("await_release", k.RELEASE_ALL)
    if draft.variant.further or not (draft.waits and spec.init):
        # Elsewhere PID 1, which has waited and is under no filter, looks when it was not found.
        program.origin = "payload"
        program.call("look", Late("candidates", pointer=True), Late("candidate_count"))
    if draft.rulesets:
        from sandbox.restrictions import restrict_self

        program.origin = ".landlock()"
        for ruleset in draft.rulesets:
            restrict_self(program, ruleset)
    if open_files is not None:
        _limit(draft, "open_files", open_files)
        program.call("read_limits")
    program.origin = "payload"
    if draft.variant.hold:
        # Meanwhile the caller, who may be no more than the same user, reads back what is in force.
        program.call("prctl", k.PR_SET_DUMPABLE, 1, 0, 0, 0)
        program.call("hold")
        program.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0)
    program.call("rt_sigprocmask", k.SIG_SETMASK, program.data(bytes(8), "[]"), 0, 8)
    if "pid" not in spec.new_namespaces:
        # In a namespace of its own the payload is 2, and who writes LISTEN_PID knows it.
        program.origin = "payload"
        program.call("listen_pid", Late("envp", pointer=True))
    install_filters(draft)
    program.origin = "payload"
    program.call(
        "execve",
        Late("candidates", pointer=True),
        Late("candidate_count"),
        Late("argv", pointer=True),
        Late("envp", pointer=True),
    )


def _limit(draft: "Draft", name: str, bounds: tuple[int, int]) -> None:
    """Set one resource limit of the payload, soft and hard."""
    value = getattr(draft.spec.limits, name)
    draft.program.origin = "limits" if name == "core" and value == 0 else shown(name, value)
    data = draft.program.data(pack("<2Q", *bounds), f"{{{bounds[0]}, {bounds[1]}}}")
    draft.program.call("prlimit64", 0, RLIMITS[name], data, 0)


def _limit_instead(draft: "Draft") -> None:
    """Set what comes nearest to a limit that no control group keeps."""
    program, limits = draft.program, draft.spec.limits
    for name in draft.variant.instead:
        value = getattr(limits, name)
        program.origin = shown(name, value)
        if name == "cpuset":
            mask = sum(1 << cpu for cpu in value).to_bytes(8 * (max(value) // 64 + 1), "little")
            program.call("sched_setaffinity", 0, len(mask), program.data(mask, f"{{{', '.join(map(str, value))}}}"))
        else:
            # PID 1 has the same user.
            bound = value + 1 if name == "pids" else value
            data = program.data(pack("<2Q", bound, bound), f"{{{bound}, {bound}}}")
            program.call("prlimit64", 0, k.RLIMIT_NPROC if name == "pids" else k.RLIMIT_AS, data, 0)
