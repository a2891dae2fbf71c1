"""The checks of the linter: of weights, of single Q/DQ nodes and types of tensors, and of where Q/DQ stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from engines.lint.graph import CONVOLUTIONS, QdqGraph, attribute, is_standard, label
from engines.lint.rules import Located, finding
from yolact_deploy.artifacts.onnx_file import DEQUANTIZE, QUANTIZE
from yolact_deploy.optional import require
from yolact_deploy.text import counted

if TYPE_CHECKING:
    import onnx

_HALF_SCALE_OPSET = 19
_FREE_SCALE_TYPE_OPSET = 23
_BIAS = 2  # position among the inputs
_WITH_BIAS = (*CONVOLUTIONS, "Gemm")
_WEIGHTED = (*_WITH_BIAS, "MatMul")
# Inputs of one floating-point type; of Clip and the like the limits are converted by the parser.
_SAME_TYPE = (*_WEIGHTED, "Add", "Sub", "Mul", "Div", "Concat", "Max", "Min", "Sum")
_NO_INT8_INPUT = (*_WEIGHTED, "Softmax", "LogSoftmax", "Tanh", "Sigmoid")
_INTEGER_OPERATORS = ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_INTEGER_PREFIX = "QLinear"  # QLinearConv, QLinearAdd, ...
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
_HARDWARE_TYPES = ("FLOAT8", "FLOAT4", "INT4", "UINT4")
_ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Clip", "HardSwish", "Elu")
_PASS_THROUGH = ("MaxPool", "Resize")
_FLOAT_ONLY = ("Softmax", "LogSoftmax", "Tanh", "Sigmoid", "Exp")
_INT8_KERNELS = (*_WEIGHTED, *_PASS_THROUGH, "Add", "AveragePool", "GlobalAveragePool")
_SHAPE_ONLY = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad")
_JUDGED_ELSEWHERE = (*_FLOAT_ONLY, *_ACTIVATIONS, "Concat")


def weight_findings(
    graph: QdqGraph,
    non_finite: Mapping[str, tuple[int, int]],  # weight -> how many of its values are no numbers, and of how many
) -> Iterator[Located]:
    """Weights with NaN or infinite values, each at the first node that reads it; scales are judged as such."""
    for name, (count, total) in non_finite.items():
        readers = [node for node in graph.readers(name) if not _is_scale(node, name)]
        if readers or not graph.readers(name):
            found = f"the weight {name} holds NaN or infinity in {count} of {total} values"
            yield finding(graph, (readers or graph.nodes)[0], "non-finite-weights", found)


def _is_scale(node: onnx.NodeProto, name: str) -> bool:
    return node.op_type in (QUANTIZE, DEQUANTIZE) and name not in (*node.input[:1], *node.input[2:])


def parameter_findings(graph: QdqGraph) -> Iterator[Located]:
    """Q/DQ whose types, scales, zero points or pairing TensorRT refuses, and integer operators."""
    for node in graph.nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            if not _repeats_its_quantize(graph, node):
                yield from _types(graph, node)
                yield from _scale(graph, node)
                yield from _zero_point(graph, node)
                yield from _counts(graph, node)
                yield from _opset(graph, node)
            yield from _pair(graph, node)
        elif node.op_type in _INTEGER_OPERATORS or node.op_type.startswith(_INTEGER_PREFIX):
            yield finding(graph, node, "integer-operator", f"{node.op_type} computes on integers directly")
        else:
            yield from _float_types(graph, node)
            yield from _bias(graph, node)


def _repeats_its_quantize(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether a DQ has the very parameters of the Q in front of it, where they were already judged."""
    quantize = graph.producer_of_type(node.input[0], QUANTIZE) if node.op_type == DEQUANTIZE else None
    return quantize is not None and list(quantize.input[1:]) == list(node.input[1:])


