/*
 * The standard job of the launch benchmark at the limit: one process that makes the system calls
 * itself, from memory that it shares with its child, with nothing interpreted, checked or reaped on the way.
 * What a library adds to this is the library's price.
 *
 * The job: new user, mount, pid, uts, ipc, net and cgroup namespaces; a read-only tmpfs root with a
 * read-only /usr and links into it, a /proc, a minimal /dev, a tmpfs /tmp; a host name; no capability
 * in any set, the bounding set included; no_new_privs; execve; wait for the end. The caller's own ids are
 * the only ones mapped, root's too.
 *
 * Options: --share NAMESPACE (not a new one; may be repeated), --cached (the tree that does not differ
 * between launches is built once and cloned), --loopback (up), --devpts, --seccomp RULES, --no-exec, --repeat
 * N (print the steps' times).
 *
 *   cc -O2 -o limit limit.c && ./limit --cached --loopback --repeat 300 -- /bin/true
 *   cc -O2 -shared -fPIC -o liblimit.so limit.c     limit_new, limit_run, limit_error: see launch.py
 *
 * Needs glibc 2.36 for the names of the mount API, Linux 5.12, and Linux 6.15 for --cached.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv)
#define NATIVE_ARCH AUDIT_ARCH_RISCV64
#endif

#define ALL_NAMESPACES                                                                                       \
    (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET |               \
     CLONE_NEWCGROUP)
#define STACK_SIZE (64 * 1024)
#define STEPS_MAX 24
/* A conditional jump of classic BPF reaches 255 instructions, and a rule takes two. */
#define RULES_MAX 120
#define HOST_NAME "sandbox"

extern char **environ;

struct limit {
    unsigned long namespaces; /* CLONE_NEW* */
    bool cached, loopback, devpts, no_exec, timed;
    long rules, repeat;
    char **argv;

    int tree; /* the detached root that every launch clones, or -1 */
    char *stack;
    char uid_map[32], gid_map[32];
    struct sock_fprog filter;

    /* The child shares our memory: what it writes here, we read after its exec or end. */
    const char *failed_call;
    int failed_errno;
    int steps;
    struct {
        const char *name;
        int64_t at;
    } step[STEPS_MAX];
};

static char message[512];

const char *limit_error(void)
{
    return message;
}

static int complain(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    return -1;
}

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* ---- in the child: every function below returns only after success ---- */

static void done(struct limit *job, const char *name)
{
    if (job->timed && job->steps < STEPS_MAX) {
        job->step[job->steps].name = name;
        job->step[job->steps++].at = now();
    }
}

static int checked(struct limit *job, const char *call, long result)
{
    if (result < 0) {
        job->failed_errno = errno;
        job->failed_call = call;
        _exit(127);
    }
    return (int)result;
}

#define MUST(call) checked(job, #call, (call))

static void write_file(struct limit *job, const char *path, const char *text)
{
    int file = MUST(open(path, O_WRONLY | O_CLOEXEC));

    MUST(write(file, text, strlen(text)));
    close(file);
}

static void map_own_ids(struct limit *job)
{
    write_file(job, "/proc/self/setgroups", "deny");
    write_file(job, "/proc/self/uid_map", job->uid_map);
    write_file(job, "/proc/self/gid_map", job->gid_map);
}

