from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters.onnx_edit import finished, metadata
from exporters.precision import run as precision_run
from exporters.precision.fp16 import emulate_half, to_half
from exporters.precision.gate import ApJudge
from exporters.precision.quantize import quantize, tensors_to_calibrate
from exporters.precision.ranges import CALIBRATORS, choose_range, observe
from exporters.precision.run import apply_precision
from tests import goldens
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from yolact_deploy.artifacts.names import PRECISION_METADATA_KEY, SPEC_METADATA_KEY, LowPrecision
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.errors import ArtifactError, CalibrationError, ExportError, OutputError, SpecError, YolactDeployError
from yolact_deploy.runtime.detector import Detector
from yolact_deploy.spec import ModelSpec

pytestmark = pytest.mark.slow

VAL = goldens.SHAPES / "val"
ANNOTATIONS = VAL / "instances.json"


def test_int8_and_fp16_lose_no_more_ap_than_promised(shapes_onnx: Path, tmp_path: Path) -> None:
    """Of the bundled trained model, on its 200 validation images, calibrated with its 128 calibration images."""
    result = apply_precision(
        shapes_onnx,
        tmp_path / "int8.onnx",
        precision="int8",
        calibration_images=CALIBRATION_IMAGES,
        annotations=ANNOTATIONS,
        annotated_images=VAL,
        max_ap_drop=0.2,
        auto=True,
    )
    assert result.gate is not None
    assert result.gate.reference is not None
    assert result.gate.reference.box_ap == pytest.approx(59.79, abs=0.1)  # the original's, tests/golden/shapes
    assert result.gate.fp16.drop <= 0.1
    assert result.auto is not None
    assert result.auto.tried[0][0] == ()
    assert result.auto.tried[0][1].drop <= 0.5
    assert result.gate.int8 is not None
    assert result.gate.int8.drop <= 0.2
    assert result.gate.passed


def test_no_calibrator_loses_more_than_2_points(
    shapes: onnx.ModelProto, shapes_onnx: Path, shapes_spec: ModelSpec, tmp_path: Path
) -> None:
    """The first 40 images tell: a histogram that counts the zeros of ReLUs loses 16 points."""
    judge = ApJudge(shapes_onnx, VAL, ANNOTATIONS, max_ap_drop=2.0, limit=40)
    seen = observe(shapes, shapes_spec, CALIBRATION_IMAGES[::4], histograms=tensors_to_calibrate(shapes))
    for calibrator in CALIBRATORS:
        ranges = {name: choose_range(histogram, calibrator) for name, histogram in seen.histograms.items()}
        onnx.save(emulate_half(to_half(quantize(shapes, ranges))), str(tmp_path / "int8.onnx"))
        verdict = judge(tmp_path / "int8.onnx", calibrator)
        assert verdict.passed, f"{calibrator}: {verdict.describe()}"


