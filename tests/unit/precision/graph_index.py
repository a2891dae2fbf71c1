"""Look-ups in a graph by the names in the file, independent of the library that edits it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto


@dataclass(frozen=True, eq=False)
class GraphIndex:
    producers: dict[str, NodeProto]  # by tensor
    consumers: dict[str, list[NodeProto]]  # by tensor, in the graph's order
    weights: dict[str, TensorProto]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> GraphIndex:
        consumers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                consumers[name].append(node)
        producers = {name: node for node in model.graph.node for name in node.output if name}
        return cls(producers, consumers, {tensor.name: tensor for tensor in model.graph.initializer})
