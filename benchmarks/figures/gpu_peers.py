"""Others' ways from head tensors to masks, and the network alone, in PyTorch on the same GPU.

What has shapes that depend on the data can't be a CUDA graph: it is timed by events around calls, its host's part included, as
its users have it. What can be one is timed as graph replays, as the kernels are. On a CPU (a rehearsal) everything is timed by
the host's clock, and says so.
"""

from __future__ import annotations

import importlib
import statistics
import traceback
from collections.abc import Callable, Mapping
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures.gpu_report import Visit
from benchmarks.figures.gpu_timing import REPLAYS, SPIN_S, SmClock
from benchmarks.figures.networks import golden_model
from benchmarks.figures.scenes import network_input
from benchmarks.torch_peer import assemble, detect_and_assemble
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

TOLD = (("recorded", "550"), ("recorded", "1080p"), ("100 full", "550"), ("100 full", "1080p"))  # scene, size
_WARMUP = 3
_CALLS, _LEAST_CALLS = 15, 3
_MOST_S = 2.0  # that calls of one row take
_MOST = 100  # detections
Call: TypeAlias = Callable[[], Any]


class TorchTimer:
    """Median microseconds on PyTorch's device."""

    def __init__(self, device: torch.device, *, rehearsal: bool) -> None:
        self.device, self._calls = device, 1 if rehearsal else _CALLS
        self._clock = SmClock(device.index or 0) if device.type == "cuda" else None
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def spin(self, seconds: float = SPIN_S) -> None:
        """Multiply matrices for so long: an idle GPU has its clocks down."""
        if self._stream is None:
            return
        matrix = torch.randn(4096, 4096, device=self.device)
        ends = perf_counter() + seconds
        while perf_counter() < ends:
            for _ in range(REPLAYS):
                matrix @ matrix
            torch.cuda.synchronize(self.device)

    def calls(self, work: Call) -> dict[str, Any]:
        """{"us", "method", "sm_mhz", "peak_bytes"} of calls one by one."""
        if self._stream is None:
            return {"us": self._on_host(work), "method": "host's clock"}
        with torch.cuda.stream(self._stream):
            for _ in range(_WARMUP):
                began = perf_counter()
                work()
                torch.cuda.synchronize(self.device)
                taken_s = perf_counter() - began
            calls = max(_LEAST_CALLS, min(_CALLS, int(_MOST_S / taken_s)))
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            times = [self._between_events(work) for _ in range(calls)]
            peak = torch.cuda.max_memory_allocated(self.device) - before
        return {**self._told(times, "events around calls"), "peak_bytes": peak}

    def graph(self, work: Call) -> dict[str, Any]:
        """{"us", "method", "sm_mhz"} of work whose shapes are fixed, as a CUDA graph."""
        if self._stream is None:
            return {"us": self._on_host(work), "method": "host's clock"}
        with torch.cuda.stream(self._stream):
            for _ in range(_WARMUP):
                work()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                work()

            def replay() -> None:
                for _ in range(REPLAYS):
                    graph.replay()

            replay()
            times = [self._between_events(replay) / REPLAYS for _ in range(self._calls)]
        return self._told(times, f"CUDA graph, {REPLAYS} replays between events")

    def _told(self, times_us: list[float], method: str) -> dict[str, Any]:
        mhz = None if self._clock is None else self._clock()
        return {"us": statistics.median(times_us), "method": method, "sm_mhz": [] if mhz is None else [mhz]}

    def _between_events(self, work: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(self._stream)
        work()
        end.record(self._stream)
        end.synchronize()
        taken: float = start.elapsed_time(end) * 1e3
        return taken

    def _on_host(self, work: Call) -> float:
        times = []
        for _ in range(self._calls):
            begin = perf_counter_ns()
            work()
            times.append((perf_counter_ns() - begin) / 1e3)
        return statistics.median(times)


def measure(
    visit: Visit,
    spec: ModelSpec,
    scenes: Mapping[str, Callable[[], HeadTensors]],
    sizes_hw: Mapping[str, tuple[int, int]],
) -> None:
    """Rows of "peers": {"peer", "scene", "size", "us", "method"} or {"peer", "why_not"}; what takes longest to begin last."""
    device = torch.device(visit.torch_device)
    visit.report.keep("peers", [])
    timer = TorchTimer(device, rehearsal=visit.rehearsal)
    timer.spin()
    told = [("recorded", size) for size in sizes_hw] if visit.rehearsal else TOLD
    priors = torch.from_numpy(np.array(make_priors(spec))).to(device)
    compiled: Any = torch.compile(detect_and_assemble, backend="eager" if visit.rehearsal else "inductor", dynamic=True)
    ways: dict[str, Callable[..., Any]] = {
        "the original's Detect and postprocess, eager": detect_and_assemble,
        "NMS, masks and RLE as servers do": serve,
        "the original's Detect and postprocess, torch.compile": compiled,
    }
    for peer, way in ways.items():
        if way is compiled:
            _networks(visit, timer)
        for scene, size in told:
            image_hw = sizes_hw[size]
            heads = [torch.from_numpy(head[0]).to(device) for head in scenes[scene]()]

            def work(way: Any = way, heads: Any = heads, image_hw: tuple[int, int] = image_hw) -> Any:
                with torch.inference_mode():
                    return way(*heads, priors, image_hw)

            _row(visit, {"peer": peer, "scene": scene, "size": size, "image_hw": list(image_hw)}, timer.calls, work)


def _networks(visit: Visit, timer: TorchTimer) -> None:
    """The network alone, in and out of device memory."""
    model, image = golden_model()
    batch = torch.from_numpy(network_input(image, model.spec)).to(timer.device)
    for name in ("float32", "float32 with TF32", "float16, channels last"):
        is_half = name.startswith("float16")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name.endswith("TF32")
        torch.backends.cudnn.benchmark = True
        narrow = torch.bfloat16 if timer.device.type == "cpu" else torch.float16  # what a CPU has kernels for
        dtype = narrow if is_half else torch.float32
        there: Any = model.to(timer.device, dtype)
        moved = there.to(memory_format=torch.channels_last)
        image_there: Any = batch.to(dtype).to(memory_format=torch.channels_last)

        def work(moved: Any = moved, image_there: Any = image_there) -> Any:
            with torch.inference_mode():
                return moved(image_there)

        _row(visit, {"peer": f"the network alone, {name}", "batch": 1}, timer.graph, work)


def _row(visit: Visit, row: dict[str, Any], measure_work: Callable[[Call], dict[str, Any]], work: Call) -> None:
    """One that fails is told, and costs the others nothing."""
    try:
        visit.report.add("peers", {**row, **measure_work(work)})
    except Exception as exc:  # compilers' and allocators' errors share no base
        traceback.print_exc()
        visit.report.add("peers", {**row, "why_not": f"{type(exc).__name__}: {exc}"[:500]})


def serve(
    loc: Tensor,  # [P, 4]
    conf: Tensor,  # [P, 1 + C], softmaxed
    mask_coeff: Tensor,  # [P, K]
    proto: Tensor,  # [Hp, Wp, K]
    priors: Tensor,  # [P, 4]
    image_hw: tuple[int, int],
) -> list[dict[str, Any]]:
    """COCO results of one image as common servers make them: one class a prior, greedy NMS by class, dense masks to the host, a
    run-length encoding each."""
    centres = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
    sizes = priors[:, 2:] * torch.exp(loc[:, 2:] * 0.2)
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    scores, class_ids = conf[:, 1:].max(1)
    rows = torch.nonzero(scores > 0.05).flatten()
    rows = rows[batched_nms(boxes[rows], scores[rows], class_ids[rows])][:_MOST]
    found = assemble(boxes[rows], mask_coeff[rows], class_ids[rows], scores[rows], proto, image_hw)
    masks = found.masks.bool().cpu().numpy()
    told = zip(found.class_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), masks, strict=True)
    return [{"category_id": c, "score": s, "bbox": box, "counts": run_lengths(mask)} for c, s, box, mask in told]


