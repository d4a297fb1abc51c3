"""The janitor: a process that outlives this one, and removes the control groups that it leaves.

Who is killed removes nothing, PID 1 of a sandbox is in the group itself and may be another user, so somebody else has
to: `csrc/init/janitor.c`, which knows the groups by a tag in their names. It is started with the first group, shares no
memory with this process, and has of its descriptors a channel, a pidfd, and the directories in which groups are made.

- It is an orphan, in nobody's way who waits for any child, and stays as long as this process does.
- To a subreaper every orphan comes, and in a container the first process often reaps none. So there it is a child as
  PID 1 of a sandbox is one, and no longer than those.
- PID 1 of a pid namespace takes all processes of that along, and has none: who made the namespace removes the rest.
"""

import errno
import os
from collections.abc import Iterable
from typing import Final

from sandbox.cgroups.hierarchy import Place
from sandbox.launch import native
from sandbox.launch.native import ControlChannel, Kept, new_stage, own_pidfd, socketpair, spawn
from sandbox.pidfds import readable, reap
from sandbox.plan import SLOTS, Command, Late, Program
from sandbox.primitives.process import PR_GET_CHILD_SUBREAPER, prctl
from sandbox.records import Q_LET_GO, Q_PLACE, R_FAILED, request
from sandbox.template import Template

_FIRST_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel
_templates: dict[bool, Template] = {}
_current: "Janitor | None" = None
_leaving: list[int] = []  # pidfds of those that are children, and wait for what was let go


def _template(stays: bool) -> Template:
    if stays not in _templates:
        program = Program()
        program.segment, program.origin = "stage", "control group"
        program.call("watch_caller", Late("tag", pointer=True), int(stays))
        _templates[stays] = Template(program.plan(Command(), own_group=False))
    return _templates[stays]


class Janitor:
    """The janitor of one process.

    Attributes:
        tag: What the name of each of its groups has, and no other.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.tag = f"-{self._pid}-{os.urandom(4).hex()}."
        self._kept: Kept | None = None
        self._channel = ControlChannel(-1)
        self._child = -1  # its pidfd, where it is a child
        self._places: list[Place] = []
        self._groups = 0
        self._let_go = False
        if self._pid != 1:
            self._start()

    def serves(self) -> bool:
        """Say whether it is this process's, whose end of the channel nobody has closed.

        Where somebody has, the janitor takes this process for gone, and ends what has the tag.
        """
        return self._pid == os.getpid() and (self._pid == 1 or (self._kept is not None and self._kept.valid()))

    def enter(self, places: Iterable[Place]) -> None:
        """Begin a group at these places; `leave` is for its end.

        Raises:
            OSError: No process, or no descriptor, is left.
        """
        if self._pid != 1:
            if not self._lives():
                self._start()
            for place in places:
                if place not in self._places:
                    self._tell(place)
                    self._places.append(place)
        self._groups += 1

    def _lives(self) -> bool:
        """Say whether somebody has the other end; nothing is said there but why it could not begin."""
        try:
            self._said = self._channel.receive(wait=False)
        except BlockingIOError:
            return True
        return False

    def _start(self) -> None:
        """Start it; again, if somebody has killed it."""
        self.close()
        stays = bool(prctl(PR_GET_CHILD_SUBREAPER)) or os.stat("/proc/self/ns/pid").st_ino != _FIRST_NAMESPACE
        ours, theirs = socketpair()
        stage = new_stage()
        try:
            slots = [theirs, own_pidfd(), *[-1] * (len(SLOTS) - 2)]
            spawn(_template(stays).image(Command(values=(("tag", self.tag.encode()),))), slots, stage)
            self._channel.open(ours)
            self._kept = Kept(ours)
            ours = -1
            if stays:
                self._child, stage[0] = stage[0], -1
            else:
                reap(stage[0])
                os.close(theirs)
                theirs = -1
                if not self._lives():
                    record = self._said
                    number = record.error if record is not None and record.type == R_FAILED else errno.ECHILD
                    raise OSError(number, f"a process to remove control groups: {os.strerror(number)}")
            for place in self._places:
                self._tell(place)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (ours, theirs, stage[0]):
                if fd >= 0:
                    os.close(fd)

    def _tell(self, place: Place) -> None:
        path = os.path.dirname(place.path) if place.make else place.path
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._channel.send(request(Q_PLACE, value=int(place.make)), [fd])
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the channel: it ends when all groups have, at once where none is left."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        child, self._child = self._child, -1
        if child >= 0:
            if not self._groups and not self._let_go:
                readable(child, None)
            _leaving.append(child)
        reap_leaving()

    def leave(self, *, let_go: bool = False) -> None:
        """Note that a group has been removed, or, with let_go, outlives this process, and is marked."""
        if self._pid != os.getpid():
            return
        with native.lock:
            self._groups -= 1
            if self._kept is None or not self._kept.valid():
                return
            if let_go:
                self._let_go = True
                self._channel.send(request(Q_LET_GO))
            if not self._groups and self._child >= 0:
                self.close()


def reap_leaving() -> None:
    """Reap those that were waiting for what was let go, and have seen the end of it."""
    for fd in [fd for fd in _leaving if readable(fd, 0)]:
        _leaving.remove(fd)
        reap(fd)
        os.close(fd)


def attend(places: Iterable[Place]) -> Janitor:
    """Return the janitor of this process, which now attends to one more group at these places.

    Raises:
        OSError: It does not run, and no process or no descriptor is left.
    """
    global _current
    with native.lock:
        if _current is None or not _current.serves():
            if _current is not None:
                _current.close()
            _current = Janitor()
        _current.enter(places)
        return _current
