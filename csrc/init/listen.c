/*
 * A filter with a listener: the descriptor must leave this process although the filter may ask about every
 * call.
 *
 * A filter binds one thread. So a second thread is started before it: that one, not filtered, sends the
 * listener to the launcher and ends. The first thread waits for it in memory, for any call of its own might
 * wait for an answer that nobody can give yet.
 */
#include "init.h"

#define SECCOMP_SET_MODE_FILTER 1
#define CLONE_FS 0x00000200UL
#define CLONE_FILES 0x00000400UL
#define CLONE_THREAD 0x00010000UL

static char sender_stack[8 * 1024] __attribute__((aligned(16)));

static void sender(void)
{
    while (!shared->listener)
        call0(__NR_sched_yield);
    if (shared->listener > 0) {
        int listener = shared->listener - 1;
        struct record record = {.type = R_FD, .value = TAG_LISTENER};
        /* The program may be executed only when somebody has answered; what was read back is known now. */
        record.body.identity = shared->identity;
        deliver(plan->slot[SLOT_CONTROL], &record, &listener, 1);
        /* The payload must not answer its own questions. */
        call1(__NR_close, listener);
    }
    shared->sent = 1;
    call1(__NR_exit, 0);
    __builtin_trap();
}

long install_listening(unsigned flags, const void *program)
{
    const unsigned long thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;

    shared->listener = 0;
    shared->sent = 0;
    long error = clone_on(thread, 0, sender_stack + sizeof sender_stack, sender);
    if (error < 0)
        return error;
    long listener = call3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags, program);
    shared->listener = listener >= 0 ? (int)listener + 1 : -1;
    while (!shared->sent)
        __asm__ volatile("" ::: "memory");
    return listener;
}
