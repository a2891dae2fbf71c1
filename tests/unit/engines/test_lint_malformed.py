"""Graphs that no exporter writes and no runtime reads: the linter says what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engines.lint.linter import lint_onnx
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from yolact_deploy.errors import ArtifactError

Break = Callable[[onnx.GraphProto], object]


def _node(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in graph.node if node.op_type == operator)
    return found


def _without(field: str, operator: str) -> Break:
    def edit(graph: onnx.GraphProto) -> None:
        del getattr(_node(graph, operator), field)[:]

    return edit


def _attribute(operator: str, name: str, value: object) -> Break:
    def edit(graph: onnx.GraphProto) -> None:
        node = _node(graph, operator)
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def _of_a_function(graph: onnx.GraphProto) -> None:
    _node(graph, "Transpose").attribute[0].ref_attr_name = "order"


def _scale(graph: onnx.GraphProto) -> onnx.TensorProto:
    name = _node(graph, "QuantizeLinear").input[1]
    found: onnx.TensorProto = next(tensor for tensor in graph.initializer if tensor.name == name)
    return found


def _circle(graph: onnx.GraphProto) -> None:
    relu = _node(graph, "Relu")
    relu.input[0] = relu.output[0]


def _long_circle(graph: onnx.GraphProto) -> None:
    graph.node.extend(
        [helper.make_node("Reshape", [b, "shape"], [a]) for a, b in (("x", "y"), ("y", "z"), ("z", "x"))]
        + [helper.make_node("Softmax", ["x"], ["s"])]
    )


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (_without("input", "Conv"), "has 0 inputs and 1 outputs, Conv needs 2 and 1"),
        (_without("output", "QuantizeLinear"), "has 3 inputs and 0 outputs, QuantizeLinear needs 2 and 1"),
        (_without("input", "DequantizeLinear"), "has 0 inputs"),
        (_without("input", "Softmax"), "has 0 inputs"),
        (_attribute("Transpose", "perm", 1.5), "the attribute perm of .* is of another type than Transpose has"),
        (_attribute("DequantizeLinear", "axis", [1, 2]), "the attribute axis of"),
        (_of_a_function, "the attribute perm of .* is that of a function, and the node is in none"),
        (_circle, "its nodes form a circle"),
        (_long_circle, "its nodes form a circle"),
        (lambda graph: _scale(graph).dims.append(7), "the tensor .* of the graph is malformed"),
        (lambda graph: setattr(_scale(graph), "data_type", 99), "the tensor .* of the graph is malformed"),
        (lambda graph: setattr(_scale(graph), "data_type", 0), "the tensor .* of the graph is malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_malformed_is_named(tmp_path: Path, edit: Break, problem: str) -> None:
    model = make_model(TINY_SPEC, precision="int8")
    edit(model.graph)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=rf"m\.onnx.* {problem}"):
        lint_onnx(path)


def test_types_that_this_onnx_does_not_know_and_plugins_are_passed_over(tmp_path: Path) -> None:
    model = make_model(TINY_SPEC, precision="int8")
    model.graph.node.extend([helper.make_node("EfficientNMS_TRT", [], ["found"])])
    model.graph.input[0].type.tensor_type.elem_type = 999
    model.opset_import[0].version = 2**40
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.data_type = TensorProto.FLOAT
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert lint_onnx(path).quantize_nodes > 0
