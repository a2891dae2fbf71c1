"""Soft masks stretched bilinearly to the image and cut at a threshold, bit for bit as torch computes it.

Source coordinates and both lerps are fused multiply-adds, horizontally first (aten/native/UpSample.h). As a mask only asks
whether a value is above the threshold, fused arithmetic is spent on the few pixels that plain arithmetic leaves in doubt, and
plain arithmetic on those between two rows of cells that do not already lie on the same side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, FloatArray, IntArray, fma

MASK_THRESHOLD = np.float32(0.5)
_DOUBT = np.float32(1e-6)  # plain and fused lerps of lerps of values in 0..1 differ by less than 6 * 2**-24 = 3.6e-7
SURE, POSSIBLE = MASK_THRESHOLD + _DOUBT, MASK_THRESHOLD - _DOUBT
_NIBBLE, _BYTE = 4, 8


@dataclass(frozen=True)
class Axis:
    """Bilinear stretch of one axis with half-pixel centres: output i = index0[i] * weight0[i] + index1[i] * weight1[i].

    A run is at most eight outputs one after the other between the same two inputs.
    """

    index0: IntArray  # [n]
    index1: IntArray  # [n]
    weight0: FloatArray  # [n]
    weight1: FloatArray  # [n]
    run: IntArray  # [n], which one each output is in
    bit: AnyArray  # uint8 [n, 1], of its place in the run
    members: IntArray  # [runs, 4 or 8], outputs; the last one again where there are fewer
    member_weight0: FloatArray  # [runs, 4 or 8]
    member_weight1: FloatArray  # [runs, 4 or 8]


@lru_cache(maxsize=64)
def axis(size_in: int, size_out: int) -> Axis:
    """The stretch of `size_in` values to `size_out`."""
    half = np.full(size_out, 0.5, np.float32)
    scale = np.full(size_out, np.float32(size_in) / np.float32(size_out))
    source = np.maximum(fma(scale, np.arange(size_out, dtype=np.float32) + half, -half), np.float32(0))
    index0 = np.minimum(source.astype(np.int64), size_in - 1)
    weight1 = np.clip(source - index0.astype(np.float32), np.float32(0), np.float32(1))
    weight0 = np.float32(1) - weight1

    place = (np.arange(size_out) - np.searchsorted(index0, index0)) % _BYTE
    first = np.flatnonzero(place == 0)
    last = np.append(first[1:], size_out) - 1
    longest = _NIBBLE if place.max() < _NIBBLE else _BYTE
    members = np.minimum(first[:, None] + np.arange(longest), last[:, None])
    return Axis(
        index0,
        np.minimum(index0 + 1, size_in - 1),
        weight0,
        weight1,
        np.cumsum(place == 0) - 1,
        (1 << place).astype(np.uint8)[:, None],
        members,
        weight0[members],
        weight1[members],
    )


def above_threshold(
    soft: FloatArray,  # [h, w] of the cells that the pixels lie between
    corner: tuple[int, int],  # of the cells, in all of them
    rows: Axis,
    columns: Axis,
    row: slice,  # of the pixels
    column: slice,
) -> BoolArray:
    """bool [pixel rows, pixel columns]: where the soft mask, stretched, is above MASK_THRESHOLD.

    A byte holds a run of rows in one column.
    """
    wide = _across(soft, corner[1], columns, column)
    runs = slice(int(rows.run[row.start]), int(rows.run[row.stop - 1]) + 1)
    begin = rows.members[runs, 0]
    upper, lower = rows.index0[begin] - corner[0], rows.index1[begin] - corner[0]
    sure, impossible = wide > SURE, wide <= POSSIBLE
    full = sure.take(upper, axis=0)
    full &= sure.take(lower, axis=0)
    empty = impossible.take(upper, axis=0)
    empty &= impossible.take(lower, axis=0)
    bits = np.negative(full.view(np.uint8))  # 1 to 255
    if len(mixed := np.flatnonzero(full == empty)):
        width = wide.shape[1]
        run = mixed // width
        across = mixed - run * width
        near, far = wide.take(upper[run] * width + across), wide.take(lower[run] * width + across)
        members, doubtful = _down(near, far, rows, run + runs.start)
        if doubtful is not None:
            k, member = doubtful
            i, j = rows.members[run[k] + runs.start, member], across[k] + column.start
            members[k, member] = _fused(soft, corner, rows, columns, i, j) > MASK_THRESHOLD
        bits.reshape(-1)[mixed] = _as_bits(members)
    pixels = bits.take(rows.run[row] - runs.start, axis=0)
    pixels &= rows.bit[row]
    above: BoolArray = pixels.astype(bool)
    return above


def _across(soft: FloatArray, first: int, columns: Axis, column: slice) -> FloatArray:
    """[h, pixel columns], in plain arithmetic."""
    wide = soft.take(columns.index0[column] - first, axis=1)
    wide *= columns.weight0[column]
    far = soft.take(columns.index1[column] - first, axis=1)
    far *= columns.weight1[column]
    wide += far
    return wide


def _down(
    near: FloatArray,  # [m], upper ends
    far: FloatArray,  # [m], lower ends
    rows: Axis,
    run: IntArray,  # [m]
) -> tuple[BoolArray, tuple[IntArray, IntArray] | None]:
    """[m, members] above the threshold as far as plain arithmetic tells, and where it does not."""
    plain = rows.member_weight0.take(run, axis=0)
    plain *= near[:, None]
    other = rows.member_weight1.take(run, axis=0)
    other *= far[:, None]
    plain += other
    above, possible = plain > SURE, plain > POSSIBLE
    if np.count_nonzero(above) == np.count_nonzero(possible):
        return above, None
    k, member = np.nonzero(above != possible)
    return above, (k, member)


def _as_bits(
    above: BoolArray,  # [m, 4 or 8]
) -> AnyArray:  # uint8 [m]
    packed = np.packbits(above, bitorder="little")  # row by row it would take 5 times as long
    if above.shape[1] == _BYTE:
        return packed
    return np.stack([packed & 15, packed >> _NIBBLE], axis=1).reshape(-1)[: len(above)]


def _fused(
    soft: FloatArray, corner: tuple[int, int], rows: Axis, columns: Axis, i: IntArray, j: IntArray
) -> FloatArray:
    """Pixels (i, j) [m]."""
    left, right = columns.index0[j] - corner[1], columns.index1[j] - corner[1]
    upper, lower = rows.index0[i] - corner[0], rows.index1[i] - corner[0]
    near, far = (
        fma(soft[cell, left], columns.weight0[j], soft[cell, right] * columns.weight1[j]) for cell in (upper, lower)
    )
    return fma(near, rows.weight0[i], far * rows.weight1[i])
