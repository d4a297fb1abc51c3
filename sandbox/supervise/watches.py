"""Files whose change reloads a service: one inotify descriptor for all."""

import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from sandbox.events.inotify import Inotify, InotifyMask
from sandbox.supervise.definition import watched
from sandbox.supervise.machine import Machine

_FILE: Final = InotifyMask.CLOSE_WRITE | InotifyMask.MOVED_TO
_FOLDER: Final = _FILE | InotifyMask.CREATE | InotifyMask.DELETE | InotifyMask.MOVED_FROM

log = logging.getLogger("sandbox.supervise")


class _Loop(Protocol):
    _machine: Machine

    def _now(self) -> float: ...
    def _watch(self, fd: int, ready: Callable[[], None]) -> None: ...
    def _unwatch(self, fd: int) -> None: ...


class Watches:
    """Who is to be reloaded when what changes; no descriptor before somebody asks."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._inotify: Inotify | None = None
        self._folders: dict[str, int] = {}  # its watch
        self._wanted: dict[str, list[tuple[str, str | None]]] = {}

    def set(self, service: str, paths: Iterable[str]) -> None:
        """Watch these for a service, and nothing else."""
        self._wanted[service] = list(watched(paths))
        if not self._wanted[service]:
            del self._wanted[service]
        wanted = {folder for several in self._wanted.values() for folder, _ in several}
        for folder in self._folders.keys() - wanted:
            assert self._inotify is not None
            self._inotify.ignore(self._folders.pop(folder))
        for folder in wanted - self._folders.keys():
            self._add(folder)

    def _add(self, folder: str) -> None:
        if self._inotify is None:
            self._inotify = Inotify(nonblock=True)
            self._loop._watch(self._inotify.fileno(), self._read)
        try:
            self._folders[folder] = self._inotify.watch(folder, _FOLDER | InotifyMask.ONLYDIR)
        except OSError as error:
            log.warning("changes below %s are not noticed: %s", folder, error)

    def _read(self) -> None:
        assert self._inotify is not None
        now = self._loop._now()
        folders = {wd: folder for folder, wd in self._folders.items()}
        for event in self._inotify.read_events():
            folder = folders.get(event.wd)
            for service, several in list(self._wanted.items()):
                for where, name in several:
                    # An overflow has no watch: anything may have changed.
                    if event.wd < 0 or (
                        where == folder and (name is None or (name == event.name and event.mask & _FILE))
                    ):
                        self._loop._machine.changed(service, now)
            if folder is not None and event.ignored_event:
                self._folders.pop(folder, None)  # the directory is gone

    def close(self) -> None:
        """Give up the descriptor."""
        if self._inotify is not None:
            self._loop._unwatch(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
