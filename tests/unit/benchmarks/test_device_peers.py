"""Peers on the emulated GPU, with PyTorch's own device in place of CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import device_peers, peer_comparison, peers
from benchmarks.peers import compare_peers
from benchmarks.subjects import bench_images
from benchmarks.torch_peer import TorchSide
from tests.emulator.backend import EmulatedGpu
from tests.goldens import SHAPES, SHAPES_CHECKPOINT
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]
PHOTO = bench_images(SHAPES / "val" / "val_public_0000.jpg")[0]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_comparison, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(peers, "_WARMUP", 0)


def _without_a_gpu(torch: Any, driver: Driver, kernels: Kernels, stack: ExitStack) -> TorchSide:
    stream = driver.create_stream()
    stack.callback(driver.destroy_stream, stream)
    return TorchSide(
        torch.device("cpu"),
        contextlib.nullcontext,
        lambda work: device_peers.on_device_clock(stack, driver, kernels, stream, work),
    )


def test_each_peer_does_its_part_on_the_clock_of_ours(
    emulated: Emulate, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = emulated(in_stream=True)
    monkeypatch.setattr(device_peers, "torch_side", _without_a_gpu)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    with gpu.open(shapes_onnx) as detector:
        found = compare_peers(detector, PHOTO, checkpoint=SHAPES_CHECKPOINT, iterations=1)
        expected = len(detector(PHOTO))
    bare = gpu.networks[0].engine
    assert [(row["what"], row["peer"], row["clock"]) for row in found["rows"]] == [
        ("network", f"execute alone, {bare}", "device"),
        ("network", f"execute alone in a CUDA graph, {bare}", "device"),
        ("network", "PyTorch eager", "device"),
        ("network", "torch.compile", "device"),
        ("detect + masks", "original's Detect + postprocess in torch", "device"),
        ("end to end", "PyTorch eager, original's Detect", "host"),
    ]
    times = {row["peer"]: (row["peer_ms"]["p50"], row["ours_ms"]["p50"]) for row in found["rows"]}
    assert times[f"execute alone, {bare}"] == (1, 1)  # a piece of work of the emulated clock
    assert times["original's Detect + postprocess in torch"][1] == 4  # ours: three kernels, and one of the masks
    assert found["detections"] == expected > 0
    assert any("no onnxruntime session of its own defaults" in note for note in found["notes"])  # it has no CUDA here


def test_a_network_that_cannot_be_recorded_has_no_graph(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=False)
    with gpu.open(shapes_onnx) as detector:
        found = compare_peers(detector, PHOTO, iterations=1)
    assert [row["what"] for row in found["rows"]] == ["network"]
    assert any(note.startswith("no PyTorch peer: ") and "CUDA" in note for note in found["notes"])


def test_without_room_for_peers_there_are_none(
    emulated: Emulate, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = emulated(in_stream=True)
    monkeypatch.setattr(device_peers, "torch_side", _without_a_gpu)
    with gpu.open(shapes_onnx) as detector:
        detector(PHOTO)
        object.__setattr__(gpu.driver.device, "memory_bytes", gpu.driver.device_bytes)
        found = compare_peers(detector, PHOTO, iterations=1)
    assert found["rows"] == []
    for start in ("no bare network: no memory for", "no PyTorch peer: no memory for"):
        assert any(note.startswith(start) for note in found["notes"])
