/*
 * io_uring: the three calls, and the two rings that they share with the kernel.
 *
 * The structures are written out because the headers of an old build machine have no <linux/io_uring.h>.
 *
 * Facts about the rings, and what follows from them here:
 * - The submission ring holds indices into an array of entries; without SQPOLL the kernel looks at it during
 *   io_uring_enter only. So entries are gathered in sqes[0..pending), are published by one store of the tail
 * in submit, and what the kernel did not take is taken back by setting the tail again.
 * - With IORING_FEAT_SUBMIT_STABLE the kernel has copied an entry (and its iovec array) when enter returns.
 * - The completion ring's tail is written by the kernel: acquire before its entries are read; our head is
 *   released after they were. A completion that finds no room is kept by the kernel (IORING_FEAT_NODROP) and
 *   comes with the next enter that asks for events.
 * - A forked child would share the rings and spoil them for its parent. They are not mapped in the child
 *   (MADV_DONTFORK), and the structure that points to them reads as zeros there (MADV_WIPEONFORK): every
 *   function sees alive == 0 and fails with ESTALE.
 * - cffi lets other threads run during each call: one mutex for each ring, taken in the order sq, cq.
 */
#include <linux/types.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>

struct io_uring_sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, op_flags;
    uint64_t user_data;
    uint16_t buf_index, personality;
    int32_t file_index;
    uint64_t addr3, pad;
};
_Static_assert(sizeof(struct io_uring_sqe) == 64, "the kernel's size");

struct io_uring_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct io_sqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct io_cqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct io_uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    uint32_t resv[3];
    struct io_sqring_offsets sq_off;
    struct io_cqring_offsets cq_off;
};
_Static_assert(sizeof(struct io_uring_params) == 120, "the kernel's size");

struct io_uring_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz, pad;
    uint64_t ts;
};

enum {
    RING_OP_NOP = 0,
    RING_OP_ASYNC_CANCEL = 14,
    RING_ENTER_GETEVENTS = 1,
    RING_ENTER_EXT_ARG = 8,
    RING_SQ_CQ_OVERFLOW = 2,
    RING_SQ_TASKRUN = 4,
};
#define RING_OFF_SQ_RING 0ULL
#define RING_OFF_SQES 0x10000000ULL
#define RING_WITHDRAWN (1ULL << 63) /* cancelled before it was submitted: the kernel sees a NOP */
#define RING_CANCEL UINT64_MAX      /* a cancel request of our own */
#define RING_CANCEL_SEEN (UINT64_MAX - 1)

struct sandbox_ring {
    int alive; /* 0 in a forked child and once closing */
    int fd;
    unsigned depth;
    unsigned pending;   /* prepared, not yet submitted */
    atomic_uint active; /* prepared or submitted, not yet reaped */
    pthread_mutex_t sq_lock, cq_lock;

    struct io_uring_sqe *sqes;
    _Atomic uint32_t *sq_head, *sq_tail, *sq_flags;
    uint32_t *sq_array, sq_mask;

    struct io_uring_cqe *cqes;
    _Atomic uint32_t *cq_head, *cq_tail;
    uint32_t cq_mask;

    void *rings; /* both rings are one mapping: IORING_FEAT_SINGLE_MMAP */
    size_t rings_size, sqes_size;
};

static int sandbox_io_uring_setup(unsigned entries, struct io_uring_params *params)
{
    return syscall(SYS_io_uring_setup, entries, params);
}

/* A timeout below 0 is none; with one, IORING_ENTER_EXT_ARG is added (5.11). */
static int sandbox_io_uring_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                                  const void *sigmask, int64_t timeout_ns)
{
    if (timeout_ns < 0)
        return syscall(SYS_io_uring_enter, fd, to_submit, min_complete, flags, sigmask, (size_t)8);
    struct {
        int64_t seconds, nanoseconds;
    } timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    struct io_uring_getevents_arg arg = {
        .sigmask = (uintptr_t)sigmask,
        .sigmask_sz = 8,
        .ts = (uintptr_t)&timeout,
    };
    return syscall(SYS_io_uring_enter, fd, to_submit, min_complete, flags | RING_ENTER_EXT_ARG, &arg,
                   sizeof arg);
}

