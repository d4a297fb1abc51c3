/*
 * init: runs a plan in fresh processes.
 *
 * Stage 1 starts in the namespaces of the launcher, makes PID 1 in new ones, writes its id maps, makes the
 * network namespace, which takes longest, while PID 1 is at work, and ends. They share memory until then. PID
 * 1 sets the sandbox up, gives up every privilege, forks the payload and then waits in one loop: for the end
 * of its children, for requests of the launcher, and for the launcher's own end. The payload process applies
 * what is last and executes the program.
 *
 * Facts that shape it:
 * - mm->user_ns is the namespace of the exec: stage 1 is executed in the caller's, so that a payload with
 * every capability in its own namespace cannot trace PID 1, which shares that memory.
 * - PID 1 of a pid namespace gets no signal from inside for which it has no handler, and SIGKILL never.
 * - When PID 1 ends, the kernel kills all that is left in the namespace, but then nobody counts its usage:
 *   so PID 1 kills and reaps first.
 */
#include "init.h"

#define AT_SECURE 23
#define POLLIN 1
#define POLLERR 8
#define POLLHUP 16
#define SIG_SETMASK 2
#define SFD_CLOEXEC 02000000
#define SFD_NONBLOCK 04000
#define PR_SET_NAME 15
#define PR_SET_CHILD_SUBREAPER 36
#define AT_FDCWD (-100)
#define CLOCK_MONOTONIC 1
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1

/* Nothing here has a first value but 0: a page of data would be one more for every sandbox. enter() sets
 * them. */
struct payload payloads[MAX_PAYLOADS];
struct shared own_shared;
char *stage_stack;
struct plan *plan;
struct shared *shared;
int sync_fd;

int control, lifeline, children_fd, thaw_fd;
static int claim;
static int signals_fd, own_pidfd, inner_pidfd; /* of the loop, and for the launcher */
static uint32_t alive;    /* how far stage 1 is; the kernel clears it and wakes who waits when stage 1 ends */
static uint32_t released; /* the same, and stays */
static long init_pid;
int introduced;
int watching;
static int watched; /* by stage 1, which does not share its memory then */
int64_t wall_limit;
static int64_t cpu_limit, cpu_count; /* of the whole tree */
static int cpu_fd;
volatile int signals_reset;

_Noreturn void quit(int status)
{
    call1(__NR_exit_group, status);
    /* A filter forbids even that: die of a fault, the shared page has the reason already. */
    for (;;)
        __builtin_trap();
}

int64_t now(void)
{
    int64_t time[2] = {0, 0};

    call2(__NR_clock_gettime, CLOCK_MONOTONIC, time);
    return time[0] * 1000000000 + time[1];
}

void close_fd(int *fd)
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

/* PID 1 shares stage 1's memory, and has a stack here: to copy so little would take longer than to fill it.
 */
struct stacks stacks __attribute__((aligned(4 * KIB)));

static void init_starts(void)
{
    run_segment(INIT);
    be_init();
}

/*
 * PID 1 is the payload, and nobody in its namespaces can look after it: stage 1 stays, as its parent. Memory
 * and descriptors are not shared then, for both go on, and PID 1 may want a user namespace of its own.
 */
static long start_watched(unsigned long flags)
{
    long pid = watch_payload();

    if (pid < 0)
        return pid;
    watched = 1;
    /* Before there is a child: it would discard a SIGCHLD that waits, and nobody would hear of that end. */
    reset_signals();
    pid = call5(__NR_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        close_fd(&payloads[0].sync);
        init_starts();
    }
    close_fd(&sync_fd);
    if (pid > 0)
        payloads[0].pid = (int)pid;
    return pid;
}

/*
 * Memory and descriptors are shared until stage 1 ends: what it opens, PID 1 has. So the end of stage 1
 * closes nothing that PID 1 could notice, and a word in the memory tells of it.
 */
static long start_shared(unsigned long flags, int cgroup)
{
    flags |= CLONE_PARENT | CLONE_VM | CLONE_SIGHAND | CLONE_FILES;
    alive = WORKING;
    call1(__NR_set_tid_address, &alive);
    if (cgroup >= 0)
        return clone_into(flags, cgroup, stacks.init, sizeof stacks.init, init_starts);
    return clone_on(flags, 0, stacks.init + sizeof stacks.init, init_starts);
}

long start_init(unsigned long flags, int cgroup, int watch)
{
    init_pid = watch ? start_watched(flags) : start_shared(flags, cgroup);
    /* A filter of the caller's, as of a container, may not know clone3: PID 1 joins before it is released. */
    int joins = cgroup >= 0 && (watch || init_pid == -E_NOSYS);
    if (joins && !watch)
        init_pid = start_shared(flags, -1);
    if (init_pid > 0 && joins) {
        long error = join_cgroup(cgroup, init_pid);
        if (error < 0)
            return error;
    }
    return init_pid;
}

