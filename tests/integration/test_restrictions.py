"""The steps of a launch, made one by one in a child: what they restrict is what confine() restricts."""

import ctypes
import errno
import os
import struct

import harness
import pytest
from supervised import number

from sandbox.landlock import Landlock
from sandbox.plan import Data, Program, Ref
from sandbox.primitives.landlock import LandlockAccessFs as Fs
from sandbox.primitives.process import PR_SET_NO_NEW_PRIVS, prctl
from sandbox.restrictions import restrict_self

libc = ctypes.CDLL(None, use_errno=True)


def run(program):
    """Make the calls of the payload's segment as init does: tolerated errnos, skips, stores."""
    calls, results, memory, position = program.segments["payload"], {}, {}, 0

    def argument(one):
        match one:
            case Ref():
                return results[one.key]
            case Data():
                return memory.setdefault(one.key, ctypes.create_string_buffer(one.content, len(one.content)))
            case str() | bytes():
                return os.fsencode(one)
        return int(one)

    while position < len(calls):
        call = calls[position]
        position += 1
        result = libc.syscall(number(call.call), *map(argument, call.args))
        if result < 0:
            if ctypes.get_errno() not in call.tolerate:
                raise OSError(ctypes.get_errno(), call.call)
            position += call.skip
        results[call.key] = result
        if call.store is not None and result >= 0:
            data, offset, width = call.store
            struct.pack_into("=i" if width == 4 else "=q", argument(data), offset, result)


def steps(ruleset):
    program = Program()
    program.segment = "payload"
    restrict_self(program, ruleset)
    return program


def tried(path, flags=os.O_RDONLY):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


@pytest.mark.needs_landlock(4)
def test_steps_restrict_as_the_ruleset_says(tmp_path):
    for name in ("dir", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    landlock = Landlock(
        read=[tmp_path / "dir", tmp_path / "other/file"],
        write=[tmp_path / "dir/file", tmp_path / "nowhere"],
        connect_tcp=[443],
        best_effort=True,
    ).path("/dev", Fs.READ_DIR)

    def confined():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        before = harness.footprint().descriptors
        run(steps(landlock.ruleset(Landlock.abi())))
        assert ("ok", "ok", "ok") == (tried(tmp_path / "dir"), tried(tmp_path / "dir/file"), tried("/dev"))
        assert ("EACCES", "ok") == (tried(tmp_path / "other"), tried(tmp_path / "other/file"))
        assert ("ok", "EACCES") == (
            tried(tmp_path / "dir/file", os.O_WRONLY),
            tried(tmp_path / "other/file", os.O_WRONLY),
        )
        assert len(before) == sum(tried_fd(fd) for fd in range(64))

    def tried_fd(fd):
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True

    harness.in_child(confined)


@pytest.mark.needs_landlock(1)
def test_missing_path_is_a_failed_step_unless_best_effort(tmp_path):
    def confined():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        with pytest.raises(FileNotFoundError):
            run(steps(Landlock(execute=[tmp_path / "nowhere"]).ruleset(1)))
        assert "ok" == tried("/etc/passwd")

    harness.in_child(confined)


def test_nothing_to_restrict_is_no_step():
    assert [] == steps(Landlock(read=[], best_effort=True).ruleset(0)).segments["payload"]


def test_steps_print_as_strace_would():
    plan = steps(Landlock(read=["/usr"], connect_tcp=[443]).log(new_exec=True).ruleset(7))
    from sandbox.plan import Command

    text = str(plan.plan(Command()))
    assert "landlock_create_ruleset({fs=READ_FILE|READ_DIR|REFER, net=CONNECT_TCP, scoped=0}, 24, 0)" in text
    assert 'openat(AT_FDCWD, "/usr", O_PATH|O_CLOEXEC, 0)' in text
    assert "landlock_add_rule(ruleset, LANDLOCK_RULE_NET_PORT, {CONNECT_TCP, port=443}, 0)" in text
    assert "landlock_restrict_self(ruleset, LOG_NEW_EXEC_ON)" in text
