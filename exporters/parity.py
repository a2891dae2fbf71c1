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
import torch
from torch import nn

from yolact_deploy.arrays import FloatArray, Image, IntArray
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_iou import MaskIouModel
from yolact_deploy.reference.postprocess import assemble_masks, detect, softmax
from yolact_deploy.reference.preprocess import preprocess
from yolact_deploy.reference.priors import make_priors
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
    name: str
    max_abs_error: float
    allowed: float
    cosine: float  # similarity of the two tensors as vectors

    @property
    def passed(self) -> bool:
        return self.max_abs_error <= self.allowed  # False for NaN


@dataclass(frozen=True)
class ImageParity:
    image: str
    outputs: tuple[TensorParity, ...]
    detections: int  # found by both
    missing: int  # found by PyTorch only, clear of the score margin
    extra: int  # found by the ONNX only, clear of the score margin
    max_box_difference_px: float
    mean_mask_iou: float
    min_mask_iou: float

    def failures(self) -> list[str]:
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
    images: tuple[ImageParity, ...]
    batch: tuple[TensorParity, ...]  # a batch against its images one by one; empty where the batch is fixed at 1
    runtime: str

    @property
    def passed(self) -> bool:
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
    network = OnnxNetwork(onnx_path, device="cpu")
    images = list(images) or builtin_images()
    results: list[ImageParity] = []
    inputs: list[FloatArray] = []
    singles: list[HeadTensors] = []
    for name, image in images:
        batch = preprocess([image], spec)
        with torch.inference_mode():
            reference = HeadTensors(*(tensor.numpy() for tensor in model(torch.from_numpy(batch))))
        exported = network.run(batch)
        comparison = _compare_image(name, image, reference, exported, spec)
        if network.mask_iou is not None:
            judged = _compare_mask_iou(model, network.mask_iou, reference.proto[0])
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
    image_hw = capped_size(image.shape[:2])
    ours, theirs = detect_heads(reference, spec), detect_heads(exported, spec)
    row_in_theirs = {key: row for row, key in enumerate(detection_keys(theirs))}
    common = [(row, row_in_theirs[key]) for row, key in enumerate(detection_keys(ours)) if key in row_in_theirs]
    rows = np.array(common, np.int64).reshape(-1, 2)
    a = assemble_masks(ours.take(rows[:, 0]), image_hw)
    b = assemble_masks(theirs.take(rows[:, 1]), image_hw)
    ious = mask_ious(a, b)
    return ImageParity(
        image=name,
        outputs=_compare_tensors(reference, exported),
        detections=len(common),
        missing=clear_of_cut(ours, theirs, spec),
        extra=clear_of_cut(theirs, ours, spec),
        max_box_difference_px=float(np.abs(a.boxes_xyxy - b.boxes_xyxy).max(initial=0)),
        mean_mask_iou=float(ious.mean()) if len(ious) else 1.0,
        min_mask_iou=float(ious.min(initial=1.0)),
    )


def _compare_tensors(reference: HeadTensors, exported: HeadTensors) -> tuple[TensorParity, ...]:
    return tuple(
        compare_tensor(name, a, b) for name, a, b in zip(HeadTensors._fields, reference, exported, strict=True)
    )


def _compare_mask_iou(
    model: nn.Module,
    exported: MaskIouModel,
    proto: FloatArray,  # [Hp, Wp, K]
) -> TensorParity:
    """YOLACT++'s judge of masks, on prototypes in their place: they are there even where nothing was detected."""
    masks = np.ascontiguousarray(np.clip(proto[..., :_JUDGED_PROTOTYPES], 0, 1).transpose(2, 0, 1))
    with torch.inference_mode():
        reference: FloatArray = model.get_submodule("maskiou_net")(torch.from_numpy(masks)).numpy()
    return compare_tensor("mask_iou", reference, exported(masks))


def compare_tensor(name: str, a: FloatArray, b: FloatArray) -> TensorParity:
    """Two tensors of one shape against the bounds of this module."""
    flat_a, flat_b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    error = float(np.abs(flat_a - flat_b).max())
    allowed = max(MAX_ABS_ERROR, MAX_RELATIVE_ERROR * float(np.abs(flat_a).max()))
    norms = float(np.linalg.norm(flat_a)) * float(np.linalg.norm(flat_b))
    cosine = float(flat_a @ flat_b) / norms if norms else float(not error)
    return TensorParity(name, error, allowed, cosine)


