"""What a lower precision costs: AP against annotations or, without them, agreement with the float32 model's detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from exporters.matching import agreement_quality, capped_size, mask_ious, match_detections
from yolact_deploy.artifacts.names import CpuPrecision, OnnxRuntimeChoice, Progress
from yolact_deploy.errors import AnnotationError, CalibrationError, ImageError
from yolact_deploy.evaluation import evaluate
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.images import read_image
from yolact_deploy.reference.postprocess import assemble_masks
from yolact_deploy.runtime.detector import Detector

DEFAULT_MAX_AP_DROP = 0.5  # points of 100
# Without annotations. On the trained example INT8 within 0.5 point of AP agrees to 97.6 to 98.3 of 100, FP16 to 99.98.
DEFAULT_MIN_AGREEMENT = 95.0
CONFIDENT_SCORE = 0.3  # detections that a user would see
# What one model finds confidently, the other must find with at least this: a score next to a threshold is no disagreement.
FOUND_SCORE = 0.15


@dataclass(frozen=True)
class Accuracy:
    """AP over IoU 0.5 to 0.95, in points of 100."""

    box_ap: float
    mask_ap: float


@dataclass(frozen=True)
class Agreement:
    """How alike the confident detections of two models are."""

    matched: int
    missing: int  # confident in the reference, not found by the other
    extra: int  # confident in the other, not found by the reference
    mask_iou: float  # mean over the matched, 0 to 1

    @property
    def score(self) -> float:
        """0 to 100: the matched masks' IoU over all detections."""
        return 100 * agreement_quality(self.mask_iou * self.matched, self.matched, self.missing + self.extra)


@dataclass(frozen=True)
class Verdict:
    """One model measured against the float32 one."""

    passed: bool
    drop: float  # points of AP, the worse of box and mask; or points of agreement below 100
    allowed: float
    accuracy: Accuracy | None  # with annotations
    agreement: Agreement | None  # without

    @property
    def limit(self) -> str:
        """What is asked of the model, for people."""
        if self.accuracy is not None:
            return f"at most {self.allowed:g} point{'' if self.allowed == 1 else 's'} of AP lost"
        return f"at least {100 - self.allowed:g} of 100 agreement"

    def describe(self) -> str:
        """In a line, for people."""
        if self.accuracy is not None:
            return (
                f"{self.drop:.2f} points of AP lost (box {self.accuracy.box_ap:.2f}, mask {self.accuracy.mask_ap:.2f})"
            )
        return f"{100 - self.drop:.1f} of 100 agreement with the float32 detections"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        content = {**dataclasses.asdict(self), "limit": self.limit}
        if self.agreement is not None:
            content["agreement"]["score"] = self.agreement.score
        return content


class Judge(Protocol):
    """Measures models against one float32 reference."""

    @property
    def reference(self) -> Accuracy | None:
        """AP of the float32 model; None where it judges by agreement."""
        ...

    def __call__(self, model: Path, label: str) -> Verdict: ...


class ApJudge:
    """Box and mask AP on annotated images.

    Raises AnnotationError or ImageError when they can't be used, AnnotationError where the float32 model has no AP to lose.
    """

    def __init__(
        self,
        fp32: Path,
        images: Path,  # the folder of the annotations' file names
        annotations: Path,
        *,
        max_ap_drop: float = DEFAULT_MAX_AP_DROP,
        limit: int | None = None,
        runtime: OnnxRuntimeChoice = "auto",
        cpu_precision: CpuPrecision = "f32",  # of the models that are judged
        progress: Progress | None = None,
    ) -> None:
        self._images, self._annotations, self._limit, self._progress = images, annotations, limit, progress
        self._runtime, self._cpu_precision = runtime, cpu_precision
        self._max_ap_drop = max_ap_drop
        self.reference: Accuracy = self._measure(fp32, "fp32", "f32")
        found = (self.reference.box_ap, self.reference.mask_ap)
        if not min(found) > 0:  # -1 without annotated objects
            first = "" if limit is None else f"the first {limit} images of "
            box, mask = (f"{ap:.2f}" if ap >= 0 else "none" for ap in found)
            raise AnnotationError(
                f"{first}{annotations} can't tell what is lost: the float32 model {fp32} has no AP on them (box {box}, mask "
                f"{mask}). Give images with annotated objects of the model's classes, under the model's category ids, and "
                "a model that finds them."
            )

    def __call__(self, model: Path, label: str) -> Verdict:
        accuracy = self._measure(model, label, self._cpu_precision)
        drop = max(self.reference.box_ap - accuracy.box_ap, self.reference.mask_ap - accuracy.mask_ap)
        return Verdict(drop <= self._max_ap_drop, drop, self._max_ap_drop, accuracy, None)

    def _measure(self, model: Path, label: str, cpu_precision: CpuPrecision) -> Accuracy:
        progress = self._progress

        def step(done: int, total: int) -> None:
            if progress is not None:
                progress(f"measuring the AP of {label}", done, total)

        found = evaluate(
            model,
            self._images,
            self._annotations,
            limit=self._limit,
            device="cpu",
            runtime=self._runtime,
            cpu_precision=cpu_precision,
            progress=step,
        )
        return Accuracy(100 * found["bbox"]["AP"], 100 * found["segm"]["AP"])


