from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.goldens import f32
from yolact_deploy.arrays import AnyArray, FloatArray
from yolact_deploy.reference import nms
from yolact_deploy.reference.nms import cross_class_fast_nms, fast_nms, traditional_nms
from yolact_deploy.reference.postprocess import decode, detect

HALF_OVERLAP = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1]], np.float32)  # IoU exactly 0.5


def literal_fast_nms(
    boxes: FloatArray, scores: FloatArray, threshold: float, top_k: int, max_detections: int
) -> list[tuple[int, int]]:
    """FastNMS class by class as the paper tells it: [(class, candidate)], best first."""
    kept: list[tuple[float, int, int]] = []
    for class_id in range(scores.shape[1]):
        order = np.argsort(-scores[:, class_id], kind="stable")[:top_k]
        for position, i in enumerate(order):
            overlaps = [literal_iou(boxes[i], boxes[j]) for j in order[:position]]
            if all(overlap <= threshold for overlap in overlaps):
                kept.append((-float(scores[i, class_id]), class_id, int(i)))
    kept.sort()
    return [(class_id, i) for _, class_id, i in kept[:max_detections]]


def literal_iou(a: FloatArray, b: FloatArray) -> AnyArray:
    with np.errstate(all="ignore"):
        width = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), np.float32(0))
        height = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), np.float32(0))
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        overlap: AnyArray = width * height / (areas - width * height)
        return overlap


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    candidates=st.integers(1, 40),
    classes=st.integers(1, 6),
    top_k=st.integers(1, 45),
    max_detections=st.integers(1, 60),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_fast_nms_is_the_papers_whatever_the_sizes_and_ties(
    seed: int, candidates: int, classes: int, top_k: int, max_detections: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (candidates, 2))
    boxes = f32(np.concatenate([corners, corners + rng.integers(0, 6, (candidates, 2))], axis=1) / 16)
    scores = f32(rng.integers(0, levels, (candidates, classes)) / levels)
    kept = fast_nms(boxes, scores, iou_threshold=0.5, top_k=top_k, max_detections=max_detections)
    found = list(zip(kept.class_ids.tolist(), kept.candidate.tolist(), strict=True))
    assert found == literal_fast_nms(boxes, scores, 0.5, top_k, max_detections)
    np.testing.assert_array_equal(kept.scores, scores[kept.candidate, kept.class_ids])


def test_iou_exactly_at_the_threshold_stays() -> None:
    kept = fast_nms(HALF_OVERLAP, f32([[0.9], [0.8]]), iou_threshold=0.5, top_k=200, max_detections=100)
    assert kept.candidate.tolist() == [0, 1]


def test_a_suppressed_box_still_suppresses() -> None:
    chain = np.array([[0, 0, 1, 0.5], [0, 0, 1, 0.9], [0, 0.3, 1, 0.9]], np.float32)  # 0 hits 1, 1 hits 2, 0 spares 2
    kept = fast_nms(chain, f32([[0.9], [0.8], [0.7]]), iou_threshold=0.5, top_k=200, max_detections=100)
    assert kept.candidate.tolist() == [0]


def test_traditional_nms_spares_what_only_a_suppressed_box_overlaps() -> None:
    chain = np.array([[0, 0, 100, 50], [0, 0, 100, 90], [0, 30, 100, 90]], np.float32)
    scores = f32([[0.9], [0.8], [0.7]])
    kept = traditional_nms(chain, scores, conf_threshold=0.05, iou_threshold=0.5, max_detections=100)
    assert kept.candidate.tolist() == [0, 2]


def test_two_empty_boxes_have_nan_iou_and_the_lower_falls() -> None:
    empty = np.zeros((2, 4), np.float32)
    kept = fast_nms(empty, f32([[0.9], [0.8]]), iou_threshold=0.5, top_k=200, max_detections=100)
    assert kept.candidate.tolist() == [0]


