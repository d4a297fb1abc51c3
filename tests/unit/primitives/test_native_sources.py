"""The C behind the primitives compiles for other architectures: it holds no number of one of them."""

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[3] / "csrc" / "native"
# Those that call the interpreter need its headers, which a cross compiler has not got.
FAMILIES = sorted(path.name for path in NATIVE.glob("*.c") if "PyGILState" not in path.read_text())


COMPILERS = [name for name in ("gcc", "aarch64-linux-gnu-gcc", "riscv64-linux-gnu-gcc") if shutil.which(name)]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_families_compile_without_warnings(compiler):
    source = "#define _GNU_SOURCE 1\n" + "".join(f'#include "{name}"\n' for name in ["kernel.h", *FAMILIES])
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", f"-I{NATIVE}"]
    result = subprocess.run([*command, "-fsyntax-only", "-x", "c", "-"], input=source, capture_output=True, text=True)
    assert "" == result.stderr
