"""Peers on a Detector's GPU: the bare network, onnxruntime's own session, PyTorch, the original's Detect in torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.device import BareNetwork, NewExecutionContext, bare_network, open_driver, open_kernels, open_network
from benchmarks.peer_comparison import (
    AFTER,
    NETWORK,
    WHOLE,
    Peer,
    PeerComparison,
    Timer,
    Work,
    on_host_clock,
    with_masks,
)
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import is_onnx
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.errors import EngineError, MissingDependencyError
from yolact_deploy.optional import require
from yolact_deploy.runtime.onnxruntime.cuda import OnnxCudaContext
from yolact_deploy.runtime.onnxruntime.network import CPU_PROVIDER, CUDA_PROVIDER, choose_providers
from yolact_deploy.runtime.protocols import ExecutionContext

if TYPE_CHECKING:
    from benchmarks.torch_peer import TorchSide

_NS_PER_MS = 1e6


def peers_on_gpu(stack: ExitStack, detector: Detector, image: Image, checkpoint: Path | None) -> PeerComparison:
    """Parts of the work on the device's clock, ours as `Detector.timed` marks them; the whole on the host's, from an image in
    host memory to full-size masks in host memory. What is opened for it is closed with `stack`."""
    driver = open_driver(detector)
    notes: list[str] = []

    def stages(*names: str) -> Timer:
        def time() -> int:
            _, taken_ms = detector.timed([image])
            return round(_NS_PER_MS * sum(taken_ms[name] for name in names))

        return time

    ours: dict[str, Timer] = {
        NETWORK: stages("network"),
        AFTER: stages("detect", "masks"),
        WHOLE: on_host_clock(lambda: with_masks(detector(image))),
    }
    peers: list[Peer] = []
    stack.enter_context(driver.current())
    kernels = stack.enter_context(open_kernels(detector, driver))
    try:
        peers += _bare_networks(stack, detector, driver, kernels, notes)
    except EngineError as exc:
        notes.append(f"no bare network: {exc}")
    try:
        torch = require("torch", extra="export", purpose="the PyTorch peers")
        from benchmarks.torch_peer import torch_peers

        peers += torch_peers(detector, image, checkpoint, torch_side(torch, driver, kernels, stack), notes)
        if checkpoint is not None:
            notes.append("PyTorch runs in float32, with its own defaults (its convolutions may use TF32).")
    except (EngineError, MissingDependencyError) as exc:
        notes.append(f"no PyTorch peer: {str(exc).splitlines()[0]}")
    return PeerComparison(ours, peers, {NETWORK: "device", AFTER: "device", WHOLE: "host"}, notes)


def _bare_networks(
    stack: ExitStack, detector: Detector, driver: Driver, kernels: Kernels, notes: list[str]
) -> list[Peer]:
    """What runs the artifact, with nothing around it; an ONNX in a session of onnxruntime's own defaults as well."""
    network = open_network(detector, driver)
    bare = stack.enter_context(bare_network(driver, network))
    peers = [
        Peer(
            NETWORK,
            f"execute alone, {network.engine}",
            on_device_clock(stack, driver, kernels, bare.stream, bare.enqueue),
        )
    ]
    if bare.context.capturable and driver.captures_cuda_graphs:
        replay = _captured(stack, driver, bare)
        peers.append(
            Peer(
                NETWORK,
                f"execute alone in a CUDA graph, {network.engine}",
                on_device_clock(stack, driver, kernels, bare.stream, replay),
            )
        )
    if is_onnx(detector.artifact):
        try:
            other = stack.enter_context(
                bare_network(
                    driver, open_network(detector, driver), new_execution_context=_default_session(detector, driver)
                )
            )
        except Exception as exc:  # onnxruntime's exception classes share no public base
            notes.append(f"no onnxruntime session of its own defaults: {str(exc).strip().partition(chr(10))[0][:200]}")
        else:
            timer = on_device_clock(stack, driver, kernels, other.stream, other.enqueue)
            peers.append(Peer(NETWORK, "onnxruntime session", timer))
    return peers


def _default_session(detector: Detector, driver: Driver) -> NewExecutionContext:
    """onnxruntime's own defaults, but for the stream, on which the device's clock can be read."""
    ort = require("onnxruntime", extra="gpu", purpose="the onnxruntime peer")

    def new_execution_context(stream: int) -> ExecutionContext:
        index = driver.device.index
        choose_providers(ort, f"cuda:{index}")  # loads CUDA's libraries
        provider = CUDA_PROVIDER, {"device_id": str(index), "user_compute_stream": str(stream)}
        session = ort.InferenceSession(os.fspath(detector.artifact), providers=[provider, CPU_PROVIDER])
        return OnnxCudaContext(ort, session, open_onnx(detector.artifact), ("cuda", index))

    return new_execution_context


def _captured(stack: ExitStack, driver: Driver, bare: BareNetwork) -> Callable[[], None]:
    driver.begin_capture(bare.stream)
    try:
        bare.enqueue()
    finally:
        graph = driver.end_capture(bare.stream)
        stack.callback(driver.destroy_cuda_graph, graph)
    return lambda: driver.launch_cuda_graph(graph, bare.stream)


def on_device_clock(stack: ExitStack, driver: Driver, kernels: Kernels, stream: int, enqueue: Work) -> Timer:
    """The device's time of what is enqueued on a stream. The driver's context is current until `stack` closes."""
    watch = Stopwatch(driver, kernels, stream)
    stack.callback(watch.close)

    def time() -> int:
        return round(_NS_PER_MS * watch.time({"work": enqueue})["work"])

    return time


def torch_side(torch: Any, driver: Driver, kernels: Kernels, stack: ExitStack) -> TorchSide:
    """A stream of PyTorch's own on the Detector's GPU. Raises MissingDependencyError for a PyTorch without CUDA."""
    from benchmarks.torch_peer import TorchSide

    if not torch.cuda.is_available():
        raise MissingDependencyError("torch with CUDA", extra="export", purpose="the PyTorch peers on a GPU")
    device = torch.device("cuda", driver.device.index)
    stream = torch.cuda.Stream(device)
    return TorchSide(
        device,
        lambda: torch.cuda.stream(stream),
        lambda work: on_device_clock(stack, driver, kernels, stream.cuda_stream, work),
    )
