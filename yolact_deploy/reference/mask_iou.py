"""Mask rescoring of YOLACT++: a small network looks at a mask and says, per class, how well it fits.

It sees the soft masks at the size of the prototypes, cropped as the detections are; what it says of the detection's own
class, times the box's score, is the mask's score (dbolya/yolact, layers/output_utils.py). The network is exported beside
the main one and run by `yolact_deploy.runtime`; `MaskIouReference` is the same in NumPy, and the oracle of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from yolact_deploy.arrays import FloatArray
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.masks import prototype_masks

MaskIouModel: TypeAlias = Callable[[FloatArray], FloatArray]  # soft masks [n, Hp, Wp] -> [n, C]

_STRIDE = 2  # of all layers but the last, which is 1x1


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
