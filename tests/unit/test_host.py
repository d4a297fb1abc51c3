"""The default root takes the public part of /etc, and never a secret."""

import os

import pytest

from sandbox import host
from sandbox.rootfs import Bind, File, Symlink

SECRETS = (
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/ssl/private",
    "/etc/sudoers",
    "/etc/ssh",
    "/etc/machine-id",
    "/etc/krb5.keytab",
)


def entries():
    return list(host.system("test"))


def test_no_secret_is_in_the_default_root():
    for entry in entries():
        paths = [entry.target]
        if isinstance(entry, Bind):
            paths.append(entry.source)
        for path in paths:
            assert not any(path == secret or path.startswith(secret + "/") for secret in SECRETS), entry
            if isinstance(entry, Bind) and path != entry.source:
                assert not any(secret.startswith(path + "/") for secret in SECRETS), f"{entry} holds a secret"


def test_no_private_key_is_in_the_default_root():
    for entry in entries():
        if isinstance(entry, File):
            assert b"PRIVATE KEY" not in entry.content, entry.target
        if isinstance(entry, Bind) and entry.source.startswith("/etc/"):
            for folder, _, names in os.walk(entry.source):
                for name in names:
                    path = os.path.join(folder, name)
                    if os.path.isfile(path) and os.path.getsize(path) < 1 << 20 and os.access(path, os.R_OK):
                        with open(path, "rb") as stream:
                            assert b"PRIVATE KEY-----" not in stream.read(), path


def test_only_usr_and_parts_of_etc_are_bound():
    for entry in entries():
        if isinstance(entry, Bind):
            top = entry.source.split("/")[1]
            assert top in {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"} or entry.source.startswith("/etc/")
            assert entry.source != "/etc"


def test_links_of_the_root_are_kept_as_links():
    links = {entry.target: entry.points_to for entry in entries() if isinstance(entry, Symlink)}
    for name in ("bin", "lib"):
        if os.path.islink(f"/{name}"):
            assert os.readlink(f"/{name}") == links[f"/{name}"]


@pytest.mark.parametrize(
    ("uid", "gid", "passwd", "group"),
    [
        (1000, 1000, "user:x:1000:1000:user:/tmp:/bin/sh", "user:x:1000:"),
        (0, 0, "root:x:0:0:root:/tmp:/bin/sh", "root:x:0:"),
        (65534, 65534, "user:x:65534:65534:user:/tmp:/bin/sh", "user:x:65534:"),
    ],
)
def test_accounts_are_the_user_root_and_nobody(uid, gid, passwd, group):
    files = {entry.target: entry.content.decode() for entry in host.accounts(uid, gid, "/tmp", "test")}
    assert passwd in files["/etc/passwd"].splitlines()
    assert group in files["/etc/group"].splitlines()
    ids = [line.split(":")[2] for line in files["/etc/passwd"].splitlines()]
    assert len(set(ids)) == len(ids) <= 3


def test_names_are_the_sandboxes_own():
    files = {entry.target: entry.content for entry in host.names("box", host_network=False, origin="test")}
    assert b"box\n" == files["/etc/hostname"]
    assert b"127.0.1.1\tbox" in files["/etc/hosts"]
    assert b"nameserver" not in files["/etc/resolv.conf"]
    shared = {entry.target: entry.content for entry in host.names("box", host_network=True, origin="test")}
    if os.path.exists("/etc/hosts"):
        with open("/etc/hosts", "rb") as stream:
            assert stream.read() == shared["/etc/hosts"]


@pytest.mark.parametrize(
    ("path", "expected"), [("/etc/passwd", True), ("/etc", False), ("/dev/null", True), ("/no/such", False)]
)
def test_is_file_tells_what_a_mount_point_must_be(path, expected):
    assert expected == host.is_file(path)
