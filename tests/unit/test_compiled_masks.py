from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.goldens import f32
from yolact_deploy.arrays import BoolArray
from yolact_deploy.reference import compiled_masks
from yolact_deploy.reference.compiled_masks import CompiledMasks, choose_masks
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_kernel import fill_words
from yolact_deploy.reference.masks import MaskRegion, PrototypeMasks

# compares scenes with NumPy, and says where the compiled kernel was found or left
COMPARE = """
import json, sys
import numpy as np
from tests.unit.test_compiled_masks import random_scene
from yolact_deploy.reference.compiled_masks import CompiledMasks, load_kernel
kernel = load_kernel()
pixels = different = 0
for seed in range(int(sys.argv[1])):
    masks = random_scene(seed, at_most=600)
    expected = masks.dense()
    pixels += expected.size
    different += int(np.count_nonzero(CompiledMasks(masks, kernel).windows().dense() != expected))
stats = kernel.stats
print(json.dumps([pixels, different, stats.cache_path, sum(stats.cache_hits.values()), len(kernel.signatures)]))
"""


def random_scene(seed: int, at_most: int) -> PrototypeMasks:
    """Masks of every size, among them empty ones, some of no number, and some all within a rounding of one half."""
    rng = np.random.default_rng(seed)
    proto_hw, image_hw, count = rng.integers(1, at_most // 4, 2), rng.integers(1, at_most, 2), 6
    proto = (rng.standard_normal((*proto_hw, 3)) * rng.choice([2.0**-22, 0.1, 3])).astype(np.float32)
    if seed % 3 == 0:
        proto[rng.random(tuple(proto_hw)) < 0.05] = (np.nan, 1e30, np.inf)
    coefficients = np.tanh(rng.standard_normal((count, 3))).astype(np.float32)
    coefficients[0] = 0
    boxes = (rng.random((count, 4)) * 1.6 - 0.3).astype(np.float32)  # corners in any order, partly or wholly outside
    boxes[1:3] = (0, 0, 1, 1), (0, np.nan, 1, 1)
    height, width = image_hw.tolist()
    canvas_hw = (max(height, width),) * 2 if seed % 2 else None
    return PrototypeMasks(proto, coefficients, boxes, (height, width), crop=seed % 5 != 0, canvas_hw=canvas_hw)


def _pasted(region: MaskRegion, image_hw: tuple[int, int]) -> BoolArray:
    whole = np.zeros(image_hw, bool)
    height, width = region.window.shape
    whole[region.row : region.row + height, region.column : region.column + width] = region.window
    return whole


@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_gives_the_masks_of_numpy_in_every_form(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_scene(seed, at_most=36)
    monkeypatch.setattr(compiled_masks, "_CHUNK_WORDS", 1 if seed % 2 else 30)  # masks one by one, and some together
    found, expected = CompiledMasks(masks, fill_words), masks.dense()
    np.testing.assert_array_equal(found.dense(), expected)
    np.testing.assert_array_equal([_pasted(region, masks.image_hw) for region in found.regions()], expected)
    assert found.rle() == masks.rle()
    windows = found.windows()
    np.testing.assert_array_equal(windows.dense(), expected)
    assert windows.rle() == masks.rle()
    rows = np.array([4, 1])
    np.testing.assert_array_equal(found.take(rows).dense(), expected[rows])
    none = found.take(np.array([], np.int64))
    assert (none.dense().shape, list(none.regions()), none.rle()) == ((0, *masks.image_hw), [], [])


@pytest.mark.parametrize("image_hw", [(23, 140), (140, 23), (5, 6)])
def test_the_kernel_is_exact_where_every_pixel_is_within_a_rounding_of_one_half(image_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    proto = (rng.integers(-3, 4, (7, 9, 1)) * 2.0**-22).astype(np.float32)
    boxes = f32([[0, 0, 1, 1], [0.3, 0.2, 0.7, 0.8]])
    masks = PrototypeMasks(proto, np.ones((2, 1), np.float32), boxes, image_hw, crop=True)
    expected = masks.dense()
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_array_equal(CompiledMasks(masks, fill_words).dense(), expected)


@pytest.fixture
def readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_masks, "_READINESS", compiled_masks._Readiness())


def _after_many(monkeypatch: pytest.MonkeyPatch) -> PrototypeMasks | CompiledMasks:
    masks = random_scene(0, at_most=20)
    monkeypatch.setattr(compiled_masks, "_PATIENCE", 3 * len(masks))
    for _ in range(3):
        assert choose_masks(masks) is masks
    choose_masks(masks)  # begins to make the kernel ready
    for thread in threading.enumerate():
        if thread.name == "yolact-deploy-masks":
            thread.join()
    return choose_masks(masks)


@pytest.mark.usefixtures("readiness")
def test_numpy_makes_the_first_masks_of_a_process_and_the_kernel_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_masks, "load_kernel", lambda: fill_words)
    assert isinstance(_after_many(monkeypatch), CompiledMasks)


@pytest.mark.usefixtures("readiness")
def test_a_fork_waits_until_the_kernel_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[Any] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: before.append(hooks["before"]))
    go_on, is_loaded = threading.Event(), threading.Event()

    def load() -> None:
        go_on.wait()
        is_loaded.set()

    monkeypatch.setattr(compiled_masks, "load_kernel", load)
    monkeypatch.setattr(compiled_masks, "_PATIENCE", 0)
    choose_masks(random_scene(0, at_most=20))
    threading.Timer(0.05, go_on.set).start()
    for hook in before:
        hook()
    assert is_loaded.is_set()


