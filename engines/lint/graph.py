"""A quantized graph, indexed: who makes and reads a tensor, its type, the value of constants, the Q/DQ nodes on its way."""

from __future__ import annotations

import functools
import graphlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_deploy.arrays import AnyArray
from yolact_deploy.artifacts.names import module_of
from yolact_deploy.artifacts.onnx_file import DEQUANTIZE, QUANTIZE
from yolact_deploy.errors import ArtifactError, one_line
from yolact_deploy.optional import require

if TYPE_CHECKING:
    import onnx


CONVOLUTIONS = ("Conv", "ConvTranspose")
_MICROSOFT = "com.microsoft"
_COPIES = ("Identity", "Cast")
_INDEX_OPERATORS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
_LOGIC_OPERATORS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN", "IsInf")
_DEFAULT_AXIS = 1  # of QuantizeLinear and DequantizeLinear
_NO_REAL_NUMBERS = "OSUc"  # kinds of NumPy's types: texts, and complex numbers


@dataclass(frozen=True, eq=False)
class QdqGraph:
    """Look-ups in one ONNX graph; subgraphs of If and Loop are not entered. Nodes may come in any order."""

    model: onnx.ModelProto

    @functools.cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """Each always the same object: protobuf makes new ones whenever it is asked."""
        return tuple(self.model.graph.node)

    @functools.cached_property
    def opset(self) -> int:
        """Of the standard operators."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    @functools.cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(value.name for value in self.model.graph.output)

    @functools.cached_property
    def weights(self) -> dict[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @functools.cached_property
    def _producers(self) -> dict[str, onnx.NodeProto]:
        return {output: node for node in self.nodes for output in node.output if output}

    @functools.cached_property
    def _readers(self) -> Mapping[str, list[onnx.NodeProto]]:
        readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                readers[name].append(node)
        return readers

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes a tensor; None for inputs and weights."""
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that take a tensor."""
        return list(self._readers.get(tensor, ()))

    def producer_of_type(self, tensor: str, *operators: str) -> onnx.NodeProto | None:
        """The node that makes `tensor` if it is one of `operators`."""
        node = self.producer(tensor)
        return node if node is not None and node.op_type in operators else None

    def dequantized(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes a tensor; None where another node does."""
        return self.producer_of_type(tensor, DEQUANTIZE)

    def before_quantization(self, dequantize: onnx.NodeProto) -> str:
        """The tensor that a Q/DQ pair stands on, or what the DQ reads where it has no Q in front."""
        quantize = self.producer_of_type(dequantize.input[0], QUANTIZE)
        return str((quantize or dequantize).input[0])

    def is_constant(self, tensor: str) -> bool:
        """Whether no input of the graph has a part in it."""
        pending, seen = [tensor], set[str]()
        while pending:
            name = pending.pop()
            if name in seen or name in self.weights or not name:
                continue
            seen.add(name)
            node = self.producer(name)
            if node is None:
                return False
            pending += node.input
        return True

    def constant(self, tensor: str) -> AnyArray | None:
        """The value of an initializer or Constant, also behind Identity or Cast; None where it would take computing.

        Raises ArtifactError for a tensor whose values are not what its type and shape say.
        """
        numpy_helper = require("onnx", extra="rtx", purpose="reading an ONNX file").numpy_helper
        for _ in range(len(self.nodes) + 1):
            if tensor in self.weights:
                return _values(self.weights[tensor], numpy_helper)
            node = self.producer(tensor)
            if node is None:
                return None
            if node.op_type == "Constant":
                return _constant_value(node, numpy_helper)
            if node.op_type not in _COPIES:
                return None
            tensor = node.input[0]
        return None

    def scale(self, node: onnx.NodeProto) -> AnyArray | None:
        """float64, flat, of a Q or DQ node."""
        value = self.constant(node.input[1])
        return None if value is None or value.dtype.kind in _NO_REAL_NUMBERS else value.astype(np.float64).ravel()

    def zero_point(self, node: onnx.NodeProto) -> AnyArray | None:
        """Flat, of a Q or DQ node; None for none, and for one that is not a plain constant."""
        value = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return None if value is None or value.dtype.kind in _NO_REAL_NUMBERS else value.ravel()

    def stored_type(self, node: onnx.NodeProto) -> int:
        """The TensorProto type that a Q node writes or a DQ node reads; 0 for unknown."""
        if node.op_type == DEQUANTIZE:
            return self.types.get(node.input[0], 0)
        return self.types.get(node.output[0], 0)

    def axis(self, node: onnx.NodeProto, rank: int) -> int:
        """Of a Q or DQ node, counted from the front."""
        axis = int(attribute(node, "axis", _DEFAULT_AXIS))
        return axis + rank if axis < 0 else axis

    @functools.cached_property
    def types(self) -> dict[str, int]:
        """Tensor -> TensorProto type, where it follows from inputs, initializers and operators.

        Followed here and not with ONNX's own inference: that one stops at the very graphs which a linter is asked about.
        """
        types = {name: tensor.data_type for name, tensor in self.weights.items()}
        types |= {value.name: value.type.tensor_type.elem_type for value in self.model.graph.input}
        pending = list(self.nodes)
        while pending:
            waiting = [node for node in pending if not self._note_types(node, types)]
            if len(waiting) == len(pending):
                break
            pending = waiting
        return types

    def _note_types(self, node: onnx.NodeProto, types: dict[str, int]) -> bool:
        found = self._output_type(node, types)
        if found:
            types.update((output, found) for output in node.output if output)
        return bool(found)

    def _output_type(self, node: onnx.NodeProto, types: Mapping[str, int]) -> int:
        proto = require("onnx", extra="rtx", purpose="reading an ONNX file").TensorProto
        operator = node.op_type
        if operator == "Cast":
            return int(attribute(node, "to", 0))
        if operator == QUANTIZE:
            if len(node.input) > 2 and node.input[2]:
                return types.get(node.input[2], 0)
            return int(attribute(node, "output_dtype", 0)) or int(proto.UINT8)
        if operator == "Constant":
            value = attribute(node, "value", None)
            if value is not None:
                return int(value.data_type)
            holds_integers = any(entry.name.startswith("value_int") for entry in node.attribute)
            return int(proto.INT64 if holds_integers else proto.FLOAT)
        if operator == "ConstantOfShape":
            value = attribute(node, "value", None)
            return int(proto.FLOAT if value is None else value.data_type)
        if operator in _INDEX_OPERATORS:
            return int(proto.INT64)
        if operator in _LOGIC_OPERATORS:
            return int(proto.BOOL)
        position = 1 if operator in (DEQUANTIZE, "Where", "CastLike") else 0
        return types.get(node.input[position], 0) if len(node.input) > position else 0

    def module(self, node: onnx.NodeProto) -> str:
        """The module path of a node; of a nameless or added one that of its nearest neighbour that has one."""
        return next((path for near in self._near(node) if (path := module_of(near.name))), "")

    def _near(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node, those that read it through Q/DQ, then those it reads through Q/DQ."""
        yield node
        pending = list(node.output)
        for tensor in pending:
            for reader in self.readers(tensor):
                yield reader
                if reader.op_type in (QUANTIZE, DEQUANTIZE):
                    pending += reader.output
        behind = [str(name) for name in node.input[:1]]
        for tensor in behind:
            producer = self.producer(tensor)
            if producer is not None:
                yield producer
                if producer.op_type in (QUANTIZE, DEQUANTIZE):
                    behind.append(producer.input[0])


def structure_problem(graph: QdqGraph) -> str | None:
    """Why a graph can't be looked at: a node with fewer tensors than its operator takes or gives, an attribute of another type
    than the operator's, or nodes that wait for each other."""
    defs = require("onnx", extra="rtx", purpose="reading an ONNX file").defs
    for node in graph.nodes:
        if not defs.has(node.op_type):  # of a plugin or another domain: nothing is asked of it
            continue
        schema = _schema(defs, node.op_type, graph.opset)
        if len(node.input) < schema.min_input or len(node.output) < schema.min_output:
            return (
                f"{label(node)} has {len(node.input)} inputs and {len(node.output)} outputs, {node.op_type} needs "
                f"{schema.min_input} and {schema.min_output}"
            )
        for entry in node.attribute:
            if entry.ref_attr_name:
                return f"the attribute {entry.name} of {label(node)} is that of a function, and the node is in none"
            known = schema.attributes.get(entry.name)
            if known is not None and entry.type != int(known.type.value):
                return f"the attribute {entry.name} of {label(node)} is of another type than {node.op_type} has"
    needs = {
        position: [id(producer) for name in node.input if (producer := graph.producer(name)) is not None]
        for position, node in ((id(node), node) for node in graph.nodes)
    }
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError:
        return "its nodes form a circle"
    return None


def _schema(defs: Any, operator: str, opset: int) -> Any:
    try:
        return defs.get_schema(operator, min(max(opset, 1), defs.onnx_opset_version()))
    except defs.SchemaError:  # younger than the opset that the file claims
        return defs.get_schema(operator)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, `default` where it is not set."""
    helper = require("onnx", extra="rtx", purpose="reading an ONNX file").helper
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether ONNX's own rules hold for it, as against onnxruntime's."""
    return node.domain != _MICROSOFT


def label(node: onnx.NodeProto) -> str:
    """A node's name; of a nameless one the tensor it makes."""
    return str(node.name or f"(makes {node.output[0] if node.output else 'nothing'})")


def _constant_value(node: onnx.NodeProto, numpy_helper: Any) -> AnyArray | None:
    for entry in node.attribute:
        if entry.name == "value":
            return _values(entry.t, numpy_helper)
        if entry.name in ("value_float", "value_floats"):
            return np.asarray(attribute(node, entry.name, None), np.float32)
        if entry.name in ("value_int", "value_ints"):
            return np.asarray(attribute(node, entry.name, None), np.int64)
    return None


def _values(tensor: onnx.TensorProto, numpy_helper: Any) -> AnyArray:
    if tensor.data_location == tensor.EXTERNAL:
        raise ArtifactError(f"the tensor {tensor.name} of the graph keeps its values in another file.")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as exc:  # onnx lets through whatever NumPy or a dictionary of types raises
        raise ArtifactError(f"the tensor {tensor.name} of the graph is malformed: {one_line(exc)}.") from exc
