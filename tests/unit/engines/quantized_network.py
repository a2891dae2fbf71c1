"""The tiny network with its convolutions quantized as TensorRT likes it, and ways to spoil that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.lint.linter import LintReport, lint_onnx
from tests.unit.engines.tiny_network import CHANNELS, TINY_SPEC, Graph, make_model
from yolact_deploy.artifacts.onnx_file import parse_onnx

Edit = Callable[[Graph], None]

FLOAT, INT8 = np.float32, np.int8
ZERO = INT8(0)
CONV = "fpn.downsample/Conv"


def quantized(edit: Edit | None = None, *, opset: int = 19, precision: str = "int8") -> onnx.ModelProto:
    """The tiny network with its convolutions quantized as TensorRT likes it, then edited."""

    def apply(graph: Graph) -> None:
        if precision == "int8":
            per_channel(graph)
        if edit is not None:
            edit(graph)

    model = make_model(TINY_SPEC, precision=precision, edit=apply)
    model.opset_import[0].version = opset
    if any(node.domain == "com.microsoft" for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def lint(model: onnx.ModelProto) -> LintReport:
    return lint_onnx(parse_onnx(model.SerializeToString(), "made.onnx"))


def rules(report: LintReport) -> set[str]:
    return {finding.rule for finding in report.findings}


def per_channel(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and ".w/" in node.name:
            node.attribute.append(helper.make_attribute("axis", 0))
            module = node.name.rpartition(".w/")[0]
            channels = graph.initializers[f"{module}.weight"].dims[0]
            weight_scales(module, np.full(channels, 0.01), np.zeros(channels))(graph)


def weight_scales(module: str, scale: Any, zero_point: Any, dtype: Any = INT8) -> Edit:
    def edit(graph: Graph) -> None:
        graph.constant(f"{module}.w.scale", np.asarray(scale, FLOAT))
        graph.constant(f"{module}.w.zero_point", np.asarray(zero_point, dtype))

    return edit


def activation_scales(module: str, scale: Any, zero_point: Any) -> Edit:
    def edit(graph: Graph) -> None:
        graph.constant(f"{module}.x.scale", np.asarray(scale, FLOAT))
        graph.constant(f"{module}.x.zero_point", np.asarray(zero_point, INT8))

    return edit


def pair_before(name: str, scale: Any = 0.1, zero_point: Any = ZERO, position: int = 0, module: str = "added") -> Edit:
    return lambda graph: graph.insert_before(
        name, lambda x: graph.quantize(x, module, scale, zero_point), position=position
    )


def quantize_only(graph: Graph, x: str, module: str) -> str:
    parameters = [graph.constant(f"{module}.s", np.array(0.1, FLOAT)), graph.constant(f"{module}.z", np.array(0, INT8))]
    return graph.add("QuantizeLinear", [x, *parameters], module)


def before(name: str, build: Callable[[Graph, str], str], position: int = 0) -> Edit:
    return lambda graph: graph.insert_before(name, lambda x: build(graph, x), position=position)


def together(*edits: Edit) -> Edit:
    def edit(graph: Graph) -> None:
        for each in edits:
            each(graph)

    return edit


def stored_weight(dtype: Any, zero_point: int) -> Edit:
    """A weight that is kept in integers, with a DQ but no Q."""

    def edit(graph: Graph) -> None:
        graph.nodes.remove(graph.node("fpn.downsample.w/QuantizeLinear"))
        graph.constant("fpn.downsample.weight", np.ones((CHANNELS, CHANNELS, 3, 3), dtype))
        graph.node("fpn.downsample.w/DequantizeLinear").input[0] = "fpn.downsample.weight"
        weight_scales("fpn.downsample", np.full(CHANNELS, 0.01), np.full(CHANNELS, zero_point), dtype)(graph)

    return edit


def set_axis(module: str, axis: int) -> Edit:
    def edit(graph: Graph) -> None:
        for node in graph.nodes:
            if node.name.startswith(f"{module}.w/"):
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("axis", axis))

    return edit


def bias(dtype: Any, module: str = "backbone.stem") -> Edit:
    def build(graph: Graph, _: str) -> str:
        stored = graph.constant("bias.stored", np.zeros(CHANNELS, dtype))
        return graph.add("DequantizeLinear", [stored, graph.constant("bias.scale", np.array(0.01, FLOAT))], module)

    return before(f"{module}/Conv", build, position=2)


def half_constant(name: str) -> Edit:
    def edit(graph: Graph) -> None:
        graph.constant(name, numpy_helper.to_array(graph.initializers[name]).astype(np.float16))

    return edit


def half_convolution(graph: Graph, x: str) -> str:
    """An INT8 convolution whose bias and scales are halves, between casts."""
    x = graph.add("Cast", [x], "block.in", to=TensorProto.FLOAT16)
    weight = graph.constant("block.weight", np.ones((CHANNELS, CHANNELS, 1, 1), np.float16))
    offset = graph.constant("block.bias", np.ones(CHANNELS, np.float16))
    inputs = [graph.quantize(x, "block.x", 0.1), graph.quantize(weight, "block.w", 0.1), offset]
    x = graph.quantize(graph.add("Relu", [graph.add("Conv", inputs, "block")], "block"), "block.out", 0.1)
    for name in ("x", "w", "out"):
        half_constant(f"block.{name}.scale")(graph)
    return graph.add("Cast", [x], "block.out", to=TensorProto.FLOAT)


def dynamic_scale(graph: Graph) -> None:
    def build(x: str) -> str:
        scale = graph.add("ReduceMax", [x], "observer", keepdims=0)
        zero_point = graph.constant("observer.zero_point", np.array(0, INT8))
        x = graph.add("QuantizeLinear", [x, scale, zero_point], "added")
        return graph.add("DequantizeLinear", [x, scale, zero_point], "added")

    graph.insert_before(CONV, build)


def integer_convolution(graph: Graph, x: str) -> str:
    scale, zero = graph.constant("q.s", np.array(0.1, FLOAT)), graph.constant("q.z", np.array(0, INT8))
    weight = graph.constant("q.w", np.ones((CHANNELS, CHANNELS, 1, 1), INT8))
    x = graph.add("QuantizeLinear", [x, scale, zero], "q")
    x = graph.add("QLinearConv", [x, scale, zero, weight, scale, zero, scale, zero], "q")
    return graph.add("DequantizeLinear", [x, scale, zero], "q")


def dynamic_quantize(graph: Graph, x: str) -> str:
    quantized = graph.add("DynamicQuantizeLinear", [x], "q")
    graph.nodes[-1].output.extend(["q.scale", "q.zero"])
    return graph.add("DequantizeLinear", [quantized, "q.scale", "q.zero"], "q")


def residual(*, quantize_convolution: bool, quantize_shortcut: bool) -> Edit:
    def build(graph: Graph, x: str) -> str:
        weight = graph.constant("block.weight", np.ones((CHANNELS, CHANNELS, 1, 1), FLOAT))
        branch = graph.add("Conv", [x, weight], "block")
        if quantize_convolution:
            branch = graph.quantize(branch, "block.out", 0.1)
        shortcut = graph.quantize(x, "block.in", 0.1) if quantize_shortcut else x
        return graph.add("Add", [branch, shortcut], "block")

    return before("fpn.downsample.x/QuantizeLinear", build)


def to_output(name: str) -> str:
    return f"outputs.{name}/Identity"
