"""From a path to the artifact that lies there."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from yolact_deploy.artifacts.contract import describe
from yolact_deploy.artifacts.names import Precision, is_onnx, is_plan
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.artifacts.plan_file import PlanFile, open_plan
from yolact_deploy.errors import ArtifactError
from yolact_deploy.files import sha256_file

_NO_ARTIFACT_SUFFIXES = (".json", ".jpg", ".png", ".yaml", ".yml", ".txt", ".html")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, as far as it is known without PyTorch: its spec takes `exporters.checkpoints`."""

    kind: ClassVar[Literal["checkpoint"]] = "checkpoint"
    path: Path
    spec: None = None
    precision: Precision = "fp32"
    batch: tuple[int, int | None] = (1, None)

    @functools.cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file."""
        return sha256_file(self.path)

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        return self.path.stat().st_size

    def describe(self) -> dict[str, Any]:
        """A JSON object: path, kind, precision, digest and size."""
        return describe(self)


Runnable: TypeAlias = OnnxFile | PlanFile  # what a Detector takes


def open_artifact(path: str | os.PathLike[str]) -> Checkpoint | OnnxFile | PlanFile:
    """What lies at a path, by its suffix: an ONNX, a plan with its sidecar, else a checkpoint, which is not looked into.

    All have `path`, `kind`, `spec`, `precision`, `batch` (smallest and largest), `sha256`, `num_bytes` and `describe()`.
    Raises ArtifactError for what is not there or no ONNX, PlanMismatchError for a plan that is not its sidecar's.

    >>> artifact = open_artifact("model.onnx")
    >>> artifact.kind, artifact.precision, artifact.spec.input_size
    ('onnx', 'fp32', 32)
    >>> sorted(artifact.describe())
    ['kind', 'path', 'precision', 'sha256', 'size_bytes']
    """
    path = Path(path)
    if is_plan(path):
        return open_plan(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {found}. Give a checkpoint (.pth), an exported .onnx or a plan (.engine).")
    if is_onnx(path):
        return open_onnx(path)
    if path.suffix.lower() in _NO_ARTIFACT_SUFFIXES:
        raise ArtifactError(
            f"{path} is no artifact to compare, inspect or measure. Give a checkpoint (.pth), an exported .onnx or a plan "
            "(.engine)."
        )
    return Checkpoint(path)
