"""What the kernels are measured on, without a network: head tensors made of the recorded ones; and the network's input by NumPy
alone, where there is no OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.reference.postprocess import detect, make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

_LARGER = 1.5  # of two boxes in one place: their IoU is below the threshold
_SMALL = 0.06  # of the image's side
_BARELY = 1.2  # of the confidence's threshold


def scenes(
    spec: ModelSpec,
    recorded: HeadTensors,  # of one image
) -> Mapping[str, Callable[[], HeadTensors]]:
    """Heads by name, the most telling first: none, 10 or 100 detections, small, as recorded or as large as the image; and as
    many candidates as there are priors."""
    return {
        "recorded": lambda: recorded,
        "100 full": lambda: full_frame(spec, recorded),
        "empty": lambda: recorded._replace(conf=np.zeros_like(recorded.conf)),
        "all priors": lambda: all_priors(spec, recorded),
        "100 small": lambda: small(spec, recorded, 100),
        "10 recorded": lambda: best(spec, recorded, 10),
        "10 full": lambda: full_frame(spec, recorded, 10),
        "10 small": lambda: small(spec, recorded, 10),
    }


def full_frame(spec: ModelSpec, heads: HeadTensors, count: int = 100) -> HeadTensors:
    """Detections, two in a class, whose boxes are the whole image and one and a half times that; their masks' coefficients are
    those of the detections of `heads`."""
    sides = np.where(np.arange(count) % 2, _LARGER, 1.0)
    return _placed(spec, heads, np.full((count, 2), 0.5), sides)


def small(spec: ModelSpec, heads: HeadTensors, count: int) -> HeadTensors:
    """Detections in rows and columns that do not touch."""
    columns = math.ceil(math.sqrt(count))
    number = np.arange(count)
    centres = (np.stack([number % columns, number // columns], axis=1) + 0.5) / columns
    return _placed(spec, heads, centres, np.full(count, _SMALL))


def best(spec: ModelSpec, heads: HeadTensors, count: int) -> HeadTensors:
    """The surest detections of `heads` alone."""
    (raw,) = detect(**heads._asdict(), priors=make_priors(spec))
    conf = np.zeros_like(heads.conf)
    rows, columns = raw.prior_idx[:count], 1 + raw.class_ids[:count]
    conf[0, rows, columns] = heads.conf[0, rows, columns]
    return heads._replace(conf=conf)


def all_priors(spec: ModelSpec, heads: HeadTensors) -> HeadTensors:
    """Every prior a candidate, in one class each where it was none; what was sure of something still is."""
    conf = heads.conf.copy()
    least = _BARELY * spec.postprocess.conf_threshold
    rows = np.flatnonzero(conf[0, :, 1:].max(axis=1) < least)
    scores = least * (1 + rows / (10 * conf.shape[1]))  # no two alike
    conf[0, rows, 1 + rows % (conf.shape[2] - 1)] = scores
    return heads._replace(conf=conf)


def _placed(
    spec: ModelSpec,
    heads: HeadTensors,
    centres: AnyArray,  # [n, 2], relative
    sides: AnyArray,  # [n], relative
) -> HeadTensors:
    """Square boxes of the first priors, two in a class, with coefficients of detections."""
    priors = make_priors(spec)
    (raw,) = detect(**heads._asdict(), priors=priors)
    loc, conf, coeff = heads.loc.copy(), np.zeros_like(heads.conf), heads.mask_coeff.copy()
    for row, (centre, side) in enumerate(zip(centres, sides, strict=True)):
        size = priors[row, 2:]
        loc[0, row, :2] = (centre - priors[row, :2]) / (0.1 * size)
        loc[0, row, 2:] = np.log(side / size) / 0.2
        conf[0, row, 1 + row // 2 % spec.num_classes] = 0.9 - row / 1000
        coeff[0, row] = raw.mask_coeff[row % len(raw)]
    return HeadTensors(loc, conf, coeff, heads.proto)


def candidates(spec: ModelSpec, heads: HeadTensors) -> int:
    """Priors that are sure enough of something."""
    return int(np.count_nonzero(heads.conf[0, :, 1:].max(axis=1) > np.float32(spec.postprocess.conf_threshold)))


def network_input(image: Image, spec: ModelSpec) -> FloatArray:
    """float32 [1, 3, S, S] of an image [H, W, 3] BGR that is stretched, as `reference.images.preprocess` makes it."""
    pixels = spec.preprocess
    resized = opencv_resize(image[..., ::-1], spec.input_size)
    normal = (resized - np.array(pixels.mean_rgb, np.float32)) / np.array(pixels.std_rgb, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None].astype(np.float32))


def opencv_resize(image: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """What OpenCV's wheels for x86-64 compute for a float32 image and INTER_LINEAR (a test compares)."""
    first_y, second_y, weight_y = _opencv_taps(image.shape[0], size)
    first_x, second_x, weight_x = _opencv_taps(image.shape[1], size)
    values = image.astype(np.float32)
    wide = _lerp(values[:, first_x], values[:, second_x], weight_x[None, :, None])
    return _lerp(wide[first_y], wide[second_y], weight_y[:, None, None])


def _opencv_taps(size_in: int, size_out: int) -> tuple[AnyArray, AnyArray, AnyArray]:
    source = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    first = np.floor(source).astype(int)
    weight = (source - first).astype(np.float32)
    weight[(first < 0) | (first >= size_in - 1)] = 0
    first = np.clip(first, 0, size_in - 1)
    return first, np.minimum(first + 1, size_in - 1), weight


def _lerp(a: AnyArray, b: AnyArray, weight: AnyArray) -> AnyArray:
    lerped: AnyArray = ((b - a).astype(np.float64) * weight + a).astype(np.float32)
    return lerped
