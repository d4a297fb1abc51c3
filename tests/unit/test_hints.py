import errno

import pytest

from sandbox import kernel as k
from sandbox.hints import hint_for


@pytest.mark.parametrize(
    ("call", "args", "number", "origin", "said"),
    [
        ("open_tree", (), errno.ENOENT, ".bind()", "optional=True"),
        ("open_tree", (), errno.ENOENT, '.rootfs("/x")', "the directory that is to be the root"),
        ("move_mount", (), errno.ENOTDIR, "", "a file on a file"),
        ("openat2", (), errno.ENOENT, '.cwd("/x")', "the working directory must exist inside"),
        ("openat2", (), errno.ENOENT, 'cwd="/x"', "the working directory must exist inside"),
        ("openat2", (), errno.ENOENT, "Sandbox()", "needs the directories /proc, /dev and /tmp"),
        ("move_mount", (), errno.ENOSPC, "", "fs.mount-max"),
        ("clone", (k.CLONE_NEWUSER,), errno.ENOSPC, "", "32 nested"),
        ("clone", (k.CLONE_NEWUSER,), errno.EAGAIN, "", "RLIMIT_NPROC"),
        ("clone", (k.CLONE_NEWNS,), errno.EPERM, "", "share("),
        ("execve", ("no-such", "/bin"), errno.ENOENT, "", "PATH (/bin)"),
        ("execve", ("/no/such", "/bin"), errno.ENOENT, "", "interpreter"),
        ("execve", ("sh", "/nowhere"), errno.ENOENT, "", "bind_readonly"),
        ("execve", ("x", ""), errno.EACCES, "", "executable"),
        ("execve", ("x", ""), errno.ENOEXEC, "", "#!"),
        ("execve", ("x", ""), errno.E2BIG, "", "128 KiB"),
        ("execve", ("x", ""), errno.ETXTBSY, "", "writing"),
        ("fsopen", (), errno.ENOSYS, "", "without fsopen"),
        ("socket", (), errno.EMFILE, "", "RLIMIT_NOFILE"),
        ("write", (), errno.ENOMEM, "", "memory"),
        ("openat2", (), errno.ELOOP, "", "symbolic link"),
        ("write_proc", (), errno.EPERM, "", "id map"),
        ("await_release", (), errno.EPIPE, "", "stage 1"),
        ("openat", (), errno.ENOENT, ".landlock()", "best_effort=True"),
        ("landlock_restrict_self", (), errno.E2BIG, "", "16 layers"),
        ("seccomp_listen", (), errno.EBUSY, "", "supervisor"),
    ],
)
def test_hint_names_the_likely_cause(call, args, number, origin, said):
    assert said in str(hint_for(call, args, number, origin))


def test_hint_for_the_unknown_is_none():
    assert hint_for("chdir", (), errno.EXDEV) is None
