"""What the emulator counts of a launch."""

from __future__ import annotations

from tests.emulator.emulator import emulator
from tests.emulator.expectations import SMALL, heads
from tests.emulator.pipeline import Pipeline


def test_masks_are_written_once_in_their_windows_and_no_block_is_idle() -> None:
    kernels = emulator(SMALL, "costs")
    inputs = heads(16, SMALL, priors=30, spread=1.0)
    pipeline = Pipeline(kernels, SMALL)
    pipeline.detect(**inputs, image_hws=[(200, 300)])
    pipeline.masks((200, 300))
    costs = kernels.costs()
    assert costs["bytes_written"] == sum(pipeline.program.mask_bytes(pipeline.arrays)) > 0
    assert costs["blocks"] == pipeline.program.model.mask_blocks
    assert costs["blocks_without_work"] == 0
    assert costs["barriers"] > costs["blocks"]
    assert costs["steps"] > costs["longest_thread_steps"] > 0


def test_a_block_that_writes_nothing_has_no_work() -> None:
    kernels = emulator(SMALL, "costs")
    inputs = heads(16, SMALL, priors=30, spread=1.0)
    inputs["conf"][...] = 0
    pipeline = Pipeline(kernels, SMALL)
    pipeline.detect(**inputs, image_hws=[(20, 30)])
    pipeline.masks((20, 30))
    costs = kernels.costs()
    assert costs["blocks_without_work"] == costs["blocks"] > 0
    assert costs["bytes_written"] == 0
