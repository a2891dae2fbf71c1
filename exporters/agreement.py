"""Whether two models see the same objects: detections from head tensors, matched by class and box, masks by IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolact_deploy.arrays import FloatArray, IntArray
from yolact_deploy.detections import Detections, RawDetections
from yolact_deploy.postprocess import detect, softmax
from yolact_deploy.runtime.network import HeadTensors
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
    rules = spec.postprocess
    conf = heads.conf if spec.conf_activation == "softmax" else softmax(heads.conf)
    return detect(
        heads.loc,
        conf,
        heads.mask_coeff,
        heads.proto,
        spec.make_priors(),
        nms=rules.nms,
        conf_threshold=rules.conf_threshold,
        iou_threshold=rules.iou_threshold,
        top_k=rules.top_k,
        max_detections=rules.max_detections,
        input_size=spec.input_size,
        clip_boxes=rules.clip_boxes,
    )[0]


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
