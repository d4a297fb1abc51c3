"""Real programs under a recursive watch: nothing that they leave behind was missed."""

import io
import os
import select
import subprocess
import sys
import tarfile
import zipfile

import pytest
from watching import Told, on_disk

from sandbox.events import RecursiveInotify
from sandbox.primitives import IN_CREATE, IN_DELETE, IN_MOVE


def assert_told(root: str, args: list[str], **options) -> tuple[set[str], set[str]]:
    known = Told()
    with RecursiveInotify(root, IN_CREATE | IN_DELETE | IN_MOVE, nonblock=True) as watch:
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
        while process.poll() is None:
            select.select([watch], [], [], 0.05)
            known.hear(watch.read_events())
        error = process.communicate()[1]
        assert 0 == process.returncode, error
        while (events := watch.read_events()) or watch.pending():
            known.hear(events)
        directories, files = on_disk(root)
        assert directories == known.directories
        assert files == known.files
        assert directories | {root} == set(watch.directories)
    assert 0 == known.overflows
    return directories, files


@pytest.mark.needs_program("git")
def test_git_clone_is_told_completely(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", source], check=True, env=environment)
    for number in range(300):
        folder = source / f"folder-{number % 30}" / f"below-{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_text(str(number))
    subprocess.run(["git", "-C", source, "add", "."], check=True, env=environment)
    subprocess.run(["git", "-C", source, *identity, "commit", "-qm", "all"], check=True, env=environment)
    command = ["git", "clone", "-q", "--no-local", str(source), str(target / "clone")]
    _, files = assert_told(str(target), command, env=environment)
    assert 300 == len([name for name in files if "/.git/" not in name])


def test_pip_install_of_a_wheel_is_told_completely(tmp_path):
    wheel, target = tmp_path / "watched-1.0-py3-none-any.whl", tmp_path / "target"
    target.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(200):
            archive.writestr(f"watched/part_{number % 20}/module_{number}.py", f"value = {number}\n")
        archive.writestr("watched-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: watched\nVersion: 1.0\n")
        archive.writestr(
            "watched-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("watched-1.0.dist-info/RECORD", "")
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    try:
        subprocess.run([*pip, "--version"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("needs pip")
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [*pip, "install", "--no-index", "--no-deps", "--no-cache-dir", "--target", str(target), str(wheel)]
    _, files = assert_told(str(target), command, env=environment, cwd=tmp_path)
    assert 200 == len([name for name in files if "/module_" in name and name.endswith(".py")])


@pytest.mark.needs_program("tar")
def test_unpacking_ten_thousand_files_is_told_completely(tmp_path):
    archive, target = tmp_path / "many.tar", tmp_path / "target"
    target.mkdir()
    with tarfile.open(archive, "w") as tar:
        for number in range(10_500):
            member = tarfile.TarInfo(f"include/part-{number % 97}/sub-{number % 11}/header-{number}.h")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"/**/"))
    _, files = assert_told(str(target), ["tar", "-xf", str(archive), "-C", str(target)])
    assert 10_500 == len(files)
