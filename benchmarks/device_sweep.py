"""How cost grows with work on a GPU: `benchmarks.sweep` with the Detector's own parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.device_parts import open_driver, open_network, open_pipeline
from benchmarks.device_rounds import DeviceSamples
from benchmarks.inputs import made_up_image
from benchmarks.planted_network import PlantedNetwork
from benchmarks.statistics import percentiles
from benchmarks.sweep import DETECTIONS, IMAGE_SIZES_HW, planted_scores, repeat
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.errors import EngineError

_LEAST_SCORE = 0.25  # below all that is planted, above all that is not
_NETWORK = "network"


def batch_points_on_gpu(
    detector: Detector,
    images: Sequence[Image],
    batches: Sequence[int],
    report: dict[str, Any],
    done: Callable[[], None],
) -> None:
    """Adds to `report` ("batch", "notes")."""
    driver = open_driver(detector)
    with open_pipeline(detector, driver, open_network(detector, driver)) as calls:
        source = cycle(images)
        for batch in batches:
            samples = DeviceSamples(detector, calls)
            try:
                _repeat(samples, lambda batch=batch: [next(source) for _ in range(batch)], 0.0)  # type: ignore[misc]
            except EngineError as exc:
                report["notes"].append(str(exc))
                break
            report["batch"].append(
                {
                    "batch": batch,
                    "latency_ms": percentiles(samples.total_ns),
                    "stages_ms": {stage: percentiles(times) for stage, times in samples.stages_ns.items()},
                    "throughput_fps": batch * 1e9 / float(np.median(samples.total_ns)),
                }
            )
            done()


def work_points_on_gpu(detector: Detector, report: dict[str, Any], done: Callable[[], None]) -> None:
    """Adds to `report` ("work"). The objects are planted on the device, behind the network, which runs as ever."""
    driver, spec = open_driver(detector), detector.spec
    priors, classes = spec.make_priors(), len(spec.class_names)
    network = PlantedNetwork(open_network(detector, driver), driver)
    with open_pipeline(detector, driver, network) as calls:
        for image_hw in IMAGE_SIZES_HW:
            image = made_up_image(image_hw)
            for count in DETECTIONS:
                network.plant(*planted_scores(priors, classes, count))
                samples = DeviceSamples(detector, calls)
                _repeat(samples, lambda image=image: [image], _LEAST_SCORE)  # type: ignore[misc]
                (found,) = calls([image], score_threshold=_LEAST_SCORE)
                report["work"].append(
                    {
                        "image_hw": list(image_hw),
                        "detections": len(found),
                        "latency_ms": percentiles(samples.total_ns),
                        "stages_ms": {
                            stage: percentiles(times) for stage, times in samples.stages_ns.items() if stage != _NETWORK
                        },
                    }
                )
                done()


def _repeat(samples: DeviceSamples, inputs: Callable[[], list[Image]], score_threshold: float) -> None:
    repeat(lambda timed: (samples.time if timed else samples.run)(inputs(), score_threshold))
