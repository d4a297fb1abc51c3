"""Where groups of ours may be made: the hierarchies of this host, and the part of each that is the caller's.

Facts that it follows:

- In version 2 a group other than the root that has processes cannot give controllers to groups below it ("no internal
  processes"): EBUSY. Who was delegated a group, and sits in it, moves into a leaf first.
- Under systemd every group has one writer. Only below a unit with Delegate= may somebody else make groups; the system's
  manager marks it with the extended attribute user.delegate (trusted.delegate before version 251), a user's manager may
  not, and has to be asked.
- In version 1 each controller has a hierarchy of its own, groups may hold processes and groups, and the caller's own
  group is the place.
"""

import errno
import os
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

# What version 2 calls them; version 1 has another name for io.
CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuset", "io")
_V1_NAMES: Final = {"blkio": "io"}
_UNITS: Final = (".service", ".scope", ".slice", ".mount", ".socket", ".swap")
_PATIENCE: Final = 5.0  # seconds for an answer of systemd's
LEAF: Final = "sandbox-callers"
SHARED: Final = "sandbox"

FIX: Final = "start it in a delegated unit: systemd-run{user} --scope -p Delegate=yes COMMAND"


class Mounted(NamedTuple):
    """One mounted hierarchy.

    Args:
        point: Where.
        root: The group that is its root, as /proc/self/mountinfo has it.
        version: 1 or 2.
        controllers: Of version 1, by the names of version 2; cpuacct and freezer too.
    """

    point: str
    root: str
    version: Literal[1, 2]
    controllers: frozenset[str]


class Place(NamedTuple):
    """A group below which groups can be made.

    Args:
        path: Its directory.
        version: 1 or 2.
        controllers: Which of them the groups below it have.
        move: Its own processes have to go into a leaf before it can give controllers.
        make: It is to be made first: what root has beside the units of systemd.
    """

    path: str
    version: Literal[1, 2]
    controllers: frozenset[str]
    move: bool = False
    make: bool = False


class Host(NamedTuple):
    """What the caller can use: the place for each hierarchy, and why there is none where there is none.

    Args:
        places: Version 2 first.
        found: For each version that cannot be used, why.
        fix: What to do about it.
    """

    places: tuple[Place, ...]
    found: tuple[str, ...]
    fix: str


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def mounted(mountinfo: str) -> Iterator[Mounted]:
    """Go through the hierarchies that are mounted, those that are named only left out."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ")[:3]
        fields = before.split(" ")
        if fstype == "cgroup2":
            yield Mounted(_unescape(fields[4]), _unescape(fields[3]), 2, frozenset())
        elif fstype == "cgroup":
            words = {_V1_NAMES.get(word, word) for word in options.split(",")}
            found = words & {*CONTROLLERS, "cpuacct", "freezer"}
            if found:
                yield Mounted(_unescape(fields[4]), _unescape(fields[3]), 1, frozenset(found))


def memberships(text: str) -> dict[str, str]:
    """Return the caller's group of each controller, from /proc/self/cgroup; "" is version 2."""
    found = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[_V1_NAMES.get(name, name)] = path
    return found


def _own(mount: Mounted, group: str | None) -> str | None:
    """Return the directory of a group, None when this mount does not show it."""
    if group is None or "/.." in group + "/":
        return None
    root = mount.root.rstrip("/")
    if group != root and not group.startswith(root + "/"):
        return None
    return (mount.point.rstrip("/") + group[len(root) :]).rstrip("/") or "/"


def _read(*parts: str) -> str:
    with open(os.path.join(*parts)) as stream:
        return stream.read()


def _writable(path: str) -> bool:
    return os.access(path, os.W_OK | os.X_OK, effective_ids=True) and os.access(
        os.path.join(path, "cgroup.procs"), os.W_OK, effective_ids=True
    )


