"""Result: what it compares, shows, pickles and raises."""

import pickle
import subprocess

import pytest

from sandbox import CalledProcessError
from sandbox.result import Enforced, Reason, Result, Usage


def test_result_compares_and_pickles():
    result = Result(
        ["a"], 3, "out", None, reason=Reason.TIMEOUT, detail="d", usage=Usage(1.0), enforced=Enforced(uid=5)
    )
    again = pickle.loads(pickle.dumps(result))
    assert result == again
    assert (Reason.TIMEOUT, 5, 1.0) == (again.reason, again.enforced.uid, again.usage.wall)
    assert result != Result(["a"], 3, "out", None)
    assert result != 3
    assert "reason='timeout'" in repr(result)
    assert isinstance(result, subprocess.CompletedProcess)
    with pytest.raises(TypeError):
        hash(result)


def test_result_check_returncode_raises_with_itself():
    result = Result(["a"], 3, b"o", b"e")
    with pytest.raises(CalledProcessError) as caught:
        result.check_returncode()
    assert result is caught.value.result
    assert (3, b"o", b"e") == (caught.value.returncode, caught.value.output, caught.value.stderr)
    Result(["a"], 0).check_returncode()
