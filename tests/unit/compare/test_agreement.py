"""Matching of detections, by small boxes that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.comparison.report import Agreement
from exporters.matching import MAX_SIDE_PX, box_ious, capped_size, mask_ious, match_detections
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import assemble_masks

Box = tuple[float, float, float, float]

LEFT: Box = (0.0, 0.0, 0.5, 1.0)
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)  # IoU with LEFT: 0.5
THIRD: Box = (0.0, 0.0, 1 / 3, 1.0)


def found(*objects: tuple[int, float, Box], mask: float = 10.0) -> Detections:
    """(class, score, box), best first; each mask fills its box, or is empty with a negative `mask`."""
    count = len(objects)
    raw = RawDetections(
        prior_idx=np.arange(count),
        class_ids=np.array([entry[0] for entry in objects], np.int64),
        scores=np.array([entry[1] for entry in objects], np.float32),
        boxes_xyxy=np.array([entry[2] for entry in objects], np.float32).reshape(-1, 4),
        mask_coeff=np.full((count, 1), mask, np.float32),
        proto=np.ones((16, 16, 1), np.float32),
    )
    return assemble_masks(raw, (32, 32))


def test_box_iou_exactly_at_the_threshold_is_matched() -> None:
    matches = match_detections(found((0, 0.9, LEFT)), found((0, 0.8, WHOLE)))
    assert (matches.rows_a.tolist(), matches.rows_b.tolist()) == ([0], [0])
    assert matches.box_ious.tolist() == [0.5]


def test_a_box_below_the_threshold_is_not_matched() -> None:
    matches = match_detections(found((0, 0.9, THIRD)), found((0, 0.8, WHOLE)))
    assert (matches.only_a.tolist(), matches.only_b.tolist()) == ([0], [0])


def test_another_class_is_not_matched() -> None:
    matches = match_detections(found((0, 0.9, WHOLE)), found((1, 0.9, WHOLE)))
    assert len(matches.rows_a) == 0


def test_the_best_of_a_takes_its_partner_first() -> None:
    a = found((0, 0.9, LEFT), (0, 0.8, WHOLE))
    matches = match_detections(a, found((0, 0.7, WHOLE)))
    assert (matches.rows_a.tolist(), matches.only_a.tolist()) == ([0], [1])


def test_of_several_partners_the_one_that_overlaps_most_is_taken() -> None:
    matches = match_detections(found((0, 0.9, WHOLE)), found((0, 0.9, LEFT), (0, 0.1, WHOLE)))
    assert (matches.rows_b.tolist(), matches.only_b.tolist()) == ([1], [0])


@pytest.mark.parametrize(("first", "second"), [((), ((0, 0.9, WHOLE),)), (((0, 0.9, WHOLE),), ()), ((), ())])
def test_nothing_found_on_a_side(
    first: tuple[tuple[int, float, Box], ...], second: tuple[tuple[int, float, Box], ...]
) -> None:
    matches = match_detections(found(*first), found(*second))
    assert (len(matches.rows_a), len(matches.only_a), len(matches.only_b)) == (0, len(first), len(second))


def test_boxes_without_area_or_with_nan_overlap_nothing() -> None:
    boxes = np.array([[0, 0, 0, 1], [1, 1, 0, 0], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]], np.float32)
    assert not box_ious(boxes, np.concatenate([boxes, np.array([WHOLE], np.float32)])).any()


def test_empty_masks_are_equal() -> None:
    empty = found((0, 0.9, WHOLE), mask=-10.0)
    assert mask_ious(empty, empty).tolist() == [1.0]
    assert mask_ious(empty, found((0, 0.9, WHOLE))).tolist() == [0.0]


def test_masks_of_large_images_are_compared_smaller() -> None:
    assert capped_size((480, 640, 3)) == (480, 640)
    assert capped_size((4000, 2000)) == (MAX_SIDE_PX, MAX_SIDE_PX // 2)
    assert capped_size((1, 5000)) == (1, MAX_SIDE_PX)


def test_quality_is_the_mask_iou_of_matches_shared_out_over_all() -> None:
    agreement = Agreement(4, 3, matched=2, mask_iou_sum=1.8, min_mask_iou=0.8, max_score_difference=0.1)
    assert (agreement.only_a, agreement.only_b) == (2, 1)
    assert agreement.mean_mask_iou == pytest.approx(0.9)
    assert agreement.quality == pytest.approx(1.8 / 3.5)


def test_quality_of_two_that_found_nothing_is_full() -> None:
    empty = Agreement(0, 0, 0, 0.0, None, None)
    assert (empty.quality, empty.mean_mask_iou) == (1.0, None)
    assert Agreement.total([]) == empty
