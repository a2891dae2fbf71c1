"""The whole GPU path on a GPU, against the CPU path."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.device import Memory
from tests.emulator.cpu_network import CpuNetwork
from tests.goldens import SHAPES, SHAPES_CHECKPOINT, SHAPES_SPEC
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.compile import load_kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.reference.images import read_image
from yolact_deploy.runtime.gpu.pipeline import GpuPipeline
from yolact_deploy.runtime.protocols import DeviceNetwork
from yolact_deploy.spec import ModelSpec

_HOST_MS = 20  # that the host takes over enqueueing: of the device's time, none

_SCORE_ERROR = 2e-3  # other convolutions, other orders of addition
_SURE = 0.3


@pytest.fixture(scope="module")
def images() -> list[Image]:
    photos = [read_image(path) for path in sorted((SHAPES / "val").glob("*.jpg"))[:6]]
    tiles = np.tile(photos[0], (3, 4, 1))
    return [*photos, tiles, np.ascontiguousarray(tiles[:97, :333])]


@pytest.fixture(scope="module")
def expected(shapes_onnx: Path, images: list[Image]) -> list[Detections]:
    return Detector(shapes_onnx, device="cpu")(images)


@contextmanager
def _opened(driver: Driver, network: DeviceNetwork, *, cuda_graph: bool = True) -> Iterator[GpuPipeline]:
    pipeline = GpuPipeline(driver, network, load_kernels, cuda_graph=cuda_graph)
    try:
        yield pipeline
    finally:
        pipeline.close()


def _detect(pipeline: GpuPipeline, images: Sequence[Image]) -> list[Detections]:
    return pipeline.submit([pipeline.load(image, "bgr") for image in images], 0.0, "bits").result()


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_from_the_same_heads_every_bit_is_the_cpu_paths(
    driver: Driver, shapes_onnx: Path, images: list[Image], expected: list[Detections], cuda_graph: bool
) -> None:
    with _opened(driver, CpuNetwork(shapes_onnx, driver, threads=None), cuda_graph=cuda_graph) as pipeline:
        for _ in range(3):  # at first as it is, then captured, then replayed
            for image, reference in zip(images, expected, strict=True):
                (found,) = _detect(pipeline, [image])
                np.testing.assert_array_equal(found.raw.prior_idx, reference.raw.prior_idx)
                np.testing.assert_array_equal(found.scores, reference.scores)
                np.testing.assert_array_equal(found.boxes_xyxy, reference.boxes_xyxy)
                np.testing.assert_array_equal(found.masks, reference.masks)
                assert found.rle() == reference.rle()
        for found, reference in zip(_detect(pipeline, images[:3]), expected[:3], strict=True):
            np.testing.assert_array_equal(found.masks, reference.masks)


def test_stages_are_held_back_until_all_of_them_are_enqueued(driver: Driver) -> None:
    """Slow enqueueing shows in no stage: without a gate the device would wait for the host within the first of them."""
    notes: list[str] = []
    kernels = load_kernels(driver, specialize(ModelSpec.from_file(SHAPES_SPEC)))
    with driver.current(), Memory(driver) as memory:
        memory.callback(kernels.close)
        stream = memory.stream()
        watch = Stopwatch(driver, kernels, stream, notes.append)
        memory.callback(watch.close)
        source, target = (memory.device(1 << 20, name) for name in ("source", "target"))

        def slowly() -> None:
            driver.copy_on_device(target, source, 1 << 20, stream)
            time.sleep(_HOST_MS / 1e3)
            driver.copy_on_device(target, source, 1 << 20, stream)

        assert 0 < watch.time({"copies": slowly})["copies"] < _HOST_MS
    assert notes == []


def test_onnxruntimes_cuda_provider_finds_what_the_cpu_finds(
    shapes_onnx: Path, images: list[Image], expected: list[Detections]
) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    with Detector(shapes_onnx, device="cuda:0") as detector:
        _expect_alike(detector, images, expected)
        for found, reference in zip(detector.stream(iter(images)), expected, strict=True):
            _expect_same_objects(found, reference)


def test_pytorchs_network_finds_what_the_cpu_finds(
    driver: Driver, images: list[Image], expected: list[Detections]
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    from benchmarks.figures.networks import TorchDeviceNetwork
    from exporters.checkpoints.checkpoint import build_model, load_checkpoint

    torch.backends.cudnn.allow_tf32 = False
    model = build_model(load_checkpoint(SHAPES_CHECKPOINT, spec_file=SHAPES / "spec.json"))
    with _opened(driver, TorchDeviceNetwork(model, driver)) as pipeline:
        for _ in range(3):
            _expect_alike(lambda found: _detect(pipeline, found), images[:1], expected[:1])
        for image, reference in zip(images, expected, strict=True):
            _expect_alike(lambda found: _detect(pipeline, found), [image], [reference])


def _expect_alike(
    detect: Callable[[list[Image]], list[Detections]], images: list[Image], expected: list[Detections]
) -> None:
    for found, reference in zip(detect(images), expected, strict=True):
        _expect_same_objects(found, reference)


def _expect_same_objects(found: Detections, reference: Detections) -> None:
    """The sure ones: same priors, near scores and masks."""
    scores = dict(zip(found.raw.prior_idx.tolist(), found.scores.tolist(), strict=True))
    rows = {prior: row for row, prior in enumerate(found.raw.prior_idx.tolist())}
    for row, prior in enumerate(reference.raw.prior_idx.tolist()):
        if reference.scores[row] < _SURE:
            continue
        assert scores[prior] == pytest.approx(reference.scores[row], abs=_SCORE_ERROR)
        ours, theirs = found.masks[rows[prior]], reference.masks[row]
        assert int(np.count_nonzero(ours != theirs)) <= 0.01 * max(int(np.count_nonzero(theirs)), 100)
