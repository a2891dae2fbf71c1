"""The same network elsewhere, beside ours in one run: PyTorch, torch.compile, bare onnxruntime, the original's Detect."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.statistics import percentiles
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.errors import MissingDependencyError
from yolact_deploy.optional import require, require_export
from yolact_deploy.reference.priors import make_priors
from yolact_deploy.spec import ModelSpec, PostprocessSpec

if TYPE_CHECKING:
    from exporters.network.yolact import Yolact

SETTLE_SECONDS = 0.25  # untimed work before each time: the last one's thread pool may spin on for 0.2 s (OpenMP)
_ITERATIONS = 8
_WARMUP = 2
NETWORK, AFTER, WHOLE = "network", "detect + masks", "end to end"
ORIGINAL_DETECT = "original's Detect + postprocess in torch"
NO_CHECKPOINT = "the network in PyTorch is timed with --checkpoint FILE, the .pth it was exported from."

Work = Callable[[], object]
Timer = Callable[[], int]  # does the work once; nanoseconds that it took


@dataclass(frozen=True)
class Peer:
    what: str  # the part of the work it does
    name: str
    time: Timer


@dataclass
class Contest:
    """Ours by the part of the work, and those who do the same."""

    ours: dict[str, Timer]
    peers: list[Peer]
    clocks: dict[str, str]  # "host" or "device", by the part
    notes: list[str]


def compare_peers(
    detector: Detector,
    image: Image,
    *,
    checkpoint: Path | None = None,
    threads: int | None = None,
    iterations: int = _ITERATIONS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """{"artifact", "image_hw", "detections", "rows": [{"what", "peer", "peer_ms", "ours_ms", "ratio", "clock"}], "notes"}.

    All take turns on one image, where the Detector runs: on the CPU, or on its GPU. PyTorch needs the `checkpoint` the artifact
    was exported from; a peer that can't run here is a note. `ratio` is the peer's p50 over ours; both are of one clock.
    Raises CheckpointError for a checkpoint that does not fit.
    """
    with ExitStack() as stack:
        if detector.on_gpu:
            from benchmarks.device_peers import contest_on_gpu

            contest = contest_on_gpu(stack, detector, image, checkpoint)
        else:
            contest = _contest_on_cpu(detector, image, checkpoint, threads)
        ours, peers, notes = contest.ours, contest.peers, contest.notes
        timers = {**ours, **{f"{peer.what}/{peer.name}": peer.time for peer in peers}}
        times = time_in_turns(timers, iterations, _WARMUP, progress)
    rows = []
    for peer in sorted(peers, key=lambda peer: list(ours).index(peer.what)):
        theirs, own = times[f"{peer.what}/{peer.name}"], times[peer.what]
        rows.append(
            {
                "what": peer.what,
                "peer": peer.name,
                "peer_ms": theirs,
                "ours_ms": own,
                "ratio": theirs["p50"] / own["p50"],
                "clock": contest.clocks[peer.what],
            }
        )
    notes.append(f"{iterations} times each, with pauses of {SETTLE_SECONDS} s in which the one before comes to rest.")
    return {
        "artifact": str(detector.artifact),
        "image_hw": [image.shape[0], image.shape[1]],
        "detections": len(detector(image)),
        "rows": rows,
        "notes": notes,
    }


def in_turns(
    work: dict[str, Work], iterations: int, warmup: int = 3, progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, float]]:
    """`time_in_turns` of work on the host's clock."""
    return time_in_turns({name: on_host_clock(run) for name, run in work.items()}, iterations, warmup, progress)


def time_in_turns(
    timers: dict[str, Timer], iterations: int, warmup: int = 3, progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, float]]:
    """Percentiles of each piece of work, all in turns; the same work runs untimed before each time, until it has settled."""
    times: dict[str, list[int]] = {name: [] for name in timers}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for iteration in range(warmup + iterations):
            if progress is not None:
                progress(iteration, warmup + iterations)
            for name, time in timers.items():
                settled = perf_counter_ns() + SETTLE_SECONDS * 1e9
                while perf_counter_ns() < settled:
                    time()
                taken = time()
                if iteration >= warmup:
                    times[name].append(taken)
    finally:
        if collecting:
            gc.enable()
    return {name: percentiles(samples) for name, samples in times.items()}


def on_host_clock(run: Work) -> Timer:
    def time() -> int:
        begin = perf_counter_ns()
        result = run()
        taken = perf_counter_ns() - begin
        del result
        return taken

    return time


