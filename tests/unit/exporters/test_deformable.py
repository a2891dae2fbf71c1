"""Deformable convolutions: the PyTorch one against its formula written out, and both exported forms against that."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from engines import build
from exporters.checkpoints.configs import PUBLISHED
from exporters.network.deformable import DeformConv2d, exportable
from exporters.network.yolact import Yolact
from exporters.onnx_edit import set_precision
from exporters.onnx_export import export_onnx
from exporters.precision.fp16 import to_half
from tests import goldens
from tests.unit.exporters.plus_models import SMALL_PLUS
from yolact_deploy.artifacts.names import OUTPUTS, DcnForm
from yolact_deploy.errors import EngineError, ExportError
from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork

Array = npt.NDArray[Any]


def _bilinear(image: Array, y: float, x: float) -> float:
    """The rule of DCNv2: 0 unless -1 < y < H and -1 < x < W, then bilinear with zeros around the image."""
    height, width = image.shape
    if not (-1 < y < height and -1 < x < width):
        return 0.0
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                total += image[row, column] * row_weight * column_weight
    return total


def _literal(conv: DeformConv2d, image: Array, geometry: Array) -> Array:
    """[out, h, w] of image [in, H, W], given offsets and mask logits [27, h, w]."""
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    result = np.zeros((len(weight), *geometry.shape[1:]))
    for row, column in np.ndindex(*geometry.shape[1:]):
        for tap in range(9):
            y = row * conv.stride - conv.padding + tap // 3 + geometry[2 * tap, row, column]
            x = column * conv.stride - conv.padding + tap % 3 + geometry[2 * tap + 1, row, column]
            mask = 1 / (1 + math.exp(-geometry[18 + tap, row, column]))
            samples = np.array([_bilinear(channel, y, x) for channel in image])
            result[:, row, column] += weight[:, :, tap // 3, tap % 3] @ samples * mask
    result += bias[:, None, None]
    return result


def _with_geometry(geometry: Array, stride: int) -> DeformConv2d:
    """A convolution of 2 into 3 channels whose offsets and masks are `geometry` [27, h, w], whatever its input."""
    conv = DeformConv2d(2, 3, 3, stride=stride, padding=1).eval().requires_grad_(False)
    torch.nn.init.normal_(conv.bias)

    class Fixed(torch.nn.Conv2d):
        def forward(self, _image: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(geometry.astype(np.float32))[None]

    conv.conv_offset_mask = Fixed(1, 1, 1)
    return conv


@pytest.mark.parametrize("stride", [1, 2])
def test_the_module_computes_the_formula_with_offsets_far_beyond_the_borders(stride: int) -> None:
    torch.manual_seed(stride)
    random = np.random.default_rng(stride)
    image = random.normal(size=(2, 5, 7)).astype(np.float32)
    height, width = (5 - 1) // stride + 1, (7 - 1) // stride + 1
    geometry = random.normal(scale=3, size=(27, height, width)).astype(np.float32)
    conv = _with_geometry(geometry, stride)
    found = conv(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found, _literal(conv, image, geometry), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dy", "dx", "weight"),
    [
        (-2.0, 0.0, 0.0),  # the centre tap of row 1 lands on row -1: outside
        (-1.5, 0.0, 0.5),  # row -0.5: half of row 0
        (-1.0, 0.0, 1.0),  # row 0
        (1.0, 0.0, 1.0),  # row 2, the last
        (1.75, 0.0, 0.25),
        (2.0, 0.0, 0.0),  # row 3, the height
        (0.0, -2.0, 0.0),
        (0.0, 1.25, 0.75),
        (0.0, 2.0, 0.0),
        (-1.5, 1.25, 0.375),
        (1e6, -1e6, 0.0),
    ],
)
def test_a_sample_at_the_border_counts_as_much_as_of_it_is_inside(dy: float, dx: float, weight: float) -> None:
    geometry = np.zeros((27, 3, 3))
    geometry[18:] = -100  # masks 0, but for the centre tap
    geometry[8], geometry[9], geometry[18 + 4] = dy, dx, 100
    conv = _with_geometry(geometry, stride=1)
    conv.bias.zero_()
    found = conv(torch.ones(1, 2, 3, 3))[0, :, 1, 1]
    torch.testing.assert_close(found, conv.weight[:, :, 1, 1].sum(1) * weight, rtol=1e-6, atol=1e-6)


@pytest.fixture(params=get_args(DcnForm))
def exported(request: pytest.FixtureRequest) -> tuple[DcnForm, Path]:
    return request.param, request.getfixturevalue(f"plus_{request.param}")


@pytest.mark.slow
def test_both_forms_compute_what_the_module_does_for_any_batch(
    exported: tuple[DcnForm, Path], plus_model: Yolact
) -> None:
    network = OnnxNetwork(exported[1], device="cpu")
    images = np.random.default_rng(0).normal(size=(3, 3, 65, 65)).astype(np.float32)
    with torch.inference_mode():
        expected = plus_model(torch.from_numpy(images))
    for count in (3, 1):
        for name, found, wanted in zip(OUTPUTS, network.run(images[:count]), expected, strict=True):
            spread = float(wanted.std())
            assert spread > 1e-3, f"{name} would be equal whatever the offsets do"
            np.testing.assert_allclose(found, wanted[:count].numpy(), rtol=0, atol=1e-4 * spread, err_msg=name)


def test_the_offsets_of_that_model_reach_beyond_the_borders(plus_model: Yolact) -> None:
    reached: list[torch.Tensor] = []
    offsets = plus_model.get_submodule("backbone.layers.1.0.conv2.conv_offset_mask")
    handle = offsets.register_forward_hook(lambda _module, _inputs, output: reached.append(output))
    plus_model(torch.randn(1, 3, 65, 65))
    handle.remove()
    assert reached[0][:, :18].abs().max() > 2


@pytest.mark.slow
def test_the_graph_holds_the_operators_of_its_form_under_the_module_names(exported: tuple[DcnForm, Path]) -> None:
    form, path = exported
    proto = onnx.load(str(path))
    operators = Counter(node.op_type for node in proto.graph.node)
    deformable = sum(len(SMALL_PLUS.backbone.deformable_blocks(stage)) for stage in range(3))
    assert deformable == 3
    assert operators["DeformConv"] == (deformable if form == "native" else 0)
    assert operators["GridSample"] == (deformable if form == "gridsample" else 0)
    assert "BatchNormalization" not in operators
    inside = {name for node in proto.graph.node if (name := node.name).startswith("backbone.layers.1.0.conv2")}
    last = "DeformConv" if form == "native" else "Conv"
    assert {f"backbone.layers.1.0.conv2/{last}", "backbone.layers.1.0.conv2.conv_offset_mask/Conv"} <= inside
    assert {tensor.name for tensor in proto.graph.initializer} >= {
        "backbone.layers.1.0.conv2.weight",
        "backbone.layers.1.0.conv2.bias",
        "backbone.layers.1.0.conv2.conv_offset_mask.weight",
    }


def test_samples_are_made_once_and_moved_by_nothing_but_the_mask(plus_gridsample: Path) -> None:
    proto = onnx.load(str(plus_gridsample))
    consumers = {name: node for node in proto.graph.node for name in node.input}
    for sampling in (node for node in proto.graph.node if node.op_type == "GridSample"):
        masked = consumers[sampling.output[0]]
        assert (masked.op_type, consumers[masked.output[0]].op_type) == ("Mul", "Conv")


def test_export_leaves_the_model_as_it_was_and_shares_its_weights(plus_model: Yolact) -> None:
    before = {name: tensor.clone() for name, tensor in plus_model.state_dict().items()}
    twin = exportable(plus_model, "gridsample", SMALL_PLUS.input_size)
    assert twin is not plus_model
    assert twin.get_parameter("fpn.lat_layers.0.weight") is plus_model.get_parameter("fpn.lat_layers.0.weight")
    assert isinstance(plus_model.get_submodule("backbone.layers.1.0.conv2"), DeformConv2d)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plus_model.state_dict().items())


def test_a_model_without_deformable_convolutions_is_not_copied(shapes_model: Yolact) -> None:
    assert exportable(shapes_model, "native", 256) is shapes_model


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])  # 20 renames GridSample's modes
def test_other_opsets(plus_model: Yolact, tmp_path: Path, opset: int) -> None:
    target = tmp_path / "plus.onnx"
    export_onnx(plus_model, SMALL_PLUS, target, opset=opset, max_batch=1)
    image = np.random.default_rng(1).normal(size=(1, 3, 65, 65)).astype(np.float32)
    with torch.inference_mode():
        expected = plus_model(torch.from_numpy(image))
    for found, wanted in zip(OnnxNetwork(target, device="cpu").run(image), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-4 * float(wanted.std()))


def test_the_native_form_before_opset_19_is_refused_with_both_ways_out(plus_model: Yolact, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"needs opset 19 or later, asked was 18. Give --opset 19 or --dcn gridsample"
    ):
        export_onnx(plus_model, SMALL_PLUS, tmp_path / "x.onnx", opset=18, dcn="native")


@pytest.mark.parametrize("config", [name for name in goldens.CONFIGS if "plus" in name])
def test_deformable_convolutions_are_where_the_original_has_them(config: str) -> None:
    with torch.device("meta"):
        network = Yolact(PUBLISHED[config])
    places = [name for name, module in network.named_modules() if isinstance(module, DeformConv2d)]
    assert places == goldens.manifest(config)["backbone"]["dcn_modules"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gridsample_form_builds_on_tensorrt_rtx(plus_gridsample: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = plus_gridsample
    if precision == "fp16":
        source = tmp_path / "half.onnx"
        half = to_half(onnx.load(str(plus_gridsample)))
        set_precision(half, precision)
        onnx.save(half, str(source))
    result = build(
        source,
        tmp_path / "plus.engine",
        runtime="tensorrt-rtx",
        targets=("sm86",),
        batch=(1, 2, 4),
        precision=precision,
    )
    assert result.sidecar.precision == precision
    assert result.warnings == ()


def test_tensorrt_rtx_refuses_the_native_form(plus_native: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match="DeformConv"):
        build(plus_native, tmp_path / "plus.engine", runtime="tensorrt-rtx", targets=("sm86",))
    assert list(tmp_path.iterdir()) == []
