"""Who is measured: a contender is a function that launches one program, waits and checks that it succeeded.

All do the same job as nearly as they can (`the_job` says which), with /bin/true as the program.
"""

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox import Sandbox

Contender = Callable[[], object]

PROGRAM = "/bin/true"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"/bin": "usr/bin", "/lib": "usr/lib", "/lib64": "usr/lib64"}


class Missing(Exception):
    """A contender that cannot be measured here; the message says why."""


def as_missing(error: Exception) -> Missing:
    if isinstance(error, Missing):
        return error
    if isinstance(error, subprocess.CalledProcessError):
        return Missing(f"installed, but ended with status {error.returncode}")
    return Missing(f"{type(error).__name__}: {error}")


# ---- sandbox


def the_job() -> "Sandbox":
    """Describe the standard job, the one that limit.c does by hand."""
    from sandbox import Sandbox

    box = Sandbox.empty().bind_readonly("/usr")
    for target, points_to in LINKS.items():
        box = box.symlink(points_to, target)
    return box.proc().dev(nodes=DEVICES).tmpfs("/tmp").hostname("sandbox").seccomp(None)


def _run(box: "Sandbox") -> Contender:
    return lambda: box.run([PROGRAM], check=True)


def _run_default() -> Contender:
    import sandbox

    return lambda: sandbox.run([PROGRAM], check=True)


def _popen_default() -> Contender:
    import sandbox

    def contender() -> None:
        with sandbox.popen([PROGRAM]) as process:
            assert process.wait() == 0

    return contender


# ---- limit.c

_library: ctypes.CDLL | None = None


def load_limit() -> None:
    """Compile limit.c and load it. The file is gone afterwards, the code stays mapped, after fork too."""
    global _library
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "limit.c")
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "liblimit.so")
        compiler = os.environ.get("CC", "cc")
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, "-o", target, source], check=True)
        _library = ctypes.CDLL(target)
    _library.limit_new.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    _library.limit_new.restype = ctypes.c_void_p
    _library.limit_run.argtypes = [ctypes.c_void_p]
    _library.limit_error.restype = ctypes.c_char_p


def _limit(*options: str) -> Contender:
    if _library is None:
        raise Missing("load_limit() has not been called")
    library, words = _library, ["limit", *options, "--", PROGRAM]
    argv = (ctypes.c_char_p * (len(words) + 1))(*[word.encode() for word in words], None)
    handle = library.limit_new(len(words), argv)
    if not handle:
        raise Missing(library.limit_error().decode())

    lock = threading.Lock()  # a handle does one launch at a time

    def launch(keep: object = argv) -> None:
        with lock:
            status = library.limit_run(handle)
            if status:
                raise RuntimeError(library.limit_error().decode() if status < 0 else f"wait status {status}")

    return launch


# ---- processes without a sandbox, and peers


def _posix_spawn() -> None:
    pid = os.posix_spawn(PROGRAM, [PROGRAM], os.environ)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"wait status {status}")


def _subprocess_run() -> None:
    subprocess.run([PROGRAM], check=True)


def _command(name: str, *arguments: str) -> Contender:
    path = shutil.which(name)
    if path is None:
        raise Missing("not installed")
    argv, quiet = [path, *arguments, PROGRAM], subprocess.DEVNULL
    return lambda: subprocess.run(argv, check=True, stdin=quiet, stdout=quiet, stderr=quiet)


