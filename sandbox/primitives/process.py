"""Process ids and process attributes: getpid(2), getppid(2), gettid(2), prctl(2)."""

from sandbox._native import ffi, lib
from sandbox.primitives._call import check, in_range, text_bytes

__all__ = ["getpid", "getppid", "gettid", "prctl", "prctl_get_name", "prctl_set_name", "prctl_get_auxv"]
__all__ += ["PR_SET_PDEATHSIG", "PR_GET_PDEATHSIG", "PR_GET_DUMPABLE", "PR_SET_DUMPABLE", "PR_GET_UNALIGN"]
__all__ += ["PR_SET_UNALIGN", "PR_UNALIGN_NOPRINT", "PR_UNALIGN_SIGBUS", "PR_GET_KEEPCAPS", "PR_SET_KEEPCAPS"]
__all__ += ["PR_GET_FPEMU", "PR_SET_FPEMU", "PR_FPEMU_NOPRINT", "PR_FPEMU_SIGFPE", "PR_GET_FPEXC"]
__all__ += ["PR_SET_FPEXC", "PR_FP_EXC_SW_ENABLE", "PR_FP_EXC_DIV", "PR_FP_EXC_OVF", "PR_FP_EXC_UND"]
__all__ += ["PR_FP_EXC_RES", "PR_FP_EXC_INV", "PR_FP_EXC_DISABLED", "PR_FP_EXC_NONRECOV", "PR_FP_EXC_ASYNC"]
__all__ += ["PR_FP_EXC_PRECISE", "PR_GET_TIMING", "PR_SET_TIMING", "PR_TIMING_STATISTICAL"]
__all__ += ["PR_TIMING_TIMESTAMP", "PR_SET_NAME", "PR_GET_NAME", "PR_GET_ENDIAN", "PR_SET_ENDIAN"]
__all__ += ["PR_ENDIAN_BIG", "PR_ENDIAN_LITTLE", "PR_ENDIAN_PPC_LITTLE", "PR_GET_SECCOMP", "PR_SET_SECCOMP"]
__all__ += ["PR_CAPBSET_READ", "PR_CAPBSET_DROP", "PR_GET_TSC", "PR_SET_TSC", "PR_TSC_ENABLE"]
__all__ += ["PR_TSC_SIGSEGV", "PR_GET_SECUREBITS", "PR_SET_SECUREBITS", "PR_SET_TIMERSLACK"]
__all__ += ["PR_GET_TIMERSLACK", "PR_TASK_PERF_EVENTS_DISABLE", "PR_TASK_PERF_EVENTS_ENABLE", "PR_MCE_KILL"]
__all__ += ["PR_MCE_KILL_CLEAR", "PR_MCE_KILL_SET", "PR_MCE_KILL_LATE", "PR_MCE_KILL_EARLY"]
__all__ += ["PR_MCE_KILL_DEFAULT", "PR_MCE_KILL_GET", "PR_SET_MM", "PR_SET_MM_START_CODE"]
__all__ += ["PR_SET_MM_END_CODE", "PR_SET_MM_START_DATA", "PR_SET_MM_END_DATA", "PR_SET_MM_START_STACK"]
__all__ += ["PR_SET_MM_START_BRK", "PR_SET_MM_BRK", "PR_SET_MM_ARG_START", "PR_SET_MM_ARG_END"]
__all__ += ["PR_SET_MM_ENV_START", "PR_SET_MM_ENV_END", "PR_SET_MM_AUXV", "PR_SET_MM_EXE_FILE"]
__all__ += ["PR_SET_MM_MAP", "PR_SET_MM_MAP_SIZE", "PR_SET_PTRACER", "PR_SET_PTRACER_ANY"]
__all__ += ["PR_SET_CHILD_SUBREAPER", "PR_GET_CHILD_SUBREAPER", "PR_SET_NO_NEW_PRIVS", "PR_GET_NO_NEW_PRIVS"]
__all__ += ["PR_GET_TID_ADDRESS", "PR_SET_THP_DISABLE", "PR_THP_DISABLE_EXCEPT_ADVISED", "PR_GET_THP_DISABLE"]
__all__ += ["PR_MPX_ENABLE_MANAGEMENT", "PR_MPX_DISABLE_MANAGEMENT", "PR_SET_FP_MODE", "PR_GET_FP_MODE"]
__all__ += ["PR_FP_MODE_FR", "PR_FP_MODE_FRE", "PR_CAP_AMBIENT", "PR_CAP_AMBIENT_IS_SET"]
__all__ += ["PR_CAP_AMBIENT_RAISE", "PR_CAP_AMBIENT_LOWER", "PR_CAP_AMBIENT_CLEAR_ALL", "PR_SVE_SET_VL"]
__all__ += ["PR_SVE_SET_VL_ONEXEC", "PR_SVE_GET_VL", "PR_SVE_VL_LEN_MASK", "PR_SVE_VL_INHERIT"]
__all__ += ["PR_GET_SPECULATION_CTRL", "PR_SET_SPECULATION_CTRL", "PR_SPEC_STORE_BYPASS"]
__all__ += ["PR_SPEC_INDIRECT_BRANCH", "PR_SPEC_L1D_FLUSH", "PR_SPEC_NOT_AFFECTED", "PR_SPEC_PRCTL"]
__all__ += ["PR_SPEC_ENABLE", "PR_SPEC_DISABLE", "PR_SPEC_FORCE_DISABLE", "PR_SPEC_DISABLE_NOEXEC"]
__all__ += ["PR_PAC_RESET_KEYS", "PR_PAC_APIAKEY", "PR_PAC_APIBKEY", "PR_PAC_APDAKEY", "PR_PAC_APDBKEY"]
__all__ += ["PR_PAC_APGAKEY", "PR_SET_TAGGED_ADDR_CTRL", "PR_GET_TAGGED_ADDR_CTRL", "PR_TAGGED_ADDR_ENABLE"]
__all__ += ["PR_MTE_TCF_NONE", "PR_MTE_TCF_SYNC", "PR_MTE_TCF_ASYNC", "PR_MTE_TCF_MASK", "PR_MTE_TAG_SHIFT"]
__all__ += ["PR_MTE_TAG_MASK", "PR_MTE_TCF_SHIFT", "PR_MTE_STORE_ONLY", "PR_PMLEN_SHIFT", "PR_PMLEN_MASK"]
__all__ += ["PR_SET_IO_FLUSHER", "PR_GET_IO_FLUSHER", "PR_SET_SYSCALL_USER_DISPATCH", "PR_SYS_DISPATCH_OFF"]
__all__ += ["PR_SYS_DISPATCH_EXCLUSIVE_ON", "PR_SYS_DISPATCH_INCLUSIVE_ON", "PR_SYS_DISPATCH_ON"]
__all__ += ["PR_PAC_SET_ENABLED_KEYS", "PR_PAC_GET_ENABLED_KEYS", "PR_SCHED_CORE", "PR_SCHED_CORE_GET"]
__all__ += ["PR_SCHED_CORE_CREATE", "PR_SCHED_CORE_SHARE_TO", "PR_SCHED_CORE_SHARE_FROM", "PR_SCHED_CORE_MAX"]
__all__ += ["PR_SCHED_CORE_SCOPE_THREAD", "PR_SCHED_CORE_SCOPE_THREAD_GROUP"]
__all__ += ["PR_SCHED_CORE_SCOPE_PROCESS_GROUP", "PR_SME_SET_VL", "PR_SME_SET_VL_ONEXEC", "PR_SME_GET_VL"]
__all__ += ["PR_SME_VL_LEN_MASK", "PR_SME_VL_INHERIT", "PR_SET_MDWE", "PR_MDWE_REFUSE_EXEC_GAIN"]
__all__ += ["PR_MDWE_NO_INHERIT", "PR_GET_MDWE", "PR_SET_VMA", "PR_SET_VMA_ANON_NAME", "PR_GET_AUXV"]
__all__ += ["PR_SET_MEMORY_MERGE", "PR_GET_MEMORY_MERGE", "PR_RISCV_V_SET_CONTROL", "PR_RISCV_V_GET_CONTROL"]
__all__ += ["PR_RISCV_V_VSTATE_CTRL_DEFAULT", "PR_RISCV_V_VSTATE_CTRL_OFF", "PR_RISCV_V_VSTATE_CTRL_ON"]
__all__ += ["PR_RISCV_V_VSTATE_CTRL_INHERIT", "PR_RISCV_V_VSTATE_CTRL_CUR_MASK"]
__all__ += ["PR_RISCV_V_VSTATE_CTRL_NEXT_MASK", "PR_RISCV_V_VSTATE_CTRL_MASK"]
__all__ += ["PR_RISCV_SET_ICACHE_FLUSH_CTX", "PR_RISCV_CTX_SW_FENCEI_ON", "PR_RISCV_CTX_SW_FENCEI_OFF"]
__all__ += ["PR_RISCV_SCOPE_PER_PROCESS", "PR_RISCV_SCOPE_PER_THREAD", "PR_PPC_GET_DEXCR", "PR_PPC_SET_DEXCR"]
__all__ += ["PR_PPC_DEXCR_SBHE", "PR_PPC_DEXCR_IBRTPD", "PR_PPC_DEXCR_SRAPD", "PR_PPC_DEXCR_NPHIE"]
__all__ += ["PR_PPC_DEXCR_CTRL_EDITABLE", "PR_PPC_DEXCR_CTRL_SET", "PR_PPC_DEXCR_CTRL_CLEAR"]
__all__ += ["PR_PPC_DEXCR_CTRL_SET_ONEXEC", "PR_PPC_DEXCR_CTRL_CLEAR_ONEXEC", "PR_PPC_DEXCR_CTRL_MASK"]
__all__ += ["PR_GET_SHADOW_STACK_STATUS", "PR_SET_SHADOW_STACK_STATUS", "PR_SHADOW_STACK_ENABLE"]
__all__ += ["PR_SHADOW_STACK_WRITE", "PR_SHADOW_STACK_PUSH", "PR_LOCK_SHADOW_STACK_STATUS"]
__all__ += ["PR_TIMER_CREATE_RESTORE_IDS", "PR_TIMER_CREATE_RESTORE_IDS_OFF"]
__all__ += ["PR_TIMER_CREATE_RESTORE_IDS_ON", "PR_TIMER_CREATE_RESTORE_IDS_GET", "PR_FUTEX_HASH"]
__all__ += ["PR_FUTEX_HASH_SET_SLOTS", "PR_FUTEX_HASH_GET_SLOTS", "PR_RSEQ_SLICE_EXTENSION"]
__all__ += ["PR_RSEQ_SLICE_EXTENSION_GET", "PR_RSEQ_SLICE_EXTENSION_SET", "PR_RSEQ_SLICE_EXT_ENABLE"]
__all__ += ["PR_GET_CFI", "PR_SET_CFI", "PR_CFI_BRANCH_LANDING_PADS", "PR_CFI_ENABLE", "PR_CFI_DISABLE"]
__all__ += ["PR_CFI_LOCK"]

