#!/usr/bin/env python3
"""Write the tables of sandbox/filters/tables from the headers of a kernel.

    scripts/kernel_tables.py HEADERS SOURCE

HEADERS is the user-space headers of every architecture: the `usr` directory of an unpacked linux-libc-dev of Debian
(it holds include/linux and lib/linux/uapi/ARCH/asm). SOURCE is the kernel's source, or what an unpacked
linux-headers-*-common holds of it (include/linux/syscalls.h). Both of one version, the newest that can be had; see
CONTRIBUTING.md. A C compiler that makes 64-bit and 32-bit programs (gcc-multilib) evaluates the constants.

Two files, sorted, one line an entry, so that the next kernel is a diff that one can read:

- syscalls.txt: name, number on each architecture ("-": it has none), and a letter for each argument:
  h 16 bits, i 32 bits, l the machine's word, p a pointer, q 64 bits (two registers on 32-bit machines).
  After a "/" the arguments on 32-bit machines, where they are others.
- constants.txt: name, value; a second value with the architectures for which it differs.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "sandbox" / "filters" / "tables"
X32_BIT = 0x40000000

# Architecture: the headers' directory and the file with the numbers.
NUMBERS = {
    "x86_64": ("x86", "unistd_64.h"),
    "i386": ("x86", "unistd_32.h"),
    "x32": ("x86", "unistd_x32.h"),
    "aarch64": ("arm64", "unistd_64.h"),
    "arm": ("arm", "unistd-eabi.h"),
    "riscv64": ("riscv", "unistd_64.h"),
}

# How constants are evaluated with the compiler of an x86 machine. The sizes inside ioctl numbers follow from the data
# model alone: LP64 is the same everywhere, and an ILP32 with 64-bit alignment of 64-bit members is that of arm's EABI.
MODELS = {
    "x86_64": ("x86", ["-m64"]),
    "i386": ("x86", ["-m32"]),
    "aarch64": ("arm64", ["-m64", "-U__x86_64__", "-D__aarch64__"]),
    "arm": ("arm", ["-m32", "-malign-double", "-U__i386__", "-D__arm__", "-D__ARM_EABI__"]),
    "riscv64": ("riscv", ["-m64", "-U__x86_64__", "-D__riscv", "-D__riscv_xlen=64"]),
}

NARROW = {"umode_t", "old_uid_t", "old_gid_t"}
WORD = {"unsigned long", "long", "size_t", "off_t", "aio_context_t", "old_sigset_t", "__kernel_old_time_t"}
DOUBLE = {"loff_t", "u64", "__u64"}
INT = {
    "int", "unsigned", "unsigned int", "u32", "__u32", "__s32", "pid_t", "uid_t", "gid_t", "qid_t", "key_t", "u8",
    "key_serial_t", "clockid_t", "const clockid_t", "timer_t", "mqd_t", "rwf_t", "time_t", "int32_t", "uint32_t",
    "enum landlock_rule_type", "old_time32_t", "unsigned int __bitwise", "const __u32", "compat_off_t",
}  # fmt: skip
POINTER = {"cap_user_header_t", "cap_user_data_t", "const cap_user_data_t", "__sighandler_t", "siginfo_t"}

# The function behind a name, where it is not sys_NAME.
ENTRY = {
    "_llseek": "llseek", "_newselect": "select", "stat": "newstat", "lstat": "newlstat", "fstat": "newfstat",
    "uname": "newuname", "sendfile": "sendfile64", "umount2": "umount", "umount": "oldumount",
    "ugetrlimit": "getrlimit", "arm_sync_file_range": "sync_file_range2", "getdents": "getdents",
    "oldstat": "stat", "oldlstat": "lstat", "oldfstat": "fstat", "olduname": "uname", "oldolduname": "olduname",
}  # fmt: skip
for _old in ("chown", "lchown", "fchown", "getuid", "getgid", "geteuid", "getegid", "setuid", "setgid", "setreuid",
             "setregid", "getgroups", "setgroups", "setresuid", "getresuid", "setresgid", "getresgid", "setfsuid",
             "setfsgid"):  # fmt: skip
    ENTRY[_old + "32"] = _old

# Signatures that syscalls.h does not have: calls of one architecture, of a generic macro, or gone from the kernel.
SIGNATURES = {
    "_sysctl": "p", "afs_syscall": "", "arch_prctl": "il", "arm_fadvise64_64": "iiqq", "bdflush": "il", "break": "",
    "breakpoint": "", "cacheflush": "lli", "create_module": "pl", "epoll_ctl_old": "", "epoll_wait_old": "",
    "execve": "ppp", "fanotify_mark": "iiqip", "fadvise64": "iqli", "ftime": "",
    "get_kernel_syms": "p", "get_thread_area": "p", "get_tls": "",
    "getpmsg": "", "gtty": "", "idle": "", "ioperm": "lli", "iopl": "i", "lock": "", "lookup_dcookie": "qpl",
    "map_shadow_stack": "lli", "mmap": "llllll", "mmap2": "llllll", "modify_ldt": "ipl", "mpx": "", "mremap": "lllll",
    "nfsservctl": "ipp", "pciconfig_iobase": "lll", "pciconfig_read": "lllll", "pciconfig_write": "lllll",
    "prof": "", "profil": "", "putpmsg": "", "query_module": "pipll", "readdir": "ipi", "riscv_flush_icache": "lll",
    "riscv_hwprobe": "pllpi", "rt_sigaction": "ippl", "rt_sigreturn": "", "security": "", "set_thread_area": "p",
    "set_tls": "l", "sigaction": "ipp", "sigreturn": "", "sigsuspend": "iil", "stty": "", "sysfs": "ill",
    "tuxcall": "", "ulimit": "", "uprobe": "", "uretprobe": "", "uselib": "p", "usr26": "", "usr32": "",
    "vm86": "lp", "vm86old": "p", "vserver": "", "clone": "lppll", "getrlimit": "ip", "sysinfo": "p",
    "syscall": "iiiiii", "open_tree_attr": "ipipl", "select": "ipppp", "sync_file_range2": "iiqq",
}  # fmt: skip

# The same names with other arguments on 32-bit machines: these take a pointer to their arguments, and the calls that
# have a twin with "32" take user and group ids of 16 bits.
OF_32_BITS = {"mmap": "p", "select": "p"}
SIZE_FIRST = {"fchown", "getgroups", "setgroups"}

# Constants that are no macros of the user-space headers: the kernel's own header has them, or an enum.
KERNEL_HEADERS = ("include/linux/socket.h", "include/linux/net.h")
KERNEL_NAMES = re.compile(r"(?:AF|PF|SOL|MSG)_[A-Z0-9_]+$")
SOCKET_TYPES = {"STREAM": 1, "DGRAM": 2, "RAW": 3, "RDM": 4, "SEQPACKET": 5, "DCCP": 6, "PACKET": 10}
INTERNAL = {"MSG_INTERNAL_SENDMSG_FLAGS", "MSG_SENDPAGE_NOPOLICY", "MSG_SPLICE_PAGES", "MSG_NO_SHARED_FRAGS"}

# Header: which of its names are wanted.
WANTED = {
    "linux/sched.h": r"CLONE_|UNSHARE_|SCHED_|CSIGNAL",
    "linux/prctl.h": r"PR_",
    "asm/prctl.h": r"ARCH_",
    "linux/fcntl.h": r"(__)?[OF]_|AT_|RESOLVE_|FD_CLOEXEC|DN_",
    "linux/openat2.h": r"RESOLVE_",
    "linux/stat.h": r"S_I|STATX_",
    "linux/mman.h": r"PROT_|MAP_|MADV_|MREMAP_|MCL_|MLOCK_|MS_",
    "linux/memfd.h": r"MFD_",
    "linux/mount.h": r"MS_|OPEN_TREE_|MOVE_MOUNT_|FSOPEN_|FSPICK_|FSCONFIG_|FSMOUNT_|MOUNT_ATTR_",
    "linux/personality.h": r"PER_|ADDR_|UNAME26|READ_IMPLIES|MMAP_PAGE|WHOLE_SEC|STICKY_|SHORT_INODE|FDPIC",
    "linux/ptrace.h": r"PTRACE_",
    "linux/keyctl.h": r"KEYCTL_",
    "linux/bpf.h": r"BPF_[A-Z]+_[A-Z_]+$",
    "linux/futex.h": r"FUTEX_",
    "linux/seccomp.h": r"SECCOMP_(?!IOCTL)",
    "linux/time.h": r"CLOCK_|ITIMER_|TIMER_",
    "linux/timerfd.h": r"TFD_",
    "linux/resource.h": r"RLIMIT_|RUSAGE_|PRIO_",
    "asm/signal.h": r"SIG[A-Z0-9]+$|SA_",
    "linux/netlink.h": r"NETLINK_",
    "linux/in.h": r"IPPROTO_|IP_",
    "linux/in6.h": r"IPPROTO_|IPV6_",
    "linux/tcp.h": r"TCP_",
    "asm/socket.h": r"SO_|SCM_|SOL_",
    "linux/eventpoll.h": r"EPOLL_",
    "linux/eventfd.h": r"EFD_",
    "linux/signalfd.h": r"SFD_",
    "linux/inotify.h": r"IN_",
    "linux/fanotify.h": r"FAN_",
    "linux/reboot.h": r"LINUX_REBOOT_",
    "linux/quota.h": r"Q_",
    "linux/ipc.h": r"IPC_",
    "linux/shm.h": r"SHM_",
    "linux/sem.h": r"SEM_|GETVAL|SETVAL|GETALL|SETALL",
    "linux/mempolicy.h": r"MPOL_",
    "linux/membarrier.h": r"MEMBARRIER_",
    "linux/random.h": r"GRND_",
    "linux/wait.h": r"W[A-Z]+$|P_",
    "linux/kcmp.h": r"KCMP_",
    "linux/userfaultfd.h": r"UFFD_|USERFAULTFD_|UFFDIO_",
    "linux/landlock.h": r"LANDLOCK_",
    "linux/ioprio.h": r"IOPRIO_",
    "linux/xattr.h": r"XATTR_(CREATE|REPLACE)",
    "linux/perf_event.h": r"PERF_FLAG_",
    "linux/net.h": r"SYS_[A-Z0-9]+$",
    "asm/ldt.h": r"LDT_",
    "linux/fs.h": r"RWF_|RENAME_|SEEK_|SYNC_FILE_",
    "linux/falloc.h": r"FALLOC_",
    "linux/fadvise.h": r"POSIX_FADV_",
    "linux/pidfd.h": r"PIDFD_",
    "linux/close_range.h": r"CLOSE_RANGE_",
    "linux/module.h": r"MODULE_INIT_",
    "linux/kexec.h": r"KEXEC_",
    "linux/capability.h": r"CAP_[A-Z_]+$",
}
# Terminals and sockets: plain numbers. The other ioctl requests are found by their definition, in every header.
PLAIN_IOCTL = {
    "asm/ioctls.h": r"TIO|TC|FIO",
    "linux/sockios.h": r"SIO",
    "linux/fs.h": r"FI|BLK|FS_IOC",
    "linux/vt.h": r"VT_[A-Z]+$",
    "linux/kd.h": r"KD|GIO|PIO",
    "linux/tiocl.h": r"TIOCL_",
    "linux/hdreg.h": r"HDIO_",
    "linux/cdrom.h": r"CDROM",
    "linux/loop.h": r"LOOP_",
}
UNWANTED = re.compile(r"(_MAX|_MIN|_LAST|_CNT|_NR|_NUM|_SIZE|_LEN|_BASE|_SHIFT|_VERSION|_MAGIC|_H_?)$")


def die(message):
    """End with a message."""
    sys.exit(f"kernel_tables.py: {message}")


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def numbers(headers, arch):
    """Return the numbers of an architecture by name."""
    directory, file = NUMBERS[arch]
    text = (headers / "lib/linux/uapi" / directory / "asm" / file).read_text()
    found = {}
    if arch == "arm":
        private = (headers / "lib/linux/uapi/arm/asm/unistd.h").read_text()
        for name, offset in re.findall(r"#define __ARM_NR_(\w+)\s+\(__ARM_NR_BASE\+(\d+)\)", private):
            found[name] = 0x0F0000 + int(offset)
    for name, value in re.findall(r"^#define __NR_(\w+)\s+(.+?)\s*$", text, re.MULTILINE):
        match = re.fullmatch(r"\(?(?:__X32_SYSCALL_BIT|__NR_SYSCALL_BASE)?\s*\+?\s*(\d+)\)?", value)
        if match:
            found[name] = int(match[1])
        elif name not in ("syscalls", "sync_file_range2"):
            die(f"{file}: no number in {name} = {value!r}")
    if not found:
        die(f"{file}: no call found")
    return found


def letter(parameter):
    """Return the letter of a parameter's type."""
    kind = re.sub(r"\b(__user|__force|volatile)\b", " ", parameter).strip()
    if "*" in kind or "[" in kind:
        return "p"
    words = kind.split()
    for length in (len(words), len(words) - 1):  # with and without the parameter's name
        name = " ".join(words[:length])
        for table, code in ((NARROW, "h"), (WORD, "l"), (DOUBLE, "q"), (INT, "i"), (POINTER, "p")):
            if name in table:
                return code
    raise KeyError(kind)


