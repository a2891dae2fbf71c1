"""Images to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolact_deploy.arrays import FloatArray, Image, IntArray
from yolact_deploy.spec import ModelSpec

_WHOLE_PIXELS = 4_000_000  # up to here, one pass is the faster one
_STRIP_PIXELS = 1 << 18  # of 12 bytes


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
    size = spec.input_size
    batch = np.empty((len(images), 3, size, size), np.float32)
    mean, std = np.array(spec.preprocess.mean_rgb, np.float32), np.array(spec.preprocess.std_rgb, np.float32)
    for image, planes in zip(images, batch, strict=True):
        resized = _resized(image, size, spec.preprocess.pad_rgb)
        for channel in range(3):
            np.subtract(resized[:, :, 2 - channel], mean[channel], out=planes[channel])
            planes[channel] /= std[channel]
    return batch


def _resized(
    image: Image,  # [H, W, 3] BGR
    size: int,
    pad_rgb: tuple[float, float, float] | None,
) -> FloatArray:  # [size, size, 3] BGR
    """A large image goes through float32 in strips, and only those of its rows that the interpolation reads: across, then down.

    The two passes are OpenCV's own order, so that they give the same bits as one. They would not where it stretches far across
    (by more than 8, with Intel's IPP), of a single row or column, and of exactly twice the size: that is other code.
    """
    height, width = image.shape[:2] if pad_rgb is None else (max(image.shape[:2]),) * 2
    if height * width <= _WHOLE_PIXELS or width <= size or height < 2 or (height, width) == (2 * size, 2 * size):
        return _resize(_rows(image, np.arange(height), width, pad_rgb), size, size)
    read = _rows_read(height, size)
    across = np.empty((len(read), size, 3), np.float32)
    for part in np.array_split(np.arange(len(read)), max(1, len(read) // max(2, _STRIP_PIXELS // width))):
        across[part] = _resize(_rows(image, read[part], width, pad_rgb), len(part), size)
    down = np.empty((size, size, 3), np.float32)
    for columns in np.array_split(np.arange(size), max(1, size // max(2, _STRIP_PIXELS // height))):
        strip = np.zeros((height, len(columns), 3), np.float32)  # as high as the image: the weights depend on it
        strip[read] = across[:, columns]
        down[:, columns] = _resize(strip, size, len(columns))
    return down


def _rows_read(height: int, size: int) -> IntArray:
    """At least the rows that a bilinear resize to `size` rows reads: two for each, and one more on either side."""
    above = np.floor((np.arange(size) + 0.5) * (height / size) - 0.5).astype(np.int64)
    return np.unique(np.clip(above[:, None] + np.arange(-1, 3), 0, height - 1))


def _rows(
    image: Image,  # [H, W, 3] BGR
    numbers: IntArray,  # [n], ascending
    width: int,
    pad_rgb: tuple[float, float, float] | None,
) -> FloatArray:  # [n, width, 3] BGR
    """Rows of an image that lies in the top left of a canvas of this width."""
    if pad_rgb is None:
        return image[_span(numbers)].astype(np.float32)
    rows = np.full((len(numbers), width, 3), pad_rgb[::-1], np.float32)
    inside = numbers[numbers < image.shape[0]]
    rows[: len(inside), : image.shape[1]] = image[_span(inside)]
    return rows


def _span(numbers: IntArray) -> IntArray | slice:
    """Numbers without a gap as a slice, which NumPy does not copy."""
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _resize(
    pixels: FloatArray,  # [H, W, 3]
    height: int,
    width: int,
) -> FloatArray:  # [height, width, 3]
    import cv2

    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
