/* What the files of init share. */
#ifndef SANDBOX_INIT_H
#define SANDBOX_INIT_H

#include "plan.h"
#include "syscall.h"

#define O_CLOEXEC 02000000
#define SIGCHLD 17
#define SIGKILL 9
#define WNOHANG 1
#define AT_EMPTY_PATH 0x1000
#define CLONE_PARENT 0x00008000UL
#define CLONE_PIDFD 0x00001000UL
#define CLONE_VM 0x00000100UL
#define CLONE_FILES 0x00000400UL
#define CLONE_SIGHAND 0x00000800UL
#define CLONE_VFORK 0x00004000UL

extern struct plan *plan;

/* The mapping that a payload shares with PID 1: how far it got, also when seccomp forbids it to write. */
struct shared {
    volatile uint32_t stage;   /* 0: setting up; PAYLOAD_HELD; PAYLOAD_EXECS; PAYLOAD_FAILED */
    volatile int32_t listener; /* 1 + the number; negative: there will be none */
    volatile uint32_t sent;
    struct record failure;
    struct identity identity;
    char *const *candidates; /* what was to be executed: of the plan */
    uint64_t candidate_count;
};
enum tag { TAG_LISTENER = 1, TAG_TERMINAL };
enum { PAYLOAD_HELD = 1, PAYLOAD_EXECS, PAYLOAD_FAILED };
extern struct shared *shared;
extern int sync_fd; /* the payload's end of the socket pair with PID 1; closes on exec */

/* What PID 1 keeps for its whole life. */
extern int control, lifeline, children_fd, thaw_fd;
extern int introduced;             /* the launcher has PID 1's pidfd */
extern int watching;               /* stage 1 that has stayed: PID 1 is its only child, and the payload */
extern int64_t wall_limit;         /* nanoseconds; 0: none */
extern volatile int signals_reset; /* by stage 1, in the same memory */

#define MAX_PAYLOADS 32
#define KIB 1024
struct payload {
    int pid, sync, started;
    int channel;  /* of a further payload: its own; the first one has the sandbox's */
    int detached; /* its launcher let it go */
    uint32_t id;
    int64_t since;
    struct shared *shared;
};
extern struct payload payloads[MAX_PAYLOADS];
extern char *stage_stack; /* where stage 1 began */
extern struct stacks {    /* in this order, so that all but the page that PID 1 stands on is one piece */
    char payload[16 * KIB], init[16 * KIB];
} stacks;
extern struct shared own_shared; /* of a payload that shares our memory anyway */

/* step.c */
int map_plan(int fd, struct plan **mapped);
void unmap_plan(struct plan *mapped);
void run_segment(enum segment which);
long join_cgroup(int group, long pid);
_Noreturn void fail(enum segment which, int step, int error, const char *text);
long open_proc(int proc, uint64_t pid, const char *name, int flags);
long write_proc(int proc, uint64_t pid, const char *name, const char *text, size_t size);

/* channel.c */
int send_record(int channel, struct record *record, const int *fds, int count);
int receive_record(int channel, struct record *record, int *fds, int room);

void deliver(int channel, struct record *record, const int *fds, int count);
void tell(struct record *record, const int *fds, int count);

/* init.c */
_Noreturn void quit(int status);
long start_init(unsigned long flags, int cgroup, int watch);
long join_group(void);
long limit_cpu(int fd, int64_t nanoseconds, int64_t processors);
long stay(void);
long release(uint32_t progress);
long await_release(uint32_t progress);
long check_lifeline(void);
long reset_signals(void);
int64_t now(void);
void close_fd(int *fd);
struct pollfd {
    int fd;
    short events, revents;
};
long poll_now(int fd, short events);
long open_loop(void);
void introduce(int joins);

/* payload.c */
long spawn(int wait, int early);
long watch_payload(void);
long become_payload(void);
void explain(struct shared *page);
long look(char *const *candidates, uint64_t count);
void forget_stacks(void);
void settle(struct payload *p, int dead, int status);
void settle_if_known(struct payload *p);
void hear(struct payload *p);
void tell_payload(const struct payload *p, struct record *record, const int *fds, int count);
struct payload *find(long pid);
struct payload *find_id(uint32_t id);

/* reaper.c */
_Noreturn void finish(int status, int error);
void kill_all(void);
long thaw_with(int fd);
void reap(void);
void end_watched(void);

/* requests.c */
void serve(void);
void serve_payload(struct payload *p);

/* janitor.c */
long watch_caller(const char *tag, int stays);

/* listen.c */
long install_listening(unsigned flags, const void *program);

/* userns.c */
long make_user_namespace(int proc, const char *const *maps, const size_t *sizes);
long await_maps(int channel, long pid);

/* verify.c */
long verify(const struct identity *expected, unsigned mask, char *text);
long read_limits(void);

#endif
