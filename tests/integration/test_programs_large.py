"""Larger work inside: environments, test suites, builds, whole trees; what comes out is looked at."""

import glob
import os
import shutil
import subprocess
import sys
import zipfile

import harness
import payloads
import pytest

from sandbox import Sandbox

pytestmark = pytest.mark.needs_userns

PATH = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(autouse=True)
def reachable(tmp_path):
    """Who is inside is another user, when root launches."""
    tmp_path.chmod(0o755)


def sh(box, script, **options):
    done = box.run(["/bin/sh", "-ec", script], capture_output=True, text=True, timeout=100, **options)
    assert 0 == done.returncode, (done.detail, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def wheel(path):
    """Write a wheel by hand: a module and the script that calls it."""
    name = path / "greeting-1.0-py3-none-any.whl"
    files = {
        "greeting.py": "def main(): print('hello from a wheel')\n",
        "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "greeting-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "greeting-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
    }
    record = "".join(f"{one},,\n" for one in (*files, "greeting-1.0.dist-info/RECORD"))
    with zipfile.ZipFile(name, "w") as archive:
        for one, content in {**files, "greeting-1.0.dist-info/RECORD": record}.items():
            archive.writestr(one, content)
    return name.name


def test_venv_is_made_and_a_wheel_installed_without_network(tmp_path):
    box = Sandbox().bind_readonly(tmp_path, "/wheels")
    said = sh(
        box,
        f"{payloads.PYTHON} -m venv /tmp/v && /tmp/v/bin/pip install -q --disable-pip-version-check --no-index"
        f" /wheels/{wheel(tmp_path)} && /tmp/v/bin/greet && /tmp/v/bin/python -c 'import sys; print(sys.prefix)'",
    )
    assert "hello from a wheel\n/tmp/v\n" == said


def test_pytest_runs_a_suite_in_two_processes():
    if sys.prefix == sys.base_prefix:
        pytest.skip("pytest is no part of an environment here")
    suite = "".join(f"def test_{number}(tmp_path): assert {number} * 2 == {2 * number}\n" for number in range(40))
    box = Sandbox().python().file("/suite/test_it.py", suite + "def test_wrong(): assert 1 == 2\n").cwd("/suite")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "/suite"]
    done = box.run(command, capture_output=True, text=True, timeout=100)
    assert 1 == done.returncode, done.stdout + done.stderr
    assert "1 failed, 40 passed" in done.stdout


@pytest.mark.needs_program("make", "gcc")
def test_parallel_make_of_500_files():
    makefile = (
        "objects := $(patsubst %.c,%.o,$(wildcard *.c))\nprogram: $(objects)\n\tgcc -o $@ $^\n"
        "%.o: %.c\n\tgcc -O0 -c -o $@ $<\n"
    )
    sources = (
        'mkdir /tmp/b; cd /tmp/b; i=0; while [ $i -lt 500 ]; do echo "int f$i(void) { return $i; }" >f$i.c;'
        " i=$((i+1)); done;"
        ' { echo "#include <stdio.h>"; seq -f "int f%.0f(void);" 0 499; echo "int main(void) { int s = 0;";'
        ' seq -f "s += f%.0f();" 0 499; echo \'printf("%d", s); return 0; }\'; } >main.c;'
        " cp /etc/makefile Makefile; make -s -j4 program; ./program; echo; ls *.o | wc -l"
    )
    assert "124750\n501\n" == sh(Sandbox().file("/etc/makefile", makefile), sources)


@pytest.mark.needs_program("javac", "java")
def test_javac_compiles_and_java_runs():
    source = """
        import java.util.concurrent.*;
        public class Main {
            public static void main(String[] args) throws Exception {
                ExecutorService pool = Executors.newFixedThreadPool(4);
                Future<Integer> sum = pool.submit(() -> java.util.stream.IntStream.range(0, 1000).sum());
                System.out.println(args[0] + sum.get());
                pool.shutdown();
            }
        }
    """
    box = Sandbox().file("/src/Main.java", source)
    said = sh(box, "javac -J-XX:+UseSerialGC -d /tmp/out /src/Main.java; java -XX:+UseSerialGC -cp /tmp/out Main sum=")
    assert "sum=499500\n" == said


