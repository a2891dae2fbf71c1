"""Images that are on the device already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.emulator.device_images import ArrayInterface, Dlpack, OnDevice, pitched
from tests.emulator.driver import EmulatedDriver
from tests.unit.gpu_path.gpu_expectations import PIXELS, assert_identical
from yolact_deploy import Detector
from yolact_deploy.errors import DeviceError, ImageError

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]
Place = Callable[..., OnDevice]


@pytest.fixture
def gpu(emulated: Emulate) -> EmulatedGpu:
    return emulated(in_stream=True)


@pytest.fixture
def place(gpu: EmulatedGpu) -> Any:
    """Puts images on the device, and takes them away at the end."""
    placed: list[OnDevice] = []

    def put(image: Any = PIXELS[1], *, driver: EmulatedDriver | None = None, **options: Any) -> OnDevice:
        placed.append(OnDevice(driver or gpu.driver, image, **options))
        return placed[-1]

    yield put
    for each in placed:
        each.free()


@pytest.mark.parametrize("wrap", [ArrayInterface, Dlpack, lambda image: Dlpack(image, versioned=True)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_on_the_device_are_read_where_they_are(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, on_cpu: Detector, wrap: Any, batch_size: int
) -> None:
    detector = gpu.open(shapes_onnx, batch_size=batch_size)
    expected = on_cpu(PIXELS[:3])
    gpu.driver.copied.clear()
    for _ in range(3):  # other addresses each time: no graph may remember one
        images = [wrap(place(image, pitch=pitched(image))) for image in PIXELS[:3]]
        for found, reference in zip(detector(images), expected, strict=True):
            assert_identical(found, reference)
    assert gpu.driver.graph_launches == 2 * 3 // batch_size
    assert gpu.driver.copied["to_device"] < 5000  # sizes alone, and the priors were there before


def test_images_of_host_and_device_go_together_in_a_batch(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, on_cpu: Detector
) -> None:
    detector = gpu.open(shapes_onnx, batch_size=4)
    expected = on_cpu(PIXELS)
    for _ in range(2):
        images: list[Any] = [PIXELS[0], Dlpack(place(PIXELS[1])), PIXELS[2], ArrayInterface(place(PIXELS[3]))]
        for found, reference in zip(detector(images), expected, strict=True):
            assert_identical(found, reference)


def test_work_of_the_owners_stream_is_waited_for(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, on_cpu: Detector
) -> None:
    detector = gpu.open(shapes_onnx)
    expected = on_cpu(PIXELS[1])
    with gpu.driver.current():
        stream = gpu.driver.create_stream()
    for image in (
        ArrayInterface(place(stream=stream)),
        ArrayInterface(place(stream=2)),
        ArrayInterface(place(), version=2, stream=...),  # which knows no streams: the default one
        Dlpack(place(stream=stream)),
    ):
        assert_identical(detector(image), expected)
    with gpu.driver.current():
        gpu.driver.destroy_stream(stream)


def test_a_stream_of_none_promises_that_the_image_is_there(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, on_cpu: Detector
) -> None:
    detector = gpu.open(shapes_onnx)
    image = place()
    with gpu.driver.current():
        gpu.driver.synchronize(image.stream)
    assert_identical(detector(ArrayInterface(image, stream=None)), on_cpu(PIXELS[1]))


def test_what_dlpack_lends_is_given_back_once(gpu: EmulatedGpu, place: Place, shapes_onnx: Path) -> None:
    detector = gpu.open(shapes_onnx)
    lent = Dlpack(place())
    results = detector.stream([lent, PIXELS[0]], prefetch=0)
    next(results)
    assert lent.deleted == 1
    (stream,) = lent.asked_for
    assert stream is not None
    assert stream > 2
    list(results)
    assert lent.deleted == 1
    given_up = Dlpack(place())
    results = detector.stream([PIXELS[0], given_up, PIXELS[1]], prefetch=0)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert given_up.deleted == 1


def test_rgb_and_streams_take_device_images(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, on_cpu: Detector
) -> None:
    detector = gpu.open(shapes_onnx)
    images = [ArrayInterface(place(np.ascontiguousarray(image[..., ::-1]))) for image in PIXELS[:3]]
    for found, image in zip(detector.stream(images, channel_order="rgb"), PIXELS, strict=False):
        assert_identical(found, on_cpu(image))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": "<f4"}, "must be uint8, found <f4"),
        ({"shape": (3, 240, 320)}, r"must be \[H, W, 3\], found \[3, 240, 320\]"),
        ({"shape": (240, 320)}, r"must be \[H, W, 3\], found \[240, 320\]"),
        ({"shape": (0, 320, 3)}, "has no pixels: 320x0"),
        ({"strides": (1, 240, 76800)}, r"strides \[1, 240, 76800\]"),
        ({"strides": (-960, 3, 1)}, r"strides \[-960, 3, 1\]"),
        ({"mask": object()}, "has a mask"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, on_cpu: Detector, changes: dict[str, Any], message: str
) -> None:
    detector = gpu.open(shapes_onnx)
    with pytest.raises(ImageError, match=message):
        detector(ArrayInterface(place(), **changes))
    assert_identical(detector(PIXELS[0]), on_cpu(PIXELS[0]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": 32}, ImageError, "must be uint8, found DLPack type 1 of 32 bits"),
        ({"shape": (240, 320, 4)}, ImageError, r"found \[240, 320, 4\]"),
        ({"device": (2, 1)}, DeviceError, 'is on cuda:1, this Detector on cuda:0.*device="cuda:1"'),
        ({"versioned": True, "version": 2}, ImageError, "DLPack 2"),
    ],
)
def test_other_dlpack_tensors_are_refused_with_what_was_found(
    gpu: EmulatedGpu, place: Place, shapes_onnx: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    detector = gpu.open(shapes_onnx)
    lent = Dlpack(place(), **options)
    with pytest.raises(error, match=message):
        detector(lent)
    assert lent.deleted == 0  # it was never taken over: its capsule deletes it


def test_memory_of_another_device_is_refused(gpu: EmulatedGpu, place: Place, shapes_onnx: Path) -> None:
    detector = gpu.open(shapes_onnx)
    host = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DeviceError, match="does not know as a GPU's"):
        detector(ArrayInterface(place(), shape=(4, 4, 3), strides=None, data=(host.ctypes.data, False)))


def test_images_on_a_gpu_are_refused_by_a_detector_on_the_cpu(gpu: EmulatedGpu, place: Place, on_cpu: Detector) -> None:
    with pytest.raises(DeviceError, match=r"is on a GPU, but .*\(CPU\).*device=\"cuda:N\""):
        on_cpu(ArrayInterface(place()))


def test_tensors_of_the_host_are_images_of_the_host(gpu: EmulatedGpu, shapes_onnx: Path) -> None:
    torch = pytest.importorskip("torch")
    detector = gpu.open(shapes_onnx)
    pixels = np.full((40, 60, 3), 90, np.uint8)
    np.testing.assert_array_equal(detector(torch.from_numpy(pixels)).scores, detector(pixels).scores)
