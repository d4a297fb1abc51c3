"""The root file system of a sandbox: the methods of `Sandbox` that say what is in it."""

import re
from collections.abc import Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, Self

from sandbox.arguments import (
    MOST_CONTENT,
    Fd,
    Size,
    StrOrBytesPath,
    file_mode,
    id_number,
    parse_size,
    path_text,
    quoted,
    source_path,
    switch,
    target_path,
)
from sandbox.kernel import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from sandbox.rootfs import DEVICE_NODES, Bind, Dir, Entry, File, Mask, Readonly, Root, Symlink
from sandbox.runner import Runner
from sandbox.spec import HOME, Dev, FileFrom, Python, Spec, System, proc_entry, tmpfs_entry
from sandbox.streams import descriptor


class RootBuilder(Runner):
    """A sandbox in the making: what its root has."""

    __slots__ = ()
    _spec: Spec

    @classmethod
    def _of(cls, spec: Spec) -> Self:
        """Return the sandbox that says this."""
        raise NotImplementedError

    def _with(self, **changes: Any) -> Self:
        return self._of(self._spec._replace(**changes))

    def _add(self, entry: Entry | Dev | Python | FileFrom) -> Self:
        return self._with(entries=(*self._spec.entries, entry))

    def rootfs(self, path: StrOrBytesPath, *, readonly: bool = True) -> Self:
        """Use a directory of the host as the whole root; /proc, /dev and /tmp of the default stay.

        Args:
            path: Directory of the host. It must have the directories that other calls mount on.
            readonly: Nothing below it can be written.

        Raises:
            ValueError: Not the first call that concerns the root.
        """
        source = source_path(path, "path")
        switch(readonly, "readonly")
        for entry in self._spec.entries:
            if entry.origin != "Sandbox()":
                raise ValueError(f"rootfs() replaces the whole root and must come before {entry.origin}")
        origin = f".rootfs({quoted(source)}{'' if readonly else ', readonly=False'})"
        kept = [entry for entry in self._spec.entries if not isinstance(entry, System)]
        return self._with(
            entries=(Root(source, readonly, origin), *kept),
            cwd=None if self._spec.cwd == HOME else self._spec.cwd,
        )

    def bind(
        self,
        source: StrOrBytesPath,
        target: StrOrBytesPath | None = None,
        *,
        optional: bool = False,
        exec: bool = True,
        dev: bool = False,
        owner: int | None = None,
    ) -> Self:
        """Make a file or directory of the host visible and writable; set-id bits never work.

        Args:
            source: Path of the host, made absolute now.
            target: Path inside; the same as the source when left out.
            optional: Skip it when the source does not exist.
            exec: Programs on it can be executed.
            dev: Device nodes on it work.
            owner: Who the payload is there, by an id of the host: what it writes is this user's, and what is this
                user's it may write. The owner of the source when left out; only root may say another, and root's own
                id counts only when it is said.
        """
        path = source_path(source)
        where = target_path(path if target is None else target)
        attributes = MOUNT_ATTR_NOSUID
        switch(optional, "optional")
        if not switch(exec, "exec"):
            attributes = attributes | MOUNT_ATTR_NOEXEC
        if not switch(dev, "dev"):
            attributes = attributes | MOUNT_ATTR_NODEV
        words = [quoted(path)]
        if where != path:
            words.append(quoted(where))
        owner = id_number(owner, "owner")
        usual = (("optional", optional, False), ("exec", exec, True), ("dev", dev, False), ("owner", owner, None))
        words += [f"{word}={value}" for word, value, default in usual if value != default]
        origin = f".bind({', '.join(words)})"
        return self._add(Bind(path, where, attributes, optional=optional, origin=origin, owner=owner))

    if TYPE_CHECKING:
        bind_readonly = bind
    else:
        # One list of arguments: this is for `help`, the line above for type checkers.
        @wraps(bind, assigned=("__annotations__",))
        def bind_readonly(self, *args: Any, **options: Any) -> Any:  # noqa: D417  # they are those of bind
            """Make a file or directory of the host visible, read-only with whatever is mounted below it.

            Args:
                source: Path of the host, made absolute now.
                target: Path inside; the same as the source when left out.
                optional: Skip it when the source does not exist.
                exec: Programs on it can be executed.
                dev: Device nodes on it work.
                owner: Whose files the payload may read as its own, by an id of the host; nobody's when left out. Only
                    root may say another than itself.
            """
            writable = self.bind(*args, **options)._spec.entries[-1]
            origin = writable.origin.replace(".bind(", ".bind_readonly(", 1)
            return self._add(writable._replace(attributes=writable.attributes | MOUNT_ATTR_RDONLY, origin=origin))

    def tmpfs(
        self,
        target: StrOrBytesPath,
        *,
        size: Size | None = None,
        mode: int = 0o755,
        inodes: int | None = None,
        exec: bool = True,
    ) -> Self:
        """Mount an empty file system in memory, private to each run.

        Args:
            target: Path inside.
            size: Most bytes that it takes; half of the memory when left out.
            mode: Permissions of its root.
            inodes: Most files.
            exec: Programs on it can be executed.
        """
        where = target_path(target)
        switch(exec, "exec")
        limit = None if size is None else parse_size(size, "size")
        if inodes is not None and (isinstance(inodes, bool) or not isinstance(inodes, int) or inodes < 1):
            raise ValueError(f"inodes must be an int of at least 1, got {inodes!r}")
        origin = _call("tmpfs", where, size=limit, mode=_mode(mode, 0o755), inodes=inodes, exec=None if exec else False)
        return self._add(tmpfs_entry(where, mode=mode, size=limit, inodes=inodes, exec=exec, origin=origin))

    def proc(
        self,
        target: StrOrBytesPath = "/proc",
        *,
        hidepid: bool = False,
        subset: Literal["pid"] | None = None,
    ) -> Self:
        """Mount a /proc of the sandbox's pid namespace.

        Args:
            target: Path inside.
            hidepid: Processes of other users are invisible.
            subset: "pid": nothing but the processes.
        """
        switch(hidepid, "hidepid")
        if subset not in {None, "pid"}:
            raise ValueError(f'subset must be None or "pid", got {subset!r}')
        where = target_path(target)
        origin = _call(
            "proc", where, hidepid=True if hidepid else None, subset=None if subset is None else quoted(subset)
        )
        return self._add(proc_entry(where, hidepid=hidepid, subset=subset, origin=origin))

    def dev(
        self,
        target: StrOrBytesPath = "/dev",
        *,
        shm: Size | None = None,
        nodes: Iterable[str] = DEVICE_NODES,
    ) -> Self:
        """Make a minimal /dev: nodes of the host, a devpts instance of its own, shm, the standard links.

        Args:
            target: Path inside.
            shm: Most bytes that /dev/shm takes; half of the memory when left out.
            nodes: Names of nodes below the host's /dev, and "pts" and "shm", which are the sandbox's own.
        """
        where = target_path(target)
        if isinstance(nodes, str):
            raise TypeError("nodes must be names, not one str")
        names = tuple(nodes)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"nodes must be names, not {type(name).__name__}")
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name.split("/"):
                raise ValueError(f"nodes must be names below /dev, got {name!r}")
        if shm is not None and "shm" not in names:
            raise ValueError(f'shm is a size, and nodes must name "shm" then, got {names!r}')
        size = None if shm is None else str(parse_size(shm, "shm"))
        origin = _call("dev", where, shm=size, nodes=None if names == DEVICE_NODES else list(names))
        return self._add(Dev(where, size, names, origin))

    def file(self, target: StrOrBytesPath, content: bytes | str, *, mode: int = 0o644) -> Self:
        """Put a file inside.

        Args:
            target: Path inside.
            content: What it holds; a str becomes UTF-8. At most 16 MiB.
            mode: Permissions.
        """
        where = target_path(target)
        if isinstance(content, str):
            content = content.encode()
        elif not isinstance(content, bytes):
            raise TypeError(f"content must be bytes or str, not {type(content).__name__}")
        if len(content) > MOST_CONTENT:
            raise ValueError(f"content must have at most 16 MiB, got {len(content)} bytes; bind a file instead")
        origin = _call("file", where, mode=_mode(mode, 0o644))
        return self._add(File(where, content, mode, origin))

    def file_fd(self, target: StrOrBytesPath, source: Fd, *, mode: int = 0o644) -> Self:
        """Put a file inside with what a descriptor holds, to its end: a pipe's or a file's.

        Such a value does not pickle.

        Args:
            target: Path inside.
            source: The descriptor, or what has a fileno(). It is read once, at the first launch, and stays the
                caller's. At most 16 MiB.
            mode: Permissions.
        """
        from sandbox.sources import DescriptorSource

        where = target_path(target)
        number = descriptor(source, "source")
        origin = f".file_fd({quoted(where)}, {number})"
        return self._add(FileFrom(where, DescriptorSource(source, origin), file_mode(mode), origin))

    def dir(self, target: StrOrBytesPath, *, mode: int = 0o755) -> Self:
        """Make a directory inside, and those above it.

        Args:
            target: Path inside.
            mode: Permissions.
        """
        where = target_path(target)
        origin = _call("dir", where, mode=_mode(mode, 0o755))
        return self._add(Dir(where, mode, origin))

    def symlink(self, points_to: StrOrBytesPath, target: StrOrBytesPath) -> Self:
        """Make a symbolic link inside; the order of os.symlink.

        Args:
            points_to: What it points to.
            target: Path of the link.
        """
        text = path_text(points_to, "points_to")
        if not text or "\0" in text:
            raise ValueError(f"points_to must be a path without NUL, got {points_to!r}")
        where = target_path(target)
        return self._add(Symlink(text, where, f".symlink({quoted(text)}, {quoted(where)})"))

    def mask(self, target: StrOrBytesPath) -> Self:
        """Hide what is at a path: an empty directory over a directory, /dev/null over anything else."""
        where = target_path(target)
        return self._add(Mask(where, f".mask({quoted(where)})"))

    def remount_readonly(self, target: StrOrBytesPath) -> Self:
        """Make what is visible at a path read-only, with whatever is mounted below it."""
        where = target_path(target)
        return self._add(Readonly(where, f".remount_readonly({quoted(where)})"))


def _call(name: str, target: str, **words: object) -> str:
    """Return a builder call as it was said; None: nothing was, or the default."""
    said = [f"{word}={value}" for word, value in words.items() if value is not None]
    return f".{name}({', '.join([quoted(target), *said])})"


def _mode(mode: int, usual: int) -> str | None:
    """Check permissions, and return them as they are written where they are not the usual ones."""
    return None if file_mode(mode) == usual else f"{mode:#o}"