def test_a_nan_box_at_the_top_wipes_out_its_class_only() -> None:
    boxes = np.array([[np.nan] * 4, [0, 0, 1, 1]], np.float32)
    kept = fast_nms(boxes, f32([[0.9, 0.1], [0.8, 0.7]]), iou_threshold=0.5, top_k=200, max_detections=100)
    assert list(zip(kept.class_ids.tolist(), kept.candidate.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_equal_scores_go_to_the_lower_class_then_the_lower_candidate() -> None:
    apart = np.array([[0, 0, 1, 1], [2, 2, 3, 3]], np.float32)
    kept = fast_nms(apart, np.full((2, 2), 0.5, np.float32), iou_threshold=0.5, top_k=200, max_detections=3)
    assert list(zip(kept.class_ids.tolist(), kept.candidate.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]


def test_pairs_that_cannot_matter_are_not_compared_even_where_all_of_them_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counting(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
        compared.append(len(a_xyxy))
        return np.zeros(len(a_xyxy), np.float32)

    monkeypatch.setattr(nms, "_pairwise_iou", counting)
    sure = np.zeros((100, 80), np.float32)
    sure[np.arange(100), np.arange(100) % 80] = np.linspace(0.9, 0.45, 100)
    kept = fast_nms(np.zeros((100, 4), np.float32), sure, iou_threshold=0.5, top_k=200, max_detections=100)
    assert kept.candidate.tolist() == list(range(100))
    assert sum(compared) < 80 * 100 * 99 / 2 / 10  # of all pairs of boxes in each class


def test_cross_class_suppresses_across_classes_and_may_exceed_max_detections() -> None:
    scores = f32([[0.9, 0.0], [0.0, 0.8]])
    same = np.array([[0, 0, 1, 1]] * 2, np.float32)
    assert cross_class_fast_nms(same, scores, iou_threshold=0.5, top_k=200).candidate.tolist() == [0]
    apart = np.stack([np.arange(150), np.zeros(150), np.arange(150) + 1, np.ones(150)], axis=1).astype(np.float32)
    assert (
        len(cross_class_fast_nms(apart, np.full((150, 2), 0.5, np.float32), iou_threshold=0.5, top_k=200).candidate)
        == 150
    )


def test_a_score_exactly_at_the_confidence_threshold_is_dropped() -> None:
    at, above = np.float32(0.05), np.nextafter(np.float32(0.05), np.float32(1))
    raw = detect(**_heads([[0, at], [0, above]]))[0]
    assert raw.prior_idx.tolist() == [1]


def test_a_prior_with_a_nan_score_is_dropped_even_if_another_class_is_sure() -> None:
    raw = detect(**_heads([[0, np.nan, 0.9], [0, 0.0, 0.8]]))[0]
    assert set(raw.prior_idx.tolist()) == {1}


@pytest.mark.parametrize("nms", ["fast", "cross_class", "traditional"])
def test_nothing_above_the_threshold_gives_no_detections(nms: str) -> None:
    raw = detect(**_heads([[1, 0.01], [1, 0.02]]), nms=nms)[0]  # type: ignore[arg-type]
    assert len(raw) == 0
    assert raw.mask_coeff.shape == (0, 1)


def test_decode_overflows_to_inf_without_a_warning() -> None:
    boxes = decode(f32([[0, 0, 600, 600]]), f32([[0.5, 0.5, 0.1, 0.1]]))
    assert np.isinf(boxes[0, :2]).all()


def test_disagreeing_shapes_are_named() -> None:
    heads = _heads([[0, 0.9]])
    heads["loc"] = heads["loc"][:, :, :3]
    with pytest.raises(ValueError, match=r"loc \(1, 1, 3\)"):
        detect(**heads)
    with pytest.raises(ValueError, match="'fastest'"):
        detect(**_heads([[0, 0.9]]), nms="fastest")  # type: ignore[arg-type]


def _heads(conf: list[list[float]]) -> dict[str, Any]:
    count = len(conf)
    priors = np.array([[(i + 0.5) / count, 0.5, 1 / count, 1] for i in range(count)], np.float32)
    return {
        "loc": np.zeros((1, count, 4), np.float32),
        "conf": np.array([conf], np.float32),
        "mask_coeff": np.ones((1, count, 1), np.float32),
        "proto": np.ones((1, 4, 4, 1), np.float32),
        "priors": priors,
    }
