"""Claims on the GPU's kernels in a process that compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m tests.gpu.sanitized [--seconds N] [--heads FILE] [CHECK...]

Without names it takes all, small ones first; it begins none after so many seconds, as compute-sanitizer sums up at the end.
With the heads of the recorded scene, its frames come second: buffers as the runtime has them, of which nobody wrote any.
"""

from __future__ import annotations

import argparse
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

import numpy as np

from benchmarks.figures.gpu_kernels import batches_of
from benchmarks.figures.gpu_parts import published_golden_spec
from tests.emulator.checks import CHECKS
from tests.emulator.originals import CASES, expect_original
from tests.gpu.runner import unguarded
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.cuda.program import Request
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.runtime.protocols import HeadTensors

FRAMES: Mapping[str, MaskForm] = {"frame_of_bits": "bits", "frame_of_dense_masks": "dense", "frame_of_runs": "rle"}
_IMAGE_HW = (480, 640)
GOLDENS = ("p17_small", "p21_small_batch2", "p33_real")


def main() -> None:
    """Print of each claim that it begins, and that it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("checks", nargs="*", default=[GOLDENS[0], *CHECKS, *GOLDENS[1:]])
    given = parser.parse_args()
    ends, failed = monotonic() + given.seconds, []
    frames = [] if given.heads is None else list(FRAMES)
    for name in [*given.checks[:1], *frames, *given.checks[1:]]:
        if monotonic() > ends:
            break
        print(name, "begins", flush=True)
        try:
            if name in frames:
                _frame(given.heads, FRAMES[name])
            elif name in CHECKS:
                CHECKS[name](unguarded)
            else:
                expect_original(unguarded, next(case for case in CASES if case["id"] == name), "fast")
        except Exception:  # whatever a claim raises: the others are to be watched as well
            traceback.print_exc()
            failed.append(name)
        else:
            print(name, "done", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _frame(heads_file: Path, form: MaskForm) -> None:
    with np.load(heads_file) as kept:
        heads = HeadTensors(*(kept[name] for name in HeadTensors._fields))
    with batches_of(open_driver(), published_golden_spec(), heads, _IMAGE_HW, 1, request=Request(masks=form)):
        pass  # it has run


if __name__ == "__main__":
    main()
