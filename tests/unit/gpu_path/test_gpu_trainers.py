"""Models of other trainers on the emulated GPU: padded to a square, and with boxes clipped before suppression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.emulator.device_images import ArrayInterface, OnDevice, pitched
from tests.unit.gpu_path.gpu_expectations import PIXELS, assert_identical
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.spec import ModelSpec

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]
PHOTO = PIXELS[0]
TALL, WIDE = PHOTO, np.ascontiguousarray(PHOTO[:150])
IMAGES = [TALL, WIDE, PHOTO[:1, :1], PHOTO[:1, :37], PHOTO[:37, :1], PIXELS[2], PHOTO[200:350]]  # squares, lines, alike
_COLOUR = (123.5, 116.25, 103.5)  # of few bits: see SHORT_COLOUR in test_launches


def _with_spec(source: Path, target: Path, *, pad: bool, clip_boxes: bool) -> Path:
    model = onnx.load(source)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "yolact_deploy.spec")
    spec = ModelSpec.from_json(entry.value)
    if pad:
        preprocess = dataclasses.replace(spec.preprocess, resize="pad", pad_rgb=_COLOUR)
        spec = dataclasses.replace(spec, preprocess=preprocess)
    spec = dataclasses.replace(spec, postprocess=dataclasses.replace(spec.postprocess, clip_boxes=clip_boxes))
    entry.value = spec.to_json()
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module", params=["pad", "clip", "pad and clip"])
def model(request: pytest.FixtureRequest, shapes_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("trainers") / "model.onnx"
    return _with_spec(shapes_onnx, target, pad="pad" in request.param, clip_boxes="clip" in request.param)


@pytest.mark.parametrize("masks", ["bits", "rle", "dense"])
def test_detections_are_those_of_the_cpu(emulated: Emulate, model: Path, masks: MaskForm) -> None:
    gpu = emulated(in_stream=True)
    on_cpu = Detector(model, device="cpu", threads=1)
    detector = gpu.open(model, batch_size=4)
    expected = on_cpu(IMAGES)
    assert sum(map(len, expected)) > 30
    for _ in range(2):  # step by step, then as a graph
        for found, reference in zip(detector(IMAGES, masks=masks), expected, strict=True):
            assert found.canvas_hw == reference.canvas_hw
            assert_identical(found, reference)


def test_the_models_do_differ(model: Path, shapes_onnx: Path) -> None:
    stretched, changed = (Detector(path, device="cpu", threads=1)(TALL) for path in (shapes_onnx, model))
    assert not np.array_equal(stretched.boxes_relative, changed.boxes_relative)


def test_images_on_the_device_are_padded_too(emulated: Emulate, model: Path) -> None:
    gpu = emulated(in_stream=True)
    expected = Detector(model, device="cpu", threads=1)(IMAGES[:2])
    detector = gpu.open(model)
    for image, reference in zip(IMAGES[:2], expected, strict=True):
        whole: Image = np.ascontiguousarray(image)
        placed = OnDevice(gpu.driver, whole, pitch=pitched(whole))
        assert_identical(detector(ArrayInterface(placed)), reference)
        placed.free()
