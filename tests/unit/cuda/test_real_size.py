"""The published sizes at their worst: every one of 19,248 priors a candidate in all of 80 classes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.emulator import emulator
from tests.emulator.expectations import coco_runs, expect_masks, expect_reference, heads
from tests.emulator.pipeline import Pipeline
from yolact_deploy.cuda.specialization import Specialization

pytestmark = pytest.mark.slow


def test_every_prior_of_yolact_base_survives() -> None:
    specialization = Specialization(num_classes=80, num_coeff=32)
    inputs = heads(0, specialization, priors=19_248, proto_hw=(138, 138), levels=4000, spread=20.0, rate=1.0)
    inputs["conf"][..., 1] = np.maximum(inputs["conf"][..., 1], np.float32(0.06))
    pipeline = Pipeline(emulator(specialization), specialization, schedule=7)
    raws = expect_reference(pipeline, inputs, image_hw=(540, 960))
    assert np.unpackbits(pipeline.arrays["kept_words"].view(np.uint8)).sum() == 19_248
    assert len(raws[0]) == 100
    masks = expect_masks(pipeline, raws, (540, 960))
    runs = pipeline.runs()[0]
    for n in (0, 50, 99):
        assert runs[n] == coco_runs(masks[0][n])
