"""Half precision as a GPU computes it, for onnxruntime on the CPU.

onnxruntime has no half kernels there: it computes in float32 and drops the conversions in between, so that activations are
never rounded and never overflow. What it says of a half graph is too good.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.onnx_edit import FLOAT, HALF, Names
from yolact_deploy.node_names import module_of

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
