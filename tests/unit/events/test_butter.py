"""docs/butter.md names every public name of Butter, and everything it points to exists."""

import builtins
import importlib
import re
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[3] / "docs" / "butter.md"

# The public names of Butter 0.13.1, module by module; of its constants those that its cdefs name.
BUTTER = {
    "utils": """
        Eventlike get_buffered_length PermissionError TimeoutError InternalError UnknownError
        CLOEXEC_DEFAULT
    """,
    "eventfd": """
        Eventfd Eventfd_async eventfd str_to_events event_to_str EFD_CLOEXEC EFD_NONBLOCK
        EFD_SEMAPHORE
    """,
    "timerfd": """
        Timer TimerVal TimePair Timerfd_async timerfd timerfd_gettime timerfd_settime TFD_CLOEXEC
        TFD_NONBLOCK TFD_TIMER_ABSTIME CLOCK_BOOTTIME CLOCK_PROCESS_CPUTIME_ID
        CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW CLOCK_MONOTONIC_COARSE
        CLOCK_REALTIME CLOCK_REALTIME_COARSE CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM
    """,
    "signalfd": """
        Signalfd Signal Signalfd_async signalfd pthread_sigmask signum_to_signame SFD_CLOEXEC
        SFD_NONBLOCK NEW_SIGNALFD SIG_BLOCK SIG_UNBLOCK SIG_SETMASK
    """,
    "inotify": """
        Inotify Inotify_async watch str_to_events event_name inotify_init inotify_add_watch
        inotify_rm_watch IN_ACCESS IN_MODIFY IN_ATTRIB IN_CLOSE_WRITE IN_CLOSE_NOWRITE IN_OPEN
        IN_MOVED_FROM IN_MOVED_TO IN_CREATE IN_DELETE IN_DELETE_SELF IN_MOVE_SELF IN_UNMOUNT
        IN_Q_OVERFLOW IN_IGNORED IN_CLOSE IN_MOVE IN_ONLYDIR IN_DONT_FOLLOW IN_EXCL_UNLINK
        IN_MASK_ADD IN_ISDIR IN_ONESHOT IN_ALL_EVENTS IN_CLOEXEC IN_NONBLOCK
    """,
    "fanotify": """
        Fanotify Fanotify_async FanotifyEvent str_to_events fanotify_init fanotify_mark O_RDONLY
        O_WRONLY O_RDWR FAN_CLOEXEC FAN_NONBLOCK FAN_CLASS_NOTIF FAN_CLASS_CONTENT
        FAN_CLASS_PRE_CONTENT FAN_UNLIMITED_QUEUE FAN_UNLIMITED_MARKS FAN_MARK_ADD FAN_MARK_REMOVE
        FAN_MARK_DONT_FOLLOW FAN_MARK_ONLYDIR FAN_MARK_MOUNT FAN_MARK_IGNORED_MASK
        FAN_MARK_IGNORED_SURV_MODIFY FAN_MARK_FLUSH FAN_ALL_MARK_FLAGS FAN_ACCESS FAN_MODIFY
        FAN_CLOSE_WRITE FAN_CLOSE_NOWRITE FAN_OPEN FAN_Q_OVERFLOW FAN_OPEN_PERM FAN_ACCESS_PERM
        FAN_ONDIR FAN_EVENT_ON_CHILD FAN_MODIFY_DIR FAN_ALL_EVENTS FAN_CLOSE FAN_ALLOW FAN_DENY
    """,
    "splice": """
        splice tee vmsplice UnknownError NULL_TERMINATOR SPLICE_F_MOVE SPLICE_F_NONBLOCK
        SPLICE_F_MORE SPLICE_F_GIFT IOV_MAX
    """,
    "system": """
        mount umount pivot_root sethostname gethostname getpid getppid Retry PermissionError
        InternalError UnknownError MAXPATHLEN HOST_NAME_MAX MS_BIND MS_DIRSYNC MS_MANDLOCK MS_MOVE
        MS_NOATIME MS_NODEV MS_NODIRATIME MS_NOEXEC MS_NOSUID MS_RDONLY MS_RELATIME MS_REMOUNT
        MS_SILENT MS_STRICTATIME MS_SYNCHRONOUS
    """,
    "clone": """
        unshare setns SETNS_ANY CLONE_NEWNS CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID
        CLONE_NEWNET PermissionError UnknownError ffi main
    """,
    "memfd": """
        Memfd memfd_create seal revoke flags MFD_CLOEXEC MFD_ALLOW_SEALING F_SEAL_SHRINK F_SEAL_GROW
        F_SEAL_WRITE mmap ACCESS_COPY ACCESS_READ ACCESS_WRITE PROT_READ PROT_WRITE PROT_EXEC
        MAP_ANON MAP_ANONYMOUS MAP_DENYWRITE MAP_EXECUTABLE MAP_PRIVATE MAP_SHARED
    """,
    "prctl": "prctl ffi main",
}


def rows():
    """Yield (module, Butter's names, the paths here) of each row."""
    module = ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            found = re.match(r"## butter\.(\w+)", line)
            module = found[1] if found else ""
        elif module and line.startswith("| `"):
            _, theirs, ours, why, _ = line.split("|")
            yield module, re.findall(r"`([^`]+)`", theirs), re.findall(r"`([^`]+)`", ours), ours, why


def targets():
    for _, theirs, ours, _, _ in rows():
        for path in ours:
            if path.endswith(".*"):
                yield from (path[:-1] + (name if not joined(path) else name.partition(".")[2]) for name in theirs)
            else:
                yield path


def joined(path):
    """Say whether the stem of a `*` is a class, so that only the method's name is put after it."""
    return path.split(".")[-2][0].isupper()


@pytest.mark.parametrize("module", BUTTER)
def test_table_names_every_public_name(module):
    named = {name for where, theirs, _, _, _ in rows() if where == module for name in theirs}
    assert set() == set(BUTTER[module].split()) - named


def test_every_row_says_what_became_of_it():
    for module, theirs, ours, column, _ in rows():
        assert ours or column.strip() == "-", f"{module}: {theirs} has neither a target nor a dash"


@pytest.mark.parametrize("path", sorted(set(targets())))
def test_what_the_table_points_to_exists(path):
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        break
    else:
        found = builtins
    for name in parts[length:]:
        assert hasattr(found, name), f"{path}: {found!r} has no {name}"
        found = getattr(found, name)
