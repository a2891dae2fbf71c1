"""Latency of a Detector, end to end and per stage."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from itertools import cycle
from os import cpu_count
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from yolact_deploy import Detector
from yolact_deploy.arrays import Image

SCHEMA = 1
STAGES = ("preprocess", "network", "detect", "masks")
_NS_PER_MS = 1e6
_PACKAGES = ("yolact-deploy", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "torch")


@dataclass
class Samples:
    """Times of one artifact in nanoseconds, one entry per iteration."""

    detector: Detector
    total_ns: list[int] = field(default_factory=list)
    stages_ns: dict[str, list[int]] = field(default_factory=lambda: {stage: [] for stage in STAGES})


def bench(
    detectors: Sequence[Detector],
    images: Sequence[Image],  # each [H, W, 3] BGR
    *,
    batch: int = 1,
    iterations: int = 50,
    warmup: int = 5,
    score_threshold: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time detectors side by side; the result is the JSON of `yolact-deploy bench` (schema 1).

    One iteration takes `batch` images in host memory to detections with full-size masks in host memory. Detectors take
    turns at every iteration, so that a change in the machine's speed meets all of them; images rotate, so that no cache
    is measured. Times are of the host's monotonic clock, in milliseconds per batch. Raises ValueError for counts below 1.
    """
    if min(batch, iterations) < 1 or warmup < 0 or not images:
        raise ValueError(
            f"batch and iterations must be at least 1, found {batch} and {iterations}, with {len(images)} images."
        )
    runs = [Samples(detector) for detector in detectors]
    source = cycle(images)
    total = warmup + iterations
    gc.collect()
    gc.disable()
    try:
        for iteration in range(total):
            if progress is not None:
                progress(iteration, total)
            inputs = [next(source) for _ in range(batch)]
            for run in runs:
                marks = _time_once(run.detector, inputs, score_threshold)
                if iteration >= warmup:
                    _record(run, marks)
    finally:
        gc.enable()
    if progress is not None:
        progress(total, total)
    return {
        "schema": SCHEMA,
        "environment": environment(),
        "options": {
            "batch": batch,
            "iterations": iterations,
            "warmup": warmup,
            "score_threshold": score_threshold,
            "images": len(images),
            "image_sizes_hw": sorted({image.shape[:2] for image in images}),
        },
        "runs": [_summary(run, batch) for run in runs],
    }


def percentiles(times_ns: Sequence[int]) -> dict[str, float]:
    """p50, p90, p95, p99, mean, max in milliseconds, and n. A percentile is an observed time, the next one above."""
    times_ms = np.asarray(times_ns) / _NS_PER_MS
    values = {f"p{q}": float(np.percentile(times_ms, q, method="higher")) for q in (50, 90, 95, 99)}
    return {**values, "mean": float(times_ms.mean()), "max": float(times_ms.max()), "n": len(times_ms)}


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def cpu_model() -> str:
    """The processor's name; the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _time_once(detector: Detector, images: list[Image], score_threshold: float) -> list[int]:
    """Clock readings before the first stage and after each; masks are assembled as a user's access would."""
    marks = [perf_counter_ns()]
    batch = detector.preprocess(images)
    marks.append(perf_counter_ns())
    heads = detector.run_network(batch)
    marks.append(perf_counter_ns())
    raws = detector.suppress(heads)
    marks.append(perf_counter_ns())
    masks = [
        detector.assemble(raw, (image.shape[0], image.shape[1]), score_threshold).masks
        for raw, image in zip(raws, images, strict=True)
    ]
    marks.append(perf_counter_ns())
    del masks  # freed after the clock was read: giving memory back is the caller's business
    return marks


def _record(run: Samples, marks: list[int]) -> None:
    run.total_ns.append(marks[-1] - marks[0])
    for stage, begin, end in zip(STAGES, marks, marks[1:], strict=False):
        run.stages_ns[stage].append(end - begin)


def _summary(run: Samples, batch: int) -> dict[str, Any]:
    latency = percentiles(run.total_ns)
    return {
        "artifact": str(run.detector.artifact),
        "backend": run.detector.description,
        "batch": batch,
        "latency_ms": latency,
        "stages_ms": {stage: percentiles(times) for stage, times in run.stages_ns.items()},
        "throughput_fps": batch * 1000 / latency["mean"],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
