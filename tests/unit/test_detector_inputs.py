"""What a Detector takes as images and options, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilModule

from tests.goldens import SHAPES
from yolact_deploy import Detections, Detector
from yolact_deploy.errors import DeviceError, ImageError
from yolact_deploy.reference.images import read_image
from yolact_deploy.runtime.detector import ImageInput

PHOTO = SHAPES / "val" / "val_public_0000.jpg"


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


@pytest.fixture(scope="module")
def pixels() -> Any:
    return read_image(PHOTO)


@pytest.fixture(scope="module")
def expected(detector: Detector, pixels: Any) -> Detections:
    found: Detections = detector(pixels)
    assert len(found) > 3
    return found


def assert_equal(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.raw.prior_idx, expected.raw.prior_idx)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_a_pil_image_is_rgb_by_itself(detector: Detector, pixels: Any, expected: Detections) -> None:
    image = PilModule.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    assert_equal(detector(image), expected)
    images: list[ImageInput] = [image, image]
    assert_equal(detector(images)[1], expected)
    assert_equal(next(detector.stream([image])), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_a_pil_image_of_any_mode_is_taken(detector: Detector, mode: str) -> None:
    image = PilModule.new(mode, (70, 50))
    assert detector(image).image_hw == (50, 70)


def test_16_bits_of_pil_are_what_the_same_file_is(detector: Detector, pixels: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257)
    with PilModule.open(path) as image:
        assert image.mode == "I;16"
        assert_equal(detector(image), detector(path))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pil_modes_without_a_range_are_refused(detector: Detector, mode: str) -> None:
    with pytest.raises(ImageError, match=f'mode "{mode}" has no range.*0..255, in mode "L"'):
        detector(PilModule.new(mode, (70, 50)))


def test_a_truncated_file_opened_by_pil_is_refused(detector: Detector, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(PHOTO.read_bytes()[:4000])
    with PilModule.open(cut) as image, pytest.raises(ImageError, match=r"can't decode the PIL image .*cut\.jpg"):
        detector(image)


def test_a_tensor_on_the_cpu_is_taken(detector: Detector, pixels: Any, expected: Detections) -> None:
    assert_equal(detector(torch.from_numpy(pixels.copy())), expected)
    rgb = torch.from_numpy(pixels[:, :, ::-1].copy())
    assert_equal(detector(rgb, channel_order="rgb"), expected)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_a_batch_in_one_array_gives_a_list(detector: Detector, pixels: Any, expected: Detections, library: Any) -> None:
    found = detector(library(np.stack([pixels, pixels[:, ::-1]])))
    assert isinstance(found, list)
    assert len(found) == 2
    assert_equal(found[0], expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 40, 3), np.float32), "found float32. Give values 0..255: they are normalised here"),
        (torch.zeros((40, 40, 3)), "found float32. Give values 0..255: they are normalised here"),
        (torch.zeros((3, 40, 50), dtype=torch.uint8), "channels last: image.permute"),
        (torch.zeros((40, 40, 3), dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros((40, 40, 3), requires_grad=True), "image"),
        (np.zeros((2, 40, 40, 3), np.float32), "found float32"),
        (np.zeros((1, 2, 40, 40, 3), np.uint8), r"\[H, W, 3\]"),
        (7, "found int"),
        (None, "cv2.imread"),
    ],
    ids=str,
)
def test_other_images_are_refused_with_the_reason(detector: Detector, image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message.replace(".", r"\.") if "\\" not in message else message):
        detector(image)


@pytest.mark.parametrize("threshold", [float("nan"), -1, 1.5, "0.5", None, True], ids=repr)
def test_a_threshold_that_is_no_score_is_refused(detector: Detector, pixels: Any, threshold: Any) -> None:
    with pytest.raises(ValueError, match="score_threshold must be a number from 0 to 1"):
        detector(pixels, score_threshold=threshold)
    with pytest.raises(ValueError, match="score_threshold"):
        detector.stream([pixels], score_threshold=threshold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, found 0"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"threads": 0}, "threads"),
        ({"nms": "soft"}, "nms must be one of fast, cross_class, traditional, found 'soft'"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(shapes_onnx: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(shapes_onnx, device="cpu", **options)


@pytest.mark.parametrize("device", [0, None, "cuda:-1", "gpu"], ids=repr)
def test_a_device_that_is_none_is_refused(shapes_onnx: Path, device: Any) -> None:
    with pytest.raises(DeviceError, match='device must be "auto", "cpu" or "cuda:N", found'):
        Detector(shapes_onnx, device=device)
