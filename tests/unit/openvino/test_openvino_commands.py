"""What commands and their functions do in OpenVINO when they are told to."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
import exporters
from exporters.precision import gate
from tests.goldens import SHAPES
from yolact_deploy import detect_files, evaluate
from yolact_deploy.errors import OptionError
from yolact_deploy.runtime.detector import Detector

pytest.importorskip("openvino")

VAL = SHAPES / "val"
PHOTO = VAL / "val_public_0000.jpg"
ANNOTATIONS = VAL / "instances.json"


def test_eval_says_in_what_it_ran(shapes_onnx: Path) -> None:
    report = evaluate(shapes_onnx, VAL, ANNOTATIONS, limit=1, device="cpu", runtime="openvino", threads=1)
    assert report["backend"].startswith("OpenVINO 20")
    assert report["segm"]["AP"] > 0


def test_detect_and_compare_take_the_runtime(shapes_onnx: Path) -> None:
    detected = detect_files(shapes_onnx, PHOTO, runtime="openvino")
    compared = exporters.compare(shapes_onnx, shapes_onnx, PHOTO, runtime="openvino").to_dict()
    assert detected.to_dict()["backend"].startswith("OpenVINO")
    assert all(compared[side]["backend"].startswith("OpenVINO") for side in "ab")


@pytest.mark.slow
def test_bench_takes_the_runtime(shapes_onnx: Path) -> None:
    timed = benchmarks.bench(shapes_onnx, iterations=1, warmup=0, runtime="openvino", threads=1)
    assert timed["runs"][0]["backend"].startswith("OpenVINO")


def test_the_gate_runs_what_it_judges_in_the_runtime_and_precision_that_will_run_it(
    shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def measured(*_: object, runtime: str, cpu_precision: str, **__: object) -> dict[str, dict[str, float]]:
        asked.append((runtime, cpu_precision))
        return {kind: {"AP": 0.5} for kind in ("bbox", "segm")}

    monkeypatch.setattr(gate, "evaluate", measured)
    judge = gate.ApJudge(shapes_onnx, VAL, ANNOTATIONS, runtime="openvino", cpu_precision="bf16")
    assert judge(shapes_onnx, "the same").drop == 0
    assert asked == [("openvino", "f32"), ("openvino", "bf16")]


def test_quantize_refuses_what_its_gate_could_not_run_before_it_calibrates(shapes_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="onnxruntime has no bfloat16"):
        exporters.quantize(shapes_onnx, tmp_path / "out.onnx", calib=PHOTO, runtime="onnxruntime", cpu_precision="bf16")


def test_a_detector_that_is_given_keeps_its_runtime(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", runtime="onnxruntime", threads=1)
    report = evaluate(detector, VAL, ANNOTATIONS, limit=1, runtime="openvino")
    assert report["backend"].startswith("onnxruntime")
