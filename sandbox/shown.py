"""A `Spec` in the words that it was said in: the builder calls that make it of the default, and which hides what."""

import os
import shutil
from collections.abc import Iterable
from typing import Final

from sandbox import interpreter
from sandbox.arguments import quoted
from sandbox.limits import Limits
from sandbox.rootfs import Bind, Filesystem, Mask, Root
from sandbox.spec import HOME, NEW_BY_DEFAULT, Python, Spec, System

_DEFAULT: Final = Spec()


def shown(spec: Spec) -> str:
    """Return what a sandbox says beyond the default: each thing once, in a fixed order after the root's.

    Of the environment the names alone, for values may be secrets.
    """
    head = "Sandbox()" if any(isinstance(entry, System) for entry in spec.entries) else "Sandbox.empty()"
    root = [entry.origin for entry in spec.entries if entry.origin.startswith(".")]
    if any(call.startswith(".rootfs(") for call in root):
        head = "Sandbox()"
    calls = [*root, *_identity(spec), *_namespaces(spec), *_privileges(spec), *_start(spec)]
    return head + "".join(dict.fromkeys(calls))


def _call(name: str, *positional: object, **named: object) -> str:
    """Return a call with those of its named arguments that are not None."""
    words = [_word(value) for value in positional]
    words += [f"{key}={_word(value)}" for key, value in named.items() if value is not None]
    return f".{name}({', '.join(words)})"


def _word(value: object) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, sorted(names)))


def _identity(spec: Spec) -> Iterable[str]:
    if (spec.uid, spec.gid, spec.host_root, spec.strict_groups) != (None, None, False, False):
        yield _call(
            "user",
            uid=spec.uid,
            gid=None if spec.gid == spec.uid else spec.gid,
            host_root=spec.host_root or None,
            groups="strict" if spec.strict_groups else None,
        )
    if spec.id_ranges is not None:
        yield spec.id_ranges_origin
    if spec.hostname != _DEFAULT.hostname:
        yield _call("hostname", spec.hostname)
    if spec.domainname is not None:
        yield _call("domainname", spec.domainname)


def _namespaces(spec: Spec) -> Iterable[str]:
    offset = {"monotonic": spec.monotonic / 1e9 or None, "boottime": spec.boottime / 1e9 or None}
    shared, new = NEW_BY_DEFAULT - spec.new_namespaces, spec.new_namespaces - NEW_BY_DEFAULT
    if any(offset.values()):
        yield _call("time_offset", **offset)
        new -= {"time"}
    if shared:
        yield f".share({_names(shared)})"
    if new:
        yield f".unshare({_names(new)})"
    if not spec.loopback:
        yield _call("network", "none")


def _privileges(spec: Spec) -> Iterable[str]:
    if spec.keep:
        from sandbox.capabilities import capability_names

        ambient = sorted(capability_names(spec.ambient)) or None
        yield _call("capabilities", sorted(capability_names(spec.keep & ~spec.ambient)), ambient=ambient)
    if spec.filter != _DEFAULT.filter:
        yield spec.filter_origin
    for layer in spec.landlock:
        yield f".landlock({layer!r})"
    if spec.observe:
        yield ".observe()"
    yield from _limits(spec.limits)


def _limits(limits: Limits) -> Iterable[str]:
    usual = Limits()
    said = {
        name: dict(value) if name == "io" and value is not None else value
        for name, value in limits._asdict().items()
        if name != "best_effort" and value != getattr(usual, name)
    }
    if said:
        words = [f"{name}={_word(value)}" for name, value in said.items()]
        yield f".limit({', '.join([*words, *(['best_effort=True'] if limits.best_effort else [])])})"


def _start(spec: Spec) -> Iterable[str]:
    before, after = dict(_DEFAULT.env), dict(spec.env)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        yield f".env({', '.join(f'{name}=...' if name in after else f'{name}=None' for name in changed)})"
    usual = HOME if any(isinstance(entry, System) for entry in spec.entries) else None
    if spec.cwd not in {None, usual}:
        yield _call("cwd", spec.cwd)
    if spec.umask != _DEFAULT.umask:
        yield f".umask({spec.umask:#o})"
    if not spec.init:
        yield ".init(False)"
    if not spec.new_session:
        yield ".new_session(False)"


def why_hidden(spec: Spec, program: str) -> str | None:
    """Return what to say of a program that one call shows and a later one hides; None: that is not why it is missing.

    Args:
        spec: What the sandbox says.
        program: As the caller named it.
    """
    path = shutil.which(program)
    if path is None:
        return None
    for name in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        call = _hides(spec, name)
        if call is not None:
            return (
                f"{call} hides the host's {name}, which was visible until then:"
                " leave that call out, or write it before the one that shows the program"
            )
    return None


def _hides(spec: Spec, path: str) -> str | None:
    """Return the last call that hides a path of the host, unless a later one shows it again."""
    shown_before, call = False, None
    for entry in spec.entries:
        if isinstance(entry, Filesystem | Mask):
            if shown_before and interpreter.covers([entry.target], path):
                shown_before, call = False, entry.origin
        elif _shows(entry, path):
            shown_before, call = True, None
    return call


def _shows(entry: object, path: str) -> bool:
    if isinstance(entry, System):
        return interpreter.covers(["/usr", "/bin", "/sbin"], path)
    if isinstance(entry, Python):
        return interpreter.covers(interpreter.visible(), path)
    if isinstance(entry, Bind):
        below = path.removeprefix(entry.target.rstrip("/"))
        return interpreter.covers([entry.target], path) and os.path.exists(entry.source + below)
    return isinstance(entry, Root) and os.path.exists(entry.source.rstrip("/") + path)
