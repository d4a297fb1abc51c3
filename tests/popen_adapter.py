"""`subprocess.Popen` made of a sandbox that shares the host's root, and CPython's own tests of it.

Run as a program: the names of test classes are its arguments, and the exit status is unittest's.
"""

import fcntl
import os
import subprocess
import sys
import types
import unittest
import warnings
from typing import Any, Self

from sandbox import Process, Sandbox

# What must differ, and why. A name is Class.test, or a test of every class.
_INSIDE = "replaces a private part of Popen, which a sandbox does not have"
_MOCKED = "looks at which methods of a stream are called, and how often"
_ACTIVE = "a process that nobody holds is killed and reaped at once: there is no list of them"
DIFFERS = {
    "test__use_vfork": _INSIDE,
    "test_repr": _INSIDE,
    "test_failed_child_execute_fd_leak": _INSIDE,
    "test_exception_errpipe_bad_data": _INSIDE,
    "test_exception_errpipe_normal": _INSIDE,
    "test_stopped": _INSIDE,
    "test_call_keyboardinterrupt_no_kill": _INSIDE,
    "test_context_manager_keyboardinterrupt_no_kill": _INSIDE,
    "test_run_keyboardinterrupt_no_kill": _INSIDE,
    "test_communicate_BrokenPipeError_stdin_close": _MOCKED,
    "test_communicate_BrokenPipeError_stdin_close_with_timeout": _MOCKED,
    "test_communicate_BrokenPipeError_stdin_flush": _MOCKED,
    "test_communicate_BrokenPipeError_stdin_write": _MOCKED,
    "test_leak_fast_process_del_killed": _ACTIVE,
    "test_zombie_fast_process_del": _ACTIVE,
    "test_restore_signals": "dispositions are the default in every sandbox: there is nothing to switch off",
    "test_bufsize_equal_one_binary_mode": "a binary stream has no lines: bufsize=1 is the usual size, without warning",
}
# Arguments that a sandbox does not have; a test that uses one is skipped with this reason.
NO_ARGUMENT = "no Python runs between clone and exec; Sandbox.user() says who the command is"
NO_GROUP = "the command leads a session of its own; pipes have the usual size"


def _box() -> Sandbox:
    box = Sandbox().rootfs("/", readonly=False).bind("/dev", "/dev", dev=True).bind("/tmp", "/tmp")
    box = box.seccomp(None).limit(core=None)
    return box.user(0, 0, host_root=True) if os.geteuid() == 0 else box


_BOX = _box()


class Popen:
    """The words of subprocess.Popen, put into those of `Sandbox.popen`."""

    def __init__(self, args: Any, bufsize: int = -1, executable: Any = None, stdin: Any = None, stdout: Any = None,
                 stderr: Any = None, preexec_fn: Any = None, close_fds: bool = True, shell: bool = False,
                 cwd: Any = None, env: Any = None, universal_newlines: Any = None, startupinfo: Any = None,
                 creationflags: int = 0, restore_signals: bool = True, start_new_session: bool = False,
                 pass_fds: Any = (), *, user: Any = None, group: Any = None, extra_groups: Any = None,
                 encoding: Any = None, errors: Any = None, text: Any = None, umask: int = -1, pipesize: int = -1,
                 process_group: Any = None) -> None:  # fmt: skip
        self._process: Process[Any] | None = None
        if preexec_fn is not None or user is not None or group is not None or extra_groups is not None:
            raise unittest.SkipTest(NO_ARGUMENT)
        if process_group is not None or pipesize != -1:
            raise unittest.SkipTest(NO_GROUP)
        if startupinfo is not None or creationflags:
            raise ValueError("startupinfo and creationflags are only supported on Windows platforms")
        if text is not None and universal_newlines is not None and bool(universal_newlines) != bool(text):
            raise subprocess.SubprocessError("Cannot disambiguate when text and universal_newlines are different.")
        if pass_fds and not close_fds:
            warnings.warn("pass_fds overriding close_fds.", RuntimeWarning, stacklevel=2)
            close_fds = True
        if bufsize is None:
            bufsize = -1
        if not isinstance(bufsize, int):
            raise TypeError("bufsize must be an integer")
        self.args = args
        if shell and isinstance(args, os.PathLike):
            raise TypeError("path-like args is not allowed when shell is true")
        if isinstance(args, str | bytes | os.PathLike):
            args = [args]
        args = list(args)
        if shell:
            args = ["/bin/sh", "-c", *args]
            if executable is not None:
                args[0] = executable
        if not close_fds:
            pass_fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _inheritable(fd)]
        self.text_mode = bool(text or universal_newlines or encoding or errors)
        self.encoding, self.errors = encoding, errors
        box = _BOX if umask < 0 else _BOX.umask(umask)
        options: dict[str, Any] = {}
        if self.text_mode:
            options = {"text": True, "encoding": encoding, "errors": errors}
        if executable is not None:
            options["executable"] = executable
        self._process = box.popen(
            args, bufsize=bufsize, stdin=stdin, stdout=stdout, stderr=stderr,
            env={os.fsdecode(name): os.fsdecode(value) for name, value in (os.environ if env is None else env).items()},
            cwd=os.path.abspath(cwd or os.getcwd()), pass_fds=pass_fds,
            **options,
        )  # fmt: skip
        self.stdin, self.stdout, self.stderr = self._process.stdin, self._process.stdout, self._process.stderr
        self.pid = self._process.init_pid

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_process"], name)

    def __repr__(self) -> str:
        return f"<Popen: returncode: {self.returncode} args: {self.args!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        assert self._process is not None
        self._process.__exit__(*what)

    __class_getitem__ = classmethod(types.GenericAlias)


def _inheritable(fd: int) -> bool:
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def main(names: list[str]) -> int:
    subprocess.Popen = Popen  # type: ignore[misc,assignment]
    from test import test_subprocess as tests

    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for name in names:
        case = getattr(tests, name)
        for test in loader.getTestCaseNames(case):
            reason = DIFFERS.get(f"{name}.{test}") or DIFFERS.get(test)
            if reason:
                setattr(case, test, unittest.skip(reason)(getattr(case, test)))
        suite.addTest(loader.loadTestsFromTestCase(case))
    done = unittest.TextTestRunner(verbosity=2).run(suite)
    return 0 if done.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
