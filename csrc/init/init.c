/*
 * init: runs a plan in fresh processes.
 *
 * Stage 1 starts in the namespaces of the launcher, makes PID 1 in new ones, writes its id maps and ends. PID
 * 1 sets the sandbox up, gives up every privilege, forks the payload and then waits in one loop: for the end
 * of its children, for requests of the launcher, and for the launcher's own end. The payload process applies
 * what is last and executes the program.
 *
 * Facts that shape it:
 * - mm->user_ns is the namespace of the exec: stage 1 is executed in the caller's, so that a payload with
 * every capability in its own namespace cannot trace PID 1, which is a copy of stage 1.
 * - PID 1 of a pid namespace gets no signal from inside for which it has no handler, and SIGKILL never.
 * - When PID 1 ends, the kernel kills all that is left in the namespace, but then nobody counts its usage:
 *   so PID 1 kills and reaps first.
 */
#include "init.h"

#define AT_SECURE 23
#define POLLIN 1
#define POLLERR 8
#define POLLHUP 16
#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 1
#define MAP_ANONYMOUS 0x20
#define AF_UNIX 1
#define SOCK_STREAM 1
#define SOCK_CLOEXEC 02000000
#define SIG_SETMASK 2
#define SFD_CLOEXEC 02000000
#define SFD_NONBLOCK 04000
#define CLONE_INTO_CGROUP 0x200000000ULL
#define PR_SET_NAME 15
#define PR_SET_CHILD_SUBREAPER 36
#define AT_FDCWD (-100)
#define RUSAGE_CHILDREN (-1)
#define CLOCK_MONOTONIC 1
#define MAX_PAYLOADS 32
#define KIB 1024
#define MADV_DONTNEED 4

/* Nothing here has a first value but 0: a page of data would be one more for every sandbox. enter() sets
 * them. */
enum segment role;
struct plan *plan;
struct shared *shared;
int sync_fd;

static int control, lifeline, claim, children_fd;
static int gate[2];
static long init_pid;
static int introduced;
static volatile int signals_reset;

struct payload {
    int pid, sync, started;
    uint32_t id;
    int64_t since;
    struct shared *shared;
};
static struct payload payloads[MAX_PAYLOADS];

_Noreturn void quit(int status)
{
    call1(__NR_exit_group, status);
    /* A filter forbids even that: die of a fault, the shared page has the reason already. */
    for (;;)
        __builtin_trap();
}

static int64_t now(void)
{
    int64_t time[2] = {0, 0};

    call2(__NR_clock_gettime, CLOCK_MONOTONIC, time);
    return time[0] * 1000000000 + time[1];
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        call1(__NR_close, *fd);
    *fd = -1;
}

long reset_signals(void)
{
    /* struct kernel_sigaction, at most 32 bytes everywhere: all zero is SIG_DFL. */
    const uint64_t action[4] = {0};

    for (int number = 1; number <= 64; number++)
        if (number != SIGKILL && number != 19 /* SIGSTOP */)
            call4(__NR_rt_sigaction, number, action, 0, 8);
    return 0;
}

