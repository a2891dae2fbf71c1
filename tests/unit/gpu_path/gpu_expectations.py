"""What detections of a GPU have to be."""

from __future__ import annotations

import numpy as np

from tests.goldens import SHAPES
from yolact_deploy import Detections
from yolact_deploy.reference.images import read_image

PHOTOS = [SHAPES / "val" / f"val_public_000{i}.jpg" for i in range(4)]  # of three sizes
PIXELS = [read_image(photo) for photo in PHOTOS]


def assert_identical(found: Detections, expected: Detections) -> None:
    """Every value, every pixel, every byte of the run lengths."""
    assert found.image_hw == expected.image_hw
    for name in ("prior_idx", "class_ids", "scores", "boxes_xyxy", "mask_coeff"):
        one, other = getattr(found.raw, name), getattr(expected.raw, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found.boxes_xyxy.dtype == expected.boxes_xyxy.dtype
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert (found.names, found.category_ids) == (expected.names, expected.category_ids)
    assert found.rle() == expected.rle()
    assert found.masks.dtype == bool
    np.testing.assert_array_equal(found.masks, expected.masks)
