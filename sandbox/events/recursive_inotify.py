"""A whole tree under inotify, right while it changes.

A move inside of the tree is applied by the watches of its two directories, without looking at the disk; its
second half is looked for in what follows. What must be looked up on disk is in `WatchedTree`.
"""

import os

from sandbox.events._watched_tree import ENTRIES as _ENTRIES, Directory, Unread, WatchedTree
from sandbox.events.base import EventLike, value_error
from sandbox.events.base_async import EventLike_async
from sandbox.events.inotify import InotifyEvent
from sandbox.primitives._call import StrOrBytesPath, path_bytes
from sandbox.primitives.inotify import (
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_DONT_FOLLOW,
    IN_EXCL_UNLINK,
    IN_IGNORED,
    IN_ISDIR,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    InotifyInit,
    InotifyMask,
    inotify_init,
)

__all__ = ["RecursiveEvent", "RecursiveInotify", "RecursiveInotify_async"]

# Plain ints: arithmetic with an IntFlag costs ten times as much.
_CREATE, _DELETE, _ISDIR = int(IN_CREATE), int(IN_DELETE), int(IN_ISDIR)
_FROM, _TO = int(IN_MOVED_FROM), int(IN_MOVED_TO)
_MOVE_SELF, _DELETE_SELF = int(IN_MOVE_SELF), int(IN_DELETE_SELF)
_OVERFLOW, _IGNORED, _UNMOUNT = int(IN_Q_OVERFLOW), int(IN_IGNORED), int(IN_UNMOUNT)
_TREE = _ISDIR | _OVERFLOW | _IGNORED | _UNMOUNT | _FROM | _TO | _MOVE_SELF
_ALL = int(InotifyMask.ALL_EVENTS)
_ALLOWED = _ALL | int(IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK)
# First halves of renames whose second half has not come; that of a move out of the tree never does.
_RENAMES_KEPT = 256


class RecursiveEvent(InotifyEvent):
    """An event of a watched tree: that of inotify, and where it happened.

    Attributes:
        path: The entry, or the watched directory itself where `name` is "". It starts with the path that
            was given for the tree (until the tree itself is moved) and is right at the time of the event.
        found: Seen by looking, not told by the kernel: an entry of a directory that is new to the watch, or
            what there is after an overflow. `create_event` says that it is there, `delete_event` that it is
            gone.
        old_path: Where a `moved_to_event` came from, when that is inside of the tree; else None.
    """

    path: str
    found: bool
    old_path: str | None

    def __eq__(self, other: object) -> bool:
        """Compare with where it happened; with a plain tuple as a tuple."""
        if isinstance(other, RecursiveEvent) and vars(other) != vars(self):
            return False
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = InotifyEvent.__hash__

    @property
    def path_bytes(self) -> bytes:
        """The path as the kernel has it."""
        return os.fsencode(self.path)

    def __repr__(self) -> str:
        rest = f"path={self.path!r}, found={self.found}, old_path={self.old_path!r}"
        return f"{super().__repr__()[:-1]}, {rest})"


class _Reports:
    """The events that are to be reported; apart from the object, which so is in no circle and ends when dropped."""

    def __init__(self) -> None:
        self._events: list[RecursiveEvent] = []

    def __bool__(self) -> bool:
        return bool(self._events)

    def take(self) -> list[RecursiveEvent]:
        events, self._events = self._events, []
        return events

    def add(
        self,
        node: Directory,
        mask: int,
        cookie: int = 0,
        name: str = "",
        *,
        found: bool = False,
        old_path: str | None = None,
    ) -> None:
        event = RecursiveEvent(node.wd, mask, cookie, name)
        event.path = node.prefix + name if name else node.path
        event.found = found
        event.old_path = old_path
        self._events.append(event)

    def add_found(self, node: Directory, name: str, is_directory: bool, is_there: bool) -> None:
        mask = (_CREATE if is_there else _DELETE) | (_ISDIR if is_directory else 0)
        self.add(node, mask, 0, name, found=True)


