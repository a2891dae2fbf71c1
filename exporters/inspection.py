"""What `yolact-deploy inspect` tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yolact_deploy.artifacts.names import is_onnx, is_plan
from yolact_deploy.artifacts.open import inspect_onnx, inspect_plan
from yolact_deploy.errors import ArtifactError
from yolact_deploy.optional import require_export


def inspect(artifact: str | os.PathLike[str]) -> dict[str, Any]:
    """All that an artifact tells of itself, as a JSON object; "kind" says of what: "checkpoint", "onnx", "plan" or "spec".

    Each has its "path", and its "spec" where there is one. ONNX files and plans are told without PyTorch, ONNX or TensorRT;
    of a checkpoint, "inferred" says which tensor shows what.

    Raises ArtifactError for what is not there or no ONNX, PlanMismatchError for a plan that is not its sidecar's, SpecError for
    a malformed spec file, CheckpointError for a file that is no YOLACT, MissingDependencyError for a checkpoint without PyTorch.

    >>> found = inspect("model.onnx")
    >>> found["kind"], found["precision"], found["io_tensors"][0]["name"]
    ('onnx', 'fp32', 'image')
    """
    path = Path(artifact)
    if not path.is_file():
        raise ArtifactError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; nothing to inspect.")
    if is_onnx(path):
        return inspect_onnx(path)
    if is_plan(path):
        return inspect_plan(path)
    if path.suffix.lower() == ".json":
        from exporters.checkpoints.configs import load_spec

        return {"kind": "spec", "path": str(path), "spec": load_spec(path).to_dict()}
    require_export("reading a checkpoint")
    from exporters.checkpoints.evidence import inspect_checkpoint

    return inspect_checkpoint(path)
