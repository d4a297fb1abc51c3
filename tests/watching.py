"""A tree that changes under a watch, and the tree that its events tell."""

import ctypes
import os
import random
import shutil

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Told:
    """What a user knows of a tree who has nothing but the events."""

    def __init__(self) -> None:
        self.directories: set[str] = set()
        self.files: set[str] = set()
        self.overflows = 0
        self._away: dict[str, list[tuple[str, bool]]] = {}

    def hear(self, events) -> None:
        for event in events:
            self._hear(event)

    def _hear(self, event) -> None:
        path, is_directory = event.path, event.is_dir_event
        if event.overflow_event:
            self.overflows += 1
            self.directories.clear()
            self.files.clear()
            self._away.clear()
        elif not event.name:
            return
        elif event.create_event and is_directory:
            self.files.discard(path)
            self.directories.add(path)
        elif event.create_event or (event.moved_to_event and not is_directory):
            self._cut(path)
            self.files.add(path)
        elif event.moved_to_event:
            self.files.discard(path)
            if event.old_path is None:
                self.directories.add(path)
                return
            self._cut(path)
            for rest, below_is_directory in self._away.pop(event.old_path, [("", True)]):
                (self.directories if below_is_directory else self.files).add(path + rest)
        elif (event.delete_event or event.moved_from_event) and is_directory:
            gone = self._cut(path)
            if event.moved_from_event:
                self._away[path] = gone
        elif event.delete_event or event.moved_from_event:
            self.files.discard(path)

    def _cut(self, path: str) -> list[tuple[str, bool]]:
        if path not in self.directories:
            return []
        inside = [one for one in self.directories if one == path or one.startswith(path + "/")]
        files = [one for one in self.files if one.startswith(path + "/")]
        self.directories.difference_update(inside)
        self.files.difference_update(files)
        return [(one[len(path) :], True) for one in inside] + [(one[len(path) :], False) for one in files]


def on_disk(root: str) -> tuple[set[str], set[str]]:
    directories, files = set(), set()
    for at, names, others in os.walk(root):
        directories.update(os.path.join(at, name) for name in names)
        files.update(os.path.join(at, name) for name in others)
    return directories, files


def change(root: str, outside: str, seed: int, steps: int, *, exchange: bool = False) -> None:
    """Do random things to a tree; the same ones for the same seed, as long as nobody else does."""
    dice = random.Random(seed)
    names = [first + second for first in "abcde" for second in "xyz"]

    def place() -> str:
        at = root
        while dice.random() < 0.6:
            below = sorted(name for name in os.listdir(at) if os.path.isdir(os.path.join(at, name)))
            if not below:
                break
            at = os.path.join(at, dice.choice(below))
        return os.path.join(at, dice.choice(names))

    def move_over_there() -> None:
        os.rename(place(), os.path.join(outside, dice.choice(names)))

    def move_here() -> None:
        os.rename(os.path.join(outside, dice.choice(names)), place())

    def make_many() -> None:
        path = os.path.join(place(), "p", "q", "r")
        os.makedirs(path, exist_ok=True)
        os.close(os.open(os.path.join(path, "f"), os.O_CREAT | os.O_WRONLY))

    def swap() -> None:
        one, other = os.fsencode(place()), os.fsencode(place())
        _libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)

    actions = [
        (25, lambda: os.mkdir(place())),
        (20, lambda: os.close(os.open(place(), os.O_CREAT | os.O_WRONLY))),
        (10, lambda: os.unlink(place())),
        (5, lambda: os.rmdir(place())),
        (20, lambda: os.rename(place(), place())),
        (4, move_over_there),
        (4, move_here),
        (4, make_many),
        (4, lambda: shutil.rmtree(place())),
        (4 if exchange else 0, swap),
    ]
    weights = [weight for weight, _ in actions]
    for _ in range(steps):
        try:
            dice.choices(actions, weights)[0][1]()
        except OSError:  # somebody else was faster, or the name was not there
            continue
