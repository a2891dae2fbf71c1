from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_edit import open_session
from exporters.precision.fp16 import emulate_half, to_half
from yolact_deploy.artifacts.names import IoPrecision


def _scaling(*factors: float) -> onnx.ModelProto:
    """image * factors[0] * factors[1] ..., one multiplication each."""
    names = ["image", *(f"s{position}/Mul" for position in range(len(factors) - 1)), "out"]
    nodes = [
        helper.make_node("Mul", [names[position], f"f{position}"], [names[position + 1]], name=f"s{position}/Mul")
        for position in range(len(factors))
    ]
    graph = helper.make_graph(
        nodes,
        "scaling",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1])],
        [
            numpy_helper.from_array(np.array([factor], np.float32), f"f{position}")
            for position, factor in enumerate(factors)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _run(model: onnx.ModelProto, value: float) -> float:
    session = open_session(model)
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    return float(session.run(None, {"image": np.array([[value]], dtype)})[0][0, 0])


@pytest.mark.parametrize("io_precision", ["fp32", "fp16"])
def test_activations_are_rounded_after_every_operator(io_precision: IoPrecision) -> None:
    # 2049 is no half; it becomes 2048, the even neighbour.
    assert _run(emulate_half(to_half(_scaling(2049 / 2048, 1.0), io_precision=io_precision)), 2048) == 2048
    third = np.float16(np.float16(1 / 3) * np.float16(1 / 3))
    assert _run(emulate_half(to_half(_scaling(1 / 3, 1 / 3), io_precision=io_precision)), 1) == third


def test_an_overflow_within_the_network_shows() -> None:
    assert _run(emulate_half(to_half(_scaling(300, 300, 1 / 300, 1 / 300))), 1) == np.inf


def test_onnxruntime_alone_does_not_show_it() -> None:
    """Why the emulation exists: when this fails, onnxruntime rounds by itself."""
    assert _run(to_half(_scaling(300, 300, 1 / 300, 1 / 300)), 1) == pytest.approx(1, rel=1e-2)


def test_nodes_in_float32_are_not_rounded() -> None:
    model = to_half(_scaling(300, 300, 1 / 300, 1 / 300), float32_nodes={"s1/Mul", "s2/Mul"})
    assert _run(emulate_half(model), 1) == pytest.approx(1, rel=1e-2)


def test_inner_tensors_keep_their_names(shapes: onnx.ModelProto) -> None:
    made = {name for node in emulate_half(to_half(shapes)).graph.node for name in node.output}
    assert {name for node in shapes.graph.node for name in node.output} <= made