def _delegated(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _users_manager_delegates(unit: str, uid: int) -> bool:
    """Ask the systemd of a user whether it has delegated a unit; who cannot be asked has not."""
    import subprocess

    command = ["systemctl", "--user", "show", "--property=Delegate", "--value", "--", unit]
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{uid}", **os.environ}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout == b"yes\n"


def _offers(path: str) -> frozenset[str]:
    return frozenset(_read(path, "cgroup.controllers").split())


def _has_processes(path: str) -> bool:
    try:
        return bool(_read(path, "cgroup.procs").strip())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # a threaded group has no list
            raise
        return True


def place_v2(mount: Mounted, group: str, uid: int) -> Place | str:
    """Find where the caller may make groups of version 2; a str says why it may not.

    Args:
        mount: The hierarchy.
        group: The caller's group, as /proc/self/cgroup has it.
        uid: Effective user id.
    """
    own = _own(mount, group)
    if own is None:
        return f"the caller's group {group} lies outside of what {mount.point} shows"
    top = mount.point.rstrip("/")
    real_root = not os.path.exists(os.path.join(top, "cgroup.type"))
    if own == top and real_root:
        if not _writable(own):
            return f"{own} belongs to root"
        return Place(own, 2, _offers(own))
    parts = own[len(top) :].split("/")[1:] if own != top else []
    units = [i for i, part in enumerate(parts) if part.endswith(_UNITS)]
    if units:
        # The innermost unit is who systemd delegates to; a manager's own unit is delegated to that manager.
        unit = "/".join([top, *parts[: units[-1] + 1]])
        under_user_manager = any(part.startswith("user@") for part in parts[: units[-1]])
        owned = uid != 0 and not under_user_manager  # only systemd can have given it away
        if _writable(unit) and (
            owned or _delegated(unit) or (under_user_manager and _users_manager_delegates(parts[units[-1]], uid))
        ):
            return _within(unit, own)
        if uid == 0 and real_root and _writable(top):
            # Not delegated, and systemd would take back what it did not give: a group of our own beside its units.
            # What it has given to groups below it, nobody can take back.
            return Place(os.path.join(top, SHARED), 2, _offers(top), make=True)
        return f"{unit} is not delegated to this user"
    # No unit's: a container, or somebody's own. The topmost group that is the caller's.
    found = None
    path = own
    while path != top or not real_root:
        if not _writable(path):
            break
        found = path
        if path == top:
            break
        path = os.path.dirname(path)
    if found is None:
        return f"{own} is not writable for uid {uid}"
    return _within(found, own)


def _within(top: str, own: str) -> Place:
    """Choose between the caller's own group and the one above it, both delegated."""
    above = os.path.dirname(own)
    if own != top and _writable(above) and not _has_processes(above):
        return Place(above, 2, _offers(above))
    return Place(own, 2, _offers(own), move=True)


def place_v1(mount: Mounted, group: str | None) -> Place | str:
    """Find where the caller may make groups of a hierarchy of version 1: in its own group."""
    own = _own(mount, group)
    if own is None:
        return f"the caller's group lies outside of what {mount.point} shows"
    if not _writable(own):
        return f"{own} is not writable for this user"
    return Place(own, 1, mount.controllers)


def find(mountinfo: str, cgroup: str, uid: int) -> Host:
    """Find the places of a caller.

    Args:
        mountinfo: /proc/self/mountinfo.
        cgroup: /proc/self/cgroup.
        uid: Effective user id.
    """
    groups = memberships(cgroup)
    places: list[Place] = []
    found: list[str] = []
    seen: set[str] = set()
    hierarchies = sorted(mounted(mountinfo), key=lambda mount: -mount.version)
    for mount in hierarchies:
        kinds = mount.controllers or {"v2"}
        if seen & kinds:
            continue  # mounted a second time
        seen |= kinds
        name = "" if mount.version == 2 else next(iter(mount.controllers))
        try:
            place = (
                place_v2(mount, groups.get(name, "/"), uid) if mount.version == 2 else place_v1(mount, groups.get(name))
            )
        except OSError as error:
            place = f"{error.filename}: {error.strerror}"
        if isinstance(place, str):
            found.append(f"version {mount.version}: {place}")
        else:
            places.append(place)
    if not hierarchies:
        found.append("no cgroup file system is mounted")
    managed = any(part.endswith(_UNITS) for part in groups.get("", "").split("/"))
    if managed:
        fix = FIX.format(user="" if uid == 0 else " --user")
    elif uid == 0:
        fix = "mount cgroup2 writable on /sys/fs/cgroup; in a container: give it a private cgroup namespace, writable"
    else:
        fix = "have root make a group for this user, put the caller into it and give it its directory and cgroup.procs"
    return Host(tuple(places), tuple(found), fix)
