/*
 * Numbers, flags and structures of the kernel that the build machine's headers may lack.
 *
 * Each block names the kernel version that brought it. Values are the kernel's ABI and never change, so
 * defining what the headers have already is harmless only under #ifndef: keep the guards.
 */
#ifndef SANDBOX_KERNEL_H
#define SANDBOX_KERNEL_H

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* System calls that are numbered alike on every architecture (5.0 and newer, except alpha). */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424 /* 5.1 */
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425    /* 5.1 */
#define SYS_io_uring_enter 426    /* 5.1 */
#define SYS_io_uring_register 427 /* 5.1 */
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428 /* 5.2 */
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429 /* 5.2 */
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430 /* 5.2 */
#endif
#ifndef SYS_fsconfig
#define SYS_fsconfig 431 /* 5.2 */
#endif
#ifndef SYS_fsmount
#define SYS_fsmount 432 /* 5.2 */
#endif
#ifndef SYS_fspick
#define SYS_fspick 433 /* 5.2 */
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434 /* 5.3 */
#endif
#ifndef SYS_clone3
#define SYS_clone3 435 /* 5.3 */
#endif
#ifndef SYS_close_range
#define SYS_close_range 436 /* 5.9 */
#endif
#ifndef SYS_openat2
#define SYS_openat2 437 /* 5.6 */
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438 /* 5.6 */
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442 /* 5.12 */
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444 /* 5.13 */
#define SYS_landlock_add_rule 445       /* 5.13 */
#define SYS_landlock_restrict_self 446  /* 5.13 */
#endif
#ifndef SYS_statmount
#define SYS_statmount 457 /* 6.8 */
#endif
#ifndef SYS_listmount
#define SYS_listmount 458 /* 6.8 */
#endif
#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467 /* 6.15 */
#endif

/* statmount(2) and listmount(2), 6.8; mnt_ns_id 6.11, the descriptor 6.18. Trailing zeros that a kernel does
 * not know are fine with it. */
struct sandbox_mnt_id_req {
    uint32_t size;
    uint32_t fd; /* of a mount namespace; with STATMOUNT_BY_FD (7.0) on the mount itself */
    uint64_t mnt_id;
    uint64_t param;
    uint64_t mnt_ns_id;
};

struct sandbox_statmount {
    uint32_t size;
    uint32_t mnt_opts; /* 6.11; offset of a string, as all u32 without a number in them */
    uint64_t mask;
    uint32_t sb_dev_major;
    uint32_t sb_dev_minor;
    uint64_t sb_magic;
    uint32_t sb_flags;
    uint32_t fs_type;
    uint64_t mnt_id;
    uint64_t mnt_parent_id;
    uint32_t mnt_id_old;
    uint32_t mnt_parent_id_old;
    uint64_t mnt_attr;
    uint64_t mnt_propagation;
    uint64_t mnt_peer_group;
    uint64_t mnt_master;
    uint64_t propagate_from;
    uint32_t mnt_root;
    uint32_t mnt_point;
    uint64_t mnt_ns_id;      /* 6.11 */
    uint32_t fs_subtype;     /* 6.13 */
    uint32_t sb_source;      /* 6.13 */
    uint32_t opt_num;        /* 6.13 */
    uint32_t opt_array;      /* 6.13 */
    uint32_t opt_sec_num;    /* 6.13 */
    uint32_t opt_sec_array;  /* 6.13 */
    uint64_t supported_mask; /* 6.15 */
    uint32_t mnt_uidmap_num; /* 6.15 */
    uint32_t mnt_uidmap;     /* 6.15 */
    uint32_t mnt_gidmap_num; /* 6.15 */
    uint32_t mnt_gidmap;     /* 6.15 */
    uint64_t spare[43];
    char strings[];
};
_Static_assert(sizeof(struct sandbox_statmount) == 512, "the kernel's fixed part");

/* ioctl_nsfs(2). The first four, 4.9 and 4.11, are in every header. */
struct sandbox_mnt_ns_info {
    uint32_t size;
    uint32_t nr_mounts;
    uint64_t mnt_ns_id;
};
#ifndef NS_GET_MNTNS_ID
#define NS_GET_MNTNS_ID _IOR(NSIO, 5, uint64_t) /* 6.11 */
#endif
#ifndef NS_GET_PID_FROM_PIDNS
#define NS_GET_PID_FROM_PIDNS _IOR(NSIO, 6, int)  /* 6.11 */
#define NS_GET_TGID_FROM_PIDNS _IOR(NSIO, 7, int) /* 6.11 */
#define NS_GET_PID_IN_PIDNS _IOR(NSIO, 8, int)    /* 6.11 */
#define NS_GET_TGID_IN_PIDNS _IOR(NSIO, 9, int)   /* 6.11 */
#endif
#ifndef NS_MNT_GET_INFO
#define NS_MNT_GET_INFO _IOR(NSIO, 10, struct sandbox_mnt_ns_info) /* 6.12 */
#define NS_MNT_GET_NEXT _IOR(NSIO, 11, struct sandbox_mnt_ns_info) /* 6.12 */
#define NS_MNT_GET_PREV _IOR(NSIO, 12, struct sandbox_mnt_ns_info) /* 6.12 */
#endif
#ifndef NS_GET_ID
#define NS_GET_ID _IOR(NSIO, 13, uint64_t) /* 6.18 */
#endif

/* PIDFD_GET_INFO, 6.13; exit_code 6.15; the last two 6.16 and 6.19. The size is part of the request's number.
 * What follows is left out: 6.19 has supported_mask where 7.1 has another member. */
struct sandbox_pidfd_info {
    uint64_t mask;
    uint64_t cgroupid;
    uint32_t pid;
    uint32_t tgid;
    uint32_t ppid;
    uint32_t ruid;
    uint32_t rgid;
    uint32_t euid;
    uint32_t egid;
    uint32_t suid;
    uint32_t sgid;
    uint32_t fsuid;
    uint32_t fsgid;
    int32_t exit_code;
    uint32_t coredump_mask;
    uint32_t coredump_signal;
};
_Static_assert(sizeof(struct sandbox_pidfd_info) == 72, "PIDFD_INFO_SIZE_VER1");
#define SANDBOX_PIDFD_GET_INFO _IOWR(0xFF, 11, struct sandbox_pidfd_info)

/* fanotify: information records and the rule in an audited answer. */
#include <linux/fanotify.h>
#ifndef FAN_EVENT_INFO_TYPE_RANGE
#define FAN_EVENT_INFO_TYPE_RANGE 6 /* 6.14 */
#endif
#ifndef FAN_EVENT_INFO_TYPE_MNT
#define FAN_EVENT_INFO_TYPE_MNT 7 /* 6.15 */
#endif
struct sandbox_fanotify_audit_rule { /* struct fanotify_response_info_audit_rule, 6.3 */
    uint8_t type;
    uint8_t pad;
    uint16_t len;
    uint32_t rule_number;
    uint32_t subj_trust;
    uint32_t obj_trust;
};

#endif
