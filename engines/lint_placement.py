"""Lint rules about where Q/DQ stands: weights, residual adds, concatenations, activations, decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from engines.lint_rules import Finding, finding
from engines.qdq_graph import DEQUANTIZE, QUANTIZE, QdqGraph, attribute, label

if TYPE_CHECKING:
    import onnx

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Clip", "HardSwish", "Elu")
_PASS_THROUGH = ("MaxPool", "Resize")
_FLOAT_ONLY = ("Softmax", "LogSoftmax", "Tanh", "Sigmoid", "Exp")
_INT8_KERNELS = (*_WEIGHTED, *_PASS_THROUGH, "Add", "AveragePool", "GlobalAveragePool")
_SHAPE_ONLY = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad")
_JUDGED_ELSEWHERE = (*_FLOAT_ONLY, *_ACTIVATIONS, "Concat")

Located = tuple["onnx.NodeProto", Finding]


def placement_findings(graph: QdqGraph) -> Iterator[Located]:
    for node in graph.nodes:
        operator = node.op_type
        if operator in _WEIGHTED:
            yield from _weighted(graph, node)
        elif operator == "Add":
            yield from _residual(graph, node)
        elif operator == "Concat":
            yield from _concat(graph, node)
        elif operator in _FLOAT_ONLY:
            yield from _float_only(graph, node)
        elif operator in _PASS_THROUGH:
            yield from _pass_through(graph, node)
        elif operator in _ACTIVATIONS:
            yield from _activation(graph, node)
        elif operator == DEQUANTIZE:
            yield from _unused(graph, node)


def _weighted(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    x, weight = (graph.dequantized(name) for name in node.input[:2])
    if not graph.is_constant(node.input[1]):
        return  # a product of two activations
    if (x is None) != (weight is None):
        quantized, plain = ("weight", "input") if x is None else ("input", "weight")
        yield finding(graph, node, "half-quantized", f"its {quantized} is quantized, its {plain} is not")
    if x is not None:
        scale = graph.scale(x)
        if scale is not None and len(scale) > 1:
            yield finding(graph, node, "activation-per-channel", f"its input has {len(scale)} scales")
    if weight is None or attribute(weight, "block_size", 0):
        return
    scale, stored = graph.scale(weight), graph.weights.get(graph.before_quantization(weight))
    if scale is None or stored is None:
        return
    axis, wanted = graph.axis(weight, len(stored.dims)), _channel_axis(node, len(stored.dims))
    channels = stored.dims[wanted] * (attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1)
    if len(scale) == 1 and channels > 1:
        yield finding(graph, node, "weights-per-tensor", f"one scale for {channels} output channels")
    elif len(scale) > 1 and axis != wanted:
        yield finding(graph, node, "weights-axis", f"scales along axis {axis}, the output channels are axis {wanted}")


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _residual(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    sides = [graph.dequantized(name) for name in node.input]
    convolutions = [side and graph.made_by(graph.before_quantization(side), *_CONVOLUTIONS) for side in sides]
    quantized = [convolution for convolution in convolutions if convolution is not None]
    if not quantized:
        return
    named = " and ".join(label(convolution) for convolution in quantized)
    if None not in sides:
        yield finding(graph, node, "residual-both-sides", f"both inputs come through Q/DQ, also that of {named}")
    elif not any(graph.made_by(name, *_CONVOLUTIONS) for name in node.input):
        yield finding(
            graph, node, "residual-conv-side", f"the input from {named} comes through Q/DQ, the other does not"
        )


def _concat(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    sides = [_dequantize_behind_shapes(graph, name) for name in node.input]
    quantized = [side for side in sides if side is not None]
    if not quantized:
        return
    scales = [graph.scale(side) for side in quantized]
    known = [float(scale[0]) for scale in scales if scale is not None and len(scale)]
    if len(quantized) < len(sides):
        found = f"{len(quantized)} of its {len(sides)} inputs come through Q/DQ"
        yield finding(graph, node, "concat-quantized", found)
    elif known and not np.allclose(known, known[0], rtol=1e-3, atol=0):
        yield finding(graph, node, "concat-scales", f"its inputs have scales from {min(known):g} to {max(known):g}")
    else:
        yield finding(graph, node, "concat-quantized", f"all its {len(sides)} inputs come through Q/DQ")


def _float_only(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    where = []
    if _dequantize_behind_shapes(graph, node.input[0]) is not None:
        where.append("in front of it")
    if any(reader.op_type == QUANTIZE for reader in graph.readers(node.output[0])):
        where.append("behind it")
    if where:
        yield finding(graph, node, "float-operator", f"Q/DQ {' and '.join(where)}")


def _dequantize_behind_shapes(graph: QdqGraph, tensor: str) -> onnx.NodeProto | None:
    """The DQ that `tensor` comes from, directly or by operators that only move values."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in _SHAPE_ONLY:
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type == DEQUANTIZE else None


def _pass_through(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    if graph.dequantized(node.input[0]) is None:
        return
    readers = graph.readers(node.output[0])
    # A Relu commutes with a symmetric quantization, which TensorRT moves in front of it.
    readers += [reader for relu in readers if relu.op_type == "Relu" for reader in graph.readers(relu.output[0])]
    if not any(reader.op_type == QUANTIZE for reader in readers):
        yield finding(graph, node, "pass-through-one-sided", "Q/DQ in front of it, none behind it")


def _activation(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    side = graph.dequantized(node.input[0])
    convolution = side and graph.made_by(graph.before_quantization(side), *_CONVOLUTIONS)
    if convolution is not None:
        yield finding(graph, node, "before-activation", f"Q/DQ between {label(convolution)} and it")


def _unused(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    if graph.is_constant(node.input[0]):
        return
    reached = _reached(graph, node.output[0])
    if not reached & {*_INT8_KERNELS, *_JUDGED_ELSEWHERE, QUANTIZE}:
        names = ", ".join(sorted(reached)) or "nothing"
        yield finding(graph, node, "unused-quantization", f"it is read by {names}")


def _reached(graph: QdqGraph, tensor: str) -> set[str]:
    """Operators that read `tensor`, directly or by operators that only move values; "an output" for the graph's own."""
    operators = set[str]()
    pending = [tensor]
    for name in pending:
        if name in graph.outputs:
            operators.add("an output")
        for reader in graph.readers(name):
            if reader.op_type in _SHAPE_ONLY and reader.input[0] == name:
                pending += reader.output
            else:
                operators.add(reader.op_type)
    return operators
