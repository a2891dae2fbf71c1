"""The artifacts that a comparison takes, opened alike, and what it found of them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporters.matching import Matches, agreement_quality
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import CpuPrecision
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.open import Checkpoint, Runnable, open_artifact
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import EngineError, SpecError
from yolact_deploy.optional import require
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.runtime.detector import Detector
from yolact_deploy.runtime.host import HostPipeline
from yolact_deploy.runtime.openvino.library import CPU
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec, ResizeMode

if TYPE_CHECKING:
    from exporters.comparison.layers import LayerComparison

Kind = Literal["checkpoint", "onnx", "plan"]
_OPENVINO = "OpenVINO"  # begins a description


@dataclass(frozen=True)
class ArtifactInfo:
    """One of the two that are compared."""

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
    file: Runnable | None = None  # None: a checkpoint
    device: str = "cpu"  # of onnxruntime, or as OpenVINO names it
    cpu_precision: CpuPrecision = "f32"

    @property
    def runs_in_openvino(self) -> bool:
        """Whether it is an ONNX that OpenVINO runs."""
        return self.info.backend.startswith(_OPENVINO)


def open_side(
    path: str | os.PathLike[str], *, spec_file: Path | None = None, config: str | None = None, **options: Any
) -> Side:
    """Open an artifact by its suffix: .onnx, .engine or .plan, else a checkpoint, whose spec the two options may give; `options`
    are Detector's.

    Raises ArtifactError, CheckpointError, SpecError, EngineError (a plan that can't be run here), MissingDependencyError.
    """
    artifact = open_artifact(path)
    if isinstance(artifact, Checkpoint):
        return _open_checkpoint(artifact, spec_file, config)
    try:
        return _of_detector(Detector(artifact, **options))
    except EngineError as exc:
        if not isinstance(artifact, PlanFile):
            raise
        raise type(exc)(  # of the same exit code
            f"{exc} For a comparison that ONNX is as good: what it computes in {artifact.precision} was decided there."
        ) from exc


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


def _of_detector(detector: Detector) -> Side:
    spec = dataclasses.replace(detector.spec, conf_activation="softmax")
    info = ArtifactInfo(**detector.file.describe(), model=spec.name, backend=detector.description)
    notes = detector.file.weights_notes if isinstance(detector.file, OnnxFile) else ()
    asked = detector.arguments
    device = "cpu" if detector.gpu_index is None else f"cuda:{detector.gpu_index}"
    if detector.description.startswith(_OPENVINO):
        device = asked["device"].partition(":")[2] if asked["device"].startswith("openvino:") else CPU
    return Side(
        info, spec, detector.run_network, detector.assemble, notes, detector.file, device, asked["cpu_precision"]
    )


def _open_checkpoint(checkpoint: Checkpoint, spec_file: Path | None, config: str | None) -> Side:
    require("torch", extra="export", purpose="running a checkpoint")
    from exporters.checkpoints.checkpoint import build_model, load_checkpoint
    from exporters.network.yolact import TorchNetwork

    loaded = load_checkpoint(checkpoint.path, spec_file=spec_file, config=config)
    pipeline = HostPipeline(TorchNetwork(build_model(loaded), loaded.spec))
    spec = dataclasses.replace(loaded.spec, conf_activation="softmax")
    info = ArtifactInfo(**checkpoint.describe(), model=spec.name, backend=pipeline.description)
    return Side(info, spec, pipeline.run_network, pipeline.assemble, loaded.notes)


@dataclass(frozen=True)
class OutputDifference:
    """One head tensor over all images. Where a value of either side is NaN or infinite, there are no errors: they are NaN."""

    name: str
    shape: tuple[int, ...]  # without the batch
    max_abs_error: float
    relative_l2: float  # |A - B| / |A|, over the values of all images
    cosine: float
    non_finite_a: int
    non_finite_b: int
    worst_image: str  # of the largest error; where it is not comparable, the first such

    @property
    def comparable(self) -> bool:
        """Whether all values of both sides are numbers."""
        return not (self.non_finite_a or self.non_finite_b)


@dataclass(frozen=True)
class Agreement:
    """How far two sets of detections are the same objects with the same masks."""

    detections_a: int  # above the score threshold
    detections_b: int
    matched: int  # same class, box IoU of at least 0.5
    mask_iou_sum: float  # of the matched
    min_mask_iou: float | None  # None without matches
    max_score_difference: float | None  # of the matched

    @property
    def only_a(self) -> int:
        """Detections of A that B does not have."""
        return self.detections_a - self.matched

    @property
    def only_b(self) -> int:
        """Detections of B that A does not have."""
        return self.detections_b - self.matched

    @property
    def mean_mask_iou(self) -> float | None:
        """Of matched detections, 0 to 1; None where none matched."""
        return self.mask_iou_sum / self.matched if self.matched else None

    @property
    def quality(self) -> float:
        """1 where all is the same, 0 where nothing is."""
        return agreement_quality(self.mask_iou_sum, self.matched, self.only_a + self.only_b)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "quality": self.quality,
            "detections_a": self.detections_a,
            "detections_b": self.detections_b,
            "matched": self.matched,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "mean_mask_iou": self.mean_mask_iou,
            "min_mask_iou": self.min_mask_iou,
            "max_score_difference": self.max_score_difference,
        }

    @staticmethod
    def total(parts: list[Agreement]) -> Agreement:
        """Of several images together."""
        ious = [part.min_mask_iou for part in parts if part.min_mask_iou is not None]
        scores = [part.max_score_difference for part in parts if part.max_score_difference is not None]
        return Agreement(
            detections_a=sum(part.detections_a for part in parts),
            detections_b=sum(part.detections_b for part in parts),
            matched=sum(part.matched for part in parts),
            mask_iou_sum=math.fsum(part.mask_iou_sum for part in parts),
            min_mask_iou=min(ious, default=None),
            max_score_difference=max(scores, default=None),
        )


@dataclass(frozen=True)
class ImageComparison:
    """How the two differ in one image."""

    image: str
    image_hw: tuple[int, int]
    agreement: Agreement
    relative_l2: dict[str, float]  # per output

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "image": self.image,
            "image_hw": list(self.image_hw),
            **self.agreement.to_dict(),
            "relative_l2": self.relative_l2,
        }


@dataclass(frozen=True)
class ApComparison:
    """COCO's figures on a scale of 0 to 1, as `evaluate` gives them; -1 where the annotations have no such object."""

    images: int  # of the compared ones, those that are annotated
    a: dict[str, dict[str, float]]  # "bbox" and "segm" -> AP, AP50, ...
    b: dict[str, dict[str, float]]

    @property
    def difference(self) -> dict[str, dict[str, float | None]]:
        """B - A; None where either has no figure."""
        return {
            kind: {
                name: self.b[kind][name] - value if value >= 0 and self.b[kind][name] >= 0 else None
                for name, value in figures.items()
            }
            for kind, figures in self.a.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"images": self.images, "a": self.a, "b": self.b, "difference": self.difference}


@dataclass(frozen=True, eq=False)
class Example:
    """An image with what both saw in it, to be drawn."""

    comparison: ImageComparison
    image: Image  # uint8 [H, W, 3] BGR
    a: RawDetections  # above the score threshold
    b: RawDetections
    matches: Matches


@dataclass(frozen=True, eq=False)
class CompareReport:
    """What `compare` found."""

    a: ArtifactInfo
    b: ArtifactInfo
    class_names: tuple[str, ...]
    input_size: int
    score_threshold: float
    outputs: tuple[OutputDifference, ...]
    images: tuple[ImageComparison, ...]
    ap: ApComparison | None  # None without annotations
    skipped: tuple[tuple[str, str], ...]  # image and reason
    notes: tuple[str, ...]
    examples: tuple[Example, ...]  # the worst images, worst first; not part of `to_dict`
    resize: tuple[ResizeMode, ResizeMode] = ("stretch", "stretch")  # of A and B, for drawing their examples
    layers: LayerComparison | None = None  # None: not asked for

    @property
    def passed(self) -> bool:
        """Whether the two could be compared: every value of every head tensor is a number. How far they may differ is not for
        here to say."""
        return all(output.comparable for output in self.outputs)

    @property
    def verdict(self) -> str | None:
        """Why it is not `passed`, in one line."""
        broken = [output for output in self.outputs if not output.comparable]
        if not broken:
            return None
        of = {"A": any(output.non_finite_a for output in broken), "B": any(output.non_finite_b for output in broken)}
        names = ", ".join(output.name for output in broken)
        return (
            f"not comparable: {' and '.join(side for side in of if of[side])} gave NaN or infinite values in {names}."
        )

    @property
    def agreement(self) -> Agreement:
        """Over all images."""
        return Agreement.total([image.agreement for image in self.images])

    @property
    def worst_first(self) -> list[ImageComparison]:
        """Images in order of agreement, the lowest first."""
        return sorted(self.images, key=lambda image: image.agreement.quality)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; figures that are not finite are null."""
        described = {
            "schema": 1,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "input_size": self.input_size,
            "score_threshold": self.score_threshold,
            "num_images": len(self.images),
            "passed": self.passed,
            "verdict": self.verdict,
            "outputs": [
                {**asdict(output), "shape": list(output.shape), "comparable": output.comparable}
                for output in self.outputs
            ],
            "agreement": self.agreement.to_dict(),
            "ap": None if self.ap is None else self.ap.to_dict(),
            "layers": None if self.layers is None else self.layers.to_dict(),
            "images": [image.to_dict() for image in self.images],
            "skipped": [{"image": image, "reason": reason} for image, reason in self.skipped],
            "notes": list(self.notes),
        }
        finite: dict[str, Any] = _finite(described)
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
