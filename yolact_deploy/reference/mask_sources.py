"""Masks that are there already: as the bits of windows, run lengths or bytes. All give the same masks as those that are assembled
from prototypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, IntArray
from yolact_deploy.reference.masks import MaskRegion
from yolact_deploy.reference.run_lengths import BitWindow, bit_window, encode_runs, encode_windows

MaskForm: TypeAlias = Literal["bits", "rle", "dense"]  # in which masks of a GPU come to the host

WORD_BITS = 32


class MaskSource(Protocol):
    """n masks at the size of one image."""

    def __len__(self) -> int: ...

    def dense(self) -> BoolArray:
        """bool [n, H, W]."""
        ...

    def regions(self) -> Iterator[MaskRegion]:
        """One per mask, each made when it is asked for."""
        ...

    def rle(self) -> list[dict[str, Any]]:
        """{"size": [H, W], "counts": str} of every mask, as pycocotools writes them."""
        ...

    def take(self, rows: IntArray) -> MaskSource:
        """The masks of the given rows [m], in the given order."""
        ...


def unpack_mask_words(
    mask_words: AnyArray,  # uint32 [..., H, V]
    image_w: int,
) -> AnyArray:
    """bool [..., H, W] of masks as bits.

    >>> unpack_mask_words(np.array([0b101], np.uint32), 4).tolist()
    [True, False, True, False]
    """
    little_endian = np.ascontiguousarray(mask_words, "<u4").view(np.uint8)
    return np.unpackbits(little_endian, axis=-1, count=image_w, bitorder="little").view(bool)


@dataclass(frozen=True, eq=False)
class WindowMasks:
    """Masks as the bits of a window each: all that there is to keep of them, as outside of its window a mask is False.

    A window begins at a column divisible by 32 and holds whole words: pixel x of its row y is bit x % 32, from the lowest,
    of word `starts[i] + y * pitch + x // 32`. Bits beyond the image are 0.
    """

    words: AnyArray  # uint32 [sum of all windows' words]
    windows: IntArray  # [n, 4], pixels: top row, left column, rows, words per row
    starts: IntArray  # [n], of each window in `words`
    image_hw: tuple[int, int]

    @classmethod
    def of(cls, regions: Iterable[MaskRegion], image_hw: tuple[int, int]) -> WindowMasks:
        """The masks of `regions`, packed."""
        windows, parts = [], []
        for region in regions:
            height, width = region.window.shape
            left = region.column - region.column % WORD_BITS
            pitch = -(-(region.column - left + width) // WORD_BITS) if width else 0
            padded = np.zeros((height, pitch * WORD_BITS), bool)
            padded[:, region.column - left : region.column - left + width] = region.window
            parts.append(np.packbits(padded, axis=1, bitorder="little").reshape(-1).view("<u4"))
            windows.append((region.row, left, height, pitch))
        table = np.array(windows, np.int64).reshape(-1, 4)
        words = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
        return cls(words, table, window_starts(table), image_hw)

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        """Only the words that these masks have: those of a selection share them with all masks of the image."""
        return dict(vars(self._compact()))

    def dense(self) -> BoolArray:
        pixels = np.zeros((len(self), *self.image_hw), bool)  # pages that no window touches are never filled
        for mask, region in zip(pixels, self.regions(), strict=True):
            height, width = region.window.shape
            mask[region.row : region.row + height, region.column : region.column + width] = region.window
        return pixels

    def regions(self) -> Iterator[MaskRegion]:
        for (row, column, height, pitch), start, stop in zip(
            self.windows.tolist(), self.starts.tolist(), self._stops().tolist(), strict=True
        ):
            words = self.words[start:stop].reshape(height, pitch)
            width = min(pitch * WORD_BITS, self.image_hw[1] - column) if pitch else 0
            yield MaskRegion(row, column, unpack_mask_words(words, width))

    def rle(self) -> list[dict[str, Any]]:
        little_endian = np.ascontiguousarray(self.words, "<u4").view(np.uint8)
        windows = (
            BitWindow(
                number, row, column, little_endian[4 * start : 4 * (start + height * pitch)].reshape(height, 4 * pitch)
            )
            for number, ((row, column, height, pitch), start) in enumerate(
                zip(self.windows.tolist(), self.starts.tolist(), strict=True)
            )
        )
        return encode_windows(windows, len(self), self.image_hw)

    def take(self, rows: IntArray) -> WindowMasks:
        taken = dataclasses.replace(self, windows=self.windows[rows], starts=self.starts[rows])
        # few masks must not keep the memory of all, nor what a GPU's results were lent
        return taken._compact() if 2 * taken.windows[:, 2:].prod(axis=1).sum() < len(self.words) else taken

    def _compact(self) -> WindowMasks:
        """With no words but those of these masks."""
        words = [self.words[start:stop] for start, stop in zip(self.starts, self._stops(), strict=True)]
        packed = np.concatenate(words) if words else np.zeros(0, np.uint32)
        return WindowMasks(packed, self.windows, window_starts(self.windows), self.image_hw)

    def _stops(self) -> IntArray:
        stops: IntArray = self.starts + self.windows[:, 2] * self.windows[:, 3]
        return stops


def window_starts(windows: IntArray) -> IntArray:
    """[n]: where the words of each window [n, 4] begin, if they stand one after the other."""
    sizes = windows[:, 2] * windows[:, 3]
    starts: IntArray = np.cumsum(sizes) - sizes
    return starts


@dataclass(frozen=True, eq=False)
class DenseMasks:
    """Masks as bool."""

    pixels: BoolArray  # [n, H, W]

    def __len__(self) -> int:
        return len(self.pixels)

    def dense(self) -> BoolArray:
        return self.pixels

    def regions(self) -> Iterator[MaskRegion]:
        return map(_bounded, self.pixels)

    def rle(self) -> list[dict[str, Any]]:
        packed = (
            bit_window(number, region.row, region.column, region.window) for number, region in enumerate(self.regions())
        )
        return encode_windows(packed, len(self), (self.pixels.shape[1], self.pixels.shape[2]))

    def take(self, rows: IntArray) -> DenseMasks:
        return DenseMasks(self.pixels[rows])


@dataclass(frozen=True, eq=False)
class RunMasks:
    """Masks as COCO's run lengths: pixels column by column, runs of False and True in turn, the first of False."""

    runs: Sequence[AnyArray]  # n times uint32 [runs of the mask]
    image_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.runs)

    def dense(self) -> BoolArray:
        height, width = self.image_hw
        pixels = np.empty((len(self), height, width), bool)
        for mask, runs in zip(pixels, self.runs, strict=True):
            mask[...] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
        return pixels

    def regions(self) -> Iterator[MaskRegion]:
        return (_bounded(self.take(np.array([row])).dense()[0]) for row in range(len(self)))

    def rle(self) -> list[dict[str, Any]]:
        counts = np.array([len(runs) for runs in self.runs], np.int64)
        runs = np.concatenate([np.zeros(0, np.int64), *self.runs])
        return encode_runs(runs.astype(np.int64), counts, self.image_hw)

    def take(self, rows: IntArray) -> RunMasks:
        return RunMasks([self.runs[row] for row in rows], self.image_hw)


def _bounded(mask: BoolArray) -> MaskRegion:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return MaskRegion(0, 0, np.zeros((0, 0), bool))
    return MaskRegion(int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
