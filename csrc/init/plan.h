/*
 * The plan as it lies in memory, and the records of the control channel.
 *
 * sandbox/template.py writes what this file reads, and sandbox/records.py reads the records that it defines:
 * change them together, and raise PLAN_VERSION. All offsets count from the start of the image.
 */
#ifndef SANDBOX_INIT_PLAN_H
#define SANDBOX_INIT_PLAN_H

#include <stdint.h>

#define PLAN_MAGIC 0x584f4253u /* "SBOX" */
#define PLAN_VERSION 4u
#define PLAN_MAX_SIZE (64u << 20)
#define MAX_SLOTS 256
#define MAX_STEPS 8192

/* Who runs a segment. */
enum segment { STAGE, INIT, PAYLOAD, SEGMENTS };

/* What an argument is. */
enum kind { VALUE, DATA, RESULT, SLOT, KINDS };

enum expectation { ANY, EQUAL, AT_LEAST };

/* Operations that straight-line system calls cannot express; numbers from NATIVE on. */
#define NATIVE 0x100
enum native {
    OP_CLONE = NATIVE, /* (flags, cgroup fd or -1, watched): PID 1 starts with the next segment; result: its
                          pid; watched: it is stage 1's child, not the launcher's */
    OP_WRITE_PROC,     /* (proc fd, pid, name, text, size): write /proc/PID/NAME */
    OP_RELEASE,        /* (progress): tell how far stage 1 is; RELEASE_ALL ends it */
    OP_AWAIT,          /* (progress): wait until stage 1 is so far; fails when it ended before */
    OP_CHECK,          /* (address, width, expected, errno): fail unless the memory holds the value */
    OP_DROP_BOUNDING,  /* (mask of capabilities to keep): drop all others from the bounding set */
    OP_LIFELINE,       /* (): fail when the launcher is gone already */
    OP_SPAWN, /* (wait, early): clone the payload, which runs the last segment; wait: until it executes;
                 early: R_INIT goes before it */
    OP_RESET_SIGNALS, /* (): every disposition to default */
    OP_PLACE,         /* (pairs, count): pairs of (number inside, slot); everything else closes on exec */
    OP_VERIFY,        /* (struct identity, mask of what to compare): the self-check */
    OP_HOLD,          /* (): tell that all is set up, wait for release */
    OP_EXEC,          /* (candidates, count, argv, envp): execve the first that exists */
    OP_SEND_FD,       /* (fd, tag): send a descriptor to the launcher */
    OP_END,           /* (): this process has done its work; used by plans that only build something */
    OP_SKIP,          /* (): fails with EAGAIN, which the step tolerates: leaves out the steps that follow */
    OP_LISTEN, /* (flags, struct sock_fprog): install a filter with a listener, which is sent with tag 1 */
    OP_WRITE_PROC_SELF, /* (proc fd, name, text, size): write /proc/self/NAME */
    OP_JOIN_CGROUP,     /* (group fd, pid): put a process into a control group */
    OP_THAW_WITH,       /* (fd of a freezer.state): PID 1 thaws with it what it has killed */
    OP_WALL_TIME,       /* (nanoseconds): kill everything so long after the program was executed */
    OP_LIMIT_CPU,   /* (fd of a group's usage, nanoseconds, processors): kill everything that used so much */
    OP_JOIN_GROUP,  /* (): introduce PID 1, wait until the launcher has moved it to its process group */
    OP_STAY,        /* (): stage 1 lets PID 1 go on and watches it until the end */
    OP_BECOME,      /* (): PID 1 itself is the payload: it runs the last segment */
    OP_READ_LIMITS, /* (): read the resource limits again, which the self-check has read before */
    OP_LISTEN_PID,  /* (envp): write this process's pid into LISTEN_PID=, where there is room for it */
    OP_USER_NAMESPACE, /* (proc fd, uid map, size, gid map, size): a user namespace with these maps; its fd */
    OP_AWAIT_MAPS,     /* (pid): let the launcher write the id maps of that process */
    OP_WATCH_CALLER,   /* (tag, stays): the janitor; see janitor.c */
    OP_LOOK,           /* (candidates, count): read how the program begins, should it not be found */
    NATIVE_END,
};

struct step {
    uint64_t argument[6];
    int64_t expect;
    int64_t result; /* written by init */
    uint32_t store; /* where the result is written too; 0: nowhere */
    int32_t fault;  /* pretend this errno instead of the call; 0: call */
    uint16_t call;  /* index in calls.h, or an operation */
    uint16_t skip;  /* how many steps to leave out after a tolerated errno */
    uint8_t kind[6];
    uint8_t expectation;
    uint8_t store_width; /* 4 or 8 */
    int16_t tolerate[2];
    uint8_t retry; /* how often EINTR and EAGAIN are tried again */
    uint8_t reserved[7];
};

