"""A YOLACT++ of a few layers: the tiny network, and a mask-IoU network to go with it."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import MASK_IOU_METADATA_KEY
from yolact_deploy.reference.postprocess import MaskIouReference

PLUS_SPEC = dataclasses.replace(TINY_SPEC, name="tiny_plus", mask_iou_layers=((4, 3),))


def _layers() -> list[tuple[FloatArray, FloatArray]]:
    random = np.random.default_rng(3)
    shapes = [(4, 1, 3, 3), (PLUS_SPEC.num_classes, 4, 1, 1)]
    return [
        (random.normal(size=shape).astype(np.float32), random.random(shape[0]).astype(np.float32)) for shape in shapes
    ]


REFERENCE = MaskIouReference(_layers())


def mask_iou_onnx() -> bytes:
    size = PLUS_SPEC.proto_size
    nodes = [helper.make_node("Unsqueeze", ["masks", "axis"], ["x0"])]
    constants = [numpy_helper.from_array(np.array([1]), "axis"), numpy_helper.from_array(np.array([2, 3]), "area")]
    layers = _layers()
    for number, (weight, bias) in enumerate(layers):
        stride = 2 if number < len(layers) - 1 else 1
        constants += [numpy_helper.from_array(weight, f"w{number}"), numpy_helper.from_array(bias, f"b{number}")]
        nodes += [
            helper.make_node("Conv", [f"x{number}", f"w{number}", f"b{number}"], [f"y{number}"], strides=[stride] * 2),
            helper.make_node("Relu", [f"y{number}"], [f"x{number + 1}"]),
        ]
    nodes.append(helper.make_node("ReduceMax", [f"x{len(layers)}", "area"], ["mask_iou"], keepdims=0))
    masks = helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["count", size, size])
    judged = helper.make_tensor_value_info("mask_iou", TensorProto.FLOAT, ["count", PLUS_SPEC.num_classes])
    graph = helper.make_graph(nodes, "mask_iou", [masks], [judged], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def write_plus_onnx(path: Path) -> Path:
    metadata = {MASK_IOU_METADATA_KEY: base64.b64encode(mask_iou_onnx()).decode()}
    onnx.save(make_model(PLUS_SPEC, metadata=metadata), str(path))
    return path


def soft_masks(count: int) -> FloatArray:
    size = PLUS_SPEC.proto_size
    return np.random.default_rng(count).random((count, size, size), np.float32)
