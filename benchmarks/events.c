/* The limits: what reading costs when nothing is built of what was read. Compiled by events.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <unistd.h>

static char buffer[65536] __attribute__((aligned(8)));

/* Read `count` events of a non-blocking inotify instance; the sum keeps the loop from being optimised away.
 */
long limit_inotify(int fd, long count, uint64_t *sum)
{
    long seen = 0;
    while (seen < count) {
        ssize_t size = read(fd, buffer, sizeof buffer);
        if (size <= 0)
            return errno == EAGAIN ? seen : -1;
        for (char *at = buffer; at < buffer + size;) {
            struct inotify_event *event = (struct inotify_event *)at;
            *sum += event->mask + event->wd + event->cookie + (event->len ? event->name[0] : 0);
            at += sizeof *event + event->len;
            seen++;
        }
    }
    return seen;
}

/* Read `count` events of a non-blocking fanotify group, at most `size` bytes at a time; descriptors are
 * closed. */
static long limit(int fd, long count, uint64_t *sum, size_t at_once)
{
    long seen = 0;
    while (seen < count) {
        ssize_t size = read(fd, buffer, at_once);
        if (size <= 0)
            return errno == EAGAIN ? seen : -1;
        struct fanotify_event_metadata *event = (struct fanotify_event_metadata *)buffer;
        for (; FAN_EVENT_OK(event, size); event = FAN_EVENT_NEXT(event, size)) {
            *sum += event->mask + event->pid;
            if (event->fd >= 0)
                close(event->fd);
            seen++;
        }
    }
    return seen;
}

/* 64 descriptors at a time, as the library does. */
long limit_fanotify(int fd, long count, uint64_t *sum)
{
    return limit(fd, count, sum, 64 * sizeof(struct fanotify_event_metadata));
}

long limit_fanotify_names(int fd, long count, uint64_t *sum)
{
    return limit(fd, count, sum, sizeof buffer);
}
