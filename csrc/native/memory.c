/* The memory of another process. */
#include <sys/uio.h>

static long sandbox_process_vm_readv(int pid, void *buffer, size_t size, uint64_t address)
{
    struct iovec local = {.iov_base = buffer, .iov_len = size};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = size};
    return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}
