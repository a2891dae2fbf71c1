"""Proof that an end-to-end graph finds what `Detector` finds with the network it was made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx

from exporters.agreement import capped_size, detect_heads, mask_ious
from exporters.end_to_end_stages import PREPARED, PRIOR_IDX
from exporters.onnx_edit import metadata, open_session, with_outputs
from exporters.parity import (
    ImageParity,
    ParityReport,
    TensorParity,
    builtin_images,
    clear_of_cut,
    compare_tensor,
    detection_keys,
)
from yolact_deploy import end_to_end as contract
from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.detections import Detections
from yolact_deploy.mask_iou import rescore_masks
from yolact_deploy.postprocess import assemble_masks
from yolact_deploy.runtime.end_to_end_network import read_outputs
from yolact_deploy.runtime.images import ChannelOrder
from yolact_deploy.runtime.network import OUTPUT_NAMES, HeadTensors
from yolact_deploy.runtime.onnx_network import OnnxNetwork
from yolact_deploy.runtime.preprocess import preprocess
from yolact_deploy.spec import PRECISION_METADATA_KEY, ModelSpec

# Of a prepared pixel or a score. OpenCV before version 5 rounds the source coordinates of its resize to float32, which in
# images of 640 pixels moves a pixel by up to 1.4e-4 and a score by nearly as much.
MAX_ERROR = 5e-4


def check_end_to_end(
    heads_onnx: Path,
    model: onnx.ModelProto,  # end-to-end, made of `heads_onnx`
    spec: ModelSpec,  # of the end-to-end graph: its NMS may differ
    channel_order: ChannelOrder,
    *,
    images: Sequence[tuple[str, Image]] = (),  # name and uint8 [H, W, 3] BGR; none = the built-in ones
) -> ParityReport:
    """Run both on the images, which are made smaller where they are large, and one image in a batch.

    What is judged of each image: what the network reads, the choice of (class, prior), scores, integer boxes and masks. In
    half or INT8 the last bit of a pixel may decide a rounding and change scores by 1e-3; the network's outputs in the
    end-to-end graph itself are then what is expected to become these detections.
    """
    network = OnnxNetwork(heads_onnx, device="cpu")
    is_float32 = metadata(model).get(PRECISION_METADATA_KEY, "fp32") == "fp32"
    session = open_session(with_outputs(model, [PREPARED, PRIOR_IDX, *([] if is_float32 else OUTPUT_NAMES)]))
    names = [output.name for output in session.get_outputs()]

    def run(batch: Image) -> dict[str, AnyArray]:
        given = batch if channel_order == "bgr" else batch[..., ::-1]
        return dict(zip(names, session.run(names, {contract.IMAGE: np.ascontiguousarray(given)}), strict=True))

    results: list[ImageParity] = []
    batches: list[TensorParity] = []
    for name, original in images or builtin_images():
        image = _capped(original)
        outputs = run(image[None])
        prepared = preprocess([image], spec)
        heads = network.run(prepared) if is_float32 else HeadTensors(*(outputs[name] for name in OUTPUT_NAMES))
        raw = detect_heads(heads, spec)
        expected = assemble_masks(raw, (image.shape[0], image.shape[1]))
        if network.mask_iou is not None:
            expected = rescore_masks(expected, network.mask_iou)
        results.append(_compare(name, prepared, expected, outputs, spec))
        if not batches and _is_dynamic(model):
            mirrored = np.ascontiguousarray(image[:, ::-1])
            apart = [outputs[contract.SCORES][0], run(mirrored[None])[contract.SCORES][0]]
            together = run(np.stack([image, mirrored]))[contract.SCORES]
            batches.append(compare_tensor(contract.SCORES, np.stack(apart), together))
    return ParityReport(tuple(results), tuple(batches), network.description)


def _compare(
    name: str, prepared: FloatArray, expected: Detections, outputs: Mapping[str, AnyArray], spec: ModelSpec
) -> ImageParity:
    found = read_outputs(outputs, 0, spec)
    prior_idx = outputs[PRIOR_IDX][0, : len(found)]
    found = dataclasses.replace(found, raw=dataclasses.replace(found.raw, prior_idx=prior_idx))
    place = {key: row for row, key in enumerate(detection_keys(found.raw))}
    pairs = [(row, place[key]) for row, key in enumerate(detection_keys(expected.raw)) if key in place]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    a, b = expected.take(rows[:, 0]), found.take(rows[:, 1])
    tensors = [_judge("prepared image", prepared, outputs[PREPARED]), _judge(contract.SCORES, a.scores, b.scores)]
    if a.mask_ious is not None:
        tensors.append(_judge(contract.MASK_SCORES, a.mask_scores, b.mask_scores))
    ious = mask_ious(a, b)
    return ImageParity(
        image=name,
        outputs=tuple(tensors),
        detections=len(rows),
        missing=clear_of_cut(expected.raw, found.raw, spec),
        extra=clear_of_cut(found.raw, expected.raw, spec),
        max_box_difference_px=float(np.abs(a.boxes_xyxy - b.boxes_xyxy).max(initial=0)),
        mean_mask_iou=float(ious.mean()) if len(ious) else 1.0,
        min_mask_iou=float(ious.min(initial=1.0)),
    )


def _judge(name: str, expected: FloatArray, found: FloatArray) -> TensorParity:
    if not expected.size:  # no detections are equal detections
        expected = found = np.zeros(1, np.float32)
    return dataclasses.replace(compare_tensor(name, expected, found), allowed=MAX_ERROR)


def _capped(image: Image) -> Image:
    height, width = capped_size(image.shape)
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _is_dynamic(model: onnx.ModelProto) -> bool:
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param)
