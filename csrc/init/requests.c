/* What the launcher may ask for while the sandbox runs. */
#include "init.h"

#define AT_FDCWD (-100)
#define O_PATH 010000000
#define PROC_SUPER_MAGIC 0x9fa0
#if defined(__aarch64__)
#define O_DIRECTORY 040000
#else
#define O_DIRECTORY 0200000
#endif

static int detached; /* the launcher let us go: its end is nothing to us */

static void refuse_on(int channel, uint32_t id, int error)
{
    struct record record = {.type = R_REFUSED, .id = id, .error = error};

    (void)send_record(channel, &record, 0, 0);
}

static void refuse(uint32_t id, int error)
{
    refuse_on(control, id, error);
}

/*
 * One more payload: its plan, its own channel, and what its slots hold from SLOT_STDIN on. It is forked, and
 * we do not wait for it: what is at its paths belongs to the sandbox, and may take any time.
 */
static int start_payload(const struct record *request, int *fds, int count)
{
    int error = count > 1 ? map_plan(fds[0], &plan) : -E_BADF;

    if (error)
        return error;
    if (plan->slot_count == (uint32_t)count - 2 + SLOT_STDIN) {
        plan->slot[SLOT_CONTROL] = fds[1];
        plan->slot[SLOT_LIFELINE] = plan->slot[SLOT_CLAIM] = -1;
        for (int i = 2; i < count; i++)
            plan->slot[SLOT_STDIN + i - 2] = fds[i];
        error = (int)spawn(0, 0);
    } else {
        error = -E_PROTO;
    }
    unmap_plan(plan);
    struct payload *p = error > 0 ? find(error) : 0;
    if (!p)
        return error;
    struct record record = {.type = R_INIT, .value = p->pid};
    int pidfd = (int)call2(__NR_pidfd_open, p->pid, 0);
    p->id = request->id;
    if (pidfd < 0) { /* nobody could wait for it */
        call2(__NR_kill, p->pid, SIGKILL);
        return pidfd;
    }
    p->channel = fds[1];
    fds[1] = -1;
    tell_payload(p, &record, &pidfd, 1);
    close_fd(&pidfd);
    return 0;
}

static void serve_spawn(const struct record *request, int *fds, int count)
{
    int error = start_payload(request, fds, count);

    if (error < 0)
        refuse_on(count > 1 ? fds[1] : control, request->id, -error);
}

/* Its process group, which it leads unless it has left it; what has moved elsewhere ends with the sandbox. */
static void kill_payload(const struct payload *p)
{
    call2(__NR_kill, p->pid, SIGKILL);
    call2(__NR_kill, -p->pid, SIGKILL);
}

void serve_payload(struct payload *p)
{
    struct record request;
    int fds[MAX_SLOTS];
    int count = receive_record(p->channel, &request, fds, MAX_SLOTS);

    if (count == -E_PIPE) { /* nobody waits for it any more */
        close_fd(&p->channel);
        if (!p->detached)
            kill_payload(p);
    }
    if (count < 0)
        return;
    if (request.type == Q_KILL)
        kill_payload(p);
    else if (request.type == Q_SIGNAL)
        call2(__NR_kill, p->pid, request.value);
    else if (request.type == Q_DETACH)
        p->detached = 1;
    else
        refuse_on(p->channel, request.id, E_INVAL);
    for (int i = 0; i < count; i++)
        call1(__NR_close, fds[i]);
}

/*
 * By pidfd since Linux 6.11. Before that by /proc, where there is one: what is at that path inside belongs to
 * the sandbox and may be anything, a FIFO too.
 */
static int open_namespace(unsigned number, const char *path)
{
    uint64_t statfs[15] = {0};
    int pidfd = (int)call2(__NR_pidfd_open, call0(__NR_getpid), 0);
    int fd = pidfd < 0 ? pidfd : (int)call3(__NR_ioctl, pidfd, 0xFF00u | number, 0);

    close_fd(&pidfd);
    if (fd != -E_INVAL && fd != -E_NOTTY)
        return fd;
    int proc = (int)call4(__NR_openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (proc < 0)
        return proc;
    fd = (int)call2(__NR_fstatfs, proc, statfs);
    if (!fd)
        fd = statfs[0] == PROC_SUPER_MAGIC ? (int)call4(__NR_openat, proc, path, O_CLOEXEC, 0) : -E_NOENT;
    close_fd(&proc);
    return fd;
}

static void serve_namespace(const struct record *request)
{
    static const struct {
        unsigned char number; /* of the ioctl, PIDFD_GET_USER_NAMESPACE ... */
        char path[27];
    } kinds[] = {{9, "self/ns/user"},
                 {3, "self/ns/mnt"},
                 {6, "self/ns/pid_for_children"},
                 {4, "self/ns/net"},
                 {2, "self/ns/ipc"},
                 {10, "self/ns/uts"},
                 {1, "self/ns/cgroup"},
                 {8, "self/ns/time_for_children"}};
    struct record record = {.type = R_FD, .id = request->id, .value = request->value};

    if (request->value < 0 || request->value >= (int64_t)(sizeof kinds / sizeof *kinds)) {
        refuse(request->id, E_INVAL);
        return;
    }
    int fd = open_namespace(kinds[request->value].number, kinds[request->value].path);
    if (fd < 0) {
        refuse(request->id, -fd);
        return;
    }
    tell(&record, &fd, 1);
    call1(__NR_close, fd);
}

/* Not reaped yet, so the pid is still the payload's. */
static void serve_signal(const struct record *request)
{
    struct payload *p = find_id(request->id);

    if (p)
        call2(__NR_kill, p->pid, request->value);
}

static void serve_pidfd(const struct record *request)
{
    struct record record = {.type = R_FD, .id = request->id};
    struct payload *p = find_id(request->id);
    int fd = p ? (int)call2(__NR_pidfd_open, p->pid, 0) : -E_CHILD;

    if (fd < 0) {
        refuse(request->id, -fd);
        return;
    }
    tell(&record, &fd, 1);
    call1(__NR_close, fd);
}

void serve(void)
{
    struct record request;
    int fds[MAX_SLOTS];
    int count = receive_record(control, &request, fds, MAX_SLOTS);

    if (count == -E_PIPE && !detached) /* the launcher is gone or gave us up */
        finish(SIGKILL, 0);
    if (count == -E_PIPE)
        close_fd(&control);
    if (count < 0)
        return;
    switch (request.type) {
    case Q_KILL:
        finish(SIGKILL, 0);
    case Q_RELEASE:
        if (payloads[0].sync >= 0)
            call3(__NR_write, payloads[0].sync, "g", 1);
        break;
    case Q_DETACH:
        close_fd(&lifeline);
        detached = 1;
        break;
    case Q_NAMESPACE:
    case Q_SPAWN:
        if (watching) /* from outside of the namespaces there is no way in */
            refuse(request.id, E_NOTSUP);
        else if (request.type == Q_SPAWN)
            serve_spawn(&request, fds, count);
        else
            serve_namespace(&request);
        break;
    case Q_SIGNAL:
        serve_signal(&request);
        break;
    case Q_PIDFD:
        serve_pidfd(&request);
        break;
    default:
        refuse(request.id, E_INVAL);
    }
    for (int i = 0; i < count; i++)
        call1(__NR_close, fds[i]);
}
