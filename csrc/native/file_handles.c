/* open_by_handle_at(2): a handle is passed as the bytes of struct file_handle, head and all. */
#ifndef MAX_HANDLE_SZ
#define MAX_HANDLE_SZ 128
#endif
#define SANDBOX_MAX_HANDLE (sizeof(struct file_handle) + MAX_HANDLE_SZ)

static int sandbox_name_to_handle_at(int dirfd, const char *path, char *handle, int *mount_id, int flags)
{
    struct file_handle head = {.handle_bytes = MAX_HANDLE_SZ};

    memcpy(handle, &head, sizeof(head));
    return name_to_handle_at(dirfd, path, (struct file_handle *)(void *)handle, mount_id, flags);
}

static int sandbox_open_by_handle_at(int mount_fd, char *handle, int flags)
{
    return open_by_handle_at(mount_fd, (struct file_handle *)(void *)handle, flags);
}
