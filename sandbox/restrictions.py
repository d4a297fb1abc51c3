"""The steps that put a process under a Landlock ruleset; they belong in the payload's segment, before its filter."""

import os
from errno import EINVAL, ENOENT

from sandbox import kernel as k
from sandbox.landlock import Ruleset
from sandbox.plan import Program
from sandbox.primitives.landlock import LandlockAccessFs, LandlockAccessNet, LandlockRestrictSelfFlags, LandlockScope

__all__ = ["restrict_self"]

_PATH_BENEATH = k.Flag(1, "LANDLOCK_RULE_PATH_BENEATH")
_NET_PORT = k.Flag(2, "LANDLOCK_RULE_NET_PORT")
_FD_OFFSET, _FD_WIDTH = 8, 4  # of struct landlock_path_beneath_attr


def restrict_self(program: Program, ruleset: Ruleset) -> None:
    """Add the steps that make a ruleset and take it on.

    The paths are opened in the process that takes it on, so they mean what they will mean to it. What a path is
    shows only then, and a plan has no branch: each rule is tried as a directory's, where EINVAL says that it is a
    file, and then as a file's, which adds nothing to a directory's.

    Args:
        program: Where to; no_new_privs has to be set by an earlier step.
        ruleset: Compiled for the kernel that will run the plan.
    """
    if ruleset.empty:
        return
    attr = ruleset.attr()
    shown = f"{{fs={_names(LandlockAccessFs, ruleset.handled_fs)}, net={_names(LandlockAccessNet, ruleset.handled_net)}"
    made = program.call(
        "landlock_create_ruleset",
        program.data(attr, f"{shown}, scoped={_names(LandlockScope, ruleset.scoped)}}}"),
        len(attr),
        0,
        name="ruleset",
    )
    for rule in ruleset.paths:
        directory = program.data(rule.attr(), f"{{{_names(LandlockAccessFs, rule.rights)}, path}}")
        both = rule.file_rights not in (0, rule.rights)
        opened = program.call(
            "openat",
            k.AT_FDCWD,
            os.fsencode(rule.path),
            k.O_PATH | k.O_CLOEXEC,
            0,
            name="path",
            tolerate=(ENOENT,) if ruleset.skip_missing else (),
            skip=(5 if both else 2) if ruleset.skip_missing else 0,
            store=(directory, _FD_OFFSET, _FD_WIDTH),
        )
        program.call("landlock_add_rule", made, _PATH_BENEATH, directory, 0, tolerate=(EINVAL,) if both else ())
        if both:
            file = program.data(rule.attr(file=True), f"{{{_names(LandlockAccessFs, rule.file_rights)}, path}}")
            again = program.call("dup", opened, name="path", store=(file, _FD_OFFSET, _FD_WIDTH))
            program.call("landlock_add_rule", made, _PATH_BENEATH, file, 0)
            program.call("close", again)
        program.call("close", opened)
    for port in ruleset.ports:
        allowed = f"{{{_names(LandlockAccessNet, port.rights)}, port={port.port}}}"
        program.call("landlock_add_rule", made, _NET_PORT, program.data(port.attr(), allowed), 0)
    flags = k.Flag(ruleset.restrict_flags, _names(LandlockRestrictSelfFlags, ruleset.restrict_flags))
    program.call("landlock_restrict_self", made, flags)
    program.call("close", made)


def _names(
    kind: type[LandlockAccessFs | LandlockAccessNet | LandlockScope | LandlockRestrictSelfFlags], value: int
) -> str:
    return "|".join(one.name or "" for one in kind if one & value) or "0"
