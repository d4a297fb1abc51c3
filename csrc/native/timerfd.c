/* Times are nanoseconds in 64 bits, {value, interval}; struct itimerspec stays in here. */
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t) /* 3.17 */
#endif

static struct timespec sandbox_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static void sandbox_itimerspec_ns(const struct itimerspec *spec, int64_t *ns)
{
    ns[0] = (int64_t)spec->it_value.tv_sec * 1000000000 + spec->it_value.tv_nsec;
    ns[1] = (int64_t)spec->it_interval.tv_sec * 1000000000 + spec->it_interval.tv_nsec;
}

static int sandbox_timerfd_create(int clock, int flags)
{
    return timerfd_create(clock, flags);
}

static int sandbox_timerfd_settime(int fd, int flags, int64_t value, int64_t interval, int64_t *old)
{
    struct itimerspec spec = {.it_value = sandbox_timespec(value), .it_interval = sandbox_timespec(interval)};
    struct itimerspec before;
    int result = timerfd_settime(fd, flags, &spec, &before);
    if (result == 0)
        sandbox_itimerspec_ns(&before, old);
    return result;
}

static int sandbox_timerfd_gettime(int fd, int64_t *now)
{
    struct itimerspec spec;
    int result = timerfd_gettime(fd, &spec);
    if (result == 0)
        sandbox_itimerspec_ns(&spec, now);
    return result;
}

static int sandbox_timerfd_set_ticks(int fd, uint64_t ticks)
{
    return ioctl(fd, TFD_IOC_SET_TICKS, &ticks);
}
