/* What the launcher may ask for while the sandbox runs. */
#include "init.h"

#define AT_FDCWD (-100)

static void refuse(uint32_t id, int error)
{
    struct record record = {.type = R_REFUSED, .id = id, .error = error};

    tell(&record, 0, 0);
}

/* One more payload: the plan is the first descriptor, its slots are the others in order. */
static void serve_spawn(const struct record *request, int *fds, int count)
{
    int error = count > 0 ? map_plan(fds[0], &plan) : -E_BADF;

    if (!error && plan->slot_count != (uint32_t)count - 1) {
        unmap_plan(plan);
        error = -E_PROTO;
    }
    if (!error) {
        for (int i = 1; i < count; i++)
            plan->slot[i - 1] = fds[i];
        plan->slot[SLOT_CONTROL] = control;
        error = (int)spawn(1, 0);
        if (error > 0) {
            struct payload *p = find(error);
            p->id = request->id;
            settle_if_known(p);
            error = 0;
        }
        unmap_plan(plan);
    }
    if (error)
        refuse(request->id, -error);
}

static void serve_namespace(const struct record *request)
{
    static const char *const paths[] = {"/proc/self/ns/user",
                                        "/proc/self/ns/mnt",
                                        "/proc/self/ns/pid_for_children",
                                        "/proc/self/ns/net",
                                        "/proc/self/ns/ipc",
                                        "/proc/self/ns/uts",
                                        "/proc/self/ns/cgroup",
                                        "/proc/self/ns/time_for_children"};
    struct record record = {.type = R_FD, .id = request->id, .value = request->value};

    if (request->value < 0 || request->value >= (int64_t)(sizeof paths / sizeof *paths)) {
        refuse(request->id, E_INVAL);
        return;
    }
    int fd = (int)call4(__NR_openat, AT_FDCWD, paths[request->value], O_CLOEXEC, 0);
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

    if (count == -E_PIPE) /* the launcher is gone or gave us up */
        finish(SIGKILL, payloads[0].since);
    if (count < 0)
        return;
    switch (request.type) {
    case Q_KILL:
        finish(SIGKILL, payloads[0].since);
    case Q_RELEASE:
        if (payloads[0].sync >= 0)
            call3(__NR_write, payloads[0].sync, "g", 1);
        break;
    case Q_DETACH:
        close_fd(&lifeline);
        break;
    case Q_NAMESPACE:
        serve_namespace(&request);
        break;
    case Q_SPAWN:
        serve_spawn(&request, fds, count);
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
