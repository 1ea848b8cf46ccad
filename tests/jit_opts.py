#!/usr/bin/env python3
"""The names that polder-vmm --jit-opt knows, "no-" in front, one a line."""
import re
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "src/cpu/jit/jit_options.h"


def jit_opts():
    return ["no-" + name for name in re.findall(r'X\(JIT_OPT_\w+, "([^"]+)"', TABLE.read_text())]


if __name__ == "__main__":
    print("\n".join(jit_opts()))