static int sandbox_io_uring_register(int fd, unsigned opcode, void *arg, unsigned nr_args)
{
    return syscall(SYS_io_uring_register, fd, opcode, arg, nr_args);
}

static int ring_enter(struct sandbox_ring *ring, unsigned to_submit, unsigned min_complete, unsigned flags)
{
    return syscall(SYS_io_uring_enter, ring->fd, to_submit, min_complete, flags, NULL, (size_t)8);
}

static int ring_stale(void)
{
    errno = ESTALE;
    return -1;
}

/* Map the rings of `fd`, which has more than `depth` entries: one is kept for cancel requests. */
static int sandbox_ring_map(int fd, unsigned depth, const struct io_uring_params *params,
                            struct sandbox_ring **made)
{
    size_t sq_size = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_size = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    size_t rings_size = sq_size > cq_size ? sq_size : cq_size;
    size_t sqes_size = params->sq_entries * sizeof(struct io_uring_sqe);
    int saved;

    struct sandbox_ring *ring =
        mmap(NULL, sizeof *ring, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED)
        return -1;
    char *rings =
        mmap(NULL, rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, RING_OFF_SQ_RING);
    if (rings == MAP_FAILED)
        goto free_ring;
    void *sqes = mmap(NULL, sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, RING_OFF_SQES);
    if (sqes == MAP_FAILED)
        goto unmap_rings;
    if (madvise(ring, sizeof *ring, MADV_WIPEONFORK) != 0 || madvise(rings, rings_size, MADV_DONTFORK) != 0 ||
        madvise(sqes, sqes_size, MADV_DONTFORK) != 0)
        goto unmap_sqes;

    *ring = (struct sandbox_ring){
        .alive = 1,
        .fd = fd,
        .depth = depth,
        .sqes = sqes,
        .sq_head = (void *)(rings + params->sq_off.head),
        .sq_tail = (void *)(rings + params->sq_off.tail),
        .sq_flags = (void *)(rings + params->sq_off.flags),
        .sq_array = (void *)(rings + params->sq_off.array),
        .sq_mask = *(uint32_t *)(rings + params->sq_off.ring_mask),
        .cqes = (void *)(rings + params->cq_off.cqes),
        .cq_head = (void *)(rings + params->cq_off.head),
        .cq_tail = (void *)(rings + params->cq_off.tail),
        .cq_mask = *(uint32_t *)(rings + params->cq_off.ring_mask),
        .rings = rings,
        .rings_size = rings_size,
        .sqes_size = sqes_size,
    };
    pthread_mutex_init(&ring->sq_lock, NULL);
    pthread_mutex_init(&ring->cq_lock, NULL);
    *made = ring;
    return 0;

unmap_sqes:
    saved = errno;
    munmap(sqes, sqes_size);
    errno = saved;
unmap_rings:
    saved = errno;
    munmap(rings, rings_size);
    errno = saved;
free_ring:
    saved = errno;
    munmap(ring, sizeof *ring);
    errno = saved;
    return -1;
}

/* Take one more entry; EAGAIN when `depth` requests wait or run already. The caller holds sq_lock. */
static struct io_uring_sqe *ring_next(struct sandbox_ring *ring)
{
    if (!ring->alive) {
        errno = ESTALE;
        return NULL;
    }
    if (atomic_load_explicit(&ring->active, memory_order_acquire) >= ring->depth) {
        errno = EAGAIN;
        return NULL;
    }
    atomic_fetch_add_explicit(&ring->active, 1, memory_order_relaxed);
    return &ring->sqes[ring->pending++];
}

static int sandbox_ring_prepare(struct sandbox_ring *ring, unsigned opcode, int fd, void *address,
                                uint32_t length, int64_t offset, uint64_t user_data)
{
    if (offset < 0) {
        errno = EINVAL;
        return -1;
    }
    pthread_mutex_lock(&ring->sq_lock);
    struct io_uring_sqe *sqe = ring_next(ring);
    if (sqe != NULL)
        *sqe = (struct io_uring_sqe){
            .opcode = opcode,
            .fd = fd,
            .off = offset,
            .addr = (uintptr_t)address,
            .len = length,
            .user_data = user_data,
        };
    pthread_mutex_unlock(&ring->sq_lock);
    return sqe == NULL ? -1 : 0;
}

