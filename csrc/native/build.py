"""Join the families of csrc/native into one cffi module; run by meson through cffi-gen-src.

Each family is two files: FAMILY.cdef, what Python sees, and FAMILY.c, the thin C behind it. They share one
translation unit, so that a wrapper can be static and needs no header.
"""

from pathlib import Path

from cffi import FFI

here = Path(__file__).resolve().parent
families = sorted(path.stem for path in here.glob("*.cdef"))

ffibuilder = FFI()
for family in families:
    ffibuilder.cdef((here / f"{family}.cdef").read_text())
source = ["#define _GNU_SOURCE 1", '#include "kernel.h"']
source += [f'#include "{family}.c"' for family in families]
ffibuilder.set_source("sandbox._native", "\n".join(source) + "\n", py_limited_api=True)
