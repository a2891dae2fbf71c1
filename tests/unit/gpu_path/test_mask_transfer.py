"""How masks cross to the host: as many as last time with the frame itself, and into memory that their owner keeps."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.emulator.driver import EmulatedDriver
from tests.unit.gpu_path.gpu_expectations import PHOTOS, PIXELS, assert_identical
from yolact_deploy import Detections, Detector
from yolact_deploy.cuda import buffers as buffers_module
from yolact_deploy.cuda.buffers import PinnedMemoryPool
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.runtime.gpu import results
from yolact_deploy.runtime.protocols import HeadTensors

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]
GROWS_AND_SHRINKS = (3, 60, 0, 1, 200, 200, 2)  # priors that are left in every image


class Thinned:
    """A network whose every image has so many confident priors."""

    def __init__(self) -> None:
        self.left = 0

    def __call__(self, heads: HeadTensors) -> HeadTensors:
        for conf in heads.conf:
            conf[np.argsort(-conf[:, 1:].max(axis=1), kind="stable")[self.left :], 1:] = 0
        return heads


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that a stream was waited for."""
    waited: list[int] = []
    synchronize = EmulatedDriver.synchronize

    def count(driver: EmulatedDriver, stream: int) -> None:
        waited.append(stream)
        synchronize(driver, stream)

    monkeypatch.setattr(EmulatedDriver, "synchronize", count)
    return waited


@pytest.mark.parametrize(
    ("batch", "masks"),
    [(1, "bits"), (1, "dense"), (2, "bits"), (2, "rle")],
    ids=["bits", "dense", "two-bits", "two-rle"],
)
def test_masks_are_those_of_the_cpu_as_their_number_grows_and_shrinks(
    emulated: Emulate, shapes_onnx: Path, batch: int, masks: MaskForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_SPARE_BYTES", 256)  # so that these small masks cross in two parts too
    thinned = Thinned()
    gpu = emulated(in_stream=True, alter=thinned)
    detector = gpu.open(shapes_onnx, batch_size=2)
    images = PIXELS[:batch]
    kept: list[tuple[list[Detections], list[Detections]]] = []
    for thinned.left in GROWS_AND_SHRINKS:
        kept.append((detector(images, masks=masks), by_stages(detector, images)))
    assert len({len(found[0]) for found, _ in kept}) >= 4
    detector.close()
    for found, expected in kept:  # more than are lent
        for one, other in zip(found, expected, strict=True):
            assert_identical(one, other)


def test_only_a_frame_whose_masks_are_much_more_than_the_last_ones_is_waited_for_twice(
    emulated: Emulate, shapes_onnx: Path, waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_SPARE_BYTES", 256)  # as these masks are small
    thinned = Thinned()
    gpu = emulated(in_stream=True, alter=thinned)
    detector = gpu.open(shapes_onnx)
    crossed, waited = [], []
    for thinned.left in (3, 3, 200, 200, 0, 3):
        waits.clear()
        before = gpu.driver.copied["to_host"]
        detector(PIXELS[0])
        crossed.append(gpu.driver.copied["to_host"] - before)
        waited.append(len(waits))
    assert waited == [2, 1, 2, 1, 1, 2]  # nothing to go by, as before, many more, as before, none, some after none
    few, few_again, _, many_again, none_expected_many, few_after_none = crossed
    assert few < few_again <= 1.3 * few + 256
    assert few_after_none == few
    assert none_expected_many == many_again  # they had been sent already


def test_a_stream_of_images_is_waited_for_once_each(emulated: Emulate, shapes_onnx: Path, waits: list[int]) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    for _ in detector.stream([PIXELS[0]] * 2):
        pass  # both lanes know what to expect
    waits.clear()
    assert sum(1 for _ in detector.stream([PIXELS[0]] * 6)) == 6
    assert len(waits) == 6


def test_no_frame_waits_for_pages_to_be_locked(
    emulated: Emulate, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    locked: list[int] = []
    monkeypatch.setattr(gpu.driver, "lock_pages", lambda address, nbytes: locked.append(nbytes))
    found = detector(PIXELS[0])
    for _ in range(3):
        found = detector(PIXELS[0])
    assert len(found) > 0
    assert locked == []


def test_where_pages_cannot_be_locked_masks_are_copied(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated(in_stream=True)
    gpu.driver.locks_pages = False
    detector = gpu.open(shapes_onnx)
    kept = [detector(photo) for photo in PHOTOS * 2]
    for found, photo in zip(kept, PHOTOS * 2, strict=True):
        assert_identical(found, on_cpu(photo))
    (note,) = detector.notes
    assert "NOT_SUPPORTED" in note


def test_masks_outlive_a_context_that_another_library_resets(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    found = detector(PHOTOS[0])
    gpu.driver.torn_down = True
    detector.close()
    del detector
    assert_identical(found, on_cpu(PHOTOS[0]))


def test_a_block_is_lent_again_when_nobody_has_a_view_of_it() -> None:
    driver = EmulatedDriver()
    pool = PinnedMemoryPool(driver, pytest.fail)
    with driver.current():
        first = lent(pool, 100)
        address, view = first.ctypes.data, first[10:20].view(np.uint16)
        del first
        assert lent(pool, 100).ctypes.data != address
        del view
        gc.collect()
        assert lent(pool, 100).ctypes.data == address
        pool.close()
    assert driver.left_over == {}


def test_a_forked_process_keeps_what_was_lent_when_it_was_forked() -> None:
    driver = EmulatedDriver()
    pool = PinnedMemoryPool(driver, pytest.fail)
    with driver.current():
        block = lent(pool, 100)
        block[:] = 7
        wait, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(wait, 1)
            os._exit(0 if (block == 7).all() else 1)
        del block
        for _ in range(buffers_module.MAX_BLOCKS + 1):
            lent(pool, 100)[:] = 9
        os.write(go, b"!")
        assert os.waitpid(child, 0)[1] == 0
        os.close(wait)
        os.close(go)
        pool.close()
    assert driver.left_over == {}


def test_no_more_is_lent_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = EmulatedDriver()
    pool = PinnedMemoryPool(driver, pytest.fail)
    with driver.current():
        kept = [lent(pool, 100) for _ in range(buffers_module.MAX_BLOCKS)]
        assert pool.acquire(100) is None
        kept.pop()
        kept.append(lent(pool, 5 << 20))  # in the place of a smaller one
        assert len(kept[-1]) >= 5 << 20
        assert pool.acquire(100) is None
        kept.clear()
        assert pool.acquire(buffers_module.MAX_BYTES + 1) is None
        monkeypatch.setattr(buffers_module, "MAX_BYTES", 8 << 20)
        kept.append(lent(pool, 5 << 20))
        assert pool.acquire(5 << 20) is None
        kept[-1][:] = 7
        pool.close()
    assert driver.left_over == {}
    assert (kept[-1] == 7).all()


def lent(pool: PinnedMemoryPool, nbytes: int) -> Any:
    block = pool.acquire(nbytes)
    assert block is not None
    return block


def by_stages(detector: Detector, images: Sequence[Any]) -> list[Detections]:
    """By the NumPy reference."""
    raws = [detector.suppress(detector.run_network(detector.preprocess([image])))[0] for image in images]
    return [detector.assemble(raw, (image.shape[0], image.shape[1])) for raw, image in zip(raws, images, strict=True)]
