"""Names that no file can have, and what is no file: everything that opens what it is given says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gate import read_baseline
from engines.lint.linter import lint_onnx
from exporters.checkpoints.checkpoint import load_checkpoint
from exporters.checkpoints.configs import load_spec
from exporters.inspection import inspect
from exporters.onnx_edit import load_onnx
from yolact_deploy import Detector
from yolact_deploy.annotations import load_annotations
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.artifacts.open import open_artifact
from yolact_deploy.artifacts.plan_file import open_plan
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.reference.images import read_image

READERS: tuple[Callable[[Path], object], ...] = (
    *(inspect, open_artifact, open_onnx, open_plan, lint_onnx, load_onnx, load_checkpoint, load_spec, Detector),
    *(load_annotations, read_baseline, read_image, lambda path: open_onnx(path, whole=True)),
)
SUFFIXES = ("", ".onnx", ".engine", ".pth", ".json", ".png")


@pytest.mark.parametrize("name", ["nul\x00", "half\ud800", "a" * 300, "a/" * 3000], ids=["nul", "half", "long", "deep"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    for read in READERS:
        with pytest.raises(YolactDeployError):
            read(tmp_path / f"{name}{suffix}")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device without an end")
def test_a_device_without_an_end_is_refused() -> None:
    for read in READERS:
        with pytest.raises(YolactDeployError):
            read(Path("/dev/zero"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    pipe = tmp_path / f"m{suffix}"
    os.mkfifo(pipe)
    for read in READERS:
        with pytest.raises(YolactDeployError):
            read(pipe)
