/*
 * Linux AIO: the calls of io_setup(2) and its like, and a queue of control blocks on top of them.
 *
 * Facts about Linux AIO, and what follows from them here:
 * - io_submit stops at the first control block that it refuses, and tells its errno only when that is the
 * very first: the queue turns the refusal into a completion, rings the eventfd, and goes on behind it.
 * - It reads files that have no asynchronous path inside io_submit itself. For a pipe or a socket that would
 *   block without bound, so what cannot be read at an offset is refused with ESPIPE, as pread(2) does.
 * - io_cancel names a request by the address of its control block: each keeps its slot until it is reaped.
 * - io_destroy waits for the end of what it cannot cancel. Nothing has to be drained before.
 * - A forked child has neither the context nor its ring; the queue reads as zeros there (MADV_WIPEONFORK) and
 *   every function fails with ESTALE, before it could take a count from the eventfd that is shared.
 */
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>

struct aio_slot {
    struct iocb iocb;
    int used;
    unsigned next_free;
};

struct sandbox_aio {
    int alive; /* 0 in a forked child and once destroyed */
    int eventfd;
    aio_context_t context;
    pthread_mutex_t lock;
    unsigned depth;
    unsigned active; /* prepared, running or ended, not yet reaped */
    unsigned free;   /* first free slot; depth: none */
    unsigned pending, ended_count;
    struct aio_slot *slots;  /* [depth], like the arrays below behind the structure */
    struct iocb **queue;     /* [pending] prepared, in order */
    struct io_event *ended;  /* [ended_count] completions that the kernel did not make */
    struct io_event *events; /* where io_getevents writes */
};

static int64_t *aio_timespec(int64_t timeout_ns, int64_t *timeout)
{
    if (timeout_ns < 0)
        return NULL;
    timeout[0] = timeout_ns / 1000000000;
    timeout[1] = timeout_ns % 1000000000;
    return timeout;
}

static int sandbox_io_setup(unsigned nr_events, uint64_t *context)
{
    aio_context_t made = 0;
    int result = syscall(SYS_io_setup, nr_events, &made);
    *context = made;
    return result;
}

static int sandbox_io_destroy(uint64_t context)
{
    return syscall(SYS_io_destroy, (aio_context_t)context);
}

static int sandbox_io_submit(uint64_t context, long nr, struct iocb **iocbs)
{
    return syscall(SYS_io_submit, (aio_context_t)context, nr, iocbs);
}

static int sandbox_io_cancel(uint64_t context, struct iocb *iocb, struct io_event *result)
{
    return syscall(SYS_io_cancel, (aio_context_t)context, iocb, result);
}

static int sandbox_io_getevents(uint64_t context, long min_nr, long nr, struct io_event *events,
                                int64_t timeout_ns)
{
    int64_t timeout[2];
    return syscall(SYS_io_getevents, (aio_context_t)context, min_nr, nr, events,
                   aio_timespec(timeout_ns, timeout));
}

static int sandbox_io_pgetevents(uint64_t context, long min_nr, long nr, struct io_event *events,
                                 int64_t timeout_ns, const uint64_t *sigmask)
{
    int64_t timeout[2];
    struct {
        const uint64_t *sigmask;
        size_t size;
    } mask = {sigmask, 8};
    return syscall(SYS_io_pgetevents, (aio_context_t)context, min_nr, nr, events,
                   aio_timespec(timeout_ns, timeout), sigmask == NULL ? NULL : &mask);
}

static size_t aio_size(unsigned depth)
{
    return sizeof(struct sandbox_aio) +
           depth * (sizeof(struct aio_slot) + 2 * sizeof(struct io_event) + sizeof(struct iocb *));
}

