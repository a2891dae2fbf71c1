"""The Q/DQ linter's rules against TensorRT-RTX itself: an error is refused or misread there, all else builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.lint.linter import RULES
from tests.unit.engines.quantized_network import (
    CONV,
    FLOAT,
    INT8,
    Edit,
    activation_scales,
    before,
    bias,
    dynamic_quantize,
    dynamic_scale,
    half_constant,
    half_convolution,
    integer_convolution,
    lint,
    pair_before,
    quantize_only,
    quantized,
    residual,
    rules,
    set_axis,
    stored_weight,
    to_output,
    together,
    weight_scales,
)
from tests.unit.engines.rtx_oracle import quantize_types, refusal
from tests.unit.engines.tiny_network import CHANNELS, Graph

# Rule, the node that is named, and the edit that breaks it; several where the rule has several faces.
REFUSED: list[tuple[str, str, Edit]] = [
    ("nonzero-zero-point", "added/QuantizeLinear", pair_before(CONV, zero_point=INT8(3))),
    ("nonzero-zero-point", "added/QuantizeLinear", pair_before(CONV, zero_point=np.uint8(128))),
    (
        "nonzero-zero-point",
        "fpn.downsample.w/QuantizeLinear",
        weight_scales("fpn.downsample", np.full(CHANNELS, 0.01), np.full(CHANNELS, 3)),
    ),
    ("nonzero-zero-point", "fpn.downsample.w/DequantizeLinear", stored_weight(INT8, 3)),
    ("not-int8", "fpn.downsample.w/DequantizeLinear", stored_weight(np.uint8, 0)),
    ("not-int8", "added/QuantizeLinear", pair_before(CONV, zero_point=np.int16(0))),
    ("int32-bias", "backbone.stem/DequantizeLinear", bias(np.int32)),
    ("bad-scale", "added/QuantizeLinear", pair_before(CONV, scale=0.0)),
    ("bad-scale", "added/QuantizeLinear", pair_before(CONV, scale=-0.1)),
    ("bad-scale", "added/QuantizeLinear", pair_before(CONV, scale=np.nan)),
    (
        "bad-scale",
        "fpn.downsample.w/QuantizeLinear",
        weight_scales("fpn.downsample", [0.0] + [0.1] * (CHANNELS - 1), np.zeros(CHANNELS)),
    ),
    (
        "scale-count",
        "fpn.downsample.w/QuantizeLinear",
        weight_scales("fpn.downsample", np.full(5, 0.1), np.zeros(5)),
    ),
    (
        "scale-count",
        "fpn.downsample.w/QuantizeLinear",
        weight_scales("fpn.downsample", np.full(CHANNELS, 0.1), np.zeros(1)),
    ),
    ("mixed-float-types", CONV, half_constant("fpn.downsample.bias")),
    ("mixed-float-types", CONV, half_constant("fpn.downsample.w.scale")),
    (
        "mixed-float-types",
        "outputs/Concat",
        before("outputs/Concat", lambda graph, x: graph.add("Cast", [x], "cast", to=TensorProto.FLOAT16)),
    ),
    ("quantize-without-dequantize", CONV, before(CONV, lambda graph, x: quantize_only(graph, x, "alone"))),
    (
        "quantize-without-dequantize",
        "protonet.2.x/QuantizeLinear",
        before("protonet.1/Relu", lambda graph, x: quantize_only(graph, x, "alone")),
    ),
    (
        "quantize-without-dequantize",
        "outputs/Softmax",
        before("outputs/Softmax", lambda graph, x: quantize_only(graph, x, "alone")),
    ),
    (
        "quantize-without-dequantize",
        "added/Add",
        before(to_output("loc"), lambda graph, x: graph.add("Add", [quantize_only(graph, x, "alone"), x], "added")),
    ),
    ("integer-operator", "q/QLinearConv", before(CONV, integer_convolution)),
    ("integer-operator", "q/DynamicQuantizeLinear", before(CONV, dynamic_quantize)),
]

BUILDS: list[tuple[str, str, Edit]] = [
    ("weights-per-tensor", CONV, weight_scales("fpn.downsample", 0.01, 0)),
    ("weights-axis", CONV, set_axis("fpn.downsample", 1)),
    (
        "activation-per-channel",
        CONV,
        activation_scales("fpn.downsample", np.full(CHANNELS, 0.1), np.zeros(CHANNELS)),
    ),
    (
        "half-quantized",
        CONV,
        lambda graph: graph.node(CONV).input.__setitem__(1, "fpn.downsample.weight"),
    ),
    ("half-beside-int8", "block/Conv", before("fpn.downsample.x/QuantizeLinear", half_convolution)),
    ("quantized-bias", "backbone.stem/Conv", bias(INT8)),
    (
        "scale-mismatch",
        "fpn.downsample.x/DequantizeLinear",
        lambda graph: graph.node("fpn.downsample.x/DequantizeLinear").input.__setitem__(
            1, graph.constant("other", np.array(0.2, FLOAT))
        ),
    ),
    (
        "scale-type",
        "fpn.downsample.x/QuantizeLinear",
        before(
            "fpn.downsample.x/QuantizeLinear",
            lambda graph, x: graph.add("Cast", [x], "cast", to=TensorProto.FLOAT16),
        ),
    ),
    ("residual-both-sides", "block/Add", residual(quantize_convolution=True, quantize_shortcut=True)),
    ("residual-conv-side", "block/Add", residual(quantize_convolution=True, quantize_shortcut=False)),
    ("before-activation", "protonet.1/Relu", pair_before("protonet.1/Relu")),
    (
        "concat-scales",
        "outputs/Concat",
        together(pair_before("outputs/Concat", 0.1), pair_before("outputs/Concat", 0.2, position=1, module="added.2")),
    ),
    (
        "concat-quantized",
        "outputs/Concat",
        together(pair_before("outputs/Concat", 0.1), pair_before("outputs/Concat", 0.1, position=1, module="added.2")),
    ),
    ("concat-quantized", "outputs/Concat", pair_before("head.loc.0/Transpose")),
    ("float-operator", "outputs/Softmax", pair_before("outputs/Softmax")),
    ("float-operator", "outputs/Softmax", pair_before(to_output("conf"))),
    (
        "pass-through-one-sided",
        "pool/MaxPool",
        before(
            "outputs/Transpose",
            lambda graph, x: graph.add("MaxPool", [graph.quantize(x, "pool", 0.1)], "pool", kernel_shape=[1, 1]),
        ),
    ),
    ("unused-quantization", "added/DequantizeLinear", pair_before(to_output("proto"))),
]

# Errors that a plain "is refused" does not show, each with a test of its own; and a warning that is an opset's.
_SHOWN_APART = {"non-finite-weights", "dynamic-scale", "half-scale-opset", "hardware-type"}


def _ids(cases: list[tuple[str, str, Edit]]) -> list[str]:
    return [f"{rule}-{index}" for index, (rule, _, _) in enumerate(cases)]


def test_every_rule_has_a_case_below() -> None:
    assert {rule for rule, _, _ in (*REFUSED, *BUILDS)} | _SHOWN_APART == set(RULES)
    assert {rule for rule, _, _ in REFUSED} <= {name for name, rule in RULES.items() if rule.severity == "error"}
    assert {rule for rule, _, _ in BUILDS} <= {name for name, rule in RULES.items() if rule.severity == "warning"}


def test_a_well_quantized_graph_has_no_findings_and_builds() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = quantized()
    report = lint(model)
    assert report.findings == ()
    assert (report.convolutions, report.int8_convolutions) == (10, 10)
    assert refusal(model) is None


def test_a_shortcut_alone_may_be_quantized() -> None:
    model = quantized(residual(quantize_convolution=False, quantize_shortcut=True))
    assert lint(model).findings == ()


def test_a_resize_between_two_pairs_may_have_a_relu_behind_it() -> None:
    def build(graph: Graph, x: str) -> str:
        size = graph.constant("up.scales", np.ones(4, FLOAT))
        return graph.add("Resize", [graph.quantize(x, "up", 0.1), "", size], "up", mode="linear")

    report = lint(quantized(before("protonet.1/Relu", build)))
    assert "pass-through-one-sided" not in rules(report)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nothing_is_found_without_quantization(precision: str) -> None:
    report = lint(quantized(precision=precision))
    assert (report.findings, report.int8_convolutions) == ((), 0)


@pytest.mark.parametrize(("rule", "node", "edit"), REFUSED, ids=_ids(REFUSED))
def test_an_error_is_refused_by_tensorrt_rtx(rule: str, node: str, edit: Edit) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = quantized(edit)
    found = {(finding.rule, finding.node): finding for finding in lint(model).errors}
    assert (rule, node) in found
    assert found[rule, node].remedy == RULES[rule].remedy
    assert refusal(model) is not None


@pytest.mark.parametrize(("rule", "node", "edit"), BUILDS, ids=_ids(BUILDS))
def test_a_warning_builds(rule: str, node: str, edit: Edit) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = quantized(edit)
    report = lint(model)
    assert report.passed
    assert (rule, node) in {(finding.rule, finding.node) for finding in report.warnings}
    assert refusal(model) is None


@pytest.mark.parametrize("zero_point", [np.uint8(0), None], ids=["uint8", "no zero point"])
def test_unsigned_activations_are_an_error_as_tensorrt_reads_them_as_int8(zero_point: np.uint8 | None) -> None:
    pytest.importorskip("tensorrt_rtx")

    def edit(graph: Graph) -> None:
        pair_before(CONV, zero_point=np.uint8(0))(graph)
        if zero_point is None:
            for operator in ("QuantizeLinear", "DequantizeLinear"):
                del graph.node(f"added/{operator}").input[2]

    model = quantized(edit)
    (error,) = lint(model).errors
    assert (error.rule, error.node) == ("not-int8", "added/QuantizeLinear")
    assert "UINT8" in error.found
    assert quantize_types(model)["added/QuantizeLinear"] == "INT8"


def test_an_infinite_scale_is_an_error() -> None:
    (error,) = lint(quantized(pair_before(CONV, scale=np.inf))).errors
    assert error.rule == "bad-scale"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_that_are_no_numbers_are_an_error_in_every_precision(precision: str) -> None:
    def edit(graph: Graph) -> None:
        values = onnx.numpy_helper.to_array(graph.initializers["fpn.downsample.weight"]).copy()
        values.flat[:3] = [np.nan, np.inf, -np.inf]
        graph.constant("fpn.downsample.weight", values)

    (error,) = lint(quantized(edit, precision=precision)).errors
    assert error.rule == "non-finite-weights"
    assert error.module.startswith("fpn.downsample")
    assert error.found == "the weight fpn.downsample.weight holds NaN or infinity in 3 of 576 values"


def test_a_scale_computed_from_the_input_ends_the_process_of_tensorrt_rtx(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = quantized(dynamic_scale)
    (error,) = lint(model).errors
    assert (error.rule, error.node) == ("dynamic-scale", "added/QuantizeLinear")
    path = tmp_path / "dynamic.onnx"
    onnx.save(model, path)
    code = (
        "import sys, onnx\nfrom tests.unit.engines.rtx_oracle import refusal\n"
        "print('refused' if refusal(onnx.load(sys.argv[1])) else 'built')"
    )
    root = Path(__file__).parents[3]
    child = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True)
    assert child.returncode != 0 or "built" not in child.stdout


def test_a_scale_made_of_constants_is_no_error() -> None:
    def edit(graph: Graph) -> None:
        def build(x: str) -> str:
            stored = graph.constant("stored", np.array(0.1, np.float16))
            scale = graph.add("Cast", [stored], "scale", to=TensorProto.FLOAT)
            zero_point = graph.add("Constant", [], "zero", value=numpy_helper.from_array(np.array(0, INT8)))
            x = graph.add("QuantizeLinear", [x, scale, zero_point], "added")
            return graph.add("DequantizeLinear", [x, scale, zero_point], "added")

        graph.insert_before("fpn.downsample.x/QuantizeLinear", build)

    assert lint(quantized(edit)).passed


@pytest.mark.parametrize(("opset", "warned"), [(18, True), (19, False)])
def test_half_scales_need_opset_19(opset: int, warned: bool) -> None:
    def edit(graph: Graph) -> None:
        for name in ("weight", "bias", "x.scale", "w.scale"):
            half_constant(f"protonet.0.{name}")(graph)
        graph.insert_before(
            "protonet.0.x/QuantizeLinear", lambda x: graph.add("Cast", [x], "down", to=TensorProto.FLOAT16)
        )
        graph.insert_before("protonet.1/Relu", lambda x: graph.add("Cast", [x], "up", to=TensorProto.FLOAT))

    report = lint(quantized(edit, opset=opset))
    assert report.passed
    assert ("half-scale-opset" in rules(report)) is warned


def test_eight_bit_floats_are_for_some_gpus_only() -> None:
    pytest.importorskip("tensorrt_rtx")

    def edit(graph: Graph) -> None:
        pair_before(CONV)(graph)
        graph.initializers["added.zero_point"] = helper.make_tensor(
            "added.zero_point", TensorProto.FLOAT8E4M3FN, [], [0.0]
        )

    model = quantized(edit)
    report = lint(model)
    assert report.passed
    assert "hardware-type" in rules(report)
    assert "HW-specific" in (refusal(model) or "")
