"""A small convolutional network that honours a ModelSpec's inputs, outputs and shapes, written node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.artifacts.names import SPEC_METADATA_KEY
from yolact_deploy.spec import BackboneSpec, FpnSpec, ModelSpec, PriorsSpec, ProtonetSpec

CHANNELS = 8
_INT8_ZERO = np.int8(0)

TINY_SPEC = ModelSpec(
    name="tiny",
    input_size=32,
    backbone=BackboneSpec(kind="resnet", stages=(1,), selected_layers=(0,)),
    class_names=("disc", "bar"),
    category_ids=(3, 9),
    priors=PriorsSpec(scales=((8.0,), (16.0,)), aspect_ratios=((1.0,), (1.0,))),
    fpn=FpnSpec(channels=CHANNELS, num_downsample=1),
    protonet=ProtonetSpec(layers=((CHANNELS, 3), (4, 1))),
)


class WriteOnnx(Protocol):
    """Write the tiny network as `tiny.onnx` into a folder; the options are those of `make_model`."""

    def __call__(self, folder: Path, **options: Any) -> Path: ...


def make_model(
    spec: ModelSpec,
    *,
    precision: str = "fp32",
    batch: int | str = "batch",
    metadata: dict[str, str] | None = None,
    described: ModelSpec | None = None,
    edit: Callable[[Graph], None] | None = None,
) -> onnx.ModelProto:
    """`metadata` is added to the spec's, `described` is the spec it claims to have, `edit` changes the finished graph."""
    graph = Graph(spec, precision)
    if edit is not None:
        edit(graph)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, spec.input_size, spec.input_size])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        for name, shape in spec.output_shapes().items()
    ]
    proto = helper.make_graph(graph.nodes, "tiny", [image], outputs, list(graph.initializers.values()))
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 19)], producer_name="tiny", ir_version=9)
    helper.set_model_props(model, {SPEC_METADATA_KEY: (described or spec).to_json(), **(metadata or {})})
    return model


class Graph:
    """Nodes in topological order, each named "<module>/<operator>" like its output, as the export names them."""

    def __init__(self, spec: ModelSpec, precision: str) -> None:
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._random = np.random.default_rng(7)
        shapes = spec.output_shapes()
        image = self.add("Cast", ["image"], "outputs", to=TensorProto.FLOAT16) if precision == "fp16" else "image"
        p3 = self.relu(self.conv(image, "backbone.stem", 3, CHANNELS, kernel=4, stride=4), "backbone.relu")
        p4 = self.conv(p3, "fpn.downsample", CHANNELS, CHANNELS, kernel=3, stride=2, pad=1)
        proto = self.relu(self.conv(p3, "protonet.0", CHANNELS, CHANNELS, kernel=3, pad=1), "protonet.1")
        proto = self.conv(proto, "protonet.2", CHANNELS, spec.num_prototypes, kernel=1)
        self.output(self.add("Transpose", [proto], "outputs", perm=[0, 2, 3, 1]), "proto")
        for name in ("loc", "conf", "mask_coeff"):
            columns = shapes[name][1]
            levels = [self.head(level, f"head.{name}.{i}", columns) for i, level in enumerate((p3, p4))]
            joined = self.add("Concat", levels, "outputs", axis=1)
            self.output(self.add("Softmax", [joined], "outputs", axis=-1) if name == "conf" else joined, name)

    def head(self, level: str, module: str, columns: int) -> str:
        """[B, C, H, W] -> [B, H*W, columns]"""
        x = self.conv(level, module, CHANNELS, columns, kernel=3, pad=1)
        x = self.add("Transpose", [x], module, perm=[0, 2, 3, 1])
        return self.add("Reshape", [x, self.constant(f"{module}.shape", np.array([0, -1, columns]))], module)

    def output(self, tensor: str, name: str) -> None:
        if self.precision == "fp16":
            node = helper.make_node("Cast", [tensor], [name], name=f"outputs.{name}/Cast", to=TensorProto.FLOAT)
        else:
            node = helper.make_node("Identity", [tensor], [name], name=f"outputs.{name}/Identity")
        self.nodes.append(node)

    def conv(
        self, x: str, module: str, channels_in: int, channels_out: int, *, kernel: int, stride: int = 1, pad: int = 0
    ) -> str:
        dtype = np.float16 if self.precision == "fp16" else np.float32
        values = self._random.normal(0, 0.2, (channels_out, channels_in, kernel, kernel)).astype(dtype)
        weight = self.constant(f"{module}.weight", values)
        if self.precision == "int8":
            x, weight = self.quantize(x, f"{module}.x", 0.05), self.quantize(weight, f"{module}.w", 0.01)
        bias = self.constant(f"{module}.bias", np.zeros(channels_out, dtype))
        return self.add(
            "Conv", [x, weight, bias], module, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2
        )

    def relu(self, x: str, module: str) -> str:
        return self.add("Relu", [x], module)

    def quantize(self, x: str, module: str, scale: float, zero_point: Any = _INT8_ZERO) -> str:
        parameters = [
            self.constant(f"{module}.scale", np.array(scale, np.float32)),
            self.constant(f"{module}.zero_point", np.array(zero_point)),
        ]
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, *parameters], module), *parameters], module)

    def constant(self, name: str, value: Any) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def add(self, operator: str, inputs: Iterable[str], module: str, **attributes: Any) -> str:
        """Append a node and return its output."""
        name = f"{module}/{operator}"
        while any(node.name == name for node in self.nodes):
            name += "_"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def insert_before(self, name: str, build: Callable[[str], str], *, position: int = 0) -> None:
        """Put nodes in front of the input `position` of the node `name`; `build` appends them and returns their output."""
        index = next(i for i, node in enumerate(self.nodes) if node.name == name)
        rest = self.nodes[index:]
        del self.nodes[index:]
        rest[0].input[position] = build(rest[0].input[position])
        self.nodes += rest
