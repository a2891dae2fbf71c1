"""The original's three ways of non-maximum suppression, in NumPy (layers/functions/detection.py of dbolya/yolact).

All order ties as (score descending, class ascending, candidate ascending); the original leaves their order to torch's sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolact_deploy.arrays import BoolArray, FloatArray, IntArray

_FIRST_SLICE = 4  # (class, candidate) pairs that fast_nms looks at first, as a multiple of max_detections


@dataclass(frozen=True)
class NmsResult:
    """What a suppression left, scores descending."""

    candidate: IntArray  # [n], row of the candidate
    class_ids: IntArray  # [n]
    scores: FloatArray  # [n]


def fast_nms(
    boxes_xyxy: FloatArray,  # [N, 4]
    scores: FloatArray,  # [N, C]
    *,
    iou_threshold: float,
    top_k: int,
    max_detections: int,
) -> NmsResult:
    """Per-class FastNMS (Bolya et al. 2019, section 3.3): a box falls to any higher-scored box among the top_k of its
    class, even to one that falls itself. IoU exactly at the threshold stays, NaN IoU falls. Every candidate competes in
    every class.

    Whether a pair (class, candidate) stays depends on higher scores alone, so pairs are looked at from the top in growing
    slices until max_detections have stayed; the rest can't matter.

    The second box overlaps the first, which has a higher score:

    >>> boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    >>> scores = np.float32([[0.9], [0.8], [0.7]])
    >>> fast_nms(boxes, scores, iou_threshold=0.5, top_k=200, max_detections=100).candidate
    array([0, 2])
    """
    flat = np.ascontiguousarray(scores.T).reshape(-1)  # class-major: a stable sort then breaks ties as documented
    slice_size = _FIRST_SLICE * max_detections
    while True:
        order = _highest(flat, slice_size)
        class_ids, candidate = np.divmod(order, max(1, len(scores)))
        stay = np.flatnonzero(_survivors(boxes_xyxy[candidate], class_ids, iou_threshold, top_k))
        if len(order) == len(flat) or len(stay) >= max_detections:
            stay = stay[:max_detections]
            return NmsResult(candidate[stay], class_ids[stay], flat[order[stay]])
        slice_size *= 4


def cross_class_fast_nms(
    boxes_xyxy: FloatArray,  # [N, 4]
    scores: FloatArray,  # [N, C]
    *,
    iou_threshold: float,
    top_k: int,
) -> NmsResult:
    """FastNMS over each candidate's best class, all classes competing; up to top_k results, as in the original.

    >>> boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    >>> scores = np.float32([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])  # the best class of the second is another one
    >>> cross_class_fast_nms(boxes, scores, iou_threshold=0.5, top_k=200).candidate
    array([0, 2])
    """
    class_ids = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), class_ids]
    order = _descending(best)[:top_k]
    stay = order[_survivors(boxes_xyxy[order], np.zeros_like(order), iou_threshold, top_k)]
    return NmsResult(stay, class_ids[stay], best[stay])


def traditional_nms(
    boxes_xyxy: FloatArray,  # [N, 4], pixels of the network's input
    scores: FloatArray,  # [N, C]
    *,
    conf_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> NmsResult:
    """Greedy per-class NMS over boxes in pixels whose corners are inclusive (+1); IoU at the threshold falls."""
    candidates, classes = [], []
    for class_id in range(scores.shape[1]):
        above = np.flatnonzero(scores[:, class_id] > np.float32(conf_threshold))
        kept = above[_greedy(boxes_xyxy[above], scores[above, class_id], iou_threshold)]
        candidates.append(kept)
        classes.append(np.full(len(kept), class_id))
    candidate, class_ids = np.concatenate(candidates), np.concatenate(classes)
    kept_scores = scores[candidate, class_ids]
    order = _descending(kept_scores)[:max_detections]
    return NmsResult(candidate[order], class_ids[order], kept_scores[order])


def _highest(scores: FloatArray, count: int) -> IntArray:
    """Indices of the first `count` in stable descending order, found without sorting the others: where most scores are equal,
    as zeros are, many tie with the last."""
    if count >= len(scores):
        return _descending(scores)
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > lowest)
    tied = np.flatnonzero(scores == lowest)[: count - len(above)]
    return np.concatenate([above[_descending(scores[above])], tied])


def _descending(scores: FloatArray) -> IntArray:
    return np.argsort(-scores, kind="stable")


def _survivors(
    boxes_xyxy: FloatArray,  # [M, 4], in descending order of score
    class_ids: IntArray,  # [M]
    iou_threshold: float,
    top_k: int,
) -> BoolArray:
    """[M]: among the first top_k of its class and overlapped by none of those before it."""
    by_class = np.argsort(class_ids, kind="stable")
    boxes, grouped = boxes_xyxy[by_class], class_ids[by_class]
    rank = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
    in_reach = np.flatnonzero(rank < top_k)
    boxes, rank = boxes[in_reach], rank[in_reach]

    # every pair (lower, higher) of one class: row i meets the `rank[i]` rows just before it
    lower = np.repeat(np.arange(len(rank)), rank)
    first_pair = np.cumsum(rank) - rank
    higher = lower - rank[lower] + (np.arange(len(lower)) - first_pair[lower])
    overlapped = ~(_pairwise_iou(boxes[lower], boxes[higher]) <= np.float32(iou_threshold))  # so that NaN falls

    alive = np.ones(len(rank), bool)
    alive[lower[overlapped]] = False
    survives = np.zeros(len(class_ids), bool)
    survives[by_class[in_reach[alive]]] = True
    return survives


def _pairwise_iou(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """IoU of row i of [T, 4] with row i of [T, 4]; 0/0 of two empty boxes is NaN, as in the original (box_utils.jaccard)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        overlap_wh = np.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - np.maximum(a_xyxy[:, :2], b_xyxy[:, :2])
        overlap_wh = np.maximum(overlap_wh, np.float32(0))
        intersection = overlap_wh[:, 0] * overlap_wh[:, 1]
        iou: FloatArray = intersection / (_areas(a_xyxy) + _areas(b_xyxy) - intersection)
    return iou


def _areas(boxes_xyxy: FloatArray) -> FloatArray:
    areas: FloatArray = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return areas


def _greedy(boxes: FloatArray, scores: FloatArray, iou_threshold: float) -> IntArray:
    """NmsResult rows, ascending (utils/cython_nms.pyx of the original)."""
    one = np.float32(1)
    with np.errstate(invalid="ignore", over="ignore"):
        areas = (boxes[:, 2] - boxes[:, 0] + one) * (boxes[:, 3] - boxes[:, 1] + one)
        order = _descending(scores)
        alive = np.ones(len(boxes), bool)
        for position, i in enumerate(order):
            if not alive[i]:
                continue
            others = order[position + 1 :]
            width = _smaller(boxes[i, 2], boxes[others, 2]) - _larger(boxes[i, 0], boxes[others, 0]) + one
            height = _smaller(boxes[i, 3], boxes[others, 3]) - _larger(boxes[i, 1], boxes[others, 1]) + one
            intersection = _larger(np.float32(0), width) * _larger(np.float32(0), height)
            alive[others[intersection / (areas[i] + areas[others] - intersection) >= np.float32(iou_threshold)]] = False
    return np.flatnonzero(alive)


def _larger(a: np.float32, b: FloatArray) -> FloatArray:
    """The original's scalar max: with NaN in either, b."""
    return np.where(a >= b, a, b)


def _smaller(a: np.float32, b: FloatArray) -> FloatArray:
    return np.where(a <= b, a, b)
