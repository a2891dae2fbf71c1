"""The kernels on a GPU: the original's cases, the directed claims, and the emulator's bits."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from tests.emulator.checks import CHECKS
from tests.emulator.emulator import emulator
from tests.emulator.expectations import CLIPPED, CROSS, HALF, LOGITS, PADDED, SMALL, WIDE, expect_reference, heads
from tests.emulator.originals import CASES, MODES, expect_original
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_detections_boxes_and_masks_are_the_originals(case: dict[str, Any], mode: str) -> None:
    expect_original(gpu, case, mode)


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check: str) -> None:
    CHECKS[check](gpu)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_every_bit_of_the_originals_cases_is_the_emulators(case: dict[str, Any], mode: str) -> None:
    image_hw = (case["wh"][1], case["wh"][0])
    _expect_same(expect_original(gpu, case, mode), expect_original(emulator, case, mode), image_hw)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("specialization", [SMALL, WIDE, CROSS, LOGITS, CLIPPED, PADDED, HALF, _REAL], ids=str)
def test_every_bit_of_random_heads_is_the_emulators(specialization: Specialization) -> None:
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
