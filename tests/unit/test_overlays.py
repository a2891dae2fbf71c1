"""Drawn detections: what lies on top, and what stays inside of the image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.goldens import Array
from yolact_deploy.errors import ImageError, OutputError
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.drawing import colour_of, place_labels
from yolact_deploy.reference.images import read_image
from yolact_deploy.reference.postprocess import assemble_masks


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


def _draw(image: Any, detections: Detections) -> Any:
    return detections.plot(image)


def _gray(height: int, width: int) -> Any:
    return np.full((height, width, 3), 128, np.uint8)


def _changed(image: Array) -> Array:
    return np.asarray((image != 128).any(axis=2))


def test_the_best_detection_lies_on_top() -> None:
    boxes = [[0.25, 0.25, 0.75, 0.75], [0.1, 0.1, 0.9, 0.9]]
    both = _draw(_gray(400, 400), _detections(boxes, [0, 1], (400, 400)))
    best = _draw(_gray(400, 400), _detections(boxes[:1], [0], (400, 400)))
    centre = (slice(150, 250), slice(150, 250))
    assert (both[centre] == best[centre]).all()
    assert (both[60, 200] != best[60, 200]).any()


@pytest.mark.parametrize("size", [240, 2000])
def test_a_label_at_the_top_border_is_as_whole_as_any_other(size: int) -> None:
    def label_pixels(top: float) -> int:
        drawn = _draw(_gray(size, size), _detections([[0.3, top, 0.9, top + 0.3]], [0], (size, size)))
        return int(np.count_nonzero((drawn < 40).all(axis=2)))  # of its black text

    assert label_pixels(0.5) > 20
    assert label_pixels(0) == label_pixels(0.5)


def test_nothing_found_leaves_a_copy_of_the_image() -> None:
    image = _gray(50, 60)
    drawn = _draw(image, _detections([], [], (50, 60)))
    assert (drawn == image).all()
    assert drawn is not image


def test_only_what_is_drawn_in_place_changes_the_image() -> None:
    detections = _detections([[0.1, 0.1, 0.6, 0.6], [0.3, 0.3, 0.9, 0.9]], [0, 1], (300, 200))
    image = _gray(300, 200)
    copied = detections.plot(image)
    assert not _changed(image).any()
    assert np.shares_memory(detections.plot(image, in_place=True), image)
    np.testing.assert_array_equal(image, copied)
    turned = np.full((200, 300, 3), 128, np.uint8).transpose(1, 0, 2)  # which OpenCV can't draw on
    np.testing.assert_array_equal(detections.plot(turned, in_place=True), copied)


def test_more_masks_than_a_byte_counts_keep_their_colours() -> None:
    boxes = [[0.1, 0.1, 0.4, 0.4], *[[0.5, 0.5, 0.9, 0.9]] * 299]
    many = _draw(_gray(200, 200), _detections(boxes, [3] * 300, (200, 200)))
    one = _draw(_gray(200, 200), _detections(boxes[:1], [3], (200, 200)))
    inside = slice(45, 70)
    np.testing.assert_array_equal(many[inside, inside], one[inside, inside])


def test_boxes_without_area_are_not_drawn() -> None:
    drawn = _draw(_gray(50, 60), _detections([[0.5, 0.2, 0.5, 0.9]], [0], (50, 60)))
    assert not _changed(drawn).any()


def test_drawing_never_holds_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact_deploy.reference.masks.PrototypeMasks.dense", None)
    assert _changed(_draw(_gray(100, 100), _detections([[0.2, 0.2, 0.8, 0.8]] * 3, [0, 1, 2], (100, 100)))).any()


def _covered(place: Array, size_wh: Array, box: list[float]) -> float:
    low = np.maximum(place, box[:2])
    high = np.minimum(place + size_wh, box[2:])
    return float(np.clip(high - low, 0, None).prod())


def test_labels_keep_off_small_objects_and_each_other() -> None:
    small = [100.0, 100.0, 112.0, 110.0]
    boxes = np.array([[100, 110, 300, 300], small, [90, 88, 110, 100], [100, 112, 299, 298]], float)
    sizes = np.full((len(boxes), 2), (60, 14))
    places = place_labels(boxes, sizes, (400, 400))
    for place, size in zip(places, sizes, strict=True):
        assert _covered(place, size, small) == 0
    for a in range(len(places)):
        for b in range(a):
            assert _covered(places[a], sizes[a], [*places[b], *(places[b] + sizes[b])]) == 0


@pytest.mark.parametrize("corner", [(0, 0), (380, 0), (0, 390), (380, 390)])
def test_a_label_stays_in_the_image_and_at_its_box(corner: tuple[int, int]) -> None:
    box = np.array([[*corner, corner[0] + 20, corner[1] + 10]], float)
    (place,) = place_labels(box, np.array([[90, 16]]), (400, 400))
    assert (place >= 0).all()
    assert place[0] + 90 <= 400
    assert place[1] + 16 <= 400
    assert box[0, 0] - 90 <= place[0] <= box[0, 2]
    assert abs(place[1] - box[0, 1]) <= 26


def test_hues_of_the_first_classes_differ() -> None:
    colours = np.array([colour_of(class_id) for class_id in range(12)], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 40


def test_masks_of_one_class_are_told_apart_by_their_contours() -> None:
    two = _detections([[0.1, 0.1, 0.5, 0.9], [0.5, 0.1, 0.9, 0.9]], [3, 3], (200, 200))
    drawn = _draw(_gray(200, 200), two)
    inside, border = drawn[150, 60].astype(int), drawn[150, 98:103].astype(int)
    assert (np.abs(border - inside).sum(axis=1) > 60).any()


def test_detections_are_saved_on_the_image_they_were_found_in(tmp_path: Path) -> None:
    found = _detections([[0.2, 0.2, 0.8, 0.8]], [0], (100, 120))
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), _gray(100, 120))
    found.save(tmp_path / "drawn.png", photo)
    np.testing.assert_array_equal(read_image(tmp_path / "drawn.png"), found.plot(_gray(100, 120)))
    with pytest.raises(ImageError, match="of an image of 120x100, this one has 100x120"):
        found.plot(_gray(120, 100))
    with pytest.raises(OutputError, match="could not encode"):
        found.save(tmp_path / "drawn.docx", photo)


def _crowd(count: int, image_hw: tuple[int, int]) -> Array:
    generator = np.random.default_rng(2)
    centres, sizes = generator.uniform(0, 1, (count, 2)), generator.uniform(0.08, 0.3, (count, 2))
    relative = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).clip(0, 1)
    return np.asarray(relative * [*image_hw[::-1], *image_hw[::-1]])


def test_in_a_crowd_no_label_is_hidden_by_others() -> None:
    boxes = _crowd(60, (480, 640)).astype(int)
    size = np.array([80, 24])
    places = place_labels(boxes, np.tile(size, (60, 1)), (480, 640))
    for row, place in enumerate(places):
        seen = np.ones((24, 80), bool)
        for x, y in places[:row] - place:
            seen[max(0, y) : max(0, y + 24), max(0, x) : max(0, x + 80)] = False
        assert seen.mean() > 0.5
        low, high = np.maximum(place, boxes[row, :2]), np.minimum(place + size, boxes[row, 2:])
        assert (low <= high).all()  # it touches its box


def test_labels_leave_most_of_a_small_image_to_be_seen() -> None:
    boxes = [[0.05, 0.1, 0.3, 0.5], [0.5, 0.1, 0.9, 0.4], [0.1, 0.6, 0.4, 0.9], [0.6, 0.6, 0.9, 0.95]]
    found = dataclasses.replace(_detections(boxes, [0, 1, 2, 3], (96, 128)), names=("traffic light",) * 4)
    drawn = _draw(_gray(96, 128), found)
    labels = sum(int((drawn == colour_of(class_id)).all(axis=2).sum()) for class_id in range(4))
    assert 0 < labels < 0.35 * 96 * 128


def test_few_labels_in_a_large_image_are_as_large_as_ever() -> None:
    one = _draw(_gray(480, 640), _detections([[0.3, 0.3, 0.6, 0.6]], [0], (480, 640)))
    rows = (one == colour_of(0)).all(axis=2).sum(axis=1)
    assert np.count_nonzero(rows > 20) >= 18  # as high as the label
