"""The picture of a sandbox: well-formed, complete, and no name can break out of it."""

import re
import xml.etree.ElementTree as ET

import pytest

from sandbox import Errno, Filter, Landlock, Sandbox, kernel as k
from sandbox.compiler.root import entries_of
from sandbox.drawing import _size, draw
from sandbox.identity import Caller, inside_ids
from sandbox.rootfs import Bind, Entry, Owner

WHO = Caller(uid=1234, gid=1234, groups=(), privileged=False)
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "</text><script>alert(1)</script>",
    '"/><image href="x"',
    "a&b&lt;",
    "line\nbreak",
    "\x1b]0;title\x07",
    "right\u202eto left",
    "\udcff\udc80",
    "]]><!--",
)


def picture(box: Sandbox, *args: str) -> ET.Element:
    """Draw, and parse what was drawn: text that is no XML is an error."""
    spec = box._spec
    return ET.fromstring(draw(spec, entries_of(spec, WHO, shown=True), inside_ids(spec, WHO), args))


def texts(svg: ET.Element) -> list[str]:
    """Return what is written, whole where it was cut off."""
    return [one.findtext(f"{SVG}title") or one.text or "" for one in svg.iter(f"{SVG}text")]


def visible(svg: ET.Element) -> list[str]:
    """Return what is written as it is seen."""
    return ["".join([one.text or "", *(tip.tail or "" for tip in one)]) for one in svg.iter(f"{SVG}text")]


def row(svg: ET.Element, path: str) -> list[str]:
    """Return what stands in the row of a path: from where, and what may be done with it."""
    (y,) = {one.get("y") for one in svg.iter(f"{SVG}text") if path in (one.findtext(f"{SVG}title"), one.text)}
    found = [one for one in svg.iter(f"{SVG}text") if one.get("y") == y]
    return [one.findtext(f"{SVG}title") or one.text or "" for one in found][1:]


def fact(svg: ET.Element, name: str) -> str:
    written = texts(svg)
    return written[written.index(name) + 1]


@pytest.mark.parametrize(
    ("box", "path", "expected"),
    [
        (Sandbox().bind_readonly("/opt/tool"), "/opt/tool", ["host: /opt/tool", "read-only"]),
        (Sandbox().bind("/opt/a", "/data"), "/data", ["host: /opt/a", "writes to the host"]),
        (
            Sandbox().bind("/opt/a", "/data", exec=False, dev=True, optional=True),
            "/data",
            ["host: /opt/a, if it is there", "writes to the host", "noexec", "devices"],
        ),
        (Sandbox().tmpfs("/w", size="64M"), "/w", ["memory, at most 64 MiB", "writable, in memory"]),
        (Sandbox().tmpfs("/w", exec=False), "/w", ["memory", "writable, in memory", "noexec"]),
        (Sandbox().file("/w/x", "abc"), "/w/x", ["a file of 3 bytes"]),
        (Sandbox().symlink("/tmp/x", "/w"), "/w", ["→ /tmp/x"]),
        (Sandbox().dir("/w"), "/w", ["a directory"]),
        (Sandbox().mask("/usr/share"), "/usr/share", ["nothing to see", "hidden"]),
        (Sandbox().remount_readonly("/tmp"), "/tmp", ["memory", "read-only"]),
        (Sandbox().remount_readonly("/usr/x"), "/usr/x", ["from here on", "read-only"]),
        (Sandbox().rootfs("/opt/tree"), "/", ["host: /opt/tree", "read-only"]),
        (Sandbox().rootfs("/opt/tree", readonly=False), "/", ["host: /opt/tree", "writes to the host"]),
        (Sandbox.empty().proc(hidepid=True), "/proc", ["its own processes, of its user only"]),
        (Sandbox.empty().proc(subset="pid"), "/proc", ["its own processes, nothing else"]),
        (Sandbox(), "/usr", ["host: /usr", "read-only"]),
        (Sandbox(), "/dev/pts", ["terminals of its own"]),
    ],
)
def test_draw_shows_source_and_rights_of_a_path(box: Sandbox, path: str, expected: list[str]) -> None:
    assert expected == row(picture(box), path)


def test_draw_bind_with_owner_shows_who_it_is_there() -> None:
    spec = Sandbox.empty()._spec
    entries: list[Entry] = [Bind("/a", "/b", k.MOUNT_ATTR_NODEV, idmap=Owner(33, 33))]
    assert ["host: /a as uid 33", "writes to the host"] == row(ET.fromstring(draw(spec, entries, (0, 0))), "/b")


def test_draw_covered_paths_are_not_visible() -> None:
    written = texts(picture(Sandbox.empty().tmpfs("/w").file("/w/below", "x").tmpfs("/w")))
    assert "/w" in written
    assert "/w/below" not in written


def test_draw_rootfs_covers_what_was_there() -> None:
    assert "/usr" not in texts(picture(Sandbox().rootfs("/opt/tree")))


def test_draw_files_of_one_call_share_a_row_and_are_all_named() -> None:
    written = texts(picture(Sandbox()))
    (devices,) = [one for one in written if one.startswith("full, null")]
    assert "full, null, random, tty, urandom, zero" == devices
    assert "6 devices of the host" in written