@pytest.fixture(scope="module")
def int8(shapes_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result, gated by agreement."""
    return apply_precision(
        shapes_onnx,
        tmp_path_factory.mktemp("int8") / "int8.onnx",
        precision="int8",
        calibration_images=CALIBRATION_IMAGES[:16],
        keep_fp16=["backbone.layers.0"],
        max_ap_drop=0.5,
    )


def test_int8_is_smaller_than_three_tenths_of_float32(int8: Any) -> None:
    assert int8.size_ratio < 0.3
    assert int8.output.stat().st_size == int8.size_bytes


def test_an_int8_file_says_what_it_is_and_detects(int8: Any, shapes: onnx.ModelProto) -> None:
    described = metadata(onnx.load(str(int8.output)))
    assert described[PRECISION_METADATA_KEY] == "int8"
    assert described[SPEC_METADATA_KEY] == metadata(shapes)[SPEC_METADATA_KEY]
    found = Detector(int8.output)(VAL / "val_public_0000.jpg", score_threshold=0.3)
    assert len(found) > 0


def test_the_result_tells_each_modules_precision_and_error(int8: Any) -> None:
    reports = {report.module: report for report in int8.modules}
    assert (int8.convs, int8.int8_convs) == (50, 46)
    assert (reports["backbone.layers.0"].precision, reports["backbone.layers.0"].int8_convs) == ("fp16", 0)
    assert (reports["fpn"].precision, reports["fpn"].int8_convs) == ("int8", 8)
    assert all(report.sqnr_db > 15 for report in reports.values())
    assert sum(report.convs for report in reports.values()) == 50


def test_without_annotations_the_gate_is_agreement(int8: Any) -> None:
    assert int8.gate.reference is None
    assert int8.gate.passed
    assert int8.accuracy is None
    assert int8.gate.int8.agreement.score > 95
    assert int8.gate.fp16.agreement.score > int8.gate.int8.agreement.score
    assert int8.to_dict()["gate"]["int8"]["limit"] == "at least 95 of 100 agreement"
    assert any("agreement of at least 95 of 100" in warning for warning in int8.warnings)


def test_the_result_is_json(int8: Any) -> None:
    content = json.loads(json.dumps(int8.to_dict()))
    assert content["precision"] == "int8"
    assert content["gate"]["int8"]["agreement"]["matched"] > 0
    assert set(content) == {"size_ratio", "accuracy", *(field.name for field in dataclasses.fields(int8))}


def test_fp16_without_images_is_checked_on_built_in_ones_and_says_so(shapes_onnx: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = apply_precision(
        shapes_onnx, tmp_path / "fp16.onnx", precision="fp16", progress=lambda *step: told.append(step)
    )
    assert metadata(onnx.load(str(result.output)))[PRECISION_METADATA_KEY] == "fp16"
    assert result.size_ratio == pytest.approx(0.5, abs=0.02)
    assert "built-in pictures" in result.warnings[0]
    assert {report.precision for report in result.modules} == {"fp16"}
    assert result.gate is None
    assert told


def test_layers_that_overflow_half_are_kept_and_reported(shapes: onnx.ModelProto, tmp_path: Path) -> None:
    planted = onnx.ModelProto()
    planted.CopyFrom(shapes)
    factors = {"proto_net.2.weight": 1e5, "proto_net.2.bias": 1e5, "proto_net.4.weight": 1e-5}
    for tensor in planted.graph.initializer:
        if tensor.name in factors:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(planted, str(tmp_path / "planted.onnx"))
    result = apply_precision(
        tmp_path / "planted.onnx",
        tmp_path / "fp16.onnx",
        precision="fp16",
        calibration_images=CALIBRATION_IMAGES[:4],
        max_ap_drop=0.1,
    )
    assert [kept.module for kept in result.kept_float32] == ["proto_net.2", "proto_net.3", "proto_net.4"]
    report = next(report for report in result.modules if report.module == "proto_net")
    assert report.precision == "fp16+fp32"
    assert result.gate is not None
    assert result.gate.fp16.drop < 1


def test_a_missed_gate_names_the_costliest_modules_and_writes_nothing(shapes_onnx: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"what was there")
    costliest = r"cost most: [a-z0-9_.]+ \([\d.]+ dB\)"
    with pytest.raises(
        ExportError, match=rf"misses the gate of at most -100 points of AP lost: .*{costliest}"
    ) as caught:
        apply_precision(
            shapes_onnx,
            output,
            precision="int8",
            calibration_images=CALIBRATION_IMAGES[:2],
            annotations=ANNOTATIONS,
            annotated_images=VAL,
            limit=2,
            max_ap_drop=-100,
        )
    assert caught.value.exit_code == 1
    assert "--auto" in str(caught.value)
    assert output.read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_a_gated_fp16_model_is_converted_once(
    shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[onnx.ModelProto] = []

    def counted(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        converted.append(model)
        return to_half(model, **options)

    monkeypatch.setattr(precision_run, "to_half", counted)
    images = CALIBRATION_IMAGES[:2]
    output = tmp_path / "fp16.onnx"
    apply_precision(shapes_onnx, output, precision="fp16", calibration_images=images, max_ap_drop=0.5)
    assert len(converted) == 1


def test_a_gate_without_any_image_asks_for_images(tiny_onnx: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    images = CALIBRATION_IMAGES[:2]
    output = tmp_path / "int8.onnx"
    apply_precision(tiny_onnx, output, precision="int8", calibration_images=images, calibration_cache=cache)
    with pytest.raises(CalibrationError, match="no images were given"):
        apply_precision(tiny_onnx, output, precision="int8", calibration_cache=cache, max_ap_drop=0.5)


def _without_spec(source: Path) -> None:
    model = onnx.load(str(source))
    del model.metadata_props[:]
    onnx.save(model, str(source))


def _older(source: Path) -> None:
    model = onnx.load(str(source))
    model.opset_import[0].version = 18
    onnx.save(model, str(source))


@pytest.mark.parametrize(
    ("prepare", "options", "error", "message"),
    [
        (None, {"calibration_images": []}, CalibrationError, "needs calibration images"),
        (None, {"calibrator": "minmax"}, CalibrationError, "unknown calibrator 'minmax'"),
        (None, {"keep_fp16": ["backbone.layers.7"]}, CalibrationError, r"no module .* is named 'backbone\.layers\.7'"),
        (None, {"precision": "int4"}, CalibrationError, "unknown precision 'int4'; choose fp16 or int8"),
        (None, {"io_precision": "int8"}, CalibrationError, "unknown I/O precision 'int8'"),
        (None, {"precision": "fp16", "auto": True}, CalibrationError, "a choice of int8"),
        (None, {"annotations": ANNOTATIONS}, CalibrationError, "the folder of their images"),
        (_older, {}, CalibrationError, "has opset 18; INT8 needs 19"),
        (_without_spec, {}, SpecError, "carries no 'yolact_deploy.spec'"),
        (lambda path: path.write_bytes(b"<html>"), {}, ArtifactError, "not an ONNX model|holds no graph"),
        (lambda path: path.unlink(), {}, ArtifactError, "No such file"),
        (
            lambda path: onnx.save(make_model(TINY_SPEC, precision="int8"), str(path)),
            {},
            ArtifactError,
            "already quantized",
        ),
        (
            lambda path: onnx.save(make_model(TINY_SPEC, precision="fp16"), str(path)),
            {"precision": "fp16"},
            ArtifactError,
            "already in half precision",
        ),
    ],
)
def test_bad_input_is_told_and_nothing_overwritten(
    prepare: Any,
    options: Mapping[str, Any],
    error: type[YolactDeployError],
    message: str,
    tiny_onnx: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"what was there")
    if prepare is not None:
        prepare(tiny_onnx)
    arguments: dict[str, Any] = {"precision": "int8", "calibration_images": CALIBRATION_IMAGES[:1], **options}
    with pytest.raises(error, match=message) as caught:
        apply_precision(tiny_onnx, output, **arguments)
    assert caught.value.exit_code == 2
    assert output.read_bytes() == b"what was there"
    assert {path.name for path in tmp_path.iterdir()} <= {"out.onnx", "tiny.onnx"}


def _with_weight(path: Path, value: float) -> None:
    """Change one weight of a file that tells the digest of its weights."""
    model = onnx.load_model_from_string(finished(onnx.load(str(path))))
    weight = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(path))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_weights_that_are_no_numbers_are_refused(precision: LowPrecision, tiny_onnx: Path, tmp_path: Path) -> None:
    _with_weight(tiny_onnx, np.inf)
    with pytest.raises(
        ArtifactError, match=r"holds NaN or infinite values in 1 of its weights, in backbone\.stem\.weight"
    ):
        apply_precision(
            tiny_onnx, tmp_path / "out.onnx", precision=precision, calibration_images=CALIBRATION_IMAGES[:8]
        )
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_weights_that_were_changed_are_told_and_the_result_has_a_digest_of_its_own(
    precision: LowPrecision, tiny_onnx: Path, tmp_path: Path
) -> None:
    _with_weight(tiny_onnx, 0.25)
    output = tmp_path / "out.onnx"
    result = apply_precision(tiny_onnx, output, precision=precision, calibration_images=CALIBRATION_IMAGES[:8])
    (warning,) = result.warnings
    assert "are not those that were exported" in warning
    assert open_onnx(output).weights_are_as_exported


def test_a_graph_whose_weights_would_be_no_numbers_is_not_finished(tiny_onnx: Path) -> None:
    _with_weight(tiny_onnx, np.nan)
    with pytest.raises(ExportError, match="the graph would hold NaN or infinite values in 1 of its weights"):
        finished(onnx.load(str(tiny_onnx)))


def test_the_float32_model_is_never_overwritten(tiny_onnx: Path) -> None:
    before = tiny_onnx.read_bytes()
    with pytest.raises(OutputError, match="is the input itself"):
        apply_precision(tiny_onnx, tiny_onnx, precision="fp16")
    assert tiny_onnx.read_bytes() == before


def test_corrupt_calibration_images_are_named_in_the_result(tiny_onnx: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(CALIBRATION_IMAGES[0].read_bytes()[:500])
    result = apply_precision(
        tiny_onnx, tmp_path / "int8.onnx", precision="int8", calibration_images=[*CALIBRATION_IMAGES[:8], bad]
    )
    assert result.calibration is not None
    assert result.calibration.images == 8
    assert len(result.warnings) == 1
    assert str(bad) in result.warnings[0]
