"""Why a program was not found: it is only on the host, or it is there and what should run it is not."""

import os
import shutil
from struct import unpack_from

__all__ = ["interpreter_of", "why_not_found"]

_PT_INTERP = 3


def interpreter_of(head: bytes) -> str | None:
    """Return who is to run a file, by its beginning: the interpreter of a script, the loader of an ELF binary.

    Args:
        head: What the file begins with; not trusted.
    """
    if head.startswith(b"#!"):
        # The kernel looks at 256 bytes; the rest of the line is one argument.
        line = head[2:256].split(b"\n")[0].split(b"\0")[0].replace(b"\t", b" ").strip(b" ")
        return os.fsdecode(line.split(b" ")[0]) or None
    if head[:4] != b"\x7fELF" or len(head) < 64 or head[5] != 1:
        return None
    if head[4] == 2:
        at, size, count = unpack_from("<Q", head, 32)[0], *unpack_from("<2H", head, 54)
    else:
        at, size, count = unpack_from("<I", head, 28)[0], *unpack_from("<2H", head, 42)
    for number in range(count):
        entry = head[at + number * size :][:size]
        if len(entry) < 32 or unpack_from("<I", entry)[0] != _PT_INTERP:
            continue
        offset = unpack_from("<Q", entry, 8)[0] if head[4] == 2 else unpack_from("<I", entry, 4)[0]
        name = head[offset:].split(b"\0")[0]
        return os.fsdecode(name) if name.startswith(b"/") else None
    return None


def _remedy(path: str) -> str:
    """Return the method that makes a path of the host visible."""
    from sandbox import interpreter

    real = os.path.realpath(path)
    # Of /usr only a part may be missing.
    python = [folder for folder in interpreter.visible() if folder != "/usr"]
    if interpreter.covers(python, path) or interpreter.covers(python, real):
        return "make it visible with .python()"
    folders = dict.fromkeys((os.path.dirname(os.path.abspath(path)), os.path.dirname(real)))
    return "make it visible with " + "".join(f'.bind_readonly("{folder}")' for folder in folders)


def _beginning(path: str) -> bytes:
    try:
        if not os.path.isfile(path):  # to open a pipe would wait
            return b""
        with open(path, "rb") as stream:
            return stream.read(4096)
    except OSError:
        return b""


def _without_interpreter(name: str, head: bytes) -> str:
    interpreter = interpreter_of(head)
    if interpreter is None:
        return f"{name} is there, but not the interpreter or loader that runs it"
    kind = "the interpreter of its first line" if head.startswith(b"#!") else "its dynamic loader"
    text = f"{name} is there, but not {kind}, {interpreter!r}"
    if interpreter.endswith("\r"):
        return f"{text}: the line ends with a carriage return; save the script with Unix line ends"
    if os.path.exists(interpreter):
        return f"{text}; the host has it: {_remedy(interpreter)}"
    return text


def why_not_found(
    program: str,
    path: str,
    inside: tuple[str, bytes] | None = None,
    folder: str = "/",
    whose: str = "the sandbox's",
) -> str:
    """Return why execve said ENOENT, and what to do.

    Args:
        program: As the caller named it.
        path: The sandbox's PATH.
        inside: The file that is there all the same, and its beginning.
        folder: The working directory.
        whose: PATH and directory these are.
    """
    relative = "/" in program and not program.startswith("/")
    if inside is not None:
        return _without_interpreter(*inside)
    if "/" not in program:
        found = shutil.which(program)
        where = f"no directory of {whose} PATH ({path}) has it"
    else:
        found = program if os.path.isfile(program) else None
        place = f"in {whose} working directory {folder}" if relative else "inside"
        where = f"there is no such file {place}, or the interpreter of its first line is missing"
    if found is None:
        return where
    if relative:
        # Init looks at absolute names only. On the host it may be another file, but one that cannot run there either.
        head = _beginning(found)
        interpreter = interpreter_of(head)
        if interpreter is not None and not os.path.exists(interpreter):
            return f"{where}; on the host {_without_interpreter(found, head)}"
    by_path = "" if "/" in program else " and run it by its path"
    here = f'.cwd("{os.getcwd()}")' if relative else ""
    return f"{where}; the host has {found}: {_remedy(found)}{here}{by_path}"
