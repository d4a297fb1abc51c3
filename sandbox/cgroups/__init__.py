"""Control groups: who may make them where, and the group of one sandbox.

Nothing here happens unless a limit was asked for that only a group can keep. Version 2 comes first; a controller that
it does not have is taken from its own hierarchy of version 1, as on hybrid hosts.
"""

import contextlib
import errno
import itertools
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from sandbox.cgroups import files
from sandbox.cgroups.directories import INNER, PREFIX, Part, drop_part, make_part, sweep
from sandbox.cgroups.group import Group
from sandbox.cgroups.hierarchy import LEAF, Host, Place, find
from sandbox.cgroups.janitor import attend
from sandbox.errors import UnsupportedError
from sandbox.limits import asks_group, shown

if TYPE_CHECKING:
    from sandbox.limits import Limits

__all__ = ["Chosen", "Group", "choose", "make", "shielded"]

_CONTROLLER: Final = {
    "memory": "memory",
    "swap": "memory",
    "pids": "pids",
    "cpus": "cpu",
    "cpuset": "cpuset",
    "io": "io",
}
_INSTEAD: Final = {
    "memory": "RLIMIT_AS limits each process alone",
    "pids": "RLIMIT_NPROC limits its user",
    "cpuset": "the affinity of its processes, which they can change",
}
_numbers = itertools.count(1)
_SWEEP_EVERY: Final = 64  # launches; the first is one of them
_known: tuple[int, str, int, Host] | None = None  # pid, /proc/self/cgroup, uid


class Chosen(NamedTuple):
    """What a launch will do about limits.

    Args:
        places: Where groups are made, with the controllers that are needed there.
        missing: Limits that need not be had and are not, in words.
        weak: Names of the limits that the payload's own process keeps instead.
    """

    places: tuple[tuple[Place, tuple[str, ...]], ...] = ()
    missing: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """The version of each hierarchy, in the order of the descriptors: into the first, if 2, PID 1 is cloned."""
        return tuple(place.version for place, _ in self.places)

    @property
    def counts(self) -> bool:
        """Whether one of them counts CPU time."""
        return any(place.version == 2 or "cpuacct" in place.controllers for place, _ in self.places)

    @property
    def thaws(self) -> bool:
        """Whether PID 1 is to have the state of version 1's freezer: to end what is frozen, should the caller end."""
        return any("freezer" in place.controllers and place.version == 1 for place, _ in self.places)


def _host() -> Host:
    """Return what the caller can use, as long as it stays in its group and keeps its user id."""
    global _known
    with open("/proc/self/cgroup") as stream:
        text = stream.read()
    key = os.getpid(), text, os.geteuid()
    known = _known
    if known is None or known[:3] != key:
        with open("/proc/self/mountinfo") as stream:
            known = _known = *key, find(stream.read(), text, key[2])
    return known[3]


def shielded() -> bool:
    """Say whether the OOM killer passes this process over, or nearly; children inherit that."""
    with open("/proc/self/oom_score_adj") as stream:
        return int(stream.read()) < 0


def choose(limits: "Limits") -> Chosen:
    """Decide where the groups of a sandbox are made; nothing is made yet.

    Raises:
        UnsupportedError: No group of this caller can keep a limit, and it was not best_effort.
    """
    host = _host()
    found: dict[Place, list[str]] = {}
    missing, weak = [], []
    for name in asks_group(limits):
        controller = _CONTROLLER[name]
        place = next((one for one in host.places if controller in one.controllers), None)
        if place is not None:
            found.setdefault(place, []).append(name)
        elif name in limits.best_effort or (name == "swap" and "memory" in limits.best_effort):
            instead = _INSTEAD.get(name)
            missing.append(
                f"limit({name}={getattr(limits, name)!r}): no control group has {controller}"
                + (f"; instead {instead}" if instead else "")
            )
            if instead:
                weak.append(name)
        else:
            _refuse(name, controller, host)
    if found or not weak + missing:
        _add_watchers(found, host)
    # PID 1 is cloned into version 2, and put into the others.
    places = sorted(found.items(), key=lambda item: -item[0].version)
    return Chosen(tuple((place, tuple(names)) for place, names in places), tuple(missing), tuple(weak))


