"""What a comparison of two artifacts found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from exporters.agreement import Matches
from exporters.compare_sides import ArtifactInfo
from yolact_deploy.arrays import Image
from yolact_deploy.detections import RawDetections
from yolact_deploy.spec import ResizeMode


@dataclass(frozen=True)
class OutputDifference:
    """One head tensor over all images. Values that are not finite on either side are counted and left out."""

    name: str
    shape: tuple[int, ...]  # without the batch
    max_abs_error: float
    relative_l2: float  # |A - B| / |A|, over the values of all images
    cosine: float
    non_finite_a: int
    non_finite_b: int
    worst_image: str  # of the largest error


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
        return self.detections_a - self.matched

    @property
    def only_b(self) -> int:
        return self.detections_b - self.matched

    @property
    def mean_mask_iou(self) -> float | None:
        return self.mask_iou_sum / self.matched if self.matched else None

    @property
    def quality(self) -> float:
        """1 where all is the same, 0 where nothing is: the mask IoU of matches, shared out over all detections of both.

        The formula of panoptic quality (Kirillov et al. 2019, section 4) with A in the place of the ground truth.
        """
        total = self.matched + (self.only_a + self.only_b) / 2
        return self.mask_iou_sum / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
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
    image: str
    image_hw: tuple[int, int]
    agreement: Agreement
    relative_l2: dict[str, float]  # per output

    def to_dict(self) -> dict[str, Any]:
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

    @property
    def agreement(self) -> Agreement:
        """Over all images."""
        return Agreement.total([image.agreement for image in self.images])

    @property
    def worst_first(self) -> list[ImageComparison]:
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
            "outputs": [{**asdict(output), "shape": list(output.shape)} for output in self.outputs],
            "agreement": self.agreement.to_dict(),
            "ap": None if self.ap is None else self.ap.to_dict(),
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
