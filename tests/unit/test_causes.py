"""The causes that no host at hand has: the facts are pretended, what follows from them is not."""

import errno as e

import pytest

from sandbox import causes, facts, kernel as k
from sandbox.errors import SetupError, UnsupportedError

SYSCTLS = {
    "apparmor": {"kernel.apparmor_restrict_unprivileged_userns": "1"},
    "userns-clone": {"kernel.unprivileged_userns_clone": "0"},
    "namespaces-zero": {"user.max_user_namespaces": "0"},
    "io_uring-disabled": {"kernel.io_uring_disabled": "2"},
    "memfd-noexec": {"vm.memfd_noexec": "2"},
}


@pytest.fixture
def host(monkeypatch):
    """A host without anything special, on which facts can be changed."""
    monkeypatch.setattr(facts, "sysctl", lambda _: None)
    monkeypatch.setattr(facts, "has_filter", lambda: False)
    monkeypatch.setattr(facts, "selinux_enforces", lambda: False)
    monkeypatch.setattr(facts, "has_capability", lambda _: False)
    monkeypatch.setattr(facts, "in_chroot", lambda: None)
    monkeypatch.setattr(facts, "mapped", lambda *_: True)
    monkeypatch.setattr(facts, "engine", lambda: None)
    monkeypatch.setattr(facts, "count_landlock_layers", lambda: 0)
    monkeypatch.setattr(facts, "owns_mounts", lambda: True)
    monkeypatch.setattr(facts, "full_pids_group", lambda: None)
    monkeypatch.setattr(facts, "release", lambda: (6, 18))
    monkeypatch.setattr(causes, "_filter_answers", lambda _: False)
    return monkeypatch


def key(call, number, *args):
    found = causes.find(call, args, number)
    return None if found is None else found.key


@pytest.mark.parametrize(
    ("name", "call", "args", "number"),
    [
        ("apparmor", "clone", (k.CLONE_NEWUSER,), e.EPERM),
        ("apparmor", "clone", (k.CLONE_NEWUSER,), e.EACCES),
        ("apparmor", "fsopen", ("tmpfs",), e.EPERM),
        ("apparmor", "write_proc", (), e.EPERM),
        ("userns-clone", "clone", (k.CLONE_NEWUSER,), e.EPERM),
        ("namespaces-zero", "clone", (k.CLONE_NEWUSER,), e.ENOSPC),
        ("io_uring-disabled", "io_uring_setup", (), e.EPERM),
        ("memfd-noexec", "memfd_create", (), e.EACCES),
    ],
)
def test_find_setting_of_the_kernel_is_the_cause(host, name, call, args, number):
    assert key(call, number, *args) != name
    host.setattr(facts, "sysctl", SYSCTLS[name].get)
    assert name == key(call, number, *args)


@pytest.mark.parametrize(
    ("name", "fact", "value", "call", "number"),
    [
        ("selinux", "selinux_enforces", True, "clone", e.EACCES),
        ("chroot", "in_chroot", "so it is", "clone", e.EPERM),
        ("unmapped-id", "mapped", False, "clone", e.EPERM),
        ("seccomp", "has_filter", True, "fsopen", e.EPERM),
        ("seccomp", "has_filter", True, "fsopen", e.ENOSYS),
        ("kernel-old", "release", (5, 1), "fsopen", e.ENOSYS),
        ("kernel-old", "release", (5, 4), "fanotify_init", e.EPERM),
        ("kernel-old", "release", (5, 10), "seccomp_listen", e.EINVAL),
        ("kernel-old", "release", (6, 12), "open_tree(detached)", e.EINVAL),
        ("pids-max", "full_pids_group", "/sys/fs/cgroup/x", "fork", e.EAGAIN),
        ("landlocked", "count_landlock_layers", 2, "move_mount", e.EPERM),
        ("foreign-mounts", "owns_mounts", False, "open_tree", e.EPERM),
    ],
)
def test_find_fact_of_the_caller_is_the_cause(host, name, fact, value, call, number):
    assert key(call, number, k.CLONE_NEWUSER) != name
    host.setattr(facts, fact, lambda *_: value)
    assert name == key(call, number, k.CLONE_NEWUSER)


def test_find_answer_of_a_filter_comes_before_the_settings_of_the_kernel(host):
    host.setattr(facts, "sysctl", SYSCTLS["userns-clone"].get)
    host.setattr(causes, "_filter_answers", lambda _: True)
    assert key("clone", e.EPERM, k.CLONE_NEWUSER) == "seccomp"


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_find_container_engine_gets_its_own_command(host, engine):
    host.setattr(facts, "has_filter", lambda: True)
    host.setattr(facts, "engine", lambda: engine)
    assert causes.find("fsopen", (), e.EPERM).fix.startswith(f"{engine} run --security-opt seccomp=")


def test_find_what_is_not_known_is_no_cause(host):
    assert key("clone", e.EPERM, k.CLONE_NEWUSER) is None
    assert key("fsopen", e.EPERM, "tmpfs") is None
    assert key("chdir", e.ENOENT) is None


def test_apparmor_fix_names_the_program_that_needs_the_profile(host):
    host.setattr(facts, "sysctl", SYSCTLS["apparmor"].get)
    assert (
        f"profile sandbox-init {causes.INIT} flags=(unconfined) {{ userns, }}" in causes.find("fsopen", (), e.EPERM).fix
    )


def test_errors_carry_the_cause_in_words_and_as_a_value():
    import pickle

    cause = causes.cause("proc-missing")
    setup = SetupError(e.ENOENT, call="openat", hint=cause)
    unsupported = UnsupportedError("this", found=cause)
    for error in (setup, unsupported, pickle.loads(pickle.dumps(setup)), pickle.loads(pickle.dumps(unsupported))):
        assert cause == error.cause
        assert cause.text in str(error)
        assert cause.fix in str(error)
    assert (cause.text, cause.fix) == (unsupported.found, unsupported.fix)


def test_every_key_is_in_the_documentation():
    import os

    import harness

    with open(os.path.join(harness.REPOSITORY, "docs", "doctor.md")) as stream:
        text = stream.read()
    assert [] == [name for name in causes.TABLE if f"`{name}`" not in text]
