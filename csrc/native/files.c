#include <linux/openat2.h>

/* Returns -errno: the Python handler of the signal that interrupted the call may run before anyone looks at
 * errno, and calls of its own that fail would change it. */
static int sandbox_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    int fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how);
    return fd < 0 ? -errno : fd;
}

static int sandbox_close_range(unsigned int first, unsigned int last, unsigned int flags)
{
    return (int)syscall(SYS_close_range, first, last, flags);
}
