"""Plans on the GPU that is here: TensorRT-RTX knows some GPUs only, and says of the others that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines import build
from engines.adapters import choose_runtime
from tests.goldens import SHAPES
from yolact_deploy import Detector
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import EngineError, YolactDeployError
from yolact_deploy.reference.images import read_image

_SCORE_ERROR = 2e-3


def _opens_all_the_same(plan: Path) -> bool:
    """By TensorRT-RTX alone, without asking the sidecar."""
    trt = pytest.importorskip("tensorrt_rtx")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    return runtime.deserialize_cuda_engine(plan.read_bytes()) is not None


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_built_here_finds_what_the_cpu_finds(
    driver: Driver,
    shapes_onnx: Path,
    tmp_path: Path,
    runtime: str,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Where the runtime does not know the GPU, whether a plan for its nearest relative opens all the same is recorded."""
    try:
        choose_runtime(runtime)
    except YolactDeployError as exc:
        pytest.skip(str(exc).splitlines()[0])
    plan = tmp_path / "shapes.engine"
    name = f"{runtime} on {driver.device.target}"
    try:
        build(shapes_onnx, plan, runtime=runtime, targets=["current"] if "rtx" in runtime else [])
    except EngineError as exc:
        answer = f"can't be built for ({exc})"
        if runtime == "tensorrt-rtx":
            build(shapes_onnx, plan, runtime=runtime)
            answer += f"; a plan for other GPUs {'opens' if _opens_all_the_same(plan) else 'does not open'}"
        record_testsuite_property(name, answer)
        pytest.skip(f"{name}: {answer}")
    photo = read_image(next((SHAPES / "val").glob("*.jpg")))
    expected = Detector(shapes_onnx, device="cpu")(photo)
    with Detector(plan, device=f"cuda:{driver.device.index}") as detector:
        record_testsuite_property(name, f"opened: {detector.description}")
        for _ in range(3):  # as it is, captured, replayed
            found = detector(photo)
            assert found.scores[:5] == pytest.approx(expected.scores[:5], abs=_SCORE_ERROR)
            assert found.class_ids[:5].tolist() == expected.class_ids[:5].tolist()
        assert not detector.notes
