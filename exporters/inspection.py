"""What `yolact-deploy inspect` tells."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from yolact_deploy.arguments import check_paths
from yolact_deploy.artifacts.names import is_onnx, is_plan
from yolact_deploy.artifacts.open import inspect_onnx, inspect_plan
from yolact_deploy.errors import ArtifactError
from yolact_deploy.files import is_file, what_is_there
from yolact_deploy.optional import require_export
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import JsonError, read_json

# What else has .json behind its name, by keys that it has and a spec has not.
_OTHER_JSON = {
    frozenset(("plan_sha256", "plan_bytes")): "the sidecar of a plan; inspect the plan beside it",
    frozenset(("plan_sha256", "layers")): "the layers of a plan; inspect the plan beside it",
    frozenset(("calibrator", "tensors")): "the ranges of a calibration (--calib-cache)",
    frozenset(("environment", "runs")): "what `bench --json` printed",
    frozenset(("images", "failed")): "what `detect --json` printed",
    frozenset(("bbox", "segm")): "what `eval --json` printed",
    frozenset(("images", "annotations")): "COCO annotations",
    frozenset(("image_id", "category_id")): "COCO results (`detect --coco`)",
}


def inspect(artifact: str | os.PathLike[str]) -> dict[str, Any]:
    """All that an artifact tells of itself, as a JSON object; "kind" says of what: "checkpoint", "onnx", "plan" or "spec".

    Each has its "path", and its "spec" where there is one. ONNX files and plans are told without PyTorch, ONNX or TensorRT;
    of a checkpoint, "inferred" says which tensor shows what.

    Raises OptionError for what is no path, ArtifactError for what is not there, no ONNX, or JSON of another kind,
    PlanMismatchError for a plan that is not its sidecar's, SpecError for a malformed spec file, CheckpointError for a file
    that is no YOLACT, MissingDependencyError for a checkpoint without PyTorch.

    >>> found = inspect("model.onnx")
    >>> found["kind"], found["precision"], found["io_tensors"][0]["name"]
    ('onnx', 'fp32', 'image')
    """
    check_paths(artifact=artifact)
    path = Path(artifact)
    if not is_file(path):
        raise ArtifactError(f"{path} {what_is_there(path)}; nothing to inspect.")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty (0 bytes). Copy or download it again.")
    if is_onnx(path):
        return inspect_onnx(path)
    if is_plan(path):
        return inspect_plan(path)
    if path.suffix.lower() == ".json":
        return _inspect_spec(path)
    require_export("reading a checkpoint")
    from exporters.checkpoints.evidence import inspect_checkpoint

    return inspect_checkpoint(path)


def _inspect_spec(path: Path) -> dict[str, Any]:
    from exporters.checkpoints.configs import EXTENDS, load_spec

    try:
        content = read_json(path)
    except OSError as exc:
        raise ArtifactError(f"can't read {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise ArtifactError(f"{path} is not valid JSON: {exc}.") from exc
    first = content[0] if isinstance(content, list) and content else content
    keys = set(first) if isinstance(first, dict) else set()
    of_another_kind = next((what for known, what in _OTHER_JSON.items() if known <= keys), None)
    if of_another_kind is not None:
        raise ArtifactError(f"{path} is no artifact: it is {of_another_kind}.")
    of_specs = {EXTENDS, *(field.name for field in dataclasses.fields(ModelSpec))}
    if not isinstance(content, dict) or not keys & of_specs:
        raise ArtifactError(f"{path} is no artifact: it is JSON without any of the fields of a spec.")
    return {"kind": "spec", "path": str(path), "spec": load_spec(path).to_dict()}
