"""Mask assembly: prototypes and coefficients to masks at the size of the image, working only inside the boxes.

The original (layers/output_utils.py of dbolya/yolact) multiplies, squashes, crops and upsamples whole prototype planes;
here each detection touches the cells of its own box and the pixels those cells reach. Interpolation is torch's, bit for
bit: source coordinates and both lerps are fused multiply-adds, horizontally first (aten/native/UpSample.h). As a mask only
asks whether a value is above 0.5, fused arithmetic is spent on the pixels that plain arithmetic leaves in doubt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from yolact_deploy.arrays import BoolArray, FloatArray, IntArray, fma, sigmoid
from yolact_deploy.reference.run_lengths import bit_window, encode_windows

CROP_PADDING = 1  # cells of the prototypes
MASK_THRESHOLD = np.float32(0.5)
_BAND_PIXELS = 1 << 20  # of a mask at a time: 15 MB of arithmetic
_DOUBT = np.float32(1e-6)  # plain and fused lerps of values in 0..1 differ by less than 3 * 2**-24 = 1.8e-7


@dataclass(frozen=True)
class MaskRegion:
    """One mask: False everywhere but in the window whose top left pixel is (row, column)."""

    row: int
    column: int
    window: BoolArray  # [h, w]


@dataclass(frozen=True, eq=False)
class PrototypeMasks:
    """n masks that are assembled when they are asked for: sigmoid(proto · coefficients), cropped to the box, stretched
    bilinearly to (H, W), cut at > 0.5. Of an image in the top left of a larger canvas, the masks are stretched to the canvas and
    end at the image's border. Raises ValueError without prototypes."""

    proto: FloatArray  # [Hp, Wp, K]
    mask_coeff: FloatArray  # [n, K]
    boxes_relative: FloatArray  # [n, 4]
    image_hw: tuple[int, int]
    crop: bool
    canvas_hw: tuple[int, int] | None = None  # of the square that the image was padded to; None: not padded

    def __post_init__(self) -> None:
        if len(self.mask_coeff) and self.proto.size == 0:
            raise ValueError(
                "these detections hold no prototypes to assemble masks from: those of a GPU stay there. "
                "Use the masks of the Detections that came with them."
            )

    def __len__(self) -> int:
        return len(self.mask_coeff)

    def dense(self) -> BoolArray:
        """bool [n, H, W]."""
        masks = np.zeros((len(self), *self.image_hw), bool)
        for mask, region in zip(masks, self.regions(), strict=True):
            height, width = region.window.shape
            mask[region.row : region.row + height, region.column : region.column + width] = region.window
        return masks

    def regions(self) -> Iterator[MaskRegion]:
        """One per mask, each made when it is asked for."""
        for bands in self._bands():
            first = next(bands)
            windows = [first.window, *(band.window for band in bands)]
            window = windows[0] if len(windows) == 1 else np.concatenate(windows, axis=1)
            yield MaskRegion(first.row, first.column, window)

    def rle(self) -> list[dict[str, Any]]:
        """{"size": [H, W], "counts": str} of every mask, as pycocotools writes them."""
        packed = (
            bit_window(number, band.row, band.column, band.window)
            for number, bands in enumerate(self._bands())
            for band in bands
        )
        return encode_windows(packed, len(self), self.image_hw)

    def take(self, rows: IntArray) -> PrototypeMasks:
        """The masks of the given rows [m], in the given order."""
        return dataclasses.replace(self, mask_coeff=self.mask_coeff[rows], boxes_relative=self.boxes_relative[rows])

    def _bands(self) -> Iterator[Iterator[MaskRegion]]:
        """Of each mask, its region as one or more bands side by side, each made when it is asked for: a mask may cover more
        pixels than there is memory for the arithmetic."""
        proto_h, proto_w = self.proto.shape[:2]
        height, width = self.canvas_hw or self.image_hw
        rows, columns = _interpolation(proto_h, height), _interpolation(proto_w, width)
        cells = _cells(self.boxes_relative, (proto_h, proto_w), crop=self.crop)
        for coefficients, (left, right, top, bottom) in zip(self.mask_coeff, cells, strict=True):
            row = _until(rows.outputs_reading(top, bottom), self.image_hw[0])
            column = _until(columns.outputs_reading(left, right), self.image_hw[1])
            if left >= right or top >= bottom or row.start >= row.stop or column.start >= column.stop:
                yield iter([MaskRegion(0, 0, np.zeros((0, 0), bool))])
                continue
            soft = _soft(self.proto[top:bottom, left:right], coefficients)
            wide = columns.fused(soft.T, left, column).T
            yield _bands(wide, rows, top, row, column)


