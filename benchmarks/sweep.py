"""How cost grows with work: batch size, number of detections, image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from time import perf_counter_ns
from typing import Any, Protocol

from benchmarks.rounds import Samples, repeat
from benchmarks.statistics import percentiles
from benchmarks.subjects import synthetic_heads, synthetic_image
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import StepProgress, is_plan
from yolact_deploy.errors import EngineError
from yolact_deploy.reference.postprocess import detect, make_priors

BATCHES = (1, 2, 4, 8)
DETECTIONS = (1, 10, 100)
IMAGE_SIZES_HW = ((550, 550), (720, 1280), (1080, 1920))

TimeBatch = Callable[[Callable[[], list[Image]]], dict[str, Any]]  # what gives the next batch -> times of running it
TimeWork = Callable[[Image, int], dict[str, Any]]  # an image, how many objects are planted -> times, and what was found


class Points(Protocol):
    """How the points of a sweep are timed where a Detector runs. Raises EngineError for what finds no room there."""

    def batches(self) -> AbstractContextManager[TimeBatch]:
        """A timer of batches of any size, while the block lasts."""
        ...

    def work(self) -> AbstractContextManager[TimeWork]:
        """A timer of an image with a planted number of detections, while the block lasts."""
        ...


def sweep(detector: Detector, images: Sequence[Image], *, progress: StepProgress | None = None) -> dict[str, Any]:
    """{"artifact", "batch": [...], "work": [...], "notes"}; each point has 5 to 30 times, 2 seconds at most if it can.

    "batch" points time all stages on `images`, for the batches the artifact takes. "work" points time what depends on the
    image's size and on the number of detections: preprocessing a made-up image, and Detect and masks of head tensors in
    which exactly so many objects were planted (the network's own cost depends on neither). On a GPU the objects are planted
    on the device, so that all stages and the whole are timed.
    """
    report: dict[str, Any] = {"artifact": str(detector.artifact), "batch": [], "work": [], "notes": []}
    batches = _batches(detector, report["notes"])
    total = len(batches) + len(DETECTIONS) * len(IMAGE_SIZES_HW)

    def add(kind: str, point: dict[str, Any]) -> None:
        report[kind].append(point)
        if progress is not None:
            progress(len(report["batch"]) + len(report["work"]), total)

    points, source = _points(detector, images[0]), cycle(images)
    try:
        with points.batches() as time_batch:
            for batch in batches:
                try:
                    times = time_batch(lambda batch=batch: [next(source) for _ in range(batch)])  # type: ignore[misc]
                except EngineError as exc:  # a larger one will not do better
                    report["notes"].append(str(exc))
                    break
                add("batch", {"batch": batch, **times, "throughput_fps": 1000 * batch / times["latency_ms"]["p50"]})
        with points.work() as time_work:
            for image_hw in IMAGE_SIZES_HW:
                image = synthetic_image(image_hw)
                for count in DETECTIONS:
                    add("work", {"image_hw": list(image_hw), **time_work(image, count)})
    except EngineError as exc:  # no room for a second network beside the Detector's, for one
        report["notes"].append(f"not all was swept: {exc}")
    return report


def _batches(detector: Detector, notes: list[str]) -> list[int]:
    """Those that the artifact was made for, and a note where it could have been made for more."""
    least, most = detector.file.batch
    limit = most or BATCHES[0]
    batches = [batch for batch in BATCHES if least <= batch <= limit] or [least]
    if batches[-1] < BATCHES[-1]:
        notes.append(
            f"made for batches of {least} to {limit}; more with `build-engine --batch`."
            if is_plan(detector.artifact)
            else f"exported for batches up to {limit}; more with `yolact-deploy export --max-batch`."
        )
    return batches


def _points(detector: Detector, image: Image) -> Points:
    if not detector.on_gpu:
        return HostPoints(detector, image)
    from benchmarks.device_sweep import DevicePoints

    return DevicePoints(detector)


class HostPoints:
    """By the Detector's own stages."""

    def __init__(self, detector: Detector, image: Image) -> None:
        self._detector, self._image = detector, image

    @contextmanager
    def batches(self) -> Iterator[TimeBatch]:
        def time_batch(inputs: Callable[[], list[Image]]) -> dict[str, Any]:
            samples = Samples(self._detector)
            samples.repeat(inputs)
            return samples.times()

        yield time_batch

    @contextmanager
    def work(self) -> Iterator[TimeWork]:
        detector, spec = self._detector, self._detector.spec
        heads = detector.run_network(detector.preprocess([self._image]))
        priors = make_priors(spec)

        def time_work(image: Image, count: int) -> dict[str, Any]:
            image_hw = (image.shape[0], image.shape[1])
            options = {**dataclasses.asdict(spec.postprocess), "max_detections": count, "nms": "fast"}
            prepared = synthetic_heads(heads, priors, count)
            times: dict[str, list[int]] = {"preprocess": [], "detect": [], "masks": []}
            found = 0

            def once(timed: bool) -> None:
                nonlocal found
                marks = [perf_counter_ns()]
                batch = detector.preprocess([image])
                marks.append(perf_counter_ns())
                raws = detect(*prepared, make_priors(spec), input_size=spec.input_size, **options)
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
                "detections": found,
                "stages_ms": {stage: percentiles(taken) for stage, taken in times.items()},
            }

        yield time_work
