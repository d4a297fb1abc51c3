"""The interpreter that runs the caller runs inside, wherever it is from; a program that is not there is explained."""

import glob
import json
import os
import shutil
import subprocess
import sys

import payloads
import pytest

from sandbox import Sandbox, SetupError

pytestmark = pytest.mark.needs_userns

# What a caller does: it finds the library under test, runs sys.executable inside, and says what came out.
CALLER = """
import json, sys
sys.path.append({library!r})
from sandbox import Sandbox
box = {box}
done = box.run([sys.executable, *{arguments!r}], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""


@pytest.fixture(autouse=True)
def reachable(tmp_path):
    """Who is inside is another user, when root launches."""
    tmp_path.chmod(0o755)


WHERE = ["-c", "import sys, json; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix]))"]
LIBRARY = os.path.dirname(os.path.dirname(sys.modules["sandbox"].__file__))


def call(python, arguments=WHERE, box="Sandbox()", *, options=(), env=None):
    """Run a caller with an interpreter; return what that one said of itself inside."""
    code = CALLER.format(library=LIBRARY, box=box, arguments=arguments)
    env = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/tmp"), **(env or {})}
    # Not from the checkout, which has no compiled module.
    done = subprocess.run([python, *options, "-c", code], capture_output=True, text=True, env=env, timeout=100, cwd="/")
    assert 0 == done.returncode, done.stderr
    status, out, err = json.loads(done.stdout)
    assert 0 == status, err
    return out


def told(python, **options):
    return json.loads(call(python, **options))


def itself(python):
    return json.loads(subprocess.run([python, *WHERE], capture_output=True, text=True, check=True).stdout)


def virtual(path, python=payloads.PYTHON):
    """Make a virtual environment with a package in it."""
    subprocess.run([python, "-m", "venv", "--without-pip", path], check=True, timeout=100)
    (site,) = glob.glob(f"{path}/lib/python*/site-packages")
    with open(f"{site}/inside_venv.py", "w") as module:
        module.write("VALUE = 42\n")
    return f"{path}/bin/python", site


def test_interpreter_of_the_tests_runs_inside():
    done = Sandbox().run([sys.executable, *WHERE], capture_output=True, text=True)
    assert [sys.executable, sys.prefix, sys.base_prefix] == json.loads(done.stdout)


def test_debians_python_needs_nothing():
    assert itself(payloads.PYTHON) == told(payloads.PYTHON)


def test_virtual_environment_has_its_packages_and_cannot_be_written(tmp_path):
    python, site = virtual(str(tmp_path / "venv"))
    assert itself(python) == told(python)
    body = f"import inside_venv; print(inside_venv.VALUE); open({site!r} + '/x', 'w')"
    code = f"try:\n exec({body!r})\nexcept OSError as error: print(error.errno)"
    assert "42\n30\n" == call(python, ["-c", code])


def test_editable_installs_and_pth_files_are_followed(tmp_path):
    python, site = virtual(str(tmp_path / "venv"))
    for name in ("named", "editable", "hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in_{name}.py").write_text("VALUE = 1\n")
    with open(f"{site}/paths.pth", "w") as file:
        file.write(f"# a comment\nimport sys; sys.path.append({str(tmp_path / 'editable')!r})\n{tmp_path / 'named'}\n")
    info = f"{site}/editable-1.dist-info"
    os.mkdir(info)
    with open(f"{info}/direct_url.json", "w") as file:
        json.dump({"url": f"file://{tmp_path}/editable", "dir_info": {"editable": True}}, file)
    code = f"import os, in_named, in_editable; print(os.path.exists({str(tmp_path / 'hidden')!r}))"
    assert "False\n" == call(python, ["-c", code])


@pytest.mark.needs_root
@pytest.mark.skipif(not glob.glob("/root/.pyenv/versions/3.12*/bin/python3"), reason="no pyenv here")
def test_pyenv_in_a_home_that_is_closed_to_others():
    (python, *_) = sorted(glob.glob("/root/.pyenv/versions/3.12*/bin/python3"))
    assert 0 == os.stat("/root").st_mode & 0o077
    # It has no library to load: what it would say of itself, and a sandbox that shows just that.
    module = os.path.join(LIBRARY, "sandbox/interpreter.py")
    code = (
        f"import json; exec(compile(open({module!r}).read(), 'x', 'exec')); print(json.dumps(list(missing(['/usr']))))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    box = Sandbox()
    for path, points_to in json.loads(done.stdout):
        box = box.symlink(points_to, path) if points_to else box.bind_readonly(path)
    done = box.run([python, *WHERE], capture_output=True, text=True)
    assert itself(python) == json.loads(done.stdout), done.stderr


def test_links_to_the_interpreter_are_links_inside(tmp_path):
    """uv and others: a link in a directory of its own, which leads by another link to the binary."""
    (tmp_path / "tools").mkdir()
    virtual(str(tmp_path / "venv-1.2"))
    os.symlink("venv-1.2", tmp_path / "venv")
    os.symlink(tmp_path / "venv/bin/python", tmp_path / "tools/py")
    linked = str(tmp_path / "venv/bin/python")
    assert itself(linked) == told(linked)


def test_users_packages_come_with_python(tmp_path):
    version = subprocess.run(
        [payloads.PYTHON, "-c", "import sysconfig; print(sysconfig.get_python_version())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    site = tmp_path / f".local/lib/python{version}/site-packages"
    site.mkdir(parents=True)
    (site / "of_the_user.py").write_text("VALUE = 3\n")
    env = {"HOME": str(tmp_path)}
    code = ["-c", "import of_the_user; print(of_the_user.VALUE)"]
    assert "3\n" == call(payloads.PYTHON, code, "Sandbox().python()", env=env)


def test_zip_archive_on_the_path_is_visible(tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    (app / "in_archive.py").write_text("VALUE = 7\n")
    (app / "__main__.py").write_text(
        f"import subprocess, sys\nsys.path.append({LIBRARY!r})\nfrom sandbox import Sandbox\n"
        "code = f'import sys; sys.path.insert(0, {sys.path[0]!r}); import in_archive; print(in_archive.VALUE)'\n"
        "done = Sandbox().python().run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "print(done.stdout, done.stderr)\n"
    )
    archive = str(tmp_path / "app.pyz")
    subprocess.run([payloads.PYTHON, "-m", "zipapp", str(app), "-o", archive], check=True)
    done = subprocess.run([payloads.PYTHON, archive], capture_output=True, text=True, timeout=100)
    assert "7" == done.stdout.strip(), done.stderr


def test_empty_root_gets_a_python_that_runs():
    done = Sandbox.empty().python().run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True)
    assert "42\n" == done.stdout


def test_bind_of_the_caller_is_not_made_readonly(tmp_path):
    python, site = virtual(str(tmp_path / "venv"))
    if os.geteuid() == 0:
        payloads.ours(site)
    code = ["-c", f"open({site!r} + '/x', 'w').close(); print('written')"]
    assert "written\n" == call(python, code, f"Sandbox().bind({str(tmp_path)!r})")


# ── what is not there ──


def test_program_of_the_host_names_its_path_and_the_method(tmp_path):
    tool = tmp_path / "tool"
    shutil.copy("/usr/bin/true", tool)
    with pytest.raises(FileNotFoundError) as caught:
        Sandbox().run([str(tool)])
    assert isinstance(caught.value, SetupError)
    assert f'the host has {tool}: make it visible with .bind_readonly("{tmp_path}")' in str(caught.value)
    assert 0 == Sandbox().bind_readonly(tmp_path).run([str(tool)]).returncode


def test_program_of_the_environment_names_python():
    tool = os.path.join(os.path.dirname(sys.executable), "pytest")
    if not os.path.exists(tool) or sys.prefix == "/usr":
        pytest.skip("needs the program pytest in a virtual environment")
    with pytest.raises(SetupError, match=r"make it visible with \.python\(\)"):
        Sandbox().run([tool, "--version"])
    assert 0 == Sandbox().python().run([tool, "--version"], capture_output=True).returncode


def script(folder, line):
    path = folder / "script"
    path.write_text(f"#!{line}\n")
    path.chmod(0o755)
    return Sandbox().bind_readonly(folder, "/s")


def test_script_whose_interpreter_is_missing_says_so(tmp_path):
    with pytest.raises(SetupError, match="/s/script is there, but not the interpreter of its first line, '/no/such'"):
        script(tmp_path, "/no/such").run(["/s/script"])


@pytest.mark.parametrize("how", ["nested", "time_offset", "init", "hold", "further", "relative"])
def test_interpreter_that_is_missing_is_named_where_pid_1_cannot_look(how, tmp_path):
    box = script(tmp_path, "/no/such")
    box = {
        "nested": lambda: box.capabilities(["SYS_ADMIN"]),
        "time_offset": lambda: box.time_offset(monotonic=1),
        "init": lambda: box.init(False),
    }.get(how, lambda: box)()

    def run():
        if how == "hold":
            with box.popen(["/s/script"], hold=True) as process:
                process.release()
        elif how in {"further", "relative"}:
            with box.popen(["/usr/bin/sleep", "1000"]) as process:
                try:
                    process.run(["./script" if how == "relative" else "/s/script"], cwd="/s")
                finally:
                    process.kill()
        else:
            box.run(["/s/script"])

    with pytest.raises(SetupError) as caught:
        run()
    assert "script is there, but not the interpreter of its first line, '/no/such'" in caught.value.hint


def test_script_whose_interpreter_only_the_host_has_says_how(tmp_path):
    shutil.copy("/bin/sh", tmp_path / "shell")
    box = script(tmp_path, tmp_path / "shell")
    with pytest.raises(SetupError, match=rf'the host has it: make it visible with \.bind_readonly\("{tmp_path}"\)'):
        box.env(PATH="/s").run(["script"])
    assert 0 == box.bind_readonly(tmp_path).run(["/s/script"]).returncode


def test_binary_whose_loader_is_missing_says_so():
    box = Sandbox.empty().bind_readonly("/usr")
    with pytest.raises(SetupError, match="/usr/bin/true is there, but not its dynamic loader, '/lib"):
        box.run(["/usr/bin/true"])


# ── file_fd ──


def test_pipe_becomes_a_file_and_is_read_once():
    read_end, write_end = os.pipe()
    os.write(write_end, b"hello")
    os.close(write_end)
    box = Sandbox().file_fd("/etc/of-a-pipe", read_end, mode=0o440)
    assert "<read at the first launch>" in str(box.plan(["true"]))
    show = ["sh", "-c", "cat /etc/of-a-pipe; stat -c %a /etc/of-a-pipe"]
    expected = "hello440\n"
    assert expected == box.run(show, capture_output=True, text=True).stdout
    os.close(read_end)
    assert expected == box.hostname("x").run(show, capture_output=True, text=True).stdout
    assert '"hello"' in str(box.plan(["true"]))


def test_file_object_is_read_from_where_it_stands(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with open(tmp_path / "x", "rb", buffering=0) as file:
        file.seek(4)
        assert b"456789" == Sandbox().file_fd("/x", file).run(["cat", "/x"], capture_output=True).stdout


def test_descriptor_that_was_closed_is_an_error_of_the_launch(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SetupError, match=rf'read\({fd}\).*\n.*file_fd\("/x", {fd}\)'):
            Sandbox().file_fd("/x", fd).run(["cat", "/x"])
    finally:
        os.close(fd)
    read_end, write_end = os.pipe()
    box = Sandbox().file_fd("/x", read_end)
    os.close(read_end)
    os.close(write_end)
    # The number may be something else's by now, which must not be read.
    with pytest.raises(SetupError, match="open until the first launch"):
        box.run(["cat", "/x"])


@pytest.mark.parametrize("options", [["--file-fd", "{fd}:/x"]])
def test_options_of_the_command_line(options):
    read_end, write_end = os.pipe()
    os.write(write_end, b"of a descriptor\n")
    os.close(write_end)
    command = os.path.join(os.path.dirname(sys.executable), "sandbox")
    options = [option.format(fd=read_end) for option in options]
    try:
        done = subprocess.run(
            [command, "run", *options, "--time-offset", "monotonic=1e6", "--no-init", "--python", "--", "cat", "/x"],
            pass_fds=[read_end],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(read_end)
    assert "of a descriptor\n" == done.stdout, done.stderr
