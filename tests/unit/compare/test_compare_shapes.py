"""`compare` on the bundled trained checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.comparison.compare import compare
from tests import goldens
from yolact_deploy import Detector
from yolact_deploy.evaluation import evaluate

IMAGES = 6
ANNOTATIONS = goldens.SHAPES / "val" / "instances.json"
# As `exporters.parity` allows for another order of float32 sums.
MAX_ABS_ERROR = 1e-4


@pytest.mark.slow
def test_a_checkpoint_and_its_onnx_agree_in_everything(shapes_onnx: Path) -> None:
    images = [goldens.SHAPES / "val" / f"val_public_{index:04}.jpg" for index in range(IMAGES)]
    report = compare(
        goldens.SHAPES_CHECKPOINT, shapes_onnx, images, annotations=ANNOTATIONS, spec_file=goldens.SHAPES_SPEC
    )
    assert (report.a.kind, report.b.kind) == ("checkpoint", "onnx")
    assert all(output.max_abs_error < MAX_ABS_ERROR for output in report.outputs)
    assert all(output.cosine > 1 - 1e-9 for output in report.outputs)
    found = report.agreement
    assert found.matched == found.detections_a == found.detections_b > IMAGES
    assert found.quality > 0.999
    assert any("spec" in note for note in report.notes)
    assert report.ap is not None
    assert report.ap.images == IMAGES
    expected = evaluate(Detector(shapes_onnx), goldens.SHAPES / "val", ANNOTATIONS, limit=IMAGES)
    assert report.ap.b == {kind: expected[kind] for kind in ("bbox", "segm")}
    for kind in ("bbox", "segm"):
        assert report.ap.difference[kind]["AP"] == pytest.approx(0, abs=1e-3)
