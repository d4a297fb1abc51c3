/* inotify(7): records are read and split into columns in one call, so that Python builds events without
 * parsing. */
#include <sys/inotify.h>

#define SANDBOX_INOTIFY_BYTES 65536
/* A record without a name is the shortest. */
#define SANDBOX_INOTIFY_RECORDS (SANDBOX_INOTIFY_BYTES / sizeof(struct inotify_event))

struct sandbox_inotify_batch {
    int32_t wd[SANDBOX_INOTIFY_RECORDS];
    uint32_t mask[SANDBOX_INOTIFY_RECORDS];
    uint32_t cookie[SANDBOX_INOTIFY_RECORDS];
    uint32_t cookies;  /* every cookie or-ed together: 0 when there is none */
    size_t names_size; /* bytes at the start of `records` that hold the names, each with a NUL behind it */
    _Alignas(struct inotify_event) char records[SANDBOX_INOTIFY_BYTES];
};

/*
 * Split `size` bytes of records; return their number, or -1 with EBADMSG when the last one is cut short.
 *
 * The names take the place of the records: a name with its NUL is never longer than the record it was in, so
 * that what is written stays behind what is read.
 */
static int sandbox_inotify_split(struct sandbox_inotify_batch *batch, size_t size)
{
    char *records = batch->records;
    size_t at = 0, names = 0;
    uint32_t cookies = 0;
    int count = 0;

    if (size > sizeof(batch->records)) {
        errno = EMSGSIZE;
        return -1;
    }
    while (at < size) {
        struct inotify_event event;
        size_t length = 0;

        if (size - at < sizeof(event))
            goto cut;
        memcpy(&event, records + at, sizeof(event));
        at += sizeof(event);
        if (event.len > size - at)
            goto cut;
        batch->wd[count] = event.wd;
        batch->mask[count] = event.mask;
        batch->cookie[count] = event.cookie;
        cookies |= event.cookie;
        count++;
        if (event.len) {
            length = strnlen(records + at, event.len);
            memmove(records + names, records + at, length);
        }
        names += length;
        records[names++] = '\0';
        at += event.len;
    }
    batch->cookies = cookies;
    batch->names_size = names;
    return count;
cut:
    errno = EBADMSG;
    return -1;
}

/* Read once and split; the number of records, or -1 with the errno of read(2). */
static int sandbox_inotify_read(int fd, struct sandbox_inotify_batch *batch)
{
    ssize_t size = read(fd, batch->records, sizeof(batch->records));

    return size < 0 ? -1 : sandbox_inotify_split(batch, (size_t)size);
}

/*
 * Wait until nobody is changing the entries of a directory. A change and its event are made under one hold of
 * the lock that getdents takes, so that the events of all changes that can be seen are queued when this
 * returns. The buffer is too small on purpose: nothing is read.
 */
static void sandbox_inotify_barrier(int directory_fd)
{
    char nothing[1];

    (void)syscall(SYS_getdents64, directory_fd, nothing, sizeof(nothing));
}
