from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.builder import BuildResult, build
from tests.unit.engines.tiny_network import TINY_SPEC, WriteOnnx, make_model
from yolact_deploy.spec import ModelSpec


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    return TINY_SPEC


@pytest.fixture(scope="session")
def write_onnx() -> WriteOnnx:
    def write(folder: Path, **options: Any) -> Path:
        path = folder / "tiny.onnx"
        onnx.save(make_model(TINY_SPEC, **options), path)
        return path

    return write


@pytest.fixture(scope="session")
def built(write_onnx: WriteOnnx, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A real TensorRT-RTX plan of the tiny network, batch 1 to 4, for sm86 and sm89. Tests leave it as it is."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("built")
    return build(
        write_onnx(folder), folder / "tiny.engine", runtime="tensorrt-rtx", targets=("8.9", "sm86"), batch=(1, 2, 4)
    )
