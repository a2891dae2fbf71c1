"""A float32 ONNX as a typed half-precision one: every tensor's type is in the graph, as strongly typed TensorRT wants it.

onnxruntime's converter (transformers.float16) was looked at and is not used: it clamps weights that don't fit in half, knows
nothing of activations, leaves casts out of topological order, and blocks operators by type instead of by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.onnx_edit import FLOAT, HALF, QUANTIZING, GraphIndex, Names, check_types, float_tensors, opset_of
from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import FLOAT32_OUTPUTS, module_of
from yolact_deploy.errors import ArtifactError

IoPrecision = Literal["fp32", "fp16"]
HALF_MAX = 65504.0
# Activations must stay this far inside half's range on the images that were tried. Other images reach further, and a GPU
# that sums a convolution in half passes through partial sums beyond the result. On the trained example 120 more images
# raise no layer's maximum by more than a factor of 2.
RANGE_MARGIN = 4.0
# Rounding to a normal half changes a number by at most 2^-11 of itself. More over a layer's weights means that they
# overflow, or lie where half has only a few steps left (below 6e-5).
MAX_WEIGHT_ERROR = 2.0**-10
# exp() of a logit above 11 overflows half, and scores decide by their last digits.
FLOAT32_OPERATORS = frozenset({"Softmax"})
# Outputs that stay float32 even with half I/O: the decoder computes exp(0.2 * loc), which overflows half past loc = 55.4;
# half has ties among scores that float32 tells apart.
_READS_SHAPES_ONLY = frozenset({"Shape", "Size"})
_HALF_SUFFIX = ":half"


@dataclass(frozen=True)
class KeptFloat32:
    """A node that is left in float32 in a graph of halves."""

    node: str
    reason: str

    @property
    def module(self) -> str:
        return module_of(self.node)

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


def nodes_out_of_range(
    model: onnx.ModelProto,  # float32
    absmax: Mapping[str, float],  # largest magnitude seen in each activation tensor
) -> tuple[KeptFloat32, ...]:
    """Nodes that would break in half: what they read or make comes near 65504, or their weights don't fit.

    A tensor that is missing in `absmax` is taken as in range; NaN is out of range.
    """
    limit = HALF_MAX / RANGE_MARGIN
    index = GraphIndex.of(model)
    weight_errors = {
        name: error
        for name, tensor in index.weights.items()
        if tensor.data_type == FLOAT and not (error := half_error(numpy_helper.to_array(tensor))) <= MAX_WEIGHT_ERROR
    }
    kept: list[KeptFloat32] = []
    for node in model.graph.node:
        if node.op_type in FLOAT32_OPERATORS | _READS_SHAPES_ONLY or not _convertible(node, opset_of(model)):
            continue
        reasons = [
            f"the weight {name} loses {weight_errors[name]:.1%} in half" for name in node.input if name in weight_errors
        ]
        for name in (*node.output, *node.input):
            if not absmax.get(name, 0.0) <= limit:
                what = "gives" if name in node.output else "reads"
                reasons.append(f"it {what} values up to {absmax[name]:.3g}, half ends at {HALF_MAX:.0f}")
        if reasons:
            kept.append(KeptFloat32(node.name, reasons[0]))
    return tuple(kept)


def half_error(values: FloatArray) -> float:
    """Relative L2 error of rounding to half; infinite on overflow, 0 for zeros."""
    exact = values.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float64)
    return float(np.linalg.norm(rounded - exact)) / norm if norm else 0.0


def refuse_unless_float32(model: onnx.ModelProto, path: object) -> None:
    """Raise ArtifactError for a graph that already has half tensors or Q/DQ."""
    if any(node.op_type in QUANTIZING for node in model.graph.node):
        found = "already quantized"
    elif any(tensor.data_type == HALF for tensor in model.graph.initializer) or any(
        attribute.name == "to" and attribute.i == HALF for node in model.graph.node for attribute in node.attribute
    ):
        found = "already in half precision"
    else:
        return
    raise ArtifactError(f"{path} is {found}. Give the float32 ONNX that `yolact-deploy export` wrote.")


def to_half(
    model: onnx.ModelProto,
    *,
    float32_nodes: frozenset[str] | set[str] = frozenset(),  # names; Softmax is always one
    io_precision: IoPrecision = "fp32",
) -> onnx.ModelProto:
    """A copy with weights and activations in half, but for `float32_nodes`; casts stand where the type changes.

    Of Q/DQ pairs, the scale takes the type of the neighbour, so that no cast comes between. Inputs and outputs stay
    float32, or with `io_precision` "fp16" become half but for `loc` and `conf`. Raises ExportError when the result's
    types don't fit together.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _Conversion(converted, float32_nodes, io_precision).run()
    return check_types(converted)


