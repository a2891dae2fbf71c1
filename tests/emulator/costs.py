"""What the kernels cost on the emulator, the proxy where no GPU is at hand: `make kernel-costs`.

Scenes are one image of YOLACT-550 on ResNet50 with the recorded weights: its own 100 detections; 100 boxes as large as the
image and larger, with the masks' coefficients of those detections; and none. Of scenes with masks as run lengths only the kernels
that make those are listed. Numbers are counts and the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.figures.networks import recorded_heads
from benchmarks.figures.scenes import full_frame
from tests.emulator.emulator import Emulator, emulator
from tests.emulator.pipeline import At, aligned, garbage, layout, run
from yolact_deploy.cuda.program import BatchProgram, ModelConstants, Request
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.files import write_json
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "kernel-costs.json"
MULTIPROCESSORS = 132  # of an H200
_RUN_CAPACITY = 1 << 22  # of an image; more than the scenes have
_SIZES = {"1080p": (1080, 1920), "550": (550, 550)}


def main() -> None:
    """Count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    spec, heads = recorded_heads()
    scenes: dict[str, Callable[[], HeadTensors]] = {
        "recorded": lambda: heads,
        "full": lambda: full_frame(spec, heads),
        "empty": lambda: heads._replace(conf=np.zeros_like(heads.conf)),
    }
    names = (
        "recorded-1080p",
        "full-1080p",
        "recorded-550",
        "full-550",
        "empty-1080p",
        "recorded-1080p-rle",
        "full-1080p-rle",
    )
    report: dict[str, Any] = {"kind": "kernel-costs", "multiprocessors": MULTIPROCESSORS, "scenes": {}}
    for name in names:
        scene, size, *is_rle = name.split("-")
        report["scenes"][name] = costs_of(spec, scenes[scene](), _SIZES[size], "rle" if is_rle else "bits")
        print(name, report["scenes"][name]["mask_bytes_to_host"], "bytes of masks")
    write_json(arguments.out, report)


def costs_of(
    spec: ModelSpec, heads: HeadTensors, image_hw: tuple[int, int], masks: Literal["bits", "rle"] = "bits"
) -> dict[str, Any]:
    """{"detections", "launches", "mask_bytes_to_host", "kernels": {name: counts}} of a frame from heads to masks. Of run lengths,
    the kernels are those that make them of bits."""
    specialization = specialize(spec)
    model = ModelConstants.of(spec, specialization, multiprocessors=MULTIPROCESSORS)
    program = BatchProgram(model, layout([image_hw]), Request(masks=masks), _RUN_CAPACITY)
    arrays = {
        **garbage({**program.workspace, **program.results}),
        **{name: aligned(array) for name, array in heads._asdict().items()},
        "priors": aligned(make_priors(spec)),
        "image_hw": np.array([image_hw], np.int32),
    }
    at: Any = {name: At(array) for name, array in arrays.items()}
    kernels: Emulator = emulator(specialization, "costs")
    steps = [*program.detect(at), *program.masks(at)]
    counted = {}
    for step in steps:
        run(kernels, [step])
        if masks == "bits" or step[0].kernel.startswith("rle_"):
            counted[step[0].kernel] = kernels.costs()
    return {
        "detections": int(arrays["count"][0]),
        "launches": len(steps),
        "mask_bytes_to_host": sum(program.mask_bytes(arrays)),
        "kernels": counted,
    }


if __name__ == "__main__":
    main()
