"""What the command `sandbox` says when something is wrong, in the words of the command line."""

import errno
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from sandbox.attendance import FAILED, TIMED_OUT
from sandbox.errors import SandboxError, SetupError, UnsupportedError
from sandbox.result import Reason

if TYPE_CHECKING:
    from sandbox.process import Process

# Those of env(1) and the shells.
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


def outcome(process: "Process[Any]", status: int | None, timeout: float | None) -> tuple[list[str], int]:
    """Return what is to be said at the end, and the exit status.

    Args:
        process: What has ended.
        status: What `wait` returned.
        timeout: What it was given.
    """
    said = []
    if process.denials is not None and process.denials.seen:
        from sandbox import cli_seccomp

        said.append(cli_seccomp.denials(process.denials.seen))
    if status is not None:
        if status == TIMED_OUT:
            said.append(late(timeout))
        return said, status
    result = process.result()
    if result.reason not in {Reason.EXITED, Reason.SIGNALED}:
        said.append(result.detail)
    if result.reason is Reason.INIT_DIED:
        return said, FAILED
    if result.reason is Reason.TIMEOUT:
        return said, TIMED_OUT
    return said, result.returncode if result.returncode >= 0 else 128 - result.returncode


def late(timeout: float | None) -> str:
    """Say that --timeout ended it."""
    return f"ended after {timeout:g} seconds, as --timeout says"


def failure(error: Exception) -> tuple[str, int]:
    """Return what is said of an error, and the exit status."""
    if isinstance(error, SetupError):
        status = FAILED
        if is_exec(error):
            status = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
        return _setup_text(error), status
    if isinstance(error, UnsupportedError):
        return _as_options(str(error)), FAILED
    if isinstance(error, OSError) and not isinstance(error, SandboxError):
        what = f"{error.filename}: " if error.filename is not None else ""
        return f"{what}{error.strerror or error}", FAILED
    return str(error), FAILED


def complain(text: str) -> None:
    """Say what is wrong; names that come from inside, or from files, must not speak to the terminal."""
    if sys.stderr is not None:
        if not text.isprintable():
            from sandbox.escapes import printable

            text = printable(text)
        sys.stderr.write(f"sandbox: {text}\n")


def is_exec(error: SetupError) -> bool:
    """Say whether all was set up, and it is the program that cannot be executed."""
    return error.step > 0 and error.call.startswith("execve(")


def _setup_text(error: SetupError) -> str:
    if is_exec(error):
        text = f"{error.filename}: {error.strerror}"
    else:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        where = f"step {error.step} of {error.steps}: " if error.step else ""
        text = f"{where}{error.call}: {error.strerror} ({name})"
    if error.origin.startswith("."):
        text += f"\n  from: {_as_options(error.origin)}"
    if error.hint:
        text += f"\n  hint: {_as_options(error.hint)}"
    return text


def _as_options(text: str) -> str:
    """Say in the words of the command line what a message says in those of the builder."""

    def option(match: re.Match[str]) -> str:
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', match[2])
        return f"--{match[1].replace('_', '-')} {':'.join(words)}".rstrip()

    text = re.sub(r'\.([a-z_]+)\(((?:"(?:[^"\\]|\\.)*"|[^")])*)\)', option, text)
    text = re.sub(r"\.?limit\(([a-z_]+)=((?:[^()]|\([^()]*\))*)\)", _limit_option, text)
    text = text.replace("pass optional=True", "append :optional (SRC:DST:optional)")
    return text.replace("user(host_root=True)", "--host-root")


def _limit_option(match: re.Match[str]) -> str:
    weak = " with --best-effort" if "best_effort" in match[2] else ""
    return f"--{match[1].replace('_', '-')}{weak}"
