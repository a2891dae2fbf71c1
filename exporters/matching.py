"""Which detections of two models on one image are the same object, and how alike their masks are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from yolact_deploy.arrays import FloatArray, IntArray
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import detect, make_priors, softmax
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

# COCO's and the field's own bar for "the same object".
MIN_BOX_IOU = 0.5
# Masks are compared at the image's size, but not larger than this: 100 masks of a 20-megapixel image are 2 GB.
MAX_SIDE_PX = 640


@dataclass(frozen=True)
class Matches:
    """Pairs of the same object in two lists of detections; every row is in at most one pair."""

    rows_a: IntArray  # [m], in the order of A's scores
    rows_b: IntArray  # [m]
    box_ious: FloatArray  # [m]
    only_a: IntArray  # rows without a partner, best first
    only_b: IntArray


def detect_heads(heads: HeadTensors, spec: ModelSpec) -> RawDetections:
    """Detections of the first image of a batch by the spec's own thresholds and NMS."""
    scored = heads if spec.conf_activation == "softmax" else heads._replace(conf=softmax(heads.conf))
    rules = dataclasses.asdict(spec.postprocess)
    return detect(*scored, make_priors(spec), input_size=spec.input_size, **rules)[0]


def paired_rows(a: RawDetections, b: RawDetections) -> tuple[IntArray, IntArray]:  # rows of a, of b; in the order of a
    """Detections of the same class from the very same prior: of two networks that compute the same."""
    place = {key: row for row, key in enumerate(detection_keys(b))}
    pairs = [(row, place[key]) for row, key in enumerate(detection_keys(a)) if key in place]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def detection_keys(raw: RawDetections) -> list[tuple[int, int]]:
    """(class, prior) of each."""
    return list(zip(raw.class_ids.tolist(), raw.prior_idx.tolist(), strict=True))


def match_detections(a: Detections, b: Detections, *, min_box_iou: float = MIN_BOX_IOU) -> Matches:
    """Each of A's detections, best first, takes the free one of B of its class whose box overlaps most.

    Boxes are the exact relative ones; a pair needs an IoU of at least `min_box_iou`.
    """
    ious = box_ious(a.boxes_relative, b.boxes_relative)
    ious[a.class_ids[:, None] != b.class_ids[None, :]] = -1
    rows_a, rows_b, kept = [], [], []
    for row in range(len(a) if len(b) else 0):
        partner = int(ious[row].argmax())
        if ious[row, partner] >= min_box_iou:
            rows_a.append(row)
            rows_b.append(partner)
            kept.append(ious[row, partner])
            ious[:, partner] = -1
    return Matches(
        rows_a=np.array(rows_a, np.int64),
        rows_b=np.array(rows_b, np.int64),
        box_ious=np.array(kept, np.float32),
        only_a=np.setdiff1d(np.arange(len(a)), rows_a).astype(np.int64),
        only_b=np.setdiff1d(np.arange(len(b)), rows_b).astype(np.int64),
    )


def box_ious(
    a: FloatArray,  # [n, 4] x1 y1 x2 y2
    b: FloatArray,  # [m, 4]
) -> FloatArray:  # [n, m]
    """Of every pair; 0 for boxes without area or with NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        upper = np.minimum(a[:, None, 2:], b[None, :, 2:])
        lower = np.maximum(a[:, None, :2], b[None, :, :2])
        shared = (upper - lower).clip(min=0).prod(axis=-1)
        area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=-1) for box in (a, b))
        union = area_a[:, None] + area_b[None, :] - shared
        ious = np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
    return np.nan_to_num(ious, nan=0.0, posinf=0.0).astype(np.float32)


def mask_ious(a: Detections, b: Detections) -> FloatArray:
    """Of masks at the same position; two empty masks are equal."""
    axes = (1, 2)
    intersection, union = (a.masks & b.masks).sum(axes), (a.masks | b.masks).sum(axes)
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0).astype(np.float32)


def capped_size(image_hw: tuple[int, ...]) -> tuple[int, int]:
    """The size at which an image's masks are compared: its own, at most MAX_SIDE_PX on the longer side."""
    scale = min(1.0, MAX_SIDE_PX / max(image_hw[:2]))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def agreement_quality(mask_iou_sum: float, matched: int, alone: int) -> float:
    """1 where all is the same, 0 where nothing is: the mask IoU of matches, shared out over all detections of both.

    The formula of panoptic quality (Kirillov et al. 2019, section 4) with one model in the place of the ground truth;
    `alone` counts what either has without a partner.
    """
    total = matched + alone / 2
    return mask_iou_sum / total if total else 1.0
