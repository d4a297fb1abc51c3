"""The tree of watched directories behind `RecursiveInotify`, and how it is kept like the one on disk.

Events are history, and a look at the disk shows the present; mixed, they make trees that never were. What
keeps them
apart:

- A watch follows the inode: which directory an event is about is certain, and a move inside of the tree is
  applied by its two directories, without a look.
- What is looked up by path starts at a directory of the tree whose inode is compared with that on disk. If
  it is another one, the move of an ancestor is still unread, and the lookup is put off.
- A look counts only if no event about this very name is unread. If there is one, that event will decide,
  and the look is made then. To know it, all that the kernel has is read after the look, and before that the
  directory's lock is taken once: a change and its event are made while it is held.
- A directory is opened, watched and then listed, all through one descriptor: nothing comes between unseen.

So a directory is hung into the tree only where it was in history, too, and every event finds it there.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from sandbox.primitives.files import RESOLVE_NO_SYMLINKS, openat2
from sandbox.primitives.inotify import (
    IN_CREATE,
    IN_DELETE,
    IN_MASK_ADD,
    IN_MOVE,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_ONLYDIR,
    InotifyBatch,
    inotify_add_watch,
    inotify_barrier,
    inotify_rm_watch,
)

# wd, mask, cookie, name
Raw: TypeAlias = tuple[int, int, int, str]

_FROM = int(IN_MOVED_FROM)
_LEAVES = 1 << 32
# The events that change the entries of a directory.
ENTRIES = int(IN_CREATE | IN_DELETE | IN_MOVE)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Each level of a scan holds a descriptor; what is deeper than this is scanned on its own, later.
_SCAN_DEPTH = 100
# How often a look is made that finds another directory on the way, before something is taken to be mounted
# there.
_TRIES = 16
# What says nothing about the directory, but that this process or the host is out of something.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}


class Unread:
    """The events that are read from the kernel and not applied yet.

    Args:
        fd: The inotify instance, non-blocking, not owned.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._batch = InotifyBatch()
        self._events: deque[Raw] = deque()
        # How many of them change this entry of this directory, and _LEAVES if one moves it away.
        self._changes: dict[tuple[int, str], int] = {}

    def read(self) -> None:
        """Read all that the kernel has."""
        changes = self._changes
        while (columns := self._batch.read(self._fd)) is not None:
            events = list(zip(*columns))  # noqa: B905  # equally long
            self._events.extend(events)
            for wd, mask, _, name in events:
                if mask & ENTRIES:
                    count = changes.get((wd, name), 0) + 1
                    changes[wd, name] = count | _LEAVES if mask & _FROM else count

    def __bool__(self) -> bool:
        return bool(self._events)

    def __iter__(self) -> Iterator[tuple[int, Raw]]:
        return enumerate(self._events)

    def take(self, at: int = 0) -> Raw:
        """Return the first event, or the one at this place, and forget it."""
        event = self._events[at]
        del self._events[at]
        wd, mask, _, name = event
        if mask & ENTRIES:
            left = self._changes[wd, name] - 1
            if left & ~_LEAVES:
                self._changes[wd, name] = left
            else:
                del self._changes[wd, name]
        return event

    def changes(self, wd: int, name: str) -> bool:
        """Return whether an event changes this entry of this directory."""
        return (wd, name) in self._changes

    def leaves(self, wd: int, name: str) -> bool:
        """Return whether an entry of this name was moved away; after an exchange, there is another one."""
        return self._changes.get((wd, name), 0) & _LEAVES != 0


class Directory:
    """A watched directory; its prefix is its path with a slash at the end."""

    __slots__ = ("children", "identity", "name", "parent", "prefix", "wd")

    def __init__(self, wd: int, status: os.stat_result, prefix: str = "") -> None:
        self.wd = wd
        self.identity = status.st_dev, status.st_ino
        self.prefix = prefix
        self.name = ""
        self.parent: Directory | None = None
        self.children: dict[str, Directory] = {}

    @property
    def path(self) -> str:
        """The path, without the slash."""
        return self.prefix.rstrip("/") or "/"

    def attach(self, parent: "Directory", name: str) -> None:
        """Hang the directory, with all below it, into another one."""
        self.parent, self.name = parent, name
        parent.children[name] = self
        self.rename(f"{parent.prefix}{name}/")

    def rename(self, prefix: str) -> None:
        """Give the directory another path, and all below it."""
        self.prefix = prefix
        for one in self.walk():
            for child in one.children.values():
                child.prefix = f"{one.prefix}{child.name}/"

    def detach(self) -> None:
        """Take the directory, with all below it, out of the one that it is in."""
        if self.parent is not None:
            del self.parent.children[self.name]
            self.parent = None

    def walk(self) -> "list[Directory]":
        """Return the directory and all below it, each behind the one that it is in."""
        found = [self]
        for one in found:
            found.extend(one.children.values())
        return found


