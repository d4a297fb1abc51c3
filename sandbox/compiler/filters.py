"""The filters of system calls: which they are, and the steps that install them."""

import os
from functools import lru_cache
from struct import iter_unpack, pack
from typing import TYPE_CHECKING, Final

from sandbox import kernel as k
from sandbox.identity import Caller, lands_as_root
from sandbox.plan import Data, Program
from sandbox.spec import Spec

if TYPE_CHECKING:
    from sandbox.compiler.draft import Draft
    from sandbox.filters import Filter

_COMPILED: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "filters", "compiled")


@lru_cache(maxsize=64)  # asked at each run of a filter of one's own
def notifies(code: bytes) -> bool:
    """Say whether a filter's program asks a supervisor: it returns SECCOMP_RET_USER_NOTIF somewhere."""
    return any(op == 0x06 and value & 0xFFFF0000 == 0x7FC00000 for op, _, _, value in iter_unpack("=HBBI", code))


def preset_program(spec: Spec, caller: Caller) -> bytes:
    """Return the compiled program of a preset; the package has it for this machine, or it is compiled now."""
    machine = {"arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    name = f"{spec.filter}{'' if _may_set_ids(spec, caller) else '-nosetid'}-{machine}.bpf"
    try:
        with open(os.path.join(_COMPILED, name), "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return filter_of(spec, caller).to_bytes()


def filter_of(spec: Spec, caller: Caller) -> "Filter":
    """Return the filter of a sandbox that has one; a preset becomes what it stands for."""
    from sandbox.filters import Filter

    if isinstance(spec.filter, Filter):
        return spec.filter
    return Filter.default(nesting=spec.filter == "default-nesting", setid=_may_set_ids(spec, caller))


def _may_set_ids(spec: Spec, caller: Caller) -> bool:
    """Say whether set-id bits do no harm: with root's own id mapped, they would be root's on the host."""
    return not ((spec.host_root and caller.uid == 0) or lands_as_root(spec, caller))


def program_of(spec: Spec, caller: Caller) -> bytes:
    """Return the program of the filter; empty without one."""
    if spec.filter is None:
        return b""
    code = preset_program(spec, caller) if isinstance(spec.filter, str) else spec.filter.to_bytes()
    if spec.observe:
        from sandbox.denials import asking

        code = asking(code)
    return code


def guard_of(spec: Spec, caller: Caller) -> bytes:
    """Return the filter that stands beside one of the caller's own, or none: of their answers the stricter counts.

    The presets hold its rules already.
    """
    if isinstance(spec.filter, str) or not lands_as_root(spec, caller):
        return b""
    from sandbox.filters.presets import guard_program

    return guard_program()


def install_filters(draft: "Draft") -> None:
    """Install the filters: the call after them is execve, and no other."""
    program = draft.program
    if draft.guard:
        program.origin = "owner=0"
        program.call("seccomp", k.SECCOMP_SET_MODE_FILTER, k.NONE, _sock_fprog(program, draft.guard))
    if not draft.code:
        return
    program.origin = draft.spec.filter_origin
    prog = _sock_fprog(program, draft.code)
    if draft.listens:
        flags = k.SECCOMP_FILTER_FLAG_NEW_LISTENER | k.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        program.call("seccomp_listen", flags, prog)
    else:
        program.call("seccomp", k.SECCOMP_SET_MODE_FILTER, k.NONE, prog)


def _sock_fprog(program: Program, code: bytes) -> Data:
    """Return a struct sock_fprog."""
    length = len(code) // 8
    instructions = program.data(code, f"<{length} instructions>")
    return program.data(pack("<H6xQ", length, 0), f"{{{length}, <filter>}}", ((8, instructions),))
