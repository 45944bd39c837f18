"""Checks the include rules of the layers, and the size budgets of the sources.

A folder of cpp/ includes only from rows below its own; bindings/ and tools/ include kvengine.h only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    ["engine"],
    ["models", "text", "sampling"],
    ["cache"],
    ["kernels", "gguf"],
    ["formats"],
    ["simd", "base"],
]
ROW_OF = {folder: row for row, folders in enumerate(ROWS) for folder in folders}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)
MAX_LINES = 500
MAX_HEADER_LINES = 260
# Pure data, generated or copied from the definition of a format.
DATA_FILES = {"unicode_categories.cpp", "unicode_mappings.cpp", "iq_grids.cpp"}


def include_error(folder: str, target: str, is_isa: bool) -> str | None:
    """Says what is wrong with `folder` including `target` (a path below cpp/), or None."""
    top = target.split("/")[0]
    if target == "kvengine.h":
        return None if folder == "engine" else "only engine/ may include kvengine.h below tools/"
    if top not in ROW_OF:
        return f"unknown folder '{top}'"
    if top == folder:
        return None
    if ROW_OF[top] < ROW_OF[folder]:
        return f"{folder}/ may not include upwards from {top}/"
    if ROW_OF[top] == ROW_OF[folder] and not (folder == "simd" and top == "base"):
        return f"{folder}/ may not include sideways from {top}/"
    if is_isa and top not in {"simd", "formats", "base", "kernels"}:
        return f"per-ISA kernels may not include {top}/"
    return None


def check_core(problems: list[str]) -> None:
    for path in sorted((ROOT / "cpp").rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu"}:
            continue
        relative = path.relative_to(ROOT / "cpp")
        for quote, target in INCLUDE.findall(path.read_text()):
            if quote == "<":
                if "/" in target and not target.startswith("sys/"):
                    problems.append(f"cpp/{relative}: third-party header <{target}> in the core")
                if target.startswith("cuda") and "cuda" not in relative.parts:
                    problems.append(f"cpp/{relative}: <{target}> outside kernels/cuda")
                continue
            if len(relative.parts) == 1:  # kvengine.h itself
                continue
            is_isa = "isa" in relative.parts
            error = include_error(relative.parts[0], target, is_isa)
            if error:
                problems.append(f'cpp/{relative}: #include "{target}": {error}')


def check_outside(problems: list[str]) -> None:
    for folder in ("bindings", "tools"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in {".h", ".cpp"} or "bench" in path.parts:
                continue
            for quote, target in INCLUDE.findall(path.read_text()):
                local = (path.parent / target).exists() or (ROOT / folder / target).exists()
                if quote == '"' and target != "kvengine.h" and not local:
                    relative = path.relative_to(ROOT)
                    problems.append(f'{relative}: #include "{target}": only kvengine.h is allowed')


def check_sizes(problems: list[str]) -> None:
    for folder in ("cpp", "bindings", "python", "tools", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in {".h", ".cpp", ".py", ".cu", ".cuh"} or path.name in DATA_FILES:
                continue
            lines = len(path.read_text().splitlines())
            header = folder == "cpp" and path.suffix == ".h" and "isa" not in path.parts
            header = header and path.parent.name not in {"simd", "weight"}
            limit = MAX_HEADER_LINES if header else MAX_LINES
            if lines > limit:
                problems.append(f"{path.relative_to(ROOT)}: {lines} lines, expected <= {limit}")


def main() -> int:
    """Prints every problem; exit status 1 if there is one."""
    problems: list[str] = []
    check_core(problems)
    check_outside(problems)
    check_sizes(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