def detection_keys(raw: RawDetections) -> list[tuple[int, int]]:
    """(class, prior) of each."""
    return list(zip(raw.class_ids.tolist(), raw.prior_idx.tolist(), strict=True))


def clear_of_cut(found: RawDetections, other: RawDetections, spec: ModelSpec) -> int:
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


# COCO's and the field's own bar for "the same object".
MIN_BOX_IOU = 0.5
# Masks are compared at the image's size, but not larger than this: 100 masks of a 20-megapixel image are 2 GB.
MAX_SIDE_PX = 640


@dataclass(frozen=True)
class Matches:
    """Pairs of the same object in two lists of detections; every row is in at most one pair."""

    rows_a: IntArray  # [m], in the order of A's scores
    rows_b: IntArray  # [m]
    box_ious: FloatArray  # [m]
    only_a: IntArray  # rows without a partner, best first
    only_b: IntArray


def detect_heads(heads: HeadTensors, spec: ModelSpec) -> RawDetections:
    """Detections of the first image of a batch by the spec's own thresholds and NMS."""
    rules = spec.postprocess
    conf = heads.conf if spec.conf_activation == "softmax" else softmax(heads.conf)
    return detect(
        heads.loc,
        conf,
        heads.mask_coeff,
        heads.proto,
        make_priors(spec),
        nms=rules.nms,
        conf_threshold=rules.conf_threshold,
        iou_threshold=rules.iou_threshold,
        top_k=rules.top_k,
        max_detections=rules.max_detections,
        input_size=spec.input_size,
        clip_boxes=rules.clip_boxes,
    )[0]


def match_detections(a: Detections, b: Detections, *, min_box_iou: float = MIN_BOX_IOU) -> Matches:
    """Each of A's detections, best first, takes the free one of B of its class whose box overlaps most.

    Boxes are the exact relative ones; a pair needs an IoU of at least `min_box_iou`.
    """
    ious = box_ious(a.boxes_relative, b.boxes_relative)
    ious[a.class_ids[:, None] != b.class_ids[None, :]] = -1
    rows_a, rows_b, kept = [], [], []
    for row in range(len(a) if len(b) else 0):
        partner = int(ious[row].argmax())
        if ious[row, partner] >= min_box_iou:
            rows_a.append(row)
            rows_b.append(partner)
            kept.append(ious[row, partner])
            ious[:, partner] = -1
    return Matches(
        rows_a=np.array(rows_a, np.int64),
        rows_b=np.array(rows_b, np.int64),
        box_ious=np.array(kept, np.float32),
        only_a=np.setdiff1d(np.arange(len(a)), rows_a).astype(np.int64),
        only_b=np.setdiff1d(np.arange(len(b)), rows_b).astype(np.int64),
    )


def box_ious(
    a: FloatArray,  # [n, 4] x1 y1 x2 y2
    b: FloatArray,  # [m, 4]
) -> FloatArray:  # [n, m]
    """Of every pair; 0 for boxes without area or with NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        upper = np.minimum(a[:, None, 2:], b[None, :, 2:])
        lower = np.maximum(a[:, None, :2], b[None, :, :2])
        shared = (upper - lower).clip(min=0).prod(axis=-1)
        area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=-1) for box in (a, b))
        union = area_a[:, None] + area_b[None, :] - shared
        ious = np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
    return np.nan_to_num(ious, nan=0.0, posinf=0.0).astype(np.float32)


def mask_ious(a: Detections, b: Detections) -> FloatArray:
    """Of masks at the same position; two empty masks are equal."""
    axes = (1, 2)
    intersection, union = (a.masks & b.masks).sum(axes), (a.masks | b.masks).sum(axes)
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0).astype(np.float32)


def capped_size(image_hw: tuple[int, ...]) -> tuple[int, int]:
    """The size at which an image's masks are compared: its own, at most MAX_SIDE_PX on the longer side."""
    scale = min(1.0, MAX_SIDE_PX / max(image_hw[:2]))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))
