"""Images per second through streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.scenarios import stream_throughput
from tests.emulator.backend import EmulatedGpu
from yolact_deploy import Detector
from yolact_deploy.errors import ImageError

IMAGES = [np.full((40, 60, 3), value, np.uint8) for value in (10, 200)]


@pytest.mark.slow
def test_several_streams_are_several_detectors(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    shares: list[float] = []
    found = stream_throughput(detector, IMAGES, streams=2, iterations=3, progress=shares.append)
    assert (found["streams"], found["in_flight"], found["batch"]) == (2, 2, 1)
    assert found["images"] >= 3  # of the slower stream, and what the other did meanwhile
    assert found["throughput_fps"] == pytest.approx(found["images"] / found["seconds"])
    assert all(0 <= share <= 1 for share in shares)
    assert detector(IMAGES[0]) is not None  # it is open still


@pytest.mark.slow
def test_batches_of_a_gpu_are_counted_image_by_image(emulated: Callable[..., EmulatedGpu], shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    with gpu.open(shapes_onnx, batch_size=2) as detector:
        found = stream_throughput(detector, IMAGES, batch=2, iterations=3)
    assert found["in_flight"] == 2
    assert found["images"] % 2 == 0
    assert found["images"] >= 6
    assert set(gpu.networks[0].batches) == {2}


def test_time_ends_it_too(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    found = stream_throughput(detector, IMAGES, seconds=0.05)
    assert found["seconds"] > 0
    assert found["images"] >= 1


def test_what_goes_wrong_in_a_stream_is_raised(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    broken: Any = [*IMAGES, np.zeros((3, 3, 2), np.uint8)]
    with pytest.raises(ImageError):
        stream_throughput(detector, broken, iterations=20)


def test_masks_are_unpacked_before_the_next_image_is_asked_for() -> None:
    unpacked: list[int] = []

    class Found:
        def __init__(self, number: int) -> None:
            self._number = number

        @property
        def masks(self) -> None:
            unpacked.append(self._number)

    class Streaming:
        in_flight = 1

        def stream(self, images: Any, *, score_threshold: float) -> Any:
            for number, _ in enumerate(images):
                assert unpacked == list(range(number))
                yield Found(number)

    detector: Any = Streaming()
    assert stream_throughput(detector, IMAGES, iterations=2)["images"] >= 1
