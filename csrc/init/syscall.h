/*
 * Raw system calls without a libc: one definition for each architecture, and the few types and numbers that
 * init shares with the kernel.
 */
#ifndef SANDBOX_INIT_SYSCALL_H
#define SANDBOX_INIT_SYSCALL_H

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The kernel enters with the stack pointer at argc; main takes it as its argument. */
#define ENTRY                                                                                                \
    __asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall "          \
            "enter\n\thlt\n")

#elif defined(__aarch64__)

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

#define ENTRY                                                                                                \
    __asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tbl enter\n\tbrk #0\n")

#elif defined(__riscv) && __riscv_xlen == 64

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
}

#define ENTRY __asm__(".globl _start\n_start:\n\tmv a0, sp\n\tandi sp, sp, -16\n\tcall enter\n\tebreak\n")

#else
#error "init knows x86_64, aarch64 and riscv64"
#endif

#define call5(n, a, b, c, d, e) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define call4(n, a, b, c, d) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define call3(n, a, b, c) call6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define call2(n, a, b) call6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define call1(n, a) call6(n, (long)(a), 0, 0, 0, 0, 0)
#define call0(n) call6(n, 0, 0, 0, 0, 0, 0)

/*
 * A clone whose child runs `start` on a stack of its own and never returns: with CLONE_VM nothing is copied.
 * The child's pidfd is stored in *pidfd. `start` is called on the child's side of the very system call,
 * because nothing of the parent's frame can be used there.
 */
#if defined(__x86_64__)
static inline long clone_on(unsigned long flags, int *pidfd, void *stack_end, void (*start)(void))
{
    long result;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    register void (*r9)(void) __asm__("r9") = start;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%%r9\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)__NR_clone), "D"(flags), "S"(stack_end), "d"(pidfd), "r"(r10), "r"(r8),
                       "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long clone_on(unsigned long flags, int *pidfd, void *stack_end, void (*start)(void))
{
    register long x8 __asm__("x8") = __NR_clone;
    register long x0 __asm__("x0") = (long)flags;
    register void *x1 __asm__("x1") = stack_end;
    register int *x2 __asm__("x2") = pidfd;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    register void (*x5)(void) __asm__("x5") = start;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "blr x5\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}
#else
static inline long clone_on(unsigned long flags, int *pidfd, void *stack_end, void (*start)(void))
{
    register long a7 __asm__("a7") = __NR_clone;
    register long a0 __asm__("a0") = (long)flags;
    register void *a1 __asm__("a1") = stack_end;
    register int *a2 __asm__("a2") = pidfd;
    register long a3 __asm__("a3") = 0;
    register long a4 __asm__("a4") = 0;
    register void (*a5)(void) __asm__("a5") = start;
    __asm__ volatile("ecall\n\t"
                     "bnez a0, 1f\n\t"
                     "jalr a5\n\t"
                     "ebreak\n"
                     "1:"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5)
                     : "memory");
    return a0;
}
#endif

/*
 * The same into a control group, which only clone3 can do.
 */
struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
        cgroup;
};
#define CLONE_INTO_CGROUP 0x200000000ULL

#if defined(__x86_64__)
static inline long clone3_on(const struct clone_arguments *arguments, void (*start)(void))
{
    long result;
    register void (*r9)(void) __asm__("r9") = start;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%%r9\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)__NR_clone3), "D"(arguments), "S"(sizeof *arguments), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long clone3_on(const struct clone_arguments *arguments, void (*start)(void))
{
    register long x8 __asm__("x8") = __NR_clone3;
    register long x0 __asm__("x0") = (long)arguments;
    register long x1 __asm__("x1") = sizeof *arguments;
    register void (*x5)(void) __asm__("x5") = start;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "blr x5\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x5)
                     : "memory");
    return x0;
}
#else
static inline long clone3_on(const struct clone_arguments *arguments, void (*start)(void))
{
    register long a7 __asm__("a7") = __NR_clone3;
    register long a0 __asm__("a0") = (long)arguments;
    register long a1 __asm__("a1") = sizeof *arguments;
    register void (*a5)(void) __asm__("a5") = start;
    __asm__ volatile("ecall\n\t"
                     "bnez a0, 1f\n\t"
                     "jalr a5\n\t"
                     "ebreak\n"
                     "1:"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a5)
                     : "memory");
    return a0;
}
#endif

static inline long clone_into(unsigned long flags, int cgroup, void *stack, unsigned long size,
                              void (*start)(void))
{
    const struct clone_arguments arguments = {.flags = flags | CLONE_INTO_CGROUP,
                                              .stack = (uint64_t)(uintptr_t)stack,
                                              .stack_size = size,
                                              .cgroup = (uint64_t)cgroup};

    return clone3_on(&arguments, start);
}

/* errno values that init itself uses; the kernel's own pass through as numbers. */
enum {
    E_PERM = 1,
    E_INTR = 4,
    E_BADF = 9,
    E_CHILD = 10,
    E_AGAIN = 11,
    E_ACCES = 13,
    E_FAULT = 14,
    E_NOENT = 2,
    E_NOTDIR = 20,
    E_INVAL = 22,
    E_NOTTY = 25,
    E_PIPE = 32,
    E_NOSYS = 38,
    E_TIME = 62,
    E_DQUOT = 122,
    E_PROTO = 71,
    E_OVERFLOW = 75,
    E_BADE = 52,
    E_NOTSUP = 95,
};

/* The compiler may call these for copies and zeroing even in freestanding code. */
void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);

#endif
