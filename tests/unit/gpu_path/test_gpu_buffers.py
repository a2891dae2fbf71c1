"""Memory of the GPU path: growth, graphs that growth voids, running out, giving back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.emulator.driver import EmulatedDriver
from tests.unit.gpu_path.gpu_expectations import PHOTOS, PIXELS, assert_identical
from yolact_deploy import Detector
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.errors import DeviceError, DeviceMemoryError, EngineError
from yolact_deploy.runtime.gpu import lane as gpu_lane
from yolact_deploy.runtime.protocols import HeadTensors

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]
SMALL, LARGE = PIXELS[1], PIXELS[0]


def test_buffers_grow_and_never_shrink() -> None:
    driver = EmulatedDriver()
    buffers = Buffers(driver)
    with driver.current():
        buffers.reserve({"a": 100, "b": 10}, {"p": 5})
        first = buffers.generation
        buffers.reserve({"a": 50}, {"p": 5})
        assert buffers.generation == first
        assert buffers.sizes() == {"a": 100, "b": 10}
        buffers.reserve({"a": 101}, {})
        assert buffers.generation > first
        assert driver.device_bytes == 111
        assert buffers.pinned_view("p", 3, 2).tolist() == [0xA5] * 3
        buffers.close()
    assert driver.left_over == {}


def test_a_buffer_without_room_is_named_and_can_be_asked_for_again() -> None:
    driver = EmulatedDriver(memory_bytes=100)
    buffers = Buffers(driver)
    with driver.current():
        buffers.reserve({"a": 60}, {})
        before = buffers.generation
        with pytest.raises(DeviceMemoryError, match=r"'b'.* 50 bytes .* 40 of 100"):
            buffers.reserve({"b": 50}, {})
        with pytest.raises(DeviceMemoryError, match="'a'"):
            buffers.reserve({"a": 120}, {})
        assert buffers.generation != before  # the old `a` is gone
        buffers.reserve({"a": 60, "b": 40}, {})
        buffers.close()
    assert driver.left_over == {}


def test_graphs_captured_before_a_buffer_grew_are_not_used_again(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    small, large = on_cpu(SMALL), on_cpu(LARGE)
    for _ in range(2):
        assert_identical(detector(SMALL), small)
    assert gpu.driver.graph_launches == 1
    assert_identical(detector(LARGE), large)  # the buffers move
    for image, expected, launched in (
        (SMALL, small, 1),
        (SMALL, small, 2),
        (LARGE, large, 3),
        (SMALL, small, 4),
    ):
        assert_identical(detector(image), expected)
        assert gpu.driver.graph_launches == launched
    allocated = len(gpu.driver.allocated)
    detector([SMALL, LARGE])
    assert len(gpu.driver.allocated) == allocated


def test_more_runs_than_expected_are_made_again_with_room(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact_deploy.cuda.program.FIRST_RUN_CAPACITY", 64)
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx, batch_size=2)
    for again in range(4):
        for found, expected in zip(detector([LARGE, SMALL], masks="rle"), on_cpu([LARGE, SMALL]), strict=True):
            assert found.rle() == expected.rle()
        assert gpu.driver.launches["rle_runs"] == 2 * 2 + 2 * again  # the first batch twice, images of two sizes


def test_graphs_of_sizes_long_unused_are_dropped(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lane, "MAX_PREPARED", 2)
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    whole = PIXELS[0]
    images = [whole, whole[:300], whole[:250]]
    detector(whole)
    for image in (*images, *images):
        for _ in range(2):
            found = detector(image)
        assert_identical(found, on_cpu(image))
        assert gpu.driver.left_over["graphs"] <= 2
    detector.close()
    assert gpu.driver.left_over == {}


def test_memory_that_runs_out_names_the_buffer_and_the_detector_goes_on(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    measured = emulated(in_stream=True)
    with measured.open(shapes_onnx) as detector:
        detector(SMALL)
        needed = measured.driver.device_bytes
    gpu = emulated(EmulatedDriver(memory_bytes=needed + 50_000), in_stream=True)
    detector = gpu.open(shapes_onnx)
    for _ in range(2):
        assert_identical(detector(SMALL), on_cpu(SMALL))
        with pytest.raises(DeviceMemoryError, match=r"the buffer '\w+'.* bytes were asked for"):
            detector(np.zeros((1000, 1000, 3), np.uint8))
    assert_identical(detector(SMALL), on_cpu(SMALL))
    detector.close()
    assert gpu.driver.left_over == {}


def test_a_detector_that_cannot_be_set_up_leaves_nothing(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(EmulatedDriver(memory_bytes=1000))
    with pytest.raises(DeviceMemoryError, match="'priors'"):
        gpu.open(shapes_onnx)
    assert gpu.driver.left_over == {}
    assert gpu.networks[0].is_closed


def test_what_fails_on_the_way_leaves_the_detector_usable(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    failures = 0

    def fail_once(heads: HeadTensors) -> HeadTensors:
        nonlocal failures
        failures += 1
        if failures == 2:
            raise EngineError("the network failed")
        if failures == 4:
            raise KeyboardInterrupt
        return heads

    gpu = emulated(in_stream=True, alter=fail_once)
    detector = gpu.open(shapes_onnx)
    expected = on_cpu(PHOTOS[0])
    assert_identical(detector(PHOTOS[0]), expected)
    with pytest.raises(EngineError, match="the network failed"):
        detector(PHOTOS[0])
    assert_identical(detector(PHOTOS[0]), expected)
    with pytest.raises(KeyboardInterrupt):
        detector(PHOTOS[0])
    assert_identical(detector(PHOTOS[0]), expected)


def test_a_context_that_another_library_resets_is_an_error_and_a_new_detector_works(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    detector(PHOTOS[0])
    gpu.driver.torn_down = True
    with pytest.raises(DeviceError, match="CONTEXT_IS_DESTROYED"):
        detector(PHOTOS[0])
    detector.close()
    gpu = emulated(in_stream=True)
    assert_identical(gpu.open(shapes_onnx)(PHOTOS[0]), on_cpu(PHOTOS[0]))


def test_memory_is_given_back_with_the_last_reference(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated()
    detector = gpu.open(shapes_onnx)
    detector(PHOTOS[0])
    detector.run_network(detector.preprocess([PIXELS[0]]))
    assert gpu.driver.left_over["memory"] > 10
    del detector
    assert gpu.driver.left_over == {}
