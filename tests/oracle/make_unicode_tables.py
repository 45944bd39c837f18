"""Write cpp/text/unicode_categories.cpp and cpp/text/unicode_mappings.cpp.

The tables are those of Unicode 15.1.0, the version that the reference tokenizers use: with another
version, newly assigned characters would be cut into different words. The database comes from the
package unicodedata2 15.1.0, or from Python 3.13, whose own unicodedata has that version.

Usage: python tests/oracle/make_unicode_tables.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

VERSION = "15.1.0"
FOLDER = Path(__file__).resolve().parents[2] / "cpp" / "text"

# In the order of enum Category in unicode.cpp.
CATEGORIES = [
    ["Cn"],
    ["Lu", "Lt"],
    ["Ll"],
    ["Lm", "Lo"],
    ["Mn"],
    ["Mc", "Me"],
    ["Nd"],
    ["Nl", "No"],
    ["Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"],
    ["Sm", "Sc", "Sk", "So"],
    ["Zs", "Zl", "Zp"],
    ["Cc", "Cf", "Cs", "Co"],
]
HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)  # decomposed by arithmetic

HEADER = """\
// Written by tests/oracle/make_unicode_tables.py from the Unicode Character Database {version}.
#include "text/unicode_data.h"

namespace kve::unicode {{

"""
FOOTER = "\n}  // namespace kve::unicode\n"


def array(declaration: str, values: list[int], digits: int) -> str:
    """Format an array with as many hexadecimal numbers a line as fit into 100 columns."""
    per_line = (100 - 4 + 1) // (digits + 4)
    lines = [
        "    " + " ".join(f"0x{value:0{digits}x}," for value in values[i : i + per_line])
        for i in range(0, len(values), per_line)
    ]
    return f"{declaration} = {{\n" + "\n".join(lines) + "\n};\n"


def categories() -> str:
    """Return the first character of every run of equal categories, with the category."""
    group = {name: index for index, names in enumerate(CATEGORIES) for name in names}
    starts: list[int] = []
    previous = None
    for code in range(0x110000):
        current = group[unicodedata.category(chr(code))]
        if current != previous:
            starts.append(code << 4 | current)
            previous = current
    text = HEADER.format(version=VERSION)
    text += "// first code point << 4 | Category\n"
    text += array("const uint32_t kCategoryRuns[]", starts, 7)
    text += f"const size_t kCategoryRunCount = {len(starts)};\n"
    return text + FOOTER


def lower_case() -> list[int]:
    """Return the simple lower-case mappings: runs of code points with one distance and stride."""
    runs: list[list[int]] = []  # first, last, stride, mapped first
    for code in range(0x110000):
        char = chr(code)
        if unicodedata.category(char) == "Cn":
            continue
        lower = ord("i") if code == 0x130 else ord(char.lower()) if len(char.lower()) == 1 else code
        if lower == code:
            continue
        if runs:
            first, last, stride, mapped = runs[-1]
            step = code - last
            if step <= 2 and (stride in (0, step)) and lower - code == mapped - first:
                runs[-1][1:3] = [code, step]
                continue
        runs.append([code, code, 0, lower])
    return [
        first << 43 | (last - first) << 23 | (max(stride, 1) - 1) << 21 | mapped
        for first, last, stride, mapped in runs
    ]


def base_letters() -> list[int]:
    """Return what is left of a canonical decomposition without its nonspacing marks.

    Three characters are left of a few; their first two are then written as the character that
    decomposes into them.
    """
    rows = []
    pairs = {}
    for code in range(0x110000):
        decomposed = unicodedata.normalize("NFD", chr(code))
        if code in HANGUL_SYLLABLES or decomposed == chr(code):
            continue
        left = [ord(char) for char in decomposed if unicodedata.category(char) != "Mn"]
        if len(left) == 3:
            left = [pairs[tuple(left[:2])], left[2]]
        first, second = (left + [0, 0])[:2]
        pairs[first, second] = code
        if first == code and not second:
            continue
        rows.append(code << 42 | first << 21 | second)
    return rows


def mappings() -> str:
    """Return the file with the lower-case and the base-letter tables."""
    lower, base = lower_case(), base_letters()
    text = HEADER.format(version=VERSION)
    text += "// first << 43 | (last - first) << 23 | (stride - 1) << 21 | lower case of first\n"
    text += array("const uint64_t kLowerCaseRuns[]", lower, 15)
    text += f"const size_t kLowerCaseRunCount = {len(lower)};\n\n"
    text += (
        "// code point << 42 | first << 21 | second (0: none) of its decomposition without Mn;\n"
    )
    text += "// first can decompose again\n"
    text += array("const uint64_t kBaseLetters[]", base, 15)
    text += f"const size_t kBaseLetterCount = {len(base)};\n"
    return text + FOOTER


def main() -> int:
    """Write the files, or with --check only compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the files")
    options = parser.parse_args()
    if unicodedata.unidata_version != VERSION:
        print(
            f"expected the Unicode database {VERSION}, found {unicodedata.unidata_version}:"
            f" pip install unicodedata2=={VERSION}",
            file=sys.stderr,
        )
        return 2
    status = 0
    for name, text in [
        ("unicode_categories.cpp", categories()),
        ("unicode_mappings.cpp", mappings()),
    ]:
        path = FOLDER / name
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            print(f"{path}: differs from what this script writes", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