class WatchedTree:
    """All directories below a root, each with its watch.

    Args:
        fd: The inotify instance, not owned.
        root_fd: The root, opened with O_PATH, not owned.
        path: Its path, as events are to show it.
        mask: What each directory is watched for.
        unread: The events that are still to be applied.
        report: Called for each entry that was found to be there or gone: directory, name, whether it is a
            directory, whether it is there.
    """

    def __init__(
        self,
        fd: int,
        root_fd: int,
        path: str,
        mask: int,
        unread: Unread,
        report: Callable[[Directory, str, bool, bool], None],
    ) -> None:
        self._fd = fd
        self._root_fd = root_fd
        self._mask = mask
        self._unread = unread
        self._report = report
        self._later: dict[tuple[Directory, str], int] = {}  # how often it was tried
        self._lost = False  # start() has to be tried again
        # Where directories were moved from and to since everything was last settled; and whether places were exchanged
        # meanwhile, which the events of two processes do not always tell apart from other renames.
        self._moves: dict[tuple[Directory, str], None] = {}
        self.doubtful = False
        self._above = -1  # the watch of the directory that the root is in
        self.root = Directory(-1, os.fstat(root_fd), os.path.join(path, ""))
        # By watch descriptor. One that left the tree stays until the kernel says that its watch is gone.
        self.nodes: dict[int, Directory] = {}
        self.unwatched: dict[str, OSError] = {}
        self.failure: OSError | None = None

    def holds(self, node: Directory) -> bool:
        """Return whether the directory is in the tree."""
        return node.parent is not None or node is self.root

    # ── what events do to it ───────────────────────────────────────────────────────────────────────────────

    def start(self, *, report: bool) -> None:
        """Watch everything anew: at the start, and when events were lost."""
        try:
            fd = os.open(".", _OPEN_DIRECTORY, dir_fd=self._root_fd)
        except OSError as error:
            self._lost, self.failure = error.errno in _EXHAUSTED, error
            return
        before = dict(self.nodes)
        self.nodes.clear()
        self.unwatched.clear()
        self._later.clear()
        try:
            wd = inotify_add_watch(self._fd, f"/proc/self/fd/{fd}", self._mask | int(IN_MOVE_SELF))
            self._watch_above()
            self.root = Directory(wd, os.fstat(fd), self.root.prefix)
            self.nodes[wd] = self.root
            names = iter(self._list(self.root, fd, report))
            self._scan(self.root, fd, names, report=report, announce=False)
        finally:
            os.close(fd)
        for wd in before.keys() - self.nodes.keys() - {self._above}:
            self._remove_watch(wd)

    def _watch_above(self) -> None:
        """Watch for the end of the root: it is held open, so that it has no last event of its own."""
        try:
            mask = int(IN_DELETE | IN_ONLYDIR | IN_MASK_ADD)
            self._above = inotify_add_watch(self._fd, f"/proc/self/fd/{self._root_fd}/..", mask)
        except PermissionError:
            self._above = -1  # then nobody says it

    def move_root(self) -> None:
        """Take over that the root itself was moved."""
        self.root.rename(os.path.join(os.readlink(f"/proc/self/fd/{self._root_fd}"), ""))
        if self._above not in (-1, self.root.wd):
            self._remove_watch(self._above)
        self._watch_above()

    def look_above(self, wd: int) -> None:
        """Remove the watch of the root, which says so with an event, if it was deleted."""
        if wd == self._above and os.fstat(self._root_fd).st_nlink == 0:
            self._remove_watch(self.root.wd)

    def arrive(self, parent: Directory, name: str) -> None:
        """Watch a directory that an event says has come, and report what is in it."""
        if not self._is_unread(parent, name):
            self._look(parent, name, report=True, announce=False)

    def _moved(self, *places: tuple[Directory | None, str]) -> None:
        for parent, name in places:
            if parent is not None:
                self._moves[parent, name] = None

    def move(self, node: Directory, parent: Directory, name: str) -> None:
        """Move a directory inside of the tree."""
        self._moved((node.parent, node.name), (parent, name))
        replaced = parent.children.get(name)
        if replaced is not None:
            self.drop(replaced)
        node.detach()
        node.attach(parent, name)

    def exchange(self, one: Directory, other: Directory) -> None:
        """Let two directories change places."""
        places = [(node.parent, node.name) for node in (other, one)]
        self._moved(*places)
        one.detach()
        other.detach()
        for node, (parent, name) in zip((one, other), places, strict=True):
            if parent is not None:
                node.attach(parent, name)

    def drop(self, node: Directory) -> None:
        """Take a directory and all below it out of the tree; the watches stay: they may be found again."""
        below = node.walk()
        node.detach()
        for one in below:
            one.parent = None
            one.children = {}

    def give_up(self, node: Directory) -> None:
        """Take a directory out of the tree that was moved elsewhere, and its watches, too."""
        below = node.walk()
        self.drop(node)
        for one in below:
            self._remove_watch(one.wd)

    def finish_changes(self, node: Directory) -> None:
        """Read the rest of what is being done to the entries of a directory, where it can be found."""
        try:
            fd = self._open(node)
        except OSError:
            # Not found without reading on: what the rest is, its own event will say.
            return
        try:
            inotify_barrier(fd)
        finally:
            os.close(fd)
        self._unread.read()

    def check_later(self, parent: Directory, name: str) -> None:
        """Compare this place with the disk when all events are applied."""
        self._later[parent, name] = 0

    def settle(self, *, report: bool = True) -> None:
        """Do what was put off; all events that were read are applied."""
        if self._lost:
            self._lost = False
            self.start(report=report)
        if self.doubtful:
            # The disk decides; what an unread event will still change is put off by the look itself.
            for place in self._moves:
                self._later.setdefault(place, 0)
        self._moves.clear()
        self.doubtful = False
        tried: dict[tuple[Directory, str], int] = {}
        while self._later.keys() - tried.keys():
            tried, self._later = self._later, {}
            for (parent, name), tries in tried.items():
                if tries < _TRIES and self.holds(parent) and not self._is_unread(parent, name):
                    self._look(parent, name, report=report, announce=report)
                    if (parent, name) in self._later:
                        self._later[parent, name] = tries + 1

    # ── looking at the disk ────────────────────────────────────────────────────────────────────────────────

    def _put_off(self, parent: Directory, name: str, error: OSError) -> None:
        self._later[parent, name] = 0
        if error.errno in _EXHAUSTED:
            self.failure = error

    def _remove_watch(self, wd: int) -> None:
        try:
            inotify_rm_watch(self._fd, wd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # deleted meanwhile
                raise

    def _open(self, node: Directory) -> int:
        """Open a directory of the tree by its path; FileNotFoundError when another one is there now."""
        names = os.fsencode(node.prefix[len(self.root.prefix) :]).split(b"/")
        fd = self._root_fd
        while names:
            # In steps of less than PATH_MAX.
            step = names.pop(0)
            while names and len(step) + len(names[0]) < 4000:
                step += b"/" + names.pop(0)
            at = fd
            try:
                fd = openat2(at, step or b".", _OPEN_DIRECTORY, resolve=RESOLVE_NO_SYMLINKS)
            finally:
                if at != self._root_fd:
                    os.close(at)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != node.identity:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), node.path)
        return fd

    def _look(self, parent: Directory, name: str, *, report: bool, announce: bool) -> None:
        """Watch the directory at a place; `announce` reports itself, too, and not only what is in it."""
        try:
            parent_fd = self._open(parent)
        except PermissionError as error:
            self.unwatched[parent.prefix + name] = error
            return
        except OSError as error:
            self._put_off(parent, name, error)
            return
        try:
            self._scan(parent, parent_fd, iter((name,)), report=report, announce=announce)
        finally:
            os.close(parent_fd)

    def _scan(self, node: Directory, fd: int, names: Iterator[str], *, report: bool, announce: bool) -> None:
        """Watch the named directories in a directory, and all below those that are new; `fd` stays open."""
        stack = [(node, fd, names)]
        try:
            while stack:
                parent, parent_fd, names = stack[-1]
                name = next(names, None)
                if name is None:
                    stack.pop()
                    if parent_fd != fd:
                        os.close(parent_fd)
                elif len(stack) > _SCAN_DEPTH:
                    self._later[parent, name] = 0
                else:
                    entered = self._enter(parent, parent_fd, name, announce and parent is node)
                    if entered is not None:
                        child, child_fd = entered
                        # On the stack first, where it is closed when the listing fails.
                        stack.append((child, child_fd, iter(())))
                        stack[-1] = (child, child_fd, iter(self._list(child, child_fd, report)))
        finally:
            for _, open_fd, _ in stack:
                if open_fd != fd:
                    os.close(open_fd)

    def _enter(self, parent: Directory, parent_fd: int, name: str, announce: bool) -> tuple[Directory, int] | None:
        """Watch a directory and hang it into the tree; with a descriptor, to be listed, when it is new."""
        fd = -1
        try:
            fd = os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
            wd = inotify_add_watch(self._fd, f"/proc/self/fd/{fd}", self._mask)
            if self._is_settled(parent, parent_fd, name) and self._makes_room(wd, parent, name):
                child = Directory(wd, os.fstat(fd))
                child.attach(parent, name)
                self.nodes[wd] = child
                self.unwatched.pop(parent.prefix + name, None)
                if announce:
                    self._report(parent, name, True, True)
                kept, fd = fd, -1
                return child, kept
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._is_settled(parent, parent_fd, name):
                if name in parent.children:
                    self._gone(parent.children[name])
                if announce and error.errno == errno.ENOTDIR:
                    self._report(parent, name, False, True)
        except PermissionError as error:
            self.unwatched[parent.prefix + name] = error
        except OSError as error:
            self._put_off(parent, name, error)
        finally:
            if fd >= 0:
                os.close(fd)
        return None

    def _is_settled(self, parent: Directory, parent_fd: int, name: str) -> bool:
        """Return whether a look at this place that was just made counts: no event about it is unread."""
        inotify_barrier(parent_fd)
        self._unread.read()
        return not self._is_unread(parent, name)

    def _is_unread(self, parent: Directory, name: str) -> bool:
        """Return whether an event about this place is unread, which will decide what is there."""
        if self._unread.leaves(parent.wd, name):
            # Two places that are exchanged have this as their last event, and are not empty.
            self._later[parent, name] = 0
        return self._unread.changes(parent.wd, name)

    def _makes_room(self, wd: int, parent: Directory, name: str) -> bool:
        """Return whether the directory with this watch is to be hung in at this place, which is free then."""
        known = self.nodes.get(wd)
        present = parent.children.get(name)
        if known is not None and (known is present or known is self.root):
            return False
        if known is not None and known.parent is not None:
            if self._unread.changes(known.parent.wd, known.name) or self._is_there(known):
                # It leaves the other place with an unread event; or it is mounted at both.
                self._later[parent, name] = 0
                return False
            self._later[known.parent, known.name] = 0
            self._gone(known)
        if name in parent.children:
            self._gone(parent.children[name])
        return True

    def _list(self, node: Directory, fd: int, report: bool) -> list[str]:
        """Report the entries of a directory, but for those that events will tell; return the directories."""
        with os.scandir(fd) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        if report:
            self._unread.read()
            for name, is_directory in found:
                if not self._is_unread(node, name):
                    self._report(node, name, is_directory, True)
        return [name for name, is_directory in found if is_directory]

    def _is_there(self, node: Directory) -> bool:
        """Return whether a directory is where the tree has it, or cannot be looked for."""
        try:
            os.close(self._open(node))
        except OSError as error:
            return error.errno in _EXHAUSTED
        return True

    def _gone(self, node: Directory) -> None:
        """Report that a directory is not where the tree has it, and take it out."""
        if node.parent is not None:
            self._report(node.parent, node.name, True, False)
        self.drop(node)
