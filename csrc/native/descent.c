#include <linux/futex.h>
#include <poll.h>
#include <setjmp.h>
#include <sys/prctl.h>
#if defined(__GLIBC__) && __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#pragma weak __rseq_offset
#pragma weak __rseq_size
#define KNOWS_RSEQ 1
#endif

/*
 * The way into a new pid namespace, for a process that goes on there in the same place of its program.
 *
 * Who has unshared CLONE_NEWPID stays outside itself, and copying an interpreter twice, once for PID 1 and
 * once for the process that goes on, costs more than all its namespaces. So nothing is copied: PID 1 is a
 * loop with a stack of its own in the same memory, and the process that goes on is its child, on the stack
 * that the caller has left:
 *
 *     caller   makes PID 1, tells its pid, ends
 *     PID 1    waits until the caller's stack is free, makes the child, reaps whatever ends, tells how the
 * child did child    returns from sandbox_descend()
 *
 * Facts that it follows:
 * - The three have one thread-local storage. PID 1 makes raw system calls only, whose errors are results:
 * errno is the child's.
 * - The kernel clears the word at the address of set_tid_address when a process ends, and wakes who waits for
 * it.
 * - rseq is registered by thread and not inherited where memory is shared: sched_getcpu() would tell the
 * past.
 * - PR_SET_PDEATHSIG from outside of the namespace reaches PID 1.
 * - longjmp checks the order of stacks when it is fortified; by this name it does not.
 */
static long launch_raw(long number, long a, long b, long c, long d, long e);
extern void descent_jump(jmp_buf, int) __asm__("_longjmp") __attribute__((noreturn));

struct descent_record {
    int32_t kind; /* 1: PID 1's pid, 2: wait status of the child, 3: errno of the child's clone */
    int32_t value;
};

static struct {
    jmp_buf back;
    uint32_t alive; /* the caller */
    int report, copies, not_pid;
    int *tid;
    char init_stack[8 * 1024] __attribute__((aligned(16)));
    char child_stack[8 * 1024] __attribute__((aligned(16)));
} descent;

static void descent_tell(int kind, int value)
{
    struct descent_record record = {kind, value};

    launch_raw(SYS_write, descent.report, (long)&record, sizeof record, 0, 0);
}

static int descent_child(void *unused)
{
    (void)unused;
    descent_jump(descent.back, 1);
}

static int descent_none(void *unused)
{
    (void)unused;
    launch_raw(SYS_exit, 0, 0, 0, 0, 0);
    return 0;
}

static int descent_init(void *unused)
{
    struct pollfd reader = {descent.report, 0, 0};
    struct timespec now = {0, 0};
    int pid, status;

    (void)unused;
    launch_raw(SYS_prctl, PR_SET_NAME, (long)"sandbox-init", 0, 0, 0);
    launch_raw(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    /* Whoever shall read has ended before that counted. */
    launch_raw(SYS_ppoll, (long)&reader, 1, (long)&now, 0, 0);
    if (reader.revents)
        launch_raw(SYS_exit_group, 1, 0, 0, 0, 0);
    launch_raw(SYS_setsid, 0, 0, 0, 0, 0);
    while (__atomic_load_n(&descent.alive, __ATOMIC_ACQUIRE))
        launch_raw(SYS_futex, (long)&descent.alive, FUTEX_WAIT, 1, 0, 0);
    if (descent.not_pid == 2) {
        clone(descent_none, descent.child_stack + sizeof descent.child_stack, CLONE_VM | SIGCHLD, NULL);
        while (launch_raw(SYS_wait4, -1, (long)&status, 0, 0, 0) == -EINTR)
            ;
    }
    int flags = SIGCHLD | (descent.copies ? 0 : CLONE_VM);
    if (descent.tid != NULL)
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
    pid = clone(descent_child, descent.child_stack + sizeof descent.child_stack, flags, NULL, NULL, NULL,
                descent.tid);
    if (pid < 0) {
        descent_tell(3, errno); /* nobody else uses it now */
        launch_raw(SYS_exit_group, 1, 0, 0, 0, 0);
    }
    while (launch_raw(SYS_wait4, -1, (long)&status, 0, 0, 0) != pid)
        ;
    descent_tell(2, status);
    launch_raw(SYS_exit_group, 0, 0, 0, 0, 0);
    return 0;
}

static void descent_register_rseq(void)
{
#if defined(KNOWS_RSEQ) && defined(__has_builtin)
#if __has_builtin(__builtin_thread_pointer)
    if (descent.copies || &__rseq_size == NULL || __rseq_size == 0)
        return;
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    if (syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) != 0)
        area->cpu_id = (uint32_t)RSEQ_CPU_ID_REGISTRATION_FAILED; /* then the C library asks the kernel */
#endif
#endif
}

static int sandbox_descend(int report, int copies, int not_pid)
{
    uint64_t all = ~(uint64_t)0;
    static uint64_t mask;
    static PyGILState_STATE state; /* static: survives the jump */

    descent.report = report;
    descent.copies = copies;
    descent.not_pid = not_pid;
    descent.tid = NULL;
#ifdef __GLIBC__ /* other libraries keep something else at that address; see clone.c */
    prctl(PR_GET_TID_ADDRESS, &descent.tid, 0, 0, 0);
#endif
    state = PyGILState_Ensure();
    PyOS_BeforeFork();
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &mask, sizeof all);
    if (setjmp(descent.back) == 0) {
        descent.alive = 1;
        syscall(SYS_set_tid_address, &descent.alive);
        int pid = clone(descent_init, descent.init_stack + sizeof descent.init_stack,
                        CLONE_VM | CLONE_PARENT | SIGCHLD, NULL);
        if (pid > 0) {
            descent_tell(1, pid);
            launch_raw(SYS_exit_group, 0, 0, 0, 0, 0);
        }
        int error = errno;
        syscall(SYS_set_tid_address, descent.tid);
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
        PyOS_AfterFork_Parent();
        PyGILState_Release(state);
        errno = error;
        return -1;
    }
    descent_register_rseq();
    PyOS_AfterFork_Child();
    PyGILState_Release(state);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
    return 0;
}