def _broken() -> Any:
    raise ImportError("Numba needs NumPy 2.4 or less. Got NumPy 3.0.")


@pytest.mark.usefixtures("readiness")
def test_detections_whose_masks_are_compiled_are_kept_and_sent_as_the_bits_of_their_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = random_scene(1, at_most=36)
    count = len(masks)
    raw = RawDetections(
        np.arange(count),
        np.zeros(count, np.int64),
        np.ones(count, np.float32),
        masks.boxes_relative,
        masks.mask_coeff,
        masks.proto,
    )
    found = Detections(raw, masks.image_hw, raw.boxes_xyxy, masks.crop, canvas_hw=masks.canvas_hw)
    expected = found.rle()
    monkeypatch.setattr(compiled_masks._READINESS, "_kernel", fill_words)
    assert isinstance(found._masks_from(), CompiledMasks)
    for each in (found, found.assembled(), pickle.loads(pickle.dumps(found))):
        assert each.rle() == expected
        np.testing.assert_array_equal(each.masks, masks.dense())


@pytest.mark.usefixtures("readiness")
@pytest.mark.parametrize("load", [_broken, lambda: None])
def test_numpy_makes_all_masks_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setattr(compiled_masks, "load_kernel", load)
    assert isinstance(_after_many(monkeypatch), PrototypeMasks)


def test_the_kernel_is_neither_compiled_nor_loaded_where_numba_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert compiled_masks.load_kernel() is None


@pytest.mark.slow
@pytest.mark.needs("numba")
def test_the_compiled_kernel_gives_the_masks_of_numpy_and_is_kept_in_the_cache(tmp_path: Path) -> None:
    pixels, different, kept_in, hits, compiled = _compare(tmp_path, scenes=60)
    assert (different, hits, compiled) == (0, 0, 1)
    assert pixels > 10e6
    assert Path(kept_in).is_relative_to(tmp_path / "numba")
    assert _compare(tmp_path, scenes=1)[1:] == [0, kept_in, 1, 1]


@pytest.mark.slow
@pytest.mark.needs("numba")
def test_a_cache_that_can_not_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert _compare(tmp_path / "file", scenes=1)[1:] == [0, None, 0, 1]


@pytest.mark.slow
@pytest.mark.needs("numba")
def test_a_damaged_cache_is_done_without(tmp_path: Path) -> None:
    kept_in = _compare(tmp_path, scenes=1)[2]
    for index in Path(kept_in).glob("*.nbi"):
        index.write_bytes(b"")  # as a machine that lost its power may leave it
    assert _compare(tmp_path, scenes=1)[1:] == [0, None, 0, 1]


def _compare(cache: Path, scenes: int) -> list[Any]:
    environment = {"NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": "", "YOLACT_DEPLOY_CACHE": str(cache)}
    command = [sys.executable, "-c", COMPARE, str(scenes)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    found: list[Any] = json.loads(run.stdout)
    return found
