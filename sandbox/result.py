"""What came of a command: `Result`, why it ended, at what cost and under which rules."""

import enum
import subprocess
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, AnyStr, Literal, TypeAlias, cast

from sandbox.errors import CalledProcessError
from sandbox.frozen import Frozen

if TYPE_CHECKING:
    from sandbox.denials import Denied
    from sandbox.readback import Mount

CapabilitySet: TypeAlias = Literal["effective", "permitted", "inheritable", "bounding", "ambient"]


class Reason(enum.StrEnum):
    """Why the command ended; a str, "exited" for EXITED.

    Attributes:
        EXITED: By itself, with an exit status.
        SIGNALED: By a signal that none of the others explains.
        TIMEOUT: `limit(wall_time=)`, or the caller's `timeout`.
        CPU_TIME: `limit(cpu_time=)`.
        OOM: The memory of its control group was used up.
        SECCOMP: SIGSYS, under a filter.
        OUTPUT_LIMIT: `limit(output=)`, where that kills.
        CANCELLED: The caller was interrupted by an exception, and killed it.
        INIT_DIED: PID 1 of the sandbox was killed from outside, and could tell nothing.
    """

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    CPU_TIME = "cpu_time"
    OOM = "oom"
    SECCOMP = "seccomp"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"
    INIT_DIED = "init_died"


class Usage(Frozen):
    """What the whole tree of processes used; None where nobody counted (no cgroup).

    Attributes:
        wall: Seconds from the start of the payload to its end.
        user: CPU seconds in user mode.
        system: CPU seconds in the kernel.
        cpu_time: Both.
        max_rss: Largest resident set of any one process, in bytes.
        memory_peak: Peak memory of all together, in bytes.
        pids_peak: Most processes at one time.
        read_bytes: Bytes read from block devices.
        written_bytes: Bytes written to block devices.
        context_switches: Voluntary and involuntary ones.
        throttled: Seconds that a CPU limit held it back.
        pressure: Seconds for which some process stalled for want of "cpu", "memory" and "io".
    """

    wall: float = 0.0
    user: float = 0.0
    system: float = 0.0
    cpu_time: float = 0.0
    max_rss: int = 0
    memory_peak: int | None = None
    pids_peak: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    context_switches: int | None = None
    throttled: float | None = None
    pressure: Mapping[str, float] | None = None


class Enforced(Frozen):
    """What the payload really is, read back from the kernel before its program was executed.

    Attributes:
        uid: User id, as the payload sees it.
        gid: Group id.
        groups: Supplementary groups; 65534 stands for one that the sandbox does not map.
        capabilities: The five sets; bare names without CAP_.
        securebits: prctl(PR_GET_SECUREBITS).
        no_new_privs: Nothing it executes can gain privileges.
        dumpable: Of the process that set up; its address space was not readable from inside.
        seccomp_filters: How many filters it runs under, the caller's included where the kernel tells.
        landlock_abi: ABI of the Landlock layers, None without any.
        landlock_layers: How many.
        namespaces: Inode numbers of its namespaces; filled in with `hold`.
        mounts: What is mounted; filled in with `hold`.
        descriptors: Open descriptors; filled in with `hold`.
        limits: Soft resource limits by the words of `Sandbox.limit`; math.inf where there is none.
        cgroup: Its control group.
        gaps: What a layer cannot cover on this host, in words.
        missing: What was asked for as optional or best effort and is not there.
    """

    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()
    capabilities: Mapping[CapabilitySet, frozenset[str]] = field(default_factory=dict)
    securebits: int = 0
    no_new_privs: bool = False
    dumpable: bool = False
    seccomp_filters: int = 0
    landlock_abi: int | None = None
    landlock_layers: int = 0
    namespaces: Mapping[str, int] = field(default_factory=dict)
    mounts: "tuple[Mount, ...]" = ()
    descriptors: tuple[int, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    cgroup: str | None = None
    gaps: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Result(subprocess.CompletedProcess[AnyStr]):
    """A `subprocess.CompletedProcess` that also says why, at what cost and under which rules.

    Attributes:
        reason: Why it ended.
        detail: The evidence, in words.
        usage: What the whole tree used.
        enforced: What was read back before the program was executed.
        truncated: Output was cut at a limit.
        denied: What was refused, where `observe()` watched.
    """

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: AnyStr | None = None,
        stderr: AnyStr | None = None,
        *,
        reason: Reason = Reason.EXITED,
        detail: str = "",
        usage: Usage = Usage(),  # noqa: B008  # a value
        enforced: Enforced = Enforced(),  # noqa: B008  # a value
        truncated: bool = False,
        denied: "tuple[Denied, ...]" = (),
    ) -> None:
        super().__init__(args, returncode, cast("Any", stdout), cast("Any", stderr))
        self.reason = reason
        self.detail = detail
        self.usage = usage
        self.enforced = enforced
        self.truncated = truncated
        self.denied = denied

    def __eq__(self, other: object) -> bool:
        """Compare all fields."""
        if type(other) is not type(self):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # as CompletedProcess' fields, it can be changed

    def __repr__(self) -> str:
        """Show what CompletedProcess shows, and the reason."""
        return f"{super().__repr__()[:-1]}, reason={str(self.reason)!r})"

    def check_returncode(self) -> None:
        """Raise CalledProcessError unless the command ended well.

        Raises:
            CalledProcessError: It has this result as `result`.
        """
        if self.returncode:
            error = CalledProcessError(self.returncode, self.args, self.stdout, self.stderr)
            error.result = self
            raise error
