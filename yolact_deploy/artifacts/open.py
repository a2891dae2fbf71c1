"""From a path to the artifact that lies there, and all there is to tell of it."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from yolact_deploy.arguments import check_paths
from yolact_deploy.artifacts.contract import describe
from yolact_deploy.artifacts.names import (
    CHECKPOINT_SUFFIXES,
    MASK_IOU_METADATA_KEY,
    ONNX_SUFFIX,
    PLAN_SUFFIXES,
    SPEC_METADATA_KEY,
    Precision,
)
from yolact_deploy.artifacts.onnx_file import DEQUANTIZE, QUANTIZE, OnnxFile, open_onnx
from yolact_deploy.artifacts.plan_file import Layers, PlanFile, open_plan
from yolact_deploy.errors import ArtifactError, SpecError
from yolact_deploy.files import is_file, sha256_file, what_is_there
from yolact_deploy.spec_json import encode

_WEIGHTS = {True: "as exported", False: "not those that were exported", None: "the file has no digest of them"}
_LARGE_METADATA = (SPEC_METADATA_KEY, MASK_IOU_METADATA_KEY)
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
    Raises OptionError for what is no path, ArtifactError for what is not there or no ONNX, PlanMismatchError for a plan
    that is not its sidecar's.

    >>> artifact = open_artifact("model.onnx")
    >>> artifact.kind, artifact.precision, artifact.spec.input_size
    ('onnx', 'fp32', 32)
    >>> sorted(artifact.describe())
    ['kind', 'path', 'precision', 'sha256', 'size_bytes']
    """
    check_paths(path=path)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PLAN_SUFFIXES:
        return open_plan(path)
    if not is_file(path):
        raise ArtifactError(
            f"{path} {what_is_there(path)}. Give a checkpoint (.pth), an exported .onnx or a plan (.engine)."
        )
    if suffix == ONNX_SUFFIX:
        return open_onnx(path)
    if suffix in _NO_ARTIFACT_SUFFIXES:
        raise ArtifactError(
            f"{path} is no artifact to compare, inspect or measure. Give a checkpoint (.pth), an exported .onnx or a plan "
            "(.engine)."
        )
    return Checkpoint(path)


def open_runnable(artifact: str | os.PathLike[str] | Runnable) -> Runnable:
    """What `open_artifact` gives, if it is of a kind that can be run; one that is open already is handed on.

    Raises ArtifactError, PlanMismatchError.
    """
    if isinstance(artifact, Runnable):
        return artifact
    path = Path(artifact)
    suffix = path.suffix.lower()
    if suffix not in (ONNX_SUFFIX, *PLAN_SUFFIXES):
        hint = f" Export it first: yolact-deploy export {path} -o {path.stem}.onnx"
        raise ArtifactError(
            f"{path} is neither {ONNX_SUFFIX} nor {' or '.join(PLAN_SUFFIXES)}: it can't be run."
            f"{hint if suffix in CHECKPOINT_SUFFIXES else ''}"
        )
    opened = open_artifact(path)
    assert not isinstance(opened, Checkpoint)
    return opened


def inspect_plan(plan: str | os.PathLike[str] | PlanFile) -> dict[str, Any]:
    """The sidecar's facts, and the layers where their file is beside the plan (else `layers` is None).

    Needs no TensorRT. Raises PlanMismatchError when the plan and its sidecar do not belong together.
    """
    file = open_plan(plan)
    layers = file.layers()
    return {
        "kind": "plan",
        "path": str(file.path),
        **file.sidecar.to_dict(),
        "layers": None if layers is None else {**_layer_counts(layers), **encode(layers)},
    }


def inspect_onnx(path: str | os.PathLike[str] | OnnxFile) -> dict[str, Any]:
    """What an ONNX file holds. A file that is not from yolact-deploy has `spec` None; `spec_error` says what is wrong.

    Raises ArtifactError when the file can't be read as ONNX.
    """
    graph = open_onnx(path)
    operators = Counter(node.operator for node in graph.nodes)
    spec, spec_error = _spec(graph)
    return {
        "kind": "onnx",
        "path": str(graph.path),
        "bytes": graph.num_bytes,
        "sha256": graph.sha256,
        "precision": graph.precision,
        "weights": _WEIGHTS[graph.weights_are_as_exported],
        "weights_sha256": graph.weights.sha256,
        "opsets": dict(graph.opsets),
        "ir_version": graph.ir_version,
        "producer": graph.producer,
        "io_tensors": [encode(tensor) for tensor in graph.io_tensors],
        "num_parameters": graph.num_parameters,
        "node_counts": _descending(operators),
        "module_counts": _descending(Counter(_top_modules(graph.modules.values()))),
        "num_quantize": operators[QUANTIZE],
        "num_dequantize": operators[DEQUANTIZE],
        "mask_iou_bytes": len(graph.metadata.get(MASK_IOU_METADATA_KEY, "")) * 3 // 4,  # base64
        "metadata": {key: value for key, value in graph.metadata.items() if key not in _LARGE_METADATA},
        "notes": list(graph.weights_notes),
        "spec": spec,
        "spec_error": spec_error,
    }


def _spec(graph: OnnxFile) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return graph.spec.to_dict(), None
    except SpecError as exc:
        return None, str(exc)


def _layer_counts(layers: Layers) -> dict[str, dict[str, int]]:
    listed = layers.layers
    return {
        "kind_counts": _descending(Counter(layer.kind for layer in listed)),
        "dtype_counts": _descending(Counter(output.dtype for layer in listed for output in layer.outputs)),
        "module_counts": _descending(Counter(_top_modules(module for layer in listed for module in layer.modules))),
    }


def _top_modules(modules: Iterable[str]) -> list[str]:
    return [module.partition(".")[0] for module in modules]


def _descending(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())
