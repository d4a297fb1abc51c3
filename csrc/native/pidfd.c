#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

static int sandbox_pidfd_open(int pid, unsigned int flags)
{
    return (int)syscall(SYS_pidfd_open, pid, flags);
}

/* Without a value the kernel fills in what kill(2) would send; with one this is sigqueue(3). */
static int sandbox_pidfd_send_signal(int pidfd, int signo, const int *value, unsigned int flags)
{
    siginfo_t info;
    if (value == NULL)
        return (int)syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, flags);
    memset(&info, 0, sizeof info);
    info.si_signo = signo;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = *value;
    return (int)syscall(SYS_pidfd_send_signal, pidfd, signo, &info, flags);
}

static int sandbox_pidfd_getfd(int pidfd, int targetfd, unsigned int flags)
{
    return (int)syscall(SYS_pidfd_getfd, pidfd, targetfd, flags);
}

static int sandbox_pidfd_get_namespace(int pidfd, unsigned long request)
{
    return ioctl(pidfd, request, 0UL);
}

static int sandbox_pidfd_get_info(int pidfd, struct sandbox_pidfd_info *info)
{
    return ioctl(pidfd, SANDBOX_PIDFD_GET_INFO, info);
}

struct sandbox_waited {
    int pid;
    uint32_t uid;
    int signo;
    int status;
    int code;
    int64_t rusage[16]; /* in the order of Python's resource.struct_rusage; times in microseconds */
};

/* The raw call: libc's waitid leaves the usage out. */
static int sandbox_waitid(int idtype, uint32_t id, unsigned int options, struct sandbox_waited *result)
{
    siginfo_t info;
    struct rusage usage;
    memset(&info, 0, sizeof info);
    memset(&usage, 0, sizeof usage);
    if (syscall(SYS_waitid, idtype, id, &info, options, &usage) != 0)
        return -1;
    *result = (struct sandbox_waited){
        info.si_pid,
        info.si_uid,
        info.si_signo,
        info.si_status,
        info.si_code,
        {
            usage.ru_utime.tv_sec * INT64_C(1000000) + usage.ru_utime.tv_usec,
            usage.ru_stime.tv_sec * INT64_C(1000000) + usage.ru_stime.tv_usec,
            usage.ru_maxrss,
            usage.ru_ixrss,
            usage.ru_idrss,
            usage.ru_isrss,
            usage.ru_minflt,
            usage.ru_majflt,
            usage.ru_nswap,
            usage.ru_inblock,
            usage.ru_oublock,
            usage.ru_msgsnd,
            usage.ru_msgrcv,
            usage.ru_nsignals,
            usage.ru_nvcsw,
            usage.ru_nivcsw,
        },
    };
    return 0;
}
