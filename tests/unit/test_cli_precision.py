from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from tests.goldens import SHAPES, SHAPES_CHECKPOINT, SHAPES_SPEC
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from yolact_deploy.cli import app

CALIB = sorted((SHAPES / "calib").glob("*.jpg"))[:9]
PHOTO = SHAPES / "val" / "val_public_0000.jpg"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


pytestmark = pytest.mark.needs("torch")


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calib")
    for image in CALIB:
        shutil.copy(image, folder)
    return folder


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of seven convolutions: what commands do does not depend on its size."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(make_model(TINY_SPEC), str(path))
    return path


@pytest.fixture(scope="module")
def int8(tiny_onnx: Path, calib: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("int8") / "m.int8.onnx"
    result = run("quantize", tiny_onnx, "-o", model, "--calib", calib, "--calib-cache", calib / "cache.json", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["precision"], report["calibration"]["images"], report["calibration"]["cache"]) == (
        "int8",
        9,
        "written",
    )
    return model


@pytest.mark.slow
def test_an_int8_model_lints_clean_and_builds(int8: Path, tmp_path: Path) -> None:
    result = run("inspect", "--lint", int8, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["findings"] == []
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    options = ("--runtime", "tensorrt-rtx", "--precision", "int8", "--target", "sm86,sm89")
    result = run("build-engine", int8, "-o", tmp_path / "m.engine", *options)
    assert result.exit_code == 0, result.stderr


def test_lint_fails_on_what_tensorrt_refuses(int8: Path, tmp_path: Path) -> None:
    model = onnx.load(str(int8))
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    zero_point = next(tensor for tensor in model.graph.initializer if tensor.name == quantize.input[2])
    zero_point.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(zero_point) + 3, zero_point.name))
    onnx.save(model, str(tmp_path / "asymmetric.onnx"))
    result = run("inspect", "--lint", tmp_path / "asymmetric.onnx")
    assert result.exit_code == 1
    assert "error" in result.stdout
    result = run("build-engine", tmp_path / "asymmetric.onnx", "-o", tmp_path / "m.engine", "--precision", "int8")
    assert result.exit_code != 0
    assert not (tmp_path / "m.engine").exists()


def test_the_cache_is_reused_and_refused_for_other_images(
    tiny_onnx: Path, int8: Path, calib: Path, tmp_path: Path
) -> None:
    cache = calib / "cache.json"
    result = run("quantize", tiny_onnx, "-o", tmp_path / "b.onnx", "--calib", calib, "--calib-cache", cache, "--json")
    assert json.loads(result.stdout)["calibration"]["cache"] == "reused"
    other = tmp_path / "other"
    other.mkdir()
    for image in CALIB[:8]:
        shutil.copy(image, other)
    result = run("quantize", tiny_onnx, "-o", tmp_path / "c.onnx", "--calib", other, "--calib-cache", cache)
    assert result.exit_code == 2
    assert str(cache) in result.stderr.replace("\n", "")
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.slow
def test_a_failed_gate_is_exit_1_and_leaves_the_old_file(shapes_onnx: Path, tmp_path: Path) -> None:
    gray = tmp_path / "gray"
    gray.mkdir()
    for level in range(8):  # next to nothing to see in them, so ranges that fit nothing else
        faint = np.full((64, 64, 3), 100 + level, np.uint8)
        faint[:32] += 6
        cv2.imwrite(str(gray / f"{level}.png"), faint)
    output = tmp_path / "m.onnx"
    output.write_text("old")
    annotated = ("--annotations", SHAPES / "val/instances.json", "--images", SHAPES / "val", "--limit", 4)
    result = run("quantize", shapes_onnx, "-o", output, "--calib", gray, "--max-ap-drop", 0.5, *annotated)
    assert result.exit_code == 1
    assert "misses the gate" in result.stderr
    assert "cost most" in result.stderr
    assert output.read_text() == "old"


