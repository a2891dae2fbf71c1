"""Images larger than memory has room for copies of: the same bits as without strips and bands, at the price of one band."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from tests.goldens import SHAPES_SPEC
from tests.unit.hostile.image_files import noise
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.reference import images as preprocess
from yolact_deploy.reference import masks
from yolact_deploy.reference.mask_sources import DenseMasks
from yolact_deploy.spec import ModelSpec, PreprocessSpec

PAD_RGB = (123.68, 116.78, 103.94)


@pytest.fixture(params=[True, False], ids=["IPP", "no IPP"])
def _intel_code(request: pytest.FixtureRequest) -> object:
    """OpenCV with Intel's code and with its own: which one runs depends on the machine."""
    ipp = cv2.ipp
    before = ipp.useIPP()
    ipp.setUseIPP(request.param)
    yield
    ipp.setUseIPP(before)


def _whole(image: Image, spec: ModelSpec) -> FloatArray:
    """[3, S, S] by one resize of the whole image in float32."""
    source = image.astype(np.float32)
    if spec.preprocess.pad_rgb is not None:
        side = max(image.shape[:2])
        source = np.full((side, side, 3), spec.preprocess.pad_rgb[::-1], np.float32)
        source[: image.shape[0], : image.shape[1]] = image
    size = spec.input_size
    resized = cv2.resize(source, (size, size), interpolation=cv2.INTER_LINEAR)[:, :, ::-1].astype(np.float32)
    mean, std = np.array(spec.preprocess.mean_rgb, np.float32), np.array(spec.preprocess.std_rgb, np.float32)
    planes: FloatArray = ((resized - mean) / std).transpose(2, 0, 1)
    return planes


def _spec(size: int, pad: bool) -> ModelSpec:
    spec = dataclasses.replace(ModelSpec.from_file(SHAPES_SPEC), input_size=size)
    padded = PreprocessSpec(resize="pad", pad_rgb=PAD_RGB)
    return dataclasses.replace(spec, preprocess=padded) if pad else spec


@pytest.mark.usefixtures("_intel_code")
@pytest.mark.parametrize("pad", [False, True], ids=["stretched", "padded"])
@pytest.mark.parametrize("strip", [1, 5_000, preprocess._STRIP_PIXELS])
def test_strips_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch, strip: int, pad: bool) -> None:
    monkeypatch.setattr(preprocess, "_WHOLE_PIXELS", 0)
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", strip)
    random = np.random.default_rng(strip)
    for size in (32, 137, 256):
        spec = _spec(size, pad)
        sides = random.integers(1, 700, (8, 2)).tolist()
        multiples = [[a * size, b * size] for a, b in ((1, 1), (2, 2), (4, 2), (2, 1), (1, 3))]
        for height, width in [*sides, *multiples, [1, 700], [700, 1], [2, 600], [900, size + 1], [size - 1, 900]]:
            image = noise(height, width)
            found = preprocess.preprocess([image], spec)[0]
            np.testing.assert_array_equal(found, _whole(image, spec), err_msg=f"{height}x{width} to {size}")


@pytest.mark.parametrize("flip", [False, True])
def test_a_photo_of_many_megapixels_is_no_other_than_the_whole(flip: bool) -> None:
    image = noise(2100, 2300)
    image = image[:, :, ::-1] if flip else image  # RGB arrays come as such a view
    np.testing.assert_array_equal(
        preprocess.preprocess([image], _spec(256, False))[0], _whole(image, _spec(256, False))
    )


@pytest.mark.parametrize("band", [1, 700, 1 << 20])
@pytest.mark.parametrize("canvas_hw", [None, (160, 160)])
@pytest.mark.parametrize("crop", [True, False])
def test_bands_give_the_masks_and_the_run_lengths_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, band: int, canvas_hw: tuple[int, int] | None, crop: bool
) -> None:
    random = np.random.default_rng(0)
    proto = random.standard_normal((20, 20, 4), np.float32)
    coefficients = random.standard_normal((6, 4), np.float32)
    low = random.uniform(-0.2, 0.7, (6, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + np.float32(0.4)], axis=1)
    coefficients[0] = 0  # sigmoid 0.5 is not above it: an empty mask
    boxes[1] = (0, 0, 1, 1)
    arguments = (proto, coefficients, boxes, (120, 160))
    expected = masks.PrototypeMasks(*arguments, crop=crop, canvas_hw=canvas_hw).dense()
    monkeypatch.setattr(masks, "_BAND_PIXELS", band)
    np.testing.assert_array_equal(masks.PrototypeMasks(*arguments, crop=crop, canvas_hw=canvas_hw).dense(), expected)
    source = masks.PrototypeMasks(*arguments, crop=crop, canvas_hw=canvas_hw)
    assert source.rle() == DenseMasks(expected).rle()
