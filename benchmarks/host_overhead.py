"""What the host adds to a frame on a GPU, without one: `python -m benchmarks.host_overhead`.

A `Detector` runs over a driver and a network that do nothing; the detections it reads were put there beforehand. Prints, in
microseconds: a whole frame (the same image again and again, as a replayed CUDA graph); how long the copy of its pixels into
page-locked memory takes alone; the difference, which is Python; and a frame whose masks have to be copied out of page-locked
memory, as more results are kept than may stay there.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.null_gpu import CallCounter, NullDriver, NullNetwork, null_backend, write_block
from benchmarks.statistics import percentiles
from exporters.configs import published_spec
from yolact_deploy import Detector
from yolact_deploy.cuda.frames import place
from yolact_deploy.cuda.launches import mask_pitch_words, result_buffers
from yolact_deploy.cuda.lent_blocks import MAX_BLOCKS
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.runtime import gpu_backend

IMAGE_SIZES_HW = ((550, 550), (1080, 1920))
DETECTIONS = (0, 10, 100)
_WARMUP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="yolact_base", help="whose sizes the model has")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        measure(arguments.config, image_hw, detections, arguments.repeats)
        for image_hw in IMAGE_SIZES_HW
        for detections in DETECTIONS
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{'image':>9} {'found':>5} {'frame':>8} {'pixels':>8} {'Python':>8} {'all kept':>8}  driver calls of a frame"
    )
    for row in rows:
        height, width = row["image_hw"]
        times = "{frame_us:8.1f} {pixels_us:8.1f} {python_us:8.1f} {kept_us:8.1f}".format(**row)
        calls = ", ".join(f"{count} {name}" for name, count in row["driver_calls"].items())
        print(f"{f'{height}x{width}':>9} {row['detections']:>5} {times}  {calls}")


def measure(config: str, image_hw: tuple[int, int], detections: int, repeats: int) -> dict[str, Any]:
    """{"image_hw", "detections", "frame_us", "pixels_us", "python_us", "kept_us": medians, "pixels_bytes", "masks_bytes",
    "driver_calls": of a frame by name}."""
    image = np.full((*image_hw, 3), 127, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = _frames(NullDriver(), config, folder, image, detections)
        frame_us = _median_us(run, repeats)
        _kept = [run() for _ in range(MAX_BLOCKS)]
        kept_us = _median_us(run, repeats)
        counter = CallCounter(NullDriver())
        run = _frames(counter, config, folder, image, detections)
        counter.calls.clear()
        run()
    staging = np.zeros(image.size, np.uint8).reshape(image.shape)
    pixels_us = _median_us(lambda: np.copyto(staging, image), repeats)
    return {
        "image_hw": list(image_hw),
        "detections": detections,
        "frame_us": frame_us,
        "pixels_us": pixels_us,
        "python_us": frame_us - pixels_us,
        "kept_us": kept_us,
        "pixels_bytes": image.nbytes,
        "masks_bytes": 4 * detections * image_hw[0] * mask_pitch_words(image_hw[1]),
        "driver_calls": dict(counter.calls),
    }


def _frames(driver: Any, config: str, folder: str, image: Any, detections: int) -> Callable[[], object]:
    """A steady frame of a Detector that finds so many."""
    artifact = Path(folder) / "null.onnx"
    artifact.touch()
    spec = published_spec(config)
    backend, gpu_backend.BACKEND = gpu_backend.BACKEND, null_backend(driver, NullNetwork(spec))
    try:
        detector = Detector(artifact, device="cuda:0")
    finally:
        gpu_backend.BACKEND = backend
    offsets, _ = place(result_buffers(specialize(spec), 1))
    detector(image)
    write_block(driver.pinned["results"], offsets["count"], np.array([detections], np.int32))
    for _ in range(_WARMUP):
        if len(detector(image)) != detections:
            raise SystemExit("the detections put in place were not read.")
    return lambda: detector(image)


def _median_us(work: Callable[[], object], repeats: int) -> float:
    times_ns = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            begin = perf_counter_ns()
            work()
            times_ns.append(perf_counter_ns() - begin)
    finally:
        gc.enable()
    return percentiles(times_ns)["p50"] * 1e3


if __name__ == "__main__":
    main()
