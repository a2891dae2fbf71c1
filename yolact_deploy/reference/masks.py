"""Mask assembly: prototypes and coefficients to masks at the size of the image, working only inside the boxes.

The original (layers/output_utils.py of dbolya/yolact) multiplies, squashes, crops and upsamples whole prototype planes;
here each detection touches the cells of its own box and the pixels those cells reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_deploy.arrays import BoolArray, FloatArray, IntArray, sigmoid
from yolact_deploy.reference.run_lengths import bit_window, encode_windows
from yolact_deploy.reference.stretching import above_threshold, axis

CROP_PADDING = 1  # cells of the prototypes
_BAND_PIXELS = 1 << 20  # of a mask at a time


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
        height, width = self.canvas_hw or self.image_hw
        rows, columns = axis(self.proto.shape[0], height), axis(self.proto.shape[1], width)
        cells, pixels = mask_extents(self)
        for coefficients, (left, right, top, bottom), (x, x_end, y, y_end) in zip(
            self.mask_coeff, cells.tolist(), pixels.tolist(), strict=True
        ):
            if left >= right or top >= bottom or x >= x_end or y >= y_end:
                yield iter([MaskRegion(0, 0, np.zeros((0, 0), bool))])
                continue
            soft = np.zeros((bottom - top + 2, right - left + 2), np.float32)  # cells beyond the box are 0
            soft[1:-1, 1:-1] = _soft(self.proto[top:bottom, left:right], coefficients)
            band = max(1, _BAND_PIXELS // (y_end - y))
            yield (
                MaskRegion(
                    y,
                    start,
                    above_threshold(
                        soft,
                        (top - 1, left - 1),
                        rows,
                        columns,
                        slice(y, y_end),
                        slice(start, min(start + band, x_end)),
                    ),
                )
                for start in range(x, x_end, band)
            )


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
    for mask, coefficients, (left, right, top, bottom) in zip(masks, mask_coeff, cells.tolist(), strict=True):
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


def mask_extents(masks: PrototypeMasks) -> tuple[IntArray, IntArray]:
    """The cells that each mask may cover, and the pixels that read any of them.

    [n, 4] both: left, right, top, bottom, ends excluded.
    """
    proto_h, proto_w = masks.proto.shape[:2]
    height, width = masks.image_hw
    canvas_h, canvas_w = masks.canvas_hw or masks.image_hw
    rows, columns = axis(proto_h, canvas_h), axis(proto_w, canvas_w)
    cells = _cells(masks.boxes_relative, (proto_h, proto_w), crop=masks.crop)
    left, right = np.searchsorted(columns.index1, cells[:, 0]), np.searchsorted(columns.index0, cells[:, 1])
    top, bottom = np.searchsorted(rows.index1, cells[:, 2]), np.searchsorted(rows.index0, cells[:, 3])
    return cells, np.stack([left, np.minimum(right, width), top, np.minimum(bottom, height)], axis=1)


def _cells(boxes_xyxy: FloatArray, proto_hw: tuple[int, int], *, crop: bool) -> IntArray:
    """[n, 4]: the cells (left, right, top, bottom) of the prototypes that each mask may cover, ends excluded."""
    proto_h, proto_w = proto_hw
    if not crop:
        return np.tile([0, proto_w, 0, proto_h], (len(boxes_xyxy), 1))
    x1, x2 = _cell_range(boxes_xyxy[:, 0], boxes_xyxy[:, 2], proto_w)
    y1, y2 = _cell_range(boxes_xyxy[:, 1], boxes_xyxy[:, 3], proto_h)
    return np.stack([x1, x2, y1, y2], axis=1)


def _cell_range(first: FloatArray, second: FloatArray, size: int) -> tuple[IntArray, IntArray]:
    """Cells i with low <= i < high; none where a limit is NaN."""
    low, high = ordered_limits(first, second, size, CROP_PADDING)
    bad = np.isnan(low) | np.isnan(high)
    low, high = np.where(bad, np.float32(size), low), np.where(bad, np.float32(0), high)
    return np.ceil(np.minimum(low, size)).astype(np.int64), np.ceil(np.maximum(high, 0)).astype(np.int64)
