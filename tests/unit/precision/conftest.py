"""The bundled model and what was measured of it, once per worker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from exporters import onnx_edit
from exporters.onnx_edit import read_spec
from exporters.precision.calibration import Calibration, calibrate
from exporters.precision.quantize import quantize
from tests import goldens
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from yolact_deploy.runtime.onnxruntime import network as onnx_network
from yolact_deploy.spec import ModelSpec

CALIBRATION_IMAGES = sorted((goldens.SHAPES / "calib").glob("*.jpg"))


@pytest.fixture(scope="session", autouse=True)
def _share_the_cores() -> Iterator[None]:
    """Test processes that each take every core wait for each other most of the time."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(share)
    original = onnx_network.session_options

    def shared(ort: Any, threads: int | None = None) -> Any:
        return original(ort, threads or share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_network, "session_options", shared)
        patch.setattr(onnx_edit, "session_options", shared)
        yield


@pytest.fixture(scope="session")
def shapes(shapes_onnx: Path) -> onnx.ModelProto:
    """Tests leave it as it is."""
    return onnx.load(str(shapes_onnx))


@pytest.fixture(scope="session")
def shapes_spec(shapes: onnx.ModelProto) -> ModelSpec:
    return read_spec(shapes, "shapes")


@pytest.fixture(scope="session")
def calibration(shapes: onnx.ModelProto, shapes_spec: ModelSpec) -> Calibration:
    """Of 12 images, enough to look at the graph that comes of it."""
    return calibrate(shapes, shapes_spec, CALIBRATION_IMAGES[:12])


@pytest.fixture(scope="session")
def ranges(calibration: Calibration) -> Mapping[str, float]:
    return calibration.ranges


@pytest.fixture(scope="session")
def shapes_int8(shapes: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """With float32 beside INT8. Tests leave it as it is."""
    return quantize(shapes, ranges)


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Path:
    """A network of seven convolutions, opset 19, for what does not depend on the network."""
    path = tmp_path / "tiny.onnx"
    onnx.save(make_model(TINY_SPEC), str(path))
    return path
