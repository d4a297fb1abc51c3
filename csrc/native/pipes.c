/* An offset of -1 is "none": the descriptor's own position, which moves. */
#include <limits.h>
#include <sys/mman.h>
#include <sys/uio.h>

static int64_t sandbox_splice(int src, int64_t offset_src, int dst, int64_t offset_dst, int64_t count,
                              unsigned flags)
{
    return splice(src, offset_src < 0 ? NULL : &offset_src, dst, offset_dst < 0 ? NULL : &offset_dst,
                  (size_t)count, flags);
}

static int64_t sandbox_tee(int src, int dst, int64_t count, unsigned flags)
{
    return tee(src, dst, (size_t)count, flags);
}

/* The caller has checked segments <= IOV_MAX. */
static int64_t sandbox_vmsplice(int fd, uintptr_t *addresses, size_t *sizes, size_t segments, unsigned flags)
{
    struct iovec vector[IOV_MAX];
    for (size_t i = 0; i < segments; i++)
        vector[i] = (struct iovec){.iov_base = (void *)addresses[i], .iov_len = sizes[i]};
    return vmsplice(fd, vector, segments, flags);
}

/*
 * The pipe keeps a reference to the pages themselves. Pages of a mapping of their own, which is gone when
 * this returns, belong to the pipe alone: nobody can change or free what its reader will see.
 */
static int64_t sandbox_vmsplice_copy(int fd, uintptr_t *addresses, size_t *sizes, size_t segments,
                                     unsigned flags)
{
    size_t total = 0;
    for (size_t i = 0; i < segments; i++)
        total += sizes[i];
    if (total == 0)
        return vmsplice(fd, NULL, 0, flags); /* checks the descriptor */
    char *pages = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return -1;
    size_t at = 0;
    for (size_t i = 0; i < segments; i++) {
        memcpy(pages + at, (void *)addresses[i], sizes[i]);
        at += sizes[i];
    }
    struct iovec vector = {.iov_base = pages, .iov_len = total};
    int64_t result = vmsplice(fd, &vector, 1, flags);
    int error = errno;
    munmap(pages, total);
    errno = error;
    return result;
}

static int64_t sandbox_copy_file_range(int src, int64_t offset_src, int dst, int64_t offset_dst,
                                       int64_t count, unsigned flags)
{
    return copy_file_range(src, offset_src < 0 ? NULL : &offset_src, dst, offset_dst < 0 ? NULL : &offset_dst,
                           (size_t)count, flags);
}
