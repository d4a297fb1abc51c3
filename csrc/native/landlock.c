/*
 * landlock(7): three calls without a C library's wrapper, and structures that grow. The structures are our
 * own: the headers of the build machine may be older than the kernel that the code will meet.
 */
struct sandbox_landlock_ruleset_attr {
    uint64_t handled_access_fs;  /* ABI 1 */
    uint64_t handled_access_net; /* ABI 4 */
    uint64_t scoped;             /* ABI 6 */
    uint64_t quiet_access_fs;    /* ABI 10, these three */
    uint64_t quiet_access_net;
    uint64_t quiet_scoped;
};

struct sandbox_landlock_path_beneath_attr {
    uint64_t allowed_access;
    int32_t parent_fd;
} __attribute__((packed));

struct sandbox_landlock_net_port_attr {
    uint64_t allowed_access;
    uint64_t port;
};

enum { sandbox_rule_path_beneath = 1, sandbox_rule_net_port = 2 };

static int sandbox_landlock_create_ruleset(const struct sandbox_landlock_ruleset_attr *attr, size_t size,
                                           uint32_t flags)
{
    return (int)syscall(SYS_landlock_create_ruleset, attr, size, flags);
}

static int sandbox_landlock_add_path(int ruleset, uint64_t allowed_access, int parent_fd, uint32_t flags)
{
    struct sandbox_landlock_path_beneath_attr attr = {.allowed_access = allowed_access,
                                                      .parent_fd = parent_fd};
    return (int)syscall(SYS_landlock_add_rule, ruleset, sandbox_rule_path_beneath, &attr, flags);
}

static int sandbox_landlock_add_port(int ruleset, uint64_t allowed_access, uint64_t port, uint32_t flags)
{
    struct sandbox_landlock_net_port_attr attr = {.allowed_access = allowed_access, .port = port};
    return (int)syscall(SYS_landlock_add_rule, ruleset, sandbox_rule_net_port, &attr, flags);
}

static int sandbox_landlock_restrict_self(int ruleset, uint32_t flags)
{
    return (int)syscall(SYS_landlock_restrict_self, ruleset, flags);
}