def build_torch_model(checkpoint: Path, spec: ModelSpec) -> Yolact:
    """The network in PyTorch. Raises CheckpointError, MissingDependencyError."""
    require_export("timing a checkpoint")
    from exporters.checkpoints.checkpoint import build_model, load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        spec_file = Path(folder) / "spec.json"  # what the artifact was exported with, so that nobody is asked again
        spec_file.write_text(spec.to_json(), encoding="utf-8")
        return build_model(load_checkpoint(checkpoint, spec_file=spec_file))


def compiled_peer(run_compiled: Work, time: Timer, notes: list[str]) -> list[Peer]:
    """torch.compile's network, once it could be compiled."""
    try:
        run_compiled()
    except Exception as exc:  # a missing compiler, an operator it can't take: its errors share no base
        notes.append(f"no torch.compile peer: {str(exc).strip().partition(chr(10))[0][:200]}")
        return []
    return [Peer(NETWORK, "torch.compile", time)]


def other_options_note(spec: ModelSpec) -> list[str]:
    if spec.postprocess != PostprocessSpec() or spec.mask_iou_layers:
        return ["the original's Detect runs with its default thresholds and without mask rescoring."]
    return []


def with_masks(detections: Detections) -> Detections:
    _ = detections.masks
    return detections


def _contest_on_cpu(detector: Detector, image: Image, checkpoint: Path | None, threads: int | None) -> Contest:
    notes: list[str] = []
    image_hw = (image.shape[0], image.shape[1])
    batch = detector.preprocess([image])
    heads = detector.run_network(batch)
    ours: dict[str, Work] = {
        NETWORK: lambda: detector.run_network(batch),
        AFTER: lambda: with_masks(detector.assemble(detector.suppress(heads)[0], image_hw)),
        WHOLE: lambda: with_masks(detector(image)),
    }
    peers = [_bare_onnxruntime(detector, batch, threads)]
    try:
        peers += _torch_peers(detector, image, checkpoint, threads, notes)
    except MissingDependencyError as exc:
        notes.append(f"no PyTorch peer: {str(exc).splitlines()[0]}")
    timers = {what: on_host_clock(run) for what, run in ours.items()}
    return Contest(timers, peers, dict.fromkeys(ours, "host"), notes)


def _bare_onnxruntime(detector: Detector, batch: Any, threads: int | None) -> Peer:
    """A session with onnxruntime's own defaults: what ours costs or gains over it."""
    ort = require("onnxruntime", extra="cpu", purpose="the onnxruntime peer")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(detector.artifact), options, providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    feed = {INPUT: batch.astype(np.float16) if half else batch}
    return Peer(NETWORK, "onnxruntime session", on_host_clock(lambda: session.run(list(OUTPUTS), feed)))


def _torch_peers(
    detector: Detector, image: Image, checkpoint: Path | None, threads: int | None, notes: list[str]
) -> list[Peer]:
    torch = require("torch", extra="export", purpose="the PyTorch peers")
    from benchmarks.torch_peer import detect_and_assemble, end_to_end

    if threads is not None:
        torch.set_num_threads(threads)
    spec = detector.spec
    image_hw = (image.shape[0], image.shape[1])
    heads = detector.run_network(detector.preprocess([image]))
    loc, conf, mask_coeff, proto = (torch.from_numpy(head[0]) for head in heads)
    priors = torch.from_numpy(make_priors(spec).copy())

    def original_detect() -> object:
        with torch.inference_mode():
            return detect_and_assemble(loc, conf, mask_coeff, proto, priors, image_hw)

    peers = [Peer(AFTER, ORIGINAL_DETECT, on_host_clock(original_detect))]
    notes += other_options_note(spec)
    if checkpoint is None:
        notes.append(NO_CHECKPOINT)
        return peers
    model = build_torch_model(checkpoint, spec)
    pixels = torch.from_numpy(detector.preprocess([image]))

    def eager() -> object:
        with torch.inference_mode():
            return model(pixels)

    def eager_end_to_end() -> object:
        with torch.inference_mode():
            return end_to_end(model, image, priors)

    compiled = torch.compile(model)

    def run_compiled() -> object:
        with torch.inference_mode():
            return compiled(pixels)

    return [
        *peers,
        Peer(NETWORK, "PyTorch eager", on_host_clock(eager)),
        Peer(WHOLE, "PyTorch eager, original's Detect", on_host_clock(eager_end_to_end)),
        *compiled_peer(run_compiled, on_host_clock(run_compiled), notes),
    ]
