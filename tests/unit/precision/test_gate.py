from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.precision.gate import Accuracy, Agreement, AgreementJudge, ApJudge, Verdict, compare_detections
from tests import goldens
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from yolact_deploy.errors import AnnotationError, CalibrationError
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import assemble_masks
from yolact_deploy.reports.precision import gate_table


def _found(*objects: tuple[int, float, tuple[float, float, float, float]]) -> Detections:
    """Class, score and relative box of each; a mask fills its box."""
    classes, scores, boxes = zip(*objects, strict=True) if objects else ((), (), ())
    raw = RawDetections(
        prior_idx=np.arange(len(objects)),
        class_ids=np.array(classes, np.int64),
        scores=np.array(scores, np.float32),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        mask_coeff=np.ones((len(objects), 1), np.float32),
        proto=np.full((16, 16, 1), 9, np.float32),
    )
    return assemble_masks(raw, (64, 64))


LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def test_equal_detections_agree_entirely() -> None:
    found = _found((0, 0.9, LEFT), (1, 0.5, RIGHT))
    agreement = compare_detections(found, found)
    assert agreement == Agreement(matched=2, missing=0, extra=0, mask_iou=1.0)
    assert agreement.score == 100


def test_an_object_of_another_class_is_missing_and_extra() -> None:
    agreement = compare_detections(_found((0, 0.9, LEFT), (1, 0.8, RIGHT)), _found((0, 0.9, LEFT), (0, 0.8, RIGHT)))
    assert (agreement.matched, agreement.missing, agreement.extra) == (1, 1, 1)
    assert agreement.score == 50


def test_what_is_unsure_in_both_does_not_count() -> None:
    found = _found((0, 0.2, LEFT))
    assert compare_detections(found, found) == Agreement(0, 0, 0, 0.0)
    assert compare_detections(found, _found()).score == 100


def test_a_score_that_falls_just_below_the_threshold_is_no_disagreement() -> None:
    assert compare_detections(_found((0, 0.31, LEFT)), _found((0, 0.29, LEFT))).score == 100
    assert compare_detections(_found((0, 0.29, LEFT)), _found((0, 0.31, LEFT))).score == 100


def test_a_lost_object_costs_half_and_a_lost_and_an_invented_one_all() -> None:
    assert compare_detections(_found((0, 0.9, LEFT)), _found()).score == 0
    one_of_two = compare_detections(_found((0, 0.9, LEFT), (0, 0.8, RIGHT)), _found((0, 0.9, LEFT)))
    assert one_of_two.score == pytest.approx(100 * 1 / 1.5)


def test_a_model_agrees_with_itself(shapes_onnx: Path) -> None:
    verdict = AgreementJudge(shapes_onnx, CALIBRATION_IMAGES[:4])(shapes_onnx, "again")
    assert verdict.passed
    assert verdict.drop == pytest.approx(0, abs=1e-4)
    assert verdict.agreement is not None
    assert verdict.agreement.matched > 4
    assert verdict.to_dict()["agreement"]["score"] == pytest.approx(100)


def test_a_model_without_confident_detections_can_not_be_compared(tiny_onnx: Path) -> None:
    model = onnx.load(str(tiny_onnx))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("head.conf") and tensor.name.endswith("weight"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
        if tensor.name.startswith("head.conf") and tensor.name.endswith("bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([9, 0, 0], np.float32), tensor.name))
    onnx.save(model, str(tiny_onnx))
    with pytest.raises(CalibrationError, match=r"finds nothing with a score of 0\.3 or more on the 2 sample images"):
        AgreementJudge(tiny_onnx, CALIBRATION_IMAGES[:2])


def test_ap_is_told_in_points_of_100_and_a_drop_may_be_as_large_as_allowed(shapes_onnx: Path) -> None:
    val = goldens.SHAPES / "val"
    judge = ApJudge(shapes_onnx, val, val / "instances.json", max_ap_drop=0.0, limit=8)
    assert judge.reference is not None
    assert 20 < judge.reference.mask_ap < judge.reference.box_ap < 100
    verdict = judge(shapes_onnx, "again")
    assert (verdict.passed, verdict.drop, verdict.accuracy) == (True, 0.0, judge.reference)
    assert verdict.limit == "at most 0 points of AP lost"


@pytest.mark.parametrize(
    ("allowed", "drop", "limit", "shown"),
    [
        (1.0, -0.004, "at most 1 point of AP lost", "0.00"),
        (0.5, 0.004, "at most 0.5 points of AP lost", "0.00"),
        (0.5, -0.04, "at most 0.5 points of AP lost", "-0.04"),
        (0.5, 0.04, "at most 0.5 points of AP lost", "+0.04"),
    ],
)
def test_the_gate_is_told_in_words_and_a_drop_that_rounds_to_nothing_has_no_sign(
    allowed: float, drop: float, limit: str, shown: str
) -> None:
    accuracy = Accuracy(box_ap=59.79, mask_ap=49.70)
    verdict = Verdict(True, drop, allowed, accuracy, None)
    assert verdict.limit == limit
    gate = {"passed": True, "enforced": True, "reference": dataclasses.asdict(accuracy)}
    table = gate_table({**gate, "fp16": verdict.to_dict(), "int8": None})
    assert table.title == f"gate of {limit}: passed"
    assert table.rows[-1][-1].plain == shown


@pytest.mark.parametrize("annotated", ["nothing", "other images", "what the model does not find"])
def test_ap_that_can_not_be_lost_is_no_gate(shapes_onnx: Path, tmp_path: Path, annotated: str) -> None:
    val = goldens.SHAPES / "val"
    content = json.loads((val / "instances.json").read_text())
    first = {image["id"] for image in sorted(content["images"], key=lambda image: image["id"])[:2]}
    if annotated == "what the model does not find":
        content["annotations"] = [
            {**entry, "bbox": [0, 0, 1, 1], "area": 1, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]}
            for entry in content["annotations"]
        ]
    else:
        kept = () if annotated == "nothing" else content["annotations"]
        content["annotations"] = [entry for entry in kept if entry["image_id"] not in first]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = "0.00" if annotated == "what the model does not find" else "none"
    with pytest.raises(AnnotationError, match=rf"the first 2 images of .*has no AP .*box {found}, mask {found}\)"):
        ApJudge(shapes_onnx, val, tmp_path / "instances.json", limit=2)


def test_agreement_needs_images(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no images were given.*--calib DIR"):
        AgreementJudge(tiny_onnx, [])
    with pytest.raises(CalibrationError, match="none of the 1 sample images can be read"):
        AgreementJudge(tiny_onnx, [tmp_path / "gone.jpg"])
