"""Join the families of csrc/native into one cffi module; run by meson through cffi-gen-src.

Each family is two files: FAMILY.cdef, what Python sees, and FAMILY.c, the thin C behind it. They share one
translation unit, so that a wrapper can be static and needs no header.

What fails with -1 and errno in C returns -errno to Python. The handler of a signal that came meanwhile runs before
anybody looks at errno, and calls of its own that fail would change it.
"""

import re
from pathlib import Path

from cffi import FFI

here = Path(__file__).resolve().parent
families = sorted(path.stem for path in here.glob("*.cdef"))

ffibuilder = FFI()
for family in families:
    ffibuilder.cdef((here / f"{family}.cdef").read_text())
source = ["#define _GNU_SOURCE 1", '#include "kernel.h"']
source += [f'#include "{family}.c"' for family in families]
source += [
    "static inline int64_t sandbox_result(int64_t result)",
    "{",
    "    return result == -1 ? -(int64_t)errno : result;",
    "}",
]
for family in families:
    for name in re.findall(r"^(?:int|long|int64_t) (\w+)\(", (here / f"{family}.cdef").read_text(), re.MULTILINE):
        source.append(f"#define {name}(...) sandbox_result({name}(__VA_ARGS__))")
ffibuilder.set_source("sandbox._native", "\n".join(source) + "\n", py_limited_api=True)
