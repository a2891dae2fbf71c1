"""How cost grows with work: batch size, number of detections, image size."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from itertools import cycle
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.rounds import Samples
from benchmarks.statistics import percentiles
from benchmarks.subjects import batch_limits, made_up_image
from yolact_deploy import Detector
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import is_plan
from yolact_deploy.errors import EngineError
from yolact_deploy.reference.postprocess import detect
from yolact_deploy.reference.priors import make_priors
from yolact_deploy.runtime.protocols import HeadTensors

BATCHES = (1, 2, 4, 8)
DETECTIONS = (1, 10, 100)
IMAGE_SIZES_HW = ((550, 550), (720, 1280), (1080, 1920))
_WARMUP = 2
_MIN_TIMES, _MAX_TIMES = 5, 30
_POINT_SECONDS = 2.0
_SCORE = 0.9


def sweep(
    detector: Detector, images: Sequence[Image], *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """{"artifact", "batch": [...], "work": [...], "notes"}; each point has 5 to 30 times, 2 seconds at most if it can.

    "batch" points time all stages on `images`, for the batches the artifact takes. "work" points time what depends on the
    image's size and on the number of detections: preprocessing a made-up image, and Detect and masks of head tensors in
    which exactly so many objects were planted (the network's own cost depends on neither). On a GPU the objects are planted
    on the device, so that all stages and the whole are timed, as `device_rounds` does.
    """
    least, most = batch_limits(detector.artifact)
    limit = most or BATCHES[0]
    batches = [batch for batch in BATCHES if least <= batch <= limit] or [least]
    total = len(batches) + len(DETECTIONS) * len(IMAGE_SIZES_HW)
    report: dict[str, Any] = {"artifact": str(detector.artifact), "batch": [], "work": [], "notes": []}
    if batches[-1] < BATCHES[-1]:
        report["notes"].append(
            f"made for batches of {least} to {limit}; more with `build-engine --batch`."
            if is_plan(detector.artifact)
            else f"exported for batches up to {limit}; more with `yolact-deploy export --max-batch`."
        )

    def done() -> None:
        if progress is not None:
            progress(len(report["batch"]) + len(report["work"]), total)

    if detector.on_gpu:
        from benchmarks.device_sweep import batch_points_on_gpu, work_points_on_gpu

        try:
            batch_points_on_gpu(detector, images, batches, report, done)
            work_points_on_gpu(detector, report, done)
        except EngineError as exc:  # no room for a second network beside the Detector's, for one
            report["notes"].append(f"not all was swept: {exc}")
        return report
    for batch in batches:
        try:
            report["batch"].append(_batch_point(detector, images, batch))
        except EngineError as exc:
            report["notes"].append(str(exc))
            break
        done()
    heads = detector.run_network(detector.preprocess([images[0]]))
    for image_hw in IMAGE_SIZES_HW:
        for count in DETECTIONS:
            report["work"].append(
                _work_point(detector, planted(heads, make_priors(detector.spec), count), image_hw, count)
            )
            done()
    return report


def planted(
    heads: HeadTensors,
    priors: FloatArray,  # [P, 4]
    count: int,
) -> HeadTensors:
    """One image's heads in which `count` priors, spread over all levels and places, are sure of an object; fewer
    where the model has not so many that do not overlap."""
    return HeadTensors(*planted_scores(priors, heads.conf.shape[2] - 1, count), heads.mask_coeff[:1], heads.proto[:1])


def planted_scores(
    priors: FloatArray,  # [P, 4]
    classes: int,
    count: int,
) -> tuple[FloatArray, FloatArray]:
    """`loc` [1, P, 4] and `conf` [1, P, 1 + C], softmaxed, of `planted`."""
    conf = np.zeros((1, len(priors), 1 + classes), np.float32)
    conf[..., 0] = 1
    rows = _spread(priors, count)
    count = len(rows)
    scores = np.linspace(_SCORE, _SCORE / 2, count, dtype=np.float32)
    conf[0, rows, 0] = 1 - scores
    conf[0, rows, 1 + np.arange(count) % classes] = scores
    return np.zeros((1, len(priors), 4), np.float32), conf


def _spread(priors: FloatArray, count: int) -> list[int]:
    """Rows of priors that do not overlap by half, from every size in turn; as many as asked, as far as there are."""
    rng = np.random.default_rng(0)
    sizes = np.unique(priors[:, 2])
    by_size = [rng.permutation(np.flatnonzero(priors[:, 2] == size)).tolist() for size in sizes]
    chosen: list[int] = []
    while len(chosen) < count and any(by_size):
        for rows in by_size:
            while rows:
                row = rows.pop()
                if not chosen or _max_iou(priors[row], priors[chosen]) <= 0.3:
                    chosen.append(row)
                    break
            if len(chosen) == count:
                break
    return chosen


def _max_iou(
    prior: FloatArray,  # [4]
    others: FloatArray,  # [n, 4]
) -> float:
    low = np.maximum(prior[:2] - prior[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(prior[:2] + prior[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    overlap = (high - low).clip(0).prod(axis=1)
    return float((overlap / (prior[2:].prod() + others[:, 2:].prod(axis=1) - overlap)).max())


def _batch_point(detector: Detector, images: Sequence[Image], batch: int) -> dict[str, Any]:
    source = cycle(images)
    run = Samples(detector)

    def once(timed: bool) -> None:
        (run.time if timed else run.run)([next(source) for _ in range(batch)], 0.0)

    repeat(once)
    return {
        "batch": batch,
        "latency_ms": percentiles(run.total_ns),
        "stages_ms": {stage: percentiles(times) for stage, times in run.stages_ns.items()},
        "throughput_fps": batch * 1e9 / float(np.median(run.total_ns)),
    }


def _work_point(detector: Detector, heads: HeadTensors, image_hw: tuple[int, int], count: int) -> dict[str, Any]:
    image = made_up_image(image_hw)
    spec = detector.spec
    options = {**dataclasses.asdict(spec.postprocess), "max_detections": count, "nms": "fast"}
    times: dict[str, list[int]] = {"preprocess": [], "detect": [], "masks": []}
    found = 0

    def once(timed: bool) -> None:
        nonlocal found
        marks = [perf_counter_ns()]
        batch = detector.preprocess([image])
        marks.append(perf_counter_ns())
        raws = detect(*heads, make_priors(spec), input_size=spec.input_size, **options)
        marks.append(perf_counter_ns())
        masks = detector.assemble(raws[0], image_hw).masks
        marks.append(perf_counter_ns())
        found = len(masks)
        del batch, masks
        if timed:
            for taken, begin, end in zip(times.values(), marks, marks[1:], strict=False):
                taken.append(end - begin)

    repeat(once)
    return {
        "image_hw": list(image_hw),
        "detections": found,
        "stages_ms": {stage: percentiles(taken) for stage, taken in times.items()},
    }


def repeat(once: Callable[[bool], object]) -> None:
    """Untimed, then timed calls, without the garbage collector."""
    for _ in range(_WARMUP):
        once(False)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        started, done = perf_counter(), 0
        while done < _MIN_TIMES or (done < _MAX_TIMES and perf_counter() - started < _POINT_SECONDS):
            once(True)
            done += 1
    finally:
        if collecting:
            gc.enable()
