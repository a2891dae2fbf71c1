"""Prior boxes: the grid of anchors that `loc` is relative to."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np

from yolact_deploy.arrays import FloatArray
from yolact_deploy.spec import ModelSpec


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