def _bands(
    wide: FloatArray,  # [cells, w], stretched across already
    rows: _Interpolation,
    top: int,  # of the cells
    row: slice,
    column: slice,
) -> Iterator[MaskRegion]:
    width = max(1, _BAND_PIXELS // (row.stop - row.start))
    for start in range(0, column.stop - column.start, width):
        window = rows.above_threshold(wide[:, start : start + width], top, row)
        yield MaskRegion(row.start, column.start + start, window)


def prototype_masks(
    proto: FloatArray,  # [Hp, Wp, K]
    mask_coeff: FloatArray,  # [n, K]
    boxes_xyxy: FloatArray,  # [n, 4], relative
    *,
    crop: bool,
) -> FloatArray:
    """float32 [n, Hp, Wp]: sigmoid(proto · coefficients), cropped to the box; neither stretched nor cut at a threshold."""
    masks = np.zeros((len(mask_coeff), *proto.shape[:2]), np.float32)
    cells = _cells(boxes_xyxy, (proto.shape[0], proto.shape[1]), crop=crop)
    for mask, coefficients, (left, right, top, bottom) in zip(masks, mask_coeff, cells, strict=True):
        if left < right and top < bottom:
            mask[top:bottom, left:right] = _soft(proto[top:bottom, left:right], coefficients)
    return masks


def _soft(
    proto: FloatArray,  # [h, w, K]
    coefficients: FloatArray,  # [K]
) -> FloatArray:  # [h, w]
    """NaN where either is no number; that a network gives such is for a note to say, not for NumPy to warn of."""
    with np.errstate(invalid="ignore", over="ignore"):
        return sigmoid(proto @ coefficients)


def ordered_limits(
    first: FloatArray,  # [n], relative
    second: FloatArray,  # [n], relative
    size: int,
    padding: int,
) -> tuple[FloatArray, FloatArray]:
    """Lower and upper limit of an interval in pixels or cells: the lower clamped at 0 only, the upper at `size` only
    (output_utils.sanitize_coordinates)."""
    first, second = first * np.float32(size), second * np.float32(size)
    low = np.maximum(np.minimum(first, second) - np.float32(padding), np.float32(0))
    high = np.minimum(np.maximum(first, second) + np.float32(padding), np.float32(size))
    return low, high


@dataclass(frozen=True)
class _Interpolation:
    """Bilinear stretch of one axis with half-pixel centres: output i = index0[i] * weight0[i] + index1[i] * weight1[i]."""

    index0: IntArray
    index1: IntArray
    weight0: FloatArray
    weight1: FloatArray

    def outputs_reading(self, start: int, stop: int) -> slice:
        """The outputs that read any of the inputs start..stop-1."""
        return slice(int(np.searchsorted(self.index1, start)), int(np.searchsorted(self.index0, stop)))

    def fused(self, values: FloatArray, start: int, outputs: slice) -> FloatArray:
        """Stretch axis 0 of `values`, which are the inputs from `start` on; inputs outside of them are 0."""
        padded, first, second = self._sources(values, start, outputs)
        far = padded[second] * self.weight1[outputs, None]
        return fma(padded[first], self.weight0[outputs, None], far)

    def above_threshold(self, values: FloatArray, start: int, outputs: slice) -> BoolArray:
        """`fused(...) > MASK_THRESHOLD`, mostly without the price of fused arithmetic."""
        padded, first, second = self._sources(values, start, outputs)
        weight0, weight1 = self.weight0[outputs], self.weight1[outputs]
        plain = padded.take(first, axis=0)
        plain *= weight0[:, None]
        far = padded.take(second, axis=0)
        far *= weight1[:, None]
        plain += far
        above: BoolArray = plain > MASK_THRESHOLD + _DOUBT
        possible = plain > MASK_THRESHOLD - _DOUBT
        if np.count_nonzero(possible) != np.count_nonzero(above):
            i, j = np.nonzero(possible != above)
            above[i, j] = fma(padded[first[i], j], weight0[i], far[i, j]) > MASK_THRESHOLD
        return above

    def _sources(self, values: FloatArray, start: int, outputs: slice) -> tuple[FloatArray, IntArray, IntArray]:
        """`values` between rows of zeros, and the rows in it that `outputs` read."""
        padded = np.zeros((len(values) + 2, values.shape[1]), np.float32)
        padded[1:-1] = values
        return padded, self.index0[outputs] - (start - 1), self.index1[outputs] - (start - 1)


def _until(outputs: slice, end: int) -> slice:
    return slice(outputs.start, min(outputs.stop, end))


@lru_cache(maxsize=64)
def _interpolation(size_in: int, size_out: int) -> _Interpolation:
    half = np.full(size_out, 0.5, np.float32)
    scale = np.full(size_out, np.float32(size_in) / np.float32(size_out))
    source = np.maximum(fma(scale, np.arange(size_out, dtype=np.float32) + half, -half), np.float32(0))
    index0 = np.minimum(source.astype(np.int64), size_in - 1)
    weight1 = np.clip(source - index0.astype(np.float32), np.float32(0), np.float32(1))
    return _Interpolation(index0, np.minimum(index0 + 1, size_in - 1), np.float32(1) - weight1, weight1)


def _cells(boxes_xyxy: FloatArray, proto_hw: tuple[int, int], *, crop: bool) -> list[list[int]]:
    """Per detection the cells [left, right, top, bottom] of the prototypes that its mask may cover, ends excluded."""
    proto_h, proto_w = proto_hw
    if not crop:
        return [[0, proto_w, 0, proto_h]] * len(boxes_xyxy)
    x1, x2 = _cell_range(boxes_xyxy[:, 0], boxes_xyxy[:, 2], proto_w)
    y1, y2 = _cell_range(boxes_xyxy[:, 1], boxes_xyxy[:, 3], proto_h)
    cells: list[list[int]] = np.stack([x1, x2, y1, y2], axis=1).tolist()
    return cells


def _cell_range(first: FloatArray, second: FloatArray, size: int) -> tuple[IntArray, IntArray]:
    """Cells i with low <= i < high; none where a limit is NaN."""
    low, high = ordered_limits(first, second, size, CROP_PADDING)
    bad = np.isnan(low) | np.isnan(high)
    low, high = np.where(bad, np.float32(size), low), np.where(bad, np.float32(0), high)
    return np.ceil(np.minimum(low, size)).astype(np.int64), np.ceil(np.maximum(high, 0)).astype(np.int64)
