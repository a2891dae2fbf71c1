"""Proof that an exported ONNX computes what the PyTorch model does: head tensors, detections and masks, and any batch.

Polygraphy's OnnxrtRunner and Comparator were looked at and are not used: they judge one tensor at a time, while the
question here is whether the same objects come out, which takes this project's post-processing; what is left for them is
a subtraction, not worth a dependency of every `export`. The network runs in the very class that serves it later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from exporters.matching import capped_size, detect_heads, detection_keys, mask_ious, paired_rows
from exporters.network.yolact import TorchNetwork
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.postprocess import MaskIouModel, assemble_masks
from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

# Largest difference of a head value in float32. Another order of float32 sums moves the recorded networks by up to 6e-5.
MAX_ABS_ERROR = 1e-4
# `loc`, `proto` and logits have no bound: where a model's values are large, so are the steps between float32 numbers.
# 8e-6 of the largest value is what MAX_ABS_ERROR is to the recorded networks, whose values reach 13.
MAX_RELATIVE_ERROR = 8e-6
# Detections this close to the lowest score that is kept may come or go: both scores may be off by MAX_ABS_ERROR.
SCORE_MARGIN = 2 * MAX_ABS_ERROR
# Of the common detections, how many may come or go: an IoU within rounding of the NMS threshold falls on either side.
MAX_CHANGED = 0.02
# Boxes are truncated to whole pixels, so a coordinate next to one may fall on either side.
MAX_BOX_DIFFERENCE_PX = 1
# Of all masks of an image. One alone may lose more: a box edge on the border of two prototype cells moves a whole row.
MIN_MEAN_MASK_IOU = 0.99
_BATCH = 2
_JUDGED_PROTOTYPES = 8


@dataclass(frozen=True)
class TensorParity:
    """One output of the ONNX against PyTorch's."""

    name: str
    max_abs_error: float
    allowed: float
    cosine: float  # similarity of the two tensors as vectors

    @property
    def passed(self) -> bool:
        """Whether the largest error is allowed; NaN is not."""
        return self.max_abs_error <= self.allowed  # False for NaN


@dataclass(frozen=True)
class ImageParity:
    """Outputs and detections of one image, ONNX against PyTorch."""

    image: str
    outputs: tuple[TensorParity, ...]
    detections: int  # found by both
    missing: int  # found by PyTorch only, clear of the score margin
    extra: int  # found by the ONNX only, clear of the score margin
    max_box_difference_px: float
    mean_mask_iou: float
    min_mask_iou: float

    def failures(self) -> list[str]:
        """What is beyond the limits, in words; empty where it passed."""
        found = [_describe(output) for output in self.outputs if not output.passed]
        if self.missing + self.extra > MAX_CHANGED * self.detections:
            found.append(
                f"{self.missing} detections are missing and {self.extra} are new in the ONNX, "
                f"{self.detections} are common"
            )
        if self.max_box_difference_px > MAX_BOX_DIFFERENCE_PX:
            found.append(f"a box differs by {self.max_box_difference_px:g} pixels")
        if self.mean_mask_iou < MIN_MEAN_MASK_IOU:
            found.append(f"the masks' mean IoU is {self.mean_mask_iou:.3f}, allowed is {MIN_MEAN_MASK_IOU}")
        return [f"{self.image}: {failure}" for failure in found]


@dataclass(frozen=True)
class ParityReport:
    """What the parity check found."""

    images: tuple[ImageParity, ...]
    batch: tuple[TensorParity, ...]  # a batch against its images one by one; empty where the batch is fixed at 1
    runtime: str

    @property
    def passed(self) -> bool:
        """Whether nothing is beyond the limits."""
        return not self.failures()

    @property
    def max_abs_error(self) -> dict[str, float]:
        """Output -> largest difference over all images."""
        worst: dict[str, float] = {}
        for image in self.images:
            for output in image.outputs:
                worst[output.name] = float(np.maximum(worst.get(output.name, 0.0), output.max_abs_error))
        return worst

    def failures(self) -> list[str]:
        """One sentence for each thing that is out of tolerance."""
        found = [failure for image in self.images for failure in image.failures()]
        found += [f"batch of {_BATCH} against single images: {_describe(out)}" for out in self.batch if not out.passed]
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"passed": self.passed, "max_abs_error": self.max_abs_error, **dataclasses.asdict(self)}


def check_parity(
    model: nn.Module,
    onnx_path: Path,
    spec: ModelSpec,
    *,
    images: Sequence[tuple[str, Image]] = (),  # name and uint8 [H, W, 3] BGR; none = the built-in ones
    dynamic_batch: bool = True,
) -> ParityReport:
    """Run both on the images and compare. Whether that is good enough is `ParityReport.passed`.

    `model` is the PyTorch YOLACT of `spec`. Raises ArtifactError, SpecError or EngineError when the ONNX can't be run.
    """
    original, network = TorchNetwork(model, spec), OnnxNetwork(onnx_path, device="cpu")
    images = list(images) or builtin_images()
    results: list[ImageParity] = []
    inputs: list[FloatArray] = []
    singles: list[HeadTensors] = []
    for name, image in images:
        batch = preprocess([image], spec)
        reference = original.run(batch)
        exported = network.run(batch)
        comparison = _compare_image(name, image, reference, exported, spec)
        if original.mask_iou is not None and network.mask_iou is not None:
            judged = _compare_mask_iou(original.mask_iou, network.mask_iou, reference.proto[0])
            comparison = dataclasses.replace(comparison, outputs=(*comparison.outputs, judged))
        results.append(comparison)
        if len(inputs) < _BATCH:
            inputs.append(batch)
            singles.append(exported)
    batch_parity: tuple[TensorParity, ...] = ()
    if dynamic_batch:
        while len(inputs) < _BATCH:
            inputs.append(np.ascontiguousarray(inputs[0][..., ::-1]))
            singles.append(network.run(inputs[-1]))
        together = network.run(np.concatenate(inputs))
        apart = HeadTensors(*(np.concatenate(parts) for parts in zip(*singles, strict=True)))
        batch_parity = _compare_tensors(apart, together)
    return ParityReport(tuple(results), batch_parity, network.description)