/* Stage 1 is so far. With the last word it ends: from then on the plan is PID 1's alone, which unmaps it. */
long release(uint32_t progress)
{
    if (progress < RELEASE_IDS || progress > RELEASE_ALL)
        return -E_INVAL;
    if (progress == RELEASE_ALL) {
        /* PID 1 has the same table of dispositions, and more to do. */
        reset_signals();
        signals_reset = 1;
    }
    __atomic_store_n(&released, progress, __ATOMIC_RELEASE);
    __atomic_store_n(&alive, progress, __ATOMIC_RELEASE);
    call3(__NR_futex, &alive, FUTEX_WAKE, 1);
    if (progress == RELEASE_ALL)
        quit(0);
    return 0;
}

/* ------------------------------------------------------------------- PID 1 */

/* Without a pid namespace of its own: orphans must come back to PID 1, and be found. */
static long adopt(void)
{
    call5(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    /* While /proc is the host's. */
    children_fd = (int)call4(__NR_openat, AT_FDCWD, "/proc/thread-self/children", O_CLOEXEC, 0);
    return children_fd < 0 ? children_fd : 0;
}

/* Wait until stage 1 is so far: 0, or -E_PIPE when it ended before. */
long await_release(uint32_t progress)
{
    if (watched) {
        char byte;
        long got;
        do
            got = call3(__NR_read, sync_fd, &byte, 1);
        while (got == -E_INTR);
        return got == 1 ? 0 : got < 0 ? got : -E_PIPE;
    }
    for (;;) {
        uint32_t seen = __atomic_load_n(&alive, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&released, __ATOMIC_ACQUIRE) >= progress)
            break;
        if (!seen)
            return -E_PIPE;
        call4(__NR_futex, &alive, FUTEX_WAIT, seen, 0);
    }
    return progress == RELEASE_IDS && call0(__NR_getpid) != 1 ? adopt() : 0;
}

long poll_now(int fd, short events)
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

/*
 * What the loop needs, and the word that it begins: made while a failure is still that of a step, and nothing
 * has run.
 */
long open_loop(void)
{
    const uint64_t all = ~0ull;

    if (signals_fd < 0)
        signals_fd = (int)call4(__NR_signalfd4, -1, &all, 8, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals_fd < 0)
        return signals_fd;
    if (own_pidfd < 0)
        own_pidfd = (int)call2(__NR_pidfd_open, call0(__NR_getpid), 0);
    if (own_pidfd < 0)
        return own_pidfd;
    if (watched && inner_pidfd < 0)
        inner_pidfd = (int)call2(__NR_pidfd_open, init_pid, 0);
    return watched && inner_pidfd < 0 ? inner_pidfd : 0;
}

/* PID 1's pid as the caller sees it, with its pidfd. A launcher that is gone is noticed by the loop. */
void introduce(int joins)
{
    struct record record = {.type = R_INIT, .id = (uint32_t)joins, .value = init_pid};
    const int pidfd[2] = {own_pidfd, inner_pidfd};

    introduced = 1;
    tell(&record, pidfd, 1 + watching);
    close_fd(&own_pidfd);
    close_fd(&inner_pidfd);
}

/*
 * Until here the launcher finds PID 1 by its process group, from here on by its pidfd: now it may move it to
 * the group that it is in itself, which has no number in this namespace.
 */
long join_group(void)
{
    struct record answer;
    long error = open_loop();

    if (error < 0)
        return error;
    introduce(1);
    int count = receive_record(control, &answer, 0, 0);
    if (count < 0)
        return count;
    return answer.type == Q_JOINED ? -(long)answer.error : -E_PROTO;
}

/* Nanoseconds of all processes of the control group: cpuacct.usage of version 1, cpu.stat of version 2. */
static int64_t cpu_used(void)
{
    char text[32];
    long size = call4(__NR_pread64, cpu_fd, (long)text, sizeof text, 0);
    int64_t used = 0;
    long i = 0;

    while (i < size && (text[i] < '0' || text[i] > '9'))
        i++;
    for (; i < size && text[i] >= '0' && text[i] <= '9'; i++)
        used = used * 10 + text[i] - '0';
    return size > 0 && text[0] == 'u' /* sage_usec */ ? used * 1000 : used;
}

long limit_cpu(int fd, int64_t nanoseconds, int64_t processors)
{
    if (processors < 1)
        return -E_INVAL;
    cpu_fd = fd;
    cpu_limit = nanoseconds;
    cpu_count = processors;
    return 0;
}

