#include <sys/ioctl.h>

static int sandbox_unshare(unsigned long flags)
{
    return (int)syscall(SYS_unshare, flags);
}

static int sandbox_setns(int fd, int nstype)
{
    return (int)syscall(SYS_setns, fd, nstype);
}

static int sandbox_ns_ioctl(int fd, unsigned long request, unsigned long argument)
{
    return ioctl(fd, request, argument);
}

static int sandbox_ns_get_owner_uid(int fd, uint32_t *uid)
{
    return ioctl(fd, NS_GET_OWNER_UID, uid);
}

static int sandbox_ns_get_id(int fd, unsigned long request, uint64_t *id)
{
    return ioctl(fd, request, id);
}

static int sandbox_ns_mnt_info(int fd, unsigned long request, struct sandbox_mnt_ns_info *info)
{
    info->size = sizeof *info;
    return ioctl(fd, request, info);
}