class AgreementJudge:
    """Agreement with the float32 detections on images without annotations."""

    def __init__(
        self,
        fp32: Path,
        images: Sequence[Path],
        *,
        min_agreement: float = DEFAULT_MIN_AGREEMENT,
        runtime: OnnxRuntimeChoice = "auto",
        cpu_precision: CpuPrecision = "f32",  # of the models that are judged
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        self._runtime, self._cpu_precision = runtime, cpu_precision
        self._allowed = 100 - min_agreement
        self._images = [path for path in images if _is_readable(path)]
        if not self._images:
            found = f"none of the {len(images)} sample images can be read" if images else "no images were given"
            raise CalibrationError(
                f"{found}: without annotations, lower precision is judged by how its detections on images agree with those "
                "of float32. Give a folder of images (--calib DIR), or --annotations with --images."
            )
        self.reference: Accuracy | None = None
        self._expected = self._detect(fp32, "fp32", "f32")
        if not any((found.scores >= CONFIDENT_SCORE).any() for found in self._expected):
            raise CalibrationError(
                f"the float32 model finds nothing with a score of {CONFIDENT_SCORE} or more on the {len(self._images)} sample "
                "images, so there is nothing to compare with. Give images that show its classes, or annotations."
            )

    def __call__(self, model: Path, label: str) -> Verdict:
        found = self._detect(model, label, self._cpu_precision)
        parts = [compare_detections(a, b) for a, b in zip(self._expected, found, strict=True)]
        matched = sum(part.matched for part in parts)
        agreement = Agreement(
            matched=matched,
            missing=sum(part.missing for part in parts),
            extra=sum(part.extra for part in parts),
            mask_iou=sum(part.mask_iou * part.matched for part in parts) / max(matched, 1),
        )
        drop = 100 - agreement.score
        return Verdict(drop <= self._allowed, drop, self._allowed, None, agreement)

    def _detect(self, model: Path, label: str, cpu_precision: CpuPrecision) -> list[Detections]:
        detector = Detector(model, device="cpu", runtime=self._runtime, cpu_precision=cpu_precision)
        found: list[Detections] = []
        for number, path in enumerate(self._images):
            if self._progress is not None:
                self._progress(f"comparing the detections of {label}", number, len(self._images))
            found.append(detector(path, score_threshold=FOUND_SCORE))
        return found


def compare_detections(
    reference: Detections,
    other: Detections,  # of the same image
) -> Agreement:
    """Objects that both find, by class and box, and how alike their masks are; counted when either is confident."""
    pairs = match_detections(reference, other)
    confident = reference.scores >= CONFIDENT_SCORE
    confident_other = other.scores >= CONFIDENT_SCORE
    counted = confident[pairs.rows_a] | confident_other[pairs.rows_b]
    image_hw = capped_size(reference.image_hw)
    ious = mask_ious(
        assemble_masks(reference.raw.take(pairs.rows_a[counted]), image_hw),
        assemble_masks(other.raw.take(pairs.rows_b[counted]), image_hw),
    )
    return Agreement(
        matched=len(ious),
        missing=int(confident[pairs.only_a].sum()),
        extra=int(confident_other[pairs.only_b].sum()),
        mask_iou=float(ious.mean()) if len(ious) else 0.0,
    )


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except ImageError:
        return False
    return True
