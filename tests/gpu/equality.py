"""That the GPU's kernels give the emulator's bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulator.emulator import emulator
from tests.emulator.expectations import CLIPPED, CROSS, HALF, LOGITS, PADDED, SMALL, WIDE, expect_reference, heads
from tests.emulator.originals import expect_original
from tests.emulator.pipeline import Pipeline
from tests.gpu.runner import gpu
from yolact_deploy.cuda.specialization import Specialization

_RESULTS = (
    "count",
    "prior_idx",
    "class_ids",
    "scores",
    "boxes",
    "pixel_boxes",
    "cells",
    "windows",
    "window_start",
    "coeff",
)
_REAL = Specialization(num_classes=80, num_coeff=32)
SPECIALIZATIONS = (SMALL, WIDE, CROSS, LOGITS, CLIPPED, PADDED, HALF, _REAL)


def expect_emulators_case(case: dict[str, Any], mode: str) -> None:
    """Of a case of the original, in a mode of MODES."""
    image_hw = (case["wh"][1], case["wh"][0])
    _expect_same(expect_original(gpu, case, mode), expect_original(emulator, case, mode), image_hw)


def expect_emulators_bits(specialization: Specialization) -> None:
    """Of random heads."""
    inputs = heads(1, specialization, priors=3000, batch=2, proto_hw=(35, 33), levels=500, spread=4.0)
    pipelines = [Pipeline(build(specialization), specialization) for build in (gpu, emulator)]
    for pipeline in pipelines:
        if specialization is HALF:
            pipeline.detect(**_halved(inputs), image_hws=[(203, 307)] * 2)
        else:
            expect_reference(pipeline, inputs, image_hw=(203, 307))
    _expect_same(pipelines[0], pipelines[1], (203, 307))


def _expect_same(ours: Pipeline, emulated: Pipeline, image_hw: tuple[int, int]) -> None:
    words = []
    for pipeline in (ours, emulated):
        pipeline.masks(image_hw)
        words.append([windowed.words for windowed in pipeline.windowed()])
    np.testing.assert_array_equal(ours.arrays["count"], emulated.arrays["count"])
    for b, n in enumerate(ours.arrays["count"].tolist()):
        for name in _RESULTS[1:]:
            found, expected = ours.arrays[name][b, :n], emulated.arrays[name][b, :n]
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=name)
        np.testing.assert_array_equal(words[0][b], words[1][b])
    np.testing.assert_array_equal(ours.soft_masks().view(np.uint32), emulated.soft_masks().view(np.uint32))
    assert ours.runs() == emulated.runs()


def _halved(inputs: dict[str, Any]) -> dict[str, Any]:
    half = ("loc", "conf", "mask_coeff", "proto")
    return {name: array.astype(np.float16) if name in half else array for name, array in inputs.items()}
