"""Masks assembled by a compiled kernel, where numba is installed (extra `fast`): bits of windows at once, and to the bit those of
PrototypeMasks, which stays the reference and does the work without it.

Importing numba and loading the kernel takes half a second, and compiling it, once per machine, two: as long as NumPy takes for
a thousand masks and more. So the first masks of a process are NumPy's; then a thread of its own makes the kernel ready, while
NumPy goes on, more slowly where the two contend for the interpreter. A process that ends meanwhile ends when the thread does.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, IntArray, sigmoid
from yolact_deploy.files import cache_folder
from yolact_deploy.reference.mask_kernel import compiled_fill_words
from yolact_deploy.reference.mask_sources import WORD_BITS, WindowMasks, window_starts
from yolact_deploy.reference.masks import MaskRegion, PrototypeMasks, mask_extents
from yolact_deploy.reference.stretching import axis

Kernel: TypeAlias = Callable[..., None]  # `mask_kernel.fill_words`

KIND = "numba"  # in `cache_folder`
_PATIENCE = 1000  # masks that NumPy makes first
_CHUNK_WORDS = 1 << 18
_CHUNK_CELLS = 1 << 15  # their doubles stay in the cache


def choose_masks(masks: PrototypeMasks) -> PrototypeMasks | CompiledMasks:
    """The same masks, assembled by the compiled kernel once that is ready."""
    kernel = _READINESS.kernel_for(len(masks))
    return masks if kernel is None else CompiledMasks(masks, kernel)


def load_kernel() -> Kernel | None:
    """The kernel, compiled; from the cache where it is there, and this CPU's. None where numba is not installed or has been told
    not to compile (NUMBA_DISABLE_JIT). Raises what the import of a broken numba raises."""
    if find_spec("numba") is None or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return None
    try:
        return _compiled(is_kept=True)
    except Exception:  # numba's, of a cache that is damaged, or on a full disk
        return _compiled(is_kept=False)


def _compiled(*, is_kept: bool) -> Kernel:
    kernel: Kernel = compiled_fill_words()
    if is_kept:
        _keep_compiled(kernel)
    nothing = PrototypeMasks(
        np.zeros((1, 1, 1), np.float32), np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32), (1, 1), crop=True
    )
    CompiledMasks(nothing, kernel).windows()
    return kernel


def _keep_compiled(function: Any) -> None:
    """In the cache's folder, or the one of NUMBA_CACHE_DIR. Where that can't be written, nowhere: numba would go on to the folder
    of this package."""
    import numba

    theirs = numba.config.CACHE_DIR
    folder = Path(theirs) if theirs else cache_folder(KIND)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    numba.config.CACHE_DIR = str(folder)
    try:
        function.enable_caching()
    finally:
        numba.config.CACHE_DIR = theirs


class _Readiness:
    """Of the kernel in this process."""

    def __init__(self) -> None:
        self._wanted = 0  # masks until now
        self._begun = False
        self._kernel: Kernel | None = None
        self._lock = threading.Lock()

    def kernel_for(self, masks: int) -> Kernel | None:
        """The kernel, if it is ready; begins to make it so when there were enough masks."""
        if not self._begun:
            with self._lock:
                self._wanted += masks
                begins = self._wanted > _PATIENCE and not self._begun
                self._begun = self._begun or begins
            if begins:
                loading = threading.Thread(target=self._load, name="yolact-deploy-masks")
                with suppress(RuntimeError):  # at the end of the process no thread begins
                    loading.start()
                    if hasattr(os, "register_at_fork"):  # not on Windows
                        # a process forked in the midst of the import would wait for ever when it imports numba itself
                        os.register_at_fork(before=loading.join)
        return self._kernel

    def _load(self) -> None:
        with suppress(Exception):  # a numba that is broken, or too old for this NumPy: the masks are the same without
            self._kernel = load_kernel()


_READINESS = _Readiness()


@dataclass(frozen=True, eq=False)
class CompiledMasks:
    """The masks of a PrototypeMasks, a few at a time, as the bits of their windows."""

    masks: PrototypeMasks
    kernel: Kernel

    def __len__(self) -> int:
        return len(self.masks)

    def dense(self) -> BoolArray:
        """bool [n, H, W]."""
        pixels = np.zeros((len(self), *self.masks.image_hw), bool)
        for mask, region in zip(pixels, self.regions(), strict=True):
            height, width = region.window.shape
            mask[region.row : region.row + height, region.column : region.column + width] = region.window
        return pixels

    def regions(self) -> Iterator[MaskRegion]:
        """One per mask, each made when it is asked for."""
        for rows in self._parts():
            yield from self._part(rows).regions()

    def rle(self) -> list[dict[str, Any]]:
        """{"size": [H, W], "counts": str} of every mask, as pycocotools writes them."""
        return [encoded for rows in self._parts() for encoded in self._part(rows).rle()]

    def take(self, rows: IntArray) -> CompiledMasks:
        """The masks of the given rows [m], in the given order."""
        return dataclasses.replace(self, masks=self.masks.take(rows))

    def windows(self) -> WindowMasks:
        """All masks, assembled."""
        words = np.empty(self._layout.sizes.sum(), np.uint32)
        for rows in self._parts():
            self._fill(rows, words, self._layout.starts[rows])
        return WindowMasks(words, self._layout.windows, self._layout.starts, self.masks.image_hw)

    def _part(self, rows: slice) -> WindowMasks:
        windows = self._layout.windows[rows]
        starts = window_starts(windows)
        words = np.empty(self._layout.sizes[rows].sum(), np.uint32)
        self._fill(rows, words, starts)
        return WindowMasks(words, windows, starts, self.masks.image_hw)

    def _parts(self) -> Iterator[slice]:
        """Of the masks, as many one after the other as the cache holds; at least one."""
        first = words = cells = 0
        for row, (more_words, more_cells) in enumerate(
            zip(self._layout.sizes.tolist(), self._layout.cell_counts.tolist(), strict=True)
        ):
            if row > first and (words + more_words > _CHUNK_WORDS or cells + more_cells > _CHUNK_CELLS):
                yield slice(first, row)
                first, words, cells = row, 0, 0
            words, cells = words + more_words, cells + more_cells
        yield slice(first, len(self))

    def _fill(self, rows: slice, words: AnyArray, starts: IntArray) -> None:
        masks, cells, counts = self.masks, self._layout.cells[rows], self._layout.cell_counts[rows]
        soft_starts = np.cumsum(counts) - counts
        soft = np.empty(counts.sum(), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for coefficients, (left, right, top, bottom), start, count in zip(
                masks.mask_coeff[rows], cells.tolist(), soft_starts.tolist(), counts.tolist(), strict=True
            ):
                # in NumPy, mask by mask: the order of the sums is that of its own matrix product
                if count:
                    own = soft[start : start + count].reshape(bottom - top, right - left)
                    np.matmul(masks.proto[top:bottom, left:right], coefficients, out=own)
            soft = sigmoid(soft)
        height, width = masks.canvas_hw or masks.image_hw
        down, across = axis(masks.proto.shape[0], height), axis(masks.proto.shape[1], width)
        self.kernel(
            soft,
            soft_starts,
            cells,
            self._layout.pixels[rows],
            *(down.index0, down.index1, down.weight0, down.weight1),
            *(across.index0, across.index1, across.weight0, across.weight1),
            words,
            self._layout.windows[rows],
            starts,
        )

    @cached_property
    def _layout(self) -> _Layout:
        cells, pixels = mask_extents(self.masks)
        empty = ((cells[:, 0::2] >= cells[:, 1::2]) | (pixels[:, 0::2] >= pixels[:, 1::2])).any(axis=1)
        cells[empty], pixels[empty] = 0, 0
        left = pixels[:, 0] - pixels[:, 0] % WORD_BITS
        pitch = -((left - pixels[:, 1]) // WORD_BITS)
        windows = np.stack([pixels[:, 2], left, pixels[:, 3] - pixels[:, 2], pitch], axis=1)
        cell_counts = (cells[:, 1] - cells[:, 0]) * (cells[:, 3] - cells[:, 2])
        return _Layout(cells, pixels, cell_counts, windows, windows[:, 2] * windows[:, 3], window_starts(windows))


@dataclass(frozen=True)
class _Layout:
    cells: IntArray  # [n, 4], left, right, top, bottom, ends excluded; all 0 of a mask that has none
    pixels: IntArray  # [n, 4], likewise
    cell_counts: IntArray  # [n]
    windows: IntArray  # [n, 4], see `WindowMasks`
    sizes: IntArray  # [n], words
    starts: IntArray  # [n], of words