def _types(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    stored = _type_name(graph.stored_type(node))
    if stored.startswith(_HARDWARE_TYPES):
        yield finding(graph, node, "hardware-type", f"{stored} quantization")
    elif stored not in ("INT8", ""):
        if graph.producer_of_type(node.input[0], QUANTIZE) is not None:
            return  # said at the QuantizeLinear
        if stored == "INT32" and node.op_type == DEQUANTIZE and graph.is_constant(node.input[0]):
            yield finding(graph, node, "int32-bias", "an INT32 constant behind DequantizeLinear")
            return
        why = "" if len(node.input) > 2 else " (the default where no zero point is given)"
        note = "; TensorRT reads it as INT8, and larger values saturate" if stored == "UINT8" else ""
        yield finding(graph, node, "not-int8", f"{stored} quantization{why}{note}")


def _scale(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    if not graph.is_constant(node.input[1]):
        yield finding(graph, node, "dynamic-scale", f"the scale {node.input[1]} is computed from the network's input")
        return
    scale = graph.scale(node)
    if scale is None:
        return
    bad = scale[~(np.isfinite(scale) & (scale > 0))]
    if len(bad):
        which = (
            f"{len(bad)} of {len(scale)} scales are not positive numbers, such as" if len(scale) > 1 else "the scale is"
        )
        yield finding(graph, node, "bad-scale", f"{which} {bad[0]:g}")


def _zero_point(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    zero_point = graph.zero_point(node)
    if zero_point is None:
        return
    nonzero = zero_point[zero_point.astype(np.float64) != 0]
    if len(nonzero):
        stored = _type_name(graph.stored_type(node))
        yield finding(graph, node, "nonzero-zero-point", f"asymmetric {stored} with zero point {nonzero[0]}")


def _opset(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    half = _type_name(graph.types.get(node.input[1], 0)) == "FLOAT16"
    if half and is_standard(node) and graph.opset < _HALF_SCALE_OPSET:
        yield finding(graph, node, "half-scale-opset", f"a float16 scale in opset {graph.opset}")


def _counts(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    if attribute(node, "block_size", 0):
        return
    scale, zero_point = graph.scale(node), graph.zero_point(node)
    if scale is None:
        return
    if zero_point is not None and len(zero_point) != len(scale):
        yield finding(
            graph, node, "scale-count", f"{counted(len(scale), 'scale')}, but {counted(len(zero_point), 'zero point')}"
        )
    weight = graph.weights.get(node.input[0])
    if weight is None or len(scale) == 1:
        return
    axis = graph.axis(node, len(weight.dims))
    if not 0 <= axis < len(weight.dims) or weight.dims[axis] != len(scale):
        shape = "x".join(map(str, weight.dims))
        yield finding(graph, node, "scale-count", f"{len(scale)} scales on axis {axis} of a {shape} weight")


def _pair(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    scale_type = _type_name(graph.types.get(node.input[1], 0))
    if node.op_type == QUANTIZE:
        x_type = _type_name(graph.types.get(node.input[0], 0))
        if x_type == "INT8":
            yield finding(graph, node, "quantize-without-dequantize", f"its input {node.input[0]} is INT8 already")
        if (
            x_type in _FLOATS
            and scale_type in _FLOATS
            and x_type != scale_type
            and graph.opset < _FREE_SCALE_TYPE_OPSET
        ):
            yield finding(graph, node, "scale-type", f"a {scale_type} scale for a {x_type} tensor")
        return
    quantize = graph.producer_of_type(node.input[0], QUANTIZE)
    if quantize is None or quantize.input[1] == node.input[1]:
        return
    first, second = graph.scale(quantize), graph.scale(node)
    # Half and single precision of one number count as one.
    if first is None or second is None or not len(first) or not len(second):
        return
    if not _same_scales(first, second):
        yield finding(graph, node, "scale-mismatch", f"quantized with {first[0]:g}, dequantized with {second[0]:g}")


def _same_scales(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-3, atol=0, equal_nan=True))


def _float_types(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    inputs = {name: _type_name(graph.types.get(name, 0)) for name in node.input if name}
    quantized = [name for name, found in inputs.items() if found in ("INT8", "UINT8")]
    floats = {name: found for name, found in inputs.items() if found in _FLOATS}
    if quantized and (node.op_type in _NO_INT8_INPUT or (node.op_type in _SAME_TYPE and floats)):
        yield finding(graph, node, "quantize-without-dequantize", f"the input {quantized[0]} is {inputs[quantized[0]]}")
    elif node.op_type in _SAME_TYPE and len(set(floats.values())) > 1:
        yield finding(
            graph, node, "mixed-float-types", ", ".join(f"{name} is {found}" for name, found in floats.items())
        )


def _bias(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    if node.op_type not in _WITH_BIAS or len(node.input) <= _BIAS:
        return
    dequantize = graph.dequantized(node.input[_BIAS])
    if dequantize is not None and _type_name(graph.stored_type(dequantize)) != "INT32":
        stored = _type_name(graph.stored_type(dequantize))
        yield finding(graph, node, "quantized-bias", f"its bias comes from DequantizeLinear ({stored})")


def _type_name(elem_type: int) -> str:
    """ "FLOAT16"; "" for an unknown type."""
    types = require("onnx", extra="rtx", purpose="lint").TensorProto.DataType
    return str(types.Name(elem_type)) if elem_type and elem_type in types.values() else ""


def placement_findings(graph: QdqGraph) -> Iterator[Located]:
    """Q/DQ that stand where TensorRT can't fuse them, or are missing where it needs them."""
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
    if x is not None and weight is not None and _overflows_in_onnxruntime(graph, node):
        yield finding(graph, node, "half-beside-int8", "its bias is FLOAT16, and a QuantizeLinear follows")
    if weight is None or attribute(weight, "block_size", 0):
        return
    scale, stored = graph.scale(weight), graph.weights.get(graph.before_quantization(weight))
    if scale is None or stored is None:
        return
    axis, wanted = graph.axis(weight, len(stored.dims)), _channel_axis(node, len(stored.dims))
    if not 0 <= wanted < len(stored.dims):
        return  # no weight of this operator: TensorRT's parser says so
    channels = stored.dims[wanted] * (attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1)
    if len(scale) == 1 and channels > 1:
        yield finding(graph, node, "weights-per-tensor", f"one scale for {channels} output channels")
    elif len(scale) > 1 and axis != wanted:
        yield finding(graph, node, "weights-axis", f"scales along axis {axis}, the output channels are axis {wanted}")


def _overflows_in_onnxruntime(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether its optimizer WeightBiasQuantization takes the bias of this node for an integer, and computes that in half."""
    if node.op_type not in _WITH_BIAS or len(node.input) <= _BIAS:
        return False
    readers = graph.readers(node.output[0])
    while len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = graph.readers(readers[0].output[0])
    behind = len(readers) == 1 and readers[0].op_type == QUANTIZE
    return behind and _type_name(graph.types.get(node.input[_BIAS], 0)) == "FLOAT16"


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _residual(graph: QdqGraph, node: onnx.NodeProto) -> Iterator[Located]:
    sides = [graph.dequantized(name) for name in node.input]
    convolutions = [side and graph.producer_of_type(graph.before_quantization(side), *CONVOLUTIONS) for side in sides]
    quantized = [convolution for convolution in convolutions if convolution is not None]
    if not quantized:
        return
    named = " and ".join(label(convolution) for convolution in quantized)
    if None not in sides:
        yield finding(graph, node, "residual-both-sides", f"both inputs come through Q/DQ, also that of {named}")
    elif not any(graph.producer_of_type(name, *CONVOLUTIONS) for name in node.input):
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
    convolution = side and graph.producer_of_type(graph.before_quantization(side), *CONVOLUTIONS)
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