@pytest.mark.parametrize(
    ("box", "name", "expected"),
    [
        (Sandbox(), "Identity", "uid 1234, gid 1234"),
        (Sandbox().user(0), "Identity", "uid 0, gid 0"),
        (Sandbox().user(5, 6).id_ranges(10), "Identity", "uid 5, gid 6, ids 0 to 9 exist"),
        (Sandbox().user(0, host_root=True), "Identity", "uid 0, gid 0, root's own id may be mapped"),
        (Sandbox().share("user"), "Identity", "the caller's ids"),
        (Sandbox(), "Privileges", "none; no_new_privs"),
        (Sandbox().capabilities(["net_admin", "chown"]), "Privileges", "CHOWN, NET_ADMIN, in its own namespaces"),
        (Sandbox(), "System calls", "the default filter"),
        (Sandbox().nesting(), "System calls", "the default filter, open for sandboxes inside"),
        (Sandbox().seccomp(None), "System calls", "not filtered"),
        (Sandbox().observe(), "System calls", "the default filter, refusals are told"),
        (Sandbox().seccomp(Filter.default().deny("chown")), "System calls", 'Filter.default().deny("chown")'),
        (Sandbox(), "Network", "its own loopback, nothing else"),
        (Sandbox().network("none"), "Network", "nothing, not even loopback"),
        (Sandbox().network("host"), "Network", "the caller's"),
        (Sandbox(), "Limits", "none: memory, processes and CPU may be used up"),
        (Sandbox().limit(memory="64M", swap="1G", pids=7), "Limits", "memory 64 MiB, swap 1 GiB, 7 processes"),
        (Sandbox().limit(cpus=1.5, cpuset=[0, 2]), "Limits", "1.5 processors, processors 0,2"),
        (Sandbox().limit(wall_time=2, cpu_time=1, open_files=9), "Limits", "2 s, 1 s of CPU, 9 open files"),
        (
            Sandbox().limit(file_size=100, stack="8M", output="1K"),
            "Limits",
            "files of 100 bytes, stack 8 MiB, output 1 KiB",
        ),
        (Sandbox().limit(io={"read": "1M", "write_ops": 5}), "Limits", "read 1 MiB/s, write_ops 5/s"),
        (Sandbox().landlock(read=["/usr"], write=[]), "Landlock", "read: /usr; write: nothing"),
        (Sandbox().landlock(Landlock().path("/x", 4)), "Landlock", "rights 0x4: /x"),
        (Sandbox().hostname("node1"), "Host name", "node1"),
        (Sandbox().init(False), "Processes", "the command is PID 1"),
        (Sandbox().time_offset(monotonic=2.5), "Clocks", "monotonic +2.5 s, boottime +0 s"),
        (Sandbox.empty().env(PATH=None, HOME=None, LANG=None), "Starts in", "/, with an empty environment"),
        (Sandbox(), "Starts in", "/tmp, with PATH, HOME, LANG"),
    ],
)
def test_draw_says_what_it_may(box: Sandbox, name: str, expected: str) -> None:
    assert expected == fact(picture(box), name)


def test_draw_tells_own_namespaces_from_the_caller_s() -> None:
    written = texts(picture(Sandbox().share("ipc", "net")))
    assert ["mnt", "user", "pid", "uts", "cgroup"] == written[written.index("Namespaces") + 1 :][:5]
    assert "the caller's: net, ipc, time" in written


@pytest.mark.parametrize("name", HOSTILE)
def test_draw_hostile_names_are_text_and_nothing_else(name: str) -> None:
    plain = picture(Sandbox().bind("/a", "/b").file("/c", "").symlink("/d", "/e"), "echo")
    box = (
        Sandbox()
        .bind(f"/{name}", f"/b{name}")
        .file(f"/c{name}", "")
        .symlink(f"/{name}", f"/e{name}")
        .cwd(f"/{name}")
        .env({name.replace("=", ""): "x"})
        .seccomp(Filter.default().deny("chown", action=Errno("EPERM")))
        .landlock(read=[f"/{name}"])
    )
    hostile = picture(box, "echo", name)
    assert {one.tag for one in plain.iter()} == {one.tag for one in hostile.iter()}
    attributes = {key for one in plain.iter() for key in one.attrib}
    assert attributes == {key for one in hostile.iter() for key in one.attrib}
    written = "".join(texts(hostile))
    assert written.isprintable()
    assert name.split("\n")[0].split("\x1b")[0].split("\u202e")[0].split("\udcff")[0] in written


def test_draw_long_names_are_cut_and_stay_readable() -> None:
    long = "/" + "x" * 4000
    svg = picture(Sandbox().bind_readonly(long, "/b"), "echo", "y" * 9000)
    assert max(map(len, visible(svg))) < 100
    assert f"host: {long}" in texts(svg)


def test_draw_wide_letters_count_twice() -> None:
    svg = picture(Sandbox().bind_readonly("/" + "漢" * 40, "/b"))
    (short,) = [one for one in visible(svg) if "漢" in one]
    assert 10 < short.count("漢") < 20
    assert short.endswith("…")


def test_draw_needs_nothing_from_elsewhere() -> None:
    spec = Sandbox()._spec
    text = draw(spec, entries_of(spec, WHO, shown=True), (0, 0))
    assert [] == re.findall(r"href|url\(|@import|<script", text)
    assert "prefers-color-scheme:dark" in text


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "1 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (64 << 20, "64 MiB"), (3 << 39, "1.5 TiB")],
)
def test_size_is_what_people_write(count: int, expected: str) -> None:
    assert expected == _size(count)
