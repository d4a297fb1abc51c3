/* The self-check: what the payload really is, read from the kernel, against what the plan expects. */
#include "init.h"

#define PR_GET_DUMPABLE 3
#define PR_GET_SECCOMP 21
#define PR_CAPBSET_READ 23
#define PR_GET_SECUREBITS 27
#define PR_GET_NO_NEW_PRIVS 39
#define PR_CAP_AMBIENT 47
#define PR_CAP_AMBIENT_IS_SET 1
#define CAPABILITY_VERSION_3 0x20080522

static char *put(char *to, const char *text)
{
    while (*text)
        *to++ = *text++;
    return to;
}

static char *put_hex(char *to, uint64_t value)
{
    int shift = 60;

    to = put(to, "0x");
    while (shift > 0 && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        *to++ = "0123456789abcdef"[(value >> shift) & 15];
    return to;
}

static long differ(char *text, const char *what, uint64_t expected, uint64_t found)
{
    text = put(text, what);
    text = put(text, " is ");
    text = put_hex(text, found);
    text = put(text, ", expected ");
    text = put_hex(text, expected);
    *text = 0;
    return -E_BADE;
}

static void read_capabilities(struct identity *found)
{
    struct {
        uint32_t version;
        int pid;
    } header = {CAPABILITY_VERSION_3, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } data[2] = {{0}};

    call2(__NR_capget, &header, data);
    found->capability[0] = data[0].effective | (uint64_t)data[1].effective << 32;
    found->capability[1] = data[0].permitted | (uint64_t)data[1].permitted << 32;
    found->capability[2] = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    found->capability[3] = found->capability[4] = 0;
    for (int i = 0; i < 64; i++) {
        long bounding = call2(__NR_prctl, PR_CAPBSET_READ, i);
        if (bounding < 0) /* EINVAL: past the last capability */
            break;
        found->capability[3] |= (uint64_t)(bounding > 0) << i;
        /* The kernel keeps the ambient set within what is both permitted and inheritable. */
        if (found->capability[1] & found->capability[2] & 1ull << i) {
            long ambient = call5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0);
            found->capability[4] |= (uint64_t)(ambient > 0) << i;
        }
    }
}

long read_limits(void)
{
    static const char resource[LIMITS] = {0 /* CPU */, 1 /* FSIZE */, 3 /* STACK */, 4 /* CORE */,
                                          7 /* NOFILE */};

    for (int i = 0; i < LIMITS; i++) {
        uint64_t found[2] = {0, 0};
        long error = call4(__NR_prlimit64, 0, resource[i], 0, found);
        if (error < 0)
            return error;
        shared->identity.limit[i] = found[0];
    }
    return 0;
}

long verify(const struct identity *expected, unsigned mask, char *text)
{
    struct identity *found = &shared->identity;
    uint32_t id[3] = {0}, gid[3] = {0};
    static const char *const names[] = {"effective capabilities", "permitted capabilities",
                                        "inheritable capabilities", "bounding set", "ambient capabilities"};

    call3(__NR_getresuid, &id[0], &id[1], &id[2]);
    call3(__NR_getresgid, &gid[0], &gid[1], &gid[2]);
    found->uid = id[1];
    found->gid = gid[1];
    found->securebits = (uint32_t)call1(__NR_prctl, PR_GET_SECUREBITS);
    found->no_new_privs = (uint32_t)call5(__NR_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    found->dumpable = (uint32_t)call1(__NR_prctl, PR_GET_DUMPABLE);
    found->seccomp = (uint32_t)call1(__NR_prctl, PR_GET_SECCOMP);
    long groups = call2(__NR_getgroups, sizeof found->group / sizeof *found->group, found->group);
    /* More groups than the record holds (EINVAL): their number is told all the same. */
    found->group_count = (uint32_t)(groups >= 0 ? groups : call2(__NR_getgroups, 0, 0));
    read_capabilities(found);
    long error = read_limits();
    if (error < 0)
        return error;

    if (mask & CHECK_IDS) {
        for (int i = 0; i < 3; i++) {
            if (id[i] != expected->uid)
                return differ(text, "a user id", expected->uid, id[i]);
            if (gid[i] != expected->gid)
                return differ(text, "a group id", expected->gid, gid[i]);
        }
    }
    if (mask & CHECK_GROUPS) {
        if (found->group_count != expected->group_count)
            return differ(text, "the number of groups", expected->group_count, found->group_count);
        if (memcmp(found->group, expected->group, found->group_count * sizeof(uint32_t)))
            return differ(text, "a supplementary group", expected->group[0], found->group[0]);
    }
    for (int i = 0; (mask & CHECK_CAPABILITIES) && i < 5; i++)
        if (found->capability[i] != expected->capability[i])
            return differ(text, names[i], expected->capability[i], found->capability[i]);
    if ((mask & CHECK_SECUREBITS) && found->securebits != expected->securebits)
        return differ(text, "securebits", expected->securebits, found->securebits);
    if ((mask & CHECK_NO_NEW_PRIVS) && found->no_new_privs != expected->no_new_privs)
        return differ(text, "no_new_privs", expected->no_new_privs, found->no_new_privs);
    return 0;
}
