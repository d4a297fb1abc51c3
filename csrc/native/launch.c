/*
 * The launch: from Python to the first instruction of init.
 *
 * Rules for the child between clone and execveat, which runs in the address space of a threaded Python:
 * - no library call: raw system calls only. errno is thread-local storage, which the child shares with the
 *   thread that waits for it, so the child keeps its error in a variable of the caller's frame;
 * - no lock, no allocation, no signal handler: all 64 signals are blocked before the clone and stay blocked
 * in the child; glibc's sigprocmask would leave its two internal ones open;
 * - no credential change: it would make the *parent* non-dumpable. The descriptor table is the child's own
 *   (no CLONE_FILES), so clearing close-on-exec there is seen by nobody else.
 * glibc's clone is used for the stack switch alone; cancellation is off, or a cancelled thread would unwind
 * over the frame that the child still uses.
 */
#include <linux/close_range.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

#define LAUNCH_RECORD_SIZE 1024
#define LAUNCH_MAX_SLOTS 256
#define LAUNCH_STACK (4 * 1024) /* a few raw calls need no more, and no signal comes */

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* 6.3 */
#define MFD_EXEC 0x0010U        /* 6.3 */
#endif

/*
 * Numbers 0 to 2 are the caller's standard streams, also while they are closed: a descriptor of ours there
 * would be handed to a payload that inherits them. Where no other number is left, it stays, and the launch
 * fails for want of descriptors anyway.
 */
static int launch_above(int fd)
{
    if (fd < 0 || fd > 2)
        return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (moved < 0)
        return fd;
    close(fd);
    return moved;
}

/*
 * A sealed memfd with the content, and the slots written over it. executable: for execveat; otherwise it can
 * never be executed.
 */
static int launch_memfd(const char *name, const char *content, size_t size, size_t slots_at, const int *slots,
                        int slot_count, int executable)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create(name, flags | (executable ? MFD_EXEC : MFD_NOEXEC_SEAL));

    if (fd < 0 && errno == EINVAL) /* before 6.3 */
        fd = memfd_create(name, flags);
    fd = launch_above(fd);
    if (fd < 0)
        return -1;
    for (size_t done = 0; done < size;) {
        ssize_t written = write(fd, content + done, size - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            goto failed;
        done += (size_t)written;
    }
    if (slot_count > 0 && pwrite(fd, slots, sizeof(int) * (size_t)slot_count, (off_t)slots_at) < 0)
        goto failed;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0)
        return fd;
failed:;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

struct launch_child {
    int init_fd;
    const char *init_path;
    const int *keep;
    int keep_count;
    char *const *argv;
    volatile int error;
};

static long launch_raw(long number, long a, long b, long c, long d, long e)
{
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
#elif defined(__riscv) && __riscv_xlen == 64
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4) : "memory");
    return a0;
#else
#error "the launch knows x86_64, aarch64 and riscv64"
#endif
}

static int launch_child(void *argument)
{
    struct launch_child *child = argument;
    static char *const environment[] = {NULL};
    long error = 0;

    for (int i = 0; i < child->keep_count && error >= 0; i++)
        error = launch_raw(SYS_fcntl, child->keep[i], F_SETFD, 0, 0, 0);
    if (error >= 0 && child->init_fd >= 0)
        error = launch_raw(SYS_execveat, child->init_fd, (long)"", (long)child->argv, (long)environment,
                           AT_EMPTY_PATH);
    else if (error >= 0)
        error = launch_raw(SYS_execveat, AT_FDCWD, (long)child->init_path, (long)child->argv,
                           (long)environment, 0);
    child->error = (int)-error;
    launch_raw(SYS_exit, 127, 0, 0, 0, 0);
    return 127;
}

/*
 * Start stage 1 of init with a plan. Returns 0, with its pidfd and pid in `stage`; -1 with errno when it
 * could not be executed, and then nothing is left of it. In memory of the caller's, because an exception of a
 * signal handler may come between the return and whatever is done with a result.
 */
