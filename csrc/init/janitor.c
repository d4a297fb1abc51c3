/*
 * The janitor: one process of a caller's that outlives it, and removes the control groups that it leaves.
 *
 * PID 1 cannot: it is in the group, and where root launches, it is another user. The groups of a caller have
 * its tag in their names. While the caller lives, only those count that it has let go (the sticky bit); when
 * it is gone, all of them. What is inside ends by itself, for PID 1 watches the caller, too; where somebody
 * has killed both, it is killed here.
 *
 * Every name is looked for in a directory that the caller has opened, and that the kernel's own file system
 * of control groups has: who changes his user later has no more say than before, nor has his root directory.
 */
#include "init.h"

#define AT_REMOVEDIR 0x200
#define O_WRONLY 1
#define POLLIN 1
#define PR_SET_NAME 15
#define CGROUP_SUPER_MAGIC 0x27e0eb
#define CGROUP2_SUPER_MAGIC 0x63677270
#define STATX_MODE 2
#define S_ISVTX 01000
#define MAX_PLACES 32
#define MAX_POLLED 256
#define SLICE ((int64_t)1000000000)
#define LEAST (SLICE / 100)   /* between two looks at what nobody tells the end of */
#define GRACE (SLICE / 4)     /* for PID 1, which ends what is inside in an orderly way */
#define PATIENCE (10 * SLICE) /* with what nobody can remove, though it is empty */
#if defined(__aarch64__)
#define O_DIRECTORY 040000
#define O_NOFOLLOW 0100000
#else
#define O_DIRECTORY 0200000
#define O_NOFOLLOW 0400000
#endif
#define OPEN_DIRECTORY (O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* Where the caller makes groups: a directory, or SHARED in it, which is made and removed as it is needed. */
#define SHARED "sandbox" /* of sandbox/cgroups/hierarchy.py */
static struct place {
    int fd, shared;
} places[MAX_PLACES];
static int place_count;

static struct pollfd polled[MAX_POLLED]; /* the caller's two, and a process of each group that is not empty */
static int polled_count;
static int caller_is_gone;
static int groups_seen, groups_due,
    groups_stay; /* in one round: of ours; not let go; nobody tells their end */
static int64_t kill_from;

