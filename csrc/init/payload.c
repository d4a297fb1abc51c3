/* Payloads: each is cloned here, runs the last segment of a plan and executes its program, or tells why not.
 */
#include "init.h"

#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 1
#define MAP_ANONYMOUS 0x20
#define AF_UNIX 1
#define SOCK_STREAM 1
#define SOCK_CLOEXEC 02000000
#define MADV_DONTNEED 4
#define AT_FDCWD (-100)
#define O_NONBLOCK 04000
#define O_NOCTTY 0400

struct payload *find(long pid)
{
    for (int i = 0; i < MAX_PAYLOADS; i++)
        if (payloads[i].pid == (int)pid)
            return &payloads[i];
    return 0;
}

struct payload *find_id(uint32_t id)
{
    for (int i = 0; i < MAX_PAYLOADS; i++)
        if (payloads[i].pid && payloads[i].id == id)
            return &payloads[i];
    return 0;
}

static char *page_of(void *address)
{
    return (char *)((uintptr_t)address & ~(uintptr_t)(4 * KIB - 1));
}

/*
 * A sandbox may live long: what the set-up, or the answer to a request, used of our memory is nobody's now.
 * Stage 1 that has stayed stands on the stack that it began with, and keeps what it has.
 */
void forget_stacks(void)
{
    char *top = page_of(stage_stack), *first = stacks.payload, *here = page_of(__builtin_frame_address(0));

    if (here < first || here >= first + sizeof stacks)
        return;
    call3(__NR_madvise, first, here - first, MADV_DONTNEED);
    /* What stage 1 used below its arguments; where less than this is mapped, what is is given back. */
    call3(__NR_madvise, top - 64 * KIB, 64 * KIB, MADV_DONTNEED);
}

static _Noreturn void payload_starts(void)
{
    run_segment(PAYLOAD);
    fail(PAYLOAD, (int)(plan->first[PAYLOAD] + plan->count[PAYLOAD]), E_PROTO,
         "the plan ends without an execve");
}

/* Find room for a payload, with a page to share with it and, unless its maker sleeps meanwhile, a socket
 * pair. */
static long prepare(int wait, struct payload **prepared)
{
    int pair[2] = {-1, -1};
    struct payload *free_one = 0;

    for (int i = 0; i < MAX_PAYLOADS && !free_one; i++)
        if (!payloads[i].pid)
            free_one = &payloads[i];
    if (!free_one)
        return -E_AGAIN;
    if (wait && free_one == &payloads[0]) {
        shared = &own_shared;
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
    *free_one = (struct payload){.sync = pair[0], .channel = -1, .since = now(), .shared = shared};
    sync_fd = pair[1];
    *prepared = free_one;
    return 0;
}

/* Stage 1 prepares for a payload that will be PID 1. */
long watch_payload(void)
{
    struct payload *first;

    return prepare(0, &first);
}

/*
 * PID 1 goes on as the payload. Its parent is told of by the end of the socket pair: when that one is gone
 * already, the signal that its death sends will not come.
 */
long become_payload(void)
{
    if (poll_now(sync_fd, 0))
        return -E_PIPE;
    payload_starts();
}

/*
 * Clone the payload. It shares the memory of PID 1 until it executes its program: set-up takes no copy. wait:
 * PID 1 sleeps until then, as after vfork, and knows the outcome. Otherwise a socket pair tells, and its
 * other end is what a held payload waits on.
 */
long spawn(int wait, int early)
{
    struct payload *free_one;
    long error = introduced ? 0 : open_loop();

    if (error >= 0)
        error = prepare(wait, &free_one);
    if (error < 0)
        return error;
    if (early && !introduced)
        introduce(0);
    if (!signals_reset) /* exec keeps what the caller ignores */
        reset_signals();
    long pid;
    if (wait) {
        pid = clone_on(CLONE_VM | CLONE_VFORK | SIGCHLD, 0, stacks.payload + sizeof stacks.payload,
                       payload_starts);
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

void tell_payload(const struct payload *p, struct record *record, const int *fds, int count)
{
    record->id = p->id;
    if (p == &payloads[0])
        tell(record, fds, count);
    else
        deliver(p->channel, record, fds, count);
}

/* The payload has executed its program, or has ended before: tell which. */
void settle(struct payload *p, int dead, int status)
{
    struct record record = {.id = p->id};

    close_fd(&p->sync);
    p->started = 1;
    if (p->shared->stage == PAYLOAD_FAILED) {
        record = p->shared->failure;
        record.type = R_FAILED;
        record.id = p->id;
        tell_payload(p, &record, 0, 0);
        p->started = -1;
    } else if (dead && p->shared->stage != PAYLOAD_EXECS) {
        record.type = R_FAILED;
        record.step = -1;
        record.error = E_CHILD;
        record.value = status;
        tell_payload(p, &record, 0, 0);
        p->started = -1;
    } else {
        record.type = R_STARTED;
        record.value = p->pid;
        record.body.identity = p->shared->identity;
        tell_payload(p, &record, 0, 0);
    }
}

/*
 * After a clone that waited it is known that the program was executed. That it was not, SIGCHLD tells: the
 * launcher ends us as soon as it hears of it, and who is not reaped by then becomes its child.
 */
void settle_if_known(struct payload *p)
{
    if (p->sync < 0 && p->shared->stage == PAYLOAD_EXECS)
        settle(p, 0, 0);
}

/* How the first candidate begins that can be opened; one with a relative path only where that begins here. */
static void read_beginning(struct record *failure, char *const *candidates, uint64_t count, int relative)
{
    for (uint64_t i = 0; i < count; i++) {
        if (candidates[i][0] != '/' && !relative)
            continue;
        long fd = call4(__NR_openat, AT_FDCWD, candidates[i], O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
        if (fd < 0)
            continue;
        long got = call3(__NR_read, fd, failure->body.text, sizeof failure->body.text);
        call1(__NR_close, fd);
        if (got > 0)
            failure->value = (int64_t)(i + 1) << 32 | got;
        return;
    }
}

/*
 * A program was not found, although a file with its name is there: an interpreter is missing. The launcher
 * gets the beginning of the file, for who is under the filter cannot look.
 */
void explain(struct shared *page)
{
    struct record *failure = &page->failure;

    if (page->stage != PAYLOAD_FAILED || failure->error != E_NOENT || failure->value || !page->candidates)
        return;
    /* A relative path begins at the payload's working directory, not here. */
    read_beginning(failure, page->candidates, page->candidate_count, 0);
}

/* The same by a payload itself, for which nobody waits who could look when it has failed. */
long look(char *const *candidates, uint64_t count)
{
    read_beginning(&shared->failure, candidates, count, 1);
    return 0;
}

/* A byte: the payload is held, all set up. End of file: it has executed its program, or died. */
void hear(struct payload *p)
{
    char byte;
    long got = call3(__NR_read, p->sync, &byte, 1);

    if (got == 1) {
        struct record record = {.type = R_HELD, .id = p->id, .value = p->pid};
        record.body.identity = p->shared->identity;
        tell_payload(p, &record, 0, 0);
        return;
    }
    /* Dead, or about to be: then SIGCHLD tells, with the status. */
    if (p->shared->stage == PAYLOAD_EXECS) {
        p->since = now();
        settle(p, 0, 0);
    } else
        close_fd(&p->sync);
}
