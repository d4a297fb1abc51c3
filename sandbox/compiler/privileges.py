"""The steps that give up privileges, keep what is to be kept, and check what is left."""

from struct import pack
from typing import TYPE_CHECKING, Final

from sandbox import kernel as k
from sandbox.identity import drops_groups
from sandbox.kernel import Flag
from sandbox.plan import Data, Program

if TYPE_CHECKING:
    from sandbox.compiler.draft import Draft

CAP_SETFCAP: Final = 1 << 31
_CHECK_IDS, _CHECK_GROUPS, _CHECK_CAPABILITIES, _CHECK_SECUREBITS, _CHECK_NO_NEW_PRIVS = (1, 2, 4, 8, 16)
_CHECKS: Final = {
    _CHECK_IDS: "ids",
    _CHECK_GROUPS: "groups",
    _CHECK_CAPABILITIES: "capabilities",
    _CHECK_SECUREBITS: "securebits",
    _CHECK_NO_NEW_PRIVS: "no_new_privs",
}


def drop_privileges(draft: "Draft", keep: int, ambient: int) -> None:
    """Give up every capability but these, lock the securebits, and set no_new_privs."""
    program = draft.program
    program.origin = "capabilities"
    header = program.data(pack("<2I", 0x20080522, 0), "{_LINUX_CAPABILITY_VERSION_3, 0}")
    program.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if ambient:
        # Ambient is within inheritable; what else PID 1 has goes with the last capset.
        program.call("capset", header, capability_sets(program, (1 << 41) - 1, keep))
        for number in range(64):
            if ambient >> number & 1:
                program.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, number, 0, 0)
    program.call("prctl", k.PR_SET_SECUREBITS, _securebits(draft), 0, 0, 0)
    program.call("prctl", k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program.call("capset", header, capability_sets(program, keep, keep))


def _securebits(draft: "Draft") -> Flag:
    # uid 0 that keeps capabilities has them as root does: a program that it executes gets the bounding set.
    return k.SECUREBITS_ROOT if draft.spec.keep and draft.uid == 0 else k.SECUREBITS_LOCKED


def nest(draft: "Draft") -> None:
    """Give the payload namespaces of its own, in which it has CAP_SYS_ADMIN.

    In the sandbox's own it could make a read-only bind writable; mounts that are copied into a mount namespace
    of another user namespace are locked as they are.
    """
    program = draft.program
    program.origin = "capabilities"
    # Who writes its own id map must own its files in /proc; nobody else is inside yet.
    program.call("prctl", k.PR_SET_DUMPABLE, 1, 0, 0, 0)
    program.call("unshare", k.CLONE_NEWUSER | k.CLONE_NEWNS)
    program.call("write_proc_self", draft.proc_inside, "setgroups", "deny\n", 5)
    for name, number in (("uid_map", draft.uid), ("gid_map", draft.gid)):
        text = f"{number} {number} 1\n"
        program.call("write_proc_self", draft.proc_inside, name, text, len(text))
    program.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0)
    program.call("drop_bounding_set", draft.spec.keep)
    drop_privileges(draft, draft.spec.keep, draft.spec.ambient)


def join_nested(draft: "Draft") -> None:
    """Enter the namespaces of the first payload, which PID 1, whose user made them, may."""
    program = draft.program
    program.origin = "capabilities"
    draft.first_slot = program.slot("first payload")
    program.call("setns", draft.first_slot, k.CLONE_NEWUSER | k.CLONE_NEWNS)
    program.call("drop_bounding_set", draft.spec.keep)
    drop_privileges(draft, draft.spec.keep, draft.spec.ambient)


def verify(draft: "Draft") -> None:
    """Have the payload's process compare what it is with what was asked for."""
    program = draft.program
    program.origin = "self-check"
    mask = _CHECK_CAPABILITIES | _CHECK_SECUREBITS | _CHECK_NO_NEW_PRIVS
    if draft.new_user:
        mask |= _CHECK_IDS
    if drops_groups(draft.spec, draft.caller):
        mask |= _CHECK_GROUPS
    keep = draft.spec.keep
    sets = (keep, keep, keep, keep, draft.spec.ambient)
    expected = pack("<8I5Q744x", draft.uid, draft.gid, _securebits(draft), 1, 0, 0, 0, 0, *sets)
    show = f"{{uid={draft.uid}, gid={draft.gid}, capabilities={hex(keep) if keep else 'none'}, securebits=locked, "
    show += "no_new_privs=1" + (", groups=none}" if mask & _CHECK_GROUPS else "}")
    text = "|".join(name for bit, name in _CHECKS.items() if mask & bit)
    program.call("verify", program.data(expected, show), Flag(mask, text))


def capability_sets(program: Program, permitted: int, inheritable: int) -> Data:
    """Return the data of capset(2): effective and permitted alike."""
    low = 0xFFFFFFFF
    words = [permitted & low, permitted & low, inheritable & low, permitted >> 32, permitted >> 32, inheritable >> 32]
    show = f"{{effective={permitted:#x}, permitted={permitted:#x}, inheritable={inheritable:#x}}}"
    return program.data(pack("<6I", *words), show)
