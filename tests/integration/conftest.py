"""Fixtures of the tests that meet the kernel."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory of the user that the test runs as, which pytest's own (root's, 0700) is not.

    Root's tests have one of the same user: what belongs to root is bound writable only where owner=0 says so.
    """
    path = Path(tempfile.mkdtemp(prefix="sandbox-test-"))
    harness.give_away(path)
    yield path
    shutil.rmtree(path, ignore_errors=os.geteuid() != 0)


@pytest.fixture
def in_flight() -> Iterator[None]:
    """Keep apart the tests that send many descriptors and those that may send only a few: the kernel counts by user."""
    with open(os.path.join(harness.REPOSITORY, "pyproject.toml")) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
