"""Groups of calls, named "@word": what a rule may name instead of a long list.

Every call of the table is in exactly one of the groups below (its 32-bit variants follow it), so that a call of a new
kernel is in no preset before somebody has decided where it belongs; a test sees to that. `@privileged` joins some.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from sandbox.errors import FilterError
from sandbox.filters.table import near


class Group(NamedTuple):
    """A group of calls."""

    meaning: str
    calls: tuple[str, ...]


def _group(meaning: str, calls: str) -> Group:
    return Group(meaning, tuple(calls.split()))


GROUPS: Final[Mapping[str, Group]] = {
    "@administration": _group(
        "accounting, quotas, the kernel log, files by handle, fanotify: administration of a whole machine",
        """acct bdflush fanotify_init fanotify_mark lookup_dcookie nfsservctl open_by_handle_at quotactl quotactl_fd
        syslog vhangup""",
    ),
    "@aio": _group(
        "Linux AIO, as databases use it",
        "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    ),
    "@arch": _group(
        "what only one architecture has: thread areas, caches, probes",
        """arch_prctl breakpoint cacheflush get_thread_area get_tls map_shadow_stack riscv_flush_icache riscv_hwprobe
        set_thread_area set_tls uprobe uretprobe""",
    ),
    "@bpf": _group("programs inside the kernel, and counters of it", "bpf perf_event_open"),
    "@clock": _group("setting the clock", "adjtimex clock_adjtime clock_settime settimeofday"),
    "@credentials": _group(
        "ids, groups and capabilities of the process",
        """capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups
        setregid setresgid setresuid setreuid setuid""",
    ),
    "@file": _group(
        "files and directories by path, their attributes, and looking at mounts",
        """access chdir chmod chown creat faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown fchownat
        fgetxattr file_getattr file_setattr flistxattr fremovexattr fsetxattr fstat fstatfs futimesat getcwd getdents
        getdents64 getxattr getxattrat lchown lgetxattr link linkat listmount listxattr listxattrat llistxattr
        lremovexattr lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2
        readlink readlinkat removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat statfs
        statmount statx symlink symlinkat sync syncfs truncate umask unlink unlinkat utime utimensat utimes""",
    ),
    "@io": _group(
        "reading, writing and waiting on open descriptors",
        """cachestat close close_range copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
        epoll_pwait2 epoll_wait eventfd eventfd2 fadvise64 fallocate fcntl fdatasync flock fsync ftruncate
        inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lseek pipe pipe2 poll ppoll pread64 preadv
        preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead readv select sendfile signalfd signalfd4 splice
        sync_file_range tee timerfd_create timerfd_gettime timerfd_settime vmsplice write writev""",
    ),
    "@io-uring": _group("io_uring, whose requests no filter sees", "io_uring_enter io_uring_register io_uring_setup"),
    "@ipc": _group(
        "System V and POSIX message queues, semaphores, shared memory",
        """mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl
        semget semop semtimedop shmat shmctl shmdt shmget""",
    ),
    "@keyring": _group("the kernel's key rings, which no namespace separates", "add_key keyctl request_key"),
    "@memory": _group(
        "the process's own memory",
        """brk get_mempolicy madvise mbind membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
        mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
        set_mempolicy set_mempolicy_home_node""",
    ),
    "@module": _group(
        "kernel modules", "create_module delete_module finit_module get_kernel_syms init_module query_module"
    ),
    "@mount": _group(
        "changing the mount table or the root",
        """chroot fchroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr
        pivot_root umount2""",
    ),
    "@namespace": _group("entering, leaving and naming namespaces", "listns sethostname setdomainname setns unshare"),
    "@network": _group(
        "sockets",
        """accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
        sendmsg sendto setsockopt shutdown socket socketpair""",
    ),
    "@obsolete": _group(
        "gone from the kernel, or kept for programs of the last century",
        """_sysctl afs_syscall break epoll_ctl_old epoll_wait_old ftime getpmsg gtty idle lock modify_ldt mpx prof
        profil putpmsg security stty sysfs tuxcall ulimit uselib usr26 usr32 ustat vm86 vm86old vserver""",
    ),
    "@process": _group(
        "starting, ending and naming processes and threads, and their synchronisation",
        """clone clone3 execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
        get_robust_list getpgid getpgrp getpid getppid getsid gettid personality pidfd_open prctl process_mrelease rseq
        rseq_slice_yield sched_yield set_robust_list set_tid_address setpgid setsid vfork wait4 waitid""",
    ),
    "@raw-io": _group("ports of the machine", "ioperm iopl pciconfig_iobase pciconfig_read pciconfig_write"),
    "@reboot": _group("restarting and replacing the kernel", "kexec_file_load kexec_load reboot"),
    "@resources": _group(
        "limits, priorities and scheduling",
        """getpriority getrlimit getrusage ioprio_get ioprio_set nice prlimit64 sched_get_priority_max
        sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
        sched_setaffinity sched_setattr sched_setparam sched_setscheduler setpriority setrlimit""",
    ),
    "@sandbox": _group(
        "restricting oneself further",
        """landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr seccomp""",
    ),
    "@signal": _group(
        "sending and handling signals",
        """kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
        rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack tgkill tkill""",
    ),
    "@swap": _group("swap areas", "swapoff swapon"),
    "@system": _group("what system this is, and randomness", "getcpu getrandom sysinfo uname"),
    "@time": _group(
        "reading clocks, sleeping, timers",
        """alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime times""",
    ),
    "@trace": _group(
        "looking into other processes",
        """kcmp migrate_pages move_pages pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace
        userfaultfd""",
    ),
}

_JOINED: Final = {
    "@privileged": (
        "@administration", "@bpf", "@clock", "@keyring", "@module", "@mount", "@namespace", "@raw-io", "@reboot",
        "@swap",
    ),
}  # fmt: skip


def members(name: str) -> tuple[str, ...]:
    """Return the calls of a group.

    Raises:
        FilterError: No such group; near ones are listed.
    """
    if name in GROUPS:
        return GROUPS[name].calls
    if name in _JOINED:
        return tuple(call for part in _JOINED[name] for call in GROUPS[part].calls)
    known = [*GROUPS, *_JOINED]
    raise FilterError(f"no group of calls is named {name!r}{near(name, known) or '; there are ' + ', '.join(known)}")
