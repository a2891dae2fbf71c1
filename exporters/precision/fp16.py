"""A float32 ONNX as a typed half-precision one, and half precision as a GPU computes it, for onnxruntime on the CPU.

Every tensor's type is in the graph, as strongly typed TensorRT wants it. onnxruntime's converter (transformers.float16) was
looked at and is not used: it clamps weights that don't fit in half, knows nothing of activations, leaves casts out of
topological order, and blocks operators by type instead of by node.

On the CPU onnxruntime has no half kernels: it computes in float32 and drops the conversions in between, so that activations
are never rounded and never overflow. What it says of a half graph is too good, hence `emulate_half`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from exporters.onnx_edit import (
    FLOAT,
    HALF,
    QUANTIZING,
    UniqueNames,
    check_types,
    operation,
    opset_of,
    to_proto,
    typed_ir_model,
)
from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import FLOAT32_OUTPUTS, IoPrecision, module_of
from yolact_deploy.errors import ArtifactError

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
# Half is for what multiplies in it. Beside an INT8 convolution it gains nothing: integer kernels scale their sums in float32.
_MULTIPLY = frozenset({"Conv", "ConvTranspose", "DeformConv", "Gemm", "GridSample", "MatMul"})
# Outputs that stay float32 even with half I/O: the decoder computes exp(0.2 * loc), which overflows half past loc = 55.4;
# half has ties among scores that float32 tells apart.
_READS_SHAPES_ONLY = frozenset({"Shape", "Size"})
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_HALF_SUFFIX = ":half"
# These give halves from halves without computing any.
_EXACT = frozenset(
    {"Relu", "MaxPool", "Transpose", "Reshape", "Concat", "Identity", "QuantizeLinear", "DequantizeLinear", "Cast"}
)


@dataclass(frozen=True)
class Float32Node:
    """A node that is left in float32 in a graph of halves."""

    node: str
    reason: str

    @property
    def module(self) -> str:
        """Dotted path of the module that the node belongs to."""
        return module_of(self.node)

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


def nodes_out_of_range(
    model: onnx.ModelProto,  # float32
    absmax: Mapping[str, float],  # largest magnitude seen in each activation tensor
) -> tuple[Float32Node, ...]:
    """Nodes that would break in half: what they read or make comes near 65504, or their weights don't fit.

    A tensor that is missing in `absmax` is taken as in range; NaN is out of range.
    """
    limit = HALF_MAX / RANGE_MARGIN
    opset = opset_of(model)
    weight_errors = {
        tensor.name: error
        for tensor in model.graph.initializer
        if tensor.data_type == FLOAT and not (error := half_error(numpy_helper.to_array(tensor))) <= MAX_WEIGHT_ERROR
    }
    kept: list[Float32Node] = []
    for node in ir.from_proto(model).graph:
        if node.op_type in FLOAT32_OPERATORS | _READS_SHAPES_ONLY or not _convertible(node, opset):
            continue
        made, read = ([str(value.name) for value in side if value is not None] for side in (node.outputs, node.inputs))
        reasons = [
            f"the weight {name} loses {weight_errors[name]:.1%} in half" for name in read if name in weight_errors
        ]
        for name in (*made, *read):
            if not absmax.get(name, 0.0) <= limit:
                what = "gives" if name in made else "reads"
                reasons.append(f"it {what} values up to {absmax[name]:.3g}, half ends at {HALF_MAX:.0f}")
        if reasons:
            kept.append(Float32Node(str(node.name), reasons[0]))
    return tuple(kept)


def half_error(values: FloatArray) -> float:
    """Relative L2 error of rounding values of any shape to half; infinite on overflow, 0 for zeros."""
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
    """A copy with weights and activations in half, but for `float32_nodes` and what is INT8; casts stand where the type changes.

    INT8 convolutions stay float32 with what follows them, up to what multiplies in half. Of Q/DQ pairs, the scale takes
    the type of the neighbour, so that no cast comes between. Inputs and outputs stay
    float32, or with `io_precision` "fp16" become half but for `loc` and `conf`. Raises ExportError when the result's
    types don't fit together.
    """
    converted = typed_ir_model(model)
    _Conversion(converted.graph, opset_of(model), float32_nodes, io_precision).run()
    return check_types(to_proto(converted))


class _Conversion:
    def __init__(self, graph: ir.Graph, opset: int, float32_nodes: frozenset[str] | set[str], io: IoPrecision) -> None:
        self._graph, self._opset, self._io = graph, opset, io
        self._float32_nodes = float32_nodes | _beside_int8(graph)
        self._names = UniqueNames.of(graph)
        self._activations = {value.name for node in graph for value in node.outputs if value.dtype == _FLOAT}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._halves: dict[ir.Value, ir.Value] = {}  # float32 weight -> the same in half

    def run(self) -> None:
        for value in self._graph.inputs:
            if value.dtype == _FLOAT and self._io == "fp16":
                value.dtype = _HALF
        for node in list(self._graph):
            if node.op_type not in _READS_SHAPES_ONLY:
                self._convert(node)
        for position, value in enumerate(self._graph.outputs):
            wanted = _HALF if self._io == "fp16" and value.name not in FLOAT32_OUTPUTS else _FLOAT
            if value.dtype in (_HALF, _FLOAT) and value.dtype != wanted:
                self._graph.outputs[position] = self._cast_output(value, wanted)
        self._write_weights()

    def _convert(self, node: ir.Node) -> None:
        flexible = _convertible(node, self._opset)
        half = bool(flexible) and self._is_half(node)
        wanted = _HALF if half else _FLOAT
        for position, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_HALF, _FLOAT):
                continue
            target = wanted if _type_variable(node, position, self._opset, "inputs") in flexible else _FLOAT
            if value.dtype != target:
                node.replace_input_with(position, self._in_type(value, target, node))
        for position, value in enumerate(node.outputs):
            if value.dtype == _FLOAT and _type_variable(node, position, self._opset, "outputs") in flexible:
                value.dtype = wanted
        if node.op_type == "Cast" and half:
            node.attributes.add(ir.AttrInt64("to", HALF))

    def _is_half(self, node: ir.Node) -> bool:
        if node.op_type == "QuantizeLinear":
            return node.inputs[0] is not None and node.inputs[0].dtype == _HALF
        if node.op_type == "DequantizeLinear":
            consumers = node.outputs[0].consumers()
            return any(_convertible(consumer, self._opset) and self._is_half(consumer) for consumer in consumers)
        return node.name not in self._float32_nodes and node.op_type not in FLOAT32_OPERATORS

    def _in_type(self, value: ir.Value, target: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.is_initializer():
            return self._half_weight(value)
        if (value, target) not in self._casts:
            producer = value.producer()
            name = self._names.new(module_of(producer.name or "") if producer is not None else str(value.name), "Cast")
            cast = operation("Cast", [value], name, to=int(target))
            cast.outputs[0].dtype = target
            self._graph.insert_before(reader, cast)
            self._casts[value, target] = cast.outputs[0]
        return self._casts[value, target]

    def _half_weight(self, weight: ir.Value) -> ir.Value:
        if weight not in self._halves:
            half = _array(weight).astype(np.float16)
            self._halves[weight] = ir.Value(name=f"{weight.name}{_HALF_SUFFIX}", const_value=ir.tensor(half))
        return self._halves[weight]

    def _cast_output(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """The output in another type, under its name; within the graph the tensor goes on as it is, named like its node."""
        name, producer = str(value.name), value.producer()
        node_name = str(producer.name) if producer is not None else name
        taken = node_name in self._activations
        value.name = self._names.new(module_of(node_name), "inner") if taken else node_name
        cast = operation("Cast", [value], self._names.new(module_of(node_name), "Cast"), to=int(wanted))
        output = cast.outputs[0]
        output.name, output.dtype, output.shape = name, wanted, value.shape
        self._graph.append(cast)
        return output

    def _write_weights(self) -> None:
        """A weight that is used in half only keeps its name; one that is used in both types is stored twice."""
        halves = []
        for weight in list(self._graph.initializers.values()):
            if weight in self._halves:
                half = self._halves[weight]
                if not weight.uses() and not weight.is_graph_output():
                    self._graph.initializers.pop(str(weight.name))
                    half.name = weight.name
                halves.append(half)
        for half in halves:
            self._graph.register_initializer(half)


def _beside_int8(graph: ir.Graph) -> set[str]:
    """INT8 convolutions, and the nodes that read only theirs and each other's results; by name.

    With halves here onnxruntime's default options compute something else: its WeightBiasQuantization divides a convolution's
    bias by the product of the scales in the bias's own type, and in half that overflows.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in QUANTIZING:
            continue
        sources = [value.producer() for value in node.inputs if value is not None and value.dtype == _FLOAT]
        made = [source for source in sources if source is not None]  # weights have none
        int8 = [source for source in made if source.op_type == "DequantizeLinear"]
        if node.op_type in _MULTIPLY:
            if len(int8) == len(made) > 1:  # both the input and the weight
                found.add(node)
        elif made and all(source in int8 or source in found for source in made):
            found.add(node)
    return {str(node.name) for node in found}


