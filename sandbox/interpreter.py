"""The Python that runs this program: where it and its packages lie on the host.

Virtual environments, pyenv, uv, conda and Debian's Python differ in where they keep things and in how many links lead
to the binary. What is found here becomes visible inside at the same paths, links as links: an interpreter finds its
library by the path that it was started with.
"""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache

__all__ = ["covers", "is_elsewhere", "missing", "user_base", "visible"]

_MOST_LINKS = 40  # as the kernel follows


def covers(folders: Iterable[str], path: str) -> bool:
    """Say whether a path is one of these, or below one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _libraries() -> Iterator[str]:
    """Yield the directories of the interpreter itself and of its environment."""
    home = os.path.expanduser("~")
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)):
        # Built into a directory that has much else, this one has what is Python's and no more.
        if prefix == "/" or covers([prefix], home) or prefix == os.path.join(home, ".local"):
            version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            yield from (f"{prefix.rstrip('/')}/{folder}/{version}" for folder in ("lib", "lib64"))
            yield from glob.glob(f"{glob.escape(prefix.rstrip('/'))}/lib/libpython*")
        else:
            yield prefix
    yield os.path.dirname(os.__file__)


def _packages() -> Iterator[str]:
    """Yield what lies elsewhere: user's packages, archives on the path, what .pth files and editable installs name."""
    yield from (path for path in sys.path if os.path.isfile(path))
    site = sys.modules.get("site")
    if site is None or sys.flags.no_site:
        return
    folders = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    for folder in filter(os.path.isdir, folders):
        yield folder
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if name.endswith(".pth"):
                yield from _lines(path, folder)
            elif name.endswith(".dist-info"):
                yield from _editable(os.path.join(path, "direct_url.json"))


def _lines(path: str, folder: str) -> Iterator[str]:
    """Yield the paths in a .pth file; what else it holds is code."""
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        for line in map(str.strip, stream):
            if line and not line.startswith(("#", "import ", "import\t")) and "\0" not in line:
                yield os.path.join(folder, line)


def _editable(path: str) -> Iterator[str]:
    """Yield the project of an editable install, which PEP 610 records."""
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return
    import json
    from urllib.parse import unquote, urlsplit

    record = json.loads(text)
    if record.get("dir_info", {}).get("editable") and record.get("url", "").startswith("file:"):
        yield unquote(urlsplit(record["url"]).path)


@cache
def visible() -> tuple[str, ...]:
    """Return the files and directories that must be visible, none of them below another."""
    found: list[str] = []
    for path in (*_libraries(), *_packages()):
        # Both spellings: the environment may name either.
        found += (os.path.abspath(path), os.path.realpath(path))
    kept: list[str] = []
    for path in sorted(filter(os.path.exists, dict.fromkeys(found)), key=len):
        if not covers(kept, path):
            kept.append(path)
    return tuple(kept)


@cache
def _links() -> tuple[tuple[str, str], ...]:
    """Return the links from sys.executable to the binary, as (points to, path); the last is the binary itself."""
    path = os.path.abspath(sys.executable)
    found: list[tuple[str, str]] = []
    while os.path.islink(path) and len(found) < _MOST_LINKS:
        points_to = os.readlink(path)
        found.append((points_to, path))
        path = os.path.normpath(os.path.join(os.path.dirname(path), points_to))
    return (*found, ("", path))


def is_elsewhere() -> bool:
    """Say whether any of it lies outside of /usr, which a sandbox has anyway."""
    return bool(sys.executable) and not all(
        covers(["/usr", "/bin", "/lib", "/lib64"], path) for path in (*visible(), *(path for _, path in _links()))
    )


def user_base() -> str | None:
    """Return where the user's own packages are, if there are any and they count."""
    site = sys.modules.get("site")
    if site is None or not site.ENABLE_USER_SITE or not os.path.isdir(site.getusersitepackages()):
        return None
    base: str = site.getuserbase()
    return base


def missing(covered: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what makes the interpreter and its packages visible: paths, and what a link points to, "" for all else.

    Args:
        covered: Paths that the sandbox shows already, at those very paths.
    """
    seen = list(covered)
    for path in visible():
        if not covers(seen, path):
            yield path, ""
            seen.append(path)
    for points_to, path in _links():
        if not covers(seen, path):
            yield path, points_to
