"""The whole way: the bundled, trained checkpoint through the export into a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.builder import build_engine
from engines.inspection import inspect_plan
from yolact_deploy.errors import BuildRequestError

SHAPES = Path(__file__).parents[3] / "examples" / "shapes"


def test_trained_checkpoint_becomes_a_plan(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from exporters import export

    source, output = tmp_path / "shapes.onnx", tmp_path / "shapes.engine"
    checkpoint = next(SHAPES.glob("*.pth"))
    export(checkpoint, source, spec=SHAPES / "spec.json", max_batch=4, parity=False)
    result = build_engine(
        source, output, runtime="tensorrt-rtx", targets=("sm86", "sm89"), batch=(1, 2, 4), precision="fp32"
    )

    spec = result.sidecar.spec
    shapes = {tensor.name: tensor.shape for tensor in result.sidecar.io_tensors}
    assert shapes.pop("image") == (-1, 3, spec.input_size, spec.input_size)
    assert shapes == {name: (-1, *shape) for name, shape in spec.output_shapes().items()}
    assert result.sidecar.plan_bytes > 0.9 * source.stat().st_size, "the weights are in the plan"
    assert result.warnings == ()
    modules = inspect_plan(output)["layers"]["module_counts"]
    assert {"backbone", "fpn", "proto_net", "prediction_layers"} <= set(modules)
    with pytest.raises(BuildRequestError, match="exported for batches up to 4"):
        build_engine(source, output, batch=(1, 8, 8))