def _add_watchers(found: dict[Place, list[str]], host: Host) -> None:
    """Add what limits nothing but kills, freezes and counts: version 2, or its elder relatives."""
    newer = next((place for place in host.places if place.version == 2), None)
    if newer is not None:
        found.setdefault(newer, [])
        return
    for word in ("freezer", "cpuacct"):
        place = next((one for one in host.places if word in one.controllers), None)
        if place is not None:
            found.setdefault(place, [])


def _refuse(name: str, controller: str, host: Host) -> NoReturn:
    newer = next((place for place in host.places if place.version == 2), None)
    if newer is not None:
        found = f"{newer.path} has the controllers {', '.join(sorted(newer.controllers)) or 'none'}"
        fix = (
            f"have {controller} delegated, too: Delegate=cpu cpuset io memory pids in a drop-in of the unit above"
            " (user@.service for users)"
        )
        if newer.path == "/" or os.geteuid() == 0:
            fix = f"boot with a kernel and command line that give {controller} to version 2 of control groups"
    else:
        found, fix = "; ".join(host.found), host.fix
    raise UnsupportedError(
        f"limit({name}=)",
        needed=f"a control group below which this process may make one, with the controller {controller}",
        found=found,
        fix=f"{fix}; or limit({name}=..., best_effort=True) for what can be had without",
        errno=errno.EPERM,
    )


def make(chosen: Chosen, limits: "Limits", name: str = "") -> Group:
    """Make the group of one sandbox, limits and all.

    Args:
        chosen: Where.
        limits: Which.
        name: Part of the directories' name.

    Raises:
        UnsupportedError: The kernel refuses a limit, or the group; nothing is left.
    """
    for attempt in range(3):
        number = next(_numbers)
        parts: list[Part] = []
        janitor = None
        try:
            janitor = attend([place for place, _ in chosen.places])
            full = f"{PREFIX}{_word(name)}{janitor.tag}{number}"
            for place, names in chosen.places:
                if number % _SWEEP_EVERY == 1:
                    sweep(place)
                parts.append(_part(place, names, limits, full))
            return Group(full, parts, janitor)
        except BaseException as error:
            for part in parts:
                drop_part(part)
            if janitor is not None:
                janitor.leave()
            # The name is taken, or what was found here before is gone: looked at anew.
            if isinstance(error, OSError) and error.errno in _AGAIN and attempt < 2:
                _forget()
                continue
            raise
    raise AssertionError("unreachable")


_AGAIN: Final = {errno.EEXIST, errno.ENOENT, errno.ENODEV}


def _forget() -> None:
    global _known
    _known = None


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:64] or "box"


def _part(place: Place, names: tuple[str, ...], limits: "Limits", full: str) -> Part:
    if place.version == 2:
        _enable(place, {_CONTROLLER[name] for name in names})
    part = make_part(place, full)
    try:
        for name in names:
            for file, text in _texts(name, limits, place.version):
                _write(part, name, limits, file, text)
        if "cpuset" in place.controllers:
            _confine(part, limits)
    except BaseException:
        drop_part(part)
        raise
    return part


def _texts(name: str, limits: "Limits", version: int) -> list[tuple[str, str]]:
    try:
        return list(files.writes(limits, name, version))
    except OSError as error:
        raise UnsupportedError(
            shown(name, getattr(limits, name)),
            needed="a disk, or a path on one",
            found=f"{error.filename}: {error.strerror}",
            errno=error.errno or 0,
        ) from error


def _write(part: Part, name: str, limits: "Limits", file: str, text: str) -> None:
    try:
        files.write(part.fd, file, text)
    except OSError as error:
        if name == "swap" and error.errno == errno.ENOENT and not _has_swap():
            return  # nothing can be swapped out
        if error.errno in _GONE:
            raise
        fix = None
        if name == "swap" and error.errno == errno.ENOENT:
            fix = "boot with swapaccount=1, or say swap=None: then a part of it may be swapped out, and is not counted"
        if name == "memory" and error.errno == errno.EBUSY:
            fix = "allow more: the group by itself, and the set-up in it, take some hundred KiB"
        if name == "cpuset":
            fix = "say others: /sys/devices/system/cpu/online has those of this machine"
        raise UnsupportedError(
            shown(name, getattr(limits, name)),
            needed=f"{file} of a control group that takes {text!r}",
            found=f"{os.path.join(part.path, file)}: {error.strerror}",
            fix=fix,
            errno=error.errno or 0,
        ) from error


