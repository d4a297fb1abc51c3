#!/usr/bin/env python3
"""Write the compiled presets into sandbox/filters/compiled, from the installed package.

    scripts/compile_presets.py

To be run after a change of the tables, the presets or the compiler; a test compares the files with what it would
write now. A launch then reads 2 KB instead of the tables.
"""

from pathlib import Path

from sandbox.filters.bpf import encode
from sandbox.filters.compiler import compile_rules
from sandbox.filters.presets import STORED, STORED_MACHINES

OUTPUT = Path(__file__).resolve().parent.parent / "sandbox" / "filters" / "compiled"


def main() -> None:
    """Write every preset for every machine."""
    OUTPUT.mkdir(exist_ok=True)
    for old in OUTPUT.glob("*.bpf"):
        old.unlink()
    for preset in STORED:
        for machine in STORED_MACHINES:
            program = compile_rules(preset.rules, preset.default, preset.unknown, preset.arches(machine))
            (OUTPUT / f"{preset.stored}-{machine}.bpf").write_bytes(encode(program))
            print(f"{preset.name} on {machine}: {len(program)} instructions")


if __name__ == "__main__":
    main()
