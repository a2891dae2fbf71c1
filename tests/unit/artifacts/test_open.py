"""From a path to an artifact, of whichever kind."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.subjects import describe
from exporters.comparison.report import open_side
from tests.emulator.backend import EmulatedGpu
from tests.unit.artifacts.opens import opens_of
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from tests.unit.runtime.conftest import Bench
from yolact_deploy import Detector
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.open import Checkpoint, open_artifact
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import ArtifactError, PlanMismatchError
from yolact_deploy.runtime.gpu.pipeline import GpuBackend
from yolact_deploy.runtime.tensorrt.network import PlanNetwork


def test_the_three_kinds_tell_the_same_things(bench: Bench, tmp_path: Path) -> None:
    onnx.save(make_model(TINY_SPEC, precision="int8"), str(tmp_path / "tiny.ONNX"))
    (tmp_path / "tiny.pth").write_bytes(b"weights")
    plan = bench.write(precision="fp16")
    kinds = {"checkpoint": (tmp_path / "tiny.pth", Checkpoint, "fp32", (1, None), None)}
    kinds["onnx"] = (tmp_path / "tiny.ONNX", OnnxFile, "int8", (1, None), TINY_SPEC)  # type: ignore[assignment]
    kinds["plan"] = (plan, PlanFile, "fp16", (1, 4), TINY_SPEC)  # type: ignore[assignment]
    for kind, (path, form, precision, batch, spec) in kinds.items():
        artifact = open_artifact(path)
        assert isinstance(artifact, form)
        assert (artifact.spec, artifact.batch) == (spec, batch)
        assert artifact.describe() == {
            "path": str(path),
            "kind": kind,
            "precision": precision,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
        }


def test_what_is_no_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.onnx does not exist"):
        open_artifact(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        open_artifact(tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ArtifactError, match=r"a\.jpg is no artifact"):
        open_artifact(tmp_path / "a.jpg")
    (tmp_path / "a.plan").touch()
    with pytest.raises(PlanMismatchError, match=r"a\.plan\.json is not beside it"):
        open_artifact(tmp_path / "a.plan")


@pytest.fixture
def plan_gpu(bench: Bench) -> GpuBackend:
    """A GPU that runs plans in the kernels' emulator."""

    def open_network(plan: Any, driver: Driver, threads: int | None, tf32: bool) -> PlanNetwork:
        return PlanNetwork(plan, driver, threads=threads)

    return dataclasses.replace(EmulatedGpu(bench.driver).backend, open_network=open_network)


needs_emulator = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs Linux and g++"
)


@needs_emulator
def test_a_plan_is_read_once_to_run_it_and_tell_what_it_is(bench: Bench, plan_gpu: GpuBackend) -> None:
    plan = bench.write()
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    with opens_of(plan) as count, Detector(plan, device="cuda:0", gpu=plan_gpu) as detector:
        assert describe(detector)["sha256"] == digest
    assert count == [1]
    assert isinstance(detector.file, PlanFile)
    assert not detector.file.content  # the engine has it


@needs_emulator
def test_a_plan_is_read_once_to_be_compared(
    bench: Bench, plan_gpu: GpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.comparison.report.Detector", partial(Detector, gpu=plan_gpu))
    plan = bench.write()
    with opens_of(plan) as count:
        side = open_side(plan)
    assert count == [1]
    assert side.info.kind == "plan"