class _Conversion:
    def __init__(self, model: onnx.ModelProto, float32_nodes: frozenset[str] | set[str], io: IoPrecision) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self._float32_nodes = float32_nodes
        self._io = io
        self._index = GraphIndex.of(model)
        self._names = Names(model)
        self._types: dict[str, int] = dict.fromkeys(float_tensors(model), FLOAT)  # of activations, as converted so far
        self._weights = {name for name, tensor in self._index.weights.items() if tensor.data_type == FLOAT}
        self._nodes: list[NodeProto] = []
        self._casts: dict[tuple[str, int], str] = {}  # (tensor, type) -> the cast tensor
        self._half_weights: set[str] = set()

    def run(self) -> None:
        for value in self._graph.input:
            if self._types.get(value.name) == FLOAT and self._io == "fp16":
                value.type.tensor_type.elem_type = HALF
                self._types[value.name] = HALF
        for node in self._graph.node:
            self._convert(node)
        for value in self._graph.output:
            self._convert_output(value)
        self._write_weights()
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _convert(self, node: NodeProto) -> None:
        if node.op_type in _READS_SHAPES_ONLY:
            self._nodes.append(node)
            return
        flexible = _convertible(node, self._opset)
        half = bool(flexible) and self._is_half(node)
        wanted = HALF if half else FLOAT
        for position, name in enumerate(node.input):
            target = wanted if _type_variable(node, position, self._opset, "inputs") in flexible else FLOAT
            if name in self._weights:
                node.input[position] = self._weight(name, target)
            elif name in self._types:
                node.input[position] = self._cast(name, target)
        for position, name in enumerate(node.output):
            if name in self._types and _type_variable(node, position, self._opset, "outputs") in flexible:
                self._types[name] = wanted
        if node.op_type == "Cast" and half:
            next(attribute for attribute in node.attribute if attribute.name == "to").i = HALF
        self._nodes.append(node)

    def _is_half(self, node: NodeProto) -> bool:
        if node.op_type == "QuantizeLinear":
            return self._types.get(node.input[0]) == HALF
        if node.op_type == "DequantizeLinear":
            consumers = self._index.consumers[node.output[0]]
            return any(_convertible(consumer, self._opset) and self._is_half(consumer) for consumer in consumers)
        return node.name not in self._float32_nodes and node.op_type not in FLOAT32_OPERATORS

    def _weight(self, name: str, target: int) -> str:
        if target == FLOAT:
            return name
        self._half_weights.add(name)
        return name + _HALF_SUFFIX

    def _cast(self, name: str, target: int) -> str:
        if self._types[name] == target:
            return name
        if (name, target) not in self._casts:
            producer = self._index.producers.get(name)
            output = self._names.new(module_of(producer.name) if producer is not None else name, "Cast")
            self._nodes.append(onnx.helper.make_node("Cast", [name], [output], name=output, to=target))
            self._casts[name, target] = output
        return self._casts[name, target]

    def _convert_output(self, value: onnx.ValueInfoProto) -> None:
        if value.name not in self._types:
            return
        wanted = HALF if self._io == "fp16" and value.name not in FLOAT32_OUTPUTS else FLOAT
        value.type.tensor_type.elem_type = wanted
        if self._types[value.name] == wanted:
            return
        producer = self._index.producers[value.name]
        inner = (
            producer.name if producer.name not in self._types else self._names.new(module_of(producer.name), "inner")
        )
        for node in self._nodes:
            node.input[:] = [inner if name == value.name else name for name in node.input]
            node.output[:] = [inner if name == value.name else name for name in node.output]
        name = self._names.new(module_of(producer.name), "Cast")
        self._nodes.append(onnx.helper.make_node("Cast", [inner], [value.name], name=name, to=wanted))

    def _write_weights(self) -> None:
        """A weight that is used in half only keeps its name; one that is used in both types is stored twice."""
        used = {name for node in self._nodes for name in node.input} | {value.name for value in self._graph.output}
        halves: list[TensorProto] = []
        for tensor in self._graph.initializer:
            if tensor.name in self._half_weights:
                half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
                if tensor.name in used:
                    half.name += _HALF_SUFFIX
                halves.append(half)
        alone = {name + _HALF_SUFFIX: name for name in self._half_weights if name not in used}
        for node in self._nodes:
            node.input[:] = [alone.get(name, name) for name in node.input]
        kept = [tensor for tensor in self._graph.initializer if tensor.name not in set(alone.values())]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *halves])


