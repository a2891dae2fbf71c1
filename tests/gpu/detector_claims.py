"""Claims about whole Detectors on a GPU: around PyTorch's network on the CPU, whose heads are the same on both sides, every bit
is the CPU path's; around PyTorch's network on the GPU, what is sure is found again."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures.gpu_report import Visit
from benchmarks.figures.host_overhead import null_artifact
from benchmarks.figures.networks import HostNetwork, TorchDeviceNetwork, golden_model
from benchmarks.figures.scenes import network_input
from tests.goldens import SHAPES_CHECKPOINT, SHAPES_IMAGES, SHAPES_SPEC, SHAPES_VAL, golden_image
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.reference.postprocess import assemble_masks, detect, make_priors
from yolact_deploy.runtime.gpu.pipeline import REAL_GPU
from yolact_deploy.runtime.protocols import DeviceNetwork

_ROUNDS = 3  # as it is, captured, replayed
_SCORE_ERROR = 2e-3  # other convolutions, other orders of addition
_SURE = 0.3
_MASK_ERROR = 0.01  # of a mask's pixels


def detector_claims(visit: Visit) -> dict[str, Callable[[], object]]:
    """By name; of the trained network too, where its checkpoint is."""
    models = ["recorded"] * (not visit.rehearsal) + ["trained"] * SHAPES_CHECKPOINT.is_file()
    claims: dict[str, Callable[[], object]] = {}
    for model in models:
        for cuda_graph in (True, False):
            name = f"{model}: every bit is the CPU path's, {'with' if cuda_graph else 'without'} CUDA graphs"
            claims[name] = partial(_every_bit, visit, model, cuda_graph=cuda_graph)
        if visit.torch_device != "cpu":
            claims[f"{model}: PyTorch's network on the GPU finds what the CPU finds"] = partial(_alike, visit, model)
    return claims


def _every_bit(visit: Visit, model: str, *, cuda_graph: bool) -> None:
    driver = open_driver(visit.device)
    network, images = HostNetwork(_network(model), driver), _images(model, visit)
    expected = [_expected(network, image) for image in images]
    with _opened(driver, network, cuda_graph=cuda_graph) as detector:
        for image, reference in zip(images, expected, strict=True):
            for _ in range(_ROUNDS):
                _same(detector(image), reference)
            _same(detector(image, masks="dense"), reference)
        for found, reference in zip(detector(images), expected, strict=True):
            _same(found, reference)
        for found, reference in zip(detector.stream(iter(images)), expected, strict=True):
            _same(found, reference)
    if network.runs != len(images):
        raise AssertionError("the kernels preprocess an image otherwise than the reference")


def _alike(visit: Visit, model: str) -> None:
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    driver = open_driver(visit.device)
    images = _images(model, visit)
    on_cpu = HostNetwork(_network(model), driver)
    expected = [_expected(on_cpu, image) for image in images]
    with _opened(driver, TorchDeviceNetwork(_fresh_network(model), driver)) as detector:
        for image, reference in zip(images, expected, strict=True):
            for _ in range(_ROUNDS):
                _same_objects(detector(image), reference)


def _opened(driver: Driver, network: DeviceNetwork, *, cuda_graph: bool = True) -> Detector:
    backend = dataclasses.replace(
        REAL_GPU,
        check_network=lambda _: None,
        open_driver=lambda _: driver,
        open_network=lambda artifact, device, threads, tf32: network,
    )
    with tempfile.TemporaryDirectory() as folder:
        return Detector(null_artifact(Path(folder)), device="cuda:0", gpu=backend, cuda_graph=cuda_graph, batch_size=2)


def _expected(network: HostNetwork, image: Image) -> Detections:
    spec = network.spec
    rules: dict[str, Any] = dataclasses.asdict(spec.postprocess)
    heads = network.heads(network_input(image, spec))
    (raw,) = detect(*heads, make_priors(spec), **rules, input_size=spec.input_size)
    return assemble_masks(raw, (image.shape[0], image.shape[1]))


def _same(found: Detections, reference: Detections) -> None:
    np.testing.assert_array_equal(found.raw.prior_idx, reference.raw.prior_idx)
    np.testing.assert_array_equal(found.scores, reference.scores)
    np.testing.assert_array_equal(found.boxes_xyxy, reference.boxes_xyxy)
    np.testing.assert_array_equal(found.masks, reference.masks)


def _same_objects(found: Detections, reference: Detections) -> None:
    """The sure ones: same priors, near scores and masks."""
    rows = {prior: row for row, prior in enumerate(found.raw.prior_idx.tolist())}
    sure = [row for row in range(len(reference)) if reference.scores[row] >= _SURE]
    if missing := [row for row in sure if reference.raw.prior_idx[row] not in rows]:
        raise AssertionError(f"{len(missing)} of {len(sure)} sure detections are not found")
    for row in sure:
        ours = rows[int(reference.raw.prior_idx[row])]
        np.testing.assert_allclose(found.scores[ours], reference.scores[row], rtol=0, atol=_SCORE_ERROR)
        different = int(np.count_nonzero(found.masks[ours] != reference.masks[row]))
        if different > _MASK_ERROR * max(int(reference.masks[row].sum()), 100):
            raise AssertionError(f"a mask differs in {different} pixels")


@cache
def _network(model: str) -> Any:
    return _fresh_network(model)


def _fresh_network(model: str) -> Any:
    if model == "recorded":
        return golden_model()[0]
    from exporters.checkpoints.checkpoint import build_model, load_checkpoint

    return build_model(load_checkpoint(SHAPES_CHECKPOINT, spec_file=SHAPES_SPEC)).eval()


def _images(model: str, visit: Visit) -> list[Image]:
    if model == "recorded":
        return [golden_image(0), golden_image(1)]
    images = shapes_images()
    return images[:1] if visit.rehearsal else [*images, np.tile(images[0], (3, 4, 1))]


def shapes_images() -> list[Image]:
    """The first validation images: from the kit, which has them decoded, or from their files; others where none can be."""
    if SHAPES_IMAGES.is_file():
        with np.load(SHAPES_IMAGES) as kept:
            return [kept[name] for name in kept.files]
    if find_spec("cv2") is None:
        return [golden_image(0), golden_image(1)]
    from yolact_deploy.reference.images import read_image

    return [read_image(path) for path in sorted(SHAPES_VAL.glob("*.jpg"))[:3]]
