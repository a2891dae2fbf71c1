"""Claims on the GPU's kernels in a process that compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m tests.gpu.sanitized CHECK...
"""

from __future__ import annotations

import sys

from tests.emulator.checks import CHECKS
from tests.emulator.originals import CASES, expect_original
from tests.gpu.runner import unguarded

GOLDENS = ("p17_small", "p21_small_batch2", "p33_real")


def main() -> None:
    for name in sys.argv[1:]:
        if name in CHECKS:
            CHECKS[name](unguarded)
        else:
            expect_original(unguarded, next(case for case in CASES if case["id"] == name), "fast")
        print(name, "done")


if __name__ == "__main__":
    main()
