"""ONNX's DeformConv, for OpenVINO: it has that operator, but its reader of ONNX files (2026.4) does not know it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from yolact_deploy.optional import require


def deformable_convolution_reader() -> Any:
    """What `Core.add_extension` takes, so that a YOLACT++ exported with native deformable convolutions can be read."""
    frontend = require("openvino.frontend.onnx", extra="openvino", purpose="running an ONNX model in OpenVINO")
    return frontend.ConversionExtension("DeformConv", _convert)


def _convert(node: Any) -> Any:
    """DeformConv-19 (X, W, offset, B?, mask?) as DeformableConvolution-8, and B added to it.

    Offsets and masks lie alike in both. Samples up to a pixel outside of the image are interpolated with zeros there, as ONNX
    has it (`bilinear_interpolation_pad`).
    """
    operators = import_module("openvino.opset8")
    image, weight, offset = (node.get_input(index) for index in range(3))
    bias = node.get_input(3) if node.get_input_size() > 3 else None
    pads = list(node.get_attribute("pads", [0, 0, 0, 0]))
    options = {} if node.get_input_size() < 5 else {"mask": node.get_input(4)}
    result = operators.deformable_convolution(
        image,
        offset,
        weight,
        list(node.get_attribute("strides", [1, 1])),
        pads[:2],
        pads[2:],
        list(node.get_attribute("dilations", [1, 1])),
        group=node.get_attribute("group", 1),
        deformable_group=node.get_attribute("offset_group", 1),
        bilinear_interpolation_pad=True,
        **options,
    )
    if bias is not None and bias.partial_shape.rank.is_static and bias.partial_shape.rank.get_length() == 1:
        axes = operators.constant(np.array([0, 2, 3], np.int64))
        result = operators.add(result, operators.unsqueeze(bias, axes))
    return result.outputs()