static int sandbox_ring_push(struct sandbox_ring *ring, const void *entry)
{
    pthread_mutex_lock(&ring->sq_lock);
    struct io_uring_sqe *sqe = ring_next(ring);
    if (sqe != NULL)
        memcpy(sqe, entry, sizeof *sqe);
    pthread_mutex_unlock(&ring->sq_lock);
    return sqe == NULL ? -1 : 0;
}

/* Publish `count` entries from index `first` on and enter; returns how many the kernel took. */
static unsigned ring_publish(struct sandbox_ring *ring, unsigned first, unsigned count, int *error)
{
    uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed);
    for (unsigned i = 0; i < count; i++)
        ring->sq_array[(tail + i) & ring->sq_mask] = first + i;
    atomic_store_explicit(ring->sq_tail, tail + count, memory_order_release);
    *error = ring_enter(ring, count, 0, 0) < 0 ? errno : 0;
    unsigned taken = atomic_load_explicit(ring->sq_head, memory_order_acquire) - tail;
    if (taken < count)
        atomic_store_explicit(ring->sq_tail, tail + taken, memory_order_release);
    return taken;
}

/* Returns how many requests the kernel took; the others stay prepared. */
static int sandbox_ring_submit(struct sandbox_ring *ring)
{
    int error = 0, submitted = 0;

    pthread_mutex_lock(&ring->sq_lock);
    if (!ring->alive)
        error = ESTALE;
    while (error == 0 && ring->pending > 0) {
        /* The kernel stops after an entry that it refuses (it gets a completion): go on with the rest. */
        unsigned taken = ring_publish(ring, 0, ring->pending, &error);
        ring->pending -= taken;
        memmove(ring->sqes, ring->sqes + taken, ring->pending * sizeof *ring->sqes);
        submitted += taken;
        /* EBUSY: completions have to be read first, on old kernels. */
        if (error == EBUSY || error == EINTR || (error == 0 && taken == 0))
            error = EAGAIN;
    }
    pthread_mutex_unlock(&ring->sq_lock);
    if (submitted == 0 && error != 0) {
        errno = error;
        return -1;
    }
    return submitted;
}

/* Move completions out of the ring. The caller holds cq_lock. */
static unsigned ring_take(struct sandbox_ring *ring, uint64_t *user_data, int64_t *results, unsigned count)
{
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    unsigned n = 0;

    if (head == tail && atomic_load_explicit(ring->sq_flags, memory_order_relaxed) &
                            (RING_SQ_CQ_OVERFLOW | RING_SQ_TASKRUN)) {
        ring_enter(ring, 0, 0, RING_ENTER_GETEVENTS);
        tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    }
    for (; head != tail && n < count; head++) {
        const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        if (cqe->user_data >= RING_CANCEL_SEEN)
            continue;
        user_data[n] = cqe->user_data & ~RING_WITHDRAWN;
        results[n] = cqe->user_data & RING_WITHDRAWN ? -ECANCELED : cqe->res;
        n++;
    }
    atomic_store_explicit(ring->cq_head, head, memory_order_release);
    atomic_fetch_sub_explicit(&ring->active, n, memory_order_release);
    return n;
}

static int sandbox_ring_reap(struct sandbox_ring *ring, uint64_t *user_data, int64_t *results, unsigned count)
{
    int n = -1;

    pthread_mutex_lock(&ring->cq_lock);
    if (ring->alive)
        n = ring_take(ring, user_data, results, count);
    pthread_mutex_unlock(&ring->cq_lock);
    return n < 0 ? ring_stale() : n;
}

/* Find the result of our own cancel request, and mark it as seen. */
static int ring_cancel_result(struct sandbox_ring *ring, int32_t *result)
{
    int found = 0;

    pthread_mutex_lock(&ring->cq_lock);
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    for (; head != tail && !found; head++) {
        struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        if (cqe->user_data == RING_CANCEL) {
            cqe->user_data = RING_CANCEL_SEEN;
            *result = cqe->res;
            found = 1;
        }
    }
    pthread_mutex_unlock(&ring->cq_lock);
    return found;
}

