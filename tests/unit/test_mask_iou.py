"""Mask rescoring: what the network sees, and where its two scores go."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.goldens import f32
from yolact_deploy.arrays import FloatArray
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.masks import prototype_masks
from yolact_deploy.reference.postprocess import MaskIouReference, assemble_masks, rescore_masks


def _raw(scores: list[float], class_ids: list[int]) -> RawDetections:
    """Boxes side by side over a prototype of constant 2 and coefficient 1: soft masks of sigmoid(2) inside their boxes."""
    count = len(scores)
    edges = np.linspace(0, 1, count + 1)
    boxes = np.stack([edges[:-1], np.zeros(count), edges[1:], np.ones(count)], axis=1)
    return RawDetections(
        prior_idx=np.arange(count),
        class_ids=np.array(class_ids),
        scores=f32(scores),
        boxes_xyxy=f32(boxes),
        mask_coeff=np.ones((count, 1), np.float32),
        proto=np.full((8, 8, 1), 2, np.float32),
    )


def _says(rows: list[list[float]]) -> FloatArray:
    return f32(rows)


def test_the_network_sees_soft_masks_cropped_as_the_detections_are() -> None:
    raw = _raw([0.9, 0.8], [0, 1])
    soft = 1 / (1 + np.exp(-2.0))
    seen: list[FloatArray] = []

    def model(masks: FloatArray) -> FloatArray:
        seen.append(masks)
        return np.ones((2, 2), np.float32)

    rescore_masks(assemble_masks(raw, (16, 16)), model)
    rescore_masks(assemble_masks(raw, (16, 16), crop=False), model)
    cropped, whole = seen
    np.testing.assert_allclose(whole, np.full((2, 8, 8), soft), rtol=1e-6)
    np.testing.assert_allclose(cropped[0, :, :5], soft, rtol=1e-6)  # half of the width, and one cell of padding
    assert (cropped[0, :, 5:] == 0).all()
    np.testing.assert_array_equal(cropped, prototype_masks(raw.proto, raw.mask_coeff, raw.boxes_xyxy, crop=True))


def test_masks_are_scored_for_the_class_of_their_detection_and_not_clamped() -> None:
    found = assemble_masks(_raw([0.8, 0.5], [2, 0]), (16, 16))
    rescored = rescore_masks(found, lambda _masks: _says([[0.1, 0.2, 0.25], [1.5, 0.3, 0.4]]))
    np.testing.assert_array_equal(rescored.scores, f32([0.8, 0.5]))
    np.testing.assert_array_equal(rescored.mask_scores, f32([0.8, 0.5]) * f32([0.25, 1.5]))
    np.testing.assert_array_equal(found.mask_scores, found.scores)


def test_the_score_threshold_is_on_the_box_score_before_masks_are_judged() -> None:
    found = assemble_masks(_raw([0.8, 0.5, 0.1], [0, 0, 0]), (16, 16), score_threshold=0.2)
    rescored = rescore_masks(found, lambda masks: np.full((len(masks), 1), 0.1, np.float32))
    assert len(rescored) == 2


def test_nothing_detected_is_not_given_to_the_network() -> None:
    def model(_masks: FloatArray) -> FloatArray:
        raise AssertionError("called without masks")

    rescored = rescore_masks(assemble_masks(_raw([], []), (16, 16)), model)
    assert rescored.mask_scores.shape == (0,)
    assert rescored.to_coco(1) == []
    assert len(rescored.by_mask_score()) == 0


@pytest.fixture
def rescored() -> Detections:
    found = dataclasses.replace(assemble_masks(_raw([0.9, 0.8, 0.7], [0, 1, 2]), (16, 16)), category_ids=(10, 20, 30))
    return rescore_masks(found, lambda _masks: _says([[0.5, 0, 0], [0, 1, 0], [0, 0, 1]]))


def test_ranked_by_mask_score_everything_moves_along_and_one_score_is_left(rescored: Detections) -> None:
    ranked = rescored.by_mask_score()
    np.testing.assert_array_equal(ranked.scores, f32([0.8, 0.7, 0.9 * 0.5]))
    np.testing.assert_array_equal(ranked.class_ids, [1, 2, 0])
    np.testing.assert_array_equal(ranked.boxes_xyxy, rescored.boxes_xyxy[[1, 2, 0]])
    np.testing.assert_array_equal(ranked.masks, rescored.masks[[1, 2, 0]])
    np.testing.assert_array_equal(ranked.mask_scores, ranked.scores)
    assert ranked.by_mask_score() is ranked


def test_rows_keep_their_mask_scores(rescored: Detections) -> None:
    np.testing.assert_array_equal(rescored.take(np.array([2, 0])).mask_scores, rescored.mask_scores[[2, 0]])
    np.testing.assert_array_equal(rescored.top(1).mask_scores, rescored.mask_scores[:1])


def test_coco_entries_have_both_scores_only_where_masks_are_rescored(rescored: Detections) -> None:
    entries = rescored.to_coco(7)
    assert [(e["score"], e["mask_score"]) for e in entries] == list(
        zip(rescored.scores.tolist(), rescored.mask_scores.tolist(), strict=True)
    )
    assert all("mask_score" not in entry for entry in rescored.by_mask_score().to_coco(7))


def test_box_ap_ranks_by_the_box_score_and_mask_ap_by_the_mask_score() -> None:
    """Two detections of the same class, of which one is right: whichever ranks first decides the AP."""
    from pycocotools.coco import COCO

    found = dataclasses.replace(assemble_masks(_raw([0.9, 0.8], [0, 0]), (16, 16)), category_ids=(1,))
    entries = rescore_masks(found, lambda _masks: _says([[0.1], [1.0]])).to_coco(1)
    truth = entries[1]  # the lower box score, the higher mask score
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "width": 16, "height": 16}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**truth, "id": 1, "iscrowd": 0, "area": 128}],
    }
    coco.createIndex()
    assert coco_ap(coco, entries, "bbox", [1])["AP50"] == pytest.approx(0.5)
    assert coco_ap(coco, entries, "segm", [1])["AP50"] == pytest.approx(1)


def test_the_reference_network_by_hand() -> None:
    """One 3x3 of ones with stride 2 on 5x5: four sums of 9; then a 1x1 to two classes, ReLU, and the largest of four."""
    masks = np.arange(25, dtype=np.float32).reshape(1, 5, 5) / np.float32(100)
    sums = [masks[0, y : y + 3, x : x + 3].sum() for y in (0, 2) for x in (0, 2)]
    first = (np.ones((1, 1, 3, 3), np.float32), f32([0.5]))
    last = (f32([2, -1]).reshape(2, 1, 1, 1), f32([1, 0]))
    judged = MaskIouReference([first, last])(f32(masks))
    np.testing.assert_allclose(judged, [[2 * (max(sums) + 0.5) + 1, 0]], rtol=1e-6)
