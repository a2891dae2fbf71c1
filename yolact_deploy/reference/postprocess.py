"""Head tensors to detections, with the priors that they are relative to and a YOLACT++'s rescoring of masks: the NumPy
reference, the oracle for every other implementation.

The semantics are those of Detect and postprocess in dbolya/yolact (layers/functions/detection.py,
layers/output_utils.py); where that leaves the order of equal scores to torch's sort, see `yolact_deploy.reference.nms`.

A YOLACT++ rescores: a small network looks at the soft masks, at the size of the prototypes and cropped as the detections are,
and says per class how well each fits; what it says of the detection's own class, times the box's score, is the mask's score.
The network is exported beside the main one and run by `yolact_deploy.runtime`; `MaskIouReference` is the same in NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import sqrt
from typing import TypeAlias, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from yolact_deploy.arguments import check_choice
from yolact_deploy.arrays import FloatArray, IntArray, exp
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.masks import ordered_limits, prototype_masks
from yolact_deploy.reference.nms import NmsResult, cross_class_fast_nms, fast_nms, traditional_nms
from yolact_deploy.spec import ModelSpec, NmsMode, ResizeMode

CENTRE_VARIANCE = np.float32(0.1)
SIZE_VARIANCE = np.float32(0.2)
MaskIouModel: TypeAlias = Callable[[FloatArray], FloatArray]  # soft masks [n, Hp, Wp] -> [n, C]
_SOFTMAX_ROWS = 512  # at a time: their doubles stay in the cache
_STRIDE = 2  # of all layers but the last, which is 1x1


def detect(
    loc: FloatArray,  # [B, P, 4]
    conf: FloatArray,  # [B, P, 1 + C], softmaxed
    mask_coeff: FloatArray,  # [B, P, K]
    proto: FloatArray,  # [B, Hp, Wp, K]
    priors: FloatArray,  # [P, 4]
    *,
    nms: NmsMode = "fast",
    conf_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    input_size: int = 550,
    clip_boxes: bool = False,
) -> list[RawDetections]:
    """Threshold, decode and non-maximum suppression; one RawDetections per image.

    `nms` is "fast" (per class), "cross_class" (up to `top_k` results, as in the original) or "traditional" (whose IoU is
    taken in pixels of `input_size`). A prior counts when its best foreground score is strictly above `conf_threshold`
    in float32; one whose scores hold NaN is dropped. `clip_boxes` cuts boxes at the image's border before they are
    compared, as mmdetection does. Raises ValueError for an unknown `nms` or shapes that disagree.

    >>> priors = np.float32([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
    >>> loc = np.zeros((1, 2, 4), np.float32)  # every box is its prior
    >>> conf = np.float32([[[0.1, 0.9], [0.98, 0.02]]])  # background, and one class
    >>> mask_coeff, proto = np.ones((1, 2, 1), np.float32), np.ones((1, 4, 4, 1), np.float32)
    >>> (found,) = detect(loc, conf, mask_coeff, proto, priors)
    >>> found.prior_idx, found.scores, found.boxes_xyxy
    (array([0]), array([0.9], dtype=float32), array([[0. , 0. , 0.5, 0.5]], dtype=float32))
    """
    _check_arguments(loc, conf, mask_coeff, proto, priors, nms)
    results = []
    for b in range(len(loc)):
        foreground = conf[b, :, 1:]
        prior_idx = _confident(conf[b], conf_threshold)
        boxes, scores = decode(loc[b, prior_idx], priors[prior_idx]), foreground[prior_idx]
        if clip_boxes:
            boxes = np.clip(boxes, np.float32(0), np.float32(1))
        kept: NmsResult
        if nms == "fast":
            kept = fast_nms(boxes, scores, iou_threshold=iou_threshold, top_k=top_k, max_detections=max_detections)
        elif nms == "cross_class":
            kept = cross_class_fast_nms(boxes, scores, iou_threshold=iou_threshold, top_k=top_k)
        else:
            boxes *= np.float32(input_size)
            kept = traditional_nms(
                boxes,
                scores,
                conf_threshold=conf_threshold,
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            )
            boxes /= np.float32(input_size)  # and so rounds twice, as the original's boxes do
        prior_idx = prior_idx[kept.candidate]
        results.append(
            RawDetections(
                prior_idx, kept.class_ids, kept.scores, boxes[kept.candidate], mask_coeff[b, prior_idx], proto[b]
            )
        )
    return results


def decode(
    loc: FloatArray,  # [N, 4]
    priors: FloatArray,  # [N, 4], (cx, cy, w, h)
) -> FloatArray:
    """Boxes x1 y1 x2 y2 [N, 4], relative to the image, not clamped.

    SSD's encoding with variances 0.1 and 0.2 (Liu et al. 2016), in the original's order of float32 operations
    (layers/box_utils.py, decode). Overflow gives inf, as there.

    >>> priors = np.float32([[0.5, 0.5, 0.2, 0.2]])
    >>> decode(np.float32([[0, 0, 0, 0]]), priors)
    array([[0.4, 0.4, 0.6, 0.6]], dtype=float32)
    >>> decode(np.float32([[1, 0, 0, 0]]), priors)  # a tenth of its width to the right
    array([[0.42, 0.4 , 0.62, 0.6 ]], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        centres = priors[:, :2] + loc[:, :2] * CENTRE_VARIANCE * priors[:, 2:]
        sizes = priors[:, 2:] * exp(loc[:, 2:] * SIZE_VARIANCE)
        top_left = centres - sizes / np.float32(2)
        return np.concatenate([top_left, sizes + top_left], axis=1)


def softmax(
    logits: FloatArray,  # [..., 1 + C]
) -> FloatArray:
    """Softmax over the last axis, for models exported with `--conf logits`.

    >>> softmax(np.float32([[0, 0]]))
    array([[0.5, 0.5]], dtype=float32)
    """
    rows = logits.reshape(-1, logits.shape[-1])
    scores = np.empty_like(rows)
    for start in range(0, len(rows), _SOFTMAX_ROWS):
        part = rows[start : start + _SOFTMAX_ROWS]
        powers = exp(part - part.max(axis=1, keepdims=True))
        np.divide(powers, powers.sum(axis=1, keepdims=True), out=scores[start : start + _SOFTMAX_ROWS])
    return scores.reshape(logits.shape)


def assemble_masks(
    raw: RawDetections,
    image_hw: tuple[int, int],
    *,
    score_threshold: float = 0.0,
    crop: bool = True,
    resize: ResizeMode = "stretch",
) -> Detections:
    """Detections of an image of (height, width) pixels, those with scores strictly above `score_threshold` in float32.

    The masks are assembled when first asked for: sigmoid(proto · coefficients), cropped to the box (`crop`), stretched
    bilinearly to the image, True where > 0.5. With `resize` "pad", boxes and masks are those of the padded square, cut at
    the image's border.

    >>> raw = RawDetections(
    ...     prior_idx=np.array([0]),
    ...     class_ids=np.array([0]),
    ...     scores=np.float32([0.9]),
    ...     boxes_xyxy=np.float32([[0, 0, 0.5, 0.5]]),
    ...     mask_coeff=np.float32([[1]]),
    ...     proto=np.full((4, 4, 1), 5, np.float32),
    ... )
    >>> assemble_masks(raw, (6, 8)).masks[0].astype(int)  # one cell beyond the box, as in the original
    array([[1, 1, 1, 1, 1, 1, 0, 0],
           [1, 1, 1, 1, 1, 1, 0, 0],
           [1, 1, 1, 1, 1, 1, 0, 0],
           [1, 1, 1, 1, 1, 1, 0, 0],
           [0, 0, 0, 0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0, 0, 0, 0]])
    >>> len(assemble_masks(raw, (6, 8), score_threshold=0.95))
    0
    """
    kept = raw.take(np.flatnonzero(raw.scores > np.float32(score_threshold)))
    if resize == "stretch":
        return Detections(kept, image_hw, pixel_boxes(kept.boxes_xyxy, image_hw), crop)
    height, width = image_hw
    side = max(image_hw)
    in_square = pixel_boxes(kept.boxes_xyxy, (side, side))
    boxes = np.minimum(in_square, np.array([np.inf, np.inf, width, height], np.float32))
    return Detections(kept, image_hw, boxes, crop, canvas_hw=(side, side))


def pixel_boxes(
    boxes_xyxy: FloatArray,  # [n, 4], relative
    image_hw: tuple[int, int],
) -> FloatArray:
    """The original's integer boxes, as float32 [n, 4]: corners ordered, the first clamped at 0 only and the second at the
    image's size only, truncated. A box outside of the image comes out inverted, as it does there.

    >>> pixel_boxes(np.float32([[-0.2, 0.1, 0.333, 0.5]]), (100, 200))
    array([[ 0., 10., 66., 50.]], dtype=float32)
    """
    height, width = image_hw
    x1, x2 = ordered_limits(boxes_xyxy[:, 0], boxes_xyxy[:, 2], width, padding=0)
    y1, y2 = ordered_limits(boxes_xyxy[:, 1], boxes_xyxy[:, 3], height, padding=0)
    return np.trunc(np.stack([x1, y1, x2, y2], axis=1))


def _confident(
    conf: FloatArray,  # [P, 1 + C]
    conf_threshold: float,
) -> IntArray:
    """Rows whose foreground's maximum is above the threshold; without taking maxima, which is 6 times slower on 19,248 x 80."""
    above = conf > np.float32(conf_threshold)  # of the background too: whole rows are compared in half the time
    above[:, 0] = False
    hits = np.flatnonzero(above) // conf.shape[1]
    rows: IntArray = hits[np.diff(hits, prepend=-1) > 0]
    rows = rows[~np.isnan(conf[rows, 1:]).any(axis=1)]  # the maximum of a row with NaN is NaN
    return rows


def _check_arguments(
    loc: FloatArray, conf: FloatArray, mask_coeff: FloatArray, proto: FloatArray, priors: FloatArray, nms: NmsMode
) -> None:
    check_choice("nms", nms, get_args(NmsMode))
    batch, count = loc.shape[:2]
    if (
        loc.shape != (batch, count, 4)
        or conf.shape[:2] != (batch, count)
        or mask_coeff.shape[:2] != (batch, count)
        or priors.shape != (count, 4)
        or proto.ndim != 4
        or (proto.shape[0], proto.shape[3]) != (batch, mask_coeff.shape[2])
    ):
        raise ValueError(
            "head tensors disagree; want loc [B,P,4], conf [B,P,1+C], mask_coeff [B,P,K], proto [B,Hp,Wp,K], "
            f"priors [P,4]; found loc {loc.shape}, conf {conf.shape}, mask_coeff {mask_coeff.shape}, "
            f"proto {proto.shape}, priors {priors.shape}."
        )


@lru_cache(maxsize=8)
def make_priors(spec: ModelSpec) -> FloatArray:
    """float32 [P, 4], (cx, cy, w, h) relative to the image; read-only, as it is shared between callers.

    Order: level, row, column, scale, aspect ratio. Computed in double and rounded once, as the original does
    (dbolya/yolact, yolact.py, PredictionModule.make_priors).

    >>> spec = ModelSpec.from_file("spec.json")
    >>> priors = make_priors(spec)
    >>> priors.shape == (spec.num_priors, 4)
    True
    >>> priors[0] * spec.input_size  # the first cell's centre, and the smallest scale
    array([2., 2., 8., 8.], dtype=float32)
    """
    levels = []
    for size, scales, ratios in zip(spec.feature_sizes, spec.priors.scales, spec.priors.aspect_ratios, strict=True):
        extents = np.array(
            [_extent_wh(scale, ratio, size, spec) for scale in scales for ratio in ratios]
        )  # [A, 2], float64
        centres = (np.arange(size) + 0.5) / size
        level = np.empty((size, size, len(extents), 4))
        level[..., 0] = centres[None, :, None]
        level[..., 1] = centres[:, None, None]
        level[..., 2:] = extents
        levels.append(level.reshape(-1, 4))
    priors = np.concatenate(levels).astype(np.float32)
    priors.flags.writeable = False
    return priors


def _extent_wh(scale: float, ratio: float, size: int, spec: ModelSpec) -> tuple[float, float]:
    root = ratio if spec.priors.preapply_sqrt else sqrt(ratio)
    unit = spec.input_size if spec.priors.use_pixel_scales else size
    width, height = scale * root / unit, scale / root / unit
    return (width, width) if spec.priors.use_square_anchors else (width, height)


def rescore_masks(detections: Detections, model: MaskIouModel) -> Detections:
    """The same detections in the same order, with what `model` says of each mask for the class of its detection."""
    count = len(detections)
    if not count:
        return dataclasses.replace(detections, mask_ious=np.zeros(0, np.float32))
    raw = detections.raw
    judged = model(prototype_masks(raw.proto, raw.mask_coeff, raw.boxes_xyxy, crop=detections.crop))
    return dataclasses.replace(detections, mask_ious=judged[np.arange(count), detections.class_ids])


class MaskIouReference:
    """The mask-IoU network in NumPy: convolutions without padding, ReLU after each, the maximum over what is left.

    `layers` are its (weight [out, in, k, k], bias [out]) pairs in float32, the last one giving the classes.
    """

    def __init__(self, layers: Sequence[tuple[FloatArray, FloatArray]]) -> None:
        self._layers = tuple(layers)

    def __call__(
        self,
        masks: FloatArray,  # [n, Hp, Wp], 0..1
    ) -> FloatArray:  # [n, C], 0 or more; values above 1 occur
        x = masks[:, None]
        for number, (weight, bias) in enumerate(self._layers, start=1):
            x = _conv_relu(x, weight, bias, stride=_STRIDE if number < len(self._layers) else 1)
        best: FloatArray = x.max(axis=(2, 3))
        return best


def _conv_relu(
    x: FloatArray,  # [n, in, H, W]
    weight: FloatArray,  # [out, in, k, k]
    bias: FloatArray,  # [out]
    *,
    stride: int,
) -> FloatArray:  # [n, out, h, w]
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    summed = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))) + bias  # [n, h, w, out]
    result: FloatArray = np.maximum(summed, np.float32(0)).transpose(0, 3, 1, 2)
    return result
