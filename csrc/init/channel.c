/* The control channel: fixed-size records over a SOCK_SEQPACKET pair, descriptors beside them. */
#include "init.h"

#define SOL_SOCKET 1
#define SCM_RIGHTS 1
#define MSG_NOSIGNAL 0x4000
#define MSG_CMSG_CLOEXEC 0x40000000
#define MSG_TRUNC 0x20
#define MSG_CTRUNC 0x08
#define MSG_DONTWAIT 0x40

struct iovec {
    void *base;
    size_t size;
};
struct msghdr {
    void *name;
    int name_size;
    struct iovec *iov;
    size_t iov_count;
    void *control;
    size_t control_size;
    int flags;
};
struct rights {
    size_t size;
    int level, type;
    int fd[MAX_SLOTS];
};
#define RIGHTS_HEADER offsetof(struct rights, fd)

int send_record(int channel, struct record *record, const int *fds, int count)
{
    struct rights rights = {.level = SOL_SOCKET, .type = SCM_RIGHTS};
    struct iovec iov = {record, sizeof *record};
    struct msghdr message = {.iov = &iov, .iov_count = 1};
    long sent;

    if (count > 0) {
        rights.size = RIGHTS_HEADER + (size_t)count * sizeof(int);
        memcpy(rights.fd, fds, (size_t)count * sizeof(int));
        message.control = &rights;
        message.control_size = RIGHTS_HEADER + (((size_t)count * sizeof(int) + 7) & ~(size_t)7);
    }
    do
        sent = call3(__NR_sendmsg, channel, &message, MSG_NOSIGNAL);
    while (sent == -E_INTR);
    return sent < 0 ? (int)sent : 0;
}

/* How many descriptors came with the record; -E_PIPE at the end of file, -E_PROTO for a record of another
 * size. */
int receive_record(int channel, struct record *record, int *fds, int room)
{
    struct rights rights;
    struct iovec iov = {record, sizeof *record};
    struct msghdr message = {.iov = &iov, .iov_count = 1, .control = &rights, .control_size = sizeof rights};
    long got;
    int count = 0;

    rights.size = 0;
    do
        got = call3(__NR_recvmsg, channel, &message, MSG_CMSG_CLOEXEC);
    while (got == -E_INTR);
    /* The kernel may tell the end of file before a record that came just before it: a second look is the last
     * word. */
    if (got == 0) {
        message.control_size = sizeof rights;
        got = call3(__NR_recvmsg, channel, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    }
    if (got < 0)
        return (int)got;
    if (message.control_size >= RIGHTS_HEADER && rights.type == SCM_RIGHTS && rights.size > RIGHTS_HEADER)
        count = (int)((rights.size - RIGHTS_HEADER) / sizeof(int));
    int whole = got == RECORD_SIZE && !(message.flags & (MSG_TRUNC | MSG_CTRUNC)) && count <= room;
    for (int i = 0; i < count; i++) {
        if (whole)
            fds[i] = rights.fd[i];
        else
            call1(__NR_close, rights.fd[i]);
    }
    if (got == 0)
        return -E_PIPE;
    if (!whole)
        return -E_PROTO;
    return count;
}

/*
 * A launcher that is gone is noticed by the loop, not here. But the kernel takes no descriptors while too
 * many of this user's are on their way, and somebody waits for these: then the launcher is told that.
 */
void deliver(int channel, struct record *record, const int *fds, int count)
{
    int error = send_record(channel, record, fds, count);

    if (error < 0 && count > 0) {
        record->type = R_REFUSED;
        record->step = UNSENT;
        record->error = -error;
        (void)send_record(channel, record, 0, 0);
    }
}

void tell(struct record *record, const int *fds, int count)
{
    deliver(control, record, fds, count);
}
