"""The mask-IoU network of a YOLACT++: from the ONNX into a file beside the plan, and from there to scores."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.builder import BuildResult, build
from tests.unit.engines.tiny_network import make_model
from tests.unit.runtime.conftest import Bench
from tests.unit.runtime.fake_tensorrt import make_plan
from tests.unit.runtime.plus_plan import PLUS_SPEC, REFERENCE, mask_iou_onnx, soft_masks, write_plus_onnx
from yolact_deploy.artifacts.open import inspect_plan
from yolact_deploy.artifacts.plan_file import CompanionFile, mask_iou_path, open_plan, read_sidecar, sidecar_path
from yolact_deploy.errors import MissingDependencyError, PlanMismatchError, SpecError
from yolact_deploy.runtime.tensorrt.network import PlanNetwork


@pytest.fixture(scope="module")
def plus_built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("plus")
    source = write_plus_onnx(folder / "plus.onnx")
    return build(source, folder / "plus.engine", runtime="tensorrt-rtx", targets=("sm86",))


@pytest.fixture
def copied(plus_built: BuildResult, tmp_path: Path) -> Path:
    """The plan with all that belongs to it."""
    for path in plus_built.plan.parent.glob("plus.engine*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "plus.engine"


def companion() -> CompanionFile:
    content = mask_iou_onnx()
    return CompanionFile("tiny.engine.mask_iou.onnx", hashlib.sha256(content).hexdigest(), len(content))


def write_plus_plan(bench: Bench) -> Path:
    path = bench.write(make_plan(PLUS_SPEC), spec=PLUS_SPEC, mask_iou=companion())
    mask_iou_path(path).write_bytes(mask_iou_onnx())
    return path


def test_a_build_writes_the_network_beside_the_plan_and_names_it_in_the_sidecar(plus_built: BuildResult) -> None:
    written = plus_built.plan.with_name("plus.engine.mask_iou.onnx")
    assert written == mask_iou_path(plus_built.plan) == plus_built.mask_iou_path
    assert written.read_bytes() == mask_iou_onnx()
    recorded = open_plan(plus_built.plan).sidecar.mask_iou
    assert recorded == CompanionFile(written.name, hashlib.sha256(mask_iou_onnx()).hexdigest(), len(mask_iou_onnx()))
    assert plus_built.to_dict()["mask_iou_path"] == str(written)


def test_inspect_shows_it(plus_built: BuildResult) -> None:
    shown = inspect_plan(plus_built.plan)["mask_iou"]
    assert shown == {
        "name": "plus.engine.mask_iou.onnx",
        "sha256": hashlib.sha256(mask_iou_onnx()).hexdigest(),
        "num_bytes": len(mask_iou_onnx()),
    }


def test_a_build_refuses_a_yolact_plus_without_it(tmp_path: Path) -> None:
    onnx.save(make_model(PLUS_SPEC), str(tmp_path / "bare.onnx"))
    with pytest.raises(SpecError, match=r"bare.onnx is a YOLACT\+\+ by its spec, but carries no mask-IoU network"):
        build(tmp_path / "bare.onnx", tmp_path / "bare.engine", runtime="tensorrt-rtx", targets=("sm86",))
    assert not list(tmp_path.glob("bare.engine*"))


def test_a_missing_file_is_named(copied: Path) -> None:
    mask_iou_path(copied).unlink()
    with pytest.raises(
        PlanMismatchError, match=r"(?s)plus.engine.mask_iou.onnx is not beside it. Copy it here, or build"
    ):
        open_plan(copied)


def test_an_altered_file_is_refused(copied: Path) -> None:
    mask_iou_path(copied).write_bytes(mask_iou_onnx() + b" ")
    size = len(mask_iou_onnx())
    with pytest.raises(
        PlanMismatchError, match=rf"it has {size + 1} bytes and the SHA-256 .*, the sidecar says {size} and"
    ):
        open_plan(copied)


def test_a_sidecar_of_before_is_still_read_and_one_without_it_is_as_before(bench: Bench) -> None:
    path = bench.write()
    assert "mask_iou" not in json.loads(sidecar_path(path).read_text())
    assert read_sidecar(path).mask_iou is None


@pytest.mark.parametrize("name", ["../else.onnx", "/etc/else.onnx", "a\\else.onnx"])
def test_a_sidecar_cannot_name_a_file_of_another_folder(name: str, copied: Path) -> None:
    value: dict[str, Any] = json.loads(sidecar_path(copied).read_text())
    value["mask_iou"]["name"] = name
    sidecar_path(copied).write_text(json.dumps(value))
    with pytest.raises(PlanMismatchError, match="must be a file name without folders"):
        open_plan(copied)


def test_a_running_plan_scores_masks_with_it(bench: Bench) -> None:
    network = PlanNetwork(write_plus_plan(bench), bench.driver)
    assert network.mask_iou is not None
    np.testing.assert_allclose(network.mask_iou(soft_masks(5)), REFERENCE(soft_masks(5)), rtol=0, atol=1e-5)


def test_masks_are_scored_on_the_plans_gpu_where_onnxruntime_can(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, asked = write_plus_plan(bench), onnxruntime.InferenceSession, []

    def open_session(content: bytes, options: Any, *, providers: list[Any]) -> Any:
        asked.append((providers, options.intra_op_num_threads))
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    PlanNetwork(path, bench.driver, threads=2)
    cuda = "CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, "CPUExecutionProvider"])
    PlanNetwork(path, bench.driver, threads=2)
    assert asked == [
        (["CPUExecutionProvider"], 2),
        ([(cuda, {"device_id": 0, "use_tf32": "0"}), "CPUExecutionProvider"], 2),
    ]


def test_a_plan_does_not_open_without_the_file_or_with_an_altered_one(bench: Bench) -> None:
    path = write_plus_plan(bench)
    mask_iou_path(path).write_bytes(b"something else")
    with pytest.raises(PlanMismatchError, match="is not the mask-IoU network that"):
        PlanNetwork(path, bench.driver)
    mask_iou_path(path).unlink()
    with pytest.raises(PlanMismatchError, match="is missing"):
        PlanNetwork(path, bench.driver)
    assert not bench.behaviour.calls


def test_a_yolact_plus_plan_of_an_older_version_is_to_be_built_again(bench: Bench) -> None:
    with pytest.raises(PlanMismatchError, match="names no mask-IoU network, so its masks can't be scored"):
        bench.open(make_plan(PLUS_SPEC), spec=PLUS_SPEC)


def test_without_onnxruntime_its_extra_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plus_plan(bench)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it is a ModuleNotFoundError
    with pytest.raises(MissingDependencyError, match=r"(?s)scoring the masks of .*needs onnxruntime.*\[gpu\]"):
        PlanNetwork(path, bench.driver)