def _convertible(node: NodeProto, opset: int) -> frozenset[str]:
    """The type variables of a node's inputs that float32 tensors take now and that may be half."""
    schema = _schema(node, opset)
    if schema is None:
        return frozenset()
    variables = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", "tensor(float16)"} <= set(constraint.allowed_type_strs)
    }
    present = {_type_variable(node, position, opset, "inputs") for position, name in enumerate(node.input) if name}
    # A variable that only an output has is set by an attribute, as a constant's.
    return frozenset(variables & present)


def _type_variable(node: NodeProto, position: int, opset: int, side: Literal["inputs", "outputs"]) -> str:
    schema = _schema(node, opset)
    formal = getattr(schema, side) if schema is not None else ()
    return str(formal[min(position, len(formal) - 1)].type_str) if formal else ""


def _schema(node: NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
        return None
    return onnx.defs.get_schema(node.op_type, opset, "")


# These give halves from halves without computing any.
_EXACT = frozenset(
    {"Relu", "MaxPool", "Transpose", "Reshape", "Concat", "Identity", "QuantizeLinear", "DequantizeLinear", "Cast"}
)


def emulate_half(
    typed: onnx.ModelProto,  # with the types of its tensors, as `to_half` gives it
) -> onnx.ModelProto:
    """A float32 graph that rounds to half whatever `typed` has in half: weights, and what each operator gives.

    Sums within an operator stay float32, as in a GPU's tensor cores. Q/DQ compute the same. Tensors keep their names;
    inputs and outputs keep their types.
    """
    emulated = onnx.ModelProto()
    emulated.CopyFrom(typed)
    graph = emulated.graph
    names = Names(typed)
    values = (*typed.graph.input, *typed.graph.value_info, *typed.graph.output)
    halves = {value.name for value in values if value.type.tensor_type.elem_type == HALF}
    weights = [_as_float(tensor) for tensor in graph.initializer]
    nodes: list[NodeProto] = []
    outer: dict[str, str] = {}  # half inputs and outputs of the graph -> the float32 tensor within
    for value in graph.input:
        if value.name in halves:
            outer[value.name] = names.new(value.name, "widened")
            nodes.append(_cast(value.name, outer[value.name], FLOAT))
    outer |= {value.name: names.new(value.name, "inner") for value in graph.output if value.name in halves}
    for node in graph.node:
        node.input[:] = [outer.get(name, name) for name in node.input]
        rounded = [name for name in node.output if name in halves]
        for position, name in enumerate(node.output):
            node.output[position] = outer.get(name, name)
        nodes.append(node)
        narrowing = node.op_type == "Cast" and bool(rounded)
        if narrowing:
            next(attribute for attribute in node.attribute if attribute.name == "to").i = FLOAT
        if node.op_type in _EXACT and not narrowing:
            continue
        for position, name in enumerate(node.output):
            if name in halves or name in outer.values():
                exact, half = names.new(module_of(node.name), "exact"), names.new(module_of(node.name), "rounded")
                node.output[position] = exact
                nodes += [_cast(exact, half, HALF), _cast(half, name, FLOAT)]
    nodes += [_cast(outer[value.name], value.name, HALF) for value in graph.output if value.name in outer]
    for field, content in ((graph.initializer, weights), (graph.node, nodes)):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in content]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]
    return emulated


def _as_float(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != HALF:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)
