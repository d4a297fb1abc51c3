"""process_vm_readv(2): the memory of another process."""

from sandbox._native import ffi, lib
from sandbox.primitives._call import check, in_range

__all__ = ["process_vm_readv"]


def process_vm_readv(pid: int, address: int, size: int) -> bytes:
    """Copy memory of another process.

    Args:
        pid: The process, or one of its threads.
        address: Where to start there.
        size: How many bytes, 0 to 2 GiB - 1. Fewer come back when the memory ends before.

    Raises:
        OSError: EFAULT (nothing is mapped at `address`), EPERM (no right to trace it: another user, or not
            dumpable), ESRCH (no such process).

    See process_vm_readv(2). Since Linux 3.2.
    """
    in_range(pid, 0, 2**31 - 1, "pid")
    in_range(address, 0, 2**64 - 1, "address")
    in_range(size, 0, 2**31 - 1, "size")
    buffer = ffi.new("char[]", size or 1)
    return bytes(ffi.buffer(buffer, check(lib.sandbox_process_vm_readv(pid, buffer, size, address))))