def batched_nms(
    boxes: Tensor,  # [n, 4], x1y1x2y2
    scores: Tensor,  # [n]
    class_ids: Tensor,  # [n]
    iou_threshold: float = 0.5,
) -> Tensor:  # [kept]
    """Rows that are kept, the surest first: by torchvision where it is, else in PyTorch."""
    try:
        operations = importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError):  # the second: one that was built for another PyTorch
        return _greedy_nms(boxes, scores, class_ids, iou_threshold)
    kept: Tensor = operations.batched_nms(boxes, scores, class_ids, iou_threshold)
    return kept


def _greedy_nms(boxes: Tensor, scores: Tensor, class_ids: Tensor, iou_threshold: float) -> Tensor:
    order = scores.argsort(descending=True)
    shifted = boxes[order] + 2 * (boxes.max() - boxes.min()) * class_ids[order, None] if len(order) else boxes
    low = torch.maximum(shifted[:, None, :2], shifted[None, :, :2])
    high = torch.minimum(shifted[:, None, 2:], shifted[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area = (shifted[:, 2:] - shifted[:, :2]).prod(-1)
    above = (intersection / (area[:, None] + area - intersection) > iou_threshold).cpu().numpy()
    alive = np.ones(len(order), bool)
    for row in range(len(order)):
        if alive[row]:
            alive[row + 1 :] &= ~above[row, row + 1 :]
    return order[torch.from_numpy(np.flatnonzero(alive)).to(order.device)]


def run_lengths(mask: Any) -> list[int]:
    """Of a mask [H, W], down its columns, as COCO counts them."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = [0] * bool(flat[0])  # the first run is of background
    counts: list[int] = np.diff([0, *starts, *changes.tolist(), flat.size]).tolist()
    return counts
