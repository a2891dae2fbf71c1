from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yolact_deploy.arrays import BoolArray
from yolact_deploy.reference import run_lengths
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_sources import DenseMasks, MaskSource, RunMasks, WindowMasks
from yolact_deploy.reference.masks import MaskRegion

HEIGHT, WIDTH = 37, 141


def _pictures() -> BoolArray:
    """Empty, full, noise, one pixel at the last corner, columns that touch each other's ends, a box over a word's border."""
    rng = np.random.default_rng(3)
    masks = np.zeros((6, HEIGHT, WIDTH), bool)
    masks[1] = True
    masks[2] = rng.random((HEIGHT, WIDTH)) > 0.6
    masks[3, -1, -1] = True
    masks[4, -5:, 60] = masks[4, :7, 61] = True
    masks[5, 4:20, 29:67] = True
    return masks


def _whole_image(masks: BoolArray) -> WindowMasks:
    """Windows as large as the image, the last mask's words first, among words that belong to none."""
    height, pitch = masks.shape[1], 5
    words = np.zeros((len(masks), height * pitch), np.uint32)
    n, y, x = np.nonzero(masks)
    np.bitwise_or.at(words, (n, y * pitch + x // 32), np.uint32(1) << (x % 32).astype(np.uint32))
    space = np.full((len(masks), height * pitch + 7), 0xA5A5A5A5, np.uint32)
    space[:, 7:] = words[::-1]
    starts = np.arange(len(masks))[::-1] * space.shape[1] + 7
    windows = np.tile([0, 0, height, pitch], (len(masks), 1))
    return WindowMasks(space.reshape(-1), windows, starts, (masks.shape[1], masks.shape[2]))


def _runs(masks: BoolArray) -> RunMasks:
    runs = []
    for mask in masks:
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(flat, prepend=False))
        runs.append(np.diff(changes, prepend=0, append=flat.size).astype(np.uint32))
    return RunMasks(runs, (masks.shape[1], masks.shape[2]))


def _windows(masks: BoolArray) -> WindowMasks:
    return WindowMasks.of(DenseMasks(masks).regions(), (masks.shape[1], masks.shape[2]))


@pytest.mark.parametrize("make", [_whole_image, _runs, _windows, DenseMasks])
def test_every_form_holds_the_same_masks(make: Callable[[BoolArray], MaskSource]) -> None:
    masks = _pictures()
    source = make(masks)
    assert len(source) == 6
    np.testing.assert_array_equal(source.dense(), masks)
    for region, mask in zip(source.regions(), masks, strict=True):
        whole = np.zeros((HEIGHT, WIDTH), bool)
        height, width = region.window.shape
        whole[region.row : region.row + height, region.column : region.column + width] = region.window
        np.testing.assert_array_equal(whole, mask)
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert source.rle() == [{"size": [HEIGHT, WIDTH], "counts": one["counts"].decode()} for one in encoded]
    rows = np.array([5, 2])
    np.testing.assert_array_equal(source.take(rows).dense(), masks[rows])
    none = source.take(np.array([], np.int64))
    assert (none.dense().shape, list(none.regions()), none.rle()) == ((0, HEIGHT, WIDTH), [], [])


@pytest.mark.parametrize("chunk_bytes", [1, 300])
def test_run_lengths_are_the_same_however_many_masks_are_looked_at_together(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = _windows(_pictures()).take(np.array([0, 2, 1, 0, 3, 5, 4, 0]))
    together = masks.rle()
    monkeypatch.setattr(run_lengths, "_CHUNK_BYTES", chunk_bytes)
    assert masks.rle() == together


def test_run_lengths_of_an_image_of_more_pixels_than_32_bits_count() -> None:
    height = width = 70_000
    corner = np.ones((3, 2), bool)
    at_the_end = WindowMasks.of([MaskRegion(height - 3, width - 2, corner)] * 2, (height, width))
    runs = [(width - 2) * height + height - 3, 3, height - 3, 3]
    assert [run_lengths.run_lengths(one["counts"]) for one in at_the_end.rle()] == [runs] * 2


def test_detections_have_as_many_masks_as_scores() -> None:
    raw = RawDetections(
        np.zeros(2, np.int64),
        np.zeros(2, np.int64),
        np.ones(2, np.float32),
        np.zeros((2, 4), np.float32),
        np.zeros((2, 1), np.float32),
        np.zeros((0, 0, 1), np.float32),
    )
    masks = DenseMasks(_pictures())
    with pytest.raises(ValueError, match="2 detections can't have 6 masks"):
        Detections(raw, (HEIGHT, WIDTH), raw.boxes_xyxy, mask_source=masks)
    with pytest.raises(ValueError, match="no prototypes"):
        Detections(raw, (HEIGHT, WIDTH), raw.boxes_xyxy)
    found = Detections(raw, (HEIGHT, WIDTH), raw.boxes_xyxy, mask_source=masks.take(np.array([1, 2])))
    np.testing.assert_array_equal(found.masks, _pictures()[1:3])


def test_windows_arrive_with_no_more_than_their_own_words() -> None:
    few = _windows(_pictures()).take(np.array([5, 3]))
    arrived = pickle.loads(pickle.dumps(few))
    np.testing.assert_array_equal(arrived.dense(), _pictures()[[5, 3]])
    assert arrived.words.size == 16 * 3 + 1  # rows 4 to 19 over the words of columns 0 to 95, and one pixel


def test_few_of_many_masks_keep_no_more_than_their_own_words() -> None:
    masks = _windows(_pictures())
    few = masks.take(np.array([5]))
    assert few.words.size == 16 * 3
    assert not np.shares_memory(few.words, masks.words)
    np.testing.assert_array_equal(few.dense(), _pictures()[[5]])
    most = masks.take(np.array([0, 1, 2, 3, 4]))
    assert np.shares_memory(most.words, masks.words)
