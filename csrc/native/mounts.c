/* mount(2), the descriptor-based mount calls, statmount(2) and listmount(2), none of them through libc: its
 * <sys/mount.h> and the kernel's <linux/mount.h> cannot be included together. */

static int sandbox_mount(const char *source, const char *target, const char *type, unsigned long flags,
                         const char *data)
{
    return (int)syscall(SYS_mount, source, target, type, flags, data);
}

static int sandbox_umount(const char *target, int flags)
{
    return (int)syscall(SYS_umount2, target, flags);
}

static int sandbox_pivot_root(const char *new_root, const char *put_old)
{
    return (int)syscall(SYS_pivot_root, new_root, put_old);
}

static int sandbox_open_tree(int dirfd, const char *path, unsigned int flags)
{
    return (int)syscall(SYS_open_tree, dirfd, path, flags);
}

/* attr is struct mount_attr: set, clear, propagation, user namespace. */
static int sandbox_open_tree_attr(int dirfd, const char *path, unsigned int flags, uint64_t attr[4])
{
    return (int)syscall(SYS_open_tree_attr, dirfd, path, flags, attr, 4 * sizeof attr[0]);
}

static int sandbox_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path,
                              unsigned int flags)
{
    return (int)syscall(SYS_move_mount, from_dirfd, from_path, to_dirfd, to_path, flags);
}

static int sandbox_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t attr[4])
{
    return (int)syscall(SYS_mount_setattr, dirfd, path, flags, attr, 4 * sizeof attr[0]);
}

static int sandbox_fsopen(const char *type, unsigned int flags)
{
    return (int)syscall(SYS_fsopen, type, flags);
}

static int sandbox_fsconfig(int fd, unsigned int command, const char *key, const char *value, int aux)
{
    return (int)syscall(SYS_fsconfig, fd, command, key, value, aux);
}

static int sandbox_fsmount(int fd, unsigned int flags, unsigned int attr_flags)
{
    return (int)syscall(SYS_fsmount, fd, flags, attr_flags);
}

static int sandbox_fspick(int dirfd, const char *path, unsigned int flags)
{
    return (int)syscall(SYS_fspick, dirfd, path, flags);
}

static int sandbox_statmount(uint64_t mnt_id, uint64_t mask, uint64_t ns_id, uint32_t fd, char *buffer,
                             size_t size, unsigned int flags)
{
    struct sandbox_mnt_id_req request = {
        .size = sizeof request, .fd = fd, .mnt_id = mnt_id, .param = mask, .mnt_ns_id = ns_id};
    return (int)syscall(SYS_statmount, &request, buffer, size, flags);
}

static long sandbox_listmount(uint64_t mnt_id, uint64_t last_id, uint64_t ns_id, uint32_t ns_fd,
                              uint64_t *ids, size_t count, unsigned int flags)
{
    struct sandbox_mnt_id_req request = {
        .size = sizeof request, .fd = ns_fd, .mnt_id = mnt_id, .param = last_id, .mnt_ns_id = ns_id};
    return syscall(SYS_listmount, &request, ids, count, flags);
}
