"""The machine's disk: a Debian system in a file, made once and kept until its recipe changes.

mmdebstrap makes the system without root (or with), mke2fs copies it into a file system, and an initrd of a few modules
and busybox replaces Debian's, which takes longer to start than all the rest.
"""

import hashlib
import io
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent


class Machine(NamedTuple):
    """A Debian release, its Python, and the suite that the kernel comes from."""

    release: str
    python: str
    kernel_suite: str


MACHINES = {
    "6.1": Machine("bookworm", "3.11", "bookworm"),
    "6.12": Machine("trixie", "3.13", "trixie"),
    "7": Machine("trixie", "3.13", "trixie-backports"),
}

# What the machine needs to be one, and then what tests of the kernel run. Not all of the tests' programs: compilers,
# servers and shells are the same on any kernel, and too slow when emulated.
PACKAGES = [
    *("systemd-sysv", "libpam-systemd", "dbus", "dbus-user-session", "udev", "kmod", "apparmor"),
    *("mount", "procps", "iproute2", "busybox-static", "python3", "python3-venv"),
    *("bubblewrap", "gcc", "libc6-dev", "strace", "uidmap"),
]

# Not in the image: what nobody reads there.
EXCLUDED = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*", "/lib/firmware/*")

# What stands between the kernel, its root file system, and the ports that the answer goes to.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_console", "virtio_rng")

# Compiling Debian's profiles takes as long as the rest of the boot; AppArmor itself is there without them.
MASKED = ["apparmor.service", "systemd-udev-settle.service", "systemd-timesyncd.service", "timers.target"]

INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod "/modules/$module"; done
until /bin/busybox mount -t ext4 -o noatime /dev/vda /root; do /bin/busybox sleep 0.1; done
exec /bin/busybox switch_root /root /sbin/init
"""

# The payload is a tar on the second disk: the checkout, the wheel, and what to run. vagrant/inside does the rest.
SERVICE = """[Unit]
Description=Tests of the checkout
Requires=basic.target dbus.service systemd-logind.service
After=basic.target dbus.service systemd-logind.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=exec
TasksMax=infinity
ExecStart=/bin/sh -c 'tar -x --no-same-owner -f /dev/vdb -C / && sh /src/vagrant/boot'
StandardOutput=journal+console
"""


def requirements() -> list[str]:
    """Return what the package and its tests need from PyPI."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def packages(machine: Machine) -> list[str]:
    """Return the Debian packages of the image."""
    return [*PACKAGES, f"linux-image-cloud-amd64/{machine.kernel_suite}"]


def cache() -> Path:
    """Return the directory that images are kept in."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "sandbox-machines"


def directory(name: str) -> Path:
    """Return where the image of today's recipe is, or will be."""
    recipe = "\n".join([Path(__file__).read_text(), *requirements(), *packages(MACHINES[name])])
    return cache() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def mirror() -> str:
    """Return the archive that this host's apt uses."""
    if os.environ.get("SANDBOX_MACHINE_MIRROR"):
        return os.environ["SANDBOX_MACHINE_MIRROR"]
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    for origin, uri in (line.split(" ", 1) for line in lines.splitlines()):
        if origin == "Debian" and "security" not in uri:
            return uri
    raise SystemExit("run: no Debian archive among apt's sources; name one in SANDBOX_MACHINE_MIRROR")


def build(name: str, target: Path, log: IO[bytes]) -> None:
    """Make the image, and move it to its place when it is whole."""
    machine = MACHINES[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-new-", dir=target.parent) as scratch:
        work = Path(scratch)
        os.chmod(work, 0o755)  # mmdebstrap's hooks run as another user where root is not to be had
        wheels(machine, work / "wheels", log)
        bootstrap(machine, work, log)
        with tarfile.open(work / "root.tar") as system:
            files = {member.name: member for member in system}
            made = Path(work / "made")
            made.mkdir()
            (made / "vmlinuz").write_bytes(kernel(system, files))
            (made / "initrd").write_bytes(initrd(system, files))
        file_system(work / "root.tar", work / "tree", made / "disk", log)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    # What other checkouts use stays; so does, for a day, what a killed run has left.
    for old in target.parent.iterdir():
        if old.is_dir() and old.stat().st_mtime < time.time() - (86400 if "-new-" in old.name else 14 * 86400):
            shutil.rmtree(old)


def wheels(machine: Machine, target: Path, log: IO[bytes]) -> None:
    """Fetch the wheels for the machine's Python."""
    target.mkdir()
    (target / "requirements.txt").write_text("\n".join(requirements()))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", target, "--only-binary=:all:"]
    command += ["--python-version", machine.python, "--implementation", "cp"]
    for abi in (f"cp{machine.python.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any"):
        command += ["--platform", platform]
    call([*command, "-r", target / "requirements.txt"], log)


def bootstrap(machine: Machine, work: Path, log: IO[bytes]) -> None:
    """Install Debian's packages and Python's into a tar."""
    archive = mirror()
    sources = [f"deb {archive} {suite} main" for suite in dict.fromkeys((machine.release, machine.kernel_suite))]
    (work / "service").write_text(SERVICE)
    inside = 'chroot "$1"'
    hooks = [
        f'{inside} useradd --create-home --shell /bin/bash tester',
        'mkdir -p "$1/var/lib/systemd/linger" "$1/src" "$1/results" && touch "$1/var/lib/systemd/linger/tester"',
        'echo "127.0.0.1 localhost machine" >"$1/etc/hosts" && echo machine >"$1/etc/hostname"',
        f"copy-in {shlex.quote(str(work / 'wheels'))} /",
        f"{inside} python3 -m venv /venv",
        f"{inside} /venv/bin/pip install --quiet --no-index --find-links=/wheels -r /wheels/requirements.txt",
        f"upload {shlex.quote(str(work / 'service'))} /etc/systemd/system/tests.service",
        f"{inside} systemctl --quiet mask {' '.join(MASKED)}",
        'rm -rf "$1/wheels" "$1/root/.cache"',
    ]  # fmt: skip
    command = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(packages(machine))}"]
    command += ["--aptopt=Acquire::Languages none", "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    command += [f"--customize-hook={hook}" for hook in hooks]
    # INITRD: the hook of initramfs-tools would make one that nobody uses.
    call([*command, machine.release, work / "root.tar", *sources], log, INITRD="No")


def kernel(system: tarfile.TarFile, files: dict[str, tarfile.TarInfo]) -> bytes:
    """Return the kernel."""
    (name,) = (name for name in files if name.startswith("./boot/vmlinuz-"))
    return read(system, files, name)


def read(system: tarfile.TarFile, files: dict[str, tarfile.TarInfo], name: str) -> bytes:
    """Read one file of the new system."""
    stream = system.extractfile(files[name])
    assert stream is not None, name
    return stream.read()


def initrd(system: tarfile.TarFile, files: dict[str, tarfile.TarInfo]) -> bytes:
    """Return an initrd with busybox, the modules that reach the disk, and the script that uses them."""
    (listing,) = (name for name in files if name.endswith("/modules.dep"))
    below = listing.rsplit("/", 1)[0]
    needed: dict[str, list[str]] = {}
    for line in read(system, files, listing).decode().splitlines():
        path, _, others = line.partition(":")
        needed[path] = others.split()
    order: list[str] = []
    for module in BOOT_MODULES:
        for path in needed:
            if re.sub(r"\.ko(\.\w+)?$", "", path.rsplit("/", 1)[-1]) == module:
                # modules.dep has what a module needs with the innermost last.
                order += [other for other in [*reversed(needed[path]), path] if other not in order]
    archive = io.BytesIO()
    entries = [("bin", None), ("dev", None), ("root", None), ("modules", None)]
    busybox = next(name for name in ("./usr/bin/busybox", "./bin/busybox") if name in files)
    entries += [("bin/busybox", read(system, files, busybox)), ("init", INIT.encode())]
    names = []
    for path in order:
        data = read(system, files, f"{below}/{path}")
        names.append(path.rsplit("/", 1)[-1].removesuffix(".xz"))
        entries.append((f"modules/{names[-1]}", lzma.decompress(data) if path.endswith(".xz") else data))
    entries.append(("modules/order", "\n".join(names).encode()))
    for number, (name, content) in enumerate(entries, 1):
        archive.write(cpio(number, name, 0o040755 if content is None else 0o100755, content or b""))
    archive.write(cpio(0, "TRAILER!!!", 0, b""))
    return archive.getvalue()


def cpio(number: int, name: str, mode: int, content: bytes) -> bytes:
    """Return one file in the format that the kernel unpacks: "newc"."""
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def file_system(tar: Path, tree: Path, disk: Path, log: IO[bytes]) -> None:
    """Copy a tar into a file with an ext4 file system; it has holes where nothing is."""
    script = """
        mkdir "$2" && tar -C "$2" --exclude="./dev/*" -xf "$1" && rm "$1" &&
        mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$2" "$3" 4G
        code=$?
        rm -rf "$2"  # here, where its owners are known
        exit $code
    """
    command = ["sh", "-c", script, "sh", tar, tree, disk]
    if os.geteuid() != 0:
        command = ["unshare", "--map-root-user", "--map-auto", *command]
    call(command, log)


def call(command: list[str | Path], log: IO[bytes], **environment: str) -> None:
    """Run a program with its output in the log."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip


def lines(log: Path) -> Iterator[str]:
    """Return the end of a log, for an error."""
    with open(log, errors="replace") as stream:
        yield from stream.read().splitlines()[-30:]
