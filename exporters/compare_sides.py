"""The artifacts that `compare` takes, opened alike: a checkpoint in PyTorch, an ONNX or a plan in the runtime."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yolact_deploy.arrays import FloatArray
from yolact_deploy.detections import Detections, RawDetections
from yolact_deploy.errors import ArtifactError, EngineError, SpecError
from yolact_deploy.files import sha256_file
from yolact_deploy.mask_iou import rescore_masks
from yolact_deploy.optional import require
from yolact_deploy.postprocess import assemble_masks, softmax
from yolact_deploy.runtime.detector import PLAN_SUFFIXES, Detector
from yolact_deploy.runtime.network import HeadTensors
from yolact_deploy.sidecar import verify_plan
from yolact_deploy.spec import ModelSpec

Kind = Literal["checkpoint", "onnx", "plan"]

_NO_ARTIFACT_SUFFIXES = (".json", ".jpg", ".png", ".yaml", ".yml", ".txt", ".html")


@dataclass(frozen=True)
class ArtifactInfo:
    path: str
    kind: Kind
    precision: str  # fp32, fp16 or int8; of an ONNX, what its nodes and weights are
    sha256: str
    size_bytes: int
    model: str  # the spec's name
    backend: str  # what ran it, for people


@dataclass(frozen=True)
class Side:
    """One of the two, ready to run. `spec.conf_activation` is softmax, as `run` always gives scores."""

    info: ArtifactInfo
    spec: ModelSpec
    run: Callable[[FloatArray], HeadTensors]  # of a preprocessed batch [B, 3, S, S]
    # Detections at an image's height and width whose box scores are above a threshold; scored masks of a YOLACT++.
    assemble: Callable[[RawDetections, tuple[int, int], float], Detections]
    notes: tuple[str, ...] = ()


def open_side(
    path: str | os.PathLike[str], *, spec_file: Path | None = None, config: str | None = None, device: str = "auto"
) -> Side:
    """Open an artifact by its suffix: .onnx, .engine or .plan, else a checkpoint, whose spec the two options may give.

    Raises ArtifactError, CheckpointError, SpecError, EngineError (a plan that can't be run here), MissingDependencyError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {found}. Give a checkpoint (.pth), an exported .onnx or a plan (.engine).")
    if suffix in _NO_ARTIFACT_SUFFIXES:
        raise ArtifactError(
            f"{path} is no artifact to compare. Give a checkpoint (.pth), an .onnx or a plan (.engine)."
        )
    if suffix in PLAN_SUFFIXES:
        return _open_plan(path, device)
    if suffix == ".onnx":
        return _of_detector(Detector(path, device=device), "onnx", _onnx_precision(path))
    return _open_checkpoint(path, spec_file, config)


def check_comparable(a: Side, b: Side) -> None:
    """Raise SpecError at the first thing that keeps two models from being compared, with both values."""
    first, second = a.spec, b.spec
    _require_equal(a, b, "input size", first.input_size, second.input_size)
    _require_equal(a, b, "number of classes", first.num_classes, second.num_classes)
    for index, names in enumerate(zip(first.class_names, second.class_names, strict=True)):
        _require_equal(a, b, f"name of class {index}", *map(repr, names))
    for index, ids in enumerate(zip(first.category_ids, second.category_ids, strict=True)):
        _require_equal(a, b, f"category id of class {index} ({first.class_names[index]})", *ids)
    shapes = second.output_shapes()
    for name, shape in first.output_shapes().items():
        _require_equal(a, b, f"shape of the output {name}", list(shape), list(shapes[name]))


def differing_rules(a: Side, b: Side) -> list[str]:
    """Notes on how the two turn images into tensors and tensors into detections, where that is not alike."""
    notes = []
    for part in ("preprocess", "priors", "postprocess"):
        first, second = (dataclasses.asdict(getattr(side.spec, part)) for side in (a, b))
        notes += [
            f"{part}.{name} differs: A has {value}, B has {second[name]}; each is run by its own."
            for name, value in first.items()
            if second[name] != value
        ]
    return notes


def _require_equal(a: Side, b: Side, what: str, first: Any, second: Any) -> None:
    if first != second:
        raise SpecError(
            f"{a.info.path} and {b.info.path} can't be compared: the {what} is {first} in the first and {second} in the "
            "second. Compare artifacts of one model, or export both from checkpoints that were trained alike."
        )


def _open_plan(path: Path, device: str) -> Side:
    sidecar = verify_plan(path)
    try:
        detector = Detector(path, device=device)
    except EngineError as exc:
        raise type(exc)(  # of the same exit code
            f"{exc} For a comparison that ONNX is as good: what it computes in {sidecar.precision} was decided there."
        ) from exc
    return _of_detector(detector, "plan", sidecar.precision)


def _of_detector(detector: Detector, kind: Kind, precision: str) -> Side:
    spec = dataclasses.replace(detector.spec, conf_activation="softmax")
    info = _info(detector.artifact, kind, precision, spec, detector.description)
    return Side(info, spec, detector.run_network, detector.assemble)


def _open_checkpoint(path: Path, spec_file: Path | None, config: str | None) -> Side:
    torch = require("torch", extra="export", purpose="running a checkpoint")
    from exporters.checkpoint import build_model, load_checkpoint

    loaded = load_checkpoint(path, spec_file=spec_file, config=config)
    model = build_model(loaded)

    def run(batch: FloatArray) -> HeadTensors:
        with torch.inference_mode():
            heads = HeadTensors(*(tensor.numpy() for tensor in model(torch.from_numpy(batch))))
        return heads if loaded.spec.conf_activation == "softmax" else heads._replace(conf=softmax(heads.conf))

    def judge(masks: FloatArray) -> FloatArray:
        with torch.inference_mode():
            judged: FloatArray = model.get_submodule("maskiou_net")(torch.from_numpy(masks)).numpy()
        return judged

    def assemble(raw: RawDetections, image_hw: tuple[int, int], score_threshold: float) -> Detections:
        detections = assemble_masks(raw, image_hw, score_threshold=score_threshold, resize=spec.preprocess.resize)
        if spec.mask_iou_layers:
            detections = rescore_masks(detections, judge)
        return dataclasses.replace(detections, names=spec.class_names, category_ids=spec.category_ids)

    spec = dataclasses.replace(loaded.spec, conf_activation="softmax")
    info = _info(path, "checkpoint", "fp32", spec, f"PyTorch {torch.__version__} (CPU)")
    return Side(info, spec, run, assemble, loaded.notes)


def _onnx_precision(path: Path) -> str:
    """int8 where it quantizes, else fp16 where a weight is half, else fp32: what the graph is, whatever it says it is."""
    onnx = require("onnx", extra="export", purpose="comparing ONNX files")
    graph = onnx.load(str(path), load_external_data=False).graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "fp16" if any(tensor.data_type == half for tensor in graph.initializer) else "fp32"


def _info(path: Path, kind: Kind, precision: str, spec: ModelSpec, backend: str) -> ArtifactInfo:
    return ArtifactInfo(
        path=str(path),
        kind=kind,
        precision=precision,
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        model=spec.name,
        backend=backend,
    )
