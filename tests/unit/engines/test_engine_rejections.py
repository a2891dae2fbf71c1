"""Graphs that TensorRT refuses: each error names the node and its operator, and says what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from engines import build
from tests.unit.engines.tiny_network import Graph, WriteOnnx
from yolact_deploy.errors import EngineError

pytest.importorskip("tensorrt_rtx")


def test_non_max_suppression(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def insert(graph: Graph) -> None:
        def build(loc: str) -> str:
            boxes = graph.constant("nms.boxes", np.zeros((1, 5, 4), np.float32))
            scores = graph.constant("nms.scores", np.zeros((1, 2, 5), np.float32))
            limit = graph.constant("nms.limit", np.array(3))
            thresholds = [graph.constant(f"nms.{name}", np.array(0.5, np.float32)) for name in ("iou", "score")]
            selected = graph.add("NonMaxSuppression", [boxes, scores, limit, *thresholds], "nms")
            selected = graph.add("ReduceMean", [graph.add("Cast", [selected], "nms", to=1)], "nms", keepdims=0)
            return graph.add("Add", [loc, selected], "nms")

        graph.insert_before("outputs.loc/Identity", build)

    _refused(
        write_onnx, tmp_path, insert, r"node nms/NonMaxSuppression \(NonMaxSuppression\)", "Leave detection outside"
    )


def test_deformable_convolution(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def insert(graph: Graph) -> None:
        weight = graph.constant("dcn.weight", np.zeros((8, 8, 3, 3), np.float32))
        offset = graph.constant("dcn.offset", np.zeros((1, 18, 8, 8), np.float32))
        graph.insert_before(
            "protonet.0/Conv",
            lambda x: graph.add("DeformConv", [x, weight, offset], "dcn", kernel_shape=[3, 3], pads=[1] * 4),
        )

    _refused(write_onnx, tmp_path, insert, r"node dcn/DeformConv \(DeformConv\)", "Express it with GridSample")


@pytest.mark.parametrize("zero_point", [np.uint8(128), np.int8(3)], ids=["uint8", "asymmetric"])
def test_quantization_with_a_zero_point(zero_point: np.uint8 | np.int8, write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def insert(graph: Graph) -> None:
        graph.insert_before("fpn.downsample/Conv", lambda x: graph.quantize(x, "fpn.x", 0.1, zero_point))

    _refused(write_onnx, tmp_path, insert, r"node fpn.x/QuantizeLinear \(QuantizeLinear\)", "Only symmetric INT8")


def test_int32_bias_behind_dequantize(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def insert(graph: Graph) -> None:
        bias = graph.constant("stem.bias.int32", np.zeros(8, np.int32))
        scale = graph.constant("stem.bias.scale", np.array(0.01, np.float32))
        graph.insert_before(
            "backbone.stem/Conv", lambda _: graph.add("DequantizeLinear", [bias, scale], "backbone.stem"), position=2
        )

    _refused(
        write_onnx, tmp_path, insert, r"node backbone.stem/DequantizeLinear \(DequantizeLinear\)", "QuantizeBias=False"
    )


def test_float32_activation_meets_float16_weight(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def halve(graph: Graph) -> None:
        weight = graph.initializers["protonet.0.weight"]
        graph.constant("protonet.0.weight", numpy_helper.to_array(weight).astype(np.float16))

    _refused(write_onnx, tmp_path, halve, r"node protonet.0/Conv \(Conv\)", "Insert a Cast")


def test_unknown_operator(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def insert(graph: Graph) -> None:
        graph.insert_before("outputs.conf/Identity", lambda x: graph.add("Frobnicate", [x], "outputs"))

    _refused(write_onnx, tmp_path, insert, r"node outputs/Frobnicate \(Frobnicate\)", "does not know this operator")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_that_are_no_numbers(precision: str, write_onnx: WriteOnnx, tmp_path: Path) -> None:
    def edit(graph: Graph) -> None:
        values = numpy_helper.to_array(graph.initializers["fpn.downsample.bias"]).copy()
        values[:2] = np.nan
        graph.constant("fpn.downsample.bias", values)

    source = write_onnx(tmp_path, precision=precision, edit=edit)
    with pytest.raises(EngineError, match=r"fpn\.downsample\.bias .*2 of 8 values"):
        build(source, tmp_path / "t.engine", runtime="tensorrt-rtx", targets=("sm86",))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def _refused(write_onnx: WriteOnnx, folder: Path, edit: Callable[[Graph], None], node: str, hint: str) -> None:
    source = write_onnx(folder, edit=edit)
    with pytest.raises(EngineError, match=f"(?s)^TensorRT-RTX .*tiny.onnx:\n  {node}: .*\n    .*{hint}") as caught:
        build(source, folder / "t.engine", runtime="tensorrt-rtx", targets=("sm86",))
    assert "cudaError 35" not in str(caught.value), "that there is no driver here has nothing to do with it"
    assert [path.name for path in folder.iterdir()] == ["tiny.onnx"]