_GONE: Final = {errno.ENODEV}


def _has_swap() -> bool:
    with open("/proc/swaps") as stream:
        return len(stream.readlines()) > 1


def _confine(part: Part, limits: "Limits") -> None:
    """Check the processors of version 2, which takes any; fill in what version 1 wants before it takes a process."""
    if part.place.version == 1:
        for file, wanted in (
            ("cpuset.mems", files.read_at(part.place.path, "cpuset.effective_mems")),
            ("cpuset.cpus", files.read_at(part.place.path, "cpuset.effective_cpus")),
        ):
            if file == "cpuset.cpus" and limits.cpuset is not None:
                wanted = ",".join(map(str, limits.cpuset))
            for directory in ("", f"{INNER}/"):
                _write(part, "cpuset", limits, directory + file, wanted.strip())
    elif limits.cpuset is not None:
        effective = files.cpu_list(files.read(part.fd, "cpuset.cpus.effective") or "")
        if effective != set(limits.cpuset):
            raise UnsupportedError(
                shown("cpuset", limits.cpuset),
                needed="processors that this process may use itself",
                found=f"{part.place.path} has {','.join(map(str, sorted(effective)))} of them",
                errno=errno.EINVAL,
            )


def _enable(place: Place, controllers: set[str]) -> None:
    """Let the groups below a place have controllers; its own processes go into a leaf first where they must."""
    if place.make:
        above = os.path.dirname(place.path)
        _switch(above, "+", _lacking(above, controllers))
        with contextlib.suppress(FileExistsError):
            os.mkdir(place.path, 0o755)
    for _ in range(_ROUNDS):
        wanted = _lacking(place.path, controllers)
        if not wanted:
            return
        # More may come while we move those that are there.
        if place.move:
            _move(place.path)
        try:
            _switch(place.path, "+", wanted)
        except OSError as error:
            if error.errno != errno.EBUSY or not place.move:
                raise _not_given(place.path, controllers, error) from error
            continue
        # The kernel gives pids, cpu and cpuset of a group with processes, too, but for threads: then it is the root of
        # a threaded part, and those below take no process.
        if not place.move or not files.read_at(place.path, "cgroup.procs"):
            return
        _switch(place.path, "-", wanted)
    raise _not_given(place.path, controllers, OSError(errno.EBUSY, "processes come faster than they can be moved"))


_ROUNDS: Final = 20


def _lacking(path: str, controllers: set[str]) -> set[str]:
    """Return which of these controllers the groups below one do not have."""
    return controllers - set(files.read_at(path, "cgroup.subtree_control").split())


def _switch(path: str, sign: str, controllers: set[str]) -> None:
    """Give controllers to the groups below one, or take them away."""
    if controllers:
        files.write_at(path, "cgroup.subtree_control", " ".join(f"{sign}{name}" for name in sorted(controllers)))


def _move(path: str) -> None:
    """Put the processes of a delegated group into a leaf of it, which keeps all limits of the group."""
    found = files.read_at(path, "cgroup.procs").split()
    leaf = os.path.join(path, LEAF)
    if found:
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf, 0o755)
    for word in found:
        try:
            files.write_at(leaf, "cgroup.procs", word)
        except ProcessLookupError:  # it ended meanwhile
            continue


def _not_given(path: str, controllers: set[str], error: OSError) -> UnsupportedError:
    return UnsupportedError(
        "a control group for the sandbox",
        needed=f"the controllers {', '.join(sorted(controllers))} for groups below {path}",
        found=f"{path}/cgroup.subtree_control: {error.strerror}",
        fix=f"put the processes of {path} into a group below it" if error.errno == errno.EBUSY else None,
        errno=error.errno or 0,
    )
