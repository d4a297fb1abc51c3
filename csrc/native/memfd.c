static int sandbox_memfd_create(const char *name, unsigned int flags)
{
    return (int)syscall(SYS_memfd_create, name, flags);
}

static int sandbox_add_seals(int fd, unsigned int seals)
{
    return fcntl(fd, F_ADD_SEALS, seals);
}

static int sandbox_get_seals(int fd)
{
    return fcntl(fd, F_GET_SEALS);
}
