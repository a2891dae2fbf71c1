"""Peers on a Detector's GPU: the bare network, onnxruntime's own session, PyTorch, the original's Detect in torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device import BareNetwork, NewContext, bare_network, open_driver, open_network
from benchmarks.peers import (
    AFTER,
    NETWORK,
    NO_CHECKPOINT,
    ORIGINAL_DETECT,
    WHOLE,
    Contest,
    Peer,
    Timer,
    build_torch_model,
    compiled_peer,
    on_host_clock,
    other_options_note,
    with_masks,
)
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import is_onnx
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import EngineError, MissingDependencyError
from yolact_deploy.optional import require
from yolact_deploy.reference.preprocess import preprocess
from yolact_deploy.reference.priors import make_priors
from yolact_deploy.runtime.onnxruntime.cuda import BoundContext
from yolact_deploy.runtime.onnxruntime.network import CPU_PROVIDER, CUDA_PROVIDER, choose_providers
from yolact_deploy.runtime.protocols import DeviceContext

_NS_PER_MS = 1e6


def contest_on_gpu(stack: ExitStack, detector: Detector, image: Image, checkpoint: Path | None) -> Contest:
    """Parts of the work on the device's clock, ours as `Detector.timed` marks them; the whole on the host's, from an image in
    host memory to full-size masks in host memory. What is opened for it is closed with `stack`."""
    driver = open_driver(detector)
    notes = other_options_note(detector.spec)

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
    try:
        peers += _bare_networks(stack, detector, driver, notes)
    except EngineError as exc:
        notes.append(f"no bare network: {exc}")
    try:
        peers += _torch_peers(stack, detector, driver, image, checkpoint, notes)
    except (EngineError, MissingDependencyError) as exc:
        notes.append(f"no PyTorch peer: {str(exc).splitlines()[0]}")
    return Contest(ours, peers, {NETWORK: "device", AFTER: "device", WHOLE: "host"}, notes)


def _bare_networks(stack: ExitStack, detector: Detector, driver: Driver, notes: list[str]) -> list[Peer]:
    """What runs the artifact, with nothing around it; an ONNX in a session of onnxruntime's own defaults as well."""
    network = open_network(detector, driver)
    bare = stack.enter_context(bare_network(driver, network))
    peers = [
        Peer(NETWORK, f"execute alone, {network.engine}", _on_device_clock(stack, driver, bare.stream, bare.enqueue))
    ]
    if bare.context.capturable and driver.captures_graphs:
        replay = _captured(stack, driver, bare)
        peers.append(
            Peer(
                NETWORK,
                f"execute alone in a CUDA graph, {network.engine}",
                _on_device_clock(stack, driver, bare.stream, replay),
            )
        )
    if is_onnx(detector.artifact):
        try:
            other = stack.enter_context(
                bare_network(driver, open_network(detector, driver), new_context=_default_session(detector, driver))
            )
        except Exception as exc:  # onnxruntime's exception classes share no public base
            notes.append(f"no onnxruntime session of its own defaults: {str(exc).strip().partition(chr(10))[0][:200]}")
        else:
            timer = _on_device_clock(stack, driver, other.stream, other.enqueue)
            peers.append(Peer(NETWORK, "onnxruntime session", timer))
    return peers


def _default_session(detector: Detector, driver: Driver) -> NewContext:
    """onnxruntime's own defaults, but for the stream, on which the device's clock can be read."""
    ort = require("onnxruntime", extra="gpu", purpose="the onnxruntime peer")

    def new_context(stream: int) -> DeviceContext:
        index = driver.device.index
        choose_providers(ort, f"cuda:{index}")  # loads CUDA's libraries
        provider = CUDA_PROVIDER, {"device_id": str(index), "user_compute_stream": str(stream)}
        session = ort.InferenceSession(os.fspath(detector.artifact), providers=[provider, CPU_PROVIDER])
        return BoundContext(ort, session, detector.spec, detector.artifact, ("cuda", index))

    return new_context


def _captured(stack: ExitStack, driver: Driver, bare: BareNetwork) -> Callable[[], None]:
    driver.begin_capture(bare.stream)
    try:
        bare.enqueue()
    finally:
        graph = driver.end_capture(bare.stream)
        stack.callback(driver.destroy_graph, graph)
    return lambda: driver.launch_graph(graph, bare.stream)


def _on_device_clock(stack: ExitStack, driver: Driver, stream: int, enqueue: Callable[[], object]) -> Timer:
    """Between two events around what is enqueued, once both are done. The driver's context is current until `stack` closes."""
    events = [driver.create_event(timing=True) for _ in range(2)]
    for event in events:
        stack.callback(driver.destroy_event, event)

    def time() -> int:
        driver.record(events[0], stream)
        result = enqueue()
        driver.record(events[1], stream)
        driver.synchronize_event(events[1])
        del result
        return round(_NS_PER_MS * driver.elapsed_ms(*events))

    return time


@dataclass(frozen=True)
class TorchSide:
    """Where PyTorch works: a device, one of its streams, and what makes that stream current."""

    device: Any
    stream: int
    use: Callable[[], AbstractContextManager[Any]]


def torch_side(torch: Any, driver: Driver, stack: ExitStack) -> TorchSide:
    """Raises MissingDependencyError for a PyTorch without CUDA."""
    if not torch.cuda.is_available():
        raise MissingDependencyError("torch with CUDA", extra="export", purpose="the PyTorch peers on a GPU")
    device = torch.device("cuda", driver.device.index)
    stream = torch.cuda.Stream(device)
    return TorchSide(device, stream.cuda_stream, lambda: torch.cuda.stream(stream))


def _torch_peers(
    stack: ExitStack, detector: Detector, driver: Driver, image: Image, checkpoint: Path | None, notes: list[str]
) -> list[Peer]:
    torch = require("torch", extra="export", purpose="the PyTorch peers")
    from benchmarks.torch_peer import detect_and_assemble, end_to_end

    side, spec = torch_side(torch, driver, stack), detector.spec
    image_hw = (image.shape[0], image.shape[1])
    pixels = preprocess([image], spec)
    heads = detector.run_network(pixels)
    loc, conf, mask_coeff, proto = (torch.from_numpy(np.ascontiguousarray(head[0])).to(side.device) for head in heads)
    priors = torch.from_numpy(make_priors(spec).copy()).to(side.device)

    def on_stream(run: Callable[[], object]) -> Callable[[], object]:
        def enqueue() -> object:
            with torch.inference_mode(), side.use():
                return run()

        return enqueue

    def timer(run: Callable[[], object]) -> Timer:
        return _on_device_clock(stack, driver, side.stream, on_stream(run))

    peers = [
        Peer(
            AFTER,
            ORIGINAL_DETECT,
            timer(lambda: detect_and_assemble(loc, conf, mask_coeff, proto, priors, image_hw)),
        )
    ]
    if checkpoint is None:
        notes.append(NO_CHECKPOINT)
        return peers
    model = build_torch_model(checkpoint, spec).to(side.device)
    batch = torch.from_numpy(pixels).to(side.device)
    compiled = torch.compile(model)
    notes.append("PyTorch runs in float32, with its own defaults (its convolutions may use TF32).")
    return [
        *peers,
        Peer(NETWORK, "PyTorch eager", timer(lambda: model(batch))),
        Peer(
            WHOLE,
            "PyTorch eager, original's Detect",
            on_host_clock(on_stream(lambda: [part.cpu() for part in end_to_end(model, image, priors)])),
        ),
        *compiled_peer(on_stream(lambda: compiled(batch)), timer(lambda: compiled(batch)), notes),
    ]
