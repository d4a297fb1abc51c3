/*
 * Signal sets are 64 bits, bit n-1 for signal n: the kernel's own form. The calls are made raw, because the C
 * library's sigset_t is 1024 bits and its wrappers silently leave out the two signals that it uses itself.
 */
static int sandbox_signalfd(int fd, uint64_t set, int flags)
{
    return (int)syscall(SYS_signalfd4, fd, &set, sizeof set, flags);
}

static int sandbox_sigmask(int how, uint64_t set, int change, uint64_t *old)
{
    /* A thread that blocks 32 (cancellation) or 33 (setuid in all threads) hangs the process in setuid(2). */
    if (how != SIG_UNBLOCK)
        set &= ~(UINT64_C(3) << 31);
    return (int)syscall(SYS_rt_sigprocmask, how, change ? &set : NULL, old, sizeof set);
}

/* The kernel wants si_uid and si_pid from the sender; the C library's sigqueue() fills them in the same way.
 */
static void sandbox_fill_queued(siginfo_t *info, int number, int value)
{
    memset(info, 0, sizeof *info);
    info->si_signo = number;
    info->si_code = SI_QUEUE;
    info->si_pid = getpid();
    info->si_uid = getuid();
    info->si_value.sival_int = value;
}

static int sandbox_sigqueue(int pid, int number, int value)
{
    siginfo_t info;
    sandbox_fill_queued(&info, number, value);
    return (int)syscall(SYS_rt_sigqueueinfo, pid, number, &info);
}

static int sandbox_tgsigqueue(int tgid, int tid, int number, int value)
{
    siginfo_t info;
    sandbox_fill_queued(&info, number, value);
    return (int)syscall(SYS_rt_tgsigqueueinfo, tgid, tid, number, &info);
}
