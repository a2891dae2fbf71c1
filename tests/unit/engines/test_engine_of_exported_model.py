"""The whole way: the bundled, trained checkpoint through the export into a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines import build
from exporters.onnx_export import DEFAULT_MAX_BATCH
from yolact_deploy.artifacts.open import inspect_plan
from yolact_deploy.errors import BuildRequestError


@pytest.mark.slow
def test_trained_checkpoint_becomes_a_plan(shapes_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "shapes.engine"
    result = build(
        shapes_onnx, output, runtime="tensorrt-rtx", targets=("sm86", "sm89"), batch=(1, 2, 4), precision="fp32"
    )

    spec = result.sidecar.spec
    shapes = {tensor.name: tensor.shape for tensor in result.sidecar.io_tensors}
    assert shapes.pop("image") == (-1, 3, spec.input_size, spec.input_size)
    assert shapes == {name: (-1, *shape) for name, shape in spec.output_shapes().items()}
    assert result.sidecar.plan_bytes > 0.9 * shapes_onnx.stat().st_size, "the weights are in the plan"
    assert result.warnings == ()
    modules = inspect_plan(output)["layers"]["module_counts"]
    assert {"backbone", "fpn", "proto_net", "prediction_layers"} <= set(modules)
    with pytest.raises(BuildRequestError, match=f"exported for batches up to {DEFAULT_MAX_BATCH}"):
        build(shapes_onnx, output, batch=(1, 8, DEFAULT_MAX_BATCH + 1))
