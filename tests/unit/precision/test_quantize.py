from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.figures.runtime_worker import OPEN
from engines import build
from exporters.onnx_edit import is_inside, open_session, set_precision
from exporters.precision.fp16 import to_half
from exporters.precision.quantize import (
    check_quantizable,
    half_scale,
    plan_placement,
    quantize,
    tensors_to_calibrate,
    weight_scales,
)
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from tests.unit.precision.graph_index import GraphIndex
from yolact_deploy.artifacts.names import OUTPUTS, module_of
from yolact_deploy.errors import CalibrationError
from yolact_deploy.reference.images import preprocess, read_image
from yolact_deploy.spec import ModelSpec


@pytest.fixture(scope="module")
def bottlenecks() -> onnx.ModelProto:
    """A convolution, a block whose residual is its input, and DarkNet's kind, with an activation before the addition."""
    nodes = [
        ("Conv", "b0.conv1", ["image", "w", "b"], "c0"),
        ("Relu", "b0.relu", ["c0"], "r0"),
        ("Conv", "b1.conv1", ["r0", "w", "b"], "c1"),
        ("Add", "b1", ["c1", "r0"], "s1"),
        ("Relu", "b1.relu", ["s1"], "r1"),
        ("Conv", "b2.conv1", ["r1", "w", "b"], "c2"),
        ("LeakyRelu", "b2.act", ["c2"], "l2"),
        ("Add", "b2", ["l2", "r1"], "out"),
    ]
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], name=f"{module}/{op}") for op, module, inputs, output in nodes],
        "bottlenecks",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4, 8, 8])],
        [
            numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
            for name, shape in (("w", (4, 4, 1, 1)), ("b", (4,)))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _dequantized_inputs(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Node name -> positions of its inputs that come out of a DequantizeLinear."""
    producers = GraphIndex.of(model).producers
    found: dict[str, set[int]] = {}
    for node in model.graph.node:
        positions = {
            position
            for position, name in enumerate(node.input)
            if name in producers and producers[name].op_type == "DequantizeLinear"
        }
        if positions:
            found[node.name] = positions
    return found


def _scale_of(model: onnx.ModelProto, node_name: str, position: int) -> float:
    index = GraphIndex.of(model)
    node = next(node for node in model.graph.node if node.name == node_name)
    return float(numpy_helper.to_array(index.weights[index.producers[node.input[position]].input[1]]))


def _types(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.slow
def test_q_dq_stand_where_tensorrt_wants_them_node_by_node(
    shapes: onnx.ModelProto, shapes_int8: onnx.ModelProto
) -> None:
    expected: dict[str, set[int]] = {node.name: {0, 1} for node in shapes.graph.node if node.op_type == "Conv"}
    assert len(expected) == 50
    # The downsample's result is the residual, the block's third convolution is fused with the addition.
    for stage in range(4):
        expected[f"backbone.layers.{stage}.0/Add"] = {1}
    # Of the pyramid's additions the upsampled side is quantized; the lateral convolution is fused.
    expected |= {"fpn/Add": {0}, "fpn/Add_1": {0}}
    expected |= {"backbone.maxpool/MaxPool": {0}, "proto_net.6/Resize": {0}, "fpn/Resize": {0}, "fpn/Resize_1": {0}}
    assert _dequantized_inputs(shapes_int8) == expected


def test_nothing_is_quantized_behind_the_head_convolutions(shapes_int8: onnx.ModelProto) -> None:
    index = GraphIndex.of(shapes_int8)
    for node in shapes_int8.graph.node:
        if node.op_type in ("Concat", "Softmax", "Tanh", "Reshape", "Transpose"):
            around = [index.producers[name] for name in node.input if name in index.producers]
            around += [reader for name in node.output for reader in index.consumers.get(name, ())]
            assert not {other.op_type for other in around} & {"QuantizeLinear", "DequantizeLinear"}, node.name


def test_pass_through_operators_keep_one_scale(shapes_int8: onnx.ModelProto) -> None:
    for before, (after, position) in {
        "backbone.maxpool/MaxPool": ("backbone.layers.0.0.conv1/Conv", 0),
        "proto_net.6/Resize": ("proto_net.8/Conv", 0),
        "fpn/Resize": ("fpn/Add", 0),
    }.items():
        assert _scale_of(shapes_int8, before, 0) == _scale_of(shapes_int8, after, position)


def test_everything_is_symmetric_int8_with_one_scale_per_output_channel(shapes_int8: onnx.ModelProto) -> None:
    weights = {tensor.name: tensor for tensor in shapes_int8.graph.initializer}
    index = GraphIndex.of(shapes_int8)
    quantizing = [node for node in shapes_int8.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantizing:
        zero_point = weights[node.input[2]]
        assert zero_point.data_type == TensorProto.INT8
        assert not numpy_helper.to_array(zero_point).any()
    for node in shapes_int8.graph.node:
        if node.op_type == "Conv":
            dequantize = index.producers[node.input[1]]
            stored, scales = weights[dequantize.input[0]], weights[dequantize.input[1]]
            assert stored.data_type == TensorProto.INT8
            assert list(scales.dims) == [stored.dims[0]]
            assert next(attribute.i for attribute in dequantize.attribute) == 0
            assert weights[node.input[2]].data_type == TensorProto.FLOAT  # the bias: TensorRT refuses INT32 behind DQ


def test_weights_are_stored_once_as_int8(shapes_int8: onnx.ModelProto) -> None:
    names = [tensor.name for tensor in shapes_int8.graph.initializer]
    assert len(set(names)) == len(names)
    assert "backbone.conv1.weight" not in names
    dequantizing = [node.input[0] for node in shapes_int8.graph.node if node.op_type == "DequantizeLinear"]
    assert (
        sum(name == "prediction_layers.0.bbox_layer.weight:int8" for name in dequantizing) == 1
    )  # used at five levels


def test_dequantized_weights_are_within_half_a_step(shapes: onnx.ModelProto, shapes_int8: onnx.ModelProto) -> None:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in shapes_int8.graph.initializer}
    for tensor in shapes.graph.initializer:
        if f"{tensor.name}:int8" in stored:
            exact = numpy_helper.to_array(tensor)
            scales = stored[f"{tensor.name}:scale"].reshape(-1, 1, 1, 1)
            assert np.all(np.abs(stored[f"{tensor.name}:int8"] * scales - exact) <= 0.5001 * scales)


def test_an_identity_residual_is_quantized_and_the_convolution_is_not(bottlenecks: onnx.ModelProto) -> None:
    placement = plan_placement(bottlenecks)
    assert placement.inputs == {
        "image": {"b0.conv1/Conv"},
        "r0": {"b1.conv1/Conv", "b1/Add"},  # the residual is the tensor that the block's convolution reads: one pair
        "r1": {"b2.conv1/Conv", "b2/Add"},
    }


def test_a_residual_joins_only_an_int8_convolution(bottlenecks: onnx.ModelProto) -> None:
    assert plan_placement(bottlenecks, ["b1.conv1"]).inputs == {
        "image": {"b0.conv1/Conv"},
        "r1": {"b2.conv1/Conv", "b2/Add"},
    }


def test_readers_outside_of_int8_read_the_float_tensor(shapes: onnx.ModelProto, ranges: Mapping[str, float]) -> None:
    part = quantize(shapes, ranges, keep_fp16=["prediction_layers.0.conf_layer", "backbone.layers.0", "proto_net"])
    found = _dequantized_inputs(part)
    assert not [
        name for name in found if name.startswith(("prediction_layers.0.conf_layer", "backbone.layers.0.", "proto_net"))
    ]
    # Its only readers are in FP16, so there is nothing for the max-pool to carry.
    assert "backbone.maxpool/MaxPool" not in found
    assert found["prediction_layers.0.bbox_layer/Conv"] == {0, 1}
    assert found["backbone.conv1/Conv"] == {0, 1}
    assert sum(positions == {0, 1} for positions in found.values()) == 50 - 5 - 4 - 5


def test_a_prefix_is_a_whole_module_name(shapes: onnx.ModelProto) -> None:
    with pytest.raises(CalibrationError, match=r"no module with convolutions is named 'backbone\.layers\.0\.0\.conv'"):
        plan_placement(shapes, ["backbone.layers.0.0.conv"])


def test_keeping_everything_in_fp16_is_an_error(shapes: onnx.ModelProto) -> None:
    with pytest.raises(CalibrationError, match="no convolution is left"):
        plan_placement(shapes, ["backbone", "fpn", "proto_net", "prediction_layers"])


def test_every_choice_finds_its_ranges(shapes: onnx.ModelProto) -> None:
    calibrated = set(tensors_to_calibrate(shapes))
    for keep in ([], ["backbone.conv1"], ["proto_net.4"], ["fpn.lat_layers.0"], ["fpn"], ["backbone"]):
        assert set(plan_placement(shapes, keep).range_from.values()) <= calibrated


def test_a_missing_range_is_an_error(shapes: onnx.ModelProto, ranges: Mapping[str, float]) -> None:
    with pytest.raises(CalibrationError, match="no calibrated range of the tensor image"):
        quantize(shapes, {name: value for name, value in ranges.items() if name != "image"})


def test_opset_18_is_refused_for_int8(shapes: onnx.ModelProto) -> None:
    check_quantizable(shapes, "a.onnx")
    older = onnx.ModelProto()
    older.CopyFrom(shapes)
    older.opset_import[0].version = 18
    with pytest.raises(CalibrationError, match=r"a\.onnx has opset 18; INT8 needs 19"):
        check_quantizable(older, "a.onnx")


@pytest.mark.parametrize("magnitude", [1e-12, 3e-7, 0.004, 1.0, 127.0, 34.285, 60000.0])
def test_scales_are_halves_that_let_nothing_saturate(magnitude: float) -> None:
    scale = half_scale(magnitude)
    assert float(np.float16(scale)) == scale > 0
    assert scale * 127 >= magnitude
    assert scale * 127 <= max(magnitude * (1 + 2**-9), 127 * 2**-23)


def test_weight_scales_are_per_output_channel() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[0, 0], weight[1, 1] = 127, -254
    assert weight_scales(weight).tolist() == [1, 2, 1]  # a channel without weights needs any scale but 0


def test_weights_are_rounded_as_onnxruntimes_quantizer_does(
    shapes: onnx.ModelProto, shapes_int8: onnx.ModelProto
) -> None:
    from onnxruntime.quantization.quant_utils import quantize_data

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in shapes_int8.graph.initializer}
    weight = next(tensor for tensor in shapes.graph.initializer if tensor.name == "fpn.lat_layers.2.weight")
    for channel, values in enumerate(numpy_helper.to_array(weight)):
        _, scale, rounded = quantize_data(values.ravel(), TensorProto.INT8, symmetric=True)
        # Ours is the next half number above, which moves a weight by a step at most.
        assert stored["fpn.lat_layers.2.weight:scale"][channel] == pytest.approx(float(scale), rel=2e-3)
        ours = stored["fpn.lat_layers.2.weight:int8"][channel].ravel().astype(int)
        assert np.abs(ours - rounded.astype(int)).max() <= 1


def test_int8_convolutions_stay_float32_in_the_typed_graph_and_no_cast_is_left(shapes_int8: onnx.ModelProto) -> None:
    """Integer kernels scale their sums in float32: half would gain nothing, and onnxruntime's default options break it."""
    typed = to_half(shapes_int8)
    assert TensorProto.FLOAT16 not in _types(typed).values()
    assert not [node.name for node in typed.graph.node if node.op_type == "Cast"]


def test_a_module_that_is_kept_is_half_between_int8_ones(shapes: onnx.ModelProto, ranges: Mapping[str, float]) -> None:
    typed = to_half(quantize(shapes, ranges, keep_fp16=["backbone.layers.1", "proto_net.8"]))
    types, kept = _types(typed), {"backbone.layers.1", "proto_net.8"}
    for node in typed.graph.node:
        if node.op_type == "Conv":
            wanted = TensorProto.FLOAT16 if is_inside(module_of(node.name), kept) else TensorProto.FLOAT
            assert {types[name] for name in (*node.input, *node.output)} == {wanted}, node.name
    # Pairs take the types of their neighbours: casts stand only where a kept module reads what INT8 made, once for both
    # branches of the block, and where a cast was never needed none does.
    casts = [node.input[0] for node in typed.graph.node if node.op_type == "Cast"]
    assert casts == ["backbone.layers.0.0.relu/Relu_2", "proto_net.7/Relu"]


@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [
        ("onnxruntime", 0.1),  # with default options
        pytest.param(
            "openvino", 1.0, marks=pytest.mark.needs("openvino")
        ),  # scales are merged, so that it rounds elsewhere
    ],
)
def test_other_runtimes_differ_from_ours_by_less_than_int8_costs(
    runtime: str,
    tolerance: float,
    shapes: onnx.ModelProto,
    shapes_spec: ModelSpec,
    ranges: Mapping[str, float],
    tmp_path: Path,
) -> None:
    typed = to_half(quantize(shapes, ranges, keep_fp16=["backbone.layers.3"]))
    onnx.save(typed, str(tmp_path / "int8.onnx"))
    image = preprocess([read_image(CALIBRATION_IMAGES[0])], shapes_spec)
    exact, ours = (open_session(model).run(OUTPUTS, {"image": image}) for model in (shapes, typed))
    _, run = OPEN[runtime](str(tmp_path / "int8.onnx"), OUTPUTS, image.shape, 2)
    theirs = run(image)
    for name, float32, expected in zip(OUTPUTS, exact, ours, strict=True):
        cost = np.linalg.norm(expected - float32)
        assert np.linalg.norm(theirs[name] - expected) < tolerance * cost, name


def test_a_channel_of_next_to_no_weights_keeps_its_bias_where_biases_become_integers(
    bottlenecks: onnx.ModelProto, tmp_path: Path
) -> None:
    """onnxruntime's default options make them multiples of both scales, in INT32."""
    import onnxruntime

    planted = onnx.ModelProto()
    planted.CopyFrom(bottlenecks)
    weight, bias = (numpy_helper.to_array(tensor).copy() for tensor in planted.graph.initializer)
    weight[0], bias[0] = 1e-9, 50.0
    for tensor, values in zip(planted.graph.initializer, (weight, bias), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(quantize(planted, {"image": 1.0, "r0": 60.0, "r1": 120.0}), str(tmp_path / "int8.onnx"))
    feed = {"image": np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)}
    (expected,) = open_session(planted).run(None, feed)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx")).run(None, feed)
    assert np.abs(found - expected).max() < 4  # a few of the steps of 0.95 that the last block has


@pytest.mark.slow
@pytest.mark.parametrize("keep", [[], ["backbone.layers.0", "prediction_layers.0.upfeature"]])
def test_tensorrt_rtx_builds_it(
    shapes: onnx.ModelProto, ranges: Mapping[str, float], keep: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    typed = to_half(quantize(shapes, ranges, keep_fp16=keep), float32_nodes={"proto_net.2/Conv"} if keep else set())
    set_precision(typed, "int8")
    onnx.save(typed, str(tmp_path / "int8.onnx"))
    result = build(
        tmp_path / "int8.onnx",
        tmp_path / "int8.engine",
        runtime="tensorrt-rtx",
        targets=("sm86", "sm89"),
        precision="int8",
    )
    assert result.sidecar.precision == "int8"