struct plan {
    uint32_t magic, version, size, flags;
    uint32_t steps, step_count;
    uint32_t first[SEGMENTS], count[SEGMENTS];
    uint32_t relocations, relocation_count; /* pairs (offset of pointers, how many) */
    uint32_t slot_count, reserved;
    int32_t slot[MAX_SLOTS];
};

/* Slots that init itself uses; PID 1 keeps the first three for its whole life. */
enum { SLOT_CONTROL, SLOT_LIFELINE, SLOT_CLAIM, SLOT_STDIN, SLOT_STDOUT, SLOT_STDERR, SLOT_FREE };

/* How far stage 1 is. */
enum { WORKING = 1, RELEASE_IDS, RELEASE_NETWORK, RELEASE_ALL };

/* plan.flags */
enum {
    OWN_GROUP = 1, /* stage 1 starts a process group: the launcher finds PID 1 by it, whatever happens */
    KEEP_PRIVILEGES = 2, /* a plain child may change its uid, and the process above it must still end it */
};

/* Records. Fixed size: whoever reads one knows that it is whole. */
#define RECORD_SIZE 1024
enum record_type {
    R_INIT = 1,  /* value: PID 1's pid; with the pidfd to wait for, and PID 1's own where that is another;
                    id 1: it waits for Q_JOINED */
    R_FAILED,    /* step, error, text */
    R_HELD,      /* body: identity */
    R_STARTED,   /* body: identity */
    R_ENDED,     /* value: wait status; error: ETIME when the time was up; body: end */
    R_FD,        /* value: tag; with the descriptor */
    R_REFUSED,   /* error: a request that could not be served; step UNSENT: a record with descriptors */
    R_MAP_IDS,   /* value: a pid whose id maps the launcher has to write, and then says Q_MAPPED */
    Q_KILL = 64, /* kill everything, reap, report, exit */
    Q_RELEASE,   /* let the held payload go on */
    Q_DETACH,    /* forget the lifeline */
    Q_NAMESPACE, /* value: index of the namespace; answered by R_FD */
    Q_SPAWN,     /* with a plan, a channel of its own, and its slots from SLOT_STDIN on: one more payload.
                    There it is told R_INIT, with its pidfd, and the rest, and takes Q_KILL, Q_SIGNAL, Q_DETACH */
    Q_SIGNAL,    /* value: signal for payload `id` */
    Q_PIDFD,     /* the pidfd of payload `id`; answered by R_FD */
    Q_JOINED,    /* PID 1 is in the launcher's process group */
    Q_MAPPED,    /* the answer to R_MAP_IDS */
    Q_PLACE,     /* of the janitor: with a directory that has the groups; value 1: SHARED in it has them */
    Q_LET_GO,    /* of the janitor: look for groups that have the sticky bit */
};

enum { LIMITS = 5 }; /* cpu_time, file_size, stack, core, open_files: RLIMITS of sandbox/limits.py */
struct identity {
    uint32_t uid, gid, securebits, no_new_privs, dumpable, seccomp, group_count, reserved;
    uint64_t capability[5]; /* effective, permitted, inheritable, bounding, ambient */
    uint64_t limit[LIMITS]; /* soft resource limits; ~0: none */
    uint32_t group[176];
};
enum {
    CHECK_IDS = 1,
    CHECK_GROUPS = 2,
    CHECK_CAPABILITIES = 4,
    CHECK_SECUREBITS = 8,
    CHECK_NO_NEW_PRIVS = 16
};

struct usage {
    int64_t user_us, system_us, max_rss_kib, minor_faults, major_faults;
    int64_t blocks_in, blocks_out, voluntary_switches, involuntary_switches, wall_ns;
};

struct end {
    struct usage usage;
    struct identity identity;
};

enum { UNSENT = -2 };
struct record {
    uint32_t type, id;
    int32_t step, error;
    int64_t value;
    union {
        struct identity identity;
        struct end end;
        char text[RECORD_SIZE - 24];
    } body;
};
_Static_assert(sizeof(struct record) == RECORD_SIZE, "a record is as long as it says");
_Static_assert(sizeof(struct step) == 96, "a step is as long as sandbox/template.py packs it");
_Static_assert(sizeof(struct plan) == 4 * (4 + 2 + 6 + 2 + 2 + MAX_SLOTS), "the header is packed");

#endif