static int sandbox_aio_new(uint64_t context, int eventfd, unsigned depth, struct sandbox_aio **made)
{
    size_t size = aio_size(depth);
    char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return -1;
    if (madvise(base, size, MADV_WIPEONFORK) != 0) {
        int saved = errno;
        munmap(base, size);
        errno = saved;
        return -1;
    }
    struct sandbox_aio *aio = (void *)base;
    *aio = (struct sandbox_aio){
        .alive = 1,
        .eventfd = eventfd,
        .context = context,
        .depth = depth,
    };
    aio->slots = (void *)(aio + 1);
    aio->events = (void *)(aio->slots + depth);
    aio->ended = aio->events + depth;
    aio->queue = (void *)(aio->ended + depth);
    for (unsigned i = 0; i < depth; i++)
        aio->slots[i].next_free = i + 1;
    pthread_mutex_init(&aio->lock, NULL);
    *made = aio;
    return 0;
}

/* Take the lock of a queue that can be used: 0, or -1 with ESTALE. */
static int aio_lock(struct sandbox_aio *aio)
{
    pthread_mutex_lock(&aio->lock);
    if (aio->alive)
        return 0;
    pthread_mutex_unlock(&aio->lock);
    errno = ESTALE;
    return -1;
}

static int sandbox_aio_prepare(struct sandbox_aio *aio, unsigned opcode, int fd, void *address,
                               uint32_t length, int64_t offset, uint64_t data)
{
    if (offset < 0) {
        errno = EINVAL;
        return -1;
    }
    if (aio_lock(aio) < 0)
        return -1;
    if (aio->free == aio->depth) {
        pthread_mutex_unlock(&aio->lock);
        errno = EAGAIN;
        return -1;
    }
    struct aio_slot *slot = &aio->slots[aio->free];
    aio->free = slot->next_free;
    slot->used = 1;
    slot->iocb = (struct iocb){
        .aio_data = data,
        .aio_lio_opcode = opcode,
        .aio_fildes = fd,
        .aio_buf = (uintptr_t)address,
        .aio_nbytes = length,
        .aio_offset = offset,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = aio->eventfd,
    };
    aio->queue[aio->pending++] = &slot->iocb;
    aio->active++;
    pthread_mutex_unlock(&aio->lock);
    return 0;
}

/* Complete a request without the kernel. The caller holds the lock. */
static void aio_end(struct sandbox_aio *aio, struct iocb *iocb, int error)
{
    uint64_t one = 1;

    aio->ended[aio->ended_count++] = (struct io_event){
        .data = iocb->aio_data,
        .obj = (uintptr_t)iocb,
        .res = -error,
    };
    /* It cannot fail: the counter is far from full. */
    if (write(aio->eventfd, &one, sizeof one) < 0)
        return;
}

/* End the prepared requests that io_submit would block on: ESPIPE, as pread(2) says. */
static int aio_refuse_streams(struct sandbox_aio *aio)
{
    unsigned kept = 0;
    int last_fd = -1, stream = 0;

    for (unsigned i = 0; i < aio->pending; i++) {
        struct iocb *iocb = aio->queue[i];
        int fd = iocb->aio_fildes;
        if (fd != last_fd) {
            stream = lseek(fd, 0, SEEK_CUR) < 0 && errno == ESPIPE;
            last_fd = fd;
        }
        if (stream && iocb->aio_lio_opcode != IOCB_CMD_FSYNC)
            aio_end(aio, iocb, ESPIPE);
        else
            aio->queue[kept++] = iocb;
    }
    unsigned refused = aio->pending - kept;
    aio->pending = kept;
    return refused;
}

/* Returns how many requests were started or refused; the others stay prepared. */
static int sandbox_aio_submit(struct sandbox_aio *aio)
{
    unsigned sent = 0;
    int error = 0;

    if (aio_lock(aio) < 0)
        return -1;
    int submitted = aio_refuse_streams(aio);
    while (sent < aio->pending) {
        int result = sandbox_io_submit(aio->context, aio->pending - sent, aio->queue + sent);
        if (result > 0) {
            sent += result;
            continue;
        }
        error = result < 0 ? errno : EAGAIN;
        if (error == EAGAIN)
            break;
        aio_end(aio, aio->queue[sent++], error);
    }
    submitted += sent;
    aio->pending -= sent;
    memmove(aio->queue, aio->queue + sent, aio->pending * sizeof *aio->queue);
    pthread_mutex_unlock(&aio->lock);
    if (submitted == 0 && error != 0) {
        errno = error;
        return -1;
    }
    return submitted;
}