# The options of prctl(2), each followed by the values of its arguments, up to Linux 7.2.
PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_GET_UNALIGN = 5
PR_SET_UNALIGN = 6
PR_UNALIGN_NOPRINT = 1
PR_UNALIGN_SIGBUS = 2
PR_GET_KEEPCAPS = 7
PR_SET_KEEPCAPS = 8
PR_GET_FPEMU = 9
PR_SET_FPEMU = 10
PR_FPEMU_NOPRINT = 1
PR_FPEMU_SIGFPE = 2
PR_GET_FPEXC = 11
PR_SET_FPEXC = 12
PR_FP_EXC_SW_ENABLE = 0x80
PR_FP_EXC_DIV = 0x010000
PR_FP_EXC_OVF = 0x020000
PR_FP_EXC_UND = 0x040000
PR_FP_EXC_RES = 0x080000
PR_FP_EXC_INV = 0x100000
PR_FP_EXC_DISABLED = 0
PR_FP_EXC_NONRECOV = 1
PR_FP_EXC_ASYNC = 2
PR_FP_EXC_PRECISE = 3
PR_GET_TIMING = 13
PR_SET_TIMING = 14
PR_TIMING_STATISTICAL = 0
PR_TIMING_TIMESTAMP = 1
PR_SET_NAME = 15
PR_GET_NAME = 16
PR_GET_ENDIAN = 19
PR_SET_ENDIAN = 20
PR_ENDIAN_BIG = 0
PR_ENDIAN_LITTLE = 1
PR_ENDIAN_PPC_LITTLE = 2
PR_GET_SECCOMP = 21
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_GET_TSC = 25
PR_SET_TSC = 26
PR_TSC_ENABLE = 1
PR_TSC_SIGSEGV = 2
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_TIMERSLACK = 29
PR_GET_TIMERSLACK = 30
PR_TASK_PERF_EVENTS_DISABLE = 31
PR_TASK_PERF_EVENTS_ENABLE = 32
PR_MCE_KILL = 33
PR_MCE_KILL_CLEAR = 0
PR_MCE_KILL_SET = 1
PR_MCE_KILL_LATE = 0
PR_MCE_KILL_EARLY = 1
PR_MCE_KILL_DEFAULT = 2
PR_MCE_KILL_GET = 34
PR_SET_MM = 35
PR_SET_MM_START_CODE = 1
PR_SET_MM_END_CODE = 2
PR_SET_MM_START_DATA = 3
PR_SET_MM_END_DATA = 4
PR_SET_MM_START_STACK = 5
PR_SET_MM_START_BRK = 6
PR_SET_MM_BRK = 7
PR_SET_MM_ARG_START = 8
PR_SET_MM_ARG_END = 9
PR_SET_MM_ENV_START = 10
PR_SET_MM_ENV_END = 11
PR_SET_MM_AUXV = 12
PR_SET_MM_EXE_FILE = 13
PR_SET_MM_MAP = 14
PR_SET_MM_MAP_SIZE = 15
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_GET_TID_ADDRESS = 40
PR_SET_THP_DISABLE = 41
PR_THP_DISABLE_EXCEPT_ADVISED = 1 << 1
PR_GET_THP_DISABLE = 42
PR_MPX_ENABLE_MANAGEMENT = 43
PR_MPX_DISABLE_MANAGEMENT = 44
PR_SET_FP_MODE = 45
PR_GET_FP_MODE = 46
PR_FP_MODE_FR = 1 << 0
PR_FP_MODE_FRE = 1 << 1
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET = 1
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_LOWER = 3
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SVE_SET_VL = 50
PR_SVE_SET_VL_ONEXEC = 1 << 18
PR_SVE_GET_VL = 51
PR_SVE_VL_LEN_MASK = 0xFFFF
PR_SVE_VL_INHERIT = 1 << 17
PR_GET_SPECULATION_CTRL = 52
PR_SET_SPECULATION_CTRL = 53
PR_SPEC_STORE_BYPASS = 0
PR_SPEC_INDIRECT_BRANCH = 1
PR_SPEC_L1D_FLUSH = 2
PR_SPEC_NOT_AFFECTED = 0
PR_SPEC_PRCTL = 1 << 0
PR_SPEC_ENABLE = 1 << 1
PR_SPEC_DISABLE = 1 << 2
PR_SPEC_FORCE_DISABLE = 1 << 3
PR_SPEC_DISABLE_NOEXEC = 1 << 4
PR_PAC_RESET_KEYS = 54
PR_PAC_APIAKEY = 1 << 0
PR_PAC_APIBKEY = 1 << 1
PR_PAC_APDAKEY = 1 << 2
PR_PAC_APDBKEY = 1 << 3
PR_PAC_APGAKEY = 1 << 4
PR_SET_TAGGED_ADDR_CTRL = 55
PR_GET_TAGGED_ADDR_CTRL = 56
PR_TAGGED_ADDR_ENABLE = 1 << 0
PR_MTE_TCF_NONE = 0
PR_MTE_TCF_SYNC = 1 << 1
PR_MTE_TCF_ASYNC = 1 << 2
PR_MTE_TCF_MASK = PR_MTE_TCF_SYNC | PR_MTE_TCF_ASYNC
PR_MTE_TAG_SHIFT = 3
PR_MTE_TAG_MASK = 0xFFFF << PR_MTE_TAG_SHIFT
PR_MTE_TCF_SHIFT = 1
PR_MTE_STORE_ONLY = 1 << 19
PR_PMLEN_SHIFT = 24
PR_PMLEN_MASK = 0x7F << PR_PMLEN_SHIFT
PR_SET_IO_FLUSHER = 57
PR_GET_IO_FLUSHER = 58
PR_SET_SYSCALL_USER_DISPATCH = 59
PR_SYS_DISPATCH_OFF = 0
PR_SYS_DISPATCH_EXCLUSIVE_ON = 1
PR_SYS_DISPATCH_INCLUSIVE_ON = 2
PR_SYS_DISPATCH_ON = PR_SYS_DISPATCH_EXCLUSIVE_ON
PR_PAC_SET_ENABLED_KEYS = 60
PR_PAC_GET_ENABLED_KEYS = 61
PR_SCHED_CORE = 62
PR_SCHED_CORE_GET = 0
PR_SCHED_CORE_CREATE = 1
PR_SCHED_CORE_SHARE_TO = 2
PR_SCHED_CORE_SHARE_FROM = 3
PR_SCHED_CORE_MAX = 4
PR_SCHED_CORE_SCOPE_THREAD = 0
PR_SCHED_CORE_SCOPE_THREAD_GROUP = 1
PR_SCHED_CORE_SCOPE_PROCESS_GROUP = 2
PR_SME_SET_VL = 63
PR_SME_SET_VL_ONEXEC = 1 << 18
PR_SME_GET_VL = 64
PR_SME_VL_LEN_MASK = 0xFFFF
PR_SME_VL_INHERIT = 1 << 17
PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1 << 0
PR_MDWE_NO_INHERIT = 1 << 1
PR_GET_MDWE = 66
PR_SET_VMA = 0x53564D41
PR_SET_VMA_ANON_NAME = 0
PR_GET_AUXV = 0x41555856
PR_SET_MEMORY_MERGE = 67
PR_GET_MEMORY_MERGE = 68
PR_RISCV_V_SET_CONTROL = 69
PR_RISCV_V_GET_CONTROL = 70
PR_RISCV_V_VSTATE_CTRL_DEFAULT = 0
PR_RISCV_V_VSTATE_CTRL_OFF = 1
PR_RISCV_V_VSTATE_CTRL_ON = 2
PR_RISCV_V_VSTATE_CTRL_INHERIT = 1 << 4
PR_RISCV_V_VSTATE_CTRL_CUR_MASK = 0x3
PR_RISCV_V_VSTATE_CTRL_NEXT_MASK = 0xC
PR_RISCV_V_VSTATE_CTRL_MASK = 0x1F
PR_RISCV_SET_ICACHE_FLUSH_CTX = 71
PR_RISCV_CTX_SW_FENCEI_ON = 0
PR_RISCV_CTX_SW_FENCEI_OFF = 1
PR_RISCV_SCOPE_PER_PROCESS = 0
PR_RISCV_SCOPE_PER_THREAD = 1
PR_PPC_GET_DEXCR = 72
PR_PPC_SET_DEXCR = 73
PR_PPC_DEXCR_SBHE = 0
PR_PPC_DEXCR_IBRTPD = 1
PR_PPC_DEXCR_SRAPD = 2
PR_PPC_DEXCR_NPHIE = 3
PR_PPC_DEXCR_CTRL_EDITABLE = 0x1
PR_PPC_DEXCR_CTRL_SET = 0x2
PR_PPC_DEXCR_CTRL_CLEAR = 0x4
PR_PPC_DEXCR_CTRL_SET_ONEXEC = 0x8
PR_PPC_DEXCR_CTRL_CLEAR_ONEXEC = 0x10
PR_PPC_DEXCR_CTRL_MASK = 0x1F
PR_GET_SHADOW_STACK_STATUS = 74
PR_SET_SHADOW_STACK_STATUS = 75
PR_SHADOW_STACK_ENABLE = 1 << 0
PR_SHADOW_STACK_WRITE = 1 << 1
PR_SHADOW_STACK_PUSH = 1 << 2
PR_LOCK_SHADOW_STACK_STATUS = 76
PR_TIMER_CREATE_RESTORE_IDS = 77
PR_TIMER_CREATE_RESTORE_IDS_OFF = 0
PR_TIMER_CREATE_RESTORE_IDS_ON = 1
PR_TIMER_CREATE_RESTORE_IDS_GET = 2
PR_FUTEX_HASH = 78
PR_FUTEX_HASH_SET_SLOTS = 1
PR_FUTEX_HASH_GET_SLOTS = 2
PR_RSEQ_SLICE_EXTENSION = 79
PR_RSEQ_SLICE_EXTENSION_GET = 1
PR_RSEQ_SLICE_EXTENSION_SET = 2
PR_RSEQ_SLICE_EXT_ENABLE = 0x01
PR_GET_CFI = 80
PR_SET_CFI = 81
PR_CFI_BRANCH_LANDING_PADS = 0
PR_CFI_ENABLE = 1 << 0
PR_CFI_DISABLE = 1 << 1
PR_CFI_LOCK = 1 << 2

