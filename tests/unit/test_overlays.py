"""Drawn detections: what lies on top, and what stays inside of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.goldens import Array
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import assemble_masks
from yolact_deploy.reports.overlays import draw

pytest.importorskip("supervision", reason="needs supervision to draw")


def _detections(boxes: list[list[float]], class_ids: list[int], image_hw: tuple[int, int]) -> Detections:
    """Boxes that their masks fill, best first."""
    count = len(boxes)
    raw = RawDetections(
        np.arange(count),
        np.array(class_ids, np.int64),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.array(boxes, np.float32).reshape(count, 4),
        np.full((count, 1), 9, np.float32),
        np.ones((16, 16, 1), np.float32),
    )
    return assemble_masks(raw, image_hw)


def _gray(height: int, width: int) -> Any:
    return np.full((height, width, 3), 128, np.uint8)


def _changed(image: Array) -> Array:
    return np.asarray((image != 128).any(axis=2))


def test_the_best_detection_lies_on_top() -> None:
    boxes = [[0.25, 0.25, 0.75, 0.75], [0.1, 0.1, 0.9, 0.9]]
    both = draw(_gray(400, 400), _detections(boxes, [0, 1], (400, 400)))
    best = draw(_gray(400, 400), _detections(boxes[:1], [0], (400, 400)))
    centre = (slice(150, 250), slice(150, 250))
    assert (both[centre] == best[centre]).all()
    assert (both[60, 200] != best[60, 200]).any()


@pytest.mark.parametrize("size", [240, 2000])
def test_a_label_at_the_top_border_is_as_whole_as_any_other(size: int) -> None:
    def label_pixels(top: float) -> int:
        drawn = draw(_gray(size, size), _detections([[0.3, top, 0.9, top + 0.3]], [0], (size, size)))
        return int(np.count_nonzero((drawn < 40).all(axis=2)))  # of its black text

    assert label_pixels(0.5) > 20
    assert label_pixels(0) == label_pixels(0.5)


def test_nothing_found_leaves_a_copy_of_the_image() -> None:
    image = _gray(50, 60)
    drawn = draw(image, _detections([], [], (50, 60)))
    assert (drawn == image).all()
    assert drawn is not image


def test_boxes_without_area_are_not_drawn() -> None:
    drawn = draw(_gray(50, 60), _detections([[0.5, 0.2, 0.5, 0.9]], [0], (50, 60)))
    assert not _changed(drawn).any()


def test_drawing_never_holds_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact_deploy.reference.masks.assemble", None)
    assert _changed(draw(_gray(100, 100), _detections([[0.2, 0.2, 0.8, 0.8]] * 3, [0, 1, 2], (100, 100)))).any()