static void block_signals(void)
{
    const uint64_t all = ~0ull;

    call4(__NR_rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
}

/* Close every descriptor but these. */
static long close_except(int *keep, int count)
{
    unsigned from = 0;

    for (int i = 1; i < count; i++) /* insertion sort: a handful */
        for (int k = i; k > 0 && keep[k - 1] > keep[k]; k--) {
            int swap = keep[k];
            keep[k] = keep[k - 1];
            keep[k - 1] = swap;
        }
    for (int i = 0; i < count; i++) {
        if (keep[i] < 0)
            continue;
        if ((unsigned)keep[i] > from) {
            long error = call3(__NR_close_range, from, keep[i] - 1, 0);
            if (error < 0)
                return error;
        }
        from = (unsigned)keep[i] + 1;
    }
    return call3(__NR_close_range, from, ~0u, 0);
}

static _Noreturn void be_init(void);

/* ------------------------------------------------------------------- stage 1 */

/* PID 1 shares stage 1's memory, and has this stack: to copy so little would take longer than to fill it. */
static char init_stack[16 * KIB] __attribute__((aligned(16)));

static void init_starts(void)
{
    role = INIT;
    reset_signals();            /* exec keeps what the caller ignores */
    call1(__NR_close, gate[1]); /* the number stays: stage 1 reads it in the same memory */
    run_segment(INIT);
    be_init();
}

long start_init(unsigned long flags, int cgroup)
{
    long pid = call2(__NR_pipe2, gate, O_CLOEXEC);

    if (pid < 0)
        return pid;
    flags |= CLONE_PARENT;
    if (cgroup >= 0) {
        /* struct clone_args: only clone3 can put the child into a control group; this one is a fork. */
        uint64_t arguments[11] = {flags | CLONE_INTO_CGROUP};
        arguments[10] = (uint64_t)cgroup;
        pid = call2(__NR_clone3, arguments, sizeof arguments);
        if (pid == 0)
            init_starts();
    } else {
        pid = clone_on(flags | CLONE_VM | CLONE_SIGHAND, 0, init_stack + sizeof init_stack, init_starts);
    }
    return init_pid = pid;
}

/*
 * The last thing that stage 1 does. From here on the memory is PID 1's, which unmaps the plan: nothing of the
 * plan is read any more.
 */
long release(void)
{
    long error = call3(__NR_write, gate[1], "", 1);

    if (error < 0)
        return error;
    /* PID 1 has the same table of dispositions, and more to do. */
    reset_signals();
    signals_reset = 1;
    quit(0);
}

/* ------------------------------------------------------------------- PID 1 */

long await_release(void)
{
    char byte;
    long got;

    do
        got = call3(__NR_read, gate[0], &byte, 1);
    while (got == -E_INTR);
    close_fd(&gate[0]);
    if (got == 1 && call0(__NR_getpid) != 1) {
        /* The host's pid namespace: orphans must come back here, and be found. Asked for while /proc is the
         * host's. */
        call5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        children_fd = (int)call4(__NR_openat, AT_FDCWD, "/proc/thread-self/children", O_CLOEXEC, 0);
        if (children_fd < 0)
            return children_fd;
    }
    /* End of file: stage 1 died before it had written the id maps. */
    return got == 1 ? 0 : got < 0 ? got : -E_PIPE;
}

struct pollfd {
    int fd;
    short events, revents;
};

static long poll_now(int fd, short events)
{
    struct pollfd one = {fd, events, 0};
    const int64_t none[2] = {0, 0};
    int64_t time[2] = {none[0], none[1]};
    long ready = call5(__NR_ppoll, &one, 1, time, 0, 0);

    return ready <= 0 ? ready : one.revents;
}

long check_lifeline(void)
{
    if (lifeline >= 0 && poll_now(lifeline, POLLIN))
        return -E_PIPE;
    return poll_now(control, 0) & (POLLHUP | POLLERR) ? -E_PIPE : 0;
}

/* PID 1's pid as the caller sees it, with its pidfd. A launcher that is gone is noticed by the loop. */
static void introduce(void)
{
    struct record record = {.type = R_INIT, .value = init_pid};
    int pidfd = (int)call2(__NR_pidfd_open, call0(__NR_getpid), 0);

    introduced = 1;
    if (pidfd < 0)
        quit(125);
    (void)send_record(control, &record, &pidfd, 1);
    call1(__NR_close, pidfd);
}

static char payload_stack[16 * KIB] __attribute__((aligned(4096)));

static void payload_starts(void)
{
    role = PAYLOAD;
    run_segment(PAYLOAD);
    fail((int)(plan->first[PAYLOAD] + plan->count[PAYLOAD]), E_PROTO, "the plan ends without an execve");
}

/*
 * Clone the payload. It shares the memory of PID 1 until it executes its program: set-up takes no copy. wait:
 * PID 1 sleeps until then, as after vfork, and knows the outcome. Otherwise a socket pair tells, and its
 * other end is what a held payload waits on.
 */
long spawn(int wait, int early)
{
    static struct shared own; /* of a payload that shares our memory anyway */
    int pair[2] = {-1, -1};
    struct payload *free_one = 0;

    for (int i = 0; i < MAX_PAYLOADS && !free_one; i++)
        if (!payloads[i].pid)
            free_one = &payloads[i];
    if (!free_one)
        return -E_AGAIN;
    if (wait && free_one == &payloads[0]) {
        shared = &own;
    } else {
        long page =
            call6(__NR_mmap, 0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (page < 0 && page > -4096)
            return page;
        shared = (struct shared *)page;
    }
    long error = wait ? 0 : call4(__NR_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    if (error < 0)
        return error;
    *free_one = (struct payload){.sync = pair[0], .since = now(), .shared = shared};
    sync_fd = pair[1];
    if (early)
        introduce();
    if (!signals_reset) /* exec keeps what the caller ignores */
        reset_signals();
    long pid;
    if (wait) {
        pid = clone_on(CLONE_VM | CLONE_VFORK | SIGCHLD, 0, payload_stack + sizeof payload_stack,
                       payload_starts);
        role = INIT; /* what the payload wrote, we read */
    } else {
        pid = call5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
        if (pid == 0)
            payload_starts();
        call1(__NR_close, sync_fd);
    }
    if (pid < 0) {
        close_fd(&free_one->sync);
        return pid;
    }
    free_one->pid = (int)pid;
    return pid;
}

static void tell(struct record *record, const int *fds, int count)
{
    /* A launcher that is gone is noticed by the loop, not here. */
    (void)send_record(control, record, fds, count);
}

/* The payload has executed its program, or has ended before: tell which. */
static void settle(struct payload *p, int dead, int status)
{
    struct record record = {.id = p->id};

    close_fd(&p->sync);
    p->started = 1;
    if (p->shared->stage == PAYLOAD_FAILED) {
        record = p->shared->failure;
        record.type = R_FAILED;
        record.id = p->id;
        tell(&record, 0, 0);
        p->started = -1;
    } else if (dead && p->shared->stage != PAYLOAD_EXECS) {
        record.type = R_FAILED;
        record.step = -1;
        record.error = E_CHILD;
        record.value = status;
        tell(&record, 0, 0);
        p->started = -1;
    } else {
        record.type = R_STARTED;
        record.value = p->pid;
        record.body.identity = p->shared->identity;
        tell(&record, 0, 0);
    }
}

/* After a clone that waited the outcome is known, unless the payload died of a signal: then SIGCHLD tells. */
static void settle_if_known(struct payload *p)
{
    if (p->sync < 0 && p->shared->stage >= PAYLOAD_EXECS)
        settle(p, 0, 0);
}

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

static void kill_all(void)
{
    if (call0(__NR_getpid) == 1)
        call2(__NR_kill, -1, SIGKILL);
    else
        kill_children();
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

static struct payload *find(long pid)
{
    for (int i = 0; i < MAX_PAYLOADS; i++)
        if (payloads[i].pid == (int)pid)
            return &payloads[i];
    return 0;
}

/* The first payload has ended, or all was to be killed: end whatever is left, count it, report, exit. */
static _Noreturn void finish(int status, int64_t since)
{
    struct record record = {.type = R_ENDED, .value = status};
    int64_t rusage[18] = {0};
    int other;

    for (;;) {
        /* Orphans come to PID 1: without a child nothing is left, and nobody has to be looked for. */
        long pid = call4(__NR_wait4, -1, &other, WNOHANG, 0);
        if (pid == 0) {
            kill_all();
            pid = call4(__NR_wait4, -1, &other, 0, 0);
        }
        if (pid == -E_CHILD)
            break;
        struct payload *p = pid > 0 ? find(pid) : 0;
        if (p && p == &payloads[0]) {
            if (!p->started)
                settle(p, 1, other);
            record.value = other;
        }
    }
    call2(__NR_getrusage, RUSAGE_CHILDREN, rusage);
    copy_usage(&record.body.end.usage, rusage);
    record.body.end.usage.wall_ns = now() - since;
    if (payloads[0].shared)
        record.body.end.identity = payloads[0].shared->identity;
    tell(&record, 0, 0);
    quit(0);
}

static void reap(void)
{
    int status;
    int64_t rusage[18];
    long pid;

    while ((pid = call4(__NR_wait4, -1, &status, WNOHANG, rusage)) > 0) {
        struct payload *p = find(pid);
        if (!p)
            continue; /* an orphan of the sandbox */
        if (!p->started)
            settle(p, 1, status);
        if (p == &payloads[0]) {
            if (p->started < 0) {
                kill_all();
                quit(125);
            }
            finish(status, p->since);
        }
        if (p->started > 0) {
            struct record record = {.type = R_ENDED, .id = p->id, .value = status};
            copy_usage(&record.body.end.usage, rusage);
            record.body.end.usage.wall_ns = now() - p->since;
            record.body.end.identity = p->shared->identity;
            tell(&record, 0, 0);
        }
        call2(__NR_munmap, p->shared, sizeof *p->shared);
        p->shared = 0;
        p->pid = 0;
    }
}

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

static struct payload *find_id(uint32_t id)
{
    for (int i = 0; i < MAX_PAYLOADS; i++)
        if (payloads[i].pid && payloads[i].id == id)
            return &payloads[i];
    return 0;
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

static void serve(void)
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

/* A byte: the payload is held, all set up. End of file: it has executed its program, or died. */
static void hear(struct payload *p)
{
    char byte;
    long got = call3(__NR_read, p->sync, &byte, 1);

    if (got == 1) {
        struct record record = {.type = R_HELD, .id = p->id, .value = p->pid};
        record.body.identity = p->shared->identity;
        tell(&record, 0, 0);
        return;
    }
    /* Dead, or about to be: then SIGCHLD tells, with the status. */
    if (p->shared->stage == PAYLOAD_EXECS)
        settle(p, 0, 0);
    else
        close_fd(&p->sync);
}

static _Noreturn void wait_loop(void)
{
    const uint64_t all = ~0ull;
    struct pollfd polled[3 + MAX_PAYLOADS];
    struct payload *heard[3 + MAX_PAYLOADS];
    int signals = (int)call4(__NR_signalfd4, -1, &all, 8, SFD_CLOEXEC | SFD_NONBLOCK);
    char info[128 * 4];

    if (signals < 0)
        quit(125);
    for (;;) {
        polled[0] = (struct pollfd){signals, POLLIN, 0};
        polled[1] = (struct pollfd){control, POLLIN, 0};
        polled[2] = (struct pollfd){lifeline, POLLIN, 0}; /* ignored when negative */
        /* No more than there are: ppoll refuses a longer list than RLIMIT_NOFILE, which the caller may have
         * low. */
        int count = 3;
        for (int i = 0; i < MAX_PAYLOADS; i++)
            if (payloads[i].pid && payloads[i].sync >= 0) {
                heard[count] = &payloads[i];
                polled[count++] = (struct pollfd){payloads[i].sync, POLLIN, 0};
            }
        long ready = call5(__NR_ppoll, polled, count, 0, 0, 0);
        if (ready < 0 && ready != -E_INTR)
            quit(125);
        for (int i = 3; i < count; i++)
            if (polled[i].revents)
                hear(heard[i]);
        if (polled[0].revents) {
            call3(__NR_read, signals, info, sizeof info);
            reap();
        }
        if (polled[2].revents)
            finish(SIGKILL, payloads[0].since);
        if (polled[1].revents)
            serve();
    }
}

/* Capabilities that the payload keeps are not for PID 1. */
static void drop_capabilities(void)
{
    const uint32_t header[2] = {0x20080522 /* version 3 */, 0};
    const uint32_t none[6] = {0};

    call2(__NR_capset, header, none);
}

/* The set-up is done: let go of all that served it. The payload's streams above all, or their readers wait
 * for us. */
static _Noreturn void be_init(void)
{
    int keep[] = {control, lifeline, claim, children_fd, payloads[0].sync};

    unmap_plan(plan);
    drop_capabilities();
    if (!payloads[0].pid || close_except(keep, 5) < 0)
        quit(125);
    if (!introduced)
        introduce();
    settle_if_known(&payloads[0]);
    /* A sandbox may live long: what the payload's set-up used of our memory is nobody's now. */
    call3(__NR_madvise, payload_stack, sizeof payload_stack, MADV_DONTNEED);
    wait_loop();
}

/* ------------------------------------------------------------------- entry */

/* The plan's number is argv[1], in decimal. */
static int plan_number(const char *text)
{
    int number = 0;

    if (!*text)
        return -1;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || number > 100000000)
            return -1;
        number = number * 10 + *text - '0';
    }
    return number;
}

__attribute__((used)) _Noreturn void enter(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1), **envp = argv + argc + 1;

    while (*envp)
        envp++;
    for (long *aux = (long *)(envp + 1); aux[0]; aux += 2)
        if (aux[0] == AT_SECURE && aux[1])
            quit(126); /* set-id or file capabilities on this program: never */
    if (argc != 2)
        quit(126);
    int fd = plan_number(argv[1]);
    int error = fd < 0 ? -E_BADF : map_plan(fd, &plan);
    if (error)
        quit(126);
    block_signals();
    sync_fd = children_fd = -1;
    call1(__NR_umask, 0); /* modes are what the plan says */
    call2(__NR_prctl, PR_SET_NAME, "sandbox-init");
    control = plan->slot[SLOT_CONTROL];
    lifeline = plan->slot[SLOT_LIFELINE];
    claim = plan->slot[SLOT_CLAIM];
    /* Only what the plan names stays open: the rest of the caller's descriptors is none of our business. */
    int keep[MAX_SLOTS];
    memcpy(keep, plan->slot, plan->slot_count * sizeof(int));
    if (control < 0 || close_except(keep, (int)plan->slot_count) < 0)
        quit(126);
    if (plan->flags & OWN_GROUP)
        call2(__NR_setpgid, 0, 0);
    run_segment(STAGE);
    quit(0);
}

ENTRY;

/* ------------------------------------------------------------------- what the compiler asks for */

void *memset(void *to, int byte, size_t size)
{
    char *p = to;
#if defined(__x86_64__)
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(size) : "a"(byte) : "memory");
#endif
    while (size--)
        *p++ = (char)byte;
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    char *p = to;
    const char *q = from;
#if defined(__x86_64__)
    __asm__ volatile("rep movsb" : "+D"(p), "+S"(q), "+c"(size) : : "memory");
#endif
    while (size--)
        *p++ = *q++;
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    char *p = to;
    const char *q = from;
    if (p <= q)
        return memcpy(to, from, size);
    while (size--)
        p[size] = q[size];
    return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const unsigned char *p = a, *q = b;
    for (; size--; p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}
