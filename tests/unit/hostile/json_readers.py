"""Every reader of JSON that others may have written, with a file it takes and the error it refuses with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gate import read_baseline
from exporters.precision.calibration import CachedCalibration, CacheKey, read_cache, write_cache
from yolact_deploy.annotations import load_annotations
from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.plan_file import BatchRange, Sidecar, read_sidecar
from yolact_deploy.errors import (
    AnnotationError,
    BenchmarkError,
    CalibrationError,
    PlanMismatchError,
    SpecError,
    YolactDeployError,
)
from yolact_deploy.spec import BackboneSpec, ModelSpec, PriorsSpec

SPEC = ModelSpec(
    name="tiny",
    input_size=32,
    backbone=BackboneSpec(kind="resnet", stages=(1,), selected_layers=(0,)),
    class_names=("disc", "bâton"),
    category_ids=(3, 9),
    priors=PriorsSpec(scales=((8.0,), (16.0,), (32.0,)), aspect_ratios=((1.0,),) * 3),
)
PLAN = b"plan" * 100
SIDECAR = Sidecar(
    spec=SPEC,
    plan_sha256=hashlib.sha256(PLAN).hexdigest(),
    plan_bytes=len(PLAN),
    runtime="tensorrt-rtx",
    runtime_version="1.7.1.116",
    targets=("sm86",),
    precision="fp16",
    batch=BatchRange(1, 2, 4),
    onnx_sha256="ab" * 32,
    onnx_name="tiny.onnx",
    io_tensors=(IoTensor("image", "input", "float32", (-1, 3, 32, 32)),),
    created="2025-01-31T12:00:00+00:00",
    yolact_deploy_version="0.1.0",
)
ANNOTATIONS: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}],
    "categories": [{"id": 3, "name": "disc"}, {"id": 9, "name": "bâton"}],
    "annotations": [
        {
            "id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0,
            "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]],
        },
        {
            "id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 5, 10], "area": 50, "iscrowd": 1,
            "segmentation": {"size": [10, 10], "counts": [0, 50, 50]},
        },
    ],
}  # fmt: skip
BASELINE: dict[str, Any] = {
    "schema": 1,
    "environment": {"cpu": "A", "cores": 2, "gpus": [], "packages": {"numpy": "1"}},
    "options": {"batch": 1, "threads": 2, "image_sizes_hw": [[480, 640]]},
    "runs": [{"artifact": "old/m.onnx", "batch": 1, "latency_ms": {"p50": 10.0}}],
}
CACHE_KEY = CacheKey("11" * 32, "22" * 32, "33" * 32, "max")


@dataclass(frozen=True)
class JsonReader:
    file_name: str
    read: Callable[[Path], Any]
    error: type[YolactDeployError]
    valid: Any  # a JSON value that it takes


def json_readers(folder: Path) -> dict[str, JsonReader]:
    """By the kind of file; `folder` is a scratch one."""
    write_cache(folder / "made.json", CACHE_KEY, CachedCalibration({"a": 1.5}, {"a": 2.0, "b": 3.0}, 4, ("x.jpg",)))
    cache = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    return {
        "spec": JsonReader("spec.json", ModelSpec.from_file, SpecError, SPEC.to_dict()),
        "sidecar": JsonReader(
            "m.engine.json", lambda path: read_sidecar(path.with_suffix("")), PlanMismatchError, SIDECAR.to_dict()
        ),
        "annotations": JsonReader("instances.json", load_annotations, AnnotationError, ANNOTATIONS),
        "baseline": JsonReader("baseline.json", read_baseline, BenchmarkError, BASELINE),
        "calibration cache": JsonReader(
            "cache.json", lambda path: read_cache(path, CACHE_KEY), CalibrationError, cache
        ),
    }


KINDS = ("spec", "sidecar", "annotations", "baseline", "calibration cache")


def comparable(value: Any) -> Any:
    """What a reader gave, in a form that can be compared: a pycocotools COCO is its dataset."""
    return value.dataset if hasattr(value, "dataset") else value


def with_names(*names: str) -> ModelSpec:
    return dataclasses.replace(SPEC, class_names=names, category_ids=tuple(range(1, len(names) + 1)))
