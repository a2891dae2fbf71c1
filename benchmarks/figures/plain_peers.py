"""How an exported YOLACT is run without this project: the runtime with its own defaults, and post-processing in NumPy and OpenCV.

Written as a port of the original's Detect and postprocess to NumPy is written: all classes at once, IoU over [C, 200, 200],
masks multiplied, squashed and cropped as whole planes, and each resized to the image by OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.optional import require
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.spec import ModelSpec

_SCORE_THRESHOLD, _IOU_THRESHOLD, _TOP_K, _MAX_DETECTIONS = 0.05, 0.5, 200, 100

Network = Callable[[FloatArray], list[AnyArray]]  # [1, 3, S, S] to loc, conf, mask_coeff, proto


class Found(NamedTuple):
    """Detections of one image, best first."""

    class_ids: npt.NDArray[np.int64]  # [n]
    scores: FloatArray  # [n]
    boxes_xyxy: FloatArray  # [n, 4], pixels
    masks: npt.NDArray[np.bool_]  # [n, H, W]

    def to_coco(self, image_id: int, spec: ModelSpec) -> list[dict[str, Any]]:
        """As COCO's results: boxes as x, y, width, height, masks as run lengths."""
        mask = require("pycocotools.mask", extra="export", purpose="COCO AP")
        runs = (
            mask.encode(np.asfortranarray(self.masks.transpose(1, 2, 0).astype(np.uint8))) if len(self.scores) else []
        )
        return [
            {
                "image_id": image_id,
                "category_id": spec.category_ids[class_id],
                "score": float(score),
                "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                "segmentation": {"size": each["size"], "counts": each["counts"].decode()},
            }
            for class_id, score, box, each in zip(self.class_ids, self.scores, self.boxes_xyxy, runs, strict=True)
        ]


def in_onnxruntime(artifact: Path, threads: int) -> Network:
    """A session with onnxruntime's own defaults."""
    ort = require("onnxruntime", extra="cpu", purpose="the onnxruntime peer")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])

    def run(batch: FloatArray) -> list[AnyArray]:
        heads: list[AnyArray] = session.run(list(OUTPUTS), {INPUT: batch})
        return heads

    return run


def in_openvino(artifact: Path, threads: int) -> Network:
    """A model that is compiled with OpenVINO's own defaults: on some CPUs they compute float32 in bfloat16."""
    openvino = require("openvino", extra="openvino", purpose="the OpenVINO peer")
    compiled = openvino.Core().compile_model(str(artifact), "CPU", {"INFERENCE_NUM_THREADS": threads})

    def run(batch: FloatArray) -> list[AnyArray]:
        outputs = compiled([batch])
        return [outputs[name] for name in OUTPUTS]

    return run


def detect(network: Network, spec: ModelSpec, image: Image) -> Found:
    """One image uint8 [H, W, 3] BGR, from its pixels to masks of its size."""
    loc, conf, mask_coeff, proto = (head[0] for head in network(_preprocess(image, spec)))
    priors, (height, width) = make_priors(spec), image.shape[:2]
    centres = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
    sizes = priors[:, 2:] * np.exp(loc[:, 2:] * 0.2)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
    foreground = conf.T[1:]
    confident = foreground.max(0) > _SCORE_THRESHOLD
    scores, boxes, coefficients = foreground[:, confident], boxes[confident], mask_coeff[confident]
    order = np.argsort(-scores, 1)[:, :_TOP_K]
    scores = np.take_along_axis(scores, order, 1)
    kept = np.triu(_iou(boxes[order]), 1).max(1, initial=0) <= _IOU_THRESHOLD
    class_ids = np.nonzero(kept)[0]
    best = np.argsort(-scores[kept], kind="stable")[:_MAX_DETECTIONS]
    which = order[kept][best]
    boxes, scores, class_ids = boxes[which], scores[kept][best], class_ids[best]
    masks = np.empty((len(which), height, width), np.bool_)
    soft = 1 / (1 + np.exp(-(proto @ coefficients[which].T)))
    for index, mask in enumerate(_cropped(soft, boxes)):
        masks[index] = cv2.resize(mask, (width, height)) > 0.5
    return Found(class_ids, scores, np.trunc(_ordered(boxes) * (width, height, width, height)), masks)


def _preprocess(image: Image, spec: ModelSpec) -> FloatArray:
    size = spec.input_size
    resized = cv2.resize(image, (size, size)).astype(np.float32)[..., ::-1]
    mean, std = (np.array(values, np.float32) for values in (spec.preprocess.mean_rgb, spec.preprocess.std_rgb))
    normalized: FloatArray = np.ascontiguousarray(((resized - mean) / std).transpose(2, 0, 1)[None])
    return normalized


def _iou(boxes: FloatArray) -> FloatArray:
    """[C, n, 4] to [C, n, n]."""
    low = np.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = np.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    iou: FloatArray = both / (area[:, :, None] + area[:, None, :] - both)
    return iou


def _cropped(soft: FloatArray, boxes: FloatArray) -> FloatArray:
    """[Hp, Wp, n] to [n, Hp, Wp], with zeros outside of the boxes, which are widened by a cell."""
    height, width, _ = soft.shape
    x1, y1, x2, y2 = (_ordered(boxes) * (width, height, width, height)).T + np.array([[-1], [-1], [1], [1]])
    columns, rows = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    inside = (columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2)
    cropped: FloatArray = np.ascontiguousarray((soft * inside).transpose(2, 0, 1), np.float32)
    return cropped


def _ordered(boxes: FloatArray) -> FloatArray:
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    ordered: FloatArray = np.clip(np.concatenate([low, high], 1), 0, 1)
    return ordered
