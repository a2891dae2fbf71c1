"""The same network elsewhere, beside ours in one run: bare onnxruntime, PyTorch, torch.compile, the original's Detect."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peer_comparison import (
    AFTER,
    NETWORK,
    WHOLE,
    Peer,
    PeerComparison,
    Work,
    compare,
    on_host_clock,
    with_masks,
)
from yolact_deploy import Detector
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS, StepProgress
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.errors import MissingDependencyError
from yolact_deploy.optional import require
from yolact_deploy.runtime.openvino.library import load_openvino

_ITERATIONS = 10  # so that one time that is out of line bounds no interval
_WARMUP = 2


def compare_peers(
    detector: Detector,
    image: Image,
    *,
    alone: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    threads: int | None = None,
    iterations: int = _ITERATIONS,
    progress: StepProgress | None = None,
) -> dict[str, Any]:
    """{"artifact", "image_hw", "detections", "rows", "watch", "notes": of `peer_comparison.compare`}.

    All take turns on one image, where the Detector runs: on the CPU, or on its GPU. PyTorch needs the `checkpoint` the artifact
    was exported from; a peer that can't run here is a note. `alone` is the Detector's run in the report of `time_detectors`,
    whose times ours are held against. Raises CheckpointError for a checkpoint that does not fit.
    """
    with ExitStack() as stack:
        if detector.on_gpu:
            from benchmarks.device_peers import peers_on_gpu

            comparison = peers_on_gpu(stack, detector, image, checkpoint)
        else:
            comparison = _peers_on_cpu(detector, image, checkpoint, threads)
        compared = compare(comparison, iterations, _WARMUP, {} if alone is None else _alone_ms(alone), progress)
    return {
        "artifact": str(detector.artifact),
        "image_hw": [image.shape[0], image.shape[1]],
        "detections": len(detector(image)),
        **compared,
    }


def _alone_ms(run: dict[str, Any]) -> dict[str, float]:
    """The network's time alone: that of the rest, and so of the whole, depends on the image."""
    return {NETWORK: run["stages_ms"]["network"]["p50"]} if run["batch"] == 1 else {}


def _peers_on_cpu(detector: Detector, image: Image, checkpoint: Path | None, threads: int | None) -> PeerComparison:
    notes: list[str] = []
    image_hw = (image.shape[0], image.shape[1])
    batch = detector.preprocess([image])
    heads = detector.run_network(batch)
    ours: dict[str, Work] = {
        NETWORK: lambda: detector.run_network(batch),
        AFTER: lambda: with_masks(detector.assemble(detector.suppress(heads)[0], image_hw)),
        WHOLE: lambda: with_masks(detector(image)),
    }
    peers = []
    for bare in (_bare_onnxruntime, _bare_openvino):
        try:
            peers.append(bare(detector, batch, threads))
        except (MissingDependencyError, RuntimeError) as exc:  # OpenVINO's own, of a file that it can't run
            notes.append(f"no {bare.__name__.removeprefix('_bare_')} peer: {str(exc).splitlines()[0]}")
    try:
        torch = require("torch", extra="export", purpose="the PyTorch peers")
        from benchmarks.torch_peer import TorchSide, torch_peers

        if threads is not None:
            torch.set_num_threads(threads)
        side = TorchSide(torch.device("cpu"), contextlib.nullcontext, on_host_clock)
        peers += torch_peers(detector, image, checkpoint, side, notes)
    except MissingDependencyError as exc:
        notes.append(f"no PyTorch peer: {str(exc).splitlines()[0]}")
    timers = {what: on_host_clock(run) for what, run in ours.items()}
    return PeerComparison(timers, peers, dict.fromkeys(ours, "host"), notes)


def _bare_onnxruntime(detector: Detector, batch: FloatArray, threads: int | None) -> Peer:
    """A session with onnxruntime's own defaults: what ours costs or gains over it."""
    ort = require("onnxruntime", extra="cpu", purpose="the onnxruntime peer")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(detector.artifact), options, providers=["CPUExecutionProvider"])
    feed = {INPUT: batch.astype(open_onnx(detector.artifact).dtypes[INPUT], copy=False)}
    return Peer(NETWORK, "onnxruntime session", on_host_clock(lambda: session.run(list(OUTPUTS), feed)))


def _bare_openvino(detector: Detector, batch: FloatArray, threads: int | None) -> Peer:
    """A model compiled with OpenVINO's own defaults, which are bfloat16 on a CPU that has it."""
    compiled = (
        load_openvino()
        .Core()
        .compile_model(str(detector.artifact), "CPU", {} if threads is None else {"INFERENCE_NUM_THREADS": threads})
    )
    precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    request, feed = compiled.create_infer_request(), {INPUT: batch.astype(open_onnx(detector.artifact).dtypes[INPUT])}
    return Peer(NETWORK, f"OpenVINO model ({precision})", on_host_clock(lambda: request.infer(feed)))
