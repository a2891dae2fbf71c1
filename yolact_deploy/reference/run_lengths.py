"""Masks as COCO's run lengths: from the bits of their windows to the packed text that pycocotools reads and writes, and back.

Runs go down the columns, one column after the other, those of False and of True in turn, the first of False. They are found in
the bits: two rows of them differ where a run begins or ends. All masks of an image go through each step together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, IntArray

_CHUNK_BYTES = (
    1 << 18
)  # of bits that are looked at together: so many that few calls do, so few that the cache holds them
_BYTE = 8
_DIGIT, _DIGIT_BITS, _MORE = 31, 5, 32  # of a character: its bits, how many, and that another one follows
_ZERO = ord("0")
_ABSOLUTE = 3  # runs at the beginning of a mask; the others are told as differences from the last but one
_MAX_RUN_BITS = 60


@dataclass(frozen=True)
class BitWindow:
    """Bits of a mask, which is False beyond them, or has other windows beside this one."""

    mask: int  # its number, ascending
    row: int  # of the top left pixel
    column: int
    bits: AnyArray  # uint8 [h, bytes], the first pixel of each eight in the lowest bit


def bit_window(mask: int, row: int, column: int, window: BoolArray) -> BitWindow:
    """The window [h, w] of a mask whose top left pixel is (row, column), packed."""
    return BitWindow(mask, row, column, np.packbits(window, axis=1, bitorder="little"))


def encode_windows(
    windows: Iterable[BitWindow],
    count: int,  # of masks
    image_hw: tuple[int, int],
) -> list[dict[str, Any]]:
    """{"size": [H, W], "counts": str} of every mask, byte for byte what pycocotools makes of the dense one.

    The cost follows the windows and not the image, and memory the bits of a few windows at a time.

    >>> encode_windows([bit_window(0, 1, 2, np.ones((2, 1), bool))], 2, (4, 4))
    [{'size': [4, 4], 'counts': '925'}, {'size': [4, 4], 'counts': '`0'}]
    """
    encoded: list[dict[str, Any]] = []
    for chunk in _chunks(windows):
        first, stop = len(encoded), chunk[-1].mask + 1
        encoded += _encode(_bounds(chunk, first, image_hw), stop - first, image_hw)
    return encoded + _encode(np.zeros(0, np.int64), count - len(encoded), image_hw)


def _encode(
    bounds: AnyArray,  # of runs of True, see `_bounds`
    count: int,  # of masks
    image_hw: tuple[int, int],
) -> list[dict[str, Any]]:
    pixels = image_hw[0] * image_hw[1]
    bounds.sort(kind="stable")  # the fastest here, as those of a row ascend; cheaper than turning all pixels over
    touching = np.flatnonzero(bounds[1:-1:2] == bounds[2::2])  # a run to the column's end that goes on in the next
    if len(touching):
        bounds = np.delete(bounds, np.concatenate([2 * touching + 1, 2 * touching + 2]))
    beginnings = (np.arange(count + 1) * (pixels + 1)).astype(bounds.dtype)
    own = np.diff(np.searchsorted(bounds, beginnings))  # of each mask
    last = np.cumsum(own + 2) - 1  # place of each mask's end, after its beginning and its bounds
    mask = np.repeat(np.arange(count), own)
    places = np.full(len(bounds) + 2 * count, pixels, bounds.dtype)
    places[last - own - 1] = 0
    places[np.arange(len(bounds)) + 2 * mask + 1] = bounds - np.repeat(beginnings[:-1], own)
    runs = np.diff(places, append=places[-1:])  # at `last`, from one mask to the next
    wanted = np.ones(len(runs), bool)
    wanted[last] = False
    ends_true = runs[last - 1] == 0
    wanted[last[ends_true] - 1] = False
    return encode_runs(runs[wanted], own + 1 - ends_true, image_hw)


def encode_runs(
    runs: AnyArray,  # signed integers, of one mask after the other
    counts: IntArray,  # [n], how many runs each mask has
    image_hw: tuple[int, int],
) -> list[dict[str, Any]]:
    """{"size": [H, W], "counts": str} of every mask: rleToString of pycocotools, see `run_lengths`.

    >>> encode_runs(np.array([0, 16]), np.array([2]), (4, 4))  # all True
    [{'size': [4, 4], 'counts': '0`0'}]
    """
    first = np.cumsum(counts) - counts
    rest = runs.copy()
    rest[2:] -= runs[:-2]
    unrelated = np.concatenate([first + place for place in range(_ABSOLUTE)])
    unrelated = unrelated[unrelated < np.tile(first + counts, _ABSOLUTE)]
    rest[unrelated] = runs[unrelated]
    number, lengths = np.arange(len(rest)), np.ones(len(rest), np.int64)
    digits: list[tuple[IntArray, AnyArray]] = []  # the numbers that have another one, and what it is
    while len(number):
        digit = rest & _DIGIT
        rest >>= _DIGIT_BITS
        more = rest != -(
            digit >> (_DIGIT_BITS - 1)
        )  # what is left of a number is all zeros, or all ones if it is negative
        digits.append((number, digit + _MORE * more + _ZERO))
        going = np.flatnonzero(more)
        number, rest = number[going], rest[going]
        lengths[number] += 1
    ends = np.append(0, np.cumsum(lengths))
    text = np.empty(ends[-1], np.uint8)
    for place, (number, digit) in enumerate(digits):
        text[ends[number] + place] = digit
    packed = text.tobytes().decode("ascii")
    starts, stops = ends[first].tolist(), ends[first + counts].tolist()
    return [{"size": list(image_hw), "counts": packed[a:b]} for a, b in zip(starts, stops, strict=True)]


def run_lengths(packed: str) -> list[int]:
    """The numbers in packed `counts`: 5 bits a character, from the fourth number on the difference from the last but one.

    The format is that of rleFrString in pycocotools, which does not check it. Raises ValueError for anything else.

    >>> run_lengths("0`0")
    [0, 16]
    """
    lengths: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - _ZERO
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no part of packed run lengths")
        if shift > _MAX_RUN_BITS:
            raise ValueError("a packed run length has too many digits")
        value |= (bits & _DIGIT) << shift
        shift += _DIGIT_BITS
        if bits & _MORE:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("packed run lengths end within a number")
    return lengths


def _chunks(windows: Iterable[BitWindow]) -> Iterator[list[BitWindow]]:
    """All windows of some masks."""
    chunk: list[BitWindow] = []
    size = 0
    for window in windows:
        if size >= _CHUNK_BYTES and window.mask != chunk[-1].mask:
            yield chunk
            chunk, size = [], 0
        if window.bits.size:
            chunk.append(window)
            size += window.bits.size
    if chunk:
        yield chunk


def _bounds(windows: list[BitWindow], first: int, image_hw: tuple[int, int]) -> AnyArray:
    """Where runs of True begin and end, in pixels of the image counted column by column; those of mask `first + i` from
    i * (H * W + 1) on, as H * W is an end and no beginning. In no order."""
    height, width = image_hw
    shapes = np.array([window.bits.shape for window in windows])
    sizes = (shapes[:, 0] + 1) * shapes[:, 1]
    stops = np.cumsum(sizes)
    changes = np.empty(stops[-1], np.uint8)  # down each column, which False precedes and ends
    for window, (rows, pitch), stop, size in zip(windows, shapes.tolist(), stops.tolist(), sizes.tolist(), strict=True):
        changed = changes[stop - size : stop].reshape(rows + 1, pitch)
        changed[0], changed[-1] = window.bits[0], window.bits[-1]
        np.bitwise_xor(window.bits[1:], window.bits[:-1], out=changed[1:-1])
    place = np.flatnonzero(changes != 0)
    own = np.diff(np.searchsorted(place, stops), prepend=0)  # of each window
    in_window = place - np.repeat(stops - sizes, own)
    pitch_of = np.repeat(shapes[:, 1], own)
    row = (in_window / pitch_of).astype(np.int64)  # exact for such numbers, and faster than a division of integers
    column = _BYTE * (in_window - row * pitch_of) + np.repeat([window.column for window in windows], own)
    beginnings = [(window.mask - first) * (height * width + 1) + window.row for window in windows]
    bound = column * height + row + np.repeat(beginnings, own)
    if (windows[-1].mask - first + 1) * (height * width + 1) <= np.iinfo(np.int32).max:
        bound = bound.astype(np.int32)  # half the time of what follows
    set_bits = np.flatnonzero(np.unpackbits(changes[place], bitorder="little").view(bool))
    byte, bit = set_bits >> 3, (set_bits & 7).astype(bound.dtype)
    bit *= height
    bit += bound[byte]
    return bit
