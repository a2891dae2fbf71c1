"""Claims on the GPU's kernels in a process that compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m tests.gpu.sanitized [--seconds N] [CHECK...]

Without names it takes all, small ones first; it begins none after so many seconds, as compute-sanitizer sums up at the end.
"""

from __future__ import annotations

import argparse
import math
from time import monotonic

from tests.emulator.checks import CHECKS
from tests.emulator.originals import CASES, expect_original
from tests.gpu.runner import unguarded

GOLDENS = ("p17_small", "p21_small_batch2", "p33_real")


def main() -> None:
    """Print of each claim that it begins, and that it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("checks", nargs="*", default=[GOLDENS[0], *CHECKS, *GOLDENS[1:]])
    given = parser.parse_args()
    ends = monotonic() + given.seconds
    for name in given.checks:
        if monotonic() > ends:
            break
        print(name, "begins", flush=True)
        if name in CHECKS:
            CHECKS[name](unguarded)
        else:
            expect_original(unguarded, next(case for case in CASES if case["id"] == name), "fast")
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
