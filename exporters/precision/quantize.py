"""A float32 ONNX with explicit Q/DQ where TensorRT wants it: symmetric INT8, one scale per tensor and per weight's channel.

onnxruntime's QDQQuantizer was looked at and is not used: it quantizes both sides of a residual addition, rounds and ties
scales per operator type instead of by what stands around a node, and takes the whole calibration with it; undoing that
is more than placing the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from exporters.onnx_edit import UniqueNames, add_initializer, is_inside, operation, opset_of, to_proto
from exporters.precision.ranges import INT8_LEVELS
from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import module_of
from yolact_deploy.errors import CalibrationError

MIN_OPSET = 19  # the first whose QuantizeLinear takes halves
_ACTIVATIONS = frozenset({"Relu", "LeakyRelu"})
_PASS_THROUGH = frozenset({"MaxPool", "Resize"})
_SMALLEST_HALF = 2.0**-24
_UNUSED_SCALE = 1.0  # of a tensor that was 0 on every image
_LARGEST_BIAS = (
    2**30
)  # in steps of a sum: where a runtime makes biases integers they are INT32, and the sum needs room too


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ pairs go, by the names of nodes and tensors."""

    convs: tuple[str, ...]  # convolutions in INT8, in the graph's order
    inputs: Mapping[str, frozenset[str]]  # quantized tensor -> nodes that read it in INT8
    # Quantized tensor -> the tensor whose range it takes: itself, but behind a pass-through.
    range_from: Mapping[str, str]


def check_quantizable(model: onnx.ModelProto, path: object) -> None:
    """Raise CalibrationError for an opset without half Q/DQ."""
    if (opset := opset_of(model)) < MIN_OPSET:
        raise CalibrationError(
            f"{path} has opset {opset}; INT8 needs {MIN_OPSET}, the first whose Q/DQ work on half tensors. "
            f"Export again with `--opset {MIN_OPSET}`."
        )


def modules_with_convs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Dotted paths of the modules that hold a convolution, in the graph's order."""
    return _modules_with_convs(ir.from_proto(model).graph)


def plan_placement(model: onnx.ModelProto, keep_fp16: Sequence[str] = ()) -> Placement:
    """Q/DQ on convolutions' inputs; on one side of a residual addition; through max-pool and resize between INT8.

    `keep_fp16` are module paths whose nodes, and those of all modules below, stay out. Raises CalibrationError for one
    that names no module, and when nothing is left to quantize.
    """
    return _place(ir.from_proto(model).graph, keep_fp16)