# The kernel returns these through the address that is the first argument; all write an int but the last one.
_RETURNS_INT = {
    PR_GET_PDEATHSIG,
    PR_GET_UNALIGN,
    PR_GET_FPEMU,
    PR_GET_FPEXC,
    PR_GET_ENDIAN,
    PR_GET_TSC,
    PR_GET_CHILD_SUBREAPER,
}
_RETURNS = _RETURNS_INT | {PR_GET_TID_ADDRESS}


def getpid() -> int:
    """Return the id of the process, asked of the kernel and not of the C library.

    Raises:
        OSError: None; the call cannot fail.

    See getpid(2). Since Linux 1.0.
    """
    return check(lib.sandbox_getpid())


def getppid() -> int:
    """Return the id of the parent; 0 when it is outside of the pid namespace.

    Raises:
        OSError: None; the call cannot fail.

    See getppid(2). Since Linux 1.0.
    """
    return check(lib.sandbox_getppid())


def gettid() -> int:
    """Return the id of the calling thread.

    Raises:
        OSError: None; the call cannot fail.

    See gettid(2). Since Linux 2.4.11.
    """
    return check(lib.sandbox_gettid())


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Read or change an attribute of the calling thread or process; which of them, the option says.

    Integers go to the kernel as they are: an address among them is the caller's to keep valid. What an option
    returns through an address is returned as the result, and it takes no argument: PR_GET_PDEATHSIG,
    PR_GET_CHILD_SUBREAPER, PR_GET_TSC, PR_GET_TID_ADDRESS, PR_GET_ENDIAN, PR_GET_FPEMU, PR_GET_FPEXC,
    PR_GET_UNALIGN. For names and the auxiliary vector there are prctl_get_name, prctl_set_name and
    prctl_get_auxv.

    Args:
        option: PR_*.
        arg2: -2**63 to 2**64 - 1; a negative number is the unsigned long with the same bits.
        arg3: Likewise.
        arg4: Likewise.
        arg5: Likewise.

    Raises:
        ValueError: An argument for an option that returns through an address.
        OSError: EINVAL (unknown option, or arguments that must be 0 and are not), EPERM, EFAULT, and those of
            the option.

    See prctl(2). Since Linux 2.1.57.
    """
    in_range(option, -(2**31), 2**31 - 1, "option")
    words = [
        in_range(value, -(2**63), 2**64 - 1, name) & (2**64 - 1)
        for name, value in (("arg2", arg2), ("arg3", arg3), ("arg4", arg4), ("arg5", arg5))
    ]
    if option not in _RETURNS:
        return check(lib.sandbox_prctl(option, *words))
    if any(words):
        raise ValueError(f"prctl option {option} takes no argument: its result is returned")
    found = ffi.new("int *") if option in _RETURNS_INT else ffi.new("unsigned long *")
    check(lib.sandbox_prctl_into(option, ffi.cast("char *", found), 0))
    return int(found[0])


def prctl_get_name() -> bytes:
    """Return the name of the calling thread: PR_GET_NAME.

    Raises:
        OSError: None that is known.

    See PR_GET_NAME(2const). Since Linux 2.6.11.
    """
    buffer = ffi.new("char[16]")
    check(lib.sandbox_prctl_into(PR_GET_NAME, buffer, 0))
    return bytes(ffi.string(buffer))


def prctl_set_name(name: str | bytes) -> None:
    """Set the name of the calling thread, which ps and /proc/PID/comm show: PR_SET_NAME.

    Args:
        name: At most 15 bytes, where the kernel would cut.

    Raises:
        OSError: None that is known.

    See PR_SET_NAME(2const). Since Linux 2.6.9.
    """
    raw = text_bytes(name, "name")
    in_range(len(raw), 0, 15, "the length of name in bytes")
    check(lib.sandbox_prctl_into(PR_SET_NAME, ffi.from_buffer(raw + b"\0"), 0))


def prctl_get_auxv() -> bytes:
    """Return the auxiliary vector that the program was started with, as in getauxval(3): PR_GET_AUXV.

    Raises:
        OSError: EINVAL (an older kernel).

    See PR_GET_AUXV(2const). Since Linux 6.4.
    """
    # The kernel returns the size of its vector, which is a compile-time constant below this, whatever fits.
    buffer = ffi.new("char[4096]")
    size = check(lib.sandbox_prctl_into(PR_GET_AUXV, buffer, 4096))
    return bytes(ffi.buffer(buffer, size))
