"""limit(output=): what is taken of a flood, what becomes of the rest, and that it costs no memory."""

import os
import resource
import signal

import payloads
import pytest

from sandbox import PIPE, STDOUT, Reason, Sandbox

pytestmark = pytest.mark.needs_userns
FLOOD = ["sh", "-c", "yes 0123456; echo never"]
SOME = ["sh", "-c", "head -c 5000 /dev/zero; head -c 5000 /dev/zero >&2; exit 3"]


def test_flood_is_ended_and_the_beginning_kept():
    done = Sandbox().limit(output=100_000).run(FLOOD, capture_output=True)
    assert (Reason.OUTPUT_LIMIT, -signal.SIGKILL, True) == (done.reason, done.returncode, done.truncated)
    assert b"0123456\n" * 12_500 == done.stdout
    assert "100000" in done.detail


def test_rest_is_discarded_and_the_command_goes_on():
    box = Sandbox().limit(output=1000, when_output_full="discard")
    done = box.run(["sh", "-c", "head -c 3000000 /dev/zero; exit 3"], capture_output=True)
    assert (Reason.EXITED, 3, True, bytes(1000)) == (done.reason, done.returncode, done.truncated, done.stdout)


def test_both_streams_count():
    done = Sandbox().limit(output=7000, when_output_full="discard").run(SOME, capture_output=True)
    assert (7000, True, 3) == (len(done.stdout) + len(done.stderr), done.truncated, done.returncode)


@pytest.mark.parametrize("limit", [10_000, "1M", None])
def test_output_within_the_limit_is_whole(limit):
    done = Sandbox().limit(output=limit).run(SOME, capture_output=True)
    assert (5000, 5000, False, Reason.EXITED) == (len(done.stdout), len(done.stderr), done.truncated, done.reason)


def test_more_than_the_limit_is_told_also_when_the_command_had_ended_by_itself():
    done = Sandbox().limit(output=0).run(["echo", "x"], capture_output=True)
    assert (Reason.OUTPUT_LIMIT, b"", True) == (done.reason, done.stdout, done.truncated)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("bufsize", [-1, 0])
def test_streams_that_the_caller_reads_end_at_the_limit(bufsize, text):
    box = Sandbox().limit(output=10_000)
    with box.popen(FLOOD, stdout=PIPE, stderr=STDOUT, bufsize=bufsize, text=text) as process:
        assert 10_000 == len(process.stdout.read())
        assert -signal.SIGKILL == process.wait()
        assert Reason.OUTPUT_LIMIT is process.result().reason


def test_streams_read_in_pieces_end_at_the_limit():
    with Sandbox().limit(output=20).popen(FLOOD, stdout=PIPE, bufsize=0) as process:
        pieces = [process.stdout.read(8), process.stdout.read(8), process.stdout.read(8), process.stdout.read(8)]
        assert [b"0123456\n", b"0123456\n", b"0123", b""] == pieces


def test_caller_who_reads_has_the_rest_discarded():
    box = Sandbox().limit(output=10, when_output_full="discard")
    with box.popen(["sh", "-c", "head -c 1000000 /dev/zero; exit 4"], stdout=PIPE) as process:
        assert bytes(10) == process.stdout.read()
        assert (4, True) == (process.wait(), process.result().truncated)


def test_limit_of_communicate():
    with Sandbox().limit(output=10).popen(FLOOD, stdout=PIPE) as process:
        assert (b"0123456\n01", None) == process.communicate()


@pytest.mark.parametrize("when", ["kill", "discard"])
def test_memory_of_the_caller_is_bounded(when):
    """Byte by byte, and a hundred times the limit."""
    writes = "import os\nfor _ in range(3000): os.write(1, b'x')\nfor _ in range(2000): os.write(1, bytes(65536))"
    box = Sandbox().limit(output="1M", when_output_full=when)
    box.run(["true"], capture_output=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = box.run([payloads.PYTHON, "-S", "-c", writes], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (1 << 20, True) == (len(done.stdout), done.truncated)
    assert after - before < 16 << 10  # KiB


def test_file_of_the_caller_is_not_limited_and_enforced_says_so(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        done = Sandbox().limit(output=10).run(["head", "-c", "1000", "/dev/zero"], stdout=out)
    assert (1000, False) == (os.path.getsize(tmp_path / "out"), done.truncated)
    assert any("output" in gap for gap in done.enforced.gaps)
