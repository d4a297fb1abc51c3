"""Confine the calling process, for ever: a Landlock ruleset, then a seccomp filter.

Facts that the order follows from:

- Everything that can fail without a trace comes first: compiling, opening paths, making the ruleset, reading
  /proc. After that nothing can be taken back.
- Landlock before seccomp, because a filter may forbid Landlock's calls.
- Both belong to a thread, as does no_new_privs. seccomp reaches the other threads with TSYNC, which takes
  no_new_privs along. Landlock does from ABI 8 on, with a TSYNC of its own; before that there is no way to
  reach a thread that runs already, so a process with one thread is the only one that can be confined as a
  whole.
"""

import errno
import os
import stat
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.errors import FilterError, UnsupportedError
from sandbox.landlock import MAX_LAYERS, Landlock
from sandbox.primitives._call import os_error
from sandbox.primitives.landlock import (
    LandlockRestrictSelfFlags,
    LandlockRuleType,
    landlock_abi,
    landlock_add_rule,
    landlock_create_ruleset,
    landlock_errata,
    landlock_restrict_self,
)
from sandbox.primitives.process import PR_SET_NO_NEW_PRIVS, prctl
from sandbox.primitives.secure_computing import (
    SECCOMP_RET_ACTION_FULL,
    SeccompAction,
    SeccompFilterFlags,
    SeccompOperation,
    seccomp,
)
from sandbox.readback import confinement, count_landlock_layers, parse_status, read_enforced
from sandbox.result import Enforced

if TYPE_CHECKING:
    from sandbox.filters import Filter
    from sandbox.landlock import PathRule, Ruleset

__all__ = ["confine", "make_ruleset"]

_TSYNC_ABI = 8
_RET_K = 0x06  # BPF_RET | BPF_K
_STATUS_SIZE = 65536
_ENDING = 0.5  # seconds


