"""CPython's own tests of subprocess, with a Popen made of a sandbox that shares the host's root."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile

import harness
import popen_adapter
import pytest

pytestmark = [
    pytest.mark.needs_userns,
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_subprocess") is None,
        reason="this interpreter has no test.test_subprocess: the package libpython3-testsuite has it",
    ),
]

# How many tests at least run and pass: a change that skips more of them shall not go unnoticed.
CLASSES = {
    "ProcessTestCase": 85,
    "RunFuncTestCase": 18,
    "POSIXProcessTestCase": 30,
    "MiscTests": 2,
    "ContextManagerTests": 5,
}
# What they skip by themselves, here and there.
THEIRS = (
    "Test is not venv-compatible",
    "The Python shared library cannot be loaded with an empty environment.",
    "failed to reach the file descriptor limit",
    "need msvcrt",
    "available on platform",
    "requires",
)


@pytest.mark.parametrize("name", CLASSES)
def test_cpythons_tests_of_subprocess_pass(name):
    program = os.path.join(harness.REPOSITORY, "tests", "popen_adapter.py")
    command = [sys.executable, "-P", program, name]
    with tempfile.TemporaryDirectory() as folder:  # the caller's own: without capabilities root enters no other
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=100)
    assert 0 == done.returncode, done.stderr[-6000:]
    passed = len(re.findall(r"\.\.\. ok$", done.stderr, re.MULTILINE))
    assert passed >= CLASSES[name], done.stderr
    known = {*popen_adapter.DIFFERS.values(), popen_adapter.NO_ARGUMENT, popen_adapter.NO_GROUP}
    for reason in re.findall(r"skipped ['\"](.*)['\"]$", done.stderr, re.MULTILINE):
        assert reason in known or any(words in reason for words in THEIRS), reason