def _convertible(node: ir.Node, opset: int) -> frozenset[str]:
    """The type variables of a node's inputs that float32 tensors take now and that may be half."""
    schema = _schema(node, opset)
    if schema is None:
        return frozenset()
    variables = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", "tensor(float16)"} <= set(constraint.allowed_type_strs)
    }
    given = [position for position, value in enumerate(node.inputs) if value is not None]
    # A variable that only an output has is set by an attribute, as a constant's.
    return frozenset(variables & {_type_variable(node, position, opset, "inputs") for position in given})


def _type_variable(node: ir.Node, position: int, opset: int, side: Literal["inputs", "outputs"]) -> str:
    schema = _schema(node, opset)
    formal = getattr(schema, side) if schema is not None else ()
    return str(formal[min(position, len(formal) - 1)].type_str) if formal else ""


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    if node.domain or not onnx.defs.has(node.op_type, opset, ""):
        return None
    return onnx.defs.get_schema(node.op_type, opset, "")


def emulate_half(
    typed: onnx.ModelProto,  # with the types of its tensors, as `to_half` gives it
) -> onnx.ModelProto:
    """A float32 graph that rounds to half whatever `typed` has in half: weights, and what each operator gives.

    Sums within an operator stay float32, as in a GPU's tensor cores. Q/DQ compute the same. Tensors keep their names;
    inputs and outputs keep their types.
    """
    emulated = ir.from_proto(typed)
    graph, names = emulated.graph, UniqueNames.of(emulated.graph)
    for weight in graph.initializers.values():
        if weight.dtype == _HALF:
            weight.const_value, weight.dtype = ir.tensor(_array(weight).astype(np.float32), name=weight.name), _FLOAT
    half_outputs = {value: str(value.name) for value in graph.outputs if value.dtype == _HALF}
    nodes = list(graph)
    for value in graph.inputs:
        if value.dtype == _HALF:
            uses = tuple(value.uses())
            widened = _cast(value, names.new(str(value.name), "widened"), _FLOAT)
            graph.insert_before(nodes[0], widened)
            _redirect(uses, widened.outputs[0])
    for value, name in half_outputs.items():
        value.name = names.new(name, "inner")
    rounded = {value: value for value in half_outputs}
    for node in nodes:
        halves = [value for value in node.outputs if value.dtype == _HALF]
        narrows = node.op_type == "Cast" and bool(halves)
        if narrows:
            node.attributes.add(ir.AttrInt64("to", FLOAT))
        last = node
        for value in halves:
            value.dtype = _FLOAT
            if narrows or node.op_type not in _EXACT:
                last = _round(value, last, names)
                rounded[value] = last.outputs[0]
    for position, value in enumerate(graph.outputs):
        if value in half_outputs:
            narrowed = _cast(rounded[value], half_outputs[value], _HALF)
            narrowed.outputs[0].shape = value.shape
            graph.append(narrowed)
            graph.outputs[position] = narrowed.outputs[0]
    return to_proto(emulated)


def _round(value: ir.Value, last: ir.Node, names: UniqueNames) -> ir.Node:
    """Put a cast to half and back behind `last`, under the tensor's own name; the second of the two."""
    name, uses = str(value.name), tuple(value.uses())
    module = module_of(str(last.name))
    value.name = names.new(module, "exact")
    half = _cast(value, names.new(module, "rounded"), _HALF)
    back = _cast(half.outputs[0], name, _FLOAT)
    _redirect(uses, back.outputs[0])
    graph = last.graph
    if graph is not None:
        graph.insert_after(last, [half, back])
    return back


def _redirect(uses: Iterable[tuple[ir.Node, int]], to: ir.Value) -> None:
    for node, position in uses:
        node.replace_input_with(position, to)


def _cast(value: ir.Value, target: str, to: ir.DataType) -> ir.Node:
    cast = operation("Cast", [value], f"{target}/Cast", gives=target, to=int(to))
    cast.outputs[0].dtype = to
    return cast


def _array(weight: ir.Value) -> FloatArray:
    if weight.const_value is None:
        raise ValueError(f"the weight {weight.name} has no values.")
    values: FloatArray = weight.const_value.numpy()
    return values