class RecursiveInotify(EventLike[RecursiveEvent]):
    """Watches a directory and everything below it, whatever is made, moved or removed meanwhile.

    Each directory takes one watch (fs.inotify.max_user_watches), and so does the one that holds the tree,
    for the end of the tree itself. Whatever is deleted there makes the descriptor readable, and so do events
    that the mask leaves out: reading may then return nothing. Symlinks are not followed; what is mounted
    below is watched as it is found. A new directory is opened, read and closed: where the mask asks for
    such events, they are reported as anybody's.

    After an overflow everything in the tree is reported again, as found: forget what you knew.

    Args:
        path: The directory.
        mask: InotifyMask: the events to report. What is found, an overflow, an unmount, and the end of the
            tree itself (`ignored_event`) are always reported.
        existing: Report what is in the tree at the start, too, as found.
        nonblock: Reading returns or raises at once instead of waiting.

    Attributes:
        unwatched: The directories that could not be watched because the user may not read them, and why.

    Raises:
        OSError: ENOENT (a ValueError, too), ENOTDIR, EACCES (for `path` itself), ENOSPC
            (fs.inotify.max_user_watches reached), EMFILE (no descriptor left, or
            fs.inotify.max_user_instances reached). While reading: ENOSPC or EMFILE, when a directory has
            come that cannot be watched; what was read before is not lost, and the directory is tried again.
        ValueError: The mask has no event, or more than ONLYDIR, DONT_FOLLOW and EXCL_UNLINK beside events.

    See inotify(7). Since Linux 5.6 (openat2).
    """

    name = "inotify"

    def __init__(
        self,
        path: StrOrBytesPath,
        mask: int = InotifyMask.ALL_EVENTS,
        *,
        existing: bool = False,
        nonblock: bool = False,
    ) -> None:
        mask = int(mask)
        if not mask & _ALL or mask & ~_ALLOWED:
            raise ValueError(
                "mask must be events of InotifyMask, with at most ONLYDIR, DONT_FOLLOW and EXCL_UNLINK "
                f"beside them, got {mask:#x}"
            )
        given = os.fsdecode(path_bytes(path))
        self._mask = mask & _ALL
        self._renames: dict[int, str] = {}  # where entries left, by cookie
        self._arrivals: dict[tuple[int, str], None] = {}  # where entries arrived by a rename
        self._root_fd = -1
        super().__init__(inotify_init(InotifyInit.NONBLOCK | InotifyInit.CLOEXEC), nonblock=nonblock)
        try:
            follow = os.O_NOFOLLOW if mask & int(IN_DONT_FOLLOW) else 0
            self._root_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | follow)
            self._descriptors.append(self._root_fd)
            watched = self._mask | _ENTRIES | int(IN_ONLYDIR) | mask & int(IN_EXCL_UNLINK)
            self._reports = _Reports()
            self._unread = Unread(self._fd)
            self._tree = WatchedTree(self._fd, self._root_fd, given, watched, self._unread, self._reports.add_found)
            self.unwatched = self._tree.unwatched
            self._tree.start(report=existing)
            self._tree.settle(report=existing)
            self._apply()
            self._raise_failure()
        except FileNotFoundError as error:
            self.close()
            raise value_error(error) from None
        except BaseException:
            self.close()
            raise
        self._cache.extend(self._reports.take())

    @property
    def directories(self) -> list[str]:
        """The paths of the directories that are watched, as far as events have been read."""
        return [one.path for one in self._tree.root.walk()]

    def _take_fd(self) -> int:
        fd = super()._take_fd()
        root_fd, self._root_fd = self._root_fd, -1
        if root_fd >= 0:
            os.close(root_fd)
        return fd

    def _read(self) -> list[RecursiveEvent]:
        self._raise_failure()
        self._unread.read()
        self._apply()
        self._tree.settle()
        self._apply()  # what the looks have read
        if not self._reports:
            self._raise_failure()
        return self._reports.take()

    def _raise_failure(self) -> None:
        failure, self._tree.failure = self._tree.failure, None
        if failure is not None:
            raise failure

    # ── events ─────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self) -> None:
        """Apply the unread events to the tree, in their order, and report those that were asked for."""
        tree, unread, wanted = self._tree, self._unread, self._mask
        while unread:
            wd, mask, cookie, name = unread.take()
            node = tree.nodes.get(wd)
            if node is None:
                if mask & _OVERFLOW:
                    self._reports.add(tree.root, mask)
                    self._renames.clear()
                    tree.start(report=True)
                elif mask & _DELETE:
                    tree.look_above(wd)
            elif not name:
                self._apply_to_itself(node, mask)
            elif not tree.holds(node):
                pass  # an entry of a directory that has left the tree
            elif mask & _TREE:
                self._apply_to_tree(node, mask, cookie, name)
            elif mask & wanted:
                self._reports.add(node, mask, cookie, name)

    def _apply_to_itself(self, node: Directory, mask: int) -> None:
        """Apply an event of a watched directory itself."""
        tree = self._tree
        if node is tree.root and mask & _MOVE_SELF:
            tree.move_root()
        # A directory that is deleted has left the tree by then; its own last event is reported all the same.
        if mask & _UNMOUNT or (mask & self._mask and (tree.holds(node) or mask & _DELETE_SELF)):
            self._reports.add(node, mask)
        if mask & _UNMOUNT and node.parent is not None:
            tree.check_later(node.parent, node.name)  # the mount had covered it
        if mask & _IGNORED:
            if node is tree.root:
                self._reports.add(node, mask)
            else:
                tree.drop(node)
            del tree.nodes[node.wd]

    def _apply_to_tree(self, node: Directory, mask: int, cookie: int, name: str) -> None:
        """Apply a rename, or an event of a directory in a watched one."""
        if mask & _TO:
            self._arrive(node, mask, cookie, name)
            return
        if mask & self._mask:
            self._reports.add(node, mask, cookie, name)
        if mask & _CREATE:
            self._tree.arrive(node, name)
        elif mask & _DELETE and name in node.children:
            self._tree.drop(node.children[name])
        elif mask & _FROM:
            self._depart(node, mask, cookie, name)

    def _arrive(self, node: Directory, mask: int, cookie: int, name: str) -> None:
        """Apply the second half of a rename."""
        old_path = self._renames.pop(cookie, None)
        is_stranger = old_path is None or not mask & _ISDIR
        if is_stranger and name in node.children:
            self._leave_first(node, name)
        if mask & self._mask:
            self._reports.add(node, mask, cookie, name, old_path=old_path)
        self._arrivals[node.wd, name] = None
        if len(self._arrivals) > _RENAMES_KEPT:
            del self._arrivals[next(iter(self._arrivals))]
        if old_path is None and mask & _ISDIR:
            self._tree.arrive(node, name)

    def _depart(self, node: Directory, mask: int, cookie: int, name: str) -> None:
        """Apply the first half of a rename."""
        if (node.wd, name) in self._arrivals:
            # Moved on; or this is what was here before, and the two places were exchanged.
            del self._arrivals[node.wd, name]
            self._tree.check_later(node, name)
            self._tree.doubtful = True
        old_path = node.prefix + name
        if mask & _ISDIR:
            child = node.children.get(name)
            if child is None:
                return  # it arrives as a stranger
            target = self._second_half(cookie)
            if target is None:
                self._tree.finish_changes(node)
                target = self._second_half(cookie)
            if target is None:
                self._tree.give_up(child)
                return
            self._move(child, *target)
        self._renames[cookie] = old_path
        if len(self._renames) > _RENAMES_KEPT:
            del self._renames[next(iter(self._renames))]

    def _second_half(self, cookie: int) -> tuple[Directory, str] | None:
        """Look ahead for where a directory was moved to; None when that is outside of the tree."""
        for _, (wd, mask, other, name) in self._unread:
            if other == cookie and mask & _TO:
                parent = self._tree.nodes.get(wd)
                return (parent, name) if parent is not None and self._tree.holds(parent) else None
        return None

    def _move(self, child: Directory, parent: Directory, name: str) -> None:
        """Move a directory in the tree to where it was renamed to.

        When the two places were exchanged (renameat2(2)), what was there before leaves after this one
        arrived. That it leaves is brought forward, so that nobody takes it for overwritten.
        """
        if child.parent is not None:
            self._tree.finish_changes(child.parent)
        replaced = parent.children.get(name)
        at = self._exchanged(child, parent, name, replaced)
        if at is None:
            self._tree.move(child, parent, name)
            return
        self._tree.doubtful = True
        _, mask, cookie, _ = self._unread.take(at)
        if mask & self._mask:
            self._reports.add(parent, mask, cookie, name)
        self._renames[cookie] = parent.prefix + name
        if mask & _ISDIR and replaced is not None:
            self._tree.check_later(parent, name)
            self._tree.exchange(child, replaced)
        else:
            self._tree.move(child, parent, name)

    def _exchanged(self, child: Directory, parent: Directory, name: str, replaced: Directory | None) -> int | None:
        """Return which unread event says that what was at the place of an arriving directory leaves it."""
        arrived = False
        for at, (wd, mask, cookie, other) in self._unread:
            if replaced is not None and wd == replaced.wd and mask & _IGNORED:
                return None  # it was empty, and is deleted
            if wd != parent.wd or other != name or not mask & _ENTRIES:
                continue
            if not arrived:
                arrived = True  # the second half itself
            elif not mask & _FROM:
                return None
            elif not mask & _ISDIR:
                return at  # only an exchange makes a file of a directory
            elif replaced is not None and self._second_half(cookie) == (child.parent, child.name):
                # Or it went there and back, over an empty directory that somebody has open still.
                return at
            else:
                return None
        return None

    def _leave_first(self, node: Directory, name: str) -> None:
        """Let a directory leave before what it was exchanged with arrives; else it is deleted."""
        self._tree.doubtful = True
        for at, (wd, mask, cookie, other) in self._unread:
            if wd == node.wd and other == name and mask & _ENTRIES:
                if mask & _FROM and mask & _ISDIR:
                    self._unread.take(at)
                    self._apply_to_tree(node, mask, cookie, name)
                    return
                break
        self._tree.drop(node.children[name])
        self._tree.check_later(node, name)


class RecursiveInotify_async(EventLike_async[RecursiveEvent]):  # noqa: N801  # Butter's way to name it
    """The asyncio twin of `RecursiveInotify`, with its arguments and errors.

    Args:
        path: The directory.
        mask: InotifyMask: the events to report.
        existing: Report what is in the tree at the start, too, as found.
        nonblock: Accepted for the same call as `RecursiveInotify`; a twin never blocks.
        maxsize: How many events the queue holds before the kernel keeps the rest; 0 means no limit.
    """

    def __init__(
        self,
        path: StrOrBytesPath,
        mask: int = InotifyMask.ALL_EVENTS,
        *,
        existing: bool = False,
        nonblock: bool = False,
        maxsize: int = 0,
    ) -> None:
        super().__init__(RecursiveInotify(path, mask, existing=existing, nonblock=nonblock), maxsize)
