"""The Q/DQ linter on graphs of other makers, its report, and its place in the builder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import build
from engines.lint.linter import lint_onnx
from tests.unit.engines.quantized_network import (
    CONV,
    FLOAT,
    INT8,
    dynamic_scale,
    lint,
    pair_before,
    quantized,
    together,
)
from tests.unit.engines.rtx_oracle import refusal
from tests.unit.engines.tiny_network import TINY_SPEC, Graph, WriteOnnx, make_model
from yolact_deploy.artifacts.names import module_of
from yolact_deploy.errors import ArtifactError, EngineError


def test_onnxruntimes_own_operators_are_linted_too() -> None:
    def edit(graph: Graph) -> None:
        pair_before(CONV, zero_point=np.uint8(128))(graph)
        for node in graph.nodes:
            if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear":
                node.domain = "com.microsoft"

    report = lint(quantized(edit))
    assert {finding.rule for finding in report.errors} == {"not-int8", "nonzero-zero-point"}


def test_a_graph_from_quantization_aware_training_is_linted_by_its_own_names(tmp_path: Path) -> None:
    """As PyTorch's fake-quantization exports: opset 13, scales in Constant nodes, nodes named by slashes, no spec."""
    zero, nodes = np.array(0, INT8), []

    def constant(name: str, value: Any) -> str:
        nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def pair(x: str, scope: str, scale: Any, zero_point: Any) -> str:
        parameters = [constant(f"{scope}/scale", np.asarray(scale, FLOAT)), constant(f"{scope}/zero", zero_point)]
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            output = f"{scope}/{operator}_output_0"
            nodes.append(helper.make_node(operator, [x, *parameters], [output], name=f"{scope}/{operator}"))
            x = output
        return x

    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), FLOAT), "layer1.conv.weight")
    activations = pair("x", "/layer1/conv/_input_quantizer", 0.1, np.array(7, INT8))
    weights = pair("layer1.conv.weight", "/layer1/conv/_weight_quantizer", 0.1, zero)
    nodes.append(helper.make_node("Conv", [activations, weights], ["y"], name="/layer1/conv/Conv"))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in [("x", 3), ("y", 4)]
    ]
    graph = helper.make_graph(nodes, "qat", values[:1], values[1:], [weight])
    path = tmp_path / "qat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)

    report = lint_onnx(path)
    assert [(f.rule, f.node, f.module) for f in report.findings] == [
        (
            "nonzero-zero-point",
            "/layer1/conv/_input_quantizer/QuantizeLinear",
            "layer1.conv._input_quantizer",
        ),
        ("weights-per-tensor", "/layer1/conv/Conv", "layer1.conv"),
    ]
    assert report.int8_convolutions == 1


@pytest.fixture(scope="module")
def calibrate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """onnxruntime's static quantization of the tiny float network."""
    pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    folder = tmp_path_factory.mktemp("calibrated")
    source = folder / "float.onnx"
    onnx.save(make_model(TINY_SPEC), source)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(np.random.default_rng(3).normal(size=(4, 1, 3, 32, 32)).astype(FLOAT))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    def run(name: str, **options: Any) -> Path:
        target = folder / name
        quantize_static(str(source), str(target), Reader(), **options)
        return target

    return run


def test_onnxruntimes_default_quantization_is_refused_with_remedies(calibrate: Callable[..., Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = calibrate("default.onnx")
    report = lint_onnx(path)
    assert {"nonzero-zero-point", "int32-bias"} <= {finding.rule for finding in report.errors}
    assert refusal(onnx.load(path)) is not None
    assert all(finding.module for finding in report.errors if finding.rule == "int32-bias")


def test_onnxruntimes_quantization_with_tensorrts_settings_passes(calibrate: Callable[..., Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    from onnxruntime.quantization import QuantFormat, QuantType

    path = calibrate(
        "symmetric.onnx",
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    report = lint_onnx(path)
    assert report.passed
    assert report.int8_convolutions == report.convolutions
    assert refusal(onnx.load(path)) is None


def test_a_node_without_a_module_takes_its_neighbours() -> None:
    def edit(graph: Graph) -> None:
        pair_before(CONV, zero_point=INT8(3))(graph)
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            graph.node(f"added/{operator}").name = f"tensor_{operator}"

    (error,) = lint(quantized(edit)).errors
    assert module_of(error.node) == ""
    assert error.module == "fpn.downsample"


def test_the_report_is_json_with_counts() -> None:
    report = lint(
        quantized(together(pair_before(CONV, zero_point=INT8(3)), pair_before("outputs/Softmax", module="soft")))
    )
    described = json.loads(json.dumps(report.to_dict()))
    assert described["passed"] is False
    assert (described["errors"], described["rule_counts"]["nonzero-zero-point"]) == (1, 1)
    assert described["findings"][0]["severity"] == "error"
    assert set(described["findings"][0]) == {"rule", "severity", "node", "operator", "module", "found", "remedy"}


def test_a_file_that_is_no_onnx_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "not.onnx").write_text("<html>", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"not\.onnx is not an ONNX model"):
        lint_onnx(tmp_path / "not.onnx")


def test_the_builder_refuses_what_the_linter_calls_an_error(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = write_onnx(tmp_path, precision="int8", edit=dynamic_scale)
    with pytest.raises(
        EngineError, match=r"(?s)node added/QuantizeLinear .*\[dynamic-scale\]\n    Make the scale"
    ) as caught:
        build(source, tmp_path / "t.engine", runtime="tensorrt-rtx", targets=("sm86",))
    assert "tiny.onnx" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_the_builder_notes_what_the_linter_warns_of(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = write_onnx(tmp_path, precision="int8")
    result = build(source, tmp_path / "t.engine", runtime="tensorrt-rtx", targets=("sm86",))
    (note,) = [note for note in result.notes if note.startswith("lint: ")]
    assert note.startswith(
        "lint: weights-per-tensor at backbone.stem/Conv and 9 more: one scale for 8 output channels."
    )
    assert note in result.sidecar.notes
