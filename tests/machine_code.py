"""System calls as machine code, on x86_64: the C library cannot make those of 32-bit programs."""

import ctypes
import mmap
import platform

SUPPORTED = platform.machine() == "x86_64"

# Called as long f(number, a, b, c, d, e, f): the registers of int 0x80, then the 32-bit result made a long.
_INT_80 = bytes.fromhex("5355 89f8 89f3 87ca 4489c6 4489cf 8b6c2418 cd80 4898 5d5b c3")
# The same for syscall.
_SYSCALL = bytes.fromhex("89f8 4889f7 4889d6 4889ca 4d89c2 4d89c8 4c8b4c2408 0f05 c3")
# long f(number, count, a, b, c): make one call many times.
_LOOP = bytes.fromhex("53 4154 89fb 4989f4 4889d7 4889ce 4c89c2 89d8 0f05 49ffcc 75f7 415c 5b c3")


# Made at import: a filter may forbid executable memory later. The functions below do not keep it alive.
memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def _functions() -> "list[ctypes._CFuncPtr]":
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    made = []
    for position, (code, arguments) in enumerate(((_INT_80, 7), (_SYSCALL, 7), (_LOOP, 5))):
        start = position * 64
        memory[start : start + len(code)] = code
        prototype = ctypes.CFUNCTYPE(ctypes.c_long, *([ctypes.c_ulong] * arguments))
        made.append(prototype(address + start))
    return made


_int_80, _syscall, _loop = _functions() if SUPPORTED else (None, None, None)


def call64(number: int, *args: int) -> int:
    """Make a call with the syscall instruction; a negative result is an errno."""
    return _syscall(number, *args, *([0] * (6 - len(args))))


def call32(number: int, *args: int) -> int:
    """Make a call with int 0x80, as 32-bit programs do; a negative result is an errno."""
    return _int_80(number, *args, *([0] * (6 - len(args))))


def low_string(text: bytes) -> int:
    """Return the address of a string where 32-bit programs can point to."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_size_t
    size = ctypes.c_size_t(mmap.PAGESIZE)
    map_32bit = 0x40
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_32bit
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, ctypes.c_size_t(0))
    ctypes.memmove(address, text + b"\0", len(text) + 1)
    return address


def repeat(number: int, count: int, *args: int) -> int:
    """Make a call `count` times; return the last result."""
    return _loop(number, count, *args, *([0] * (3 - len(args))))


def load_filter(program: bytes, flags: int = 0) -> None:
    """Attach a program to this thread, with the C library's own syscall()."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    argument = Program(len(program) // 8, program)
    if libc.syscall(317, 1, flags, ctypes.byref(argument)) != 0:
        raise OSError(ctypes.get_errno(), "SECCOMP_SET_MODE_FILTER")
