"""The C library libseccomp, by ctypes: the oracle of the filter tests."""

import ctypes
import ctypes.util
import functools
import os
import tempfile
from collections.abc import Iterable, Sequence

ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
ARCHES = {
    "x86_64": 0xC000003E,
    "i386": 0x40000003,
    "x32": 0x4000003E,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
    "riscv64": 0xC00000F3,
}
OPERATIONS = {"!=": 1, "<": 2, "<=": 3, "==": 4, ">=": 5, ">": 6, "masked": 7}
_BAD_ARCH, _OPTIMIZE = 2, 8


class _Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@functools.cache
def library() -> "ctypes.CDLL | None":
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison),
    ]  # fmt: skip
    return lib


def number(name: str, arch: str = "x86_64") -> int:
    """The library's number; negative for what it does not know, -1, or what the architecture has not."""
    return library().seccomp_syscall_resolve_name_arch(ARCHES[arch], name.encode())


class Context:
    def __init__(self, default: int, arches: Sequence[str], *, tree: bool = False) -> None:
        self.lib = library()
        self.context = self.lib.seccomp_init(default)
        self._ok(self.lib.seccomp_attr_set(self.context, _BAD_ARCH, KILL_PROCESS))
        if tree:
            self._ok(self.lib.seccomp_attr_set(self.context, _OPTIMIZE, 2))
        for arch in arches:
            if arch != "x86_64":
                self._ok(self.lib.seccomp_arch_add(self.context, ARCHES[arch]))
        if "x86_64" not in arches:
            self._ok(self.lib.seccomp_arch_remove(self.context, ARCHES["x86_64"]))

    @staticmethod
    def _ok(result: int) -> None:
        if result:
            raise OSError(-result, os.strerror(-result))

    def add(self, action: int, name: str, args: Iterable[tuple[int, str, int, int]] = ()) -> bool:
        """Add a rule; False: the library does not know the call."""
        call = number(name)
        if call == -1:
            return False
        args = list(args)
        array = (_Comparison * max(1, len(args)))()
        for place, (index, operation, first, second) in zip(array, args, strict=False):
            place.arg, place.op, place.a, place.b = index, OPERATIONS[operation], first, second
        result = self.lib.seccomp_rule_add_array(self.context, action, call, len(args), array)
        if result not in (0, -17):  # EEXIST: said before
            self._ok(result)
        return True

    def export(self) -> bytes:
        with tempfile.TemporaryFile() as stream:
            self._ok(self.lib.seccomp_export_bpf(self.context, stream.fileno()))
            stream.seek(0)
            return stream.read()

    def close(self) -> None:
        self.lib.seccomp_release(self.context)
