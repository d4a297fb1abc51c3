"""Hosts on which something is missing: a few lines of Python that change the process, and then the examination.

Each runs in processes of its own; what it changes belongs to them or to namespaces of theirs.
"""

import json
import os
import subprocess
import sys
import sysconfig
from typing import Any

import harness

SITE = sysconfig.get_path("platlib")

# What the lines of a host may use; `again()` goes on in a new process image, without the capabilities of a new
# user namespace unless its uid is 0.
PRELUDE = f"""
import os, resource, sys
sys.path.insert(0, {SITE!r})
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
from sandbox.primitives import *
from sandbox import primitives as kernel

def own_mounts():
    unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)

def own_user(uid_map=None, flags=0):
    # root maps what it likes from outside; a user maps itself
    uid, gid = os.geteuid(), os.getegid()
    ready, go = os.pipe()
    done, say = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        os.close(go)
        os.read(ready, 1)
        own = uid_map or (f"0 0 100000" if uid == 0 else f"{{uid}} {{uid}} 1")
        own_gid = uid_map or (f"0 0 100000" if uid == 0 else f"{{gid}} {{gid}} 1")
        if uid:
            open(f"/proc/{{parent}}/setgroups", "w").write("deny")
        open(f"/proc/{{parent}}/uid_map", "w").write(own)
        open(f"/proc/{{parent}}/gid_map", "w").write(own_gid)
        os._exit(0)
    unshare(CLONE_NEWUSER | flags)
    os.write(go, b".")
    os.wait()
    for fd in (ready, go, done, say):
        os.close(fd)
    if flags & CLONE_NEWNS:
        mount(None, "/", None, MS_REC | MS_PRIVATE)

def own_all(flags=0):
    if os.geteuid() == 0:
        own_mounts()
        if flags:
            unshare(flags)
    else:
        own_user(flags=CLONE_NEWNS | flags)

def fork_into():
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        os._exit(os.waitstatus_to_exitcode(status))

def again():
    os.execv(sys.executable, [sys.executable, "-I", "-c", EXAMINE])
"""

EXAMINE = f"""
import contextlib, io, json, os, sys
sys.path.insert(0, {SITE!r})
from sandbox import Sandbox, SandboxError, cli_doctor

def left():
    try:
        numbers = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
        mine = sorted(os.readlink(f"/proc/self/fd/{{fd}}").split(":")[0] for fd in numbers)
        mounts = open("/proc/self/mountinfo").read()
    except OSError:
        mine, mounts = [], ""
    return mounts, mine

before = left()
said = io.StringIO()
with contextlib.redirect_stdout(said):
    status = cli_doctor.main(["--json"])
after = left()
kept = [one for one in after[1] if not one.startswith(("/memfd", "anon_inode"))]
clean = before[0] == after[0] and kept == before[1]
try:
    os.waitpid(-1, os.WNOHANG)
    clean = False
except ChildProcessError:
    pass
answer = {{"status": status, "doctor": json.loads(said.getvalue()), "clean": clean}}
try:
    answer["run"] = Sandbox().run(["true"]).returncode
except SandboxError as error:
    answer["error"] = str(error)
    answer["cause"] = None if error.cause is None else error.cause._asdict()
print(json.dumps(answer), flush=True)
"""


def examine(lines: str = "", *, around: list[str] | None = None, again: bool = True, **environment: str) -> Any:
    """Return what the doctor says on a host, and what a launch there says.

    Args:
        lines: Make the host.
        around: A command that runs another.
        again: Examine after an execve, as most programs start.
        **environment: Variables, instead of one's own.
    """
    program = f"{PRELUDE}\nEXAMINE = {EXAMINE!r}\n{lines}\n" + ("again()" if again else "exec(EXAMINE)")
    words = [*(around or ()), sys.executable, "-I", "-c", program]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    while around and harness.children():  # bwrap does not wait for its own
        os.wait()
    return read(done)


def tell(lines: str) -> Any:
    """Return what lines on a host print."""
    words = [sys.executable, "-I", "-c", f"{PRELUDE}\n{lines}"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout)


def read(done: "subprocess.CompletedProcess[str]") -> Any:
    """Return what an examination printed."""
    assert done.stdout, (done.returncode, done.stderr)
    answer = json.loads(done.stdout.splitlines()[-1])
    answer["rows"] = {row["key"]: row for row in answer["doctor"]["checks"]}
    return answer


def blocked(answer: Any) -> set[str]:
    """Return the keys of the causes of what every sandbox needs."""
    return {
        row["cause"]["key"]
        for row in answer["rows"].values()
        if row["state"] == "blocked" and row["use"] == "run" and row["cause"] is not None
    }


def agree(answer: Any) -> None:
    """Expect that doctor and launch say the same, and that neither has left anything."""
    assert answer["clean"]
    assert answer["status"] == (0 if answer.get("run") == 0 else 1), answer
    assert answer["doctor"]["works"] == (answer.get("run") == 0)
    whole = answer["rows"]["sandbox"]
    if answer.get("run") == 0:
        assert whole["state"] == "works"
        return
    assert whole["state"] == "blocked"
    assert whole["cause"]["key"] == answer["cause"]["key"], answer["error"]
    assert answer["cause"]["text"] in answer["error"]
    assert answer["cause"]["fix"] in answer["error"]