static int new_mount(struct limit *job, int filesystem, unsigned attributes)
{
    MUST(fsconfig(filesystem, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    return MUST(fsmount(filesystem, FSMOUNT_CLOEXEC, attributes));
}

static int new_tmpfs(struct limit *job, int *filesystem, const char *mode)
{
    *filesystem = MUST(fsopen("tmpfs", FSOPEN_CLOEXEC));
    MUST(fsconfig(*filesystem, FSCONFIG_SET_STRING, "mode", mode, 0));
    return new_mount(job, *filesystem, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
}

/* Attach a mount and close its descriptor. */
static void attach(struct limit *job, int mount, int directory, const char *path)
{
    MUST(move_mount(mount, "", directory, path, MOVE_MOUNT_F_EMPTY_PATH));
    close(mount);
}

static void fill_root(struct limit *job, int root)
{
    static const char *const directories[] = {"usr", "proc", "tmp", "dev", "dev/pts"};
    static const char *const nodes[] = {"dev/null",   "dev/zero",    "dev/full",
                                        "dev/random", "dev/urandom", "dev/tty"};
    static const char *const links[][2] = {{"usr/bin", "bin"},
                                           {"usr/lib", "lib"},
                                           {"usr/lib64", "lib64"},
                                           {"/proc/self/fd", "dev/fd"},
                                           {"/proc/self/fd/0", "dev/stdin"},
                                           {"/proc/self/fd/1", "dev/stdout"},
                                           {"/proc/self/fd/2", "dev/stderr"},
                                           {"pts/ptmx", "dev/ptmx"}};
    struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    char host_path[32];
    int mount;

    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
        MUST(mkdirat(root, directories[i], 0755));
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        MUST(symlinkat(links[i][0], root, links[i][1]));

    mount = MUST(open_tree(AT_FDCWD, "/usr", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
    MUST(mount_setattr(mount, "", AT_EMPTY_PATH | AT_RECURSIVE, &readonly, sizeof readonly));
    attach(job, mount, root, "usr");

    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        MUST(mknodat(root, nodes[i], S_IFREG | 0666, 0));
        snprintf(host_path, sizeof host_path, "/%s", nodes[i]);
        mount = MUST(open_tree(AT_FDCWD, host_path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
        attach(job, mount, root, nodes[i]);
    }
}

/* No mount of the root's superblock can be made writable after this. */
static void seal_root(struct limit *job, int filesystem)
{
    MUST(fsconfig(filesystem, FSCONFIG_SET_FLAG, "ro", NULL, 0));
    MUST(fsconfig(filesystem, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0));
    close(filesystem);
}

/* Runs once per limit_new, in namespaces of its own and with our table of descriptors. */
static int build_cached_tree(void *argument)
{
    struct limit *job = argument;
    int filesystem;

    map_own_ids(job);
    job->tree = new_tmpfs(job, &filesystem, "0755");
    fill_root(job, job->tree);
    seal_root(job, filesystem);
    _exit(0);
}

static void mount_per_launch(struct limit *job, int root)
{
    int filesystem, mount;

    if (job->namespaces & CLONE_NEWPID) {
        filesystem = MUST(fsopen("proc", FSOPEN_CLOEXEC));
        mount = new_mount(job, filesystem, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
        close(filesystem);
    } else { /* a new procfs of the caller's pid namespace is for its owner to make */
        mount = MUST(open_tree(AT_FDCWD, "/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
    }
    attach(job, mount, root, "proc");
    done(job, "proc");

    mount = new_tmpfs(job, &filesystem, "1777");
    close(filesystem);
    attach(job, mount, root, "tmp");
    done(job, "tmpfs /tmp");

    if (job->devpts) {
        filesystem = MUST(fsopen("devpts", FSOPEN_CLOEXEC));
        MUST(fsconfig(filesystem, FSCONFIG_SET_STRING, "ptmxmode", "0666", 0));
        mount = new_mount(job, filesystem, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
        close(filesystem);
        attach(job, mount, root, "dev/pts");
        done(job, "devpts");
    }
}

static void change_root(struct limit *job)
{
    int root, filesystem;

    /* In a new user namespace the copied mounts are at most slaves of the host's: nothing goes back. */
    if (!(job->namespaces & CLONE_NEWUSER))
        MUST(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
    if (job->cached) {
        root = MUST(
            open_tree(job->tree, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE));
        MUST(move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    } else { /* attached first: kernels before 6.15 mount nothing in a detached tree */
        root = new_tmpfs(job, &filesystem, "0755");
        MUST(move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
        fill_root(job, root);
        seal_root(job, filesystem);
    }
    done(job, "root tree");
    mount_per_launch(job, root);
    MUST(fchdir(root));
    MUST(syscall(SYS_pivot_root, ".", "."));
    done(job, "pivot_root");
    MUST(umount2(".", MNT_DETACH));
    MUST(chdir("/"));
    done(job, "umount of the old root");
}

static void raise_loopback(struct limit *job)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int sock = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));

    MUST(ioctl(sock, SIOCSIFFLAGS, &request));
    close(sock);
    done(job, "loopback");
}

static void drop_privileges(struct limit *job)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};

    /* EINVAL ends the loop at the first number that the kernel does not know. */
    for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
        continue;
    if (errno != EINVAL)
        checked(job, "prctl(PR_CAPBSET_DROP)", -1);
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    MUST(syscall(SYS_capset, &header, none));
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    done(job, "capabilities");
}

/* The handlers of our process would run in its memory as soon as a signal is let through. */
static void reset_signals(void)
{
    struct sigaction action;
    sigset_t none;

    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL &&
            action.sa_handler != SIG_IGN)
            signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int launch(void *argument)
{
    struct limit *job = argument;

    done(job, "clone");
    if (job->namespaces & CLONE_NEWUSER)
        map_own_ids(job);
    done(job, "id maps");
    change_root(job);
    if (job->namespaces & CLONE_NEWUTS)
        MUST(sethostname(HOST_NAME, strlen(HOST_NAME)));
    if (job->loopback)
        raise_loopback(job);
    drop_privileges(job);
    if (job->filter.len) {
        MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &job->filter));
        done(job, "seccomp");
    }
    if (job->no_exec)
        _exit(0);
    reset_signals();
    done(job, "signals");
    return checked(job, job->argv[0], execve(job->argv[0], job->argv, environ));
}

/* ---- in the parent ---- */

/* errno and every other variable of this thread are the child's too, until its exec: it is vfork(2). */
static pid_t start(struct limit *job, int (*function)(void *), unsigned long flags)
{
    sigset_t all, before;
    pid_t pid;

    job->failed_call = NULL;
    job->steps = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    done(job, "start");
    pid = clone(function, job->stack + STACK_SIZE, (int)(flags | CLONE_VM | CLONE_VFORK | SIGCHLD), job);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    done(job, "execve");
    if (pid < 0)
        return complain("clone: %s", strerror(errno));
    return pid;
}

static int finish(struct limit *job, pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return complain("waitpid: %s", strerror(errno));
    done(job, "program, end and wait");
    if (job->failed_call)
        return complain("%s: %s", job->failed_call, strerror(job->failed_errno));
    return status;
}

/* Launch and wait. Returns the wait status, or -1 when the job could not be set up. */
int limit_run(struct limit *job)
{
    pid_t pid = start(job, launch, job->namespaces);

    return pid < 0 ? -1 : finish(job, pid);
}

/* A search tree over [low, high) of the denied numbers. Its leaves jump to the two returns at the end. */
static unsigned search(struct sock_filter *code, unsigned at, unsigned low, unsigned high, unsigned deny)
{
    /* No kernel has these numbers: the filter costs what one of its size costs, and refuses nothing. */
    const unsigned first_number = 5000;
    unsigned middle = (low + high) / 2, right;

    if (high - low == 1) {
        code[at] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, first_number + low,
                                                (uint8_t)(deny - at - 1), (uint8_t)(deny - at));
        return at + 1;
    }
    right = search(code, at + 1, low, middle, deny);
    code[at] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, first_number + middle,
                                            (uint8_t)(right - at - 1), 0);
    return search(code, right, middle, high, deny);
}

static int compile_filter(struct limit *job)
{
    unsigned rules = (unsigned)job->rules, deny = 4 + 2 * rules - 1;
    struct sock_filter *code = calloc(deny + 2, sizeof *code);

    if (!code)
        return complain("out of memory");
    code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0);
    code[2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[3] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    search(code, 4, 0, rules, deny);
    code[deny] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    code[deny + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    job->filter = (struct sock_fprog){.len = (unsigned short)(deny + 2), .filter = code};
    return 0;
}

static int share_namespace(struct limit *job, const char *name)
{
    static const struct {
        const char *name;
        unsigned long flag;
    } known[] = {{"user", CLONE_NEWUSER}, {"pid", CLONE_NEWPID}, {"uts", CLONE_NEWUTS},
                 {"ipc", CLONE_NEWIPC},   {"net", CLONE_NEWNET}, {"cgroup", CLONE_NEWCGROUP}};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            job->namespaces &= ~known[i].flag;
            return 0;
        }
    return complain("--share %s: not one of user, pid, uts, ipc, net, cgroup", name);
}

static int parse_count(const char *option, const char *text, long maximum, long *value)
{
    char *end;

    *value = strtol(text, &end, 10);
    if (*end || *value < 1 || *value > maximum)
        return complain("%s %s: not a number from 1 to %ld", option, text, maximum);
    return 0;
}

static int parse(struct limit *job, int argc, char **argv)
{
    bool *const switches[] = {&job->cached, &job->loopback, &job->devpts, &job->no_exec};
    static const struct option options[] = {
        {"cached", no_argument, NULL, 0},         {"loopback", no_argument, NULL, 1},
        {"devpts", no_argument, NULL, 2},         {"no-exec", no_argument, NULL, 3},
        {"share", required_argument, NULL, 's'},  {"seccomp", required_argument, NULL, 'f'},
        {"repeat", required_argument, NULL, 'n'}, {NULL, 0, NULL, 0}};
    static char *program[] = {"/bin/true", NULL};
    int option, failed = 0;

    optind = 0; /* glibc: start afresh */
    while (!failed && (option = getopt_long(argc, argv, "+", options, NULL)) != -1)
        if (option == 's')
            failed = share_namespace(job, optarg);
        else if (option == 'f')
            failed = parse_count("--seccomp", optarg, RULES_MAX, &job->rules);
        else if (option == 'n')
            failed = parse_count("--repeat", optarg, 1000000, &job->repeat);
        else if (option == '?')
            failed = complain("unknown option, or one without its value");
        else
            *switches[option] = true;
    if (failed)
        return -1;
    if (job->loopback && !(job->namespaces & CLONE_NEWNET))
        return complain("--loopback: the network namespace is shared, its loopback is not ours");
    job->argv = optind < argc ? argv + optind : program;
    return 0;
}

void limit_free(struct limit *job)
{
    if (!job)
        return;
    if (job->tree >= 0)
        close(job->tree);
    if (job->stack)
        munmap(job->stack, STACK_SIZE);
    free(job->filter.filter);
    free(job);
}

static int prepare(struct limit *job, int argc, char **argv)
{
    void *stack;
    pid_t pid;

    if (parse(job, argc, argv))
        return -1;
    snprintf(job->uid_map, sizeof job->uid_map, "%u %u 1", geteuid(), geteuid());
    snprintf(job->gid_map, sizeof job->gid_map, "%u %u 1", getegid(), getegid());
    stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return complain("mmap: %s", strerror(errno));
    job->stack = stack;
    if (job->rules && compile_filter(job))
        return -1;
    if (job->cached) {
        pid = start(job, build_cached_tree, CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS);
        if (pid < 0 || finish(job, pid))
            return -1;
    }
    return 0;
}

/* Takes the options of the program, argv[0] included. argv must live as long as the result. NULL: see
 * limit_error. */
struct limit *limit_new(int argc, char **argv)
{
    struct limit *job = calloc(1, sizeof *job);

    if (!job) {
        complain("out of memory");
        return NULL;
    }
    job->namespaces = ALL_NAMESPACES;
    job->tree = -1;
    if (prepare(job, argc, argv)) {
        limit_free(job);
        return NULL;
    }
    return job;
}

/* ---- the program ---- */

static int by_size(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

    return (a > b) - (a < b);
}

static void print_times(const char *name, int64_t *times, long count)
{
    qsort(times, (size_t)count, sizeof *times, by_size);
    printf("%-24s %9.1f %9.1f %9.1f\n", name, (double)times[count / 2] / 1e3, (double)times[count / 10] / 1e3,
           (double)times[count * 9 / 10] / 1e3);
}

/* A step's time is the time since the step before it. The parent's two ends have their place among the
 * child's. */
static int repeat(struct limit *job)
{
    int64_t *times = calloc((size_t)job->repeat * (STEPS_MAX + 1), sizeof *times);
    int64_t begin;

    if (!times)
        return complain("out of memory");
    job->timed = true;
    for (long round = 0; round < job->repeat; round++) {
        begin = now();
        if (limit_run(job)) {
            free(times);
            return -1;
        }
        times[round] = now() - begin;
        for (int i = 1; i < job->steps; i++)
            times[i * job->repeat + round] = job->step[i].at - job->step[i - 1].at;
    }
    printf("%-24s %9s %9s %9s\n", "microseconds", "median", "10 %", "90 %");
    print_times("all", times, job->repeat);
    for (int i = 1; i < job->steps; i++)
        print_times(job->step[i].name, times + i * job->repeat, job->repeat);
    free(times);
    return 0;
}

int main(int argc, char **argv)
{
    struct limit *job = limit_new(argc, argv);
    int status = -1;

    if (job)
        status = job->repeat ? repeat(job) : limit_run(job);
    limit_free(job);
    if (status < 0) {
        fprintf(stderr, "limit: %s\n", message);
        return 125;
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