/* Cancel what was submitted. The caller holds sq_lock. Returns 1, 0 (too late, or unknown) or -1 with errno.
 */
static int ring_cancel_submitted(struct sandbox_ring *ring, uint64_t user_data)
{
    int error;
    int32_t result = -ENOENT;

    /* sqes[depth] is never used by requests, so the prepared ones stay where they are. */
    ring->sqes[ring->depth] = (struct io_uring_sqe){
        .opcode = RING_OP_ASYNC_CANCEL,
        .fd = -1,
        .addr = user_data,
        .user_data = RING_CANCEL,
    };
    if (ring_publish(ring, ring->depth, 1, &error) == 0) {
        errno = error ? error : EAGAIN;
        return -1;
    }
    ring_cancel_result(ring, &result);
    return result == 0;
}

static int sandbox_ring_cancel(struct sandbox_ring *ring, uint64_t user_data)
{
    int result = -1;

    pthread_mutex_lock(&ring->sq_lock);
    if (!ring->alive) {
        errno = ESTALE;
        goto unlock;
    }
    for (unsigned i = 0; i < ring->pending; i++)
        if (ring->sqes[i].user_data == user_data) {
            ring->sqes[i] = (struct io_uring_sqe){
                .opcode = RING_OP_NOP,
                .fd = -1,
                .user_data = user_data | RING_WITHDRAWN,
            };
            result = 1;
            goto unlock;
        }
    result = ring_cancel_submitted(ring, user_data);
unlock:
    pthread_mutex_unlock(&ring->sq_lock);
    return result;
}

/* How many requests are prepared or running. */
static int sandbox_ring_active(struct sandbox_ring *ring)
{
    return ring->alive ? (int)atomic_load_explicit(&ring->active, memory_order_acquire) : ring_stale();
}

/* Take nothing new from here on and drop what is prepared; what runs goes on. Every other function fails. */
static void sandbox_ring_stop(struct sandbox_ring *ring)
{
    pthread_mutex_lock(&ring->sq_lock);
    pthread_mutex_lock(&ring->cq_lock);
    ring->alive = 0;
    pthread_mutex_unlock(&ring->cq_lock);
    atomic_fetch_sub_explicit(&ring->active, ring->pending, memory_order_relaxed);
    ring->pending = 0;
    pthread_mutex_unlock(&ring->sq_lock);
}

/*
 * Cancel the requests named and wait for the end of all; only after sandbox_ring_stop. When this returns 0
 * the kernel has let go of every buffer. -1 with EINTR: a signal came, call it again. In a forked child there
 * is nothing to wait for.
 */
static int sandbox_ring_drain(struct sandbox_ring *ring, const uint64_t *user_data, unsigned count)
{
    uint64_t discarded_data[64];
    int64_t discarded_results[64];

    if (ring->rings == NULL)
        return 0;
    pthread_mutex_lock(&ring->sq_lock);
    for (unsigned i = 0; i < count; i++)
        ring_cancel_submitted(ring, user_data[i]);
    pthread_mutex_unlock(&ring->sq_lock);

    for (;;) {
        pthread_mutex_lock(&ring->cq_lock);
        while (ring_take(ring, discarded_data, discarded_results, 64) > 0)
            ;
        pthread_mutex_unlock(&ring->cq_lock);
        if (atomic_load_explicit(&ring->active, memory_order_acquire) == 0)
            return 0;
        if (ring_enter(ring, 0, 1, RING_ENTER_GETEVENTS) < 0)
            return -1;
    }
}

/* Unmap the rings; only after sandbox_ring_drain returned 0. The structure stays, for threads that still
 * look. */
static void sandbox_ring_unmap(struct sandbox_ring *ring)
{
    pthread_mutex_lock(&ring->sq_lock);
    pthread_mutex_lock(&ring->cq_lock);
    ring->alive = 0;
    if (ring->rings != NULL) {
        munmap(ring->rings, ring->rings_size);
        munmap(ring->sqes, ring->sqes_size);
        ring->rings = NULL;
    }
    pthread_mutex_unlock(&ring->cq_lock);
    pthread_mutex_unlock(&ring->sq_lock);
}

static void sandbox_ring_free(struct sandbox_ring *ring)
{
    munmap(ring, sizeof *ring);
}
