/* The reaper: counts what ends, and ends what is left. */
#include "init.h"

#define AT_FDCWD (-100)
#define PR_SET_CHILD_SUBREAPER 36
#define RUSAGE_CHILDREN (-1)

/* Without a pid namespace of its own there is no "all of it": children, again and again, until none is left.
 */
static void kill_children(void)
{
    char text[4096];
    long size = call6(__NR_pread64, children_fd, (long)text, sizeof text, 0, 0, 0);

    for (long i = 0, pid = 0; i < size; i++) {
        if (text[i] >= '0' && text[i] <= '9') {
            pid = pid * 10 + text[i] - '0';
        } else if (pid) {
            call2(__NR_kill, pid, SIGKILL);
            pid = 0;
        }
    }
}

long thaw_with(int fd)
{
    thaw_fd = fd;
    return 0;
}

void kill_all(void)
{
    if (watching)
        call2(__NR_kill, payloads[0].pid, SIGKILL);
    else if (call0(__NR_getpid) == 1)
        call2(__NR_kill, -1, SIGKILL);
    else
        kill_children();
    /* Version 1 of control groups: what is frozen dies when it thaws, and runs nothing any more. */
    if (thaw_fd >= 0)
        call3(__NR_write, thaw_fd, "THAWED", 6);
}

static void copy_usage(struct usage *to, const int64_t *r)
{
    /* struct rusage: utime, stime, maxrss, ixrss, idrss, isrss, minflt, majflt, nswap, inblock, oublock, ...
     */
    to->user_us = r[0] * 1000000 + r[1];
    to->system_us = r[2] * 1000000 + r[3];
    to->max_rss_kib = r[4];
    to->minor_faults = r[8];
    to->major_faults = r[9];
    to->blocks_in = r[11];
    to->blocks_out = r[12];
    to->voluntary_switches = r[16];
    to->involuntary_switches = r[17];
}

/* A further payload has ended: report it, and forget it. */
static void bury(struct payload *p, int status, const int64_t *rusage)
{
    if (!p->started)
        settle(p, 1, status);
    if (p->started > 0) {
        struct record record = {.type = R_ENDED, .value = status};
        copy_usage(&record.body.end.usage, rusage);
        record.body.end.usage.wall_ns = now() - p->since;
        record.body.end.identity = p->shared->identity;
        tell_payload(p, &record, 0, 0);
    }
    close_fd(&p->channel);
    call2(__NR_munmap, p->shared, sizeof *p->shared);
    *p = (struct payload){.sync = -1, .channel = -1};
}

/* Stage 1 has failed: a PID 1 that is its own child, and not the launcher's, goes with it. */
void end_watched(void)
{
    if (payloads[0].pid > 0) {
        call2(__NR_kill, payloads[0].pid, SIGKILL);
        call4(__NR_wait4, payloads[0].pid, 0, 0, 0);
    }
}

/* The first payload has ended, or all was to be killed: end whatever is left, count it, report, exit. */
_Noreturn void finish(int status, int error)
{
    struct record record = {.type = R_ENDED, .value = status, .error = error};
    int64_t rusage[18] = {0};
    int other;

    for (;;) {
        /* Orphans come to PID 1: without a child nothing is left, and nobody has to be looked for. */
        long pid = call4(__NR_wait4, -1, &other, WNOHANG, rusage);
        if (pid == 0) {
            kill_all();
            pid = call4(__NR_wait4, -1, &other, 0, rusage);
        }
        if (pid == -E_CHILD)
            break;
        struct payload *p = pid > 0 ? find(pid) : 0;
        if (p && p == &payloads[0]) {
            if (!p->started)
                settle(p, 1, other);
            record.value = other;
        } else if (p) {
            bury(p, other, rusage);
        }
    }
    call2(__NR_getrusage, RUSAGE_CHILDREN, rusage);
    copy_usage(&record.body.end.usage, rusage);
    record.body.end.usage.wall_ns = now() - payloads[0].since;
    if (payloads[0].shared)
        record.body.end.identity = payloads[0].shared->identity;
    tell(&record, 0, 0);
    quit(0);
}

void reap(void)
{
    int status;
    int64_t rusage[18];
    long pid;

    while ((pid = call4(__NR_wait4, -1, &status, WNOHANG, rusage)) > 0) {
        struct payload *p = find(pid);
        if (!p)
            continue; /* an orphan of the sandbox */
        if (p != &payloads[0]) {
            bury(p, status, rusage);
            continue;
        }
        if (!p->started)
            settle(p, 1, status);
        if (p->started < 0) {
            kill_all();
            quit(125);
        }
        finish(status, 0);
    }
}
