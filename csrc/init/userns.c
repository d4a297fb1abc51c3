/* Ids: a user namespace that serves as the id map of a mount, and the launcher's turn to write PID 1's. */
#include "init.h"

#define CLONE_NEWUSER 0x10000000UL

static int gate[2];
static char holder_stack[4096] __attribute__((aligned(16)));

/* Keeps the namespace alive until it is open, or until its maker has ended, whatever the reason. */
static void hold_namespace(void)
{
    char byte;

    call1(__NR_close, gate[1]);
    call3(__NR_read, gate[0], &byte, 1);
    quit(0);
}

static long open_namespace(int proc, long pid, const char *const *maps, const size_t *sizes)
{
    static const char *const names[] = {"uid_map", "gid_map"};

    for (int i = 0; i < 2; i++) {
        long error = write_proc(proc, (uint64_t)pid, names[i], maps[i], sizes[i]);
        if (error < 0)
            return error;
    }
    return open_proc(proc, (uint64_t)pid, "ns/user", O_CLOEXEC);
}

/*
 * A mount takes its id map from a user namespace, and a namespace needs a process to be born in: one that
 * shares our memory and does nothing.
 */
long make_user_namespace(int proc, const char *const *maps, const size_t *sizes)
{
    long error = call2(__NR_pipe2, gate, O_CLOEXEC);
    int status;

    if (error < 0)
        return error;
    long pid =
        clone_on(CLONE_NEWUSER | CLONE_VM | SIGCHLD, 0, holder_stack + sizeof holder_stack, hold_namespace);
    long fd = pid < 0 ? pid : open_namespace(proc, pid, maps, sizes);
    call1(__NR_close, gate[1]);
    call1(__NR_close, gate[0]);
    if (pid >
        0) /* its stack may be needed again; ECHILD where the caller ignores SIGCHLD: it has ended, too */
        do
            error = call4(__NR_wait4, pid, &status, 0, 0);
        while (error == -E_INTR);
    return fd;
}

/* Nobody but a set-id program may map more ids than the caller's own: the launcher runs it, and says so. */
long await_maps(int channel, long pid)
{
    struct record record = {.type = R_MAP_IDS, .value = pid};
    int fds[1];
    long error = send_record(channel, &record, 0, 0);

    if (error >= 0)
        error = receive_record(channel, &record, fds, 0);
    if (error < 0)
        return error;
    return record.type == Q_MAPPED ? 0 : -E_PROTO;
}
