"""What a CPU spends after the network, stage by stage and scene by scene: `python -m benchmarks.figures.postprocess`.

Scenes are one image of YOLACT-550 on ResNet50 with the recorded weights: its own 100 detections ("recorded"); 100 objects
planted in its heads, of every size and nowhere on each other ("planted"); the recorded detections with boxes as large as the
image ("full"). Times are of the process on all cores, so that others on the machine disturb them less; stages of one scene
take turns. "windows" are masks as bits, "compiled" is what numba does (extra `fast`), all else NumPy. To compare two versions,
run it in both checkouts, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

import numpy as np

from benchmarks.figures.networks import recorded_heads
from benchmarks.machine import environment
from benchmarks.statistics import percentiles
from benchmarks.subjects import synthetic_heads
from yolact_deploy.arrays import FloatArray
from yolact_deploy.files import write_json
from yolact_deploy.reference.compiled_masks import CompiledMasks, load_kernel
from yolact_deploy.reference.detections import RawDetections
from yolact_deploy.reference.mask_sources import WindowMasks
from yolact_deploy.reference.masks import PrototypeMasks
from yolact_deploy.reference.postprocess import detect, make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

SIZES_HW = ((550, 550), (1080, 1920))
_WARMUP = 2


def main() -> None:
    """Measure, print, and write with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--iterations", type=int, default=25)
    arguments = parser.parse_args()
    report = {"environment": environment(), "scenes": scenes(*recorded_heads(), arguments.iterations)}
    if arguments.out is not None:
        write_json(arguments.out, report)
    print(json.dumps(report, indent=2))


def scenes(spec: ModelSpec, heads: HeadTensors, iterations: int) -> dict[str, Any]:
    """{scene: {"detections": n, stage: {"cpu_ms": percentiles, "wall_ms": percentiles}}}; stages of masks are named with the
    image's size."""
    priors = make_priors(spec)
    options = dataclasses.asdict(spec.postprocess)

    def detected(scene: HeadTensors) -> RawDetections:
        return detect(*scene, priors, input_size=spec.input_size, **options)[0]

    planted = synthetic_heads(heads, priors, options["max_detections"])
    recorded = detected(heads)
    full = dataclasses.replace(recorded, boxes_xyxy=np.tile(_WHOLE, (len(recorded), 1)))
    found = {}
    for name, raw, scene in (
        ("recorded", recorded, heads),
        ("planted", detected(planted), planted),
        ("full", full, None),
    ):
        stages = _mask_stages(raw)
        if scene is not None:
            stages["detect"] = lambda scene=scene: detected(scene)  # type: ignore[misc]
        found[name] = {"detections": len(raw), **timed(stages, iterations)}
    return found


def timed(stages: dict[str, Callable[[], object]], iterations: int) -> dict[str, Any]:
    """{stage: {"cpu_ms", "wall_ms"}}, all in turns; results are freed outside of the times."""
    cpu_ns: dict[str, list[int]] = {name: [] for name in stages}
    wall_ns: dict[str, list[int]] = {name: [] for name in stages}
    gc.disable()
    try:
        for iteration in range(_WARMUP + iterations):
            for name, run in stages.items():
                wall, cpu = perf_counter_ns(), process_time_ns()
                result = run()
                if iteration >= _WARMUP:
                    cpu_ns[name].append(process_time_ns() - cpu)
                    wall_ns[name].append(perf_counter_ns() - wall)
                del result
    finally:
        gc.enable()
    return {name: {"cpu_ms": percentiles(cpu_ns[name]), "wall_ms": percentiles(wall_ns[name])} for name in stages}


def _mask_stages(raw: RawDetections) -> dict[str, Callable[[], object]]:
    kernel = load_kernel()
    stages: dict[str, Callable[[], object]] = {}
    for image_hw in SIZES_HW:
        size = f"{image_hw[1]}x{image_hw[0]}"
        masks = PrototypeMasks(raw.proto, raw.mask_coeff, raw.boxes_xyxy, image_hw, crop=True)
        kept = WindowMasks.of(masks.regions(), image_hw)  # as they come from a GPU
        stages[f"masks {size}"] = masks.dense
        stages[f"rle {size}"] = masks.rle
        stages[f"windows {size}"] = lambda masks=masks: WindowMasks.of(masks.regions(), masks.image_hw)  # type: ignore[misc]
        if kernel is not None:
            compiled = partial(CompiledMasks, masks, kernel)  # anew each time, as it keeps where its masks are
            stages[f"compiled masks {size}"] = lambda compiled=compiled: compiled().dense()  # type: ignore[misc]
            stages[f"compiled rle {size}"] = lambda compiled=compiled: compiled().rle()  # type: ignore[misc]
            stages[f"compiled windows {size}"] = lambda compiled=compiled: compiled().windows()  # type: ignore[misc]
        stages[f"masks of bits {size}"] = kept.dense
        stages[f"rle of bits {size}"] = kept.rle
    return stages


_WHOLE: FloatArray = np.array([[0, 0, 1, 1]], np.float32)

if __name__ == "__main__":
    main()
