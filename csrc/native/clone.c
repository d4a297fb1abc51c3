#include <linux/sched.h>
#include <sys/prctl.h>

/*
 * clone(2) and clone3(2) as os.fork() would call them: the process is copied, and the interpreter in the copy
 * is put in order.
 *
 * Facts about what must run around the call:
 * - CPython's hooks need the GIL, which cffi has released, and nobody else may take it between them.
 * - glibc remembers the id of each thread and lets the kernel write it when a thread or fork() starts; a raw
 * call would leave the parent's id there (pthread_getcpuclockid and error-checking mutexes read it). It is
 * also the address that the kernel clears at thread exit, so the kernel knows where it is. Other libraries
 * keep something else at that address.
 * - glibc's own locks (malloc, stdio) are not taken: another thread that holds one at this moment is not in
 * the copy, and the lock stays locked there.
 */
static int clone_copy(struct clone_args *args, int old)
{
#ifdef __GLIBC__
    int *tid = NULL;
    if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) == 0 && tid != NULL) {
        args->flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        args->child_tid = (uintptr_t)tid;
    }
#endif
    PyGILState_STATE state = PyGILState_Ensure();
    PyOS_BeforeFork();
    int pid;
    if (!old)
        pid = (int)syscall(SYS_clone3, args, sizeof *args);
#if defined(__x86_64__) /* the order of the last two differs */
    else
        pid = (int)syscall(SYS_clone, args->flags | args->exit_signal, 0, 0, args->child_tid, 0);
#else
    else
        pid = (int)syscall(SYS_clone, args->flags | args->exit_signal, 0, 0, 0, args->child_tid);
#endif
    int error = errno;
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    PyGILState_Release(state);
    errno = error;
    return pid;
}

static int sandbox_clone3(uint64_t flags, int exit_signal, int *set_tid, size_t set_tid_size, int cgroup,
                          int *pidfd)
{
    struct clone_args args = {
        .flags = flags,
        .exit_signal = (uint64_t)exit_signal,
        .set_tid = (uintptr_t)set_tid,
        .set_tid_size = set_tid_size,
        .pidfd = (uintptr_t)pidfd,
        .cgroup = (uint64_t)cgroup,
    };
    return clone_copy(&args, 0);
}

static int sandbox_clone(uint32_t flags, int exit_signal)
{
    struct clone_args args = {.flags = flags, .exit_signal = (uint64_t)exit_signal};
    return clone_copy(&args, 1);
}

/*
 * The errno of clone(2) with flags that the kernel refuses as EINVAL before it looks at anything else:
 * another one is the answer of a seccomp filter. CLONE_SIGHAND without CLONE_VM never makes a process;
 * CLONE_FS is looked at earlier still, where a namespace is to be new.
 */
static int sandbox_clone_answer(uint32_t flags)
{
    long result =
        syscall(SYS_clone,
                ((unsigned long)flags & ~(unsigned long)(CLONE_VM | CLONE_THREAD)) | CLONE_SIGHAND | CLONE_FS,
                0, 0, 0, 0);
    return result < 0 ? errno : 0;
}
