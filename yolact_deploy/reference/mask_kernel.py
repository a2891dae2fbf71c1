"""The inner loops of masks, in Python that numba compiles.

Nothing here hangs on whether a compiler fuses a product with a sum: plain arithmetic decides by a margin, as in
`yolact_deploy.reference.stretching`, and what it leaves in doubt is computed in double, where the products of floats are exact.
Comparisons with NaN are false, and so is the pixel.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray, IntArray
from yolact_deploy.reference.stretching import MASK_THRESHOLD, POSSIBLE, SURE

_WORD = 32
_ALL_SURE, _ALL_IMPOSSIBLE, _DOUBTFUL = 1, 2, 4  # what there is among the cells of a word


def compiled_fill_words() -> Any:
    """`fill_words`, which numba compiles for the arrays that it is first called with; other threads run meanwhile."""
    import numba

    compiled = numba.njit(nogil=True, error_model="numpy")
    helpers = {helper.__name__: compiled(helper) for helper in (_padded, _kinds, _word, _fma)}
    return compiled(FunctionType(fill_words.__code__, {**globals(), **helpers}))


def fill_words(
    soft: FloatArray,  # [all cells], of one mask after the other, row by row
    soft_starts: IntArray,  # [n], of each mask in `soft`
    cells: IntArray,  # [n, 4], left, right, top, bottom, ends excluded
    pixels: IntArray,  # [n, 4], likewise
    row_index0: IntArray,  # [H], see `Axis`
    row_index1: IntArray,
    row_weight0: FloatArray,
    row_weight1: FloatArray,
    column_index0: IntArray,  # [W]
    column_index1: IntArray,
    column_weight0: FloatArray,
    column_weight1: FloatArray,
    words: AnyArray,  # uint32, of all windows: all are written
    windows: IntArray,  # [n, 4], see `WindowMasks`
    starts: IntArray,  # [n]
) -> None:
    """The bits of n masks, those of PrototypeMasks."""
    near, far = np.zeros(_WORD, np.float32), np.zeros(_WORD, np.float32)
    for n in range(len(cells)):
        x, x_end, y, y_end = pixels[n, 0], pixels[n, 1], pixels[n, 2], pixels[n, 3]
        corner, pitch = windows[n, 1], windows[n, 3]
        left, top = cells[n, 0] - 1, cells[n, 2] - 1
        padded = _padded(soft, soft_starts[n], cells[n, 3] - cells[n, 2], cells[n, 1] - cells[n, 0])
        kinds = _kinds(padded, left, corner, pitch, x, x_end, column_index0, column_index1)
        row = y
        while row < y_end:
            upper, lower = row_index0[row] - top, row_index1[row] - top
            stop = row + 1
            while stop < y_end and row_index0[stop] - top == upper:
                stop += 1
            for place in range(pitch):
                first = corner + _WORD * place
                begin, end = max(first, x), min(first + _WORD, x_end)
                at = starts[n] + (row - y) * pitch + place
                kind = kinds[upper, place] | kinds[lower, place]
                if kind in (_ALL_SURE, _ALL_IMPOSSIBLE):
                    word = np.uint32(((1 << (end - begin)) - 1) << (begin - first) if kind == _ALL_SURE else 0)
                    for k in range(stop - row):
                        words[at + k * pitch] = word
                    continue
                near[:], far[:] = 0, 0
                for j in range(begin, end):
                    cell0, cell1 = column_index0[j] - left, column_index1[j] - left
                    weight0, weight1 = column_weight0[j], column_weight1[j]
                    near[j - first] = padded[upper, cell0] * weight0 + padded[upper, cell1] * weight1
                    far[j - first] = padded[lower, cell0] * weight0 + padded[lower, cell1] * weight1
                for k in range(stop - row):
                    weight0, weight1 = row_weight0[row + k], row_weight1[row + k]
                    sure, possible = _word(near, far, weight0, weight1)
                    doubtful = sure ^ possible
                    j = first
                    while doubtful != 0:
                        if doubtful & np.uint32(1):
                            cell0, cell1 = column_index0[j] - left, column_index1[j] - left
                            across0, across1 = column_weight0[j], column_weight1[j]
                            above = _fma(padded[upper, cell0], across0, padded[upper, cell1] * across1)
                            below = _fma(padded[lower, cell0], across0, padded[lower, cell1] * across1)
                            if _fma(above, weight0, below * weight1) > MASK_THRESHOLD:
                                sure |= np.uint32(1) << np.uint32(j - first)
                        doubtful >>= np.uint32(1)
                        j += 1
                    words[at + k * pitch] = sure
            row = stop


def _padded(soft: FloatArray, start: int, height: int, width: int) -> FloatArray:
    """[height + 2, width + 2]: cells beyond the box are 0."""
    padded = np.zeros((height + 2, width + 2), np.float32)
    for row in range(height):
        for column in range(width):
            padded[row + 1, column + 1] = soft[start + row * width + column]
    return padded


def _kinds(
    padded: FloatArray,
    left: int,
    corner: int,
    pitch: int,
    x: int,
    x_end: int,
    column_index0: IntArray,
    column_index1: IntArray,
) -> AnyArray:
    """uint8 [rows of cells, words]: what there is among the cells that a word's pixels lie between."""
    kinds = np.zeros((len(padded), pitch), np.uint8)
    for place in range(pitch):
        first = corner + _WORD * place
        begin = column_index0[max(first, x)] - left
        end = column_index1[min(first + _WORD, x_end) - 1] - left
        for row in range(len(padded)):
            kind = 0
            for cell in range(begin, end + 1):
                value = padded[row, cell]
                kind |= _ALL_SURE if value > SURE else _ALL_IMPOSSIBLE if value <= POSSIBLE else _DOUBTFUL
            kinds[row, place] = kind
    return kinds


def _word(near: FloatArray, far: FloatArray, weight0: np.float32, weight1: np.float32) -> tuple[np.uint32, np.uint32]:
    """Where 32 pixels of a row are above the threshold, and where they may be."""
    sure, possible = np.uint32(0), np.uint32(0)
    for j in range(_WORD):
        value = near[j] * weight0 + far[j] * weight1
        sure |= np.uint32(value > SURE) << np.uint32(j)
        possible |= np.uint32(value > POSSIBLE) << np.uint32(j)
    return sure, possible


def _fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """As `yolact_deploy.arrays.fma`."""
    result: np.float32 = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    return result