static int launch_spawn(int init_fd, const char *init_path, const char *image, size_t size, size_t slots_at,
                        const int *slots, int slot_count, int *stage)
{
    int keep[LAUNCH_MAX_SLOTS + 1], count = 0, pid = -1, pidfd = -1, error = 0, state;
    char number[16];
    char *argv[] = {"sandbox-init", number, NULL};
    uint64_t all = ~(uint64_t)0, old;

    int plan = launch_memfd("sandbox-plan", image, size, slots_at, slots, slot_count, 0);
    if (plan < 0)
        return -1;
    keep[count++] = plan;
    for (int i = 0; i < slot_count; i++)
        if (slots[i] >= 0)
            keep[count++] = slots[i];
    /* Digits by hand: snprintf may take a lock of the locale. */
    char *end = number + sizeof number - 1, *digit = end;
    *end = 0;
    for (int rest = plan; digit == end || rest; rest /= 10)
        *--digit = (char)('0' + rest % 10);
    argv[1] = digit;

    struct launch_child child = {init_fd, init_path, keep, count, argv, 0};
    /* The child's own stack, in this frame: its owner sleeps until the child has left it. */
    char stack[LAUNCH_STACK] __attribute__((aligned(16)));
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &old, sizeof all);
    pid = clone(launch_child, stack + LAUNCH_STACK, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &child,
                &pidfd);
    error = pid < 0 ? errno : child.error;
    if (pid > 0)
        pidfd = launch_above(pidfd);
    if (pid > 0 && error) {
        siginfo_t info;
        while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0 && errno == EINTR)
            ;
        close(pidfd);
    } else if (pid > 0) {
        stage[0] = pidfd;
        stage[1] = pid;
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof old);
    pthread_setcancelstate(state, NULL);
    close(plan);
    errno = error;
    return error ? -1 : 0;
}

/* The ends of a control channel: ours first. A receive that waits a second in vain says EAGAIN. */
static int launch_socketpair(int *pair)
{
    const struct timeval patience = {.tv_sec = 1};

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    pair[0] = launch_above(pair[0]);
    pair[1] = launch_above(pair[1]);
    return setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}

struct launch_message {
    int fd_count;
    int fds[LAUNCH_MAX_SLOTS];
    char record[LAUNCH_RECORD_SIZE];
};

/* One record: its size, 0 at the end of file, -1 with errno. Descriptors beside it are the caller's. */
static int launch_receive(int channel, struct launch_message *received, int flags)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof received->fds)];
    } control;
    struct iovec iov = {received->record, sizeof received->record};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(channel, &message, MSG_CMSG_CLOEXEC | flags);

    /* A peer that sends and ends between the kernel's look at the queue and its look at the end: an end of
     * file is told before the record. The second look is the last word. */
    if (size == 0) {
        message.msg_controllen = sizeof control;
        size = recvmsg(channel, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    }
    received->fd_count = 0;
    if (size < 0)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        received->fd_count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(received->fds, CMSG_DATA(c), sizeof(int) * (size_t)received->fd_count);
        for (int i = 0; i < received->fd_count; i++)
            received->fds[i] = launch_above(received->fds[i]);
    }
    /* There was no number left for what came with it: half of it is nothing. */
    if (message.msg_flags & MSG_CTRUNC) {
        for (int i = 0; i < received->fd_count; i++)
            close(received->fds[i]);
        received->fd_count = 0;
        errno = EMFILE;
        return -1;
    }
    return (int)size;
}

static int launch_send(int channel, const char *record, const int *fds, int fd_count)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * LAUNCH_MAX_SLOTS)];
    } control;
    struct iovec iov = {(char *)record, LAUNCH_RECORD_SIZE};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)fd_count);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)fd_count);
    }
    return (int)sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int launch_pidfd_self(void)
{
    return launch_above((int)syscall(SYS_pidfd_open, getpid(), 0));
}

/* Hold a name for as long as the descriptor lives: bind an abstract socket. EADDRINUSE: somebody has it. */
static int launch_claim(const char *name, size_t size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = launch_above(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));

    if (fd < 0)
        return -1;
    if (size > sizeof address.sun_path - 1)
        size = sizeof address.sun_path - 1;
    memcpy(address.sun_path + 1, name, size);
    if (bind(fd, (struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + size)) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}
