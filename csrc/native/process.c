#include <grp.h>
#include <linux/capability.h>

/* Raw: libc may answer from memory what a namespace or a raw clone has changed. */
static int sandbox_getpid(void)
{
    return (int)syscall(SYS_getpid);
}

static int sandbox_getppid(void)
{
    return (int)syscall(SYS_getppid);
}

static int sandbox_gettid(void)
{
    return (int)syscall(SYS_gettid);
}

static long sandbox_prctl(int option, unsigned long arg2, unsigned long arg3, unsigned long arg4,
                          unsigned long arg5)
{
    return syscall(SYS_prctl, option, arg2, arg3, arg4, arg5);
}

/* For the options whose first argument is an address. */
static long sandbox_prctl_into(int option, char *buffer, unsigned long size)
{
    return syscall(SYS_prctl, option, buffer, size, 0UL, 0UL);
}

/* The sets are effective, permitted, inheritable; the kernel takes each as two halves. */
static int sandbox_capget(int pid, uint64_t sets[3])
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, pid};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        return -1;
    sets[0] = data[0].effective | (uint64_t)data[1].effective << 32;
    sets[1] = data[0].permitted | (uint64_t)data[1].permitted << 32;
    sets[2] = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    return 0;
}

static int sandbox_capset(int pid, const uint64_t sets[3])
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, pid};
    struct __user_cap_data_struct data[2];
    for (int half = 0; half < 2; half++) {
        data[half].effective = (uint32_t)(sets[0] >> 32 * half);
        data[half].permitted = (uint32_t)(sets[1] >> 32 * half);
        data[half].inheritable = (uint32_t)(sets[2] >> 32 * half);
    }
    return (int)syscall(SYS_capset, &header, data);
}
