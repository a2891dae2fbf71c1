"""Random sizes, thresholds and schedules against the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.emulator import emulator
from tests.emulator.expectations import CLIPPED, PADDED, coco_runs, expect_detections, expect_masks, heads
from tests.emulator.pipeline import Pipeline
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.postprocess import detect, softmax

pytestmark = pytest.mark.slow

# a handful, as each is compiled
SPECIALIZATIONS = [
    Specialization(num_classes=1, num_coeff=3, top_k=3, max_detections=7),
    Specialization(num_classes=5, num_coeff=4, top_k=20, max_detections=12),
    Specialization(num_classes=33, num_coeff=8, top_k=9, cross_class=True),
    Specialization(num_classes=9, num_coeff=5, top_k=40, conf_logits=True),
    CLIPPED,
    PADDED,
]


@settings(max_examples=60, deadline=None)
@given(
    specialization=st.sampled_from(SPECIALIZATIONS),
    seed=st.integers(0, 2**32 - 1),
    priors=st.integers(1, 200),
    batch=st.integers(1, 3),
    levels=st.sampled_from([2, 7, 1000]),
    spread=st.sampled_from([0.5, 1.0, 8.0]),
    conf_threshold=st.sampled_from([0.0, 0.05, 0.5]),
    iou_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    proto_hw=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    image_hw=st.tuples(st.integers(1, 70), st.integers(1, 300)),
    crop=st.booleans(),
    schedule=st.integers(0, 1000),
)
def test_kernels_are_the_reference(
    specialization: Specialization,
    seed: int,
    priors: int,
    batch: int,
    levels: int,
    spread: float,
    conf_threshold: float,
    iou_threshold: float,
    proto_hw: tuple[int, int],
    image_hw: tuple[int, int],
    crop: bool,
    schedule: int,
) -> None:
    inputs = heads(seed, specialization, priors=priors, batch=batch, levels=levels, spread=spread, proto_hw=proto_hw)
    thresholds: dict[str, Any] = {"conf_threshold": conf_threshold, "iou_threshold": iou_threshold}
    pipeline = Pipeline(emulator(specialization), specialization, schedule)
    found = pipeline.detect(**inputs, image_hws=[image_hw] * batch, **thresholds)
    if specialization.conf_logits:
        inputs["conf"] = softmax(inputs["conf"])
    raws = detect(
        **inputs,
        **thresholds,
        nms="cross_class" if specialization.cross_class else "fast",
        top_k=specialization.top_k,
        max_detections=specialization.max_detections,
        clip_boxes=specialization.clip_boxes,
    )
    for one, raw in zip(found, raws, strict=True):
        expect_detections(one, raw, image_hw, pad=specialization.pad)
    masks = expect_masks(pipeline, raws, image_hw, crop=crop)
    dense, runs = pipeline.dense(), pipeline.runs()
    for i, raw in enumerate(raws):
        np.testing.assert_array_equal(dense[i][: len(raw)], masks[i])
        assert runs[i] == [coco_runs(mask) for mask in masks[i]]
