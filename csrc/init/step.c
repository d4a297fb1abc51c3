/* The interpreter: checks a plan once, then runs its segments, one step a system call. */
#include "init.h"

#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_PRIVATE 2
#define F_SETFD 2
#define F_DUPFD_CLOEXEC 1030
#define FD_CLOEXEC 1
#define CLOSE_RANGE_CLOEXEC 4
#define O_WRONLY 1
#define PR_CAPBSET_DROP 24

#ifndef __NR_open_tree_attr
#define __NR_open_tree_attr 467 /* Linux 6.15 */
#endif

static const short numbers[] = {
#define CALL(name) __NR_##name,
#include "calls.h"
#undef CALL
};
#define CALLS (sizeof numbers / sizeof *numbers)

/* struct kernel_stat differs by architecture; the size is all we want, so statx. */
struct statx {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, spare;
    uint64_t inode, size;
    unsigned char rest[256 - 48];
};
#define STATX_SIZE 0x200

static int inside(const struct plan *p, uint64_t offset, uint64_t size)
{
    return offset <= p->size && size <= p->size - offset;
}

/* A plan comes from the launcher and is trusted in what it asks for, never in where it points. */
static int check_plan(const struct plan *p, uint64_t size)
{
    uint64_t next = 0;

    if (size < sizeof *p || p->magic != PLAN_MAGIC || p->version != PLAN_VERSION || p->size != size)
        return -E_PROTO;
    if (p->step_count > MAX_STEPS || p->slot_count > MAX_SLOTS || p->slot_count < SLOT_FREE || p->reserved)
        return -E_PROTO;
    if (p->steps % 8 || !inside(p, p->steps, (uint64_t)p->step_count * sizeof(struct step)))
        return -E_PROTO;
    if (p->relocations % 8 || !inside(p, p->relocations, (uint64_t)p->relocation_count * 8))
        return -E_PROTO;
    for (int i = 0; i < SEGMENTS; i++) {
        if (p->first[i] != next || p->count[i] > p->step_count - next)
            return -E_PROTO;
        next += p->count[i];
    }
    return next == p->step_count ? 0 : -E_PROTO;
}

/* A result goes to a slot or to the data: never over the steps, which have been checked. */
static int may_store(const struct plan *p, uint64_t offset, unsigned width)
{
    const uint64_t slots = offsetof(struct plan, slot), end = p->steps + p->step_count * sizeof(struct step);

    if (width == 4 && offset >= slots && offset % 4 == 0 && offset < slots + sizeof p->slot)
        return 1;
    return (width == 4 || width == 8) && inside(p, offset, 8) && offset >= sizeof *p &&
           (offset + 8 <= p->steps || offset >= end);
}

static int check_steps(struct plan *p)
{
    struct step *steps = (struct step *)((char *)p + p->steps);

    for (uint32_t i = 0; i < p->step_count; i++) {
        struct step *s = &steps[i];
        if (s->call >= NATIVE_END || (s->call < NATIVE && s->call >= CALLS))
            return -E_PROTO;
        if (s->store && !may_store(p, s->store, s->store_width))
            return -E_PROTO;
        for (int k = 0; k < 6; k++) {
            uint64_t value = s->argument[k];
            if (s->kind[k] >= KINDS || (s->kind[k] == DATA && value >= p->size) ||
                (s->kind[k] == RESULT && value >= i) || (s->kind[k] == SLOT && value >= p->slot_count))
                return -E_PROTO;
        }
    }
    return 0;
}

/* Arrays of pointers (argv, envp, sock_fprog ...) hold offsets; 0 stays a null pointer. */
static int relocate(struct plan *p)
{
    const uint32_t *pairs = (const uint32_t *)((char *)p + p->relocations);

    for (uint32_t i = 0; i < p->relocation_count; i++) {
        uint32_t offset = pairs[2 * i], count = pairs[2 * i + 1];
        if (offset % 8 || offset < sizeof *p || !inside(p, offset, (uint64_t)count * 8))
            return -E_PROTO;
        uint64_t *pointer = (uint64_t *)((char *)p + offset);
        for (uint32_t k = 0; k < count; k++) {
            if (pointer[k] >= p->size)
                return -E_PROTO;
            if (pointer[k])
                pointer[k] += (uint64_t)(uintptr_t)p;
        }
    }
    return 0;
}