def signatures(source):
    """Return the letters of every function that syscalls.h declares."""
    text = (source / "include/linux/syscalls.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = {}
    for name, parameters in re.findall(r"asmlinkage\s+\w+\s+sys_(\w+)\s*\(([^;]*?)\)\s*;", text):
        try:
            letters = "".join(letter(one) for one in parameters.split(",") if one.strip() not in ("", "void"))
        except KeyError as error:
            die(f"sys_{name}: the width of {error} is not known to this script")
        # Where the configuration has two forms (clone, truncate), the first is the common one.
        found.setdefault(name, letters)
    return found


def syscalls(headers, source):
    """Return the lines of syscalls.txt."""
    per_arch = {arch: numbers(headers, arch) for arch in NUMBERS}
    known = signatures(source)
    lines, missing = [], []
    for name in sorted(set().union(*per_arch.values())):
        letters = SIGNATURES.get(name)
        if letters is None:
            general = re.sub("(_time64|64)$", "", name)
            letters = known.get(ENTRY.get(name, name), known.get(general))
        if letters is None:
            missing.append(name)
            continue
        narrow = OF_32_BITS.get(name, letters)
        if any(name + "32" in table for table in per_arch.values()):
            keep = 1 if name in SIZE_FIRST else 0
            narrow = letters[:keep] + letters[keep:].replace("i", "h")
        if narrow != letters:
            letters += "/" + narrow
        columns = [str(per_arch[arch].get(name, "-")) for arch in NUMBERS]
        lines.append(" ".join([name, *columns, letters or "."]))
    if missing:
        die("no signature known, add them to SIGNATURES: " + " ".join(missing))
    return lines


# ── constants ───────────────────────────────────────────────────────────────────────────────────────────────────────
def compiler(headers, arch):
    """Return the compiler's command for an architecture's headers."""
    directory, flags = MODELS[arch]
    include = [
        "-nostdinc",
        "-isystem",
        str(headers / "lib/linux/uapi" / directory),
        "-isystem",
        str(headers / "include"),
    ]
    return ["cc", "-w", *flags, *include, "-include", "linux/types.h", "-include", "linux/ioctl.h"]


def macros(headers, arch, header):
    """Return the names that a header itself defines, and their definitions."""
    command = [*compiler(headers, arch), "-E", "-dD", "-x", "c", "-"]
    run = subprocess.run(command, input=f"#include <{header}>\n", capture_output=True, text=True)
    if run.returncode:
        return {}
    found, inside = {}, False
    stem = header.rpartition("/")[2].removesuffix(".h")
    enum = re.compile(r"^\s*([A-Z][A-Z0-9_]+)\s*(?:=[^,]*)?,?\s*$")
    for line in run.stdout.splitlines():
        place = re.match(r'# \d+ "(.*)"', line)
        if place:
            # asm/x.h is a wrapper of asm-generic/x.h, linux/fcntl.h of asm/fcntl.h.
            inside = re.fullmatch(rf"{stem}(-common|-arch|-base)?\.h", place[1].rpartition("/")[2]) is not None
        elif inside:
            define = re.match(r"#define (\w+) (.+)", line)
            if define:
                found[define[1]] = define[2]
            else:
                for part in line.split(","):
                    member = enum.match(part)
                    if member:
                        found.setdefault(member[1], "")
    return found


def evaluate(headers, arch, header, names):
    """Compile the names as initialisers; those that are no constants are dropped by the compiler's own word."""
    names = sorted(names)
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "values.c"
        while names:
            first = f"#include <{header}>\n"
            program.write_text(
                first + "".join(f"unsigned long long v_{n} = (unsigned long long)({n});\n" for n in names)
            )
            run = subprocess.run(
                [*compiler(headers, arch), "-S", "-o", "-", str(program)], capture_output=True, text=True
            )
            if run.returncode == 0:
                return {name: value for name, value in assembly(run.stdout).items() if name in names}
            bad = {int(number) - 2 for number in re.findall(r"values\.c:(\d+):\d+: error", run.stderr)}
            if not bad:
                return {}
            names = [name for index, name in enumerate(names) if index not in bad]
    return {}


def assembly(text):
    """Return the values that the compiler put into initialised variables."""
    values, name, parts = {}, "", []
    for line in [*text.splitlines(), "v_:"]:
        label = re.match(r"v_(\w*):", line)
        if label:
            if name:
                values[name] = parts[0] if len(parts) == 1 else parts[0] | parts[1] << 32
            name, parts = label[1], []
            continue
        number = re.match(r"\s+\.(quad|long|zero)\s+(-?\d+)", line)
        if number and number[1] == "zero":
            parts = [0]
        elif number:
            parts.append(int(number[2]) & (2**64 - 1 if number[1] == "quad" else 2**32 - 1))
    return values


def constants_of(headers, source, arch):
    """Return the constants of an architecture by name."""
    # First a header of its own for each wanted name, then every ioctl request by its definition.
    values = {}
    for table in (WANTED, PLAIN_IOCTL):
        for header, wanted in table.items():
            names = [n for n in macros(headers, arch, header) if re.match(wanted, n) and not UNWANTED.search(n)]
            values |= evaluate(headers, arch, header, names)
    for file in sorted((headers / "include/linux").glob("*.h")):
        header = f"linux/{file.name}"
        if "_IO" not in file.read_text(errors="replace"):
            continue
        names = [n for n, text in macros(headers, arch, header).items() if re.match(r"_IO[WR]*\s*\(", text)]
        for name, value in evaluate(headers, arch, header, names).items():
            values.setdefault(name, value)
    for file in KERNEL_HEADERS:
        text = (source / file).read_text()
        for name, value in re.findall(r"^#define\s+(\w+)\s+(0x[0-9a-fA-F]+|\d+|[AP]F_\w+)\b", text, re.MULTILINE):
            if KERNEL_NAMES.match(name) and name not in INTERNAL and not UNWANTED.search(name):
                values[name] = values[value] if value in values else int(value, 0)
    values |= {f"SOCK_{name}": value for name, value in SOCKET_TYPES.items()}
    values |= {"SOCK_NONBLOCK": values["O_NONBLOCK"], "SOCK_CLOEXEC": values["O_CLOEXEC"]}
    return {name: value & (2**64 - 1) for name, value in values.items()}


def constants(headers, source):
    """Return the lines of constants.txt."""
    per_arch = {arch: constants_of(headers, source, arch) for arch in MODELS}
    lines = []
    for name in sorted(set().union(*per_arch.values())):
        by_value = {}
        for arch, values in per_arch.items():
            if name in values:
                by_value.setdefault(values[name], []).append(arch)
        ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
        first, *others = ordered
        line = f"{name} {first[0]:#x}"
        if len(ordered) > 1 or len(first[1]) < len(MODELS):
            line = " ".join([name, *(f"{value:#x}:{','.join(arches)}" for value, arches in [first, *others])])
        lines.append(line)
    return lines


def main():
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("headers", type=Path)
    parser.add_argument("source", type=Path)
    options = parser.parse_args()
    code = re.search(r"LINUX_VERSION_CODE (\d+)", (options.headers / "include/linux/version.h").read_text())
    version = f"{int(code[1]) >> 16}.{int(code[1]) >> 8 & 0xFF}"
    OUTPUT.mkdir(parents=True, exist_ok=True)
    head = f"# Linux {version}; written by scripts/kernel_tables.py, not by hand\n"
    calls = syscalls(options.headers, options.source)
    columns = "# name " + " ".join(NUMBERS) + " arguments\n"
    (OUTPUT / "syscalls.txt").write_text(head + columns + "\n".join(calls) + "\n")
    values = constants(options.headers, options.source)
    (OUTPUT / "constants.txt").write_text(head + "# name value[:architectures ...]\n" + "\n".join(values) + "\n")
    print(f"Linux {version}: {len(calls)} calls, {len(values)} constants")


if __name__ == "__main__":
    main()
