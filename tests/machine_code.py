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


class _Page:
    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.used = 0

    def function(self, code: bytes, arguments: int) -> "ctypes._CFuncPtr":
        start = self.used
        self.memory[start : start + len(code)] = code
        self.used = (start + len(code) + 15) & ~15
        prototype = ctypes.CFUNCTYPE(ctypes.c_long, *([ctypes.c_ulong] * arguments))
        return prototype(self.address + start)


_page: "list[_Page]" = []


def _function(code: bytes, arguments: int) -> "ctypes._CFuncPtr":
    if not _page:
        _page.append(_Page())
    return _page[0].function(code, arguments)


def call64(number: int, *args: int) -> int:
    """Make a call with the syscall instruction; a negative result is an errno."""
    return _function(_SYSCALL, 7)(number, *args, *([0] * (6 - len(args))))


def call32(number: int, *args: int) -> int:
    """Make a call with int 0x80, as 32-bit programs do; a negative result is an errno."""
    return _function(_INT_80, 7)(number, *args, *([0] * (6 - len(args))))


def repeat(number: int, count: int, *args: int) -> int:
    """Make a call `count` times; return the last result."""
    return _function(_LOOP, 5)(number, count, *args, *([0] * (3 - len(args))))


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
