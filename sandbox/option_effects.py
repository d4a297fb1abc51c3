"""What the options do: each changes the draft of a command line, most by a method of `Sandbox`."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, cast

from sandbox.arguments import process_name
from sandbox.builder import Sandbox
from sandbox.option_values import OptionError, cut, decimal, fields, flags, number

_MOST: Final = 16 << 20
_LANDLOCK: Final = ("read", "write", "execute", "bind_tcp", "connect_tcp", "bind_udp", "connect_udp", "scope")


class Draft:
    """What the options have said so far.

    Attributes:
        box: The sandbox.
        user: Keyword arguments of `Sandbox.user`, which takes them together.
        landlock: Those of `Landlock`: all such options together are one layer.
        capabilities: Those of `Sandbox.capabilities`.
        limits: Those of `Sandbox.limit`.
        timeout: Seconds, or None.
        format: Of the plan.
        tty: The command gets a terminal of its own.
        filter_output: What it says to the caller's terminal is filtered.
        name: Of the sandbox, for others to reach it.
        variables: What was said about the environment; None unsets.
        grace: Seconds that a command has to end.
        style: Of a list: a table, json or names.
        command: Program and arguments.
    """

    def __init__(self) -> None:
        self.start = self.box = Sandbox()
        self.user: dict[str, Any] = {}
        self.landlock: dict[str, Any] = {}
        self.capabilities: dict[str, list[str]] = {"keep": [], "ambient": []}
        self.limits: dict[str, Any] = {}
        self.timeout: float | None = None
        self.format = "text"
        self.tty = False
        self.filter_output = False
        self.name: str | None = None
        self.variables: dict[str, str | None] = {}
        self.grace = 10.0
        self.style = "table"
        self.command: list[str] = []


Effect: TypeAlias = Callable[[Draft, str], None]


def bind(method: Literal["bind", "bind_readonly"]) -> Effect:
    def apply(draft: Draft, value: str) -> None:
        source, target, words = fields(value, 3)
        said = flags(words, ("optional", "noexec", "dev", "owner="))
        bind = getattr(draft.box, method)
        draft.box = bind(
            source,
            target or None,
            optional="optional" in said,
            exec="noexec" not in said,
            dev="dev" in said,
            owner=number(said["owner"], "owner") if "owner" in said else None,
        )

    return apply


def rootfs(draft: Draft, value: str) -> None:
    path, words = fields(value, 2)
    draft.box = draft.box.rootfs(path, readonly="rw" not in flags(words, ("rw",)))


def empty(draft: Draft, _: str) -> None:
    if draft.box != draft.start:
        raise OptionError("must come first: it starts from nothing")
    draft.box = Sandbox.empty()


def tmpfs(draft: Draft, value: str) -> None:
    target, words = fields(value, 2)
    size, comma, rest = words.partition(",")
    if not size[:1].isdigit():
        size, rest = "", words
    elif comma and not rest:
        raise OptionError("something must follow the comma")
    said = flags(rest, ("mode=", "inodes=", "noexec"), "SIZE (as 64M), ")
    draft.box = draft.box.tmpfs(
        target,
        size=size or None,
        mode=number(said["mode"], "mode", 8) if "mode" in said else 0o755,
        inodes=number(said["inodes"], "inodes") if "inodes" in said else None,
        exec="noexec" not in said,
    )


def proc(draft: Draft, value: str) -> None:
    target, words = fields(value, 2)
    said = flags(words, ("hidepid", "subset="))
    subset = cast(Literal["pid"] | None, said.get("subset"))
    draft.box = draft.box.proc(target or "/proc", hidepid="hidepid" in said, subset=subset)


def dev(draft: Draft, value: str) -> None:
    target, words = fields(value, 2)
    draft.box = draft.box.dev(target or "/dev", shm=flags(words, ("shm=",)).get("shm"))


def file(draft: Draft, value: str) -> None:
    place, content = cut(value, "=")
    if content is None:
        raise OptionError("takes DST=TEXT or DST=@FILE")
    target, mode = fields(place, 2)
    if content.startswith("@@"):
        data = os.fsencode(content[1:])
    elif content.startswith("@"):
        with open(content[1:], "rb") as stream:
            data = stream.read(_MOST + 1)  # the builder refuses more; /dev/zero has no end
    else:
        data = os.fsencode(content)
    draft.box = draft.box.file(target, data, mode=number(mode, "the mode", 8) if mode else 0o644)


def file_fd(draft: Draft, value: str) -> None:
    source, target, mode = fields(value, 3)
    if not target:
        raise OptionError("takes FD:DST")
    draft.box = draft.box.file_fd(target, number(source, "FD"), mode=number(mode, "the mode", 8) if mode else 0o644)


def directory(draft: Draft, value: str) -> None:
    target, mode = fields(value, 2)
    draft.box = draft.box.dir(target, mode=number(mode, "the mode", 8) if mode else 0o755)


def symlink(draft: Draft, value: str) -> None:
    points_to, target = fields(value, 2)
    if not target:
        raise OptionError("takes TO:DST, the order of ln -s")
    draft.box = draft.box.symlink(points_to, target)


def user(draft: Draft, value: str) -> None:
    uid, colon, gid = value.partition(":")
    if "root" in {uid, gid}:
        raise OptionError("takes numbers; root is 0")
    ids: dict[str, Any] = {"uid": number(uid, "UID"), "gid": number(gid, "GID") if colon else None}
    Sandbox().user(**ids)  # options about the user are one call; but what is wrong with this one is said of it
    draft.user.update(ids)


def id_ranges(draft: Draft, value: str) -> None:
    draft.box = draft.box.id_ranges(number(value, "the count")) if value else draft.box.id_ranges()


def vary(draft: Draft, variables: Mapping[str, str | None]) -> None:
    draft.box = draft.box.env(variables)
    draft.variables.update(variables)


def env(draft: Draft, value: str) -> None:
    name, equals, content = value.partition("=")
    if equals:
        vary(draft, {name: content})
    else:
        inherit_env(draft, name)


def timeout(draft: Draft, value: str) -> None:
    try:
        draft.timeout = float(value)
    except ValueError:
        draft.timeout = -1
    if not 0 < draft.timeout < 1e9:
        raise OptionError(f"takes seconds, more than 0 and less than a billion, got {value!r}")


def grace(draft: Draft, value: str) -> None:
    draft.grace = decimal(value)
    if not 0 <= draft.grace < 1e6:
        raise OptionError(f"takes seconds, 0 or more and less than a million, got {value!r}")


def name(draft: Draft, value: str) -> None:
    draft.name = process_name(value)


def style(name: str) -> Effect:
    return lambda draft, _: setattr(draft, "style", name)


def output_format(draft: Draft, value: str) -> None:
    if value not in {"text", "json", "svg"}:
        raise OptionError(f"is text, json or svg, got {value!r}")
    draft.format = value


def tty(draft: Draft, _: str) -> None:
    draft.tty = True


def filter_output(draft: Draft, _: str) -> None:
    draft.tty = draft.filter_output = True


def user_with(**changes: Any) -> Effect:
    return lambda draft, _: draft.user.update(changes)


def calls(name: str, *, listed: bool = False) -> Effect:
    """Return what calls a method of the builder with the value itself, or with the words between its commas."""

    def apply(draft: Draft, value: str) -> None:
        draft.box = getattr(draft.box, name)(*(value.split(",") if listed else (value,)))

    return apply


def inherit_env(draft: Draft, value: str) -> None:
    names = value.split(",") if value else os.environ
    vary(draft, {name: os.environ[name] for name in names if name in os.environ})


def unset_env(draft: Draft, value: str) -> None:
    vary(draft, {value: None})


def clock(draft: Draft, value: str) -> None:
    offsets = flags(value, ("monotonic=", "boottime="))
    draft.box = draft.box.time_offset(**{name: decimal(one) for name, one in offsets.items()})


def calls_plainly(name: str, *arguments: Any) -> Effect:
    """Return what calls a method of the builder with no value of the user's."""

    def apply(draft: Draft, _: str) -> None:
        draft.box = getattr(draft.box, name)(*arguments)

    return apply


