"""All recorded Detect + postprocess cases of the original, exact."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from tests.goldens import GOLDEN, golden_fill, mask_iou_shapes, postgen
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import MaskIouReference, assemble_masks, detect, rescore_masks
from yolact_deploy.spec import NmsMode

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "post/cases.json").read_text())
MODES: dict[str, NmsMode] = {"fast": "fast", "cross": "cross_class", "trad": "traditional"}
MASK_SCORE_ERROR = 1e-5  # the network sums up to 576 products per value, in another order than torch
BOX_ERROR = (
    1.2e-7  # relative to the image; the original's exp is within 1 unit in the last place, ours within half of one
)


@pytest.fixture(scope="module", params=CASES, ids=[case["id"] for case in CASES])
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    inputs = postgen().make_case(request.param["spec"])
    recorded = np.load(GOLDEN / "post" / f"{request.param['id']}.npz")
    for name, array in inputs.items():
        assert hashlib.sha256(array.tobytes()).hexdigest() == str(recorded[f"sha256.{name}"]), name
    return {**inputs, "wh": request.param["wh"], "mask_iou": _mask_iou(request.param["spec"], recorded)}, recorded


@pytest.mark.parametrize("mode", MODES)
def test_detections_boxes_and_masks_are_the_originals(case: tuple[dict[str, Any], Any], mode: str) -> None:
    inputs, recorded = case
    raws = detect(
        inputs["loc"],
        inputs["conf"],
        inputs["mask"],
        inputs["proto"],
        inputs["priors"],
        nms=MODES[mode],
        input_size=550,
    )
    for b, raw in enumerate(raws):
        key = f"b{b}.{mode}"
        if f"{key}.none" in recorded:
            assert len(raw) == 0
            continue
        _check_detections(raw, recorded, key)
        ties = (
            f"{key}.stable.prior_idx" in recorded
        )  # boxes and masks were recorded in the order of the run, not this one
        placed = _in_recorded_order(raw, inputs, recorded, key) if ties else raw
        _check_image_size(placed, inputs["wh"], recorded, key)
        if inputs["mask_iou"] is not None:
            _check_mask_scores(placed, inputs, recorded, key)


def _mask_iou(spec: dict[str, Any], recorded: Any) -> MaskIouReference | None:
    """The network that scored the masks of the case, or None."""
    if not spec.get("maskiou"):
        return None
    weights = golden_fill().fill_(mask_iou_shapes("yolact_plus_base"), "post", seed=spec["seed"])
    digest = hashlib.sha256(b"".join(tensor.tobytes() for tensor in weights.values())).hexdigest()
    assert digest == str(recorded["sha256.maskiou_weights"])
    tensors = list(weights.values())
    return MaskIouReference(list(zip(tensors[::2], tensors[1::2], strict=True)))


def _check_mask_scores(raw: RawDetections, inputs: dict[str, Any], recorded: Any, key: str) -> None:
    image_hw = (inputs["wh"][1], inputs["wh"][0])
    for crop, name in ((True, "crop"), (False, "nocrop")):
        rescored = rescore_masks(assemble_masks(raw, image_hw, crop=crop), inputs["mask_iou"])
        expected = recorded[f"{key}.{name}.mask_score"]
        np.testing.assert_array_equal(rescored.scores, raw.scores)
        np.testing.assert_allclose(rescored.mask_scores, expected, rtol=0, atol=MASK_SCORE_ERROR)
        if crop:
            displayed = np.sort(recorded[f"{key}.crop.display_score"])[::-1]
            np.testing.assert_allclose(rescored.by_mask_score().scores, displayed, rtol=0, atol=MASK_SCORE_ERROR)


def _check_detections(raw: RawDetections, recorded: Any, key: str) -> None:
    order = f"{key}.stable" if f"{key}.stable.prior_idx" in recorded else key
    np.testing.assert_array_equal(raw.prior_idx, recorded[f"{order}.prior_idx"])
    np.testing.assert_array_equal(raw.class_ids, recorded[f"{order}.class"])
    np.testing.assert_array_equal(raw.scores, recorded[f"{order}.score"])
    boxes = recorded[f"{order}.box"]
    np.testing.assert_array_less(np.abs(raw.boxes_xyxy - boxes), BOX_ERROR * np.maximum(1, np.abs(boxes)) + 1e-12)


def _in_recorded_order(raw: RawDetections, inputs: dict[str, Any], recorded: Any, key: str) -> RawDetections:
    b = int(key[1])
    prior_idx = recorded[f"{key}.prior_idx"].astype(np.int64)
    return RawDetections(
        prior_idx,
        recorded[f"{key}.class"].astype(np.int64),
        recorded[f"{key}.score"],
        recorded[f"{key}.box"],
        inputs["mask"][b][prior_idx],
        raw.proto,
    )


def _check_image_size(raw: RawDetections, wh: list[int], recorded: Any, key: str) -> None:
    image_hw = (wh[1], wh[0])
    cropped, whole = assemble_masks(raw, image_hw), assemble_masks(raw, image_hw, crop=False)
    np.testing.assert_array_equal(cropped.boxes_xyxy, recorded[f"{key}.post.box"])
    for detections, name in ((cropped, "crop"), (whole, "nocrop")):
        np.testing.assert_array_equal(detections.masks.sum((1, 2)), recorded[f"{key}.{name}.area"])
        if f"{key}.{name}.masks_packed" in recorded:
            packed = recorded[f"{key}.{name}.masks_packed"]
            np.testing.assert_array_equal(_packed(detections)[: len(packed)], packed)
    for threshold, name in ((0.15, "thr015"), (0.3, "thr030")):
        kept = recorded[f"{key}.{name}.keep"]
        thresholded = assemble_masks(raw, image_hw, score_threshold=threshold)
        np.testing.assert_array_equal(thresholded.boxes_xyxy, cropped.boxes_xyxy[kept])
        np.testing.assert_array_equal(thresholded.masks, cropped.masks[kept])


def _packed(detections: Detections) -> Any:
    return np.packbits(detections.masks.reshape(len(detections), -1), axis=1)