def _bwrap() -> Contender:
    arguments = ["--unshare-all", "--unshare-user", "--hostname", "sandbox", "--cap-drop", "ALL"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for target, points_to in LINKS.items():
        arguments += ["--symlink", points_to, target]
    return _command("bwrap", *arguments, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")


def _nsjail() -> Contender:
    arguments = ["-Q", "-Mo", "--hostname", "sandbox", "--disable_rlimits", "-R", "/usr", "-T", "/tmp"]
    for target, points_to in LINKS.items():
        arguments += ["-s", f"{points_to}:{target}"]
    for device in DEVICES:
        arguments += ["-B", f"/dev/{device}"]
    return _command("nsjail", *arguments, "--")


def _firejail() -> Contender:
    """Keep the host's root, because there is no other way."""
    layers = ["--private-dev", "--private-tmp", "--read-only=/usr", "--net=none", "--ipc-namespace"]
    return _command("firejail", "--quiet", "--noprofile", *layers, "--caps.drop=all", "--nonewprivs", "--")


def _unshare() -> Contender:
    """Keep the host's root and the capabilities: what one gets from util-linux in one line."""
    namespaces = ["--user", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
    return _command("unshare", *namespaces, "--map-root-user", "--fork", "--mount-proc")


_bundles: list[str] = []


def _oci_runtime(name: str, *options: str) -> Contender:
    if shutil.which(name) is None:
        raise Missing("not installed")
    # Belongs to whoever measures; removed by remove_bundles().
    bundle = tempfile.mkdtemp(prefix="sandbox-benchmark-")
    _bundles.append(bundle)
    root = os.path.join(bundle, "rootfs")
    for directory in ("usr", "proc", "dev", "tmp", "state"):
        os.makedirs(os.path.join(root if directory != "state" else bundle, directory))
    for target, points_to in LINKS.items():
        os.symlink(points_to, root + target)
    with open(os.path.join(bundle, "config.json"), "w") as stream:
        json.dump(_oci_configuration(), stream)
    state = os.path.join(bundle, "state")
    command = [name, "--root", state, *options, "run", "--bundle", bundle, f"sandbox-benchmark-{os.getpid()}"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": state}
    quiet = subprocess.DEVNULL
    return lambda: subprocess.run(command, check=True, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)


def remove_bundles() -> None:
    while _bundles:
        shutil.rmtree(_bundles.pop(), ignore_errors=True)


def _oci_configuration() -> Mapping[str, object]:
    def mount(target: str, kind: str, *options: str) -> Mapping[str, object]:
        return {"destination": target, "type": kind, "source": kind, "options": ["nosuid", *options]}

    namespaces = ("user", "mount", "pid", "uts", "ipc", "network", "cgroup")
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": "rootfs", "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [PROGRAM],
            "env": ["PATH=/usr/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "mounts": [
            {
                "destination": "/usr",
                "type": "bind",
                "source": "/usr",
                "options": ["rbind", "ro", "nosuid", "nodev"],
            },
            mount("/proc", "proc", "nodev", "noexec"),
            mount("/dev", "tmpfs", "mode=755"),
            mount("/tmp", "tmpfs", "nodev", "mode=1777"),
        ],
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "uidMappings": [{"containerID": 0, "hostID": os.getuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getgid(), "size": 1}],
        },
    }


# ---- the catalogue

_BEST = ("--cached", "--loopback")

CONTENDERS: Mapping[str, Callable[[], Contender]] = {
    "the job": lambda: _run(the_job()),
    "the job, no netns": lambda: _run(the_job().share("net")),
    "sandbox.run": _run_default,
    "popen and wait": _popen_default,
    "limit": lambda: _limit(*_BEST),
    "limit, no netns": lambda: _limit("--cached", "--share", "net"),
    "bwrap": _bwrap,
    "posix_spawn": lambda: _posix_spawn,
    "subprocess.run": lambda: _subprocess_run,
}

# What a part costs is the difference to the line without it.
VARIANTS: Mapping[str, Callable[[], Contender]] = {
    "the job, default filter": lambda: _run(_with_default_filter(the_job())),
    "the job, payload is PID 1": lambda: _run(the_job().init(False)),
    "limit, tree built each time": lambda: _limit("--loopback"),
    "limit, loopback down": lambda: _limit("--cached"),
    "limit, no new cgroup ns": lambda: _limit(*_BEST, "--share", "cgroup"),
    "limit, no new ipc ns": lambda: _limit(*_BEST, "--share", "ipc"),
    "limit, no new user ns": lambda: _limit(*_BEST, "--share", "user"),
    "limit, own devpts": lambda: _limit(*_BEST, "--devpts"),
    "limit, 100 seccomp rules": lambda: _limit(*_BEST, "--seccomp", "100"),
    "limit, nothing executed": lambda: _limit(*_BEST, "--no-exec"),
}

PEERS: Mapping[str, Callable[[], Contender]] = {
    "nsjail": _nsjail,
    "crun": lambda: _oci_runtime("crun", "--cgroup-manager=disabled"),
    "runc": lambda: _oci_runtime("runc"),
    "firejail (host's root)": _firejail,
    "unshare(1) (host's root)": _unshare,
}

EVERYONE = {**CONTENDERS, **VARIANTS, **PEERS}


def _with_default_filter(box: "Sandbox") -> "Sandbox":
    from sandbox import Filter

    return box.seccomp(Filter.default())


_made: dict[str, Contender] = {}


def make(name: str) -> Contender:
    """Make a contender ready and launch it twice, so that what it caches is there."""
    if name not in _made:
        try:
            contender = EVERYONE[name]()
            contender()
            contender()
        except Exception as error:
            raise as_missing(error) from error
        _made[name] = contender
    return _made[name]


def forget() -> None:
    """Drop what was made: a forked process makes its own."""
    _made.clear()