def umask(draft: Draft, value: str) -> None:
    draft.box = draft.box.umask(number(value, "the mask", 8))


def seccomp(draft: Draft, value: str) -> None:
    if value == "none":
        draft.box = draft.box.seccomp(None)
        return
    from sandbox.compiler.filters import notifies
    from sandbox.filters.sources import read_filter

    filter = read_filter(value)
    if notifies(filter.to_bytes()):
        raise OptionError("this filter asks a supervisor (Notify), and a command line has none")
    draft.box = draft.box.seccomp(filter)


def landlock(draft: Draft, value: str) -> None:
    word, equals, rest = value.partition("=")
    if value in {"best-effort", "best_effort"}:
        draft.landlock["best_effort"] = True
        return
    kind = word.replace("-", "_")
    if kind not in _LANDLOCK or not equals:
        kinds = ", ".join(_LANDLOCK).replace("_", "-")
        raise OptionError(f"takes KIND=VALUE,..., a kind being {kinds}; or best-effort")
    words: list[Any] = rest.split(",") if rest else []
    if kind.endswith(("_tcp", "_udp")):
        words = [number(one, "a port") for one in words]
    draft.landlock.setdefault(kind, []).extend(words)


def capabilities(which: Literal["keep", "ambient"]) -> Effect:
    def apply(draft: Draft, value: str) -> None:
        from sandbox.capabilities import capability_mask

        names = value.split(",")
        capability_mask(names, "the list")
        draft.capabilities[which].extend(names)

    return apply


def limit(name: str, read: Callable[[str], Any] = str) -> Effect:
    def apply(draft: Draft, value: str) -> None:
        draft.limits[name] = read(value)
        # All of them together are one call; but what is wrong with one is said of that one.
        Sandbox().limit(**{"memory": 4096, name: draft.limits[name]})

    return apply


def io(draft: Draft, value: str) -> None:
    word, equals, rate = value.rpartition("=")
    if not equals:
        raise OptionError("takes WORD=RATE or WORD:DISK=RATE, as in write:/dev/sda=10M")
    draft.limits["io"] = {**draft.limits.get("io", {}), word.replace("-", "_", 1): rate}
    Sandbox().limit(io=draft.limits["io"])


def best_effort(draft: Draft, _: str) -> None:
    draft.limits["best_effort"] = True