def test_what_calibration_images_lack_is_said_on_stderr_and_in_json(tiny_onnx: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "calib", tmp_path / "my int8.onnx"
    folder.mkdir()
    for number in range(3):
        shutil.copy(PHOTO, folder / f"{number}.jpg")
    cv2.imwrite(str(folder / "black.png"), np.zeros((20, 20, 3), np.uint8))
    result = run("quantize", tiny_onnx, "-o", output, "--calib", folder, "--json")
    report = json.loads(result.stdout)
    (warning,) = report["warnings"]
    assert warning.startswith("only 1 calibration image of the 4 (1 of one colour, without an object and 2 the same as")
    assert f"warning: {warning}" in result.stderr
    assert (report["calibration"]["distinct_images"], report["calibration"]["constant_images"]) == (1, 1)
    command = f"yolact-deploy eval '{output}' --images DIR --annotations INSTANCES.json"
    assert report["accuracy"].startswith(f"accuracy not measured. What this file reaches: {command}")


@pytest.mark.parametrize("options", [("--calib", PHOTO), ("--precision", "fp16", "--calib", PHOTO)])
def test_a_precision_without_a_gate_says_that_nothing_was_measured(
    options: tuple[object, ...], tiny_onnx: Path, tmp_path: Path
) -> None:
    result = run("quantize", tiny_onnx, "-o", tmp_path / "m.onnx", *options)
    assert result.exit_code == 0, result.output
    text = " ".join(line.strip("│ ") for line in result.stdout.splitlines())
    assert "not measured" in text
    assert "yolact-deploy eval" in text


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("quantize", "FP32", "-o", "OUT"), 2, "--calib"),
        (("quantize", "INT8", "-o", "OUT", "--calib", "CALIB"), 2, "int8"),
        (("quantize", "FP32", "-o", "OUT", "--calib", "CALIB", "--keep-fp16", "no.such"), 2, "no.such"),
        (("quantize", "none.onnx", "-o", "OUT"), 2, "none.onnx"),
        (("compare", "FP32", "none.onnx", "--images", PHOTO), 2, "none.onnx"),
        (("compare", "FP32", "INT8", "--images", "nowhere"), 2, "nowhere"),
        (("build-engine", "FP32", "-o", "OUT", "--precision", "int8"), 2, "int8"),
    ],
)
def test_bad_requests_are_named_and_write_nothing(
    arguments: tuple[object, ...],
    exit_code: int,
    message: str,
    tiny_onnx: Path,
    int8: Path,
    calib: Path,
    tmp_path: Path,
) -> None:
    places = {"FP32": tiny_onnx, "INT8": int8, "CALIB": calib, "OUT": tmp_path / "out.onnx"}
    result = run(*(places.get(str(argument), argument) for argument in arguments))
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_in_fp16_and_compare_it_with_its_checkpoint(tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    options = ("--spec", SHAPES_SPEC, "--no-parity", "--precision", "fp16", "--calib", PHOTO)
    result = run("export", SHAPES_CHECKPOINT, "-o", half, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["lowered"]["precision"] == "fp16"
    assert half.stat().st_size < 0.55 * SHAPES_CHECKPOINT.stat().st_size

    page = tmp_path / "page.html"
    result = run("compare", SHAPES_CHECKPOINT, half, "--spec", SHAPES_SPEC, "--images", PHOTO, "--html", page, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["agreement"]["only_a"], report["agreement"]["only_b"]) == (0, 0)
    assert "val_public_0000.jpg" in page.read_text()


def test_build_engine_makes_the_fp16_model_it_is_asked_for(tiny_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    model = tmp_path / "m.onnx"
    shutil.copy(tiny_onnx, model)
    options = ("--runtime", "tensorrt-rtx", "--precision", "fp16", "--target", "sm86", "--json")
    result = run("build-engine", model, "-o", tmp_path / "m.engine", *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["sidecar"]["precision"] == "fp16"
    assert (tmp_path / "m.fp16.onnx").is_file()


def test_export_never_replaces_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.pth"
    shutil.copy(SHAPES_CHECKPOINT, checkpoint)
    before = checkpoint.read_bytes()
    for options in ((), ("--precision", "fp16")):
        result = run("export", checkpoint, "--spec", SHAPES_SPEC, "-o", checkpoint, *options)
        assert result.exit_code == 2
        assert "is the input itself" in result.stderr
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calib", "nowhere"), "has no effect on fp32"),
        (("--precision", "int8"), "--calib"),
        (("--precision", "int8", "--opset", "18", "--calib", PHOTO), "opset 19"),
        (("--precision", "int8", "--calib", "nowhere"), "nowhere does not exist"),
        (("--precision", "fp16", "--annotations", "none.json"), "none.json"),
    ],
)
def test_a_precision_that_cannot_be_had_is_told_before_the_export(options: tuple[object, ...], message: str) -> None:
    result = run("export", "no-checkpoint.pth", "-o", "x.onnx", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_fp16_file_in_the_way_is_used_or_left_alone(tiny_onnx: Path, int8: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    model, typed = tmp_path / "m.onnx", tmp_path / "m.fp16.onnx"
    shutil.copy(tiny_onnx, model)
    command = ("build-engine", model, "-o", tmp_path / "m.engine", "--runtime", "tensorrt-rtx", "--precision", "fp16")
    assert run(*command, "--batch", "9,x").exit_code == 2
    assert not typed.exists()
    shutil.copy(int8, typed)
    result = run(*command)
    assert result.exit_code == 2
    assert "is in the way" in result.stderr
    assert typed.read_bytes() == int8.read_bytes()
