"""Images to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.spec import ModelSpec


def preprocess(
    images: Sequence[Image],  # each [H, W, 3] BGR, any size
    spec: ModelSpec,
) -> FloatArray:
    """float32 [B, 3, S, S] RGB: stretched to the input size without keeping the aspect ratio, then (x - mean) / std.

    The resize is OpenCV's bilinear on float32, as in the original's evaluation (utils/augmentations.py, BaseTransform).
    A spec that pads has the image in the top left of a square of the padding's colour before that.

    >>> spec = ModelSpec.from_file("spec.json")
    >>> black = np.zeros((48, 64, 3), np.uint8)
    >>> preprocess([black], spec).shape
    (1, 3, 32, 32)
    >>> preprocess([black], spec)[0, :, 0, 0].round(2)  # - mean / std, red first
    array([-2.12, -2.04, -1.81], dtype=float32)
    """
    import cv2

    size = spec.input_size
    batch = np.empty((len(images), 3, size, size), np.float32)
    mean, std = np.array(spec.preprocess.mean_rgb, np.float32), np.array(spec.preprocess.std_rgb, np.float32)
    for image, planes in zip(images, batch, strict=True):
        source = image.astype(np.float32)
        if spec.preprocess.pad_rgb is not None:
            source = _padded(source, spec.preprocess.pad_rgb)
        resized = cv2.resize(source, (size, size), interpolation=cv2.INTER_LINEAR)
        for channel in range(3):
            np.subtract(resized[:, :, 2 - channel], mean[channel], out=planes[channel])
            planes[channel] /= std[channel]
    return batch


def _padded(
    image: FloatArray,  # [H, W, 3] BGR
    pad_rgb: tuple[float, float, float],
) -> FloatArray:  # [side, side, 3] BGR
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), pad_rgb[::-1], np.float32)
    square[:height, :width] = image
    return square
