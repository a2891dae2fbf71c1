"""`Detector.stream`, on the CPU and on the emulated GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.unit.gpu_path.gpu_expectations import PHOTOS, PIXELS, assert_identical
from yolact_deploy import Detections, Detector
from yolact_deploy.errors import EngineError, ImageError
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.runtime.streaming import ReadAhead

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]


@pytest.fixture(scope="module")
def expected(on_cpu: Detector) -> list[Detections]:
    return on_cpu(PHOTOS)


@pytest.fixture(params=["cpu", "cuda:0"])
def detector(request: pytest.FixtureRequest, emulated: Emulate, shapes_onnx: Path) -> Iterator[Detector]:
    gpu = emulated(in_stream=True)
    with Detector(shapes_onnx, device=request.param, threads=1, gpu=gpu.backend) as opened:
        yield opened


@pytest.mark.parametrize("prefetch", [0, 2])
def test_results_come_in_the_order_of_the_images(detector: Detector, expected: list[Detections], prefetch: int) -> None:
    images: list[Any] = [*PHOTOS, *PIXELS]
    found = list(detector.stream(iter(images), prefetch=prefetch))
    for one, other in zip(found, [*expected, *expected], strict=True):
        assert_identical(one, other)
    assert list(detector.stream([])) == []


def test_batches_are_filled_and_the_last_may_be_short(
    emulated: Emulate, shapes_onnx: Path, expected: list[Detections]
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx, batch_size=3)
    found = list(detector.stream([*PIXELS, PIXELS[0]], score_threshold=0.3, masks="rle"))
    for one, other in zip(found, [*expected, expected[0]], strict=True):
        assert_identical(one, other.take(np.flatnonzero(other.scores > 0.3)))
    assert gpu.networks[0].batches == [3, 2]


def test_one_image_is_enqueued_while_another_is_awaited(
    emulated: Emulate, shapes_onnx: Path, expected: list[Detections]
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    asked: list[int] = []

    def source() -> Iterator[Any]:
        for number, image in enumerate(PIXELS):
            asked.append(number)
            yield image

    results = detector.stream(source(), prefetch=0)
    assert_identical(next(results), expected[0])
    assert asked == [0, 1]  # the second is on its way
    assert gpu.driver.left_over["streams"] == 2
    for one, other in zip(results, expected[1:], strict=True):
        assert_identical(one, other)


def test_the_detector_may_be_called_between_results(detector: Detector, expected: list[Detections]) -> None:
    results = detector.stream(PIXELS)
    for number, found in enumerate(results):
        assert_identical(found, expected[number])
        assert_identical(detector(PIXELS[(number + 2) % 4]), expected[(number + 2) % 4])


def test_two_streams_of_one_detector_do_not_mix(detector: Detector, expected: list[Detections]) -> None:
    pairs = zip(detector.stream(PIXELS), detector.stream(PIXELS[::-1]), strict=True)
    for (one, other), reference, reversed_reference in zip(pairs, expected, expected[::-1], strict=True):
        assert_identical(one, reference)
        assert_identical(other, reversed_reference)


def test_a_stream_that_is_closed_half_way_leaves_the_detector_usable(
    detector: Detector, expected: list[Detections]
) -> None:
    results = detector.stream(PIXELS)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert_identical(detector(PIXELS[1]), expected[1])
    assert_identical(next(detector.stream(PIXELS[2:])), expected[2])


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_error_of_the_source_comes_after_the_results_before_it(
    emulated: Emulate, shapes_onnx: Path, expected: list[Detections], prefetch: int, batch_size: int
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx, batch_size=batch_size)

    def source() -> Iterator[Any]:
        yield from PIXELS[:2]
        raise LookupError("the camera is gone")

    results = detector.stream(source(), prefetch=prefetch)
    for other in expected[:2]:
        assert_identical(next(results), other)
    with pytest.raises(LookupError, match="the camera is gone"):
        next(results)
    assert_identical(detector(PIXELS[3]), expected[3])


def test_a_single_image_is_no_stream_of_rows(detector: Detector, tmp_path: Path) -> None:
    for single in (np.zeros((4, 5, 3), np.uint8), "photo.jpg", tmp_path):
        with pytest.raises(ImageError, match="single one: call the Detector"):
            detector.stream(single)  # type: ignore[arg-type]


def test_a_bad_image_is_an_error_at_its_place(detector: Detector, expected: list[Detections], tmp_path: Path) -> None:
    results = detector.stream([PHOTOS[0], tmp_path / "none.jpg", PHOTOS[1]])
    assert_identical(next(results), expected[0])
    with pytest.raises(ImageError, match=r"none\.jpg"):
        next(results)


def test_a_network_that_fails_is_an_error_at_its_place(
    emulated: Emulate, shapes_onnx: Path, expected: list[Detections]
) -> None:
    runs = 0

    def fail_second(heads: HeadTensors) -> HeadTensors:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise EngineError("the network failed")
        return heads

    gpu = emulated(in_stream=True, alter=fail_second)
    detector = gpu.open(shapes_onnx)
    results = detector.stream(PIXELS)
    assert_identical(next(results), expected[0])
    with pytest.raises(EngineError, match="the network failed"):
        next(results)
    assert_identical(detector(PIXELS[3]), expected[3])


def test_reading_ahead_asks_for_no_more_than_it_may() -> None:
    asked = threading.Semaphore(0)
    count = 0

    def source() -> Iterator[int]:
        nonlocal count
        for number in range(100):
            count = number + 1
            asked.release()
            yield number

    ahead = ReadAhead(source(), 3)
    items = iter(ahead)
    assert next(items) == 0
    for _ in range(4):
        assert asked.acquire(timeout=30)
    assert not asked.acquire(timeout=0.05)  # one handed over, three waiting
    assert count == 4
    ahead.close()


def test_a_stream_that_outlives_its_gpu_detector_enqueues_nothing_more(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    with gpu.open(shapes_onnx) as detector:
        results = detector.stream(PIXELS * 2, prefetch=4)
        next(results)
    with pytest.raises(EngineError, match=r"closed|discarded"):
        list(results)
    assert gpu.driver.left_over == {}
