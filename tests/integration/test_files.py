"""openat2, close_range, memfd with seals, and the names of the system, against the kernel."""

import errno
import os
import resource
import signal

import harness
import pytest

from sandbox import primitives as kernel
from sandbox.primitives import AT_FDCWD


@pytest.fixture
def tree(tmp_path):
    """A directory with links that lead out of it."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_text("inner")
    (tmp_path / "file").write_text("outer")
    (tmp_path / "inside" / "up").symlink_to("../file")
    (tmp_path / "inside" / "absolute").symlink_to("/file")
    (tmp_path / "inside" / "link").symlink_to("file")
    fd = os.open(tmp_path / "inside", os.O_PATH)
    yield fd
    os.close(fd)


def read(fd):
    with open(fd) as stream:
        return stream.read()


def test_openat2_opens_read_only_and_close_on_exec(tree):
    fd = kernel.openat2(tree, "file")
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError):
        os.write(fd, b"x")
    assert "inner" == read(fd)


@pytest.mark.parametrize(
    ("path", "resolve", "error"),
    [
        ("up", kernel.RESOLVE_BENEATH, errno.EXDEV),
        ("../file", kernel.RESOLVE_BENEATH, errno.EXDEV),
        ("/etc", kernel.RESOLVE_BENEATH, errno.EXDEV),
        ("link", kernel.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        ("up", kernel.RESOLVE_IN_ROOT, None),
        ("absolute", kernel.RESOLVE_IN_ROOT, None),
        ("link", kernel.RESOLVE_BENEATH, None),
    ],
)
def test_openat2_stays_inside(tree, path, resolve, error):
    if error is None:
        assert "inner" == read(kernel.openat2(tree, path, resolve=resolve))
        return
    with pytest.raises(OSError) as caught:
        kernel.openat2(tree, path, resolve=resolve)
    assert (error, path) == (caught.value.errno, caught.value.filename)


def test_openat2_without_limits_leaves(tree):
    assert "outer" == read(kernel.openat2(tree, "up"))


def test_openat2_refuses_magic_links_and_other_mounts():
    for path, resolve, error in (
        ("/proc/self/exe", kernel.RESOLVE_NO_MAGICLINKS, errno.ELOOP),
        ("/proc/self", kernel.RESOLVE_NO_XDEV, errno.EXDEV),
    ):
        with pytest.raises(OSError) as caught:
            kernel.openat2(AT_FDCWD, path, resolve=resolve)
        assert error == caught.value.errno


def test_openat2_creates_with_the_mode_and_refuses_an_idle_one(tree, tmp_path):
    def check():
        os.umask(0)
        os.close(kernel.openat2(tree, "new", os.O_CREAT | os.O_WRONLY, 0o640))
        assert 0o640 == os.stat("new", dir_fd=tree).st_mode & 0o7777
        with pytest.raises(OSError) as caught:
            kernel.openat2(tree, "new", os.O_RDONLY, 0o640)
        assert errno.EINVAL == caught.value.errno

    harness.in_child(check)


def test_openat2_of_a_fifo_runs_python_handlers_and_goes_on(tmp_path):
    def check():
        fifo = str(tmp_path / "fifo")
        os.mkfifo(fifo)
        writers = []

        def open_other_end(*_):
            # A read-write open of a FIFO never waits, and lets the other end go on.
            writers.append(os.open(fifo, os.O_RDWR))

        signal.signal(signal.SIGALRM, open_other_end)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        os.close(kernel.openat2(AT_FDCWD, fifo))
        assert 1 == len(writers)

    harness.in_child(check)


def test_close_range_closes_only_the_range():
    def check():
        fds = [os.dup(2) for _ in range(5)]
        low = 100
        for offset, fd in enumerate(fds):
            os.dup2(fd, low + offset)
        kernel.close_range(low + 1, low + 3)
        assert {low, low + 4} == {fd for fd in harness.footprint().descriptors if fd >= low}
        kernel.close_range(low)
        assert set() == {fd for fd in harness.footprint().descriptors if fd >= low}

    harness.in_child(check)


def test_close_range_cloexec_marks_instead():
    def check():
        fd = os.dup(2)
        os.set_inheritable(fd, True)
        kernel.close_range(fd, fd, kernel.CLOSE_RANGE_CLOEXEC)
        assert not os.get_inheritable(fd)

    harness.in_child(check)


def test_close_range_unshare_leaves_the_other_process_alone():
    def check():
        fd = os.dup(2)
        for flags in (kernel.CLOSE_RANGE_UNSHARE, 0):
            pid = kernel.clone3(kernel.CLONE_FILES)
            if pid == 0:
                kernel.close_range(fd, fd, flags)
                os._exit(0)
            os.waitpid(pid, 0)
            assert bool(flags) == (fd in harness.footprint().descriptors)

    harness.in_child(check)


def test_memfd_is_named_and_close_on_exec():
    fd = kernel.memfd_create("a name")
    assert not os.get_inheritable(fd)
    assert "/memfd:a name (deleted)" == os.readlink(f"/proc/self/fd/{fd}")
    with pytest.raises(PermissionError):
        kernel.add_seals(fd, kernel.F_SEAL_WRITE)
    assert kernel.Seals.SEAL == kernel.get_seals(fd)
    os.close(fd)


def test_sealed_memfd_cannot_be_changed():
    fd = kernel.memfd_create("x", kernel.MFD_CLOEXEC | kernel.MFD_ALLOW_SEALING)
    os.write(fd, b"content")
    seals = kernel.F_SEAL_SEAL | kernel.F_SEAL_SHRINK | kernel.F_SEAL_GROW | kernel.F_SEAL_WRITE
    kernel.add_seals(fd, seals)
    assert seals == kernel.get_seals(fd)
    for change in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: kernel.add_seals(fd, kernel.F_SEAL_FUTURE_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()
    assert b"content" == os.pread(fd, 100, 0)
    os.close(fd)


@pytest.mark.needs_kernel(6, 3)
def test_memfd_executable_or_not():
    fd = kernel.memfd_create("x", kernel.MFD_CLOEXEC | kernel.MFD_EXEC)
    assert 0o777 == os.stat(fd).st_mode & 0o777
    os.close(fd)
    fd = kernel.memfd_create("x", kernel.MFD_CLOEXEC | kernel.MFD_NOEXEC_SEAL)
    assert 0o666 == os.stat(fd).st_mode & 0o777
    assert kernel.F_SEAL_EXEC in kernel.get_seals(fd)
    with pytest.raises(PermissionError):
        os.chmod(fd, 0o777)
    os.close(fd)


def test_memfd_name_of_250_bytes_is_einval():
    with pytest.raises(OSError) as caught:
        kernel.memfd_create("x" * 250)
    assert errno.EINVAL == caught.value.errno


def test_no_descriptor_left_raises_emfile():
    def check():
        fd = os.dup(2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, fd + 1))
        for call in (lambda: kernel.memfd_create("x"), lambda: kernel.openat2(AT_FDCWD, "/")):
            with pytest.raises(OSError) as caught:
                call()
            assert errno.EMFILE == caught.value.errno

    harness.in_child(check)


@pytest.mark.needs_userns
@pytest.mark.parametrize("name", ["box", "x" * 64, "", b"\xffbox", "größer"])
def test_host_and_domain_name_are_set_and_read(name):
    def check():
        harness.enter_namespaces(kernel.CLONE_NEWUTS)
        kernel.sethostname(name)
        kernel.setdomainname(name)
        assert (os.fsdecode(name), os.fsdecode(name)) == (kernel.gethostname(), kernel.getdomainname())
        assert os.fsdecode(name) == os.uname().nodename
        for call in (kernel.sethostname, kernel.setdomainname):
            with pytest.raises(OSError) as caught:
                call("x" * 65)
            assert errno.EINVAL == caught.value.errno

    harness.in_child(check)


@pytest.mark.needs_user
def test_unprivileged_sethostname_is_eperm():
    with pytest.raises(PermissionError):
        kernel.sethostname("mine")
