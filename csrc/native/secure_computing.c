/* seccomp(2) and seccomp_unotify(2). */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64) /* 6.6 */
#endif

/* struct seccomp_notif with fixed-width types, which cffi can check, and its struct seccomp_data unfolded. */
struct sandbox_seccomp_notif {
    uint64_t id;
    uint32_t pid;
    uint32_t flags;
    int32_t nr;
    uint32_t arch;
    uint64_t instruction_pointer;
    uint64_t args[6];
};
_Static_assert(sizeof(struct sandbox_seccomp_notif) == sizeof(struct seccomp_notif), "same layout");

static int sandbox_seccomp(unsigned int operation, unsigned int flags, void *args)
{
    return (int)syscall(SYS_seccomp, operation, flags, args);
}

static int sandbox_seccomp_filter(unsigned int flags, const void *program, unsigned short length)
{
    struct sock_fprog fprog = {.len = length, .filter = (struct sock_filter *)program};
    return sandbox_seccomp(SECCOMP_SET_MODE_FILTER, flags, &fprog);
}

static int sandbox_seccomp_notif_sizes(uint16_t *sizes)
{
    struct seccomp_notif_sizes answer = {0};
    int result = sandbox_seccomp(SECCOMP_GET_NOTIF_SIZES, 0, &answer);
    sizes[0] = answer.seccomp_notif;
    sizes[1] = answer.seccomp_notif_resp;
    sizes[2] = answer.seccomp_data;
    return result;
}

static int sandbox_seccomp_notif_recv(int fd, struct sandbox_seccomp_notif *notif)
{
    /* The kernel refuses a structure that is not all zero. */
    memset(notif, 0, sizeof(*notif));
    return ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, notif);
}

static int sandbox_seccomp_notif_send(int fd, uint64_t id, int64_t val, int32_t error, uint32_t flags)
{
    struct seccomp_notif_resp resp = {.id = id, .val = val, .error = error, .flags = flags};
    return ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &resp);
}

static int sandbox_seccomp_notif_id_valid(int fd, uint64_t id)
{
    return ioctl(fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &id);
}

static int sandbox_seccomp_notif_addfd(int fd, uint64_t id, uint32_t flags, uint32_t srcfd, uint32_t newfd,
                                       uint32_t newfd_flags)
{
    struct seccomp_notif_addfd addfd = {
        .id = id,
        .flags = flags,
        .srcfd = srcfd,
        .newfd = newfd,
        .newfd_flags = newfd_flags,
    };
    /*
     * Fact: with SECCOMP_ADDFD_FLAG_SEND the kernel marks the notification as answered before it waits for
     * the target to install the descriptor, and a signal in that wait withdraws the descriptor but not the
     * answer: the target would see 0, which is somebody else's descriptor. So no signal may arrive here. The
     * wait is short: the target only has to be scheduled, and its own death ends it.
     */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = ioctl(fd, SECCOMP_IOCTL_NOTIF_ADDFD, &addfd);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return result;
}

static int sandbox_seccomp_notif_set_flags(int fd, uint64_t flags)
{
    /* The flags are the argument itself, although the number was made for a pointer to them. */
    return ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, (unsigned long)flags);
}