int map_plan(int fd, struct plan **mapped)
{
    struct statx status = {0};
    long error = call5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &status);

    if (error < 0)
        return (int)error;
    if (status.size < sizeof(struct plan) || status.size > PLAN_MAX_SIZE)
        return -E_PROTO;
    /* Private: results are written beside the steps, and the sealed file stays as it was. */
    long address = call6(__NR_mmap, 0, (long)status.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (address < 0 && address > -4096)
        return (int)address;
    struct plan *p = (struct plan *)address;
    error = check_plan(p, status.size);
    /* First, for a pointer may lie anywhere behind the header: in a step, too. */
    if (!error)
        error = relocate(p);
    if (!error)
        error = check_steps(p);
    if (error) {
        call2(__NR_munmap, p, status.size);
        return (int)error;
    }
    *mapped = p;
    return 0;
}

void unmap_plan(struct plan *mapped)
{
    call2(__NR_munmap, mapped, mapped->size);
}

/* ------------------------------------------------------------------- operations of our own */

static char *put_number(char *end, uint64_t value)
{
    do
        *--end = (char)('0' + value % 10);
    while (value /= 10);
    return end;
}

/* pid 0: of this very process. */
long open_proc(int proc, uint64_t pid, const char *name, int flags)
{
    char path[64], digits[24], *to = path;
    char *from = put_number(digits + sizeof digits, pid);

    if (pid) {
        while (from < digits + sizeof digits)
            *to++ = *from++;
    } else {
        memcpy(to, "self", 4);
        to += 4;
    }
    *to++ = '/';
    while (*name && to < path + sizeof path - 1)
        *to++ = *name++;
    *to = 0;
    return call4(__NR_openat, proc, path, flags, 0);
}

