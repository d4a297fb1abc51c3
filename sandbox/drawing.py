"""A sandbox as a picture: what is visible inside and from where, who the command is, and what it may use.

SVG without scripts, fonts or other files, for light and dark pages. Whatever names came from the user or the host are
escaped, and what would not print is written out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from html import escape
from posixpath import dirname
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from unicodedata import east_asian_width

from sandbox import kernel as k
from sandbox.capabilities import capability_names
from sandbox.escapes import printable
from sandbox.limits import Limits
from sandbox.rootfs import Bind, Entry, File, Filesystem, Mask, Readonly, Root, Symlink
from sandbox.spec import NAMESPACES, Spec

if TYPE_CHECKING:
    from sandbox.landlock import Landlock

__all__ = ["draw"]

Tone: TypeAlias = Literal["", "readonly", "host", "memory", "hidden"]
_BADGES: Final[dict[Tone, str]] = {
    "readonly": "read-only",
    "host": "writes to the host",
    "memory": "writable, in memory",
    "hidden": "hidden",
}
_FILESYSTEMS: Final = {"proc": "its own processes", "devpts": "terminals of its own", "tmpfs": "memory"}

_XMLNS: Final = "http://www.w3.org/2000/svg"
_WIDTH: Final = 800
_LINE: Final = 21
_INDENT: Final = 14
# Columns: the path, what it is, the badge.
_PATH, _WHAT, _BADGE = 20, 276, 540
_VALUE: Final = 150
_FEW: Final = 4  # as many names are listed of what is shown in one row

_STYLE: Final = """
.sandbox-plan{--paper:#fff;--ink:#1f2328;--dim:#59636e;--line:#d1d9e0;--readonly:#e7ebef;--host:#ffd9b8;--memory:#cdebd3;
--hidden:#e5ddf5;--own:#d6e6fb;font:13px system-ui,sans-serif}
@media(prefers-color-scheme:dark){.sandbox-plan{--paper:#0d1117;--ink:#e6edf3;--dim:#9198a1;--line:#3d444d;
--readonly:#2a3038;--host:#6b3a12;--memory:#1d4a2a;--hidden:#41336b;--own:#173a67}}
.sandbox-plan .paper{fill:var(--paper);stroke:var(--line)}.sandbox-plan text{fill:var(--ink)}
.sandbox-plan .dim{fill:var(--dim)}.sandbox-plan .path{font:12.5px ui-monospace,monospace}
.sandbox-plan .head{font-weight:600}.sandbox-plan .line{stroke:var(--line);fill:none}
.sandbox-plan .badge{font-size:11.5px}.sandbox-plan .readonly{fill:var(--readonly)}.sandbox-plan .host{fill:var(--host)}
.sandbox-plan .memory{fill:var(--memory)}.sandbox-plan .hidden{fill:var(--hidden)}.sandbox-plan .own{fill:var(--own)}
"""


class _Node(NamedTuple):
    """One thing that is visible inside.

    Args:
        names: Its path, or several of one directory that are shown in one row.
        what: What it is, and from where.
        tone: What may be done with it.
        marks: Further rights, in a word each.
        origin: The builder call that asked for it.
        kind: What several in one row have in common; "" for what has its own row in any case.
    """

    names: tuple[str, ...]
    what: str
    tone: Tone
    marks: tuple[str, ...]
    origin: str
    kind: str = ""


def draw(spec: Spec, entries: Iterable[Entry], ids: tuple[int, int], args: Sequence[str] = ()) -> str:
    """Return the SVG document of a sandbox.

    Args:
        spec: What it says.
        entries: What its root holds, with the host's facts filled in.
        ids: User and group as the command sees itself.
        args: The command.
    """
    picture = _Picture()
    picture.title(" ".join(args) or "sandbox")
    picture.heading("Files")
    for depth, node in _rows(_nodes(entries)):
        picture.node(depth, node)
    picture.gap()
    picture.namespaces(spec)
    for name, lines in _facts(spec, ids):
        picture.fact(name, lines)
    return picture.document(args)


# ── what is visible ──────────────────────────────────────────────────────────────────────────────────────────────────


def _nodes(entries: Iterable[Entry]) -> dict[str, _Node]:
    """Return what is visible at each path after all entries."""
    found = {"/": _Node(("/",), "made for this sandbox", "readonly", (), "")}
    for entry in entries:
        path = "/" if isinstance(entry, Root) else entry.target
        if isinstance(entry, Readonly):
            for one in [one for one in found if one == path or one.startswith(path + "/")]:
                found[one] = found[one]._replace(tone="readonly", kind="")
            found.setdefault(path, _Node((path,), "from here on", "readonly", (), entry.origin))
            continue
        if isinstance(entry, Bind | Filesystem | Mask | Root):
            for one in [one for one in found if one.startswith(path.rstrip("/") + "/")]:
                del found[one]
        found[path] = _node(path, entry)
    return found


def _node(path: str, entry: Entry) -> _Node:
    match entry:
        case Root():
            return _Node((path,), f"host: {entry.source}", "readonly" if entry.readonly else "host", (), entry.origin)
        case Bind():
            return _bind(path, entry)
        case Filesystem():
            return _filesystem(path, entry)
        case Mask():
            return _Node((path,), "nothing to see", "hidden", (), entry.origin)
        case File():
            size = f"{len(entry.content)} byte{'' if len(entry.content) == 1 else 's'}"
            return _Node((path,), f"a file of {size}", "", (), entry.origin, "files of its own")
        case Symlink():
            return _Node((path,), f"→ {entry.points_to}", "", (), entry.origin, "links")
    return _Node((path,), "a directory", "", (), entry.origin)


def _bind(path: str, entry: Bind) -> _Node:
    tone: Tone = "readonly" if entry.attributes & k.MOUNT_ATTR_RDONLY else "host"
    marks = ("noexec",) if entry.attributes & k.MOUNT_ATTR_NOEXEC else ()
    what = f"host: {entry.source}"
    if not entry.attributes & k.MOUNT_ATTR_NODEV:
        if entry.is_file and entry.source.startswith("/dev/"):
            return _Node((path,), what, "", (), entry.origin, "devices of the host")
        marks = (*marks, "devices")
    if entry.idmap is not None:
        what += f" as uid {entry.idmap.uid}"
    if entry.optional:
        what += ", if it is there"
    kind = "of the host's, if they are there" if entry.optional else "of the host's"
    return _Node((path,), what, tone, marks, entry.origin, kind if entry.source == path else "")


def _filesystem(path: str, entry: Filesystem) -> _Node:
    what = _FILESYSTEMS.get(entry.fstype, entry.fstype)
    options = dict(entry.options)
    size, hides, subset = options.get("size"), "hidepid" in options, "subset" in options
    if size is not None:
        what += f", at most {_size(int(size))}"
    what += (", of its user only" if hides else "") + (", nothing else" if subset else "")
    noexec = entry.fstype == "tmpfs" and entry.attributes & k.MOUNT_ATTR_NOEXEC
    tone: Tone = "memory" if entry.fstype == "tmpfs" else ""
    return _Node((path,), what, tone, ("noexec",) if noexec else (), entry.origin)


def _above(path: str, found: dict[str, _Node]) -> str:
    """Return the nearest directory above that is shown."""
    path = dirname(path)
    while path not in found:
        path = dirname(path)
    return path


def _rows(found: dict[str, _Node]) -> list[tuple[int, _Node]]:
    """Return the nodes as a tree, with their depth; what one call has put into one directory shares a row."""
    children: dict[str, list[str]] = {}
    for path in found:
        if path != "/":
            children.setdefault(_above(path, found), []).append(path)
    rows: list[tuple[int, _Node]] = []

    def add(path: str, depth: int) -> None:
        rows.append((depth, found[path]))
        together: dict[tuple[str, ...], list[str]] = {}
        for child in sorted(children.get(path, ())):
            node = found[child]
            leaf = child not in children
            if leaf and (node.what, node.origin) == ("a directory", "Sandbox()"):
                continue  # an empty one, such as /run
            shared = (node.origin, node.kind, node.tone) if leaf and node.kind else (child,)
            together.setdefault(shared, []).append(child)
        for paths in together.values():
            if len(paths) == 1:
                add(paths[0], depth + 1)
                continue
            node = found[paths[0]]
            what = node.kind if node.kind == "links" else f"{len(paths)} {node.kind}"
            names = tuple(one[len(path.rstrip("/")) + 1 :] for one in paths)
            rows.append((depth + 1, node._replace(names=names, what=what)))

    add("/", 0)
    return rows


# ── what it may ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _facts(spec: Spec, ids: tuple[int, int]) -> list[tuple[str, list[str]]]:
    """Return what there is to say beside the files, by topic."""
    capabilities = ", ".join(sorted(capability_names(spec.keep)))
    user = f"uid {ids[0]}, gid {ids[1]}" if "user" in spec.new_namespaces else "the caller's ids"
    if spec.id_ranges is not None:
        user += f", ids 0 to {spec.id_ranges - 1} exist"
    network = "the caller's"
    if "net" in spec.new_namespaces:
        network = "its own loopback, nothing else" if spec.loopback else "nothing, not even loopback"
    start = spec.cwd or "/"
    variables = ", ".join(name for name, _ in spec.env)
    facts = [
        ("Identity", [user + (", root's own id may be mapped" if spec.host_root else "")]),
        ("Privileges", [f"{capabilities}, in its own namespaces" if capabilities else "none; no_new_privs"]),
        ("System calls", [_filter(spec)]),
        ("Network", [network]),
        ("Limits", _limits(spec.limits) or ["none: memory, processes and CPU may be used up"]),
        ("Processes", ["PID 1 reaps and watches" if spec.init else "the command is PID 1"]),
        ("Starts in", [start + (f", with {variables}" if variables else ", with an empty environment")]),
    ]
    if spec.landlock:
        facts.insert(3, ("Landlock", [_landlock(layer) for layer in spec.landlock]))
    if spec.hostname is not None and "uts" in spec.new_namespaces:
        facts.insert(-2, ("Host name", [spec.hostname]))
    if spec.monotonic or spec.boottime:
        facts.append(("Clocks", [f"monotonic {spec.monotonic / 1e9:+g} s, boottime {spec.boottime / 1e9:+g} s"]))
    return facts


def _landlock(layer: "Landlock") -> str:
    kinds = (field.name for field in fields(layer) if field.name not in {"rights", "log_flags", "best_effort"})
    said = [(kind, getattr(layer, kind)) for kind in kinds]
    texts = [f"{kind}: {', '.join(map(str, value)) or 'nothing'}" for kind, value in said if value is not None]
    texts += [f"rights {rights:#x}: {path}" for path, rights in layer.rights]
    return "; ".join(texts)


def _filter(spec: Spec) -> str:
    words = {"default": "the default filter", "default-nesting": "the default filter, open for sandboxes inside"}
    if spec.filter is None:
        text = "not filtered"
    else:
        text = words[spec.filter] if isinstance(spec.filter, str) else repr(spec.filter)
    return text + (", refusals are told" if spec.observe else "")


def _limits(limits: Limits) -> list[str]:
    texts: dict[str, Callable[[Any], str]] = {
        "memory": lambda value: f"memory {_size(value)}" + (f", swap {_size(limits.swap)}" if limits.swap else ""),
        "pids": lambda value: f"{value} processes",
        "cpus": lambda value: f"{value:g} processors",
        "cpuset": lambda value: "processors " + ",".join(map(str, value)),
        "io": lambda value: ", ".join(f"{name} {_size(rate) if 'ops' not in name else rate}/s" for name, rate in value),
        "wall_time": lambda value: f"{value:g} s",
        "cpu_time": lambda value: f"{value:g} s of CPU",
        "open_files": lambda value: f"{value} open files",
        "file_size": lambda value: f"files of {_size(value)}",
        "stack": lambda value: f"stack {_size(value)}",
        "output": lambda value: f"output {_size(value)}",
    }
    said = [text(getattr(limits, name)) for name, text in texts.items() if getattr(limits, name) is not None]
    return [", ".join(said[at : at + 4]) for at in range(0, len(said), 4)]


def _size(count: int) -> str:
    for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB")):
        if count < 1024 << 10 * power or unit == "TiB":
            return f"{count / (1 << 10 * power):.4g} {unit}"
    raise AssertionError


# ── lines and letters ────────────────────────────────────────────────────────────────────────────────────────────────


def _cut(text: str, columns: int) -> str:
    """Make a text printable and at most so many columns wide."""
    text = printable(text).replace("\n", "\\n")
    width = 0
    for i, letter in enumerate(text):
        width += 2 if east_asian_width(letter) in "WF" else 1
        if width > columns:
            return text[: max(0, i - 1)] + "…"
    return text


class _Picture:
    """Rows from top to bottom."""

    def __init__(self) -> None:
        self.y = 0
        self.lines: list[str] = []

    def text(self, x: int, text: str, columns: int, style: str = "", whole: str = "") -> None:
        """Add a text at the current row; what is cut off is shown by who points at it."""
        short = _cut(text, columns)
        whole = printable(whole or text).replace("\n", "\\n")
        tip = f"<title>{escape(whole)}</title>" if short != whole else ""
        kind = f' class="{style}"' if style else ""
        self.lines.append(f'<text x="{x}" y="{self.y}"{kind}>{tip}{escape(short)}</text>')

    def badge(self, x: int, text: str, tone: str) -> int:
        """Add a word on a coloured ground; return where it ends."""
        width = round(len(text) * 6.3) + 14
        self.lines.append(f'<rect x="{x}" y="{self.y - 13}" width="{width}" height="17" rx="5" class="{tone}"/>')
        self.lines.append(f'<text x="{x + 7}" y="{self.y}" class="badge">{escape(text)}</text>')
        return x + width

    def title(self, text: str) -> None:
        self.y += 32
        self.text(_PATH, f"$ {text}", 92, "path head")
        self.y += 14
        self.rule()

    def rule(self) -> None:
        self.lines.append(f'<path class="line" d="M0.5 {self.y}H{_WIDTH - 0.5}"/>')

    def gap(self) -> None:
        self.y += 16
        self.rule()

    def heading(self, text: str) -> None:
        self.y += 25
        self.text(_PATH, text, 40, "head")

    def node(self, depth: int, node: _Node) -> None:
        """Add a row of the tree."""
        self.y += _LINE
        x = _PATH + _INDENT * depth
        if depth:
            self.lines.append(f'<path class="line" d="M{x - 9}.5 {self.y - 16}v12h6"/>')
        shown = ", ".join(node.names[:_FEW]) + (", …" if len(node.names) > _FEW else "")
        style = "path head" if node.origin.startswith(".") else "path"  # what the user has said himself
        self.text(x, shown, (_WHAT - x) // 8 + 1, style, ", ".join(node.names))
        self.text(_WHAT, node.what, 38, "dim")
        end = _BADGE
        if node.tone:
            end = self.badge(end, _BADGES[node.tone], node.tone) + 5
        for mark in node.marks:
            end = self.badge(end, mark, "readonly") + 5

    def namespaces(self, spec: Spec) -> None:
        self.y += 25
        self.text(_PATH, "Namespaces", 40, "head")
        x = _VALUE
        for name in ("mnt", *NAMESPACES):
            if name == "mnt" or name in spec.new_namespaces:
                x = self.badge(x, name, "own") + 6
        shared = [name for name in NAMESPACES if name not in spec.new_namespaces]
        if shared:
            self.text(x + 6, "the caller's: " + ", ".join(shared), 50, "dim")

    def fact(self, name: str, lines: list[str]) -> None:
        """Add a topic and what there is to say about it."""
        self.y += _LINE + 1
        self.text(_PATH, name, 40, "head")
        for i, line in enumerate(lines):
            self.y += _LINE if i else 0
            self.text(_VALUE, line, 86)

    def document(self, args: Sequence[str]) -> str:
        """Return all of it."""
        height = self.y + 18
        label = escape(_cut(" ".join(args) or "sandbox", 200))
        return "\n".join(
            (
                f'<svg xmlns="{_XMLNS}" class="sandbox-plan" viewBox="0 0 {_WIDTH} {height}" role="img">',
                f"<title>The sandbox of {label}</title>",
                f"<style>{_STYLE}</style>",
                f'<rect class="paper" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
                *self.lines,
                "</svg>",
            )
        )