/* Hand out completions and free their slots. The caller holds the lock. */
static void aio_release(struct sandbox_aio *aio, const struct io_event *events, unsigned count,
                        uint64_t *data, int64_t *results)
{
    for (unsigned i = 0; i < count; i++) {
        struct aio_slot *slot = (void *)(uintptr_t)events[i].obj;
        data[i] = events[i].data;
        results[i] = events[i].res;
        slot->used = 0;
        slot->next_free = aio->free;
        aio->free = slot - aio->slots;
    }
    aio->active -= count;
}

/* Returns all completions that are there; the arrays must have room for `depth` of them. */
static int sandbox_aio_reap(struct sandbox_aio *aio, uint64_t *data, int64_t *results)
{
    uint64_t count;

    if (aio_lock(aio) < 0)
        return -1;
    /* First the counter, then the events: what completes in between rings again. EAGAIN is no event. */
    if (read(aio->eventfd, &count, sizeof count) < 0 && errno != EAGAIN) {
        pthread_mutex_unlock(&aio->lock);
        return -1;
    }
    unsigned ended = aio->ended_count;
    aio_release(aio, aio->ended, ended, data, results);
    aio->ended_count = 0;
    int got = sandbox_io_getevents(aio->context, 0, aio->depth, aio->events, 0);
    if (got > 0)
        aio_release(aio, aio->events, got, data + ended, results + ended);
    pthread_mutex_unlock(&aio->lock);
    return got < 0 && ended == 0 ? -1 : (int)ended + (got > 0 ? got : 0);
}

/* Returns 1, 0 (too late, unknown, or of a kind that cannot be cancelled) or -1 with errno. */
static int sandbox_aio_cancel(struct sandbox_aio *aio, uint64_t data)
{
    struct io_event unused;
    int result = 0;

    if (aio_lock(aio) < 0)
        return -1;
    for (unsigned i = 0; i < aio->pending; i++)
        if (aio->queue[i]->aio_data == data) {
            aio_end(aio, aio->queue[i], ECANCELED);
            aio->pending--;
            memmove(aio->queue + i, aio->queue + i + 1, (aio->pending - i) * sizeof *aio->queue);
            pthread_mutex_unlock(&aio->lock);
            return 1;
        }
    for (unsigned i = 0; i < aio->depth; i++)
        if (aio->slots[i].used && aio->slots[i].iocb.aio_data == data) {
            /* EINPROGRESS: cancelled, the completion comes through the ring as every other. */
            result =
                sandbox_io_cancel(aio->context, &aio->slots[i].iocb, &unused) == 0 || errno == EINPROGRESS;
            break;
        }
    pthread_mutex_unlock(&aio->lock);
    return result;
}

/* How many requests are prepared, running, or ended and not yet reaped. */
static int sandbox_aio_active(struct sandbox_aio *aio)
{
    if (aio_lock(aio) < 0)
        return -1;
    int active = aio->active;
    pthread_mutex_unlock(&aio->lock);
    return active;
}

/*
 * Destroy the context; the kernel has let go of every buffer when this returns. The structure stays, for
 * threads that still look. In a forked child there is nothing to destroy.
 */
static int sandbox_aio_destroy(struct sandbox_aio *aio)
{
    if (aio_lock(aio) < 0)
        return 0;
    aio->alive = 0;
    pthread_mutex_unlock(&aio->lock);
    return sandbox_io_destroy(aio->context);
}

static void sandbox_aio_free(struct sandbox_aio *aio, unsigned depth)
{
    munmap(aio, aio_size(depth));
}