long write_proc(int proc, uint64_t pid, const char *name, const char *text, size_t size)
{
    long fd = open_proc(proc, pid, name, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return fd;
    long written = call3(__NR_write, fd, text, size);
    call1(__NR_close, fd);
    return written < 0 ? written : written == (long)size ? 0 : -E_PROTO;
}

/* group: the directory of a control group. A number is of the writer's pid namespace. */
long join_cgroup(int group, long pid)
{
    char digits[24], *from = put_number(digits + sizeof digits, (uint64_t)pid);
    long fd = call4(__NR_openat, group, "cgroup.procs", O_WRONLY | O_CLOEXEC, 0);

    if (fd < 0)
        return fd;
    long written = call3(__NR_write, fd, from, digits + sizeof digits - from);
    call1(__NR_close, fd);
    return written < 0 ? written : 0;
}

static long check_memory(const char *at, uint64_t width, uint64_t expected, long error)
{
    uint64_t found = 0;

    if (width != 4 && width != 8)
        return -E_INVAL;
    memcpy(&found, at, width);
    return found == expected ? 0 : -error;
}

static long drop_bounding(uint64_t keep)
{
    for (int i = 0; i < 64; i++) {
        if (keep >> i & 1)
            continue;
        long error = call2(__NR_prctl, PR_CAPBSET_DROP, i);
        if (error == -E_INVAL) /* past the last capability that the kernel knows */
            break;
        if (error < 0)
            return error;
    }
    return 0;
}

/*
 * Put slots on the numbers that the payload expects: first all of them above every target, so that no target
 * is overwritten before it was moved, then each in its place. Whatever is not a target closes on exec.
 */
static long place(const uint32_t *pairs, uint64_t count)
{
    int source[MAX_SLOTS], highest = 2;
    long error;

    for (uint64_t i = 0; i < count; i++)
        if ((int)pairs[2 * i] > highest)
            highest = (int)pairs[2 * i];
    error = call3(__NR_close_range, 0, ~0u, CLOSE_RANGE_CLOEXEC);
    if (error < 0)
        return error;
    for (uint64_t i = 0; i < count; i++) {
        if (pairs[2 * i + 1] >= plan->slot_count)
            return -E_INVAL;
        long fd = call3(__NR_fcntl, plan->slot[pairs[2 * i + 1]], F_DUPFD_CLOEXEC, highest + 1);
        if (fd < 0)
            return fd;
        source[i] = (int)fd;
    }
    /* What we still talk through: to PID 1, and to the launcher, who gets the listener of a filter. */
    int *kept[] = {&sync_fd, &plan->slot[SLOT_CONTROL]};
    for (int i = 0; i < 2; i++) {
        if (*kept[i] < 0 || *kept[i] > highest)
            continue;
        long fd = call3(__NR_fcntl, *kept[i], F_DUPFD_CLOEXEC, highest + 1);
        if (fd < 0)
            return fd;
        *kept[i] = (int)fd;
    }
    for (uint64_t i = 0; i < count; i++) {
        error = call3(__NR_dup3, source[i], pairs[2 * i], 0);
        if (error < 0)
            return error;
        call1(__NR_close, source[i]);
    }
    return 0;
}

static long hold(void)
{
    char byte = 'h';

    shared->stage = PAYLOAD_HELD;
    long done = call3(__NR_write, sync_fd, &byte, 1);
    if (done == 1)
        do
            done = call3(__NR_read, sync_fd, &byte, 1);
        while (done == -E_INTR);
    return done == 1 ? 0 : done < 0 ? done : -E_PIPE;
}

/* As execvp: the first candidate that exists; a file without permission is remembered and passed over. */
static long exec(char *const *candidates, uint64_t count, char *const *argv, char *const *envp)
{
    long error = -E_NOENT;

    shared->stage = PAYLOAD_EXECS;
    shared->candidates = candidates;
    shared->candidate_count = count;
    for (uint64_t i = 0; i < count; i++) {
        long found = call3(__NR_execve, candidates[i], argv, envp);
        if (found == -E_ACCES)
            error = found;
        else if (found != -E_NOENT && found != -E_NOTDIR)
            return found;
    }
    return error;
}

static long send_fd(int fd, int64_t tag)
{
    struct record record = {.type = R_FD, .value = tag};
    return send_record(plan->slot[SLOT_CONTROL], &record, &fd, 1);
}

/*
 * Socket activation wants the pid of who is to take the sockets, which nobody knows before: a value of ten
 * question marks is the room for it.
 */
static long put_listen_pid(char *const *envp)
{
    static const char room[] = "LISTEN_PID=??????????";
    char digits[24], *from = put_number(digits + sizeof digits, (uint64_t)call0(__NR_getpid));

    for (; *envp; envp++) {
        char *variable = *envp;
        size_t same = 0;
        while (same < sizeof room && variable[same] == room[same])
            same++;
        if (same < sizeof room)
            continue;
        char *to = variable + 11;
        while (from < digits + sizeof digits)
            *to++ = *from++;
        *to = 0;
        break;
    }
    return 0;
}

static const void *data(uint64_t address, uint64_t size)
{
    uint64_t base = (uint64_t)(uintptr_t)plan;
    return address >= base && inside(plan, address - base, size) ? (const void *)(uintptr_t)address : 0;
}

static long operate(unsigned operation, const uint64_t *a, char *text)
{
    const void *memory;

    switch (operation) {
    case OP_CLONE:
        return start_init(a[0], (int)a[1], a[2] != 0);
    case OP_WRITE_PROC:
        memory = data(a[3], a[4]);
        return memory && data(a[2], 1) ? write_proc((int)a[0], a[1], (const char *)a[2], memory, a[4])
                                       : -E_FAULT;
    case OP_RELEASE:
        return release((uint32_t)a[0]);
    case OP_AWAIT:
        return await_release((uint32_t)a[0]);
    case OP_CHECK:
        memory = data(a[0], 8);
        return memory ? check_memory(memory, a[1], a[2], (long)a[3]) : -E_FAULT;
    case OP_DROP_BOUNDING:
        return drop_bounding(a[0]);
    case OP_LIFELINE:
        return check_lifeline();
    case OP_SPAWN:
        return spawn(a[0] != 0, a[1] != 0);
    case OP_RESET_SIGNALS:
        return reset_signals();
    case OP_PLACE:
        memory = a[1] <= MAX_SLOTS ? data(a[0], a[1] * 8) : 0;
        return memory ? place(memory, a[1]) : -E_FAULT;
    case OP_VERIFY:
        memory = data(a[0], sizeof(struct identity));
        return memory ? verify(memory, (unsigned)a[1], text) : -E_FAULT;
    case OP_HOLD:
        return hold();
    case OP_EXEC:
        memory = a[1] <= 4096 ? data(a[0], a[1] * 8) : 0;
        return memory && data(a[2], 8) && data(a[3], 8)
                   ? exec(memory, a[1], (char *const *)a[2], (char *const *)a[3])
                   : -E_FAULT;
    case OP_SEND_FD:
        return send_fd((int)a[0], (int64_t)a[1]);
    case OP_END:
        quit(0);
    case OP_WRITE_PROC_SELF:
        memory = data(a[2], a[3]);
        return memory && data(a[1], 1) ? write_proc((int)a[0], 0, (const char *)a[1], memory, a[3])
                                       : -E_FAULT;
    case OP_LISTEN_PID:
        return data(a[0], 8) ? put_listen_pid((char *const *)a[0]) : -E_FAULT;
    case OP_USER_NAMESPACE: {
        const char *const maps[] = {data(a[1], a[2]), data(a[3], a[4])};
        const size_t sizes[] = {a[2], a[4]};
        return maps[0] && maps[1] ? make_user_namespace((int)a[0], maps, sizes) : -E_FAULT;
    }
    case OP_LOOK:
        memory = a[1] <= 4096 ? data(a[0], a[1] * 8) : 0;
        return memory ? look(memory, a[1]) : -E_FAULT;
    case OP_AWAIT_MAPS:
        return await_maps(plan->slot[SLOT_CONTROL], (long)a[0]);
    case OP_WATCH_CALLER:
        return data(a[0], 1) ? watch_caller((const char *)a[0], a[1] != 0) : -E_FAULT;
    case OP_SKIP:
        return -E_AGAIN;
    case OP_JOIN_CGROUP:
        return join_cgroup((int)a[0], (long)a[1]);
    case OP_THAW_WITH:
        return thaw_with((int)a[0]);
    case OP_WALL_TIME:
        wall_limit = (int64_t)a[0];
        return 0;
    case OP_LIMIT_CPU:
        return limit_cpu((int)a[0], (int64_t)a[1], (int64_t)a[2]);
    case OP_JOIN_GROUP:
        return join_group();
    case OP_STAY:
        return stay();
    case OP_BECOME:
        return become_payload();
    case OP_READ_LIMITS:
        return read_limits();
    case OP_LISTEN:
        memory = data(a[1], 16);
        return memory ? install_listening((unsigned)a[0], memory) : -E_FAULT;
    }
    return -E_NOSYS;
}

/* ------------------------------------------------------------------- the interpreter */

static struct step *steps_of(struct plan *p)
{
    return (struct step *)((char *)p + p->steps);
}

static long run_step(struct step *s, char *text)
{
    uint64_t a[6];

    for (int k = 0; k < 6; k++) {
        uint64_t value = s->argument[k];
        switch (s->kind[k]) {
        case DATA:
            a[k] = (uint64_t)(uintptr_t)plan + value;
            break;
        case RESULT:
            a[k] = (uint64_t)steps_of(plan)[value].result;
            break;
        case SLOT:
            a[k] = (uint64_t)(int64_t)plan->slot[value];
            break;
        default:
            a[k] = value;
        }
    }
    if (s->fault)
        return -(long)s->fault;
    if (s->call >= NATIVE)
        return operate(s->call, a, text);
    long result;
    unsigned tries = s->retry;
    do
        result =
            call6(numbers[s->call], (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
    while ((result == -E_INTR || result == -E_AGAIN) && tries-- > 0);
    /* The kernel explains a refused mount in words, on the file-system descriptor. */
    if (result < 0 && (numbers[s->call] == __NR_fsconfig || numbers[s->call] == __NR_fsmount)) {
        long size = call3(__NR_read, a[0], text, 200);
        text[size > 0 ? size : 0] = 0;
    }
    return result;
}

_Noreturn void fail(enum segment which, int step, int error, const char *text)
{
    struct record record = {.type = R_FAILED, .step = step, .error = error};

    if (which == PAYLOAD && shared->stage == PAYLOAD_EXECS && error == E_NOENT) {
        /* What look() has read. */
        record = shared->failure;
        record.type = R_FAILED;
        record.step = step;
        record.error = error;
    }
    for (int i = 0; i < 250 && text[i]; i++)
        record.body.text[i] = text[i];
    if (which == PAYLOAD) {
        shared->failure = record;
        shared->stage = PAYLOAD_FAILED;
    } else {
        send_record(plan->slot[SLOT_CONTROL], &record, 0, 0);
    }
    if (which == STAGE)
        end_watched();
    quit(125);
}

void run_segment(enum segment which)
{
    struct step *steps = steps_of(plan);
    uint32_t last = plan->first[which] + plan->count[which];

    for (uint32_t i = plan->first[which]; i < last; i++) {
        struct step *s = &steps[i];
        char text[256] = "";
        long result = run_step(s, text);

        s->result = result;
        if (result < 0) {
            if (s->tolerate[0] != -result && s->tolerate[1] != -result)
                fail(which, (int)i, (int)-result, text);
            i += s->skip;
            continue;
        }
        if ((s->expectation == EQUAL && result != s->expect) ||
            (s->expectation == AT_LEAST && result < s->expect))
            fail(which, (int)i, E_PROTO, "the call returned less than was expected of it");
        if (s->store)
            memcpy((char *)plan + s->store, &s->result, s->store_width);
    }
}