def confine(*, filter: "Filter | None" = None, landlock: Landlock | None = None, all_threads: bool = True) -> Enforced:
    """Restrict this process, and all that it starts, for ever.

    Sets no_new_privs too. What was open before stays open, and Landlock does not judge it.

    Args:
        filter: The calls that are allowed. It should allow pread64 and close, or what is in force cannot be
            read back and is reported as a gap.
        landlock: The files, ports and scopes that are allowed.
        all_threads: All threads or an error. False: the calling one, and what it starts. With Landlock from
            ABI 8 on, the other threads lose Landlock layers that they had and this one has not.

    Returns:
        What is in force for the calling thread, read back from the kernel.

    Raises:
        ValueError: Neither filter nor landlock.
        FilterError: The filter asks a supervisor, and there is nobody to listen.
        UnsupportedError: The kernel lacks what was asked for; Landlock for a process with other threads
            before ABI 8; 16 Landlock layers already; /proc is not mounted. Nothing has changed.
        OSError: A path of the ruleset cannot be opened: nothing has changed. Or seccomp(2) refused, ESRCH
            where another thread has filters of its own: a note says when the ruleset is in force already.

    See seccomp(2), landlock_restrict_self(2). Since Linux 5.13 with Landlock, 3.17 without.
    """
    if filter is None and landlock is None:
        raise ValueError("confine() needs a filter, a landlock, or both")
    if filter is not None and not hasattr(filter, "to_bytes"):
        raise TypeError(f"filter must be a Filter or None, not {type(filter).__name__}")
    if landlock is not None and not isinstance(landlock, Landlock):
        raise TypeError(f"landlock must be a Landlock or None, not {type(landlock).__name__}")
    program = None if filter is None else _program(filter)
    ruleset = None if landlock is None else landlock.ruleset(landlock_abi(), errata=landlock_errata())
    if ruleset is not None and all_threads and not ruleset.empty:
        _require_all_threads(ruleset.abi)
    before = read_enforced()
    if ruleset is not None:
        before = replace(before, gaps=ruleset.gaps, missing=ruleset.missing)
    status = os.open("/proc/thread-self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ruleset is not None and not ruleset.empty:
            before = _restrict(ruleset, before, all_threads=all_threads)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if program is not None:
            _install(program, all_threads=all_threads, landlocked=ruleset is not None and not ruleset.empty)
    except BaseException:
        os.close(status)
        raise
    return _read_back(before, status)


def _program(filter: "Filter") -> bytes:
    program = filter.to_bytes()
    for code, _, _, value in struct.iter_unpack("=HBBI", program):
        if code == _RET_K and value & SECCOMP_RET_ACTION_FULL == SeccompAction.USER_NOTIF:
            raise FilterError("this filter says Notify, and confine() leaves nobody to answer: run it in a sandbox")
    return program


def make_ruleset(ruleset: "Ruleset") -> tuple[int, tuple[str, ...]]:
    """Make a compiled ruleset in the kernel.

    Returns:
        Its descriptor, which the caller closes, and what was left out because it does not exist, in words.

    Raises:
        OSError: A path cannot be opened, ENOTDIR (it is a file, and its rule has rights for directories
            only); or as landlock_create_ruleset(2) and landlock_add_rule(2).
    """
    made = landlock_create_ruleset(ruleset.handled_fs, ruleset.handled_net, ruleset.scoped)
    missing = []
    try:
        for rule in ruleset.paths:
            try:
                _add_path(made, rule)
            except FileNotFoundError:
                if not ruleset.skip_missing:
                    raise
                missing.append(f"{rule.path}: no such file or directory")
        for port in ruleset.ports:
            landlock_add_rule(made, LandlockRuleType.NET_PORT, port.rights, port.port)
    except BaseException:
        os.close(made)
        raise
    return made, tuple(missing)


def _add_path(ruleset: int, rule: "PathRule") -> None:
    fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = rule.rights if stat.S_ISDIR(os.fstat(fd).st_mode) else rule.file_rights
        if not rights:
            raise os_error(errno.ENOTDIR, rule.path)
        try:
            landlock_add_rule(ruleset, LandlockRuleType.PATH_BENEATH, rights, fd)
        except OSError as error:
            raise os_error(error.errno or 0, rule.path) from None
    finally:
        os.close(fd)


def _require_all_threads(abi: int) -> None:
    if abi >= _TSYNC_ABI:
        return
    threads = _count_threads()
    # A thread that was joined takes a moment more to leave the kernel's list.
    patience = time.monotonic() + _ENDING
    while threads > 1 and threading.active_count() == 1 and time.monotonic() < patience:
        time.sleep(0.001)
        threads = _count_threads()
    if threads > 1:
        raise UnsupportedError(
            "Landlock for all threads of a process",
            needed=f"Landlock ABI {_TSYNC_ABI}, Linux 7.0, or a process with one thread",
            found=f"Landlock ABI {abi} and {threads} threads",
            fix="call confine() before the first thread starts; all_threads=False restricts the calling one",
        )


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        raise UnsupportedError("counting threads", needed="/proc mounted", found="no /proc/self/task") from None


def _restrict(ruleset: "Ruleset", before: Enforced, *, all_threads: bool) -> Enforced:
    made, not_found = make_ruleset(ruleset)
    flags = ruleset.restrict_flags
    if all_threads and ruleset.abi >= _TSYNC_ABI:
        flags |= LandlockRestrictSelfFlags.TSYNC
    try:
        if before.landlock_layers >= MAX_LAYERS:
            raise UnsupportedError(
                "another Landlock layer",
                needed=f"fewer than {MAX_LAYERS} layers",
                found=f"{before.landlock_layers}, those of the processes that started this one included",
            )
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        landlock_restrict_self(made, flags)
    finally:
        os.close(made)
    return replace(before, landlock_layers=count_landlock_layers(), missing=before.missing + not_found)


def _install(program: bytes, *, all_threads: bool, landlocked: bool) -> None:
    flags = SeccompFilterFlags.TSYNC if all_threads else SeccompFilterFlags(0)
    try:
        seccomp(SeccompOperation.SET_MODE_FILTER, flags, program)
    except OSError as error:
        if landlocked:
            error.add_note("the Landlock ruleset is in force already, for ever")
        raise


def _read_back(before: Enforced, status: int) -> Enforced:
    """Read what the kernel has made of it, with the two calls that a filter may have left."""
    gaps = before.gaps
    no_new_privs, filters = before.no_new_privs, before.seccomp_filters
    try:
        text = os.pread(status, _STATUS_SIZE, 0).decode(errors="surrogateescape")
        no_new_privs, filters = confinement(parse_status(text))
    except OSError as error:
        gaps += (f"what is in force could not be read back: the filter refuses pread64 ({error.strerror})",)
    try:
        os.close(status)
    except OSError as error:
        gaps += (f"descriptor {status} stays open: the filter refuses close ({error.strerror})",)
    return replace(before, no_new_privs=no_new_privs, seccomp_filters=filters, gaps=gaps)
