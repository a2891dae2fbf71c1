"""COCO run-length encoding: of a mask that is known to be False outside of a window, and back to run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact_deploy.arrays import AnyArray
from yolact_deploy.masks import MaskRegion


def encode_region(region: MaskRegion, image_hw: tuple[int, int]) -> dict[str, Any]:
    """{"size": [H, W], "counts": str} of the whole image, byte for byte what pycocotools makes of the dense mask.

    Runs are found in the window alone and placed in the image, so that the cost follows the window and not the image.
    """
    height, width = image_hw
    columns = np.zeros((region.window.shape[1], region.window.shape[0] + 1), np.int8)  # a False ends every column
    columns[:, :-1] = region.window.T
    steps = np.flatnonzero(np.diff(columns.reshape(-1), prepend=np.int8(0)))  # True begins, ends, begins, ...
    column, row = np.divmod(steps, max(1, columns.shape[1]))
    bounds = (column + region.column) * height + row + region.row
    touching = np.flatnonzero(bounds[1:-1:2] == bounds[2::2])  # a run to the column's end that goes on in the next
    bounds = np.delete(bounds, np.concatenate([2 * touching + 1, 2 * touching + 2]))
    counts = np.diff(bounds, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    return encode_runs(counts, image_hw)


def encode_runs(
    counts: AnyArray,  # integers, summing up to H * W
    image_hw: tuple[int, int],
) -> dict[str, Any]:
    """{"size": [H, W], "counts": str} of run lengths, column by column, the first one of False."""
    height, width = image_hw
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def run_lengths(packed: str) -> list[int]:
    """The numbers in packed `counts`: 5 bits a character, from the fourth number on the difference from the last but one.

    The format is that of rleFrString in pycocotools, which does not check it. Raises ValueError for anything else.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no part of packed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more bits follow
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("packed run lengths end within a number")
    return lengths
