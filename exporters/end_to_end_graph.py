"""A writer of ONNX nodes that names them as the exporter does: "<module>/<operator>", and what they give alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from exporters.onnx_edit import Names
from yolact_deploy.arrays import AnyArray


class GraphWriter:
    """Collects nodes and constants for a graph that `names` belongs to; tensors are passed around by name."""

    def __init__(self, names: Names, module: str = "") -> None:
        self._names, self._module = names, module
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def inside(self, module: str) -> GraphWriter:
        """A writer to the same graph, for nodes of the submodule `module`."""
        writer = GraphWriter(self._names, f"{self._module}.{module}" if self._module else module)
        writer.nodes, writer.constants, writer._known = self.nodes, self.constants, self._known
        return writer

    def op(self, operator: str, *inputs: str, gives: str | None = None, **attributes: Any) -> str:
        """Add a node and return its (first) output, named `gives` or like the node."""
        return self.ops(operator, 1, *inputs, gives=gives, **attributes)[0]

    def ops(
        self, operator: str, outputs: int, *inputs: str, gives: str | None = None, **attributes: Any
    ) -> tuple[str, ...]:
        """As `op`, for an operator with several outputs."""
        name = self._names.new(self._module, operator)
        tensors = (gives or name, *(f"{name}:{number}" for number in range(1, outputs)))
        self.nodes.append(onnx.helper.make_node(operator, inputs, tensors, name=name, **attributes))
        return tensors

    def floats(self, value: AnyArray | Sequence[float] | float) -> str:
        return self._constant(np.asarray(value, np.float32))

    def ints(self, value: Sequence[int] | int) -> str:
        return self._constant(np.asarray(value, np.int64))

    def bools(self, value: AnyArray) -> str:
        return self._constant(np.asarray(value, np.bool_))

    def _constant(self, value: AnyArray) -> str:
        """The name of an initializer; equal values share one."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = self._names.new(self._module, "constant")
            self.constants.append(numpy_helper.from_array(value, self._known[key]))
        return self._known[key]

    def slice(self, tensor: str, start: int, stop: int, axis: int) -> str:
        return self.op("Slice", tensor, self.ints([start]), self.ints([stop]), self.ints([axis]))

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """0 keeps the size at its place, -1 takes what is left."""
        return self.op("Reshape", tensor, self.ints(shape))

    def unsqueeze(self, tensor: str, axis: int) -> str:
        return self.op("Unsqueeze", tensor, self.ints([axis]))

    def squeeze(self, tensor: str, axis: int) -> str:
        return self.op("Squeeze", tensor, self.ints([axis]))
