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
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.onnx_edit import FLOAT, GraphIndex, Names, is_inside, opset_of
from exporters.precision.ranges import INT8_LEVELS
from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import module_of
from yolact_deploy.errors import CalibrationError

MIN_OPSET = 19  # the first whose QuantizeLinear takes halves
_ACTIVATIONS = frozenset({"Relu", "LeakyRelu"})
_PASS_THROUGH = frozenset({"MaxPool", "Resize"})
_SMALLEST_HALF = 2.0**-24
_UNUSED_SCALE = 1.0  # of a tensor that was 0 on every image


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ pairs go."""

    convs: tuple[str, ...]  # node names of the convolutions in INT8
    inputs: Mapping[str, frozenset[str]]  # quantized tensor -> node names that read it in INT8
    range_from: Mapping[
        str, str
    ]  # quantized tensor -> the tensor whose range it takes; itself, but behind a pass-through


def check_quantizable(model: onnx.ModelProto, path: object) -> None:
    """Raise CalibrationError for an opset without half Q/DQ."""
    if (opset := opset_of(model)) < MIN_OPSET:
        raise CalibrationError(
            f"{path} has opset {opset}; INT8 needs {MIN_OPSET}, the first whose Q/DQ work on half tensors. "
            f"Export again with `--opset {MIN_OPSET}`."
        )


def modules_with_convs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Dotted paths of the modules that hold a convolution, in the graph's order."""
    index = GraphIndex.of(model)
    return tuple(dict.fromkeys(module_of(node.name) for node in model.graph.node if _quantizable_conv(node, index)))


def plan_placement(model: onnx.ModelProto, keep_fp16: Sequence[str] = ()) -> Placement:
    """Q/DQ on convolutions' inputs; on one side of a residual addition; through max-pool and resize between INT8.

    `keep_fp16` are module paths whose nodes, and those of all modules below, stay out. Raises CalibrationError for one
    that names no module, and when nothing is left to quantize.
    """
    index = GraphIndex.of(model)
    modules = modules_with_convs(model)
    for prefix in keep_fp16:
        if not any(is_inside(module, [prefix]) for module in modules):
            top = sorted({module.partition(".")[0] for module in modules})
            raise CalibrationError(
                f"keep_fp16: no module with convolutions is named {prefix!r}. Give dotted module paths, such as "
                f"{modules[0]!r}; they begin with {', '.join(top)}."
                if modules
                else f"{prefix!r} names no module."
            )

    def quantized(node: NodeProto) -> bool:
        return not is_inside(module_of(node.name), keep_fp16)

    convs = {node.name for node in model.graph.node if _quantizable_conv(node, index) and quantized(node)}
    if not convs:
        raise CalibrationError("no convolution is left to quantize. Keep fewer modules in FP16, or ask for fp16.")
    inputs: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.name in convs:
            inputs.setdefault(node.input[0], set()).add(node.name)
        elif node.op_type == "Add" and quantized(node):
            residual = _residual(node, convs, index)
            if residual is not None:
                inputs.setdefault(residual, set()).add(node.name)
    range_from = {name: name for name in inputs}
    for node in model.graph.node:
        if node.op_type in _PASS_THROUGH and quantized(node) and _is_int8(node.input[0], convs, inputs, index):
            after = _behind_activation(node.output[0], index)
            if after in inputs:
                inputs.setdefault(node.input[0], set()).add(node.name)
                range_from.setdefault(node.input[0], node.input[0])
                range_from[after] = range_from[node.input[0]]
    return Placement(
        convs=tuple(node.name for node in model.graph.node if node.name in convs),
        inputs={name: frozenset(readers) for name, readers in inputs.items()},
        range_from=range_from,
    )


