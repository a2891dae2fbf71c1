from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.goldens import f32
from yolact_deploy.arrays import BoolArray, FloatArray, sigmoid
from yolact_deploy.reference.detections import RawDetections
from yolact_deploy.reference.masks import PrototypeMasks
from yolact_deploy.reference.postprocess import assemble_masks, pixel_boxes


def whole_plane_masks(
    proto: FloatArray, coeff: FloatArray, boxes: FloatArray, image_hw: tuple[int, int], crop: bool
) -> BoolArray:
    """The original's way, on whole planes: multiply, squash, crop, upsample (torch's fused arithmetic in double), cut."""
    height, width = proto.shape[:2]
    masks = []
    for coefficients, box in zip(coeff, boxes, strict=True):
        soft = sigmoid(proto @ coefficients)
        if crop:
            x1, x2 = sorted((box[0] * np.float32(width), box[2] * np.float32(width)))
            y1, y2 = sorted((box[1] * np.float32(height), box[3] * np.float32(height)))
            column, row = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
            one = np.float32(1)
            soft = soft * ((column >= max(x1 - one, 0)) & (column < min(x2 + one, width)))
            soft = soft * ((row >= max(y1 - one, 0)) & (row < min(y2 + one, height)))
        wide = _stretch(soft.T, image_hw[1]).T
        masks.append(_stretch(wide, image_hw[0]) > np.float32(0.5))
    return np.array(masks)


def _stretch(values: FloatArray, size: int) -> FloatArray:
    """Axis 0 to `size`; the product of two float32 is exact in double, so that one rounding remains, as in an FMA."""
    scale = float(np.float32(len(values)) / np.float32(size))
    source = np.maximum((scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    low = np.minimum(source.astype(int), len(values) - 1)
    high = np.minimum(low + 1, len(values) - 1)
    weight = (source - low.astype(np.float32))[:, None]
    far = values[high] * weight
    return f32(values[low].astype(np.float64) * (np.float32(1) - weight) + far)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    proto_hw=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    image_hw=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    crop=st.booleans(),
)
def test_masks_by_box_are_the_masks_by_whole_planes(
    seed: int, proto_hw: tuple[int, int], image_hw: tuple[int, int], crop: bool
) -> None:
    rng = np.random.default_rng(seed)
    proto = np.maximum(rng.standard_normal((*proto_hw, 3)) * 3, 0).astype(np.float32)
    coeff = np.tanh(rng.standard_normal((4, 3))).astype(np.float32)
    boxes = (rng.random((4, 4)) * 1.6 - 0.3).astype(np.float32)  # corners in any order, partly or wholly outside
    found = PrototypeMasks(proto, coeff, boxes, image_hw, crop=crop).dense()
    np.testing.assert_array_equal(found, whole_plane_masks(proto, coeff, boxes, image_hw, crop))


@pytest.mark.parametrize("image_hw", [(23, 140), (140, 23), (5, 6)])
def test_masks_are_exact_where_every_pixel_is_within_a_rounding_of_one_half(image_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    proto = (rng.integers(-3, 4, (7, 9, 1)) * 2.0**-22).astype(np.float32)
    arguments = (proto, np.ones((2, 1), np.float32), f32([[0, 0, 1, 1], [0.3, 0.2, 0.7, 0.8]]), image_hw)
    found = PrototypeMasks(*arguments, crop=True).dense()
    assert 0 < np.count_nonzero(found) < found.size
    np.testing.assert_array_equal(found, whole_plane_masks(*arguments, crop=True))


def test_a_soft_mask_of_exactly_one_half_is_background() -> None:
    nothing = PrototypeMasks(
        np.zeros((8, 8, 2), np.float32), np.ones((1, 2), np.float32), _box(0, 0, 1, 1), (31, 17), crop=True
    ).dense()
    assert not nothing.any()


def test_the_crop_reaches_one_cell_beyond_the_box() -> None:
    saturated = np.full((10, 10, 1), 50, np.float32)
    mask = PrototypeMasks(
        saturated, np.ones((1, 1), np.float32), _box(0.4, 0.4, 0.6, 0.6), (10, 10), crop=True
    ).dense()[0]
    assert mask.any(axis=0).nonzero()[0].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("box", [(1.5, 0, 2, 1), (-2, 0, -1.5, 1), (np.nan, 0, 1, 1), (0, 0, np.nan, 1)])
def test_a_box_outside_of_the_image_or_nan_has_an_empty_mask(box: tuple[float, float, float, float]) -> None:
    saturated = np.full((10, 10, 1), 50, np.float32)
    assert not PrototypeMasks(saturated, np.ones((1, 1), np.float32), _box(*box), (20, 20), crop=True).dense().any()


def test_infinite_boxes_cover_the_image() -> None:
    saturated = np.full((10, 10, 1), 50, np.float32)
    assert (
        PrototypeMasks(
            saturated, np.ones((1, 1), np.float32), _box(-np.inf, -np.inf, np.inf, np.inf), (9, 9), crop=True
        )
        .dense()
        .all()
    )


def test_non_finite_prototypes_give_background_and_no_error() -> None:
    proto = np.full((4, 4, 1), np.nan, np.float32)
    assert not PrototypeMasks(proto, np.ones((1, 1), np.float32), _box(0, 0, 1, 1), (8, 8), crop=True).dense().any()


def test_pixel_boxes_order_clamp_and_truncate_as_the_original() -> None:
    boxes = f32([[0.999, 0.5, 0.011, 0.2], [-0.5, -0.5, -0.01, 2], [1.02, 0, 1.5, 1]])
    assert pixel_boxes(boxes, (100, 100)).tolist() == [[1, 20, 99, 50], [0, 0, -1, 100], [102, 0, 100, 100]]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), image_hw=st.tuples(st.integers(1, 40), st.integers(1, 40)), full=st.booleans())
def test_rle_is_byte_for_byte_that_of_pycocotools(seed: int, image_hw: tuple[int, int], full: bool) -> None:
    rng = np.random.default_rng(seed)
    proto = (rng.standard_normal((7, 9, 2)) * 4 + 8 * full).astype(np.float32)
    boxes = f32([[0, 0, 1, 1]] * 3) if full else (rng.random((3, 4)) * 1.4 - 0.2).astype(np.float32)
    raw = RawDetections(
        np.arange(3), np.zeros(3, np.int64), f32([0.9, 0.8, 0.7]), boxes, np.ones((3, 2), np.float32), proto
    )
    detections = assemble_masks(raw, image_hw)
    expected = coco_mask.encode(np.asfortranarray(detections.masks.transpose(1, 2, 0).astype(np.uint8)))
    assert detections.rle() == [{"size": list(image_hw), "counts": e["counts"].decode()} for e in expected]


def _box(x1: float, y1: float, x2: float, y2: float) -> FloatArray:
    return np.array([[x1, y1, x2, y2]], np.float32)
