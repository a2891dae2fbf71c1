from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import build
from exporters.onnx_edit import open_session, set_precision
from exporters.precision.fp16 import emulate_half, half_error, nodes_out_of_range, refuse_unless_float32, to_half
from exporters.precision.ranges import observe
from tests import goldens
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from tests.unit.precision.graph_index import GraphIndex
from yolact_deploy.errors import ArtifactError
from yolact_deploy.reference.images import preprocess, read_image
from yolact_deploy.spec import ModelSpec

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def shapes_half(shapes: onnx.ModelProto) -> onnx.ModelProto:
    return to_half(shapes)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in model.graph.initializer
    }


def _scaled(model: onnx.ModelProto, factors: Mapping[str, float]) -> onnx.ModelProto:
    """A copy with some weights multiplied."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in factors:
            values = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def test_every_convolution_is_half_in_all_its_inputs(shapes_half: onnx.ModelProto) -> None:
    types = _types(shapes_half)
    convs = [node for node in shapes_half.graph.node if node.op_type == "Conv"]
    assert len(convs) == 50
    for node in convs:
        assert {types[name] for name in (*node.input, *node.output)} == {HALF}, node.name


def test_inputs_outputs_and_softmax_stay_float32(shapes_half: onnx.ModelProto) -> None:
    types = _types(shapes_half)
    for name in ("image", "loc", "conf", "mask_coeff", "proto"):
        assert types[name] == FLOAT
    softmax = next(node for node in shapes_half.graph.node if node.op_type == "Softmax")
    assert types[softmax.input[0]] == FLOAT
    # One cast in; one before the softmax, whose result is float32 as it is; one for each other output.
    assert sum(node.op_type == "Cast" for node in shapes_half.graph.node) == 5


def test_scales_of_a_resize_stay_float32(shapes_half: onnx.ModelProto) -> None:
    types = _types(shapes_half)
    resize = next(node for node in shapes_half.graph.node if node.name == "proto_net.6/Resize")
    assert (types[resize.input[0]], types[resize.input[2]]) == (HALF, FLOAT)


def test_node_names_weight_names_and_metadata_are_kept(shapes: onnx.ModelProto, shapes_half: onnx.ModelProto) -> None:
    kept = [node.name for node in shapes_half.graph.node if node.op_type != "Cast"]
    assert kept == [node.name for node in shapes.graph.node]
    assert {tensor.name for tensor in shapes_half.graph.initializer} == {
        tensor.name for tensor in shapes.graph.initializer
    }
    assert list(shapes_half.metadata_props) == list(shapes.metadata_props)


def test_half_io_leaves_boxes_and_scores_float32(shapes: onnx.ModelProto) -> None:
    types = _types(to_half(shapes, io_precision="fp16"))
    assert {name: types[name] for name in ("image", "loc", "conf", "mask_coeff", "proto")} == {
        "image": HALF,
        "loc": FLOAT,
        "conf": FLOAT,
        "mask_coeff": HALF,
        "proto": HALF,
    }


def test_a_node_kept_in_float32_is_surrounded_by_casts(shapes: onnx.ModelProto) -> None:
    name = "prediction_layers.0.bbox_layer/Conv_2"
    converted = to_half(shapes, float32_nodes={name})
    index, types = GraphIndex.of(converted), _types(converted)
    node = next(node for node in converted.graph.node if node.name == name)
    assert {types[tensor] for tensor in (*node.input, *node.output)} == {FLOAT}
    assert index.producers[node.input[0]].op_type == "Cast"
    assert {reader.op_type for reader in index.consumers[node.output[0]]} == {"Cast"}
    # The head's weight is shared with four convolutions in half, so it is there in both types.
    assert types["prediction_layers.0.bbox_layer.weight"] == FLOAT
    assert types["prediction_layers.0.bbox_layer.weight:half"] == HALF
    open_session(converted)


@pytest.mark.slow
def test_a_layer_whose_activations_overflow_is_kept_and_named(shapes: onnx.ModelProto, shapes_spec: ModelSpec) -> None:
    # proto_net.2 gives values 1e5 times as large, proto_net.4 takes them back: the same network, but for half's range.
    planted = _scaled(shapes, {"proto_net.2.weight": 1e5, "proto_net.2.bias": 1e5, "proto_net.4.weight": 1e-5})
    seen = observe(planted, shapes_spec, CALIBRATION_IMAGES[:2])
    kept = nodes_out_of_range(planted, seen.absmax)
    by_node = {entry.node: entry for entry in kept}
    # What makes such values, what carries them, and what reads them; the last has a weight too small for half, too.
    assert list(by_node) == ["proto_net.2/Conv", "proto_net.3/Relu", "proto_net.4/Conv"]
    assert "gives values up to" in by_node["proto_net.2/Conv"].reason
    assert "65504" in by_node["proto_net.2/Conv"].reason
    assert by_node["proto_net.2/Conv"].module == "proto_net.2"

    feed = {"image": preprocess([read_image(CALIBRATION_IMAGES[0])], shapes_spec)}
    expected = open_session(shapes).run(["proto"], feed)[0]
    largest = np.abs(expected).max()
    careless = open_session(emulate_half(to_half(planted))).run(["proto"], feed)[0]
    assert not np.isfinite(careless).all() or np.abs(careless - expected).max() > 0.1 * largest
    careful = open_session(emulate_half(to_half(planted, float32_nodes=set(by_node)))).run(["proto"], feed)[0]
    assert np.abs(careful - expected).max() < 0.01 * largest


@pytest.mark.parametrize("factor", [1e8, 1e-6])
def test_weights_outside_of_halfs_range_keep_their_layer_in_float32(shapes: onnx.ModelProto, factor: float) -> None:
    planted = _scaled(shapes, {"fpn.lat_layers.1.weight": factor})
    (kept,) = nodes_out_of_range(planted, {})
    assert kept.node == "fpn.lat_layers.1/Conv"
    assert "fpn.lat_layers.1.weight" in kept.reason


def test_activations_are_kept_from_a_quarter_of_halfs_range_on(shapes: onnx.ModelProto) -> None:
    assert nodes_out_of_range(shapes, {"fpn/Add": 65504 / 4}) == ()
    beyond = nodes_out_of_range(shapes, {"fpn/Add": 65504 / 4 + 1})
    assert {kept.node for kept in beyond} == {"fpn/Add", "fpn/Resize_1", "fpn.pred_layers.1/Conv"}
    assert nodes_out_of_range(shapes, {"fpn/Add": float("nan")}) != ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.0], 0.0), ([1.0, 0.5], 0.0), ([1e5], np.inf), ([1e-9], 1.0)],
)
def test_half_error_of_known_values(values: list[float], expected: float) -> None:
    assert half_error(np.array(values, np.float32)) == expected


def test_half_error_of_ordinary_weights_is_far_below_the_limit() -> None:
    assert half_error(np.random.default_rng(0).normal(0, 0.02, 10_000).astype(np.float32)) < 2**-11


def test_a_graph_that_is_half_already_is_refused(shapes: onnx.ModelProto, shapes_half: onnx.ModelProto) -> None:
    refuse_unless_float32(shapes, "a.onnx")
    with pytest.raises(ArtifactError, match=r"a\.onnx is already in half precision\. Give the float32 ONNX"):
        refuse_unless_float32(shapes_half, "a.onnx")


@pytest.mark.parametrize("io_precision", ["fp32", "fp16"])
def test_outputs_are_near_those_of_float32(
    shapes: onnx.ModelProto, shapes_spec: ModelSpec, io_precision: str, tmp_path: Path
) -> None:
    from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork

    onnx.save(shapes, str(tmp_path / "fp32.onnx"))
    onnx.save(to_half(shapes, io_precision=io_precision), str(tmp_path / "fp16.onnx"))  # type: ignore[arg-type]
    batch = preprocess([read_image(goldens.SHAPES / "val" / "val_public_0000.jpg")], shapes_spec)
    expected = OnnxNetwork(tmp_path / "fp32.onnx").run(batch)
    found = OnnxNetwork(tmp_path / "fp16.onnx").run(batch)
    for exact, rounded in zip(expected, found, strict=True):
        assert rounded.dtype == np.float32
        # Relative L2: 50 layers of rounding at 2^-12 or so each.
        assert np.linalg.norm(rounded - exact) < 3e-3 * np.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"proto_net.2/Conv", "fpn/Add", "backbone.conv1/Conv"})])
def test_tensorrt_rtx_builds_it(shapes: onnx.ModelProto, keep: frozenset[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    converted = to_half(shapes, float32_nodes=keep)
    set_precision(converted, "fp16")
    onnx.save(converted, str(tmp_path / "fp16.onnx"))
    result = build(
        tmp_path / "fp16.onnx",
        tmp_path / "fp16.engine",
        runtime="tensorrt-rtx",
        targets=("sm86", "sm89"),
        precision="fp16",
    )
    assert result.sidecar.precision == "fp16"


def test_any_batch_runs(shapes: onnx.ModelProto, shapes_spec: ModelSpec) -> None:
    session = open_session(to_half(shapes))
    batch = np.zeros((3, 3, shapes_spec.input_size, shapes_spec.input_size), np.float32)
    assert session.run(["loc"], {"image": batch})[0].shape == (3, shapes_spec.num_priors, 4)


def test_an_output_that_is_also_read_within_the_graph_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["a"], name="one/Relu"),
        helper.make_node("Tanh", ["a"], ["b"], name="two/Tanh"),
    ]
    image, a, b = (helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in ("image", "a", "b"))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [a, b]), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    converted = to_half(model)
    outputs = open_session(converted).run(["a", "b"], {"image": np.full((1, 4), 0.5, np.float32)})
    assert outputs[0] == pytest.approx(0.5)
    assert outputs[1] == pytest.approx(np.tanh(0.5), rel=1e-3)
