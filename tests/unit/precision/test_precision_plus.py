"""Lower precision of a YOLACT++: its samples are taken at computed coordinates, which INT8 must leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from engines import build
from engines.lint.linter import lint_onnx
from exporters.precision.run import apply_precision
from tests.unit.exporters.plus_models import SMALL_PLUS
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from tests.unit.precision.graph_index import GraphIndex
from yolact_deploy import Detector
from yolact_deploy.artifacts.names import LowPrecision

_DEFORMABLE = sum(SMALL_PLUS.backbone.dcn_blocks)


@pytest.fixture(scope="module")
def lowered(plus_gridsample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[LowPrecision, Any]:
    images, folder = CALIBRATION_IMAGES[:8], tmp_path_factory.mktemp("plus")
    return {
        precision: apply_precision(
            plus_gridsample, folder / f"{precision}.onnx", precision=precision, calibration_images=images
        )
        for precision in ("fp16", "int8")
    }


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_still_rescores_its_masks(lowered: dict[LowPrecision, Any], precision: LowPrecision) -> None:
    found = Detector(lowered[precision].output, device="cpu")(CALIBRATION_IMAGES[8])
    assert len(found) > 0
    assert found.mask_ious is not None


@pytest.mark.slow
def test_every_convolution_is_in_int8_and_lints_clean(lowered: dict[LowPrecision, Any]) -> None:
    assert lowered["int8"].int8_convs == lowered["int8"].convs
    assert lint_onnx(lowered["int8"].output).findings == ()


def test_the_arithmetic_of_coordinates_has_no_q_dq(lowered: dict[LowPrecision, Any]) -> None:
    """From the convolution that gives offsets to GridSample, whose samples go to their convolution quantized."""
    index = GraphIndex.of(onnx.load(str(lowered["int8"].output)))
    samplings = [node for node in index.producers.values() if node.op_type == "GridSample"]
    assert len(samplings) == _DEFORMABLE
    for sampling in samplings:
        assert index.producers[sampling.input[0]].op_type not in ("QuantizeLinear", "DequantizeLinear")
        operators: set[str] = set()
        reached: set[str] = set()
        pending = [sampling.input[1]]
        while pending:
            node = index.producers.get(pending.pop())
            if node is None:
                continue
            if node.op_type == "Conv":
                reached.add(node.name)
                continue
            operators.add(node.op_type)
            pending += node.input
        assert len(reached) == 1
        assert "conv_offset_mask" in reached.pop()
        assert not operators & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_builds_on_tensorrt_rtx(lowered: dict[LowPrecision, Any], precision: LowPrecision, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    result = build(
        lowered[precision].output,
        tmp_path / "plus.engine",
        runtime="tensorrt-rtx",
        targets=("sm86", "sm89"),
        batch=(1, 2, 4),
        precision=precision,
    )
    assert result.sidecar.precision == precision