def tensors_to_calibrate(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor whose range any choice of `keep_fp16` may ask for."""
    index = GraphIndex.of(model)
    placement = plan_placement(model)
    # What lies behind a pass-through takes its own range when the other neighbour stays in FP16.
    names = {*placement.inputs, *placement.range_from.values()}
    return tuple(name for name in _in_order(model) if name in names and name not in index.weights)


def quantize(
    model: onnx.ModelProto,  # float32
    ranges: Mapping[str, float],  # magnitude that 127 stands for, of each tensor to quantize
    *,
    keep_fp16: Sequence[str] = (),
) -> onnx.ModelProto:
    """A copy with Q/DQ pairs and int8 weights; what is not INT8 is float32 still. Scales are half numbers.

    Raises CalibrationError when a range is missing.
    """
    placement = plan_placement(model, keep_fp16)
    if missing := [name for name in placement.range_from.values() if name not in ranges]:
        raise CalibrationError(f"there is no calibrated range of the tensor {missing[0]}. Calibrate again.")
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    _Edit(quantized).run(placement, ranges)
    return quantized


def weight_scales(
    weight: FloatArray,  # [out channels, ...]
) -> npt.NDArray[np.float32]:
    """One scale per output channel, so that its largest weight is 127 or just below; half numbers."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(1)
    return np.array([half_scale(float(value)) for value in largest], np.float32)


def half_scale(magnitude: float) -> float:
    """The scale that maps `magnitude` to 127, as the next half number above: rounded down, the magnitude would saturate."""
    if magnitude <= 0:
        return _UNUSED_SCALE
    exact = magnitude / INT8_LEVELS
    rounded = np.float16(exact)
    if float(rounded) < exact:
        rounded = np.nextafter(rounded, np.float16(np.inf))
    return max(float(rounded), _SMALLEST_HALF)


class _Edit:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._index = GraphIndex.of(model)
        self._names = Names(model)
        self._added: dict[str, TensorProto] = {}

    def run(self, placement: Placement, ranges: Mapping[str, float]) -> None:
        convs = set(placement.convs)
        nodes: list[NodeProto] = []
        for value in self._graph.input:
            nodes += self._pair(value.name, placement, ranges)
        dequantized: dict[str, NodeProto] = {}
        for node in self._graph.node:
            if node.name in convs:
                name = node.input[1]
                if name not in dequantized:
                    dequantized[name] = self._weight(name, module_of(node.name))
                    nodes.append(dequantized[name])
                node.input[1] = dequantized[name].output[0]
            nodes.append(node)
            for output in node.output:
                nodes += self._pair(output, placement, ranges)
        used = {name for node in nodes for name in node.input}
        weights = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*weights, *self._added.values()])
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _pair(self, tensor: str, placement: Placement, ranges: Mapping[str, float]) -> list[NodeProto]:
        """One pair for all that read the tensor in INT8; the others go on reading the tensor itself."""
        readers = placement.inputs.get(tensor)
        if not readers:
            return []
        producer = self._index.producers.get(tensor)
        module = module_of(producer.name) if producer is not None else tensor
        scale = self._add(f"{tensor}:scale", np.array(half_scale(ranges[placement.range_from[tensor]]), np.float32))
        zero_point = self._add("zero_point", np.array(0, np.int8))
        to_int8, back = self._names.new(module, "QuantizeLinear"), self._names.new(module, "DequantizeLinear")
        pair = [
            helper.make_node("QuantizeLinear", [tensor, scale, zero_point], [to_int8], name=to_int8),
            helper.make_node("DequantizeLinear", [to_int8, scale, zero_point], [back], name=back),
        ]
        for node in self._index.consumers[tensor]:
            if node.name in readers:
                node.input[:] = [back if name == tensor else name for name in node.input]
        return pair

    def _weight(self, name: str, module: str) -> NodeProto:
        values = numpy_helper.to_array(self._index.weights[name])
        scales = weight_scales(values)
        per_channel = scales.reshape(-1, *[1] * (values.ndim - 1))
        rounded = np.clip(np.rint(values / per_channel), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
        inputs = [
            self._add(f"{name}:int8", rounded),
            self._add(f"{name}:scale", scales),
            self._add(f"{name}:zero_point", np.zeros(len(scales), np.int8)),
        ]
        node_name = self._names.new(module, "DequantizeLinear")
        return helper.make_node("DequantizeLinear", inputs, [node_name], name=node_name, axis=0)

    def _add(self, name: str, values: npt.NDArray[np.generic]) -> str:
        self._added.setdefault(name, numpy_helper.from_array(values, name))
        return name


def _quantizable_conv(node: NodeProto, index: GraphIndex) -> bool:
    weight = index.weights.get(node.input[1]) if node.op_type == "Conv" else None
    return weight is not None and weight.data_type == FLOAT


def _residual(add: NodeProto, convs: set[str], index: GraphIndex) -> str | None:
    """The input of an addition that an INT8 convolution is not fused with; None where there is no such convolution.

    TensorRT fuses a convolution with the addition behind it, and reads the other input in INT8 when that is quantized. Of
    two convolutions the later one is fused: the other's result is there by then.
    """
    if len(add.input) != 2 or any(name in index.weights for name in add.input):
        return None
    sources = [_conv_behind(name, index) for name in add.input]
    order = [index.positions[node.name] if node is not None else -1 for node in sources]
    fused = 0 if order[0] > order[1] else 1
    conv = sources[fused]
    return None if conv is None or conv.name not in convs else add.input[1 - fused]


def _conv_behind(tensor: str, index: GraphIndex) -> NodeProto | None:
    """The convolution that makes a tensor, itself or through an activation."""
    node = index.producers.get(tensor)
    while node is not None and node.op_type in _ACTIVATIONS:
        node = index.producers.get(node.input[0])
    return node if node is not None and node.op_type == "Conv" else None


def _is_int8(tensor: str, convs: set[str], inputs: Mapping[str, Iterable[str]], index: GraphIndex) -> bool:
    """Whether a tensor comes out of a kernel that runs in INT8: a convolution, or an addition fused with one."""
    node = index.producers.get(tensor)
    while node is not None and node.op_type in _ACTIVATIONS:
        node = index.producers.get(node.input[0])
    if node is None:
        return False
    return node.name in convs or any(node.name in inputs.get(name, ()) for name in node.input)


def _behind_activation(tensor: str, index: GraphIndex) -> str:
    """The tensor after the activation that alone reads `tensor`, or the tensor itself."""
    readers = index.consumers.get(tensor, ())
    return str(readers[0].output[0]) if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS else tensor


def _in_order(model: onnx.ModelProto) -> list[str]:
    made = [name for node in model.graph.node for name in node.output]
    return [*(value.name for value in model.graph.input), *made]
