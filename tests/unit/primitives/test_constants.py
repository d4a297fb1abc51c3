"""The numbers are the kernel's: compared with the C headers, where these have them, for each architecture."""

import shutil
import subprocess

import pytest

from sandbox import primitives

HEADERS = """
#include <linux/fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/const.h>
#include <linux/memfd.h>
#include <linux/mount.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <linux/pidfd.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <linux/wait.h>
#ifndef MNT_DETACH
/* <sys/mount.h> cannot be included beside <linux/mount.h>, and the kernel's headers have not got these. */
#define MNT_FORCE 1
#define MNT_DETACH 2
#define MNT_EXPIRE 4
#define UMOUNT_NOFOLLOW 8
#endif
"""
# Enumerators, which the preprocessor does not see; the header of the oldest build machine has them.
ENUMERATORS = {name for name in primitives.__all__ if name.startswith("FSCONFIG_") and not name.endswith("_EXCL")}
FAMILIES = (
    "capabilities",
    "files",
    "fscontext",
    "memfd",
    "mountinfo",
    "mounts",
    "namespaces",
    "pidfd",
    "process",
)


def constants() -> dict[str, int]:
    found = {}
    for family in FAMILIES:
        module = getattr(__import__(f"sandbox.primitives.{family}").primitives, family)
        for name in module.__all__:
            value = getattr(module, name)
            if name.isupper() and isinstance(value, int):
                found[name] = int(value) & (2**64 - 1)
    # How far the table goes, not a number of the kernel's.
    del found["CAP_LAST_CAP"]
    return found


def compile_check(compiler: str, values: dict[str, int]) -> "subprocess.CompletedProcess[str]":
    lines = [HEADERS]
    for name, value in values.items():
        check = f'_Static_assert((unsigned long long)({name}) == {value}ULL, "{name}");'
        lines.append(check if name in ENUMERATORS else f"#ifdef {name}\n{check}\n#endif")
    command = [compiler, "-x", "c", "-fsyntax-only", "-"]
    return subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)


@pytest.fixture(params=[name for name in ("gcc", "aarch64-linux-gnu-gcc") if shutil.which(name)])
def compiler(request):
    return request.param


def test_constants_equal_the_headers(compiler):
    result = compile_check(compiler, constants())
    assert "" == result.stderr
    assert 0 == result.returncode


@pytest.mark.parametrize(
    "name", ["MS_BIND", "CLONE_NEWNS", "PR_SET_NAME", "CAP_BPF", "FSCONFIG_SET_FD", "MFD_HUGE_1GB"]
)
def test_wrong_constant_is_noticed(compiler, name):
    result = compile_check(compiler, {name: constants()[name] + 1})
    assert f'static assertion failed: "{name}"' in result.stderr