static int begins(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

static int has_tag(const char *name, const char *tag)
{
    if (!begins(name, "sandbox-"))
        return 0;
    for (; *name; name++)
        if (begins(name, tag))
            return 1;
    return 0;
}

/* struct linux_dirent64: inode, offset, length of the entry, type, name. */
struct entries {
    char buffer[2048];
    long size, at;
};
#define ENTRY_LENGTH 16
#define ENTRY_TYPE 18
#define ENTRY_NAME 19
#define DT_DIR 4

/* The next directory in a directory, 0 at its end; "." and ".." are none. */
static const char *next_directory(int fd, struct entries *e)
{
    for (;;) {
        if (e->at >= e->size) {
            e->size = call3(__NR_getdents64, fd, e->buffer, sizeof e->buffer);
            e->at = 0;
            if (e->size <= 0)
                return 0;
        }
        const char *entry = e->buffer + e->at;
        uint16_t length;
        memcpy(&length, entry + ENTRY_LENGTH, sizeof length);
        e->at += length;
        if (entry[ENTRY_TYPE] == DT_DIR && entry[ENTRY_NAME] != '.')
            return entry + ENTRY_NAME;
    }
}

static long open_below(int fd, const char *name, long flags)
{
    return call4(__NR_openat, fd, name, flags | O_CLOEXEC, 0);
}

/* The next number of a list of pids, 0 at its end. */
static long next_pid(const char *text, long size, long *at)
{
    long pid = 0;

    while (*at < size && text[*at] == '\n')
        ++*at;
    for (; *at < size && text[*at] >= '0' && text[*at] <= '9'; ++*at)
        pid = pid * 10 + text[*at] - '0';
    return pid;
}

static long read_pids(int fd, char *text, long size)
{
    long procs = open_below(fd, "cgroup.procs", 0);
    long got = procs < 0 ? procs : call3(__NR_read, procs, text, size);

    if (procs >= 0)
        call1(__NR_close, procs);
    return got;
}

static int has_pid(int fd, long wanted)
{
    char text[4096];
    long size = read_pids(fd, text, sizeof text), at = 0, pid;

    while ((pid = next_pid(text, size, &at)))
        if (pid == wanted)
            return 1;
    return 0;
}

/* Wait for one of the processes in a group, and kill all of them where that is for us to do; 0: there is
 * none. */
static int has_processes(int fd, int killing)
{
    char text[4096];
    long size = read_pids(fd, text, sizeof text), at = 0, pid;
    int waits = 0, found = 0;

    while ((pid = next_pid(text, size, &at)) && !(waits && !killing)) {
        int pidfd = (int)call2(__NR_pidfd_open, pid, 0);
        found = 1;
        /* The number may have become somebody else's before the pidfd was made, not after. */
        if (pidfd >= 0 && killing && has_pid(fd, pid))
            call4(__NR_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
        if (pidfd >= 0 && !waits && polled_count < MAX_POLLED) {
            polled[polled_count++] = (struct pollfd){pidfd, POLLIN, 0};
            waits = 1;
        } else if (pidfd >= 0) {
            call1(__NR_close, pidfd);
        }
    }
    return found;
}

static void write_below(int fd, const char *name, const char *text, size_t size)
{
    long file = open_below(fd, name, O_WRONLY);

    if (file >= 0) {
        call3(__NR_write, file, text, size);
        call1(__NR_close, file);
    }
}

/*
 * Remove what is below a group, the innermost first, as far as nothing is inside: whoever may mount in a
 * sandbox may have made groups of its own, as deep as it likes.
 */
static void clear(int group, int killing)
{
    int at = (int)open_below(group, ".", OPEN_DIRECTORY), depth = 0, came_up = 0;

    while (at >= 0) {
        struct entries e = {.size = 0};
        call3(__NR_lseek, at, 0, 0); /* some may be left of those that it has told before */
        const char *name = next_directory(at, &e);
        int next = -1;
        if (name && !call3(__NR_unlinkat, at, name, AT_REMOVEDIR)) {
            came_up = 0;
            continue;
        }
        if (name && !came_up) {
            next = (int)open_below(at, name, OPEN_DIRECTORY);
            depth++;
        } else if (!name && depth && !has_processes(at, killing)) {
            next = (int)open_below(at, "..", OPEN_DIRECTORY);
            depth--;
            came_up = 1;
        }
        close_fd(&at);
        at = next;
    }
}

static int is_let_go(int fd)
{
    struct {
        unsigned char before[28];
        uint16_t mode;
        unsigned char after[256 - 30];
    } status = {.mode = 0};

    return !call5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_MODE, &status) && status.mode & S_ISVTX;
}

static void visit_group(int place, const char *name)
{
    int fd = (int)open_below(place, name, OPEN_DIRECTORY);
    int kept = fd >= 0 && is_let_go(fd), killing = caller_is_gone && !kept && now() >= kill_from;

    if (kept || (fd >= 0 && caller_is_gone)) {
        groups_seen++;
        groups_due += !kept;
        if (killing) {
            write_below(fd, "cgroup.kill", "1", 1);
            /* Version 1: what is frozen dies when it thaws. */
            write_below(fd, "payload/freezer.state", "THAWED", 6);
        }
        int waits = polled_count;
        clear(fd, killing);
        long error = call3(__NR_unlinkat, place, name, AT_REMOVEDIR);
        if (error < 0 && error != -E_NOENT && polled_count == waits) {
            has_processes(fd, killing); /* PID 1, while the rest is frozen */
            groups_stay += polled_count == waits;
        }
    }
    close_fd(&fd);
}

static void visit_places(const char *tag)
{
    groups_seen = groups_due = groups_stay = 0;
    for (int i = 0; i < place_count; i++) {
        struct place *p = &places[i];
        struct entries e = {.size = 0};
        const char *name;
        int fd = (int)open_below(p->fd, p->shared ? SHARED : ".", OPEN_DIRECTORY);
        while (fd >= 0 && (name = next_directory(fd, &e)))
            if (has_tag(name, tag))
                visit_group(fd, name);
        close_fd(&fd);
        if (caller_is_gone && p->shared)
            call3(__NR_unlinkat, p->fd, SHARED, AT_REMOVEDIR); /* unless others use it */
    }
}

static void add_place(int fd, int shared)
{
    uint64_t statfs[15] = {0};

    (void)call2(__NR_fstatfs, fd, statfs);
    if (place_count < MAX_PLACES && (statfs[0] == CGROUP_SUPER_MAGIC || statfs[0] == CGROUP2_SUPER_MAGIC))
        places[place_count++] = (struct place){fd, shared};
    else
        call1(__NR_close, fd);
}

/* Take what the caller has said; 0 when it has closed the channel. */
static int hear_caller(void)
{
    struct record record;
    int fds[MAX_SLOTS];

    while (poll_now(control, POLLIN) > 0) {
        int count = receive_record(control, &record, fds, MAX_SLOTS);
        if (count == -E_PIPE)
            return 0;
        for (int i = 0; i < count; i++) {
            if (record.type == Q_PLACE)
                add_place(fds[i], record.value != 0);
            else
                call1(__NR_close, fds[i]);
        }
    }
    return 1;
}

static _Noreturn void sweep(const char *tag)
{
    int64_t pause = LEAST;

    for (;;) {
        /* In this order: what it said before it ended is in the channel by then. */
        int ended = caller_is_gone || poll_now(lifeline, POLLIN) > 0;
        ended |= !caller_is_gone && !hear_caller();
        if (ended && !caller_is_gone) {
            caller_is_gone = 1;
            kill_from = now() + GRACE;
        }
        polled[0] = (struct pollfd){caller_is_gone ? -1 : control, POLLIN, 0};
        polled[1] = (struct pollfd){caller_is_gone ? -1 : lifeline, POLLIN, 0};
        polled_count = 2;
        visit_places(tag);
        if (caller_is_gone && (!groups_seen || (polled_count == 2 && now() > kill_from + PATIENCE)))
            quit(0);
        /* What was removed is not seen again; who waits for nothing looks at once, and waits then. */
        int64_t left = groups_seen && polled_count == 2 && !groups_stay ? 0 : -1;
        if (groups_stay)
            left = pause;
        if (groups_due && left) {
            int64_t grace = kill_from - now();
            int64_t most = grace > 0 ? grace : pause;
            if (left < 0 || left > most)
                left = most;
        }
        int64_t time[2] = {left / SLICE, left % SLICE};
        long ready = call5(__NR_ppoll, polled, polled_count, left >= 0 ? time : 0, 0, 0);
        pause = ready ? LEAST : pause < SLICE ? pause * 2 : SLICE;
        while (polled_count > 2)
            call1(__NR_close, polled[--polled_count].fd);
    }
}

/*
 * stays: this process, the caller's child, is it: an orphan would come to a caller that is a subreaper, or
 * to somebody who never reaps it. Otherwise its child is, which nobody waits for.
 */
long watch_caller(const char *tag, int stays)
{
    if (!stays) {
        long pid = call5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
        if (pid)
            return pid < 0 ? pid : 0;
    }
    /* All signals are blocked already. What a terminal that is closed sends, goes to its session. */
    call0(__NR_setsid);
    call1(__NR_chdir, "/");
    call2(__NR_prctl, PR_SET_NAME, "sandbox-janitor");
    sweep(tag);
}
