from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from engines.builder import BuildResult
from engines.network import parse_inspector
from tests.unit.engines.tiny_network import WriteOnnx
from yolact_deploy.artifacts.open import inspect_onnx, inspect_plan
from yolact_deploy.artifacts.plan_file import Layer, LayerOutput, Layers, layers_path, sidecar_path
from yolact_deploy.errors import ArtifactError, PlanMismatchError
from yolact_deploy.spec import ModelSpec


def _copy(built: BuildResult, folder: Path) -> Path:
    for path in (built.plan, built.sidecar_path, built.layers_path):
        shutil.copy(path, folder)
    return folder / built.plan.name


def test_plan_is_told_by_its_sidecar_and_its_layers(built: BuildResult) -> None:
    found = inspect_plan(built.plan)
    assert json.loads(json.dumps(found)) == found
    assert found["kind"] == "plan"
    assert found["targets"] == ["sm86", "sm89"]
    assert found["spec"] == built.sidecar.spec.to_dict() | {"schema_version": 1}
    layers = found["layers"]
    assert layers["source"] == "network"
    assert layers["kind_counts"]["convolution"] == 10
    assert layers["dtype_counts"]["float32"] > 30
    assert layers["module_counts"]["head"] == 18
    assert len(layers["layers"]) == sum(layers["kind_counts"].values())


def test_plan_is_inspected_without_importing_tensorrt(built: BuildResult) -> None:
    code = f"import sys, exporters; exporters.inspect({str(built.plan)!r}); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorrt_rtx", "tensorrt", "onnx", "torch"} & set(result.stdout.split())


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema_version": 99}'])
def test_layers_that_are_missing_or_damaged_are_left_out(
    content: str | None, built: BuildResult, tmp_path: Path
) -> None:
    plan = _copy(built, tmp_path)
    layers_path(plan).unlink()
    if content is not None:
        layers_path(plan).write_text(content)
    assert inspect_plan(plan)["layers"] is None


def test_layers_of_another_plan_are_left_out(built: BuildResult, tmp_path: Path) -> None:
    plan = _copy(built, tmp_path)
    value = json.loads(layers_path(plan).read_text())
    layers_path(plan).write_text(json.dumps(value | {"plan_sha256": "0" * 64}))
    assert inspect_plan(plan)["layers"] is None


def test_tampered_plan_is_not_inspected(built: BuildResult, tmp_path: Path) -> None:
    plan = _copy(built, tmp_path)
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(PlanMismatchError, match="SHA-256"):
        inspect_plan(plan)
    sidecar_path(plan).unlink()
    with pytest.raises(PlanMismatchError, match="must travel with it"):
        inspect_plan(plan)


def test_onnx_is_told_whole(write_onnx: WriteOnnx, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    path = write_onnx(tmp_path, metadata={"yolact_deploy.version": "0.1.0"})
    found = inspect_onnx(path)
    assert json.loads(json.dumps(found)) == found
    assert (found["kind"], found["precision"], found["bytes"]) == ("onnx", "fp32", path.stat().st_size)
    assert found["opsets"] == {"ai.onnx": 19}
    assert found["producer"] == "tiny"
    assert found["io_tensors"][0] == {"name": "image", "mode": "input", "dtype": "float32", "shape": [-1, 3, 32, 32]}
    assert found["node_counts"]["Conv"] == 10
    assert found["module_counts"]["head"] == 18
    assert found["metadata"] == {"yolact_deploy.version": "0.1.0"}
    assert found["spec"] == tiny_spec.to_dict()
    assert (found["num_quantize"], found["num_dequantize"], found["spec_error"]) == (0, 0, None)


def test_quantized_onnx_counts_its_pairs(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    found = inspect_onnx(write_onnx(tmp_path, precision="int8"))
    assert (found["precision"], found["num_quantize"], found["num_dequantize"]) == ("int8", 20, 20)


def test_half_precision_onnx_is_recognised(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    assert inspect_onnx(write_onnx(tmp_path, precision="fp16"))["precision"] == "fp16"


def test_foreign_onnx_is_inspected_without_a_spec(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    path = write_onnx(tmp_path)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    found = inspect_onnx(path)
    assert found["spec"] is None
    assert "carries no YOLACT spec" in found["spec_error"]


def test_what_is_no_onnx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.onnx"
    path.write_text("<html>")
    with pytest.raises(ArtifactError, match=r"page.onnx is not an ONNX model, or is damaged"):
        inspect_onnx(path)


def test_inspector_layers_keep_their_modules_through_fusion() -> None:
    information = {
        "Layers": [
            {
                "Name": "conv + relu",
                "LayerType": "CaskConvolution",
                "Outputs": [
                    {"Name": "y", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP16 format"}
                ],
                "Metadata": "[ONNX Layer: fpn.lat.0/Conv]\x1e[ONNX Layer: fpn.act/Relu]",
            }
        ]
    }
    assert parse_inspector(json.dumps(information), {"fpn.lat.0/Conv": "fpn.lat.0"}) == Layers(
        "engine",
        (
            Layer(
                "conv + relu", "caskconvolution", ("fpn.lat.0", "fpn.act"), (LayerOutput("y", "float16", (1, 8, 4, 4)),)
            ),
        ),
    )


@pytest.mark.parametrize("information", ["", "{}", '{"Layers": []}', '{"Layers": ["conv + relu"]}'])
def test_inspector_without_details_gives_no_layers(information: str) -> None:
    assert parse_inspector(information, {}) is None