/* Nanoseconds until the limits on time have to be looked at again; -1: there are none. */
static int64_t look_at_limits(void)
{
    const int64_t least = 10000000; /* looking costs something, too */
    int64_t left = -1;

    /* Time counts from the execution of the program. */
    if (payloads[0].started <= 0)
        return -1;
    if (wall_limit) {
        left = payloads[0].since + wall_limit - now();
        if (left <= 0)
            finish(SIGKILL, E_TIME);
    }
    if (cpu_limit) {
        int64_t unused = cpu_limit - cpu_used();
        if (unused <= 0)
            finish(SIGKILL, E_DQUOT);
        /* It cannot be over before, with all processors at work. */
        unused /= cpu_count;
        if (unused < least)
            unused = least;
        if (left < 0 || unused < left)
            left = unused;
    }
    return left;
}

static _Noreturn void wait_loop(void)
{
    struct pollfd polled[3 + 2 * MAX_PAYLOADS];
    struct payload *heard[3 + 2 * MAX_PAYLOADS];
    char info[128 * 4];

    for (;;) {
        polled[0] = (struct pollfd){signals_fd, POLLIN, 0};
        polled[1] = (struct pollfd){control, POLLIN, 0};
        polled[2] = (struct pollfd){lifeline, POLLIN, 0}; /* ignored when negative */
        /* No more than there are: ppoll refuses a longer list than RLIMIT_NOFILE, which the caller may have
         * low. */
        int count = 3;
        for (int i = 0; i < MAX_PAYLOADS; i++) {
            if (payloads[i].pid && payloads[i].sync >= 0) {
                heard[count] = &payloads[i];
                polled[count++] = (struct pollfd){payloads[i].sync, POLLIN, 0};
            }
            if (i && payloads[i].pid && payloads[i].channel >= 0) {
                heard[count] = &payloads[i];
                polled[count++] = (struct pollfd){payloads[i].channel, POLLIN, 0};
            }
        }
        int64_t left = look_at_limits();
        int64_t time[2] = {left / 1000000000, left % 1000000000};
        long ready = call5(__NR_ppoll, polled, count, left >= 0 ? time : 0, 0, 0);
        if (ready < 0 && ready != -E_INTR)
            quit(125);
        for (int i = 3; i < count; i++)
            if (polled[i].revents && polled[i].fd == heard[i]->sync)
                hear(heard[i]);
            else if (polled[i].revents)
                serve_payload(heard[i]);
        if (polled[0].revents) {
            call3(__NR_read, signals_fd, info, sizeof info);
            reap();
        }
        /* What the launcher said before it ended counts: it may have let us go. */
        if (polled[1].revents) {
            serve();
            forget_stacks();
        } else if (polled[2].revents) {
            finish(SIGKILL, 0);
        }
    }
}

/* Capabilities that the payload keeps are not for PID 1: it only hands them on to further payloads. */
static void drop_capabilities(void)
{
    const uint32_t header[2] = {0x20080522 /* version 3 */, 0};
    uint32_t sets[6] = {0}; /* effective, permitted, inheritable; then their upper halves */

    call2(__NR_capget, header, sets);
    sets[0] = sets[3] = 0;
    call2(__NR_capset, header, sets);
}

/* The set-up is done: let go of all that served it. The payload's streams above all, or their readers wait
 * for us. */
static _Noreturn void be_init(void)
{
    int keep[] = {control, lifeline,         claim,      children_fd, thaw_fd,
                  cpu_fd,  payloads[0].sync, signals_fd, own_pidfd};

    (void)await_release(RELEASE_ALL); /* stage 1 reads the plan until then */
    if (payloads[0].shared)
        explain(payloads[0].shared);
    if (!(plan->flags & KEEP_PRIVILEGES))
        drop_capabilities();
    unmap_plan(plan);
    if (!payloads[0].pid || close_except(keep, 9) < 0)
        quit(125);
    if (!introduced)
        introduce(0);
    settle_if_known(&payloads[0]);
    forget_stacks();
    wait_loop();
}

/* The last thing that stage 1 does for a payload that is PID 1 itself. */
long stay(void)
{
    long error = open_loop();
    int keep[] = {control,          lifeline,  claim,       thaw_fd,   cpu_fd,
                  payloads[0].sync, own_pidfd, inner_pidfd, signals_fd};

    if (error >= 0)
        error = call3(__NR_write, payloads[0].sync, "", 1);
    if (error < 0)
        return error;
    watching = 1;
    if (close_except(keep, 9) < 0)
        quit(125);
    introduce(0);
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

    stage_stack = (char *)stack;
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
    sync_fd = children_fd = thaw_fd = cpu_fd = signals_fd = own_pidfd = inner_pidfd = -1;
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
