"""What is in `vagrant/` can be read by those whom it is for."""

import os
import subprocess
import sys

import harness
import pytest

DIRECTORY = os.path.join(harness.REPOSITORY, "vagrant")


# Not needs_program: Vagrant brings half a Ruby along, which is too much to install for one test.
@pytest.mark.skipif(harness.find_program("vagrant") is None, reason="Vagrant is not installed")
def test_vagrantfile_is_valid(tmp_path: str) -> None:
    environment = {**os.environ, "VAGRANT_HOME": f"{tmp_path}/home", "VAGRANT_DOTFILE_PATH": f"{tmp_path}/dot"}
    result = subprocess.run(
        ["vagrant", "validate"], cwd=DIRECTORY, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (0, "") == (result.returncode, result.stderr)


@pytest.mark.parametrize("words", [["--machine", "5.4"], ["--as", "nobody"], ["--limit", "soon"]])
def test_run_wrong_option_is_refused_before_anything_starts(words: list[str]) -> None:
    result = subprocess.run([sys.executable, f"{DIRECTORY}/run", *words], capture_output=True, text=True, timeout=60)
    assert 2 == result.returncode
    assert words[0] in result.stderr