def builtin_images() -> list[tuple[str, Image]]:
    """Two pictures of overlapping shapes on textured ground, the same on every machine, of the sizes YOLACT often meets."""
    return [(f"built-in {w}x{h}", _draw(h, w, seed)) for seed, (h, w) in enumerate([(480, 640), (500, 333)])]


def _draw(height: int, width: int, seed: int) -> Image:
    random = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([200 * x / width, 180 * y / height, 160 * (x + y) / (width + height)], axis=-1) + 30
    for _ in range(24):
        centre_y, centre_x = random.uniform(0, [height, width])
        radius_y, radius_x = random.uniform(0.03, 0.2, 2) * [height, width]
        distance = ((y - centre_y) / radius_y) ** 2, ((x - centre_x) / radius_x) ** 2
        inside = np.maximum(*distance) < 1 if random.random() < 0.5 else np.add(*distance) < 1
        stripes = (x + y) // random.integers(4, 24) % 2 == 0
        light, dark = random.uniform(0, 256, (2, 3))
        picture[inside & stripes], picture[inside & ~stripes] = light, dark
    return np.clip(picture + random.normal(0, 5, picture.shape), 0, 255).astype(np.uint8)


def _compare_image(
    name: str, image: Image, reference: HeadTensors, exported: HeadTensors, spec: ModelSpec
) -> ImageParity:
    image_hw = capped_size(image.shape)
    ours, theirs = detect_heads(reference, spec), detect_heads(exported, spec)
    rows, partners = paired_rows(ours, theirs)
    a, b = assemble_masks(ours.take(rows), image_hw), assemble_masks(theirs.take(partners), image_hw)
    return image_parity(
        name,
        _compare_tensors(reference, exported),
        (a, b),
        missing=count_above_margin(ours, theirs, spec),
        extra=count_above_margin(theirs, ours, spec),
    )


def image_parity(
    name: str,
    outputs: tuple[TensorParity, ...],
    pairs: tuple[Detections, Detections],  # what both found, row by row
    *,
    missing: int,
    extra: int,
) -> ImageParity:
    """How far the tensors and the common detections of an image are apart."""
    a, b = pairs
    ious = mask_ious(a, b)
    return ImageParity(
        image=name,
        outputs=outputs,
        detections=len(a),
        missing=missing,
        extra=extra,
        max_box_difference_px=float(np.abs(a.boxes_xyxy - b.boxes_xyxy).max(initial=0)),
        mean_mask_iou=float(ious.mean()) if len(ious) else 1.0,
        min_mask_iou=float(ious.min(initial=1.0)),
    )


def _compare_tensors(reference: HeadTensors, exported: HeadTensors) -> tuple[TensorParity, ...]:
    return tuple(
        compare_tensor(name, a, b) for name, a, b in zip(HeadTensors._fields, reference, exported, strict=True)
    )


def _compare_mask_iou(
    original: MaskIouModel,
    exported: MaskIouModel,
    proto: FloatArray,  # [Hp, Wp, K]
) -> TensorParity:
    """YOLACT++'s judge of masks, on prototypes in their place: they are there even where nothing was detected."""
    masks = np.ascontiguousarray(np.clip(proto[..., :_JUDGED_PROTOTYPES], 0, 1).transpose(2, 0, 1))
    return compare_tensor("mask_iou", original(masks), exported(masks))


def compare_tensor(name: str, a: FloatArray, b: FloatArray) -> TensorParity:
    """Two tensors of one shape against the bounds of this module."""
    flat_a, flat_b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    error = float(np.abs(flat_a - flat_b).max())
    allowed = max(MAX_ABS_ERROR, MAX_RELATIVE_ERROR * float(np.abs(flat_a).max()))
    norms = float(np.linalg.norm(flat_a)) * float(np.linalg.norm(flat_b))
    cosine = float(flat_a @ flat_b) / norms if norms else float(not error)
    return TensorParity(name, error, allowed, cosine)


def count_above_margin(found: RawDetections, other: RawDetections, spec: ModelSpec) -> int:
    """Detections that `other` lacks although their score is clear of the lowest one kept."""
    cut = spec.postprocess.conf_threshold
    if len(other) >= spec.postprocess.max_detections:
        cut = max(cut, float(other.scores.min()))
    known = set(detection_keys(other))
    scores = found.scores.tolist()
    return sum(
        score > cut + SCORE_MARGIN for key, score in zip(detection_keys(found), scores, strict=True) if key not in known
    )


def _describe(output: TensorParity) -> str:
    return f"{output.name} differs by up to {output.max_abs_error:.2e}, allowed is {output.allowed:.0e}"
