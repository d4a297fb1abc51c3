/* A service: says when it began, by the clock that all share, and who it is; then it waits. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
    struct timespec now;
    char text[64];

    clock_gettime(CLOCK_MONOTONIC, &now);
    int fd = count > 1 ? open(words[1], O_WRONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        int size =
            snprintf(text, sizeof text, "%lld %d\n", now.tv_sec * 1000000000LL + now.tv_nsec, (int)getpid());
        if (write(fd, text, (size_t)size) != size)
            return 1;
        close(fd);
    }
    for (;;)
        pause();
}
