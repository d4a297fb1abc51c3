"""What a command may use: the limits hold, and what is in force is read back."""

import math
import resource

import payloads
import pytest

from sandbox import Sandbox, SetupError

pytestmark = pytest.mark.needs_userns


def test_resource_limits_are_those_of_the_payload_and_read_back():
    box = Sandbox().limit(open_files=20, file_size="1M", stack="2M", core="4K")
    done = box.run(
        payloads.script(
            "import resource as r\n"
            "say([r.getrlimit(x) for x in (r.RLIMIT_NOFILE, r.RLIMIT_FSIZE, r.RLIMIT_STACK, r.RLIMIT_CORE)])"
        ),
        capture_output=True,
        text=True,
    )
    expected = {"open_files": 20, "file_size": 1 << 20, "stack": 2 << 20, "core": 4096}
    assert str([[value, value] for value in expected.values()]) == done.stdout.strip()
    assert expected.items() <= done.enforced.limits.items()


def test_limit_that_is_not_asked_for_is_the_callers():
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = Sandbox().run(["true"]).enforced.limits
    assert (soft, 1, math.inf) == (limits["open_files"], limits["core"], limits["cpu_time"])


def test_no_limit_on_core_leaves_the_callers():
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    assert (math.inf if soft == -1 else soft) == Sandbox().limit(core=None).run(["true"]).enforced.limits["core"]


def test_descriptors_end_at_the_limit():
    body = """
files = []
def more():
    while True:
        files.append(os.open("/dev/null", 0))
failed = tried(more)
count = len(files)
for one in files: os.close(one)
say([failed, count])
"""
    failed, count = payloads.tell(Sandbox().limit(open_files=32), body)
    assert ("EMFILE", True) == (failed, 20 <= count < 32)
    assert payloads.tell(Sandbox().limit(open_files=64), body)[1] > 40


def test_least_open_files_start_a_program_with_landlock_and_cwd():
    box = Sandbox().limit(open_files=4).landlock(read=["/"], execute=["/usr", "/lib"]).cwd("/tmp")
    assert 0 == box.run(["true"]).returncode


def test_file_beyond_its_size_ends_the_writer():
    done = Sandbox().limit(file_size=1000).run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=2000", "count=2", "status=none"])
    assert "SIGXFSZ" in done.detail
    assert 0 == Sandbox().run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=2000", "count=2", "status=none"]).returncode


def test_limit_above_the_callers_hard_one_is_an_error_that_says_so():
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked = {"open_files": files + 1} if hard == resource.RLIM_INFINITY else {"stack": hard + 4096}
    with pytest.raises(SetupError, match="hard limit"):
        Sandbox().limit(**asked).run(["true"])