def tensors_to_calibrate(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor whose range any choice of `keep_fp16` may ask for."""
    graph = ir.from_proto(model).graph
    placement = _place(graph, ())
    # What lies behind a pass-through takes its own range when the other neighbour stays in FP16.
    wanted = {*placement.inputs, *placement.range_from.values()}
    made = (value for node in graph for value in node.outputs)
    return tuple(str(value.name) for value in (*graph.inputs, *made) if value.name in wanted)


def quantize(
    model: onnx.ModelProto,  # float32
    ranges: Mapping[str, float],  # magnitude that 127 stands for, of each tensor to quantize
    *,
    keep_fp16: Sequence[str] = (),
) -> onnx.ModelProto:
    """A copy with Q/DQ pairs and int8 weights; what is not INT8 is float32 still. Scales are half numbers.

    Raises CalibrationError when a range is missing.
    """
    quantized = ir.from_proto(model)
    placement = _place(quantized.graph, keep_fp16)
    if missing := [name for name in placement.range_from.values() if name not in ranges]:
        raise CalibrationError(f"there is no calibrated range of the tensor {missing[0]}. Calibrate again.")
    _Edit(quantized.graph, placement, ranges).run()
    return to_proto(quantized)


def weight_scales(
    weight: FloatArray,  # [out channels, ...]
    smallest: FloatArray | float = 0.0,  # [out channels], as `smallest_weight_scales` gives them
) -> npt.NDArray[np.float32]:
    """One scale per output channel, so that its largest weight is 127 or just below; half numbers."""
    largest = np.maximum(np.abs(weight.reshape(len(weight), -1)).max(1), np.asarray(smallest) * INT8_LEVELS)
    return np.array([half_scale(float(value)) for value in largest], np.float32)


def smallest_weight_scales(
    bias: FloatArray,  # [out channels]
    input_scale: float,
) -> FloatArray:
    """The scales [out channels] of a convolution's weights at which its biases still fit into INT32, as multiples of both scales.

    Weights this much smaller than their bias add nothing to it, and onnxruntime's default options would wrap it around.
    """
    smallest: FloatArray = np.abs(bias) / np.float32(_LARGEST_BIAS * input_scale)
    return smallest


def half_scale(magnitude: float) -> float:
    """The scale that maps `magnitude` to 127, as the next half number above: rounded down, the magnitude would saturate."""
    if magnitude <= 0:
        return _UNUSED_SCALE
    exact = magnitude / INT8_LEVELS
    rounded = np.float16(exact)
    if float(rounded) < exact:
        rounded = np.nextafter(rounded, np.float16(np.inf))
    return max(float(rounded), _SMALLEST_HALF)


def _modules_with_convs(graph: ir.Graph) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_module(node) for node in graph if _is_quantizable_conv(node)))


def _place(graph: ir.Graph, keep_fp16: Sequence[str]) -> Placement:
    _check_modules(_modules_with_convs(graph), keep_fp16)

    def quantized(node: ir.Node) -> bool:
        return not is_inside(_module(node), keep_fp16)

    convs = {node for node in graph if _is_quantizable_conv(node) and quantized(node)}
    if not convs:
        raise CalibrationError("no convolution is left to quantize. Keep fewer modules in FP16, or ask for fp16.")
    positions = {node: position for position, node in enumerate(graph)}
    readers: dict[ir.Value, set[ir.Node]] = {}
    for node in graph:
        if node in convs:
            readers.setdefault(_input(node), set()).add(node)
        elif node.op_type == "Add" and quantized(node):
            residual = _residual(node, convs, positions)
            if residual is not None:
                readers.setdefault(residual, set()).add(node)
    range_from = {value: value for value in readers}
    for node in graph:
        if node.op_type in _PASS_THROUGH and quantized(node) and _is_int8(_input(node), convs, readers):
            after = _behind_activation(node.outputs[0])
            if after in readers:
                readers.setdefault(_input(node), set()).add(node)
                range_from.setdefault(_input(node), _input(node))
                range_from[after] = range_from[_input(node)]
    return Placement(
        convs=tuple(str(node.name) for node in graph if node in convs),
        inputs={str(value.name): frozenset(str(node.name) for node in nodes) for value, nodes in readers.items()},
        range_from={str(value.name): str(source.name) for value, source in range_from.items()},
    )


def _check_modules(modules: Sequence[str], keep_fp16: Sequence[str]) -> None:
    for prefix in keep_fp16:
        if not any(is_inside(module, [prefix]) for module in modules):
            top = sorted({module.partition(".")[0] for module in modules})
            raise CalibrationError(
                f"keep_fp16: no module with convolutions is named {prefix!r}. Give dotted module paths, such as "
                f"{modules[0]!r}; they begin with {', '.join(top)}."
                if modules
                else f"{prefix!r} names no module."
            )


def _is_quantizable_conv(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "Conv" else None
    return weight is not None and weight.is_initializer() and weight.dtype == ir.DataType.FLOAT


def _residual(add: ir.Node, convs: set[ir.Node], positions: Mapping[ir.Node, int]) -> ir.Value | None:
    """The input of an addition that an INT8 convolution is not fused with; None where there is no such convolution.

    TensorRT fuses a convolution with the addition behind it, and reads the other input in INT8 when that is quantized. Of
    two convolutions the later one is fused: the other's result is there by then.
    """
    sides = [value for value in add.inputs if value is not None]
    if len(sides) != 2 or any(value.is_initializer() for value in sides):
        return None
    sources = [_source(value) for value in sides]
    order = [positions[node] if node is not None and node.op_type == "Conv" else -1 for node in sources]
    fused = 0 if order[0] > order[1] else 1
    return sides[1 - fused] if sources[fused] in convs else None


def _is_int8(value: ir.Value, convs: set[ir.Node], readers: Mapping[ir.Value, Iterable[ir.Node]]) -> bool:
    """Whether a tensor comes out of a kernel that runs in INT8: a convolution, or an addition fused with one."""
    node = _source(value)
    if node is None:
        return False
    return node in convs or any(value is not None and node in readers.get(value, ()) for value in node.inputs)


def _source(value: ir.Value) -> ir.Node | None:
    """The node that makes a tensor, itself or through an activation; None for an input of the graph."""
    node = value.producer()
    while node is not None and node.op_type in _ACTIVATIONS:
        node = _input(node).producer()
    return node


def _behind_activation(value: ir.Value) -> ir.Value:
    """The tensor after the activation that alone reads `value`, or `value` itself."""
    readers = value.consumers()
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS else value


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.name} has no first input.")
    return value


def _bias(conv: ir.Node) -> FloatArray | None:
    value = conv.inputs[2] if len(conv.inputs) > 2 else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _module(node: ir.Node) -> str:
    return module_of(node.name or "")


class _Edit:
    """Puts the pairs of a placement into a graph, and its convolutions' weights in int8."""

    def __init__(self, graph: ir.Graph, placement: Placement, ranges: Mapping[str, float]) -> None:
        self._graph, self._placement, self._ranges = graph, placement, ranges
        self._names = UniqueNames.of(graph)

    def run(self) -> None:
        nodes = list(self._graph)
        convs = set(self._placement.convs)
        readers: dict[ir.Value, list[ir.Node]] = {}  # a head's weight is read at every level
        for node in nodes:
            weight = node.inputs[1] if node.name in convs else None
            if weight is not None:
                readers.setdefault(weight, []).append(node)
        for weight, reading in readers.items():
            self._quantize_weight(weight, reading)
        for value in self._graph.inputs:
            self._graph.insert_before(nodes[0], self._pair(value, value.name or ""))
        for node in nodes:
            for value in reversed(node.outputs):
                self._graph.insert_after(node, self._pair(value, _module(node)))
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(str(value.name))

    def _pair(self, value: ir.Value, module: str) -> list[ir.Node]:
        """One pair for all that read the tensor in INT8; the others go on reading the tensor itself."""
        readers = self._placement.inputs.get(str(value.name))
        if not readers:
            return []
        scale = self._constant(f"{value.name}:scale", np.array(self._scale(value), np.float32))
        zero_point = self._constant("zero_point", np.array(0, np.int8))
        to_int8 = operation("QuantizeLinear", [value, scale, zero_point], self._names.new(module, "QuantizeLinear"))
        back = operation(
            "DequantizeLinear", [to_int8.outputs[0], scale, zero_point], self._names.new(module, "DequantizeLinear")
        )
        for use in tuple(value.uses()):
            if use.node.name in readers:
                use.node.replace_input_with(use.idx, back.outputs[0])
        return [to_int8, back]

    def _scale(self, value: ir.Value) -> float:
        return half_scale(self._ranges[self._placement.range_from[str(value.name)]])

    def _quantize_weight(self, weight: ir.Value, convs: Sequence[ir.Node]) -> None:
        if weight.const_value is None:
            raise ValueError(f"{weight.name} has no values.")
        values: FloatArray = weight.const_value.numpy()
        biases = [(conv, _bias(conv), np.float32(self._scale(_input(conv)))) for conv in convs]
        smallest = [smallest_weight_scales(bias, scale) for _, bias, scale in biases if bias is not None]
        scales = weight_scales(values, np.max(smallest, axis=0) if smallest else 0.0)
        per_channel = scales.reshape(-1, *[1] * (values.ndim - 1))
        rounded = np.clip(np.rint(values / per_channel), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
        inputs = [
            self._constant(f"{weight.name}:int8", rounded),
            self._constant(f"{weight.name}:scale", scales),
            self._constant(f"{weight.name}:zero_point", np.zeros(len(scales), np.int8)),
        ]
        name = self._names.new(_module(convs[0]), "DequantizeLinear")
        dequantize = operation("DequantizeLinear", inputs, name, axis=0)
        self._graph.insert_before(convs[0], dequantize)
        for conv, bias, input_scale in biases:
            conv.replace_input_with(1, dequantize.outputs[0])
            if bias is not None:
                # A multiple of both scales, which INT32 holds: a runtime that makes biases integers rounds nothing of it, and one
                # that leaves them in float32 adds the same number.
                step = scales * input_scale
                conv.replace_input_with(2, self._constant(f"{conv.name}:bias", np.rint(bias / step) * step))

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> ir.Value:
        return self._graph.initializers.get(name) or add_initializer(self._graph, name, values)
