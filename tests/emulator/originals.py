"""The original's recorded Detect + postprocess cases, as a claim about kernels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.emulator.expectations import Build, expect_detections
from tests.emulator.pipeline import Pipeline
from tests.goldens import GOLDEN, postgen
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.masks import CROP_PADDING, ordered_limits
from yolact_deploy.reference.postprocess import detect
from yolact_deploy.spec import NmsMode

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "post/cases.json").read_text())
MODES: dict[str, NmsMode] = {"fast": "fast", "cross": "cross_class"}


def expect_original(build: Build, case: dict[str, Any], mode: str) -> Pipeline:
    """Detections, boxes and masks of a case of CASES in a mode of MODES are the recorded ones."""
    inputs = postgen().make_case(case["spec"])
    inputs["mask_coeff"] = inputs.pop("mask")
    image_hw = (case["wh"][1], case["wh"][0])
    batch, _, columns = inputs["conf"].shape
    specialization = Specialization(columns - 1, inputs["proto"].shape[3], cross_class=mode == "cross")
    pipeline = Pipeline(build(specialization), specialization)
    found = pipeline.detect(**inputs, image_hws=[image_hw] * batch)
    raws = detect(**inputs, nms=MODES[mode])
    with np.load(GOLDEN / "post" / f"{case['id']}.npz") as recorded:
        for b in range(batch):
            key = f"b{b}.{mode}"
            expect_detections(found[b], raws[b], image_hw)
            if f"{key}.none" in recorded:
                assert len(found[b]) == 0
                continue
            stable = f"{key}.stable" if f"{key}.stable.prior_idx" in recorded else key
            np.testing.assert_array_equal(found[b].prior_idx, recorded[f"{stable}.prior_idx"])
            np.testing.assert_array_equal(found[b].class_ids, recorded[f"{stable}.class"])
            np.testing.assert_array_equal(found[b].scores, recorded[f"{stable}.score"])
            if stable != key:  # what follows was recorded in the order of the run, where ties fell as they liked
                _place_recorded(pipeline, b, recorded, key, inputs)
            else:
                np.testing.assert_array_equal(found[b].pixel_boxes, recorded[f"{key}.post.box"])
        for crop, name in ((True, "crop"), (False, "nocrop")):
            _check_masks(pipeline, pipeline.masks(image_hw, crop=crop), recorded, mode, name)
    return pipeline


def _place_recorded(pipeline: Pipeline, b: int, recorded: Any, key: str, inputs: dict[str, Any]) -> None:
    boxes = recorded[f"{key}.box"]
    proto_h, proto_w = pipeline.proto_hw
    x1, x2 = ordered_limits(boxes[:, 0], boxes[:, 2], proto_w, CROP_PADDING)
    y1, y2 = ordered_limits(boxes[:, 1], boxes[:, 3], proto_h, CROP_PADDING)
    cells = np.ceil(np.stack([x1, x2, y1, y2], axis=1)).clip(0, max(proto_h, proto_w))
    pipeline.place(b, inputs["mask_coeff"][b, recorded[f"{key}.prior_idx"]], cells)


def _check_masks(pipeline: Pipeline, masks: Any, recorded: Any, mode: str, name: str) -> None:
    for b, n in enumerate(pipeline.arrays["count"].tolist()):
        key = f"b{b}.{mode}.{name}"
        if n == 0:
            continue
        np.testing.assert_array_equal(masks[b].sum((1, 2)), recorded[f"{key}.area"])
        if f"{key}.masks_packed" in recorded:
            packed = recorded[f"{key}.masks_packed"]
            np.testing.assert_array_equal(np.packbits(masks[b].reshape(n, -1), axis=1)[: len(packed)], packed)
