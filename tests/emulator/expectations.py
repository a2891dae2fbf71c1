"""What the kernels are compared with: inputs with many ties, and the NumPy reference.

Values are multiples of powers of two wherever a sum of products must not depend on its order.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.figures.scenes import opencv_resize as opencv_resize
from tests.emulator.pipeline import Found, Pipeline, Runner
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.detections import RawDetections
from yolact_deploy.reference.mask_sources import unpack_mask_words
from yolact_deploy.reference.masks import PrototypeMasks
from yolact_deploy.reference.postprocess import assemble_masks, detect, softmax

Array = npt.NDArray[Any]
Build: TypeAlias = Callable[..., Runner]  # (specialization, build="plain")

SMALL = Specialization(num_classes=3, num_coeff=4, top_k=6, max_detections=5)
WIDE = Specialization(num_classes=40, num_coeff=8)  # a row in two registers, vector loads of prototypes
CROSS = Specialization(num_classes=40, num_coeff=4, top_k=6, cross_class=True)
LOGITS = Specialization(num_classes=80, num_coeff=4, conf_logits=True)
MANY_LOGITS = Specialization(num_classes=160, num_coeff=4, top_k=1000, conf_logits=True)
CLIPPED = Specialization(num_classes=3, num_coeff=4, top_k=6, max_detections=5, clip_boxes=True)
PADDED = Specialization(num_classes=3, num_coeff=4, top_k=6, max_detections=5, pad=True)
HALF = Specialization(
    num_classes=3, num_coeff=16, loc_fp16=True, conf_fp16=True, coeff_fp16=True, proto_fp16=True, input_fp16=True
)


def heads(
    seed: int,
    specialization: Specialization,
    *,
    priors: int,
    batch: int = 1,
    proto_hw: tuple[int, int] = (9, 7),
    levels: int = 64,  # distinct scores
    spread: float = 1.0,  # of the boxes' centres
    rate: float = 0.6,  # of priors above the threshold
) -> dict[str, Any]:
    """Head tensors with many ties in their scores, as `detect` takes them."""
    rng = np.random.default_rng(seed)
    classes, coefficients = specialization.num_classes, specialization.num_coeff
    conf = (rng.integers(0, levels, (batch, priors, 1 + classes)) / levels).astype(np.float32)
    conf[..., 1:] *= (rng.random((batch, priors, 1)) < rate).astype(np.float32)
    if specialization.conf_logits:
        conf = (rng.standard_normal((batch, priors, 1 + classes)) * 3).astype(np.float32)
    prior = rng.random((priors, 4)) * [spread, spread, 0.5, 0.5]
    return {
        "loc": quantised(rng.standard_normal((batch, priors, 4))),
        "conf": conf,
        "mask_coeff": quantised(rng.uniform(-1, 1, (batch, priors, coefficients))),
        "proto": quantised(np.maximum(rng.standard_normal((batch, *proto_hw, coefficients)) * 3, 0)),
        "priors": quantised(prior),
    }


def expect_reference(
    pipeline: Pipeline,
    inputs: dict[str, Any],
    *,
    image_hw: tuple[int, int] = (45, 61),
    score_threshold: float | None = None,
) -> list[RawDetections]:
    """Detections equal to the reference's in every bit, in the same order."""
    batch = len(inputs["loc"])
    limit: dict[str, Any] = {} if score_threshold is None else {"score_threshold": score_threshold}
    found = pipeline.detect(**inputs, image_hws=[image_hw] * batch, **limit)
    wide = {name: array.astype(np.float32) for name, array in inputs.items()}
    spec = pipeline.specialization
    if spec.conf_logits:
        wide["conf"] = reference_softmax(wide["conf"])
    raws = detect(
        **wide,
        nms="cross_class" if spec.cross_class else "fast",
        top_k=spec.top_k,
        max_detections=spec.max_detections,
        clip_boxes=spec.clip_boxes,
    )
    if score_threshold is not None:
        raws = [raw.take(np.flatnonzero(raw.scores > np.float32(score_threshold))) for raw in raws]
    for one, raw in zip(found, raws, strict=True):
        expect_detections(one, raw, image_hw, pad=spec.pad)
    return raws


def expect_detections(found: Found, raw: RawDetections, image_hw: tuple[int, int], *, pad: bool = False) -> None:
    np.testing.assert_array_equal(found.prior_idx, raw.prior_idx)
    np.testing.assert_array_equal(found.class_ids, raw.class_ids)
    np.testing.assert_array_equal(found.scores, raw.scores)
    np.testing.assert_array_equal(found.boxes, raw.boxes_xyxy)
    np.testing.assert_array_equal(found.coeff, raw.mask_coeff)
    placed = assemble_masks(raw, image_hw, score_threshold=-np.inf, resize="pad" if pad else "stretch")
    np.testing.assert_array_equal(found.pixel_boxes, placed.boxes_xyxy)


def expect_masks(
    pipeline: Pipeline, raws: list[RawDetections], image_hw: tuple[int, int], *, crop: bool = True
) -> list[Array]:
    """Masks of the last `detect` equal to the reference's in every pixel; bits beyond the image are 0."""
    masks = pipeline.masks(image_hw, crop=crop)
    canvas_hw = pipeline.specialization.canvas_hw(image_hw)
    for found, raw in zip(masks, raws, strict=True):
        expected = PrototypeMasks(
            raw.proto, raw.mask_coeff, raw.boxes_xyxy, image_hw, crop=crop, canvas_hw=canvas_hw
        ).dense()
        np.testing.assert_array_equal(found, expected)
    for windowed in pipeline.windowed():
        for (_, left, rows, words), start in zip(windowed.windows.tolist(), windowed.starts.tolist(), strict=True):
            every_bit = unpack_mask_words(windowed.words[start : start + rows * words].reshape(rows, words), 32 * words)
            assert not every_bit[:, image_hw[1] - left :].any()
    return masks


def coco_runs(mask: Array) -> list[int]:
    """Run lengths of a mask as COCO counts them."""
    flat = mask.reshape(-1, order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    counts: list[int] = np.diff(changes, prepend=0, append=len(flat)).tolist()
    if importlib.util.find_spec("pycocotools") is not None:  # which a bare GPU machine does not have
        from pycocotools import mask as coco_mask

        height, width = mask.shape
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"] == expected
    return counts


def reference_softmax(logits: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return softmax(logits)


def quantised(values: Array) -> Array:
    return (np.round(values * 64) / 64).astype(np.float32)


def detect_literal(
    build: Build, spec: Specialization, boxes: Sequence[tuple[float, ...]], scores: list[float]
) -> Found:
    """One class, boxes given as priors."""
    inputs = heads(0, spec, priors=len(boxes))
    inputs["loc"][...] = 0
    inputs["priors"][:] = boxes
    inputs["conf"][...] = 0
    inputs["conf"][0, :, 1] = scores
    pipeline = Pipeline(build(spec), spec)
    expect_reference(pipeline, inputs)
    found = pipeline.detect(**inputs, image_hws=[(50, 50)], score_threshold=0.0)[0]
    return found