@pytest.mark.needs_program("gcc")
def test_static_program_needs_no_root_at_all(tmp_path):
    source = tmp_path / "a.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("static"); return 7; }\n')
    compiler = harness.find_program("musl-gcc") or "gcc"
    subprocess.run([compiler, "-static", "-o", tmp_path / "a", source], check=True)
    box = Sandbox.empty().bind_readonly(tmp_path / "a", "/a")
    done = box.run(["/a"], capture_output=True, text=True)
    assert ("static\n", 7) == (done.stdout, done.returncode)


@pytest.mark.needs_program("tar", "find")
def test_tar_packs_a_large_tree_and_find_counts_it_again():
    tree = "/usr/share/doc"
    script = (
        f"tar -C {tree} -cf /tmp/t.tar . && mkdir /tmp/x && tar -C /tmp/x -xf /tmp/t.tar && cd {tree} &&"
        " find . -type f -o -type l | wc -l && cd /tmp/x && find . -type f -o -type l | wc -l &&"
        f" diff -r --no-dereference {tree} /tmp/x && echo same"
    )
    inside, packed, same = sh(Sandbox(), script).split()
    script = f"cd {tree} && find . -type f -o -type l | wc -l"
    outside = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert [outside.stdout.strip()] * 2 + ["same"] == [inside, packed, same]


@pytest.mark.needs_program("dpkg")
def test_tree_of_debian_packages_is_a_root_file_system(tmp_path):
    """As debootstrap leaves it: files of packages, and nothing of the host beside."""
    root = tmp_path / "root"
    wanted = ["base-files", "bash", "coreutils", "libc6", "libtinfo6", "dpkg", "sed", "grep", "findutils"]
    wanted += ["libselinux1", "libpcre2-8-0", "libacl1", "libattr1", "libgmp10", "libmd0", "libbz2-1.0", "liblzma5"]
    wanted += ["libzstd1", "zlib1g", "libpcre3"]
    known = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\n"], capture_output=True, text=True, check=True)
    present = [name for name in wanted if name in known.stdout.split()]
    listed = subprocess.run(["dpkg", "-L", *present], capture_output=True, text=True, check=True).stdout.split("\n")
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "tmp", "proc", "dev", "root"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        os.symlink(f"usr/{name}", root / name)
    for path in listed:
        inside = str(root) + path
        if path.startswith(("/usr/share/doc", "/usr/share/man", "/usr/share/locale")) or os.path.lexists(inside):
            continue
        if os.path.islink(path):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(os.readlink(path), inside)
        elif os.path.isfile(path) and os.access(path, os.R_OK):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            shutil.copy(path, inside)
    box = Sandbox().rootfs(root).env(PATH="/usr/bin:/bin")
    script = "cat /etc/debian_version; dpkg --version | head -1 | grep -o Debian; find /usr/bin -name bash"
    done = box.run(["/bin/bash", "-c", script], capture_output=True, text=True, timeout=60)
    with open("/etc/debian_version") as stream:
        version = stream.read()
    said = done.stdout.splitlines()
    assert [version.strip(), "Debian", "/usr/bin/bash"] == said[:3], done.stderr
    assert not glob.glob(f"{root}/usr/bin/python*")
    with pytest.raises(FileNotFoundError):
        box.run(["python3"])


@pytest.mark.needs_program("openssl")
def test_openssl_makes_a_certificate_that_verifies():
    said = sh(
        Sandbox(),
        "cd /tmp; openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 1 -subj /CN=inside 2>/dev/null;"
        " openssl verify -CAfile c c; openssl x509 -in c -noout -subject",
    )
    assert "c: OK" in said
    assert "CN = inside" in said or "CN=inside" in said


@pytest.mark.needs_program("sqlite3")
def test_sqlite_shell_keeps_a_database_in_a_bind(tmp_path):
    payloads.ours(tmp_path)
    box = Sandbox().bind(tmp_path, "/data")
    sh(box, "sqlite3 /data/db 'pragma journal_mode=wal; create table t(a); insert into t values (1), (41);'")
    assert "42\n" == sh(box, "sqlite3 /data/db 'select sum(a) from t'")
