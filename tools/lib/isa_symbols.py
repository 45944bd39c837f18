"""Fails if an object compiled for one instruction set exports a weak symbol.

The linker may pick a weak symbol for the whole program: an inline function compiled for AVX-512
would then crash older processors.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(build: str) -> int:
    """Scans all per-ISA objects below the build folder."""
    objects = sorted(Path(build).glob("cpp/CMakeFiles/kvengine_isa_*.dir/**/*.o"))
    if not objects:
        print(f"{build}: expected per-ISA objects, found none", file=sys.stderr)
        return 1
    bad = 0
    for path in objects:
        listing = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        for line in listing.splitlines():
            fields = line.split(maxsplit=2)
            if len(fields) == 3 and fields[1] in "WwVvu" and "DW.ref" not in fields[2]:
                print(f"{path.name}: weak symbol {fields[2]}", file=sys.stderr)
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
