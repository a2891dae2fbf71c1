"""What is measured: images, objects planted in head tensors, the artifact, and the conditions a Detector ran under."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy import Detector
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import TF32
from yolact_deploy.reference.images import MAX_PIXELS, list_images, read_image
from yolact_deploy.runtime.protocols import HeadTensors

_DEFAULT_HW = (480, 640)
_BLOCK_PX = 40
_SCORE = 0.9  # of the surest object that is planted; the least sure has half
_MOST_OVERLAP = 0.3  # IoU, below what suppresses
_MAX_IMAGES = 64  # held in memory; enough that no cache holds them
_ON_HOST: dict[str, Any] = {
    "clock": "host",
    "transfers": "none: host memory only",
    "cuda_graph": None,
    "graph_stages": [],
    "wait": "the network's threads spin while it runs, and rest after it",
}
_IN_OPENVINO = {**_ON_HOST, "wait": "as OpenVINO's threads do, which rest when there is nothing to do"}
_ON_GPU: dict[str, Any] = {
    "clock": "host; stages: device (CUDA events)",
    "transfers": "counted: images to the device, detections and bit-packed masks to the host",
    "wait": "as CUDA chooses (it spins, unless it has more contexts than the host has cores)",
}
_NETWORK_ON_GPU: dict[str, Any] = {
    **_ON_HOST,
    "transfers": "counted, within the network: its input to the device, its heads to the host",
    "wait": _ON_GPU["wait"],
}


def bench_images(source: Path | None, max_pixels: int = MAX_PIXELS) -> list[Image]:
    """The first images of a file or folder; without one, a made-up 480x640 image. Raises ImageError."""
    if source is not None:
        return [read_image(path, max_pixels=max_pixels) for path in list_images([source])[:_MAX_IMAGES]]
    return [synthetic_image(_DEFAULT_HW)]


def synthetic_image(image_hw: tuple[int, int]) -> Image:
    """Blocks of random colours, the same every time; uint8 [H, W, 3]."""
    height, width = image_hw
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (-(-height // _BLOCK_PX), -(-width // _BLOCK_PX), 3), dtype=np.uint8)
    whole = blocks.repeat(_BLOCK_PX, axis=0).repeat(_BLOCK_PX, axis=1)
    return np.ascontiguousarray(whole[:height, :width])


def synthetic_heads(
    heads: HeadTensors,
    priors: FloatArray,  # [P, 4]
    count: int,
) -> HeadTensors:
    """One image's heads in which `count` priors, spread over all levels and places, are sure of an object; fewer
    where the model has not so many that do not overlap."""
    return HeadTensors(*synthetic_scores(priors, heads.conf.shape[2] - 1, count), heads.mask_coeff[:1], heads.proto[:1])


def synthetic_scores(
    priors: FloatArray,  # [P, 4]
    classes: int,
    count: int,
) -> tuple[FloatArray, FloatArray]:
    """`loc` [1, P, 4] and `conf` [1, P, 1 + C], softmaxed, of `synthetic_heads`."""
    conf = np.zeros((1, len(priors), 1 + classes), np.float32)
    conf[..., 0] = 1
    rows = _spread(priors, count)
    count = len(rows)
    scores = np.linspace(_SCORE, _SCORE / 2, count, dtype=np.float32)
    conf[0, rows, 0] = 1 - scores
    conf[0, rows, 1 + np.arange(count) % classes] = scores
    return np.zeros((1, len(priors), 4), np.float32), conf


def _spread(priors: FloatArray, count: int) -> list[int]:
    """Rows of priors that do not overlap by half, from every size in turn; as many as asked, as far as there are."""
    rng = np.random.default_rng(0)
    sizes = np.unique(priors[:, 2])
    by_size = [rng.permutation(np.flatnonzero(priors[:, 2] == size)).tolist() for size in sizes]
    chosen: list[int] = []
    while len(chosen) < count and any(by_size):
        for rows in by_size:
            while rows:
                row = rows.pop()
                if not chosen or _max_iou(priors[row], priors[chosen]) <= _MOST_OVERLAP:
                    chosen.append(row)
                    break
            if len(chosen) == count:
                break
    return chosen


def _max_iou(
    prior: FloatArray,  # [4]
    others: FloatArray,  # [n, 4]
) -> float:
    low = np.maximum(prior[:2] - prior[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(prior[:2] + prior[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    overlap = (high - low).clip(0).prod(axis=1)
    return float((overlap / (prior[2:].prod() + others[:, 2:].prod(axis=1) - overlap)).max())


def describe(detector: Detector) -> dict[str, Any]:
    """Path, backend, digest, size and precision of what it runs."""
    described = detector.file.describe()
    in_tf32 = detector.gpu_index is not None and detector.arguments["gpu_precision"] == TF32
    return {
        "artifact": described["path"],
        "backend": detector.description,
        **{key: described[key] for key in ("sha256", "size_bytes")},
        "precision": TF32 if in_tf32 else described["precision"],
    }


def in_openvino(detector: Detector) -> bool:
    """By the description, which begins with what runs the network."""
    return detector.description.startswith("OpenVINO")


def conditions(detector: Detector) -> dict[str, Any]:
    """ "clock", "transfers", "cuda_graph" (None on the CPU), "graph_stages" and "wait", after a Detector has run."""
    if not detector.on_gpu:
        on_cpu = _IN_OPENVINO if in_openvino(detector) else _ON_HOST
        return dict(on_cpu if detector.gpu_index is None else _NETWORK_ON_GPU)
    stages = list(detector.graph_stages)
    return {**_ON_GPU, "cuda_graph": bool(stages), "graph_stages": stages}


def common(runs: Sequence[dict[str, Any]], key: str) -> Any:
    """What all runs have under a key; a list, in their order, where they differ."""
    values = [run[key] for run in runs]
    return values[0] if values and all(value == values[0] for value in values) else values
